#include "train/optimizer.h"

#include <stdlib.h>
#include <string.h>

enum { MATRICES, VECTORS, STEPS, GROUPS };

static void fill_groups(const struct optimizer_settings *settings, double learning_rate,
                        stq_adamw_group groups[GROUPS]) {
    groups[MATRICES] = (stq_adamw_group){.learning_rate = learning_rate,
                                         .beta1 = settings->beta1,
                                         .beta2 = settings->beta2,
                                         .epsilon = settings->epsilon,
                                         .weight_decay = settings->weight_decay};
    groups[VECTORS] = groups[MATRICES];
    groups[VECTORS].weight_decay = 0;
    groups[STEPS] = groups[VECTORS];
    groups[STEPS].learning_rate *= settings->step_rate;
}

// How deep in the network a tensor lies, 0 to 1; the embeddings are at the input.
static float relative_depth(const struct parameter_set *parameters, int index) {
    return parameters->count > 1 ? (float)index / (float)(parameters->count - 1) : 0;
}

static enum app_status describe(const struct optimizer_settings *settings, const struct parameter_set *parameters,
                                stq_tensor **list) {
    stq_tensor *tensors = calloc((size_t)parameters->count, sizeof(*tensors));
    *list = tensors;
    if (!tensors) {
        return app_fail(APP_FAILED, "There is no memory for the list of %d tensors.", parameters->count);
    }
    for (int i = 0; i < parameters->count; i++) {
        const struct parameter *parameter = &parameters->list[i];
        tensors[i] = stq_tensor_whole(parameter->name, parameter->rows, parameter->cols);
        tensors[i].group = parameter->is_steps ? STEPS : parameter->dimensions == 1 ? VECTORS : MATRICES;
        tensors[i].depth = relative_depth(parameters, i);
    }
    enum app_status status =
        settings->rules ? width_rules_apply(settings->rules, tensors, (size_t)parameters->count) : APP_OK;
    if (status != APP_OK) {
        free(tensors);
        *list = NULL;
    }
    return status;
}

// The group of steps exists only where there are steps; they are the last tensors.
static size_t count_groups(const struct parameter_set *parameters) {
    return parameters->count > 0 && parameters->list[parameters->count - 1].is_steps ? GROUPS : STEPS;
}

static stq_adamw_config make_config(const struct optimizer_settings *settings, const struct parameter_set *parameters,
                                    const stq_adamw_group *groups) {
    stq_adamw_config config = stq_adamw_defaults();
    config.groups = groups;
    config.group_count = count_groups(parameters);
    config.policy = settings->policy;
    config.seed = settings->seed;
    config.error_compensation = settings->error_compensation;
    config.threads = settings->threads;
    return config;
}

static enum app_status create_sharded(struct optimizer *optimizer, const stq_adamw_config *config,
                                      const stq_tensor *tensors, stq_comm *comm) {
    const struct parameter_set *parameters = optimizer->parameters;
    int64_t *offsets = calloc((size_t)parameters->count, sizeof(*offsets));
    if (!offsets) {
        return app_fail(APP_FAILED, "There is no memory for the list of %d tensors.", parameters->count);
    }
    for (int i = 0; i < parameters->count; i++) {
        offsets[i] = parameters->list[i].offset;
    }
    stq_flat flat = {.offsets = offsets, .length = parameters->padded};
    enum app_status status = app_check_asked(
        stq_sharded_create(&optimizer->sharded, comm, config, tensors, (size_t)parameters->count, &flat));
    if (status == APP_OK) {
        optimizer->adamw = stq_sharded_optimizer(optimizer->sharded);
    }
    free(offsets);
    return status;
}

// Where a step finds the values and gradients of every tensor.
static enum app_status list_arrays(struct optimizer *optimizer) {
    const struct parameter_set *parameters = optimizer->parameters;
    const struct device *device = optimizer->device;
    optimizer->gradients = calloc((size_t)parameters->count, sizeof(*optimizer->gradients));
    optimizer->values = calloc((size_t)parameters->count, sizeof(*optimizer->values));
    if (!optimizer->gradients || !optimizer->values) {
        return app_fail(APP_FAILED, "There is no memory for the list of %d tensors.", parameters->count);
    }
    for (int i = 0; i < parameters->count; i++) {
        const struct parameter *parameter = &parameters->list[i];
        optimizer->gradients[i] = device ? device->gradients + parameter->offset : parameter->gradients;
        optimizer->values[i] = device ? device->values + parameter->offset : parameter->values;
    }
    return APP_OK;
}

