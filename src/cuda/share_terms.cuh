/*
 * share_terms.cuh - terms of shared second moments out of gradients in regular rows: bfloat16 or float32, a multiple of
 * 8 values a row, aligned to 16 bytes. Some vectors are loaded before the first one is worked on, since it is memory
 * that this pass waits for; and a term takes 7 instructions instead of 10.
 */
#ifndef STQ_SHARE_TERMS_CUH
#define STQ_SHARE_TERMS_CUH

#include "cuda/words.h"
#include "quant/convert.h"
#include "quant/shared.h"

#define THREADS 256
#define EIGHT 8

/* Blocks a multiprocessor of the pass over the gradients: 64 registers a thread. */
#ifndef STQ_SHARE_BLOCKS
#define STQ_SHARE_BLOCKS 4
#endif

/* The bit that the largest term has and no other. Four terms of which none has it stay below 2^32; where one has, the
 * sums are made again. */
#define SATURATED (1u << 30)

static __device__ __forceinline__ bool is_regular(const stq_item *item, uint32_t dtype) {
    return item->gradient_type == dtype && item->cols % EIGHT == 0 && (uintptr_t)item->gradient % 16 == 0;
}

/* 8 neighbouring gradients, as they lie in memory; 0 if they do not exist. */
template <bool HALF> struct eight_gradients;

template <> struct eight_gradients<true> {
    uint4 words;
    static constexpr int batch = 4, bytes = 2;
    __device__ __forceinline__ void load(const char *from, bool exists) {
        words = make_uint4(0, 0, 0, 0);
        if (exists)
            words = *(const uint4 *)from;
    }
    __device__ __forceinline__ float at(int k) const {
        uint32_t pair = k < 2 ? words.x : k < 4 ? words.y : k < 6 ? words.z : words.w;
        return stq_pair_value(pair, k & 1);
    }
};

template <> struct eight_gradients<false> {
    float4 low, high;
    static constexpr int batch = 2, bytes = 4;
    __device__ __forceinline__ void load(const char *from, bool exists) {
        low = high = make_float4(0, 0, 0, 0);
        if (exists) {
            low = ((const float4 *)from)[0];
            high = ((const float4 *)from)[1];
        }
    }
    __device__ __forceinline__ float at(int k) const {
        const float4 &four = k < 4 ? low : high;
        return k % 4 == 0 ? four.x : k % 4 == 1 ? four.y : k % 4 == 2 ? four.z : four.w;
    }
};

/* stq_shared_term(): what is not 0 is raised to 1 before it is rounded instead of after. */
static __device__ __forceinline__ uint32_t term_of(float g, float factor) {
    float scaled = g * factor;
    float square = fminf(scaled * scaled, STQ_SHARED_LARGEST);
    return (uint32_t)__float2int_rn(fmaxf(square, g != 0.0f ? 1.0f : 0.0f));
}

/* A lane's part of the sum of elements at .. stop - 1 of a row; what terms there were is or-ed into `seen`. */
template <bool HALF>
static __device__ __forceinline__ unsigned long long terms_of_row(const stq_item *item, float factor, int64_t at,
                                                                  int64_t stop, uint32_t *seen) {
    constexpr int BATCH = eight_gradients<HALF>::batch, STEP = 32 * EIGHT, BYTES = eight_gradients<HALF>::bytes;
    int left = (int)(stop - at); /* a warp's part has 8,192 elements */
    int own = (int)(threadIdx.x % 32 * EIGHT);
    const char *from = (const char *)item->gradient + (at + own) * BYTES;
    unsigned long long sum = 0;
    for (; left > 0; left -= BATCH * STEP, from += BATCH * STEP * BYTES) {
        eight_gradients<HALF> raw[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++)
            raw[b].load(from + b * STEP * BYTES, own + b * STEP < left);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            if (b * STEP >= left)
                break;
            uint32_t t[EIGHT];
#pragma unroll
            for (int k = 0; k < EIGHT; k++) {
                t[k] = term_of(raw[b].at(k), factor);
                *seen |= t[k];
            }
            sum += t[0] + t[1] + t[2] + t[3];
            sum += t[4] + t[5] + t[6] + t[7];
        }
    }
    return sum;
}

/* Sums of 8 columns over `lines` rows, of which the first begins at `from` and each one `stride` bytes after the one
 * before; whether a term saturated. */
template <bool HALF>
static __device__ __forceinline__ bool terms_of_columns(unsigned long long *sums, const float *factors,
                                                        const char *from, int64_t stride, int lines) {
    constexpr int BATCH = eight_gradients<HALF>::batch;
    float factor[EIGHT];
    uint32_t seen = 0;
#pragma unroll
    for (int k = 0; k < EIGHT; k++)
        factor[k] = factors[k];
    for (; lines > 0; lines -= BATCH) {
        eight_gradients<HALF> raw[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++, from += stride)
            raw[b].load(from, b < lines);
#pragma unroll
        for (int k = 0; k < EIGHT; k++) {
            uint32_t sum = 0;
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                uint32_t term = term_of(raw[b].at(k), factor[k]);
                seen |= term;
                sum += term;
            }
            sums[k] += sum;
        }
    }
    return (seen & SATURATED) != 0;
}

#endif
