/*
 * share.cu - second moments shared along a dimension (quant/shared.h): the stages that the CPU makes one after the
 * other, each one launch for the whole list. Sums are sums of integers, so that their order does not matter. The grids
 * do not depend on which tensors share: a captured graph goes on after a decision that changes that.
 *
 * Means are worked on by STQ_SHARE_PARTS blocks an item. Elements are worked on by a block for each segment: where rows
 * share, a warp takes a contiguous part and adds up each row's piece of it; where columns share, the block takes some
 * columns of many rows instead, as many elements in all, and a thread keeps the sums of 8 columns. Gradients in aligned
 * rows of a multiple of 8 values, which is nearly all of them, are read some vectors ahead (share_terms.cuh).
 */
#include "cuda/kernels.h"
#include "cuda/share_terms.cuh"
#include "cuda/words.h"

#define WARPS (THREADS / 32)
/* Columns of a block: 8 a thread at most. */
#define WIDEST (EIGHT * THREADS)
/* Blocks of the stages that only a saturated tensor needs: nearly always all of them leave at once. */
#define RARE_BLOCKS 2048

/* ---- Stages over means ---- */

enum mean_stage { FROM_MEANS, ZERO, SAFE_FACTORS, NEW_MEANS, NO_MEANS, FIRST_MEANS };

/* Shared before this step: its means take the gradient in. */
static __device__ bool is_followed(const stq_item *item) {
    return item->gradient != NULL && stq_is_shared(item->v_in.bits);
}

/* Shared from this step on. */
static __device__ bool is_begun(const stq_item *item) {
    return item->gradient != NULL && stq_is_shared(item->v_out.bits) && !stq_is_shared(item->v_in.bits);
}

/* Elements behind each mean. */
static __device__ int64_t elements_of(const stq_item *item, uint32_t bits) {
    return bits == STQ_BITS_SHARED_ROW ? item->cols : item->rows;
}

static __device__ void follow(const stq_item *item, const stq_coefficients *c) {
    stq_shared_grid grid = stq_shared_probe_grid(item->rows, item->cols);
    for (int64_t i = threadIdx.x; i < grid.rows * grid.cols; i += THREADS)
        stq_shared_follow_probe(item, &grid, c, i);
    if (threadIdx.x == 0)
        stq_shared_means(&item->v_in)[stq_shared_count(item->v_in.bits, item->rows, item->cols)] = c->gradient_factor;
}

/* Everything of a new shared state but its means: what has no value yet is 0. */
static __device__ void clear_state(const stq_item *item, int64_t first, int64_t step) {
    const stq_planes *planes = &item->v_out;
    int64_t count = stq_shared_count(planes->bits, item->rows, item->cols);
    int64_t all = stq_shared_bytes(planes->bits, item->rows, item->cols) / 4;
    int64_t probes = stq_shared_probes(planes) - stq_shared_means(planes);
    stq_shared_grid grid = stq_shared_probe_grid(item->rows, item->cols);
    for (int64_t k = first; k < all; k += step) {
        float value = k == count ? stq_bits_float(0x7f800000u) : 0.0f;
        if (k >= probes && k - probes < grid.rows * grid.cols)
            value = stq_shared_read_probe(item, &grid, k - probes);
        stq_shared_means(planes)[k] = value;
    }
}

