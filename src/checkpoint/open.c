/* open.c - finding and opening checkpoints: everything is checked here that can be checked without reading contents. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint/file.h"
#include "checkpoint/json.h"
#include "checkpoint/publish.h"
#include "checkpoint/reader.h"
#include "common/error.h"
#include "quant/shared.h"

static stq_status no_memory(const char *path) {
    return stq_error(STQ_OUT_OF_MEMORY, "No memory to open the checkpoint %s.", path);
}

/* ---- Entries ---- */

static const stq_entry *find_in_file(const stq_checkpoint *c, const char *name, size_t file) {
    const json_t *place = json_object_get(c->entries, name);
    if (place == NULL || (size_t)json_integer_value(json_array_get(place, 0)) != file)
        return NULL;
    return &c->files[file].header.entries[json_integer_value(json_array_get(place, 1))];
}

const stq_entry *stq_array_slice_entry(const stq_checkpoint *c, const stq_slice *slice) {
    char name[STQ_ENTRY_NAME];
    stq_array array = c->arrays[slice->owner];
    array.first = slice->first;
    array.count = slice->count;
    return stq_array_entry_name(&array, name, sizeof name) ? find_in_file(c, name, slice->file) : NULL;
}

const stq_saved_tensor *stq_slice_tensor(const stq_checkpoint *c, const stq_slice *slice) {
    return &c->files[slice->file].document.tensors[slice->owner];
}

const stq_entry *stq_state_slice_entry(const stq_checkpoint *c, const stq_slice *slice, stq_state state,
                                       stq_part part) {
    char name[STQ_ENTRY_NAME];
    const stq_tensor *tensor = &stq_slice_tensor(c, slice)->tensor;
    if (stq_part_name(state, part) == NULL)
        return NULL;
    if (!stq_state_entry_name(tensor, stq_part_name(state, part), name, sizeof name))
        return NULL;
    const stq_entry *entry = find_in_file(c, name, slice->file);
    if (entry || part != STQ_PART_VALUES ||
        !stq_state_entry_name(tensor, state == STQ_FIRST_MOMENT ? "exp_avg" : "exp_avg_sq", name, sizeof name))
        return entry;
    return find_in_file(c, name, slice->file);
}

bool stq_expected_checksum(const stq_part_file *file, const stq_entry *entry, uint64_t *checksum) {
    const char *text = json_string_value(json_object_get(file->document.checksums, entry->name));
    return file->ours && text && stq_parse_word(text, checksum);
}

/* ---- Files ---- */

static stq_status read_header(stq_part_file *file, const stq_index_file *listed) {
    int descriptor;
    uint64_t checksum;
    STQ_CHECK(stq_file_open(file->path, &descriptor, &file->bytes));
    stq_status status = STQ_OK;
    if (listed && listed->has_checksum && listed->bytes != file->bytes)
        status =
            stq_error(STQ_CORRUPT, "%s has %" PRIu64 " bytes, by the index %" PRIu64 "; it is cut off or not its own.",
                      file->path, file->bytes, listed->bytes);
    if (status == STQ_OK)
        status = stq_header_read(&file->header, descriptor, file->bytes, file->path,
                                 listed && listed->has_checksum ? &listed->checksum : NULL, &checksum);
    file->ours = file->header.metadata != NULL;
    if (status == STQ_OK && file->ours)
        status = stq_document_parse(&file->document, file->header.metadata, file->bytes, file->path);
    else if (status == STQ_OK)
        status = stq_foreign_document(file, descriptor);
    close(descriptor);
    return status;
}

static stq_status check_checksums(const stq_part_file *file) {
    uint64_t checksum;
    for (size_t i = 0; file->ours && i < file->header.count; i++)
        if (!stq_expected_checksum(file, &file->header.entries[i], &checksum))
            return stq_error(STQ_CORRUPT, "%s: tensor '%s' has no checksum.", file->path, file->header.entries[i].name);
    return STQ_OK;
}

static stq_status map_entries(stq_checkpoint *c, size_t index) {
    const stq_part_file *file = &c->files[index];
    for (size_t i = 0; i < file->header.count; i++) {
        const char *name = file->header.entries[i].name;
        if (json_object_get(c->entries, name))
            return stq_error(STQ_CORRUPT, "%s: tensor '%s' is in another file of the checkpoint, too.", file->path,
                             name);
        if (json_object_set_new(c->entries, name, json_pack("[I, I]", (json_int_t)index, (json_int_t)i)) != 0)
            return no_memory(c->path);
    }
    return STQ_OK;
}

