/* share.c - second moments that are shared along a dimension: when the device's stages (share.cu) are launched, and
 * their scratch. */
#include <string.h>

#include "common/error.h"
#include "cuda/backend.h"
#include "quant/shared.h"

static bool may_share(const stq_adamw *o, size_t i) {
    const stq_policy_config *config = &o->policy.config;
    const stq_policy_tensor *tensor = &o->decided[i];
    uint32_t given = tensor->given[STQ_SECOND_MOMENT];
    if (given != 0 || o->exempt[i])
        return stq_is_shared(given);
    return stq_policy_chooses(config) && config->shared_v == STQ_SHARED_AUTO && !tensor->not_shared &&
           tensor->rows > 1 && tensor->cols > 1;
}

void stq_cuda_share_places(const stq_adamw *o, stq_share_place *places, int64_t *means, int64_t *probe_values) {
    *means = *probe_values = 0;
    for (size_t i = 0; i < o->tensor_count; i++) {
        const stq_policy_tensor *tensor = &o->decided[i];
        bool shares = may_share(o, i);
        if (places)
            places[i] = (stq_share_place){shares ? *means : -1, shares ? *probe_values : 0};
        if (!shares)
            continue;
        uint32_t given = tensor->given[STQ_SECOND_MOMENT];
        int64_t longer = tensor->rows > tensor->cols ? tensor->rows : tensor->cols;
        *means += stq_is_shared(given) ? stq_shared_count(given, tensor->rows, tensor->cols) : longer;
        *probe_values += stq_shared_probe_count(tensor->rows, tensor->cols);
    }
}

static stq_share_lists lists_of(const stq_cuda *cuda) {
    return (stq_share_lists){.items = cuda->items,
                             .item_count = cuda->list.item_count,
                             .segments = cuda->segments,
                             .segment_count = cuda->list.segment_count,
                             .sums = cuda->share_sums,
                             .factors = cuda->share_factors,
                             .saturated = cuda->saturated,
                             .coefficients = cuda->coefficients,
                             .control = cuda->control};
}

stq_status stq_cuda_begin_sharing(stq_adamw *o) {
    stq_cuda *cuda = o->backend_context;
    bool any = false;
    for (size_t i = 0; i < o->tensor_count; i++) {
        const stq_item *item = &o->store.items[i];
        any = any || (stq_is_shared(item->v_out.bits) && item->v_in.bits != item->v_out.bits);
    }
    if (!any)
        return STQ_OK;
    stq_share_lists lists = lists_of(cuda);
    STQ_CUDA_CHECK(stq_cuda_share_begin(&lists, cuda->stream));
    for (size_t i = 0; i < o->tensor_count; i++)
        if (stq_is_shared(o->store.items[i].v_out.bits))
            stq_store_settle(&o->store, i, STQ_SECOND_MOMENT);
    return stq_cuda_upload_items(o);
}

stq_status stq_cuda_follow_shared(stq_adamw *o) {
    stq_cuda *cuda = o->backend_context;
    if (cuda->means == 0)
        return STQ_OK;
    stq_share_lists lists = lists_of(cuda);
    STQ_CUDA_CHECK(stq_cuda_share_step(&lists, cuda->stream));
    return STQ_OK;
}

stq_status stq_cuda_share_probes(void *context, const stq_item *item, float *values) {
    const stq_cuda *cuda = context;
    const stq_share_place *place = &cuda->places[item->tensor];
    size_t count = (size_t)stq_shared_probe_count(item->rows, item->cols);
    if (place->means_at < 0)
        memset(values, 0, count * sizeof *values);
    else
        memcpy(values, cuda->probes + place->probes_at, count * sizeof *values);
    return STQ_OK;
}
