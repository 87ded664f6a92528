/*
 * sums.cu - the gradient pass: sums of squares in the fixed order of score/sums.h, and the other sums that factors
 * need. 256 threads own 8 of a segment's 2,048 accumulators each and add their elements in ascending order, then the
 * accumulators are halved as there.
 */
#include "cuda/kernels.h"
#include "cuda/tree.cuh"
#include "cuda/words.h"
#include "quant/convert.h"

/* A thread's accumulators. Without MOMENTS only the squares are summed. */
template <bool MOMENTS> struct own_sums {
    double squares[TREE_OWN];
    double fourths[MOMENTS ? TREE_OWN : 1];
    uint32_t largest;

    __device__ __forceinline__ void add(int k, float g) {
        double wide = g;
        if (MOMENTS) {
            double square = wide * wide;
            squares[k] += square;
            fourths[MOMENTS ? k : 0] += square * square;
            largest = max(largest, stq_float_bits(g) & 0x7fffffffu);
        } else {
            squares[k] = fma(wide, wide, squares[k]); /* the square is exact: one rounding, as in the reference */
        }
    }
};

/* One whole segment of an array aligned to 16 bytes. */
template <bool MOMENTS> static __device__ void add_bfloat16(own_sums<MOMENTS> &own, const void *segment) {
    const uint4 *from = (const uint4 *)segment + threadIdx.x;
#pragma unroll 4
    for (int row = 0; row < STQ_SEGMENT / STQ_TREE_WIDTH; row++) {
        uint4 words = __ldcs(from + row * TREE_THREADS);
        const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int k = 0; k < TREE_OWN; k++)
            own.add(k, stq_pair_value(pairs[k / 2], k & 1));
    }
}

template <bool MOMENTS> static __device__ void add_float32(own_sums<MOMENTS> &own, const void *segment) {
    const float4 *from = (const float4 *)segment + 2 * threadIdx.x;
#pragma unroll 4
    for (int row = 0; row < STQ_SEGMENT / STQ_TREE_WIDTH; row++) {
        float4 low = __ldcs(from + row * (2 * TREE_THREADS)), high = __ldcs(from + row * (2 * TREE_THREADS) + 1);
        const float g[TREE_OWN] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int k = 0; k < TREE_OWN; k++)
            own.add(k, g[k]);
    }
}

template <bool MOMENTS>
static __device__ void add_any(own_sums<MOMENTS> &own, const void *gradient, uint32_t dtype, int64_t first,
                               int64_t count) {
    for (int64_t row = 0; row < count; row += STQ_TREE_WIDTH) {
#pragma unroll
        for (int k = 0; k < TREE_OWN; k++) {
            int64_t i = row + threadIdx.x * TREE_OWN + k;
            if (i < count)
                own.add(k, stq_load_float(gradient, dtype, first + i));
        }
    }
}

template <bool MOMENTS>
static __device__ void add_segment(own_sums<MOMENTS> &own, const stq_item *item, int64_t first) {
    int64_t left = item->count - first;
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

/* The halved sum of the threads' accumulators. */
static __device__ double halve_own(double *accumulators, const double *own) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < TREE_OWN; k++)
        accumulators[threadIdx.x * TREE_OWN + k] = own[k];
    tree_halve(accumulators);
    return accumulators[0];
}

static __global__ void __launch_bounds__(TREE_THREADS)
    segment_kernel(const stq_device_item *items, const stq_tile *segments, double *sums) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    stq_tile segment = segments[blockIdx.x];
    own_sums<false> own = {};
    if (items[segment.item].item.gradient != NULL)
        add_segment(own, &items[segment.item].item, (int64_t)segment.tile * STQ_SEGMENT);
    double sum = halve_own(accumulators, own.squares);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(TREE_THREADS)
    moments_kernel(const stq_device_item *items, const stq_tile *segments, const stq_gate *gate,
                   stq_moment_sums *sums) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    if (gate != NULL && !gate->active)
        return;
    stq_tile segment = segments[blockIdx.x];
    own_sums<true> own = {};
    if (items[segment.item].item.gradient != NULL)
        add_segment(own, &items[segment.item].item, (int64_t)segment.tile * STQ_SEGMENT);
    stq_moment_sums result;
    result.squares = halve_own(accumulators, own.squares);
    result.fourths = halve_own(accumulators, own.fourths);
    __shared__ uint32_t largest;
    if (threadIdx.x == 0)
        largest = 0;
    __syncthreads();
    atomicMax(&largest, own.largest);
    __syncthreads();
    result.largest_bits = largest;
    if (threadIdx.x == 0)
        sums[blockIdx.x] = result;
}

