/*
 * adamw.c - one step of a CUDA optimizer. Ordinary steps are only enqueued: the device finds the norm, decides whether
 * the step is made, and counts it. Steps that may change widths wait once, since planes are allocated on the host and
 * must not change hands in a step that is skipped; so do steps whose outcome the caller asks for.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "cuda/backend.h"
#include "score/power.h"

/* One item as the device shall see it. */
static stq_device_item device_item(const stq_adamw *o, size_t index) {
    stq_device_item item;
    memset(&item, 0, sizeof item);
    item.item = o->store.items[index];
    item.item.group = o->tensors[index].group;
    const stq_share_place *place = &((const stq_cuda *)o->backend_context)->places[index];
    item.means_at = place->means_at;
    item.probes_at = (uint32_t)place->probes_at;
    item.kind = stq_item_kind(&item.item, o->error_compensation != 0.0);
    return item;
}

static stq_status upload_changed(stq_adamw *o) {
    stq_cuda *cuda = o->backend_context;
    size_t bytes = o->tensor_count * sizeof(stq_device_item);
    int slot = (cuda->slot + 1) % STQ_CUDA_SLOTS;
    STQ_CUDA_CHECK(cudaEventSynchronize(cuda->copied[slot]));
    for (size_t i = 0; i < o->tensor_count; i++)
        cuda->present[i] = device_item(o, i);
    memcpy(cuda->staged[slot], cuda->present, bytes);
    STQ_CUDA_CHECK(cudaMemcpyAsync(cuda->items, cuda->staged[slot], bytes, cudaMemcpyHostToDevice, cuda->stream));
    STQ_CUDA_CHECK(cudaEventRecord(cuda->copied[slot], cuda->stream));
    cuda->slot = slot;
    return STQ_OK;
}

/* Uploads the items if they differ from those that the device has. Nothing is called where they do not, so that a step
 * can be captured into a graph. */
stq_status stq_cuda_upload_items(stq_adamw *o) {
    stq_cuda *cuda = o->backend_context;
    bool changed = false;
    for (size_t i = 0; i < o->tensor_count; i++) {
        stq_device_item item = device_item(o, i);
        changed = changed || memcmp(&item, &cuda->present[i], sizeof item) != 0;
    }
    return changed ? upload_changed(o) : STQ_OK;
}

/* Tells the device the counts that the host knows: at first, after a restored state, after a step that failed. */
static stq_status upload_counts(stq_adamw *o) {
    stq_cuda *cuda = o->backend_context;
    if (cuda->counts_uploaded && cuda->known_steps == o->steps && cuda->known_skipped == o->skipped)
        return STQ_OK;
    stq_control control = {.steps = o->steps, .skipped = o->skipped};
    STQ_CUDA_CHECK(cudaStreamSynchronize(cuda->stream));
    STQ_CUDA_CHECK(cudaMemcpy(cuda->control, &control, sizeof control, cudaMemcpyHostToDevice));
    STQ_CUDA_CHECK(cudaMemcpy(cuda->missed, o->missed, o->tensor_count * sizeof *o->missed, cudaMemcpyHostToDevice));
    cuda->counts_uploaded = true;
    cuda->known_steps = o->steps;
    cuda->known_skipped = o->skipped;
    cuda->unsettled = false;
    return STQ_OK;
}

/* Reads the control record; waits for the stream. */
static stq_status read_control(stq_cuda *cuda) {
    STQ_CUDA_CHECK(
        cudaMemcpyAsync(cuda->counted, cuda->control, sizeof *cuda->counted, cudaMemcpyDeviceToHost, cuda->stream));
    STQ_CUDA_CHECK(cudaStreamSynchronize(cuda->stream));
    return STQ_OK;
}

static double bits_now(const stq_adamw *o) {
    return 4.0 * (double)o->store.pool.bytes / (double)(o->parameters ? o->parameters : 1);
}

