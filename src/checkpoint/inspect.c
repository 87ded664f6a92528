/* inspect.c - what an opened checkpoint tells: descriptions, verification, digest, noise of the states. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/file.h"
#include "checkpoint/load.h"
#include "common/error.h"

stq_status stq_checkpoint_describe(const stq_checkpoint *c, stq_checkpoint_info *info) {
    const stq_document *document = &c->files[0].document;
    *info = (stq_checkpoint_info){
        .path = c->path,
        .step = document->step,
        .ranks = (uint32_t)c->file_count,
        .format_version = c->files[0].ours ? document->format_version : 0,
        .array_count = c->array_count,
        .tensor_count = document->tensor_count,
        .group_count = document->tensor_count > 0 ? document->group_count : 0,
        .bytes = c->bytes,
        .application = c->application,
        .document = c->files[0].ours ? c->files[0].header.metadata : "{}",
    };
    for (size_t i = 0; i < c->file_count; i++)
        info->entry_count += c->files[i].header.count;
    return STQ_OK;
}

static stq_status no_such(const stq_checkpoint *c, const char *what, size_t index, size_t count) {
    return stq_error(STQ_INVALID_ARGUMENT, "%s has no %s %zu; there are %zu.", c->path, what, index, count);
}

stq_status stq_checkpoint_array(const stq_checkpoint *c, size_t index, stq_array *array) {
    if (index >= c->array_count)
        return no_such(c, "array", index, c->array_count);
    *array = c->arrays[index];
    return STQ_OK;
}

stq_status stq_checkpoint_tensor_info(const stq_checkpoint *c, size_t index, stq_checkpoint_tensor *tensor) {
    const stq_document *document = &c->files[0].document;
    if (index >= document->tensor_count)
        return no_such(c, "tensor", index, document->tensor_count);
    *tensor =
        (stq_checkpoint_tensor){.tensor = document->tensors[index].tensor, .record = document->tensors[index].record};
    tensor->tensor.first = 0;
    tensor->tensor.count = tensor->tensor.rows * tensor->tensor.cols;
    for (size_t i = c->tensor_slices.start[index]; i < c->tensor_slices.start[index + 1]; i++)
        for (int state = 0; state < 2; state++)
            for (int part = 0; part <= STQ_PART_SHARED; part++) {
                const stq_entry *entry =
                    stq_state_slice_entry(c, &c->tensor_slices.list[i], (stq_state)state, (stq_part)part);
                tensor->bytes[state] += entry ? entry->bytes : 0;
            }
    return STQ_OK;
}

stq_status stq_checkpoint_record(const stq_checkpoint *c, stq_adamw_record *record) {
    if (c->files[0].document.tensor_count == 0)
        return stq_error(STQ_INVALID_ARGUMENT, "%s holds no states of an optimizer.", c->path);
    *record = c->files[0].document.record;
    return STQ_OK;
}

stq_status stq_checkpoint_group(const stq_checkpoint *c, size_t index, stq_adamw_group *group) {
    const stq_document *document = &c->files[0].document;
    if (index >= document->group_count)
        return no_such(c, "group", index, document->group_count);
    *group = document->groups[index];
    return STQ_OK;
}

/* Entry `index` in the order of the files. */
static const stq_entry *entry_at(const stq_checkpoint *c, size_t index, const stq_part_file **file) {
    *file = &c->files[0];
    for (size_t i = 0; i < c->file_count; i++) {
        *file = &c->files[i];
        if (index < (*file)->header.count)
            return &(*file)->header.entries[index];
        index -= (*file)->header.count;
    }
    return NULL;
}

stq_status stq_checkpoint_entry_info(const stq_checkpoint *c, size_t index, stq_checkpoint_entry *info) {
    const stq_part_file *file;
    const stq_entry *entry = entry_at(c, index, &file);
    if (entry == NULL)
        return stq_error(STQ_INVALID_ARGUMENT, "%s has no entry %zu.", c->path, index);
    *info = (stq_checkpoint_entry){.name = entry->name,
                                   .file = file->name,
                                   .type = entry->type,
                                   .dimensions = entry->dimensions,
                                   .offset = file->header.data_start + entry->begin,
                                   .bytes = entry->bytes};
    memcpy(info->shape, entry->shape, sizeof info->shape);
    info->has_checksum = stq_expected_checksum(file, entry, &info->checksum);
    return STQ_OK;
}

