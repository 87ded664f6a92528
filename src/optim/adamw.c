/* adamw.c - creating and freeing an optimizer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "optim/optimizer.h"

stq_adamw_config stq_adamw_defaults(void) {
    stq_adamw_config config = {.size = sizeof config, .policy = stq_policy_defaults(), .exempt_below = 4096};
    return config;
}

static const stq_adamw_group default_group = {
    .learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.01};

/* Zeroed host memory for records, added to *bytes. */
static void *record(size_t count, size_t size, uint64_t *bytes) {
    *bytes += (uint64_t)count * size;
    return calloc(count, size);
}

static size_t name_bytes(const stq_tensor *tensors, size_t count) {
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += strlen(tensors[i].name) + 1;
    return bytes;
}

static stq_status allocate_records(stq_adamw *o, const stq_tensor *tensors) {
    size_t names = name_bytes(tensors, o->tensor_count);
    uint64_t *bytes = &o->store.record_bytes;
    *bytes = sizeof *o;
    o->groups = record(o->group_count, sizeof *o->groups, bytes);
    o->coefficients = record(o->group_count + o->tensor_count, sizeof *o->coefficients, bytes);
    o->tensors = record(o->tensor_count, sizeof *o->tensors, bytes);
    o->name_storage = record(names, 1, bytes);
    o->exempt = record(o->tensor_count, sizeof *o->exempt, bytes);
    o->missed = record(o->tensor_count, sizeof *o->missed, bytes);
    o->decided = record(o->tensor_count, sizeof *o->decided, bytes);
    o->targets = record(o->tensor_count, sizeof *o->targets, bytes);
    o->store.items = record(o->tensor_count, sizeof *o->store.items, bytes);
    if (!o->groups || !o->coefficients || !o->tensors || !o->name_storage || !o->exempt || !o->missed || !o->decided ||
        !o->targets || !o->store.items)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the records of %zu tensors.", o->tensor_count);
    return STQ_OK;
}

static bool is_exempt(const stq_tensor *tensor, const stq_adamw_config *config) {
    if (config->policy.kind == STQ_POLICY_FLOAT32 || tensor->m_bits == STQ_BITS_FLOAT32)
        return true;
    if (tensor->m_bits != 0 || (tensor->v_bits != 0 && tensor->v_bits != STQ_BITS_NOT_SHARED))
        return false;
    return tensor->rows == 1 || tensor->cols == 1 || tensor->rows * tensor->cols < config->exempt_below;
}

static void copy_tensor(stq_adamw *o, size_t i, const stq_tensor *tensor, char *name, const stq_adamw_config *config) {
    o->tensors[i] = *tensor;
    o->tensors[i].name = strcpy(name, tensor->name);
    o->exempt[i] = is_exempt(tensor, config);
    o->store.items[i] = (stq_item){
        .count = tensor->count,
        .first_block = tensor->first / STQ_BLOCK,
        .rows = tensor->rows,
        .cols = tensor->cols,
        .tensor = (uint32_t)i,
        .group = tensor->group,
        .parameter_type = tensor->parameter_type,
        .gradient_type = tensor->gradient_type,
    };
    o->decided[i] = (stq_policy_tensor){
        .rows = tensor->rows,
        .cols = tensor->cols,
        .count = tensor->rows * tensor->cols,
        .last_log_n = NAN,
        .given = {(uint8_t)(o->exempt[i] ? STQ_BITS_FLOAT32 : tensor->m_bits),
                  (uint8_t)(o->exempt[i] ? STQ_BITS_FLOAT32 : tensor->v_bits)},
        .not_shared = tensor->v_bits == STQ_BITS_NOT_SHARED,
    };
    if (o->decided[i].not_shared && !o->exempt[i])
        o->decided[i].given[STQ_SECOND_MOMENT] = 0;
    o->parameters += (uint64_t)tensor->count;
}

