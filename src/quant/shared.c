/* shared.c - the stages of a shared second moment on the CPU: exact sums, means, probes, the ratio that decides. */
#include "quant/shared.h"
#include "quant/reference.h"

/* Elements handled at a time. */
enum { RUN = 1024 };

/* A run inside one row: all terms go to the row's sum. */
static int64_t add_to_row(int64_t *sum, const float *g, float factor, int64_t count) {
    int64_t total = 0;
    int32_t saturated = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t term = stq_shared_term(g[i], factor);
        total += term;
        saturated += term == (int32_t)STQ_SHARED_LARGEST;
    }
    *sum += total;
    return saturated;
}

/* A run inside one row: each term goes to the sum of its column. */
static int64_t add_to_columns(int64_t *restrict sums, const float *restrict g, const float *restrict factors,
                              int64_t count) {
    int32_t saturated = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t term = stq_shared_term(g[i], factors[i]);
        sums[i] += term;
        saturated += term == (int32_t)STQ_SHARED_LARGEST;
    }
    return saturated;
}

static void raise_row(int64_t *largest, const float *g, int64_t count) {
    int32_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t bits = (int32_t)(stq_float_bits(g[i]) & 0x7fffffffu);
        found = bits > found ? bits : found;
    }
    *largest = found > *largest ? found : *largest;
}

static void raise_columns(int64_t *restrict largest, const float *restrict g, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        int64_t bits = (int64_t)(stq_float_bits(g[i]) & 0x7fffffffu);
        largest[i] = bits > largest[i] ? bits : largest[i];
    }
}

/* What is done with the gradients: their terms are added to the sums, or the sums raised to the largest magnitudes. */
typedef enum purpose { ADD_TERMS, FIND_LARGEST } purpose;

static int64_t handle_run(const stq_item *item, const stq_shared_sums *scratch, int64_t row, int64_t col,
                          const float *g, int64_t count, purpose what) {
    int64_t *sums = scratch->sums;
    const float *factors = scratch->factors;
    bool by_row = item->v_in.bits == STQ_BITS_SHARED_ROW;
    if (what == ADD_TERMS)
        return by_row ? add_to_row(&sums[row], g, factors[row], count)
                      : add_to_columns(sums + col, g, factors + col, count);
    if (by_row)
        raise_row(&sums[row], g, count);
    else
        raise_columns(sums + col, g, count);
    return 0;
}

/* The part of row `row` that lies in the slice, cut to columns first .. end - 1. */
static int64_t handle_row(const stq_item *item, const stq_shared_sums *scratch, int64_t row, int64_t first, int64_t end,
                          purpose what) {
    int64_t slice = item->first_block * STQ_BLOCK;
    int64_t from = row * item->cols + first, to = row * item->cols + end;
    from = from > slice ? from : slice;
    to = to < slice + item->count ? to : slice + item->count;
    int64_t saturated = 0;
    float buffer[RUN];
    for (; from < to; from += RUN) {
        int64_t count = to - from < RUN ? to - from : RUN;
        const float *g = stq_float_run(item->gradient, item->gradient_type, from - slice, count, buffer);
        saturated += handle_run(item, scratch, row, from - row * item->cols, g, count, what);
    }
    return saturated;
}

/* The gradients that belong to means first .. end - 1: of those rows, or of those columns of all rows. */
static int64_t handle_means(const stq_item *item, const stq_shared_sums *scratch, int64_t first, int64_t end,
                            purpose what) {
    int64_t slice = item->first_block * STQ_BLOCK;
    int64_t first_row = slice / item->cols;
    int64_t end_row = item->count > 0 ? (slice + item->count - 1) / item->cols + 1 : first_row;
    int64_t saturated = 0;
    if (item->v_in.bits == STQ_BITS_SHARED_ROW) {
        first_row = first_row > first ? first_row : first;
        end_row = end_row < end ? end_row : end;
        first = 0;
        end = item->cols;
    }
    for (int64_t row = first_row; row < end_row; row++)
        saturated += handle_row(item, scratch, row, first, end, what);
    return saturated;
}

void stq_shared_prepare(const stq_item *item, const stq_shared_sums *scratch, int64_t first, int64_t end) {
    const float *means = stq_shared_means(&item->v_in);
    float gradient_factor = means[stq_shared_count(item->v_in.bits, item->rows, item->cols)];
    for (int64_t k = first; k < end; k++) {
        scratch->factors[k] = stq_shared_factor(means[k], gradient_factor);
        scratch->sums[k] = 0;
    }
}

int64_t stq_shared_add(const stq_item *item, const stq_shared_sums *scratch, int64_t first, int64_t end) {
    return first < end ? handle_means(item, scratch, first, end, ADD_TERMS) : 0;
}

void stq_shared_largest(const stq_item *item, const stq_shared_sums *scratch, int64_t first, int64_t end) {
    if (first < end)
        (void)handle_means(item, scratch, first, end, FIND_LARGEST);
}

