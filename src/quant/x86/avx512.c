/*
 * avx512.c - kernels for AVX-512 with F, BW, DQ, VL and VBMI: 16 lanes. Codes of up to 5 bits (6 of the first moment)
 * are looked up in registers.
 */
#if defined(__x86_64__)

#include <immintrin.h>

#include "quant/kernel_common.h"
#include "quant/x86/target.h"

STQ_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma,f16c,bmi,bmi2,lzcnt")

#define LANES 16
#define NARROW_BITS 5     /* codes that two registers of 16 entries decode */
#define GROUP 1           /* vectors that are decoded together */
#define LOOKS_UP_PLANES 1 /* has m_of_nibbles, v_of_nibbles, m_of_fives and v_of_fives */
#define REDUCES_CHUNKS 1  /* has vi_keep_ranges and vi_reduce_eight instead of vi_reduce */
#define SKIPS_NOT_A_NUMBER 1

typedef __m512 vfloat;
typedef __m512i vint;
typedef __m512i vcount; /* a shift common to all lanes */

/* ---- floats ---- */

INLINE vfloat vf_all(float x) { return _mm512_set1_ps(x); }
INLINE vfloat vf_load(const float *from) { return _mm512_loadu_ps(from); }
INLINE void vf_store(float *to, vfloat x) { _mm512_storeu_ps(to, x); }
INLINE vfloat vf_add(vfloat a, vfloat b) { return _mm512_add_ps(a, b); }
INLINE vfloat vf_subtract(vfloat a, vfloat b) { return _mm512_sub_ps(a, b); }
INLINE vfloat vf_multiply(vfloat a, vfloat b) { return _mm512_mul_ps(a, b); }
INLINE vfloat vf_divide(vfloat a, vfloat b) { return _mm512_div_ps(a, b); }
INLINE vfloat vf_square_root(vfloat x) { return _mm512_sqrt_ps(x); }
INLINE vfloat vf_fma(vfloat a, vfloat b, vfloat c) { return _mm512_fmadd_ps(a, b, c); }

INLINE vfloat vf_from_bits(vint x) { return _mm512_castsi512_ps(x); }
INLINE vint vi_bits(vfloat x) { return _mm512_castps_si512(x); }
INLINE vint vi_all(uint32_t x) { return _mm512_set1_epi32((int)x); }
INLINE vint vi_and(vint a, vint b) { return _mm512_and_si512(a, b); }
INLINE vint vi_magnitude(vfloat x) { return _mm512_and_si512(vi_bits(x), vi_all(0x7fffffffu)); }
INLINE vfloat vf_from_integers(vint x) { return _mm512_cvtepi32_ps(x); }

/* The positive constant `size` with the sign of `x`. */
INLINE vfloat vf_copy_sign(vfloat size, vfloat x) {
    return vf_from_bits(_mm512_or_si512(vi_bits(size), _mm512_and_si512(vi_bits(x), vi_all(0x80000000u))));
}

INLINE vfloat vf_limit_magnitude(vfloat x, vfloat limit) {
    return _mm512_range_ps(x, limit, 0x02); /* the smaller magnitude with the sign of x */
}

INLINE vfloat vf_zero_where_zero(vfloat test, vfloat x) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(test, _mm512_setzero_ps(), _CMP_NEQ_UQ), x);
}

/* fma(beta, m, added), or 0 where g is 0 and |m| is the lowest level, whose bits are `dead`; `added` is 0 where g is.
 */
INLINE vfloat vf_decay_m(vfloat beta, vfloat m, vfloat added, vfloat g, vint dead) {
    __asm__("" : "+v"(added)); /* before g is overwritten, so that nothing has to be copied */
    vint differs = _mm512_ternarylogic_epi32(vi_bits(g), vi_bits(m), dead, 0xf6); /* a | (b ^ c) */
    return _mm512_maskz_fmadd_ps(_mm512_test_epi32_mask(differs, vi_all(0x7fffffffu)), beta, m, added);
}

