/*
 * kernels.h - launches of the GPU kernels. Every pointer is a device pointer, every call only enqueues work on
 * `stream`.
 */
#ifndef STQ_CUDA_KERNELS_H
#define STQ_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stquant/adamw.h>

#include "cuda/lists.h"
#include "score/sums.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Sum of squares of all gradients that there are, as backend.h has it. `segments` names every segment of every item
 * once, in order; item i has those from first_segment[i] to first_segment[i + 1] - 1 (item_count + 1 entries). `sums`
 * is scratch for segment_count + item_count values.
 */
cudaError_t stq_cuda_sum_squares(const stq_device_item *items, int64_t item_count, const stq_tile *segments,
                                 int64_t segment_count, const int64_t *first_segment, double *sums, double *total,
                                 cudaStream_t stream);

/* All sums of every segment. */
cudaError_t stq_cuda_moments(const stq_device_item *items, const stq_tile *segments, int64_t segment_count,
                             stq_moment_sums *sums, cudaStream_t stream);

/* What the factors of all tensors are computed from and with. */
typedef struct stq_score_lists {
    const stq_device_item *items;
    int64_t item_count;
    const stq_tile *segments; /* as for stq_cuda_sum_squares() */
    const int64_t *first_segment;
    int64_t segment_count;
    const stq_tile *chunks; /* STQ_SCORE_ROWS rows each, of the tensors that take part */
    int64_t chunk_count;
    stq_moment_sums *moments; /* scratch, one a segment */
    int32_t *vectors;         /* scratch, rows + cols of every ranked tensor */
} stq_score_lists;

/* Fills in `scores`, one an item. */
cudaError_t stq_cuda_scores(const stq_score_lists *lists, stq_score *scores, cudaStream_t stream);

/*
 * Norm, finite check and coefficients (one an item) of the next step; counts it in `control`. `missed` has an entry an
 * item: the steps made without its gradient. `request` is copied.
 */
cudaError_t stq_cuda_prepare(const stq_prepare *request, const stq_device_item *items, const stq_adamw_group *groups,
                             int64_t *missed, stq_coefficients *coefficients, int64_t item_count, stq_control *control,
                             cudaStream_t stream);

/* groups[index] = *group, in the stream's order. */
cudaError_t stq_cuda_set_group(stq_adamw_group *groups, int64_t index, const stq_adamw_group *group,
                               cudaStream_t stream);

/*
 * The fused pass. `tiles` names every tile of every item once; `coefficients` has one entry an item. Items without a
 * gradient stay as they are, and everything does where control->skip is set.
 */
cudaError_t stq_cuda_step(const stq_device_item *items, const stq_tile *tiles, int64_t tile_count,
                          const stq_coefficients *coefficients, const stq_control *control, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
