/* project.c - a bucketed greedy. */
#include "policy/project.h"

#include <math.h>
#include <string.h>

/* A bucket for each sum of a priority and a gain. */
enum { PRIORITIES = STQ_PRIORITIES, BUCKETS = 2 * PRIORITIES };

#define NOTHING UINT32_MAX

typedef struct buckets {
    uint32_t first[BUCKETS];
    union {
        int64_t bytes[BUCKETS]; /* of all steps */
        int64_t least[BUCKETS]; /* of the cheapest in the list, or less; nothing where the list is empty */
    };
} buckets;

static inline size_t index_of(stq_choice_list list, size_t k) { return list.index ? list.index[k] : k; }

static inline int bucket_of_coded_step(const stq_choices *c, size_t i, const stq_steps *steps, uint32_t bits) {
    uint32_t rank = c->rank[i];
    return PRIORITIES / 2 + (int)(rank % PRIORITIES) + steps->gain[rank / PRIORITIES][bits];
}

static inline int bucket_of_step(const stq_choices *c, size_t i, const stq_steps *steps, uint32_t bits) {
    if (bits == 0)
        return PRIORITIES / 2 + c->rank[i] % PRIORITIES + c->sharing[i].return_gain;
    return bucket_of_coded_step(c, i, steps, bits);
}

/* The width one step above `bits`. */
static inline uint8_t above(const stq_choices *c, size_t i, uint32_t bits) {
    return (uint8_t)(bits == 0 ? c->sharing[i].landing : bits + 1);
}

/* Grains that the step from 3 to 4 bits costs less than a bit plane. */
static inline int crossing_discount(const stq_choices *c, size_t i) {
    return (c->traits[i] >> STQ_TRAIT_NIBBLE) - (c->traits[i] >> STQ_TRAIT_PAIR & 3);
}

/* What the step from `bits` costs. */
static inline int64_t step_bytes(const stq_choices *c, size_t i, uint32_t bits) {
    if (bits == 0)
        return stq_coded_bytes(c, i, c->sharing[i].landing) - c->sharing[i].bytes;
    return c->bit[i] - (bits == 3) * crossing_discount(c, i) * c->grain;
}

/* Choices that all have the same steps before them, by rank: two sums of bytes a choice instead of one for each step,
 * and one table of the widths that are paid for. */
typedef struct common_steps {
    uint32_t lowest;
    uint32_t highest;
    struct {
        int64_t bit;              /* bytes of one bit plane */
        int64_t discount;         /* grains that the step from 3 to 4 costs less */
    } sums[2 * PRIORITIES];       /* by rank */
    uint8_t paid[2 * PRIORITIES]; /* width up to which the steps are above the edge */
} common_steps;

static void add_common_steps(common_steps *common, const stq_choices *choices, const stq_steps *steps, buckets *b) {
    const stq_choices copy = *choices, *c = &copy;
    memset(common->sums, 0, sizeof common->sums);
    for (size_t i = 0; i < c->count; i++) {
        common->sums[c->rank[i]].bit += c->bit[i];
        common->sums[c->rank[i]].discount += crossing_discount(c, i);
    }
    for (int state = 0; state < 2; state++)
        for (uint32_t bits = common->lowest; bits < common->highest; bits++) {
            int64_t *to = b->bytes + PRIORITIES / 2 + steps->gain[state][bits], factor = bits == 3 ? c->grain : 0;
            for (int i = 0; i < PRIORITIES; i++) {
                int rank = state * PRIORITIES + i;
                to[i] += common->sums[rank].bit - factor * common->sums[rank].discount;
            }
        }
}

static void add_steps(const stq_choices *choices, stq_choice_list list, const stq_steps *steps, buckets *b) {
    const stq_choices copy = *choices, *c = &copy;
    for (size_t k = 0; k < list.count; k++) {
        size_t i = index_of(list, k);
        uint32_t bits = c->bits[i];
        if (bits >= c->highest[i])
            continue;
        if (bits == 0) {
            b->bytes[bucket_of_step(c, i, steps, 0)] += step_bytes(c, i, 0);
            bits = c->sharing[i].landing;
        }
        for (; bits < c->highest[i]; bits++)
            b->bytes[bucket_of_step(c, i, steps, bits)] += step_bytes(c, i, bits);
    }
}

