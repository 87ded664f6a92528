/*
 * factors.cu - the sums behind the factors of all tensors at once: moments, row statistics, and the two power
 * iterations of the stable rank (score/power.h). The products are sums of integers, so that any split gives the CPU's
 * bits; everything in double follows the CPU's order. Nothing waits for the host: it reads one record a tensor at the
 * end.
 *
 * Each product reads the gradients once, eight neighbouring elements a lane and load. Between products a block a tensor
 * finds the vector's norm, which the next product's rounding depends on: that is why no two of them share a read.
 */
#include "cuda/kernels.h"
#include "cuda/tree.cuh"
#include "cuda/words.h"
#include "policy/due.h"
#include "quant/convert.h"
#include "score/power.h"

#define WARPS (TREE_THREADS / 32)
#define ALL_LANES 0xffffffffu
#define EIGHT 8           /* neighbouring elements of a lane */
#define TILE (32 * EIGHT) /* columns of a warp */
#define SIDE_ROWS 4       /* rows that a warp multiplies side by side, with the same part of x */

/* ---- Loads ---- */

namespace {

/* Eight neighbouring elements as loaded, from an address that is a multiple of 16 bytes. */
struct bfloat16_eight {
    static constexpr int batch = 8; /* rows whose loads a lane has under way at once in products with columns */
    uint4 words;
    __device__ __forceinline__ void load(const void *array, int64_t at) {
        words = __ldcs((const uint4 *)((const uint16_t *)array + at));
    }
    __device__ __forceinline__ void get(float *g) const {
        const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
        stq_pairs_values(g, pairs);
    }
};

struct float32_eight {
    static constexpr int batch = 4;
    float4 low, high;
    __device__ __forceinline__ void load(const void *array, int64_t at) {
        const float4 *from = (const float4 *)((const float *)array + at);
        low = __ldcs(from), high = __ldcs(from + 1);
    }
    __device__ __forceinline__ void get(float *g) const {
        g[0] = low.x, g[1] = low.y, g[2] = low.z, g[3] = low.w;
        g[4] = high.x, g[5] = high.y, g[6] = high.z, g[7] = high.w;
    }
};

} // namespace

/* Whether eights of all rows begin at multiples of 16 bytes and belong to one row. */
static __device__ __forceinline__ bool in_eights(const stq_item *item, const stq_score *score) {
    return item->gradient_type != STQ_FLOAT16 && (score->cols | score->first) % EIGHT == 0 &&
           (uintptr_t)item->gradient % 16 == 0;
}

/* Whether all elements of `rows` rows are held here. */
static __device__ __forceinline__ bool holds(const stq_score *score, int64_t row, int64_t rows) {
    int64_t at = row * score->cols - score->first;
    return at >= 0 && at + rows * score->cols <= score->count;
}

/* ---- Rounding ---- */

/* Adding 1.5 x 2^23 rounds magnitudes of up to 2^22 to integers, as rint does, which then are the sum's last bits above
 * these. Conversions to integers are instructions of an eighth of the speed. */
#define ROUND_BITS 0x4b400000u

/* rint(u v), if SMALL plus ROUND_BITS: then |u v| is known to be small enough. */
template <bool SMALL> static __device__ __forceinline__ uint32_t rounded_product(float u, float v) {
    if (SMALL)
        return stq_float_bits(u * v + stq_bits_float(ROUND_BITS));
    return (uint32_t)__float2int_rn(u * v);
}

/* Whether products with a vector of such a largest magnitude are: prescaled elements are below 8. */
static __device__ __forceinline__ uint32_t has_small_products(double largest) { return largest <= 262144.0; }

/* ---- Scales ---- */

static __device__ void begin_score(stq_score *score, double squares, double fourths, uint32_t largest, int64_t count) {
    uint32_t exponent = max(largest >> 23, 2u);
    score->squares = squares;
    score->fourths = fourths;
    score->largest_bits = largest;
    score->prescale = stq_bits_float((256 - min(exponent, 255u)) << 23);
    score->frobenius = sqrt(squares) * (double)score->prescale;
    score->threshold = stq_bits_float(largest) * score->prescale * STQ_NEAR_ZERO;
    score->fixed_point = stq_power_fixed_point(count);
}

