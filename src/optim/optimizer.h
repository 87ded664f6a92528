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
    /* A decision whose factors are measured already: made in front of that attempt, counted in steps made or skipped.
     */
    int64_t pending_step; /* whose gradients were measured; 0 = none */
    int64_t pending_attempt;
    uint64_t restored;       /* states that were put back */
    double gradient_norm;    /* of the latest step that the host knows of */
    double bits_sum;         /* sum over steps of all-in bits */
    double decision_seconds; /* of the last decision */
};

/* All-in bits of a step at the present widths. */
static inline double stq_step_bits(const stq_adamw *o) {
    return 4.0 * (double)o->store.pool.bytes / (double)(o->parameters ? o->parameters : 1);
}

/* Checks configuration and tensors; fails naming the field or tensor. */
stq_status stq_adamw_check(const stq_adamw_config *config, const stq_tensor *tensors, size_t tensor_count);

/* Everything of stq_adamw_create() but device and arena: groups, copies, policy, records. stq_adamw_destroy() frees it.
 */
stq_status stq_adamw_prepare(stq_adamw **optimizer, const stq_adamw_config *config, const stq_tensor *tensors,
                             size_t tensor_count);

/* Whether the next step measures gradients for a decision, by the counts that the host knows. */
bool stq_step_due(const stq_adamw *o);

/* Whether tensors that have a gradient want widths that they do not have yet, first widths among them. */
bool stq_step_waiting(const stq_adamw *o);

/* Measures factors for a decision in step `step_number`, and makes it: at once, or later by the policy's delay. */
stq_status stq_step_decide(stq_adamw *o, const stq_step *step, double unscale, int64_t step_number);

/* The same with factors that are measured already, one a tensor; r is 0 for tensors without a gradient. */
stq_status stq_step_measured(stq_adamw *o, const stq_factors *factors);

/* Whether every tensor has a width to go to: before that a decision is not put off. */
bool stq_step_has_widths(const stq_adamw *o);

/* Whether the next attempt makes a decision that was put off to it. */
bool stq_step_concludes(const stq_adamw *o);

/* Makes a decision that was put off to the next attempt; *decided tells whether there was one. */
stq_status stq_step_conclude(stq_adamw *o, bool *decided);

/* The factors are there: decides for step `step_number` now, or puts that off to attempt `attempt` plus the delay. */
stq_status stq_step_settle_decision(stq_adamw *o, int64_t step_number, int64_t attempt);

/* Waits for steps in flight, so that counts and states are those of all steps so far. What a reader sees is no change
 * of the optimizer, which is why it may be const. */
stq_status stq_adamw_settle(const stq_adamw *o);

#endif
