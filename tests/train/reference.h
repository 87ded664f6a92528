// The layers once more, in double and as plainly as their formulas: what the trainer's are tested against.
// Shapes and meanings as in apps/train/layers.h and attention.h.
#ifndef STQUANT_TESTS_REFERENCE_H
#define STQUANT_TESTS_REFERENCE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// out (R, outputs) = x (R, inputs) weight (inputs, outputs) + bias.
static inline void reference_linear(const double *x, const double *weight, const double *bias, double *out,
                                    int64_t rows, int64_t inputs, int64_t outputs) {
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t o = 0; o < outputs; o++) {
            double sum = bias[o];
            for (int64_t i = 0; i < inputs; i++) {
                sum += x[r * inputs + i] * weight[i * outputs + o];
            }
            out[r * outputs + o] = sum;
        }
    }
}

static inline void reference_layer_norm(const double *x, const double *gain, const double *bias, double *out,
                                        int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++, x += width, out += width) {
        double mean = 0, variance = 0;
        for (int64_t j = 0; j < width; j++) {
            mean += x[j] / (double)width;
        }
        for (int64_t j = 0; j < width; j++) {
            variance += (x[j] - mean) * (x[j] - mean) / (double)width;
        }
        for (int64_t j = 0; j < width; j++) {
            out[j] = (x[j] - mean) / sqrt(variance + 1e-5) * gain[j] + bias[j];
        }
    }
}

static inline double reference_gelu(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979324) * (x + 0.044715 * x * x * x)));
}

// Attention of query t of one head: out (D).
static inline void reference_query(const double *query, const double *keys, const double *values, double *out,
                                   int64_t visible, int64_t stride, int64_t width) {
    double *weights = malloc((size_t)visible * sizeof(double)), sum = 0;
    for (int64_t s = 0; s < visible; s++) {
        double dot = 0;
        for (int64_t d = 0; d < width; d++) {
            dot += query[d] * keys[s * stride + d];
        }
        weights[s] = exp(dot / sqrt((double)width));
        sum += weights[s];
    }
    for (int64_t d = 0; d < width; d++) {
        out[d] = 0;
        for (int64_t s = 0; s < visible; s++) {
            out[d] += weights[s] / sum * values[s * stride + d];
        }
    }
    free(weights);
}

// qkv (B, T, 3 C), out (B, T, C).
static inline void reference_attention(const double *qkv, double *out, int64_t sequences, int64_t length, int64_t width,
                                       int64_t heads, int causal) {
    const int64_t head = width / heads;
    for (int64_t b = 0; b < sequences; b++) {
        const double *sequence = qkv + b * length * 3 * width;
        for (int64_t t = 0; t < length; t++) {
            for (int64_t h = 0; h < width; h += head) {
                reference_query(sequence + t * 3 * width + h, sequence + width + h, sequence + 2 * width + h,
                                out + (b * length + t) * width + h, causal ? t + 1 : length, 3 * width, head);
            }
        }
    }
}

// The loss of one row.
static inline double reference_cross_entropy(const double *logits, int64_t classes, int64_t target) {
    double largest = logits[0], sum = 0;
    for (int64_t j = 1; j < classes; j++) {
        largest = fmax(largest, logits[j]);
    }
    for (int64_t j = 0; j < classes; j++) {
        sum += exp(logits[j] - largest);
    }
    return log(sum) + largest - logits[target];
}

#endif
