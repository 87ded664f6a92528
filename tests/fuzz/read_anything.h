/* read_anything.h - does with a file everything that can be done with a checkpoint: for tests with files that nobody
 * vouches for. */
#ifndef STQ_READ_ANYTHING_H
#define STQ_READ_ANYTHING_H

#include <stdlib.h>
#include <stquant/stquant.h>

/* A description may promise any number of elements before the first gradient, without a byte of state: programs decide
 * what they allocate, and this one no more than that. */
enum { READ_ANYTHING_MOST = 1 << 20 };

static inline stq_status read_every_array(const stq_checkpoint *c, size_t count) {
    for (size_t i = 0; i < count; i++) {
        stq_array array;
        stq_status status = stq_checkpoint_array(c, i, &array);
        array.type = STQ_FLOAT32;
        array.data = malloc((size_t)array.count * sizeof(float) + 1);
        if (status == STQ_OK)
            status = array.data ? stq_checkpoint_load_arrays(c, &array, 1) : STQ_OUT_OF_MEMORY;
        free(array.data);
        if (status != STQ_OK)
            return status;
    }
    return STQ_OK;
}

static inline stq_status read_every_state(const stq_checkpoint *c, size_t count) {
    for (size_t i = 0; i < count; i++) {
        stq_checkpoint_tensor tensor;
        double signal, noise;
        stq_status status = stq_checkpoint_tensor_info(c, i, &tensor);
        for (int state = 0; status == STQ_OK && state < 2; state++)
            status = stq_checkpoint_noise(c, i, (stq_state)state, &signal, &noise);
        if (status == STQ_OK && tensor.tensor.count <= READ_ANYTHING_MOST) {
            float *values = malloc((size_t)tensor.tensor.count * sizeof *values);
            for (int state = 0; status == STQ_OK && state < 2; state++)
                status = values ? stq_checkpoint_read_state(c, i, (stq_state)state, values) : STQ_OUT_OF_MEMORY;
            free(values);
        }
        if (status != STQ_OK)
            return status;
    }
    return STQ_OK;
}

/* Into an optimizer over the same tensors, of the given policy. */
static inline stq_status read_into_optimizer(const stq_checkpoint *c, size_t count, stq_policy_kind kind) {
    stq_adamw_config config = stq_adamw_defaults();
    stq_tensor *tensors = calloc(count + 1, sizeof *tensors);
    stq_adamw *optimizer = NULL;
    int64_t elements = 0;
    config.policy.kind = kind;
    config.policy.fixed_m_bits = 5;
    config.policy.fixed_v_bits = 3;
    config.policy.cap_bytes = UINT64_C(1) << 40;
    config.exempt_below = 0;
    config.threads = 1;
    if (tensors == NULL)
        return STQ_OUT_OF_MEMORY;
    for (size_t i = 0; i < count && elements <= READ_ANYTHING_MOST; i++) {
        stq_checkpoint_tensor tensor;
        stq_checkpoint_tensor_info(c, i, &tensor);
        tensors[i] = stq_tensor_whole(tensor.tensor.name, tensor.tensor.rows, tensor.tensor.cols);
        elements += tensors[i].count;
    }
    stq_status status = STQ_OK;
    if (count > 0 && elements <= READ_ANYTHING_MOST) {
        status = stq_adamw_create(&optimizer, &config, tensors, count);
        if (status == STQ_OK)
            status = stq_checkpoint_load_optimizer(c, optimizer, NULL);
        stq_adamw_destroy(optimizer);
    }
    free(tensors);
    return status;
}

static inline stq_status read_anything(const char *path) {
    stq_checkpoint *c;
    stq_checkpoint_info info;
    stq_checkpoint_entry entry;
    uint64_t digest;
    stq_status status = stq_checkpoint_open(&c, path);
    if (status != STQ_OK)
        return status;
    stq_checkpoint_describe(c, &info);
    for (size_t i = 0; status == STQ_OK && i < info.entry_count; i++)
        status = stq_checkpoint_entry_info(c, i, &entry);
    if (status == STQ_OK)
        status = read_every_array(c, info.array_count);
    if (status == STQ_OK)
        status = read_every_state(c, info.tensor_count);
    for (int kind = STQ_POLICY_FLOAT32; status == STQ_OK && kind <= STQ_POLICY_RATE_DISTORTION; kind++)
        status = read_into_optimizer(c, info.tensor_count, (stq_policy_kind)kind);
    if (status == STQ_OK)
        status = stq_checkpoint_verify(c);
    if (status == STQ_OK)
        status = stq_checkpoint_digest(c, &digest);
    stq_checkpoint_close(c);
    return status;
}

#endif
