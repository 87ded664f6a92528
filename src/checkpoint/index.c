/* index.c - the index of a checkpoint. */
#include "checkpoint/index.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/file.h"
#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"
#include "common/error.h"

/* The member that holds the index's own checksum; the checksum is that of the text with these digits. */
static const char blank[] = "\"checksum\":\"0000000000000000\"";
enum { DIGITS_AT = sizeof "\"checksum\":\"" - 1, DIGITS = 16 };

void stq_part_file_name(uint32_t rank, uint32_t ranks, char *name) {
    snprintf(name, STQ_PART_NAME, "model-%05u-of-%05u.safetensors", rank + 1, ranks);
}

/* A name in this folder: no path, not hidden. */
static bool is_file_name(const char *name) {
    return stq_name_is_plain(name) && strlen(name) < 256 && strchr(name, '/') == NULL && name[0] != '.';
}

static stq_status parse_file(stq_index_file *file, const char *name, const json_t *value, const char *path) {
    int64_t bytes;
    char what[400];
    snprintf(what, sizeof what, "%.200s: file '%.100s'", path, name);
    if (!is_file_name(name))
        return stq_error(STQ_CORRUPT, "%s is no name of a file beside the index.", what);
    STQ_CHECK(stq_json_integer(value, "bytes", 0, INT64_MAX, what, &bytes));
    STQ_CHECK(stq_json_word(value, "header", what, &file->checksum));
    file->name = name;
    file->bytes = (uint64_t)bytes;
    file->has_checksum = true;
    return STQ_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const stq_index_file *)a)->name, ((const stq_index_file *)b)->name);
}

