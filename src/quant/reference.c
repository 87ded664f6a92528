/*
 * reference.c - the scalar reference of the Quantization engine: the definition of every byte that the fast kernels
 * must reproduce. Written to be read, never tuned.
 */
#include "quant/reference.h"
#include "common/float_mode.h"
#include "quant/codec.h"
#include "quant/convert.h"
#include "quant/kernels.h"
#include "quant/shared.h"

/* Zeros of the padding are not values: they neither set has_zero nor the smallest value. */
static void find_range(const float *v, int count, uint32_t *largest, uint32_t *lowest, uint32_t *has_zero) {
    *largest = 0;
    *lowest = UINT32_MAX;
    *has_zero = 0;
    for (int i = 0; i < count; i++) {
        uint32_t bits = stq_float_bits(v[i]);
        if (bits > *largest)
            *largest = bits;
        if (bits == 0)
            *has_zero = 1;
        else if (bits < *lowest)
            *lowest = bits;
    }
}

static void pack(const stq_planes *planes, int64_t block, const uint8_t *codes) {
    uint32_t base_bits = stq_base_bits(planes->bits);
    uint32_t extra = planes->bits - base_bits;
    int values_per_byte = 8 / (int)base_bits;
    uint8_t *base = planes->base + block * (STQ_BLOCK / values_per_byte);
    for (int byte = 0; byte < STQ_BLOCK / values_per_byte; byte++) {
        base[byte] = 0;
        for (int k = 0; k < values_per_byte; k++)
            base[byte] |= (uint8_t)(codes[byte * values_per_byte + k] >> extra << (base_bits * (uint32_t)k));
    }
    for (uint32_t plane = 0; plane < extra; plane++) {
        uint8_t *bits = planes->bit[plane] + block * (STQ_BLOCK / 8);
        for (int byte = 0; byte < STQ_BLOCK / 8; byte++) {
            bits[byte] = 0;
            for (int k = 0; k < 8; k++)
                bits[byte] |= (uint8_t)((codes[byte * 8 + k] >> (extra - 1 - plane) & 1) << k);
        }
    }
}

void stq_reference_encode_m(const stq_planes *planes, int64_t block, const float *m, int count) {
    uint8_t codes[STQ_BLOCK] = {0};
    uint32_t largest = 0;
    for (int i = 0; i < count; i++) {
        uint32_t bits = stq_float_bits(m[i]) & 0x7fffffffu;
        if (bits > largest)
            largest = bits;
    }
    uint32_t word = stq_m_scale_word(largest);
    float inverse = stq_m_inverse(word);
    float prescale = stq_m_prescale(word);
    for (int i = 0; i < count; i++)
        codes[i] = (uint8_t)stq_m_encode(m[i] * prescale, inverse, planes->bits);
    planes->scales[block] = (uint16_t)word;
    pack(planes, block, codes);
}

void stq_reference_encode_v(const stq_planes *planes, int64_t block, const float *v, int count, uint32_t block_key) {
    uint8_t codes[STQ_BLOCK] = {0};
    uint32_t largest, lowest, has_zero;
    find_range(v, count, &largest, &lowest, &has_zero);
    uint32_t word = stq_v_scale_word(largest, lowest, has_zero, planes->bits);
    stq_lattice lattice = stq_v_lattice(word, planes->bits);
    for (int i = 0; i < count; i++) {
        uint32_t pair = stq_random_pair(block_key, (uint32_t)i / 2);
        uint32_t half = i % 2 == 0 ? pair & 0xffffu : pair >> 16;
        uint32_t wide = stq_random_wide(block_key, (uint32_t)i);
        codes[i] = (uint8_t)stq_v_encode(stq_float_bits(v[i]), &lattice, half, wide);
    }
    planes->scales[block] = (uint16_t)word;
    pack(planes, block, codes);
}

