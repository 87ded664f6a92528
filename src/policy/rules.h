/*
 * rules.h - the two rules that rank bits: each gives every state a priority and every step of width a gain. Bytes are
 * spent in the order of priority + gain (project.h); everything else is common to both.
 */
#ifndef STQ_RULES_H
#define STQ_RULES_H

#include "policy/project.h"

typedef struct stq_ranking {
    const stq_policy *policy;
    const stq_policy_tensor *tensors;
    stq_choices *choices;
    stq_steps *steps;
    double tau;          /* zones: the annealing factor */
    double uniform_bits; /* zones: B, the widest uniform width under the cap, of the states that are not shared */
} stq_ranking;

/* Zones: the priority is the width the zone asks for, B + tau x offset, the gain of a step from b bits is -b: the state
 * that lacks most of what it should have comes first. Gains, and priorities of choices `first` to `end` - 1, which
 * begin with the first state of a tensor. */
void stq_zones_steps(const stq_ranking *ranking);
void stq_zones_rank(const stq_ranking *ranking, size_t first, size_t end);

/* Zones: whether a v is better shared than at the widest uniform width under the cap. */
bool stq_zones_share(bool is_shared, double ratio, double uniform_bits);

/* Rate-distortion: the logarithm (base 2) of the loss that one more bit for one element takes away. */
void stq_distortion_steps(const stq_ranking *ranking);
void stq_distortion_rank(const stq_ranking *ranking, size_t first, size_t end);

/* The width at which a coded v has about the error of a shared one; between the lowest width and the highest. */
double stq_equivalent_bits(double ratio);

/* By what a state coded at `bits` (2 to 8) is ranked: the mean squared relative error of the update that it makes in
 * closed loop; for v at 2 to 4 bits more than that. */
double stq_distortion(stq_state state, uint32_t bits);

/* Importance of one element of a tensor to the loss, relative to the average tensor, as a logarithm, base 2: a quarter
 * of that of n over its average, -1 to 1; -4 without a gradient. */
double stq_distortion_log_weight(const stq_policy *policy, const stq_policy_tensor *tensor);

#endif
