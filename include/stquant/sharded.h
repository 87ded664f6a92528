/*
 * stquant/sharded.h - AdamW whose states are sharded over the ranks of a communicator (ZeRO stage 1, Rajbhandari et al.
 * 2020).
 *
 * Parameters and gradients lie in flat buffers of the same layout on every rank. Each rank owns a contiguous range of
 * them, cut where segments of 65,536 elements of a tensor begin, holds the states of that range alone, and updates it;
 * the other ranks receive the result. Norms, factors, widths, codes and parameters are the same bytes for every number
 * of ranks, given the same summed gradients.
 *
 * On a GPU the flat buffers are in its memory, and the communicator must work on them and on host memory, as NCCL's
 * does, on the stream of stq_sharded_set_stream(). Steps are only enqueued then, but for those that decide widths or
 * whose result is asked for.
 */
#ifndef STQUANT_SHARDED_H
#define STQUANT_SHARDED_H

#include <stquant/adamw.h>
#include <stquant/comm.h>

#ifdef __cplusplus
extern "C" {
#endif

/** A sharded optimizer. Opaque; made by stq_sharded_create(), freed by stq_sharded_destroy(). */
typedef struct stq_sharded stq_sharded;

/** Where the tensors lie in the flat buffers. */
typedef struct stq_flat {
    const int64_t
        *offsets;   /**< first element of each tensor, ascending, without overlaps; gaps are allowed and ignored */
    int64_t length; /**< elements of a flat buffer */
} stq_flat;

/**
 * Creates the optimizer of this rank's range. Collective; ranks whose configuration, tensors or layout differ are
 * refused (STQ_COMMUNICATION, naming the rank).
 *
 * @param comm     used by every step; must outlive the optimizer
 * @param config   as for stq_adamw_create(); the cap is the global model's
 * @param tensors  whole tensors (first = 0, count = rows * cols), in the order of the flat buffers: float32 on the CPU;
 *                 on a GPU parameters are all of one type, and gradients too
 */
STQ_API stq_status stq_sharded_create(stq_sharded **sharded, stq_comm *comm, const stq_adamw_config *config,
                                      const stq_tensor *tensors, size_t tensor_count, const stq_flat *flat);

/** Frees everything but the communicator; NULL is allowed. */
STQ_API void stq_sharded_destroy(stq_sharded *sharded);

/** The optimizer over this rank's slices: bytes, widths, groups. Owned by the sharded optimizer. */
STQ_API stq_adamw *stq_sharded_optimizer(stq_sharded *sharded);

/** Names the stream (a cudaStream_t) of everything that follows: that of the communicator. The null stream without this
 * call. Never fails on a CPU, where there are no streams. */
STQ_API stq_status stq_sharded_set_stream(stq_sharded *sharded, void *stream);

/** First element and number of elements of the flat buffers that `rank` owns. */
STQ_API void stq_sharded_range(const stq_sharded *sharded, int rank, int64_t *first, int64_t *count);

/**
 * Begins to sum a range of the gradients over the ranks while the rest is still being computed; nobody may touch it
 * until stq_sharded_step(), which sums what was not begun. Collective, in the same order on every rank. Ranges must not
 * overlap.
 */
STQ_API stq_status stq_sharded_start(stq_sharded *sharded, void *gradients, int64_t first, int64_t count);

/**
 * One step: gradients summed over ranks, norm and finite check, factors and widths at decisions (a digest of which all
 * ranks compare), this rank's update, parameters gathered.
 *
 * @param parameters         flat buffer, the same on every rank before and after
 * @param gradients          flat buffer of this rank's share of the gradient (their sum counts); undefined afterwards
 * @param max_gradient_norm  clip the global norm to this; 0 = do not clip
 * @param result             may be NULL; asking for it makes a GPU's step wait
 * A gradient that is not finite on any rank skips the step on all. Ranges begun by stq_sharded_start() that overlap are
 * STQ_INVALID_ARGUMENT: no step is made, and what was begun is forgotten, with whatever the gradients are then.
 */
STQ_API stq_status stq_sharded_step(stq_sharded *sharded, void *parameters, void *gradients, double max_gradient_norm,
                                    stq_step_result *result);

/** State bytes of all ranks together, now. Collective. */
STQ_API stq_status stq_sharded_total_bytes(stq_sharded *sharded, uint64_t *bytes);

#ifdef __cplusplus
}
#endif

#endif
