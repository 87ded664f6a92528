// Multi-head self-attention, softmax(q k^T / sqrt(head width)) v, causal or not. The probabilities
// are never stored for a whole sequence: they are made for a block of queries at a time and made
// again in the backward pass, from the logarithm of each row's sum (Dao et al., FlashAttention, 2022).
#ifndef STQUANT_TRAIN_ATTENTION_H
#define STQUANT_TRAIN_ATTENTION_H

#include <stdint.h>

#include "train/layers.h"

struct attention_shape {
    int64_t sequences, length; // B, T
    int64_t width, heads;      // C, H; C is a multiple of H
    int causal;                // position t sees positions 0 .. t only
};

// Scratch of one thread, in floats.
int64_t attention_scratch_floats(int64_t length);

// qkv (B, T, 3 C): queries, keys and values, each C = H heads side by side.
// out (B, T, C); log_sums (B, H, T), kept for the backward pass.
void attention_forward(const struct compute *compute, const struct attention_shape *shape, const float *qkv, float *out,
                       float *log_sums);

// qkv_gradient (B, T, 3 C) = the gradient of qkv from out_gradient (B, T, C); out is the forward result.
void attention_backward(const struct compute *compute, const struct attention_shape *shape, const float *qkv,
                        const float *out, const float *log_sums, const float *out_gradient, float *qkv_gradient);

#endif
