#include "train/attention.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "train/matmul.h"

// Queries whose probabilities are made together. Smaller blocks skip more of the hidden half of a
// causal matrix, larger ones multiply faster.
enum { BLOCK = 64 };

static int64_t row_stride(int64_t length) { return (length + 15) / 16 * 16; }

int64_t attention_scratch_floats(int64_t length) { return 2 * BLOCK * row_stride(length) + 2 * BLOCK; }

// One head of one sequence.
struct head {
    const struct kernels *kernels;
    const float *query, *key, *value; // (T, D) with a stride of 3 C
    int64_t stride, out_stride;       // 3 C and C
    int64_t length, width;            // T, D
    int causal;
    float factor;             // 1 / sqrt(D)
    float *scores, *gradient; // (BLOCK, score_stride)
    float *row_values;        // (BLOCK)
    int64_t score_stride;
};

static struct head select_head(const struct compute *compute, const struct attention_shape *shape, const float *qkv,
                               int64_t index) {
    const int64_t sequence = index / shape->heads, number = index % shape->heads;
    const int64_t width = shape->width / shape->heads;
    const float *query = qkv + sequence * shape->length * 3 * shape->width + number * width;
    float *scratch = compute->scratch + omp_get_thread_num() * compute->thread_floats;
    const int64_t stride = row_stride(shape->length);
    return (struct head){.kernels = compute->kernels,
                         .query = query,
                         .key = query + shape->width,
                         .value = query + 2 * shape->width,
                         .stride = 3 * shape->width,
                         .out_stride = shape->width,
                         .length = shape->length,
                         .width = width,
                         .causal = shape->causal,
                         .factor = 1.0f / sqrtf((float)width),
                         .scores = scratch,
                         .gradient = scratch + BLOCK * stride,
                         .row_values = scratch + 2 * BLOCK * stride,
                         .score_stride = stride};
}

// Where head `index` starts in a (B, T, C) matrix.
static int64_t out_offset(const struct attention_shape *shape, int64_t index) {
    const int64_t sequence = index / shape->heads, number = index % shape->heads;
    return sequence * shape->length * shape->width + number * (shape->width / shape->heads);
}

// The keys that queries [first, first + rows) can see: columns of their score matrix.
static int64_t visible_keys(const struct head *head, int64_t first, int64_t rows) {
    return head->causal ? first + rows : head->length;
}

// scores (rows, columns) = q k^T / sqrt(D).
static void compute_scores(const struct head *head, int64_t first, int64_t rows, int64_t columns) {
    matmul_small(&(struct small_product){.a = head->query + first * head->stride,
                                         .b = head->key,
                                         .out = head->scores,
                                         .a_stride = head->stride,
                                         .b_stride = head->stride,
                                         .out_stride = head->score_stride,
                                         .rows = rows,
                                         .columns = columns,
                                         .inner = head->width,
                                         .factor = head->factor,
                                         .transpose_b = 1});
}

static void head_forward(const struct head *head, float *out, float *log_sums) {
    for (int64_t first = 0; first < head->length; first += BLOCK) {
        const int64_t rows = head->length - first < BLOCK ? head->length - first : BLOCK;
        const int64_t columns = visible_keys(head, first, rows);
        float *block_out = out + first * head->out_stride;
        compute_scores(head, first, rows, columns);
        head->kernels->attention_softmax(head->scores, head->score_stride, rows, columns, first + 1, head->causal,
                                         head->row_values, log_sums + first);
        matmul_small(&(struct small_product){.a = head->scores,
                                             .b = head->value,
                                             .out = block_out,
                                             .a_stride = head->score_stride,
                                             .b_stride = head->stride,
                                             .out_stride = head->out_stride,
                                             .rows = rows,
                                             .columns = head->width,
                                             .inner = columns,
                                             .factor = 1});
        head->kernels->scale_rows(block_out, head->out_stride, head->row_values, rows, head->width);
    }
}

void attention_forward(const struct compute *compute, const struct attention_shape *shape, const float *qkv, float *out,
                       float *log_sums) {
#pragma omp parallel for num_threads(compute->threads) schedule(dynamic)
    for (int64_t index = 0; index < shape->sequences * shape->heads; index++) {
        struct head head = select_head(compute, shape, qkv, index);
        head_forward(&head, out + out_offset(shape, index), log_sums + index * shape->length);
    }
}

