/*
 * factors.cu - the sums behind the factors of all tensors at once: moments, row statistics, and the two power
 * iterations of the stable rank (score/power.h). The products are sums of integers, so that any split gives the CPU's
 * bits; everything in double follows the CPU's order. Nothing waits for the host: it reads one record a tensor at the
 * end.
 */
#include "cuda/kernels.h"
#include "cuda/tree.cuh"
#include "policy/due.h"
#include "quant/convert.h"
#include "score/power.h"

#define WARPS (TREE_THREADS / 32)

/* 2^-10: elements below this share of the largest count as near zero. */
#define NEAR_ZERO (1.0f / 1024.0f)

static __device__ void begin_score(stq_score *score, double squares, double fourths, uint32_t largest, int64_t count) {
    uint32_t exponent = max(largest >> 23, 2u);
    score->squares = squares;
    score->fourths = fourths;
    score->largest_bits = largest;
    score->prescale = stq_bits_float((256 - min(exponent, 255u)) << 23);
    score->frobenius = sqrt(squares) * (double)score->prescale;
    score->threshold = stq_bits_float(largest) * score->prescale * NEAR_ZERO;
    score->fixed_point = count <= (int64_t)1 << 34 ? 16777216.0f : 1048576.0f;
}

/* Sums over the segments, and what the later stages are scaled by. */
static __global__ void __launch_bounds__(TREE_THREADS)
    begin_kernel(const stq_device_item *items, const int64_t *first_segment, const stq_moment_sums *sums,
                 stq_score *scores) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    const stq_item *item = &items[blockIdx.x].item;
    const stq_moment_sums *own = sums + first_segment[blockIdx.x];
    int64_t count = item->gradient ? first_segment[blockIdx.x + 1] - first_segment[blockIdx.x] : 0;
    double squares = tree_sum(accumulators, count, [=](int64_t i) { return own[i].squares; });
    double fourths = tree_sum(accumulators, count, [=](int64_t i) { return own[i].fourths; });
    if (threadIdx.x != 0)
        return;
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++)
        largest = max(largest, own[i].largest_bits);
    begin_score(&scores[blockIdx.x], squares, fourths, largest, item->count);
}

/* The same where squares and fourth powers of all ranks' segments lie apart. */
static __global__ void __launch_bounds__(TREE_THREADS)
    begin_slices_kernel(const int64_t *first_segment, const double *squares, const double *fourths,
                        const int32_t *largest, stq_score *scores) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    stq_score *score = &scores[blockIdx.x];
    int64_t first = first_segment[blockIdx.x];
    int64_t count = score->rows > 0 ? first_segment[blockIdx.x + 1] - first : 0;
    double second = tree_sum(accumulators, count, [=](int64_t i) { return squares[first + i]; });
    double fourth = tree_sum(accumulators, count, [=](int64_t i) { return fourths[first + i]; });
    if (threadIdx.x == 0)
        begin_score(score, second, fourth, (uint32_t)largest[blockIdx.x], score->rows * score->cols);
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

/* x = the start vector, scaled for the first product. */
static __global__ void __launch_bounds__(TREE_THREADS) start_kernel(const stq_score *scores, int32_t *vectors) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    const stq_score *score = &scores[blockIdx.x];
    float *x = (float *)(vectors + score->columns_at);
    if (!score->ranked)
        return;
    double sum = tree_sum(accumulators, score->cols, [](int64_t j) {
        double value = stq_power_start(j);
        return value * value;
    });
    double scale = STQ_POWER_RANGE / (score->frobenius * sqrt(sum));
    for (int64_t j = threadIdx.x; j < score->cols; j += TREE_THREADS)
        x[j] = (float)((double)stq_power_start(j) * scale);
}

