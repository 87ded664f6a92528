/*
 * state.c - the optimizer's state, out and in: records, and the list of buffers. Records come from files, so that
 * nothing in them is trusted.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "optim/optimizer.h"
#include "quant/shared.h"

_Static_assert(sizeof(stq_adamw_record) == 128, "the record's layout is public");
_Static_assert(sizeof(stq_tensor_record) == 88, "the record's layout is public");

static unsigned ratio_class(double ratio) { return ratio >= 1 ? 2 : ratio >= 0.5 ? 1 : 0; }

static void save_tensor(const stq_adamw *o, size_t i, stq_tensor_record *record) {
    const stq_policy_tensor *decided = &o->decided[i];
    *record = (stq_tensor_record){
        .zone = decided->zone, .missed = o->missed[i], .last_log_n = decided->last_log_n, .factors = decided->factors};
    record->bits[STQ_FIRST_MOMENT] = (uint8_t)o->store.items[i].m_in.bits;
    record->bits[STQ_SECOND_MOMENT] = (uint8_t)o->store.items[i].v_in.bits;
    for (int state = 0; state < 2; state++) {
        record->target[state] = o->targets[i][state];
        record->asked[state] = decided->asked[state];
    }
    if (o->pending_step != 0)
        record->sharing = (uint8_t)(ratio_class(decided->ratio[0]) | ratio_class(decided->ratio[1]) << 2 |
                                    (decided->ratio[1] > decided->ratio[0]) << 4);
}

/* Ratios that a policy takes as it would take those behind the classes. */
static void restore_ratios(double ratio[2], uint8_t sharing) {
    static const double values[4] = {0, 0.5, 1, 1};
    ratio[0] = values[sharing & 3];
    ratio[1] = values[sharing >> 2 & 3];
    if ((sharing >> 4 & 1) && ratio[1] <= ratio[0])
        ratio[1] = 1.5 * ratio[0];
}

static stq_status check_count(const stq_adamw *o, size_t tensor_count) {
    if (tensor_count == o->tensor_count)
        return STQ_OK;
    return stq_error(STQ_INVALID_ARGUMENT, "%zu tensor records for an optimizer over %zu tensors.", tensor_count,
                     o->tensor_count);
}

stq_status stq_adamw_save_records(const stq_adamw *o, stq_adamw_record *record, stq_tensor_record *tensors,
                                  size_t tensor_count) {
    STQ_CHECK(stq_adamw_settle(o));
    STQ_CHECK(check_count(o, tensor_count));
    const stq_policy *policy = &o->policy;
    *record = (stq_adamw_record){
        .version = STQ_RECORD_VERSION,
        .steps = o->steps,
        .skipped = o->skipped,
        .seed = o->seed,
        .peak_bytes = o->store.pool.peak,
        .bits_sum = o->bits_sum,
        .decisions = policy->decisions,
        .forced = policy->forced,
        .last_step = policy->last_step,
        .last_bytes = policy->last_bytes,
        .spent = policy->spent,
        .log_n_average = policy->log_n_average,
        .log_r_average = policy->log_r_average,
        .log_n_peak = policy->log_n_peak,
        .volatility_average = policy->volatility_average,
        .reheating = policy->reheating,
    };
    if (o->pending_step != 0)
        record->pending =
            (uint32_t)(o->pending_attempt - o->steps - o->skipped) | (uint32_t)(o->steps - o->pending_step) << 8;
    for (size_t i = 0; i < tensor_count; i++)
        save_tensor(o, i, &tensors[i]);
    return STQ_OK;
}

/* Logarithms of doubles, and what is made of them, lie far inside this. */
static bool is_logarithm(double x) { return isnan(x) || fabs(x) <= 1000.0; }

/* Sums of a few counts are counts, too. */
static bool is_count(int64_t count) { return count >= 0 && count <= INT64_MAX / 4; }

