/* check.c - what an optimizer refuses, each with a sentence. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "optim/optimizer.h"
#include "quant/shared.h"

static stq_status check_group(size_t index, const stq_adamw_group *group) {
    if (!(group->learning_rate >= 0) || !isfinite(group->learning_rate))
        return stq_error(STQ_INVALID_ARGUMENT, "Group %zu: the learning rate is %g; use a finite number of 0 or more.",
                         index, group->learning_rate);
    if (!(group->beta1 >= 0 && group->beta1 < 1) || !(group->beta2 >= 0 && group->beta2 < 1))
        return stq_error(STQ_INVALID_ARGUMENT, "Group %zu: beta1 is %g and beta2 is %g; both must be in [0, 1).", index,
                         group->beta1, group->beta2);
    if (!(group->epsilon >= 1e-30) || !isfinite(group->epsilon))
        return stq_error(STQ_INVALID_ARGUMENT, "Group %zu: epsilon is %g; use 1e-30 or more (1e-8 is usual).", index,
                         group->epsilon);
    if (!isfinite(group->weight_decay))
        return stq_error(STQ_INVALID_ARGUMENT, "Group %zu: the weight decay is not finite.", index);
    return STQ_OK;
}

static bool is_v_mode(uint32_t bits) { return stq_is_shared(bits) || bits == STQ_BITS_NOT_SHARED; }

static bool width_exists(uint32_t bits) { return bits == 0 || bits == STQ_BITS_FLOAT32 || stq_is_coded(bits); }

static stq_status check_tensor(const stq_tensor *tensor, size_t index, size_t group_count) {
    if (tensor->name == NULL || tensor->name[0] == '\0')
        return stq_error(STQ_INVALID_ARGUMENT, "Tensor %zu has no name; give every tensor a unique one.", index);
    if (tensor->rows < 1 || tensor->cols < 1 || tensor->rows > STQ_MOST_ELEMENTS / tensor->cols)
        return stq_error(STQ_INVALID_ARGUMENT,
                         "Tensor '%s' is %lld x %lld; rows and cols must be at least 1 and their product at most 2^38.",
                         tensor->name, (long long)tensor->rows, (long long)tensor->cols);
    if (tensor->first < 0 || tensor->count < 0 || tensor->count > tensor->rows * tensor->cols - tensor->first)
        return stq_error(STQ_INVALID_ARGUMENT,
                         "Tensor '%s': the slice of %lld elements from %lld is not inside its %lld.", tensor->name,
                         (long long)tensor->count, (long long)tensor->first, (long long)(tensor->rows * tensor->cols));
    if (!stq_is_float_type(tensor->parameter_type) || !stq_is_float_type(tensor->gradient_type))
        return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s' has an element type that is no float.", tensor->name);
    if (tensor->group >= group_count)
        return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s' is in group %u, but there are %zu groups.", tensor->name,
                         tensor->group, group_count);
    if (!width_exists(tensor->m_bits) || (!width_exists(tensor->v_bits) && !is_v_mode(tensor->v_bits)) ||
        (tensor->m_bits == STQ_BITS_FLOAT32) != (tensor->v_bits == STQ_BITS_FLOAT32))
        return stq_error(STQ_INVALID_ARGUMENT,
                         "Tensor '%s': widths %u and %u; use 0, 2 to 8, 32 for both, or a shared v.", tensor->name,
                         tensor->m_bits, tensor->v_bits);
    if (stq_is_shared(tensor->v_bits) && tensor->count != tensor->rows * tensor->cols)
        return stq_error(STQ_UNSUPPORTED,
                         "Tensor '%s': a slice cannot share its second moment; give it a width of 2 to 8.",
                         tensor->name);
    return STQ_OK;
}

static uint64_t hash_of_name(const char *name) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (; *name != '\0'; name++)
        hash = (hash ^ (uint8_t)*name) * UINT64_C(0x100000001b3); /* FNV-1a */
    return hash ^ hash >> 32;
}

