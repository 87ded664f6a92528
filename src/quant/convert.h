/* convert.h - 16-bit floats to float32 (exact) and back (stated rounding), shared by C and CUDA. */
#ifndef STQ_CONVERT_H
#define STQ_CONVERT_H

#include "quant/codec.h"

STQ_INLINE float stq_from_bfloat16(uint16_t half) { return stq_bits_float((uint32_t)half << 16); }

/* Stochastic rounding with 16 random bits: up with the probability of the fraction cut off. Infinities and NaN are
 * truncated, and a value that would round past the largest finite number stays there. */
STQ_INLINE uint16_t stq_to_bfloat16(float value, uint32_t word) {
    uint32_t bits = stq_float_bits(value);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude < 0x7f7f0000u)
        bits += word;
    return (uint16_t)(bits >> 16);
}

STQ_INLINE float stq_from_float16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = half >> 10 & 31;
    uint32_t fraction = half & 0x3ffu;
    if (exponent == 0) {
        float magnitude = (float)fraction * (1.0f / 16777216.0f);
        return stq_bits_float(sign | stq_float_bits(magnitude));
    }
    if (exponent == 31)
        return stq_bits_float(sign | 0x7f800000u | fraction << 13);
    return stq_bits_float(sign | (exponent + 112) << 23 | fraction << 13);
}

/* Nearest even; overflow gives infinity, NaN stays NaN (quiet, payload's top bits kept), as the hardware conversions
 * do. */
STQ_INLINE uint16_t stq_to_float16(float value) {
    uint32_t bits = stq_float_bits(value);
    uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u)
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
        /* Adding 0.5 aligns the last place with 2^-24, a half's smallest step. */
        float aligned = stq_bits_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (stq_float_bits(aligned) - 0x3f000000u));
    }
    uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | (magnitude - 0x38000000u + 0xfffu + odd) >> 13);
}

/* True for the types that parameters and gradients may have. */
STQ_INLINE bool stq_is_float_type(uint32_t dtype) { return dtype <= STQ_FLOAT16; }

/* Element `index` of an array of `dtype`. */
STQ_INLINE float stq_load_float(const void *array, uint32_t dtype, int64_t index) {
    switch (dtype) {
    case STQ_BFLOAT16:
        return stq_from_bfloat16(((const uint16_t *)array)[index]);
    case STQ_FLOAT16:
        return stq_from_float16(((const uint16_t *)array)[index]);
    default:
        return ((const float *)array)[index];
    }
}

/* Stores element `index`; `word` are 16 random bits, used for bfloat16 alone. */
STQ_INLINE void stq_store_float(void *array, uint32_t dtype, int64_t index, float value, uint32_t word) {
    switch (dtype) {
    case STQ_BFLOAT16:
        ((uint16_t *)array)[index] = stq_to_bfloat16(value, word);
        break;
    case STQ_FLOAT16:
        ((uint16_t *)array)[index] = stq_to_float16(value);
        break;
    default:
        ((float *)array)[index] = value;
    }
}

/* `count` elements from `first` on as floats: the array itself where it is of float32, or `buffer`, which has room for
 * them. On the host. */
const float *stq_float_run(const void *array, uint32_t dtype, int64_t first, int64_t count, float *buffer);

#endif
