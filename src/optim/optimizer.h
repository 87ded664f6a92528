/* optimizer.h - what is inside an stq_adamw. */
#ifndef STQ_OPTIMIZER_H
#define STQ_OPTIMIZER_H

#include <stquant/adamw.h>

#include "optim/backend.h"
#include "optim/store.h"
#include "policy/policy.h"

struct stq_adamw {
    const stq_backend *backend;
    void *backend_context;
    stq_cpu cpu;
    uint64_t seed;
    double error_compensation;

    size_t group_count;
    stq_adamw_group *groups;
    stq_coefficients *coefficients; /* of the present step: one a group, then those of tensors that missed steps */
    size_t coefficient_count;

    size_t tensor_count;
    stq_tensor *tensors; /* copies; names are in name_storage */
    char *name_storage;
    bool *exempt;               /* float32 states */
    int64_t *missed;            /* steps made without a gradient of the tensor */
    stq_policy_tensor *decided; /* the policy's view */
    uint8_t (*targets)[2];      /* widths decided, carried out as room allows */
    stq_policy policy;
    stq_store store;

    uint64_t parameters; /* elements held here */
    int64_t steps;       /* made */
    int64_t skipped;
    double bits_sum;         /* sum over steps of all-in bits */
    double decision_seconds; /* of the last decision */
};

/* Checks configuration and tensors; fails naming the field or tensor. */
stq_status stq_adamw_check(const stq_adamw_config *config, const stq_tensor *tensors, size_t tensor_count);

/* Everything of stq_adamw_create but the arena: groups, copies, policy, records. `stq_adamw_destroy` frees it. */
stq_status stq_adamw_prepare(stq_adamw **optimizer, const stq_adamw_config *config, const stq_tensor *tensors,
                             size_t tensor_count);

/* Whether the next step decides widths, by the counts that the host knows. */
stq_status stq_step_due(const stq_adamw *o, bool *due);

/* Whether tensors that have a gradient want widths that they do not have yet, first widths among them. */
bool stq_step_waiting(const stq_adamw *o);

/* Factors and widths for step `step_number`: sets the targets. */
stq_status stq_step_decide(stq_adamw *o, const stq_step *step, double unscale, int64_t step_number);

/* Waits for steps in flight, so that counts and states are those of all steps so far. What a reader sees is no change
 * of the optimizer, which is why it may be const. */
stq_status stq_adamw_settle(const stq_adamw *o);

#endif
