/*
 * step_cases.h - the inputs of the checksum table step_checksums.txt: many steps of AdamW on one tensor, made from
 * counters by exact arithmetic (no libm), so that every backend's test produces the same. The table is made by the
 * scalar reference (test_step_checksums --generate) and is the contract of all kernels: any difference in a code, a
 * scale or a parameter changes a checksum.
 *
 * A case is a sequence of widths, dtypes and coefficients. The tensor has STEP_CASE_COUNT elements, an odd tail
 * included; its blocks differ in kind: ordinary ones of many sizes, zeros, dead columns, rows seen rarely, scales near
 * 2^-128, subnormals, squares that overflow, outliers, constants, negative zeros.
 */
#ifndef STEP_CASES_H
#define STEP_CASES_H

#include "quant/codec.h"
#include "quant/convert.h"

#define STEP_CASE_BLOCKS 41
#define STEP_CASE_COUNT (40 * STQ_BLOCK + 37)
#define STEP_CASE_STEPS 300
#define STEP_CASE_FIRST_BLOCK 4294967290 /* random numbers use the low 32 bits: the counter wraps within the tensor */

typedef struct step_case {
    char name[48];
    uint32_t m_bits; /* of the first step; changes with `moving` */
    uint32_t v_bits;
    uint32_t parameter_type;
    uint32_t gradient_type;
    bool compensated; /* error compensation with alpha = 0.5 */
    bool moving;      /* widths take a step up or down every 10 steps */
    bool fast;        /* beta2 = 0.95 instead of 0.999 */
    bool converted;   /* float32 states for 10 steps, then coded for 280, then float32 */
} step_case;

/* An exact float in (-1, 1) from 24 bits. */
static inline float step_case_unit(uint32_t hash) {
    return (float)((int32_t)(hash >> 8) - (1 << 23)) * (1.0f / 8388608.0f);
}

static inline float step_case_power(int exponent) {
    return exponent < -126 ? stq_bits_float(1u << (149 + exponent)) : stq_bits_float((uint32_t)(exponent + 127) << 23);
}

/* Element i of the gradient of step t (from 1), before it is rounded to the case's dtype. */
static inline float step_case_gradient(uint32_t seed, uint32_t t, uint32_t i) {
    uint32_t block = i / STQ_BLOCK;
    uint32_t hash = stq_hash(stq_hash(seed + 0x51ed270bu * t) + i * 0x9e3779b9u);
    uint32_t more = stq_hash(hash ^ 0x68bc21ebu);
    float unit = step_case_unit(hash);
    /* The size varies from block to block, from column to column and, rarely, by many octaves. */
    int exponent = -12 + (int)(block * 5 % 16) + (int)(i % 7) / 2 - __builtin_ctz(more | 1u << 12);
    switch (block % 20) {
    case 8: /* never a gradient */
        return 0.0f;
    case 9: /* dead columns */
        return i % 3 == 0 ? unit * step_case_power(exponent) : (more & 1) != 0 ? 0.0f : -0.0f;
    case 10: /* a row that is seen in every seventh step */
        return t % 7 == 3 ? unit * step_case_power(exponent) : 0.0f;
    case 11:
        return unit * step_case_power(exponent - 60);
    case 12: /* moments around 2^-100, where the encoder's inverse scale begins to need help */
        return unit * step_case_power(-97 - (int)(t % 5));
    case 13: /* scales near 2^-128 */
        return unit * step_case_power(-124 - (int)(t % 7));
    case 14: /* subnormals */
        return unit * step_case_power(-140);
    case 15:
        return unit * step_case_power(exponent + 40);
    case 16: /* squares near the largest float */
        return unit * step_case_power(66 + (int)(t % 3));
    case 17: /* squares beyond it */
        return unit * step_case_power(70);
    case 18: /* one outlier */
        return unit * step_case_power(i % STQ_BLOCK == 77 ? 8 : -12);
    case 19: /* one magnitude, so that values lie on the scale itself */
        return (more & 1) != 0 ? 0.25f : -0.25f;
    default:
        return unit * step_case_power(exponent);
    }
}

/* The same in the case's dtype, as step_case_store writes it: rounded to nearest, finite. */
static inline void step_case_store(void *array, uint32_t dtype, uint32_t i, float value) {
    const float largest_half = 65504.0f;
    if (dtype == STQ_FLOAT16)
        value = value > largest_half ? largest_half : value < -largest_half ? -largest_half : value;
    stq_store_float(array, dtype, i, value, 0x8000u);
}

/* Parameters before the first step; a few are the largest of their dtype. */
static inline float step_case_parameter(uint32_t seed, uint32_t i) {
    if (i / STQ_BLOCK == 15 && i % 16 == 5)
        return stq_bits_float(STQ_LARGEST_FLOAT_BITS);
    return step_case_unit(stq_hash(stq_hash(seed ^ 0x2c1b3c6du) + i * 0x9e3779b9u)) * 0.0625f;
}