static stq_status open_files(stq_checkpoint *c, const char *folder) {
    for (size_t i = 0; i < c->file_count; i++) {
        stq_part_file *file = &c->files[i];
        const stq_index_file *listed = c->index.root ? &c->index.files[i] : NULL;
        file->path = listed ? stq_path_join(folder, listed->name) : strdup(folder);
        if (file->path == NULL)
            return no_memory(c->path);
        const char *slash = strrchr(file->path, '/');
        file->name = slash ? slash + 1 : file->path;
        STQ_CHECK(read_header(file, listed));
        STQ_CHECK(check_checksums(file));
        STQ_CHECK(map_entries(c, i));
        c->bytes += file->bytes;
    }
    return STQ_OK;
}

/* Files of one checkpoint say the same about it. */
static stq_status check_agreement(const stq_checkpoint *c) {
    const stq_document *first = &c->files[0].document;
    for (size_t i = 0; i < c->file_count; i++) {
        const stq_part_file *file = &c->files[i];
        const stq_document *other = &file->document;
        if (file->ours != c->files[0].ours || (c->index.root && file->ours != c->index.ours))
            return stq_error(STQ_CORRUPT, "%s does not belong to this checkpoint.", file->path);
        if (!file->ours)
            continue;
        if (other->ranks != c->file_count)
            return stq_error(STQ_CORRUPT, "%s is one of %u parts, and %zu are here; open the checkpoint's folder.",
                             file->path, other->ranks, c->file_count);
        bool same = other->rank == i && other->step == first->step && other->run == first->run &&
                    other->tensor_count == first->tensor_count && other->group_count == first->group_count;
        for (size_t k = 0; same && k < first->tensor_count; k++) {
            const stq_saved_tensor *x = &first->tensors[k], *y = &other->tensors[k];
            same = strcmp(x->tensor.name, y->tensor.name) == 0 && x->tensor.rows == y->tensor.rows &&
                   x->tensor.cols == y->tensor.cols && memcmp(x->record.bits, y->record.bits, 2) == 0;
        }
        if (!same)
            return stq_error(STQ_CORRUPT, "%s and %s are parts of different checkpoints.", c->files[0].path,
                             file->path);
    }
    return STQ_OK;
}

/* ---- Slices ---- */

static int by_owner(const void *a, const void *b) {
    const stq_slice *x = a, *y = b;
    if (x->owner != y->owner)
        return x->owner < y->owner ? -1 : 1;
    if (x->first != y->first)
        return x->first < y->first ? -1 : 1;
    return x->file < y->file ? -1 : x->file > y->file;
}

/* Sorts the slices and fills `start` for `owners` owners. */
static stq_status sort_slices(stq_slices *slices, size_t owners, const char *path) {
    slices->start = calloc(owners + 1, sizeof *slices->start);
    if (slices->start == NULL)
        return no_memory(path);
    qsort(slices->list, slices->count, sizeof *slices->list, by_owner);
    for (size_t i = 0; i < slices->count; i++)
        slices->start[slices->list[i].owner + 1]++;
    for (size_t i = 0; i < owners; i++)
        slices->start[i + 1] += slices->start[i];
    return STQ_OK;
}

/* The slices of one owner must tile its elements. */
static stq_status check_tiling(const stq_checkpoint *c, const stq_slices *slices, size_t owner, int64_t elements,
                               const char *name) {
    int64_t end = 0;
    for (size_t i = slices->start[owner]; i < slices->start[owner + 1]; i++) {
        if (slices->list[i].first != end)
            return stq_error(STQ_CORRUPT, "%s: the parts of '%s' %s at element %" PRId64 ".",
                             c->files[slices->list[i].file].path, name,
                             slices->list[i].first < end ? "overlap" : "leave a hole", end);
        end += slices->list[i].count;
    }
    if (end != elements)
        return stq_error(STQ_CORRUPT, "%s: the parts of '%s' end at element %" PRId64 " of %" PRId64 ".", c->path, name,
                         end, elements);
    return STQ_OK;
}

