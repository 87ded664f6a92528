/* zones.c - the four zones of STQuant's figure 3: magnitude n and structural complexity r against their averages. */
#include <math.h>

#include "policy/anneal.h"
#include "policy/rules.h"

/* Offsets in bits of (m, v). */
static const float offsets[][2] = {
    [STQ_ZONE_EXEMPT] = {0, 0},     [STQ_ZONE_CRITICAL] = {1, 1},    [STQ_ZONE_MAGNITUDE] = {0, 1},
    [STQ_ZONE_STRUCTURAL] = {1, 0}, [STQ_ZONE_REDUNDANT] = {-1, -1},
};

/* Orders the states of one zone: a fraction of a bit by how far n and r are from their averages. */
static double order_inside_zone(const stq_policy *policy, const stq_policy_tensor *tensor) {
    if (!stq_policy_has_gradient(&tensor->factors))
        return -0.25;
    double distance = tensor->last_log_n - policy->log_n_average + log(tensor->factors.r) - policy->log_r_average;
    distance = distance < -8 ? -8 : distance > 8 ? 8 : distance;
    return distance / 32;
}

void stq_zones_steps(const stq_ranking *ranking) {
    for (uint32_t bits = 0; bits <= STQ_HIGHEST_BITS; bits++)
        ranking->steps->gain[0][bits] = ranking->steps->gain[1][bits] = stq_priority(-(double)bits);
}

void stq_zones_rank(const stq_ranking *ranking, size_t first, size_t end) {
    const stq_choices *c = ranking->choices;
    double order = 0;
    for (size_t i = first; i < end; i++) {
        const stq_policy_tensor *tensor = &ranking->tensors[c->tensor[i]];
        if (i == first || c->tensor[i - 1] != c->tensor[i])
            order = order_inside_zone(ranking->policy, tensor);
        int state = stq_choice_state(c, i);
        double wanted = ranking->uniform_bits + ranking->tau * (double)offsets[tensor->zone][state] + order;
        c->rank[i] = stq_rank(state, stq_priority(wanted));
        if (c->traits[i] & STQ_TRAIT_SHARING) {
            /* Whether to share was decided before; bits that nobody else can take come last. */
            c->sharing[i].return_gain = stq_priority(-STQ_HIGHEST_BITS - 1.0);
            c->sharing[i].landing = 4;
        }
    }
}

/* A shared v stays until it is clearly worse. */
static const double stay_bits = 0.5;

bool stq_zones_share(bool is_shared, double ratio, double uniform_bits) {
    return stq_equivalent_bits(ratio) + (is_shared ? stay_bits : 0) >= uniform_bits;
}