/* Widths have not changed since the last time, so that steps lost or found weigh what the present bytes do. */
stq_status stq_cuda_settle(stq_adamw *o) {
    stq_cuda *cuda = o->backend_context;
    if (!cuda->counts_uploaded || (cuda->known_steps != o->steps || cuda->known_skipped != o->skipped))
        return STQ_OK; /* the host knows better */
    STQ_CHECK(read_control(cuda));
    STQ_CUDA_CHECK(cudaMemcpy(o->missed, cuda->missed, o->tensor_count * sizeof *o->missed, cudaMemcpyDeviceToHost));
    o->bits_sum += (double)(cuda->counted->steps - o->steps) * bits_now(o);
    o->steps = cuda->known_steps = cuda->counted->steps;
    o->skipped = cuda->known_skipped = cuda->counted->skipped;
    cuda->unsettled = false;
    return STQ_OK;
}

/* Norm, finite check, coefficients: enqueued. The device counts the step. */
static stq_status enqueue_prepare(stq_adamw *o, const stq_step *step) {
    stq_cuda *cuda = o->backend_context;
    const stq_worklist *list = &cuda->list;
    double *total = cuda->sums + list->segment_count + list->item_count;
    if (!step->norm_supplied)
        STQ_CUDA_CHECK(stq_cuda_sum_squares(cuda->items, list->item_count, cuda->segments, list->segment_count,
                                            cuda->first_segment, cuda->sums, total, cuda->stream));
    stq_prepare request = {.unscale = step->unscale,
                           .max_gradient_norm = step->max_gradient_norm,
                           .given_norm = step->gradient_norm,
                           .norm = step->norm_supplied ? step->norm_pointer : NULL,
                           .sum_squares = total,
                           .loss_scale = step->loss_scale,
                           .found_infinite = step->found_infinite,
                           .error_compensation = o->error_compensation,
                           .seed = o->seed,
                           .norm_supplied = step->norm_supplied};
    STQ_CUDA_CHECK(stq_cuda_prepare(&request, cuda->items, cuda->groups, cuda->missed, cuda->coefficients,
                                    list->item_count, cuda->control, cuda->stream));
    return STQ_OK;
}

static stq_status enqueue_update(stq_adamw *o) {
    stq_cuda *cuda = o->backend_context;
    STQ_CHECK(stq_cuda_follow_shared(o));
    STQ_CUDA_CHECK(stq_cuda_step(cuda->items, cuda->tiles, cuda->list.tile_count, cuda->coefficients, cuda->control,
                                 cuda->stream));
    return STQ_OK;
}

/* The host's counts after a step that was made, or that it takes to be. */
static void count_step(stq_adamw *o) {
    stq_cuda *cuda = o->backend_context;
    o->steps++;
    o->bits_sum += bits_now(o);
    for (size_t i = 0; i < o->tensor_count; i++)
        o->missed[i] += o->store.items[i].gradient == NULL;
    cuda->known_steps = o->steps;
}

static stq_status decide(stq_adamw *o, const stq_step *step) {
    stq_policy_kind kind = o->policy.config.kind;
    stq_step with_factors = *step;
    stq_factors *factors = NULL;
    if (step->factors == NULL && (kind == STQ_POLICY_ZONES || kind == STQ_POLICY_RATE_DISTORTION)) {
        float loss_scale = 1.0f;
        if (step->loss_scale)
            STQ_CHECK(o->backend->read(o->backend_context, &loss_scale, step->loss_scale, sizeof loss_scale));
        factors = calloc(o->tensor_count, sizeof *factors);
        if (factors == NULL)
            return stq_error(STQ_OUT_OF_MEMORY, "No memory for the factors of %zu tensors.", o->tensor_count);
        double unscale = step->loss_scale ? step->unscale / (double)loss_scale : step->unscale;
        stq_status status = stq_cuda_factors(o, unscale, factors);
        if (status != STQ_OK) {
            free(factors);
            return status;
        }
        with_factors.factors = factors;
    }
    stq_status status = stq_cuda_fetch_probes(o);
    if (status == STQ_OK)
        status = stq_step_decide(o, &with_factors, 1.0, o->steps + 1);
    free(factors);
    return status;
}

/* The part of a careful step that may fail; the device has counted the step already. */
static stq_status change_and_update(stq_adamw *o, const stq_step *step, bool due) {
    if (due)
        STQ_CHECK(decide(o, step));
    STQ_CHECK(stq_store_begin(&o->store, (const uint8_t(*)[2])o->targets));
    stq_status status = stq_cuda_upload_items(o);
    if (status == STQ_OK)
        status = stq_cuda_begin_sharing(o);
    if (status == STQ_OK)
        status = enqueue_update(o);
    if (status != STQ_OK) {
        stq_store_revert(&o->store);
        return status;
    }
    stq_store_commit(&o->store);
    return STQ_OK;
}