INLINE vfloat vf_load_bfloat16(const uint16_t *from) {
    return vf_from_bits(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)from)), 16));
}

INLINE void vf_store_bfloat16(uint16_t *to, vfloat x, vint word) {
    vint bits = vi_bits(x);
    __mmask16 finite = _mm512_cmplt_epu32_mask(vi_magnitude(x), vi_all(0x7f7f0000u));
    bits = _mm512_srli_epi32(_mm512_mask_add_epi32(bits, finite, bits, word), 16);
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtepi32_epi16(bits));
}

INLINE vfloat vf_load_float16(const uint16_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

INLINE void vf_store_float16(uint16_t *to, vfloat x) {
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* ---- integers ---- */

INLINE vint vi_lane_numbers(void) { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
INLINE vint vi_add(vint a, vint b) { return _mm512_add_epi32(a, b); }
INLINE vint vi_subtract(vint a, vint b) { return _mm512_sub_epi32(a, b); }
INLINE vint vi_multiply(vint a, vint b) { return _mm512_mullo_epi32(a, b); }
INLINE vint vi_xor(vint a, vint b) { return _mm512_xor_si512(a, b); }
INLINE vint vi_larger(vint a, vint b) { return _mm512_max_epu32(a, b); }
INLINE vint vi_smaller(vint a, vint b) { return _mm512_min_epu32(a, b); }
#define vi_shift_right(x, bits) _mm512_srli_epi32(x, bits)
#define vi_shift_left(x, bits) _mm512_slli_epi32(x, (unsigned)(bits))
INLINE vcount vi_count(int bits) { return _mm512_set1_epi32(bits); }
INLINE vint vi_shift_right_by(vint x, vcount bits) { return _mm512_srlv_epi32(x, bits); }
INLINE vint vi_shift_left_by(vint x, vcount bits) { return _mm512_sllv_epi32(x, bits); }

/* `yes` where `test` is 0, else `no`. */
INLINE vint vi_where_zero(vint test, vint yes, vint no) {
    return _mm512_mask_mov_epi32(yes, _mm512_test_epi32_mask(test, test), no);
}

/* 0 where x < limit, else `other`. */
INLINE vint vi_zero_where_less(vint x, vint limit, vint other) {
    return _mm512_maskz_mov_epi32(_mm512_cmpge_epu32_mask(x, limit), other);
}

/* All ones where a < b, unsigned, else 0. */
INLINE vint vi_less(vint a, vint b) { return _mm512_movm_epi32(_mm512_cmplt_epu32_mask(a, b)); }
INLINE vint vi_select(vint mask, vint yes, vint no) { return _mm512_ternarylogic_epi32(mask, yes, no, 0xca); }
INLINE vint vi_and_not(vint not, vint x) { return _mm512_andnot_si512(not, x); }
INLINE vint vi_or(vint a, vint b) { return _mm512_or_si512(a, b); }
INLINE vint vi_load(const uint32_t *from) { return _mm512_load_si512(from); }
INLINE void vi_store(uint32_t *to, vint x) { _mm512_store_si512(to, x); }
INLINE vint vi_shift_right_each(vint x, vint bits) { return _mm512_srlv_epi32(x, bits); }
INLINE vint vi_shift_left_each(vint x, vint bits) { return _mm512_sllv_epi32(x, bits); }

INLINE vint vi_add_where_larger(vint x, vfloat a, vfloat b) {
    return _mm512_mask_add_epi32(x, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), x, vi_all(1));
}

INLINE vint vi_pair_numbers(void) { return vi_lane_numbers(); }

/* x, of which the compiler does not know that it is a constant: a loop keeps it in its register. */
INLINE vint vi_keep(vint x) {
    __asm__("" : "+v"(x));
    return x;
}

INLINE __mmask64 keep_mask(__mmask64 mask) {
    __asm__("" : "+k"(mask));
    return mask;
}

typedef __mmask32 word_lanes; /* every second word */

INLINE word_lanes make_word_lanes(void) { return (word_lanes)keep_mask(0x55555555u); }

/* The 16 random words of pairs 8 half .. 8 half + 7, each in a lane. */
INLINE vint vi_words(vint pairs, int half, word_lanes lanes) {
    vint low_words = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    vint index = half ? _mm512_add_epi32(low_words, _mm512_set1_epi32(16)) : low_words;
    return _mm512_maskz_permutexvar_epi16(lanes, index, pairs);
}

/* The larger of a magnitude, as bits, and that of y; the other one where one is not a number. */
INLINE vint vi_larger_magnitude(vint x, vfloat y) {
    return vi_bits(_mm512_range_ps(vf_from_bits(x), y, 0x0b)); /* the larger magnitude without a sign */
}

/* Whether one of the first eight lanes is at least `limit`. */
INLINE bool vi_any_of_eight(vint x, uint32_t limit) { return (_mm512_cmpge_epu32_mask(x, vi_all(limit)) & 0xff) != 0; }

/* The larger of the even and the odd halves of 128 bits of a, then of b; the smaller ones. */
INLINE vint larger_quarters(vint a, vint b) {
    return vi_larger(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

INLINE vint smaller_quarters(vint a, vint b) {
    return vi_smaller(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

/* Of a block the largest of a and of b, and the smallest of c, are found by vi_reduce_eight, together with those of
 * seven other blocks: `room` has a's and b's by turns, in 16 words, and c in 16 more. */
INLINE void vi_keep_ranges(uint32_t *room, vint a, vint b, vint c) {
    vi_store(room, vi_larger(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)));
    vi_store(room + 16, c);
}

/* Two blocks' words of vi_keep_ranges: in 128 bits a and b of the first and of the second; c of either by turns. */
INLINE vint largest_of_two(const uint32_t *room) {
    vint x = vi_load(room), y = vi_load(room + 32);
    return vi_larger(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));
}

INLINE vint lowest_of_two(const uint32_t *room) {
    vint x = vi_load(room + 16), y = vi_load(room + 48);
    return vi_smaller(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
}

INLINE vint lowest_of_four(const uint32_t *room) {
    vint x = lowest_of_two(room), y = lowest_of_two(room + 64);
    return vi_smaller(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));
}

INLINE void vi_reduce_eight(const uint32_t *room, uint32_t *largest_a, uint32_t *largest_b, uint32_t *lowest_c) {
    const vint apart = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    vint ab = larger_quarters(larger_quarters(largest_of_two(room), largest_of_two(room + 64)),
                              larger_quarters(largest_of_two(room + 128), largest_of_two(room + 192)));
    vint c = smaller_quarters(lowest_of_four(room), lowest_of_four(room + 128));
    ab = _mm512_permutexvar_epi32(apart, ab);
    c = smaller_quarters(c, c);
    _mm256_store_si256((__m256i *)(void *)largest_a, _mm512_castsi512_si256(ab));
    _mm256_store_si256((__m256i *)(void *)largest_b, _mm512_extracti64x4_epi64(ab, 1));
    _mm256_store_si256((__m256i *)(void *)lowest_c, _mm512_castsi512_si256(c));
}

/* ---- planes ---- */

/*
 * Codes before pack: of each 64 dword i holds lane i of the first, third, second and fourth vector, as masked byte
 * shuffles leave them.
 */
INLINE uint32_t code_place(uint32_t i) {
    uint32_t vector = i / 16 % 4;
    return i / 64 * 64 + i % 16 * 4 + (vector >> 1 | (vector & 1) << 1);
}

/* Constants of the encoding, which a loop over blocks keeps in registers. */
typedef struct coder {
    vint one, sign;              /* of the first moment */
    vint upper;                  /* the upper half of each dword, for its lower half */
    vint swap;                   /* the bytes of each word */
    vint sign_bits;              /* of a code byte those that come from the upper byte */
    vint values;                 /* 64 codes in the order of values */
    vint nibbles;                /* bytes of two nibbles in the order of values */
    vint lower_nibble;           /* the lower four bits of each byte */
    vint lowest;                 /* the bit of each code byte that the first plane after the base holds */
    __mmask64 halves, even, odd; /* lower halves of dwords; even and odd bytes */
} coder;

INLINE coder make_coder(uint32_t offset, uint32_t bits) {
    const vint values =
        _mm512_set_epi8(63, 59, 55, 51, 47, 43, 39, 35, 31, 27, 23, 19, 15, 11, 7, 3, 61, 57, 53, 49, 45, 41, 37, 33,
                        29, 25, 21, 17, 13, 9, 5, 1, 62, 58, 54, 50, 46, 42, 38, 34, 30, 26, 22, 18, 14, 10, 6, 2, 60,
                        56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0);
    const vint nibbles =
        _mm512_set_epi8(63, 59, 47, 43, 31, 27, 15, 11, 61, 57, 45, 41, 29, 25, 13, 9, 62, 58, 46, 42, 30, 26, 14, 10,
                        60, 56, 44, 40, 28, 24, 12, 8, 55, 51, 39, 35, 23, 19, 7, 3, 53, 49, 37, 33, 21, 17, 5, 1, 54,
                        50, 38, 34, 22, 18, 6, 2, 52, 48, 36, 32, 20, 16, 4, 0);
    uint32_t extra = bits - stq_base_bits(bits);
    return (coder){
        .one = vi_keep(vi_all(STQ_ONE_BITS)),
        .sign = vi_keep(vi_all(0x80000000u)),
        .upper = vi_keep(_mm512_set4_epi32(0x0f0e, 0x0b0a, 0x0706, 0x0302)),
        .swap = vi_keep(_mm512_set4_epi32(0x0e0f0c0d, 0x0a0b0809, 0x06070405, 0x02030001)),
        .sign_bits = vi_keep(_mm512_set1_epi8((char)0xc0)),
        .values = vi_keep(values),
        .nibbles = vi_keep(nibbles),
        .lower_nibble = vi_keep(_mm512_set1_epi8(15)),
        .lowest = vi_keep(_mm512_set1_epi8((char)(1u << (offset + extra) >> 1))),
        .halves = keep_mask(0x3333333333333333u),
        .even = keep_mask(0x5555555555555555u),
        .odd = keep_mask(0xaaaaaaaaaaaaaaaau),
    };
}

INLINE vint load_bytes(const void *from) { return _mm512_loadu_si512(from); }

/* The planes of a block to 128 codes of one byte, whose upper bit is bit aligned - 1. */
INLINE void unpack(uint8_t *codes, const stq_planes planes, int64_t block, const uint32_t bits,
                   const uint32_t aligned) {
    const uint32_t base_bits = stq_base_bits(bits), up = aligned - base_bits;
    for (int half = 0; half < 2; half++) {
        const uint8_t *base = planes.base + (block * STQ_BLOCK + 64 * half) / (8 / base_bits);
        vint x;
        if (bits >= 4) {
            x = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)base));
            x = _mm512_ternarylogic_epi32(_mm512_slli_epi16(x, up), _mm512_slli_epi16(x, up + 4),
                                          _mm512_set1_epi8((char)(15 << up)), 0xa8); /* (a | b) & c */
        } else {
            /* Of each byte in its dword four copies, each rotated so that its pair lies at `up`. */
            x = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)base));
            x = _mm512_multishift_epi64_epi8(
                _mm512_sub_epi8(_mm512_set1_epi64(0x2624222006040200), _mm512_set1_epi8((char)up)), x);
            x = _mm512_and_si512(x, _mm512_set1_epi8((char)(3 << up)));
        }
        for (uint32_t plane = 0; plane < bits - base_bits; plane++) {
            uint64_t mask;
            memcpy(&mask, planes.bit[plane] + block * (STQ_BLOCK / 8) + 8 * half, sizeof mask);
            x = _mm512_mask_add_epi8(x, mask, x, _mm512_set1_epi8((char)(1 << (up - 1 - plane))));
        }
        _mm512_store_si512(codes + 64 * half, x);
    }
}

