/*
 * plain.cuh - rows of the common case: coded states whose widths stay, whole blocks, aligned arrays. Every stage has a
 * short form that is right for ordinary numbers and a general form for the others (zeros, numbers near the ends of the
 * range, wide lattices); a warp takes the general one as soon as one of its lanes needs it. Both give the reference's
 * bytes: docs/cuda.md says why.
 *
 * A warp works on groups of STQ_WARP_ROWS rows of 256 values. Keys and scale words of a group's blocks are made or
 * loaded once, one a lane: lane 16 h + j holds those of block 2 (j mod 8) + h: for j < 8 the key of the second moment's
 * stream and the scale of m, for j >= 8 the key of the parameter's stream and the scale of v.
 */
#ifndef STQ_PLAIN_CUH
#define STQ_PLAIN_CUH

#include "cuda/exact.h"
#include "cuda/general.cuh"

/* Which widths a kernel body is made for: with fewer cases fewer instructions. */
enum plain_range {
    PLAIN_PAIRS,   /* 2 and 3 bits, all coded states */
    PLAIN_NIBBLES, /* 4 and 5 bits, all coded states */
    PLAIN_ANY      /* 2 to 8 bits */
};

/* What the second moment is: codes, or means that are only read (quant/shared.h). */
enum plain_second { PLAIN_CODED, PLAIN_ROW_MEANS, PLAIN_COL_MEANS };

template <plain_range RANGE> static __device__ __forceinline__ bool plain_is_pair(uint32_t bits) {
    return RANGE == PLAIN_PAIRS || (RANGE == PLAIN_ANY && bits < 4);
}

template <plain_range RANGE> static __device__ __forceinline__ uint32_t plain_extra(uint32_t bits) {
    return bits - (plain_is_pair<RANGE>(bits) ? 2 : 4);
}

/* Scales of m from 2^-40 on (their bits): no m is -0 or so small that the quotient's residual is inexact
 * (docs/cuda.md). */
#define PLAIN_LOWEST_SCALE (87u << 23)
/* Bits of 2^-100 and 2^40: between them lie the values that the short arithmetic is made for. */
#define PLAIN_LOWEST (27u << 23)
#define PLAIN_LARGEST (167u << 23)

/*
 * A row's input on its way: copied into shared memory while the warp works on the row before. Gradients come first,
 * then parameters, then the planes: m's base plane, v's, m's four bit planes, v's, which is also how the codes leave.
 * Each lane copies one 16-byte chunk of the planes, if there is such a plane, and one or two of each array.
 */
#define PLAIN_BASE_BYTES (STQ_ROW / 2)
#define PLAIN_BIT_BYTES (STQ_ROW / 8)
#define PLAIN_PLANE_BYTES (2 * PLAIN_BASE_BYTES + 8 * PLAIN_BIT_BYTES)
#define PLAIN_STAGE_BYTES (2 * 4 * STQ_ROW + PLAIN_PLANE_BYTES)
#define PLAIN_STAGES 2

/* How much of the second-level cache's line a read of a plane brings along: the block's other warps want it too. */
#ifndef PLAIN_PREFETCH
#define PLAIN_PREFETCH ".L2::128B"
#endif
#define PLAIN_SHARED_BYTES (PLAIN_STAGES * PLAIN_STAGE_BYTES * STQ_TILE_WARPS)

static_assert(PLAIN_PLANE_BYTES == 32 * 16, "one chunk a lane");

#ifndef PLAIN_STORE
#define PLAIN_STORE __stcs
#endif

#ifdef STQ_EMULATED
static char *plain_shared(void) {
    static char memory[PLAIN_SHARED_BYTES];
    return memory;
}
static void plain_copy(char *to, const char *from, bool exists = true) {
    if (exists)
        memcpy(to, from, 16);
}
static void plain_commit(void) {}
static void plain_wait(void) {}
#else
static __device__ __forceinline__ char *plain_shared(void) {
    extern __shared__ __align__(16) char memory[];
    return memory;
}

