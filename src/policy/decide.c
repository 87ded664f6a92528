/* decide.c - one decision: wishes by the policy's rule, then at most one bit per state towards them, under the cap. */
#include <stdlib.h>

#include "common/error.h"
#include "policy/anneal.h"
#include "policy/rules.h"

/* A demotion must be asked for this many times in a row. */
enum { CONFIRMATIONS = 2 };

/* What one decision works on. */
typedef struct decision {
    stq_policy *policy;
    stq_policy_tensor *tensors;
    stq_choice *choices;
    uint8_t *wishes; /* the rule's width for each choice, free of history */
    size_t count;    /* of choices */
    stq_steps steps;
    int64_t budget; /* bytes for the planes of the choices */
} decision;

int stq_policy_transition_phase(uint32_t from, uint32_t to) {
    if (from == to || from < STQ_LOWEST_BITS || from > STQ_HIGHEST_BITS)
        return 0;
    if ((from >= 4) != (to >= 4))
        return 2;
    return to < from ? 1 : 3;
}

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

/* Lists the choices and takes the bytes of everything else off the budget. */
static void list_choices(decision *d, size_t tensor_count, int64_t step) {
    stq_policy *policy = d->policy;
    uint64_t taken = policy->fixed_bytes;
    d->count = 0;
    for (size_t i = 0; i < tensor_count; i++)
        for (int state = 0; state < 2; state++) {
            stq_policy_tensor *tensor = &d->tensors[i];
            uint8_t given = given_width(policy, tensor, state);
            if (given == 0) {
                stq_choice *choice = &d->choices[d->count++];
                *choice = (stq_choice){.tensor = (uint32_t)i, .state = (uint8_t)state, .present = tensor->bits[state]};
                /* A tensor without a gradient so far has no planes, but room is kept for them. */
                if (choice->present == 0 && policy->decisions > 0)
                    choice->present = tensor->target[state];
                stq_choice_sizes(choice, tensor->count, policy->granularity);
                continue;
            }
            tensor->target[state] = given;
            if (given != 32)
                taken += stq_policy_plane_bytes(tensor->count, given, policy->granularity);
        }
    if (chooses(policy))
        d->budget = (int64_t)(stq_policy_budget(policy, step) - taken);
}

static int64_t bytes_at(const decision *d, uint32_t bits) {
    int64_t bytes = 0;
    for (size_t i = 0; i < d->count; i++)
        bytes += stq_choice_bytes(&d->choices[i], bits);
    return bytes;
}

/* The widest uniform width under the budget, as a real number between two widths. */
static double uniform_bits(const decision *d) {
    uint32_t bits = d->policy->config.lowest_bits;
    int64_t here = bytes_at(d, bits);
    for (; bits < d->policy->config.highest_bits; bits++) {
        int64_t next = bytes_at(d, bits + 1);
        if (next > d->budget)
            return bits + (next > here ? (double)(d->budget - here) / (double)(next - here) : 0);
        here = next;
    }
    return bits;
}

static void rank(decision *d, int64_t step) {
    if (d->policy->config.kind == STQ_POLICY_ZONES)
        stq_zones_rank(d->policy, d->tensors, d->choices, d->count, &d->steps, stq_policy_tau(d->policy, step),
                       uniform_bits(d));
    else
        stq_distortion_rank(d->policy, d->tensors, d->choices, d->count, &d->steps);
}

/* The whole budget by priority, as if there were no widths yet. */
static void wish(decision *d) {
    int64_t room = d->budget;
    for (size_t i = 0; i < d->count; i++) {
        d->choices[i].bits = (uint8_t)d->policy->config.lowest_bits;
        d->choices[i].highest = (uint8_t)d->policy->config.highest_bits;
        room -= stq_choice_bytes(&d->choices[i], d->choices[i].bits);
    }
    stq_spend(d->choices, d->count, &d->steps, &room);
    for (size_t i = 0; i < d->count; i++)
        d->wishes[i] = d->choices[i].bits;
}

static uint8_t *asked(decision *d, size_t i) { return &d->tensors[d->choices[i].tensor].asked[d->choices[i].state]; }

/* Starts from the present widths and counts who asks for less. Returns what is left of the budget. */
static int64_t recall(decision *d) {
    int64_t room = d->budget;
    for (size_t i = 0; i < d->count; i++) {
        stq_choice *choice = &d->choices[i];
        uint8_t *times = asked(d, i);
        *times = d->wishes[i] < choice->present ? (uint8_t)(*times + (*times < UINT8_MAX)) : 0;
        choice->bits = choice->highest = choice->present;
        room -= stq_choice_bytes(choice, choice->present);
    }
    return room;
}

/* One bit less where it was asked for often enough. A demotion that replaces the base plane needs the new planes' bytes
 * before it frees the old ones; in peak mode it is made only if plain demotions leave that room. */
static void demote(decision *d, int64_t *room) {
    bool peak = d->policy->config.cap_mode == STQ_CAP_PEAK;
    for (int crossing = 0; crossing < 2; crossing++)
        for (size_t i = 0; i < d->count; i++) {
            stq_choice *choice = &d->choices[i];
            uint8_t less = (uint8_t)(choice->present - 1);
            if (*asked(d, i) < CONFIRMATIONS ||
                (stq_policy_transition_phase(choice->present, less) == 2) != (crossing == 1))
                continue;
            if (crossing && peak && stq_choice_bytes(choice, less) > *room)
                continue;
            choice->bits = choice->highest = less;
            *room += stq_choice_bytes(choice, choice->present) - stq_choice_bytes(choice, less);
        }
}

