/* decide.c - one decision: the widths that the policy's rule wishes under the cap. */
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "policy/anneal.h"
#include "policy/decision.h"
#include "quant/shared.h"

/* Signal-to-noise ratio from which a second moment may be shared, and below which it may no longer be. */
static const double sharing_ratio = 1.0;
static const double coding_ratio = 0.5;

/* The width of all states of a policy that does not choose. */
static uint8_t common_width(const stq_policy_config *config, int state) {
    if (config->kind == STQ_POLICY_FLOAT32)
        return 32;
    return (uint8_t)(state == STQ_FIRST_MOMENT ? config->fixed_m_bits : config->fixed_v_bits);
}

/* Widths that are not a choice are carried out. */
static void take_given(decision *d, stq_policy_tensor *tensor, int state, uint8_t width) {
    tensor->target[state] = width;
    d->taken += stq_policy_state_bytes(tensor, width, d->policy->granularity);
}

/* The width now; a tensor without a gradient so far has no planes, but room is kept for them. */
static inline uint8_t present_width(const stq_policy_tensor *tensor, int state, bool decided_before) {
    uint8_t width = tensor->bits[state];
    return width == 0 && decided_before ? tensor->target[state] : width;
}

/* Whether v may be shared, and how: as it is, or along the better dimension. */
static void consider_sharing(decision *d, size_t i) {
    const stq_choices *c = &d->choices;
    const stq_policy *policy = d->policy;
    const stq_policy_tensor *tensor = &d->tensors[c->tensor[i]];
    bool automatic = policy->config.shared_v == STQ_SHARED_AUTO && !tensor->not_shared, may_share = false;
    uint32_t width = present_width(tensor, STQ_SECOND_MOMENT, policy->decisions > 0);
    stq_sharing *sharing = &c->sharing[i];
    *sharing = (stq_sharing){.shared = 0};
    if (stq_is_shared(width)) {
        sharing->shared = (uint8_t)width;
        may_share = automatic && tensor->ratio[width == STQ_BITS_SHARED_COL] >= coding_ratio;
    } else if (automatic && width != 0) {
        int better = tensor->ratio[1] > tensor->ratio[0];
        may_share = tensor->ratio[better] >= sharing_ratio;
        if (may_share)
            sharing->shared = better ? STQ_BITS_SHARED_COL : STQ_BITS_SHARED_ROW;
    }
    if (sharing->shared != 0)
        sharing->bytes = (int64_t)stq_policy_state_bytes(tensor, sharing->shared, policy->granularity);
    c->traits[i] |= (uint8_t)(STQ_TRAIT_SHARING | (may_share ? STQ_TRAIT_MAY_SHARE : 0));
    d->present += c->present[i] == 0 ? sharing->bytes : 0;
    if (may_share) {
        d->sharing = true;
        if (c->present[i] != 0 && sharing->bytes > d->reserve)
            d->reserve = sharing->bytes;
    }
}

/* Looks at the second moments that are shared or may be. */
static void list_sharing(decision *d) {
    const stq_choices *c = &d->choices;
    bool automatic = d->policy->config.shared_v == STQ_SHARED_AUTO;
    if (!automatic && !d->without_codes)
        return;
    for (size_t i = 0; i < c->count; i++)
        if (stq_choice_state(c, i) == STQ_SECOND_MOMENT && (automatic || c->present[i] == 0))
            consider_sharing(d, i);
}

/* Lists the choices of tensors `begin` to `end` - 1 and adds up their bytes and those of everything else. Nothing here
 * hands out the address of `c`, so that its arrays' addresses stay in registers. */
static void list_choices(decision *d, size_t begin, size_t end) {
    const stq_choices c = d->choices;
    const bool decided_before = d->policy->decisions > 0;
    /* Grains are powers of two as a rule, and a shift is faster than a division. */
    const int shift = (c.grain & (c.grain - 1)) == 0 ? __builtin_ctzll((unsigned long long)c.grain) : -1;
    int64_t bytes = 0, present = 0, pair_less = 0, nibble_less = 0;
    size_t count = c.count;
    bool without_codes = d->without_codes;
    for (size_t i = begin; i < end; i++) {
        stq_policy_tensor *tensor = &d->tensors[i];
        uint8_t traits;
        const int64_t bit = stq_choice_size(tensor->count, c.grain, shift, &traits);
        for (int state = 0; state < 2; state++) {
            if (tensor->given[state] != 0) {
                take_given(d, tensor, state, tensor->given[state]);
                continue;
            }
            const uint8_t width = present_width(tensor, state, decided_before);
            const uint8_t coded = stq_is_shared(width) ? 0 : width;
            c.bit[count] = bit;
            c.traits[count] = (uint8_t)(traits | state);
            c.tensor[count] = (uint32_t)i;
            c.asked[count] = tensor->asked[state];
            c.present[count] = coded;
            count++;
            without_codes |= coded == 0;
            bytes += bit;
            pair_less += stq_plane_lacks(traits, 2);
            nibble_less += stq_plane_lacks(traits, 4);
            present += coded * bit - (coded == 0 ? 0 : stq_plane_lacks(traits, coded) * c.grain);
        }
    }
    d->choices.count = count;
    d->without_codes = without_codes;
    d->present += present;
    d->bit += bytes;
    d->pair += 2 * bytes - pair_less * c.grain;
    d->nibble += 4 * bytes - nibble_less * c.grain;
}

