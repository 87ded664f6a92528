/* decide.c - one decision: the widths that the policy's rule wishes under the cap. */
#include <stdlib.h>

#include "common/error.h"
#include "policy/anneal.h"
#include "policy/decision.h"
#include "quant/shared.h"

/* Signal-to-noise ratio from which a second moment may be shared, and below which it may no longer be. */
static const double sharing_ratio = 1.0;
static const double coding_ratio = 0.5;

static bool chooses(const stq_policy *policy) {
    return policy->config.kind == STQ_POLICY_ZONES || policy->config.kind == STQ_POLICY_RATE_DISTORTION;
}

/* Widths that are not a choice: given ones, and all of the float32 and fixed policies. */
static uint8_t given_width(const stq_policy *policy, const stq_policy_tensor *tensor, int state) {
    if (tensor->given[state] != 0)
        return tensor->given[state];
    if (policy->config.kind == STQ_POLICY_FLOAT32)
        return 32;
    if (policy->config.kind == STQ_POLICY_FIXED)
        return (uint8_t)(state == STQ_FIRST_MOMENT ? policy->config.fixed_m_bits : policy->config.fixed_v_bits);
    return 0;
}

/* Whether v may be shared, and how: as it is, or along the better dimension. */
static void consider_sharing(const stq_policy *policy, const stq_policy_tensor *tensor, uint32_t width,
                             stq_choice *choice) {
    bool automatic = policy->config.shared_v == STQ_SHARED_AUTO && !tensor->not_shared;
    if (stq_is_shared(width)) {
        choice->shared = (uint8_t)width;
        choice->may_share = automatic && tensor->ratio[width == STQ_BITS_SHARED_COL] >= coding_ratio;
    } else if (automatic && width != 0) {
        int better = tensor->ratio[1] > tensor->ratio[0];
        choice->may_share = tensor->ratio[better] >= sharing_ratio;
        if (choice->may_share)
            choice->shared = better ? STQ_BITS_SHARED_COL : STQ_BITS_SHARED_ROW;
    }
    if (choice->shared != 0)
        choice->shared_bytes = (int64_t)stq_policy_state_bytes(tensor, choice->shared, policy->granularity);
}

static void add_choice(decision *d, size_t i, int state) {
    const stq_policy_tensor *tensor = &d->tensors[i];
    /* A tensor without a gradient so far has no planes, but room is kept for them. */
    uint32_t width = tensor->bits[state];
    if (width == 0 && d->policy->decisions > 0)
        width = tensor->target[state];
    stq_choice *choice = &d->choices[d->count++];
    *choice = (stq_choice){.tensor = (uint32_t)i, .state = (uint8_t)state, .asked = tensor->asked[state]};
    choice->present = stq_is_shared(width) ? 0 : (uint8_t)width;
    if (d->count > 1 && choice[-1].tensor == i) {
        choice->pair = choice[-1].pair;
        choice->nibble = choice[-1].nibble;
        choice->bit = choice[-1].bit;
    } else {
        stq_choice_sizes(choice, tensor->count, d->policy->granularity);
    }
    if (state == STQ_SECOND_MOMENT)
        consider_sharing(d->policy, tensor, width, choice);
    if (choice->may_share && choice->present != 0 && choice->shared_bytes > d->reserve)
        d->reserve = choice->shared_bytes;
}

/* Lists the choices and takes the bytes of everything else off the budget. */
static void list_choices(decision *d, size_t tensor_count, int64_t step) {
    stq_policy *policy = d->policy;
    d->taken = policy->fixed_bytes;
    d->count = 0;
    for (size_t i = 0; i < tensor_count; i++)
        for (int state = 0; state < 2; state++) {
            uint8_t given = given_width(policy, &d->tensors[i], state);
            if (given == 0) {
                add_choice(d, i, state);
                continue;
            }
            d->tensors[i].target[state] = given;
            d->taken += stq_policy_state_bytes(&d->tensors[i], given, policy->granularity);
        }
    if (chooses(policy))
        d->budget = (int64_t)(stq_policy_budget(policy, step) - d->taken);
    int64_t lowest = 0;
    for (size_t i = 0; i < d->count; i++)
        lowest += stq_choice_bytes(&d->choices[i], policy->config.lowest_bits);
    if (policy->config.cap_mode == STQ_CAP_PEAK && d->budget - d->reserve >= lowest)
        d->budget -= d->reserve;
}

