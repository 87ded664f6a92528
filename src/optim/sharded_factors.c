/*
 * sharded_factors.c - factors of gradients of which every rank has a range. The stages of score/power.h add integers,
 * so that the sums over ranks, and with them widths, are the same bits for every number of ranks. Vectors of all
 * tensors travel together: four all-reduces a decision, 4 (rows + cols) bytes a tensor and iteration.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/float_mode.h"
#include "optim/optimizer.h"
#include "optim/sharded.h"
#include "score/power.h"

/* What one decision needs of every tensor; vectors lie one after the other. */
typedef struct decision {
    stq_sharded *sharded;
    const float *gradients;
    int32_t *largest_bits; /* of each tensor; positive floats order as their bits do */
    int64_t *near_zero;
    int64_t *row_starts; /* tensor_count + 1: where a tensor's row vector begins */
    int64_t *col_starts;
    int32_t *rows; /* y of all tensors */
    int32_t *cols; /* z of all tensors; as floats the right-hand side x */
    double *row_norms;
    double *col_norms;
} decision;

static bool chosen(const stq_sharded *s, size_t i) { return !s->adamw->exempt[i]; }

static bool has_rank(const stq_sharded *s, size_t i) {
    return chosen(s, i) && s->whole[i].rows > 1 && s->whole[i].cols > 1;
}

static stq_status open_decision(decision *d, stq_sharded *s, const float *gradients) {
    size_t count = s->tensor_count;
    *d = (decision){.sharded = s, .gradients = gradients};
    d->largest_bits = calloc(count, sizeof *d->largest_bits);
    d->near_zero = calloc(count, sizeof *d->near_zero);
    d->row_starts = calloc(count + 1, sizeof *d->row_starts);
    d->col_starts = calloc(count + 1, sizeof *d->col_starts);
    d->row_norms = calloc(count, sizeof *d->row_norms);
    d->col_norms = calloc(count, sizeof *d->col_norms);
    if (!d->largest_bits || !d->near_zero || !d->row_starts || !d->col_starts || !d->row_norms || !d->col_norms)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the factors of %zu tensors.", count);
    for (size_t i = 0; i < count; i++) {
        d->row_starts[i + 1] = d->row_starts[i] + (has_rank(s, i) ? s->whole[i].rows : 0);
        d->col_starts[i + 1] = d->col_starts[i] + (has_rank(s, i) ? s->whole[i].cols : 0);
    }
    d->rows = calloc((size_t)d->row_starts[count] + 1, sizeof *d->rows);
    d->cols = calloc((size_t)d->col_starts[count] + 1, sizeof *d->cols);
    if (!d->rows || !d->cols)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the vectors of the power iteration.");
    return STQ_OK;
}

static void close_decision(decision *d) {
    free(d->largest_bits);
    free(d->near_zero);
    free(d->row_starts);
    free(d->col_starts);
    free(d->row_norms);
    free(d->col_norms);
    free(d->rows);
    free(d->cols);
}

/* Largest magnitudes of tensors and fourth powers of segments. */
static stq_status measure_moments(decision *d) {
    stq_sharded *s = d->sharded;
#pragma omp parallel for schedule(dynamic) num_threads(stq_thread_count(s->threads))
    for (size_t i = 0; i < s->tensor_count; i++) {
        const float *slice = d->gradients + stq_sharded_slice_offset(s, i);
        int64_t segment = s->segments_before[i] + s->slices[i].first / STQ_SEGMENT;
        for (int64_t at = 0; chosen(s, i) && at < s->slices[i].count; at += STQ_SEGMENT, segment++) {
            stq_moment_sums sums;
            int64_t left = s->slices[i].count - at;
            uint64_t mode = stq_float_mode_set();
            stq_segment_moments(&sums, slice + at, STQ_FLOAT32, left < STQ_SEGMENT ? left : STQ_SEGMENT);
            stq_float_mode_restore(mode);
            s->segment_fourths[segment] = sums.fourths;
            if ((int32_t)sums.largest_bits > d->largest_bits[i])
                d->largest_bits[i] = (int32_t)sums.largest_bits;
        }
    }
    STQ_CHECK(stq_comm_all_reduce(s->comm, d->largest_bits, (int64_t)s->tensor_count, STQ_COMM_INT32, STQ_COMM_MAX,
                                  "the largest gradients"));
    return stq_sharded_gather_segments(s, s->segment_fourths, "the gradients' fourth powers");
}

static double tensor_sum(const stq_sharded *s, const double *of_segments, size_t i) {
    return stq_tree_sum(of_segments + s->segments_before[i], s->segments_before[i + 1] - s->segments_before[i]);
}

static stq_matrix slice_of(const decision *d, size_t i) {
    const stq_sharded *s = d->sharded;
    return (stq_matrix){.elements = d->gradients + stq_sharded_slice_offset(s, i),
                        .dtype = STQ_FLOAT32,
                        .cols = s->whole[i].cols,
                        .first = s->slices[i].first,
                        .count = s->slices[i].count,
                        .prescale = stq_power_prescale((uint32_t)d->largest_bits[i])};
}

static double frobenius(const decision *d, size_t i) {
    return sqrt(tensor_sum(d->sharded, d->sharded->segment_sums, i)) *
           (double)stq_power_prescale((uint32_t)d->largest_bits[i]);
}