/* x = the start vector, scaled for the first product. */
static __device__ void start(stq_score *score, int32_t *vectors, double *accumulators) {
    float *x = (float *)(vectors + score->columns_at);
    double sum = tree_sum(accumulators, score->cols, [](int64_t j) {
        double value = stq_power_start(j);
        return value * value;
    });
    double scale = STQ_POWER_RANGE / (score->frobenius * sqrt(sum));
    for (int64_t j = threadIdx.x; j < score->cols; j += TREE_THREADS)
        x[j] = (float)((double)stq_power_start(j) * scale);
    if (threadIdx.x == 0)
        score->small_x = has_small_products(2.0 * scale);
}

/* Sums over the segments, and what the later stages are scaled by. Where the gate is closed no tensor takes part. */
static __global__ void __launch_bounds__(TREE_THREADS)
    begin_kernel(const stq_device_item *items, const int64_t *first_segment, const stq_gate *gate,
                 const stq_moment_sums *sums, stq_score *scores, int32_t *vectors) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    __shared__ uint32_t largest;
    const stq_item *item = &items[blockIdx.x].item;
    const stq_moment_sums *own = sums + first_segment[blockIdx.x];
    stq_score *score = &scores[blockIdx.x];
    int64_t count = item->gradient ? first_segment[blockIdx.x + 1] - first_segment[blockIdx.x] : 0;
    if (gate != NULL && !gate->active) {
        if (threadIdx.x == 0)
            score->rows = score->ranked = 0;
        return;
    }
    if (threadIdx.x == 0)
        largest = 0;
    double squares = tree_sum(accumulators, count, [=](int64_t i) { return own[i].squares; });
    double fourths = tree_sum(accumulators, count, [=](int64_t i) { return own[i].fourths; });
    uint32_t mine = 0;
    for (int64_t i = threadIdx.x; i < count; i += TREE_THREADS)
        mine = max(mine, own[i].largest_bits);
    atomicMax(&largest, mine);
    __syncthreads();
    if (threadIdx.x == 0)
        begin_score(score, squares, fourths, largest, item->count);
    __syncthreads();
    if (score->ranked)
        start(score, vectors, accumulators);
}

/* The same where squares and fourth powers of all ranks' segments lie apart. */
static __global__ void __launch_bounds__(TREE_THREADS)
    begin_slices_kernel(const int64_t *first_segment, const double *squares, const double *fourths,
                        const int32_t *largest, stq_score *scores, int32_t *vectors) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    stq_score *score = &scores[blockIdx.x];
    int64_t first = first_segment[blockIdx.x];
    int64_t count = score->rows > 0 ? first_segment[blockIdx.x + 1] - first : 0;
    double second = tree_sum(accumulators, count, [=](int64_t i) { return squares[first + i]; });
    double fourth = tree_sum(accumulators, count, [=](int64_t i) { return fourths[first + i]; });
    if (threadIdx.x == 0)
        begin_score(score, second, fourth, (uint32_t)largest[blockIdx.x], score->rows * score->cols);
    __syncthreads();
    if (score->ranked)
        start(score, vectors, accumulators);
}

static __global__ void __launch_bounds__(TREE_THREADS)
    split_kernel(const stq_tile *segments, int64_t count, const stq_moment_sums *moments, double *fourths,
                 int32_t *largest) {
    int64_t i = (int64_t)blockIdx.x * TREE_THREADS + threadIdx.x;
    if (i >= count)
        return;
    fourths[i] = moments[i].fourths;
    atomicMax((uint32_t *)&largest[segments[i].item], moments[i].largest_bits);
}

static __device__ __forceinline__ uint32_t magnitude(int32_t value) {
    return value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
}

/* |vector|_2 of integers and their largest magnitude; `vector` lies on 16 bytes. A thread's accumulators are
 * neighbours.
 */
static __device__ double integer_norm(double *accumulators, const int32_t *vector, int64_t count, double *most) {
    __shared__ uint32_t largest;
    double own[TREE_OWN] = {};
    uint32_t mine = 0;
    int64_t i = (int64_t)threadIdx.x * TREE_OWN;
#pragma unroll 4
    for (; i + TREE_OWN <= count; i += STQ_TREE_WIDTH) {
        uint4 low = *(const uint4 *)(vector + i), high = *(const uint4 *)(vector + i + 4);
        const uint32_t words[TREE_OWN] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int k = 0; k < TREE_OWN; k++) {
            double value = (int32_t)words[k];
            own[k] += value * value;
            mine = max(mine, magnitude((int32_t)words[k]));
        }
    }
