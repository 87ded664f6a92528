/* lane.cuh - the layout of a row over a warp: lanes 0 to 15 hold one block, 16 to 31 the next, 8 neighbouring values
 * each. */
#ifndef STQ_LANE_CUH
#define STQ_LANE_CUH

#include "quant/codec.h"

#define STQ_ALL_LANES 0xffffffffu
#define STQ_LANE_VALUES 8
#define STQ_BLOCK_LANES (STQ_BLOCK / STQ_LANE_VALUES)

/* The largest value of the 16 lanes of a block, in all of them. */
static __device__ __forceinline__ uint32_t stq_block_max(uint32_t value) {
#pragma unroll
    for (int step = STQ_BLOCK_LANES / 2; step > 0; step /= 2)
        value = max(value, __shfl_xor_sync(STQ_ALL_LANES, value, step));
    return value;
}

static __device__ __forceinline__ uint32_t stq_block_min(uint32_t value) { return ~stq_block_max(~value); }

/* The same for two 16-bit halves at once. */
static __device__ __forceinline__ uint32_t stq_block_max_halves(uint32_t value) {
#pragma unroll
    for (int step = STQ_BLOCK_LANES / 2; step > 0; step /= 2)
        value = __vmaxu2(value, __shfl_xor_sync(STQ_ALL_LANES, value, step));
    return value;
}

#endif
