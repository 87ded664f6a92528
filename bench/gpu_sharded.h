/* gpu_sharded.h - what the parts of gpu_sharded share: one process a GPU, lists of tensors, messages. */
#ifndef GPU_SHARDED_H
#define GPU_SHARDED_H

#include <cuda_runtime_api.h>
#include <stdio.h>

#include "gpu_random.h"
#include <stquant/sharded.h>

/* One process. */
typedef struct job {
    int rank, ranks;
    stq_comm *comm; /* of all ranks; over one process with one rank */
    stq_comm *self; /* of this process alone */
    cudaStream_t stream;
    char device[256];
} job;

/* Tensors in flat buffers. */
typedef struct model {
    stq_tensor *tensors;
    char (*names)[24];
    int64_t *offsets;
    size_t count;
    int64_t length; /* elements of a flat buffer */
    int64_t parameters;
} model;

void model_add(model *m, int64_t rows, int64_t cols);
void model_free(model *m);

/* Prints what failed, with rank and place; returns whether nothing did. */
bool passed(stq_status status, const char *call, const char *file, int line);
bool passed_cuda(cudaError_t error, const char *call, const char *file, int line);
#define TRY(call)                                       \
    do {                                                \
        if (!passed((call), #call, __FILE__, __LINE__)) \
            return false;                               \
    } while (0)
#define TRY_CUDA(call)                                       \
    do {                                                     \
        if (!passed_cuda((call), #call, __FILE__, __LINE__)) \
            return false;                                    \
    } while (0)

/* Equal states, parameters and decisions, however many ranks there are; `small` for emulators. Every rank returns the
 * same but where communication itself failed. */
bool check_equality(job *j, bool small);

/* The last rank ends without a word in the midst of the steps: the others must notice within the time-out. */
bool check_death(job *j, bool small);

#endif
