/* neon.c - kernels for 64-bit Arm: 4 lanes. Every such processor has NEON with IEEE arithmetic. */
#if defined(__aarch64__)

#include <arm_neon.h>

#include "quant/kernel_common.h"

#define LANES 4
#define NARROW_BITS 0 /* codes are decoded by arithmetic */
#define GROUP 1       /* vectors that are decoded together */
#define LOOKS_UP_NIBBLES 0

typedef float32x4_t vfloat;
typedef uint32x4_t vint;
typedef int32x4_t vcount; /* a shift common to all lanes */

/* ---- floats ---- */

INLINE vfloat vf_all(float x) { return vdupq_n_f32(x); }
INLINE vfloat vf_load(const float *from) { return vld1q_f32(from); }
INLINE void vf_store(float *to, vfloat x) { vst1q_f32(to, x); }
INLINE vfloat vf_add(vfloat a, vfloat b) { return vaddq_f32(a, b); }
INLINE vfloat vf_subtract(vfloat a, vfloat b) { return vsubq_f32(a, b); }
INLINE vfloat vf_multiply(vfloat a, vfloat b) { return vmulq_f32(a, b); }
INLINE vfloat vf_divide(vfloat a, vfloat b) { return vdivq_f32(a, b); }
INLINE vfloat vf_square_root(vfloat x) { return vsqrtq_f32(x); }
INLINE vfloat vf_fma(vfloat a, vfloat b, vfloat c) { return vfmaq_f32(c, a, b); }

INLINE vfloat vf_from_bits(vint x) { return vreinterpretq_f32_u32(x); }
INLINE vint vi_bits(vfloat x) { return vreinterpretq_u32_f32(x); }
INLINE vint vi_all(uint32_t x) { return vdupq_n_u32(x); }
INLINE vint vi_and(vint a, vint b) { return vandq_u32(a, b); }
INLINE vint vi_magnitude(vfloat x) { return vi_bits(vabsq_f32(x)); }
INLINE vfloat vf_from_integers(vint x) { return vcvtq_f32_u32(x); }

/* The positive constant `size` with the sign of `x`. */
INLINE vfloat vf_copy_sign(vfloat size, vfloat x) { return vbslq_f32(vi_all(0x80000000u), x, size); }

INLINE vfloat vf_limit_magnitude(vfloat x, vfloat limit) { return vf_copy_sign(vminnmq_f32(vabsq_f32(x), limit), x); }

INLINE vfloat vf_zero_where_zero(vfloat test, vfloat x) {
    return vf_from_bits(vbicq_u32(vi_bits(x), vceqzq_f32(test)));
}

/* fma(beta, m, added), or 0 where g is 0 and |m| is the lowest level, whose bits are `dead`; `added` is 0 where g is.
 */
INLINE vfloat vf_decay_m(vfloat beta, vfloat m, vfloat added, vfloat g, vint dead) {
    vint differs = vorrq_u32(veorq_u32(vi_bits(m), dead), vi_bits(g));
    return vf_from_bits(vandq_u32(vi_bits(vf_fma(beta, m, added)), vtstq_u32(differs, vi_all(0x7fffffffu))));
}

INLINE vfloat vf_load_bfloat16(const uint16_t *from) { return vf_from_bits(vshll_n_u16(vld1_u16(from), 16)); }

INLINE void vf_store_bfloat16(uint16_t *to, vfloat x, vint word) {
    vint finite = vcltq_u32(vi_magnitude(x), vi_all(0x7f7f0000u));
    vst1_u16(to, vshrn_n_u32(vaddq_u32(vi_bits(x), vandq_u32(finite, word)), 16));
}

INLINE vfloat vf_load_float16(const uint16_t *from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }

INLINE void vf_store_float16(uint16_t *to, vfloat x) { vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(x))); }

/* ---- integers ---- */

INLINE vint vi_lane_numbers(void) {
    static const uint32_t numbers[] = {0, 1, 2, 3};
    return vld1q_u32(numbers);
}

INLINE vint vi_add(vint a, vint b) { return vaddq_u32(a, b); }
INLINE vint vi_subtract(vint a, vint b) { return vsubq_u32(a, b); }
INLINE vint vi_multiply(vint a, vint b) { return vmulq_u32(a, b); }
INLINE vint vi_xor(vint a, vint b) { return veorq_u32(a, b); }
INLINE vint vi_larger(vint a, vint b) { return vmaxq_u32(a, b); }
INLINE vint vi_smaller(vint a, vint b) { return vminq_u32(a, b); }
INLINE vint vi_shift_right(vint x, const uint32_t bits) { return x >> bits; }
INLINE vint vi_shift_left(vint x, const uint32_t bits) { return x << bits; }
INLINE vcount vi_count(int bits) { return vdupq_n_s32(bits); }
INLINE vint vi_shift_right_by(vint x, vcount bits) { return vshlq_u32(x, vnegq_s32(bits)); }
INLINE vint vi_shift_left_by(vint x, vcount bits) { return vshlq_u32(x, bits); }