/* Copies 16 bytes, or writes zeros where there is nothing to copy. */
static __device__ __forceinline__ void plain_copy(char *to, const char *from, bool exists = true) {
    asm volatile("cp.async.cg.shared.global" PLAIN_PREFETCH
                 " [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(exists ? 16 : 0)
                 : "memory");
}
static __device__ __forceinline__ void plain_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
static __device__ __forceinline__ void plain_wait(void) { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
#endif

/* Where chunk `chunk` of a row of floats lies: so that lanes reading chunks 2 l, and then 2 l + 1, meet all banks. */
static __device__ __forceinline__ uint32_t plain_place(uint32_t chunk) { return chunk ^ (chunk >> 3 & 1); }

/* 8 neighbouring elements. `row` is the row's place in shared memory. */
template <bool HALF> struct plain_raw;

template <> struct plain_raw<true> {
    uint4 words;
    static __device__ __forceinline__ void fetch(char *row, const char *from, uint32_t lane) {
        plain_copy(row + lane * 16, from);
    }
    __device__ __forceinline__ void load(const char *row, uint32_t lane) { words = *(const uint4 *)(row + lane * 16); }
    __device__ __forceinline__ float at(int k) const {
        uint32_t pair = k < 2 ? words.x : k < 4 ? words.y : k < 6 ? words.z : words.w;
        return stq_pair_value(pair, k & 1);
    }
};

template <> struct plain_raw<false> {
    float4 low, high;
    static __device__ __forceinline__ void fetch(char *row, const char *from, uint32_t lane) {
        plain_copy(row + plain_place(lane) * 16, from);
        plain_copy(row + 512 + plain_place(lane) * 16, from + 512);
    }
    __device__ __forceinline__ void load(const char *row, uint32_t lane) {
        low = *(const float4 *)(row + plain_place(2 * lane) * 16);
        high = *(const float4 *)(row + plain_place(2 * lane + 1) * 16);
    }
    __device__ __forceinline__ float at(int k) const {
        const float4 &four = k < 4 ? low : high;
        return k % 4 == 0 ? four.x : k % 4 == 1 ? four.y : k % 4 == 2 ? four.z : four.w;
    }
};

/* A lane's pointers into the arrays of an item: to its own 16-byte chunk of each in the present row. */
struct plain_source {
    char *parameter;
    const char *gradient;
    char *plane;
    uint32_t plane_stride; /* bytes to the warp's next row; 0: the lane has no plane to copy */
};

/* The plane of which a lane copies a chunk, and how far into it. Means are no planes: the lanes of v have none then. */
template <plain_second SECOND>
static __device__ __forceinline__ void plain_find_plane(plain_source *source, const stq_item *item, int64_t row,
                                                        uint32_t lane) {
    bool first = lane < 16 ? lane < 8 : lane < 24;
    const stq_planes *planes = first ? &item->m_in : &item->v_in;
    uint32_t base_bits = stq_base_bits(planes->bits), bytes = 0;
    source->plane = (char *)planes->base;
    if (SECOND != PLAIN_CODED && !first) {
        source->plane_stride = 0;
        return;
    }
    if (lane < 16 && lane % 8 < base_bits * 2) {
        bytes = base_bits * (STQ_ROW / 8);
        source->plane += row * bytes + lane % 8 * 16;
    } else if (lane >= 16 && lane % 8 / 2 < planes->bits - base_bits) {
        bytes = PLAIN_BIT_BYTES;
        source->plane = (char *)planes->bit[lane % 8 / 2] + row * bytes + lane % 2 * 16;
    }
    source->plane_stride = bytes * STQ_TILE_WARPS;
}

/* Begins to copy a row. */
template <bool HALF_P, bool HALF_G>
static __device__ __forceinline__ void plain_fetch(char *stage, const plain_source &source, uint32_t lane) {
    constexpr int bytes_p = STQ_ROW * (HALF_P ? 2 : 4), bytes_g = STQ_ROW * (HALF_G ? 2 : 4);
    plain_raw<HALF_G>::fetch(stage, source.gradient, lane);
    plain_raw<HALF_P>::fetch(stage + bytes_g, source.parameter, lane);
    plain_copy(stage + bytes_g + bytes_p + lane * 16, source.plane, source.plane_stride != 0);
}

/* The codes out of a pair plane's 2 bytes: a nibble of the selector becomes a byte, because byte n of the table is n.
 */
static __device__ __forceinline__ stq_words plain_words_from_pairs(uint32_t pairs) {
    stq_words words = {__byte_perm(0x03020100u, 0, pairs & 0x3333u), __byte_perm(0x03020100u, 0, pairs >> 2 & 0x3333u)};
    return words;
}

/* A lane's codes out of the planes of a row in shared memory. `base` and `bit` are the state's planes there. */
template <plain_range RANGE>
static __device__ __forceinline__ stq_words plain_unpack(const char *base, const char *bit, uint32_t bits,
                                                         uint32_t lane) {
    const uint8_t *byte = (const uint8_t *)bit + lane;
    stq_words words = plain_is_pair<RANGE>(bits) ? plain_words_from_pairs(((const uint16_t *)base)[lane])
                                                 : stq_words_from_nibbles(((const uint32_t *)base)[lane]);
    uint32_t extra = plain_extra<RANGE>(bits);
    if (extra > 0)
        words = stq_words_append(words, byte[0]);
    if (RANGE == PLAIN_ANY && extra > 1) {
        words = stq_words_append(words, byte[PLAIN_BIT_BYTES]);
        if (extra > 2)
            words = stq_words_append(words, byte[2 * PLAIN_BIT_BYTES]);
        if (extra > 3)
            words = stq_words_append(words, byte[3 * PLAIN_BIT_BYTES]);
    }
    return words;
}

/* The way back. */
template <plain_range RANGE>
static __device__ __forceinline__ void plain_pack(char *base, char *bit, uint32_t bits, uint32_t lane,
                                                  stq_words words) {
    uint8_t *byte = (uint8_t *)bit + lane;
    uint32_t extra = plain_extra<RANGE>(bits);
    if (plain_is_pair<RANGE>(bits))
        ((uint16_t *)base)[lane] = (uint16_t)stq_words_pairs(words, extra);
    else
        ((uint32_t *)base)[lane] = stq_words_nibbles(words, extra);
    if (extra > 0)
        byte[0] = (uint8_t)stq_words_bits(words, RANGE == PLAIN_ANY ? extra - 1 : 0);
    if (RANGE == PLAIN_ANY && extra > 1) {
        byte[PLAIN_BIT_BYTES] = (uint8_t)stq_words_bits(words, extra - 2);
        if (extra > 2)
            byte[2 * PLAIN_BIT_BYTES] = (uint8_t)stq_words_bits(words, extra - 3);
        if (extra > 3)
            byte[3 * PLAIN_BIT_BYTES] = (uint8_t)stq_words_bits(words, extra - 4);
    }
}

/* Code of value k: one instruction. */
static __device__ __forceinline__ uint32_t plain_code(stq_words words, int k) {
    return __byte_perm(k & 1 ? words.odd : words.even, 0, 0x4440 | k / 2);
}

/* 2^(n mod 32) as a factor, of which the compiler does not know that a shift would do: a multiplication also adds. */
static __device__ __forceinline__ uint32_t plain_factor(uint32_t n) {
#ifdef STQ_EMULATED
    return 1u << (n & 31);
#else
    uint32_t factor;
    asm("shf.l.wrap.b32 %0, 0, 1, %1;" : "=r"(factor) : "r"(n));
    return factor;
#endif
}

/* Keeps a value that is dear to make again in its register. */
#ifdef STQ_EMULATED
#define plain_keep(value) ((void)(value))
#else
static __device__ __forceinline__ void plain_keep(uint32_t &value) { asm volatile("" : "+r"(value)); }
#endif

/* m of up to 5 bits: each lane holds one level, signed and relative to the scale, and gives it to whoever has its code.
 * The shuffle ignores all but the code's 5 bits; at 2 and 3 bits all but 4, so that each block's lanes may hold levels
 * times the block's scale. Wider m: the code's bits are put in place as those of t / 2. */
template <plain_range RANGE>
static __device__ __forceinline__ void plain_decode_m(float *m, stq_words codes, uint32_t bits, float level,
                                                      float scale) {
    if (RANGE == PLAIN_PAIRS) {
        float value = level * scale;
#pragma unroll
        for (int k = 0; k < STQ_LANE_VALUES; k++)
            m[k] =
                __shfl_sync(STQ_ALL_LANES, value, (k & 1 ? codes.odd : codes.even) >> (8 * (k / 2)), STQ_BLOCK_LANES);
        return;
    }
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

/* A scale word of v made ready: low, whose lower 19 bits are 0, with the shift in bits 0 to 4 and the node bit in
 * bit 5. */
static __device__ __forceinline__ uint32_t plain_lattice(uint32_t word, uint32_t bits) {
    return word >> 4 << 19 | (word & 1) << 5 | (stq_v_finest(bits) + (word >> 1 & 7));
}

static __device__ __forceinline__ void plain_decode_v(float *v, stq_words codes, uint32_t lattice) {
    uint32_t low = lattice & 0xfff80000u;
    uint32_t factor = plain_factor(lattice);
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        v[k] = stq_bits_float(plain_code(codes, k) * factor + low);
    bool has_zero = (lattice & 32) == 0;
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
    PLAIN_STORE((float4 *)to, make_float4(p[0], p[1], p[2], p[3]));
    PLAIN_STORE((float4 *)to + 1, make_float4(p[4], p[5], p[6], p[7]));
}

/* Rounds stochastically. No float below 2^120 can round past the largest; the sum finds larger ones, infinities and
 * NaN. */
static __device__ __forceinline__ void plain_store_halves(void *to, const float *p, uint32_t key, uint32_t offset) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        sum += fabsf(p[k]);
    bool ordinary = sum < 0x1p120f;
    uint32_t out[STQ_LANE_VALUES / 2];
#pragma unroll
    for (int i = 0; i < STQ_LANE_VALUES / 2; i++) {
        uint32_t pair = stq_mix_pair(key ^ (offset + stq_pair_offset(i)));
        out[i] = __byte_perm(stq_float_bits(p[2 * i]) + (pair & 0xffffu), stq_float_bits(p[2 * i + 1]) + (pair >> 16),
                             0x7632);
    }
    if (!__all_sync(STQ_ALL_LANES, ordinary)) {
#pragma unroll
        for (int i = 0; i < STQ_LANE_VALUES / 2; i++) {
            uint32_t pair = stq_mix_pair(key ^ (offset + stq_pair_offset(i)));
            out[i] = stq_to_bfloat16(p[2 * i], pair & 0xffffu) | (uint32_t)stq_to_bfloat16(p[2 * i + 1], pair >> 16)
                                                                     << 16;
        }
    }
    PLAIN_STORE((uint4 *)to, make_uint4(out[0], out[1], out[2], out[3]));
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

/* Two numbers below 2^15 less `below`, or 0 where that is negative, in the halves of a word. */
static __device__ __forceinline__ uint32_t plain_pair_above(uint32_t first, uint32_t second, uint32_t below) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900 /* no instruction for two halves */
    return (max(second, below) << 16) + max(first, below) - below * 0x10001u;
#else
    return __viaddmax_s16x2((second << 16) + first, (0u - below & 0xffffu) * 0x10001u, 0);
#endif
}

/* Codes of v on a lattice whose shift is 16 to 23. Whatever the random number, a value below the lattice comes to its
 * first node at most, and counts as that. */
static __device__ __forceinline__ stq_words plain_codes_v(const float *v, uint32_t low, uint32_t shift, uint32_t key,
                                                          uint32_t offset) {
    uint32_t factor = plain_factor(shift - 16);
    uint32_t x[STQ_LANE_VALUES];
#pragma unroll
    for (int i = 0; i < STQ_LANE_VALUES / 2; i++) {
        uint32_t pair = stq_mix_pair(key ^ (offset + stq_pair_offset(i)));
        x[2 * i] = ((pair & 0xffffu) * factor + stq_float_bits(v[2 * i])) >> shift;
        x[2 * i + 1] = ((pair >> 16) * factor + stq_float_bits(v[2 * i + 1])) >> shift;
    }
    uint32_t below = low >> shift;
    stq_words codes = {__byte_perm(plain_pair_above(x[0], x[2], below), plain_pair_above(x[4], x[6], below), 0x6420),
                       __byte_perm(plain_pair_above(x[1], x[3], below), plain_pair_above(x[5], x[7], below), 0x6420)};
    return codes;
}

/* The same where cells are two octaves wide, at 2 bits: nodes are floats whose lower 24 bits are 0, powers of 2. A
 * random number of 24 bits is compared with the position in the cell, which is three times its lower node wide; factors
 * that are powers of 2 round nothing. Byte 3 of a value's bits, counted up if it rounds up, is its code above that of
 * `low`.
 */
static __device__ __forceinline__ stq_words plain_codes_v_wide(const float *v, uint32_t low, uint32_t key,
                                                               uint32_t in_block) {
    float x[STQ_LANE_VALUES];
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++) {
        float value = fmaxf(v[k], stq_bits_float(low));
        float node = stq_bits_float(stq_float_bits(value) & 0xff000000u);
        float random = (float)(stq_random_wide(key, in_block + k) << 8) * (3.0f / 4294967296.0f);
        x[k] = stq_bits_float(stq_float_bits(value) + (value - node > random * node ? 1u << 24 : 0));
    }
    uint32_t below = stq_four(low >> 24);
    stq_words codes = {plain_bytes(x, 3) - below, plain_bytes(x + 1, 3) - below};
    return codes;
}

