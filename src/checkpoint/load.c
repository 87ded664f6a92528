/* load.c - arrays and states out of an opened checkpoint. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/json.h"
#include "checkpoint/load.h"
#include "common/error.h"
#include "optim/optimizer.h"
#include "quant/convert.h"
#include "quant/shared.h"

/* ---- Arrays ---- */

/* One slice of the checkpoint on its way into one array of the caller. */
typedef struct array_job {
    const stq_array *to;
    const stq_slice *slice;
    const stq_entry *entry;
    stq_dtype from;
} array_job;

typedef struct array_jobs {
    const stq_checkpoint *checkpoint;
    array_job *list;
    size_t count;
} array_jobs;

/* Elements of the slice beginning at `offset` bytes; those inside the caller's part are copied or converted. */
static stq_status take_elements(void *context, uint64_t offset, const void *data, uint64_t bytes) {
    const array_job *job = context;
    size_t size = stq_dtype_size(job->from);
    int64_t first = job->slice->first + (int64_t)(offset / size);
    int64_t end = first + (int64_t)(bytes / size);
    int64_t from = first > job->to->first ? first : job->to->first;
    int64_t to = end < job->to->first + job->to->count ? end : job->to->first + job->to->count;
    uint8_t *target = job->to->data;
    if (from >= to)
        return STQ_OK;
    const uint8_t *source = (const uint8_t *)data + (uint64_t)(from - first) * size;
    if (job->from == job->to->type) {
        memcpy(target + (uint64_t)(from - job->to->first) * size, source, (size_t)(to - from) * size);
        return STQ_OK;
    }
    for (int64_t i = from; i < to; i++) {
        uint16_t half;
        memcpy(&half, source + (i - from) * 2, sizeof half);
        float value = job->from == STQ_BFLOAT16 ? stq_from_bfloat16(half) : stq_from_float16(half);
        memcpy(target + (uint64_t)(i - job->to->first) * sizeof value, &value, sizeof value);
    }
    return STQ_OK;
}

static stq_status load_slice(void *context, size_t index) {
    const array_jobs *jobs = context;
    const array_job *job = &jobs->list[index];
    const stq_part_file *file = &jobs->checkpoint->files[job->slice->file];
    bool inside =
        job->slice->first >= job->to->first && job->slice->first + job->slice->count <= job->to->first + job->to->count;
    if (job->from == job->to->type && inside) {
        uint8_t *direct = job->to->data;
        direct += (uint64_t)(job->slice->first - job->to->first) * stq_dtype_size(job->from);
        return stq_read_entry(file, job->entry, direct, NULL, NULL);
    }
    return stq_read_entry(file, job->entry, NULL, take_elements, (void *)(uintptr_t)job);
}

static stq_status check_target(const stq_checkpoint *c, const stq_array *to, const stq_array *saved) {
    int64_t elements = stq_shape_elements(saved->dimensions, saved->shape);
    if (to->dimensions != saved->dimensions || memcmp(to->shape, saved->shape, to->dimensions * sizeof *to->shape) != 0)
        return stq_error(STQ_INVALID_ARGUMENT, "%s: '%s' has another shape than is needed here.", c->path, to->name);
    if (to->first < 0 || to->count < 0 || to->first > elements || to->count > elements - to->first ||
        (to->data == NULL && to->count > 0))
        return stq_error(STQ_INVALID_ARGUMENT, "'%s' has no %" PRId64 " elements from %" PRId64 ".", to->name,
                         to->count, to->first);
    if (to->type != saved->type && saved->type == STQ_UINT8)
        return stq_error(STQ_INVALID_ARGUMENT, "%s: '%s' is U8 and can only be read as that.", c->path, to->name);
    if (to->type != saved->type && to->type != STQ_FLOAT32)
        return stq_error(STQ_INVALID_ARGUMENT, "%s: '%s' is %s; it can be read as that or as F32.", c->path, to->name,
                         stq_type_name(saved->type));
    return STQ_OK;
}

static stq_status add_slices(array_jobs *jobs, const stq_array *to, size_t index) {
    const stq_checkpoint *c = jobs->checkpoint;
    STQ_CHECK(check_target(c, to, &c->arrays[index]));
    for (size_t i = c->array_slices.start[index]; i < c->array_slices.start[index + 1]; i++) {
        const stq_slice *slice = &c->array_slices.list[i];
        if (slice->first < to->first + to->count && slice->first + slice->count > to->first)
            jobs->list[jobs->count++] = (array_job){
                .to = to, .slice = slice, .entry = stq_array_slice_entry(c, slice), .from = c->arrays[index].type};
    }
    return STQ_OK;
}