/*
 * The base plane of 4 bits. Codes of even lanes come together with those of odd ones, which lie in the next dword, so
 * that only the joined nibbles have to be put in the order of values.
 */
INLINE void pack_nibbles(uint8_t *base, vint first, vint second, const coder *constants, const uint32_t shift) {
    vfloat a = vf_from_bits(first), b = vf_from_bits(second);
    vint even = _mm512_srli_epi16(vi_bits(_mm512_shuffle_ps(a, b, 0x88)), shift);
    vint odd = _mm512_slli_epi16(vi_bits(_mm512_shuffle_ps(a, b, 0xdd)), 4 - shift);
    vint joined = _mm512_ternarylogic_epi32(even, odd, constants->lower_nibble, 0xe4); /* c ? a : b, bit by bit */
    _mm512_storeu_si512(base, _mm512_permutexvar_epi8(constants->nibbles, joined));
}

INLINE void pack_pairs(uint8_t *base, vint codes, const uint32_t shift) {
    vint pairs = _mm512_and_si512(_mm512_srli_epi16(codes, shift), _mm512_set1_epi8(3));
    pairs = _mm512_maddubs_epi16(pairs, _mm512_set1_epi16(0x0401));
    pairs = _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x00100001));
    _mm_storeu_si128((__m128i *)(void *)base, _mm512_cvtepi32_epi8(pairs));
}

