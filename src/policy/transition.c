/* transition.c - from present widths towards wishes: at most one bit a decision, never above the budget. */
#include <string.h>

#include "policy/decision.h"
#include "quant/shared.h"

/* A demotion must be asked for this many times in a row. */
enum { CONFIRMATIONS = 2 };

/* Transitions of a choice, by the phase in which a store makes them. */
enum { STAY = 0, DROP = 1, REPLACE = 2, ADD = 3 };

int stq_policy_transition_phase(uint32_t from, uint32_t to) {
    bool was_shared = stq_is_shared(from);
    if (from == to || !(was_shared || stq_is_coded(from)))
        return STAY;
    if (stq_is_shared(to))
        return DROP;
    if (was_shared || (from >= 4) != (to >= 4))
        return REPLACE;
    return to < from ? DROP : ADD;
}

static int phase(const stq_choices *c, size_t i, uint32_t from, uint32_t to) {
    uint32_t shared = c->traits[i] & STQ_TRAIT_SHARING ? c->sharing[i].shared : 0;
    return stq_policy_transition_phase(from ? from : shared, to ? to : shared);
}

static bool keeps_peak(const decision *d) { return d->policy->config.cap_mode == STQ_CAP_PEAK; }

/* Starts from the present widths and counts who asks for less. Returns the choices that want another width, the only
 * ones that demotions, returns and promotions look at. */
static stq_choice_list recall(decision *d) {
    const stq_choices c = d->choices;
    const uint8_t *restrict wish = c.wish, *restrict present = c.present;
    uint8_t *restrict asked = c.asked;
    uint32_t *restrict list = d->list;
    memcpy(c.bits, present, c.count);
    memcpy(c.highest, present, c.count);
    for (size_t i = 0; i < c.count; i++) {
        uint8_t times = (uint8_t)(asked[i] + (asked[i] < UINT8_MAX));
        asked[i] = times & (uint8_t) - (wish[i] < present[i]);
    }
    size_t wanting = 0;
    for (size_t i = 0; i < c.count; i++) {
        list[wanting] = (uint32_t)i;
        wanting += wish[i] != present[i];
    }
    return (stq_choice_list){.index = list, .count = wanting};
}

/* One bit less, or shared, where it was asked for often enough. A demotion that replaces the base plane needs the new
 * planes' bytes before it frees the old ones; in peak mode it is made only if the others leave that room. */
static void demote(decision *d, stq_choice_list list, int64_t *room) {
    const stq_choices copy = d->choices, *c = &copy;
    for (int kind = DROP; kind <= REPLACE; kind++)
        for (size_t k = 0; k < list.count; k++) {
            size_t i = list.index[k];
            if (c->asked[i] < CONFIRMATIONS)
                continue;
            uint8_t less = c->wish[i] == 0 ? 0 : (uint8_t)(c->present[i] - 1);
            if (phase(c, i, c->present[i], less) != kind)
                continue;
            if (kind == REPLACE && keeps_peak(d) && stq_choice_bytes(c, i, less) > *room)
                continue;
            c->bits[i] = c->highest[i] = less;
            *room += stq_choice_bytes(c, i, c->present[i]) - stq_choice_bytes(c, i, less);
        }
}

/* Gives a shared v its codes back where that is wished. Returns false if one has to wait for room: then nobody else may
 * take what demotions free. */
static bool return_codes(decision *d, stq_choice_list list, int64_t *room) {
    const stq_choices *c = &d->choices;
    bool all = true;
    for (size_t k = 0; k < list.count; k++) {
        size_t i = list.index[k];
        if (c->present[i] != 0 || !(c->traits[i] & STQ_TRAIT_SHARING))
            continue;
        /* The means stay until the codes are written. */
        int64_t cost = stq_choice_bytes(c, i, c->sharing[i].landing);
        if (cost > *room) {
            all = false;
            continue;
        }
        c->bits[i] = c->highest[i] = c->sharing[i].landing;
        *room -= cost;
        d->chosen -= c->sharing[i].bytes;
    }
    return all;
}

/* Takes back promotions that replace the base plane where the new planes would not fit before the plain promotions are
 * made. Returns whether there was one. */