/* What a lane knows about its warp, and keeps from row to row. */
struct plain_warp {
    uint32_t m_bits, v_bits;
    uint32_t lane;
    uint32_t half;         /* 0, or 16 in the second block's lanes */
    uint32_t offset;       /* of the lane's first pair of random numbers */
    uint32_t lowest_scale; /* bits of the scale below which the short arithmetic does not hold */
    float level;           /* of the code that is the lane's number, for m of up to 5 bits */
    uint32_t keys;
    uint32_t scales; /* bits of m's scale, or v's lattice */
    uint32_t new_words;
    uint32_t next_word; /* the scale word of the group after this one */
    uint32_t v_grain;   /* the lane's candidate for v's new lattice: mask of low, */
    uint32_t v_span;    /* and distance of its last node from low */
};

/* The place of a lane's first value in its block. */
static __device__ __forceinline__ uint32_t plain_in_block(uint32_t lane) {
    return lane % STQ_BLOCK_LANES * STQ_LANE_VALUES;
}

/*
 * Finds the block's new lattice and the codes of v. Lane j of a block tries shift j mod 8; the finest that fits is the
 * reference's. `largest` and `smallest` are the block's; the lower 16 bits of `smallest` are cut off, which changes no
 * `low`. `ordinary`: no value is 0 or near the ends of the range, so that the reach does not end below 0.
 */