void stq_shared_rescale(const stq_shared_sums *scratch, int64_t first, int64_t end) {
    for (int64_t k = first; k < end; k++) {
        scratch->factors[k] = stq_shared_safe_factor(stq_bits_float((uint32_t)scratch->sums[k]));
        scratch->sums[k] = 0;
    }
}

void stq_shared_finish(const stq_item *item, const stq_shared_sums *scratch, const stq_coefficients *c, int64_t first,
                       int64_t end) {
    float *means = stq_shared_means(&item->v_in);
    int64_t elements = item->v_in.bits == STQ_BITS_SHARED_ROW ? item->cols : item->rows;
    for (int64_t k = first; k < end; k++)
        means[k] = stq_shared_mean(means[k], scratch->sums[k], elements, scratch->factors[k], c);
}

static int64_t probe_count(const stq_shared_grid *grid) { return grid->rows * grid->cols; }

void stq_shared_follow(const stq_item *item, const stq_coefficients *c) {
    stq_shared_grid grid = stq_shared_probe_grid(item->rows, item->cols);
    for (int64_t i = 0; i < probe_count(&grid); i++)
        stq_shared_follow_probe(item, &grid, c, i);
    stq_shared_means(&item->v_in)[stq_shared_count(item->v_in.bits, item->rows, item->cols)] = c->gradient_factor;
}

void stq_shared_read_probes(float *values, const stq_item *item) {
    stq_shared_grid grid = stq_shared_probe_grid(item->rows, item->cols);
    for (int64_t i = 0; i < probe_count(&grid); i++)
        values[i] = stq_shared_read_probe(item, &grid, i);
}

/* Decodes the whole slice; adds to the sums where there is a `scale`. Returns the largest value. */
static float sum_moments(const stq_planes *shared, const stq_item *item, int64_t *sums, double scale) {
    float values[STQ_BLOCK], largest = 0;
    for (int64_t block = 0; block < stq_block_count(item->count); block++) {
        int64_t left = item->count - block * STQ_BLOCK;
        int count = left < STQ_BLOCK ? (int)left : STQ_BLOCK;
        int64_t index = (item->first_block + block) * STQ_BLOCK;
        stq_reference_decode_v(values, &item->v_in, block, count);
        for (int i = 0; i < count; i++) {
            largest = values[i] > largest ? values[i] : largest;
            if (scale > 0)
                sums[stq_shared_index(shared->bits, index + i, item->cols)] += stq_shared_moment_term(values[i], scale);
        }
    }
    return largest;
}

void stq_shared_begin(const stq_planes *shared, const stq_item *item, int64_t *sums) {
    int64_t means_count = stq_shared_count(shared->bits, item->rows, item->cols);
    int64_t elements = shared->bits == STQ_BITS_SHARED_ROW ? item->cols : item->rows;
    float *means = stq_shared_means(shared);
    memset(shared->base, 0, (size_t)stq_shared_bytes(shared->bits, item->rows, item->cols));
    means[means_count] = INFINITY;
    if (item->v_in.bits == 0)
        return;
    stq_shared_read_probes(stq_shared_probes(shared), item);
    float largest = sum_moments(shared, item, sums, 0);
    if (largest == 0)
        return;
    double scale = stq_shared_fixed_point(largest, elements);
    memset(sums, 0, (size_t)means_count * sizeof *sums);
    sum_moments(shared, item, sums, scale);
    for (int64_t k = 0; k < means_count; k++)
        means[k] = stq_shared_first_mean(sums[k], elements, scale);
}

/* Variance over mean^2 of values at a stride, without the coding's share of the variance. */
static double inverse_ratio(const float *values, int64_t count, int64_t stride, double noise, bool *told) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)values[i * stride];
    double mean = sum / (double)count;
    *told = mean > 0 && count > 1;
    if (!*told)
        return 0;
    for (int64_t i = 0; i < count; i++) {
        double difference = (double)values[i * stride] - mean;
        squares += difference * difference;
    }
    double relative = squares / ((double)(count - 1) * mean * mean);
    /* The mean of the sampled squares is mean^2 (1 + relative), each with noise in proportion. */
    double clean = (relative - noise) / (1 + noise);
    return clean > 1 / STQ_SHARED_BEST ? clean : 1 / STQ_SHARED_BEST;
}

static double harmonic_mean(const float *values, int64_t lines, int64_t line_stride, int64_t count, int64_t stride,
                            double noise) {
    double sum = 0;
    int64_t told = 0;
    for (int64_t line = 0; line < lines; line++) {
        bool tells;
        double inverse = inverse_ratio(values + line * line_stride, count, stride, noise, &tells);
        sum += inverse;
        told += tells;
    }
    return told > 0 ? (double)told / sum : 0;
}

void stq_shared_ratios(double ratios[2], const float *values, const stq_shared_grid *grid, double noise) {
    ratios[0] = harmonic_mean(values, grid->rows, grid->cols, grid->cols, 1, noise);
    ratios[1] = harmonic_mean(values, grid->cols, 1, grid->rows, grid->cols, noise);
}
