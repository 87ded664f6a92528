/*
 * emulated.h - enough of CUDA for g++ to compile the step kernel and run it on a CPU: every lane of a warp is a fibre,
 * and a collective operation hands over to the next lane until all 32 have come to it. A lane that comes to another
 * collective than the others ends the program: on a GPU it would deadlock or read garbage. Approximate instructions
 * return the correctly rounded value, moved by `emulated_error` units in the last place, so that a test can try what
 * hardware may do.
 */
#ifndef EMULATED_H
#define EMULATED_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define STQ_EMULATED 1
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

struct uint4 {
    uint32_t x, y, z, w;
};
struct uint2 {
    uint32_t x, y;
};
struct float4 {
    float x, y, z, w;
};
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct dim3 {
    uint32_t x;
};
extern dim3 threadIdx, blockIdx;
extern int emulated_error;

/* Gives every lane of the warp all lanes' values, and checks that they are at the same `place`. */
const uint64_t *emulated_exchange(uint64_t value, int place);

/* The lane that a shuffle reads, of the `width` neighbouring ones to which its own belongs. */
static inline uint32_t emulated_lane(uint32_t lane, uint32_t width = 32) {
    return (threadIdx.x & 31 & ~(width - 1)) | (lane & (width - 1));
}

template <class T> static inline uint64_t emulated_bits(T value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T> static inline T emulated_value(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define __shfl_sync(mask, value, ...) \
    emulated_value<decltype(value)>(emulated_exchange(emulated_bits(value), __LINE__)[emulated_lane(__VA_ARGS__)])
#define __shfl_xor_sync(mask, value, step) \
    emulated_value<decltype(value)>(emulated_exchange(emulated_bits(value), __LINE__)[(threadIdx.x ^ (step)) & 31])
#define __syncwarp() ((void)emulated_exchange(0, __LINE__))
#define __all_sync(mask, predicate) (emulated_ballot((predicate), __LINE__) == 0xffffffffu)
#define __any_sync(mask, predicate) (emulated_ballot((predicate), __LINE__) != 0)
#define __ballot_sync(mask, predicate) emulated_ballot((predicate), __LINE__)

static inline uint32_t emulated_ballot(bool predicate, int place) {
    const uint64_t *all = emulated_exchange(predicate, place);
    uint32_t ballot = 0;
    for (int i = 0; i < 32; i++)
        ballot |= (uint32_t)all[i] << i;
    return ballot;
}

static inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }
static inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint32_t __vimax3_u32(uint32_t a, uint32_t b, uint32_t c) { return max(max(a, b), c); }
static inline uint32_t __vimin3_u32(uint32_t a, uint32_t b, uint32_t c) { return min(min(a, b), c); }
static inline uint32_t __vmaxu2(uint32_t a, uint32_t b) {
    return max(a >> 16, b >> 16) << 16 | max(a & 0xffffu, b & 0xffffu);
}
static inline uint32_t __viaddmax_s16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        int16_t sum = (int16_t)((a >> shift) + (b >> shift)), other = (int16_t)(c >> shift);
        result |= (uint32_t)(uint16_t)(sum > other ? sum : other) << shift;
    }
    return result;
}
static inline int __ffs(uint32_t x) { return __builtin_ffs((int)x); }

static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++)
        result |= (uint32_t)(both >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    return result;
}

template <class T> static inline T __ldcs(const T *from) { return *from; }
template <class T> static inline T __ldg(const T *from) { return *from; }
template <class T> static inline void __stcs(T *to, T value) { *to = value; }

static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float emulated_moved(double exact) {
    float value = (float)exact;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits += (uint32_t)emulated_error;
    memcpy(&value, &bits, sizeof bits);
    return value;
}
static inline float emulated_reciprocal(float x) { return emulated_moved(1.0 / (double)x); }
static inline float emulated_root_reciprocal(float x) { return emulated_moved(1.0 / sqrt((double)x)); }

#endif
