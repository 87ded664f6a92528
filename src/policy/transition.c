/* transition.c - from present widths towards wishes: at most one bit a decision, never above the budget. */
#include "policy/decision.h"
#include "quant/shared.h"

/* A demotion must be asked for this many times in a row. */
enum { CONFIRMATIONS = 2 };

/* Transitions of a choice, by the phase in which a store makes them. */
enum { STAY = 0, DROP = 1, REPLACE = 2, ADD = 3 };

int stq_policy_transition_phase(uint32_t from, uint32_t to) {
    bool was_shared = stq_is_shared(from), becomes_shared = stq_is_shared(to);
    bool was_coded = from >= STQ_LOWEST_BITS && from <= STQ_HIGHEST_BITS;
    if (from == to || !(was_shared || was_coded))
        return STAY;
    if (becomes_shared)
        return DROP;
    if (was_shared || (from >= 4) != (to >= 4))
        return REPLACE;
    return to < from ? DROP : ADD;
}

static int phase(const stq_choice *choice, uint32_t from, uint32_t to) {
    return stq_policy_transition_phase(from ? from : choice->shared, to ? to : choice->shared);
}

static bool keeps_peak(const decision *d) { return d->policy->config.cap_mode == STQ_CAP_PEAK; }

/* Starts from the present widths and counts who asks for less. Returns what is left of the budget. */
static int64_t recall(decision *d) {
    int64_t room = d->budget;
    for (size_t i = 0; i < d->count; i++) {
        stq_choice *choice = &d->choices[i];
        uint8_t times = choice->asked;
        choice->asked = d->wishes[i] < choice->present ? (uint8_t)(times + (times < UINT8_MAX)) : 0;
        choice->bits = choice->highest = choice->present;
        room -= stq_choice_bytes(choice, choice->present);
    }
    return room;
}

/* One bit less, or shared, where it was asked for often enough. A demotion that replaces the base plane needs the new
 * planes' bytes before it frees the old ones; in peak mode it is made only if the others leave that room. */
static void demote(decision *d, int64_t *room) {
    for (int kind = DROP; kind <= REPLACE; kind++)
        for (size_t i = 0; i < d->count; i++) {
            stq_choice *choice = &d->choices[i];
            if (choice->asked < CONFIRMATIONS)
                continue;
            uint8_t less = d->wishes[i] == 0 ? 0 : (uint8_t)(choice->present - 1);
            if (phase(choice, choice->present, less) != kind)
                continue;
            if (kind == REPLACE && keeps_peak(d) && stq_choice_bytes(choice, less) > *room)
                continue;
            choice->bits = choice->highest = less;
            *room += stq_choice_bytes(choice, choice->present) - stq_choice_bytes(choice, less);
        }
}

/* Gives a shared v its codes back where that is wished. Returns false if one has to wait for room: then nobody else may
 * take what demotions free. */
static bool return_codes(decision *d, int64_t *room) {
    bool all = true;
    for (size_t i = 0; i < d->count; i++) {
        stq_choice *choice = &d->choices[i];
        if (choice->present != 0 || d->wishes[i] == 0)
            continue;
        /* The means stay until the codes are written. */
        int64_t cost = stq_choice_bytes(choice, choice->landing);
        if (cost > *room) {
            all = false;
            continue;
        }
        choice->bits = choice->highest = choice->landing;
        *room -= cost;
    }
    return all;
}

static bool crosses_up(const stq_choice *choice) { return choice->present == 3 && choice->bits == 4; }

/* Takes back promotions that replace the base plane where the new planes would not fit before the plain promotions are
 * made. Returns whether there was one. */
static bool block_crossings(decision *d, int64_t crossing_room, int64_t *room) {
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
    return blocked;
}

/* One bit more where it is wished, as room allows. */
static void promote(decision *d, int64_t *room) {
    int64_t before = *room;
    for (size_t i = 0; i < d->count; i++)
        if (d->choices[i].present != 0 && d->wishes[i] > d->choices[i].present)
            d->choices[i].highest = (uint8_t)(d->choices[i].present + 1);
    stq_spend(d->choices, d->links, d->count, &d->steps, room);
    if (keeps_peak(d) && block_crossings(d, before, room))
        stq_spend(d->choices, d->links, d->count, &d->steps, room);
}

static bool any_replacement(const decision *d) {
    for (size_t i = 0; i < d->count; i++)
        if (d->choices[i].bits != d->choices[i].present &&
            phase(&d->choices[i], d->choices[i].present, d->choices[i].bits) == REPLACE)
            return true;
    return false;
}

/* What wishes leave over goes to anybody, by priority and one bit at most: also back to a state that was just demoted,
 * unless the room that it freed is needed while base planes are replaced. */
static void spend_rest(decision *d, int64_t *room) {
    bool return_bits = !keeps_peak(d) || !any_replacement(d);
    int64_t cheapest = INT64_MAX;
    for (size_t i = 0; i < d->count; i++) {
        stq_choice *choice = &d->choices[i];
        uint8_t more = (uint8_t)(choice->bits + 1);
        /* The step from 3 to 4 bits replaces the base plane. */
        if (choice->bits == 0 || choice->bits == 3 || more > d->policy->config.highest_bits)
            continue;
        bool same = choice->bits == choice->present && d->wishes[i] >= choice->present;
        bool demoted = choice->bits < choice->present;
        if (!same && !(demoted && return_bits))
            continue;
        choice->highest = more;
        int64_t cost = stq_choice_bytes(choice, more) - stq_choice_bytes(choice, choice->bits);
        cheapest = cost < cheapest ? cost : cheapest;
    }
    if (*room >= cheapest)
        stq_spend(d->choices, d->links, d->count, &d->steps, room);
}

/* The present widths do not fit: the budget goes by priority to the bits there are, whatever was asked for. */
static void force(decision *d) {
    int64_t room = d->budget;
    for (size_t i = 0; i < d->count; i++) {
        stq_choice *choice = &d->choices[i];
        choice->highest = choice->bits;
        if (choice->bits != 0)
            choice->bits = (uint8_t)d->policy->config.lowest_bits;
        room -= stq_choice_bytes(choice, choice->bits);
    }
    stq_spend(d->choices, d->links, d->count, &d->steps, &room);
    for (size_t i = 0; i < d->count; i++)
        d->policy->forced += d->choices[i].bits < d->choices[i].highest;
}

static void settle_requests(decision *d) {
    for (size_t i = 0; i < d->count; i++)
        if (d->choices[i].bits < d->choices[i].present)
            d->choices[i].asked = 0;
}

void stq_decision_move(decision *d) {
    int64_t room = recall(d);
    demote(d, &room);
    if (room < 0) {
        force(d);
    } else if (return_codes(d, &room)) {
        promote(d, &room);
        spend_rest(d, &room);
    }
    settle_requests(d);
}
