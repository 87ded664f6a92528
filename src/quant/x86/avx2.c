/*
 * avx2.c - kernels for AVX2 with FMA and F16C: 8 lanes.
 *
 * Instructions that widen or narrow work inside the two halves of a register. So 32 codes in a register lie in "lane
 * order": the lower half has groups 0, 2, 4 and 6 of four codes each, the upper half 1, 3, 5 and 7. Widened twice
 * inside the halves they are four vectors in order.
 */
#if defined(__x86_64__)

#include <immintrin.h>

#include "quant/kernel_common.h"
#include "quant/x86/target.h"

STQ_TARGET_BEGIN("avx2,fma,f16c,bmi,lzcnt")

#define LANES 8
#define NARROW_BITS 5 /* magnitudes that a table of 16 bytes decodes */
#define GROUP 4       /* vectors that are decoded together */
#define LOOKS_UP_NIBBLES 0

typedef __m256 vfloat;
typedef __m256i vint;
typedef __m256i vcount; /* a shift common to all lanes */

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
    return vf_zero_where_zero(vf_from_bits(differs), vf_fma(beta, m, added));
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
INLINE vcount vi_count(int bits) { return _mm256_set1_epi32(bits); }
INLINE vint vi_shift_right_by(vint x, vcount bits) { return _mm256_srlv_epi32(x, bits); }
INLINE vint vi_shift_left_by(vint x, vcount bits) { return _mm256_sllv_epi32(x, bits); }

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

typedef char word_lanes; /* vi_words needs no constants */

INLINE word_lanes make_word_lanes(void) { return 0; }
INLINE vint vi_larger_magnitude(vint x, vfloat y) { return vi_larger(x, vi_magnitude(y)); }
INLINE vint vi_keep(vint x) { return x; }

INLINE vint vi_pair_numbers(void) { return _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7); }

/* The 8 random words of pairs 4 half .. 4 half + 3, each in a lane. */
INLINE vint vi_words(vint pairs, int half, word_lanes lanes) {
    (void)lanes;
    return half ? _mm256_unpackhi_epi16(pairs, _mm256_setzero_si256())
                : _mm256_unpacklo_epi16(pairs, _mm256_setzero_si256());
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

#include "quant/coder_template.h"

INLINE vint load_bytes(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)(const void *)from); }

INLINE void store_bytes(uint8_t *to, vint x) { _mm256_storeu_si256((__m256i *)(void *)to, x); }

/* Constants with one pattern of 8 bytes in each half. Written out, so that they are operands in memory. */
INLINE vint in_halves(uint64_t lower, uint64_t upper) {
    return _mm256_setr_epi64x((long long)lower, (long long)lower, (long long)upper, (long long)upper);
}

/* The same 16 bytes in each half, lower ones first. */
INLINE vint in_both(uint64_t lower, uint64_t upper) {
    return _mm256_setr_epi64x((long long)lower, (long long)upper, (long long)lower, (long long)upper);
}

/* `codes` plus `value` where the byte of `copies` has the bit that `bit` names. */
INLINE vint add_bits(vint codes, vint copies, vint bit, uint32_t value) {
    vint set = _mm256_cmpeq_epi8(vi_and(copies, bit), bit);
    return value == 1 ? _mm256_sub_epi8(codes, set) : vi_or(codes, vi_and(set, _mm256_set1_epi8((char)value)));
}

/* 64 codes of nibbles and bit planes. Those with even numbers are made in one register, those with odd ones in another.
 */
