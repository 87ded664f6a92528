/* power.c - matrix-vector products as exact sums of integers. */
#include "score/power.h"
#include "quant/convert.h"

float stq_power_prescale(uint32_t largest_bits) {
    uint32_t exponent = largest_bits >> 23;
    exponent = exponent > 2 ? exponent : 2;
    return stq_bits_float((256 - exponent) << 23);
}

void stq_power_begin(float *vector, int64_t count, double frobenius) {
    stq_tree tree = {.count = 0};
    for (int64_t j = 0; j < count; j++) {
        vector[j] = stq_power_start(j);
        double square = (double)vector[j] * (double)vector[j];
        stq_tree_add(&tree, &square, 1);
    }
    double scale = STQ_POWER_RANGE / (frobenius * sqrt(stq_tree_finish(&tree)));
    for (int64_t j = 0; j < count; j++)
        vector[j] = (float)((double)vector[j] * scale);
}

double stq_power_norm(const int32_t *vector, int64_t count) {
    stq_tree tree = {.count = 0};
    double squares[STQ_TREE_WIDTH];
    for (int64_t first = 0; first < count; first += STQ_TREE_WIDTH) {
        int64_t run = count - first < STQ_TREE_WIDTH ? count - first : STQ_TREE_WIDTH;
        for (int64_t j = 0; j < run; j++)
            squares[j] = (double)vector[first + j] * (double)vector[first + j];
        stq_tree_add(&tree, squares, run);
    }
    return sqrt(stq_tree_finish(&tree));
}

float *stq_power_rescale(int32_t *vector, int64_t count, double norm, double frobenius) {
    double scale = STQ_POWER_RANGE / (frobenius * norm);
    float *scaled = (float *)(void *)vector;
    for (int64_t j = 0; j < count; j++) {
        float value = (float)((double)vector[j] * scale);
        memcpy(&scaled[j], &value, sizeof value);
    }
    return scaled;
}

/* One row's part of a range, at most STQ_TREE_WIDTH elements long and so in the nearest cache. */
typedef struct piece {
    const float *g;
    int64_t row;
    int64_t col;
    int64_t count;
} piece;

/* The piece that begins at element `done` of the range. */
static piece next_piece(const stq_matrix *range, int64_t done, float *buffer) {
    int64_t index = range->first + done;
    piece p = {.row = index / range->cols, .col = index % range->cols};
    int64_t in_row = range->cols - p.col;
    int64_t left = range->count - done;
    p.count = in_row < left ? in_row : left;
    p.count = p.count < STQ_TREE_WIDTH ? p.count : STQ_TREE_WIDTH;
    p.g = stq_float_run(range->elements, range->dtype, done, p.count, buffer);
    return p;
}

/* Integers are added as unsigned ones: wrapping is defined, and true sums fit. */
static uint32_t dot(const float *restrict g, const float *restrict x, float prescale, int64_t count) {
    uint32_t sum = 0;
    for (int64_t j = 0; j < count; j++)
        sum += (uint32_t)(int32_t)lrintf((g[j] * prescale) * x[j]);
    return sum;
}

static void add_multiple(int32_t *restrict z, const float *restrict g, float prescale, float factor, int64_t count) {
    for (int64_t j = 0; j < count; j++)
        z[j] = (int32_t)((uint32_t)z[j] + (uint32_t)(int32_t)lrintf((g[j] * prescale) * factor));
}

void stq_power_rows(const stq_matrix *range, const float *x, int32_t *y) {
    float buffer[STQ_TREE_WIDTH];
    for (int64_t done = 0; done < range->count;) {
        piece p = next_piece(range, done, buffer);
        y[p.row] = (int32_t)((uint32_t)y[p.row] + dot(p.g, x + p.col, range->prescale, p.count));
        done += p.count;
    }
}

void stq_power_columns(const stq_matrix *range, const float *y, int32_t *z) {
    float buffer[STQ_TREE_WIDTH];
    for (int64_t done = 0; done < range->count;) {
        piece p = next_piece(range, done, buffer);
        if (y[p.row] != 0)
            add_multiple(z + p.col, p.g, range->prescale, y[p.row], p.count);
        done += p.count;
    }
}

/* Terms are at most 2^30: below 8 in magnitude after the prescale, times 2^24. */
static uint64_t sum_squares(const float *g, float prescale, float fixed_point, int64_t count) {
    uint64_t sum = 0;
    for (int64_t j = 0; j < count; j++) {
        float u = g[j] * prescale;
        sum += (uint64_t)(int32_t)lrintf((u * u) * fixed_point);
    }
    return sum;
}

static int64_t count_below(const float *g, float prescale, float threshold, int64_t count) {
    int32_t below = 0;
    for (int64_t j = 0; j < count; j++)
        below += fabsf(g[j] * prescale) < threshold;
    return below;
}

void stq_power_row_squares(const stq_matrix *range, float threshold, float fixed_point, uint64_t *squares,
                           int64_t *near_zero) {
    float buffer[STQ_TREE_WIDTH];
    for (int64_t done = 0; done < range->count;) {
        piece p = next_piece(range, done, buffer);
        *squares += sum_squares(p.g, range->prescale, fixed_point, p.count);
        *near_zero += count_below(p.g, range->prescale, threshold, p.count);
        done += p.count;
    }
}
