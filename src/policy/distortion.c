/* distortion.c - rate-distortion: what one more bit takes away from the error of the update. */
#include <math.h>

#include "policy/anneal.h"
#include "policy/rules.h"

/*
 * Mean squared relative error by width 2 to 8: of m as stored, under beta1 = 0.9; of sqrt(v), under beta2 = 0.999.
 */
static const double error_of_m[] = {0.363, 0.129, 0.0363, 0.0100, 0.00263, 0.00066, 0.000165};
static const double error_of_v[] = {0.884, 0.314, 0.102, 0.0400, 0.0169, 0.0071, 0.0030};

double stq_distortion(stq_state state, uint32_t bits) {
    return state == STQ_FIRST_MOMENT ? error_of_m[bits - STQ_LOWEST_BITS] : error_of_v[bits - STQ_LOWEST_BITS];
}

double stq_policy_coding_error(uint32_t bits) { return stq_distortion(STQ_SECOND_MOMENT, bits); }

double stq_distortion_shared(double ratio) { return 0.25 / ratio; }

double stq_equivalent_bits(double ratio) {
    double error = stq_distortion_shared(ratio);
    uint32_t bits = STQ_LOWEST_BITS;
    if (error >= error_of_v[0])
        return bits;
    while (bits < STQ_HIGHEST_BITS && error < error_of_v[bits + 1 - STQ_LOWEST_BITS])
        bits++;
    if (bits == STQ_HIGHEST_BITS)
        return bits;
    double above = error_of_v[bits - STQ_LOWEST_BITS], below = error_of_v[bits + 1 - STQ_LOWEST_BITS];
    return bits + log(above / error) / log(above / below);
}

/* Slopes of the convex hull of D(b) between `lowest` and `highest`, as logarithms: a step that gains less than the one
 * after it shares its gain with that one (pooling until the gains fall). */
static void hull(stq_steps *steps, int state, uint32_t lowest, uint32_t highest) {
    for (uint32_t start = lowest; start < highest;) {
        double best = 0;
        uint32_t end = start + 1;
        for (uint32_t bits = start + 1; bits <= highest; bits++) {
            double drop = stq_distortion((stq_state)state, start) - stq_distortion((stq_state)state, bits);
            double slope = drop / (bits - start);
            if (slope > best) {
                best = slope;
                end = bits;
            }
        }
        for (; start < end; start++)
            steps->gain[state][start] = stq_priority(log2(best > 1e-9 ? best : 1e-9));
    }
}

/* The best slope from a shared v: it gets as many bits at once as make the most of each. */
static void rank_return(const stq_policy *policy, const stq_policy_tensor *tensor, stq_sharing *choice) {
    double ratio = tensor->ratio[choice->shared == STQ_BITS_SHARED_COL];
    double shared = ratio > 0 ? stq_distortion_shared(ratio) : 1, best = 0;
    uint32_t landing = policy->config.highest_bits;
    for (uint32_t bits = policy->config.lowest_bits; bits <= policy->config.highest_bits; bits++) {
        double slope = (shared - stq_distortion(STQ_SECOND_MOMENT, bits)) / bits;
        if (slope > best) {
            best = slope;
            landing = bits;
        }
    }
    choice->landing = (uint8_t)landing;
    choice->return_gain = stq_priority(log2(best > 1e-9 ? best : 1e-9));
}

/* Its logarithm, base 2. */
static double log_weight(const stq_policy *policy, const stq_policy_tensor *tensor) {
    if (!stq_policy_has_gradient(&tensor->factors))
        return -4;
    double octaves = (tensor->last_log_n - policy->log_n_average) * 1.44269504088896340736;
    return octaves < -4 ? -4 : octaves > 4 ? 4 : octaves;
}

double stq_distortion_weight(const stq_policy *policy, const stq_policy_tensor *tensor) {
    return exp2(log_weight(policy, tensor));
}

void stq_distortion_steps(const stq_ranking *ranking) {
    const stq_policy_config *config = &ranking->policy->config;
    for (int state = 0; state < 2; state++)
        hull(ranking->steps, state, config->lowest_bits, config->highest_bits);
}

void stq_distortion_rank(const stq_ranking *ranking, size_t first, size_t end) {
    const stq_choices *c = ranking->choices;
    for (size_t i = first; i < end; i++) {
        const stq_policy_tensor *tensor = &ranking->tensors[c->tensor[i]];
        c->rank[i] = stq_rank(stq_choice_state(c, i), stq_priority(log_weight(ranking->policy, tensor)));
        if ((c->traits[i] & STQ_TRAIT_SHARING) && c->sharing[i].shared != 0)
            rank_return(ranking->policy, tensor, &c->sharing[i]);
    }
}
