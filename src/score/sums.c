/* sums.c - reproducible sums. */
#include <omp.h>

#include "common/float_mode.h"
#include "quant/convert.h"
#include "score/sums.h"

void stq_tree_add(stq_tree *tree, const double *values, int64_t count) {
    int64_t i = 0;
    while (i < count) {
        int64_t lane = tree->count % STQ_TREE_WIDTH;
        int64_t run = STQ_TREE_WIDTH - lane < count - i ? STQ_TREE_WIDTH - lane : count - i;
        double *accumulators = tree->accumulators + lane;
        for (int64_t j = 0; j < run; j++)
            accumulators[j] += values[i + j];
        tree->count += run;
        i += run;
    }
}

static double halve(double *accumulators) {
    for (int64_t width = STQ_TREE_WIDTH / 2; width > 0; width /= 2)
        for (int64_t j = 0; j < width; j++)
            accumulators[j] += accumulators[j + width];
    return accumulators[0];
}

double stq_tree_finish(stq_tree *tree) { return halve(tree->accumulators); }

double stq_tree_sum(const double *values, int64_t count) {
    stq_tree tree = {.count = 0};
    stq_tree_add(&tree, values, count);
    return stq_tree_finish(&tree);
}

double stq_segment_sum_squares(const void *gradient, stq_dtype dtype, int64_t count) {
    double squares[STQ_TREE_WIDTH] = {0};
    float buffer[STQ_TREE_WIDTH];
    for (int64_t first = 0; first < count; first += STQ_TREE_WIDTH) {
        int64_t run = count - first < STQ_TREE_WIDTH ? count - first : STQ_TREE_WIDTH;
        const float *g = stq_float_run(gradient, dtype, first, run, buffer);
        for (int64_t j = 0; j < run; j++)
            squares[j] += (double)g[j] * (double)g[j];
    }
    return halve(squares);
}

/* Not to be inlined into stq_tensor_moments(), which sets the floating-point mode around it. */
__attribute__((noinline)) void stq_segment_moments(stq_moment_sums *sums, const void *gradient, stq_dtype dtype,
                                                   int64_t count) {
    double squares[STQ_TREE_WIDTH] = {0};
    double fourths[STQ_TREE_WIDTH] = {0};
    float buffer[STQ_TREE_WIDTH];
    /* Bits of magnitudes order as the magnitudes do, NaN above infinity; as signed numbers they vectorise on SSE2. */
    int32_t largest = 0;
    for (int64_t first = 0; first < count; first += STQ_TREE_WIDTH) {
        int64_t run = count - first < STQ_TREE_WIDTH ? count - first : STQ_TREE_WIDTH;
        const float *g = stq_float_run(gradient, dtype, first, run, buffer);
        for (int64_t j = 0; j < run; j++) {
            double square = (double)g[j] * (double)g[j];
            squares[j] += square;
            fourths[j] += square * square;
        }
        for (int64_t j = 0; j < run; j++) {
            int32_t magnitude = (int32_t)(stq_float_bits(g[j]) & 0x7fffffffu);
            largest = magnitude > largest ? magnitude : largest;
        }
    }
    sums->squares = halve(squares);
    sums->fourths = halve(fourths);
    sums->largest_bits = (uint32_t)largest;
}

int stq_thread_count(int threads) { return threads > 0 ? threads : omp_get_max_threads(); }

void stq_tensor_moments(stq_moment_sums *sums, const void *gradient, stq_dtype dtype, int64_t count, int threads) {
    /* Segments go into the trees in waves, so that the scratch does not grow with the tensor. */
    enum { WAVE = 256 };
    double squares[WAVE], fourths[WAVE];
    uint32_t largest[WAVE];
    stq_tree square_tree = {.count = 0}, fourth_tree = {.count = 0};
    size_t element = stq_dtype_size(dtype);
    int64_t segments = stq_segment_count(count);
    sums->largest_bits = 0;
    for (int64_t wave = 0; wave < segments; wave += WAVE) {
        int64_t in_wave = segments - wave < WAVE ? segments - wave : WAVE;
#pragma omp parallel for schedule(static) num_threads(stq_thread_count(threads)) if (in_wave > 1)
        for (int64_t i = 0; i < in_wave; i++) {
            int64_t first = (wave + i) * STQ_SEGMENT;
            int64_t length = count - first < STQ_SEGMENT ? count - first : STQ_SEGMENT;
            stq_moment_sums one;
            uint64_t mode = stq_float_mode_set();
            stq_segment_moments(&one, (const char *)gradient + (size_t)first * element, dtype, length);
            stq_float_mode_restore(mode);
            squares[i] = one.squares;
            fourths[i] = one.fourths;
            largest[i] = one.largest_bits;
        }
        stq_tree_add(&square_tree, squares, in_wave);
        stq_tree_add(&fourth_tree, fourths, in_wave);
        for (int64_t i = 0; i < in_wave; i++)
            sums->largest_bits = largest[i] > sums->largest_bits ? largest[i] : sums->largest_bits;
    }
    sums->squares = stq_tree_finish(&square_tree);
    sums->fourths = stq_tree_finish(&fourth_tree);
}
