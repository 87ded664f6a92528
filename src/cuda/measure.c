/* measure.c - what a decision is made from, on its way from the device: factors of the gradients, second moments at the
 * probes of those that may be shared, and the counts of the step that they belong to. Work and copies are only
 * enqueued; whoever wants the result waits for its event. */
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "cuda/backend.h"
#include "score/power.h"

/* ---- Plans: what is scored, the same at every decision ---- */

/* A single row has no spread: it is measured as several, so that more than one warp has work. */
enum { SINGLE_ROW_PART = 512 };

static int64_t rows_of(const stq_tensor *tensor) {
    return tensor->rows > 1 ? tensor->rows : (tensor->cols + SINGLE_ROW_PART - 1) / SINGLE_ROW_PART;
}

static int64_t chunks_of(const stq_tensor *tensor) { return (rows_of(tensor) + STQ_SCORE_ROWS - 1) / STQ_SCORE_ROWS; }

int64_t stq_cuda_count_chunks(const stq_adamw *o) {
    int64_t count = 0;
    for (size_t i = 0; i < o->tensor_count && stq_policy_chooses(&o->policy.config); i++)
        count += o->exempt[i] ? 0 : chunks_of(&o->tensors[i]);
    return count;
}

static void plan_tensor(stq_cuda *cuda, const stq_tensor *tensor, stq_score *score) {
    score->rows = rows_of(tensor);
    score->cols = tensor->rows > 1 ? tensor->cols : SINGLE_ROW_PART;
    score->count = tensor->count;
    score->ranked = tensor->rows > 1 && tensor->cols > 1;
    score->rows_at = cuda->vector_length;
    score->columns_at = cuda->vector_length + STQ_SCORE_ROOM(tensor->rows);
    cuda->vector_length += score->ranked ? STQ_SCORE_ROOM(tensor->rows) + STQ_SCORE_ROOM(tensor->cols) : 0;
}

