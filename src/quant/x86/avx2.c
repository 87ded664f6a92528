/* avx2.c - kernels for AVX2 with FMA and F16C: 8 lanes. Tables of 8 entries fit in a register. */
#if defined(__x86_64__)

#include <immintrin.h>

#include "quant/kernel_common.h"
#include "quant/x86/target.h"

STQ_TARGET_BEGIN("avx2,fma,f16c,bmi,lzcnt")

#define LANES 8
#define NARROW_BITS 5 /* magnitudes that two registers of 8 entries decode */

typedef __m256 vfloat;
typedef __m256i vint;
typedef __m128i vcount; /* a shift common to all lanes */

/* ---- floats ---- */

INLINE vfloat vf_all(float x) { return _mm256_set1_ps(x); }
INLINE vfloat vf_load(const float *from) { return _mm256_loadu_ps(from); }
INLINE void vf_store(float *to, vfloat x) { _mm256_storeu_ps(to, x); }
INLINE vfloat vf_add(vfloat a, vfloat b) { return _mm256_add_ps(a, b); }
INLINE vfloat vf_subtract(vfloat a, vfloat b) { return _mm256_sub_ps(a, b); }
INLINE vfloat vf_multiply(vfloat a, vfloat b) { return _mm256_mul_ps(a, b); }
INLINE vfloat vf_divide(vfloat a, vfloat b) { return _mm256_div_ps(a, b); }
INLINE vfloat vf_square_root(vfloat x) { return _mm256_sqrt_ps(x); }
INLINE vfloat vf_fma(vfloat a, vfloat b, vfloat c) { return _mm256_fmadd_ps(a, b, c); }

INLINE vfloat vf_from_bits(vint x) { return _mm256_castsi256_ps(x); }
INLINE vint vi_bits(vfloat x) { return _mm256_castps_si256(x); }
INLINE vint vi_all(uint32_t x) { return _mm256_set1_epi32((int)x); }
INLINE vint vi_and(vint a, vint b) { return _mm256_and_si256(a, b); }
INLINE vint vi_magnitude(vfloat x) { return vi_and(vi_bits(x), vi_all(0x7fffffffu)); }
INLINE vfloat vf_from_integers(vint x) { return _mm256_cvtepi32_ps(x); }

/* The positive constant `size` with the sign of `x`. */
INLINE vfloat vf_copy_sign(vfloat size, vfloat x) {
    return _mm256_or_ps(size, _mm256_and_ps(x, vf_from_bits(vi_all(0x80000000u))));
}

INLINE vfloat vf_limit_magnitude(vfloat x, vfloat limit) {
    return vf_copy_sign(_mm256_min_ps(vf_from_bits(vi_magnitude(x)), limit), x);
}

INLINE vfloat vf_zero_where_zero(vfloat test, vfloat x) {
    return _mm256_and_ps(_mm256_cmp_ps(test, _mm256_setzero_ps(), _CMP_NEQ_UQ), x);
}

/* fma(beta, m, added), or 0 where g is 0 and |m| is the lowest level, whose bits are `dead`; `added` is 0 where g is.
 */
INLINE vfloat vf_decay_m(vfloat beta, vfloat m, vfloat added, vfloat g, vint dead) {
    vint differs = _mm256_or_si256(_mm256_xor_si256(vi_bits(m), dead), vi_bits(g));
    vint same = _mm256_cmpeq_epi32(_mm256_slli_epi32(differs, 1), _mm256_setzero_si256());
    return _mm256_andnot_ps(vf_from_bits(same), vf_fma(beta, m, added));
}

INLINE vfloat vf_load_bfloat16(const uint16_t *from) {
    return vf_from_bits(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)from)), 16));
}

INLINE void vf_store_bfloat16(uint16_t *to, vfloat x, vint word) {
    vint finite = _mm256_cmpgt_epi32(vi_all(0x7f7f0000u), vi_magnitude(x));
    vint bits = _mm256_srli_epi32(_mm256_add_epi32(vi_bits(x), vi_and(finite, word)), 16);
    bits = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0xd8);
    _mm_storeu_si128((__m128i *)(void *)to, _mm256_castsi256_si128(bits));
}

INLINE vfloat vf_load_float16(const uint16_t *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from));
}

