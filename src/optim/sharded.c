/* sharded.c - who owns what, and a step over ranks. */
#include "optim/sharded.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/float_mode.h"
#include "optim/optimizer.h"
#include "score/sums.h"

/* One reduction under way. */
typedef struct stq_started {
    int64_t first;
    int64_t count;
    void *request;
} stq_started;

static int64_t elements_of(const stq_tensor *tensor) { return tensor->rows * tensor->cols; }

/* The segment boundary nearest to element `target` of the flat buffers. */
static int64_t nearest_cut(const stq_sharded *s, int64_t target) {
    size_t i = 0;
    while (i + 1 < s->tensor_count && s->offsets[i + 1] <= target)
        i++;
    int64_t count = elements_of(&s->whole[i]);
    int64_t inside = target > s->offsets[i] ? target - s->offsets[i] : 0;
    int64_t cut = (inside + STQ_SEGMENT / 2) / STQ_SEGMENT * STQ_SEGMENT;
    if (cut < count)
        return s->offsets[i] + cut;
    return i + 1 < s->tensor_count ? s->offsets[i + 1] : s->length;
}

static void cut_ranges(stq_sharded *s) {
    int ranks = stq_comm_ranks(s->comm);
    for (int r = 1; r < ranks; r++) {
        int64_t cut = nearest_cut(s, (int64_t)((double)s->length * r / ranks));
        s->cuts[r] = cut > s->cuts[r - 1] ? cut : s->cuts[r - 1];
    }
    s->cuts[ranks] = s->length;
}

static void cut_slices(stq_sharded *s) {
    int rank = stq_comm_rank(s->comm);
    for (size_t i = 0; i < s->tensor_count; i++) {
        int64_t count = elements_of(&s->whole[i]);
        int64_t first = s->cuts[rank] - s->offsets[i];
        int64_t end = s->cuts[rank + 1] - s->offsets[i];
        first = first < 0 ? 0 : first < count ? first : count;
        end = end < first ? first : end < count ? end : count;
        s->slices[i] = s->whole[i];
        s->slices[i].first = first;
        s->slices[i].count = end - first;
    }
}

int64_t stq_sharded_slice_offset(const stq_sharded *s, size_t index) {
    return s->offsets[index] + s->slices[index].first;
}

/* Flat buffers are of one type; only the GPU takes others than float32. */
static bool has_types(const stq_tensor *tensor, const stq_tensor *first, stq_device device) {
    if (device == STQ_DEVICE_CPU)
        return tensor->parameter_type == STQ_FLOAT32 && tensor->gradient_type == STQ_FLOAT32;
    return tensor->parameter_type == first->parameter_type && tensor->gradient_type == first->gradient_type;
}

static stq_status check_layout(const stq_adamw_config *config, const stq_tensor *tensors, size_t count,
                               const stq_flat *flat) {
    int64_t end = 0;
    for (size_t i = 0; i < count; i++) {
        const stq_tensor *t = &tensors[i];
        if (t->first != 0 || t->count != elements_of(t) || !has_types(t, &tensors[0], config->device))
            return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s' must be whole and %s to be sharded.", t->name,
                             config->device == STQ_DEVICE_CPU ? "float32" : "of the types of the first tensor");
        if (flat->offsets[i] < end || flat->offsets[i] > flat->length || t->count > flat->length - flat->offsets[i])
            return stq_error(STQ_INVALID_ARGUMENT,
                             "Tensor '%s' at %lld overlaps its neighbour or leaves the flat buffer of %lld.", t->name,
                             (long long)flat->offsets[i], (long long)flat->length);
        end = flat->offsets[i] + t->count;
    }
    return STQ_OK;
}

static uint64_t mix(uint64_t digest, const void *bytes, size_t length) {
    const uint8_t *byte = bytes;
    for (size_t i = 0; i < length; i++)
        digest = (digest ^ byte[i]) * UINT64_C(0x100000001b3); /* FNV-1a */
    return digest;
}

