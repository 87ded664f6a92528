/*
 * policy.h - the interface between the policies and the state store.
 *
 * At a decision the optimizer fills in the factors, calls stq_policy_decide(), and carries out what `target` says; a
 * transition that has to wait for room under the cap is tried again in the following steps.
 */
#ifndef STQ_POLICY_INTERNAL_H
#define STQ_POLICY_INTERNAL_H

#include <stquant/policy.h>
#include <stquant/quant.h>

/* One tensor as a policy sees it. States are indexed by stq_state. */
typedef struct stq_policy_tensor {
    int64_t count;        /* global elements */
    stq_factors factors;  /* of this decision */
    double last_log_n;    /* log n at the last decision, for the volatility; NaN before the first */
    uint8_t given[2];     /* width fixed by the caller: 2 to 8, 32 = exempt (both), 0 = the policy chooses */
    uint8_t bits[2];      /* width now; 0 before the first decision */
    uint8_t target[2];    /* width decided */
    uint8_t asked[2];     /* decisions in a row that asked for a demotion of this state */
    uint8_t zone;         /* stq_zone */
} stq_policy_tensor;

/* A policy and what it remembers between decisions (all of it belongs into a checkpoint). */
typedef struct stq_policy {
    stq_policy_config config;
    uint64_t fixed_bytes; /* bytes that no width changes: float32 states, scales, records, rounding */
    size_t granularity;   /* every plane is charged rounded up to a multiple of this */
    double log_n_average; /* N_ema: average of log n over tensors (weighted by elements) and decisions; NaN before the first */
    double log_r_average; /* R_ema */
    double reheating;     /* raised by a jump of volatility, decays; 0 = none */
    int64_t decisions;    /* made so far */
    uint64_t cap_bytes;   /* resolved cap on all state bytes; 0 = none (float32, fixed) */
    uint64_t smallest_bytes; /* with every choosable width at its lowest */
} stq_policy;

/* Bytes of the planes of `count` values at `bits` bits, each plane rounded up to `granularity`. */
uint64_t stq_policy_plane_bytes(int64_t count, uint32_t bits, size_t granularity);

/* Validates the configuration and resolves the cap; `fixed_bytes` and `granularity` are set by the caller before. Sets
 * cap_bytes and smallest_bytes. STQ_CAP_TOO_SMALL names the smallest possible cap in bytes and in bits. */
stq_status stq_policy_init(stq_policy *policy, const stq_policy_tensor *tensors, size_t count, uint64_t parameters);

/* True at steps 1, 10, 30 and every decide_every-th. Step counts begin at 1. */
bool stq_policy_due(const stq_policy *policy, int64_t step);

/*
 * Decides the target widths of all tensors at `step` from their factors. Sum of bytes at the targets <= cap_bytes (peak mode).
 * At the first decision (bits 0) targets are chosen freely. O(tensors) time and scratch. Also sets zone, volatility, asked.
 */
stq_status stq_policy_decide(stq_policy *policy, stq_policy_tensor *tensors, size_t count, int64_t step);

#endif