template <plain_range RANGE>
static __device__ __forceinline__ general_codes plain_encode_v(const float *v, const plain_warp &warp, uint32_t bits,
                                                               uint32_t largest, uint32_t smallest, bool ordinary,
                                                               uint32_t key) {
    uint32_t candidate = max(smallest, largest - stq_v_reach(bits, 0)) & warp.v_grain;
    uint32_t fits = __ballot_sync(STQ_ALL_LANES, candidate + warp.v_span >= largest);
    fits &= 0xffu << warp.half;
    uint32_t chosen = __ffs(fits) - 1;
    uint32_t low = __shfl_sync(STQ_ALL_LANES, candidate, chosen);
    uint32_t shift = stq_v_finest(bits) + (chosen & 7);
    ordinary = ordinary && fits != 0 && shift >= 16;
    if (__all_sync(STQ_ALL_LANES, ordinary)) {
        general_codes result;
        result.word = low >> 15 | (chosen & 7) << 1 | 1;
        bool wide = shift > 23;
        if (RANGE == PLAIN_NIBBLES || bits != 2 || !__all_sync(STQ_ALL_LANES, wide))
            result.codes = plain_codes_v(v, low, wide ? 23 : shift, key, warp.offset);
        if (RANGE != PLAIN_NIBBLES && bits == 2 && __any_sync(STQ_ALL_LANES, wide)) {
            stq_words codes = plain_codes_v_wide(v, low, key, plain_in_block(warp.lane));
            result.codes = wide ? codes : result.codes;
        }
        return result;
    }
    float copy[STQ_LANE_VALUES];
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        copy[k] = v[k];
    return general_codes_v(copy, STQ_LANE_VALUES, plain_in_block(warp.lane), bits, key);
}

