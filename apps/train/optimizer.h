// The library's AdamW over a model's parameters.
#ifndef STQUANT_TRAIN_OPTIMIZER_H
#define STQUANT_TRAIN_OPTIMIZER_H

#include <stdint.h>
#include <stquant/adamw.h>

#include "train/failure.h"
#include "train/parameters.h"

struct optimizer_settings {
    stq_policy_config policy;
    double beta1, beta2, epsilon;
    double weight_decay; // of matrices; vectors have none
    double clip;         // largest global gradient norm, 0 = no limit
    double error_compensation;
    uint64_t seed;
    int threads;
};

struct optimizer {
    stq_adamw *adamw;
    struct optimizer_settings settings;
    const void **gradients; // (tensors), in the order of the parameter list
    void **values;
    int tensors;
};

// On failure nothing stays allocated.
enum app_status optimizer_create(struct optimizer *optimizer, const struct optimizer_settings *settings,
                                 const struct parameter_set *parameters);
void optimizer_release(struct optimizer *optimizer);

// One step at this learning rate, from the gradients that lie in the parameter set.
enum app_status optimizer_step(struct optimizer *optimizer, double learning_rate, stq_step_result *result);

stq_memory optimizer_memory(const struct optimizer *optimizer);

// What the states would take; nothing is allocated for them. `parameters` need no buffers.
enum app_status optimizer_plan(const struct optimizer_settings *settings, const struct parameter_set *parameters,
                               stq_memory *memory);

#endif
