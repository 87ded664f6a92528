// GPT-2 (Radford et al., 2019): token and learned position embeddings, pre-norm transformer blocks, a
// last layer norm, and a head that shares the token embedding.
#ifndef STQUANT_TRAIN_GPT2_H
#define STQUANT_TRAIN_GPT2_H

#include <stdint.h>

#include "train/model.h"
#include "train/transformer.h"

struct gpt2_config {
    int64_t layers;     // L
    int64_t width;      // C, a multiple of heads
    int64_t heads;      // H
    int64_t context;    // the longest sequence
    int64_t vocabulary; // V
    stq_qat_config qat; // how the blocks' linear layers are fake-quantized; bits 0: not at all
};

struct gpt2 {
    struct model base;
    struct gpt2_config config;
    struct compute compute;
    struct attention_shape largest; // the shape that the buffers are made for
    struct arena arena;
    struct transformer_block *blocks;            // (L)
    struct transformer_activations *activations; // (L)
    struct transformer_scratch scratch;
    struct layer_norm last_norm;
    struct parameter *token_table;    // wte.weight (V, C), the head as well
    struct parameter *position_table; // wpe.weight (context, C)
    float *embedded;                  // (R, C)
    float *last_mean, *last_scale;    // (R)
    float *last_normalized;           // (R, C)
    float *gradient;                  // (R, C)
    float *logits;                    // (head_rows, V)
    float *losses;                    // (R)
    int64_t head_rows;                // rows whose logits are made together
};

// Refuses sizes that make no model, in a sentence that names the option.
enum app_status gpt2_check(const struct gpt2_config *config);

// Describes the tensors without allocating them, for plans. The set is released by the caller.
enum app_status gpt2_describe(const struct gpt2_config *config, struct parameter_set *set);

// Bytes of activations for a batch of `sequences` of `length` tokens.
int64_t gpt2_activation_bytes(const struct gpt2_config *config, int64_t sequences, int64_t length);

// A model with initial weights for batches of up to `sequences` of up to `length` tokens, on
// `threads` threads. On failure *model is null.
enum app_status gpt2_create(const struct gpt2_config *config, int64_t sequences, int64_t length, int threads,
                            uint64_t seed, struct model **model);

// Makes tokens one at a time, keeping the keys and values of those before.
struct gpt2_decoder;

// The decoder reads the model's parameters as they are at each call; fake-quantized weights as they are now. On failure
// *decoder is null.
enum app_status gpt2_decoder_create(struct model *model, struct gpt2_decoder **decoder);

// Feeds `token` at the next position; *logits (V) stay valid until the next call. At the end of the
// context the second half of the sequence is fed again from position 0, as learned positions cannot
// move on.
enum app_status gpt2_decoder_next(struct gpt2_decoder *decoder, int32_t token, const float **logits);

void gpt2_decoder_destroy(struct gpt2_decoder *decoder);

#endif