/* Bytes of states with these planes together at `bits` bits. */
static int64_t bytes_of_all(int64_t pair, int64_t nibble, int64_t bit, uint32_t bits) {
    return bits >= 4 ? nibble + (bits - 4) * bit : pair + (bits - 2) * bit;
}

static void set_budget(decision *d, int64_t step) {
    const stq_policy *policy = d->policy;
    d->budget = (int64_t)(stq_policy_budget(policy, step) - d->taken);
    int64_t lowest = bytes_of_all(d->pair, d->nibble, d->bit, policy->config.lowest_bits);
    if (policy->config.cap_mode == STQ_CAP_PEAK && d->budget - d->reserve >= lowest)
        d->budget -= d->reserve;
}

/* The widest uniform width under the budget, as a real number between two widths; of the states that are not shared. */
static double uniform_bits(const decision *d) {
    const stq_choices *c = &d->choices;
    int64_t shared = 0, pair = d->pair, nibble = d->nibble, bit = d->bit;
    for (size_t i = 0; d->sharing && i < c->count; i++) {
        if (!stq_choice_may_share(c, i))
            continue;
        shared += c->sharing[i].bytes;
        pair -= stq_coded_bytes(c, i, 2);
        nibble -= stq_coded_bytes(c, i, 4);
        bit -= c->bit[i];
    }
    uint32_t bits = d->policy->config.lowest_bits;
    int64_t here = shared + bytes_of_all(pair, nibble, bit, bits);
    for (; bits < d->policy->config.highest_bits; bits++) {
        int64_t next = shared + bytes_of_all(pair, nibble, bit, bits + 1);
        if (next > d->budget)
            return bits + (next > here ? (double)(d->budget - here) / (double)(next - here) : 0);
        here = next;
    }
    return bits;
}

/* Zones share what is better shared than coded at `uniform` bits, the width that all states could have together. */
static void share_by_zones(decision *d, double uniform) {
    const stq_choices *c = &d->choices;
    for (size_t i = 0; d->sharing && i < c->count; i++) {
        if (!stq_choice_may_share(c, i))
            continue;
        double ratio = d->tensors[c->tensor[i]].ratio[c->sharing[i].shared == STQ_BITS_SHARED_COL];
        if (!stq_zones_share(c->present[i] == 0, ratio, uniform))
            c->traits[i] &= (uint8_t)~STQ_TRAIT_MAY_SHARE;
    }
}

/* Tensors that a pass takes at a time where two passes follow each other: they are still in the cache then. */
enum { TOGETHER = 128 };

static size_t end_of_run(size_t begin, size_t count) { return count - begin < TOGETHER ? count : begin + TOGETHER; }

/* Zones and priorities. */
static void rank(decision *d, size_t tensor_count, int64_t step) {
    stq_ranking ranking = {.policy = d->policy, .tensors = d->tensors, .choices = &d->choices, .steps = &d->steps};
    bool zones = d->policy->config.kind == STQ_POLICY_ZONES;
    if (zones) {
        double all_coded = 0;
        bool sharing = d->sharing;
        d->sharing = false;
        all_coded = uniform_bits(d);
        d->sharing = sharing;
        share_by_zones(d, all_coded);
        ranking.tau = stq_policy_tau(d->policy, step);
        ranking.uniform_bits = sharing ? uniform_bits(d) : all_coded;
    }
    if (zones)
        stq_zones_steps(&ranking);
    else
        stq_distortion_steps(&ranking);
    size_t first = 0;
    for (size_t begin = 0; begin < tensor_count;) {
        size_t end = end_of_run(begin, tensor_count), last = first;
        stq_policy_set_zones(d->policy, d->tensors + begin, end - begin);
        while (last < d->choices.count && d->choices.tensor[last] < end)
            last++;
        if (zones)
            stq_zones_rank(&ranking, first, last);
        else
            stq_distortion_rank(&ranking, first, last);
        begin = end;
        first = last;
    }
}

