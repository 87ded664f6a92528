/*
 * project.h - spending bytes by priority, in linear time: the projection of wished widths onto a byte budget.
 */
#ifndef STQ_PROJECT_H
#define STQ_PROJECT_H

#include "policy/policy.h"

enum { STQ_LOWEST_BITS = 2, STQ_HIGHEST_BITS = 8 };

/* One state of one tensor whose width is to be chosen. */
typedef struct stq_choice {
    int64_t pair;         /* bytes of the base plane of widths 2 and 3 */
    int64_t nibble;       /* bytes of the base plane of widths 4 to 8 */
    int64_t bit;          /* bytes of one bit plane */
    int64_t shared_bytes; /* of a shared v */
    int16_t return_gain;  /* of the step from shared to `landing` bits; counts as every other gain */
    int16_t priority;     /* the step from b to b + 1 bits has priority + steps->gain[state][b] */
    uint32_t tensor;      /* index in the list */
    uint8_t state;        /* stq_state */
    uint8_t present;      /* width now; 0 = shared */
    uint8_t shared;       /* STQ_BITS_SHARED_...: what 0 stands for; 0 where v is not and cannot be shared */
    uint8_t landing;      /* the width that a shared v gets first when it is coded again */
    bool may_share;       /* the ratio allows it */
    uint8_t bits;         /* width chosen so far */
    uint8_t highest;      /* bound on `bits` */
    uint8_t asked;        /* decisions in a row that asked for a demotion */
} stq_choice;

/* Priorities of the steps, falling with b, from stq_priority() as stq_choice.priority. */
typedef struct stq_steps {
    int16_t gain[2][STQ_HIGHEST_BITS + 1]; /* [state][b]: of the step from b to b + 1 */
} stq_steps;

/* A priority or gain, in bits or octaves (-16 to 16), as an integer number of 128ths. */
int16_t stq_priority(double value);

/* Bytes of the planes at `bits` bits, 2 to 8, or 0 = shared. */
static inline int64_t stq_choice_bytes(const stq_choice *choice, uint32_t bits) {
    if (bits == 0)
        return choice->shared_bytes;
    return bits >= 4 ? choice->nibble + (bits - 4) * choice->bit : choice->pair + (bits - 2) * choice->bit;
}

/* Sets the plane sizes of a state of `count` values. */
void stq_choice_sizes(stq_choice *choice, int64_t count, size_t granularity);

/*
 * Raises `bits` of the choices towards `highest`, one bit at a time (from shared to the landing width) in the order of
 * priority (ties in the order of the list), as long as *room bytes allow; what does not
 * fit is passed over. *room is left with what remains. O(count) time, no allocation; `links`
 * is scratch for `count` indices.
 */
void stq_spend(stq_choice *choices, uint32_t *links, size_t count, const stq_steps *steps, int64_t *room);

#endif
