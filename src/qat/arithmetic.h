/*
 * arithmetic.h - what happens to one weight in quantization-aware training, and the order in which a step's gradient is
 * summed; shared by C and CUDA. Every operation is IEEE 754 single precision in a stated order (explicit fma, no
 * contraction), so that results are the same bytes on every processor.
 */
#ifndef STQ_QAT_ARITHMETIC_H
#define STQ_QAT_ARITHMETIC_H

#include <stquant/qat.h>

#include "quant/convert.h"

/* How the factor of an estimator is computed. */
typedef enum stq_qat_factor {
    STQ_QAT_ONE = 0,
    STQ_QAT_POLYNOMIAL = 1, /* stable and soft, where a polynomial is good enough: the usual case */
    STQ_QAT_HARMONICS = 2,  /* stable, by its formula */
    STQ_QAT_EXPONENTIAL = 3 /* soft, by its formula */
} stq_qat_factor;

/* A configuration as the loops need it. */
typedef struct stq_qat_rule {
    float lowest; /* code range */
    float highest;
    uint32_t factor;     /* an stq_qat_factor */
    float polynomial[8]; /* in 8 (|d| - centre)^2 - 1, lowest power first */
    float centre;
    uint32_t harmonics;
    float amplitudes[STQ_QAT_MAX_HARMONICS]; /* sqrt(2) pi A_k; 0 where not in use */
    float slope;                             /* soft: -2 k / ln 2, k = ln(2 / alpha - 1) */
    float height;                            /* soft: 4 k / (2 tanh(k / 2)) */
} stq_qat_rule;

/*
 * The sum over a group goes tile by tile. In a tile, weight i adds to accumulator i modulo 128 in ascending order,
 * starting from 0; accumulators 4 j to 4 j + 3 make lane j, as (first + second) + (third + fourth); lanes are halved:
 * lane j adds lane j + 16, then j + 8, 4, 2 and 1. All of that in float; the sums of the tiles add up in double, in
 * order.
 */
enum { STQ_QAT_TILE = 1024, STQ_QAT_ACCUMULATORS = 128, STQ_QAT_LANES = 32, STQ_QAT_LANE_VALUES = 4 };

/* Weights that share one step. */
static inline int64_t stq_qat_group(const stq_qat_config *config, int64_t cols) {
    return config->group ? config->group : cols;
}

/* The range of codes: all of a rule that rounding needs. */
static inline stq_qat_rule stq_qat_range(uint32_t bits) {
    stq_qat_rule rule;
    memset(&rule, 0, sizeof rule);
    rule.lowest = -(float)(1 << (bits - 1));
    rule.highest = (float)((1 << (bits - 1)) - 1);
    return rule;
}

/* Steps are floored, and a NaN is the floor too. */
STQ_INLINE float stq_qat_usable_step(float step) { return step > 1e-5f ? step : 1e-5f; }

/* v inside the range of codes. Selections rather than fminf and fmaxf, which compilers do not vectorise for their NaN;
 * a NaN becomes the lowest code. */
STQ_INLINE float stq_qat_clamp(float v, const stq_qat_rule *rule) {
    v = v > rule->lowest ? v : rule->lowest;
    return v < rule->highest ? v : rule->highest;
}

/* To nearest, ties to even, of |x| below 2^22; -0 and what rounds to it become 0. */
STQ_INLINE float stq_qat_round(float x) { return (x + 12582912.0f) - 12582912.0f; }

/* A smooth factor as a polynomial that fit_factor() in qat.c made. */
STQ_INLINE float stq_qat_polynomial_factor(float d, const stq_qat_rule *rule) {
    float u = fabsf(d) - rule->centre;
    float t = fmaf(8.0f * u, u, -1.0f);
    float p = rule->polynomial[7];
    p = fmaf(p, t, rule->polynomial[6]);
    p = fmaf(p, t, rule->polynomial[5]);
    p = fmaf(p, t, rule->polynomial[4]);
    p = fmaf(p, t, rule->polynomial[3]);
    p = fmaf(p, t, rule->polynomial[2]);
    p = fmaf(p, t, rule->polynomial[1]);
    return fmaf(p, t, rule->polynomial[0]);
}

/* cos(pi d), |d| <= 1/2, to 2^-24: the Taylor series in (pi d)^2, whose next term is 6e-9. */
STQ_INLINE float stq_qat_cos_pi(float d) {
    float y = d * d * 9.8696044f;
    float c = fmaf(2.08767570e-9f, y, -2.75573192e-7f);
    c = fmaf(c, y, 2.48015873e-5f);
    c = fmaf(c, y, -1.38888889e-3f);
    c = fmaf(c, y, 4.16666667e-2f);
    c = fmaf(c, y, -0.5f);
    return fmaf(c, y, 1.0f);
}

/* The stable estimator's factor (1 - S) / (1 + S); odd multiples of the angle by Chebyshev's recurrence. `harmonics`
 * may be any number from those in use on: the others add 0. */
STQ_INLINE float stq_qat_harmonics_factor(float d, const stq_qat_rule *rule, uint32_t harmonics) {
    float c = stq_qat_cos_pi(d);
    float twice = fmaf(4.0f * c, c, -2.0f); /* 2 cos(2 pi d) */
    float last = c, s = rule->amplitudes[0] * c;
    for (uint32_t k = 1; k < harmonics; k++) {
        float next = fmaf(twice, c, -last);
        last = c;
        c = next;
        s = fmaf(rule->amplitudes[k], c, s);
    }
    return (1.0f - s) / (1.0f + s);
}

/* 2^x for x <= 0, to 2^-22; below 2^-126 it is that. The series of 2^f, |f| <= 1/2, ends before a term of 1.2e-7. */
STQ_INLINE float stq_qat_power_of_two(float x) {
    x = x > -126.0f ? x : -126.0f;
    float whole = stq_qat_round(x), f = (x - whole) * 0.693147181f;
    float p = fmaf(1.38888889e-3f, f, 8.33333333e-3f);
    p = fmaf(p, f, 4.16666667e-2f);
    p = fmaf(p, f, 0.166666667f);
    p = fmaf(p, f, 0.5f);
    p = fmaf(p, f, 1.0f);
    return fmaf(p, f, 1.0f) * stq_bits_float((uint32_t)((int32_t)whole + 127) << 23);
}

/* DSQ: k sech^2(k t) / (2 tanh(k / 2)), t = 1/2 - |d| the distance to the edge between two steps. */
STQ_INLINE float stq_qat_exponential_factor(float d, const stq_qat_rule *rule) {
    float e = stq_qat_power_of_two(rule->slope * (0.5f - fabsf(d)));
    float one = 1.0f + e;
    return rule->height * e / (one * one);
}

/* To bfloat16, nearest even: half of the last place, less one if it is even, then truncation. */
STQ_INLINE uint16_t stq_qat_bfloat16(float value) {
    return stq_to_bfloat16(value, 0x7fffu + (stq_float_bits(value) >> 16 & 1));
}

#endif
