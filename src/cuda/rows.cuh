/* rows.cuh - a warp's way through the whole rows of an item: the next row is copied while it works on one. */
#ifndef STQ_ROWS_CUH
#define STQ_ROWS_CUH

#include "cuda/means.cuh"

/* Number of rows first, first + STQ_TILE_WARPS, ... below `end`. */
static __device__ __forceinline__ uint32_t rows_below(int64_t first, int64_t end) {
    return first < end ? (uint32_t)(end - first + STQ_TILE_WARPS - 1) / STQ_TILE_WARPS : 0;
}

template <plain_second SECOND>
static __device__ __forceinline__ plain_warp plain_begin(const stq_item *item, const stq_coefficients &c) {
    plain_warp warp;
    warp.m_bits = item->m_in.bits;
    warp.v_bits = item->v_in.bits;
    warp.lane = threadIdx.x % 32;
    warp.half = warp.lane & STQ_BLOCK_LANES;
    warp.offset = stq_pair_offset(plain_in_block(warp.lane) / 2);
    bool usual = c.beta1 >= 0.5f && c.epsilon <= 0x1p20f && fabsf(c.step_size) <= 0x1p20f && fabsf(c.decay) <= 2.0f;
    warp.lowest_scale = usual ? PLAIN_LOWEST_SCALE : 0xffffffffu;
    warp.level = stq_m_decode(warp.lane & ((1u << warp.m_bits) - 1), 1.0f, warp.m_bits);
    warp.keys = warp.scales = warp.new_words = warp.next_word = 0;
    plain_keep(warp.offset);
    if (SECOND != PLAIN_CODED)
        return warp;
    uint32_t shift = stq_v_finest(warp.v_bits) + warp.lane % 8;
    warp.v_grain = ~0u << (shift > 19 ? shift : 19);
    warp.v_span = ((1u << warp.v_bits) - 1) << shift;
    plain_keep(warp.v_grain);
    plain_keep(warp.v_span);
    return warp;
}

/* The block whose key and scale word a lane holds while the group of rows from `row` on is worked on. */
static __device__ __forceinline__ int64_t plain_own_block(int64_t row, uint32_t lane) {
    return row * 2 + lane % STQ_WARP_ROWS * (2 * STQ_TILE_WARPS) + lane / STQ_BLOCK_LANES;
}

/* The lane's scale word of the group of rows from `row` on; 0 for a block that the item does not have. */
template <plain_second SECOND>
static __device__ __forceinline__ uint32_t plain_load_word(const stq_item *item, int64_t row, uint32_t lane) {
    if (SECOND != PLAIN_CODED && (lane & STQ_WARP_ROWS) != 0)
        return 0;
    const stq_planes *planes = lane & STQ_WARP_ROWS ? &item->v_in : &item->m_in;
    int64_t own = plain_own_block(row, lane);
    return own * STQ_BLOCK < item->count ? planes->scales[own] : 0;
}

/* Keys and scale words of the group of rows from `row` on. */
template <plain_second SECOND>
static __device__ __forceinline__ void plain_begin_group(plain_warp &warp, const stq_item *item, uint32_t step_key,
                                                         int64_t row) {
    bool second = (warp.lane & STQ_WARP_ROWS) != 0;
    uint32_t word = warp.next_word;
    warp.scales = SECOND == PLAIN_CODED && second ? plain_lattice(word, warp.v_bits) : word << 16;
    warp.new_words = word;
    warp.next_word = plain_load_word<SECOND>(item, row + STQ_WARP_ROWS * STQ_TILE_WARPS, warp.lane);
    warp.keys = stq_block_key(step_key, item->tensor, (uint32_t)(item->first_block + plain_own_block(row, warp.lane)),
                              second ? STQ_STREAM_PARAMETER : STQ_STREAM_SECOND_MOMENT);
}

/* Stores the scale words of the `rows` rows of the group that begins with `row`. */
template <plain_second SECOND>
static __device__ __forceinline__ void plain_end_group(const plain_warp &warp, const stq_item *item, int64_t row,
                                                       uint32_t rows) {
    if (SECOND != PLAIN_CODED && (warp.lane & STQ_WARP_ROWS) != 0)
        return;
    const stq_planes *planes = warp.lane & STQ_WARP_ROWS ? &item->v_out : &item->m_out;
    if (warp.lane % STQ_WARP_ROWS < rows)
        planes->scales[plain_own_block(row, warp.lane)] = (uint16_t)warp.new_words;
}

/* `rows` rows of an item, all whole: row `first` and each STQ_TILE_WARPS-th after it, so that the warps of a block read
 * what lies together at about the same time. `warp_index` is the warp's in its block. */
template <bool HALF_P, bool HALF_G, plain_range RANGE, plain_second SECOND>
static __device__ __forceinline__ void plain_rows(const stq_item *item, const stq_coefficients c, int64_t first,
                                                  uint32_t rows, uint32_t warp_index) {
    constexpr int bytes_p = STQ_ROW * (HALF_P ? 2 : 4), bytes_g = STQ_ROW * (HALF_G ? 2 : 4);
    char *stages = plain_shared() + warp_index * (PLAIN_STAGES * PLAIN_STAGE_BYTES);
    plain_warp warp = plain_begin<SECOND>(item, c);
    plain_source source;
    source.parameter = (char *)item->parameter + first * bytes_p + warp.lane * 16;
    source.gradient = (const char *)item->gradient + first * bytes_g + warp.lane * 16;
    plain_find_plane<SECOND>(&source, item, first, warp.lane);
    plain_fetch<HALF_P, HALF_G>(stages, source, warp.lane);
    plain_commit();
    warp.next_word = plain_load_word<SECOND>(item, first, warp.lane);
    plain_means means = {};
    if constexpr (SECOND != PLAIN_CODED)
        means = plain_find_means(item, first, warp.lane);
#pragma unroll 1
    for (uint32_t row = 0; row < rows; row++) {
        if (row % STQ_WARP_ROWS == 0)
            plain_begin_group<SECOND>(warp, item, c.step_key, first + row * STQ_TILE_WARPS);
        plain_source next = source;
        next.parameter += bytes_p * STQ_TILE_WARPS;
        next.gradient += bytes_g * STQ_TILE_WARPS;
        next.plane += source.plane_stride;
        plain_wait();
        __syncwarp();
        if (row + 1 < rows)
            plain_fetch<HALF_P, HALF_G>(stages + (row + 1) % PLAIN_STAGES * PLAIN_STAGE_BYTES, next, warp.lane);
        plain_commit();
        char *stage = stages + row % PLAIN_STAGES * PLAIN_STAGE_BYTES;
        if constexpr (SECOND == PLAIN_CODED) {
            plain_row<HALF_P, HALF_G, RANGE>(warp, c, row % STQ_WARP_ROWS, stage, source);
        } else {
            plain_row_shared<HALF_P, HALF_G, RANGE, SECOND>(warp, c, row % STQ_WARP_ROWS, stage, source, means);
            plain_next_means<SECOND>(means);
        }
        source = next;
        if (row % STQ_WARP_ROWS == STQ_WARP_ROWS - 1 || row + 1 == rows)
            plain_end_group<SECOND>(warp, item, first + row / STQ_WARP_ROWS * (STQ_WARP_ROWS * STQ_TILE_WARPS),
                                    row % STQ_WARP_ROWS + 1);
    }
}

#endif
