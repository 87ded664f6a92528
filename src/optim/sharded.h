/* sharded.h - inside a sharded optimizer. */
#ifndef STQ_SHARDED_INTERNAL_H
#define STQ_SHARDED_INTERNAL_H

#include <stquant/sharded.h>

#include "quant/layout.h"

struct stq_sharded {
    stq_comm *comm;
    stq_adamw *adamw;
    int threads;
    size_t tensor_count;
    stq_tensor *whole;        /* the global tensors; names are the optimizer's copies */
    stq_tensor *slices;       /* this rank's */
    int64_t *offsets;         /* of whole tensors in the flat buffers */
    int64_t length;           /* of the flat buffers */
    stq_dtype parameter_type; /* of the flat buffers */
    stq_dtype gradient_type;
    void *stream;             /* of a GPU's steps */
    void *device_context;     /* of the backend's slots of sharded steps; NULL on the CPU */
    int64_t *cuts;            /* ranks + 1 places in the flat buffers: rank r owns cuts[r] to cuts[r + 1] - 1 */
    int64_t *counts;          /* scratch, one a rank */
    int64_t *segments_before; /* tensor_count + 1: segments of the tensors before each one */
    double *segment_sums;     /* one a segment of the whole model */
    double *segment_fourths;  /* likewise */
    void **parameters;        /* scratch of a step: pointers to this rank's slices */
    const void **gradients;
    stq_factors *factors;        /* scratch of a decision */
    struct stq_started *started; /* reductions under way */
    size_t started_count;
    size_t started_room;
};

/* Elements of the flat buffers before the slice of tensor i that this rank owns. */
int64_t stq_sharded_slice_offset(const stq_sharded *sharded, size_t index);

/* Segments of the whole model in front of those that this rank owns. */
int64_t stq_sharded_first_segment(const stq_sharded *sharded);

/* Sums over ranks of what each knows of the segments it owns: every rank gets all entries. */
stq_status stq_sharded_gather_segments(stq_sharded *sharded, double *values, const char *what);

/* Factors of all tensors whose widths are chosen, from summed gradients of which this rank has its range; without the
 * spread of rows. segment_sums is filled. */
stq_status stq_sharded_factors(stq_sharded *sharded, const float *gradients);

#endif
