/* gpu_random.h - gradients and parameters for the GPU benchmarks, made on the device. */
#ifndef GPU_RANDOM_H
#define GPU_RANDOM_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Normal values of standard deviation `scale`: `count` floats, or bfloat16 values where `half` is set. */
cudaError_t gpu_random_normal(void *array, int64_t count, bool half, float scale, uint32_t seed, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