INLINE void vf_store_float16(uint16_t *to, vfloat x) {
    _mm_storeu_si128((__m128i *)(void *)to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

/* ---- integers ---- */

INLINE vint vi_lane_numbers(void) { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
INLINE vint vi_add(vint a, vint b) { return _mm256_add_epi32(a, b); }
INLINE vint vi_subtract(vint a, vint b) { return _mm256_sub_epi32(a, b); }
INLINE vint vi_multiply(vint a, vint b) { return _mm256_mullo_epi32(a, b); }
INLINE vint vi_xor(vint a, vint b) { return _mm256_xor_si256(a, b); }
INLINE vint vi_larger(vint a, vint b) { return _mm256_max_epu32(a, b); }
INLINE vint vi_smaller(vint a, vint b) { return _mm256_min_epu32(a, b); }
#define vi_shift_right(x, bits) _mm256_srli_epi32(x, bits)
#define vi_shift_left(x, bits) _mm256_slli_epi32(x, (int)(bits))
INLINE vcount vi_count(int bits) { return _mm_cvtsi32_si128(bits); }
INLINE vint vi_shift_right_by(vint x, vcount bits) { return _mm256_srl_epi32(x, bits); }
INLINE vint vi_shift_left_by(vint x, vcount bits) { return _mm256_sll_epi32(x, bits); }

/* `yes` where `test` is 0, else `no`. */
INLINE vint vi_where_zero(vint test, vint yes, vint no) {
    return _mm256_blendv_epi8(no, yes, _mm256_cmpeq_epi32(test, _mm256_setzero_si256()));
}

/* 0 where x < limit (both below 2^31), else `other`. */
INLINE vint vi_zero_where_less(vint x, vint limit, vint other) {
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(limit, x), other);
}

/* All ones where a < b, unsigned, else 0. */
INLINE vint vi_less(vint a, vint b) {
    return vi_xor(_mm256_cmpeq_epi32(_mm256_max_epu32(a, b), a), _mm256_set1_epi32(-1));
}

INLINE vint vi_select(vint mask, vint yes, vint no) { return _mm256_blendv_epi8(no, yes, mask); }
INLINE vint vi_and_not(vint not, vint x) { return _mm256_andnot_si256(not, x); }
INLINE vint vi_or(vint a, vint b) { return _mm256_or_si256(a, b); }
INLINE vint vi_load(const uint32_t *from) { return _mm256_load_si256((const __m256i *)(const void *)from); }
INLINE void vi_store(uint32_t *to, vint x) { _mm256_store_si256((__m256i *)(void *)to, x); }
INLINE vint vi_shift_right_each(vint x, vint bits) { return _mm256_srlv_epi32(x, bits); }
INLINE vint vi_shift_left_each(vint x, vint bits) { return _mm256_sllv_epi32(x, bits); }

INLINE vint vi_add_where_larger(vint x, vfloat a, vfloat b) {
    return _mm256_sub_epi32(x, vi_bits(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}

/* The 8 random words of pairs 4 half .. 4 half + 3, each in a lane. */
INLINE vint vi_words(vint pairs, int half) {
    return _mm256_cvtepu16_epi32(half ? _mm256_extracti128_si256(pairs, 1) : _mm256_castsi256_si128(pairs));
}

/* The largest of the lanes of a and b, the smallest of c. The three go through the tree together. */
INLINE void vi_reduce(vint a, vint b, vint c, uint32_t *largest_a, uint32_t *largest_b, uint32_t *lowest_c) {
    vint inverse = vi_xor(c, vi_all(UINT32_MAX));
    vint ab = vi_larger(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    vint cc = vi_larger(_mm256_unpacklo_epi32(inverse, inverse), _mm256_unpackhi_epi32(inverse, inverse));
    vint abc = vi_larger(_mm256_unpacklo_epi64(ab, cc), _mm256_unpackhi_epi64(ab, cc));
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(abc), _mm256_extracti128_si256(abc, 1));
    *largest_a = (uint32_t)_mm_cvtsi128_si32(four);
    *largest_b = (uint32_t)_mm_extract_epi32(four, 1);
    *lowest_c = ~(uint32_t)_mm_extract_epi32(four, 2);
}

/* ---- planes ---- */

/* 16 bytes of nibbles, or 8 of pairs, to 32 codes whose lowest bit is bit `up` of a byte. */
INLINE vint spread_nibbles(const uint8_t *base, uint32_t up) {
    vint x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)base));
    x = _mm256_or_si256(_mm256_slli_epi16(x, (int)up), _mm256_slli_epi16(x, (int)up + 4));
    return vi_and(x, _mm256_set1_epi8((char)(15 << up)));
}

INLINE vint spread_pairs(const uint8_t *base, uint32_t up) {
    vint x = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)base));
    x = _mm256_or_si256(x, _mm256_slli_epi32(x, 12));
    x = vi_and(_mm256_or_si256(x, _mm256_slli_epi32(x, 6)), _mm256_set1_epi8(3));
    return _mm256_slli_epi16(x, (int)up);
}