/* The whole budget by priority, as if there were no widths yet. */
static void wish(decision *d) {
    const stq_choices *c = &d->choices;
    const stq_policy_config *config = &d->policy->config;
    int64_t room = d->budget - bytes_of_all(d->pair, d->nibble, d->bit, config->lowest_bits);
    memset(c->bits, (int)config->lowest_bits, c->count);
    memset(c->highest, (int)config->highest_bits, c->count);
    for (size_t i = 0; d->sharing && i < c->count; i++)
        if (stq_choice_may_share(c, i)) {
            room += stq_coded_bytes(c, i, config->lowest_bits) - c->sharing[i].bytes;
            c->bits[i] = 0;
        }
    stq_choice_list all = {.count = c->count, .alike = !d->sharing};
    stq_spend(c, all, d->links, &d->steps, &room);
    if (config->kind == STQ_POLICY_RATE_DISTORTION)
        stq_exchange(c, &d->steps, config->lowest_bits, &room);
    memcpy(c->wish, c->bits, c->count);
    d->chosen = d->budget - room;
}

/* No state has a width yet. */
static bool is_first(const decision *d) {
    const stq_choices *c = &d->choices;
    bool shared = c->count > 0 && (c->traits[0] & STQ_TRAIT_SHARING) != 0 && c->sharing[0].shared != 0;
    return c->count == 0 || (c->present[0] == 0 && !shared);
}

static void finish(decision *d, int64_t step) {
    const stq_choices copy = d->choices, *c = &copy;
    stq_policy_tensor *tensors = d->tensors;
    for (size_t i = 0; i < c->count; i++) {
        stq_policy_tensor *tensor = &tensors[c->tensor[i]];
        uint8_t bits = c->bits[i], traits = c->traits[i];
        if (bits == 0)
            bits = traits & STQ_TRAIT_SHARING ? c->sharing[i].shared : 0;
        tensor->target[traits & STQ_TRAIT_STATE] = bits;
        tensor->asked[traits & STQ_TRAIT_STATE] = c->asked[i];
    }
    d->policy->last_bytes = d->taken + (uint64_t)d->chosen;
    d->policy->last_step = step;
    d->policy->decisions++;
}

/* Takes the next `bytes` of a block. */
static void *carve(uint8_t **from, size_t bytes) {
    void *taken = *from;
    *from += bytes;
    return taken;
}

/* One block for the arrays of up to `count` choices, the widest elements first. */
static bool allocate(decision *d, size_t count) {
    stq_choices *c = &d->choices;
    uint8_t *block = malloc((count + 1) * (sizeof *c->bit + sizeof *c->sharing + 3 * sizeof(uint32_t) +
                                           sizeof *c->rank + 6 * sizeof(uint8_t)));
    d->memory = block;
    if (block == NULL)
        return false;
    c->sharing = carve(&block, (count + 1) * sizeof *c->sharing);
    c->bit = carve(&block, (count + 1) * sizeof *c->bit);
    c->tensor = carve(&block, (count + 1) * sizeof *c->tensor);
    d->links = carve(&block, (count + 1) * sizeof *d->links);
    d->list = carve(&block, (count + 1) * sizeof *d->list);
    c->rank = carve(&block, (count + 1) * sizeof *c->rank);
    uint8_t **bytes[] = {&c->traits, &c->present, &c->wish, &c->bits, &c->highest, &c->asked};
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++)
        *bytes[i] = carve(&block, count + 1);
    c->grain = (int64_t)d->policy->granularity;
    return true;
}

/* Lists what there is to choose and takes the factors in. */
static void list_and_measure(decision *d, size_t tensor_count, stq_measure *measure) {
    for (size_t begin = 0, end; begin < tensor_count; begin = end) {
        end = end_of_run(begin, tensor_count);
        list_choices(d, begin, end);
        stq_policy_add_factors(measure, d->tensors + begin, end - begin);
    }
}

static void carry_out(decision *d, size_t tensor_count) {
    for (size_t i = 0; i < tensor_count; i++)
        for (int state = 0; state < 2; state++) {
            stq_policy_tensor *tensor = &d->tensors[i];
            uint8_t given = tensor->given[state];
            take_given(d, tensor, state, given ? given : common_width(&d->policy->config, state));
        }
}

stq_status stq_policy_decide(stq_policy *policy, stq_policy_tensor *tensors, size_t count, int64_t step) {
    decision d = {.policy = policy, .tensors = tensors, .taken = policy->fixed_bytes};
    if (!allocate(&d, 2 * count))
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to decide the widths of %zu tensors.", count);
    if (policy->decisions > 0)
        policy->spent += (double)policy->last_bytes * (double)(step - policy->last_step);
    if (stq_policy_chooses(&policy->config)) {
        stq_measure measure = {0};
        list_and_measure(&d, count, &measure);
        list_sharing(&d);
        set_budget(&d, step);
        stq_policy_average(policy, &measure);
        rank(&d, count, step);
        wish(&d);
        if (!is_first(&d))
            stq_decision_move(&d);
    } else {
        carry_out(&d, count);
    }
    finish(&d, step);
    free(d.memory);
    return STQ_OK;
}
