// The library's AdamW over a model's parameters.
#ifndef STQUANT_TRAIN_OPTIMIZER_H
#define STQUANT_TRAIN_OPTIMIZER_H

#include <stdint.h>
#include <stquant/sharded.h>

#include "train/device.h"
#include "train/failure.h"
#include "train/parameters.h"
#include "train/widths.h"

struct optimizer_settings {
    stq_policy_config policy;
    const struct width_rules *rules; // widths by name; may be null; must live as long as it is used
    double beta1, beta2, epsilon;
    double weight_decay; // of matrices; vectors have none
    double clip;         // largest global gradient norm, 0 = no limit
    double step_rate;    // learning rate of the steps of quantized weights, as a share of the others'
    double error_compensation;
    uint64_t seed;
    int threads;
};

struct optimizer {
    stq_adamw *adamw;
    stq_sharded *sharded;  // with several ranks: owns adamw, which then holds this rank's share
    struct device *device; // whose memory holds the states and what a step works on; null for the CPU
    const struct parameter_set *parameters;
    enum app_status begun; // how the sums that began during the backward pass have gone so far
    struct optimizer_settings settings;
    const void **gradients; // (tensors), in the order of the parameter list, as a step takes them
    void **values;
    int tensors;
};

// States are sharded over the ranks of `comm`, if that is not null, and live on `device`, if that is not null and has a
// mirror of `parameters`; all of them must outlive the optimizer. Bytes are counted as on a CPU, so that a device
// changes no width and no checkpoint. On failure nothing stays allocated.
enum app_status optimizer_create(struct optimizer *optimizer, const struct optimizer_settings *settings,
                                 const struct parameter_set *parameters, stq_comm *comm, struct device *device);
void optimizer_release(struct optimizer *optimizer);

// The gradients of these tensors are complete: their sum over the ranks may begin.
void optimizer_gradients_ready(struct optimizer *optimizer, int first, int count);

// One step at this learning rate, from the gradients that lie in the parameter set.
enum app_status optimizer_step(struct optimizer *optimizer, double learning_rate, stq_step_result *result);

stq_memory optimizer_memory(const struct optimizer *optimizer);

// What the states would take; nothing is allocated for them. `parameters` need no buffers.
enum app_status optimizer_plan(const struct optimizer_settings *settings, const struct parameter_set *parameters,
                               stq_memory *memory);

#endif