static stq_status slice_error(const stq_checkpoint *c, const stq_slice *slice, const char *name, const char *what) {
    return stq_error(STQ_CORRUPT, "%s: '%s': its %s is missing or has another type or size than its description.",
                     c->files[slice->file].path, name, what);
}

static bool entry_is(const stq_entry *entry, const char *type, uint64_t bytes) {
    return entry && strcmp(entry->type, type) == 0 && entry->bytes == bytes;
}

/* ---- Arrays ---- */

static bool same_shape(const stq_array *a, const stq_array *b) {
    return a->type == b->type && a->dimensions == b->dimensions && memcmp(a->shape, b->shape, sizeof a->shape) == 0;
}

static stq_status add_array(stq_checkpoint *c, json_t *known, size_t file, const stq_array *array) {
    const json_t *place = json_object_get(known, array->name);
    size_t index = place ? (size_t)json_integer_value(place) : c->array_count;
    if (place == NULL) {
        c->arrays[c->array_count++] = *array;
        if (json_object_set_new(known, array->name, json_integer((json_int_t)index)) != 0)
            return no_memory(c->path);
    }
    if (!same_shape(array, &c->arrays[index]))
        return stq_error(STQ_CORRUPT, "%s: '%s' has another shape or type in another file.", c->files[file].path,
                         array->name);
    c->array_slices.list[c->array_slices.count++] =
        (stq_slice){.owner = index, .file = file, .first = array->first, .count = array->count};
    return STQ_OK;
}

static stq_status check_array_slices(const stq_checkpoint *c) {
    for (size_t i = 0; i < c->array_slices.count; i++) {
        const stq_slice *slice = &c->array_slices.list[i];
        const stq_array *array = &c->arrays[slice->owner];
        if (!entry_is(stq_array_slice_entry(c, slice), stq_type_name(array->type),
                      (uint64_t)slice->count * stq_dtype_size(array->type)))
            return slice_error(c, slice, array->name, "data");
    }
    for (size_t i = 0; i < c->array_count; i++)
        STQ_CHECK(check_tiling(c, &c->array_slices, i, stq_shape_elements(c->arrays[i].dimensions, c->arrays[i].shape),
                               c->arrays[i].name));
    return STQ_OK;
}

static stq_status gather_arrays(stq_checkpoint *c) {
    size_t most = 0;
    for (size_t i = 0; i < c->file_count; i++)
        most += c->files[i].document.array_count;
    json_t *known = json_object();
    c->arrays = calloc(most + 1, sizeof *c->arrays);
    c->array_slices.list = calloc(most + 1, sizeof *c->array_slices.list);
    stq_status status = known && c->arrays && c->array_slices.list ? STQ_OK : no_memory(c->path);
    for (size_t i = 0; status == STQ_OK && i < c->file_count; i++)
        for (size_t k = 0; status == STQ_OK && k < c->files[i].document.array_count; k++)
            status = add_array(c, known, i, &c->files[i].document.arrays[k]);
    json_decref(known);
    for (size_t i = 0; i < c->array_count; i++) {
        c->arrays[i].first = 0; /* NOLINT(clang-analyzer-core.NullDereference): without memory the count is 0 */
        c->arrays[i].count = stq_shape_elements(c->arrays[i].dimensions, c->arrays[i].shape);
    }
    if (status == STQ_OK)
        status = sort_slices(&c->array_slices, c->array_count, c->path);
    return status == STQ_OK ? check_array_slices(c) : status;
}

/* ---- States ---- */