#pragma unroll
    for (int k = 0; k < TREE_OWN; k++) {
        if (i + k < count) {
            double value = vector[i + k];
            own[k] += value * value;
            mine = max(mine, magnitude(vector[i + k]));
        }
    }
    if (threadIdx.x == 0)
        largest = 0;
    __syncthreads();
    atomicMax(&largest, mine);
#pragma unroll
    for (int k = 0; k < TREE_OWN; k++)
        accumulators[threadIdx.x * TREE_OWN + k] = own[k];
    tree_halve(accumulators);
    *most = largest;
    return sqrt(accumulators[0]);
}

/* What a vector of this norm is scaled by for the next product: zeros if the norm is 0. */
static __device__ double next_scale(const stq_score *score, double norm) {
    return norm > 0 ? STQ_POWER_RANGE / (score->frobenius * norm) : 0.0;
}

/* |y|, by which the next product scales it; clears z. */
static __global__ void __launch_bounds__(TREE_THREADS) rows_norm_kernel(stq_score *scores, int32_t *vectors) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    stq_score *score = &scores[blockIdx.x];
    if (!score->ranked)
        return;
    for (int64_t j = threadIdx.x; j < score->cols; j += TREE_THREADS)
        vectors[score->columns_at + j] = 0;
    double largest, norm = integer_norm(accumulators, vectors + score->rows_at, score->rows, &largest);
    if (threadIdx.x == 0) {
        score->y_norm = norm;
        score->y_scale = next_scale(score, norm);
        score->small_y = has_small_products(largest * score->y_scale);
    }
}

/* |z|, and x = z, scaled. */
static __global__ void __launch_bounds__(TREE_THREADS) columns_norm_kernel(stq_score *scores, int32_t *vectors) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    stq_score *score = &scores[blockIdx.x];
    if (!score->ranked)
        return;
    int32_t *z = vectors + score->columns_at;
    double largest, norm = integer_norm(accumulators, z, score->cols, &largest);
    double scale = next_scale(score, norm);
#pragma unroll 4
    for (int64_t j = threadIdx.x; j < score->cols; j += TREE_THREADS)
        ((float *)z)[j] = (float)((double)z[j] * scale);
    if (threadIdx.x == 0) {
        score->z_norm = norm;
        score->small_x = has_small_products(largest * scale);
    }
}

/* ---- Products with rows ---- */

/* A lane's part of one row. */
struct row_sums {
    uint32_t product;
    unsigned long long squares;
};

/* The same of several rows, whose elements near zero are counted together. */
template <int ROWS> struct rows_sums {
    row_sums row[ROWS];
    uint32_t near_zero;
};

/* In fixed point; below 2^30. */
static __device__ __forceinline__ uint32_t fixed_square(float u, float fixed_point) {
    return (uint32_t)__float2int_rn((u * u) * fixed_point);
}

/* Eight columns of ROWS rows. */
template <bool STATISTICS, bool SMALL, class TYPE, int ROWS>
static __device__ __forceinline__ void add_eights(rows_sums<ROWS> *sums, const TYPE *loaded, const float *x,
                                                  float prescale, float threshold, float fixed_point) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float g[EIGHT];
        uint32_t product = SMALL ? 0u - EIGHT * ROUND_BITS : 0u, squares[2] = {0, 0}; /* each of four */
        loaded[r].get(g);
#pragma unroll
        for (int k = 0; k < EIGHT; k++) {
            float u = g[k] * prescale;
            product += rounded_product<SMALL>(u, x[k]);
            if (STATISTICS) {
                squares[k / 4] += fixed_square(u, fixed_point);
                sums->near_zero += fabsf(u) < threshold;
            }
        }
        sums->row[r].product += product;
        if (STATISTICS)
            sums->row[r].squares += (unsigned long long)squares[0] + squares[1];
    }
}

