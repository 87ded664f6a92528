/* kernels.h - what kernels use besides cuda/emulated.h: blocks, shared memory, atomics. Force-included. */
#ifndef EMULATION_KERNELS_H
#define EMULATION_KERNELS_H

#include "../emulated.h"
#include "cuda_runtime_api.h"

#include <functional>
#include <tuple>

#define __shared__ static
extern dim3 blockDim, gridDim;

/* All threads of the block come here before any goes on. */
void emulated_barrier();
#define __syncthreads() emulated_barrier()

/* Runs body for every thread of every block. */
void emulated_launch(unsigned blocks, unsigned threads, const std::function<void()> &body);

static inline unsigned long long atomicAdd(unsigned long long *to, unsigned long long value) {
    unsigned long long before = *to;
    *to += value;
    return before;
}
static inline uint32_t atomicAdd(uint32_t *to, uint32_t value) {
    uint32_t before = *to;
    *to += value;
    return before;
}
static inline uint32_t atomicMax(uint32_t *to, uint32_t value) {
    uint32_t before = *to;
    *to = value > before ? value : before;
    return before;
}
static inline int __float2int_rn(float value) { return (int)lrintf(value); }
/* glibc has functions of these names. */
#define __logf(value) logf(value)
#define __cosf(value) cosf(value)

#endif