template <mean_stage STAGE> static __global__ void __launch_bounds__(THREADS) means_kernel(stq_share_lists lists) {
    constexpr bool begins = STAGE == NO_MEANS || STAGE == FIRST_MEANS;
    constexpr bool rare = STAGE == ZERO || STAGE == SAFE_FACTORS;
    if (rare && lists.saturated[lists.item_count] == 0)
        return;
    if (STAGE == FROM_MEANS && blockIdx.x == 0 && threadIdx.x == 0)
        lists.saturated[lists.item_count] = 0;
    uint32_t index = blockIdx.x / STQ_SHARE_PARTS, part = blockIdx.x % STQ_SHARE_PARTS;
    const stq_item *item = &lists.items[index].item;
    const stq_planes *planes = begins ? &item->v_out : &item->v_in;
    if (lists.control->skip || !(begins ? is_begun(item) : is_followed(item)))
        return;
    if (rare && lists.saturated[index] == 0)
        return;
    int64_t count = stq_shared_count(planes->bits, item->rows, item->cols), elements = elements_of(item, planes->bits);
    int64_t first = (int64_t)part * THREADS + threadIdx.x;
    int64_t *sums = lists.sums + lists.items[index].means_at;
    float *factors = lists.factors + lists.items[index].means_at, *means = stq_shared_means(planes);
    const stq_coefficients *c = &lists.coefficients[index];
    double scale =
        STAGE == FIRST_MEANS ? stq_shared_fixed_point(stq_bits_float(lists.saturated[index]), elements) : 0.0;
    for (int64_t k = first; k < count; k += STQ_SHARE_PARTS * THREADS) {
        if (STAGE == FROM_MEANS)
            factors[k] = stq_shared_factor(means[k], means[count]);
        if (STAGE == ZERO)
            factors[k] = 0.0f;
        if (STAGE == SAFE_FACTORS)
            factors[k] = stq_shared_safe_factor(factors[k]);
        if (STAGE == NEW_MEANS)
            means[k] = stq_shared_mean(means[k], sums[k], elements, factors[k], c);
        else if (STAGE == FIRST_MEANS)
            means[k] = stq_shared_first_mean(sums[k], elements, scale);
        else
            sums[k] = 0;
    }
    if (STAGE == NO_MEANS)
        clear_state(item, first, STQ_SHARE_PARTS * THREADS);
    if ((STAGE == FROM_MEANS || STAGE == NO_MEANS) && first == 0)
        lists.saturated[index] = 0;
    if (STAGE == NEW_MEANS && part == 0)
        follow(item, c);
}

/* ---- Stages over elements ---- */

enum element_stage { ADD_TERMS, FIND_LARGEST, ADD_AGAIN, LARGEST_MOMENT, ADD_MOMENTS };

/* What the elements of an item are worked on with. */
struct element_work {
    const stq_item *item;
    int64_t *sums;
    float *factors;
    uint32_t *saturated;
    double scale;
};

/* Up to 8 neighbouring elements: gradients, or second moments that are decoded. Those that do not exist become 0. */
template <element_stage STAGE>
static __device__ __forceinline__ void load_eight(float *values, const element_work &w, int64_t at, int64_t count) {
    const stq_item *item = w.item;
    if (STAGE == LARGEST_MOMENT || STAGE == ADD_MOMENTS) {
        for (int k = 0; k < EIGHT; k++)
            values[k] = k < count ? stq_shared_read_value(&item->v_in, at + k) : 0.0f;
        return;
    }
    const char *from = (const char *)item->gradient + at * (int64_t)(item->gradient_type == STQ_FLOAT32 ? 4 : 2);
    bool aligned = count >= EIGHT && (uintptr_t)from % 16 == 0;
    if (aligned && item->gradient_type == STQ_BFLOAT16) {
        uint4 words = *(const uint4 *)from;
        const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
        stq_pairs_values(values, pairs);
    } else if (aligned && item->gradient_type == STQ_FLOAT32) {
        float4 low = ((const float4 *)from)[0], high = ((const float4 *)from)[1];
        values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
        values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
    } else {
        for (int k = 0; k < EIGHT; k++)
            values[k] = k < count ? stq_load_float(item->gradient, item->gradient_type, at + k) : 0.0f;
    }
}

/* What one element adds to `sum`, or raises it to. */
template <element_stage STAGE>
static __device__ __forceinline__ void take_in(long long *sum, bool *saturated, float value, float factor,
                                               double scale) {
    if (STAGE == FIND_LARGEST || STAGE == LARGEST_MOMENT) {
        long long bits = stq_float_bits(value) & 0x7fffffffu;
        *sum = *sum > bits ? *sum : bits;
    } else if (STAGE == ADD_MOMENTS) {
        *sum += stq_shared_moment_term(value, scale);
    } else {
        int32_t term = stq_shared_term(value, factor);
        *sum += term;
        *saturated |= term == (int32_t)STQ_SHARED_LARGEST;
    }
}

/* Hands the sum of some elements of mean k over. */
template <element_stage STAGE>
static __device__ __forceinline__ void deliver(const element_work &w, int64_t k, long long sum) {
    if (sum == 0)
        return;
    if (STAGE == FIND_LARGEST)
        atomicMax((uint32_t *)&w.factors[k], (uint32_t)sum);
    else if (STAGE == LARGEST_MOMENT)
        atomicMax(w.saturated, (uint32_t)sum);
    else
        atomicAdd((unsigned long long *)&w.sums[k], (unsigned long long)sum);
}

template <element_stage STAGE> static __device__ __forceinline__ long long reduce_warp(long long sum) {
    for (int step = 16; step > 0; step /= 2) {
        long long other = __shfl_xor_sync(0xffffffffu, sum, step);
        if (STAGE == FIND_LARGEST || STAGE == LARGEST_MOMENT)
            sum = sum > other ? sum : other;
        else
            sum += other;
    }
    return sum;
}