/* Rows from `row` on that are held here whole, in eights. */
template <bool STATISTICS, bool SMALL, class TYPE, int ROWS>
static __device__ __forceinline__ void sum_eights(rows_sums<ROWS> *sums, const stq_item *item, const stq_score *score,
                                                  const float *x, int64_t row) {
    const int64_t cols = score->cols, from = row * cols - score->first;
    const float prescale = score->prescale, threshold = score->threshold, fixed_point = score->fixed_point;
    const bool ranked = score->ranked;
    for (int64_t j = threadIdx.x % 32 * EIGHT; j < cols; j += TILE) {
        TYPE loaded[ROWS];
        float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f), high = low;
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            loaded[r].load(item->gradient, from + r * cols + j);
        if (ranked)
            low = *(const float4 *)(x + j), high = *(const float4 *)(x + j + 4);
        const float part[EIGHT] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        add_eights<STATISTICS, SMALL, TYPE, ROWS>(sums, loaded, part, prescale, threshold, fixed_point);
    }
}

/* What is held here of one row, element by element. */
template <bool STATISTICS>
static __device__ __forceinline__ void sum_any(rows_sums<1> *sums, const stq_item *item, const stq_score *score,
                                               const float *x, int64_t row) {
    int64_t first = row * score->cols - score->first; /* in the elements held here */
    int64_t begin = first < 0 ? -first : 0, end = score->count - first;
    end = end < score->cols ? end : score->cols;
#pragma unroll 4
    for (int64_t j = begin + threadIdx.x % 32; j < end; j += 32) {
        float u = stq_load_float(item->gradient, item->gradient_type, first + j) * score->prescale;
        sums->row[0].product += (uint32_t)__float2int_rn(u * (score->ranked ? x[j] : 0.0f));
        if (STATISTICS) {
            sums->row[0].squares += fixed_square(u, score->fixed_point);
            sums->near_zero += fabsf(u) < score->threshold;
        }
    }
}

/* What a warp's first lanes, one a row, and all of its lanes have seen so far. */
struct chunk_sums {
    unsigned long long near_zero, squares, roots;
};

/* Writes the products of ROWS rows, lane r that of row r, and takes their statistics. */
template <bool STATISTICS, int ROWS>
static __device__ __forceinline__ void finish_rows(chunk_sums *total, rows_sums<ROWS> *sums, const stq_score *score,
                                                   int32_t *vectors, int64_t row) {
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        row_sums own = sums->row[r];
        for (int step = 16; step > 0; step /= 2) {
            own.product += __shfl_xor_sync(ALL_LANES, own.product, step);
            if (STATISTICS)
                own.squares += __shfl_xor_sync(ALL_LANES, own.squares, step);
        }
        sums->row[0] = lane == r ? own : sums->row[0];
    }
    if (STATISTICS)
        total->near_zero += sums->near_zero;
    if (lane >= ROWS)
        return;
    if (score->ranked)
        vectors[score->rows_at + row + lane] = (int32_t)sums->row[0].product;
    if (STATISTICS) {
        total->squares += sums->row[0].squares;
        total->roots += (unsigned long long)llrint(256.0 * sqrt((double)sums->row[0].squares));
    }
}

/* A warp's rows of a chunk, SIDE_ROWS at a time where they are whole. */
template <bool STATISTICS, bool SMALL, class TYPE>
static __device__ __forceinline__ void multiply_rows(chunk_sums *total, const stq_item *item, const stq_score *score,
                                                     int32_t *vectors, int64_t first, int64_t end) {
    const float *x = (const float *)(vectors + score->columns_at);
    const bool eights = in_eights(item, score);
    for (int64_t row = first + threadIdx.x / 32 * SIDE_ROWS; row < end; row += WARPS * SIDE_ROWS) {
        if (eights && row + SIDE_ROWS <= end && holds(score, row, SIDE_ROWS)) {
            rows_sums<SIDE_ROWS> sums = {};
            sum_eights<STATISTICS, SMALL, TYPE, SIDE_ROWS>(&sums, item, score, x, row);
            finish_rows<STATISTICS, SIDE_ROWS>(total, &sums, score, vectors, row);
            continue;
        }
        for (int64_t single = row; single < end && single < row + SIDE_ROWS; single++) {
            rows_sums<1> sums = {};
            if (eights && holds(score, single, 1))
                sum_eights<STATISTICS, SMALL, TYPE, 1>(&sums, item, score, x, single);
            else
                sum_any<STATISTICS>(&sums, item, score, x, single);
            finish_rows<STATISTICS, 1>(total, &sums, score, vectors, single);
        }
    }
}

