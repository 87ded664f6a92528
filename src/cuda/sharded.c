/*
 * sharded.c - what a sharded step needs of a GPU besides the step itself: the global norm, and factors of gradients of
 * which every rank has a range. Stages and sums are those of optim/sharded_factors.c; the communicator works on the
 * same stream, so that nothing waits for the host but the factors' last numbers.
 */
#include "optim/sharded.h"

#include <stdlib.h>

#include "common/error.h"
#include "cuda/backend.h"
#include "score/power.h"
#include <stquant/comm.h>

/* In device memory. */
typedef struct shards {
    int64_t *first_segment; /* of whole tensors, tensor_count + 1 */
    double *squares;        /* one a segment of the whole model */
    double *sums;           /* one a tensor, and the norm */
} shards;

void stq_cuda_shards_close(void *context) {
    shards *d = context;
    if (d == NULL)
        return;
    (void)cudaFree(d->first_segment);
    (void)cudaFree(d->squares);
    (void)cudaFree(d->sums);
    free(d);
}

stq_status stq_cuda_shards_open(stq_sharded *s) {
    shards *d = calloc(1, sizeof *d);
    if (d == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for a sharded optimizer.");
    s->device_context = d;
    size_t starts = (s->tensor_count + 1) * sizeof *d->first_segment;
    size_t segments = (size_t)s->segments_before[s->tensor_count] * sizeof *d->squares;
    STQ_CUDA_CHECK(cudaMalloc((void **)&d->first_segment, starts));
    STQ_CUDA_CHECK(cudaMalloc((void **)&d->squares, segments));
    STQ_CUDA_CHECK(cudaMalloc((void **)&d->sums, (s->tensor_count + 1) * sizeof *d->sums));
    STQ_CUDA_CHECK(cudaMemset(d->squares, 0, segments));
    STQ_CUDA_CHECK(cudaMemcpy(d->first_segment, s->segments_before, starts, cudaMemcpyHostToDevice));
    STQ_CUDA_CHECK(cudaDeviceSynchronize()); /* steps may come on a stream that waits for no other */
    return STQ_OK;
}

static void attach(stq_sharded *s) {
    stq_cuda *cuda = s->adamw->backend_context;
    cuda->stream = s->stream;
    for (size_t i = 0; i < s->tensor_count; i++) {
        s->adamw->store.items[i].parameter = s->parameters[i];
        s->adamw->store.items[i].gradient = s->gradients[i];
    }
}

stq_status stq_cuda_shards_norm(stq_sharded *s, const double **norm) {
    shards *d = s->device_context;
    stq_cuda *cuda = s->adamw->backend_context;
    STQ_CUDA_CHECK(cudaSetDevice(cuda->device));
    attach(s);
    STQ_CHECK(stq_cuda_upload_items(s->adamw));
    STQ_CUDA_CHECK(stq_cuda_segment_squares(cuda->items, cuda->segments, cuda->list.segment_count,
                                            d->squares + stq_sharded_first_segment(s), cuda->stream));
    STQ_CHECK(stq_sharded_gather_segments(s, d->squares, "the gradients' sums"));
    double *result = d->sums + s->tensor_count;
    STQ_CUDA_CHECK(stq_cuda_norm(cuda->items, (int64_t)s->tensor_count, d->first_segment, d->squares, d->sums, result,
                                 cuda->stream));
    *norm = result;
    return STQ_OK;
}

/* ---- Factors ---- */

/* Scratch of one decision. */
typedef struct scoring {
    stq_score *host;    /* host memory, as the next three */
    stq_tile *chunks;   /* of this rank's slices */
    int64_t *near_zero; /* one a tensor */
    int64_t row_length; /* of all tensors' row vectors, which lie in front of the column vectors */
    int64_t column_length;
    int64_t chunk_count;
    stq_score_lists lists; /* device memory, as the next four; `block` holds them all */
    stq_score *scores;
    double *fourths;
    int32_t *largest;
    void *block;
} scoring;

static void free_scoring(scoring *c, cudaStream_t stream) {
    if (c->block)
        (void)cudaFreeAsync(c->block, stream);
    free(c->host);
    free(c->chunks);
    free(c->near_zero);
}

static bool chosen(const stq_sharded *s, size_t i) { return !s->adamw->exempt[i]; }

/* First row and the row behind the last that this rank has elements of. */
static void rows_of(const stq_tensor *slice, int64_t *first, int64_t *end) {
    *first = slice->first / slice->cols;
    *end = slice->count > 0 ? (slice->first + slice->count - 1) / slice->cols + 1 : *first;
}

static void plan_tensor(scoring *c, const stq_tensor *slice, size_t i) {
    stq_score *score = &c->host[i];
    int64_t first, end;
    score->rows = slice->rows;
    score->cols = slice->cols;
    score->first = slice->first;
    score->count = slice->count;
    score->ranked = slice->rows > 1 && slice->cols > 1;
    score->rows_at = c->row_length;
    score->columns_at = c->column_length; /* behind all rows once those are known */
    c->row_length += score->ranked ? STQ_SCORE_ROOM(slice->rows) : 0;
    c->column_length += score->ranked ? STQ_SCORE_ROOM(slice->cols) : 0;
    rows_of(slice, &first, &end);
    c->chunk_count += end > first ? (end - 1) / STQ_SCORE_ROWS - first / STQ_SCORE_ROWS + 1 : 0;
}

static stq_status plan(scoring *c, const stq_sharded *s) {
    c->host = calloc(s->tensor_count, sizeof *c->host);
    c->near_zero = calloc(s->tensor_count, sizeof *c->near_zero);
    for (size_t i = 0; c->host && i < s->tensor_count; i++)
        if (chosen(s, i))
            plan_tensor(c, &s->slices[i], i);
    c->chunks = malloc((size_t)c->chunk_count * sizeof *c->chunks + 1);
    if (!c->host || !c->near_zero || !c->chunks)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the factors of %zu tensors.", s->tensor_count);
    stq_tile *next = c->chunks;
    for (size_t i = 0; i < s->tensor_count; i++) {
        int64_t first, end;
        rows_of(&s->slices[i], &first, &end);
        c->host[i].columns_at += c->row_length;
        if (!chosen(s, i) || end == first)
            continue;
        for (int64_t chunk = first / STQ_SCORE_ROWS; chunk * STQ_SCORE_ROWS < end; chunk++)
            *next++ = (stq_tile){.item = (uint32_t)i, .tile = (uint32_t)chunk};
    }
    return STQ_OK;
}

/* One block for everything, zeroed. */
static stq_status allocate_scoring(scoring *c, const stq_sharded *s) {
    stq_cuda *cuda = s->adamw->backend_context;
    size_t used = 0, segments = (size_t)s->segments_before[s->tensor_count];
    size_t scores_at = stq_cuda_reserve(&used, s->tensor_count * sizeof *c->scores);
    size_t chunks_at = stq_cuda_reserve(&used, (size_t)c->chunk_count * sizeof *c->chunks);
    size_t moments_at = stq_cuda_reserve(&used, (size_t)cuda->list.segment_count * sizeof(stq_moment_sums));
    size_t vectors_at = stq_cuda_reserve(&used, (size_t)(c->row_length + c->column_length) * sizeof(int32_t));
    size_t fourths_at = stq_cuda_reserve(&used, segments * sizeof *c->fourths);
    size_t largest_at = stq_cuda_reserve(&used, s->tensor_count * sizeof *c->largest);
    STQ_CUDA_CHECK(cudaMallocAsync(&c->block, used, cuda->stream));
    STQ_CUDA_CHECK(cudaMemsetAsync(c->block, 0, used, cuda->stream));
    char *block = c->block;
    c->scores = (stq_score *)(void *)(block + scores_at);
    c->fourths = (double *)(void *)(block + fourths_at);
    c->largest = (int32_t *)(void *)(block + largest_at);
    c->lists = (stq_score_lists){.items = cuda->items,
                                 .item_count = cuda->list.item_count,
                                 .segments = cuda->segments,
                                 .first_segment = cuda->first_segment,
                                 .segment_count = cuda->list.segment_count,
                                 .chunks = (const stq_tile *)(const void *)(block + chunks_at),
                                 .chunk_count = c->chunk_count,
                                 .moments = (stq_moment_sums *)(void *)(block + moments_at),
                                 .vectors = (int32_t *)(void *)(block + vectors_at)};
    STQ_CUDA_CHECK(cudaMemcpyAsync(block + chunks_at, c->chunks, (size_t)c->chunk_count * sizeof *c->chunks,
                                   cudaMemcpyHostToDevice, cuda->stream));
    STQ_CUDA_CHECK(
        cudaMemcpyAsync(c->scores, c->host, s->tensor_count * sizeof *c->scores, cudaMemcpyHostToDevice, cuda->stream));
    return STQ_OK;
}

static stq_status measure_moments(scoring *c, stq_sharded *s) {
    shards *d = s->device_context;
    stq_cuda *cuda = s->adamw->backend_context;
    STQ_CUDA_CHECK(
        stq_cuda_slice_moments(&c->lists, c->fourths + stq_sharded_first_segment(s), c->largest, cuda->stream));
    STQ_CHECK(stq_comm_all_reduce(s->comm, c->largest, (int64_t)s->tensor_count, STQ_COMM_INT32, STQ_COMM_MAX,
                                  "the largest gradients"));
    STQ_CHECK(stq_sharded_gather_segments(s, c->fourths, "the gradients' fourth powers"));
    STQ_CUDA_CHECK(
        stq_cuda_slice_begin(&c->lists, d->first_segment, d->squares, c->fourths, c->largest, c->scores, cuda->stream));
    return STQ_OK;
}

static stq_status power_iterations(scoring *c, stq_sharded *s) {
    cudaStream_t stream = ((stq_cuda *)s->adamw->backend_context)->stream;
    int32_t *rows = c->lists.vectors, *columns = rows + c->row_length;
    for (int iteration = 0; iteration < 2; iteration++) {
        STQ_CUDA_CHECK(cudaMemsetAsync(rows, 0, (size_t)c->row_length * sizeof *rows, stream));
        STQ_CUDA_CHECK(stq_cuda_score_rows(&c->lists, iteration == 0, c->scores, stream));
        STQ_CHECK(stq_comm_all_reduce(s->comm, rows, c->row_length, STQ_COMM_INT32, STQ_COMM_SUM, "the row products"));
        STQ_CUDA_CHECK(stq_cuda_score_columns(&c->lists, c->scores, stream));
        STQ_CHECK(stq_comm_all_reduce(s->comm, columns, c->column_length, STQ_COMM_INT32, STQ_COMM_SUM,
                                      "the column products"));
        STQ_CUDA_CHECK(stq_cuda_score_next(&c->lists, c->scores, stream));
    }
    return STQ_OK;
}

static stq_status read_scores(scoring *c, stq_sharded *s) {
    cudaStream_t stream = ((stq_cuda *)s->adamw->backend_context)->stream;
    STQ_CHECK(stq_comm_finish(s->comm, "the factors"));
    STQ_CUDA_CHECK(
        cudaMemcpyAsync(c->host, c->scores, s->tensor_count * sizeof *c->scores, cudaMemcpyDeviceToHost, stream));
    STQ_CUDA_CHECK(cudaStreamSynchronize(stream));
    for (size_t i = 0; i < s->tensor_count; i++)
        c->near_zero[i] = (int64_t)c->host[i].near_zero;
    return stq_comm_all_reduce(s->comm, c->near_zero, (int64_t)s->tensor_count, STQ_COMM_INT64, STQ_COMM_SUM,
                               "the counts of small gradients");
}

/* The spread of rows is left out, as it is on the CPU: rows are cut between ranks. */
static stq_factors factors_of(const scoring *c, const stq_sharded *s, size_t i) {
    const stq_score *score = &c->host[i];
    if (!chosen(s, i) || score->largest_bits == 0)
        return (stq_factors){.r = 1, .depth = (double)s->whole[i].depth};
    stq_moment_sums sums = {.squares = score->squares, .fourths = score->fourths, .largest_bits = score->largest_bits};
    stq_row_statistics rows = {.near_zero = c->near_zero[i]};
    return stq_score_finish(&s->whole[i], &sums, &rows, score->y_norm, score->z_norm, 1.0);
}

stq_status stq_cuda_shards_factors(stq_sharded *s) {
    stq_cuda *cuda = s->adamw->backend_context;
    scoring c = {0};
    stq_status status = plan(&c, s);
    if (status == STQ_OK)
        status = allocate_scoring(&c, s);
    if (status == STQ_OK)
        status = measure_moments(&c, s);
    if (status == STQ_OK)
        status = power_iterations(&c, s);
    if (status == STQ_OK)
        status = read_scores(&c, s);
    for (size_t i = 0; status == STQ_OK && i < s->tensor_count; i++)
        s->factors[i] = factors_of(&c, s, i);
    free_scoring(&c, cuda->stream);
    return status;
}
