/* gpu_random.cu - normal values by Box and Muller out of counters; shares of gradients; digests. */
#include "gpu_random.h"

#include "quant/convert.h"

static __global__ void normal_kernel(void *array, int64_t count, bool half, float scale, uint32_t seed) {
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        uint32_t a = stq_hash((uint32_t)i * 2 + stq_hash(seed + (uint32_t)(i >> 31)));
        uint32_t b = stq_hash(a + 0x9e3779b9u);
        float radius = sqrtf(-2.0f * __logf(((float)(a >> 8) + 0.5f) * (1.0f / 16777216.0f)));
        float value = scale * radius * __cosf(6.2831853f * (float)(b >> 8) * (1.0f / 16777216.0f));
        if (half)
            ((uint16_t *)array)[i] = stq_to_bfloat16(value, 0x8000u);
        else
            ((float *)array)[i] = value;
    }
}

cudaError_t gpu_random_normal(void *array, int64_t count, bool half, float scale, uint32_t seed, cudaStream_t stream) {
    normal_kernel<<<2048, 256, 0, stream>>>(array, count, half, scale, seed);
    return cudaGetLastError();
}

/* The integer that `part` contributes to element i, in -16 to 15. */
static __device__ int share(uint32_t seed, uint32_t part, int64_t i) {
    return (int)(stq_hash(stq_hash(seed + part * 0x9e3779b9u) ^ (uint32_t)i) >> 27) - 16;
}

static __global__ void shares_kernel(void *array, int64_t count, bool half, float quantum, uint32_t seed,
                                     uint32_t first_part, uint32_t parts) {
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        int sum = 0;
        for (uint32_t part = first_part; part < first_part + parts; part++)
            sum += share(seed, part, i);
        float value = (float)sum * quantum * (float)(1 << (i >> 10 & 3));
        if (half)
            ((uint16_t *)array)[i] = stq_to_bfloat16(value, 0x8000u);
        else
            ((float *)array)[i] = value;
    }
}

static unsigned blocks_for(int64_t count) { return count > 2048 * 256 ? 2048u : (unsigned)((count + 255) / 256); }

cudaError_t gpu_random_shares(void *array, int64_t count, bool half, float quantum, uint32_t seed, uint32_t first_part,
                              uint32_t parts, cudaStream_t stream) {
    if (count > 0)
        shares_kernel<<<blocks_for(count), 256, 0, stream>>>(array, count, half, quantum, seed, first_part, parts);
    return cudaGetLastError();
}

static __global__ void digest_kernel(const uint16_t *units, int64_t count, int64_t first, uint32_t seed,
                                     unsigned long long *digest) {
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    unsigned long long sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        int64_t at = first + i;
        uint32_t low = stq_hash(stq_hash(seed ^ (uint32_t)at) + units[i] + 0x9e3779b9u * (uint32_t)(at >> 32));
        sum += (unsigned long long)low << 32 | stq_hash(low ^ 0x85ebca6bu);
    }
    atomicAdd(digest, sum);
}

cudaError_t gpu_digest(const void *units, int64_t count, int64_t first, uint32_t seed, uint64_t *digest,
                       cudaStream_t stream) {
    if (count > 0)
        digest_kernel<<<blocks_for(count), 256, 0, stream>>>((const uint16_t *)units, count, first, seed,
                                                             (unsigned long long *)digest);
    return cudaGetLastError();
}