static stq_status check_state(const stq_checkpoint *c, const stq_slice *slice, stq_state state) {
    const stq_saved_tensor *saved = stq_slice_tensor(c, slice);
    uint32_t bits = saved->record.bits[state];
    if (bits == STQ_BITS_FLOAT32) {
        const stq_entry *entry = stq_state_slice_entry(c, slice, state, STQ_PART_VALUES);
        stq_dtype type;
        if (entry == NULL || !stq_type_dtype(entry->type, &type) || type == STQ_UINT8 ||
            entry->bytes != (uint64_t)slice->count * stq_dtype_size(type))
            return slice_error(c, slice, saved->tensor.name, stq_part_name(state, STQ_PART_VALUES));
        return STQ_OK;
    }
    if (stq_is_shared(bits)) {
        uint64_t bytes = (uint64_t)stq_shared_bytes(bits, saved->tensor.rows, saved->tensor.cols);
        return entry_is(stq_state_slice_entry(c, slice, state, STQ_PART_SHARED), "F32", bytes)
                   ? STQ_OK
                   : slice_error(c, slice, saved->tensor.name, stq_part_name(state, STQ_PART_SHARED));
    }
    for (uint32_t k = 0; k < stq_plane_count(bits); k++)
        if (!entry_is(stq_state_slice_entry(c, slice, state, (stq_part)k), "U8",
                      stq_plane_bytes(slice->count, bits, k)))
            return slice_error(c, slice, saved->tensor.name, stq_part_name(state, (stq_part)k));
    if (bits != 0 && !entry_is(stq_state_slice_entry(c, slice, state, STQ_PART_SCALES), "U16",
                               (uint64_t)stq_block_count(slice->count) * sizeof(uint16_t)))
        return slice_error(c, slice, saved->tensor.name, stq_part_name(state, STQ_PART_SCALES));
    return STQ_OK;
}

static stq_status check_tensor_slices(const stq_checkpoint *c) {
    const stq_document *document = &c->files[0].document;
    for (size_t i = 0; i < c->tensor_slices.count; i++)
        for (int state = 0; state < 2; state++)
            STQ_CHECK(check_state(c, &c->tensor_slices.list[i], (stq_state)state));
    for (size_t i = 0; i < document->tensor_count; i++) {
        const stq_tensor *tensor = &document->tensors[i].tensor;
        STQ_CHECK(check_tiling(c, &c->tensor_slices, i, tensor->rows * tensor->cols, tensor->name));
    }
    return STQ_OK;
}

static stq_status check_unique_tensors(const stq_checkpoint *c) {
    const stq_document *document = &c->files[0].document;
    json_t *known = json_object();
    stq_status status = known ? STQ_OK : no_memory(c->path);
    for (size_t i = 0; status == STQ_OK && i < document->tensor_count; i++) {
        const char *name = document->tensors[i].tensor.name;
        if (json_object_get(known, name))
            status = stq_error(STQ_CORRUPT, "%s: two tensors of the optimizer are called '%s'.", c->path, name);
        else if (json_object_set_new(known, name, json_true()) != 0)
            status = no_memory(c->path);
    }
    json_decref(known);
    return status;
}

static stq_status gather_tensors(stq_checkpoint *c) {
    size_t tensors = c->files[0].document.tensor_count, most = 0;
    for (size_t i = 0; i < c->file_count; i++)
        for (size_t k = 0; k < tensors; k++)
            most += c->files[i].document.tensors[k].tensor.count > 0;
    c->tensor_slices.list = calloc(most + 1, sizeof *c->tensor_slices.list);
    if (c->tensor_slices.list == NULL)
        return no_memory(c->path);
    for (size_t i = 0; i < c->file_count; i++)
        for (size_t k = 0; k < tensors; k++) {
            const stq_tensor *tensor = &c->files[i].document.tensors[k].tensor;
            if (tensor->count > 0)
                c->tensor_slices.list[c->tensor_slices.count++] =
                    (stq_slice){.owner = k, .file = i, .first = tensor->first, .count = tensor->count};
        }
    STQ_CHECK(check_unique_tensors(c));
    STQ_CHECK(sort_slices(&c->tensor_slices, tensors, c->path));
    return check_tensor_slices(c);
}

/* ---- Opening ---- */

