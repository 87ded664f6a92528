/*
 * plain.cuh - rows of the common case: coded states whose widths stay, whole blocks, aligned arrays. Every stage has a
 * short form that is right for ordinary numbers and a general form for the others (zeros, numbers near the ends of the
 * range, wide lattices); a warp takes the general one as soon as one of its lanes needs it. Both give the reference's
 * bytes: docs/cuda.md says why.
 *
 * A warp works on up to STQ_WARP_ROWS rows of 256 values. Keys and scale words of their blocks are made or loaded once,
 * one a lane: lane 16 h + j holds those of block 2 (j mod 8) + h: for j < 8 the key of the second moment's stream and
 * the scale of m, for j >= 8 the key of the parameter's stream and the scale of v.
 */
#ifndef STQ_PLAIN_CUH
#define STQ_PLAIN_CUH

#include "cuda/exact.h"
#include "cuda/general.cuh"

/* Which widths a kernel body is made for: with fewer cases fewer instructions. */
enum plain_range {
    PLAIN_PAIRS,   /* 2 and 3 bits, both states */
    PLAIN_NIBBLES, /* 4 and 5 bits, both states */
    PLAIN_ANY      /* 2 to 8 bits */
};

template <plain_range RANGE> static __device__ __forceinline__ bool plain_is_pair(uint32_t bits) {
    return RANGE == PLAIN_PAIRS || (RANGE == PLAIN_ANY && bits < 4);
}

template <plain_range RANGE> static __device__ __forceinline__ uint32_t plain_extra(uint32_t bits) {
    return bits - (plain_is_pair<RANGE>(bits) ? 2 : 4);
}

/* Scale words of m from 2^-40 on: no m is -0 or so small that the quotient's residual is inexact (docs/cuda.md). */
#define PLAIN_LOWEST_SCALE (87u << 7)
/* Bits of 2^-100 and 2^40: between them lie the values that the short arithmetic is made for. */
#define PLAIN_LOWEST (27u << 23)
#define PLAIN_LARGEST (167u << 23)

/* 8 neighbouring elements as loaded. */
template <bool HALF> struct plain_raw;

template <> struct plain_raw<true> {
    uint4 words;
    __device__ __forceinline__ void load(const void *from) { words = __ldcs((const uint4 *)from); }
    __device__ __forceinline__ float at(int k) const {
        uint32_t pair = k < 2 ? words.x : k < 4 ? words.y : k < 6 ? words.z : words.w;
        return stq_bits_float(k & 1 ? pair & 0xffff0000u : pair << 16);
    }
};

template <> struct plain_raw<false> {
    float4 low, high;
    __device__ __forceinline__ void load(const void *from) {
        low = __ldcs((const float4 *)from);
        high = __ldcs((const float4 *)from + 1);
    }
    __device__ __forceinline__ float at(int k) const {
        const float4 &four = k < 4 ? low : high;
        return k % 4 == 0 ? four.x : k % 4 == 1 ? four.y : k % 4 == 2 ? four.z : four.w;
    }
};

/* Where a lane finds its 8 values of one state in the present row. Planes beyond the first bit plane are looked up. */
struct plain_place {
    const stq_planes *planes;
    char *base;
    uint8_t *bit;
    uint32_t bits;

    __device__ __forceinline__ void begin(const stq_planes *of, int64_t at) {
        planes = of;
        bits = of->bits;
        base = (char *)of->base + at * (bits < 4 ? 2 : 4);
        bit = of->bit[0] + at;
    }
};

/* A state's planes of 8 values as loaded. */
struct plain_planes {
    uint32_t base;
    uint32_t bit[4];
};

template <plain_range RANGE>
static __device__ __forceinline__ plain_planes plain_load(const plain_place &place, int64_t at) {
    plain_planes raw = {};
    uint32_t extra = plain_extra<RANGE>(place.bits);
    if (plain_is_pair<RANGE>(place.bits))
        raw.base = __ldcs((const uint16_t *)place.base);
    else
        raw.base = __ldcs((const uint32_t *)place.base);
    if (extra > 0)
        raw.bit[0] = __ldcs(place.bit);
    if (RANGE == PLAIN_ANY && extra > 1) {
        raw.bit[1] = __ldcs(place.planes->bit[1] + at);
        if (extra > 2)
            raw.bit[2] = __ldcs(place.planes->bit[2] + at);
        if (extra > 3)
            raw.bit[3] = __ldcs(place.planes->bit[3] + at);
    }
    return raw;
}