/* Checkpoints find tensors by their names. `slots` is a hash table of indices + 1: zeros to begin with, `slot_count` of
 * them, a power of two and at least twice tensor_count. */
static stq_status check_names_in(uint32_t *slots, size_t slot_count, const stq_tensor *tensors, size_t tensor_count) {
    for (size_t i = 0; i < tensor_count; i++) {
        size_t at = (size_t)hash_of_name(tensors[i].name) & (slot_count - 1);
        for (; slots[at] != 0; at = (at + 1) & (slot_count - 1))
            if (strcmp(tensors[slots[at] - 1].name, tensors[i].name) == 0)
                return stq_error(STQ_INVALID_ARGUMENT,
                                 "Tensors %zu and %zu are both called '%s'; give every tensor a unique name.",
                                 (size_t)slots[at] - 1, i, tensors[i].name);
        slots[at] = (uint32_t)i + 1;
    }
    return STQ_OK;
}

static stq_status check_names(const stq_tensor *tensors, size_t tensor_count) {
    size_t slot_count = 2;
    while (slot_count / 2 < tensor_count)
        slot_count *= 2;
    uint32_t *slots = calloc(slot_count, sizeof *slots);
    if (slots == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to compare the names of %zu tensors.", tensor_count);
    stq_status status = check_names_in(slots, slot_count, tensors, tensor_count);
    free(slots);
    return status;
}

stq_status stq_adamw_check(const stq_adamw_config *config, const stq_tensor *tensors, size_t tensor_count) {
    if (config->size != sizeof *config || config->policy.size != sizeof config->policy)
        return stq_error(STQ_INVALID_ARGUMENT,
                         "The configuration has another version's size; start from stq_adamw_defaults().");
#ifdef STQ_WITH_CUDA
    bool device_exists = config->device == STQ_DEVICE_CPU || config->device == STQ_DEVICE_CUDA;
#else
    bool device_exists = config->device == STQ_DEVICE_CPU;
#endif
    if (!device_exists)
        return stq_error(STQ_UNSUPPORTED, "This build of stquant has no device %d; use the CPU.", (int)config->device);
    if (tensors == NULL || tensor_count == 0)
        return stq_error(STQ_INVALID_ARGUMENT, "An optimizer needs at least one tensor.");
    if ((config->groups == NULL) != (config->group_count == 0))
        return stq_error(STQ_INVALID_ARGUMENT, "groups and group_count must be given together.");
    if (!(config->error_compensation >= 0 && config->error_compensation <= 1))
        return stq_error(STQ_INVALID_ARGUMENT, "The error compensation is %g; use a share from 0 to 1.",
                         config->error_compensation);
    if (config->allocator && (config->allocator->allocate == NULL || config->allocator->release == NULL))
        return stq_error(STQ_INVALID_ARGUMENT, "An allocator needs both allocate and release.");
    for (size_t i = 0; i < config->group_count; i++)
        STQ_CHECK(check_group(i, &config->groups[i]));
    for (size_t i = 0; i < tensor_count; i++)
        STQ_CHECK(check_tensor(&tensors[i], i, config->group_count ? config->group_count : 1));
    return check_names(tensors, tensor_count);
}

stq_status stq_adamw_set_group(stq_adamw *optimizer, size_t index, const stq_adamw_group *group) {
    if (index >= optimizer->group_count)
        return stq_error(STQ_INVALID_ARGUMENT, "There is no group %zu; there are %zu.", index, optimizer->group_count);
    STQ_CHECK(check_group(index, group));
    if (optimizer->backend->set_group)
        STQ_CHECK(optimizer->backend->set_group(optimizer->backend_context, index, group));
    optimizer->groups[index] = *group;
    return STQ_OK;
}

stq_status stq_adamw_set_stream(stq_adamw *optimizer, void *stream) {
    if (optimizer->backend->set_stream)
        optimizer->backend->set_stream(optimizer->backend_context, stream);
    return STQ_OK;
}
