/*
 * general.cuh - one row of any item: any widths, transitions, float32 states, any dtype and alignment, tails, error
 * compensation. The scalar reference, with a lane's 8 values in place of its loops over a block. Exempt tensors, tails
 * and the steps of a transition go this way, so it is written to be read rather than tuned.
 */
#ifndef STQ_GENERAL_CUH
#define STQ_GENERAL_CUH

#include "cuda/lane.cuh"
#include "cuda/lists.h"
#include "cuda/words.h"
#include "quant/convert.h"
#include "quant/shared.h"

/* A lane's part of a block. */
struct general_lane {
    int64_t block; /* counted from the item's start */
    int64_t first; /* element */
    int valid;     /* elements from `first` on that exist, 0 to 8 */
    bool inside;   /* the block exists: its padding is written too */
};

static __device__ general_lane general_lane_at(int64_t count, int64_t row) {
    general_lane lane;
    uint32_t index = threadIdx.x % 32;
    lane.block = row * 2 + index / STQ_BLOCK_LANES;
    lane.first = row * (2 * STQ_BLOCK) + index * STQ_LANE_VALUES;
    int64_t left = count - lane.first;
    lane.valid = left < 0 ? 0 : left < STQ_LANE_VALUES ? (int)left : STQ_LANE_VALUES;
    lane.inside = lane.block * STQ_BLOCK < count;
    return lane;
}

/* `lowest[k]` tells whether the magnitude code is the lowest. Values that do not exist become 0. */
static __device__ void general_decode_m(float *m, bool *lowest, const stq_planes *planes, const general_lane &lane) {
    for (int k = 0; k < STQ_LANE_VALUES; k++) {
        m[k] = 0.0f;
        lowest[k] = false;
        if (k >= lane.valid || planes->bits == 0)
            continue;
        if (planes->bits == STQ_BITS_FLOAT32) {
            m[k] = ((const float *)(const void *)planes->base)[lane.first + k];
        } else {
            uint32_t code = stq_code_get(planes, lane.first + k);
            m[k] = stq_m_decode(code, stq_m_scale(planes->scales[lane.block]), planes->bits);
            lowest[k] = stq_m_is_lowest(code, planes->bits);
        }
    }
}

static __device__ void general_decode_v(float *v, const stq_planes *planes, const general_lane &lane) {
    for (int k = 0; k < STQ_LANE_VALUES; k++) {
        v[k] = 0.0f;
        if (k >= lane.valid || planes->bits == 0)
            continue;
        if (planes->bits == STQ_BITS_FLOAT32) {
            v[k] = ((const float *)(const void *)planes->base)[lane.first + k];
        } else {
            stq_lattice lattice = stq_v_lattice(planes->scales[lane.block], planes->bits);
            v[k] = stq_v_decode(stq_code_get(planes, lane.first + k), &lattice);
        }
    }
}

/* Codes of a lane's 8 values, and their block's scale word. */
struct general_codes {
    stq_words codes;
    uint32_t word;
};

/* Writes a lane's 8 codes to all planes, and the block's scale word. */
static __device__ void general_pack(const stq_planes *planes, const general_codes &result, const general_lane &lane) {
    if (!lane.inside)
        return;
    stq_words words = result.codes;
    uint32_t extra = planes->bits - stq_base_bits(planes->bits);
    int64_t at = lane.first / STQ_LANE_VALUES;
    if (planes->bits >= 4)
        ((uint32_t *)(void *)planes->base)[at] = stq_words_nibbles(words, extra);
    else
        ((uint16_t *)(void *)planes->base)[at] = (uint16_t)stq_words_pairs(words, extra);
    for (uint32_t plane = 0; plane < extra; plane++)
        planes->bit[plane][at] = (uint8_t)stq_words_bits(words, extra - 1 - plane);
    if (at % STQ_BLOCK_LANES == 0)
        planes->scales[lane.block] = (uint16_t)result.word;
}

static __device__ void general_store_floats(const stq_planes *planes, const float *values, const general_lane &lane) {
    for (int k = 0; k < lane.valid; k++)
        ((float *)(void *)planes->base)[lane.first + k] = values[k];
}

/* Codes of a lane's first `valid` values of m, 0 for the others, and the block's scale word. All lanes of the warp call
 * it together. */
static __device__ __noinline__ general_codes general_codes_m(const float *m, int valid, uint32_t bits) {
    uint32_t largest = 0;
    for (int k = 0; k < valid; k++)
        largest = max(largest, stq_float_bits(m[k]) & 0x7fffffffu);
    uint32_t word = stq_m_scale_word(stq_block_max(largest));
    float inverse = stq_m_inverse(word);
    float prescale = stq_m_prescale(word);
    uint32_t codes[STQ_LANE_VALUES];
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        codes[k] = k < valid ? stq_m_encode(m[k] * prescale, inverse, bits) : 0;
    general_codes result = {stq_words_of(codes), word};
    return result;
}

/* Codes of a lane's first `valid` values of v, 0 for the others, and the block's scale word; `in_block` is the place of
 * the first in its block. All lanes of the warp call it together. */
