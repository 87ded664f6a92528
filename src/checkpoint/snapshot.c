/* snapshot.c - one rank's share of a checkpoint: copied in one go, hashed and written later. */
#define _GNU_SOURCE
#include "checkpoint/snapshot.h"

#include <inttypes.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "checkpoint/json.h"
#include "common/error.h"
#include "optim/optimizer.h"

/* Copied by one thread at a time. */
enum { COPY_BYTES = 4 << 20 };

/* Where an entry's bytes come from. */
typedef struct source {
    stq_entry entry;
    const void *data;
    size_t order;      /* in which it was listed */
    bool of_optimizer; /* in the backend's memory */
} source;

/* What is being collected. */
typedef struct collection {
    const stq_save *save;
    const stq_snapshot_origin *origin;
    source *sources; /* the names of their entries are owned */
    size_t count;
    uint64_t bytes;
} collection;

static stq_status check_array(const stq_array *array) {
    int64_t elements;
    STQ_CHECK(stq_array_check(array, &elements));
    if (array->first < 0 || array->count < 0 || array->first > elements || array->count > elements - array->first ||
        (array->data == NULL && array->count > 0))
        return stq_error(STQ_INVALID_ARGUMENT, "Array '%s': %" PRId64 " elements from %" PRId64 " are not there.",
                         array->name, array->count, array->first);
    return STQ_OK;
}