template <plain_range RANGE>
static __device__ __forceinline__ stq_words plain_unpack(const plain_planes &raw, uint32_t bits) {
    stq_words words = plain_is_pair<RANGE>(bits) ? stq_words_from_pairs(raw.base) : stq_words_from_nibbles(raw.base);
    uint32_t extra = plain_extra<RANGE>(bits);
    if (extra > 0)
        words = stq_words_append(words, raw.bit[0]);
    if (RANGE == PLAIN_ANY && extra > 1) {
        words = stq_words_append(words, raw.bit[1]);
        if (extra > 2)
            words = stq_words_append(words, raw.bit[2]);
        if (extra > 3)
            words = stq_words_append(words, raw.bit[3]);
    }
    return words;
}

template <plain_range RANGE>
static __device__ __forceinline__ void plain_store(const plain_place &place, int64_t at, stq_words words) {
    uint32_t extra = plain_extra<RANGE>(place.bits);
    if (plain_is_pair<RANGE>(place.bits))
        __stcs((uint16_t *)place.base, (uint16_t)stq_words_pairs(words, extra));
    else
        __stcs((uint32_t *)place.base, stq_words_nibbles(words, extra));
    if (extra > 0)
        __stcs(place.bit, (uint8_t)stq_words_bits(words, RANGE == PLAIN_ANY ? extra - 1 : 0));
    if (RANGE == PLAIN_ANY && extra > 1) {
        __stcs(place.planes->bit[1] + at, (uint8_t)stq_words_bits(words, extra - 2));
        if (extra > 2)
            __stcs(place.planes->bit[2] + at, (uint8_t)stq_words_bits(words, extra - 3));
        if (extra > 3)
            __stcs(place.planes->bit[3] + at, (uint8_t)stq_words_bits(words, extra - 4));
    }
}

/* Code of value k: one instruction. */
static __device__ __forceinline__ uint32_t plain_code(stq_words words, int k) {
    return __byte_perm(k & 1 ? words.odd : words.even, 0, 0x4440 | k / 2);
}

/* 2^n as a factor, of which the compiler does not know that a shift would do: a multiplication also adds. */
static __device__ __forceinline__ uint32_t plain_factor(uint32_t n) {
#ifdef STQ_EMULATED
    return 1u << n;
#else
    uint32_t factor;
    asm("shl.b32 %0, 1, %1;" : "=r"(factor) : "r"(n));
    return factor;
#endif
}

/* m of up to 5 bits: each lane holds one level, signed and relative to the scale, and gives it to whoever has its code.
 * The shuffle ignores all but the code's 5 bits. Wider m: the code's bits are put in place as those of t / 2. */
template <plain_range RANGE>
static __device__ __forceinline__ void plain_decode_m(float *m, stq_words codes, uint32_t bits, float level,
                                                      float scale) {
    if (RANGE != PLAIN_ANY || bits <= 5) {
#pragma unroll
        for (int k = 0; k < STQ_LANE_VALUES; k++)
            m[k] = __shfl_sync(STQ_ALL_LANES, level, (k & 1 ? codes.odd : codes.even) >> (8 * (k / 2))) * scale;
        return;
    }
    uint32_t mask = stq_four(0xff << (9 - bits) & 0xff), half = stq_four(1 << (8 - bits));
    stq_words magnitudes = {(codes.even << (9 - bits) & mask) | half, (codes.odd << (9 - bits) & mask) | half};
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++) {
        uint32_t word = k & 1 ? magnitudes.odd : magnitudes.even;
        float half_t = stq_bits_float(__byte_perm(word, 0x3f, 0x4055 | (k / 2) << 8));
        float value = fmaf(2.0f, half_t, -1.0f) * (1.0f / 3.0f) * scale;
        uint32_t sign = (k & 1 ? codes.odd : codes.even) << (32 - bits - 8 * (k / 2)) & 0x80000000u;
        m[k] = stq_bits_float(stq_float_bits(value) | sign);
    }
}

/* Where g is 0 and the magnitude code the lowest, m counts as 0. */
static __device__ __forceinline__ void plain_drop_lowest(float *m, const float *g, stq_words codes, uint32_t bits) {
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        if (g[k] == 0.0f && stq_m_is_lowest(plain_code(codes, k), bits))
            m[k] = 0.0f;
}