static stq_status check_record(const stq_adamw_record *record) {
    if (record->version != STQ_RECORD_VERSION)
        return stq_error(STQ_UNSUPPORTED, "The optimizer's record has version %u; this library reads version %d.",
                         record->version, STQ_RECORD_VERSION);
    if (!is_count(record->steps) || !is_count(record->skipped))
        return stq_error(STQ_CORRUPT, "The optimizer's record counts %lld steps and %lld skipped ones.",
                         (long long)record->steps, (long long)record->skipped);
    uint32_t ahead = record->pending & 0xff, ago = record->pending >> 8;
    if (record->pending != 0 &&
        (ahead < 1 || ahead > STQ_LARGEST_DELAY || ago >= STQ_LARGEST_DELAY || ago >= record->steps))
        return stq_error(STQ_CORRUPT, "The optimizer's record has a decision %u steps ago, to be made in %u, of %lld.",
                         ago, ahead, (long long)record->steps);
    if (!is_count(record->decisions) || !is_count(record->forced) || record->last_step < 0 ||
        record->last_step > record->steps + 1 || record->last_bytes > INT64_MAX)
        return stq_error(
            STQ_CORRUPT,
            "The optimizer's record counts %lld decisions, the last at step %lld of %lld, and %lld forced demotions.",
            (long long)record->decisions, (long long)record->last_step, (long long)record->steps,
            (long long)record->forced);
    if (!is_logarithm(record->log_n_average) || !is_logarithm(record->log_r_average) ||
        !is_logarithm(record->log_n_peak))
        return stq_error(STQ_CORRUPT, "The optimizer's record has averages of log n and log r of %g and %g, peak %g.",
                         record->log_n_average, record->log_r_average, record->log_n_peak);
    if (!(record->reheating >= 0 && record->reheating <= 1) || record->volatility_average < 0 ||
        isinf(record->volatility_average))
        return stq_error(STQ_CORRUPT, "The optimizer's record has a reheating of %g and a mean volatility of %g.",
                         record->reheating, record->volatility_average);
    if (!(record->bits_sum >= 0 && record->bits_sum < 1e30) || !(record->spent >= 0 && record->spent < 1e30))
        return stq_error(STQ_CORRUPT, "The optimizer's record has sums of %g bits and %g bytes.", record->bits_sum,
                         record->spent);
    return STQ_OK;
}

static bool is_width(uint32_t bits, int state) {
    return bits == 0 || stq_is_coded(bits) || bits == STQ_BITS_FLOAT32 ||
           (state == STQ_SECOND_MOMENT && stq_is_shared(bits));
}

static bool factors_are_finite(const stq_factors *f) {
    return isfinite(f->n) && f->n >= 0 && isfinite(f->r) && (f->r > 0 || (f->r == 0 && f->n == 0)) &&
           isfinite(f->sharpness) && isfinite(f->kurtosis) && isfinite(f->row_spread) && isfinite(f->near_zero) &&
           isfinite(f->volatility) && isfinite(f->depth);
}

static stq_status check_tensor_record(const stq_adamw *o, size_t i, const stq_adamw_record *record,
                                      const stq_tensor_record *tensor) {
    const char *name = o->tensors[i].name;
    for (int state = 0; state < 2; state++)
        if (!is_width(tensor->bits[state], state) || !is_width(tensor->target[state], state) ||
            (tensor->bits[state] == 0) != (record->steps == tensor->missed) ||
            (tensor->bits[state] == STQ_BITS_FLOAT32) != (tensor->bits[0] == STQ_BITS_FLOAT32))
            return stq_error(STQ_CORRUPT, "Tensor '%s': widths %u and %u (targets %u and %u) after %lld steps.", name,
                             tensor->bits[0], tensor->bits[1], tensor->target[0], tensor->target[1],
                             (long long)record->steps);
    if (tensor->missed < 0 || tensor->missed > record->steps)
        return stq_error(STQ_CORRUPT, "Tensor '%s' missed %lld of %lld steps.", name, (long long)tensor->missed,
                         (long long)record->steps);
    if (tensor->zone > STQ_ZONE_REDUNDANT)
        return stq_error(STQ_CORRUPT, "Tensor '%s': there is no zone %u.", name, tensor->zone);
    if (!is_logarithm(tensor->last_log_n) || !factors_are_finite(&tensor->factors))
        return stq_error(STQ_CORRUPT, "Tensor '%s': its factors are not finite.", name);
    return STQ_OK;
}

static stq_status check_records(const stq_adamw *o, const stq_adamw_record *record, const stq_tensor_record *tensors,
                                size_t tensor_count) {
    STQ_CHECK(check_count(o, tensor_count));
    STQ_CHECK(check_record(record));
    for (size_t i = 0; i < tensor_count; i++)
        STQ_CHECK(check_tensor_record(o, i, record, &tensors[i]));
    return STQ_OK;
}

