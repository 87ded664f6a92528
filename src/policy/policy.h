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

#include "policy/due.h"

/* Largest decision_delay. */
#define STQ_LARGEST_DELAY 16

/* One tensor as a policy sees it. States are indexed by stq_state. What every pass of a decision reads comes first, in
 * one cache line: lists may be long. */
typedef struct stq_policy_tensor {
    int64_t count;       /* global elements */
    uint8_t given[2];    /* width fixed by the caller: 2 to 8, 32 = exempt (both), STQ_BITS_SHARED_... (v), 0 = the
                            policy chooses */
    uint8_t bits[2];     /* width now; 0 before the first decision */
    uint8_t target[2];   /* width decided */
    uint8_t asked[2];    /* decisions in a row that asked for a demotion of this state */
    uint8_t not_shared;  /* v is never shared */
    uint8_t zone;        /* stq_zone */
    double last_log_n;   /* log n at the last decision, for the volatility; NaN before the first */
    stq_factors factors; /* of this decision */
    double ratio[2]; /* mean^2 / variance of v inside a row and inside a column; 0 = not known, not shared that way */
    int64_t rows;    /* global shape */
    int64_t cols;
} stq_policy_tensor;

/* A policy and what it remembers between decisions (all of it belongs into a checkpoint). */
typedef struct stq_policy {
    stq_policy_config config;
    uint64_t fixed_bytes;      /* bytes that no width changes: float32 states, scales, records, rounding; not the planes
                                  of coded states with a given width, which the policy adds itself */
    size_t granularity;        /* every plane is charged rounded up to a multiple of this */
    uint64_t cap_bytes;        /* resolved cap on all state bytes; 0 = none (float32, fixed) */
    uint64_t smallest_bytes;   /* with every choosable width at its lowest */
    uint64_t widest_bytes;     /* with every choosable width at its highest */
    double log_n_average;      /* N_ema: average of log n over tensors (weighted by elements) and decisions; NaN before
                                  the first */
    double log_r_average;      /* R_ema */
    double log_n_peak;         /* highest N_ema since step 30; NaN before */
    double volatility_average; /* of the weighted mean volatility; NaN before it is known */
    double reheating;          /* raised to 1 by a jump of volatility, decays; 0 = none */
    int64_t decisions;         /* made so far */
    int64_t forced;            /* demotions so far that the cap forced: unasked, or by more than one bit */
    int64_t last_step;         /* of the last decision */
    uint64_t last_bytes;       /* at the targets of the last decision */
    double spent;              /* mean mode: bytes times steps up to last_step */
} stq_policy;

/* Whether the policy chooses widths, by factors of the gradients. */
static inline bool stq_policy_chooses(const stq_policy_config *config) {
    return config->kind == STQ_POLICY_ZONES || config->kind == STQ_POLICY_RATE_DISTORTION;
}

/* Bytes of the planes of `count` values at `bits` bits, each plane rounded up to `granularity`. */
uint64_t stq_policy_plane_bytes(int64_t count, uint32_t bits, size_t granularity);

/* The same for one state of a tensor at any width: shared ones too; 0 for float32 states, which lie elsewhere. */
uint64_t stq_policy_state_bytes(const stq_policy_tensor *tensor, uint32_t bits, size_t granularity);

/* Mean squared relative error that coding v at 2 to 8 bits makes, in closed loop: of the update, and so nearly of
 * sqrt(v). */
double stq_policy_coding_error(uint32_t bits);

/* Validates the configuration and resolves the cap; `config`, `fixed_bytes` and `granularity` are set by the caller
 * before, everything else is set here. STQ_CAP_TOO_SMALL names the smallest possible cap in bytes and in bits. */
stq_status stq_policy_init(stq_policy *policy, const stq_policy_tensor *tensors, size_t count, uint64_t parameters);

/* True at steps 1, 10, 30 and every decide_every-th. Step counts begin at 1. */
bool stq_policy_due(const stq_policy *policy, int64_t step);

/* The first such step behind step `after`; INT64_MAX where there is none. */
int64_t stq_policy_next_due(const stq_policy *policy, int64_t after);

/*
 * Decides the target widths of all tensors at `step` from their factors. Bytes at the targets, with fixed_bytes, are at
 * most the cap (peak mode) or what its schedule allows now (mean mode). At the first decision (bits 0) targets are
 * chosen freely; later each state moves by at most one bit unless the cap forces more. O(tensors) time and scratch.
 * Also sets zone, volatility, asked. STQ_OUT_OF_MEMORY leaves everything as it was.
 *
 * In peak mode the targets can be reached under the cap if the transitions are made in the order of
 * stq_policy_transition_phase(): one that replaces the base plane needs room for old and new planes together.
 */
stq_status stq_policy_decide(stq_policy *policy, stq_policy_tensor *tensors, size_t count, int64_t step);

/* 0: no change, or the first width; 1: a demotion that only drops bit planes, or to a shared v; 2: the base plane is
 * replaced (3 <-> 4), or a shared v gets codes again; 3: a promotion that only adds bit planes, which has to wait until
 * the transitions of phase 2 are made. */
int stq_policy_transition_phase(uint32_t from, uint32_t to);

#endif