/* Elements first .. end - 1, which are a warp's. */
template <element_stage STAGE> static __device__ bool work_on_rows(const element_work &w, int64_t first, int64_t end) {
    int64_t cols = w.item->cols, row = first / cols;
    bool saturated = false;
    for (int64_t at = first; at < end; row++) {
        int64_t stop = (row + 1) * cols;
        stop = stop < end ? stop : end;
        float factor = STAGE == ADD_TERMS || STAGE == ADD_AGAIN ? w.factors[row] : 0.0f;
        long long sum = 0;
#pragma unroll 2
        for (int64_t i = at + threadIdx.x % 32 * EIGHT; i < stop; i += 32 * EIGHT) {
            float values[EIGHT];
            load_eight<STAGE>(values, w, i, stop - i);
#pragma unroll
            for (int k = 0; k < EIGHT; k++)
                take_in<STAGE>(&sum, &saturated, values[k], factor, w.scale);
        }
        sum = reduce_warp<STAGE>(sum);
        if (threadIdx.x % 32 == 0)
            deliver<STAGE>(w, row, sum);
        at = stop;
    }
    return saturated;
}

/* Columns `col` to col + 7 of rows first, first + step, ... below `end`. */
template <element_stage STAGE>
static __device__ bool work_on_columns(const element_work &w, int64_t col, int64_t first, int64_t end, int64_t step) {
    int64_t cols = w.item->cols, count = cols - col < EIGHT ? cols - col : EIGHT;
    float factors[EIGHT];
    long long sums[EIGHT];
    bool saturated = false;
#pragma unroll
    for (int k = 0; k < EIGHT; k++) {
        factors[k] = (STAGE == ADD_TERMS || STAGE == ADD_AGAIN) && k < count ? w.factors[col + k] : 0.0f;
        sums[k] = 0;
    }
#pragma unroll 2
    for (int64_t row = first; row < end; row += step) {
        float values[EIGHT];
        load_eight<STAGE>(values, w, row * cols + col, count);
#pragma unroll
        for (int k = 0; k < EIGHT; k++)
            take_in<STAGE>(&sums[k], &saturated, values[k], factors[k], w.scale);
    }
#pragma unroll
    for (int k = 0; k < EIGHT; k++)
        if (k < count)
            deliver<STAGE>(w, col + k, sums[k]);
    return saturated;
}

/* Where a block's share of the columns lies: as many elements as a segment has. */
struct chunk_grid {
    int64_t chunks, width, height; /* chunks of columns, columns of each, rows of a block */
    int64_t units, blocks;         /* of chunks times heights; the item's blocks take turns at them */
};

static __device__ __forceinline__ chunk_grid chunks_of(const stq_item *item) {
    chunk_grid grid;
    grid.chunks = (item->cols + WIDEST - 1) / WIDEST;
    grid.width = ((item->cols + grid.chunks - 1) / grid.chunks + EIGHT - 1) / EIGHT * EIGHT;
    grid.height = STQ_SEGMENT / grid.width;
    grid.units = grid.chunks * ((item->rows + grid.height - 1) / grid.height);
    grid.blocks = stq_segment_count(item->count);
    return grid;
}

template <element_stage STAGE> static __device__ bool work_on_chunks(const element_work &w, uint32_t segment) {
    chunk_grid grid = chunks_of(w.item);
    int64_t threads = grid.width / EIGHT, lines = THREADS / threads, line = threadIdx.x / threads;
    bool saturated = false;
    for (int64_t unit = segment; unit < grid.units; unit += grid.blocks) {
        int64_t col = unit % grid.chunks * grid.width + threadIdx.x % threads * EIGHT;
        int64_t first = unit / grid.chunks * grid.height;
        int64_t end = first + grid.height < w.item->rows ? first + grid.height : w.item->rows;
        if (line < lines && col < w.item->cols)
            saturated |= work_on_columns<STAGE>(w, col, first + line, end, lines);
    }
    return saturated;
}

/* Room for the sums of a block's columns; threads that read one each meet all banks. */
#define PITCH (THREADS + 4)
static __device__ __forceinline__ unsigned long long *staged_sums() {
    __shared__ unsigned long long staged[EIGHT * PITCH];
    return staged;
}

/* Adds what the block's threads have for columns `chunk` and following: through shared memory, so that neighbouring
 * threads add to neighbouring sums. `threads` of them have 8 columns each, of one of `lines` lines. */
