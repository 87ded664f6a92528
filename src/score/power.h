/*
 * power.h - the stages of the power iteration behind the stable rank, and the integer statistics of rows. Each stage
 * works on a range of elements and adds integers, so that threads, ranks and GPUs may split the work as they like:
 * between the stages the int32 vectors are summed (all-reduced) and every participant goes on with the same bits.
 */
#ifndef STQ_POWER_H
#define STQ_POWER_H

#include <stquant/score.h>

#include "quant/codec.h"
#include "score/sums.h"

/* |y|_2 and |z|_2 of the scaled products are at most this, by Cauchy and Schwarz. */
#define STQ_POWER_RANGE 1073741824.0

/* 2^-10: elements below this share of the largest count as near zero. */
#define STQ_NEAR_ZERO (1.0f / 1024.0f)

/* Bits behind the point of the squares; fewer for tensors of which 2^34 elements could be as large as the largest. */
STQ_INLINE float stq_power_fixed_point(int64_t count) { return count <= (int64_t)1 << 34 ? 16777216.0f : 1048576.0f; }

/* A range of elements of a row-major matrix. */
typedef struct stq_matrix {
    const void *elements; /* of the range, not of the matrix */
    stq_dtype dtype;
    int64_t cols;
    int64_t first; /* index of the range's first element in the matrix */
    int64_t count; /* elements in the range */
    float prescale;
} stq_matrix;

/* Integer statistics of rows and elements; all are sums, so that parts may be added. */
typedef struct stq_row_statistics {
    int64_t near_zero; /* elements below 2^-10 of the largest */
    uint64_t squares;  /* sum over rows of the row's fixed-point sum of squares */
    uint64_t roots;    /* sum over rows of rint(256 sqrt(row's sum)) */
} stq_row_statistics;

/* The power of two that brings a largest magnitude to [4, 8); at most 2^127, so that subnormal gradients stay below. */
float stq_power_prescale(uint32_t largest_bits);

/* The start vector: a sign and a magnitude in [1, 2) out of a hash of the index. */
STQ_INLINE float stq_power_start(int64_t index) {
    uint32_t hash = stq_hash(stq_hash((uint32_t)index ^ 0x5bd1e995u) + (uint32_t)(index >> 32));
    return stq_bits_float((hash & 0x807fffffu) | STQ_ONE_BITS);
}

/* Writes the start vector, scaled for a product with a matrix whose prescaled Frobenius norm is `frobenius`. */
void stq_power_begin(float *vector, int64_t count, double frobenius);

/* |vector|_2. */
double stq_power_norm(const int32_t *vector, int64_t count);

/* Turns `vector`, of norm `norm`, into floats in the same memory, scaled for the next product. */
float *stq_power_rescale(int32_t *vector, int64_t count, double norm, double frobenius);

/* y[i] += sum over j of rint((g_ij prescale) x_j), for the rows that the range touches. y has an entry for every row.
 */
void stq_power_rows(const stq_matrix *range, const float *x, int32_t *y);

/* z[j] += sum over i of rint((g_ij prescale) y_i). z has an entry for every column, y for every row. */
void stq_power_columns(const stq_matrix *range, const float *y, int32_t *z);

/* Elements below `threshold` in magnitude (after the prescale) and the sum of rint(fixed_point (g prescale)^2) over a
 * range that lies in one row; both are added to what is there. */
void stq_power_row_squares(const stq_matrix *range, float threshold, float fixed_point, uint64_t *squares,
                           int64_t *near_zero);

/* The factors of a whole tensor (largest |g| above 0, finite) from its sums and the norms of the last products. */
stq_factors stq_score_finish(const stq_tensor *tensor, const stq_moment_sums *sums,
                             const stq_row_statistics *statistics, double y_norm, double z_norm, double unscale);

#endif
