/* project.c - a bucketed greedy. */
#include "policy/project.h"

#include <string.h>

/* In 128ths: priorities and gains from -16 to 16, and a bucket for each of their sums. */
enum { PER_UNIT = 128, PRIORITIES = 32 * PER_UNIT, BUCKETS = 2 * PRIORITIES };

#define NOTHING UINT32_MAX

typedef struct buckets {
    uint32_t first[BUCKETS];
    union {
        int64_t bytes[BUCKETS]; /* of all steps */
        int64_t least[BUCKETS]; /* of the cheapest in the list, or less; nothing where the list is empty */
    };
} buckets;

int16_t stq_priority(double value) {
    double index = (value + 16) * PER_UNIT;
    index = index > 0 ? index : 0;
    return (int16_t)((int)(index < PRIORITIES - 1 ? index : PRIORITIES - 1) - PRIORITIES / 2);
}

static int bucket_of_step(const stq_choice *choice, const stq_steps *steps, uint32_t bits) {
    return PRIORITIES + choice->priority + (bits == 0 ? choice->return_gain : steps->gain[choice->state][bits]);
}

/* The width one step above `bits`. */
static uint32_t above(const stq_choice *choice, uint32_t bits) { return bits == 0 ? choice->landing : bits + 1; }

/* What the step from `bits` costs. */
static int64_t step_bytes(const stq_choice *choice, uint32_t bits) {
    if (bits == 0)
        return stq_choice_bytes(choice, choice->landing) - choice->shared_bytes;
    return bits == 3 ? choice->nibble - choice->pair - choice->bit : choice->bit;
}

void stq_choice_sizes(stq_choice *choice, int64_t count, size_t granularity) {
    int64_t grain = (int64_t)granularity;
    int64_t unit = (int64_t)stq_plane_bytes(count, 3, 1);
    choice->bit = (unit + grain - 1) / grain * grain;
    choice->pair = (2 * unit + grain - 1) / grain * grain;
    choice->nibble = (4 * unit + grain - 1) / grain * grain;
}

/* Choices that all have the same steps before them, by priority: two sums of bytes a choice instead of one for each
 * step, and one table of the widths that are paid for. In a wish, where every coded state may get every width, that is
 * almost all. */
typedef struct common_steps {
    uint32_t lowest; /* 0 = none: for short lists it does not pay */
    uint32_t highest;
    int64_t bit[2][PRIORITIES];      /* [state]: of one bit plane */
    int64_t crossing[2][PRIORITIES]; /* of the step from 3 to 4 */
    uint8_t paid[2][PRIORITIES];     /* width up to which the steps are above the edge */
} common_steps;

static bool is_common(const common_steps *common, const stq_choice *choice) {
    return common->lowest != 0 && choice->bits == common->lowest && choice->highest == common->highest;
}

static void find_common_steps(common_steps *common, const stq_choice *choices, size_t count) {
    common->lowest = count < BUCKETS ? 0 : choices[0].bits;
    common->highest = choices[0].highest;
    if (common->lowest + 2 >= common->highest)
        common->lowest = 0;
    if (common->lowest != 0) {
        memset(common->bit, 0, sizeof common->bit);
        memset(common->crossing, 0, sizeof common->crossing);
    }
}

static void add_common_steps(const common_steps *common, const stq_steps *steps, buckets *b) {
    for (int state = 0; state < 2; state++)
        for (uint32_t bits = common->lowest; bits < common->highest; bits++) {
            const int64_t *bytes = bits == 3 ? common->crossing[state] : common->bit[state];
            int64_t *to = b->bytes + PRIORITIES / 2 + steps->gain[state][bits];
            for (int i = 0; i < PRIORITIES; i++)
                to[i] += bytes[i];
        }
}