template <bool STATISTICS, class TYPE>
static __device__ __forceinline__ void multiply_typed(chunk_sums *total, const stq_item *item, const stq_score *score,
                                                      int32_t *vectors, int64_t first, int64_t end) {
    if (score->small_x)
        multiply_rows<STATISTICS, true, TYPE>(total, item, score, vectors, first, end);
    else
        multiply_rows<STATISTICS, false, TYPE>(total, item, score, vectors, first, end);
}

/* y = G x; the first time the rows are measured too. */
template <bool STATISTICS>
static __global__ void __launch_bounds__(TREE_THREADS)
    rows_kernel(const stq_device_item *items, const stq_tile *chunks, stq_score *scores, int32_t *vectors) {
    stq_tile chunk = chunks[blockIdx.x];
    const stq_item *item = &items[chunk.item].item;
    stq_score *score = &scores[chunk.item];
    int64_t first = (int64_t)chunk.tile * STQ_SCORE_ROWS, end = first + STQ_SCORE_ROWS;
    end = end < score->rows ? end : score->rows;
    chunk_sums total = {0, 0, 0};
    if (first >= end || (!STATISTICS && !score->ranked))
        return;
    if (item->gradient_type == STQ_BFLOAT16)
        multiply_typed<STATISTICS, bfloat16_eight>(&total, item, score, vectors, first, end);
    else
        multiply_typed<STATISTICS, float32_eight>(&total, item, score, vectors, first, end);
    if (STATISTICS) {
        total.near_zero = block_sum(total.near_zero);
        total.squares = block_sum(total.squares);
        total.roots = block_sum(total.roots);
        if (threadIdx.x == 0) {
            atomicAdd(&score->near_zero, total.near_zero);
            atomicAdd(&score->row_squares, total.squares);
            atomicAdd(&score->roots, total.roots);
        }
    }
}

/* ---- Products with columns ---- */

/* One row's part of a lane's eight columns. */
template <bool SMALL, class TYPE>
static __device__ __forceinline__ void add_row(uint32_t *sums, const TYPE &loaded, float prescale, float y) {
    float g[EIGHT];
    loaded.get(g);
#pragma unroll
    for (int k = 0; k < EIGHT; k++)
        sums[k] += rounded_product<SMALL>(g[k] * prescale, y);
}

/* Sums of a lane's eight columns over `rows` rows, which are held here whole; `at` is the first row's element. */
template <bool SMALL, class TYPE>
static __device__ __forceinline__ void add_columns(uint32_t *sums, const void *gradient, int64_t at, int64_t cols,
                                                   float prescale, const float *y, int rows) {
    int i = 0;
    for (; i + TYPE::batch <= rows; i += TYPE::batch, at += TYPE::batch * cols) {
        TYPE loaded[TYPE::batch];
#pragma unroll
        for (int r = 0; r < TYPE::batch; r++)
            loaded[r].load(gradient, at + r * cols);
#pragma unroll
        for (int r = 0; r < TYPE::batch; r++)
            add_row<SMALL>(sums, loaded[r], prescale, y[i + r]);
    }
#pragma unroll 1
    for (; i < rows; i++, at += cols) {
        TYPE loaded;
        loaded.load(gradient, at);
        add_row<SMALL>(sums, loaded, prescale, y[i]);
    }
#pragma unroll
    for (int k = 0; k < EIGHT; k++)
        sums[k] -= SMALL ? (uint32_t)rows * ROUND_BITS : 0u;
}

/* A chunk whose rows are held here whole, in eights: a tile of columns a warp. Their sums go through shared memory, so
 * that neighbouring lanes add to neighbouring columns. */
