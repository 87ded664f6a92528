/* anneal.h - what changes over a run: global averages of the factors, annealing, and the budget of the mean cap. */
#ifndef STQ_ANNEAL_H
#define STQ_ANNEAL_H

#include "policy/policy.h"

/* False where the factors say nothing: a gradient of zeros, or figures from a caller that are none. */
bool stq_policy_has_gradient(const stq_factors *factors);

/* Takes one decision's factors into the averages; sets volatility and zone of every tensor. */
void stq_policy_measure(stq_policy *policy, stq_policy_tensor *tensors, size_t count);

/* The annealing factor at `step`, 1 (early) to 0 (late). */
double stq_policy_tau(const stq_policy *policy, int64_t step);

/* Bytes that the decision at `step` may spend: the cap, or what the mean cap's schedule leaves for the steps until the
 * next decision. */
uint64_t stq_policy_budget(const stq_policy *policy, int64_t step);

#endif