/* `value` in every byte whose bit is set in the 32 bits at `plane`. */
INLINE vint spread_bits(const uint8_t *plane, uint32_t value) {
    const vint source = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const vint bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    int32_t word;
    memcpy(&word, plane, sizeof word);
    vint x = vi_and(_mm256_shuffle_epi8(_mm256_set1_epi32(word), source), bit);
    return vi_and(_mm256_cmpeq_epi8(x, bit), _mm256_set1_epi8((char)value));
}

/* The planes of a block to 128 codes of one byte, whose upper bit is bit aligned - 1. */
INLINE void unpack(uint8_t *codes, const stq_planes *planes, int64_t block, const uint32_t bits,
                   const uint32_t aligned) {
    const uint32_t extra = bits - stq_base_bits(bits), up = aligned - stq_base_bits(bits);
    UNROLL
    for (int i = 0; i < STQ_BLOCK; i += 32) {
        int64_t at = block * STQ_BLOCK + i;
        vint x = bits >= 4 ? spread_nibbles(planes->base + at / 2, up) : spread_pairs(planes->base + at / 4, up);
        for (uint32_t plane = 0; plane < extra; plane++)
            x = _mm256_or_si256(x, spread_bits(planes->bit[plane] + at / 8, 1u << (up - 1 - plane)));
        _mm256_store_si256((__m256i *)(void *)(codes + i), x);
    }
}

INLINE vint load_bytes(const uint8_t *from) { return _mm256_load_si256((const __m256i *)(const void *)from); }

INLINE void store_bytes(uint8_t *to, vint x) { _mm256_storeu_si256((__m256i *)(void *)to, x); }

/* Undoes the order in which two rounds of packing leave groups of 4 bytes. */
INLINE vint in_order(vint x) { return _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); }

/* 32 codes, whose upper bits begin at `shift`, to words of two nibbles or dwords of four pairs. */
INLINE vint join_nibbles(const uint8_t *codes, uint32_t shift) {
    vint x = vi_and(_mm256_srli_epi16(load_bytes(codes), (int)shift), _mm256_set1_epi8(15));
    return _mm256_maddubs_epi16(x, _mm256_set1_epi16(0x1001));
}

INLINE vint join_pairs(const uint8_t *codes, uint32_t shift) {
    vint x = vi_and(_mm256_srli_epi16(load_bytes(codes), (int)shift), _mm256_set1_epi8(3));
    x = _mm256_maddubs_epi16(x, _mm256_set1_epi16(0x0401));
    return _mm256_madd_epi16(x, _mm256_set1_epi32(0x00100001));
}

/* 128 codes to the planes of a block. A code's bits lie at `offset` of its byte; the other bits may be anything. */
INLINE void pack(const stq_planes *planes, int64_t block, const uint8_t *codes, const uint32_t bits,
                 const uint32_t offset) {
    const uint32_t extra = bits - stq_base_bits(bits);
    const uint32_t shift = offset + extra;
    if (bits >= 4) {
        uint8_t *base = planes->base + block * (STQ_BLOCK / 2);
        for (int i = 0; i < 2; i++) {
            vint x = _mm256_packus_epi16(join_nibbles(codes + 64 * i, shift), join_nibbles(codes + 64 * i + 32, shift));
            store_bytes(base + 32 * i, _mm256_permute4x64_epi64(x, 0xd8));
        }
    } else {
        vint first = _mm256_packus_epi32(join_pairs(codes, shift), join_pairs(codes + 32, shift));
        vint second = _mm256_packus_epi32(join_pairs(codes + 64, shift), join_pairs(codes + 96, shift));
        store_bytes(planes->base + block * (STQ_BLOCK / 4), in_order(_mm256_packus_epi16(first, second)));
    }
    for (uint32_t plane = 0; plane < extra; plane++)
        for (int i = 0; i < 4; i++) {
            vint top = _mm256_slli_epi16(load_bytes(codes + 32 * i), (int)(8 - shift + plane));
            int32_t mask = _mm256_movemask_epi8(top);
            memcpy(planes->bit[plane] + block * (STQ_BLOCK / 8) + 4 * i, &mask, sizeof mask);
        }
}