static __device__ __forceinline__ void deliver_columns(const element_work &w, const unsigned long long *sums,
                                                       int64_t chunk, uint32_t width, uint32_t threads,
                                                       uint32_t lines) {
    unsigned long long *staged = staged_sums();
#pragma unroll
    for (int k = 0; k < EIGHT; k++)
        staged[k * PITCH + threadIdx.x] = sums[k];
    __syncthreads();
    for (uint32_t at = threadIdx.x; at < width; at += THREADS) {
        unsigned long long sum = 0;
        for (uint32_t i = 0; i < lines; i++)
            sum += staged[at % EIGHT * PITCH + i * threads + at / EIGHT];
        deliver<ADD_TERMS>(w, chunk + at, (long long)sum);
    }
    __syncthreads();
}

/* As work_on_chunks(). */
template <bool HALF> static __device__ __forceinline__ bool add_chunks(const element_work &w, uint32_t segment) {
    chunk_grid grid = chunks_of(w.item);
    uint32_t threads = (uint32_t)grid.width / EIGHT, lines = THREADS / threads, line = threadIdx.x / threads;
    int64_t row_bytes = w.item->cols * eight_gradients<HALF>::bytes;
    bool saturated = false;
    for (int64_t unit = segment; unit < grid.units; unit += grid.blocks) {
        int64_t chunk = unit % grid.chunks * grid.width, first = unit / grid.chunks * grid.height + line;
        int64_t left = w.item->cols - chunk, end = first - line + grid.height;
        uint32_t own = threadIdx.x % threads * EIGHT;
        uint32_t width = (uint32_t)(left < grid.width ? left : grid.width);
        end = end < w.item->rows ? end : w.item->rows;
        unsigned long long sums[EIGHT] = {};
        if (line < lines && own < width && first < end)
            saturated |= terms_of_columns<HALF>(sums, w.factors + chunk + own,
                                                (const char *)w.item->gradient + first * row_bytes +
                                                    (chunk + own) * eight_gradients<HALF>::bytes,
                                                row_bytes * lines, (int)((uint32_t)(end - first + lines - 1) / lines));
        deliver_columns(w, sums, chunk, width, threads, lines);
    }
    return saturated;
}

/* Elements first .. end - 1, which are a warp's, as work_on_rows() has it. */
template <bool HALF>
static __device__ __forceinline__ bool add_rows(const element_work &w, int64_t first, int64_t end) {
    int64_t cols = w.item->cols, row = first / cols;
    uint32_t seen = 0;
    for (int64_t at = first; at < end; row++) {
        int64_t stop = (row + 1) * cols;
        stop = stop < end ? stop : end;
        long long sum = (long long)terms_of_row<HALF>(w.item, w.factors[row], at, stop, &seen);
        sum = reduce_warp<ADD_TERMS>(sum);
        if (threadIdx.x % 32 == 0)
            deliver<ADD_TERMS>(w, row, sum);
        at = stop;
    }
    return (seen & SATURATED) != 0;
}

/* Any gradients, and second moments. */
template <element_stage STAGE>
static __device__ __noinline__ bool work_on_any(const element_work &w, uint32_t bits, uint32_t segment, int64_t first,
                                                int64_t end) {
    if (bits == STQ_BITS_SHARED_ROW || STAGE == LARGEST_MOMENT)
        return work_on_rows<STAGE>(w, first, end);
    return work_on_chunks<STAGE>(w, segment);
}

