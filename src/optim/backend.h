/*
 * backend.h - what the optimizer asks of the device that holds parameters, gradients and states. The CPU backend works
 * in host memory and returns when the work is done.
 */
#ifndef STQ_BACKEND_H
#define STQ_BACKEND_H

#include <stquant/adamw.h>

#include "quant/layout.h"

struct stq_sharded;

typedef struct stq_backend {
    /* Sum of squares of all gradients that there are, unscaled, in the fixed order of score/sums.h; not finite if a
     * gradient is not. */
    stq_status (*sum_squares)(void *context, const stq_item *items, size_t count, double *sum);
    /* Factors of one whole tensor's gradient, see stq_score_factors(). */
    stq_status (*factors)(void *context, const stq_tensor *tensor, const stq_item *item, double unscale,
                          stq_factors *factors);
    /* The fused pass over all items that have a gradient: decode in-planes, AdamW, encode out-planes. coefficients are
     * indexed by item->group. */
    stq_status (*update)(void *context, const stq_item *items, size_t count, const stq_coefficients *coefficients,
                         size_t coefficient_count);
    /* Second moments shared along a dimension (quant/shared.h), of whole tensors; NULL where a backend has none. The
     * first fills item->v_out, shared planes, from item->v_in. The second takes this step's gradients into the means of
     * all items with a gradient whose v_in is shared. The third reads v at the item's probes. */
    stq_status (*share_begin)(void *context, const stq_item *item);
    stq_status (*share_step)(void *context, const stq_item *items, size_t count, const stq_coefficients *coefficients);
    stq_status (*share_probes)(void *context, const stq_item *item, float *values);
    /* Copies between the backend's memory and the host's, ordered after the work enqueued so far. */
    stq_status (*read)(void *context, void *host, const void *source, uint64_t bytes);
    stq_status (*write)(void *context, void *target, const void *host, uint64_t bytes);

    /* Slots of devices whose work runs behind the host's back, NULL on the CPU. With `step` the first five slots are
     * not used, and share_probes only after the step's own reading. */

    /* Memory for states where the host supplies none; open() sets its context. */
    stq_allocator allocator;
    /* Bytes of the backend's own lists; tensors, groups and the policy's configuration are there. */
    uint64_t (*record_bytes)(const struct stq_adamw *optimizer);
    /* Sets the optimizer's backend_context, which close() frees even after a failure; close(NULL) is allowed. */
    stq_status (*open)(struct stq_adamw *optimizer, int device_index);
    void (*close)(void *context);
    /* stq_adamw_step() from the attached gradients on. Steps may be in flight afterwards. */
    stq_status (*step)(struct stq_adamw *optimizer, const stq_step *step, stq_step_result *result);
    /* Waits for steps in flight and brings the optimizer's counts up to date. */
    stq_status (*settle)(struct stq_adamw *optimizer);
    /* Whether factors are on their way to the host. */
    bool (*undecided)(const void *context);
    /* Changes a group for the steps that are enqueued from now on. */
    stq_status (*set_group)(void *context, size_t index, const stq_adamw_group *group);
    /* The stream of what follows. */
    void (*set_stream)(void *context, void *stream);

    /* Sharded steps (optim/sharded.h), whose flat buffers are in the device's memory. The first makes what the others
     * need, sharded->device_context, which the second frees; NULL is allowed there. */
    stq_status (*shards_open)(struct stq_sharded *sharded);
    void (*shards_close)(void *context);
    /* The global norm, in the device's memory, from the summed gradients that sharded->gradients points to. */
    stq_status (*shards_norm)(struct stq_sharded *sharded, const double **norm);
    /* Fills sharded->factors, after shards_norm; see stq_sharded_factors(). */
    stq_status (*shards_factors)(struct stq_sharded *sharded);
} stq_backend;

/* The CPU's table; its context is a stq_cpu. */
extern const stq_backend stq_cpu_backend;

/* The table of STQ_DEVICE_CUDA; src/cuda/backend.c, in builds with CUDA. */
extern const stq_backend stq_cuda_backend;

typedef struct stq_cpu {
    int threads;          /* OpenMP threads, 0 = all */
    double *segment_sums; /* scratch of sum_squares: one value a segment of every item, owned by the optimizer */
} stq_cpu;

#endif