/* 128 codes to the planes of a block. A code's bits lie at `offset` of its byte; the other bits may be anything. */
INLINE void pack(const stq_planes planes, int64_t block, const uint8_t *codes, const coder *constants,
                 const uint32_t bits, const uint32_t offset) {
    const uint32_t extra = bits - stq_base_bits(bits);
    const uint32_t shift = offset + extra;
    vint x[2] = {load_bytes(codes), load_bytes(codes + 64)};
    if (bits >= 4)
        pack_nibbles(planes.base + block * (STQ_BLOCK / 2), x[0], x[1], constants, shift);
    for (int half = 0; half < 2 && (bits < 4 || extra > 0); half++) {
        vint ordered = _mm512_permutexvar_epi8(constants->values, x[half]);
        if (bits < 4)
            pack_pairs(planes.base + block * (STQ_BLOCK / 4) + 16 * half, ordered, shift);
        for (uint32_t plane = 0; plane < extra; plane++) {
            vint bit = plane == 0 ? constants->lowest : _mm512_set1_epi8((char)(1 << (shift - 1 - plane)));
            uint64_t mask = _mm512_test_epi8_mask(ordered, bit);
            memcpy(planes.bit[plane] + block * (STQ_BLOCK / 8) + 8 * half, &mask, sizeof mask);
        }
    }
}