/* ---- Widths that this optimizer can hold ---- */

/* Second moments are shared on whole tensors only, and the same on every rank: not where a tensor is cut. */
static bool may_share(const stq_adamw *o) {
    if (o->policy.config.shared_v != STQ_SHARED_AUTO)
        return false;
    for (size_t i = 0; i < o->tensor_count; i++)
        if (o->tensors[i].count != o->decided[i].count)
            return false;
    return true;
}

static bool width_is_held(const stq_adamw *o, bool share, size_t i, int state, uint32_t bits) {
    const stq_policy_config *policy = &o->policy.config;
    uint32_t given = o->decided[i].given[state];
    if (o->exempt[i])
        return bits == STQ_BITS_FLOAT32;
    if (given != 0)
        return bits == given;
    if (policy->kind == STQ_POLICY_FIXED)
        return bits == (state == STQ_FIRST_MOMENT ? policy->fixed_m_bits : policy->fixed_v_bits);
    if (stq_is_shared(bits))
        return share;
    return bits >= policy->lowest_bits && bits <= policy->highest_bits;
}

/* A tensor without a gradient so far has no planes, but room is kept for them. */
static uint32_t kept_width(const stq_tensor_record *tensor, int state) {
    return tensor->bits[state] ? tensor->bits[state] : tensor->target[state];
}

static bool fits(const stq_adamw *o, const stq_tensor_record *tensors) {
    uint64_t bytes = o->policy.fixed_bytes;
    bool share = may_share(o);
    for (size_t i = 0; i < o->tensor_count; i++)
        for (int state = 0; state < 2; state++) {
            uint32_t bits = kept_width(&tensors[i], state);
            if (!width_is_held(o, share, i, state, bits))
                return false;
            bytes += stq_policy_state_bytes(&o->decided[i], bits, o->policy.granularity);
        }
    return o->policy.cap_bytes == 0 || o->policy.config.cap_mode == STQ_CAP_MEAN || bytes <= o->policy.cap_bytes;
}

static stq_policy restored_policy(const stq_adamw *o, const stq_adamw_record *record) {
    stq_policy policy = o->policy;
    /* States that come from elsewhere have widths without a decision. */
    policy.decisions = record->decisions == 0 && record->steps > 0 ? 1 : record->decisions;
    policy.forced = record->forced;
    policy.last_step = record->last_step;
    policy.last_bytes = record->last_bytes;
    policy.spent = record->spent;
    policy.log_n_average = record->log_n_average;
    policy.log_r_average = record->log_r_average;
    policy.log_n_peak = record->log_n_peak;
    policy.volatility_average = record->volatility_average;
    policy.reheating = record->reheating;
    return policy;
}

static stq_policy_tensor restored_tensor(const stq_adamw *o, size_t i, const stq_tensor_record *record) {
    stq_policy_tensor tensor = o->decided[i];
    tensor.factors = record->factors;
    tensor.last_log_n = record->last_log_n;
    tensor.zone = record->zone;
    for (int state = 0; state < 2; state++) {
        tensor.bits[state] = record->bits[state];
        tensor.target[state] = record->target[state];
        tensor.asked[state] = record->asked[state];
    }
    restore_ratios(tensor.ratio, record->sharing);
    return tensor;
}

static uint8_t clamp_width(const stq_policy_config *config, uint32_t bits) {
    bits = bits < config->lowest_bits ? config->lowest_bits : bits;
    return (uint8_t)(bits > config->highest_bits ? config->highest_bits : bits);
}

/* Widths from which the policy can go on; a state that was float32, or shared where that is not allowed, has none. */
static bool is_point_of_departure(const stq_adamw *o, bool share, size_t i, const stq_tensor_record *tensor) {
    uint32_t v_bits = kept_width(tensor, STQ_SECOND_MOMENT);
    return o->exempt[i] ||
           (stq_is_coded(kept_width(tensor, STQ_FIRST_MOMENT)) &&
            (stq_is_coded(v_bits) || (stq_is_shared(v_bits) && width_is_held(o, share, i, STQ_SECOND_MOMENT, v_bits))));
}

