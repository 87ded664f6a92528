/*
 * kernels.h - launches of the GPU kernels. Every pointer is a device pointer, every call only enqueues work on
 * `stream`.
 */
#ifndef STQ_CUDA_KERNELS_H
#define STQ_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stquant/adamw.h>

#include "cuda/lists.h"
#include "qat/backend.h"
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

/* The same sum out of all sums of every segment, which `moments` receives. `sums` is scratch for item_count values. */
cudaError_t stq_cuda_sum_moments(const stq_device_item *items, int64_t item_count, const stq_tile *segments,
                                 int64_t segment_count, const int64_t *first_segment, stq_moment_sums *moments,
                                 double *sums, double *total, cudaStream_t stream);

/* The first half of stq_cuda_sum_squares(): the sums of squares of the segments. The second, for lists of which every
 * rank has slices: their sum over the segments of the whole tensors (first_segment counts those), and its root. `sums`
 * is scratch for item_count values. */
cudaError_t stq_cuda_segment_squares(const stq_device_item *items, const stq_tile *segments, int64_t segment_count,
                                     double *squares, cudaStream_t stream);
cudaError_t stq_cuda_norm(const stq_device_item *items, int64_t item_count, const int64_t *first_segment,
                          const double *squares, double *sums, double *norm, cudaStream_t stream);

/* All sums of every segment; none where `gate` is not NULL and not active. */
cudaError_t stq_cuda_moments(const stq_device_item *items, const stq_tile *segments, int64_t segment_count,
                             const stq_gate *gate, stq_moment_sums *sums, cudaStream_t stream);

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
    bool summed;              /* `moments` holds the segments' sums already */
    int32_t *vectors;         /* scratch, rows + cols of every ranked tensor */
    const stq_gate *gate;     /* NULL, or where it is not active nothing is measured */
} stq_score_lists;

/*
 * Sets gate->active: with `every` 0 in each step that is made, else in one of decision steps every `every` that is made
 * while nothing has been measured. `unscale` is divided by *loss_scale, if there is one.
 */
cudaError_t stq_cuda_open_gate(stq_gate *gate, const stq_control *control, int64_t every, double unscale,
                               const float *loss_scale, cudaStream_t stream);

/* Fills in `scores`, one an item. */
cudaError_t stq_cuda_scores(const stq_score_lists *lists, stq_score *scores, cudaStream_t stream);

/*
 * The same in stages, for gradients of which every rank has slices. The caller adds over the ranks: after the moments
 * the fourth powers (of which each rank has its segments) and the largest magnitudes, after each product the vectors.
 */

/* `fourths` has an entry for each of lists->segments, `largest` (bits of magnitudes, zeroed before) one an item. */
cudaError_t stq_cuda_slice_moments(const stq_score_lists *lists, double *fourths, int32_t *largest,
                                   cudaStream_t stream);

/* Sums over the segments of whole tensors, which first_segment counts, and the start vectors. */
cudaError_t stq_cuda_slice_begin(const stq_score_lists *lists, const int64_t *first_segment, const double *squares,
                                 const double *fourths, const int32_t *largest, stq_score *scores, cudaStream_t stream);

/* y = G x, measuring the elements the first time. Rows that no slice here touches are left as they are. */
cudaError_t stq_cuda_score_rows(const stq_score_lists *lists, bool measure, stq_score *scores, cudaStream_t stream);

/* z = G' y. */
cudaError_t stq_cuda_score_columns(const stq_score_lists *lists, stq_score *scores, cudaStream_t stream);

/* x = z, scaled. */
cudaError_t stq_cuda_score_next(const stq_score_lists *lists, stq_score *scores, cudaStream_t stream);

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
 * Second moments that are shared: `begin` fills the means of those items whose v_out is shared and whose v_in is not,
 * `step` takes the gradients into the means of those whose v_in is shared. Both leave items without a gradient alone,
 * and everything where control->skip is set.
 */
cudaError_t stq_cuda_share_begin(const stq_share_lists *lists, cudaStream_t stream);
cudaError_t stq_cuda_share_step(const stq_share_lists *lists, cudaStream_t stream);

/* v at the probes of every item that may share it: values[items[i].probes_at] and following. */
cudaError_t stq_cuda_read_probes(const stq_device_item *items, int64_t item_count, float *values, cudaStream_t stream);

/*
 * The fused pass: stq_cuda_step_shared() over the items of the kinds STQ_KIND_SHARED, stq_cuda_step() over the others.
 * `tiles` names every tile of every item once; `coefficients` has one entry an item. Items without a gradient stay as
 * they are, and everything does where control->skip is set.
 */
cudaError_t stq_cuda_step(const stq_device_item *items, const stq_tile *tiles, int64_t tile_count,
                          const stq_coefficients *coefficients, const stq_control *control, cudaStream_t stream);
cudaError_t stq_cuda_step_shared(const stq_device_item *items, const stq_tile *tiles, int64_t tile_count,
                                 const stq_coefficients *coefficients, const stq_control *control, cudaStream_t stream);

/* The passes of quantization-aware training. */
cudaError_t stq_cuda_launch_qat_forward(void *quantized, const stq_qat_pass *pass, cudaStream_t stream);
cudaError_t stq_cuda_launch_qat_backward(void *weight_gradient, float *step_gradient, const stq_qat_pass *pass,
                                         const void *gradient, double scale, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