#include "quant/decode_template.h"

/* ---- codes to values ---- */

INLINE vint load_codes(const uint8_t *codes) {
    return _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)codes));
}

typedef struct m_source {
    vfloat low, high; /* the levels of narrow codes */
    vfloat scales;
    vint offset;
} m_source;

typedef struct m_levels {
    vfloat low, high; /* relative to the scale */
} m_levels;

INLINE m_levels load_levels(const float *levels) { return (m_levels){vf_load(levels), vf_load(levels + 16)}; }

INLINE m_source make_m_source(float scale, m_levels levels, uint32_t offset) {
    vfloat scales = vf_all(scale);
    return (m_source){vf_multiply(levels.low, scales), vf_multiply(levels.high, scales), scales, vi_all(offset)};
}

INLINE void m_values(vfloat *to, const m_source *source, const uint8_t *codes, const bool narrow) {
    vint code = load_codes(codes);
    to[0] = narrow ? _mm512_permutex2var_ps(source->low, code, source->high)
                   : m_by_arithmetic(code, source->scales, source->offset);
}

/*
 * 16 values of 4-bit codes out of 8 bytes of the plane. The 64 bits go to all lanes; each takes 8 of them from its code
 * on, of which the look-up heeds the lowest 4. The codes are not aligned: the tables' lower halves hold all 16 values.
 */
