/*
 * stquant/score.h - the Score engine: what the gradients of one tensor say about the precision its states deserve.
 *
 * Every sum is the same bits for every thread count, rank count and backend: sums of squares and fourth powers run in a
 * fixed order inside segments of 65,536 elements counted from the tensor's start and then over the segments; the
 * matrix-vector products of the power iteration are exact sums of integers, so that order is free.
 */
#ifndef STQUANT_SCORE_H
#define STQUANT_SCORE_H

#include <stquant/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Factors of one global gradient G (rows x cols), after unscaling and before clipping. A zero gradient has n = 0, r = 1
 * and 0 for the rest.
 */
typedef struct stq_factors {
    double n;          /**< magnitude: root mean square of G; the unit of G */
    double r;          /**< structural complexity: |G|_F^2 / |G|_2^2 / min(rows, cols), |G|_2 from two power iterations;
                            dimensionless, in (0, 1] up to rounding; 1 for 1-D tensors (Rudelson & Vershynin 2007) */
    double sharpness;  /**< max |g| / n; at least 1 */
    double kurtosis;   /**< mean g^4 / (mean g^2)^2; 3 for a Gaussian */
    double row_spread; /**< standard deviation of the rows' root mean squares over their mean; 0 for one row */
    double near_zero;  /**< fraction of elements with |g| < 2^-10 max |g| */
    double volatility; /**< |log n - log n at the last decision|; 0 at the first */
    double depth;      /**< stq_tensor.depth */
} stq_factors;

/**
 * Factors of one tensor's gradient on the CPU.
 *
 * @param tensor    global shape; the gradient must be whole (first = 0, count = rows * cols)
 * @param gradient  rows * cols elements of tensor->gradient_type, row-major
 * @param unscale   every element counts as g * unscale (1 for none)
 * @param threads   OpenMP threads, 0 = all
 * @param factors   receives everything but `volatility`, which is set to 0
 * Scratch: 4 (rows + threads * cols) bytes, freed on return. Non-finite gradients give STQ_INVALID_ARGUMENT.
 */
STQ_API stq_status stq_score_factors(const stq_tensor *tensor, const void *gradient, float unscale, int threads,
                                     stq_factors *factors);

/** Most factors that a selection can choose among. */
#define STQ_MOST_FACTORS 16

/** Most factors that a selection can choose. */
#define STQ_MOST_SELECTED 6

/** Which factors tell most about a target. Sets are bit masks: bit i stands for factor i. */
typedef struct stq_selection {
    uint32_t selected;                 /**< the greedy set, k factors */
    uint32_t order[STQ_MOST_SELECTED]; /**< its factors in the order in which they were taken */
    double value;                      /**< F of the greedy set */
    uint32_t best;                     /**< the set of k factors with the largest F, by trying all */
    double best_value;                 /**< its F */
    double gamma; /**< submodularity ratio of F over all subsets of the greedy set and all sets of up to k; in [0, 1] */
    double bound; /**< 1 - exp(-gamma): value is at least bound * best_value (Das & Kempe 2011) */
} stq_selection;

/**
 * Greedy forward selection of k factors, with its guarantee and the optimum beside it.
 *
 * F(S) = 1/2 log(var(Y) / var(Y | X_S)), in nats, for Y and the factors X after a transformation of each to normal
 * scores by rank (ties share their mean rank): what a Gaussian with these rank correlations says about Y by X_S. A
 * factor that never varies says nothing.
 *
 * @param selection     receives the result
 * @param factors       samples x factor_count values, row-major, all finite
 * @param target        samples values, all finite
 * @param samples       at least factor_count + 2
 * @param factor_count  1 to STQ_MOST_FACTORS
 * @param k             1 to STQ_MOST_SELECTED, at most factor_count
 * Errors: STQ_INVALID_ARGUMENT (an argument out of range, a value that is not finite: its place is named),
 * STQ_OUT_OF_MEMORY.
 */
STQ_API stq_status stq_select_factors(stq_selection *selection, const double *factors, const double *target,
                                      size_t samples, size_t factor_count, size_t k);

/** F of the factors in `set` alone, on such samples: for a selection made on others. Errors as above. */
STQ_API stq_status stq_factor_value(double *value, uint32_t set, const double *factors, const double *target,
                                    size_t samples, size_t factor_count);

#ifdef __cplusplus
}
#endif

#endif