template <bool SMALL, class TYPE>
static __device__ __forceinline__ void multiply_tiles(uint32_t *staged, const stq_item *item, const stq_score *score,
                                                      int32_t *z, const float *y, int64_t first, int rows) {
    const int lane = (int)threadIdx.x % 32;
    const int64_t cols = score->cols, from = first * cols - score->first;
    for (int64_t tile = threadIdx.x / 32 * TILE; tile < cols; tile += WARPS * TILE) {
        const int64_t j = tile + lane * EIGHT;
        uint32_t sums[EIGHT] = {};
        if (j < cols)
            add_columns<SMALL, TYPE>(sums, item->gradient, from + j, cols, score->prescale, y, rows);
        uint4 *mine = (uint4 *)(staged + lane * EIGHT);
        mine[0] = make_uint4(sums[0], sums[1], sums[2], sums[3]);
        mine[1] = make_uint4(sums[4], sums[5], sums[6], sums[7]);
        __syncwarp();
#pragma unroll
        for (int k = 0; k < EIGHT; k++) {
            const int column = k * 32 + lane;
            if (tile + column < cols)
                atomicAdd((uint32_t *)&z[tile + column], staged[column]);
        }
        __syncwarp();
    }
}

/* Any chunk: a thread for each column. */
static __device__ __forceinline__ void multiply_any(const stq_item *item, const stq_score *score, int32_t *z,
                                                    const float *y, int64_t first, int rows) {
    const int64_t cols = score->cols;
    const float prescale = score->prescale;
    for (int64_t j = threadIdx.x; j < cols; j += TREE_THREADS) {
        const int64_t at = first * cols + j - score->first; /* in the elements held here */
        const int64_t before = at < 0 ? (cols - 1 - at) / cols : 0;
        const int64_t held = at < score->count ? (score->count - at + cols - 1) / cols : 0;
        const int end = (int)(held < rows ? held : rows);
        uint32_t sum = 0;
#pragma unroll 8
        for (int i = (int)(before < rows ? before : rows); i < end; i++) {
            float g = stq_load_float(item->gradient, item->gradient_type, at + i * cols);
            sum += (uint32_t)__float2int_rn((g * prescale) * y[i]);
        }
        if (sum != 0)
            atomicAdd((uint32_t *)&z[j], sum);
    }
}

template <class TYPE>
static __device__ __forceinline__ void multiply_columns(uint32_t *staged, const stq_item *item, const stq_score *score,
                                                        int32_t *z, const float *y, int64_t first, int rows) {
    if (score->small_y)
        multiply_tiles<true, TYPE>(staged, item, score, z, y, first, rows);
    else
        multiply_tiles<false, TYPE>(staged, item, score, z, y, first, rows);
}

/* z += G' y over a chunk of rows. */
static __global__ void __launch_bounds__(TREE_THREADS)
    columns_kernel(const stq_device_item *items, const stq_tile *chunks, const stq_score *scores, int32_t *vectors) {
    __shared__ float y[STQ_SCORE_ROWS];
    __shared__ uint4 staged[WARPS][TILE / 4];
    stq_tile chunk = chunks[blockIdx.x];
    const stq_item *item = &items[chunk.item].item;
    const stq_score *score = &scores[chunk.item];
    int64_t first = (int64_t)chunk.tile * STQ_SCORE_ROWS;
    int rows = score->rows - first < STQ_SCORE_ROWS ? (int)(score->rows - first) : STQ_SCORE_ROWS;
    if (!score->ranked)
        return;
    if ((int)threadIdx.x < rows)
        y[threadIdx.x] = (float)((double)vectors[score->rows_at + first + threadIdx.x] * score->y_scale);
    __syncthreads();
    uint32_t *own = (uint32_t *)staged[threadIdx.x / 32];
    int32_t *z = vectors + score->columns_at;
    if (!in_eights(item, score) || !holds(score, first, rows))
        multiply_any(item, score, z, y, first, rows);
    else if (item->gradient_type == STQ_BFLOAT16)
        multiply_columns<bfloat16_eight>(own, item, score, z, y, first, rows);
    else
        multiply_columns<float32_eight>(own, item, score, z, y, first, rows);
}

/* ---- Launches ---- */

static __global__ void gate_kernel(stq_gate *gate, const stq_control *control, int64_t every, double unscale,
                                   const float *loss_scale) {
    bool due = every == 0 || (!gate->measured && stq_is_decision_step(control->steps, every));
    gate->active = due && !control->skip;
    if (!gate->active)
        return;
    gate->measured = 1;
    gate->step = control->steps;
    gate->unscale = loss_scale ? unscale / (double)*loss_scale : unscale;
}