/* Takes the next place; `fits` tells whether `name` is whole. */
static stq_status add_source(collection *all, const char *name, bool fits, source **added) {
    if (!fits)
        return stq_error(STQ_INVALID_ARGUMENT, "The name '%.60s...' is too long to be saved.", name);
    char *copy = strdup(name);
    if (copy == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the name '%s'.", name);
    *added = &all->sources[all->count];
    (*added)->entry.name = copy;
    (*added)->order = all->count++;
    return STQ_OK;
}

static stq_status add_array(collection *all, const stq_array *array) {
    char name[STQ_ENTRY_NAME];
    source *s = NULL;
    STQ_CHECK(check_array(array));
    STQ_CHECK(add_source(all, name, stq_array_entry_name(array, name, sizeof name), &s));
    *s = (source){.data = array->data,
                  .order = s->order,
                  .entry = {.name = s->entry.name,
                            .type = stq_type_name(array->type),
                            .dimensions = array->dimensions,
                            .bytes = (uint64_t)array->count * stq_dtype_size(array->type)}};
    memcpy(s->entry.shape, array->shape, sizeof array->shape);
    if (array->count != stq_shape_elements(array->dimensions, array->shape)) {
        s->entry.dimensions = 1;
        s->entry.shape[0] = array->count;
    }
    return STQ_OK;
}

static stq_status add_buffer(collection *all, const stq_buffer *buffer) {
    char name[STQ_ENTRY_NAME];
    source *s = NULL;
    const stq_tensor *tensor = &all->save->optimizer->tensors[buffer->index];
    const char *part = stq_part_name(buffer->state, buffer->part);
    STQ_CHECK(add_source(all, name, stq_state_entry_name(tensor, part, name, sizeof name), &s));
    *s = (source){.data = buffer->data,
                  .order = s->order,
                  .of_optimizer = true,
                  .entry = {.name = s->entry.name,
                            .type = buffer->element_size == 1   ? "U8"
                                    : buffer->element_size == 2 ? "U16"
                                                                : "F32",
                            .dimensions = 1,
                            .bytes = buffer->bytes}};
    s->entry.shape[0] = (int64_t)(buffer->bytes / buffer->element_size);
    return STQ_OK;
}

static int by_alignment(const void *a, const void *b) {
    const source *x = a, *y = b;
    uint32_t x_bytes = stq_type_bytes(x->entry.type), y_bytes = stq_type_bytes(y->entry.type);
    if (x_bytes != y_bytes)
        return x_bytes > y_bytes ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

static stq_status list_buffers(const stq_adamw *optimizer, stq_buffer **buffers, size_t *count) {
    *buffers = NULL;
    *count = 0;
    if (optimizer == NULL)
        return STQ_OK;
    STQ_CHECK(stq_adamw_buffers(optimizer, NULL, 0, count));
    *buffers = calloc(*count + 1, sizeof **buffers);
    if (*buffers == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the list of %zu states.", *count);
    return stq_adamw_buffers(optimizer, *buffers, *count, count);
}

/* Lists all entries, widest elements first, so that each is aligned to its own size. */
static stq_status collect(collection *all) {
    stq_buffer *buffers;
    size_t count;
    STQ_CHECK(list_buffers(all->save->optimizer, &buffers, &count));
    size_t most = count + all->save->array_count;
    all->sources = calloc(most + 1, sizeof *all->sources);
    stq_status status = STQ_OK;
    if (all->sources == NULL)
        status = stq_error(STQ_OUT_OF_MEMORY, "No memory for the list of %zu arrays.", most);
    for (size_t i = 0; status == STQ_OK && i < all->save->array_count; i++)
        status = add_array(all, &all->save->arrays[i]);
    for (size_t i = 0; status == STQ_OK && i < count; i++)
        status = add_buffer(all, &buffers[i]);
    free(buffers);
    if (status != STQ_OK)
        return status;
    qsort(all->sources, all->count, sizeof *all->sources, by_alignment);
    for (size_t i = 0; i < all->count; i++) {
        all->sources[i].entry.begin = all->bytes;
        all->bytes += all->sources[i].entry.bytes;
    }
    return STQ_OK;
}

/* ---- The description ---- */

static stq_status parse_application(const char *text, json_t **application) {
    *application = NULL;
    if (text == NULL)
        return STQ_OK;
    if (stq_json_parse(text, strlen(text), 0, UINT64_MAX, "The application's description", application) == STQ_OK)
        return STQ_OK;
    return stq_error(STQ_INVALID_ARGUMENT, "The application's description is no JSON object.");
}

static stq_status fill_records(const stq_adamw *optimizer, stq_document *document) {
    size_t count = optimizer->tensor_count;
    stq_tensor_record *records = calloc(count, sizeof *records);
    document->tensors = calloc(count, sizeof *document->tensors);
    document->groups = optimizer->groups;
    document->group_count = optimizer->group_count;
    stq_status status = STQ_OK;
    if (records == NULL || document->tensors == NULL)
        status = stq_error(STQ_OUT_OF_MEMORY, "No memory for the records of %zu tensors.", count);
    if (status == STQ_OK)
        status = stq_adamw_save_records(optimizer, &document->record, records, count);
    for (size_t i = 0; status == STQ_OK && i < count; i++)
        document->tensors[i] = (stq_saved_tensor){.tensor = optimizer->tensors[i], .record = records[i]};
    document->tensor_count = status == STQ_OK ? count : 0;
    free(records);
    return status;
}

static stq_status describe(const collection *all, json_t **root) {
    const stq_save *save = all->save;
    stq_document document = {.step = save->step,
                             .rank = all->origin->rank,
                             .ranks = all->origin->ranks,
                             .run = all->origin->run,
                             .arrays = (stq_array *)(uintptr_t)save->arrays,
                             .array_count = save->array_count};
    stq_status status = parse_application(save->application, &document.application);
    if (status == STQ_OK && save->optimizer)
        status = fill_records(save->optimizer, &document);
    if (status == STQ_OK)
        status = stq_document_format(&document, save->optimizer ? &save->optimizer->policy.config : NULL, root);
    json_decref(document.application);
    free(document.tensors);
    return status;
}

/* ---- Copying ---- */

/* Room for `bytes` bytes: that of the save before, where it is large enough. */
static bool allocate_data(stq_snapshot *snapshot, uint64_t bytes) {
    if (snapshot->data != NULL && snapshot->capacity >= bytes)
        return true;
    uint64_t rounded = (bytes + STQ_HUGE_PAGE) / STQ_HUGE_PAGE * STQ_HUGE_PAGE;
    free(snapshot->data);
    snapshot->data = rounded < SIZE_MAX / 2 ? aligned_alloc(STQ_HUGE_PAGE, (size_t)rounded) : NULL;
    snapshot->capacity = snapshot->data ? rounded : 0;
    if (snapshot->data != NULL && bytes >= 4 * STQ_HUGE_PAGE)
        madvise(snapshot->data, (size_t)rounded, MADV_HUGEPAGE);
    return snapshot->data != NULL;
}

/* Bytes begin .. end - 1 of the data section, from those sources that lie in host memory. */
static void copy_range(uint8_t *data, const collection *all, uint64_t begin, uint64_t end) {
    size_t low = 0, high = all->count;
    while (low < high) { /* the first source that ends behind `begin` */
        size_t middle = low + (high - low) / 2;
        const stq_entry *entry = &all->sources[middle].entry;
        if (entry->begin + entry->bytes <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    for (size_t i = low; i < all->count && all->sources[i].entry.begin < end; i++) {
        const stq_entry *entry = &all->sources[i].entry;
        uint64_t from = begin > entry->begin ? begin : entry->begin;
        uint64_t to = end < entry->begin + entry->bytes ? end : entry->begin + entry->bytes;
        if (to > from && !all->sources[i].of_optimizer)
            memcpy(data + from, (const uint8_t *)all->sources[i].data + (from - entry->begin), (size_t)(to - from));
    }
}

static stq_status copy_data(uint8_t *data, collection *all) {
    const stq_adamw *optimizer = all->save->optimizer;
    for (size_t i = 0; i < all->count; i++) {
        source *s = &all->sources[i];
        if (s->of_optimizer && optimizer->backend == &stq_cpu_backend)
            s->of_optimizer = false; /* host memory like any other */
        if (s->of_optimizer)
            STQ_CHECK(
                optimizer->backend->read(optimizer->backend_context, data + s->entry.begin, s->data, s->entry.bytes));
    }
    int64_t chunks = (int64_t)((all->bytes + COPY_BYTES - 1) / COPY_BYTES);
#pragma omp parallel for schedule(dynamic)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        uint64_t begin = (uint64_t)chunk * COPY_BYTES;
        copy_range(data, all, begin, begin + COPY_BYTES < all->bytes ? begin + COPY_BYTES : all->bytes);
    }
    return STQ_OK;
}

/* Hands the entries over to the part, which owns their names from now on. */
static stq_status keep_entries(stq_snapshot *snapshot, collection *all) {
    json_t *checksums = json_object_get(snapshot->document, "checksums");
    snapshot->entries = calloc(all->count + 1, sizeof *snapshot->entries);
    if (snapshot->entries == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the list of %zu arrays.", all->count);
    for (size_t i = 0; i < all->count; i++) {
        const char *name = all->sources[i].entry.name;
        if (json_object_get(checksums, name))
            return stq_error(STQ_INVALID_ARGUMENT, "Two arrays to be saved are called '%s'.", name);
        if (json_object_set_new(checksums, name, json_null()) != 0)
            return stq_error(STQ_INVALID_ARGUMENT, "The name '%.60s' is not UTF-8.", name);
    }
    for (size_t i = 0; i < all->count; i++)
        snapshot->entries[i] = all->sources[i].entry;
    snapshot->count = all->count;
    snapshot->bytes = all->bytes;
    all->count = 0;
    return STQ_OK;
}

stq_status stq_snapshot_copy(stq_snapshot *snapshot, const stq_save *save, const stq_snapshot_origin *origin) {
    collection all = {.save = save, .origin = origin};
    stq_status status = collect(&all);
    if (status == STQ_OK)
        status = describe(&all, &snapshot->document);
    if (status == STQ_OK && !allocate_data(snapshot, all.bytes))
        status = stq_error(STQ_OUT_OF_MEMORY, "No memory to copy %" PRIu64 " bytes for a checkpoint.", all.bytes);
    if (status == STQ_OK)
        status = copy_data(snapshot->data, &all);
    if (status == STQ_OK)
        status = keep_entries(snapshot, &all);
    for (size_t i = 0; i < all.count; i++)
        free((char *)(uintptr_t)all.sources[i].entry.name);
    free(all.sources);
    if (status != STQ_OK)
        stq_snapshot_release(snapshot);
    return status;
}

/* ---- Writing ---- */

static stq_status add_checksums(stq_snapshot *snapshot) {
    json_t *checksums = json_object_get(snapshot->document, "checksums");
    for (size_t i = 0; i < snapshot->count; i++) {
        const stq_entry *entry = &snapshot->entries[i];
        json_t *word = stq_json_from_word(stq_checksum(snapshot->data + entry->begin, entry->bytes));
        if (json_object_set_new(checksums, entry->name, word) != 0)
            return stq_error(STQ_OUT_OF_MEMORY, "No memory for the checksum of '%s'.", entry->name);
    }
    return STQ_OK;
}

static stq_status format_header(const stq_snapshot *snapshot, char **header, uint64_t *bytes) {
    *header = NULL;
    char *text = json_dumps(snapshot->document, JSON_COMPACT | JSON_REAL_PRECISION(17));
    /* "pt" is what readers of the ecosystem want to see; it says how tensors are laid out: row-major. */
    json_t *metadata = text ? json_pack("{s:s, s:s}", "format", "pt", "stquant", text) : NULL;
    free(text);
    if (metadata == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the header of a checkpoint.");
    stq_status status = stq_header_format(snapshot->entries, snapshot->count, metadata, header, bytes);
    json_decref(metadata);
    return status;
}

stq_status stq_snapshot_write(stq_snapshot *snapshot, int folder, const char *path, const char *name, uint64_t *bytes) {
    char *header;
    uint64_t header_bytes;
    STQ_CHECK(add_checksums(snapshot));
    STQ_CHECK(format_header(snapshot, &header, &header_bytes));
    stq_piece pieces[] = {{header, header_bytes}, {snapshot->data, snapshot->bytes}};
    stq_status status = stq_file_make(folder, path, name, pieces, 2);
    free(header);
    *bytes = header_bytes + snapshot->bytes;
    return status;
}

void stq_snapshot_release(stq_snapshot *snapshot) {
    for (size_t i = 0; i < snapshot->count; i++)
        free((char *)(uintptr_t)snapshot->entries[i].name);
    json_decref(snapshot->document);
    free(snapshot->entries);
    *snapshot = (stq_snapshot){.data = snapshot->data, .capacity = snapshot->capacity};
}

void stq_snapshot_free(stq_snapshot *snapshot) {
    stq_snapshot_release(snapshot);
    free(snapshot->data);
    *snapshot = (stq_snapshot){0};
}