static enum app_status create(struct optimizer *optimizer, const stq_adamw_config *config, const stq_tensor *tensors,
                              stq_comm *comm) {
    void *stream = optimizer->device ? optimizer->device->stream : NULL;
    if (comm) {
        enum app_status status = create_sharded(optimizer, config, tensors, comm);
        return status == APP_OK ? app_check_asked(stq_sharded_set_stream(optimizer->sharded, stream)) : status;
    }
    enum app_status status =
        app_check_asked(stq_adamw_create(&optimizer->adamw, config, tensors, (size_t)optimizer->tensors));
    return status == APP_OK ? app_check_asked(stq_adamw_set_stream(optimizer->adamw, stream)) : status;
}

enum app_status optimizer_create(struct optimizer *optimizer, const struct optimizer_settings *settings,
                                 const struct parameter_set *parameters, stq_comm *comm, struct device *device) {
    stq_adamw_group groups[GROUPS];
    fill_groups(settings, 0, groups);
    stq_adamw_config config = make_config(settings, parameters, groups);
    *optimizer = (struct optimizer){
        .settings = *settings, .parameters = parameters, .tensors = parameters->count, .device = device};
    if (device) {
        config.device = STQ_DEVICE_CUDA;
        config.device_index = device->index;
        config.counts_as_cpu = true;
    }
    stq_tensor *tensors;
    enum app_status status = describe(settings, parameters, &tensors);
    if (status != APP_OK) {
        return status;
    }
    status = list_arrays(optimizer);
    if (status == APP_OK) {
        status = create(optimizer, &config, tensors, comm);
    }
    free(tensors);
    if (status != APP_OK) {
        optimizer_release(optimizer);
    }
    return status;
}

void optimizer_release(struct optimizer *optimizer) {
    if (optimizer->sharded) {
        stq_sharded_destroy(optimizer->sharded);
    } else {
        stq_adamw_destroy(optimizer->adamw);
    }
    free(optimizer->gradients);
    free(optimizer->values);
    *optimizer = (struct optimizer){0};
}

void optimizer_gradients_ready(struct optimizer *optimizer, int first, int count) {
    // A device is given all gradients at once.
    if (!optimizer->sharded || optimizer->device || optimizer->begun != APP_OK) {
        return;
    }
    const struct parameter *begin = &optimizer->parameters->list[first];
    const struct parameter *last = &optimizer->parameters->list[first + count - 1];
    int64_t length = last->offset + last->rows * last->cols - begin->offset;
    optimizer->begun =
        app_check_asked(stq_sharded_start(optimizer->sharded, optimizer->parameters->gradients, begin->offset, length));
}

static enum app_status step_sharded(struct optimizer *optimizer, stq_step_result *result) {
    const struct parameter_set *parameters = optimizer->parameters;
    const struct device *device = optimizer->device;
    if (optimizer->begun != APP_OK) {
        return optimizer->begun;
    }
    return app_check_asked(stq_sharded_step(optimizer->sharded, device ? device->values : parameters->values,
                                            device ? device->gradients : parameters->gradients,
                                            optimizer->settings.clip, result));
}

static enum app_status step_whole(struct optimizer *optimizer, stq_step_result *result) {
    stq_step step = {.size = sizeof(step),
                     .parameters = optimizer->values,
                     .gradients = optimizer->gradients,
                     .unscale = 1,
                     .max_gradient_norm = optimizer->settings.clip,
                     .stream = optimizer->device ? optimizer->device->stream : NULL};
    return app_check_asked(stq_adamw_step(optimizer->adamw, &step, result));
}

enum app_status optimizer_step(struct optimizer *optimizer, double learning_rate, stq_step_result *result) {
    stq_adamw_group groups[GROUPS];
    fill_groups(&optimizer->settings, learning_rate, groups);
    for (size_t i = 0; i < count_groups(optimizer->parameters); i++) {
        enum app_status status = app_check_asked(stq_adamw_set_group(optimizer->adamw, i, &groups[i]));
        if (status != APP_OK) {
            return status;
        }
    }
    struct device *device = optimizer->device;
    enum app_status status = device ? device_send(device) : APP_OK;
    if (status == APP_OK) {
        status = optimizer->sharded ? step_sharded(optimizer, result) : step_whole(optimizer, result);
    }
    return status == APP_OK && device && !result->skipped ? device_fetch(device) : status;
}

stq_memory optimizer_memory(const struct optimizer *optimizer) {
    stq_memory memory = {0};
    stq_adamw_memory(optimizer->adamw, &memory);
    return memory;
}

enum app_status optimizer_plan(const struct optimizer_settings *settings, const struct parameter_set *parameters,
                               stq_memory *memory) {
    stq_adamw_group groups[GROUPS];
    fill_groups(settings, 0, groups);
    stq_adamw_config config = make_config(settings, parameters, groups);
    stq_tensor *tensors;
    enum app_status status = describe(settings, parameters, &tensors);
    if (status != APP_OK) {
        return status;
    }
    status = app_check_asked(stq_adamw_plan(&config, tensors, (size_t)parameters->count, memory));
    free(tensors);
    return status;
}