static bool block_crossings(decision *d, stq_choice_list list, int64_t crossing_room, int64_t *room) {
    const stq_choices copy = d->choices, *c = &copy;
    bool blocked = false;
    for (size_t k = 0; k < list.count; k++) {
        size_t i = list.index[k];
        if (c->present[i] != 3 || c->highest[i] != 4)
            continue;
        if (c->bits[i] != 4) {
            c->highest[i] = 3;
            continue;
        }
        int64_t cost = stq_coded_bytes(c, i, 4) - stq_coded_bytes(c, i, 3);
        if (stq_coded_bytes(c, i, 4) <= crossing_room) {
            crossing_room -= cost;
            continue;
        }
        c->bits[i] = c->highest[i] = c->present[i];
        *room += cost;
        blocked = true;
    }
    return blocked;
}

/* One bit more where it is wished, as room allows. */
static void promote(decision *d, stq_choice_list list, int64_t *room) {
    const stq_choices copy = d->choices, *c = &copy;
    int64_t before = *room;
    for (size_t k = 0; k < list.count; k++) {
        size_t i = list.index[k];
        if (c->present[i] != 0 && c->wish[i] > c->present[i])
            c->highest[i] = (uint8_t)(c->present[i] + 1);
    }
    stq_spend(c, list, d->links, &d->steps, room);
    if (keeps_peak(d) && block_crossings(d, list, before, room))
        stq_spend(c, list, d->links, &d->steps, room);
}

static bool any_replacement(const decision *d, stq_choice_list list) {
    const stq_choices copy = d->choices, *c = &copy;
    for (size_t k = 0; k < list.count; k++) {
        size_t i = list.index[k];
        if (c->bits[i] != c->present[i] && phase(c, i, c->present[i], c->bits[i]) == REPLACE)
            return true;
    }
    return false;
}

/* What wishes leave over goes to anybody, by priority and one bit at most: also back to a state that was just demoted,
 * unless the room that it freed is needed while base planes are replaced. The list of those that want another width is
 * lost. */
static void spend_rest(decision *d, stq_choice_list wanting, int64_t *room) {
    const stq_choices copy = d->choices, *c = &copy;
    bool return_bits = !keeps_peak(d) || !any_replacement(d, wanting);
    stq_choice_list list = {.index = d->list};
    const int64_t left = *room;
    const uint32_t highest_bits = d->policy->config.highest_bits;
    for (size_t i = 0; i < c->count; i++) {
        uint8_t bits = c->bits[i];
        /* The step from 3 to 4 bits replaces the base plane; every other one costs a bit plane. */
        if (c->bit[i] > left || bits == 0 || bits == 3 || bits + 1u > highest_bits)
            continue;
        bool same = bits == c->present[i] && c->wish[i] >= bits;
        bool demoted = bits < c->present[i];
        if (!same && !(demoted && return_bits))
            continue;
        c->highest[i] = (uint8_t)(bits + 1);
        d->list[list.count++] = (uint32_t)i;
    }
    stq_spend(c, list, d->links, &d->steps, room);
}

/* The present widths do not fit: the budget goes by priority to the bits there are, whatever was asked for. Returns
 * what is left of it. */
static int64_t force(decision *d) {
    const stq_choices *c = &d->choices;
    int64_t room = d->budget;
    for (size_t i = 0; i < c->count; i++) {
        c->highest[i] = c->bits[i];
        if (c->bits[i] != 0)
            c->bits[i] = (uint8_t)d->policy->config.lowest_bits;
        room -= stq_choice_bytes(c, i, c->bits[i]);
    }
    stq_spend(c, (stq_choice_list){.count = c->count}, d->links, &d->steps, &room);
    for (size_t i = 0; i < c->count; i++)
        d->policy->forced += c->bits[i] < c->highest[i];
    return room;
}

static void settle_requests(decision *d) {
    const uint8_t *restrict bits = d->choices.bits, *restrict present = d->choices.present;
    uint8_t *restrict asked = d->choices.asked;
    for (size_t i = 0; i < d->choices.count; i++)
        asked[i] &= (uint8_t) - (bits[i] >= present[i]);
}

void stq_decision_move(decision *d) {
    int64_t room = d->budget - d->present;
    stq_choice_list wanting = recall(d);
    d->chosen = 0;
    demote(d, wanting, &room);
    if (room < 0) {
        room = force(d);
    } else if (return_codes(d, wanting, &room)) {
        promote(d, wanting, &room);
        spend_rest(d, wanting, &room);
    }
    settle_requests(d);
    d->chosen += d->budget - room;
}
