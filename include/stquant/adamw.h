/*
 * stquant/adamw.h - AdamW (Loshchilov & Hutter 2019) over a list of tensors, with states of adaptive precision.
 *
 *   stq_adamw_config config = stq_adamw_defaults();
 *   config.policy.state_bits = 5.0;
 *   stq_adamw *optimizer;
 *   if (stq_adamw_create(&optimizer, &config, tensors, tensor_count) != STQ_OK) puts(stq_last_error());
 *   for each step:
 *       stq_adamw_step(optimizer, &(stq_step){.size = sizeof(stq_step), .parameters = p, .gradients = g, .unscale = 1},
 *                      NULL);
 *   stq_adamw_destroy(optimizer);
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
    const stq_allocator *allocator; /**< memory for states; copied; NULL = the library's own */
    int threads;                    /**< OpenMP threads, 0 = all; the results do not depend on it */
    stq_device device;              /**< where everything is; default STQ_DEVICE_CPU */
    int device_index;   /**< which GPU, as the CUDA runtime counts them; default 0. Calls that work on it make it the
                             calling thread's current device */
    bool counts_as_cpu; /**< on a GPU: bytes are counted as the same states take them on a CPU, so that widths under a
                             cap and saved records are the CPU's, byte for byte. No count then has what a GPU needs
                             besides: lists, about 1 KiB a tensor, and what its allocator rounds up; default false */
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

/**
 * What one step is given. Arrays of pointers have tensor_count entries, in the order of stq_adamw_create(), and lie in
 * host memory; what they point to is in the memory of the optimizer's device, as are loss_scale and found_infinite.
 */
typedef struct stq_step {
    size_t size;             /**< sizeof(stq_step) */
    void *const *parameters; /**< tensor.count elements of parameter_type each; updated in place */
    /** tensor.count elements of gradient_type each; only read. NULL leaves the tensor alone in this step: parameter and
     * states stay, and the step is missing in the tensor's own step count, which corrects the bias of its moments */
    const void *const *gradients;
    double unscale;              /**< every gradient counts as g * unscale (1 / loss scale); 1 for none; > 0 */
    double max_gradient_norm;    /**< clip the global norm to this; 0 = do not clip */
    bool norm_supplied;          /**< the caller knows the norm, or at least that all gradients are finite or that some
                                      are not: one pass less */
    double gradient_norm;        /**< with norm_supplied: the global norm after unscaling; not finite = skip the step */
    const double *norm_pointer;  /**< with norm_supplied: read the norm from here instead; NULL = gradient_norm */
    const float *loss_scale;     /**< NULL, or one float > 0 by which `unscale` is divided */
    const float *found_infinite; /**< NULL, or one float: other than 0 = skip the step */
    const stq_factors *factors;  /**< NULL, or tensor_count factors in host memory, read at decision steps for tensors
                                      with a gradient: needed where the gradients are slices */
    void *stream;                /**< the cudaStream_t that the work is enqueued on; not used on a CPU */
} stq_step;

/** What one step did. */
typedef struct stq_step_result {
    double gradient_norm; /**< global norm after unscaling, before clipping; may be infinite or NaN */
    bool skipped;         /**< a gradient was not finite: parameters, states and step count are as before */
    bool decided;         /**< widths were decided in this step, by a delay from the gradients of an earlier one */
    bool waiting;         /**< a change of width had to wait for the next step, since the cap has no room for it yet */
} stq_step_result;

/**
 * One AdamW step over all tensors: global norm and finite check, at decision steps factors and widths, then one fused
 * pass that decodes, updates and encodes. `result` may be NULL.
 *
 * A non-finite gradient skips the step whole and is not an error. Without any gradient nothing happens, and no step is
 * counted. A promotion for which there is no memory is put off, which is no error either. After an error parameters,
 * step count and moments are as before, but for second moments that were to be shared from this step on and may be so
 * already; widths may have been decided.
 */
STQ_API stq_status stq_adamw_step(stq_adamw *optimizer, const stq_step *step, stq_step_result *result);

/** Sets *due to whether the next step, if it is not skipped, measures its gradients for a decision about widths: it
 * reads stq_step.factors. Without a delay (stq_policy_config.decision_delay) it decides too. */
STQ_API stq_status stq_adamw_decision_due(const stq_adamw *optimizer, bool *due);

/**
 * Sets *only to whether the next step does nothing but enqueue work, as far as the host knows without waiting for the
 * device: no decision is due or put off, and no change of widths is left to make. Such a step can be captured into a
 * CUDA graph, and such steps can be replayed.
 */
STQ_API stq_status stq_adamw_only_enqueues(const stq_adamw *optimizer, bool *only);

