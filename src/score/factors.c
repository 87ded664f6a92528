/* factors.c - the factors of one tensor's gradient on the CPU. */
#include <stdlib.h>

#include "common/error.h"
#include "common/float_mode.h"
#include "quant/convert.h"
#include "score/power.h"
#include <stquant/score.h>

static stq_matrix rows_of(const stq_matrix *whole, int64_t first_row, int64_t end_row) {
    stq_matrix range = *whole;
    range.first = first_row * whole->cols;
    range.count = (end_row - first_row) * whole->cols;
    range.elements = (const char *)whole->elements + (size_t)range.first * stq_dtype_size(whole->dtype);
    return range;
}

/* Everything that one tensor's factors share. */
typedef struct score_job {
    stq_matrix whole;
    int64_t rows;
    double frobenius; /* prescaled */
    float threshold;  /* of near-zero elements, prescaled */
    float fixed_point;
    int threads;
} score_job;

static void measure_row(const score_job *job, const stq_matrix *row, stq_row_statistics *statistics) {
    uint64_t squares = 0;
    stq_power_row_squares(row, job->threshold, job->fixed_point, &squares, &statistics->near_zero);
    statistics->squares += squares;
    statistics->roots += (uint64_t)llrint(256.0 * sqrt((double)squares));
}

static double row_spread(const stq_row_statistics *statistics, int64_t rows) {
    double mean = (double)statistics->roots / (double)rows;
    double variance = (double)statistics->squares / (double)rows * 65536.0 - mean * mean;
    return rows > 1 && mean > 0 && variance > 0 ? sqrt(variance) / mean : 0;
}

/* Rows first .. end - 1 of multiply(). */
static __attribute__((noinline)) void multiply_range(const score_job *job, const float *x, int32_t *y,
                                                     stq_row_statistics *statistics, int64_t first, int64_t end) {
    for (int64_t row = first; row < end; row++) {
        stq_matrix range = rows_of(&job->whole, row, row + 1);
        if (x) {
            y[row] = 0;
            stq_power_rows(&range, x, y);
        }
        if (statistics)
            measure_row(job, &range, statistics);
    }
}

/* y = G x. With `statistics` the rows are also measured, each while it is in the cache; `x` NULL only measures. */
static void multiply(const score_job *job, const float *x, int32_t *y, stq_row_statistics *statistics) {
    int64_t near_zero = 0;
    uint64_t squares = 0, roots = 0;
#pragma omp parallel for schedule(static) num_threads(job->threads) reduction(+ : near_zero, squares, roots)
    for (int part = 0; part < job->threads; part++) {
        int64_t first = job->rows * part / job->threads, end = job->rows * (part + 1) / job->threads;
        stq_row_statistics own = {.near_zero = 0};
        uint64_t mode = stq_float_mode_set();
        multiply_range(job, x, y, statistics ? &own : NULL, first, end);
        stq_float_mode_restore(mode);
        near_zero += own.near_zero;
        squares += own.squares;
        roots += own.roots;
    }
    if (statistics)
        *statistics = (stq_row_statistics){.near_zero = near_zero, .squares = squares, .roots = roots};
}

/* z has threads x cols entries; the first cols receive the product. */
static void multiply_transposed(const score_job *job, const float *y, int32_t *z, int threads) {
    int64_t rows = job->rows, cols = job->whole.cols;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        stq_matrix range = rows_of(&job->whole, rows * part / threads, rows * (part + 1) / threads);
        int32_t *own = z + part * cols;
        memset(own, 0, (size_t)cols * sizeof *own);
        uint64_t mode = stq_float_mode_set();
        stq_power_columns(&range, y, own);
        stq_float_mode_restore(mode);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t j = 0; j < cols; j++)
        for (int part = 1; part < threads; part++)
            z[j] = (int32_t)((uint32_t)z[j] + (uint32_t)z[part * cols + j]);
}

/*
 * Two power iterations. With F = |G|_F the scaled products satisfy |y| = 2^30 |G x| / (F |x|) and |z| = 2^30 |G' y| /
 * (F |y|), so that |G|_2^2 ~ |G' G x| / |x| = F^2 |y| |z| / 2^60 and the stable rank is 2^60 / (|y| |z|). A start
 * vector that the matrix maps to 0 says nothing; then the rank counts as full.
 */
static stq_status power_iterations(const score_job *job, double norms[2], stq_row_statistics *statistics) {
    int64_t rows = job->rows, cols = job->whole.cols;
    int64_t smaller = rows < cols ? rows : cols;
    norms[0] = norms[1] = 0;
    if (smaller == 1) {
        multiply(job, NULL, NULL, statistics);
        return STQ_OK;
    }
    int threads = job->threads < rows ? job->threads : (int)rows;
    int32_t *y = malloc(((size_t)rows + (size_t)threads * (size_t)cols) * sizeof *y);
    if (!y)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the factors of a %lld x %lld tensor; use fewer threads.",
                         (long long)rows, (long long)cols);
    int32_t *z = y + rows;
    float *x = (float *)(void *)z;
    stq_power_begin(x, cols, job->frobenius);
    double y_norm = 0, z_norm = 0;
    for (int iteration = 0; iteration < 2; iteration++) {
        multiply(job, x, y, iteration == 0 ? statistics : NULL);
        y_norm = stq_power_norm(y, rows);
        if (y_norm == 0)
            break;
        multiply_transposed(job, stq_power_rescale(y, rows, y_norm, job->frobenius), z, threads);
        z_norm = stq_power_norm(z, cols);
        if (z_norm == 0)
            break;
        if (iteration == 0)
            x = stq_power_rescale(z, cols, z_norm, job->frobenius);
    }
    free(y);
    norms[0] = y_norm;
    norms[1] = z_norm;
    return STQ_OK;
}

