/* foreign.c - what a safetensors file of another origin tells: its arrays, and the moments of PyTorch's AdamW. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/json.h"
#include "checkpoint/reader.h"
#include "common/error.h"
#include "quant/convert.h"

/* PyTorch's moments of parameter X are state.X.exp_avg and state.X.exp_avg_sq, its step count state.X.step. */
static const char prefix[] = "state.";
static const char first_suffix[] = ".exp_avg";
static const char second_suffix[] = ".exp_avg_sq";
static const char step_suffix[] = ".step";

/* True for state.X<suffix>; X goes to `tensor`. */
static bool is_state(const char *name, const char *suffix, char *tensor, size_t size) {
    size_t length = strlen(name), tail = strlen(suffix), head = sizeof prefix - 1;
    if (length <= head + tail || strncmp(name, prefix, head) != 0 || strcmp(name + length - tail, suffix) != 0 ||
        length - head - tail >= size)
        return false;
    memcpy(tensor, name + head, length - head - tail);
    tensor[length - head - tail] = 0;
    return true;
}

static const stq_entry *find(const stq_header *header, const json_t *places, const char *tensor, const char *suffix) {
    char name[STQ_ENTRY_NAME + 32];
    snprintf(name, sizeof name, "%s%s%s", prefix, tensor, suffix);
    const json_t *place = json_object_get(places, name);
    return place ? &header->entries[json_integer_value(place)] : NULL;
}

static bool is_float(const stq_entry *entry) {
    stq_dtype type;
    return entry && stq_type_dtype(entry->type, &type) && type != STQ_UINT8;
}

/* The number of steps of a tensor: one element, F32 as PyTorch keeps it, or I64. */
static stq_status read_step(const stq_part_file *file, int descriptor, const stq_entry *entry, int64_t *step) {
    union {
        float real;
        int64_t integer;
    } value = {.integer = 0};
    bool is_integer = strcmp(entry->type, "I64") == 0;
    if (entry->bytes != (is_integer ? 8 : 4) || (!is_integer && strcmp(entry->type, "F32") != 0))
        return stq_error(STQ_CORRUPT, "%s: '%s' must be one F32 or I64 number.", file->path, entry->name);
    STQ_CHECK(stq_file_read(descriptor, file->path, &value, entry->bytes, file->header.data_start + entry->begin));
    bool possible = is_integer ? value.integer >= 0 : value.real >= 0 && value.real <= 9e15f;
    *step = is_integer ? value.integer : possible ? (int64_t)value.real : 0;
    if (!possible || *step > (INT64_C(1) << 53))
        return stq_error(STQ_CORRUPT, "%s: '%s' is no number of steps.", file->path, entry->name);
    return STQ_OK;
}

static void fold_shape(const stq_entry *entry, int64_t *rows, int64_t *cols) {
    int64_t elements = stq_shape_elements(entry->dimensions, entry->shape);
    *rows = entry->dimensions >= 2 ? entry->shape[0] : 1;
    *cols = *rows > 0 ? elements / *rows : 0;
}

/* What is being made. */
typedef struct making {
    stq_part_file *file;
    int descriptor;
    json_t *places; /* entry name -> place in the header */
    json_t *arrays;
    json_t *tensors;
    int64_t steps; /* the most of any tensor */
} making;

/* A tensor of the document, with what a file of another origin cannot tell left at its beginning. */
static json_t *format_tensor(const char *name, const stq_entry *entry, int64_t step) {
    int64_t rows, cols;
    fold_shape(entry, &rows, &cols);
    int bits = step > 0 ? 32 : 0;
    return json_pack("{s:s, s:I, s:I, s:i, s:I, s:i, s:[i, i], s:i, s:[i, i], s:[i, i], s:[i, i], s:s, s:n, s:I, "
                     "s:{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}}",
                     "name", name, "rows", (json_int_t)rows, "cols", (json_int_t)cols, "first", 0, "count",
                     (json_int_t)(rows * cols), "group", 0, "given", 0, 0, "depth", 0, "bits", bits, bits, "target", 32,
                     32, "asked", 0, 0, "zone", "exempt", "last_log_n", "missed", (json_int_t)step, "factors", "n", 0,
                     "r", 0, "sharpness", 0, "kurtosis", 0, "row_spread", 0, "near_zero", 0, "volatility", 0, "depth",
                     0);
}

static stq_status add_tensor(making *m, const char *name, const stq_entry *first) {
    const stq_header *header = &m->file->header;
    const stq_entry *second = find(header, m->places, name, second_suffix);
    const stq_entry *count = find(header, m->places, name, step_suffix);
    int64_t step = 0;
    if (!is_float(first) || !is_float(second) ||
        second->bytes / stq_type_bytes(second->type) != first->bytes / stq_type_bytes(first->type) || first->bytes == 0)
        return stq_error(STQ_CORRUPT, "%s: '%s' needs an exp_avg and an exp_avg_sq of the same floats.", m->file->path,
                         name);
    if (count)
        STQ_CHECK(read_step(m->file, m->descriptor, count, &step));
    else
        return stq_error(STQ_CORRUPT, "%s: 'state.%s.step', the number of steps, is missing.", m->file->path, name);
    m->steps = step > m->steps ? step : m->steps;
    return json_array_append_new(m->tensors, format_tensor(name, first, step)) == 0
               ? STQ_OK
               : stq_error(STQ_OUT_OF_MEMORY, "No memory for the description of %s.", m->file->path);
}