/* Name -> index; the caller releases it. */
static json_t *index_names(const stq_checkpoint *c) {
    json_t *names = json_object();
    for (size_t i = 0; i < c->array_count; i++)
        if (json_object_set_new(names, c->arrays[i].name, json_integer((json_int_t)i)) != 0) {
            json_decref(names);
            return NULL;
        }
    return names;
}

static stq_status plan_arrays(array_jobs *jobs, const stq_array *arrays, size_t count, const json_t *names) {
    const stq_checkpoint *c = jobs->checkpoint;
    size_t most = 0;
    for (size_t i = 0; i < count; i++) {
        const json_t *index = arrays[i].name ? json_object_get(names, arrays[i].name) : NULL;
        if (index == NULL)
            return stq_error(STQ_INVALID_ARGUMENT, "%s has no array '%s'.", c->path,
                             arrays[i].name ? arrays[i].name : "");
        size_t at = (size_t)json_integer_value(index);
        most += c->array_slices.start[at + 1] - c->array_slices.start[at];
    }
    jobs->list = calloc(most + 1, sizeof *jobs->list);
    if (jobs->list == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to read %s.", c->path);
    for (size_t i = 0; i < count; i++)
        STQ_CHECK(add_slices(jobs, &arrays[i], (size_t)json_integer_value(json_object_get(names, arrays[i].name))));
    return STQ_OK;
}

stq_status stq_checkpoint_load_arrays(const stq_checkpoint *c, const stq_array *arrays, size_t array_count) {
    array_jobs jobs = {.checkpoint = c};
    json_t *names = index_names(c);
    if (names == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to read %s.", c->path);
    stq_status status = plan_arrays(&jobs, arrays, array_count, names);
    if (status == STQ_OK)
        status = stq_run_jobs(load_slice, &jobs, jobs.count, stq_reader_threads(c));
    free(jobs.list);
    json_decref(names);
    return status;
}

/* ---- States as planes in memory ---- */

static stq_status read_plane(const stq_checkpoint *c, const stq_slice *slice, stq_state state, stq_part part,
                             uint8_t **memory) {
    const stq_entry *entry = stq_state_slice_entry(c, slice, state, part);
    *memory = entry ? stq_allocate_large(entry->bytes) : NULL;
    if (*memory == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to read a state of '%s'.",
                         stq_slice_tensor(c, slice)->tensor.name);
    return stq_read_entry(&c->files[slice->file], entry, *memory, NULL, NULL);
}

/* PyTorch keeps moments in the parameter's type. */
static stq_status widen_values(stq_planes *planes, stq_dtype type, int64_t count) {
    if (type == STQ_FLOAT32)
        return STQ_OK;
    float *values = malloc((size_t)count * sizeof *values + 1);
    if (values == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for %" PRId64 " values of a state.", count);
    for (int64_t i = 0; i < count; i++)
        values[i] = stq_load_float(planes->base, type, i);
    free(planes->base);
    planes->base = (uint8_t *)values;
    return STQ_OK;
}

stq_status stq_read_slice_planes(const stq_checkpoint *c, const stq_slice *slice, stq_state state, stq_planes *planes) {
    *planes = (stq_planes){.bits = stq_slice_tensor(c, slice)->record.bits[state]};
    stq_status status = STQ_OK;
    if (planes->bits == STQ_BITS_FLOAT32) {
        stq_dtype type = STQ_FLOAT32;
        status = read_plane(c, slice, state, STQ_PART_VALUES, &planes->base);
        if (status == STQ_OK && stq_type_dtype(stq_state_slice_entry(c, slice, state, STQ_PART_VALUES)->type, &type))
            status = widen_values(planes, type, slice->count);
        return status;
    }
    if (stq_is_shared(planes->bits)) {
        const stq_tensor *tensor = &stq_slice_tensor(c, slice)->tensor;
        uint8_t *allocation;
        status = read_plane(c, slice, state, STQ_PART_SHARED, &allocation);
        *planes = stq_shared_planes(allocation, planes->bits, tensor->rows, tensor->cols);
        return status;
    }
    for (uint32_t k = 0; status == STQ_OK && k < stq_plane_count(planes->bits); k++)
        status = read_plane(c, slice, state, (stq_part)k, k == 0 ? &planes->base : &planes->bit[k - 1]);
    if (status == STQ_OK && planes->bits != 0) {
        uint8_t *scales = NULL;
        status = read_plane(c, slice, state, STQ_PART_SCALES, &scales);
        planes->scales = (uint16_t *)(void *)scales;
    }
    return status;
}

void stq_release_planes(stq_planes *planes) {
    free(planes->base);
    for (int k = 0; k < 4 && !stq_is_shared(planes->bits); k++)
        free(planes->bit[k]);
    free(planes->scales);
    *planes = (stq_planes){0};
}

/* ---- The optimizer ---- */

/* The optimizer knows the tensor that a sentence is about, but not from which file its state came. */
static stq_status name_file(stq_status status, const char *path) {
    char sentence[512];
    if (status != STQ_CORRUPT || strstr(stq_last_error(), path) != NULL)
        return status;
    snprintf(sentence, sizeof sentence, "%s", stq_last_error());
    return stq_error(status, "%s: %s", path, sentence);
}

/* One state of one slice on its way into the optimizer. */
typedef struct state_job {
    const stq_slice *slice;
    size_t index; /* of the optimizer's tensor */
    stq_state state;
} state_job;

typedef struct state_jobs {
    const stq_checkpoint *checkpoint;
    stq_adamw *optimizer;
    state_job *list;
    size_t count;
} state_jobs;

static stq_status load_state(void *context, size_t index) {
    const state_jobs *jobs = context;
    const state_job *job = &jobs->list[index];
    const char *path = jobs->checkpoint->files[job->slice->file].path;
    stq_planes planes;
    stq_status status = stq_read_slice_planes(jobs->checkpoint, job->slice, job->state, &planes);
    if (status == STQ_OK)
        status = stq_adamw_write_state(jobs->optimizer, job->index, job->state, &planes, job->slice->first,
                                       job->slice->count);
    status = name_file(status, path);
    stq_release_planes(&planes);
    return status;
}

/* The checkpoint's tensor for each of the optimizer's. */
static stq_status match_tensors(const stq_checkpoint *c, const stq_adamw *optimizer, const stq_saved_tensor **matches) {
    const stq_document *document = &c->files[0].document;
    json_t *names = json_object();
    for (size_t i = 0; i < document->tensor_count; i++)
        json_object_set_new(names, document->tensors[i].tensor.name, json_integer((json_int_t)i));
    stq_status status = STQ_OK;
    if (optimizer->tensor_count != document->tensor_count)
        status = stq_error(STQ_INVALID_ARGUMENT, "%s has states of %zu tensors, this model has %zu.", c->path,
                           document->tensor_count, optimizer->tensor_count);
    for (size_t i = 0; status == STQ_OK && i < optimizer->tensor_count; i++) {
        const stq_tensor *tensor = &optimizer->tensors[i];
        const json_t *index = json_object_get(names, tensor->name);
        matches[i] = index ? &document->tensors[json_integer_value(index)] : NULL;
        /* A shared second moment belongs to rows or columns; nothing else cares for more than the number of elements.
         */
        bool same_shape =
            matches[i] && matches[i]->tensor.rows == tensor->rows && matches[i]->tensor.cols == tensor->cols;
        if (matches[i] == NULL || matches[i]->tensor.rows * matches[i]->tensor.cols != tensor->rows * tensor->cols ||
            (stq_is_shared(matches[i]->record.bits[STQ_SECOND_MOMENT]) && !same_shape))
            status = stq_error(STQ_INVALID_ARGUMENT, "%s has no state of '%s' with %" PRId64 " elements.", c->path,
                               tensor->name, tensor->rows * tensor->cols);
    }
    json_decref(names);
    return status;
}

/* The record of the part with the same slices; of the first part, without its bytes, where the slices differ. */
static stq_adamw_record choose_record(const stq_checkpoint *c, const stq_adamw *optimizer,
                                      const stq_saved_tensor *const *matches) {
    const stq_document *first = &c->files[0].document;
    for (size_t i = 0; i < c->file_count; i++) {
        bool same = true;
        for (size_t k = 0; same && k < optimizer->tensor_count; k++) {
            const stq_tensor *saved = &c->files[i].document.tensors[matches[k] - first->tensors].tensor;
            same = saved->first == optimizer->tensors[k].first && saved->count == optimizer->tensors[k].count;
        }
        if (same)
            return c->files[i].document.record;
    }
    stq_adamw_record record = first->record;
    record.peak_bytes = 0;
    return record;
}

static stq_status plan_states(state_jobs *jobs, const stq_saved_tensor *const *matches) {
    const stq_checkpoint *c = jobs->checkpoint;
    jobs->list = calloc(2 * c->tensor_slices.count + 1, sizeof *jobs->list);
    if (jobs->list == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to read %s.", c->path);
    for (size_t i = 0; i < jobs->optimizer->tensor_count; i++) {
        const stq_tensor *to = &jobs->optimizer->tensors[i];
        size_t owner = (size_t)(matches[i] - c->files[0].document.tensors);
        for (size_t k = c->tensor_slices.start[owner]; k < c->tensor_slices.start[owner + 1]; k++) {
            const stq_slice *slice = &c->tensor_slices.list[k];
            bool overlaps = slice->first < to->first + to->count && slice->first + slice->count > to->first;
            bool trained = matches[i]->record.bits[STQ_FIRST_MOMENT] != 0;
            for (int state = 0; overlaps && trained && state < 2; state++)
                jobs->list[jobs->count++] = (state_job){.slice = slice, .index = i, .state = (stq_state)state};
        }
    }
    return STQ_OK;
}

static stq_status restore(const stq_checkpoint *c, stq_adamw *optimizer, const stq_saved_tensor **matches,
                          stq_tensor_record *records, bool *changed) {
    STQ_CHECK(match_tensors(c, optimizer, matches));
    for (size_t i = 0; i < optimizer->tensor_count; i++)
        records[i] = matches[i]->record;
    stq_adamw_record record = choose_record(c, optimizer, matches);
    STQ_CHECK(
        name_file(stq_adamw_fit(optimizer, &record, records, optimizer->tensor_count, changed), c->files[0].path));
    if (*changed)
        record.peak_bytes = 0;
    return name_file(stq_adamw_restore(optimizer, &record, records, optimizer->tensor_count), c->files[0].path);
}

stq_status stq_checkpoint_load_optimizer(const stq_checkpoint *c, stq_adamw *optimizer, bool *changed) {
    if (c->files[0].document.tensor_count == 0)
        return stq_error(STQ_INVALID_ARGUMENT, "%s holds no states of an optimizer.", c->path);
    bool widths_changed = false;
    state_jobs jobs = {.checkpoint = c, .optimizer = optimizer};
    const stq_saved_tensor **matches = calloc(optimizer->tensor_count, sizeof *matches);
    stq_tensor_record *records = calloc(optimizer->tensor_count, sizeof *records);
    stq_status status = matches && records ? STQ_OK : stq_error(STQ_OUT_OF_MEMORY, "No memory to read %s.", c->path);
    if (status == STQ_OK)
        status = restore(c, optimizer, matches, records, &widths_changed);
    if (status == STQ_OK)
        status = plan_states(&jobs, matches);
    if (status == STQ_OK) /* only host memory may be written from several threads */
        status = stq_run_jobs(load_state, &jobs, jobs.count,
                              optimizer->backend == &stq_cpu_backend ? stq_reader_threads(c) : 1);
    if (status == STQ_OK && changed)
        *changed = widths_changed;
    free(jobs.list);
    free(matches);
    free(records);
    return status;
}

static void decode_shared(float *values, const stq_planes *planes, const stq_saved_tensor *saved) {
    enum { RUN = 1 << 20 };
    const stq_tensor *tensor = &saved->tensor;
    for (int64_t at = 0; at < tensor->count; at += RUN)
        stq_shared_values(values + at, planes, tensor->cols, tensor->first + at,
                          (int)(tensor->count - at < RUN ? tensor->count - at : RUN));
}

stq_status stq_check_state(const stq_checkpoint *c, size_t tensor, stq_state state) {
    size_t count = c->files[0].document.tensor_count;
    if (tensor < count && (state == STQ_FIRST_MOMENT || state == STQ_SECOND_MOMENT))
        return STQ_OK;
    return stq_error(STQ_INVALID_ARGUMENT, "%s has no state %d of tensor %zu; it has two each of %zu tensors.", c->path,
                     (int)state, tensor, count);
}

stq_status stq_checkpoint_read_state(const stq_checkpoint *c, size_t index, stq_state state, float *values) {
    STQ_CHECK(stq_check_state(c, index, state));
    for (size_t i = c->tensor_slices.start[index]; i < c->tensor_slices.start[index + 1]; i++) {
        const stq_slice *slice = &c->tensor_slices.list[i];
        stq_planes planes;
        stq_status status = stq_read_slice_planes(c, slice, state, &planes);
        if (status == STQ_OK && stq_is_shared(planes.bits))
            decode_shared(values + slice->first, &planes, stq_slice_tensor(c, slice));
        else if (status == STQ_OK)
            status = stq_decode(values + slice->first, &planes, state, slice->count);
        stq_release_planes(&planes);
        STQ_CHECK(status);
    }
    return STQ_OK;
}
