/* tree.cuh - the fixed-order sums of score/sums.h by the 256 threads of a block. */
#ifndef STQ_TREE_CUH
#define STQ_TREE_CUH

#include "score/sums.h"

#define TREE_THREADS 256
#define TREE_OWN (STQ_TREE_WIDTH / TREE_THREADS)

/* Halves 2,048 accumulators in shared memory; the sum is in accumulators[0], for all threads to read. */
static __device__ void tree_halve(double *accumulators) {
    for (int width = STQ_TREE_WIDTH / 2; width > 0; width /= 2) {
        __syncthreads();
        for (int j = (int)threadIdx.x; j < width; j += TREE_THREADS)
            accumulators[j] += accumulators[j + width];
    }
    __syncthreads();
}

/* The tree sum of value(i) for i < count. The accumulators may be used again after the caller's next barrier. */
template <class VALUE> static __device__ double tree_sum(double *accumulators, int64_t count, VALUE value) {
    __syncthreads();
    for (int j = (int)threadIdx.x; j < STQ_TREE_WIDTH; j += TREE_THREADS) {
        double sum = 0.0;
        for (int64_t i = j; i < count; i += STQ_TREE_WIDTH)
            sum += value(i);
        accumulators[j] = sum;
    }
    tree_halve(accumulators);
    return accumulators[0];
}

/* Sum of the threads' integers, in thread 0. */
static __device__ unsigned long long block_sum(unsigned long long value) {
    __shared__ unsigned long long of_warp[TREE_THREADS / 32];
    for (int step = 16; step > 0; step /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    unsigned long long sum = 0;
    for (int i = 0; i < TREE_THREADS / 32; i++)
        sum += of_warp[i];
    return sum;
}

#endif