static stq_status add_entry(making *m, const stq_entry *entry) {
    char tensor[STQ_ENTRY_NAME];
    if (is_state(entry->name, first_suffix, tensor, sizeof tensor))
        return add_tensor(m, tensor, entry);
    if (is_state(entry->name, second_suffix, tensor, sizeof tensor) ||
        is_state(entry->name, step_suffix, tensor, sizeof tensor) || !is_float(entry))
        return STQ_OK;
    json_t *shape = json_array();
    for (uint32_t k = 0; k < entry->dimensions; k++)
        json_array_append_new(shape, json_integer(entry->shape[k]));
    int64_t elements = (int64_t)(entry->bytes / stq_type_bytes(entry->type));
    json_t *array = json_pack("{s:s, s:s, s:o, s:i, s:I}", "name", entry->name, "dtype", entry->type, "shape", shape,
                              "first", 0, "count", (json_int_t)elements);
    return json_array_append_new(m->arrays, array) == 0
               ? STQ_OK
               : stq_error(STQ_OUT_OF_MEMORY, "No memory for the description of %s.", m->file->path);
}

/* The number of steps that a tensor made becomes the number that it missed. */
static void count_missed(const making *m) {
    for (size_t i = 0; i < json_array_size(m->tensors); i++) {
        json_t *tensor = json_array_get(m->tensors, i);
        json_int_t made = json_integer_value(json_object_get(tensor, "missed"));
        json_object_set_new(tensor, "missed", json_integer(m->steps - made));
    }
}

static char *format_document(const making *m) {
    json_t *root =
        json_pack("{s:i, s:I, s:i, s:i, s:s, s:O, s:{}, s:{}}", "format_version", 1, "step", (json_int_t)m->steps,
                  "rank", 0, "ranks", 1, "run", "0000000000000000", "arrays", m->arrays, "application", "checksums");
    if (root && json_array_size(m->tensors) > 0) {
        /* 32 bits were spent on every value at every step so far. */
        json_object_set_new(root, "optimizer",
                            json_pack("{s:I, s:i, s:s, s:i, s:f, s:i, s:i, s:i, s:i, s:i, s:n, s:n, s:n, s:n, s:i}",
                                      "steps", (json_int_t)m->steps, "skipped", 0, "seed", "0000000000000000",
                                      "peak_bytes", 0, "bits_sum", 32.0 * (double)m->steps, "decisions", 0, "forced", 0,
                                      "last_step", 0, "last_bytes", 0, "spent", 0, "log_n_average", "log_r_average",
                                      "log_n_peak", "volatility_average", "reheating", 0));
        json_object_set_new(root, "groups",
                            json_pack("[{s:f, s:f, s:f, s:f, s:f}]", "learning_rate", 1e-3, "beta1", 0.9, "beta2",
                                      0.999, "epsilon", 1e-8, "weight_decay", 0.01));
        json_object_set(root, "tensors", m->tensors);
    }
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return text;
}

static stq_status list_places(making *m) {
    for (size_t i = 0; i < m->file->header.count; i++)
        if (json_object_set_new(m->places, m->file->header.entries[i].name, json_integer((json_int_t)i)) != 0)
            return stq_error(STQ_OUT_OF_MEMORY, "No memory for the entries of %s.", m->file->path);
    return STQ_OK;
}

stq_status stq_foreign_document(stq_part_file *file, int descriptor) {
    making m = {.file = file,
                .descriptor = descriptor,
                .places = json_object(),
                .arrays = json_array(),
                .tensors = json_array()};
    stq_status status = m.places && m.arrays && m.tensors
                            ? list_places(&m)
                            : stq_error(STQ_OUT_OF_MEMORY, "No memory for the description of %s.", file->path);
    for (size_t i = 0; status == STQ_OK && i < file->header.count; i++)
        status = add_entry(&m, &file->header.entries[i]);
    if (status == STQ_OK) {
        count_missed(&m);
        char *text = format_document(&m);
        /* The description is longer than what it was made from. */
        status = text ? stq_document_parse(&file->document, text, UINT64_C(64) * strlen(text) + file->bytes, file->path)
                      : stq_error(STQ_OUT_OF_MEMORY, "No memory for the description of %s.", file->path);
        free(text);
    }
    json_decref(m.places);
    json_decref(m.arrays);
    json_decref(m.tensors);
    return status;
}