cudaError_t stq_cuda_open_gate(stq_gate *gate, const stq_control *control, int64_t every, double unscale,
                               const float *loss_scale, cudaStream_t stream) {
    gate_kernel<<<1, 1, 0, stream>>>(gate, control, every, unscale, loss_scale);
    return cudaGetLastError();
}

cudaError_t stq_cuda_score_rows(const stq_score_lists *lists, bool measure, stq_score *scores, cudaStream_t stream) {
    const unsigned chunks = (unsigned)lists->chunk_count;
    if (chunks > 0 && measure)
        rows_kernel<true><<<chunks, TREE_THREADS, 0, stream>>>(lists->items, lists->chunks, scores, lists->vectors);
    else if (chunks > 0)
        rows_kernel<false><<<chunks, TREE_THREADS, 0, stream>>>(lists->items, lists->chunks, scores, lists->vectors);
    return cudaGetLastError();
}

cudaError_t stq_cuda_score_columns(const stq_score_lists *lists, stq_score *scores, cudaStream_t stream) {
    const unsigned tensors = (unsigned)lists->item_count, chunks = (unsigned)lists->chunk_count;
    rows_norm_kernel<<<tensors, TREE_THREADS, 0, stream>>>(scores, lists->vectors);
    if (chunks > 0)
        columns_kernel<<<chunks, TREE_THREADS, 0, stream>>>(lists->items, lists->chunks, scores, lists->vectors);
    return cudaGetLastError();
}

cudaError_t stq_cuda_score_next(const stq_score_lists *lists, stq_score *scores, cudaStream_t stream) {
    columns_norm_kernel<<<(unsigned)lists->item_count, TREE_THREADS, 0, stream>>>(scores, lists->vectors);
    return cudaGetLastError();
}

cudaError_t stq_cuda_slice_moments(const stq_score_lists *lists, double *fourths, int32_t *largest,
                                   cudaStream_t stream) {
    int64_t count = lists->segment_count;
    cudaError_t error = stq_cuda_moments(lists->items, lists->segments, count, NULL, lists->moments, stream);
    if (error != cudaSuccess || count == 0)
        return error;
    const unsigned blocks = (unsigned)((count + TREE_THREADS - 1) / TREE_THREADS);
    split_kernel<<<blocks, TREE_THREADS, 0, stream>>>(lists->segments, count, lists->moments, fourths, largest);
    return cudaGetLastError();
}

cudaError_t stq_cuda_slice_begin(const stq_score_lists *lists, const int64_t *first_segment, const double *squares,
                                 const double *fourths, const int32_t *largest, stq_score *scores,
                                 cudaStream_t stream) {
    const unsigned tensors = (unsigned)lists->item_count;
    begin_slices_kernel<<<tensors, TREE_THREADS, 0, stream>>>(first_segment, squares, fourths, largest, scores,
                                                              lists->vectors);
    return cudaGetLastError();
}

cudaError_t stq_cuda_scores(const stq_score_lists *lists, stq_score *scores, cudaStream_t stream) {
    const unsigned tensors = (unsigned)lists->item_count, chunks = (unsigned)lists->chunk_count;
    if (tensors == 0 || chunks == 0)
        return cudaSuccess;
    cudaError_t error = cudaSuccess;
    if (!lists->summed)
        error =
            stq_cuda_moments(lists->items, lists->segments, lists->segment_count, lists->gate, lists->moments, stream);
    if (error != cudaSuccess)
        return error;
    begin_kernel<<<tensors, TREE_THREADS, 0, stream>>>(lists->items, lists->first_segment, lists->gate, lists->moments,
                                                       scores, lists->vectors);
    error = cudaGetLastError();
    for (int iteration = 0; iteration < 2 && error == cudaSuccess; iteration++) {
        error = stq_cuda_score_rows(lists, iteration == 0, scores, stream);
        if (error == cudaSuccess)
            error = stq_cuda_score_columns(lists, scores, stream);
        if (error == cudaSuccess)
            error = stq_cuda_score_next(lists, scores, stream);
    }
    return error;
}
