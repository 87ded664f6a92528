/*
 * backend.h - what the optimizer asks of the device that holds parameters, gradients and states. The CPU backend works
 * in host memory and returns when the work is done.
 */
#ifndef STQ_BACKEND_H
#define STQ_BACKEND_H

#include <stquant/adamw.h>

#include "quant/layout.h"

typedef struct stq_backend {
    const char *name;
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
} stq_backend;

/* The CPU's table; its context is a stq_cpu. */
extern const stq_backend stq_cpu_backend;

typedef struct stq_cpu {
    int threads;          /* OpenMP threads, 0 = all */
    double *segment_sums; /* scratch of sum_squares: one value a segment of every item, owned by the optimizer */
} stq_cpu;

#endif
