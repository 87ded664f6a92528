/* project.c - a bucketed greedy. */
#include "policy/project.h"

#include <string.h>

/* Priorities from -32 to 32 in steps of 1/128. */
enum { BUCKETS = 8192, PER_UNIT = 128 };

#define NOTHING UINT32_MAX

typedef struct buckets {
    uint32_t first[BUCKETS];
    int64_t bytes[BUCKETS];
} buckets;

static int bucket_of(float priority) {
    float index = (priority + 32.0f) * PER_UNIT;
    if (!(index > 0))
        return 0;
    return index < BUCKETS - 1 ? (int)index : BUCKETS - 1;
}

static int bucket_of_step(const stq_choice *choice, const stq_steps *steps, uint32_t bits) {
    return bucket_of(choice->priority + (bits == 0 ? choice->return_gain : steps->gain[choice->state][bits]));
}

int64_t stq_choice_bytes(const stq_choice *choice, uint32_t bits) {
    if (bits == 0)
        return choice->shared_bytes;
    return bits >= 4 ? choice->nibble + (bits - 4) * choice->bit : choice->pair + (bits - 2) * choice->bit;
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

/* Takes all steps of the buckets that fit as a whole, from the top; returns the bucket at which that ends. */
static int take_whole_buckets(stq_choice *choices, size_t count, const stq_steps *steps, buckets *b, int64_t *room) {
    memset(b->bytes, 0, sizeof b->bytes);
    for (size_t i = 0; i < count; i++)
        for (uint32_t bits = choices[i].bits; bits < choices[i].highest; bits = above(&choices[i], bits))
            b->bytes[bucket_of_step(&choices[i], steps, bits)] += step_bytes(&choices[i], bits);
    int edge = BUCKETS - 1;
    while (edge >= 0 && b->bytes[edge] <= *room)
        *room -= b->bytes[edge--];
    for (size_t i = 0; i < count; i++)
        while (choices[i].bits < choices[i].highest && bucket_of_step(&choices[i], steps, choices[i].bits) > edge)
            choices[i].bits = (uint8_t)above(&choices[i], choices[i].bits);
    return edge;
}

/* Puts a choice's next step at the head of its bucket, or of `current` where the order of steps would be broken. */
static void push(stq_choice *choices, uint32_t i, const stq_steps *steps, buckets *b, int current) {
    int bucket = bucket_of_step(&choices[i], steps, choices[i].bits);
    bucket = bucket < current ? bucket : current;
    choices[i].next = b->first[bucket];
    b->first[bucket] = i;
}

/* Step by step from bucket `edge` down. */
static void take_single_steps(stq_choice *choices, size_t count, const stq_steps *steps, buckets *b, int edge,
                              int64_t *room) {
    memset(b->first, 0xff, sizeof b->first);
    int64_t cheapest = INT64_MAX;
    for (size_t i = count; i-- > 0;)
        if (choices[i].bits < choices[i].highest) {
            push(choices, (uint32_t)i, steps, b, edge);
            for (uint32_t bits = choices[i].bits; bits < choices[i].highest; bits = above(&choices[i], bits))
                cheapest = step_bytes(&choices[i], bits) < cheapest ? step_bytes(&choices[i], bits) : cheapest;
        }
    for (int bucket = edge; bucket >= 0 && *room >= cheapest; bucket--)
        while (b->first[bucket] != NOTHING) {
            uint32_t i = b->first[bucket];
            stq_choice *choice = &choices[i];
            b->first[bucket] = choice->next;
            int64_t cost = step_bytes(choice, choice->bits);
            if (cost > *room)
                continue;
            *room -= cost;
            choice->bits = (uint8_t)above(choice, choice->bits);
            if (choice->bits < choice->highest)
                push(choices, i, steps, b, bucket);
        }
}

void stq_spend(stq_choice *choices, size_t count, const stq_steps *steps, int64_t *room) {
    buckets b;
    int edge = take_whole_buckets(choices, count, steps, &b, room);
    if (edge >= 0)
        take_single_steps(choices, count, steps, &b, edge, room);
}
