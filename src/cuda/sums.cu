/*
 * sums.cu - the gradient pass: sums of squares in the fixed order of score/sums.h. 256 threads own 8 of a segment's
 * 2,048 accumulators each and add their elements in ascending order, then the accumulators are halved as there.
 */
#include "cuda/kernels.h"
#include "quant/convert.h"
#include "score/sums.h"

#define THREADS 256
#define OWN (STQ_TREE_WIDTH / THREADS)

/* Halves 2,048 accumulators in shared memory; the sum is in accumulators[0] after the last barrier. */
static __device__ void halve(double *accumulators) {
    for (int width = STQ_TREE_WIDTH / 2; width > 0; width /= 2) {
        __syncthreads();
        for (int j = (int)threadIdx.x; j < width; j += THREADS)
            accumulators[j] += accumulators[j + width];
    }
    __syncthreads();
}

static __device__ __forceinline__ void add_square(double *own, float g) {
    double wide = g;
    *own = fma(wide, wide, *own); /* the square is exact: one rounding, as in the reference */
}

static __device__ __forceinline__ void add_halves(double *own, uint4 words) {
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int k = 0; k < OWN; k++)
        add_square(&own[k], stq_bits_float(k & 1 ? pairs[k / 2] & 0xffff0000u : pairs[k / 2] << 16));
}

/* One whole segment of an array aligned to 16 bytes. */
static __device__ void add_bfloat16(double *own, const void *segment) {
    const uint4 *from = (const uint4 *)segment + threadIdx.x;
#pragma unroll 4
    for (int row = 0; row < STQ_SEGMENT / STQ_TREE_WIDTH; row++)
        add_halves(own, __ldcs(from + row * THREADS));
}

static __device__ void add_float32(double *own, const void *segment) {
    const float4 *from = (const float4 *)segment + 2 * threadIdx.x;
#pragma unroll 4
    for (int row = 0; row < STQ_SEGMENT / STQ_TREE_WIDTH; row++) {
        float4 low = __ldcs(from + row * (2 * THREADS)), high = __ldcs(from + row * (2 * THREADS) + 1);
        const float g[OWN] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int k = 0; k < OWN; k++)
            add_square(&own[k], g[k]);
    }
}

static __device__ void add_any(double *own, const void *gradient, uint32_t dtype, int64_t first, int64_t count) {
    for (int64_t row = 0; row < count; row += STQ_TREE_WIDTH)
        for (int k = 0; k < OWN; k++) {
            int64_t i = row + threadIdx.x * OWN + k;
            if (i < count)
                add_square(&own[k], stq_load_float(gradient, dtype, first + i));
        }
}

static __global__ void __launch_bounds__(THREADS)
    segment_kernel(const stq_device_item *items, const stq_tile *segments, double *sums) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    const stq_item *item = &items[segments[blockIdx.x].item].item;
    int64_t first = (int64_t)segments[blockIdx.x].tile * STQ_SEGMENT;
    int64_t left = item->count - first;
    double own[OWN] = {0};
    if (item->gradient != NULL) {
        int size = item->gradient_type == STQ_FLOAT32 ? 4 : 2;
        const char *from = (const char *)item->gradient + first * size;
        bool whole = left >= STQ_SEGMENT && (uintptr_t)from % 16 == 0;
        if (whole && item->gradient_type == STQ_BFLOAT16)
            add_bfloat16(own, from);
        else if (whole && item->gradient_type == STQ_FLOAT32)
            add_float32(own, from);
        else
            add_any(own, item->gradient, item->gradient_type, first, left < STQ_SEGMENT ? left : STQ_SEGMENT);
    }
#pragma unroll
    for (int k = 0; k < OWN; k++)
        accumulators[threadIdx.x * OWN + k] = own[k];
    halve(accumulators);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = accumulators[0];
}

/* Value j of a thread goes to accumulator threadIdx.x + j THREADS: a tree over `count` values in memory. */
static __device__ double tree_sum(double *accumulators, const double *values, int64_t count) {
    for (int j = (int)threadIdx.x; j < STQ_TREE_WIDTH; j += THREADS) {
        double sum = 0.0;
        for (int64_t i = j; i < count; i += STQ_TREE_WIDTH)
            sum += values[i];
        accumulators[j] = sum;
    }
    halve(accumulators);
    return accumulators[0];
}

static __global__ void __launch_bounds__(THREADS)
    tensor_kernel(const stq_device_item *items, const int64_t *first_segment, const double *sums, double *tensor_sums) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    int64_t first = first_segment[blockIdx.x];
    bool counts = items[blockIdx.x].item.gradient != NULL;
    double sum = tree_sum(accumulators, sums + first, counts ? first_segment[blockIdx.x + 1] - first : 0);
    if (threadIdx.x == 0)
        tensor_sums[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(THREADS)
    total_kernel(const double *tensor_sums, int64_t count, double *total) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    double sum = tree_sum(accumulators, tensor_sums, count);
    if (threadIdx.x == 0)
        *total = sum;
}

cudaError_t stq_cuda_sum_squares(const stq_device_item *items, int64_t item_count, const stq_tile *segments,
                                 int64_t segment_count, const int64_t *first_segment, double *sums, double *total,
                                 cudaStream_t stream) {
    double *tensor_sums = sums + segment_count;
    if (segment_count > 0)
        segment_kernel<<<(unsigned)segment_count, THREADS, 0, stream>>>(items, segments, sums);
    if (item_count > 0)
        tensor_kernel<<<(unsigned)item_count, THREADS, 0, stream>>>(items, first_segment, sums, tensor_sums);
    total_kernel<<<1, THREADS, 0, stream>>>(tensor_sums, item_count, total);
    return cudaGetLastError();
}