static stq_status upload_chunks(stq_cuda *cuda, const stq_adamw *o) {
    size_t bytes = (size_t)cuda->chunk_count * sizeof(stq_tile);
    stq_tile *chunks = malloc(bytes + 1), *next = chunks;
    if (chunks == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the factors of %zu tensors.", o->tensor_count);
    for (size_t i = 0; i < o->tensor_count && cuda->chunk_count > 0; i++)
        for (int64_t k = 0; k < chunks_of(&o->tensors[i]) && !o->exempt[i]; k++)
            *next++ = (stq_tile){.item = (uint32_t)i, .tile = (uint32_t)k};
    cudaError_t error = bytes ? cudaMemcpy(cuda->chunks, chunks, bytes, cudaMemcpyHostToDevice) : cudaSuccess;
    free(chunks);
    STQ_CUDA_CHECK(error);
    return STQ_OK;
}

/* Bytes of one measure in pinned memory, and where its parts lie. */
static size_t measure_bytes(const stq_adamw *o, int64_t probe_values, stq_measure *measure) {
    size_t scores = o->tensor_count * sizeof *measure->scores;
    char *at = measure ? measure->pinned : NULL;
    if (measure) {
        measure->control = (stq_control *)(void *)at;
        measure->gate = (stq_gate *)(void *)(at + sizeof(stq_control));
        measure->scores = (stq_score *)(void *)(at + sizeof(stq_control) + sizeof(stq_gate));
        measure->probes = (float *)(void *)((char *)measure->scores + scores);
    }
    return sizeof(stq_control) + sizeof(stq_gate) + scores + (size_t)probe_values * sizeof(float);
}

uint64_t stq_cuda_measure_bytes(const stq_adamw *o, int64_t probe_values) {
    uint64_t slots = (uint64_t)o->policy.config.decision_delay + 1;
    return slots * measure_bytes(o, probe_values, NULL) + o->tensor_count * sizeof(stq_score);
}

stq_status stq_cuda_open_measures(stq_cuda *cuda, const stq_adamw *o) {
    cuda->chunk_count = stq_cuda_count_chunks(o);
    cuda->whole = true;
    cuda->plan = calloc(o->tensor_count + 1, sizeof *cuda->plan);
    if (cuda->plan == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the factors of %zu tensors.", o->tensor_count);
    for (size_t i = 0; i < o->tensor_count; i++) {
        cuda->whole = cuda->whole && o->tensors[i].count == o->tensors[i].rows * o->tensors[i].cols;
        if (!o->exempt[i])
            plan_tensor(cuda, &o->tensors[i], &cuda->plan[i]);
    }
    cuda->measure_count = (int)o->policy.config.decision_delay + 1;
    for (int i = 0; i < cuda->measure_count; i++) {
        stq_measure *measure = &cuda->measures[i];
        STQ_CUDA_CHECK(cudaMallocHost(&measure->pinned, measure_bytes(o, cuda->probe_values, NULL)));
        (void)measure_bytes(o, cuda->probe_values, measure);
        STQ_CUDA_CHECK(cudaEventCreateWithFlags(&measure->done, cudaEventDisableTiming));
    }
    STQ_CUDA_CHECK(cudaMemset(cuda->gate, 0, sizeof *cuda->gate));
    return upload_chunks(cuda, o);
}

void stq_cuda_close_measures(stq_cuda *cuda) {
    for (int i = 0; i < cuda->measure_count; i++) {
        (void)cudaFreeHost(cuda->measures[i].pinned);
        if (cuda->measures[i].done)
            (void)cudaEventDestroy(cuda->measures[i].done);
    }
    (void)cudaFree(cuda->moments);
    free(cuda->plan);
}

void stq_cuda_forget_measures(stq_cuda *cuda, int64_t steps) {
    for (int i = 0; i < cuda->measure_count; i++)
        cuda->measures[i].attempt = 0;
    cuda->measured = false;
    cuda->handled = steps;
}

bool stq_cuda_undecided(const void *context) {
    const stq_cuda *cuda = context;
    for (int i = 0; i < cuda->measure_count; i++)
        if (cuda->measures[i].attempt != 0)
            return true;
    return false;
}

/* ---- Measuring ---- */

/* Device memory of one measurement, freed in the stream's order. */
typedef struct scratch {
    char *block;
    stq_score *scores;
    stq_moment_sums *moments;
    int32_t *vectors;
    float *probes;
} scratch;

static stq_status open_scratch(scratch *s, const stq_cuda *cuda, bool scores) {
    size_t used = 0, items = (size_t)cuda->list.item_count;
    size_t probes_at = stq_cuda_reserve(&used, (size_t)cuda->probe_values * sizeof *s->probes);
    size_t scores_at = scores ? stq_cuda_reserve(&used, items * sizeof *s->scores) : 0;
    size_t moments_at =
        scores && !cuda->moments ? stq_cuda_reserve(&used, (size_t)cuda->list.segment_count * sizeof *s->moments) : 0;
    size_t vectors_at = scores ? stq_cuda_reserve(&used, (size_t)cuda->vector_length * sizeof *s->vectors) : 0;
    STQ_CUDA_CHECK(cudaMallocAsync((void **)&s->block, used + 256, cuda->stream));
    s->probes = (float *)(void *)(s->block + probes_at);
    s->scores = (stq_score *)(void *)(s->block + scores_at);
    s->moments = cuda->moments ? cuda->moments : (stq_moment_sums *)(void *)(s->block + moments_at);
    s->vectors = (int32_t *)(void *)(s->block + vectors_at);
    return STQ_OK;
}

stq_status stq_cuda_open_moments(stq_cuda *cuda, bool wanted) {
    if (cuda->moments != NULL)
        STQ_CUDA_CHECK(cudaFreeAsync(cuda->moments, cuda->stream));
    cuda->moments = NULL;
    if (wanted)
        STQ_CUDA_CHECK(cudaMallocAsync((void **)&cuda->moments,
                                       (size_t)cuda->list.segment_count * sizeof *cuda->moments + 1, cuda->stream));
    return STQ_OK;
}

/* Tensors without a gradient take no part. */
static void plan_scores(const stq_adamw *o, stq_score *scores) {
    const stq_cuda *cuda = o->backend_context;
    for (size_t i = 0; i < o->tensor_count; i++) {
        scores[i] = cuda->plan[i];
        if (o->store.items[i].gradient == NULL)
            scores[i].rows = scores[i].ranked = 0;
    }
}

static stq_status enqueue_scores(const stq_adamw *o, const scratch *s, stq_measure *measure) {
    const stq_cuda *cuda = o->backend_context;
    size_t bytes = o->tensor_count * sizeof *s->scores;
    stq_score_lists lists = {.items = cuda->items,
                             .item_count = cuda->list.item_count,
                             .segments = cuda->segments,
                             .first_segment = cuda->first_segment,
                             .segment_count = cuda->list.segment_count,
                             .chunks = cuda->chunks,
                             .chunk_count = cuda->chunk_count,
                             .moments = s->moments,
                             .summed = cuda->moments != NULL,
                             .vectors = s->vectors,
                             .gate = cuda->gate};
    plan_scores(o, measure->scores);
    STQ_CUDA_CHECK(cudaMemcpyAsync(s->scores, measure->scores, bytes, cudaMemcpyHostToDevice, cuda->stream));
    STQ_CUDA_CHECK(stq_cuda_scores(&lists, s->scores, cuda->stream));
    STQ_CUDA_CHECK(cudaMemcpyAsync(measure->scores, s->scores, bytes, cudaMemcpyDeviceToHost, cuda->stream));
    return STQ_OK;
}

static stq_status enqueue_probes(const stq_cuda *cuda, const scratch *s, const stq_measure *measure) {
    size_t bytes = (size_t)cuda->probe_values * sizeof *s->probes;
    if (bytes == 0)
        return STQ_OK;
    STQ_CUDA_CHECK(stq_cuda_read_probes(cuda->items, cuda->list.item_count, s->probes, cuda->stream));
    STQ_CUDA_CHECK(cudaMemcpyAsync(measure->probes, s->probes, bytes, cudaMemcpyDeviceToHost, cuda->stream));
    return STQ_OK;
}

static stq_status enqueue_counts(const stq_cuda *cuda, const stq_measure *measure) {
    STQ_CUDA_CHECK(cudaMemcpyAsync(measure->control, cuda->control, sizeof *measure->control, cudaMemcpyDeviceToHost,
                                   cuda->stream));
    STQ_CUDA_CHECK(
        cudaMemcpyAsync(measure->gate, cuda->gate, sizeof *measure->gate, cudaMemcpyDeviceToHost, cuda->stream));
    STQ_CUDA_CHECK(cudaEventRecord(measure->done, cuda->stream));
    return STQ_OK;
}

stq_status stq_cuda_measure(stq_adamw *o, const stq_step *step, int64_t attempt, int64_t every, bool scores) {
    stq_cuda *cuda = o->backend_context;
    stq_measure *measure = &cuda->measures[attempt % cuda->measure_count];
    scratch s;
    if (scores && !cuda->whole)
        return stq_error(STQ_INVALID_ARGUMENT, "Factors need whole gradients, not slices; supply stq_step.factors.");
    STQ_CUDA_CHECK(stq_cuda_open_gate(cuda->gate, cuda->control, every, step->unscale, step->loss_scale, cuda->stream));
    STQ_CHECK(open_scratch(&s, cuda, scores));
    stq_status status = scores && cuda->chunk_count > 0 ? enqueue_scores(o, &s, measure) : STQ_OK;
    if (status == STQ_OK)
        status = enqueue_probes(cuda, &s, measure);
    if (status == STQ_OK)
        status = enqueue_counts(cuda, measure);
    (void)cudaFreeAsync(s.block, cuda->stream);
    if (status == STQ_OK)
        status = stq_cuda_open_moments(cuda, false);
    measure->attempt = status == STQ_OK ? attempt : 0;
    measure->scored = scores;
    return status;
}

/* ---- Collecting ---- */

/* As stq_score_factors() finishes them on the CPU. */
static stq_factors finish_factors(const stq_score *score, const stq_tensor *tensor, double unscale) {
    if (score->largest_bits == 0)
        return (stq_factors){.r = 1, .depth = tensor->depth};
    stq_moment_sums sums = {.squares = score->squares, .fourths = score->fourths, .largest_bits = score->largest_bits};
    stq_row_statistics rows = {
        .near_zero = (int64_t)score->near_zero, .squares = score->row_squares, .roots = score->roots};
    return stq_score_finish(tensor, &sums, &rows, score->y_norm, score->z_norm, (double)(float)unscale);
}

/* Hands measured factors to the optimizer. */
static stq_status take_factors(stq_adamw *o, const stq_measure *measure) {
    stq_status status = STQ_OK;
    stq_factors *factors = calloc(o->tensor_count, sizeof *factors);
    if (factors == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the factors of %zu tensors.", o->tensor_count);
    for (size_t i = 0; i < o->tensor_count && status == STQ_OK; i++) {
        const stq_score *score = &measure->scores[i];
        if (score->rows == 0 || o->exempt[i])
            continue;
        if (score->largest_bits >= 0x7f800000u)
            status = stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s': its gradient has elements that are not finite.",
                               o->tensors[i].name);
        else
            factors[i] = finish_factors(score, &o->tensors[i], measure->gate->unscale);
    }
    if (status == STQ_OK)
        status = stq_step_measured(o, factors);
    free(factors);
    return status;
}

static stq_status collect_one(stq_adamw *o, stq_measure *measure) {
    stq_cuda *cuda = o->backend_context;
    int64_t attempt = measure->attempt;
    measure->attempt = 0;
    STQ_CUDA_CHECK(cudaEventSynchronize(measure->done));
    /* The host took every step since for made. */
    int64_t since = o->steps + o->skipped - attempt;
    if (since >= 0)
        stq_cuda_correct_counts(o, measure->control->steps + since, measure->control->skipped);
    cuda->handled = cuda->handled > measure->control->steps ? cuda->handled : measure->control->steps;
    cuda->probes = measure->probes;
    cuda->measured = cuda->measured || measure->gate->active;
    if (!measure->gate->active || !measure->scored)
        return STQ_OK;
    STQ_CHECK(take_factors(o, measure));
    if (since < 0) /* asked for in the same step: the caller decides */
        return STQ_OK;
    return stq_step_settle_decision(o, measure->gate->step, attempt);
}

stq_status stq_cuda_collect(stq_adamw *o, int64_t last) {
    stq_cuda *cuda = o->backend_context;
    for (;;) {
        stq_measure *oldest = NULL;
        for (int i = 0; i < cuda->measure_count; i++) {
            stq_measure *measure = &cuda->measures[i];
            if (measure->attempt != 0 && measure->attempt <= last &&
                (oldest == NULL || measure->attempt < oldest->attempt))
                oldest = measure;
        }
        if (oldest == NULL)
            return STQ_OK;
        STQ_CHECK(collect_one(o, oldest));
    }
}