INLINE vint nibbles(const uint8_t *from) {
    const vint places = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
    vint shifted; /* as _mm512_multishift_epi64_epi8, for which gcc 12 has the broadcast in an instruction of its own */
    __asm__("vpmultishiftqb %1%{1to8%}, %2, %0" : "=v"(shifted) : "m"(*(const uint8_t(*)[8])from), "v"(places));
    return shifted;
}

/* The levels of even codes of 5 bits, which are those of 4 bits too, and of odd ones. */
INLINE m_levels levels_apart(m_levels levels) {
    const vint even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return (m_levels){_mm512_permutex2var_ps(levels.low, even, levels.high),
                      _mm512_permutex2var_ps(levels.low, _mm512_or_si512(even, vi_all(1)), levels.high)};
}

INLINE vfloat m_of_nibbles(const m_source *source, const uint8_t *from) {
    return _mm512_permutexvar_ps(nibbles(from), source->low);
}

/*
 * Where 64 values of 5-bit codes, from value `first` of the block on, are in a table of the even codes' values and
 * after them the odd ones': four bits of the base plane's and a fifth of the bit plane's. Bytes of the base plane go
 * first to where their two values' lanes are, one for each of eight vectors; of four vectors the places are bytes of a
 * dword.
 */
INLINE void places_of_fives(vint to[4], const uint8_t *base, const uint8_t *bit, int first) {
    const vint lanes =
        _mm512_set_epi8(63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21, 13, 5, 60,
                        52, 44, 36, 28, 20, 12, 4, 59, 51, 43, 35, 27, 19, 11, 3, 58, 50, 42, 34, 26, 18, 10, 2, 57, 49,
                        41, 33, 25, 17, 9, 1, 56, 48, 40, 32, 24, 16, 8, 0);
    const vint nibble = first == 0 ? _mm512_set1_epi64(0x1c140c0418100800) : _mm512_set1_epi64(0x3c342c2438302820);
    const vint fifth = /* bit 16 k + i of vector k's lane i to bit 4 */
        _mm512_add_epi8(_mm512_set1_epi32(0x2c1c0cfc), _mm512_mullo_epi32(vi_lane_numbers(), vi_all(0x01010101)));
    vint x = _mm512_multishift_epi64_epi8(nibble, _mm512_permutexvar_epi8(lanes, load_bytes(base)));
    vint shifted; /* as in nibbles */
    __asm__("vpmultishiftqb %1%{1to8%}, %2, %0" : "=v"(shifted) : "m"(*(const uint8_t(*)[8])bit), "v"(fifth));
    x = _mm512_ternarylogic_epi32(x, shifted, _mm512_set1_epi8(15), 0xe4);
    to[0] = x;
    to[1] = vi_shift_right(x, 8);
    to[2] = vi_shift_right(x, 16);
    to[3] = vi_shift_right(x, 24);
}

INLINE void m_of_fives(vfloat to[4], const m_source *source, const uint8_t *base, const uint8_t *bit, int first) {
    vint places[4];
    places_of_fives(places, base, bit, first);
    for (int k = 0; k < 4; k++)
        to[k] = _mm512_permutex2var_ps(source->low, places[k], source->high);
}

typedef struct v_source {
    vfloat low, high; /* the nodes of narrow codes */
    vint lows, first;
    vcount shift;
} v_source;

INLINE v_source make_v_source(uint32_t low, uint32_t shift, uint32_t first) {
    vint lows = vi_all(low), firsts = vi_all(first), codes = vi_lane_numbers();
    vcount count = vi_count((int)shift);
    vint upper = vi_shift_left_by(vi_add(codes, vi_all(16)), count); /* none of these stands for 0 */
    return (v_source){v_by_arithmetic(codes, lows, count, firsts), vf_from_bits(vi_add(lows, upper)), lows, firsts,
                      count};
}

