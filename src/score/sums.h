/*
 * sums.h - sums whose bits do not depend on threads, ranks or vector width.
 *
 * A tree sum spreads its values over 2,048 accumulators, value i to accumulator i mod 2,048, each adding its values in
 * ascending order from 0, and then halves: a[j] += a[j + w] for w = 1024, 512, ..., 1. Any number of accumulators may
 * be worked on side by side, which is why vector units and GPUs reach the same bits.
 */
#ifndef STQ_SUMS_H
#define STQ_SUMS_H

#include "quant/layout.h"

#define STQ_TREE_WIDTH 2048

/* A tree sum that is fed piece by piece. Begin with all zeros. */
typedef struct stq_tree {
    double accumulators[STQ_TREE_WIDTH];
    int64_t count; /* values added so far */
} stq_tree;

/* Adds the next `count` values. */
void stq_tree_add(stq_tree *tree, const double *values, int64_t count);

/* Halves the accumulators (which are lost) and returns the sum. */
double stq_tree_finish(stq_tree *tree);

/* The tree sum of `count` values; 0.0 for none. */
double stq_tree_sum(const double *values, int64_t count);

/* Sums over elements of a gradient. A non-finite element makes `squares` non-finite and largest_bits >= 0x7f800000. */
typedef struct stq_moment_sums {
    double squares;        /* of g^2; each (double)g * (double)g is exact */
    double fourths;        /* of g^4, as the rounded square of the exact g^2 */
    uint32_t largest_bits; /* bits of the largest |g| */
} stq_moment_sums;

/* Sum of squares of one segment: `count` <= STQ_SEGMENT elements, `gradient` pointing at the segment's first. */
double stq_segment_sum_squares(const void *gradient, stq_dtype dtype, int64_t count);

/* All sums of one segment. */
void stq_segment_moments(stq_moment_sums *sums, const void *gradient, stq_dtype dtype, int64_t count);

/* Sums of a whole tensor: the tree sums over its segments. `threads` 0 = all. */
void stq_tensor_moments(stq_moment_sums *sums, const void *gradient, stq_dtype dtype, int64_t count, int threads);

/* What an argument `threads` means to OpenMP: 0 = all. */
int stq_thread_count(int threads);

#endif
