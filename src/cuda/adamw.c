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
    if (cuda->counts_uploaded && cuda->known_steps == o->steps && cuda->known_skipped == o->skipped &&
        cuda->restored == o->restored)
        return STQ_OK;
    stq_control control = {.steps = o->steps, .skipped = o->skipped};
    STQ_CUDA_CHECK(cudaStreamSynchronize(cuda->stream));
    STQ_CUDA_CHECK(cudaMemcpy(cuda->control, &control, sizeof control, cudaMemcpyHostToDevice));
    STQ_CUDA_CHECK(cudaMemcpy(cuda->missed, o->missed, o->tensor_count * sizeof *o->missed, cudaMemcpyHostToDevice));
    STQ_CUDA_CHECK(cudaMemset(cuda->gate, 0, sizeof *cuda->gate));
    stq_cuda_forget_measures(cuda, o->steps);
    cuda->restored = o->restored;
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

void stq_cuda_correct_counts(stq_adamw *o, int64_t steps, int64_t skipped) {
    stq_cuda *cuda = o->backend_context;
    o->bits_sum += (double)(steps - o->steps) * stq_step_bits(o);
    o->steps = cuda->known_steps = steps;
    o->skipped = cuda->known_skipped = skipped;
}

/* Widths have not changed since the last time, so that steps lost or found weigh what the present bytes do. */
stq_status stq_cuda_settle(stq_adamw *o) {
    stq_cuda *cuda = o->backend_context;
    if (!cuda->counts_uploaded || cuda->known_steps != o->steps || cuda->known_skipped != o->skipped ||
        cuda->restored != o->restored)
        return STQ_OK; /* the host knows better */
    STQ_CUDA_CHECK(cudaSetDevice(cuda->device));
    STQ_CHECK(read_control(cuda));
    stq_status status = stq_cuda_collect(o, INT64_MAX);
    STQ_CUDA_CHECK(cudaMemcpy(o->missed, cuda->missed, o->tensor_count * sizeof *o->missed, cudaMemcpyDeviceToHost));
    stq_cuda_correct_counts(o, cuda->counted->steps, cuda->counted->skipped);
    o->gradient_norm = cuda->counted->norm;
    cuda->handled = o->steps;
    cuda->unsettled = false;
    return status;
}

/* Sum of squares of all gradients; where they are measured next, out of the moments that factors need as well. */
static stq_status enqueue_sums(stq_cuda *cuda, bool measured, double *total) {
    const stq_worklist *list = &cuda->list;
    STQ_CUDA_CHECK(measured ? stq_cuda_sum_moments(cuda->items, list->item_count, cuda->segments, list->segment_count,
                                                   cuda->first_segment, cuda->moments, cuda->sums, total, cuda->stream)
                            : stq_cuda_sum_squares(cuda->items, list->item_count, cuda->segments, list->segment_count,
                                                   cuda->first_segment, cuda->sums, total, cuda->stream));
    return STQ_OK;
}

/* Norm, finite check, coefficients: enqueued. The device counts the step. `measured`: its factors are asked for next.
 */
static stq_status enqueue_prepare(stq_adamw *o, const stq_step *step, bool measured) {
    stq_cuda *cuda = o->backend_context;
    const stq_worklist *list = &cuda->list;
    double *total = cuda->sums + list->segment_count + list->item_count;
    measured = measured && cuda->chunk_count > 0 && !step->norm_supplied;
    STQ_CHECK(stq_cuda_open_moments(cuda, measured));
    if (!step->norm_supplied)
        STQ_CHECK(enqueue_sums(cuda, measured, total));
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
    /* Whatever is shared just now: a captured step stays right when that changes. */
    if (cuda->means > 0)
        STQ_CUDA_CHECK(stq_cuda_step_shared(cuda->items, cuda->tiles, cuda->list.tile_count, cuda->coefficients,
                                            cuda->control, cuda->stream));
    return STQ_OK;
}

/* The host's counts after a step that was made, or that it takes to be. */
static void count_step(stq_adamw *o) {
    stq_cuda *cuda = o->backend_context;
    o->steps++;
    o->bits_sum += stq_step_bits(o);
    for (size_t i = 0; i < o->tensor_count; i++)
        o->missed[i] += o->store.items[i].gradient == NULL;
    cuda->known_steps = o->steps;
}

static bool needs_factors(const stq_adamw *o, const stq_step *step) {
    return stq_policy_chooses(&o->policy.config) && step->factors == NULL;
}