/* `lowest`, if not NULL, tells for each value whether its magnitude code is the lowest. */
void stq_reference_decode_m(float *m, const stq_planes *planes, int64_t block, int count, bool *lowest) {
    for (int i = 0; i < count; i++) {
        int64_t index = block * STQ_BLOCK + i;
        if (lowest)
            lowest[i] = false;
        if (planes->bits == 0) {
            m[i] = 0.0f;
        } else if (planes->bits == STQ_BITS_FLOAT32) {
            m[i] = ((const float *)(const void *)planes->base)[index];
        } else {
            uint32_t code = stq_code_get(planes, index);
            m[i] = stq_m_decode(code, stq_m_scale(planes->scales[block]), planes->bits);
            if (lowest)
                lowest[i] = stq_m_is_lowest(code, planes->bits);
        }
    }
}

void stq_reference_decode_v(float *v, const stq_planes *planes, int64_t block, int count) {
    for (int i = 0; i < count; i++) {
        int64_t index = block * STQ_BLOCK + i;
        if (planes->bits == 0) {
            v[i] = 0.0f;
        } else if (planes->bits == STQ_BITS_FLOAT32) {
            v[i] = ((const float *)(const void *)planes->base)[index];
        } else {
            stq_lattice lattice = stq_v_lattice(planes->scales[block], planes->bits);
            v[i] = stq_v_decode(stq_code_get(planes, index), &lattice);
        }
    }
}

static void store_state(const stq_planes *planes, int64_t block, const float *values, int count, bool second,
                        uint32_t key) {
    if (planes->bits == STQ_BITS_FLOAT32)
        memcpy((float *)(void *)planes->base + block * STQ_BLOCK, values, (size_t)count * sizeof *values);
    else if (second)
        stq_reference_encode_v(planes, block, values, count, key);
    else
        stq_reference_encode_m(planes, block, values, count);
}

/* The first moment's rounding errors m - Q(m); 0 where m is 0, so that dead columns do not drift. */
static void rounding_errors(float *error, const float *m, const stq_item *item, int64_t block, int count) {
    float coded[STQ_BLOCK];
    stq_reference_decode_m(coded, &item->m_out, block, count, NULL);
    for (int i = 0; i < count; i++)
        error[i] = m[i] == 0.0f ? 0.0f : m[i] - coded[i];
}

/* float32 states: plain AdamW, with every operation and rounding of torch.optim.AdamW(fused=True). */
static void plain_update(float *p, float *m, float *v, float g, const stq_coefficients *c) {
    *m = fmaf(c->one_minus_beta1, g - *m, *m);
    *v = fmaf(c->one_minus_beta2 * g, g, c->beta2 * *v);
    *p = *p * c->decay + -c->plain_step * *m / (sqrtf(*v) / c->plain_root + c->plain_epsilon);
}

static void step_block(const stq_item *item, const stq_coefficients *c, int64_t block) {
    float m[STQ_BLOCK], v[STQ_BLOCK], p[STQ_BLOCK], denominator[STQ_BLOCK];
    bool lowest[STQ_BLOCK];
    int64_t first = block * STQ_BLOCK;
    int count = item->count - first < STQ_BLOCK ? (int)(item->count - first) : STQ_BLOCK;
    uint32_t global_block = (uint32_t)(item->first_block + block);

    stq_reference_decode_m(m, &item->m_in, block, count, lowest);
    bool shared = stq_is_shared(item->v_in.bits), plain = stq_is_plain(item);
    if (shared)
        stq_shared_values(v, &item->v_in, item->cols, (item->first_block + block) * STQ_BLOCK, count);
    else
        stq_reference_decode_v(v, &item->v_in, block, count);
    for (int i = 0; i < count; i++) {
        float g = stq_load_float(item->gradient, item->gradient_type, first + i) * c->gradient_factor;
        if (plain) {
            p[i] = stq_load_float(item->parameter, item->parameter_type, first + i);
            plain_update(&p[i], &m[i], &v[i], g, c);
            continue;
        }
        float decoded = lowest[i] && g == 0.0f ? 0.0f : m[i];
        m[i] = fmaf(c->beta1, decoded, c->one_minus_beta1 * g);
        if (!shared)
            v[i] = fmaf(c->beta2, v[i], c->one_minus_beta2 * (g * g));
        /* NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage): all of v was filled above, one way or the other */
        denominator[i] = sqrtf(v[i]) + c->epsilon;
        p[i] = stq_load_float(item->parameter, item->parameter_type, first + i) * c->decay;
        p[i] = fmaf(-c->step_size, m[i] / denominator[i], p[i]);
    }
    store_state(&item->m_out, block, m, count, false, 0);
    if (!stq_is_shared(item->v_out.bits))
        store_state(&item->v_out, block, v, count, true,
                    stq_block_key(c->step_key, item->tensor, global_block, STQ_STREAM_SECOND_MOMENT));
    if (c->compensation != 0.0f && item->m_out.bits != STQ_BITS_FLOAT32) {
        float error[STQ_BLOCK];
        rounding_errors(error, m, item, block, count);
        for (int i = 0; i < count; i++)
            p[i] = fmaf(-c->step_size * c->compensation, error[i] / denominator[i], p[i]);
    }
    uint32_t key = stq_block_key(c->step_key, item->tensor, global_block, STQ_STREAM_PARAMETER);
    for (int i = 0; i < count; i++) {
        uint32_t pair = stq_random_pair(key, (uint32_t)i / 2);
        stq_store_float(item->parameter, item->parameter_type, first + i, p[i],
                        i % 2 == 0 ? pair & 0xffffu : pair >> 16);
    }
}

