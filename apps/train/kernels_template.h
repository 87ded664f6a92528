// The kernels' code, included once for each instruction set with KERNELS (the table's name) and
// KERNELS_NAME defined. Plain C that the compiler vectorises; the reductions carry `omp simd`, which
// allows it to reorder their sums.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "train/kernels.h"

// exp(x) with a relative error below 2e-7; 0 below -86.9 (just above float32's smallest normal
// number), infinity above 88.72, NaN for NaN. x = n log(2) + r with |r| <= log(2) / 2; exp(r) is a
// minimax polynomial of degree 6, and log(2) is split so that n times its first part is exact.
static inline float exponential(float x) {
    const float magic = 0x1.8p23f; // adding it leaves the nearest integer in the low bits
    float bounded = x > 88.72f ? 88.72f : x;
    float shifted = bounded * 1.44269504f + magic;
    float n = shifted - magic;
    float r = bounded - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 0x1.6ab96ep-10f;
    p = p * r + 0x1.126d1ep-7f;
    p = p * r + 0x1.55589ap-5f;
    p = p * r + 0x1.55540ap-3f;
    p = p * r + 0x1.fffffap-2f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits - 0x4b400000u + 126u) << 23; // 2^(n - 1), which n = 128 does not overflow
    float power;
    memcpy(&power, &bits, sizeof(power));
    float result = p * power * 2.0f;
    result = x < -86.9f ? 0.0f : result;
    return x > 88.72f ? INFINITY : result;
}

static void layer_norm(const float *x, const float *gain, const float *bias, float *out, float *mean, float *scale,
                       int64_t rows, int64_t width) {
    for (int64_t i = 0; i < rows; i++, x += width, out += width) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) {
            sum += x[j];
        }
        float average = sum / (float)width;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < width; j++) {
            float centred = x[j] - average;
            squares += centred * centred;
        }
        float factor = 1.0f / sqrtf(squares / (float)width + 1e-5f);
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            out[j] = (x[j] - average) * factor * gain[j] + bias[j];
        }
        mean[i] = average;
        scale[i] = factor;
    }
}

// With y = (x - mean) scale and d = out_gradient x gain, per row:
// x_gradient += scale (d - mean of d - y (mean of d y)).
static void layer_norm_backward(const float *x, const float *gain, const float *bias, const float *mean,
                                const float *scale, const float *out_gradient, float *x_gradient, float *out,
                                float *gain_gradient, float *bias_gradient, int64_t rows, int64_t width) {
    for (int64_t i = 0; i < rows; i++) {
        const float average = mean[i], factor = scale[i];
        float sum = 0, projected = 0;
#pragma omp simd reduction(+ : sum, projected)
        for (int64_t j = 0; j < width; j++) {
            float d = out_gradient[j] * gain[j];
            sum += d;
            projected += d * ((x[j] - average) * factor);
        }
        sum /= (float)width;
        projected /= (float)width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            float y = (x[j] - average) * factor;
            x_gradient[j] += factor * (out_gradient[j] * gain[j] - sum - y * projected);
            gain_gradient[j] += out_gradient[j] * y;
            bias_gradient[j] += out_gradient[j];
            out[j] = y * gain[j] + bias[j];
        }
        x += width, out_gradient += width, x_gradient += width, out += width;
    }
}

// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), so that GELU is x times a sigmoid of
// z = 2 sqrt(2 / pi) (x + 0.044715 x^3).
#define GELU_LINEAR 1.5957691216f // 2 sqrt(2 / pi)
#define GELU_CUBIC 0.0713548163f  // 0.044715 times that

static inline float gelu_gate(float x) { return 1.0f / (1.0f + exponential(-x * (GELU_LINEAR + GELU_CUBIC * x * x))); }

static void gelu(const float *x, float *out, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        out[i] = x[i] * gelu_gate(x[i]);
    }
}

static void gelu_backward(const float *x, float *gradient, float *out, float *bias_gradient, int64_t rows,
                          int64_t width) {
    for (int64_t i = 0; i < rows; i++, x += width, gradient += width, out += width) {
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            float gate = gelu_gate(x[j]);
            float slope = GELU_LINEAR + 3.0f * GELU_CUBIC * x[j] * x[j]; // of z
            float derivative = gate + x[j] * gate * (1.0f - gate) * slope;
            float input_gradient = gradient[j] * derivative;
            gradient[j] = input_gradient;
            bias_gradient[j] += input_gradient;
            out[j] = x[j] * gate;
        }
    }
}

