// GPT-2 one token at a time: each step computes one row, and attends to the kept keys and values of
// the rows before it.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/gpt2.h"
#include "train/matmul.h"

struct gpt2_decoder {
    struct gpt2 *gpt2;
    struct arena arena;
    float *keys, *values; // (L, context, C)
    float *x;             // (C), the residual stream
    float *normalized;    // (C)
    float *qkv;           // (3 C)
    float *attended;      // (C)
    float *hidden;        // (4 C)
    float *scores;        // (context rounded up to 16)
    float *logits;        // (V)
    int32_t *history;     // (context), the tokens fed
    int64_t position;     // where the next token goes
};

static void place(struct gpt2_decoder *decoder) {
    const struct gpt2_config *config = &decoder->gpt2->config;
    const int64_t cache = config->layers * config->context * config->width;
    struct arena *arena = &decoder->arena;
    decoder->keys = arena_floats(arena, cache);
    decoder->values = arena_floats(arena, cache);
    decoder->x = arena_floats(arena, config->width);
    decoder->normalized = arena_floats(arena, config->width);
    decoder->qkv = arena_floats(arena, 3 * config->width);
    decoder->attended = arena_floats(arena, config->width);
    decoder->hidden = arena_floats(arena, 4 * config->width);
    decoder->scores = arena_floats(arena, (config->context + 15) / 16 * 16);
    decoder->logits = arena_floats(arena, config->vocabulary);
    decoder->history = (int32_t *)(void *)arena_floats(arena, config->context);
}

enum app_status gpt2_decoder_create(struct model *model, struct gpt2_decoder **decoder) {
    *decoder = NULL;
    enum app_status status = quantizer_refresh(&model->quantizer);
    if (status != APP_OK) {
        return status;
    }
    *decoder = calloc(1, sizeof(**decoder));
    if (!*decoder) {
        return app_fail(APP_FAILED, "There is no memory for sampling.");
    }
    (*decoder)->gpt2 = (struct gpt2 *)model;
    place(*decoder);
    status = arena_allocate(&(*decoder)->arena);
    if (status != APP_OK) {
        free(*decoder);
        *decoder = NULL;
        return status;
    }
    place(*decoder);
    return APP_OK;
}

void gpt2_decoder_destroy(struct gpt2_decoder *decoder) {
    if (decoder) {
        arena_release(&decoder->arena);
        free(decoder);
    }
}

// attended (C) from the query in decoder->qkv and the keys and values of positions 0 .. position.
static void attend(struct gpt2_decoder *decoder, const float *keys, const float *values) {
    const struct gpt2_config *config = &decoder->gpt2->config;
    const struct kernels *kernels = decoder->gpt2->compute.kernels;
    const int64_t width = config->width / config->heads, count = decoder->position + 1;
    for (int64_t start = 0; start < config->width; start += width) {
        float inverse_sum, log_sum;
        matmul_small(&(struct small_product){.a = decoder->qkv + start,
                                             .b = keys + start,
                                             .out = decoder->scores,
                                             .a_stride = width,
                                             .b_stride = config->width,
                                             .out_stride = count,
                                             .rows = 1,
                                             .columns = count,
                                             .inner = width,
                                             .factor = 1.0f / sqrtf((float)width),
                                             .transpose_b = 1});
        kernels->attention_softmax(decoder->scores, count, 1, count, count, 1, &inverse_sum, &log_sum);
        matmul_small(&(struct small_product){.a = decoder->scores,
                                             .b = values + start,
                                             .out = decoder->attended + start,
                                             .a_stride = count,
                                             .b_stride = config->width,
                                             .out_stride = width,
                                             .rows = 1,
                                             .columns = width,
                                             .inner = count,
                                             .factor = inverse_sum});
    }
}

static void decode_block(struct gpt2_decoder *decoder, int64_t layer) {
    const struct gpt2 *gpt2 = decoder->gpt2;
    const struct kernels *kernels = gpt2->compute.kernels;
    const struct transformer_block *block = &gpt2->blocks[layer];
    const int64_t width = gpt2->config.width;
    float *keys = decoder->keys + layer * gpt2->config.context * width;
    float *values = decoder->values + layer * gpt2->config.context * width;
    float mean, scale;

    kernels->layer_norm(decoder->x, block->norm_1.gain, block->norm_1.bias, decoder->normalized, &mean, &scale, 1,
                        width);
    linear_forward(&block->attention_in, decoder->normalized, NULL, decoder->qkv, 1);
    memcpy(keys + decoder->position * width, decoder->qkv + width, (size_t)width * sizeof(float));
    memcpy(values + decoder->position * width, decoder->qkv + 2 * width, (size_t)width * sizeof(float));
    attend(decoder, keys, values);
    linear_forward(&block->attention_out, decoder->attended, NULL, decoder->normalized, 1);
    kernels->add(decoder->x, decoder->normalized, decoder->x, width);

    kernels->layer_norm(decoder->x, block->norm_2.gain, block->norm_2.bias, decoder->normalized, &mean, &scale, 1,
                        width);
    linear_forward(&block->mlp_in, decoder->normalized, NULL, decoder->hidden, 1);
    kernels->gelu(decoder->hidden, decoder->hidden, 4 * width);
    linear_forward(&block->mlp_out, decoder->hidden, NULL, decoder->normalized, 1);
    kernels->add(decoder->x, decoder->normalized, decoder->x, width);
}

static void decode(struct gpt2_decoder *decoder, int32_t token) {
    const struct gpt2 *gpt2 = decoder->gpt2;
    const struct kernels *kernels = gpt2->compute.kernels;
    const int64_t width = gpt2->config.width;
    float mean, scale;
    decoder->history[decoder->position] = token;
    kernels->add(gpt2->token_table->values + token * width, gpt2->position_table->values + decoder->position * width,
                 decoder->x, width);
    for (int64_t layer = 0; layer < gpt2->config.layers; layer++) {
        decode_block(decoder, layer);
    }
    kernels->layer_norm(decoder->x, gpt2->last_norm.gain, gpt2->last_norm.bias, decoder->normalized, &mean, &scale, 1,
                        width);
    matmul(&(struct product){.a = decoder->normalized,
                             .b = gpt2->token_table->values,
                             .out = decoder->logits,
                             .rows = 1,
                             .columns = gpt2->config.vocabulary,
                             .inner = width,
                             .transpose_b = 1});
    decoder->position++;
}

enum app_status gpt2_decoder_next(struct gpt2_decoder *decoder, int32_t token, const float **logits) {
    const struct gpt2_config *config = &decoder->gpt2->config;
    if (token < 0 || token >= config->vocabulary) {
        return app_fail(APP_USAGE, "Token %d lies outside the model's vocabulary of %lld.", (int)token,
                        (long long)config->vocabulary);
    }
    compute_use(&decoder->gpt2->compute);
    if (decoder->position == config->context) {
        const int64_t kept = config->context / 2, dropped = config->context - kept;
        decoder->position = 0;
        for (int64_t i = 0; i < kept; i++) { // reads ahead of what it overwrites
            decode(decoder, decoder->history[dropped + i]);
        }
    }
    decode(decoder, token);
    *logits = decoder->logits;
    return matmul_status();
}