#include "quant/decode_template.h"

/* ---- codes to values ---- */

INLINE vint load_codes(const uint8_t *codes) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)codes));
}

typedef struct m_source {
    vfloat low, high; /* the levels of the 16 positive narrow codes */
    vfloat scales;
    vint offset;
} m_source;

INLINE m_source make_m_source(float scale, const float *levels, uint32_t offset) {
    vfloat scales = vf_all(scale);
    return (m_source){vf_multiply(vf_load(levels), scales), vf_multiply(vf_load(levels + 8), scales), scales,
                      vi_all(offset)};
}

INLINE vfloat m_value(const m_source *source, vint code, const bool narrow) {
    if (!narrow)
        return m_by_arithmetic(code, source->scales, source->offset);
    vfloat low = _mm256_permutevar8x32_ps(source->low, code), high = _mm256_permutevar8x32_ps(source->high, code);
    vfloat magnitude = _mm256_blendv_ps(low, high, vf_from_bits(vi_shift_left(code, 28)));
    return vf_copy_sign(magnitude, vf_from_bits(vi_shift_left(code, 27)));
}

typedef struct v_source {
    vint low, first;
    vcount shift;
} v_source;

INLINE v_source make_v_source(uint32_t low, uint32_t shift, uint32_t first) {
    return (v_source){vi_all(low), vi_all(first), vi_count((int)shift)};
}

INLINE vfloat v_value(const v_source *source, vint code, const bool narrow) {
    (void)narrow;
    return v_by_arithmetic(code, source->low, source->shift, source->first);
}

/* ---- values to codes ---- */

/* Of words that hold the upper halves of +-t (1 <= t < 4) the sign and, below it, bits 7 .. 1 minus those of 1: bit 7
 * is inverted. */
INLINE vint sign_codes(vfloat a, vfloat b) {
    vint words = _mm256_packus_epi32(vi_shift_right(vi_bits(a), 16), vi_shift_right(vi_bits(b), 16));
    vint magnitude = _mm256_srli_epi16(vi_and(vi_xor(words, _mm256_set1_epi16(0x80)), _mm256_set1_epi16(0xff)), 1);
    return _mm256_or_si256(magnitude, vi_and(_mm256_srli_epi16(words, 8), _mm256_set1_epi16(0x80)));
}

INLINE void store_sign_codes(uint8_t *codes, vfloat t0, vfloat t1, vfloat t2, vfloat t3) {
    store_bytes(codes, in_order(_mm256_packus_epi16(sign_codes(t0, t1), sign_codes(t2, t3))));
}

/* Bits 16 to 23 of each lane, minus `subtract`. */
INLINE void store_third_bytes(uint8_t *codes, vint a, vint b, vint c, vint d, uint8_t subtract) {
    const vint bytes = _mm256_set1_epi16(0xff);
    vint ab = _mm256_packus_epi32(vi_shift_right(a, 16), vi_shift_right(b, 16));
    vint cd = _mm256_packus_epi32(vi_shift_right(c, 16), vi_shift_right(d, 16));
    vint packed = in_order(_mm256_packus_epi16(vi_and(ab, bytes), vi_and(cd, bytes)));
    store_bytes(codes, _mm256_sub_epi8(packed, _mm256_set1_epi8((char)subtract)));
}

#include "quant/kernel_template.h"

const stq_kernels stq_avx2_kernels = {.name = "avx2", .step = step, .encode = encode, .decode = decode};

STQ_TARGET_END

#else
typedef int stq_no_avx2;
#endif
