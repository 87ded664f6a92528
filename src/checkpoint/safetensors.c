/* safetensors.c - headers of safetensors files, read strictly and written. */
#include "checkpoint/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/file.h"
#include "checkpoint/json.h"
#include "common/error.h"
#include "common/memory.h"
#include "quant/layout.h"

static const struct {
    const char *name;
    uint32_t bytes;
} types[] = {
    {"F32", 4}, {"U8", 1}, {"U16", 2}, {"BF16", 2}, {"F16", 2},  {"F64", 8},     {"I64", 8},     {"I32", 4},
    {"I16", 2}, {"I8", 1}, {"U32", 4}, {"U64", 8},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
};

uint32_t stq_type_bytes(const char *type) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, type) == 0)
            return types[i].bytes;
    return 0;
}

static const char *const dtype_names[] = {
    [STQ_FLOAT32] = "F32", [STQ_BFLOAT16] = "BF16", [STQ_FLOAT16] = "F16", [STQ_UINT8] = "U8"};

const char *stq_type_name(stq_dtype type) { return dtype_names[type]; }

bool stq_type_dtype(const char *type, stq_dtype *dtype) {
    for (size_t i = 0; i < sizeof dtype_names / sizeof *dtype_names; i++)
        if (strcmp(dtype_names[i], type) == 0) {
            *dtype = (stq_dtype)i;
            return true;
        }
    return false;
}

bool stq_name_is_plain(const char *name) {
    size_t length = strlen(name);
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
    return length >= 1 && length <= 1000;
}

stq_status stq_array_check(const stq_array *array, int64_t *elements) {
    if (array->name == NULL || !stq_name_is_plain(array->name))
        return stq_error(STQ_INVALID_ARGUMENT,
                         "An array to be saved has no name of 1 to 1,000 bytes without control characters.");
    if (array->dimensions > STQ_DIMENSIONS || stq_dtype_size(array->type) == 0)
        return stq_error(STQ_INVALID_ARGUMENT, "Array '%s': %u dimensions of type %d cannot be saved.", array->name,
                         array->dimensions, (int)array->type);
    *elements = 1;
    for (uint32_t k = 0; k < array->dimensions; k++) {
        if (array->shape[k] < 0 || (array->shape[k] > 0 && *elements > STQ_MOST_ELEMENTS / array->shape[k]))
            return stq_error(STQ_INVALID_ARGUMENT, "Array '%s': its shape is not that of at most 2^38 elements.",
                             array->name);
        *elements *= array->shape[k];
    }
    return STQ_OK;
}

/* ---- Reading ---- */

/* Tables made from a file take no more memory than the file and this. */
enum { SLACK = 1 << 20 };

static stq_status entry_error(const char *path, const stq_entry *entry, const char *problem) {
    return stq_error(STQ_CORRUPT, "%s: tensor '%s': %s.", path, entry->name, problem);
}

static stq_status parse_shape(stq_entry *entry, const json_t *shape, const char *path, uint64_t *elements) {
    if (!json_is_array(shape) || json_array_size(shape) > STQ_DIMENSIONS)
        return entry_error(path, entry, "its shape must be a list of at most 8 sizes");
    entry->dimensions = (uint32_t)json_array_size(shape);
    *elements = 1;
    for (uint32_t k = 0; k < entry->dimensions; k++) {
        const json_t *size = json_array_get(shape, k);
        json_int_t value = json_integer_value(size);
        if (!json_is_integer(size) || value < 0)
            return entry_error(path, entry, "its shape has a size that is no whole number of 0 or more");
        /* Zero anywhere makes an empty tensor, but not of sizes that overflow without it. */
        if (value > 0 && *elements > (UINT64_C(1) << 60) / (uint64_t)value)
            return entry_error(path, entry, "its shape has too many elements");
        entry->shape[k] = value;
        *elements *= (uint64_t)value;
    }
    return STQ_OK;
}

static stq_status parse_entry(stq_entry *entry, const json_t *value, uint64_t data_bytes, const char *path) {
    if (!stq_name_is_plain(entry->name))
        return stq_error(STQ_CORRUPT, "%s: a tensor's name is empty, too long or has control characters.", path);
    if (!json_is_object(value) || json_object_size(value) != 3)
        return entry_error(path, entry, "it must have exactly dtype, shape and data_offsets");
    entry->type = json_string_value(json_object_get(value, "dtype"));
    if (entry->type == NULL || stq_type_bytes(entry->type) == 0)
        return stq_error(entry->type ? STQ_UNSUPPORTED : STQ_CORRUPT, "%s: tensor '%s': unknown dtype '%.20s'.", path,
                         entry->name, entry->type ? entry->type : "");
    uint64_t elements = 0;
    STQ_CHECK(parse_shape(entry, json_object_get(value, "shape"), path, &elements));
    const json_t *offsets = json_object_get(value, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0);
    const json_t *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin))
        return entry_error(path, entry, "data_offsets must be two offsets, the second not below the first");
    entry->begin = (uint64_t)json_integer_value(begin);
    entry->bytes = (uint64_t)json_integer_value(end) - entry->begin;
    if (entry->begin + entry->bytes > data_bytes)
        return stq_error(STQ_CORRUPT, "%s: tensor '%s' ends at offset %" PRIu64 " of %" PRIu64 " bytes of data.", path,
                         entry->name, entry->begin + entry->bytes, data_bytes);
    if (entry->bytes != elements * stq_type_bytes(entry->type))
        return stq_error(STQ_CORRUPT, "%s: tensor '%s' has %" PRIu64 " bytes, its shape and type need %" PRIu64 ".",
                         path, entry->name, entry->bytes, elements * stq_type_bytes(entry->type));
    return STQ_OK;
}

