/* query.c - what an optimizer tells about itself: bytes, widths, groups, counts, a digest; and the plan of one that
 * does not exist yet. */
#include <stdlib.h>

#include "common/error.h"
#include "optim/optimizer.h"
#include "quant/shared.h"

static double all_in_bits(uint64_t bytes, uint64_t parameters) {
    return parameters == 0 ? 0.0 : 4.0 * (double)bytes / (double)parameters;
}

stq_status stq_adamw_memory(const stq_adamw *o, stq_memory *memory) {
    const stq_pool *pool = &o->store.pool;
    STQ_CHECK(stq_adamw_settle(o));
    *memory = (stq_memory){
        .parameters = o->parameters,
        .state_bytes = pool->bytes,
        .peak_bytes = pool->peak,
        .cap_bytes = o->policy.cap_bytes,
        .smallest_bytes = o->policy.smallest_bytes,
        .all_in_bits = o->steps > 0 ? o->bits_sum / (double)o->steps : 0.0,
        .final_bits = all_in_bits(pool->bytes, o->parameters),
        .peak_bits = all_in_bits(pool->peak, o->parameters),
    };
    return STQ_OK;
}

static uint64_t state_bytes(const stq_adamw *o, size_t index, const stq_planes *planes) {
    int64_t count = o->tensors[index].count;
    uint64_t bytes = planes->scales ? (uint64_t)stq_block_count(count) * sizeof(uint16_t) : 0;
    for (uint32_t k = 0; k < stq_plane_count(planes->bits); k++)
        bytes += stq_plane_bytes(count, planes->bits, k);
    if (stq_is_shared(planes->bits))
        bytes += (uint64_t)stq_shared_bytes(planes->bits, o->tensors[index].rows, o->tensors[index].cols);
    return bytes;
}

stq_status stq_adamw_tensor(const stq_adamw *o, size_t index, stq_tensor_info *info) {
    if (index >= o->tensor_count)
        return stq_error(STQ_INVALID_ARGUMENT, "There is no tensor %zu; there are %zu.", index, o->tensor_count);
    const stq_item *item = &o->store.items[index];
    *info = (stq_tensor_info){
        .name = o->tensors[index].name,
        .m_bits = item->m_in.bits,
        .v_bits = item->v_in.bits,
        .bytes = state_bytes(o, index, &item->m_in) + state_bytes(o, index, &item->v_in),
        .zone = (stq_zone)o->decided[index].zone,
        .factors = o->decided[index].factors,
    };
    return STQ_OK;
}

stq_status stq_adamw_get_group(const stq_adamw *o, size_t index, stq_adamw_group *group) {
    if (index >= o->group_count)
        return stq_error(STQ_INVALID_ARGUMENT, "There is no group %zu; there are %zu.", index, o->group_count);
    *group = o->groups[index];
    return STQ_OK;
}

int64_t stq_adamw_step_count(const stq_adamw *o) {
    (void)stq_adamw_settle(o);
    return o->steps;
}

double stq_adamw_decision_seconds(const stq_adamw *o) { return o->decision_seconds; }

int64_t stq_adamw_skipped_count(const stq_adamw *o) {
    (void)stq_adamw_settle(o);
    return o->skipped;
}

stq_status stq_adamw_plan(const stq_adamw_config *config, const stq_tensor *tensors, size_t tensor_count,
                          stq_memory *memory) {
    stq_adamw *o;
    STQ_CHECK(stq_adamw_prepare(&o, config, tensors, tensor_count));
    for (size_t i = 0; i < tensor_count; i++)
        o->decided[i].factors = (stq_factors){.n = 1, .r = 1};
    stq_status status = stq_policy_decide(&o->policy, o->decided, tensor_count, 1);
    if (status == STQ_OK) {
        uint64_t bytes = o->policy.fixed_bytes;
        for (size_t i = 0; i < tensor_count; i++)
            for (int state = 0; state < 2; state++)
                bytes += stq_policy_state_bytes(&o->decided[i], o->decided[i].target[state], o->policy.granularity);
        double bits = all_in_bits(bytes, o->parameters);
        *memory = (stq_memory){.parameters = o->parameters,
                               .state_bytes = bytes,
                               .peak_bytes = bytes,
                               .cap_bytes = o->policy.cap_bytes,
                               .smallest_bytes = o->policy.smallest_bytes,
                               .all_in_bits = bits,
                               .final_bits = bits,
                               .peak_bits = bits};
    }
    stq_adamw_destroy(o);
    return status;
}

/* Eight bytes at a time: xor, odd multiplication, fold (the step of Fowler, Noll and Vo, widened). */
static uint64_t mix(uint64_t digest, uint64_t word) {
    digest = (digest ^ word) * UINT64_C(0x9e3779b97f4a7c15);
    return digest ^ digest >> 32;
}

static stq_status digest_bytes(const stq_adamw *o, const void *source, uint64_t bytes, uint64_t *digest) {
    uint64_t chunk[4096];
    for (uint64_t at = 0; at < bytes; at += sizeof chunk) {
        uint64_t length = bytes - at < sizeof chunk ? bytes - at : sizeof chunk;
        chunk[(length - 1) / 8] = 0;
        STQ_CHECK(o->backend->read(o->backend_context, chunk, (const uint8_t *)source + at, length));
        for (uint64_t i = 0; i < (length + 7) / 8; i++)
            *digest = mix(*digest, chunk[i]);
    }
    return STQ_OK;
}

static stq_status digest_state(const stq_adamw *o, const stq_item *item, const stq_planes *planes, uint64_t *digest) {
    int64_t count = item->count;
    *digest = mix(*digest, planes->bits);
    if (stq_is_shared(planes->bits))
        return digest_bytes(o, planes->base, (uint64_t)stq_shared_bytes(planes->bits, item->rows, item->cols), digest);
    for (uint32_t k = 0; k < stq_plane_count(planes->bits); k++)
        STQ_CHECK(digest_bytes(o, stq_plane(planes, k), stq_plane_bytes(count, planes->bits, k), digest));
    if (stq_is_coded(planes->bits))
        STQ_CHECK(digest_bytes(o, planes->scales, (uint64_t)stq_block_count(count) * sizeof(uint16_t), digest));
    return STQ_OK;
}

stq_status stq_adamw_digest(const stq_adamw *o, uint64_t *digest) {
    STQ_CHECK(stq_adamw_settle(o));
    uint64_t value = (uint64_t)o->steps;
    for (size_t i = 0; i < o->tensor_count; i++) {
        STQ_CHECK(digest_state(o, &o->store.items[i], &o->store.items[i].m_in, &value));
        STQ_CHECK(digest_state(o, &o->store.items[i], &o->store.items[i].v_in, &value));
    }
    *digest = value;
    return STQ_OK;
}