/* ---- Verification ---- */

static stq_status verify_entry(void *context, size_t index) {
    const stq_part_file *file;
    const stq_entry *entry = entry_at(context, index, &file);
    return stq_read_entry(file, entry, NULL, NULL, NULL);
}

stq_status stq_checkpoint_verify(const stq_checkpoint *c) {
    stq_checkpoint_info info;
    STQ_CHECK(stq_checkpoint_describe(c, &info));
    return stq_run_jobs(verify_entry, (void *)(uintptr_t)c, info.entry_count, stq_reader_threads(c));
}

/* ---- Digest ---- */

/* Bytes of an array or plane go through one XXH3 as if they were in one piece. */
static stq_status digest_bytes(void *context, uint64_t offset, const void *data, uint64_t bytes) {
    (void)offset;
    stq_checksum_add(context, data, bytes);
    return STQ_OK;
}

static void digest_text(stq_checksum_state *sum, const char *text) { stq_checksum_add(sum, text, strlen(text) + 1); }

static stq_status digest_array(const stq_checkpoint *c, stq_checksum_state *sum, size_t index) {
    const stq_array *array = &c->arrays[index];
    digest_text(sum, array->name);
    digest_text(sum, stq_type_name(array->type));
    for (size_t i = c->array_slices.start[index]; i < c->array_slices.start[index + 1]; i++) {
        const stq_slice *slice = &c->array_slices.list[i];
        STQ_CHECK(stq_read_entry(&c->files[slice->file], stq_array_slice_entry(c, slice), NULL, digest_bytes, sum));
    }
    return STQ_OK;
}

static stq_status digest_state(const stq_checkpoint *c, stq_checksum_state *sum, size_t index) {
    const stq_saved_tensor *saved = &c->files[0].document.tensors[index];
    digest_text(sum, saved->tensor.name);
    stq_checksum_add(sum, saved->record.bits, sizeof saved->record.bits);
    stq_checksum_add(sum, &saved->record.missed, sizeof saved->record.missed);
    for (int state = 0; state < 2; state++)
        for (int part = 0; part <= STQ_PART_SHARED; part++)
            for (size_t i = c->tensor_slices.start[index]; i < c->tensor_slices.start[index + 1]; i++) {
                const stq_slice *slice = &c->tensor_slices.list[i];
                const stq_entry *entry = stq_state_slice_entry(c, slice, (stq_state)state, (stq_part)part);
                if (entry)
                    STQ_CHECK(stq_read_entry(&c->files[slice->file], entry, NULL, digest_bytes, sum));
            }
    return STQ_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const stq_array *const *)a)->name, (*(const stq_array *const *)b)->name);
}

/* By name, as files may hold arrays in any order. */
static stq_status digest_arrays(const stq_checkpoint *c, stq_checksum_state *sum) {
    const stq_array **sorted = calloc(c->array_count + 1, sizeof *sorted);
    if (sorted == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the digest of %s.", c->path);
    for (size_t i = 0; i < c->array_count; i++)
        sorted[i] = &c->arrays[i];
    qsort(sorted, c->array_count, sizeof *sorted, by_name);
    stq_status status = STQ_OK;
    for (size_t i = 0; status == STQ_OK && i < c->array_count; i++)
        status = digest_array(c, sum, (size_t)(sorted[i] - c->arrays));
    free(sorted);
    return status;
}

stq_status stq_checkpoint_digest(const stq_checkpoint *c, uint64_t *digest) {
    const stq_document *document = &c->files[0].document;
    stq_checksum_state *sum = stq_checksum_begin();
    if (sum == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the digest of %s.", c->path);
    stq_checksum_add(sum, &document->step, sizeof document->step);
    stq_status status = digest_arrays(c, sum);
    if (document->tensor_count > 0) {
        stq_checksum_add(sum, &document->record.steps, sizeof document->record.steps);
        stq_checksum_add(sum, &document->record.seed, sizeof document->record.seed);
    }
    for (size_t i = 0; status == STQ_OK && i < document->tensor_count; i++)
        status = digest_state(c, sum, i);
    uint64_t value = stq_checksum_end(sum);
    if (status == STQ_OK)
        *digest = value;
    return status;
}