static __device__ __forceinline__ void plain_decode_v(float *v, stq_words codes, uint32_t bits, uint32_t word) {
    uint32_t low = word >> 4 << 19;
    uint32_t factor = plain_factor(stq_v_coarsest(bits) - 7 + (word >> 1 & 7));
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        v[k] = stq_bits_float(plain_code(codes, k) * factor + low);
    bool has_zero = (word & 1) == 0;
    if (__any_sync(STQ_ALL_LANES, has_zero)) {
#pragma unroll
        for (int k = 0; k < STQ_LANE_VALUES; k++)
            if (has_zero && plain_code(codes, k) == 0)
                v[k] = 0.0f;
    }
}

/* The approximate instructions. tests/cuda/emulated.h puts others in their place. */
#ifdef STQ_EMULATED
#define plain_reciprocal emulated_reciprocal
#define plain_root_reciprocal emulated_root_reciprocal
#else
static __device__ __forceinline__ float plain_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ float plain_root_reciprocal(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

/* The parameters after the step, before their rounding. */
template <bool HALF>
static __device__ __forceinline__ void plain_update(float *p, const plain_raw<HALF> &raw, const float *m,
                                                    const float *v, const stq_coefficients &c, bool ordinary) {
    if (__all_sync(STQ_ALL_LANES, ordinary)) {
#pragma unroll
        for (int k = 0; k < STQ_LANE_VALUES; k++) {
            float denominator = stq_exact_root(v[k], plain_root_reciprocal(v[k])) + c.epsilon;
            float quotient = stq_exact_quotient(m[k], denominator, plain_reciprocal(denominator));
            p[k] = fmaf(-c.step_size, quotient, raw.at(k) * c.decay);
        }
    } else {
#pragma unroll
        for (int k = 0; k < STQ_LANE_VALUES; k++)
            p[k] = fmaf(-c.step_size, __fdiv_rn(m[k], __fsqrt_rn(v[k]) + c.epsilon), raw.at(k) * c.decay);
    }
}

static __device__ __forceinline__ void plain_store_floats(void *to, const float *p) {
    __stcs((float4 *)to, make_float4(p[0], p[1], p[2], p[3]));
    __stcs((float4 *)to + 1, make_float4(p[4], p[5], p[6], p[7]));
}

/* Rounds stochastically. No float below 2^120 can round past the largest; the sum finds larger ones, infinities and
 * NaN. */
static __device__ __forceinline__ void plain_store_halves(void *to, const float *p, uint32_t key, uint32_t in_block) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        sum += fabsf(p[k]);
    bool ordinary = sum < 0x1p120f;
    uint32_t out[STQ_LANE_VALUES / 2];
#pragma unroll
    for (int i = 0; i < STQ_LANE_VALUES / 2; i++) {
        uint32_t pair = stq_random_pair(key, in_block / 2 + i);
        out[i] = __byte_perm(stq_float_bits(p[2 * i]) + (pair & 0xffffu), stq_float_bits(p[2 * i + 1]) + (pair >> 16),
                             0x7632);
    }
    if (!__all_sync(STQ_ALL_LANES, ordinary)) {
#pragma unroll
        for (int i = 0; i < STQ_LANE_VALUES / 2; i++) {
            uint32_t pair = stq_random_pair(key, in_block / 2 + i);
            out[i] = stq_to_bfloat16(p[2 * i], pair & 0xffffu) | (uint32_t)stq_to_bfloat16(p[2 * i + 1], pair >> 16)
                                                                     << 16;
        }
    }
    __stcs((uint4 *)to, make_uint4(out[0], out[1], out[2], out[3]));
}

/* Byte `byte` of four floats. */
static __device__ __forceinline__ uint32_t plain_bytes(const float *x, int byte) {
    uint32_t selector = byte | (byte + 4) << 4;
    uint32_t low = __byte_perm(stq_float_bits(x[0]), stq_float_bits(x[2]), selector);
    uint32_t high = __byte_perm(stq_float_bits(x[4]), stq_float_bits(x[6]), selector);
    return __byte_perm(low, high, 0x5410);
}

/* Codes of m for a scale word from 2^-100 on and t below 4: the magnitude's bits are those of byte 2 of t, of which the
 * highest is inverted; the sign is in byte 3 of m. */
