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

/*
 * Gradients that ranks may add up in any order, even in bfloat16: small multiples of a power of two `quantum`. The
 * array receives the sum of the shares first_part to first_part + parts - 1; up to 16 shares are exact.
 */
cudaError_t gpu_random_shares(void *array, int64_t count, bool half, float quantum, uint32_t seed, uint32_t first_part,
                              uint32_t parts, cudaStream_t stream);

/*
 * Adds to *digest, on the device, a hash of each of `count` units of two bytes and of its place (`first` onwards), so
 * that the digest of a whole is the sum of those of its parts.
 */
cudaError_t gpu_digest(const void *units, int64_t count, int64_t first, uint32_t seed, uint64_t *digest,
                       cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
