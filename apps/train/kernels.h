// The trainer's element-wise and row-wise loops, each on a range of rows and on one thread; layers.c
// and attention.c split the work over threads. They are written once (kernels_template.h) and built
// for several instruction sets; the best one for the processor is chosen at run time.
//
// Matrices are row-major. NaN and infinity in an input reach the output, so that a diverged run is
// seen in its loss.
#ifndef STQUANT_TRAIN_KERNELS_H
#define STQUANT_TRAIN_KERNELS_H

#include <stdint.h>

struct kernels {
    const char *name; // "avx512", "avx2" or "generic"

    // out = (x - mean) / sqrt(variance + 1e-5) * gain + bias, per row of `width`.
    // mean, scale: (rows), kept for the backward pass; scale is 1 / sqrt(variance + 1e-5).
    void (*layer_norm)(const float *x, const float *gain, const float *bias, float *out, float *mean, float *scale,
                       int64_t rows, int64_t width);

    // x_gradient += the gradient that out_gradient sends through; `out` is computed once more (the
    // weight gradient of the next layer needs it); gain_gradient and bias_gradient (width) are added to.
    void (*layer_norm_backward)(const float *x, const float *gain, const float *bias, const float *mean,
                                const float *scale, const float *out_gradient, float *x_gradient, float *out,
                                float *gain_gradient, float *bias_gradient, int64_t rows, int64_t width);

    // out = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.
    void (*gelu)(const float *x, float *out, int64_t count);

    // gradient (rows, width): in, of the output; out, of the input. `out` is computed once more.
    // bias_gradient (width) gets the column sums of the input's gradient added.
    void (*gelu_backward)(const float *x, float *gradient, float *out, float *bias_gradient, int64_t rows,
                          int64_t width);

    // Attention probabilities of one block of queries, not yet divided by their sums: row i of
    // scores (rows, stride) becomes exp(score - largest score) over its first
    // min(first_visible + i, columns) columns (all of them unless `causal`), and 0 in the rest.
    // stride is a multiple of 16; what lies between `columns` and the next multiple of 16 is scratch.
    // inverse_sum (rows) = 1 / sum of the row; log_sum (rows) = log of the sum of exp(score).
    void (*attention_softmax)(float *scores, int64_t stride, int64_t rows, int64_t columns, int64_t first_visible,
                              int causal, float *inverse_sum, float *log_sum);

    // scores (rows, stride): in, the scores; out, the probabilities p.
    // gradient (rows, stride): in, of the probabilities; out, of the scores, p (gradient - dot),
    // where dot (rows) = sum over the row of p x gradient, supplied by the caller.
    void (*attention_softmax_backward)(float *scores, float *gradient, int64_t stride, int64_t rows, int64_t columns,
                                       int64_t first_visible, int causal, const float *log_sum, const float *dot);

    // rows of `width` scaled: row i of x (rows, stride) times factors[i].
    void (*scale_rows)(float *x, int64_t stride, const float *factors, int64_t rows, int64_t width);

    // dots[i] = the dot product of row i of a and row i of b; both (rows, stride) of `width`.
    void (*dot_rows)(const float *a, const float *b, int64_t stride, float *dots, int64_t rows, int64_t width);

    // Cross-entropy of one row. logits (classes): in, logits; out, factor x (softmax - one-hot).
    // Returns the loss, log(sum of exp(logit)) - logits[target].
    float (*cross_entropy)(float *logits, int64_t classes, int64_t target, float factor);

    // sums[j] += the sum over the rows of x[i * stride + j], j in [0, width).
    void (*column_sums)(const float *x, int64_t stride, float *sums, int64_t rows, int64_t width);

    // out[i] = a[i] + b[i]; out may be a or b.
    void (*add)(const float *a, const float *b, float *out, int64_t count);
};

// The kernels for this processor. The environment variable STQUANT_TRAIN_KERNELS (avx512, avx2,
// generic) asks for others, for tests; one that the processor cannot run is not taken.
const struct kernels *kernels_select(void);

extern const struct kernels kernels_generic;
#if defined(__x86_64__)
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_avx512;
#endif

#endif