INLINE void unpack_nibbles(uint8_t *codes, const stq_planes planes, uint64_t at, const uint32_t extra,
                           const uint32_t up) {
    const vint lane_order = in_both(0x0d0c090805040100, 0x0f0e0b0a07060302);
    const vint twice = in_both(0x0303020201010000, 0x0707060605050404);
    const vint even_bit = in_halves(0x0401040104010401, 0x4010401040104010);
    const vint odd_bit = in_halves(0x0802080208020802, 0x8020802080208020);
    const vint nibble = _mm256_set1_epi8((char)(15 << up));
    vint x = _mm256_shuffle_epi8(load_bytes(planes.base + at / 2), lane_order);
    x = _mm256_permute4x64_epi64(x, 0xd8);
    vint even = vi_and(_mm256_slli_epi16(x, (int)up), nibble);
    vint odd = vi_and(_mm256_srli_epi16(x, (int)(4 - up)), nibble);
    for (uint32_t plane = 0; plane < extra; plane++) {
        int64_t word;
        memcpy(&word, planes.bit[plane] + at / 8, sizeof word);
        vint copies = _mm256_shuffle_epi8(_mm256_set1_epi64x(word), twice);
        even = add_bits(even, copies, even_bit, 1u << (up - 1 - plane));
        odd = add_bits(odd, copies, odd_bit, 1u << (up - 1 - plane));
    }
    store_bytes(codes, _mm256_unpacklo_epi8(even, odd));
    store_bytes(codes + 32, _mm256_unpackhi_epi8(even, odd));
}

/* 32 codes of pairs and a bit plane. */
INLINE void unpack_pairs(uint8_t *codes, const stq_planes planes, uint64_t at, const uint32_t extra,
                         const uint32_t up) {
    const vint lane_order = _mm256_setr_epi64x((long long)0x8080800280808000, (long long)0x8080800680808004,
                                               (long long)0x8080800380808001, (long long)0x8080800780808005);
    const vint fourfold = in_both(0x0101010100000000, 0x0303030302020202);
    const vint bit = in_halves(0x0804020108040201, 0x8040201080402010);
    int64_t base;
    memcpy(&base, planes.base + at / 4, sizeof base);
    vint x = _mm256_shuffle_epi8(_mm256_set1_epi64x(base), lane_order);
    x = vi_or(x, _mm256_slli_epi32(x, 12));
    x = vi_and(vi_or(x, _mm256_slli_epi32(x, 6)), _mm256_set1_epi8(3));
    x = _mm256_slli_epi16(x, (int)up);
    for (uint32_t plane = 0; plane < extra; plane++) {
        int32_t word;
        memcpy(&word, planes.bit[plane] + at / 8, sizeof word);
        x = add_bits(x, _mm256_shuffle_epi8(_mm256_set1_epi32(word), fourfold), bit, 1u << (up - 1 - plane));
    }
    store_bytes(codes, x);
}

/* The planes of a block to 128 codes of one byte, whose upper bit is bit aligned - 1; each 32 in lane order. */
INLINE void unpack(uint8_t *codes, const stq_planes planes, int64_t block, const uint32_t bits,
                   const uint32_t aligned) {
    const uint32_t extra = bits - stq_base_bits(bits), up = aligned - stq_base_bits(bits);
    UNROLL
    for (uint32_t i = 0; i < STQ_BLOCK; i += bits >= 4 ? 64 : 32) {
        if (bits >= 4)
            unpack_nibbles(codes + i, planes, (uint64_t)block * STQ_BLOCK + i, extra, up);
        else
            unpack_pairs(codes + i, planes, (uint64_t)block * STQ_BLOCK + i, extra, up);
    }
}

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
INLINE void pack(const stq_planes planes, int64_t block, const uint8_t *codes, const coder *constants,
                 const uint32_t bits, const uint32_t offset) {
    (void)constants;
    const uint32_t extra = bits - stq_base_bits(bits);
    const uint32_t shift = offset + extra;
    if (bits >= 4) {
        uint8_t *base = planes.base + block * (STQ_BLOCK / 2);
        for (int i = 0; i < 2; i++) {
            vint x = _mm256_packus_epi16(join_nibbles(codes + 64 * i, shift), join_nibbles(codes + 64 * i + 32, shift));
            store_bytes(base + 32 * i, _mm256_permute4x64_epi64(x, 0xd8));
        }
    } else {
        vint first = _mm256_packus_epi32(join_pairs(codes, shift), join_pairs(codes + 32, shift));
        vint second = _mm256_packus_epi32(join_pairs(codes + 64, shift), join_pairs(codes + 96, shift));
        store_bytes(planes.base + block * (STQ_BLOCK / 4), in_order(_mm256_packus_epi16(first, second)));
    }
    for (uint32_t plane = 0; plane < extra; plane++)
        for (int i = 0; i < 4; i++) {
            vint top = _mm256_slli_epi16(load_bytes(codes + 32 * i), (int)(8 - shift + plane));
            int32_t mask = _mm256_movemask_epi8(top);
            memcpy(planes.bit[plane] + block * (STQ_BLOCK / 8) + 4 * i, &mask, sizeof mask);
        }
}

