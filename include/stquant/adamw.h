/*
 * stquant/adamw.h - AdamW (Loshchilov & Hutter 2019) over a list of tensors, with states of adaptive precision.
 *
 *   stq_adamw_config config = stq_adamw_defaults();
 *   config.policy.state_bits = 5.0;
 *   stq_adamw *optimizer;
 *   if (stq_adamw_create(&optimizer, &config, tensors, tensor_count) != STQ_OK) puts(stq_last_error());
 *   for each step:
 *       stq_adamw_step(optimizer, &(stq_step){ .size = sizeof(stq_step), .parameters = p, .gradients = g, .unscale = 1
 * }, NULL); stq_adamw_destroy(optimizer);
 */
#ifndef STQUANT_ADAMW_H
#define STQUANT_ADAMW_H

#include <stquant/base.h>
#include <stquant/policy.h>
#include <stquant/quant.h>
#include <stquant/score.h>

#ifdef __cplusplus
extern "C" {
#endif

/** An optimizer over a fixed list of tensors. Opaque; made by stq_adamw_create(), freed by stq_adamw_destroy(). */
typedef struct stq_adamw stq_adamw;

/** Hyper-parameters of one group of tensors; may change at every step (stq_adamw_set_group). */
typedef struct stq_adamw_group {
    double learning_rate; /**< >= 0; default 1e-3 */
    double beta1;         /**< decay of the first moment, in [0, 1); default 0.9 */
    double beta2;         /**< decay of the second moment, in [0, 1); default 0.999 */
    double epsilon;       /**< added to sqrt(v / (1 - beta2^t)); > 0; default 1e-8 */
    double weight_decay;  /**< decoupled: p *= 1 - learning_rate * weight_decay; default 0.01 */
} stq_adamw_group;

/** Configuration of an optimizer. Fill it with stq_adamw_defaults() and change what differs. */
typedef struct stq_adamw_config {
    size_t size;                   /**< sizeof(stq_adamw_config), for compatibility of later versions */
    const stq_adamw_group *groups; /**< group_count groups, copied; NULL = one group of defaults */
    size_t group_count;            /**< default 0 */
    stq_policy_config policy;      /**< which widths; policy.kind = STQ_POLICY_FLOAT32 is plain AdamW */
    uint64_t seed;                 /**< of the stochastic rounding; default 0 */
    double error_compensation; /**< alpha in [0, 1]: share of the first moment's rounding error that is applied to the
                                    parameter at once; default 0 */
    int64_t exempt_below; /**< tensors with fewer global elements keep float32 states, as 1-D ones do; default 4096 */
    const stq_allocator *allocator; /**< memory for states; copied; NULL = the C library's */
    int threads;                    /**< OpenMP threads, 0 = all; the results do not depend on it */
} stq_adamw_config;

/** The defaults named above. */
STQ_API stq_adamw_config stq_adamw_defaults(void);

/**
 * Creates an optimizer over `tensor_count` tensors; states start at zero. Nothing of the arguments is kept but copies.
 *
 * 1-D tensors (rows or cols 1) and those below exempt_below keep float32 states unless their widths are given.
 * Errors: STQ_INVALID_ARGUMENT (names the tensor or field), STQ_CAP_TOO_SMALL (names the smallest possible cap),
 * STQ_OUT_OF_MEMORY. On failure *optimizer is NULL and nothing stays allocated.
 */
STQ_API stq_status stq_adamw_create(stq_adamw **optimizer, const stq_adamw_config *config, const stq_tensor *tensors,
                                    size_t tensor_count);

/** Frees everything; NULL is allowed. */
STQ_API void stq_adamw_destroy(stq_adamw *optimizer);

/** What one step is given. Arrays have tensor_count entries, in the order of stq_adamw_create. */
typedef struct stq_step {
    size_t size;                  /**< sizeof(stq_step) */
    void *const *parameters;      /**< tensor.count elements of parameter_type each; updated in place */
    const void *const *gradients; /**< tensor.count elements of gradient_type each; only read */
    double unscale;               /**< every gradient counts as g * unscale (1 / loss scale); 1 for none; > 0 */
    double max_gradient_norm;     /**< clip the global norm to this; 0 = do not clip */
    bool norm_supplied;   /**< the caller knows gradient_norm (unscaled) and that it is finite or not: one pass less */
    double gradient_norm; /**< with norm_supplied: the global norm after unscaling; not finite = skip the step */
} stq_step;

/** What one step did. */
typedef struct stq_step_result {
    double gradient_norm; /**< global norm after unscaling, before clipping; may be infinite or NaN */
    bool skipped;         /**< a gradient was not finite: parameters, states and step count are as before */
    bool decided;         /**< widths were decided in this step */
} stq_step_result;

/**
 * One AdamW step over all tensors: global norm and finite check, at decision steps factors and widths, then one fused
 * pass that decodes, updates and encodes. `result` may be NULL.
 *
 * A non-finite gradient skips the step whole and is not an error. On STQ_OUT_OF_MEMORY (a promotion could not be
 * allocated) the step is made at the old widths and the status is STQ_OK; other errors leave everything as before.
 */
STQ_API stq_status stq_adamw_step(stq_adamw *optimizer, const stq_step *step, stq_step_result *result);

/** Replaces group `index` (learning-rate schedules). STQ_INVALID_ARGUMENT leaves it as it was. */
STQ_API stq_status stq_adamw_set_group(stq_adamw *optimizer, size_t index, const stq_adamw_group *group);

/** Bytes of the states, read from the allocator, with everything that belongs to them (records, scales, padding). */
typedef struct stq_memory {
    uint64_t parameters;     /**< elements held here */
    uint64_t state_bytes;    /**< now */
    uint64_t peak_bytes;     /**< largest so far, transitions included */
    uint64_t cap_bytes;      /**< the cap on state_bytes; 0 = none */
    uint64_t smallest_bytes; /**< with every choosable width at its lowest */
    double all_in_bits;      /**< mean over the steps so far of 8 state_bytes / (2 parameters) */
    double final_bits;       /**< the same now */
    double peak_bits;        /**< the same at the peak */
} stq_memory;

/** Reads the byte counts; never fails for valid pointers. */
STQ_API stq_status stq_adamw_memory(const stq_adamw *optimizer, stq_memory *memory);

/** One tensor as the optimizer sees it now. */
typedef struct stq_tensor_info {
    const char *name;    /**< owned by the optimizer */
    uint32_t m_bits;     /**< width of the first moment; 0 before the first step, 32 = float32 */
    uint32_t v_bits;     /**< width of the second moment */
    uint64_t bytes;      /**< bytes of its planes and scales */
    stq_zone zone;       /**< at the last decision */
    stq_factors factors; /**< at the last decision; zeros before */
} stq_tensor_info;

/** Reads tensor `index` (0 to tensor_count - 1). */
STQ_API stq_status stq_adamw_tensor(const stq_adamw *optimizer, size_t index, stq_tensor_info *info);

/** Steps made (skipped ones not counted). */
STQ_API int64_t stq_adamw_step_count(const stq_adamw *optimizer);

/** Steps skipped because a gradient was not finite. */
STQ_API int64_t stq_adamw_skipped_count(const stq_adamw *optimizer);

/**
 * What the states of such a list would take, without allocating them: `memory` receives state_bytes (at the cap, or of
 * the fixed widths), smallest_bytes and cap_bytes. Fails as stq_adamw_create does.
 */
STQ_API stq_status stq_adamw_plan(const stq_adamw_config *config, const stq_tensor *tensors, size_t tensor_count,
                                  stq_memory *memory);

/**
 * 64-bit digest of step count, widths, codes, scale words and float32 states in tensor order: equal states have equal
 * digests, and different ones differ but for a chance of 2^-64. Not cryptographic.
 */
STQ_API stq_status stq_adamw_digest(const stq_adamw *optimizer, uint64_t *digest);

#ifdef __cplusplus
}
#endif

#endif
