/* step.cu - the fused pass over a whole list of tensors in one launch: decode, AdamW, encode. Tensors whose second
 * moment is shared are left to step_shared.cu. */
#include "cuda/rows.cuh"

#ifndef STQ_EMULATED
#include "cuda/kernels.h"
#endif

/* Thread blocks a multiprocessor: 80 registers a thread, which the plain rows just need. */
#ifndef STQ_STEP_BLOCKS
#define STQ_STEP_BLOCKS 3
#endif

/* A warp's whole rows below `end`; returns the first row that is left to it. */
template <bool HALF_P, bool HALF_G>
static __device__ __forceinline__ int64_t work_plain(const stq_item *item, const stq_coefficients *c, uint32_t range,
                                                     int64_t first, int64_t end, uint32_t warp) {
    int64_t whole = item->count / STQ_ROW;
    uint32_t rows = rows_below(first, end < whole ? end : whole);
    if (rows == 0)
        return first;
    if (range == PLAIN_NIBBLES)
        plain_rows<HALF_P, HALF_G, PLAIN_NIBBLES, PLAIN_CODED>(item, *c, first, rows, warp);
    else if (range == PLAIN_PAIRS)
        plain_rows<HALF_P, HALF_G, PLAIN_PAIRS, PLAIN_CODED>(item, *c, first, rows, warp);
    else
        plain_rows<HALF_P, HALF_G, PLAIN_ANY, PLAIN_CODED>(item, *c, first, rows, warp);
    return first + rows * STQ_TILE_WARPS;
}

static __device__ __forceinline__ uint32_t range_of(uint32_t m_bits, uint32_t v_bits) {
    if ((m_bits | 1) == 5 && (v_bits | 1) == 5)
        return PLAIN_NIBBLES;
    return m_bits < 4 && v_bits < 4 ? PLAIN_PAIRS : PLAIN_ANY;
}

static __global__ void __launch_bounds__(32 * STQ_TILE_WARPS, STQ_STEP_BLOCKS)
    step_kernel(const stq_device_item *items, const stq_tile *tiles, const stq_coefficients *coefficients,
                const stq_control *control) {
    if (control->skip)
        return;
    stq_tile tile = tiles[blockIdx.x];
    const stq_item *item = &items[tile.item].item;
    const stq_coefficients *c = &coefficients[tile.item];
    if (item->gradient == NULL || (items[tile.item].kind & STQ_KIND_SHARED) != 0)
        return;
    int64_t rows = (item->count + STQ_ROW - 1) / STQ_ROW;
    /* Taken from lane 0, so that the compiler knows that all lanes of a warp go the same way. */
    uint32_t warp = __shfl_sync(STQ_ALL_LANES, threadIdx.x / 32, 0);
    int64_t end = ((int64_t)tile.tile + 1) * (STQ_TILE / STQ_ROW);
    int64_t row = end - STQ_TILE / STQ_ROW + warp;
    end = end < rows ? end : rows;
    uint32_t range = range_of(item->m_in.bits, item->v_in.bits);
    switch (items[tile.item].kind) {
    case STQ_KIND_BFLOAT16:
        row = work_plain<true, true>(item, c, range, row, end, warp);
        break;
    case STQ_KIND_FLOAT32:
        row = work_plain<false, false>(item, c, range, row, end, warp);
        break;
    case STQ_KIND_MIXED:
        row = work_plain<false, true>(item, c, range, row, end, warp);
        break;
    }
    for (; row < end; row += STQ_TILE_WARPS)
        general_row(item, c, row);
}

#ifndef STQ_EMULATED
cudaError_t stq_cuda_step(const stq_device_item *items, const stq_tile *tiles, int64_t tile_count,
                          const stq_coefficients *coefficients, const stq_control *control, cudaStream_t stream) {
    if (tile_count > 0)
        step_kernel<<<(unsigned)tile_count, 32 * STQ_TILE_WARPS, PLAIN_SHARED_BYTES, stream>>>(items, tiles,
                                                                                               coefficients, control);
    return cudaGetLastError();
}
#endif