/* The widest uniform width under the budget, as a real number between two widths; of the states that are not shared. */
static double uniform_bits(const decision *d) {
    stq_choice all = {.bits = 0};
    int64_t shared = 0;
    for (size_t i = 0; i < d->count; i++) {
        const stq_choice *choice = &d->choices[i];
        shared += choice->may_share ? choice->shared_bytes : 0;
        all.pair += choice->may_share ? 0 : choice->pair;
        all.nibble += choice->may_share ? 0 : choice->nibble;
        all.bit += choice->may_share ? 0 : choice->bit;
    }
    uint32_t bits = d->policy->config.lowest_bits;
    int64_t here = shared + stq_choice_bytes(&all, bits);
    for (; bits < d->policy->config.highest_bits; bits++) {
        int64_t next = shared + stq_choice_bytes(&all, bits + 1);
        if (next > d->budget)
            return bits + (next > here ? (double)(d->budget - here) / (double)(next - here) : 0);
        here = next;
    }
    return bits;
}

/* Zones share what is better shared than coded at the width that all states could have together. */
static void share_by_zones(decision *d) {
    for (size_t i = 0; i < d->count; i++)
        d->wishes[i] = d->choices[i].may_share;
    for (size_t i = 0; i < d->count; i++)
        d->choices[i].may_share = false;
    double uniform = uniform_bits(d);
    for (size_t i = 0; i < d->count; i++) {
        stq_choice *choice = &d->choices[i];
        const double *ratio = d->tensors[choice->tensor].ratio;
        choice->may_share =
            d->wishes[i] != 0 && stq_zones_share(choice, ratio[choice->shared == STQ_BITS_SHARED_COL], uniform);
    }
}

static void rank(decision *d, int64_t step) {
    if (d->policy->config.kind == STQ_POLICY_ZONES) {
        share_by_zones(d);
        stq_zones_rank(d->policy, d->tensors, d->choices, d->count, &d->steps, stq_policy_tau(d->policy, step),
                       uniform_bits(d));
    } else {
        stq_distortion_rank(d->policy, d->tensors, d->choices, d->count, &d->steps);
    }
}

/* The whole budget by priority, as if there were no widths yet. */
static void wish(decision *d) {
    int64_t room = d->budget;
    for (size_t i = 0; i < d->count; i++) {
        stq_choice *choice = &d->choices[i];
        choice->bits = choice->may_share ? 0 : (uint8_t)d->policy->config.lowest_bits;
        choice->highest = (uint8_t)d->policy->config.highest_bits;
        room -= stq_choice_bytes(choice, choice->bits);
    }
    stq_spend(d->choices, d->links, d->count, &d->steps, &room);
    for (size_t i = 0; i < d->count; i++)
        d->wishes[i] = d->choices[i].bits;
}

/* No state has a width yet. */
static bool is_first(const decision *d) {
    return d->count == 0 || (d->choices[0].present == 0 && d->choices[0].shared == 0);
}

static void finish(decision *d, int64_t step) {
    d->policy->last_bytes = d->taken;
    for (size_t i = 0; i < d->count; i++) {
        const stq_choice *choice = &d->choices[i];
        stq_policy_tensor *tensor = &d->tensors[choice->tensor];
        tensor->target[choice->state] = choice->bits ? choice->bits : choice->shared;
        tensor->asked[choice->state] = choice->asked;
        d->policy->last_bytes += (uint64_t)stq_choice_bytes(choice, choice->bits);
    }
    d->policy->last_step = step;
    d->policy->decisions++;
}

static void release(decision *d) {
    free(d->choices);
    free(d->wishes);
    free(d->links);
}

stq_status stq_policy_decide(stq_policy *policy, stq_policy_tensor *tensors, size_t count, int64_t step) {
    decision d = {.policy = policy, .tensors = tensors};
    d.choices = malloc((2 * count + 1) * sizeof *d.choices);
    d.wishes = malloc(2 * count + 1);
    d.links = malloc((2 * count + 1) * sizeof *d.links);
    if (!d.choices || !d.wishes || !d.links) {
        release(&d);
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to decide the widths of %zu tensors.", count);
    }
    if (policy->decisions > 0)
        policy->spent += (double)policy->last_bytes * (double)(step - policy->last_step);
    list_choices(&d, count, step);
    if (chooses(policy)) {
        stq_policy_measure(policy, tensors, count);
        rank(&d, step);
        wish(&d);
        if (!is_first(&d))
            stq_decision_move(&d);
    }
    finish(&d, step);
    release(&d);
    return STQ_OK;
}