/* A step that waits for the device before it touches any width. */
static stq_status careful_step(stq_adamw *o, const stq_step *step, stq_step_result *done) {
    stq_cuda *cuda = o->backend_context;
    STQ_CHECK(stq_cuda_settle(o));
    bool due = false;
    STQ_CHECK(stq_step_due(o, &due));
    STQ_CHECK(stq_cuda_upload_items(o));
    STQ_CHECK(enqueue_prepare(o, step));
    STQ_CHECK(read_control(cuda));
    done->gradient_norm = cuda->counted->norm;
    done->skipped = cuda->counted->skip != 0;
    if (done->skipped) {
        o->skipped = cuda->known_skipped = cuda->counted->skipped;
        done->waiting = stq_step_waiting(o);
        return STQ_OK;
    }
    stq_status status = change_and_update(o, step, due);
    if (status != STQ_OK) {
        cuda->counts_uploaded = false; /* the device takes the step back before the next one */
        return status;
    }
    done->decided = due;
    done->waiting = stq_step_waiting(o);
    count_step(o);
    /* The device still has the items of the transition; a graph that is replayed next must find the new planes alone.
     */
    return stq_cuda_upload_items(o);
}

static stq_status swift_step(stq_adamw *o, const stq_step *step) {
    stq_cuda *cuda = o->backend_context;
    STQ_CHECK(stq_store_begin(&o->store, (const uint8_t(*)[2])o->targets));
    STQ_CHECK(stq_cuda_upload_items(o));
    STQ_CHECK(enqueue_prepare(o, step));
    STQ_CHECK(enqueue_update(o));
    count_step(o);
    cuda->unsettled = true;
    return STQ_OK;
}

stq_status stq_cuda_adamw_step(stq_adamw *o, const stq_step *step, stq_step_result *result) {
    stq_cuda *cuda = o->backend_context;
    stq_step_result done = {0};
    bool due = false;
    STQ_CUDA_CHECK(cudaSetDevice(cuda->device));
    cuda->stream = step->stream;
    STQ_CHECK(upload_counts(o));
    STQ_CHECK(stq_step_due(o, &due));
    if (due || result != NULL || stq_step_waiting(o))
        STQ_CHECK(careful_step(o, step, &done));
    else
        STQ_CHECK(swift_step(o, step));
    if (result)
        *result = done;
    return STQ_OK;
}

/* ---- Factors ---- */

/* Scratch of one scoring; device memory unless said otherwise. */
typedef struct scoring {
    stq_score *host; /* host memory */
    stq_tile *host_chunks;
    int64_t chunk_count;
    int64_t vector_length;
    stq_score *scores;
    stq_tile *chunks;
    stq_moment_sums *moments;
    int32_t *vectors;
} scoring;

static void free_scoring(scoring *s, cudaStream_t stream) {
    void *device[] = {s->scores, s->chunks, s->moments, s->vectors};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        if (device[i])
            (void)cudaFreeAsync(device[i], stream);
    free(s->host);
    free(s->host_chunks);
}

static stq_status plan_scoring(scoring *s, const stq_adamw *o) {
    s->host = calloc(o->tensor_count, sizeof *s->host);
    for (size_t i = 0; s->host && i < o->tensor_count; i++) {
        const stq_tensor *tensor = &o->tensors[i];
        if (o->exempt[i] || o->store.items[i].gradient == NULL)
            continue;
        if (tensor->count != tensor->rows * tensor->cols)
            return stq_error(STQ_INVALID_ARGUMENT, "tensor %s: factors need the whole gradient, not a slice of it",
                             tensor->name);
        s->host[i].rows = tensor->rows;
        s->host[i].cols = tensor->cols;
        s->host[i].count = tensor->count;
        s->host[i].ranked = tensor->rows > 1 && tensor->cols > 1;
        s->host[i].rows_at = s->vector_length;
        s->host[i].columns_at = s->vector_length + tensor->rows;
        s->vector_length += s->host[i].ranked ? tensor->rows + tensor->cols : 0;
        s->chunk_count += (tensor->rows + STQ_SCORE_ROWS - 1) / STQ_SCORE_ROWS;
    }
    s->host_chunks = malloc((size_t)s->chunk_count * sizeof *s->host_chunks + 1);
    if (!s->host || !s->host_chunks)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the factors of %zu tensors.", o->tensor_count);
    stq_tile *next = s->host_chunks;
    for (size_t i = 0; i < o->tensor_count; i++)
        for (int64_t row = 0; row < s->host[i].rows; row += STQ_SCORE_ROWS)
            *next++ = (stq_tile){.item = (uint32_t)i, .tile = (uint32_t)(row / STQ_SCORE_ROWS)};
    return STQ_OK;
}