static stq_status fill(stq_adamw *o, const stq_adamw_config *config, const stq_tensor *tensors) {
    for (size_t i = 0; i < o->group_count; i++)
        o->groups[i] = config->groups ? config->groups[i] : default_group;
    char *name = o->name_storage;
    uint64_t global = 0;
    size_t segments = 0; /* of the global tensors, so that the records are the same on every rank */
    for (size_t i = 0; i < o->tensor_count; i++) {
        copy_tensor(o, i, &tensors[i], name, config);
        name += strlen(name) + 1;
        global += (uint64_t)o->decided[i].count;
        segments += (size_t)stq_segment_count(o->decided[i].count);
    }
    o->cpu.segment_sums = record(segments + 1, sizeof(double), &o->store.record_bytes);
    if (o->cpu.segment_sums == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the sums of %zu tensors.", o->tensor_count);
    o->policy.config = config->policy;
    if (o->backend->record_bytes && !config->counts_as_cpu)
        o->store.record_bytes += o->backend->record_bytes(o);
    o->policy.fixed_bytes = stq_store_fixed_bytes(&o->store, o->exempt, o->tensors);
    o->policy.granularity = o->store.pool.allocator.granularity;
    return stq_policy_init(&o->policy, o->decided, o->tensor_count, global);
}

stq_status stq_adamw_prepare(stq_adamw **optimizer, const stq_adamw_config *config, const stq_tensor *tensors,
                             size_t tensor_count) {
    *optimizer = NULL;
    STQ_CHECK(stq_adamw_check(config, tensors, tensor_count));
    stq_adamw *o = calloc(1, sizeof *o);
    if (o == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for an optimizer.");
    o->backend = &stq_cpu_backend;
    o->cpu = (stq_cpu){.threads = config->threads};
    o->backend_context = &o->cpu;
    o->seed = config->seed;
    o->gradient_norm = NAN;
    o->error_compensation = config->error_compensation;
    o->group_count = config->group_count ? config->group_count : 1;
    o->tensor_count = tensor_count;
    o->store.count = tensor_count;
#ifdef STQ_WITH_CUDA
    if (config->device == STQ_DEVICE_CUDA) {
        o->backend = &stq_cuda_backend;
        o->backend_context = NULL;
    }
#endif
    bool device_memory = config->allocator == NULL && o->backend->allocator.allocate != NULL;
    stq_pool_init(&o->store.pool, device_memory ? &o->backend->allocator : config->allocator);
    if (device_memory && config->counts_as_cpu)
        o->store.pool.allocator.granularity = STQ_POOL_GRANULARITY;
    stq_status status = allocate_records(o, tensors);
    if (status == STQ_OK)
        status = fill(o, config, tensors);
    if (status != STQ_OK) {
        o->store.count = o->store.items ? o->store.count : 0;
        stq_adamw_destroy(o);
        return status;
    }
    *optimizer = o;
    return STQ_OK;
}

/* A slice holds a part of the model, so that the global cap is no bound on its bytes. */
static bool holds_everything(const stq_adamw *o) {
    for (size_t i = 0; i < o->tensor_count; i++)
        if (o->tensors[i].count != o->decided[i].count)
            return false;
    return true;
}

stq_status stq_adamw_create(stq_adamw **optimizer, const stq_adamw_config *config, const stq_tensor *tensors,
                            size_t tensor_count) {
    STQ_CHECK(stq_adamw_prepare(optimizer, config, tensors, tensor_count));
    stq_adamw *o = *optimizer;
    o->store.global_fixed = o->policy.fixed_bytes;
    if (o->policy.config.cap_mode == STQ_CAP_PEAK) {
        o->store.global_cap = o->policy.cap_bytes;
        if (holds_everything(o))
            o->store.pool.cap = o->policy.cap_bytes;
    }
    stq_status status = o->backend->open ? o->backend->open(o, config->device_index) : STQ_OK;
    if (status == STQ_OK)
        status = stq_store_open(&o->store, o->exempt);
    if (status != STQ_OK) {
        stq_adamw_destroy(o);
        *optimizer = NULL;
    }
    return status;
}

void stq_adamw_destroy(stq_adamw *optimizer) {
    if (optimizer == NULL)
        return;
    stq_store_close(&optimizer->store);
    if (optimizer->backend->close)
        optimizer->backend->close(optimizer->backend_context);
    free(optimizer->cpu.segment_sums);
    free(optimizer->groups);
    free(optimizer->coefficients);
    free(optimizer->tensors);
    free(optimizer->name_storage);
    free(optimizer->exempt);
    free(optimizer->missed);
    free(optimizer->decided);
    free(optimizer->targets);
    free(optimizer->store.items);
    free(optimizer);
}
