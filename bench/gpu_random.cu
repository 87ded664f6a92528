/* gpu_random.cu - normal values by Box and Muller out of counters. */
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
