/* distortion.c - rate-distortion: what one more bit takes away from the error that training minds. */
#include <math.h>

#include "policy/anneal.h"
#include "policy/rules.h"

/*
 * Mean squared relative error of the update by the width of one moment, 2 to 8: medians over the tensors of traces of
 * GPT-2 at beta2 = 0.95, 0.99 and 0.999 and of ViT at 0.999 (docs/adaptivity.md), geometric means of the four.
 */
static const double error_by_m[] = {2.06, 0.339, 0.0640, 0.0152, 0.00376, 0.00094, 0.00023};
static const double error_by_v[] = {0.189, 0.0581, 0.0364, 0.0148, 0.00478, 0.00142, 0.000446};

/*
 * By what v's widths are ranked beside error_by_m. Of 2 to 4 bits training minds v's error more than the error of the
 * update tells: of fixed widths of equal bytes 3,3 ends below 4,2, and 3,4 below 4,3
 * (docs/decisions/008-first-bits-of-v.md). These values put v's third and fourth bit between m's third and fourth.
 */
static const double rank_by_v[] = {0.74, 0.385, 0.0364, 0.0148, 0.00478, 0.00142, 0.000446};

double stq_distortion(stq_state state, uint32_t bits) {
    return (state == STQ_FIRST_MOMENT ? error_by_m : rank_by_v)[bits - STQ_LOWEST_BITS];
}

double stq_policy_coding_error(uint32_t bits) { return error_by_v[bits - STQ_LOWEST_BITS]; }

/* Mean squared relative error of the update by a v that is shared at a signal-to-noise ratio; 0 where none is known. */
static double sharing_error(double ratio) { return ratio > 0 ? 0.25 / ratio : 1; }

double stq_equivalent_bits(double ratio) {
    double error = sharing_error(ratio);
    uint32_t bits = STQ_LOWEST_BITS;
    if (error >= error_by_v[0])
        return bits;
    while (bits < STQ_HIGHEST_BITS && error < error_by_v[bits + 1 - STQ_LOWEST_BITS])
        bits++;
    if (bits == STQ_HIGHEST_BITS)
        return bits;
    double above = error_by_v[bits - STQ_LOWEST_BITS], below = error_by_v[bits + 1 - STQ_LOWEST_BITS];
    return bits + log(above / error) / log(above / below);
}

/* A shared v ranks as a coded one of the same error would; beyond that of the lowest width in proportion. */
static double distortion_shared(double ratio) {
    double error = sharing_error(ratio), width = stq_equivalent_bits(ratio) - STQ_LOWEST_BITS;
    if (error >= error_by_v[0])
        return rank_by_v[0] * error / error_by_v[0];
    int below = width < STQ_HIGHEST_BITS - STQ_LOWEST_BITS ? (int)width : STQ_HIGHEST_BITS - STQ_LOWEST_BITS - 1;
    return rank_by_v[below] * pow(rank_by_v[below + 1] / rank_by_v[below], width - below);
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
    double shared = distortion_shared(ratio), best = 0;
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

/* A full weight by n took bits from embeddings, whose gradients are small and whose errors are not: docs/adaptivity.md
 * has the runs. */
double stq_distortion_log_weight(const stq_policy *policy, const stq_policy_tensor *tensor) {
    if (!stq_policy_has_gradient(&tensor->factors))
        return -4;
    double quarter = 0.25 * 1.44269504088896340736 * (tensor->last_log_n - policy->log_n_average);
    return quarter < -1 ? -1 : quarter > 1 ? 1 : quarter;
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
        c->rank[i] = stq_rank(stq_choice_state(c, i), stq_priority(stq_distortion_log_weight(ranking->policy, tensor)));
        if ((c->traits[i] & STQ_TRAIT_SHARING) && c->sharing[i].shared != 0)
            rank_return(ranking->policy, tensor, &c->sharing[i]);
    }
}