#include "quant/decode_template.h"

/* ---- codes to values ---- */

/* The lanes of four vectors out of their lower and upper halves, the first two vectors' and the last two's. */
INLINE void join_halves(vint to[4], vint lower, vint lower_last, vint upper, vint upper_last) {
    to[0] = _mm256_unpacklo_epi16(lower, upper);
    to[1] = _mm256_unpackhi_epi16(lower, upper);
    to[2] = _mm256_unpacklo_epi16(lower_last, upper_last);
    to[3] = _mm256_unpackhi_epi16(lower_last, upper_last);
}

INLINE void load_codes(vint to[4], const uint8_t *codes) {
    const vint zero = _mm256_setzero_si256();
    vint x = load_bytes(codes);
    join_halves(to, _mm256_unpacklo_epi8(x, zero), _mm256_unpackhi_epi8(x, zero), zero, zero);
}

typedef struct m_source {
    vint bytes[4]; /* of the levels of the 16 positive narrow codes, in each half */
    vfloat scales;
    vint offset;
} m_source;

/* Four of the levels in each half: `first` and up, and those of 8 more. */
INLINE vint level_bytes(const float *levels, vfloat scales, int first) {
    const vint bytewise = in_both(0x0d0905010c080400, 0x0f0b07030e0a0602);
    vfloat some =
        _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(levels + first)), _mm_loadu_ps(levels + first + 8), 1);
    return _mm256_shuffle_epi8(vi_bits(vf_multiply(some, scales)), bytewise);
}

typedef const float *m_levels;

INLINE m_levels load_levels(const float *levels) { return levels; }

INLINE m_source make_m_source(float scale, m_levels levels, uint32_t offset) {
    m_source source = {.scales = vf_all(scale), .offset = vi_all(offset)};
    vint even = level_bytes(levels, source.scales, 0), odd = level_bytes(levels, source.scales, 4);
    vint lower = _mm256_unpacklo_epi32(even, odd), upper = _mm256_unpackhi_epi32(even, odd);
    source.bytes[0] = _mm256_permute4x64_epi64(lower, 0x88);
    source.bytes[1] = _mm256_permute4x64_epi64(lower, 0xdd);
    source.bytes[2] = _mm256_permute4x64_epi64(upper, 0x88);
    source.bytes[3] = _mm256_permute4x64_epi64(upper, 0xdd);
    return source;
}

/* Narrow codes are looked up byte by byte: 16 magnitudes are what one shuffle chooses from. */
INLINE void m_values(vfloat *to, const m_source *source, const uint8_t *codes, const bool narrow) {
    vint lanes[4];
    if (narrow) {
        vint x = load_bytes(codes), bytes[4];
        for (int i = 0; i < 4; i++)
            bytes[i] = _mm256_shuffle_epi8(source->bytes[i], x);
        bytes[3] = vi_or(bytes[3], vi_and(_mm256_slli_epi16(x, 3), _mm256_set1_epi8((char)0x80)));
        join_halves(lanes, _mm256_unpacklo_epi8(bytes[0], bytes[1]), _mm256_unpackhi_epi8(bytes[0], bytes[1]),
                    _mm256_unpacklo_epi8(bytes[2], bytes[3]), _mm256_unpackhi_epi8(bytes[2], bytes[3]));
    } else {
        load_codes(lanes, codes);
    }
    for (int i = 0; i < 4; i++)
        to[i] = narrow ? vf_from_bits(lanes[i]) : m_by_arithmetic(lanes[i], source->scales, source->offset);
}

