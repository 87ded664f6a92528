/* backend.h - what the CUDA backend keeps for one optimizer. */
#ifndef STQ_CUDA_BACKEND_H
#define STQ_CUDA_BACKEND_H

#include <cuda_runtime_api.h>

#include "cuda/kernels.h"
#include "cuda/worklist.h"
#include "optim/optimizer.h"

/* Uploads of items in flight at most: the host writes one while the copy of the other may still be read. */
#define STQ_CUDA_SLOTS 2

/* Factors, probes and counts of one step, in pinned memory. */
typedef struct stq_measure {
    int64_t attempt; /* the step's, counted in steps made or skipped; 0 = none */
    bool scored;     /* with factors */
    cudaEvent_t done;
    void *pinned; /* in which the others lie */
    stq_control *control;
    stq_gate *gate;
    stq_score *scores; /* one an item */
    float *probes;
} stq_measure;

/* Where an item's scratch for shared second moments lies: -1 where it never shares. */
typedef struct stq_share_place {
    int64_t means_at;
    int64_t probes_at;
} stq_share_place;

typedef struct stq_cuda {
    int device;
    cudaStream_t stream; /* of the latest step */
    stq_worklist list;   /* in host memory */

    stq_device_item *items; /* on the device, as all pointers up to `control` */
    stq_tile *tiles;
    stq_tile *segments;
    int64_t *first_segment;
    double *sums; /* a segment, an item, and the total */
    stq_coefficients *coefficients;
    stq_adamw_group *groups;
    int64_t *missed;
    stq_control *control;
    int64_t *share_sums; /* scratch of shared second moments; NULL where none can be */
    float *share_factors;
    uint32_t *saturated;

    stq_share_place *places; /* host memory, one an item */
    int64_t means;           /* of all items that may share */
    int64_t probe_values;
    const float *probes; /* the second moments at the probes, as measured last */

    stq_gate *gate;           /* on the device */
    stq_moment_sums *moments; /* on the device: of this step's segments, summed for its norm; else NULL */
    stq_tile *chunks;         /* on the device: STQ_SCORE_ROWS rows each, of all coded tensors */
    int64_t chunk_count;
    int64_t vector_length;
    stq_score *plan; /* one an item, what is measured of it */
    bool whole;      /* no tensor is a slice */
    stq_measure measures[STQ_LARGEST_DELAY + 1];
    int measure_count;
    bool measured;     /* the gate has been passed since it was opened */
    int64_t handled;   /* decision steps up to this one are measured, or passed over */
    uint64_t restored; /* the optimizer's, when device and host last agreed */

    stq_device_item *present;                /* the items as uploaded last */
    stq_device_item *staged[STQ_CUDA_SLOTS]; /* pinned */
    cudaEvent_t copied[STQ_CUDA_SLOTS];
    int slot;
    stq_control *counted; /* pinned: the control record as read back */

    int64_t known_steps; /* the optimizer's counts when device and host last agreed, or as expected since */
    int64_t known_skipped;
    bool counts_uploaded;
    bool unsettled; /* steps were enqueued whose outcome the host has not seen */
} stq_cuda;

/* Names the failed call in a sentence. */
stq_status stq_cuda_error(cudaError_t error, const char *call);

#define STQ_CUDA_CHECK(call)                               \
    do {                                                   \
        cudaError_t stq_cuda_status = (call);              \
        if (stq_cuda_status != cudaSuccess)                \
            return stq_cuda_error(stq_cuda_status, #call); \
    } while (0)

/* Where the next part of a block of device memory begins, a multiple of 256 bytes; *used is then its end. */
static inline size_t stq_cuda_reserve(size_t *used, size_t bytes) {
    size_t at = *used;
    *used += (size_t)stq_round_up(bytes, 256);
    return at;
}

/* Brings the items, as the store has them now, to the device. */
stq_status stq_cuda_upload_items(stq_adamw *o);

/* Entries of the list of chunks, and bytes of all measures: part of the records. */
int64_t stq_cuda_count_chunks(const stq_adamw *o);
uint64_t stq_cuda_measure_bytes(const stq_adamw *o, int64_t probe_values);

/* Makes and frees what measures need, once the lists are allocated. */
stq_status stq_cuda_open_measures(stq_cuda *cuda, const stq_adamw *o);
void stq_cuda_close_measures(stq_cuda *cuda);

/* Drops measures under way; decision steps up to `steps` count as handled. */
void stq_cuda_forget_measures(stq_cuda *cuda, int64_t steps);

/* The undecided slot of the backend table. */
bool stq_cuda_undecided(const void *context);

/*
 * Enqueues the measuring of step `attempt`, whose counts are made on the device already: with factors if `scores`. It
 * takes place if the step is made and, with `every` other than 0, if it is a decision step and nothing has been
 * measured since the last decision was made.
 */
stq_status stq_cuda_measure(stq_adamw *o, const stq_step *step, int64_t attempt, int64_t every, bool scores);

/* Room for this step's moments, which stq_cuda_measure() uses and frees, in the stream's order; frees those of a step
 * that was not measured. */
stq_status stq_cuda_open_moments(stq_cuda *cuda, bool wanted);

/* Waits for measures of attempts up to `last`, and hands what they found to the optimizer, its counts too. */
stq_status stq_cuda_collect(stq_adamw *o, int64_t last);

/* Sets the host's counts. */
void stq_cuda_correct_counts(stq_adamw *o, int64_t steps, int64_t skipped);

/* Second moments that are shared from this step on: their means, after which their codes are freed. The items are on
 * the device; they are afterwards too. */
stq_status stq_cuda_begin_sharing(stq_adamw *o);

/* Takes the step's gradients into the means of shared second moments. */
stq_status stq_cuda_follow_shared(stq_adamw *o);

/* The places of all items, and how much room they take; `places` may be NULL. Slices count as whole tensors. */
void stq_cuda_share_places(const stq_adamw *o, stq_share_place *places, int64_t *means, int64_t *probe_values);

/* The share_probes slot of the backend table: out of cuda->probes. */
stq_status stq_cuda_share_probes(void *context, const stq_item *item, float *values);

/* The step slot of the backend table, and the reading back of its counts. */
stq_status stq_cuda_adamw_step(stq_adamw *o, const stq_step *step, stq_step_result *result);
stq_status stq_cuda_settle(stq_adamw *o);

/* The slots of sharded steps, see optim/backend.h. */
stq_status stq_cuda_shards_open(struct stq_sharded *sharded);
void stq_cuda_shards_close(void *context);
stq_status stq_cuda_shards_norm(struct stq_sharded *sharded, const double **norm);
stq_status stq_cuda_shards_factors(struct stq_sharded *sharded);

#endif