/* What all ranks must have in common, field by field: padding has no defined value. */
static uint64_t configuration_digest(const stq_adamw_config *config, const stq_tensor *tensors, size_t count,
                                     const stq_flat *flat) {
    const stq_policy_config *p = &config->policy;
    double reals[] = {p->state_bits, p->annealing, config->error_compensation};
    int64_t integers[] = {
        (int64_t)p->kind,      (int64_t)p->cap_bytes, (int64_t)p->cap_mode, p->fixed_m_bits,
        p->fixed_v_bits,       p->lowest_bits,        p->highest_bits,      p->decide_every,
        p->decision_delay,     p->planned_steps,      (int64_t)p->shared_v, (int64_t)config->device,
        (int64_t)config->seed, config->exempt_below,  (int64_t)count,       (int64_t)config->group_count,
        flat->length,          config->counts_as_cpu};
    uint64_t digest = mix(mix(UINT64_C(0xcbf29ce484222325), reals, sizeof reals), integers, sizeof integers);
    if (config->groups)
        digest = mix(digest, config->groups, config->group_count * sizeof *config->groups);
    for (size_t i = 0; i < count; i++) {
        const stq_tensor *t = &tensors[i];
        int64_t shape[] = {t->rows,
                           t->cols,
                           t->group,
                           t->m_bits,
                           t->v_bits,
                           (int64_t)t->parameter_type,
                           (int64_t)t->gradient_type,
                           flat->offsets[i]};
        digest = mix(mix(digest, t->name, strlen(t->name)), shape, sizeof shape);
        digest = mix(digest, &t->depth, sizeof t->depth);
    }
    return digest;
}

static stq_status allocate(stq_sharded *s, size_t count) {
    size_t ranks = (size_t)stq_comm_ranks(s->comm);
    s->whole = calloc(count, sizeof *s->whole);
    s->slices = calloc(count, sizeof *s->slices);
    s->offsets = calloc(count, sizeof *s->offsets);
    s->cuts = calloc(ranks + 1, sizeof *s->cuts);
    s->counts = calloc(ranks, sizeof *s->counts);
    s->segments_before = calloc(count + 1, sizeof *s->segments_before);
    s->parameters = calloc(count, sizeof *s->parameters);
    s->gradients = calloc(count, sizeof *s->gradients);
    s->factors = calloc(count, sizeof *s->factors);
    if (!s->whole || !s->slices || !s->offsets || !s->cuts || !s->counts || !s->segments_before || !s->parameters ||
        !s->gradients || !s->factors)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the shards of %zu tensors.", count);
    return STQ_OK;
}

static stq_status fill(stq_sharded *s, const stq_adamw_config *config, const stq_tensor *tensors,
                       const stq_flat *flat) {
    memcpy(s->whole, tensors, s->tensor_count * sizeof *tensors);
    memcpy(s->offsets, flat->offsets, s->tensor_count * sizeof *s->offsets);
    s->length = flat->length;
    s->parameter_type = tensors[0].parameter_type;
    s->gradient_type = tensors[0].gradient_type;
    s->threads = config->threads;
    for (size_t i = 0; i < s->tensor_count; i++)
        s->segments_before[i + 1] = s->segments_before[i] + stq_segment_count(elements_of(&s->whole[i]));
    size_t segments = (size_t)s->segments_before[s->tensor_count];
    s->segment_sums = calloc(segments, sizeof(double));
    s->segment_fourths = calloc(segments, sizeof(double));
    if (!s->segment_sums || !s->segment_fourths)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the sums of %zu segments.", segments);
    cut_ranges(s);
    cut_slices(s);
    STQ_CHECK(stq_adamw_create(&s->adamw, config, s->slices, s->tensor_count));
    for (size_t i = 0; i < s->tensor_count; i++)
        s->whole[i].name = s->slices[i].name = s->adamw->tensors[i].name;
    return s->adamw->backend->shards_open ? s->adamw->backend->shards_open(s) : STQ_OK;
}