/* An index that this library wrote: metadata.stquant lists the files. */
static stq_status parse_ours(stq_index *index, const json_t *ours, const char *path) {
    const char *name;
    json_t *value, *files = json_object_get(ours, "files");
    int64_t version;
    STQ_CHECK(stq_json_integer(ours, "format_version", 1, INT32_MAX, path, &version));
    if (version > STQ_FORMAT_VERSION)
        return stq_error(STQ_UNSUPPORTED, "%s has format version %lld; this library reads up to %d. Use a newer one.",
                         path, (long long)version, STQ_FORMAT_VERSION);
    STQ_CHECK(stq_json_integer(ours, "step", 0, INT64_MAX, path, &index->step));
    if (!json_is_object(files) || json_object_size(files) == 0)
        return stq_error(STQ_CORRUPT, "%s: \"files\" must be an object with a member for each file.", path);
    index->ours = true;
    index->files = calloc(json_object_size(files), sizeof *index->files);
    if (index->files == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the index %s.", path);
    json_object_foreach(files, name, value) {
        STQ_CHECK(parse_file(&index->files[index->count], name, value, path));
        index->count++;
    }
    return STQ_OK;
}

/* An index of another origin: the files are the values of weight_map. */
static stq_status parse_foreign(stq_index *index, json_t *weight_map, const char *path) {
    const char *name;
    json_t *value, *seen = json_object();
    stq_status status = STQ_OK;
    index->files = calloc(json_object_size(weight_map) + 1, sizeof *index->files);
    if (seen == NULL || index->files == NULL)
        status = stq_error(STQ_OUT_OF_MEMORY, "No memory for the index %s.", path);
    json_object_foreach(weight_map, name, value) {
        const char *file = json_string_value(value);
        if (status != STQ_OK || (file && json_object_get(seen, file)))
            continue;
        if (file == NULL || !is_file_name(file)) {
            status = stq_error(STQ_CORRUPT, "%s: tensor '%.100s' is in no file beside the index.", path, name);
            continue;
        }
        index->files[index->count++].name = file;
        if (json_object_set_new(seen, file, json_true()) != 0)
            status = stq_error(STQ_OUT_OF_MEMORY, "No memory for the index %s.", path);
    }
    json_decref(seen);
    return status;
}

/* The checksum member of an index of ours stands at `at`; its digits count as zeros. */
static stq_status check_own_checksum(const char *text, uint64_t bytes, const char *path) {
    const char *at = strstr(text, "\"checksum\":\"");
    char digits[DIGITS + 1] = {0};
    uint64_t expected;
    if (at == NULL || (uint64_t)(at - text) + sizeof blank - 1 > bytes)
        return stq_error(STQ_CORRUPT, "%s: the checksum of the index is missing.", path);
    memcpy(digits, at + DIGITS_AT, DIGITS);
    char *copy = malloc((size_t)bytes);
    if (copy == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the index %s.", path);
    memcpy(copy, text, (size_t)bytes);
    memset(copy + (at - text) + DIGITS_AT, '0', DIGITS);
    bool right = stq_parse_word(digits, &expected) && stq_checksum(copy, bytes) == expected;
    free(copy);
    return right ? STQ_OK
                 : stq_error(STQ_CORRUPT, "%s: the index (offsets 0 to %" PRIu64 ") does not match its own checksum.",
                             path, bytes);
}

static stq_status parse_root(stq_index *index, const char *text, uint64_t bytes, const char *path) {
    json_t *weight_map = json_object_get(index->root, "weight_map");
    const json_t *ours = json_object_get(json_object_get(index->root, "metadata"), "stquant");
    if (!json_is_object(weight_map))
        return stq_error(STQ_CORRUPT, "%s: \"weight_map\" must be an object.", path);
    if (ours) {
        STQ_CHECK(check_own_checksum(text, bytes, path));
        STQ_CHECK(parse_ours(index, ours, path));
    } else {
        STQ_CHECK(parse_foreign(index, weight_map, path));
    }
    if (index->count == 0)
        return stq_error(STQ_CORRUPT, "%s: the index names no file.", path);
    qsort(index->files, index->count, sizeof *index->files, by_name);
    return STQ_OK;
}

stq_status stq_index_parse(stq_index *index, const char *text, uint64_t bytes, const char *path) {
    *index = (stq_index){.bytes = bytes};
    /* An index has one value for about twenty bytes, and nothing beside it. */
    STQ_CHECK(stq_json_parse(text, bytes, 0, 1024 + bytes / 4, path, &index->root));
    stq_status status = parse_root(index, text, bytes, path);
    if (status != STQ_OK)
        stq_index_release(index);
    return status;
}

stq_status stq_index_read(stq_index *index, const char *path) {
    char *text;
    uint64_t bytes;
    *index = (stq_index){0};
    STQ_CHECK(stq_file_load(path, STQ_LONGEST_HEADER, &text, &bytes));
    stq_status status = stq_index_parse(index, text, bytes, path);
    free(text);
    return status;
}

void stq_index_release(stq_index *index) {
    json_decref(index->root);
    free(index->files);
    *index = (stq_index){0};
}

static json_t *format_files(const stq_index_file *files, size_t count) {
    json_t *object = json_object();
    for (size_t i = 0; i < count; i++)
        json_object_set_new(object, files[i].name,
                            json_pack("{s:I, s:o}", "bytes", (json_int_t)files[i].bytes, "header",
                                      stq_json_from_word(files[i].checksum)));
    return object;
}

stq_status stq_index_format(const stq_index_file *files, size_t count, int64_t step, uint64_t total_bytes,
                            json_t *weight_map, char **text) {
    /* The checksum comes first: no name in the text before it can look like it. */
    json_t *root =
        json_pack("{s:{s:{s:s, s:i, s:I, s:o}, s:I}, s:o}", "metadata", "stquant", "checksum", "0000000000000000",
                  "format_version", STQ_FORMAT_VERSION, "step", (json_int_t)step, "files", format_files(files, count),
                  "total_size", (json_int_t)total_bytes, "weight_map", weight_map);
    *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    char *at = *text ? strstr(*text, blank) : NULL;
    if (at == NULL) {
        free(*text);
        *text = NULL;
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the index of a checkpoint.");
    }
    char digits[DIGITS + 1];
    snprintf(digits, sizeof digits, "%016" PRIx64, stq_checksum(*text, strlen(*text)));
    memcpy(at + DIGITS_AT, digits, DIGITS);
    return STQ_OK;
}