typedef struct v_source {
    vint low, first;
    vcount shift;
    vint low_words, factors; /* for narrow codes, whose nodes have bits in their upper halves only */
    bool has_zero;
} v_source;

INLINE v_source make_v_source(uint32_t low, uint32_t shift, uint32_t first) {
    return (v_source){.low = vi_all(low),
                      .first = vi_all(first),
                      .shift = vi_count((int)shift),
                      .low_words = _mm256_set1_epi16((short)(low >> 16)),
                      .factors = _mm256_set1_epi16((short)(1u << (shift & 15))), /* 2^(shift - 16) */
                      .has_zero = first > 0};
}

INLINE void v_values(vfloat *to, const v_source *source, const uint8_t *codes, const bool narrow) {
    vint lanes[4];
    if (narrow) {
        const vint zero = _mm256_setzero_si256();
        vint x = load_bytes(codes);
        vint first = _mm256_unpacklo_epi8(x, zero), second = _mm256_unpackhi_epi8(x, zero);
        vint a = _mm256_add_epi16(_mm256_mullo_epi16(first, source->factors), source->low_words);
        vint b = _mm256_add_epi16(_mm256_mullo_epi16(second, source->factors), source->low_words);
        if (source->has_zero) {
            a = _mm256_sign_epi16(a, first);
            b = _mm256_sign_epi16(b, second);
        }
        join_halves(lanes, zero, zero, a, b);
    } else {
        load_codes(lanes, codes);
    }
    for (int i = 0; i < 4; i++)
        to[i] = narrow ? vf_from_bits(lanes[i]) : v_by_arithmetic(lanes[i], source->low, source->shift, source->first);
}

/* ---- values to codes ---- */

/* Of +-t (1 <= t < 4) the sign and, below it, bits 23 .. 17 of t minus those of 1; a word each. */
INLINE vint sign_codes(vfloat a, vfloat b) {
    vint words = _mm256_packus_epi32(vi_shift_right(vi_bits(a), 17), vi_shift_right(vi_bits(b), 17));
    words = _mm256_sub_epi16(words, _mm256_set1_epi16(STQ_ONE_BITS >> 17)); /* now the sign is bit 14 */
    return _mm256_maddubs_epi16(words, _mm256_set1_epi16(0x0201));
}

INLINE void store_sign_codes(uint8_t *codes, const coder *constants, vfloat t0, vfloat t1, vfloat t2, vfloat t3) {
    (void)constants;
    store_bytes(codes, in_order(_mm256_packus_epi16(sign_codes(t0, t1), sign_codes(t2, t3))));
}

/* Bits 16 to 23 of each lane, minus `subtract`. If `small`, bits 16 to 31 minus `subtract` are a byte. */
INLINE void store_third_bytes(uint8_t *codes, const coder *constants, vint a, vint b, vint c, vint d, uint32_t subtract,
                              const bool small) {
    (void)constants;
    const vint bytes = _mm256_set1_epi16(0xff), less = _mm256_set1_epi16((short)subtract);
    vint ab = _mm256_sub_epi16(_mm256_packus_epi32(vi_shift_right(a, 16), vi_shift_right(b, 16)), less);
    vint cd = _mm256_sub_epi16(_mm256_packus_epi32(vi_shift_right(c, 16), vi_shift_right(d, 16)), less);
    vint packed = small ? _mm256_packus_epi16(ab, cd) : _mm256_packus_epi16(vi_and(ab, bytes), vi_and(cd, bytes));
    store_bytes(codes, in_order(packed));
}

#include "quant/kernel_template.h"

const stq_kernels stq_avx2_kernels = {.name = "avx2", .step = step, .encode = encode, .decode = decode};

STQ_TARGET_END

#else
typedef int stq_no_avx2;
#endif