static __device__ __noinline__ general_codes general_codes_v(const float *v, int valid, uint32_t in_block,
                                                             uint32_t bits, uint32_t block_key) {
    uint32_t largest = 0, lowest = 0xffffffffu, has_zero = 0;
    for (int k = 0; k < valid; k++) {
        uint32_t value = stq_float_bits(v[k]);
        largest = max(largest, value);
        if (value == 0)
            has_zero = 1;
        else
            lowest = min(lowest, value);
    }
    uint32_t word = stq_v_scale_word(stq_block_max(largest), stq_block_min(lowest), stq_block_max(has_zero), bits);
    stq_lattice lattice = stq_v_lattice(word, bits);
    uint32_t codes[STQ_LANE_VALUES];
    for (int k = 0; k < STQ_LANE_VALUES; k++) {
        uint32_t pair = stq_random_pair(block_key, (in_block + k) / 2);
        uint32_t half = k % 2 ? pair >> 16 : pair & 0xffffu;
        uint32_t wide = stq_random_wide(block_key, in_block + k);
        codes[k] = k < valid ? stq_v_encode(stq_float_bits(v[k]), &lattice, half, wide) : 0;
    }
    general_codes result = {stq_words_of(codes), word};
    return result;
}

/* Encodes and stores m; `coded` receives what the codes stand for. */
static __device__ void general_encode_m(float *coded, const stq_planes *planes, const float *m,
                                        const general_lane &lane) {
    general_codes result = general_codes_m(m, lane.valid, planes->bits);
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        coded[k] = stq_m_decode(stq_words_code(result.codes, k), stq_m_scale(result.word), planes->bits);
    general_pack(planes, result, lane);
}

/* Encodes and stores v. */
static __device__ void general_encode_v(const stq_planes *planes, const float *v, uint32_t block_key,
                                        const general_lane &lane) {
    uint32_t in_block = (uint32_t)(lane.first % STQ_BLOCK);
    general_pack(planes, general_codes_v(v, lane.valid, in_block, planes->bits, block_key), lane);
}

/* The same operations in the same order as the reference. `coded` is m as encoded. */
static __device__ void general_compensate(float *p, const float *m, const float *coded, const float *denominator,
                                          const stq_coefficients *c, int valid) {
    for (int k = 0; k < valid; k++) {
        float error = m[k] == 0.0f ? 0.0f : m[k] - coded[k];
        p[k] = fmaf(-c->step_size * c->compensation, __fdiv_rn(error, denominator[k]), p[k]);
    }
}

/* float32 states, as plain_update in quant/reference.c has it. */
static __device__ void general_plain_update(float *p, float *m, float *v, float g, const stq_coefficients *c) {
    *m = fmaf(c->one_minus_beta1, g - *m, *m);
    *v = fmaf(c->one_minus_beta2 * g, g, c->beta2 * *v);
    float denominator = __fdiv_rn(__fsqrt_rn(*v), c->plain_root) + c->plain_epsilon;
    *p = *p * c->decay + __fdiv_rn(-c->plain_step * *m, denominator);
}

static __device__ __noinline__ void general_row(const stq_item *item, const stq_coefficients *c, int64_t row) {
    general_lane lane = general_lane_at(item->count, row);
    uint32_t block = (uint32_t)(item->first_block + lane.block);
    uint32_t in_block = (uint32_t)(lane.first % STQ_BLOCK);
    float m[STQ_LANE_VALUES], v[STQ_LANE_VALUES], p[STQ_LANE_VALUES], coded[STQ_LANE_VALUES];
    float denominator[STQ_LANE_VALUES];
    bool lowest[STQ_LANE_VALUES];
    general_decode_m(m, lowest, &item->m_in, lane);
    bool shared = stq_is_shared(item->v_in.bits), plain = stq_is_plain(item);
    if (shared)
        stq_shared_values(v, &item->v_in, item->cols, item->first_block * STQ_BLOCK + lane.first, lane.valid);
    else
        general_decode_v(v, &item->v_in, lane);
    __syncwarp();
    for (int k = 0; k < lane.valid; k++) {
        float g = stq_load_float(item->gradient, item->gradient_type, lane.first + k) * c->gradient_factor;
        if (plain) {
            p[k] = stq_load_float(item->parameter, item->parameter_type, lane.first + k);
            general_plain_update(&p[k], &m[k], &v[k], g, c);
            continue;
        }
        float decoded = lowest[k] && g == 0.0f ? 0.0f : m[k];
        m[k] = fmaf(c->beta1, decoded, c->one_minus_beta1 * g);
        if (!shared)
            v[k] = fmaf(c->beta2, v[k], c->one_minus_beta2 * (g * g));
        denominator[k] = __fsqrt_rn(v[k]) + c->epsilon;
        p[k] = stq_load_float(item->parameter, item->parameter_type, lane.first + k) * c->decay;
        p[k] = fmaf(-c->step_size, __fdiv_rn(m[k], denominator[k]), p[k]);
    }
    bool float_m = item->m_out.bits == STQ_BITS_FLOAT32;
    if (float_m)
        general_store_floats(&item->m_out, m, lane);
    else
        general_encode_m(coded, &item->m_out, m, lane);
    if (item->v_out.bits == STQ_BITS_FLOAT32)
        general_store_floats(&item->v_out, v, lane);
    else if (!stq_is_shared(item->v_out.bits))
        general_encode_v(&item->v_out, v, stq_block_key(c->step_key, item->tensor, block, STQ_STREAM_SECOND_MOMENT),
                         lane);
    if (c->compensation != 0.0f && !float_m)
        general_compensate(p, m, coded, denominator, c, lane.valid);
    uint32_t key = stq_block_key(c->step_key, item->tensor, block, STQ_STREAM_PARAMETER);
    for (int k = 0; k < lane.valid; k++) {
        uint32_t pair = stq_random_pair(key, (in_block + k) / 2);
        stq_store_float(item->parameter, item->parameter_type, lane.first + k, p[k],
                        k % 2 ? pair >> 16 : pair & 0xffffu);
    }
}

#endif
