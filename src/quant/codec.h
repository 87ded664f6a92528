/*
 * codec.h - the codecs of one value, in plain arithmetic that C and CUDA share. Every operation is IEEE 754 single
 * precision in a stated order (explicit fma, no contraction), so that codes and scales are the same bytes everywhere.
 * docs/codec.md has the definitions in words.
 */
#ifndef STQ_CODEC_H
#define STQ_CODEC_H

#include <math.h>
#include <string.h>

#include "quant/layout.h"

#define STQ_LARGEST_FLOAT_BITS 0x7f7fffffu
#define STQ_ONE_BITS 0x3f800000u

STQ_INLINE uint32_t stq_float_bits(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

STQ_INLINE float stq_bits_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

/* ---- Random numbers: counter-based, 128 words of 16 bits a block ---- */

/* Two multiplications, full avalanche (constants found by C. Wellons' search for low-bias 32-bit finalisers). */
STQ_INLINE uint32_t stq_hash(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

STQ_INLINE uint32_t stq_step_key(uint64_t seed, uint64_t step) {
    uint32_t key = stq_hash((uint32_t)seed + 0x9e3779b9u);
    key = stq_hash(key ^ (uint32_t)(seed >> 32));
    key = stq_hash(key + (uint32_t)step);
    return stq_hash(key ^ (uint32_t)(step >> 32));
}

/* What the words of a block are used for: each use has a stream of its own. */
enum { STQ_STREAM_SECOND_MOMENT = 0, STQ_STREAM_PARAMETER = 1 };

STQ_INLINE uint32_t stq_block_key(uint32_t step_key, uint32_t tensor, uint32_t block, uint32_t stream) {
    uint32_t key = stq_hash(step_key ^ (tensor * 0x85ebca6bu + stream));
    return stq_hash(key + block * 0x9e3779b9u);
}

/* What a pair's number changes in the block key. */
STQ_INLINE uint32_t stq_pair_offset(uint32_t pair) { return pair * 0x2545f491u; }

STQ_INLINE uint32_t stq_mix_pair(uint32_t x) {
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

/* Words 2 pair (low half) and 2 pair + 1 (high half) of a block. The block key has avalanched already, so that one
 * multiplication on either side of the fold is enough here. */
STQ_INLINE uint32_t stq_random_pair(uint32_t block_key, uint32_t pair) {
    return stq_mix_pair(block_key ^ stq_pair_offset(pair));
}

/* 24 bits for value `index`, for the few blocks whose lattice cells are wider than an octave. */
STQ_INLINE uint32_t stq_random_wide(uint32_t block_key, uint32_t index) {
    return stq_hash(block_key + 0x9e3779b9u * (index + 1)) >> 8;
}

/* ---- First moment: sign and companded magnitude ----
 *
 * With u = |m| / scale in [0, 1], the magnitude code is the top bits of the float 1 + 3 u minus those of 1: a piecewise
 * linear log2(1 + 3 u) over exactly two octaves. Decoding takes the middle of the cell. */

/* The scale word: the upper half of a float, rounded up, so that no magnitude exceeds the scale. */
STQ_INLINE uint32_t stq_m_scale_word(uint32_t largest_bits) {
    uint32_t word = (largest_bits + 0xffffu) >> 16;
    return word < 0x7f7fu ? word : 0x7f7fu;
}

STQ_INLINE float stq_m_scale(uint32_t scale_word) { return stq_bits_float(scale_word << 16); }

/* Blocks whose scale is below 2^-100 are encoded after an exact multiplication with 2^64: 3 / scale would overflow. */
STQ_INLINE float stq_m_prescale(uint32_t scale_word) {
    return scale_word < (27u << 7) ? 18446744073709551616.0f : 1.0f;
}

STQ_INLINE float stq_m_inverse(uint32_t scale_word) {
    return scale_word == 0 ? 0.0f : 3.0f / (stq_m_scale(scale_word) * stq_m_prescale(scale_word));
}

/* `m` is prescaled. The code has its sign in bit bits - 1. */
STQ_INLINE uint32_t stq_m_encode(float m, float inverse, uint32_t bits) {
    uint32_t magnitude_bits = bits - 1;
    uint32_t largest = (1u << magnitude_bits) - 1;
    float t = fmaf(fabsf(m), inverse, 1.0f);
    uint32_t magnitude = (stq_float_bits(t) - STQ_ONE_BITS) >> (24 - magnitude_bits);
    magnitude = magnitude < largest ? magnitude : largest;
    return (stq_float_bits(m) >> 31) << magnitude_bits | magnitude;
}

/* The level of a magnitude code, relative to the scale: the middle of its cell. */
STQ_INLINE float stq_m_level(uint32_t magnitude, uint32_t bits) {
    uint32_t shift = 25 - bits;
    float t = stq_bits_float(STQ_ONE_BITS + (magnitude << shift) + (1u << (shift - 1)));
    return (t - 1.0f) * (1.0f / 3.0f);
}

STQ_INLINE float stq_m_decode(uint32_t code, float scale, uint32_t bits) {
    float value = stq_m_level(code & ((1u << (bits - 1)) - 1), bits) * scale;
    return stq_bits_float(stq_float_bits(value) | (code >> (bits - 1)) << 31);
}

/* Magnitude code 0: together with a zero gradient it stands for m = 0, or dead columns would drift. */
STQ_INLINE bool stq_m_is_lowest(uint32_t code, uint32_t bits) { return (code & ((1u << (bits - 1)) - 1)) == 0; }

/* ---- Second moment: nodes of a logarithmic lattice, stochastic rounding ----
 *
 * A positive float's bits are a piecewise linear logarithm. Code c stands for the float with bits low + c 2^shift;
 * `low` is a multiple of 2^max(shift, 19). Lattices of different blocks and steps are nested, so that a value on a node
 * stays on it when the range moves. Code 0 stands for 0 unless the word's node bit is set. */

typedef struct stq_lattice {
    uint32_t low;   /* bits of the float that code 0 stands for if it is a node */
    uint32_t shift; /* log2 of the step between nodes, in units of the last place of a float; 23 = one octave */
    uint32_t first; /* lowest code of a positive value: 0 or 1 */
    uint32_t last;  /* highest code whose node is finite */
} stq_lattice;

/* Shift of the finest lattice that a width's scale word can name; seven coarser ones follow. */
STQ_INLINE uint32_t stq_v_finest(uint32_t bits) { return 21 - bits; }

/* Shift of the coarsest lattice that is written: cells of half an octave, of two at 2 bits. Coarser cells would cover
 * more of a block's range, but what they round down is divided by: see docs/decisions/006-reach-of-v.md. */
STQ_INLINE uint32_t stq_v_coarsest(uint32_t bits) { return bits == 2 ? 24 : bits <= 6 ? 22 : 28 - bits; }

/* How far below a block's largest value its lattice reaches, as a difference of bits, at most 24 octaves; the coarsest
 * lattice covers it wherever it begins. Smaller values are raised to this. */
STQ_INLINE uint32_t stq_v_reach(uint32_t bits, uint32_t has_zero) {
    return bits <= 5 ? ((1u << bits) - 2 - has_zero) << stq_v_coarsest(bits) : 24u << 23;
}

/* Decodes a scale word: bits 4 to 15 are low >> 19, bits 1 to 3 are shift - finest shift, bit 0 is set if code 0 is a
 * node. */
STQ_INLINE stq_lattice stq_v_lattice(uint32_t scale_word, uint32_t bits) {
    stq_lattice lattice;
    lattice.low = scale_word >> 4 << 19;
    lattice.shift = stq_v_finest(bits) + (scale_word >> 1 & 7);
    lattice.first = 1 - (scale_word & 1);
    uint32_t last = (1u << bits) - 1;
    uint32_t finite = (STQ_LARGEST_FLOAT_BITS - lattice.low) >> lattice.shift;
    lattice.last = last < finite ? last : finite;
    return lattice;
}

/* The lattice of one shift for a block with positive values from `lowest` to `largest` (bits): as low as possible if it
 * reaches `largest`. Sets *fits. */
STQ_INLINE uint32_t stq_v_low(uint32_t lowest, uint32_t largest, uint32_t has_zero, uint32_t shift, uint32_t bits,
                              bool *fits) {
    uint32_t step = 1u << shift;
    uint32_t grain = shift > 19 ? shift : 19;
    uint32_t room = has_zero ? step : 0;
    uint32_t low = (lowest > room ? lowest - room : 0) >> grain << grain;
    *fits = low + (((1u << bits) - 1) << shift) >= largest;
    return low;
}

/*
 * The scale word of a block: the finest lattice that covers its positive values as far down as the width reaches.
 *   largest:  bits of the largest value, 0 if all are 0
 *   lowest:   bits of the smallest positive value
 *   has_zero: 1 if some value is 0
 */
STQ_INLINE uint32_t stq_v_scale_word(uint32_t largest, uint32_t lowest, uint32_t has_zero, uint32_t bits) {
    if (largest == 0)
        return 0;
    largest = largest < STQ_LARGEST_FLOAT_BITS ? largest : STQ_LARGEST_FLOAT_BITS;
    uint32_t reach = stq_v_reach(bits, has_zero);
    uint32_t floor_bits = largest > reach ? largest - reach : 1;
    lowest = lowest > floor_bits ? lowest : floor_bits;
    lowest = lowest < largest ? lowest : largest;
    uint32_t shift = stq_v_finest(bits);
    bool fits = false;
    uint32_t low = stq_v_low(lowest, largest, has_zero, shift, bits, &fits);
    while (!fits)
        low = stq_v_low(lowest, largest, has_zero, ++shift, bits, &fits);
    uint32_t node = has_zero == 0 && low > 0;
    return low >> 19 << 4 | (shift - stq_v_finest(bits)) << 1 | node;
}

/* Rounds a positive value (its bits) up or down to a neighbouring node so that the expectation is the value itself.
 * `word` are 16 random bits; `wide` 24, used only where a cell spans more than an octave. */
STQ_INLINE uint32_t stq_v_encode(uint32_t value_bits, const stq_lattice *lattice, uint32_t word, uint32_t wide) {
    if (value_bits == 0)
        return 0;
    uint32_t floor_bits = lattice->low + (lattice->first << lattice->shift);
    uint32_t offset = (value_bits > floor_bits ? value_bits : floor_bits) - lattice->low;
    uint32_t code;
    if (lattice->shift <= 23) {
        code = (offset + (word << 16 >> (32 - lattice->shift))) >> lattice->shift;
    } else {
        code = offset >> lattice->shift;
        if (code < lattice->last) {
            float below = stq_bits_float(lattice->low + (code << lattice->shift));
            float above = stq_bits_float(lattice->low + ((code + 1) << lattice->shift));
            float value = stq_bits_float(lattice->low + offset);
            code += (value - below) > ((float)wide * (1.0f / 16777216.0f)) * (above - below);
        }
    }
    return code < lattice->last ? code : lattice->last;
}

STQ_INLINE float stq_v_decode(uint32_t code, const stq_lattice *lattice) {
    return code < lattice->first ? 0.0f : stq_bits_float(lattice->low + (code << lattice->shift));
}

/* ---- Planes ---- */

STQ_INLINE uint32_t stq_base_bits(uint32_t bits) { return bits >= 4 ? 4 : 2; }

STQ_INLINE uint32_t stq_code_get(const stq_planes *planes, int64_t i) {
    uint32_t base_bits = stq_base_bits(planes->bits);
    uint32_t code =
        base_bits == 4 ? planes->base[i >> 1] >> (4 * (i & 1)) & 15 : planes->base[i >> 2] >> (2 * (i & 3)) & 3;
    for (uint32_t k = 0; k < planes->bits - base_bits; k++)
        code = code << 1 | (planes->bit[k][i >> 3] >> (i & 7) & 1);
    return code;
}

#endif
