// The layers of the models, forward and backward, on every thread. Shapes: R rows (batch x
// positions), row-major. A backward function adds to parameter gradients and, where its comment says
// so, overwrites the gradients of activations.
#ifndef STQUANT_TRAIN_LAYERS_H
#define STQUANT_TRAIN_LAYERS_H

#include <stdint.h>

#include "train/failure.h"
#include "train/kernels.h"

// What layers compute with: kernels for this processor, and scratch for each thread.
struct compute {
    const struct kernels *kernels;
    int threads;
    int64_t thread_floats; // scratch of one thread, in floats
    float *scratch;        // (threads, thread_floats)
};

// `threads` at least 1; thread_floats at least what layers_scratch_floats and attention_scratch_floats
// ask for.
enum app_status compute_create(struct compute *compute, int threads, int64_t thread_floats);
void compute_release(struct compute *compute);

// Makes matrix products use this many threads as well; a model calls it before it computes, as models
// with different numbers of threads may exist.
void compute_use(const struct compute *compute);

// Scratch of one thread for layers whose widest row has `width` floats.
int64_t layers_scratch_floats(int64_t width);

// The rows [*first, *last) of `rows` that belong to `thread`.
void compute_share(const struct compute *compute, int64_t rows, int thread, int64_t *first, int64_t *last);

struct quantized_linear;

// A linear layer's weight is (inputs, outputs), as in GPT-2's files.
struct linear {
    const float *weight, *bias; // (inputs, outputs), (outputs)
    float *weight_gradient, *bias_gradient;
    int64_t inputs, outputs;
    const struct quantized_linear *quantized; // of a fake-quantized weight, else null; see quantizer.h
};

// out (R, outputs) = x (R, inputs) weight + bias (+ residual (R, outputs), unless null).
void linear_forward(const struct linear *linear, const float *x, const float *residual, float *out, int64_t rows);

// x_gradient (R, inputs) = out_gradient weight^T.
void linear_backward_input(const struct linear *linear, const float *out_gradient, float *x_gradient, int64_t rows);

// weight_gradient += x^T out_gradient; of a fake-quantized weight, what the estimator makes of it, and the steps'
// gradient likewise.
void linear_backward_weight(const struct linear *linear, const float *x, const float *out_gradient, int64_t rows);

// bias_gradient (width) += the column sums of out_gradient (R, width).
void bias_backward(const struct compute *compute, const float *out_gradient, float *bias_gradient, int64_t rows,
                   int64_t width);

struct layer_norm {
    const float *gain, *bias; // (width)
    float *gain_gradient, *bias_gradient;
    int64_t width;
};

// out (R, width); mean and scale (R) are kept for the backward pass.
void layer_norm_forward(const struct compute *compute, const struct layer_norm *norm, const float *x, float *out,
                        float *mean, float *scale, int64_t rows);

// x_gradient (R, width) += the gradient that comes through out_gradient; `out` gets the forward
// result once more, for the weight gradient of the layer after it.
void layer_norm_backward(const struct compute *compute, const struct layer_norm *norm, const float *x,
                         const float *mean, const float *scale, const float *out_gradient, float *x_gradient,
                         float *out, int64_t rows);

// out = GELU(x), tanh form.
void gelu_forward(const struct compute *compute, const float *x, float *out, int64_t rows, int64_t width);

// gradient (R, width): in, of the output; out, of the input. `out` gets GELU(x) once more;
// bias_gradient (width) gets the column sums of the input's gradient added.
void gelu_backward(const struct compute *compute, const float *x, float *gradient, float *out, float *bias_gradient,
                   int64_t rows, int64_t width);

// out (R, width) = token_table[tokens[r]] + position_table[r modulo length].
void embedding_forward(const struct compute *compute, const int32_t *tokens, const float *token_table,
                       const float *position_table, float *out, int64_t rows, int64_t length, int64_t width);

// The gradients of both tables += out_gradient (R, width), in an order that does not depend on the
// number of threads.
void embedding_backward(const struct compute *compute, const int32_t *tokens, const float *out_gradient,
                        float *token_gradient, float *position_gradient, int64_t rows, int64_t length, int64_t width);

// logits (R, classes): in, logits; out, factor x the gradient of the sum of the losses.
// losses (R) = the loss of each row, in nats.
void cross_entropy(const struct compute *compute, float *logits, const int32_t *targets, float factor, float *losses,
                   int64_t rows, int64_t classes);

#endif
