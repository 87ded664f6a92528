// A pre-norm transformer block, shared by the models:
//     middle = x + dropout(projection(attention(layer_norm_1(x))))
//     output = middle + dropout(projection(GELU(linear(layer_norm_2(middle)))))
// R = B T rows of C floats; the hidden layer of the MLP is 4 C wide.
#ifndef STQUANT_TRAIN_TRANSFORMER_H
#define STQUANT_TRAIN_TRANSFORMER_H

#include <stdint.h>

#include "train/attention.h"
#include "train/dropout.h"
#include "train/layers.h"
#include "train/memory.h"
#include "train/parameters.h"
#include "train/quantizer.h"

// The block's layers, bound to parameters and their gradients.
struct transformer_block {
    struct layer_norm norm_1, norm_2;
    struct linear attention_in;  // C -> 3 C: queries, keys, values
    struct linear attention_out; // C -> C
    struct linear mlp_in;        // C -> 4 C
    struct linear mlp_out;       // 4 C -> C
    struct dropout dropout;      // of the attention's projection; that of the MLP takes the stream after it
};

// What the forward pass keeps for the backward pass; 10 C + H floats and four more for each row.
struct transformer_activations {
    const float *input;      // (R, C), the output of the block before
    float *mean_1, *scale_1; // (R)
    float *qkv;              // (R, 3 C)
    float *log_sums;         // (B, H, T)
    float *attended;         // (R, C)
    float *middle;           // (R, C)
    float *mean_2, *scale_2; // (R)
    float *hidden;           // (R, 4 C), before GELU
    float *output;           // (R, C)
};

// Buffers that every block uses in turn.
struct transformer_scratch {
    float *normalized; // (R, C)
    float *narrow;     // (R, C)
    float *wide;       // (R, 4 C)
    float *gated;      // (R, 4 C)
};

// Adds the block's twelve tensors with GPT-2's names behind `prefix` ("h.0."), initialised as GPT-2
// does: normal with this deviation (0.02 in GPT-2), the two projections into the residual stream divided by
// sqrt(2 layers). Returns the index of the first, or -1 without memory.
int transformer_add_parameters(struct parameter_set *set, const char *prefix, int64_t width, int64_t layers,
                               double deviation);

// The layers of the block whose first tensor is list[first], once the parameters are allocated.
struct transformer_block transformer_bind(const struct parameter_set *set, int first);

// Layers over these tensors, once the parameters are allocated.
struct linear transformer_bind_linear(const struct parameter *weight, const struct parameter *bias);
struct layer_norm transformer_bind_norm(const struct parameter *gain, const struct parameter *bias);

// Makes the block compute with the fake-quantized weights of four layers, in the order of the block's tensors.
void transformer_quantize(struct transformer_block *block, const struct quantized_linear layers[4]);

// Describes (or places) the buffers; see memory.h.
void transformer_place_activations(struct arena *arena, const struct attention_shape *shape,
                                   struct transformer_activations *activations);
void transformer_place_scratch(struct arena *arena, const struct attention_shape *shape,
                               struct transformer_scratch *scratch);

// activations->input is set by the caller; activations->output is the result.
void transformer_forward(const struct compute *compute, const struct attention_shape *shape,
                         const struct transformer_block *block, const struct transformer_activations *activations,
                         const struct transformer_scratch *scratch);

// gradient (R, C): in, of the block's output; out, of its input. Adds to the parameters' gradients.
void transformer_backward(const struct compute *compute, const struct attention_shape *shape,
                          const struct transformer_block *block, const struct transformer_activations *activations,
                          const struct transformer_scratch *scratch, float *gradient);

#endif
