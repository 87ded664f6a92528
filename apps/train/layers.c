#include "train/layers.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "train/matmul.h"
#include "train/memory.h"
#include "train/quantizer.h"

enum app_status compute_create(struct compute *compute, int threads, int64_t thread_floats) {
    thread_floats = (thread_floats + 15) / 16 * 16;
    *compute = (struct compute){.kernels = kernels_select(),
                                .threads = threads,
                                .thread_floats = thread_floats,
                                .scratch = memory_floats(threads * thread_floats)};
    compute_use(compute);
    if (!compute->scratch) {
        return app_fail(APP_FAILED, "There is no memory for the scratch space of %d threads; use fewer --threads.",
                        threads);
    }
    int granted = 0;
#pragma omp parallel num_threads(threads)
#pragma omp single
    granted = omp_get_num_threads();
    if (granted != threads) {
        return app_fail(APP_FAILED, "OpenMP grants %d of %d threads; use --threads %d or raise OMP_THREAD_LIMIT.",
                        granted, threads, granted);
    }
    return APP_OK;
}

void compute_use(const struct compute *compute) {
    omp_set_dynamic(0);
    omp_set_num_threads(compute->threads);
}

void compute_release(struct compute *compute) {
    free(compute->scratch);
    *compute = (struct compute){0};
}

int64_t layers_scratch_floats(int64_t width) { return 2 * width; }

void compute_share(const struct compute *compute, int64_t rows, int thread, int64_t *first, int64_t *last) {
    *first = rows * thread / compute->threads;
    *last = rows * (thread + 1) / compute->threads;
}

static float *thread_scratch(const struct compute *compute, int thread) {
    return compute->scratch + thread * compute->thread_floats;
}

// Each thread has summed its rows into its scratch at `offset`; adds them up in the threads' order.
static void add_partial_sums(const struct compute *compute, int64_t offset, float *sums, int64_t width) {
    for (int thread = 0; thread < compute->threads; thread++) {
        compute->kernels->add(sums, thread_scratch(compute, thread) + offset, sums, width);
    }
}

void linear_forward(const struct linear *linear, const float *x, const float *residual, float *out, int64_t rows) {
    matmul(&(struct product){.a = x,
                             .b = linear->weight,
                             .out = out,
                             .bias = linear->bias,
                             .residual = residual,
                             .rows = rows,
                             .columns = linear->outputs,
                             .inner = linear->inputs});
}

void linear_backward_input(const struct linear *linear, const float *out_gradient, float *x_gradient, int64_t rows) {
    matmul(&(struct product){.a = out_gradient,
                             .b = linear->weight,
                             .out = x_gradient,
                             .rows = rows,
                             .columns = linear->inputs,
                             .inner = linear->outputs,
                             .transpose_b = 1});
}

void linear_backward_weight(const struct linear *linear, const float *x, const float *out_gradient, int64_t rows) {
    if (linear->quantized) {
        matmul(&(struct product){.a = out_gradient,
                                 .b = x,
                                 .out = linear->quantized->quantizer->gradient_rows,
                                 .rows = linear->outputs,
                                 .columns = linear->inputs,
                                 .inner = rows,
                                 .transpose_a = 1});
        quantizer_backward(linear->quantized);
        return;
    }
    matmul(&(struct product){.a = x,
                             .b = out_gradient,
                             .out = linear->weight_gradient,
                             .rows = linear->inputs,
                             .columns = linear->outputs,
                             .inner = rows,
                             .transpose_a = 1,
                             .accumulate = 1});
}

// Threads take strips of columns, of at least one cache line: every sum is made by one thread in the
// order of the rows.
void bias_backward(const struct compute *compute, const float *out_gradient, float *bias_gradient, int64_t rows,
                   int64_t width) {
    const int64_t strip = 64;
#pragma omp parallel for num_threads(compute->threads) schedule(static)
    for (int64_t first = 0; first < width; first += strip) {
        int64_t columns = width - first < strip ? width - first : strip;
        compute->kernels->column_sums(out_gradient + first, width, bias_gradient + first, rows, columns);
    }
}