/* `yes` where `test` is 0, else `no`. */
INLINE vint vi_where_zero(vint test, vint yes, vint no) { return vbslq_u32(vceqzq_u32(test), yes, no); }

/* 0 where x < limit, else `other`. */
INLINE vint vi_zero_where_less(vint x, vint limit, vint other) { return vandq_u32(vcgeq_u32(x, limit), other); }

/* All ones where a < b, unsigned, else 0. */
INLINE vint vi_less(vint a, vint b) { return vcltq_u32(a, b); }
INLINE vint vi_select(vint mask, vint yes, vint no) { return vbslq_u32(mask, yes, no); }
INLINE vint vi_and_not(vint not, vint x) { return vbicq_u32(x, not ); }
INLINE vint vi_or(vint a, vint b) { return vorrq_u32(a, b); }
INLINE vint vi_load(const uint32_t *from) { return vld1q_u32(from); }
INLINE void vi_store(uint32_t *to, vint x) { vst1q_u32(to, x); }

INLINE vint vi_shift_right_each(vint x, vint bits) { return vshlq_u32(x, vnegq_s32(vreinterpretq_s32_u32(bits))); }
INLINE vint vi_shift_left_each(vint x, vint bits) { return vshlq_u32(x, vreinterpretq_s32_u32(bits)); }

INLINE vint vi_add_where_larger(vint x, vfloat a, vfloat b) { return vsubq_u32(x, vcgtq_f32(a, b)); }

typedef char word_lanes; /* vi_words needs no constants */

INLINE word_lanes make_word_lanes(void) { return 0; }
INLINE vint vi_larger_magnitude(vint x, vfloat y) { return vi_larger(x, vi_magnitude(y)); }
INLINE vint vi_keep(vint x) { return x; }

INLINE vint vi_pair_numbers(void) { return vi_lane_numbers(); }

/* The 4 random words of pairs 2 half and 2 half + 1, each in a lane. */
INLINE vint vi_words(vint pairs, int half, word_lanes lanes) {
    (void)lanes;
    uint16x8_t words = vreinterpretq_u16_u32(pairs);
    return vmovl_u16(half ? vget_high_u16(words) : vget_low_u16(words));
}

/* The largest of the lanes of a and b, the smallest of c. */
INLINE void vi_reduce(vint a, vint b, vint c, uint32_t *largest_a, uint32_t *largest_b, uint32_t *lowest_c) {
    *largest_a = vmaxvq_u32(a);
    *largest_b = vmaxvq_u32(b);
    *lowest_c = vminvq_u32(c);
}

/* ---- planes ---- */

#include "quant/coder_template.h"

/* 8 bytes of nibbles, or 4 of pairs, to 16 codes. */
INLINE uint8x16_t spread_nibbles(const uint8_t *base) {
    uint8x8_t x = vld1_u8(base);
    uint8x8_t low = vand_u8(x, vdup_n_u8(15)), high = vshr_n_u8(x, 4);
    return vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high));
}

INLINE uint8x16_t spread_pairs(const uint8_t *base) {
    static const uint8_t source[] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    static const int8_t down[] = {0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6};
    uint32_t word;
    memcpy(&word, base, sizeof word);
    uint8x16_t x = vqtbl1q_u8(vreinterpretq_u8_u32(vdupq_n_u32(word)), vld1q_u8(source));
    return vandq_u8(vshlq_u8(x, vld1q_s8(down)), vdupq_n_u8(3));
}

INLINE uint8x16_t bit_weights(void) { return vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u)); }

/* `value` in every byte whose bit is set in the 16 bits at `plane`. */
INLINE uint8x16_t spread_bits(const uint8_t *plane, uint32_t value) {
    uint8x16_t x = vcombine_u8(vdup_n_u8(plane[0]), vdup_n_u8(plane[1]));
    return vandq_u8(vtstq_u8(x, bit_weights()), vdupq_n_u8((uint8_t)value));
}

/* The planes of a block to 128 codes of one byte, whose upper bit is bit aligned - 1. */
INLINE void unpack(uint8_t *codes, const stq_planes planes, int64_t block, const uint32_t bits,
                   const uint32_t aligned) {
    const uint32_t extra = bits - stq_base_bits(bits), up = aligned - stq_base_bits(bits);
    UNROLL
    for (int i = 0; i < STQ_BLOCK; i += 16) {
        int64_t at = block * STQ_BLOCK + i;
        uint8x16_t x = bits >= 4 ? spread_nibbles(planes.base + at / 2) : spread_pairs(planes.base + at / 4);
        x = x << (uint8_t)up;
        for (uint32_t plane = 0; plane < extra; plane++)
            x = vorrq_u8(x, spread_bits(planes.bit[plane] + at / 8, 1u << (up - 1 - plane)));
        vst1q_u8(codes + i, x);
    }
}