/* Finds the buckets that can be paid as a whole, from the top; returns the one at which that ends. */
static int pay_whole_buckets(const stq_choice *choices, size_t count, const stq_steps *steps, common_steps *common,
                             buckets *b, int64_t *room) {
    find_common_steps(common, choices, count);
    memset(b->bytes, 0, sizeof b->bytes);
    for (size_t i = 0; i < count; i++) {
        const stq_choice *choice = &choices[i];
        uint32_t bits = choice->bits;
        if (bits >= choice->highest)
            continue;
        if (is_common(common, choice)) {
            common->bit[choice->state][choice->priority + PRIORITIES / 2] += choice->bit;
            common->crossing[choice->state][choice->priority + PRIORITIES / 2] += step_bytes(choice, 3);
            continue;
        }
        if (bits == 0) {
            b->bytes[bucket_of_step(choice, steps, 0)] += step_bytes(choice, 0);
            bits = choice->landing;
        }
        for (; bits < choice->highest; bits++)
            b->bytes[bucket_of_step(choice, steps, bits)] += step_bytes(choice, bits);
    }
    if (common->lowest != 0)
        add_common_steps(common, steps, b);
    int edge = BUCKETS - 1;
    while (edge >= 0 && b->bytes[edge] <= *room)
        *room -= b->bytes[edge--];
    return edge;
}

/* Gains fall with the width. */
static void find_paid_widths(common_steps *common, const stq_steps *steps, int edge) {
    for (int state = 0; state < 2; state++) {
        memset(common->paid[state], (int)common->lowest, PRIORITIES);
        for (uint32_t bits = common->lowest; bits < common->highest; bits++)
            for (int i = 0; i < PRIORITIES; i++)
                common->paid[state][i] += PRIORITIES / 2 + i + steps->gain[state][bits] > edge;
    }
}

/* Raises a choice by its steps above bucket `edge`, which are paid for. */
static void raise_choice(stq_choice *choice, const stq_steps *steps, const common_steps *common, int edge) {
    if (is_common(common, choice)) {
        choice->bits = common->paid[choice->state][choice->priority + PRIORITIES / 2];
        return;
    }
    while (choice->bits < choice->highest && bucket_of_step(choice, steps, choice->bits) > edge)
        choice->bits = (uint8_t)above(choice, choice->bits);
}

/* Puts choice i, whose next step costs `cost`, at the head of a bucket's list. */
static void push(uint32_t *links, uint32_t i, int64_t cost, buckets *b, int bucket) {
    b->least[bucket] = b->first[bucket] == NOTHING || cost < b->least[bucket] ? cost : b->least[bucket];
    links[i] = b->first[bucket];
    b->first[bucket] = i;
}

/* Takes the steps of one bucket, and further ones of the same choices down to bucket `lowest`, where they fit. */
static void take_bucket(stq_choice *choices, uint32_t *links, const stq_steps *steps, buckets *b, int bucket,
                        int lowest, int64_t *room) {
    while (b->first[bucket] != NOTHING && *room >= b->least[bucket]) {
        uint32_t i = b->first[bucket];
        stq_choice *choice = &choices[i];
        b->first[bucket] = links[i];
        int64_t cost = step_bytes(choice, choice->bits);
        if (cost > *room)
            continue;
        *room -= cost;
        choice->bits = (uint8_t)above(choice, choice->bits);
        if (choice->bits >= choice->highest)
            continue;
        int next = bucket_of_step(choice, steps, choice->bits);
        next = next < bucket ? next : bucket;
        if (next >= lowest)
            push(links, i, step_bytes(choice, choice->bits), b, next);
    }
}

void stq_spend(stq_choice *choices, uint32_t *links, size_t count, const stq_steps *steps, int64_t *room) {
    buckets b;
    common_steps common;
    int edge = pay_whole_buckets(choices, count, steps, &common, &b, room);
    if (common.lowest != 0)
        find_paid_widths(&common, steps, edge);
    memset(b.first, 0xff, sizeof b.first);
    for (size_t i = count; i-- > 0;) {
        stq_choice *choice = &choices[i];
        if (choice->bits >= choice->highest)
            continue;
        raise_choice(choice, steps, &common, edge);
        if (choice->bits < choice->highest && bucket_of_step(choice, steps, choice->bits) == edge)
            push(links, (uint32_t)i, step_bytes(choice, choice->bits), &b, edge);
    }
    if (edge < 0)
        return;
    take_bucket(choices, links, steps, &b, edge, edge, room);
    /* Few steps fit into what is left now, so that few lists have to be made. */
    for (size_t i = count; i-- > 0;) {
        const stq_choice *choice = &choices[i];
        if (choice->bits < choice->highest && step_bytes(choice, choice->bits) <= *room)
            push(links, (uint32_t)i, step_bytes(choice, choice->bits), &b, bucket_of_step(choice, steps, choice->bits));
    }
    for (int bucket = edge - 1; bucket >= 0; bucket--)
        take_bucket(choices, links, steps, &b, bucket, 0, room);
}