// For a block of queries, with P the probabilities and dO the gradient of the output:
// dV += P^T dO; dP = dO V^T; dS = P (dP - row sums of dO O); dQ = dS K / sqrt(D); dK += dS^T Q / sqrt(D).
static void block_backward(const struct head *head, int64_t first, int64_t rows, const float *out,
                           const float *log_sums, const float *out_gradient, float *query_gradient, float *key_gradient,
                           float *value_gradient) {
    const int64_t columns = visible_keys(head, first, rows);
    compute_scores(head, first, rows, columns);
    matmul_small(&(struct small_product){.a = out_gradient,
                                         .b = head->value,
                                         .out = head->gradient,
                                         .a_stride = head->out_stride,
                                         .b_stride = head->stride,
                                         .out_stride = head->score_stride,
                                         .rows = rows,
                                         .columns = columns,
                                         .inner = head->width,
                                         .factor = 1,
                                         .transpose_b = 1});
    head->kernels->dot_rows(out_gradient, out, head->out_stride, head->row_values, rows, head->width);
    head->kernels->attention_softmax_backward(head->scores, head->gradient, head->score_stride, rows, columns,
                                              first + 1, head->causal, log_sums + first, head->row_values);
    matmul_small(&(struct small_product){.a = head->scores,
                                         .b = out_gradient,
                                         .out = value_gradient,
                                         .a_stride = head->score_stride,
                                         .b_stride = head->out_stride,
                                         .out_stride = head->stride,
                                         .rows = columns,
                                         .columns = head->width,
                                         .inner = rows,
                                         .factor = 1,
                                         .transpose_a = 1,
                                         .accumulate = 1});
    matmul_small(&(struct small_product){.a = head->gradient,
                                         .b = head->key,
                                         .out = query_gradient,
                                         .a_stride = head->score_stride,
                                         .b_stride = head->stride,
                                         .out_stride = head->stride,
                                         .rows = rows,
                                         .columns = head->width,
                                         .inner = columns,
                                         .factor = head->factor});
    matmul_small(&(struct small_product){.a = head->gradient,
                                         .b = head->query + first * head->stride,
                                         .out = key_gradient,
                                         .a_stride = head->score_stride,
                                         .b_stride = head->stride,
                                         .out_stride = head->stride,
                                         .rows = columns,
                                         .columns = head->width,
                                         .inner = rows,
                                         .factor = head->factor,
                                         .transpose_a = 1,
                                         .accumulate = 1});
}

static void head_backward(const struct head *head, const float *out, const float *log_sums, const float *out_gradient,
                          float *qkv_gradient) {
    float *key_gradient = qkv_gradient + head->out_stride;
    float *value_gradient = qkv_gradient + 2 * head->out_stride;
    for (int64_t position = 0; position < head->length; position++) {
        memset(key_gradient + position * head->stride, 0, (size_t)head->width * sizeof(float));
        memset(value_gradient + position * head->stride, 0, (size_t)head->width * sizeof(float));
    }
    for (int64_t first = 0; first < head->length; first += BLOCK) {
        const int64_t rows = head->length - first < BLOCK ? head->length - first : BLOCK;
        block_backward(head, first, rows, out + first * head->out_stride, log_sums,
                       out_gradient + first * head->out_stride, qkv_gradient + first * head->stride, key_gradient,
                       value_gradient);
    }
}

void attention_backward(const struct compute *compute, const struct attention_shape *shape, const float *qkv,
                        const float *out, const float *log_sums, const float *out_gradient, float *qkv_gradient) {
#pragma omp parallel for num_threads(compute->threads) schedule(dynamic)
    for (int64_t index = 0; index < shape->sequences * shape->heads; index++) {
        struct head head = select_head(compute, shape, qkv, index);
        const int64_t offset = out_offset(shape, index);
        head_backward(&head, out + offset, log_sums + index * shape->length, out_gradient + offset,
                      qkv_gradient + (head.query - qkv));
    }
}