/** Reads the global gradient norm of the latest step, after unscaling and before clipping; NaN before the first. Waits
 * for steps in flight. */
STQ_API stq_status stq_adamw_gradient_norm(const stq_adamw *optimizer, double *norm);

/**
 * Names the stream (a cudaStream_t) on which everything between steps is enqueued: changes of groups, reads and writes
 * of states. Without this it is that of the latest step. Never fails on a CPU, where there are no streams.
 */
STQ_API stq_status stq_adamw_set_stream(stq_adamw *optimizer, void *stream);

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

/**
 * Seconds that the policy took to choose the widths of all tensors at the last decision; 0 before the first. Neither
 * the factors nor the transitions are in it, which are work on gradients and states.
 */
STQ_API double stq_adamw_decision_seconds(const stq_adamw *optimizer);

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

/*
 * ---- State access: for checkpoints and for frameworks that keep states in dictionaries of their own ----
 *
 * The state of an optimizer is a stq_adamw_record, one stq_tensor_record a tensor, and the contents of its buffers.
 * Saving copies the three out. Resuming creates an optimizer over the same tensors, calls stq_adamw_fit() where cap or
 * widths may differ, then stq_adamw_restore(), and fills the buffers: raw, by their pointers, where the widths are
 * those that were saved, or with stq_adamw_write_state(), which encodes anew. With equal widths the resumed optimizer
 * continues byte for byte. Hyper-parameters of the groups are the caller's to set again.
 */

/** Version of the two records below. */
#define STQ_RECORD_VERSION 1

/** What an optimizer remembers besides its buffers. Fixed layout, little-endian on every supported machine. */
typedef struct stq_adamw_record {
    uint32_t version;     /**< STQ_RECORD_VERSION */
    uint32_t pending;     /**< 0, or of a decision that is put off: in its low 8 bits the attempts up to the one that
                               makes it, above them the steps since its gradients were measured */
    int64_t steps;        /**< made; with `seed` the state of the random numbers */
    int64_t skipped;      /**< steps skipped because a gradient was not finite */
    uint64_t seed;        /**< of the stochastic rounding; replaces that of the configuration */
    uint64_t peak_bytes;  /**< largest state_bytes so far; 0 = begin anew */
    double bits_sum;      /**< sum over steps of the all-in bits */
    int64_t decisions;    /**< made by the policy */
    int64_t forced;       /**< demotions that the cap forced */
    int64_t last_step;    /**< of the last decision; 0 before the first */
    uint64_t last_bytes;  /**< of the global states at the targets of the last decision */
    double spent;         /**< STQ_CAP_MEAN: bytes times steps up to last_step */
    double log_n_average; /**< N_ema: average of log n; NaN before the first decision */
    double log_r_average; /**< R_ema; NaN before the first decision */
    double log_n_peak;    /**< highest N_ema since step 30; NaN before */
    double volatility_average; /**< of the mean volatility; NaN before it is known */
    double reheating;          /**< 0 to 1: raised by a jump of volatility */
} stq_adamw_record;

/** What an optimizer remembers of one tensor. States are indexed by stq_state. */
typedef struct stq_tensor_record {
    uint8_t bits[2];   /**< widths now: 2 to 8 or 32; 0 before the tensor's first step */
    uint8_t target[2]; /**< widths last decided; they differ from `bits` while a transition waits for room */
    uint8_t asked[2];  /**< decisions in a row that asked for a demotion */
    uint8_t zone;      /**< stq_zone at the last decision */
    uint8_t sharing;   /**< 0, or while a decision is put off: how far v varies along rows (bits 0 and 1: 0, 1 and 2 for
                            a ratio below 0.5, below 1, and 1 or more) and columns (bits 2 and 3); bit 4: less along
                          columns */
    int64_t missed;    /**< steps made without a gradient of the tensor; all of them where bits are 0 */
    double last_log_n; /**< log n at the last decision; NaN before the first */
    stq_factors factors; /**< at the last decision; zeros before */
} stq_tensor_record;

/** Reads the record and the tensor_count tensor records. */
STQ_API stq_status stq_adamw_save_records(const stq_adamw *optimizer, stq_adamw_record *record,
                                          stq_tensor_record *tensors, size_t tensor_count);

/**
 * Puts the records back: counts, policy, and planes of the widths tensors[i].bits, allocated under the cap. What was
 * in the states is gone, and what is in them now is undefined until every buffer has been written.
 *
 * Errors: STQ_INVALID_ARGUMENT (another tensor_count), STQ_UNSUPPORTED (another version), STQ_CORRUPT (a record
 * contradicts itself or the tensor: named), STQ_CAP_TOO_SMALL (the widths do not fit; see stq_adamw_fit); these leave
 * everything as it was. STQ_OUT_OF_MEMORY leaves the optimizer as stq_adamw_create() made it.
 */