/* One segment, by a block. */
template <element_stage STAGE>
static __device__ __forceinline__ void work_on_segment(const stq_share_lists &lists, stq_tile segment) {
    constexpr bool begins = STAGE == LARGEST_MOMENT || STAGE == ADD_MOMENTS;
    const stq_device_item *device_item = &lists.items[segment.item];
    const stq_item *item = &device_item->item;
    if (!(begins ? is_begun(item) : is_followed(item)))
        return;
    if ((STAGE == FIND_LARGEST || STAGE == ADD_AGAIN) && lists.saturated[segment.item] == 0)
        return;
    uint32_t bits = begins ? item->v_out.bits : item->v_in.bits;
    element_work w;
    w.item = item;
    w.sums = lists.sums + device_item->means_at;
    w.factors = lists.factors + device_item->means_at;
    w.saturated = lists.saturated + segment.item;
    w.scale =
        STAGE == ADD_MOMENTS ? stq_shared_fixed_point(stq_bits_float(*w.saturated), elements_of(item, bits)) : 0.0;
    int64_t first = (int64_t)segment.tile * STQ_SEGMENT + threadIdx.x / 32 * (STQ_SEGMENT / WARPS);
    int64_t end = first + STQ_SEGMENT / WARPS;
    end = end < item->count ? end : item->count;
    bool saturated, by_row = bits == STQ_BITS_SHARED_ROW;
    if (STAGE == ADD_TERMS && is_regular(item, STQ_BFLOAT16))
        saturated = by_row ? add_rows<true>(w, first, end) : add_chunks<true>(w, segment.tile);
    else if (STAGE == ADD_TERMS && is_regular(item, STQ_FLOAT32))
        saturated = by_row ? add_rows<false>(w, first, end) : add_chunks<false>(w, segment.tile);
    else
        saturated = work_on_any<STAGE>(w, bits, segment.tile, first, end);
    if (STAGE == ADD_TERMS && saturated) {
        atomicMax(w.saturated, 1u);
        atomicMax(lists.saturated + lists.item_count, 1u);
    }
}

template <element_stage STAGE>
static __global__ void __launch_bounds__(THREADS, STAGE == ADD_TERMS ? STQ_SHARE_BLOCKS : 1)
    elements_kernel(stq_share_lists lists) {
    constexpr bool rare = STAGE == FIND_LARGEST || STAGE == ADD_AGAIN;
    if (lists.control->skip || (rare && lists.saturated[lists.item_count] == 0))
        return;
    if constexpr (rare) {
        for (int64_t i = blockIdx.x; i < lists.segment_count; i += gridDim.x)
            work_on_segment<STAGE>(lists, lists.segments[i]);
    } else {
        work_on_segment<STAGE>(lists, lists.segments[blockIdx.x]);
    }
}

/* ---- Launches ---- */

cudaError_t stq_cuda_share_begin(const stq_share_lists *lists, cudaStream_t stream) {
    const unsigned parts = (unsigned)lists->item_count * STQ_SHARE_PARTS, segments = (unsigned)lists->segment_count;
    if (segments == 0)
        return cudaSuccess;
    means_kernel<NO_MEANS><<<parts, THREADS, 0, stream>>>(*lists);
    elements_kernel<LARGEST_MOMENT><<<segments, THREADS, 0, stream>>>(*lists);
    elements_kernel<ADD_MOMENTS><<<segments, THREADS, 0, stream>>>(*lists);
    means_kernel<FIRST_MEANS><<<parts, THREADS, 0, stream>>>(*lists);
    return cudaGetLastError();
}

cudaError_t stq_cuda_share_step(const stq_share_lists *lists, cudaStream_t stream) {
    const unsigned parts = (unsigned)lists->item_count * STQ_SHARE_PARTS, segments = (unsigned)lists->segment_count;
    if (segments == 0)
        return cudaSuccess;
    const unsigned rare = segments < RARE_BLOCKS ? segments : RARE_BLOCKS;
    means_kernel<FROM_MEANS><<<parts, THREADS, 0, stream>>>(*lists);
    elements_kernel<ADD_TERMS><<<segments, THREADS, 0, stream>>>(*lists);
    means_kernel<ZERO><<<parts, THREADS, 0, stream>>>(*lists);
    elements_kernel<FIND_LARGEST><<<rare, THREADS, 0, stream>>>(*lists);
    means_kernel<SAFE_FACTORS><<<parts, THREADS, 0, stream>>>(*lists);
    elements_kernel<ADD_AGAIN><<<rare, THREADS, 0, stream>>>(*lists);
    means_kernel<NEW_MEANS><<<parts, THREADS, 0, stream>>>(*lists);
    return cudaGetLastError();
}

static __global__ void __launch_bounds__(THREADS) probes_kernel(const stq_device_item *items, float *values) {
    const stq_item *item = &items[blockIdx.x].item;
    if (items[blockIdx.x].means_at < 0)
        return;
    stq_shared_grid grid = stq_shared_probe_grid(item->rows, item->cols);
    for (int64_t i = threadIdx.x; i < grid.rows * grid.cols; i += THREADS)
        values[items[blockIdx.x].probes_at + i] = stq_shared_read_probe(item, &grid, i);
}

cudaError_t stq_cuda_read_probes(const stq_device_item *items, int64_t item_count, float *values, cudaStream_t stream) {
    if (item_count > 0)
        probes_kernel<<<(unsigned)item_count, THREADS, 0, stream>>>(items, values);
    return cudaGetLastError();
}
