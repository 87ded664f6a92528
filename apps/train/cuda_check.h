// How calls of the CUDA runtime fail in the command. For files that are compiled with STQUANT_APPS_CUDA alone.
#ifndef STQUANT_TRAIN_CUDA_CHECK_H
#define STQUANT_TRAIN_CUDA_CHECK_H

#include <cuda_runtime_api.h>

#include "train/failure.h"

// Records what CUDA says, and clears it: a later launch would report it again.
static inline enum app_status cuda_failed(cudaError_t error) {
    (void)cudaGetLastError();
    return app_fail(APP_FAILED, "CUDA reports '%s'.", cudaGetErrorString(error));
}

#define GPU_CHECK(call)                       \
    do {                                      \
        const cudaError_t gpu_error = (call); \
        if (gpu_error != cudaSuccess) {       \
            return cuda_failed(gpu_error);    \
        }                                     \
    } while (0)

#endif
