/*
 * project.h - spending bytes by priority, in linear time: the projection of wished widths onto a byte budget.
 */
#ifndef STQ_PROJECT_H
#define STQ_PROJECT_H

#include "policy/policy.h"
#include "quant/layout.h"

/* What is known of a choice, in one byte of stq_choices.traits: its state (stq_state), whether v may be shared now,
 * whether stq_choices.sharing says something about it, and by how many grains its base planes, for 2 and 3 and for 4
 * to 8 bits, are smaller than two and four bit planes. */
enum { STQ_TRAIT_STATE = 1, STQ_TRAIT_MAY_SHARE = 2, STQ_TRAIT_SHARING = 4, STQ_TRAIT_PAIR = 4, STQ_TRAIT_NIBBLE = 6 };

/* A second moment that is shared or may be. */
typedef struct stq_sharing {
    int64_t bytes;       /* of the means; 0 where v is not and cannot be shared */
    int16_t return_gain; /* of the step from shared to `landing` bits; counts as every other gain */
    uint8_t shared;      /* STQ_BITS_SHARED_...: what a width of 0 stands for; 0 where v is not and cannot be shared */
    uint8_t landing;     /* the width that a shared v gets first when it is coded again */
} stq_sharing;

/* The states whose widths are to be chosen: choice i is one state of one tensor, in the order of the tensors. An array
 * for each field: most passes over the choices read a byte or two of each. Widths: 2 to 8, 0 = shared. */
typedef struct stq_choices {
    size_t count;
    int64_t grain;        /* every plane is a multiple of this */
    int64_t *bit;         /* bytes of one bit plane */
    stq_sharing *sharing; /* set where traits have STQ_TRAIT_SHARING */
    uint32_t *tensor;     /* index in the list */
    uint16_t *rank;       /* stq_rank(): the step from b to b + 1 bits has its priority + steps->gain[state][b] */
    uint8_t *traits;
    uint8_t *present; /* width now */
    uint8_t *wish;    /* the rule's width, free of history */
    uint8_t *bits;    /* width chosen so far */
    uint8_t *highest; /* bound on `bits` */
    uint8_t *asked;   /* decisions in a row that asked for a demotion */
} stq_choices;

/* Priorities of the steps, falling with b, from stq_priority() as those of the choices. */
typedef struct stq_steps {
    int16_t gain[2][STQ_HIGHEST_BITS + 1]; /* [state][b]: of the step from b to b + 1 */
} stq_steps;

/* Some of the choices, in rising order. */
typedef struct stq_choice_list {
    const uint32_t *index; /* NULL = all choices */
    size_t count;
    bool alike; /* `bits` are the same coded width for all, `highest` too */
} stq_choice_list;

/* In 128ths: priorities and gains from -16 to 16. */
enum { STQ_PRIORITY_UNIT = 128, STQ_PRIORITIES = 32 * STQ_PRIORITY_UNIT };

/* A priority or gain, in bits or octaves (-16 to 16), as an integer number of 128ths. */
static inline int16_t stq_priority(double value) {
    double index = (value + 16) * STQ_PRIORITY_UNIT;
    index = index > 0 ? index : 0;
    return (int16_t)((int)(index < STQ_PRIORITIES - 1 ? index : STQ_PRIORITIES - 1) - STQ_PRIORITIES / 2);
}

/* A state and its priority in one number. */
static inline uint16_t stq_rank(int state, int16_t priority) {
    return (uint16_t)(state * STQ_PRIORITIES + STQ_PRIORITIES / 2 + priority);
}

static inline int stq_choice_state(const stq_choices *c, size_t i) { return c->traits[i] & STQ_TRAIT_STATE; }

static inline bool stq_choice_may_share(const stq_choices *c, size_t i) {
    return (c->traits[i] & STQ_TRAIT_MAY_SHARE) != 0;
}

/* Grains by which the base plane of `bits` bits is smaller than as many bit planes. Widths are as good as random here:
 * no branch. */
static inline int stq_plane_lacks(uint8_t traits, uint32_t bits) {
    return traits >> (STQ_TRAIT_PAIR + (STQ_TRAIT_NIBBLE - STQ_TRAIT_PAIR) * (bits >= 4)) & 3;
}

/* Bytes of the planes at `bits` bits, 2 to 8. */
static inline int64_t stq_coded_bytes(const stq_choices *c, size_t i, uint32_t bits) {
    return bits * c->bit[i] - stq_plane_lacks(c->traits[i], bits) * c->grain;
}

/* The same, and of the means at 0 bits. */
static inline int64_t stq_choice_bytes(const stq_choices *c, size_t i, uint32_t bits) {
    if (bits == 0)
        return c->traits[i] & STQ_TRAIT_SHARING ? c->sharing[i].bytes : 0;
    return stq_coded_bytes(c, i, bits);
}

/* Bytes of one bit plane of `count` values, rounded up to grains of 2^shift bytes (any grain where shift < 0); `traits`
 * receives what the base planes lack. */
static inline int64_t stq_choice_size(int64_t count, int64_t grain, int shift, uint8_t *traits) {
    int64_t unit = stq_bit_plane_bytes(count), up = grain - 1;
    int64_t bit = shift >= 0 ? (unit + up) >> shift : (unit + up) / grain;
    int64_t pair = shift >= 0 ? (2 * unit + up) >> shift : (2 * unit + up) / grain;
    int64_t nibble = shift >= 0 ? (4 * unit + up) >> shift : (4 * unit + up) / grain;
    *traits = (uint8_t)((2 * bit - pair) << STQ_TRAIT_PAIR | (4 * bit - nibble) << STQ_TRAIT_NIBBLE);
    return bit * grain;
}

/*
 * Raises `bits` of the listed choices towards `highest`, one bit at a time (from shared to the landing width) in the
 * order of priority (ties in the order of the list), as long as *room bytes allow; what does not fit is passed over.
 * *room is left with what remains. O(count) time, no allocation; `links` is scratch for an index of each choice there
 * is.
 */
void stq_spend(const stq_choices *choices, stq_choice_list list, uint32_t *links, const stq_steps *steps,
               int64_t *room);

/* The most choices that stq_exchange() looks at, and looks at in threes. With more, what the greedy leaves is a small
 * share of the whole. */
enum { STQ_EXCHANGES = 128, STQ_TRIPLES = 32 };

/* Makes up for what the greedy passed over because it did not fit, among few choices: a step up for a step down of
 * another, or a second one of either kind, the best exchange first, as long as one takes more of the loss away than it
 * adds. Gains have to be logarithms of losses, as those of rate-distortion are. `lowest`: no step ends below. At most
 * `count` exchanges are made; no allocation. */
void stq_exchange(const stq_choices *choices, const stq_steps *steps, uint32_t lowest, int64_t *room);

#endif
