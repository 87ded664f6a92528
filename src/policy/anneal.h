/* anneal.h - what changes over a run: global averages of the factors, annealing, and the budget of the mean cap. */
#ifndef STQ_ANNEAL_H
#define STQ_ANNEAL_H

#include <float.h>

#include "policy/policy.h"

/* False where the factors say nothing: a gradient of zeros, or figures from a caller that are none. */
static inline bool stq_policy_has_gradient(const stq_factors *factors) {
    return factors->n > 0 && factors->n <= DBL_MAX && factors->r > 0 && factors->r <= DBL_MAX;
}

/* Sums over the tensors that take part, weighted by elements. */
typedef struct stq_measure {
    double elements;
    double log_n;
    double log_r;
    double volatile_elements;
    double volatility;
} stq_measure;

/* Adds the factors of some tensors, in their order; sets their volatility. */
void stq_policy_add_factors(stq_measure *sum, stq_policy_tensor *tensors, size_t count);

/* Takes one decision's sums into the averages. */
void stq_policy_average(stq_policy *policy, const stq_measure *sum);

/* Sets the zones of some tensors from the averages. */
void stq_policy_set_zones(const stq_policy *policy, stq_policy_tensor *tensors, size_t count);

/* The annealing factor at `step`, 1 (early) to 0 (late). */
double stq_policy_tau(const stq_policy *policy, int64_t step);

/* Bytes that the decision at `step` may spend: the cap, or what the mean cap's schedule leaves for the steps until the
 * next decision. */
uint64_t stq_policy_budget(const stq_policy *policy, int64_t step);

#endif