// Columns that row `row` sees. What follows them up to the next multiple of 16 is set to -infinity,
// whose exponential is 0, so that the loops over columns need no remainder.
static inline int64_t hide_the_future(float *scores, int64_t row, int64_t columns, int64_t first_visible, int causal) {
    int64_t visible = causal ? first_visible + row : columns;
    visible = visible < columns ? visible : columns;
    int64_t padded = (visible + 15) / 16 * 16;
    for (int64_t j = visible; j < padded; j++) {
        scores[j] = -INFINITY;
    }
    return padded;
}

static inline void clear_after(float *x, int64_t padded, int64_t columns) {
    if (padded < columns) {
        memset(x + padded, 0, (size_t)(columns - padded) * sizeof(float));
    }
}

static void attention_softmax(float *scores, int64_t stride, int64_t rows, int64_t columns, int64_t first_visible,
                              int causal, float *inverse_sum, float *log_sum) {
    for (int64_t i = 0; i < rows; i++, scores += stride) {
        const int64_t padded = hide_the_future(scores, i, columns, first_visible, causal);
        float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
        for (int64_t j = 0; j < padded; j++) {
            largest = scores[j] > largest ? scores[j] : largest;
        }
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < padded; j++) {
            float p = exponential(scores[j] - largest);
            scores[j] = p;
            sum += p;
        }
        clear_after(scores, padded, columns);
        inverse_sum[i] = 1.0f / sum;
        log_sum[i] = largest + logf(sum);
    }
}

static void attention_softmax_backward(float *scores, float *gradient, int64_t stride, int64_t rows, int64_t columns,
                                       int64_t first_visible, int causal, const float *log_sum, const float *dot) {
    for (int64_t i = 0; i < rows; i++, scores += stride, gradient += stride) {
        const int64_t padded = hide_the_future(scores, i, columns, first_visible, causal);
        const float shift = log_sum[i], mean = dot[i];
#pragma omp simd
        for (int64_t j = 0; j < padded; j++) {
            float p = exponential(scores[j] - shift);
            scores[j] = p;
            gradient[j] = p * (gradient[j] - mean);
        }
        clear_after(scores, padded, columns);
        clear_after(gradient, padded, columns);
    }
}

static void scale_rows(float *x, int64_t stride, const float *factors, int64_t rows, int64_t width) {
    for (int64_t i = 0; i < rows; i++, x += stride) {
        const float factor = factors[i];
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            x[j] *= factor;
        }
    }
}

static void dot_rows(const float *a, const float *b, int64_t stride, float *dots, int64_t rows, int64_t width) {
    for (int64_t i = 0; i < rows; i++, a += stride, b += stride) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) {
            sum += a[j] * b[j];
        }
        dots[i] = sum;
    }
}

static float cross_entropy(float *logits, int64_t classes, int64_t target, float factor) {
    const float target_logit = logits[target];
    float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < classes; j++) {
        largest = logits[j] > largest ? logits[j] : largest;
    }
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < classes; j++) {
        float e = exponential(logits[j] - largest);
        logits[j] = e;
        sum += e;
    }
    const float share = factor / sum;
#pragma omp simd
    for (int64_t j = 0; j < classes; j++) {
        logits[j] *= share;
    }
    logits[target] -= factor;
    return logf(sum) + (largest - target_logit);
}

// Four rows at a time, so that the sums are read and written once for four additions.
static void column_sums(const float *x, int64_t stride, float *sums, int64_t rows, int64_t width) {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4, x += 4 * stride) {
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            sums[j] += (x[j] + x[stride + j]) + (x[2 * stride + j] + x[3 * stride + j]);
        }
    }
    for (; i < rows; i++, x += stride) {
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            sums[j] += x[j];
        }
    }
}

static void add(const float *a, const float *b, float *out, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        out[i] = a[i] + b[i];
    }
}

const struct kernels KERNELS = {
    .name = KERNELS_NAME,
    .layer_norm = layer_norm,
    .layer_norm_backward = layer_norm_backward,
    .gelu = gelu,
    .gelu_backward = gelu_backward,
    .attention_softmax = attention_softmax,
    .attention_softmax_backward = attention_softmax_backward,
    .scale_rows = scale_rows,
    .dot_rows = dot_rows,
    .cross_entropy = cross_entropy,
    .column_sums = column_sums,
    .add = add,
};
