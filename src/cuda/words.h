/*
 * words.h - eight neighbouring codes in two words, and eight bfloat16 in four. A GPU lane owns 8 values of a block:
 * `even` holds the codes of values 0, 2, 4, 6 in its bytes, lowest byte first, `odd` those of values 1, 3, 5, 7. Planes
 * are taken apart and put together by operations on all four bytes at once; the plane layout is in stquant/quant.h.
 * Plain C that the host's tests run too.
 */
#ifndef STQ_WORDS_H
#define STQ_WORDS_H

#include "quant/codec.h"

typedef struct stq_words {
    uint32_t even;
    uint32_t odd;
} stq_words;

/* The codes out of a nibble plane's 4 bytes. */
STQ_INLINE stq_words stq_words_from_nibbles(uint32_t nibbles) {
    stq_words words = {nibbles & 0x0f0f0f0fu, nibbles >> 4 & 0x0f0f0f0fu};
    return words;
}

/* Appends one bit to each code: the byte of a bit plane that belongs to the 8 values. The multiplication puts bit 2 j
 * at 8 j; what it puts elsewhere is masked off, and no sum carries into a wanted place. */
STQ_INLINE stq_words stq_words_append(stq_words words, uint32_t plane_byte) {
    uint32_t even = (plane_byte & 0x55u) * 0x00041041u & 0x01010101u;
    uint32_t odd = (plane_byte >> 1 & 0x55u) * 0x00041041u & 0x01010101u;
    stq_words longer = {words.even * 2 + even, words.odd * 2 + odd};
    return longer;
}

/* The nibble plane's 4 bytes of codes that have `extra` bits below the nibble. */
STQ_INLINE uint32_t stq_words_nibbles(stq_words words, uint32_t extra) {
    return (words.even >> extra & 0x0f0f0f0fu) + (words.odd >> extra & 0x0f0f0f0fu) * 16;
}

/* The pair plane's 2 bytes of codes that have `extra` bits below the pair. */
STQ_INLINE uint32_t stq_words_pairs(stq_words words, uint32_t extra) {
    uint32_t x = (words.even >> extra & 0x03030303u) + (words.odd >> extra & 0x03030303u) * 4;
    x = (x | x >> 4) & 0x00ff00ffu;
    return (x | x >> 8) & 0xffffu;
}

/* The byte of the bit plane that holds bit `position` of the codes. The multiplication puts the two bits of byte j at
 * 24 + 2 j; the other products stay apart below or overflow. */
STQ_INLINE uint32_t stq_words_bits(stq_words words, uint32_t position) {
    uint32_t x = (words.even >> position & 0x01010101u) + (words.odd >> position & 0x01010101u) * 2;
    return x * 0x01041040u >> 24;
}

/* Code of value k (0 to 7). */
STQ_INLINE uint32_t stq_words_code(stq_words words, int k) {
    return (k & 1 ? words.odd : words.even) >> (8 * (k >> 1)) & 0xffu;
}

/* The words of 8 codes, each below 256. */
STQ_INLINE stq_words stq_words_of(const uint32_t *codes) {
    stq_words words = {codes[0] | codes[2] << 8 | codes[4] << 16 | codes[6] << 24,
                       codes[1] | codes[3] << 8 | codes[5] << 16 | codes[7] << 24};
    return words;
}

/* Value k (0 or 1) of two neighbouring bfloat16, the first of which is the word's lower half. */
STQ_INLINE float stq_pair_value(uint32_t pair, int k) { return stq_bits_float(k ? pair & 0xffff0000u : pair << 16); }

/* The values of 8 neighbouring bfloat16, which are 4 such words. */
STQ_INLINE void stq_pairs_values(float *values, const uint32_t *pairs) {
    for (int k = 0; k < 8; k++)
        values[k] = stq_pair_value(pairs[k / 2], k & 1);
}

/* A byte repeated in all four. */
STQ_INLINE uint32_t stq_four(uint32_t byte) { return byte * 0x01010101u; }

#endif