static __attribute__((noinline)) void step_blocks(const stq_item *item, const stq_coefficients *coefficients,
                                                  int64_t first_block, int64_t end_block) {
    for (int64_t block = first_block; block < end_block; block++)
        step_block(item, coefficients, block);
}

static int values_in(int64_t block, int64_t count) {
    int64_t left = count - block * STQ_BLOCK;
    return left < STQ_BLOCK ? (int)left : STQ_BLOCK;
}

static __attribute__((noinline)) void encode_blocks(const stq_planes *planes, stq_state state, const float *values,
                                                    int64_t count, int64_t first_block, int64_t end_block,
                                                    const stq_random *random) {
    uint32_t step_key = random != NULL ? stq_step_key(random->seed, random->step) : 0;
    for (int64_t block = first_block; block < end_block; block++) {
        const float *from = values + block * STQ_BLOCK;
        if (state == STQ_FIRST_MOMENT) {
            stq_reference_encode_m(planes, block, from, values_in(block, count));
        } else {
            /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): a second moment comes with random numbers */
            uint32_t key = stq_block_key(step_key, random->tensor, (uint32_t)(random->first_block + block),
                                         STQ_STREAM_SECOND_MOMENT);
            stq_reference_encode_v(planes, block, from, values_in(block, count), key);
        }
    }
}

static __attribute__((noinline)) void decode_blocks(float *values, const stq_planes *planes, stq_state state,
                                                    int64_t count, int64_t first_block, int64_t end_block) {
    for (int64_t block = first_block; block < end_block; block++) {
        float *to = values + block * STQ_BLOCK;
        if (state == STQ_FIRST_MOMENT)
            stq_reference_decode_m(to, planes, block, values_in(block, count), NULL);
        else
            stq_reference_decode_v(to, planes, block, values_in(block, count));
    }
}

/* The table's functions: the work in our floating-point mode. */

static void step(const stq_item *item, const stq_coefficients *coefficients, int64_t first_block, int64_t end_block) {
    uint64_t mode = stq_float_mode_set();
    step_blocks(item, coefficients, first_block, end_block);
    stq_float_mode_restore(mode);
}

static void encode(const stq_planes *planes, stq_state state, const float *values, int64_t count, int64_t first_block,
                   int64_t end_block, const stq_random *random) {
    uint64_t mode = stq_float_mode_set();
    encode_blocks(planes, state, values, count, first_block, end_block, random);
    stq_float_mode_restore(mode);
}

static void decode(float *values, const stq_planes *planes, stq_state state, int64_t count, int64_t first_block,
                   int64_t end_block) {
    uint64_t mode = stq_float_mode_set();
    decode_blocks(values, planes, state, count, first_block, end_block);
    stq_float_mode_restore(mode);
}

const stq_kernels stq_reference_kernels = {.name = "reference", .step = step, .encode = encode, .decode = decode};
