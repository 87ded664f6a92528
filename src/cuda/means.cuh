/*
 * means.cuh - rows whose second moment is shared: one mean for a row or a column of the tensor, which is this step's
 * already (share.cu) and only read. The first moment, parameters and gradients go the way of plain.cuh.
 */
#ifndef STQ_MEANS_CUH
#define STQ_MEANS_CUH

#include "cuda/plain.cuh"

/* Where the means of a lane's 8 values lie; they are values of one row of the tensor, whose length is a multiple of 8.
 */
struct plain_means {
    const float *means;
    uint32_t row, col;          /* of the lane's first value */
    uint32_t cols, rows_on, on; /* the warp's next row of 256 values is `rows_on` rows and `on` columns further */
};

static __device__ __forceinline__ plain_means plain_find_means(const stq_item *item, int64_t row, uint32_t lane) {
    plain_means at;
    int64_t first = item->first_block * STQ_BLOCK + row * STQ_ROW + lane * STQ_LANE_VALUES;
    at.means = stq_shared_means(&item->v_in);
    at.cols = (uint32_t)item->cols;
    at.row = (uint32_t)(first / item->cols);
    at.col = (uint32_t)(first - (int64_t)at.row * item->cols);
    at.rows_on = STQ_ROW * STQ_TILE_WARPS / at.cols;
    at.on = STQ_ROW * STQ_TILE_WARPS % at.cols;
    return at;
}

/* Goes on to the warp's next row; columns that share need no row. */
template <plain_second SECOND> static __device__ __forceinline__ void plain_next_means(plain_means &at) {
    at.col += at.on;
    bool over = at.col >= at.cols;
    at.col -= over ? at.cols : 0;
    if (SECOND == PLAIN_ROW_MEANS)
        at.row += at.rows_on + over;
}

/* The means of a lane's values: one, where rows share, or 8. They are this step's, and nobody writes them now. */
template <plain_second SECOND>
static __device__ __forceinline__ void plain_load_means(float *v, const plain_means &at) {
    if constexpr (SECOND == PLAIN_ROW_MEANS) {
        v[0] = __ldg(at.means + at.row);
    } else {
        float4 low = __ldg((const float4 *)(at.means + at.col)), high = __ldg((const float4 *)(at.means + at.col) + 1);
        v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
        v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    }
}

/* The first moment after the step, in place of that before; returns its largest magnitude. */
static __device__ __forceinline__ float plain_first_moment(float *m, const float *g, const stq_coefficients &c,
                                                           stq_words codes_m, uint32_t m_bits) {
    float smallest = fabsf(g[0]);
#pragma unroll
    for (int k = 1; k < STQ_LANE_VALUES; k++)
        smallest = fminf(smallest, fabsf(g[k]));
    if (__any_sync(STQ_ALL_LANES, smallest == 0.0f))
        plain_drop_lowest(m, g, codes_m, m_bits);
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        m[k] = fmaf(c.beta1, m[k], c.one_minus_beta1 * g[k]);
    float largest = fabsf(m[0]);
#pragma unroll
    for (int k = 1; k < STQ_LANE_VALUES; k++)
        largest = fmaxf(largest, fabsf(m[k]));
    return largest;
}

/* Whether the `count` means of a lane are in the range of the short arithmetic. */
static __device__ __forceinline__ bool plain_means_ordinary(const float *v, int count) {
    uint32_t lowest = stq_float_bits(v[0]), largest = lowest;
#pragma unroll
    for (int k = 1; k < count; k++) {
        lowest = min(lowest, stq_float_bits(v[k]));
        largest = max(largest, stq_float_bits(v[k]));
    }
    return lowest >= PLAIN_LOWEST && largest <= PLAIN_LARGEST;
}

/* The parameters of a lane before their rounding, as plain_update() has it, with a mean for each value or one for all.
 */