/* The norm of a vector of integers; turns it into floats scaled for the next product, zeros if the norm is 0. */
static __global__ void __launch_bounds__(TREE_THREADS) rescale_kernel(stq_score *scores, int32_t *vectors, bool rows) {
    __shared__ double accumulators[STQ_TREE_WIDTH];
    stq_score *score = &scores[blockIdx.x];
    int32_t *vector = vectors + (rows ? score->rows_at : score->columns_at);
    int64_t count = rows ? score->rows : score->cols;
    if (!score->ranked)
        return;
    double sum = tree_sum(accumulators, count, [=](int64_t i) {
        double value = vector[i];
        return value * value;
    });
    double norm = sqrt(sum);
    double scale = norm > 0 ? STQ_POWER_RANGE / (score->frobenius * norm) : 0.0;
    for (int64_t i = threadIdx.x; i < count; i += TREE_THREADS)
        ((float *)vector)[i] = (float)((double)vector[i] * scale);
    if (threadIdx.x == 0 && rows)
        score->y_norm = norm;
    else if (threadIdx.x == 0)
        score->z_norm = norm;
}

/* A lane's part of one row. */
struct row_sums {
    uint32_t product;
    uint32_t near_zero;
    unsigned long long squares;
};

template <bool STATISTICS>
static __device__ __forceinline__ void add_element(row_sums *sums, const stq_score *score, float g, float x) {
    float u = g * score->prescale;
    sums->product += (uint32_t)__float2int_rn(u * x);
    if (STATISTICS) {
        sums->squares += (unsigned long long)__float2int_rn((u * u) * score->fixed_point);
        sums->near_zero += fabsf(u) < score->threshold;
    }
}

template <bool STATISTICS>
static __device__ __forceinline__ row_sums sum_row(const stq_item *item, const stq_score *score, const float *x,
                                                   int64_t row) {
    row_sums sums = {0, 0, 0};
    int64_t first = row * score->cols - score->first; /* in the elements held here */
    int64_t begin = first < 0 ? -first : 0, end = score->count - first;
    end = end < score->cols ? end : score->cols;
#pragma unroll 4
    for (int64_t j = begin + threadIdx.x % 32; j < end; j += 32)
        add_element<STATISTICS>(&sums, score, stq_load_float(item->gradient, item->gradient_type, first + j),
                                score->ranked ? x[j] : 0.0f);
    for (int step = 16; step > 0; step /= 2) {
        sums.product += __shfl_xor_sync(0xffffffffu, sums.product, step);
        if (STATISTICS) {
            sums.squares += __shfl_xor_sync(0xffffffffu, sums.squares, step);
            sums.near_zero += __shfl_xor_sync(0xffffffffu, sums.near_zero, step);
        }
    }
    return sums;
}

/* y = G x, a warp for each row; the first time the rows are measured too. */
template <bool STATISTICS>
static __global__ void __launch_bounds__(TREE_THREADS)
    rows_kernel(const stq_device_item *items, const stq_tile *chunks, stq_score *scores, int32_t *vectors) {
    stq_tile chunk = chunks[blockIdx.x];
    const stq_item *item = &items[chunk.item].item;
    stq_score *score = &scores[chunk.item];
    int64_t end = ((int64_t)chunk.tile + 1) * STQ_SCORE_ROWS;
    end = end < score->rows ? end : score->rows;
    unsigned long long near_zero = 0, squares = 0, roots = 0;
    if (!STATISTICS && !score->ranked)
        return;
    for (int64_t row = (int64_t)chunk.tile * STQ_SCORE_ROWS + threadIdx.x / 32; row < end; row += WARPS) {
        row_sums sums = sum_row<STATISTICS>(item, score, (const float *)(vectors + score->columns_at), row);
        if (threadIdx.x % 32 != 0)
            continue;
        if (score->ranked)
            vectors[score->rows_at + row] = (int32_t)sums.product;
        near_zero += sums.near_zero;
        squares += sums.squares;
        roots += (unsigned long long)llrint(256.0 * sqrt((double)sums.squares));
    }
    if (STATISTICS) {
        near_zero = block_sum(near_zero);
        squares = block_sum(squares);
        roots = block_sum(roots);
        if (threadIdx.x == 0) {
            atomicAdd(&score->near_zero, near_zero);
            atomicAdd(&score->row_squares, squares);
            atomicAdd(&score->roots, roots);
        }
    }
}