/* 128 codes to the planes of a block. A code's bits lie at `offset` of its byte; the other bits may be anything. */
INLINE void pack(const stq_planes planes, int64_t block, const uint8_t *codes, const coder *constants,
                 const uint32_t bits, const uint32_t offset) {
    (void)constants;
    const uint32_t extra = bits - stq_base_bits(bits);
    const uint8_t shift = (uint8_t)(offset + extra);
    const uint8x16_t fifteen = vdupq_n_u8(15), three = vdupq_n_u8(3);
    if (bits >= 4) {
        for (int i = 0; i < STQ_BLOCK; i += 32) {
            uint8x16x2_t x = vld2q_u8(codes + i);
            uint8x16_t low = vandq_u8(x.val[0] >> shift, fifteen), high = vandq_u8(x.val[1] >> shift, fifteen);
            vst1q_u8(planes.base + (block * STQ_BLOCK + i) / 2, vorrq_u8(low, vshlq_n_u8(high, 4)));
        }
    } else {
        for (int i = 0; i < STQ_BLOCK; i += 64) {
            uint8x16x4_t x = vld4q_u8(codes + i);
            uint8x16_t low = vandq_u8(x.val[0] >> shift, three), second = vandq_u8(x.val[1] >> shift, three);
            uint8x16_t third = vandq_u8(x.val[2] >> shift, three), high = vandq_u8(x.val[3] >> shift, three);
            low = vorrq_u8(low, vshlq_n_u8(second, 2));
            high = vorrq_u8(vshlq_n_u8(third, 4), vshlq_n_u8(high, 6));
            vst1q_u8(planes.base + (block * STQ_BLOCK + i) / 4, vorrq_u8(low, high));
        }
    }
    for (uint32_t plane = 0; plane < extra; plane++)
        for (int i = 0; i < STQ_BLOCK; i += 16) {
            uint8x16_t set = vtstq_u8(vld1q_u8(codes + i), vdupq_n_u8((uint8_t)(1u << (shift - 1u - plane))));
            set = vandq_u8(set, bit_weights());
            uint8_t *bytes = planes.bit[plane] + (block * STQ_BLOCK + i) / 8;
            bytes[0] = vaddv_u8(vget_low_u8(set));
            bytes[1] = vaddv_u8(vget_high_u8(set));
        }
}

#include "quant/decode_template.h"

/* ---- codes to values ---- */

INLINE vint load_codes(const uint8_t *codes) {
    uint32_t word;
    memcpy(&word, codes, sizeof word);
    uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(word));
    return vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
}

typedef struct m_source {
    vfloat scales;
    vint offset;
} m_source;

typedef const float *m_levels;

INLINE m_levels load_levels(const float *levels) { return levels; }

INLINE m_source make_m_source(float scale, m_levels levels, uint32_t offset) {
    (void)levels;
    return (m_source){vf_all(scale), vi_all(offset)};
}

INLINE void m_values(vfloat *to, const m_source *source, const uint8_t *codes, const bool narrow) {
    (void)narrow;
    to[0] = m_by_arithmetic(load_codes(codes), source->scales, source->offset);
}

typedef struct v_source {
    vint low, first;
    vcount shift;
} v_source;

INLINE v_source make_v_source(uint32_t low, uint32_t shift, uint32_t first) {
    return (v_source){vi_all(low), vi_all(first), vi_count((int)shift)};
}

INLINE void v_values(vfloat *to, const v_source *source, const uint8_t *codes, const bool narrow) {
    (void)narrow;
    to[0] = v_by_arithmetic(load_codes(codes), source->low, source->shift, source->first);
}

/* ---- values to codes ---- */

/* The upper half-words of two vectors, in order. */
INLINE uint8x16_t upper_halves(vint a, vint b) {
    return vreinterpretq_u8_u16(vuzp2q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b)));
}

/* Of each +-t (1 <= t < 4) the sign and, below it, bits 23 .. 17 of the bits of t minus those of 1: bit 23 is inverted.
 */
INLINE void store_sign_codes(uint8_t *codes, const coder *constants, vfloat t0, vfloat t1, vfloat t2, vfloat t3) {
    (void)constants;
    uint8x16_t first = upper_halves(vi_bits(t0), vi_bits(t1)), second = upper_halves(vi_bits(t2), vi_bits(t3));
    uint8x16_t sign = vdupq_n_u8(0x80);
    uint8x16_t low = vshrq_n_u8(veorq_u8(vuzp1q_u8(first, second), sign), 1);
    vst1q_u8(codes, vbslq_u8(sign, vuzp2q_u8(first, second), low));
}

/* Bits 16 to 23 of each lane, minus `subtract`. */
INLINE void store_third_bytes(uint8_t *codes, const coder *constants, vint a, vint b, vint c, vint d, uint32_t subtract,
                              const bool small) {
    (void)constants;
    (void)small;
    uint8x16_t bytes = vuzp1q_u8(upper_halves(a, b), upper_halves(c, d));
    vst1q_u8(codes, vsubq_u8(bytes, vdupq_n_u8((uint8_t)subtract)));
}

#include "quant/kernel_template.h"

const stq_kernels stq_neon_kernels = {.name = "neon", .step = step, .encode = encode, .decode = decode};

#else
typedef int stq_no_neon;
#endif