template <bool HALF, int COUNT>
static __device__ __forceinline__ void plain_update_shared(float *p, const plain_raw<HALF> &raw, const float *m,
                                                           const float *v, const stq_coefficients &c, bool ordinary) {
    if (__all_sync(STQ_ALL_LANES, ordinary)) {
        float denominator[COUNT], reciprocal[COUNT];
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            denominator[k] = stq_exact_root(v[k], plain_root_reciprocal(v[k])) + c.epsilon;
            reciprocal[k] = plain_reciprocal(denominator[k]);
        }
#pragma unroll
        for (int k = 0; k < STQ_LANE_VALUES; k++) {
            float quotient = stq_exact_quotient(m[k], denominator[k % COUNT], reciprocal[k % COUNT]);
            p[k] = fmaf(-c.step_size, quotient, raw.at(k) * c.decay);
        }
    } else {
#pragma unroll
        for (int k = 0; k < STQ_LANE_VALUES; k++)
            p[k] = fmaf(-c.step_size, __fdiv_rn(m[k], __fsqrt_rn(v[k % COUNT]) + c.epsilon), raw.at(k) * c.decay);
    }
}

/* One row whose second moment is shared: decodes and encodes m alone. */
template <bool HALF_P, bool HALF_G, plain_range RANGE, plain_second SECOND>
static __device__ __forceinline__ void plain_row_shared(plain_warp &warp, const stq_coefficients &c, uint32_t row,
                                                        char *stage, const plain_source &source,
                                                        const plain_means &means) {
    constexpr int bytes_p = STQ_ROW * (HALF_P ? 2 : 4), bytes_g = STQ_ROW * (HALF_G ? 2 : 4);
    constexpr int count = SECOND == PLAIN_ROW_MEANS ? 1 : STQ_LANE_VALUES;
    char *planes = stage + bytes_g + bytes_p, *bits = planes + 2 * PLAIN_BASE_BYTES;
    uint32_t holder = warp.half + row;
    uint32_t scale = __shfl_sync(STQ_ALL_LANES, warp.scales, holder);

    float m[STQ_LANE_VALUES], v[count], g[STQ_LANE_VALUES], p[STQ_LANE_VALUES];
    plain_load_means<SECOND>(v, means);
    stq_words codes = plain_unpack<RANGE>(planes, bits, warp.m_bits, warp.lane);
    plain_decode_m<RANGE>(m, codes, warp.m_bits, warp.level, stq_bits_float(scale));
    plain_raw<HALF_G> raw_g;
    raw_g.load(stage, warp.lane);
#pragma unroll
    for (int k = 0; k < STQ_LANE_VALUES; k++)
        g[k] = raw_g.at(k) * c.gradient_factor;
    float largest = plain_first_moment(m, g, c, codes, warp.m_bits);

    bool ordinary =
        plain_means_ordinary(v, count) && scale >= warp.lowest_scale && stq_float_bits(largest) <= PLAIN_LARGEST;
    plain_raw<HALF_P> raw_p;
    raw_p.load(stage + bytes_g, warp.lane);
    plain_update_shared<HALF_P, count>(p, raw_p, m, v, c, ordinary);
    if constexpr (HALF_P) {
        plain_store_halves(source.parameter, p, __shfl_sync(STQ_ALL_LANES, warp.keys, holder + STQ_WARP_ROWS),
                           warp.offset);
    } else {
        plain_store_floats(source.parameter + warp.lane * 16, p);
    }

    uint32_t word = stq_block_max(stq_m_scale_word(stq_float_bits(largest)));
    plain_pack<RANGE>(planes, bits, warp.m_bits, warp.lane, plain_encode_m(m, warp.m_bits, largest, word));
    warp.new_words = warp.lane % STQ_BLOCK_LANES == row ? word : warp.new_words;
    __syncwarp();
    if (source.plane_stride != 0)
        PLAIN_STORE((uint4 *)source.plane, *(const uint4 *)(planes + warp.lane * 16));
}

#endif