/* Elements below 2^-10 of the tensor's largest. */
static void count_near_zero(decision *d, size_t i) {
    stq_matrix matrix = slice_of(d, i);
    float threshold = stq_bits_float((uint32_t)d->largest_bits[i]) * matrix.prescale * STQ_NEAR_ZERO;
    const float *elements = matrix.elements;
    for (int64_t k = 0; k < matrix.count; k++)
        d->near_zero[i] += fabsf(elements[k] * matrix.prescale) < threshold;
}

/* The tensors of a stage, each on a thread of its own: ranges are balanced over ranks already. */
static void for_tensors(decision *d, void (*stage)(decision *, size_t)) {
#pragma omp parallel for schedule(dynamic) num_threads(stq_thread_count(d->sharded->threads))
    for (size_t i = 0; i < d->sharded->tensor_count; i++)
        if (chosen(d->sharded, i) && d->largest_bits[i] != 0) {
            uint64_t mode = stq_float_mode_set();
            stage(d, i);
            stq_float_mode_restore(mode);
        }
}

static void begin_tensor(decision *d, size_t i) {
    if (has_rank(d->sharded, i))
        stq_power_begin((float *)(void *)(d->cols + d->col_starts[i]), d->sharded->whole[i].cols, frobenius(d, i));
}

static void multiply_rows(decision *d, size_t i) {
    if (!has_rank(d->sharded, i))
        return;
    stq_matrix matrix = slice_of(d, i);
    int32_t *y = d->rows + d->row_starts[i];
    memset(y, 0, (size_t)d->sharded->whole[i].rows * sizeof *y);
    stq_power_rows(&matrix, (const float *)(const void *)(d->cols + d->col_starts[i]), y);
}

static void multiply_columns(decision *d, size_t i) {
    if (!has_rank(d->sharded, i))
        return;
    stq_matrix matrix = slice_of(d, i);
    int64_t rows = d->sharded->whole[i].rows, cols = d->sharded->whole[i].cols;
    int32_t *y = d->rows + d->row_starts[i], *z = d->cols + d->col_starts[i];
    d->row_norms[i] = stq_power_norm(y, rows);
    memset(z, 0, (size_t)cols * sizeof *z);
    if (d->row_norms[i] > 0)
        stq_power_columns(&matrix, stq_power_rescale(y, rows, d->row_norms[i], frobenius(d, i)), z);
}

static void finish_columns(decision *d, size_t i) {
    if (!has_rank(d->sharded, i))
        return;
    int64_t cols = d->sharded->whole[i].cols;
    d->col_norms[i] = stq_power_norm(d->cols + d->col_starts[i], cols);
}

static void next_right_side(decision *d, size_t i) {
    if (has_rank(d->sharded, i) && d->col_norms[i] > 0)
        stq_power_rescale(d->cols + d->col_starts[i], d->sharded->whole[i].cols, d->col_norms[i], frobenius(d, i));
}

static stq_status power_iterations(decision *d) {
    stq_comm *comm = d->sharded->comm;
    size_t count = d->sharded->tensor_count;
    for_tensors(d, begin_tensor);
    for (int iteration = 0; iteration < 2; iteration++) {
        for_tensors(d, multiply_rows);
        STQ_CHECK(
            stq_comm_all_reduce(comm, d->rows, d->row_starts[count], STQ_COMM_INT32, STQ_COMM_SUM, "the row products"));
        for_tensors(d, multiply_columns);
        STQ_CHECK(stq_comm_all_reduce(comm, d->cols, d->col_starts[count], STQ_COMM_INT32, STQ_COMM_SUM,
                                      "the column products"));
        for_tensors(d, finish_columns);
        if (iteration == 0)
            for_tensors(d, next_right_side);
    }
    return STQ_OK;
}

/* The spread of rows is left out: rows are cut between ranks. */
static stq_factors factors_of(const decision *d, size_t i) {
    const stq_sharded *s = d->sharded;
    if (!chosen(s, i) || d->largest_bits[i] == 0)
        return (stq_factors){.r = 1, .depth = (double)s->whole[i].depth};
    stq_moment_sums sums = {.squares = tensor_sum(s, s->segment_sums, i),
                            .fourths = tensor_sum(s, s->segment_fourths, i),
                            .largest_bits = (uint32_t)d->largest_bits[i]};
    stq_row_statistics rows = {.near_zero = d->near_zero[i]};
    return stq_score_finish(&s->whole[i], &sums, &rows, d->row_norms[i], d->col_norms[i], 1.0);
}

stq_status stq_sharded_factors(stq_sharded *s, const float *gradients) {
    decision d;
    stq_status status = open_decision(&d, s, gradients);
    if (status == STQ_OK)
        status = measure_moments(&d);
    if (status == STQ_OK) {
        for_tensors(&d, count_near_zero);
        status = stq_comm_all_reduce(s->comm, d.near_zero, (int64_t)s->tensor_count, STQ_COMM_INT64, STQ_COMM_SUM,
                                     "the counts of small gradients");
    }
    if (status == STQ_OK)
        status = power_iterations(&d);
    for (size_t i = 0; status == STQ_OK && i < s->tensor_count; i++)
        s->factors[i] = factors_of(&d, i);
    close_decision(&d);
    return status;
}