STQ_API stq_status stq_adamw_restore(stq_adamw *optimizer, const stq_adamw_record *record,
                                     const stq_tensor_record *tensors, size_t tensor_count);

/**
 * Changes tensors[i].bits (and target, asked) to widths that this optimizer can hold: records saved under a larger cap,
 * another policy, or with float32 states (bits 32, as imported from a float32 AdamW). Records that fit stay untouched.
 *
 * *changed (may be NULL) tells whether a width changed. Errors as for stq_adamw_restore(), after STQ_CAP_TOO_SMALL the
 * widths in the records are undefined; the optimizer is not changed.
 */
STQ_API stq_status stq_adamw_fit(const stq_adamw *optimizer, const stq_adamw_record *record, stq_tensor_record *tensors,
                                 size_t tensor_count, bool *changed);

/** Which array of a state a buffer is. */
typedef enum stq_part {
    STQ_PART_BASE = 0,   /**< base plane, bytes */
    STQ_PART_BIT0 = 1,   /**< first bit plane, bytes; the others follow: STQ_PART_BIT0 + k */
    STQ_PART_BIT3 = 4,   /**< last bit plane */
    STQ_PART_SCALES = 5, /**< 16-bit scale words */
    STQ_PART_VALUES = 6, /**< the state itself in float32 */
    STQ_PART_SHARED = 7  /**< of a shared second moment: means, gradient factor and probes in float32 (docs/codec.md) */
} stq_part;

/** Name of a part of a state, "m.base", "m.bit0", ..., "v.scales", "v.values", "v.shared"; static storage; NULL if
 * there is none.
 */
STQ_API const char *stq_part_name(stq_state state, stq_part part);

/** One array of the state. */
typedef struct stq_buffer {
    const char *tensor;    /**< the tensor's name, owned by the optimizer */
    size_t index;          /**< the tensor's index */
    stq_state state;       /**< whose moment */
    stq_part part;         /**< which array of it */
    uint32_t element_size; /**< 1 (planes), 2 (scale words) or 4 (float32) */
    void *data;            /**< in the backend's memory, valid until the next step or restore */
    uint64_t bytes;        /**< without the allocator's rounding; 1 or more */
} stq_buffer;

/**
 * Lists all arrays of the state, by tensor, state and part. Writes at most `capacity` entries; *count receives how many
 * there are (0 before the first step). `buffers` may be NULL with capacity 0.
 */
STQ_API stq_status stq_adamw_buffers(const stq_adamw *optimizer, stq_buffer *buffers, size_t capacity, size_t *count);

/**
 * Decodes a range of one state into host memory.
 *
 * @param optimizer  whose state
 * @param index      the tensor's, 0 to tensor_count - 1
 * @param state      which moment
 * @param values     receives `count` float32 values (zeros before the first step)
 * @param first      first element, counted in the global tensor; first .. first + count - 1 must be held here
 * @param count      number of values, 0 or more
 */
STQ_API stq_status stq_adamw_read_state(const stq_adamw *optimizer, size_t index, stq_state state, float *values,
                                        int64_t first, int64_t count);

/**
 * Writes a range of one state from host planes of any width, at the width that the optimizer has (see
 * stq_adamw_restore). Equal widths are copied; others are decoded and encoded, v with random numbers of the seed, the
 * step count and a stream of their own.
 *
 * @param optimizer  whose state
 * @param index      the tensor's, 0 to tensor_count - 1
 * @param state      which moment
 * @param source     planes of the elements first .. first + count - 1 of the global tensor, blocks counted from `first`
 * @param first      first element. What of the range is not held here is ignored; where the state is coded, blocks
 *                   held here must lie whole in the range or not at all
 * @param count      number of elements, 0 or more
 * Errors: STQ_INVALID_ARGUMENT (range, cut blocks, a plane that is missing: nothing is written), STQ_UNSUPPORTED (a
 * part of a shared second moment), STQ_CORRUPT (scale words that no encoder writes, moments that are not finite or, in
 * v, negative; -0 counts as 0), STQ_OUT_OF_MEMORY; the range is undefined after the last two.
 */
STQ_API stq_status stq_adamw_write_state(stq_adamw *optimizer, size_t index, stq_state state, const stq_planes *source,
                                         int64_t first, int64_t count);

/** Reads group `index` of the hyper-parameters. */
STQ_API stq_status stq_adamw_get_group(const stq_adamw *optimizer, size_t index, stq_adamw_group *group);

#ifdef __cplusplus
}
#endif

#endif