static bool crosses_up(const stq_choice *choice) { return choice->present == 3 && choice->bits == 4; }

/* One bit more where it is wished, as room allows. In peak mode a promotion that replaces the base plane needs room for
 * the new planes before the plain promotions are made. */
static void promote(decision *d, int64_t *room) {
    int64_t before = *room;
    for (size_t i = 0; i < d->count; i++)
        if (d->wishes[i] > d->choices[i].present)
            d->choices[i].highest = (uint8_t)(d->choices[i].present + 1);
    stq_spend(d->choices, d->count, &d->steps, room);
    if (d->policy->config.cap_mode != STQ_CAP_PEAK)
        return;
    int64_t crossing_room = before;
    bool blocked = false;
    for (size_t i = 0; i < d->count; i++) {
        stq_choice *choice = &d->choices[i];
        if (!crosses_up(choice)) {
            if (choice->present == 3 && choice->highest == 4)
                choice->highest = 3;
            continue;
        }
        int64_t cost = choice->nibble - stq_choice_bytes(choice, 3);
        if (choice->nibble <= crossing_room) {
            crossing_room -= cost;
            continue;
        }
        choice->bits = choice->highest = choice->present;
        *room += cost;
        blocked = true;
    }
    if (blocked)
        stq_spend(d->choices, d->count, &d->steps, room);
}

static bool any_crossing(const decision *d) {
    for (size_t i = 0; i < d->count; i++)
        if (stq_policy_transition_phase(d->choices[i].present, d->choices[i].bits) == 2)
            return true;
    return false;
}

/* What wishes leave over goes to anybody, by priority and one bit at most: also back to a state that was just demoted,
 * unless the room that it freed is needed while base planes are replaced. */
static void spend_rest(decision *d, int64_t *room) {
    bool return_bits = d->policy->config.cap_mode != STQ_CAP_PEAK || !any_crossing(d);
    for (size_t i = 0; i < d->count; i++) {
        stq_choice *choice = &d->choices[i];
        uint8_t more = (uint8_t)(choice->bits + 1);
        if (more > d->policy->config.highest_bits || stq_policy_transition_phase(choice->bits, more) == 2)
            continue;
        bool same = choice->bits == choice->present && d->wishes[i] >= choice->present;
        bool demoted = choice->bits < choice->present;
        if (same || (demoted && return_bits))
            choice->highest = more;
    }
    stq_spend(d->choices, d->count, &d->steps, room);
}

/* The present widths do not fit: the budget goes by priority to the bits there are, whatever was asked for. */
static void force(decision *d) {
    int64_t room = d->budget;
    for (size_t i = 0; i < d->count; i++) {
        stq_choice *choice = &d->choices[i];
        bool confirmed = *asked(d, i) >= CONFIRMATIONS;
        choice->highest = (uint8_t)(choice->present - confirmed);
        choice->bits = (uint8_t)d->policy->config.lowest_bits;
        room -= stq_choice_bytes(choice, choice->bits);
    }
    stq_spend(d->choices, d->count, &d->steps, &room);
    for (size_t i = 0; i < d->count; i++)
        d->policy->forced += d->choices[i].bits < d->choices[i].highest;
}

static void choose(decision *d) {
    wish(d);
    bool first = d->count == 0 || d->choices[0].present == 0;
    if (first)
        return;
    int64_t room = recall(d);
    demote(d, &room);
    if (room < 0) {
        force(d);
        return;
    }
    promote(d, &room);
    spend_rest(d, &room);
}

static void finish(decision *d, size_t tensor_count, int64_t step) {
    for (size_t i = 0; i < d->count; i++) {
        const stq_choice *choice = &d->choices[i];
        if (choice->bits < choice->present)
            *asked(d, i) = 0;
        d->tensors[choice->tensor].target[choice->state] = choice->bits;
    }
    uint64_t bytes = d->policy->fixed_bytes;
    for (size_t i = 0; i < tensor_count; i++)
        for (int state = 0; state < 2; state++)
            if (d->tensors[i].target[state] != 32)
                bytes +=
                    stq_policy_plane_bytes(d->tensors[i].count, d->tensors[i].target[state], d->policy->granularity);
    d->policy->last_bytes = bytes;
    d->policy->last_step = step;
    d->policy->decisions++;
}

stq_status stq_policy_decide(stq_policy *policy, stq_policy_tensor *tensors, size_t count, int64_t step) {
    decision d = {.policy = policy, .tensors = tensors};
    d.choices = malloc((2 * count + 1) * sizeof *d.choices);
    d.wishes = malloc(2 * count + 1);
    if (!d.choices || !d.wishes) {
        free(d.choices);
        free(d.wishes);
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to decide the widths of %zu tensors.", count);
    }
    if (policy->decisions > 0)
        policy->spent += (double)policy->last_bytes * (double)(step - policy->last_step);
    list_choices(&d, count, step);
    if (chooses(policy)) {
        stq_policy_measure(policy, tensors, count);
        rank(&d, step);
        choose(&d);
    }
    finish(&d, count, step);
    free(d.choices);
    free(d.wishes);
    return STQ_OK;
}