static stq_status parse_metadata(stq_header *header, const json_t *value, const char *path) {
    const char *key;
    const json_t *text;
    if (!json_is_object(value))
        return stq_error(STQ_CORRUPT, "%s: __metadata__ must be an object of strings.", path);
    json_object_foreach((json_t *)(uintptr_t)value, key, text) {
        if (!json_is_string(text))
            return stq_error(STQ_CORRUPT, "%s: __metadata__ must be an object of strings.", path);
        if (strcmp(key, "stquant") == 0)
            header->metadata = json_string_value(text);
    }
    return STQ_OK;
}

static int by_offset(const void *a, const void *b) {
    const stq_entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static stq_status check_layout(const stq_header *header, uint64_t data_bytes, const char *path) {
    uint64_t end = 0;
    for (size_t i = 0; i < header->count; i++) {
        const stq_entry *entry = &header->entries[i];
        if (entry->begin != end)
            return stq_error(STQ_CORRUPT, "%s: tensor '%s' begins at offset %" PRIu64 " of the data, %s.", path,
                             entry->name, entry->begin,
                             entry->begin < end ? "inside the tensor before it" : "behind a hole");
        end += entry->bytes;
    }
    if (end != data_bytes)
        return stq_error(STQ_CORRUPT, "%s: the tensors end at offset %" PRIu64 " of %" PRIu64 " bytes of data.", path,
                         end, data_bytes);
    return STQ_OK;
}

static stq_status parse_members(stq_header *header, uint64_t data_bytes, const char *path) {
    const char *name;
    json_t *value;
    json_object_foreach(header->root, name, value) {
        if (strcmp(name, "__metadata__") == 0) {
            STQ_CHECK(parse_metadata(header, value, path));
            continue;
        }
        stq_entry *entry = &header->entries[header->count++];
        *entry = (stq_entry){.name = name};
        STQ_CHECK(parse_entry(entry, value, data_bytes, path));
    }
    qsort(header->entries, header->count, sizeof *header->entries, by_offset);
    return check_layout(header, data_bytes, path);
}

static uint64_t little_endian(const uint8_t *bytes) {
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | bytes[i];
    return value;
}

/* The header's length, without the length field. */
static stq_status check_length(const uint8_t *text, uint64_t file_bytes, const char *path, uint64_t *length) {
    *length = little_endian(text);
    if (*length > STQ_LONGEST_HEADER || *length > file_bytes - STQ_HEADER_LENGTH_BYTES || *length < 2)
        return stq_error(STQ_CORRUPT,
                         "%s: the header has %" PRIu64 " bytes by its length field at offset 0, the file %" PRIu64
                         "; it is cut off or no safetensors file.",
                         path, *length, file_bytes);
    return STQ_OK;
}

/* `text` is the length field and `length` bytes of JSON. */
static stq_status parse_header(stq_header *header, const uint8_t *text, uint64_t length, uint64_t file_bytes,
                               const char *path) {
    if (text[STQ_HEADER_LENGTH_BYTES] != '{')
        return stq_error(STQ_CORRUPT, "%s: no JSON header at offset 8; it is no safetensors file.", path);
    STQ_CHECK(stq_json_parse((const char *)text + STQ_HEADER_LENGTH_BYTES, length, STQ_HEADER_LENGTH_BYTES,
                             stq_json_most_values(file_bytes), path, &header->root));
    header->data_start = STQ_HEADER_LENGTH_BYTES + length;
    size_t members = json_object_size(header->root);
    stq_status status = STQ_OK;
    if (members * sizeof *header->entries > file_bytes + SLACK)
        status = stq_error(STQ_CORRUPT, "%s: %zu tensors are not plausible in a file of %" PRIu64 " bytes.", path,
                           members, file_bytes);
    else if ((header->entries = calloc(members + 1, sizeof *header->entries)) == NULL)
        status = stq_error(STQ_OUT_OF_MEMORY, "No memory for the header of %s.", path);
    if (status == STQ_OK)
        status = parse_members(header, file_bytes - header->data_start, path);
    if (status != STQ_OK)
        stq_header_release(header);
    return status;
}

stq_status stq_header_read(stq_header *header, int descriptor, uint64_t file_bytes, const char *path,
                           const uint64_t *expected, uint64_t *checksum) {
    uint8_t length_field[STQ_HEADER_LENGTH_BYTES];
    uint64_t length;
    *header = (stq_header){0};
    if (file_bytes < sizeof length_field)
        return stq_error(STQ_CORRUPT, "%s has %" PRIu64 " bytes, too few for a safetensors file.", path, file_bytes);
    STQ_CHECK(stq_file_read(descriptor, path, length_field, sizeof length_field, 0));
    STQ_CHECK(check_length(length_field, file_bytes, path, &length));
    uint64_t bytes = length + sizeof length_field;
    uint8_t *text = malloc((size_t)bytes);
    if (text == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the header of %s.", path);
    stq_status status = stq_file_read(descriptor, path, text, bytes, 0);
    if (status == STQ_OK) {
        *checksum = stq_checksum(text, bytes);
        if (expected && *checksum != *expected)
            status = stq_error(STQ_CORRUPT, "%s: the header (offsets 0 to %" PRIu64 ") does not match its checksum.",
                               path, bytes);
    }
    if (status == STQ_OK)
        status = parse_header(header, text, length, file_bytes, path);
    free(text);
    return status;
}

void stq_header_release(stq_header *header) {
    json_decref(header->root);
    free(header->entries);
    *header = (stq_header){0};
}

/* ---- Writing ---- */

static json_t *format_entry(const stq_entry *entry) {
    json_t *shape = json_array();
    for (uint32_t k = 0; k < entry->dimensions; k++)
        json_array_append_new(shape, json_integer(entry->shape[k]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", entry->type, "shape", shape, "data_offsets",
                     (json_int_t)entry->begin, (json_int_t)(entry->begin + entry->bytes));
}

static stq_status build_header(json_t *root, const stq_entry *entries, size_t count, json_t *metadata) {
    if (metadata && json_object_set(root, "__metadata__", metadata) != 0)
        return stq_error(STQ_INVALID_ARGUMENT, "The description of a file is not UTF-8.");
    for (size_t i = 0; i < count; i++) {
        if (!stq_name_is_plain(entries[i].name) || strcmp(entries[i].name, "__metadata__") == 0)
            return stq_error(STQ_INVALID_ARGUMENT,
                             "'%.40s' cannot name an array: use 1 to 1,000 bytes without control characters.",
                             entries[i].name);
        if (json_object_get(root, entries[i].name) != NULL)
            return stq_error(STQ_INVALID_ARGUMENT, "Two arrays are called '%s'.", entries[i].name);
        if (json_object_set_new(root, entries[i].name, format_entry(&entries[i])) != 0)
            return stq_error(STQ_INVALID_ARGUMENT, "The name '%.40s' is not UTF-8.", entries[i].name);
    }
    return STQ_OK;
}

/* Length field and text, padded with spaces so that the data begins at a multiple of 64, much data at a page. */
static stq_status place_header(const char *text, uint64_t data_bytes, char **header, uint64_t *bytes) {
    uint64_t length = strlen(text), alignment = data_bytes < STQ_LARGE_FILE ? STQ_HEADER_ALIGNMENT : STQ_FILE_PAGE;
    uint64_t whole = stq_round_up(STQ_HEADER_LENGTH_BYTES + length, alignment);
    if (whole - STQ_HEADER_LENGTH_BYTES > STQ_LONGEST_HEADER)
        return stq_error(STQ_UNSUPPORTED, "A header of %" PRIu64 " bytes is longer than safetensors files may have.",
                         whole);
    *header = malloc((size_t)whole);
    if (*header == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for a header of %" PRIu64 " bytes.", whole);
    memset(*header, ' ', (size_t)whole);
    for (int i = 0; i < STQ_HEADER_LENGTH_BYTES; i++)
        (*header)[i] = (char)((whole - STQ_HEADER_LENGTH_BYTES) >> (8 * i) & 255);
    memcpy(*header + STQ_HEADER_LENGTH_BYTES, text, (size_t)length);
    *bytes = whole;
    return STQ_OK;
}

stq_status stq_header_format(const stq_entry *entries, size_t count, json_t *metadata, char **header, uint64_t *bytes) {
    *header = NULL;
    json_t *root = json_object();
    if (root == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for a header.");
    stq_status status = build_header(root, entries, count, metadata);
    char *text = status == STQ_OK ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    if (status != STQ_OK)
        return status;
    if (text == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for a header of %zu tensors.", count);
    uint64_t data_bytes = 0;
    for (size_t i = 0; i < count; i++)
        data_bytes += entries[i].bytes;
    status = place_header(text, data_bytes, header, bytes);
    free(text);
    return status;
}