INLINE void v_values(vfloat *to, const v_source *source, const uint8_t *codes, const bool narrow) {
    vint code = load_codes(codes);
    to[0] = narrow ? _mm512_permutex2var_ps(source->low, code, source->high)
                   : v_by_arithmetic(code, source->lows, source->shift, source->first);
}

/* The nodes of even codes and of odd ones. */
INLINE v_source v_source_apart(const v_source *source) {
    vint codes = vi_add(vi_lane_numbers(), vi_lane_numbers());
    vint odd = vi_add(source->lows, vi_shift_left_by(vi_add(codes, vi_all(1)), source->shift));
    return (v_source){v_by_arithmetic(codes, source->lows, source->shift, source->first), vf_from_bits(odd),
                      source->lows, source->first, source->shift};
}

INLINE void v_of_fives(vfloat to[4], const v_source *source, const uint8_t *base, const uint8_t *bit, int first) {
    vint places[4];
    places_of_fives(places, base, bit, first);
    for (int k = 0; k < 4; k++)
        to[k] = _mm512_permutex2var_ps(source->low, places[k], source->high);
}

INLINE vfloat v_of_nibbles(const v_source *source, const uint8_t *from) {
    return _mm512_permutexvar_ps(nibbles(from), source->low);
}

/* ---- values to codes ---- */

/*
 * Bytes of four vectors go together by byte shuffles into one of them under a mask: one operation of Intel's port 5
 * each, where a permutation of two vectors' bytes or half-words is three. The order that this leaves is code_place.
 */

/* Of each dword the upper half of x below that of y. */
INLINE vint upper_halves(vint x, vint y, const coder *constants) {
    return _mm512_mask_shuffle_epi8(y, constants->halves, x, constants->upper);
}

/* Of each word the lower byte of x below that of y; the upper ones. */
INLINE vint lower_bytes(vint x, vint y, const coder *constants) {
    return _mm512_mask_shuffle_epi8(x, constants->odd, y, constants->swap);
}

INLINE vint upper_bytes(vint x, vint y, const coder *constants) {
    return _mm512_mask_shuffle_epi8(y, constants->even, x, constants->swap);
}

INLINE vfloat one_with_sign(const coder *constants, vfloat x) {
    return vf_from_bits(_mm512_ternarylogic_epi32(vi_bits(x), constants->sign, constants->one, 0xea)); /* a & b | c */
}

/* Of each +-t (1 <= t < 4) the sign and, below it, bits 23 .. 17 of the bits of t minus those of 1: the inverse of bit
 * 23, which bit 30 is, and bits 22 .. 17. */
INLINE void store_sign_codes(uint8_t *codes, const coder *constants, vfloat t0, vfloat t1, vfloat t2, vfloat t3) {
    vint x = upper_halves(vi_bits(t0), vi_bits(t1), constants), y = upper_halves(vi_bits(t2), vi_bits(t3), constants);
    vint low = _mm512_srli_epi16(lower_bytes(x, y, constants), 1);
    vint bytes = _mm512_ternarylogic_epi32(upper_bytes(x, y, constants), low, constants->sign_bits, 0xe4);
    _mm512_store_si512(codes, bytes);
}

/* Bits 16 to 23 of each lane, minus `subtract`. */
INLINE void store_third_bytes(uint8_t *codes, const coder *constants, vint a, vint b, vint c, vint d, uint32_t subtract,
                              const bool small) {
    (void)small;
    vint x = upper_halves(a, b, constants), y = upper_halves(c, d, constants);
    _mm512_store_si512(codes, _mm512_sub_epi8(lower_bytes(x, y, constants), _mm512_set1_epi8((char)subtract)));
}

#include "quant/kernel_template.h"

const stq_kernels stq_avx512_kernels = {.name = "avx512", .step = step, .encode = encode, .decode = decode};

STQ_TARGET_END

#else
typedef int stq_no_avx512;
#endif