static __device__ __forceinline__ stq_words plain_codes_m(const float *m, float inverse, uint32_t bits) {
    float t[STQ_LANE_VALUES];
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        t[k] = fmaf(fabsf(m[k]), inverse, 1.0f);
    uint32_t sign = stq_four(1) << (bits - 1);
    uint32_t highest = sign >> 1, magnitude = sign - stq_four(1);
    stq_words codes;
    codes.even = ((plain_bytes(t, 2) >> (9 - bits) & magnitude) ^ highest) | (plain_bytes(m, 3) >> (8 - bits) & sign);
    codes.odd =
        ((plain_bytes(t + 1, 2) >> (9 - bits) & magnitude) ^ highest) | (plain_bytes(m + 1, 3) >> (8 - bits) & sign);
    return codes;
}

/* Codes of a lane's 8 values of m. `word` is the block's new scale word, `largest` the lane's largest magnitude. */
static __device__ __forceinline__ stq_words plain_encode_m(const float *m, uint32_t bits, float largest,
                                                           uint32_t word) {
    float scale = stq_m_scale(word);
    float inverse = stq_exact_quotient(3.0f, scale, plain_reciprocal(scale));
    bool ordinary = word - (27u << 7) < 0x7f7fu - (27u << 7) && fmaf(largest, inverse, 1.0f) < 4.0f;
    if (__all_sync(STQ_ALL_LANES, ordinary))
        return plain_codes_m(m, inverse, bits);
    float copy[STQ_LANE_VALUES];
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        copy[k] = m[k];
    return general_codes_m(copy, STQ_LANE_VALUES, bits).codes;
}

/* Codes of v on a lattice whose shift is 16 to 23, all values between its first and last node. The sum of the codes in
 * their bytes is made before `low` is taken off: the same modulo 2^32. */
static __device__ __forceinline__ stq_words plain_codes_v(const float *v, uint32_t low, uint32_t shift, uint32_t key,
                                                          uint32_t in_block) {
    uint32_t factor = plain_factor(shift - 16);
    uint32_t x[STQ_LANE_VALUES];
#pragma unroll
    for (int i = 0; i < STQ_LANE_VALUES / 2; i++) {
        uint32_t pair = stq_random_pair(key, in_block / 2 + i);
        x[2 * i] = ((pair & 0xffffu) * factor + stq_float_bits(v[2 * i])) >> shift;
        x[2 * i + 1] = ((pair >> 16) * factor + stq_float_bits(v[2 * i + 1])) >> shift;
    }
    uint32_t below = stq_four(low >> shift);
    stq_words codes = {((x[6] * 256 + x[4]) * 256 + x[2]) * 256 + x[0] - below,
                       ((x[7] * 256 + x[5]) * 256 + x[3]) * 256 + x[1] - below};
    return codes;
}

/* What stays the same over the rows of a warp. */
struct plain_warp {
    uint32_t lane;
    uint32_t in_block;     /* place of the lane's first value in its block */
    uint32_t lowest_scale; /* below it the short arithmetic does not hold */
    float level;           /* of the code that is the lane's number, for m of up to 5 bits */
    uint32_t keys;
    uint32_t words;
    uint32_t new_words;
    uint32_t v_grain; /* the lane's candidate for v's new lattice: mask of low, */
    uint32_t v_span;  /* and distance of its last node from low */
};

/*
 * Finds the block's new lattice and the codes of v. Lane j of a block tries shift j mod 8; the finest that fits is the
 * reference's. `largest` and `lowest` are the block's; the lower 16 bits of `lowest` are cut off, which changes no
 * `low`. `ordinary`: no value is 0 or near the ends of the range.
 */
static __device__ __forceinline__ general_codes plain_encode_v(const float *v, const plain_warp &warp, uint32_t bits,
                                                               uint32_t largest, uint32_t lowest, bool ordinary,
                                                               uint32_t key) {
    uint32_t candidate = lowest & warp.v_grain;
    uint32_t fits = __ballot_sync(STQ_ALL_LANES, candidate + warp.v_span >= largest);
    fits &= 0xffu << (warp.lane & STQ_BLOCK_LANES);
    uint32_t chosen = __ffs(fits) - 1;
    uint32_t low = __shfl_sync(STQ_ALL_LANES, candidate, chosen);
    uint32_t shift = stq_v_coarsest(bits) - 7 + (chosen & 7);
    ordinary = ordinary && fits != 0 && shift - 16 < 8 && largest - lowest <= 24u << 23;
    if (__all_sync(STQ_ALL_LANES, ordinary)) {
        general_codes result = {plain_codes_v(v, low, shift, key, warp.in_block), low >> 15 | (chosen & 7) << 1 | 1};
        return result;
    }
    float copy[STQ_LANE_VALUES];
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        copy[k] = v[k];
    return general_codes_v(copy, STQ_LANE_VALUES, warp.in_block, bits, key);
}