/* A start vector that the matrix maps to 0 says nothing; then the rank counts as full. */
static double stable_rank(const stq_tensor *tensor, double y_norm, double z_norm) {
    double smaller = (double)(tensor->rows < tensor->cols ? tensor->rows : tensor->cols);
    double found = y_norm > 0 && z_norm > 0 ? STQ_POWER_RANGE * STQ_POWER_RANGE / (y_norm * z_norm) : smaller;
    return (found < smaller ? found : smaller) / smaller;
}

static __attribute__((noinline)) stq_factors finish(const stq_tensor *tensor, const stq_moment_sums *sums,
                                                    const stq_row_statistics *statistics, double y_norm, double z_norm,
                                                    double unscale) {
    double count = (double)tensor->count;
    double root_mean_square = sqrt(sums->squares / count);
    return (stq_factors){
        .n = root_mean_square * unscale,
        .r = stable_rank(tensor, y_norm, z_norm),
        .sharpness = (double)stq_bits_float(sums->largest_bits) / root_mean_square,
        .kurtosis = sums->fourths * count / (sums->squares * sums->squares),
        .row_spread = row_spread(statistics, tensor->rows),
        .near_zero = (double)statistics->near_zero / count,
        .depth = (double)tensor->depth,
    };
}

/* A GPU's factors are finished between steps too, in whatever mode the host has. */
stq_factors stq_score_finish(const stq_tensor *tensor, const stq_moment_sums *sums,
                             const stq_row_statistics *statistics, double y_norm, double z_norm, double unscale) {
    uint64_t mode = stq_float_mode_set();
    stq_factors factors = finish(tensor, sums, statistics, y_norm, z_norm, unscale);
    stq_float_mode_restore(mode);
    return factors;
}

static stq_status check_arguments(const stq_tensor *tensor, const void *gradient, float unscale) {
    const char *name = tensor->name ? tensor->name : "(unnamed)";
    if (tensor->rows < 1 || tensor->cols < 1 || tensor->cols > STQ_MOST_ELEMENTS / tensor->rows)
        return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s': a shape of %lld x %lld is out of range.", name,
                         (long long)tensor->rows, (long long)tensor->cols);
    if (tensor->first != 0 || tensor->count != tensor->rows * tensor->cols)
        return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s': factors need the whole gradient, not a slice of it.",
                         name);
    if (!stq_is_float_type(tensor->gradient_type))
        return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s': its gradient has an element type that is no float.", name);
    if (!gradient)
        return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s': its gradient is NULL.", name);
    if (!(unscale > 0) || !isfinite(unscale))
        return stq_error(STQ_INVALID_ARGUMENT, "unscale is %g; use 1, or 1 / loss scale.", (double)unscale);
    return STQ_OK;
}

static __attribute__((noinline)) stq_status find_factors(const stq_tensor *tensor, const void *gradient, float unscale,
                                                         int threads, stq_factors *factors) {
    STQ_CHECK(check_arguments(tensor, gradient, unscale));
    threads = stq_thread_count(threads);
    stq_moment_sums sums;
    stq_tensor_moments(&sums, gradient, tensor->gradient_type, tensor->count, threads);
    if (sums.largest_bits >= 0x7f800000u)
        return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s': its gradient has elements that are not finite.",
                         tensor->name ? tensor->name : "(unnamed)");
    if (sums.largest_bits == 0) {
        *factors = (stq_factors){.r = 1, .depth = tensor->depth};
        return STQ_OK;
    }
    float largest = stq_bits_float(sums.largest_bits);
    score_job job = {.whole = {.elements = gradient,
                               .dtype = tensor->gradient_type,
                               .cols = tensor->cols,
                               .count = tensor->count,
                               .prescale = stq_power_prescale(sums.largest_bits)},
                     .rows = tensor->rows,
                     .fixed_point = stq_power_fixed_point(tensor->count),
                     .threads = threads};
    job.frobenius = sqrt(sums.squares) * (double)job.whole.prescale;
    job.threshold = largest * job.whole.prescale * STQ_NEAR_ZERO;
    double norms[2];
    stq_row_statistics statistics;
    STQ_CHECK(power_iterations(&job, norms, &statistics));
    *factors = stq_score_finish(tensor, &sums, &statistics, norms[0], norms[1], (double)unscale);
    return STQ_OK;
}

stq_status stq_score_factors(const stq_tensor *tensor, const void *gradient, float unscale, int threads,
                             stq_factors *factors) {
    uint64_t mode = stq_float_mode_set();
    stq_status status = find_factors(tensor, gradient, unscale, threads, factors);
    stq_float_mode_restore(mode);
    return status;
}