/* Measures and decides at once; waits for the device. */
static stq_status decide(stq_adamw *o, const stq_step *step) {
    stq_cuda *cuda = o->backend_context;
    int64_t attempt = o->steps + o->skipped + 1;
    bool measures = needs_factors(o, step);
    STQ_CHECK(stq_cuda_measure(o, step, attempt, 0, measures));
    STQ_CHECK(stq_cuda_collect(o, attempt));
    cuda->handled = o->steps + 1;
    if (measures)
        return stq_step_settle_decision(o, o->steps + 1, attempt);
    return stq_step_decide(o, step, 1.0, o->steps + 1);
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

/* Whether this may be a step whose gradients are measured for a later decision: the device knows whether it is. */
static bool watches(const stq_adamw *o) {
    const stq_cuda *cuda = o->backend_context;
    return o->pending_step == 0 && stq_policy_next_due(&o->policy, cuda->handled) <= o->steps + 1;
}

static stq_status watch(stq_adamw *o, const stq_step *step) {
    if (!watches(o))
        return STQ_OK;
    return stq_cuda_measure(o, step, o->steps + o->skipped + 1, o->policy.config.decide_every, true);
}

/* A step that waits for the device before it touches any width. */
static stq_status careful_step(stq_adamw *o, const stq_step *step, bool put_off, stq_step_result *done) {
    stq_cuda *cuda = o->backend_context;
    STQ_CHECK(stq_cuda_settle(o));
    bool due = !put_off && stq_step_due(o);
    STQ_CHECK(stq_cuda_upload_items(o));
    STQ_CHECK(enqueue_prepare(o, step, put_off ? watches(o) : due && needs_factors(o, step)));
    STQ_CHECK(read_control(cuda));
    done->gradient_norm = o->gradient_norm = cuda->counted->norm;
    done->skipped = cuda->counted->skip != 0;
    if (done->skipped) {
        o->skipped = cuda->known_skipped = cuda->counted->skipped;
        done->waiting = stq_step_waiting(o);
        return stq_cuda_open_moments(cuda, false);
    }
    stq_status status = put_off ? watch(o, step) : STQ_OK;
    if (status == STQ_OK)
        status = change_and_update(o, step, due);
    if (status != STQ_OK) {
        cuda->counts_uploaded = false; /* the device takes the step back before the next one */
        return status;
    }
    done->decided = done->decided || (due && o->pending_step == 0);
    done->waiting = stq_step_waiting(o);
    count_step(o);
    /* The device still has the items of the transition; a graph that is replayed next must find the new planes alone.
     */
    return stq_cuda_upload_items(o);
}

static stq_status swift_step(stq_adamw *o, const stq_step *step, bool put_off) {
    stq_cuda *cuda = o->backend_context;
    STQ_CHECK(stq_store_begin(&o->store, (const uint8_t(*)[2])o->targets));
    STQ_CHECK(stq_cuda_upload_items(o));
    STQ_CHECK(enqueue_prepare(o, step, put_off && watches(o)));
    if (put_off)
        STQ_CHECK(watch(o, step));
    STQ_CHECK(enqueue_update(o));
    count_step(o);
    cuda->unsettled = true;
    return STQ_OK;
}

/* Whether decisions are made in a later step than their gradients' one, and these measured without waiting. */
static bool puts_off(const stq_adamw *o, const stq_step *step) {
    const stq_cuda *cuda = o->backend_context;
    return o->policy.config.decision_delay > 0 && stq_step_has_widths(o) && step->factors == NULL &&
           (!stq_policy_chooses(&o->policy.config) || cuda->whole);
}

/* Makes a decision that was put off to this step; the gate of the next one opens. */
static stq_status conclude(stq_adamw *o, bool *decided) {
    stq_cuda *cuda = o->backend_context;
    STQ_CHECK(stq_cuda_collect(o, o->steps + o->skipped + 1 - o->policy.config.decision_delay));
    STQ_CHECK(stq_step_conclude(o, decided));
    if (cuda->measured && o->pending_step == 0) {
        STQ_CUDA_CHECK(cudaMemsetAsync(cuda->gate, 0, sizeof *cuda->gate, cuda->stream));
        cuda->measured = false;
    }
    return STQ_OK;
}

stq_status stq_cuda_adamw_step(stq_adamw *o, const stq_step *step, stq_step_result *result) {
    stq_cuda *cuda = o->backend_context;
    stq_step_result done = {0};
    bool put_off = puts_off(o, step);
    STQ_CUDA_CHECK(cudaSetDevice(cuda->device));
    cuda->stream = step->stream;
    STQ_CHECK(upload_counts(o));
    STQ_CHECK(conclude(o, &done.decided));
    if ((!put_off && stq_step_due(o)) || result != NULL || stq_step_waiting(o))
        STQ_CHECK(careful_step(o, step, put_off, &done));
    else
        STQ_CHECK(swift_step(o, step, put_off));
    if (result)
        *result = done;
    return STQ_OK;
}
