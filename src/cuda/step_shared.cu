/* step_shared.cu - the same pass over the tensors whose second moment is shared. A kernel of its own: the compiler
 * gives step_kernel's other rows more registers to spill when it has these beside them. */
#include "cuda/rows.cuh"

#ifndef STQ_EMULATED
#include "cuda/kernels.h"
#endif

/* Thread blocks a multiprocessor. */
#ifndef STQ_SHARED_STEP_BLOCKS
#define STQ_SHARED_STEP_BLOCKS 3
#endif

/* A warp's whole rows below `end`; returns the first row that is left to it. */
template <bool HALF_P, bool HALF_G, plain_second SECOND>
static __device__ __forceinline__ int64_t work_shared(const stq_item *item, const stq_coefficients *c, int64_t first,
                                                      int64_t end, uint32_t warp) {
    int64_t whole = item->count / STQ_ROW;
    uint32_t rows = rows_below(first, end < whole ? end : whole);
    if (rows == 0)
        return first;
    if ((item->m_in.bits | 1) == 5)
        plain_rows<HALF_P, HALF_G, PLAIN_NIBBLES, SECOND>(item, *c, first, rows, warp);
    else
        plain_rows<HALF_P, HALF_G, PLAIN_ANY, SECOND>(item, *c, first, rows, warp);
    return first + rows * STQ_TILE_WARPS;
}

template <plain_second SECOND>
static __device__ __forceinline__ int64_t work_on_kind(uint32_t kind, const stq_item *item, const stq_coefficients *c,
                                                       int64_t first, int64_t end, uint32_t warp) {
    if (kind == (STQ_KIND_SHARED | STQ_KIND_BFLOAT16))
        return work_shared<true, true, SECOND>(item, c, first, end, warp);
    if (kind == (STQ_KIND_SHARED | STQ_KIND_FLOAT32))
        return work_shared<false, false, SECOND>(item, c, first, end, warp);
    return work_shared<false, true, SECOND>(item, c, first, end, warp);
}

static __global__ void __launch_bounds__(32 * STQ_TILE_WARPS, STQ_SHARED_STEP_BLOCKS)
    step_shared_kernel(const stq_device_item *items, const stq_tile *tiles, const stq_coefficients *coefficients,
                       const stq_control *control) {
    stq_tile tile = tiles[blockIdx.x];
    uint32_t kind = items[tile.item].kind;
    const stq_item *item = &items[tile.item].item;
    const stq_coefficients *c = &coefficients[tile.item];
    if (control->skip || item->gradient == NULL || (kind & STQ_KIND_SHARED) == 0)
        return;
    int64_t rows = (item->count + STQ_ROW - 1) / STQ_ROW;
    uint32_t warp = __shfl_sync(STQ_ALL_LANES, threadIdx.x / 32, 0); /* as in step_kernel() */
    int64_t end = ((int64_t)tile.tile + 1) * (STQ_TILE / STQ_ROW);
    int64_t row = end - STQ_TILE / STQ_ROW + warp;
    end = end < rows ? end : rows;
    row = item->v_in.bits == STQ_BITS_SHARED_ROW ? work_on_kind<PLAIN_ROW_MEANS>(kind, item, c, row, end, warp)
                                                 : work_on_kind<PLAIN_COL_MEANS>(kind, item, c, row, end, warp);
    for (; row < end; row += STQ_TILE_WARPS)
        general_row(item, c, row);
}

#ifndef STQ_EMULATED
cudaError_t stq_cuda_step_shared(const stq_device_item *items, const stq_tile *tiles, int64_t tile_count,
                                 const stq_coefficients *coefficients, const stq_control *control,
                                 cudaStream_t stream) {
    if (tile_count > 0)
        step_shared_kernel<<<(unsigned)tile_count, 32 * STQ_TILE_WARPS, PLAIN_SHARED_BYTES, stream>>>(
            items, tiles, coefficients, control);
    return cudaGetLastError();
}
#endif
