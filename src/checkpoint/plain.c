/* plain.c - safetensors files of arrays alone, for other programs. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint/file.h"
#include "checkpoint/safetensors.h"
#include "common/error.h"

static stq_status fill_entry(stq_entry *entry, const stq_array *array, uint64_t begin) {
    int64_t elements;
    STQ_CHECK(stq_array_check(array, &elements));
    if (array->first != 0 || array->count != elements || (array->data == NULL && elements > 0))
        return stq_error(STQ_INVALID_ARGUMENT, "Array '%s' is not whole.", array->name);
    *entry = (stq_entry){.name = array->name,
                         .type = stq_type_name(array->type),
                         .dimensions = array->dimensions,
                         .begin = begin,
                         .bytes = (uint64_t)elements * stq_dtype_size(array->type)};
    memcpy(entry->shape, array->shape, sizeof entry->shape);
    return STQ_OK;
}

static int by_width(const void *a, const void *b) {
    const stq_array *x = *(const stq_array *const *)a, *y = *(const stq_array *const *)b;
    size_t x_bytes = stq_dtype_size(x->type), y_bytes = stq_dtype_size(y->type);
    if (x_bytes != y_bytes)
        return x_bytes > y_bytes ? -1 : 1;
    return x < y ? -1 : x > y;
}

static stq_status write_file(const char *path, const stq_piece *pieces, size_t count) {
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    int descriptor;
    if (name[0] == 0 || strlen(name) > 250)
        return stq_error(STQ_INVALID_ARGUMENT, "'%s' is no name for a file.", path);
    char *folder = slash == path ? strdup("/") : slash ? strndup(path, (size_t)(slash - path)) : strdup(".");
    if (folder == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the path %s.", path);
    stq_status status = stq_folder_open(folder, &descriptor);
    if (status == STQ_OK) {
        status = stq_file_make(descriptor, folder, name, pieces, count);
        close(descriptor);
    }
    free(folder);
    return status;
}

/* Room for everything that one file is made of. */
typedef struct plan {
    const stq_array **sorted;
    stq_entry *entries;
    stq_piece *pieces;
    json_t *metadata;
    char *header;
} plan;

static stq_status make_plan(plan *p, const stq_array *arrays, size_t count, const char *const (*metadata)[2],
                            size_t metadata_count) {
    p->sorted = calloc(count + 1, sizeof *p->sorted);
    p->entries = calloc(count + 1, sizeof *p->entries);
    p->pieces = calloc(count + 2, sizeof *p->pieces);
    p->metadata = metadata_count > 0 ? json_object() : NULL;
    if (!p->sorted || !p->entries || !p->pieces || (metadata_count > 0 && !p->metadata))
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the header of %zu arrays.", count);
    for (size_t i = 0; i < metadata_count; i++)
        if (json_object_set_new(p->metadata, metadata[i][0], json_string(metadata[i][1])) != 0)
            return stq_error(STQ_INVALID_ARGUMENT, "The metadata of a file are not UTF-8.");
    for (size_t i = 0; i < count; i++)
        p->sorted[i] = &arrays[i];
    qsort(p->sorted, count, sizeof *p->sorted, by_width);
    uint64_t begin = 0;
    for (size_t i = 0; i < count; i++) {
        STQ_CHECK(fill_entry(&p->entries[i], p->sorted[i], begin));
        p->pieces[i + 1] = (stq_piece){p->sorted[i]->data, p->entries[i].bytes};
        begin += p->entries[i].bytes;
    }
    return stq_header_format(p->entries, count, p->metadata, &p->header, &p->pieces[0].bytes);
}

stq_status stq_safetensors_write(const char *path, const stq_array *arrays, size_t array_count,
                                 const char *const (*metadata)[2], size_t metadata_count) {
    plan p = {0};
    stq_status status = make_plan(&p, arrays, array_count, metadata, metadata_count);
    if (status == STQ_OK) {
        p.pieces[0].data = p.header;
        status = write_file(path, p.pieces, array_count + 1);
    }
    json_decref(p.metadata);
    free(p.sorted);
    free(p.entries);
    free(p.pieces);
    free(p.header);
    return status;
}