stq_status stq_sharded_create(stq_sharded **sharded, stq_comm *comm, const stq_adamw_config *config,
                              const stq_tensor *tensors, size_t tensor_count, const stq_flat *flat) {
    *sharded = NULL;
    STQ_CHECK(stq_adamw_check(config, tensors, tensor_count));
    STQ_CHECK(check_layout(config, tensors, tensor_count, flat));
    STQ_CHECK(
        stq_comm_agree(comm, configuration_digest(config, tensors, tensor_count, flat), "configuration and tensors"));
    stq_sharded *s = calloc(1, sizeof *s);
    if (s == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for a sharded optimizer.");
    s->comm = comm;
    s->tensor_count = tensor_count;
    stq_status status = allocate(s, tensor_count);
    if (status == STQ_OK)
        status = fill(s, config, tensors, flat);
    if (status != STQ_OK) {
        stq_sharded_destroy(s);
        return status;
    }
    *sharded = s;
    return STQ_OK;
}

void stq_sharded_destroy(stq_sharded *s) {
    if (s == NULL)
        return;
    if (s->adamw && s->adamw->backend->shards_close)
        s->adamw->backend->shards_close(s->device_context);
    stq_adamw_destroy(s->adamw);
    free(s->whole);
    free(s->slices);
    free(s->offsets);
    free(s->cuts);
    free(s->counts);
    free(s->segments_before);
    free(s->segment_sums);
    free(s->segment_fourths);
    free(s->parameters);
    free(s->gradients);
    free(s->factors);
    free(s->started);
    free(s);
}

stq_adamw *stq_sharded_optimizer(stq_sharded *s) { return s->adamw; }

stq_status stq_sharded_set_stream(stq_sharded *s, void *stream) {
    s->stream = stream;
    return stq_adamw_set_stream(s->adamw, stream);
}

void stq_sharded_range(const stq_sharded *s, int rank, int64_t *first, int64_t *count) {
    *first = s->cuts[rank];
    *count = s->cuts[rank + 1] - s->cuts[rank];
}

/* How many of the elements first .. first + count - 1 each rank owns, into s->counts. */
static void count_owned(stq_sharded *s, int64_t first, int64_t count) {
    for (int r = 0; r < stq_comm_ranks(s->comm); r++) {
        int64_t from = s->cuts[r] > first ? s->cuts[r] : first;
        int64_t to = s->cuts[r + 1] < first + count ? s->cuts[r + 1] : first + count;
        s->counts[r] = to > from ? to - from : 0;
    }
}

static stq_comm_type message_type(stq_dtype dtype) {
    return dtype == STQ_FLOAT32 ? STQ_COMM_FLOAT32 : dtype == STQ_BFLOAT16 ? STQ_COMM_BFLOAT16 : STQ_COMM_FLOAT16;
}

/* Element `index` of a flat buffer. */
static void *element(const void *buffer, stq_dtype dtype, int64_t index) {
    return (char *)(uintptr_t)buffer + (size_t)index * stq_dtype_size(dtype);
}

static stq_status note_started(stq_sharded *s, stq_started started) {
    if (s->started_count == s->started_room) {
        size_t room = s->started_room ? 2 * s->started_room : 16;
        stq_started *more = realloc(s->started, room * sizeof *more);
        if (more == NULL)
            return stq_error(STQ_OUT_OF_MEMORY, "No memory for %zu reductions under way.", room);
        s->started = more;
        s->started_room = room;
    }
    s->started[s->started_count++] = started;
    return STQ_OK;
}

stq_status stq_sharded_start(stq_sharded *s, void *gradients, int64_t first, int64_t count) {
    if (first < 0 || count < 0 || count > s->length - first)
        return stq_error(STQ_INVALID_ARGUMENT,
                         "The range of %lld elements from %lld is not inside the flat buffer of %lld.",
                         (long long)count, (long long)first, (long long)s->length);
    STQ_CHECK(note_started(s, (stq_started){.first = first, .count = count}));
    count_owned(s, first, count);
    return stq_comm_start_reduce_scatter(s->comm, element(gradients, s->gradient_type, first), s->counts,
                                         message_type(s->gradient_type), &s->started[s->started_count - 1].request,
                                         "the gradients");
}

static int by_first(const void *a, const void *b) {
    const stq_started *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

/* Waits for everything that was begun, which is forgotten then. */
static stq_status wait_for_started(stq_sharded *s) {
    stq_status status = STQ_OK;
    for (size_t i = 0; status == STQ_OK && i < s->started_count; i++)
        status = stq_comm_wait(s->comm, s->started[i].request, "the gradients");
    s->started_count = 0;
    return status;
}

/* Begins what the caller did not, then waits for everything. */
static stq_status sum_gradients(stq_sharded *s, void *gradients) {
    size_t begun = s->started_count;
    if (begun > 1)
        qsort(s->started, begun, sizeof *s->started, by_first);
    int64_t at = 0;
    for (size_t i = 0; i <= begun; i++) {
        int64_t next = i < begun ? s->started[i].first : s->length;
        if (next < at) {
            STQ_CHECK(wait_for_started(s));
            return stq_error(STQ_INVALID_ARGUMENT, "Two ranges of gradients that were begun overlap at element %lld.",
                             (long long)next);
        }
        if (next > at)
            STQ_CHECK(stq_sharded_start(s, gradients, at, next - at));
        at = i < begun ? next + s->started[i].count : s->length;
    }
    return wait_for_started(s);
}

/* Segments that lie in a rank's range, over all tensors; they are contiguous. */
static int64_t segments_owned(const stq_sharded *s, int rank) {
    int64_t segments = 0;
    for (size_t i = 0; i < s->tensor_count; i++) {
        int64_t count = elements_of(&s->whole[i]);
        int64_t first = s->cuts[rank] - s->offsets[i], end = s->cuts[rank + 1] - s->offsets[i];
        first = first < 0 ? 0 : first < count ? first : count;
        end = end < 0 ? 0 : end < count ? end : count;
        segments += end > first ? stq_segment_count(end) - first / STQ_SEGMENT : 0;
    }
    return segments;
}

int64_t stq_sharded_first_segment(const stq_sharded *s) {
    int64_t segments = 0;
    for (int r = 0; r < stq_comm_rank(s->comm); r++)
        segments += segments_owned(s, r);
    return segments;
}

stq_status stq_sharded_gather_segments(stq_sharded *s, double *values, const char *what) {
    for (int r = 0; r < stq_comm_ranks(s->comm); r++)
        s->counts[r] = segments_owned(s, r);
    return stq_comm_all_gather(s->comm, values, s->counts, STQ_COMM_FLOAT64, what);
}

/* Sums of squares of this rank's segments, then of all. */
static stq_status global_norm(stq_sharded *s, const float *gradients, double *norm) {
#pragma omp parallel for schedule(dynamic) num_threads(stq_thread_count(s->threads))
    for (size_t i = 0; i < s->tensor_count; i++) {
        const float *slice = gradients + stq_sharded_slice_offset(s, i);
        int64_t first_segment = s->segments_before[i] + s->slices[i].first / STQ_SEGMENT;
        for (int64_t at = 0; at < s->slices[i].count; at += STQ_SEGMENT) {
            int64_t left = s->slices[i].count - at;
            uint64_t mode = stq_float_mode_set();
            s->segment_sums[first_segment + at / STQ_SEGMENT] =
                stq_segment_sum_squares(slice + at, STQ_FLOAT32, left < STQ_SEGMENT ? left : STQ_SEGMENT);
            stq_float_mode_restore(mode);
        }
    }
    STQ_CHECK(stq_sharded_gather_segments(s, s->segment_sums, "the gradients' sums"));
    stq_tree total = {.count = 0};
    for (size_t i = 0; i < s->tensor_count; i++) {
        double sum =
            stq_tree_sum(s->segment_sums + s->segments_before[i], s->segments_before[i + 1] - s->segments_before[i]);
        stq_tree_add(&total, &sum, 1);
    }
    *norm = sqrt(stq_tree_finish(&total));
    return STQ_OK;
}

/* Widths decided, in tensor order. */
static uint64_t decision_digest(const stq_sharded *s) {
    uint64_t digest = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < s->tensor_count; i++)
        digest = mix(digest, s->adamw->targets[i], sizeof s->adamw->targets[i]);
    int64_t steps = stq_adamw_step_count(s->adamw);
    return mix(digest, &steps, sizeof steps);
}

static stq_status gather_parameters(stq_sharded *s, void *parameters) {
    count_owned(s, 0, s->length);
    return stq_comm_all_gather(s->comm, parameters, s->counts, message_type(s->parameter_type), "the parameters");
}

/* Whether the norm is finite; a GPU is waited for, but not longer than the communicator's time-out. */
static stq_status check_norm(stq_sharded *s, const stq_step *step, bool *finite) {
    double norm = step->gradient_norm;
    if (step->norm_pointer)
        STQ_CHECK(s->adamw->backend->read(s->adamw->backend_context, &norm, step->norm_pointer, sizeof norm));
    *finite = isfinite(norm);
    return STQ_OK;
}

/* Factors of the global gradients, where the policy wants them. */
static stq_status prepare_decision(stq_sharded *s, const void *gradients, stq_step *step) {
    bool finite;
    STQ_CHECK(check_norm(s, step, &finite));
    if (!finite || !stq_policy_chooses(&s->adamw->policy.config))
        return STQ_OK;
    const stq_backend *backend = s->adamw->backend;
    stq_comm_count(s->comm, true);
    stq_status status = backend->shards_factors ? backend->shards_factors(s) : stq_sharded_factors(s, gradients);
    stq_comm_count(s->comm, false);
    step->factors = s->factors;
    return status;
}

static stq_status find_norm(stq_sharded *s, const void *gradients, stq_step *step) {
    step->norm_supplied = true;
    if (s->adamw->backend->shards_norm)
        return s->adamw->backend->shards_norm(s, &step->norm_pointer);
    return global_norm(s, gradients, &step->gradient_norm);
}

/* This rank's update; on a GPU only enqueued where nobody needs to know how it went. */
static stq_status update(stq_sharded *s, const void *gradients, stq_step *step, stq_step_result *done, bool asked) {
    bool due = stq_step_due(s->adamw);
    bool concludes = stq_step_concludes(s->adamw);
    if (due || asked || concludes)
        STQ_CHECK(stq_comm_finish(s->comm, "the gradients"));
    STQ_CHECK(stq_adamw_decision_due(s->adamw, &due));
    if (due)
        STQ_CHECK(prepare_decision(s, gradients, step));
    bool waits = due || asked || concludes || s->device_context == NULL;
    STQ_CHECK(stq_adamw_step(s->adamw, step, waits ? done : NULL));
    if (!done->decided)
        return STQ_OK;
    stq_comm_count(s->comm, true);
    stq_status status = stq_comm_agree(s->comm, decision_digest(s), "the widths decided");
    stq_comm_count(s->comm, false);
    return status;
}

static __attribute__((noinline)) stq_status make_step(stq_sharded *s, void *parameters, void *gradients,
                                                      double max_gradient_norm, stq_step_result *result) {
    STQ_CHECK(sum_gradients(s, gradients));
    for (size_t i = 0; i < s->tensor_count; i++) {
        s->parameters[i] = element(parameters, s->parameter_type, stq_sharded_slice_offset(s, i));
        s->gradients[i] = element(gradients, s->gradient_type, stq_sharded_slice_offset(s, i));
    }
    stq_step step = {.size = sizeof step,
                     .parameters = s->parameters,
                     .gradients = s->gradients,
                     .unscale = 1,
                     .max_gradient_norm = max_gradient_norm,
                     .stream = s->stream};
    STQ_CHECK(find_norm(s, gradients, &step));
    stq_step_result done = {0};
    STQ_CHECK(update(s, gradients, &step, &done, result != NULL));
    if (!done.skipped)
        STQ_CHECK(gather_parameters(s, parameters));
    if (result)
        *result = done;
    return STQ_OK;
}

stq_status stq_sharded_step(stq_sharded *s, void *parameters, void *gradients, double max_gradient_norm,
                            stq_step_result *result) {
    uint64_t mode = stq_float_mode_set();
    stq_status status = make_step(s, parameters, gradients, max_gradient_norm, result);
    stq_float_mode_restore(mode);
    return status;
}

stq_status stq_sharded_total_bytes(stq_sharded *s, uint64_t *bytes) {
    stq_memory memory;
    STQ_CHECK(stq_adamw_memory(s->adamw, &memory));
    int64_t sum = (int64_t)memory.state_bytes;
    STQ_CHECK(stq_comm_all_reduce(s->comm, &sum, 1, STQ_COMM_INT64, STQ_COMM_SUM, "the state bytes"));
    *bytes = (uint64_t)sum;
    return STQ_OK;
}
