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

void stq_zones_rank(const stq_policy *policy, const stq_policy_tensor *tensors, stq_choice *choices, size_t count,
                    stq_steps *steps, double tau, double uniform_bits) {
    for (uint32_t bits = 0; bits <= STQ_HIGHEST_BITS; bits++)
        steps->gain[0][bits] = steps->gain[1][bits] = stq_priority(-(double)bits);
    double order = 0;
    for (size_t i = 0; i < count; i++) {
        const stq_policy_tensor *tensor = &tensors[choices[i].tensor];
        if (i == 0 || choices[i - 1].tensor != choices[i].tensor)
            order = order_inside_zone(policy, tensor);
        choices[i].priority =
            stq_priority(uniform_bits + tau * (double)offsets[tensor->zone][choices[i].state] + order);
        /* Whether to share was decided before; bits that nobody else can take come last. */
        choices[i].return_gain = stq_priority(-STQ_HIGHEST_BITS - 1.0);
        choices[i].landing = 4;
    }
}

/* A shared v stays until it is clearly worse. */
static const double stay_bits = 0.5;

bool stq_zones_share(const stq_choice *choice, double ratio, double uniform_bits) {
    return stq_equivalent_bits(ratio) + (choice->present == 0 ? stay_bits : 0) >= uniform_bits;
}