static stq_status fill(stq_checkpoint *c, const char *path) {
    c->file_count = c->index.root ? c->index.count : 1;
    c->bytes = c->index.bytes;
    c->files = calloc(c->file_count, sizeof *c->files);
    c->entries = json_object();
    if (c->files == NULL || c->entries == NULL)
        return no_memory(path);
    STQ_CHECK(open_files(c, path));
    STQ_CHECK(check_agreement(c));
    STQ_CHECK(gather_arrays(c));
    /* States of another origin are read from a single file only. */
    for (size_t i = 0; c->index.root && !c->index.ours && i < c->file_count; i++)
        c->files[i].document.tensor_count = 0;
    STQ_CHECK(gather_tensors(c));
    c->application = json_dumps(c->files[0].document.application, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    return c->application ? STQ_OK : no_memory(path);
}

/* A checkpoint's folder, or a single file. */
static stq_status open_path(stq_checkpoint **checkpoint, const char *path, bool folder) {
    *checkpoint = NULL;
    stq_checkpoint *c = calloc(1, sizeof *c);
    if (c == NULL)
        return no_memory(path);
    stq_status status = STQ_OK;
    if ((c->path = strdup(path)) == NULL)
        status = no_memory(path);
    if (status == STQ_OK && folder) {
        char *index = stq_path_join(path, STQ_INDEX_NAME);
        status = index ? stq_index_read(&c->index, index) : no_memory(path);
        free(index);
    }
    if (status == STQ_OK)
        status = fill(c, path);
    if (status != STQ_OK) {
        stq_checkpoint_close(c);
        return status;
    }
    *checkpoint = c;
    return STQ_OK;
}

static bool has_index(const char *folder) {
    char *index = stq_path_join(folder, STQ_INDEX_NAME);
    struct stat status;
    bool found = index && stat(index, &status) == 0;
    free(index);
    return found;
}

/* The newest that opens; *problem is the sentence about the newest that does not. */
static stq_status find_newest(const char *folder, int64_t below, stq_checkpoint **checkpoint) {
    int descriptor;
    int64_t *steps = NULL;
    size_t count = 0;
    char problem[400] = "";
    *checkpoint = NULL;
    STQ_CHECK(stq_folder_open(folder, &descriptor));
    stq_status status = stq_list_steps(descriptor, folder, below, &steps, &count);
    close(descriptor);
    for (size_t i = 0; status == STQ_OK && i < count && *checkpoint == NULL; i++) {
        char name[STQ_STEP_NAME];
        stq_step_name(steps[i], name);
        char *path = stq_path_join(folder, name);
        if (path == NULL)
            status = no_memory(folder);
        else if (open_path(checkpoint, path, true) != STQ_OK && problem[0] == 0)
            snprintf(problem, sizeof problem, "%s", stq_last_error());
        free(path);
    }
    free(steps);
    if (status != STQ_OK || *checkpoint)
        return status;
    if (problem[0])
        return stq_error(STQ_CORRUPT, "No checkpoint in %s is whole; the newest: %s", folder, problem);
    return stq_error(STQ_IO_ERROR, "There is no checkpoint in %s.", folder);
}

stq_status stq_checkpoint_find(const char *folder, int64_t below, char *path, size_t size) {
    stq_checkpoint *checkpoint;
    STQ_CHECK(find_newest(folder, below, &checkpoint));
    bool fits = strlen(checkpoint->path) < size;
    if (fits)
        strcpy(path, checkpoint->path);
    stq_checkpoint_close(checkpoint);
    return fits ? STQ_OK
                : stq_error(STQ_INVALID_ARGUMENT, "The path of the newest checkpoint in %s is too long.", folder);
}

stq_status stq_checkpoint_open(stq_checkpoint **checkpoint, const char *path) {
    struct stat status;
    *checkpoint = NULL;
    if (stat(path, &status) != 0)
        return stq_file_error("open", path, errno);
    if (S_ISREG(status.st_mode))
        return open_path(checkpoint, path, false);
    if (!S_ISDIR(status.st_mode))
        return stq_error(STQ_IO_ERROR, "%s is neither a folder nor a file.", path);
    if (has_index(path))
        return open_path(checkpoint, path, true);
    char *single = stq_path_join(path, "model.safetensors");
    if (single == NULL)
        return no_memory(path);
    stq_status result =
        stat(single, &status) == 0 ? open_path(checkpoint, single, false) : find_newest(path, INT64_MAX, checkpoint);
    free(single);
    return result;
}

static void close_file(stq_part_file *file) {
    stq_document_release(&file->document);
    stq_header_release(&file->header);
    free(file->path);
}

void stq_checkpoint_close(stq_checkpoint *c) {
    if (c == NULL)
        return;
    for (size_t i = 0; c->files && i < c->file_count; i++)
        close_file(&c->files[i]);
    free(c->files);
    stq_index_release(&c->index);
    json_decref(c->entries);
    free(c->arrays);
    free(c->array_slices.list);
    free(c->array_slices.start);
    free(c->tensor_slices.list);
    free(c->tensor_slices.start);
    free(c->application);
    free(c->path);
    free(c);
}