void layer_norm_forward(const struct compute *compute, const struct layer_norm *norm, const float *x, float *out,
                        float *mean, float *scale, int64_t rows) {
    const int64_t width = norm->width;
#pragma omp parallel num_threads(compute->threads)
    {
        int64_t first, last;
        compute_share(compute, rows, omp_get_thread_num(), &first, &last);
        compute->kernels->layer_norm(x + first * width, norm->gain, norm->bias, out + first * width, mean + first,
                                     scale + first, last - first, width);
    }
}

void layer_norm_backward(const struct compute *compute, const struct layer_norm *norm, const float *x,
                         const float *mean, const float *scale, const float *out_gradient, float *x_gradient,
                         float *out, int64_t rows) {
    const int64_t width = norm->width;
#pragma omp parallel num_threads(compute->threads)
    {
        int64_t first, last;
        float *sums = thread_scratch(compute, omp_get_thread_num());
        memset(sums, 0, (size_t)(2 * width) * sizeof(float));
        compute_share(compute, rows, omp_get_thread_num(), &first, &last);
        int64_t start = first * width;
        compute->kernels->layer_norm_backward(x + start, norm->gain, norm->bias, mean + first, scale + first,
                                              out_gradient + start, x_gradient + start, out + start, sums, sums + width,
                                              last - first, width);
    }
    add_partial_sums(compute, 0, norm->gain_gradient, width);
    add_partial_sums(compute, width, norm->bias_gradient, width);
}

void gelu_forward(const struct compute *compute, const float *x, float *out, int64_t rows, int64_t width) {
#pragma omp parallel num_threads(compute->threads)
    {
        int64_t first, last;
        compute_share(compute, rows, omp_get_thread_num(), &first, &last);
        compute->kernels->gelu(x + first * width, out + first * width, (last - first) * width);
    }
}

void gelu_backward(const struct compute *compute, const float *x, float *gradient, float *out, float *bias_gradient,
                   int64_t rows, int64_t width) {
#pragma omp parallel num_threads(compute->threads)
    {
        int64_t first, last;
        float *sums = thread_scratch(compute, omp_get_thread_num());
        memset(sums, 0, (size_t)width * sizeof(float));
        compute_share(compute, rows, omp_get_thread_num(), &first, &last);
        int64_t start = first * width;
        compute->kernels->gelu_backward(x + start, gradient + start, out + start, sums, last - first, width);
    }
    add_partial_sums(compute, 0, bias_gradient, width);
}

void embedding_forward(const struct compute *compute, const int32_t *tokens, const float *token_table,
                       const float *position_table, float *out, int64_t rows, int64_t length, int64_t width) {
#pragma omp parallel for num_threads(compute->threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        compute->kernels->add(token_table + tokens[row] * width, position_table + row % length * width,
                              out + row * width, width);
    }
}

void embedding_backward(const struct compute *compute, const int32_t *tokens, const float *out_gradient,
                        float *token_gradient, float *position_gradient, int64_t rows, int64_t length, int64_t width) {
#pragma omp parallel num_threads(compute->threads)
    {
        // A token's row belongs to one thread, which adds to it in the order of the batch.
        const int thread = omp_get_thread_num();
        for (int64_t row = 0; row < rows; row++) {
            if (tokens[row] % compute->threads == thread) {
                float *sum = token_gradient + tokens[row] * width;
                compute->kernels->add(sum, out_gradient + row * width, sum, width);
            }
        }
#pragma omp for schedule(static)
        for (int64_t position = 0; position < length; position++) {
            compute->kernels->column_sums(out_gradient + position * width, length * width,
                                          position_gradient + position * width, rows / length, width);
        }
    }
}

void cross_entropy(const struct compute *compute, float *logits, const int32_t *targets, float factor, float *losses,
                   int64_t rows, int64_t classes) {
#pragma omp parallel for num_threads(compute->threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        losses[row] = compute->kernels->cross_entropy(logits + row * classes, classes, targets[row], factor);
    }
}