/* Coefficients of step t; powers by repeated multiplication, so that they need no libm. */
static inline stq_coefficients step_case_coefficients(const step_case *which, uint32_t t) {
    double beta1 = 0.9, beta2 = which->fast ? 0.95 : 0.999, power1 = 1.0, power2 = 1.0;
    for (uint32_t i = 0; i < t; i++) {
        power1 *= beta1;
        power2 *= beta2;
    }
    double root = sqrt(1.0 - power2);
    stq_coefficients c = {
        .gradient_factor = t % 5 == 4 ? 0.625f : 1.0f, /* clipped now and then */
        .beta1 = (float)beta1,
        .one_minus_beta1 = (float)(1.0 - beta1),
        .beta2 = (float)beta2,
        .one_minus_beta2 = (float)(1.0 - beta2),
        .decay = (float)(1.0 - 1e-3 * 0.01),
        .step_size = (float)(1e-3 * root / (1.0 - power1)),
        .epsilon = (float)(1e-8 * root),
        .compensation = which->compensated ? (float)(0.5 * 9.0 * (1.0 - power1)) : 0.0f,
        .step_key = stq_step_key(1234567890123456789u, t),
        .plain_step = (float)(1e-3 / (1.0 - power1)),
        .plain_root = (float)root,
        .plain_epsilon = 1e-8f,
    };
    return c;
}

/* Widths that step t writes: the same as before, or for `moving` cases one more or less within 2 .. 8. */
static inline void step_case_move(const step_case *which, uint32_t t, uint32_t *m_bits, uint32_t *v_bits) {
    if (which->converted) {
        *m_bits = t <= 10 || t > 290 ? STQ_BITS_FLOAT32 : which->m_bits;
        *v_bits = t <= 10 || t > 290 ? STQ_BITS_FLOAT32 : which->v_bits;
        return;
    }
    if (!which->moving || t % 10 != 0)
        return;
    uint32_t hash = stq_hash(t * 0x9e3779b9u + which->m_bits * 16 + which->v_bits);
    *m_bits = (hash & 1) != 0 ? *m_bits + (*m_bits < 8) : *m_bits - (*m_bits > 2);
    *v_bits = (hash & 2) != 0 ? *v_bits + (*v_bits < 8) : *v_bits - (*v_bits > 2);
}

/* 64-bit FNV-1a; begin with STEP_CASE_DIGEST. */
#define STEP_CASE_DIGEST 0xcbf29ce484222325u

static inline uint64_t step_case_digest(uint64_t digest, const void *bytes, uint64_t size) {
    for (uint64_t i = 0; i < size; i++)
        digest = (digest ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3u;
    return digest;
}

static inline step_case step_case_named(const char *name, uint32_t m_bits, uint32_t v_bits, uint32_t parameter_type,
                                        uint32_t gradient_type) {
    step_case which = {
        .m_bits = m_bits, .v_bits = v_bits, .parameter_type = parameter_type, .gradient_type = gradient_type};
    static const char *const dtypes[] = {"float32", "bfloat16", "float16"};
    snprintf(which.name, sizeof which.name, "%s-%u-%u-%s-%s", name, m_bits, v_bits, dtypes[parameter_type],
             dtypes[gradient_type]);
    return which;
}

#define STEP_CASE_TOTAL (49 + 9 + 9 + 7 + 9 + 8 + 3)

/* Case `index` of STEP_CASE_TOTAL. */
static inline step_case step_case_at(uint32_t index) {
    if (index < 49) /* every pair of widths */
        return step_case_named("width", 2 + index / 7, 2 + index % 7, STQ_FLOAT32, STQ_FLOAT32);
    index -= 49;
    if (index < 9) /* every pair of dtypes */
        return step_case_named("dtype", 4, 4 + index % 3, index / 3, index % 3);
    index -= 9;
    if (index < 9) /* float32 states */
        return step_case_named("plain", 32, 32, index / 3, index % 3);
    index -= 9;
    step_case which;
    if (index < 7) {
        which = step_case_named("compensated", 2 + index, 8 - index, index % 3, STQ_FLOAT32);
        which.compensated = true;
        return which;
    }
    index -= 7;
    if (index < 9) {
        which = step_case_named("moving", 2 + index * 5 % 7, 2 + index * 3 % 7, index / 3, index % 3);
        which.moving = true;
        which.compensated = index == 8;
        return which;
    }
    index -= 9;
    if (index >= 8) {
        which = step_case_named("converted", 3 + index % 3, 7 - index % 3, index - 8, index - 8);
        which.converted = true;
        return which;
    }
    which = step_case_named("fast", 2 + index % 7, 2 + index * 2 % 7, STQ_FLOAT32, STQ_BFLOAT16);
    which.fast = true;
    return which;
}

#endif