/* The moments after the step, in place of those before. */
static __device__ __forceinline__ void plain_moments(float *m, float *v, const float *g, const stq_coefficients &c,
                                                     stq_words codes_m, uint32_t m_bits) {
    float square[STQ_LANE_VALUES];
    uint32_t smallest = 0xffffffffu;
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        square[k] = c.one_minus_beta2 * (g[k] * g[k]);
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k += 2)
        smallest = __vimin3_u32(smallest, stq_float_bits(square[k]), stq_float_bits(square[k + 1]));
    if (__any_sync(STQ_ALL_LANES, smallest == 0))
        plain_drop_lowest(m, g, codes_m, m_bits);
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++) {
        m[k] = fmaf(c.beta1, m[k], c.one_minus_beta1 * g[k]);
        v[k] = fmaf(c.beta2, v[k], square[k]);
    }
}

/* A lane's extremes of its 8 new moments. */
struct plain_extremes {
    float largest_m;
    uint32_t largest_v, lowest_v;
};

static __device__ __forceinline__ plain_extremes plain_find_extremes(const float *m, const float *v) {
    plain_extremes found = {fabsf(m[0]), 0, 0xffffffffu};
#pragma unroll
    for (int k = 1; k < STQ_LANE_VALUES; k++)
        found.largest_m = fmaxf(found.largest_m, fabsf(m[k]));
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k += 2) {
        found.largest_v = __vimax3_u32(found.largest_v, stq_float_bits(v[k]), stq_float_bits(v[k + 1]));
        found.lowest_v = __vimin3_u32(found.lowest_v, stq_float_bits(v[k]), stq_float_bits(v[k + 1]));
    }
    return found;
}

/* One row, number `row` of the warp's; `at` is the lane's first element divided by 8. */
template <bool HALF_P, bool HALF_G, plain_range RANGE>
static __device__ __forceinline__ void plain_row(plain_warp &warp, const stq_coefficients &c, uint32_t row, int64_t at,
                                                 void *parameter, const void *gradient, const plain_place &place_m,
                                                 const plain_place &place_v) {
    plain_raw<HALF_G> raw_g;
    plain_raw<HALF_P> raw_p;
    raw_g.load(gradient);
    plain_planes raw_m = plain_load<RANGE>(place_m, at);
    plain_planes raw_v = plain_load<RANGE>(place_v, at);
    raw_p.load(parameter);
    uint32_t holder = (warp.lane & STQ_BLOCK_LANES) + row;
    uint32_t word_m = __shfl_sync(STQ_ALL_LANES, warp.words, holder);
    uint32_t word_v = __shfl_sync(STQ_ALL_LANES, warp.words, holder + STQ_WARP_ROWS);

    float m[STQ_LANE_VALUES], v[STQ_LANE_VALUES], g[STQ_LANE_VALUES], p[STQ_LANE_VALUES];
    stq_words codes_m = plain_unpack<RANGE>(raw_m, place_m.bits);
    plain_decode_m<RANGE>(m, codes_m, place_m.bits, warp.level, stq_m_scale(word_m));
    plain_decode_v(v, plain_unpack<RANGE>(raw_v, place_v.bits), place_v.bits, word_v);
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        g[k] = raw_g.at(k) * c.gradient_factor;
    plain_moments(m, v, g, c, codes_m, place_m.bits);

    plain_extremes found = plain_find_extremes(m, v);
    bool ordinary_v = found.lowest_v >= PLAIN_LOWEST && found.largest_v <= PLAIN_LARGEST;
    bool ordinary = ordinary_v && word_m >= warp.lowest_scale && stq_float_bits(found.largest_m) <= PLAIN_LARGEST;
    plain_update<HALF_P>(p, raw_p, m, v, c, ordinary);
    if constexpr (HALF_P)
        plain_store_halves(parameter, p, __shfl_sync(STQ_ALL_LANES, warp.keys, holder + STQ_WARP_ROWS), warp.in_block);
    else
        plain_store_floats(parameter, p);

    uint32_t both = stq_m_scale_word(stq_float_bits(found.largest_m)) << 16 | ~found.lowest_v >> 16;
    both = stq_block_max_halves(both);
    uint32_t new_m = both >> 16;
    plain_store<RANGE>(place_m, at, plain_encode_m(m, place_m.bits, found.largest_m, new_m));
    uint32_t key = __shfl_sync(STQ_ALL_LANES, warp.keys, holder);
    general_codes result =
        plain_encode_v(v, warp, place_v.bits, stq_block_max(found.largest_v), ~both << 16, ordinary_v, key);
    plain_store<RANGE>(place_v, at, result.codes);
    uint32_t place = warp.lane % STQ_BLOCK_LANES;
    warp.new_words = place == row ? new_m : place == row + STQ_WARP_ROWS ? result.word : warp.new_words;
}