static __global__ void __launch_bounds__(TREE_THREADS) clear_kernel(const stq_score *scores, int32_t *vectors) {
    const stq_score *score = &scores[blockIdx.x];
    for (int64_t j = threadIdx.x; j < score->cols && score->ranked; j += TREE_THREADS)
        vectors[score->columns_at + j] = 0;
}

/* z += G' y over a chunk of rows: a thread for each column. */
static __global__ void __launch_bounds__(TREE_THREADS)
    columns_kernel(const stq_device_item *items, const stq_tile *chunks, const stq_score *scores, int32_t *vectors) {
    stq_tile chunk = chunks[blockIdx.x];
    const stq_item *item = &items[chunk.item].item;
    const stq_score *score = &scores[chunk.item];
    __shared__ float y[STQ_SCORE_ROWS];
    int64_t first = (int64_t)chunk.tile * STQ_SCORE_ROWS;
    int rows = score->rows - first < STQ_SCORE_ROWS ? (int)(score->rows - first) : STQ_SCORE_ROWS;
    if (!score->ranked)
        return;
    if ((int)threadIdx.x < rows)
        y[threadIdx.x] = ((const float *)(vectors + score->rows_at))[first + threadIdx.x];
    __syncthreads();
    for (int64_t j = threadIdx.x; j < score->cols; j += TREE_THREADS) {
        uint32_t sum = 0;
#pragma unroll 8
        for (int i = 0; i < rows; i++) {
            int64_t at = (first + i) * score->cols + j - score->first;
            if ((uint64_t)at >= (uint64_t)score->count)
                continue;
            float g = stq_load_float(item->gradient, item->gradient_type, at);
            sum += (uint32_t)__float2int_rn((g * score->prescale) * y[i]);
        }
        atomicAdd((uint32_t *)&vectors[score->columns_at + j], sum);
    }
}

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

/* Where the gate is closed no tensor takes part. */
static __global__ void __launch_bounds__(TREE_THREADS)
    close_kernel(const stq_gate *gate, stq_score *scores, int64_t count) {
    int64_t i = (int64_t)blockIdx.x * TREE_THREADS + threadIdx.x;
    if (i < count && !gate->active)
        scores[i].rows = scores[i].ranked = 0;
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
    rescale_kernel<<<tensors, TREE_THREADS, 0, stream>>>(scores, lists->vectors, true);
    clear_kernel<<<tensors, TREE_THREADS, 0, stream>>>(scores, lists->vectors);
    if (chunks > 0)
        columns_kernel<<<chunks, TREE_THREADS, 0, stream>>>(lists->items, lists->chunks, scores, lists->vectors);
    return cudaGetLastError();
}

cudaError_t stq_cuda_score_next(const stq_score_lists *lists, stq_score *scores, cudaStream_t stream) {
    rescale_kernel<<<(unsigned)lists->item_count, TREE_THREADS, 0, stream>>>(scores, lists->vectors, false);
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
    begin_slices_kernel<<<tensors, TREE_THREADS, 0, stream>>>(first_segment, squares, fourths, largest, scores);
    start_kernel<<<tensors, TREE_THREADS, 0, stream>>>(scores, lists->vectors);
    return cudaGetLastError();
}

cudaError_t stq_cuda_scores(const stq_score_lists *lists, stq_score *scores, cudaStream_t stream) {
    const unsigned tensors = (unsigned)lists->item_count, chunks = (unsigned)lists->chunk_count;
    if (tensors == 0 || chunks == 0)
        return cudaSuccess;
    if (lists->gate != NULL)
        close_kernel<<<(tensors + TREE_THREADS - 1) / TREE_THREADS, TREE_THREADS, 0, stream>>>(lists->gate, scores,
                                                                                               lists->item_count);
    cudaError_t error =
        stq_cuda_moments(lists->items, lists->segments, lists->segment_count, lists->gate, lists->moments, stream);
    if (error != cudaSuccess)
        return error;
    begin_kernel<<<tensors, TREE_THREADS, 0, stream>>>(lists->items, lists->first_segment, lists->moments, scores);
    start_kernel<<<tensors, TREE_THREADS, 0, stream>>>(scores, lists->vectors);
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