/* Gains fall with the width. */
static void find_paid_widths(common_steps *common, const stq_steps *steps, int edge) {
    memset(common->paid, (int)common->lowest, sizeof common->paid);
    for (int state = 0; state < 2; state++)
        for (uint32_t bits = common->lowest; bits < common->highest; bits++) {
            int paid_from = edge + 1 - PRIORITIES / 2 - steps->gain[state][bits];
            for (int i = paid_from > 0 ? paid_from : 0; i < PRIORITIES; i++)
                common->paid[state * PRIORITIES + i]++;
        }
}

/* Puts choice i, whose next step costs `cost`, at the head of a bucket's list. */
static void push(uint32_t *links, size_t i, int64_t cost, buckets *b, int bucket) {
    b->least[bucket] = b->first[bucket] == NOTHING || cost < b->least[bucket] ? cost : b->least[bucket];
    links[i] = b->first[bucket];
    b->first[bucket] = (uint32_t)i;
}

/* Raises the choices by their steps above bucket `edge`, which are paid for; lists those that have one in it. Passes
 * over long lists work on a copy of the arrays' addresses: a store of a byte could change those of another structure,
 * for all that the compiler knows. */
static void raise_common(common_steps *common, const stq_choices *choices, uint32_t *links, const stq_steps *steps,
                         int edge, buckets *b) {
    const stq_choices copy = *choices, *c = &copy;
    find_paid_widths(common, steps, edge);
    for (size_t i = c->count; i-- > 0;) {
        uint32_t bits = common->paid[c->rank[i]];
        c->bits[i] = (uint8_t)bits;
        /* The rarer condition first. */
        if (bucket_of_coded_step(c, i, steps, bits) == edge && bits < common->highest)
            push(links, i, step_bytes(c, i, bits), b, edge);
    }
}

static void raise_choices(const stq_choices *choices, stq_choice_list list, uint32_t *links, const stq_steps *steps,
                          int edge, buckets *b) {
    const stq_choices copy = *choices, *c = &copy;
    for (size_t k = list.count; k-- > 0;) {
        size_t i = index_of(list, k);
        uint32_t bits = c->bits[i];
        while (bits < c->highest[i] && bucket_of_step(c, i, steps, bits) > edge)
            bits = above(c, i, bits);
        c->bits[i] = (uint8_t)bits;
        if (bits < c->highest[i] && bucket_of_step(c, i, steps, bits) == edge)
            push(links, i, step_bytes(c, i, bits), b, edge);
    }
}

/* Takes the steps of one bucket, and further ones of the same choices down to bucket `lowest`, where they fit. */
static void take_bucket(const stq_choices *c, uint32_t *links, const stq_steps *steps, buckets *b, int bucket,
                        int lowest, int64_t *room) {
    while (b->first[bucket] != NOTHING && *room >= b->least[bucket]) {
        uint32_t i = b->first[bucket];
        b->first[bucket] = links[i];
        int64_t cost = step_bytes(c, i, c->bits[i]);
        if (cost > *room)
            continue;
        *room -= cost;
        c->bits[i] = above(c, i, c->bits[i]);
        if (c->bits[i] >= c->highest[i])
            continue;
        int next = bucket_of_step(c, i, steps, c->bits[i]);
        next = next < bucket ? next : bucket;
        if (next >= lowest)
            push(links, i, step_bytes(c, i, c->bits[i]), b, next);
    }
}

/* Lists the steps that fit into what is left. Few do, so that few lists have to be made. */
static void list_what_fits(const stq_choices *choices, stq_choice_list list, uint32_t *links, const stq_steps *steps,
                           buckets *b, int64_t room) {
    const stq_choices copy = *choices, *c = &copy;
    /* No step between coded widths costs less than this above its bit plane. */
    const int64_t bound = room + 3 * c->grain;
    for (size_t k = list.count; k-- > 0;) {
        size_t i = index_of(list, k);
        if (c->bit[i] > bound && c->bits[i] != 0)
            continue;
        uint32_t bits = c->bits[i];
        if (bits < c->highest[i] && step_bytes(c, i, bits) <= room)
            push(links, i, step_bytes(c, i, bits), b, bucket_of_step(c, i, steps, bits));
    }
}

/* Takes buckets from the top that can be paid as a whole; returns the one at which that ends. */
static int pay_whole_buckets(const buckets *b, int64_t *room) {
    int edge = BUCKETS - 1;
    while (edge >= 0 && b->bytes[edge] <= *room)
        *room -= b->bytes[edge--];
    return edge;
}