/* Prepares a warp whose first block is `block` of the item. */
static __device__ __forceinline__ plain_warp plain_begin(const stq_item *item, const stq_coefficients &c,
                                                         int64_t block) {
    plain_warp warp;
    uint32_t m_bits = item->m_in.bits, v_bits = item->v_in.bits;
    warp.lane = threadIdx.x % 32;
    warp.in_block = warp.lane % STQ_BLOCK_LANES * STQ_LANE_VALUES;
    bool usual = c.beta1 >= 0.5f && c.epsilon <= 0x1p20f && fabsf(c.step_size) <= 0x1p20f && fabsf(c.decay) <= 2.0f;
    warp.lowest_scale = usual ? PLAIN_LOWEST_SCALE : 0xffffffffu;
    warp.level = stq_m_decode(warp.lane & ((1u << m_bits) - 1), 1.0f, m_bits);
    uint32_t shift = stq_v_coarsest(v_bits) - 7 + warp.lane % 8;
    warp.v_grain = ~0u << (shift > 19 ? shift : 19);
    warp.v_span = ((1u << v_bits) - 1) << shift;
    bool second = (warp.lane & STQ_WARP_ROWS) != 0;
    int64_t own = block + 2 * (warp.lane % STQ_WARP_ROWS) + warp.lane / STQ_BLOCK_LANES;
    warp.keys = stq_block_key(c.step_key, item->tensor, (uint32_t)(item->first_block + own),
                              second ? STQ_STREAM_PARAMETER : STQ_STREAM_SECOND_MOMENT);
    warp.words = own * STQ_BLOCK < item->count ? (second ? item->v_in.scales : item->m_in.scales)[own] : 0;
    warp.new_words = warp.words;
    return warp;
}

/* Stores the scale words of the first `rows` rows. */
static __device__ __forceinline__ void plain_end(const plain_warp &warp, const stq_item *item, int64_t block,
                                                 uint32_t rows) {
    uint32_t row = warp.lane % STQ_WARP_ROWS;
    const stq_planes *planes = warp.lane & STQ_WARP_ROWS ? &item->v_out : &item->m_out;
    if (row < rows)
        planes->scales[block + 2 * row + warp.lane / STQ_BLOCK_LANES] = (uint16_t)warp.new_words;
}

/* Rows first .. end - 1 of an item, at most STQ_WARP_ROWS, all whole. */
template <bool HALF_P, bool HALF_G, plain_range RANGE>
static __device__ __forceinline__ void plain_rows(const stq_item *item, const stq_coefficients c, int64_t first,
                                                  int64_t end) {
    constexpr int step = STQ_ROW / STQ_LANE_VALUES;
    constexpr int bytes_p = STQ_LANE_VALUES * (HALF_P ? 2 : 4), bytes_g = STQ_LANE_VALUES * (HALF_G ? 2 : 4);
    plain_warp warp = plain_begin(item, c, first * 2);
    uint32_t rows = (uint32_t)(end - first);
    int64_t at = first * step + warp.lane;
    char *parameter = (char *)item->parameter + at * bytes_p;
    const char *gradient = (const char *)item->gradient + at * bytes_g;
    plain_place place_m, place_v;
    place_m.begin(&item->m_in, at);
    place_v.begin(&item->v_in, at);
#pragma unroll 1
    for (uint32_t row = 0; row < rows; row++) {
        plain_row<HALF_P, HALF_G, RANGE>(warp, c, row, at, parameter, gradient, place_m, place_v);
        at += step;
        parameter += step * bytes_p;
        gradient += step * bytes_g;
        place_m.base += step * (plain_is_pair<RANGE>(place_m.bits) ? 2 : 4);
        place_v.base += step * (plain_is_pair<RANGE>(place_v.bits) ? 2 : 4);
        place_m.bit += step;
        place_v.bit += step;
    }
    plain_end(warp, item, first * 2, rows);
}

#endif