/* The moments after the step, in place of those before. */
static __device__ __forceinline__ void plain_moments(float *m, float *v, const float *g, const stq_coefficients &c,
                                                     stq_words codes_m, uint32_t m_bits) {
    uint32_t smallest = 0xffffffffu;
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k += 2) {
        float first = c.one_minus_beta2 * (g[k] * g[k]), second = c.one_minus_beta2 * (g[k + 1] * g[k + 1]);
        smallest = __vimin3_u32(smallest, stq_float_bits(first), stq_float_bits(second));
        v[k] = fmaf(c.beta2, v[k], first);
        v[k + 1] = fmaf(c.beta2, v[k + 1], second);
    }
    if (__any_sync(STQ_ALL_LANES, smallest == 0))
        plain_drop_lowest(m, g, codes_m, m_bits);
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        m[k] = fmaf(c.beta1, m[k], c.one_minus_beta1 * g[k]);
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

/* One row, number `row` of the warp's present group; `stage` holds its input. */
template <bool HALF_P, bool HALF_G, plain_range RANGE>
static __device__ __forceinline__ void plain_row(plain_warp &warp, const stq_coefficients &c, uint32_t row, char *stage,
                                                 const plain_source &source) {
    constexpr int bytes_p = STQ_ROW * (HALF_P ? 2 : 4), bytes_g = STQ_ROW * (HALF_G ? 2 : 4);
    char *planes = stage + bytes_g + bytes_p;
    char *base_m = planes, *base_v = planes + PLAIN_BASE_BYTES;
    char *bit_m = planes + 2 * PLAIN_BASE_BYTES, *bit_v = bit_m + 4 * PLAIN_BIT_BYTES;
    uint32_t holder = warp.half + row;
    uint32_t scale_m = __shfl_sync(STQ_ALL_LANES, warp.scales, holder);
    uint32_t lattice = __shfl_sync(STQ_ALL_LANES, warp.scales, holder + STQ_WARP_ROWS);

    float m[STQ_LANE_VALUES], v[STQ_LANE_VALUES], g[STQ_LANE_VALUES], p[STQ_LANE_VALUES];
    stq_words codes_m = plain_unpack<RANGE>(base_m, bit_m, warp.m_bits, warp.lane);
    plain_decode_m<RANGE>(m, codes_m, warp.m_bits, warp.level, stq_bits_float(scale_m));
    plain_decode_v(v, plain_unpack<RANGE>(base_v, bit_v, warp.v_bits, warp.lane), lattice);
    plain_raw<HALF_G> raw_g;
    raw_g.load(stage, warp.lane);
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        g[k] = raw_g.at(k) * c.gradient_factor;
    plain_moments(m, v, g, c, codes_m, warp.m_bits);

    plain_extremes found = plain_find_extremes(m, v);
    bool ordinary_v = found.lowest_v >= PLAIN_LOWEST && found.largest_v <= PLAIN_LARGEST;
    bool ordinary = ordinary_v && scale_m >= warp.lowest_scale && stq_float_bits(found.largest_m) <= PLAIN_LARGEST;
    plain_raw<HALF_P> raw_p;
    raw_p.load(stage + bytes_g, warp.lane);
    plain_update<HALF_P>(p, raw_p, m, v, c, ordinary);
    if constexpr (HALF_P) {
        plain_store_halves(source.parameter, p, __shfl_sync(STQ_ALL_LANES, warp.keys, holder + STQ_WARP_ROWS),
                           warp.offset);
    } else {
        plain_store_floats(source.parameter + warp.lane * 16, p);
    }

    uint32_t both = stq_m_scale_word(stq_float_bits(found.largest_m)) << 16 | ~found.lowest_v >> 16;
    both = stq_block_max_halves(both);
    uint32_t new_m = both >> 16;
    plain_pack<RANGE>(base_m, bit_m, warp.m_bits, warp.lane, plain_encode_m(m, warp.m_bits, found.largest_m, new_m));
    uint32_t key = __shfl_sync(STQ_ALL_LANES, warp.keys, holder);
    general_codes result =
        plain_encode_v<RANGE>(v, warp, warp.v_bits, stq_block_max(found.largest_v), ~both << 16, ordinary_v, key);
    plain_pack<RANGE>(base_v, bit_v, warp.v_bits, warp.lane, result.codes);
    uint32_t place = warp.lane % STQ_BLOCK_LANES;
    warp.new_words = place == row ? new_m : place == row + STQ_WARP_ROWS ? result.word : warp.new_words;
    __syncwarp();
    if (source.plane_stride != 0)
        PLAIN_STORE((uint4 *)source.plane, *(const uint4 *)(planes + warp.lane * 16));
}

#endif