static __device__ __forceinline__ double squares_of(double sum) { return sum; }
static __device__ __forceinline__ double squares_of(const stq_moment_sums &sums) { return sums.squares; }

template <class SUM>
static __global__ void __launch_bounds__(TREE_THREADS)
    tensor_kernel(const stq_device_item *items, const int64_t *first_segment, const SUM *sums, double *tensor_sums) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    const SUM *own = sums + first_segment[blockIdx.x];
    bool counts = items[blockIdx.x].item.gradient != NULL;
    int64_t count = counts ? first_segment[blockIdx.x + 1] - first_segment[blockIdx.x] : 0;
    double sum = tree_sum(accumulators, count, [=](int64_t i) { return squares_of(own[i]); });
    if (threadIdx.x == 0)
        tensor_sums[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(TREE_THREADS)
    total_kernel(const double *tensor_sums, int64_t count, double *total, bool root) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    double sum = tree_sum(accumulators, count, [=](int64_t i) { return tensor_sums[i]; });
    if (threadIdx.x == 0)
        *total = root ? sqrt(sum) : sum;
}

cudaError_t stq_cuda_sum_squares(const stq_device_item *items, int64_t item_count, const stq_tile *segments,
                                 int64_t segment_count, const int64_t *first_segment, double *sums, double *total,
                                 cudaStream_t stream) {
    double *tensor_sums = sums + segment_count;
    if (segment_count > 0)
        segment_kernel<<<(unsigned)segment_count, TREE_THREADS, 0, stream>>>(items, segments, sums);
    if (item_count > 0)
        tensor_kernel<double>
            <<<(unsigned)item_count, TREE_THREADS, 0, stream>>>(items, first_segment, sums, tensor_sums);
    total_kernel<<<1, TREE_THREADS, 0, stream>>>(tensor_sums, item_count, total, false);
    return cudaGetLastError();
}

cudaError_t stq_cuda_sum_moments(const stq_device_item *items, int64_t item_count, const stq_tile *segments,
                                 int64_t segment_count, const int64_t *first_segment, stq_moment_sums *moments,
                                 double *sums, double *total, cudaStream_t stream) {
    cudaError_t error = stq_cuda_moments(items, segments, segment_count, NULL, moments, stream);
    if (error != cudaSuccess)
        return error;
    if (item_count > 0)
        tensor_kernel<stq_moment_sums>
            <<<(unsigned)item_count, TREE_THREADS, 0, stream>>>(items, first_segment, moments, sums);
    total_kernel<<<1, TREE_THREADS, 0, stream>>>(sums, item_count, total, false);
    return cudaGetLastError();
}

cudaError_t stq_cuda_segment_squares(const stq_device_item *items, const stq_tile *segments, int64_t segment_count,
                                     double *squares, cudaStream_t stream) {
    if (segment_count > 0)
        segment_kernel<<<(unsigned)segment_count, TREE_THREADS, 0, stream>>>(items, segments, squares);
    return cudaGetLastError();
}

cudaError_t stq_cuda_norm(const stq_device_item *items, int64_t item_count, const int64_t *first_segment,
                          const double *squares, double *sums, double *norm, cudaStream_t stream) {
    if (item_count > 0)
        tensor_kernel<double><<<(unsigned)item_count, TREE_THREADS, 0, stream>>>(items, first_segment, squares, sums);
    total_kernel<<<1, TREE_THREADS, 0, stream>>>(sums, item_count, norm, true);
    return cudaGetLastError();
}

cudaError_t stq_cuda_moments(const stq_device_item *items, const stq_tile *segments, int64_t segment_count,
                             const stq_gate *gate, stq_moment_sums *sums, cudaStream_t stream) {
    if (segment_count > 0)
        moments_kernel<<<(unsigned)segment_count, TREE_THREADS, 0, stream>>>(items, segments, gate, sums);
    return cudaGetLastError();
}