void stq_spend(const stq_choices *choices, stq_choice_list list, uint32_t *links, const stq_steps *steps,
               int64_t *room) {
    if (list.count == 0)
        return;
    buckets b;
    common_steps common;
    /* For short lists the tables do not pay. */
    bool alike = list.alike && list.index == NULL && list.count >= BUCKETS;
    memset(b.bytes, 0, sizeof b.bytes);
    if (alike) {
        common.lowest = choices->bits[0];
        common.highest = choices->highest[0];
        add_common_steps(&common, choices, steps, &b);
    } else {
        add_steps(choices, list, steps, &b);
    }
    int edge = pay_whole_buckets(&b, room);
    memset(b.first, 0xff, sizeof b.first);
    if (alike)
        raise_common(&common, choices, links, steps, edge, &b);
    else
        raise_choices(choices, list, links, steps, edge, &b);
    if (edge < 0)
        return;
    take_bucket(choices, links, steps, &b, edge, edge, room);
    list_what_fits(choices, list, links, steps, &b, *room);
    for (int bucket = edge - 1; bucket >= 0; bucket--)
        take_bucket(choices, links, steps, &b, bucket, 0, room);
}

/* What the step from `bits` takes away of the loss. */
static double step_gain(const stq_choices *c, size_t i, const stq_steps *steps, uint32_t bits) {
    return (double)c->bit[i] * exp2((bucket_of_coded_step(c, i, steps, bits) - PRIORITIES) / (double)STQ_PRIORITY_UNIT);
}

/* The step up and the step down of a choice; no bytes where there is none. */
typedef struct neighbours {
    double gain, loss;
    int64_t cost, freed;
} neighbours;

/* Steps up of one or two choices and steps down of none to two others, three in all; `none` where there are fewer. */
typedef struct exchange {
    double gain; /* of all together */
    size_t up[2], down[2];
} exchange;

static void list_neighbours(const stq_choices *c, const stq_steps *steps, uint32_t lowest, neighbours *list) {
    for (size_t i = 0; i < c->count; i++) {
        uint32_t bits = c->bits[i];
        list[i] = (neighbours){0};
        if (bits != 0 && bits < c->highest[i])
            list[i] = (neighbours){.gain = step_gain(c, i, steps, bits), .cost = step_bytes(c, i, bits)};
        if (bits > lowest) {
            list[i].loss = step_gain(c, i, steps, bits - 1);
            list[i].freed = step_bytes(c, i, bits - 1);
        }
    }
    list[c->count] = (neighbours){0};
}

/* The best third step for an exchange of one up and one down (or none), a second one of either kind. */
static void try_exchange(const neighbours *list, size_t none, size_t up, size_t down, int64_t room, exchange *best) {
    double gain = list[up].gain - list[down].loss;
    int64_t bytes = list[up].cost - list[down].freed;
    if (bytes <= room && gain > best->gain)
        *best = (exchange){gain, {up, none}, {down, none}};
    if (none > STQ_TRIPLES)
        return;
    for (size_t third = 0; third < none; third++) {
        const neighbours *other = &list[third];
        if (third == up || third == down)
            continue;
        if (other->freed > 0 && bytes - other->freed <= room && gain - other->loss > best->gain)
            *best = (exchange){gain - other->loss, {up, none}, {down, third}};
        if (other->cost > 0 && bytes + other->cost <= room && gain + other->gain > best->gain)
            *best = (exchange){gain + other->gain, {up, third}, {down, none}};
    }
}

static void carry_out(const stq_choices *c, const neighbours *list, const exchange *best, int64_t *room) {
    for (int k = 0; k < 2; k++) {
        *room += list[best->down[k]].freed - list[best->up[k]].cost;
        if (best->up[k] < c->count)
            c->bits[best->up[k]]++;
        if (best->down[k] < c->count)
            c->bits[best->down[k]]--;
    }
}

void stq_exchange(const stq_choices *choices, const stq_steps *steps, uint32_t lowest, int64_t *room) {
    neighbours list[STQ_EXCHANGES + 1];
    size_t none = choices->count;
    if (none > STQ_EXCHANGES)
        return;
    for (size_t round = 0; round < none; round++) {
        exchange best = {.gain = 0};
        list_neighbours(choices, steps, lowest, list);
        for (size_t up = 0; up < none; up++)
            for (size_t down = 0; list[up].cost > 0 && down <= none; down++)
                if (up != down && (down == none || list[down].freed > 0))
                    try_exchange(list, none, up, down, *room, &best);
        if (best.gain <= 0)
            return;
        carry_out(choices, list, &best, room);
    }
}