/* The policy's view for a decision outside a run: from the recorded widths where all of them allow it, else free. */
static void view_tensors(const stq_adamw *o, const stq_tensor_record *tensors, stq_policy_tensor *views) {
    bool coded = true, share = may_share(o);
    for (size_t i = 0; i < o->tensor_count; i++)
        coded = coded && is_point_of_departure(o, share, i, &tensors[i]);
    for (size_t i = 0; i < o->tensor_count; i++) {
        views[i] = restored_tensor(o, i, &tensors[i]);
        for (int state = 0; state < 2; state++) {
            uint32_t kept = kept_width(&tensors[i], state);
            uint8_t bits = coded ? clamp_width(&o->policy.config, kept) : 0;
            if (coded && stq_is_shared(kept)) {
                bits = (uint8_t)kept;
                views[i].ratio[kept == STQ_BITS_SHARED_COL] = 1; /* it was worth it */
            }
            views[i].bits[state] = views[i].target[state] = bits;
        }
        if (!(views[i].factors.n > 0))
            views[i].factors = (stq_factors){.n = 1, .r = 1};
    }
}

/* Lets a copy of the policy decide, from the recorded factors. */
static stq_status choose_widths(const stq_adamw *o, const stq_adamw_record *record, stq_tensor_record *tensors) {
    stq_policy policy = restored_policy(o, record);
    stq_policy_tensor *views = calloc(o->tensor_count, sizeof *views);
    if (views == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to decide the widths of %zu tensors.", o->tensor_count);
    view_tensors(o, tensors, views);
    stq_status status = stq_policy_decide(&policy, views, o->tensor_count, record->steps);
    for (size_t i = 0; status == STQ_OK && i < o->tensor_count; i++)
        for (int state = 0; state < 2; state++) {
            uint8_t bits = o->exempt[i] ? STQ_BITS_FLOAT32 : views[i].target[state];
            tensors[i].target[state] = bits;
            tensors[i].bits[state] = tensors[i].bits[state] ? bits : 0;
            tensors[i].asked[state] = 0;
        }
    free(views);
    return status;
}

stq_status stq_adamw_fit(const stq_adamw *o, const stq_adamw_record *record, stq_tensor_record *tensors,
                         size_t tensor_count, bool *changed) {
    STQ_CHECK(check_records(o, record, tensors, tensor_count));
    bool change = record->steps > 0 && !fits(o, tensors);
    if (change) {
        STQ_CHECK(choose_widths(o, record, tensors));
        if (!fits(o, tensors))
            return stq_error(STQ_CAP_TOO_SMALL, "No widths under the cap of %llu bytes hold the saved states.",
                             (unsigned long long)o->policy.cap_bytes);
    }
    if (changed)
        *changed = change;
    return STQ_OK;
}

/* ---- Restoring ---- */

static stq_status check_held(const stq_adamw *o, const stq_adamw_record *record, const stq_tensor_record *tensors) {
    for (size_t i = 0; i < o->tensor_count; i++)
        for (int state = 0; state < 2; state++) {
            uint32_t bits = tensors[i].bits[state];
            uint32_t target = tensors[i].target[state];
            bool possible = record->steps == 0 && bits == 0 && target == 0;
            if (!possible)
                possible = o->exempt[i] ? target == STQ_BITS_FLOAT32 && (bits == 0 || bits == STQ_BITS_FLOAT32)
                                        : target != 0 && target != STQ_BITS_FLOAT32;
            if (!possible || (bits == STQ_BITS_FLOAT32 && !o->exempt[i]))
                return stq_error(STQ_CORRUPT,
                                 "Tensor '%s': %u bits (target %u) where the optimizer has %s states; use "
                                 "stq_adamw_fit() first.",
                                 o->tensors[i].name, bits, target, o->exempt[i] ? "float32" : "coded");
        }
    return STQ_OK;
}

stq_status stq_adamw_restore(stq_adamw *o, const stq_adamw_record *record, const stq_tensor_record *tensors,
                             size_t tensor_count) {
    STQ_CHECK(check_records(o, record, tensors, tensor_count));
    STQ_CHECK(check_held(o, record, tensors));
    uint8_t(*widths)[2] = calloc(tensor_count, sizeof *widths);
    if (widths == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the widths of %zu tensors.", tensor_count);
    for (size_t i = 0; i < tensor_count; i++)
        memcpy(widths[i], tensors[i].bits, sizeof widths[i]);
    stq_status status = stq_store_set_widths(&o->store, widths);
    free(widths);
    bool made = status == STQ_OK;
    if (!made && status != STQ_OUT_OF_MEMORY)
        return status;
    stq_adamw_record nothing = {
        .seed = o->seed, .log_n_average = NAN, .log_r_average = NAN, .log_n_peak = NAN, .volatility_average = NAN};
    stq_tensor_record empty = {.last_log_n = NAN};
    const stq_adamw_record *from = made ? record : &nothing;
    o->policy = restored_policy(o, from);
    o->seed = from->seed;
    o->steps = from->steps;
    o->skipped = from->skipped;
    o->bits_sum = from->bits_sum;
    o->restored++;
    o->pending_step = from->pending ? from->steps - (from->pending >> 8) : 0;
    o->pending_attempt = from->steps + from->skipped + (from->pending & 0xff);
    o->store.pool.peak = from->peak_bytes > o->store.pool.bytes ? from->peak_bytes : o->store.pool.bytes;
    for (size_t i = 0; i < tensor_count; i++) {
        o->decided[i] = restored_tensor(o, i, made ? &tensors[i] : &empty);
        o->missed[i] = made ? tensors[i].missed : 0;
        memcpy(o->targets[i], o->decided[i].target, sizeof o->targets[i]);
    }
    return status;
}

/* ---- Buffers ---- */

const char *stq_part_name(stq_state state, stq_part part) {
    static const char *const names[2][8] = {
        {"m.base", "m.bit0", "m.bit1", "m.bit2", "m.bit3", "m.scales", "m.values", NULL},
        {"v.base", "v.bit0", "v.bit1", "v.bit2", "v.bit3", "v.scales", "v.values", "v.shared"},
    };
    if ((unsigned)state > 1 || (unsigned)part > STQ_PART_SHARED)
        return NULL;
    return names[state][part];
}

typedef struct buffer_list {
    stq_buffer *buffers;
    size_t capacity;
    size_t count;
} buffer_list;

static void list_buffer(buffer_list *list, const stq_buffer *buffer) {
    if (buffer->bytes == 0)
        return;
    if (list->count < list->capacity)
        list->buffers[list->count] = *buffer;
    list->count++;
}

static void list_state(buffer_list *list, const stq_adamw *o, size_t i, stq_state state) {
    const stq_item *item = &o->store.items[i];
    const stq_planes *planes = state == STQ_FIRST_MOMENT ? &item->m_in : &item->v_in;
    stq_buffer buffer = {.tensor = o->tensors[i].name, .index = i, .state = state};
    for (uint32_t k = 0; k < stq_plane_count(planes->bits); k++) {
        bool coded = stq_is_coded(planes->bits);
        buffer.part = coded ? (stq_part)k : STQ_PART_VALUES;
        buffer.element_size = coded ? 1 : sizeof(float);
        buffer.data = stq_plane(planes, k);
        buffer.bytes = stq_plane_bytes(item->count, planes->bits, k);
        list_buffer(list, &buffer);
    }
    if (stq_is_shared(planes->bits)) {
        buffer.part = STQ_PART_SHARED;
        buffer.element_size = sizeof(float);
        buffer.data = planes->base;
        buffer.bytes = (uint64_t)stq_shared_bytes(planes->bits, item->rows, item->cols);
        list_buffer(list, &buffer);
    }
    if (stq_is_coded(planes->bits)) {
        buffer.part = STQ_PART_SCALES;
        buffer.element_size = sizeof(uint16_t);
        buffer.data = planes->scales;
        buffer.bytes = (uint64_t)stq_block_count(item->count) * sizeof(uint16_t);
        list_buffer(list, &buffer);
    }
}

stq_status stq_adamw_buffers(const stq_adamw *o, stq_buffer *buffers, size_t capacity, size_t *count) {
    buffer_list list = {.buffers = buffers, .capacity = buffers ? capacity : 0};
    for (size_t i = 0; i < o->tensor_count; i++)
        for (int state = 0; state < 2; state++)
            list_state(&list, o, i, (stq_state)state);
    *count = list.count;
    return STQ_OK;
}