static stq_status run_scoring(scoring *s, const stq_adamw *o) {
    stq_cuda *cuda = o->backend_context;
    const size_t scores = o->tensor_count * sizeof *s->scores, chunks = (size_t)s->chunk_count * sizeof *s->chunks;
    STQ_CUDA_CHECK(cudaMallocAsync((void **)&s->scores, scores, cuda->stream));
    STQ_CUDA_CHECK(cudaMallocAsync((void **)&s->chunks, chunks + 1, cuda->stream));
    STQ_CUDA_CHECK(
        cudaMallocAsync((void **)&s->moments, (size_t)cuda->list.segment_count * sizeof *s->moments + 1, cuda->stream));
    STQ_CUDA_CHECK(
        cudaMallocAsync((void **)&s->vectors, (size_t)s->vector_length * sizeof *s->vectors + 1, cuda->stream));
    STQ_CUDA_CHECK(cudaMemcpyAsync(s->scores, s->host, scores, cudaMemcpyHostToDevice, cuda->stream));
    STQ_CUDA_CHECK(cudaMemcpyAsync(s->chunks, s->host_chunks, chunks, cudaMemcpyHostToDevice, cuda->stream));
    stq_score_lists lists = {.items = cuda->items,
                             .item_count = cuda->list.item_count,
                             .segments = cuda->segments,
                             .first_segment = cuda->first_segment,
                             .segment_count = cuda->list.segment_count,
                             .chunks = s->chunks,
                             .chunk_count = s->chunk_count,
                             .moments = s->moments,
                             .vectors = s->vectors};
    STQ_CUDA_CHECK(stq_cuda_scores(&lists, s->scores, cuda->stream));
    STQ_CUDA_CHECK(cudaMemcpyAsync(s->host, s->scores, scores, cudaMemcpyDeviceToHost, cuda->stream));
    STQ_CUDA_CHECK(cudaStreamSynchronize(cuda->stream));
    return STQ_OK;
}

/* As stq_score_factors() finishes them on the CPU. */
static stq_factors finish_factors(const stq_score *score, const stq_tensor *tensor, double unscale) {
    if (score->largest_bits == 0)
        return (stq_factors){.r = 1, .depth = tensor->depth};
    stq_moment_sums sums = {.squares = score->squares, .fourths = score->fourths, .largest_bits = score->largest_bits};
    stq_row_statistics rows = {
        .near_zero = (int64_t)score->near_zero, .squares = score->row_squares, .roots = score->roots};
    return stq_score_finish(tensor, &sums, &rows, score->y_norm, score->z_norm, (double)(float)unscale);
}

stq_status stq_cuda_factors(stq_adamw *o, double unscale, stq_factors *factors) {
    stq_cuda *cuda = o->backend_context;
    scoring s = {0};
    stq_status status = plan_scoring(&s, o);
    if (status == STQ_OK)
        status = run_scoring(&s, o);
    for (size_t i = 0; status == STQ_OK && i < o->tensor_count; i++) {
        if (s.host[i].rows == 0)
            continue;
        if (s.host[i].largest_bits >= 0x7f800000u)
            status = stq_error(STQ_INVALID_ARGUMENT, "tensor %s: its gradient has elements that are not finite",
                               o->tensors[i].name);
        else
            factors[i] = finish_factors(&s.host[i], &o->tensors[i], unscale);
    }
    free_scoring(&s, cuda->stream);
    return status;
}
