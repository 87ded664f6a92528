/* document.c - the description of a part, to JSON and back. */
#include "checkpoint/document.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"
#include "common/error.h"
#include "quant/shared.h"

int64_t stq_shape_elements(uint32_t dimensions, const int64_t *shape) {
    int64_t elements = 1;
    for (uint32_t k = 0; k < dimensions; k++)
        elements *= shape[k];
    return elements;
}

bool stq_array_entry_name(const stq_array *array, char *name, size_t size) {
    bool whole = array->first == 0 && array->count == stq_shape_elements(array->dimensions, array->shape);
    int length = whole ? snprintf(name, size, "%s", array->name)
                       : snprintf(name, size, "%s@%" PRId64, array->name, array->first);
    return length >= 0 && (size_t)length < size;
}

bool stq_state_entry_name(const stq_tensor *tensor, const char *part, char *name, size_t size) {
    bool whole = tensor->first == 0 && tensor->count == tensor->rows * tensor->cols;
    int length = whole ? snprintf(name, size, "state.%s.%s", tensor->name, part)
                       : snprintf(name, size, "state.%s.%s@%" PRId64, tensor->name, part, tensor->first);
    return length >= 0 && (size_t)length < size;
}

/* ---- The members of a record, by name: one table for both directions ---- */

typedef enum member_kind { MEMBER_INTEGER, MEMBER_WORD, MEMBER_REAL } member_kind;

typedef struct member {
    const char *name;
    member_kind kind;
    size_t offset;
} member;

#define RECORD(NAME, KIND) \
    { #NAME, KIND, offsetof(stq_adamw_record, NAME) }
static const member record_members[] = {
    RECORD(steps, MEMBER_INTEGER),      RECORD(skipped, MEMBER_INTEGER),         RECORD(seed, MEMBER_WORD),
    RECORD(peak_bytes, MEMBER_INTEGER), RECORD(bits_sum, MEMBER_REAL),           RECORD(decisions, MEMBER_INTEGER),
    RECORD(forced, MEMBER_INTEGER),     RECORD(last_step, MEMBER_INTEGER),       RECORD(last_bytes, MEMBER_INTEGER),
    RECORD(spent, MEMBER_REAL),         RECORD(log_n_average, MEMBER_REAL),      RECORD(log_r_average, MEMBER_REAL),
    RECORD(log_n_peak, MEMBER_REAL),    RECORD(volatility_average, MEMBER_REAL), RECORD(reheating, MEMBER_REAL),
};
#define FACTOR(NAME) \
    { #NAME, MEMBER_REAL, offsetof(stq_factors, NAME) }
static const member factor_members[] = {
    FACTOR(n),          FACTOR(r),         FACTOR(sharpness),  FACTOR(kurtosis),
    FACTOR(row_spread), FACTOR(near_zero), FACTOR(volatility), FACTOR(depth),
};
#define GROUP(NAME) \
    { #NAME, MEMBER_REAL, offsetof(stq_adamw_group, NAME) }
static const member group_members[] = {
    GROUP(learning_rate), GROUP(beta1), GROUP(beta2), GROUP(epsilon), GROUP(weight_decay),
};
#define COUNT(members) (sizeof(members) / sizeof *(members))

static json_t *format_members(const member *members, size_t count, const void *values) {
    json_t *object = json_object();
    for (size_t i = 0; i < count; i++) {
        const uint8_t *at = (const uint8_t *)values + members[i].offset;
        int64_t integer;
        double real;
        memcpy(&integer, at, sizeof integer);
        memcpy(&real, at, sizeof real);
        json_object_set_new(object, members[i].name,
                            members[i].kind == MEMBER_REAL   ? stq_json_from_real(real)
                            : members[i].kind == MEMBER_WORD ? stq_json_from_word((uint64_t)integer)
                                                             : json_integer(integer));
    }
    return object;
}

static stq_status parse_members(const member *members, size_t count, const json_t *object, const char *what,
                                void *values) {
    for (size_t i = 0; i < count; i++) {
        uint8_t *at = (uint8_t *)values + members[i].offset;
        if (members[i].kind == MEMBER_REAL) {
            double real;
            STQ_CHECK(stq_json_real(object, members[i].name, what, &real));
            memcpy(at, &real, sizeof real);
        } else if (members[i].kind == MEMBER_WORD) {
            uint64_t word;
            STQ_CHECK(stq_json_word(object, members[i].name, what, &word));
            memcpy(at, &word, sizeof word);
        } else {
            int64_t integer;
            STQ_CHECK(stq_json_integer(object, members[i].name, 0, INT64_MAX, what, &integer));
            memcpy(at, &integer, sizeof integer);
        }
    }
    return STQ_OK;
}

/* Members that are written only where they are not 0. */
static stq_status parse_optional(const json_t *object, const char *name, int64_t most, const char *what,
                                 int64_t *value) {
    *value = 0;
    return json_object_get(object, name) ? stq_json_integer(object, name, 0, most, what, value) : STQ_OK;
}

/* ---- Writing ---- */

static json_t *pair(const uint8_t values[2]) { return json_pack("[i, i]", (int)values[0], (int)values[1]); }

static json_t *format_tensor(const stq_saved_tensor *saved) {
    const stq_tensor *tensor = &saved->tensor;
    const stq_tensor_record *record = &saved->record;
    json_t *object = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:[i, i], s:f}", "name", tensor->name, "rows", (json_int_t)tensor->rows, "cols",
        (json_int_t)tensor->cols, "first", (json_int_t)tensor->first, "count", (json_int_t)tensor->count, "group",
        (json_int_t)tensor->group, "given", (int)tensor->m_bits, (int)tensor->v_bits, "depth", (double)tensor->depth);
    json_object_set_new(object, "bits", pair(record->bits));
    json_object_set_new(object, "target", pair(record->target));
    json_object_set_new(object, "asked", pair(record->asked));
    if (record->sharing != 0)
        json_object_set_new(object, "sharing", json_integer(record->sharing));
    json_object_set_new(object, "missed", json_integer(record->missed));
    json_object_set_new(object, "zone", json_string(stq_zone_name((stq_zone)record->zone)));
    json_object_set_new(object, "last_log_n", stq_json_from_real(record->last_log_n));
    json_object_set_new(object, "factors", format_members(factor_members, COUNT(factor_members), &record->factors));
    return object;
}

static json_t *format_array(const stq_array *array) {
    json_t *shape = json_array();
    for (uint32_t k = 0; k < array->dimensions; k++)
        json_array_append_new(shape, json_integer(array->shape[k]));
    return json_pack("{s:s, s:s, s:o, s:I, s:I}", "name", array->name, "dtype", stq_type_name(array->type), "shape",
                     shape, "first", (json_int_t)array->first, "count", (json_int_t)array->count);
}

static const char *const policy_names[] = {"float32", "fixed", "zones", "rate-distortion"};

static json_t *format_policy(const stq_policy_config *policy) {
    return json_pack("{s:s, s:f, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "kind", policy_names[policy->kind],
                     "state_bits", policy->state_bits, "cap_bytes", (json_int_t)policy->cap_bytes, "cap_mode",
                     policy->cap_mode == STQ_CAP_PEAK ? "peak" : "mean", "fixed_m_bits",
                     (json_int_t)policy->fixed_m_bits, "fixed_v_bits", (json_int_t)policy->fixed_v_bits, "lowest_bits",
                     (json_int_t)policy->lowest_bits, "highest_bits", (json_int_t)policy->highest_bits, "decide_every",
                     (json_int_t)policy->decide_every, "planned_steps", (json_int_t)policy->planned_steps, "annealing",
                     policy->annealing);
}

static void format_optimizer(const stq_document *document, const stq_policy_config *policy, json_t *root) {
    json_t *optimizer = format_members(record_members, COUNT(record_members), &document->record);
    if (document->record.pending != 0)
        json_object_set_new(optimizer, "pending", json_integer(document->record.pending));
    json_object_set_new(root, "optimizer", optimizer);
    json_t *groups = json_array(), *tensors = json_array();
    for (size_t i = 0; i < document->group_count; i++)
        json_array_append_new(groups, format_members(group_members, COUNT(group_members), &document->groups[i]));
    for (size_t i = 0; i < document->tensor_count; i++)
        json_array_append_new(tensors, format_tensor(&document->tensors[i]));
    if (policy)
        json_object_set_new(root, "policy", format_policy(policy));
    json_object_set_new(root, "groups", groups);
    if (json_object_set_new(root, "tensors", tensors) != 0)
        json_object_del(root, "tensors");
}

stq_status stq_document_format(const stq_document *document, const stq_policy_config *policy, json_t **root) {
    *root = json_pack("{s:i, s:s, s:I, s:i, s:i, s:o}", "format_version", STQ_FORMAT_VERSION, "library", stq_version(),
                      "step", (json_int_t)document->step, "rank", (int)document->rank, "ranks", (int)document->ranks,
                      "run", stq_json_from_word(document->run));
    if (*root == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the description of a checkpoint.");
    if (document->tensor_count > 0)
        format_optimizer(document, policy, *root);
    json_t *arrays = json_array();
    for (size_t i = 0; i < document->array_count; i++)
        json_array_append_new(arrays, format_array(&document->arrays[i]));
    json_object_set_new(*root, "arrays", arrays);
    json_object_set_new(*root, "application",
                        document->application ? json_incref(document->application) : json_object());
    json_object_set_new(*root, "checksums", json_object());
    bool whole = json_array_size(json_object_get(*root, "arrays")) == document->array_count &&
                 json_array_size(json_object_get(*root, "tensors")) == document->tensor_count;
    if (whole)
        return STQ_OK;
    json_decref(*root);
    *root = NULL;
    return stq_error(STQ_INVALID_ARGUMENT, "A name of an array or tensor is not UTF-8, or memory has run out.");
}

/* ---- Reading ---- */

static stq_status parse_pair(const json_t *object, const char *key, const char *what, uint8_t values[2]) {
    json_t *list;
    STQ_CHECK(stq_json_array(object, key, 2, 2, what, &list));
    for (size_t k = 0; k < 2; k++) {
        const json_t *value = json_array_get(list, k);
        if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > 255)
            return stq_error(STQ_CORRUPT, "%s: \"%s\" must be two numbers from 0 to 255.", what, key);
        values[k] = (uint8_t)json_integer_value(value);
    }
    return STQ_OK;
}

static stq_status parse_zone(const json_t *object, const char *what, uint8_t *zone) {
    const char *name;
    STQ_CHECK(stq_json_string(object, "zone", what, &name));
    for (int k = 0; k <= STQ_ZONE_REDUNDANT; k++)
        if (strcmp(stq_zone_name((stq_zone)k), name) == 0) {
            *zone = (uint8_t)k;
            return STQ_OK;
        }
    return stq_error(STQ_CORRUPT, "%s: there is no zone '%.20s'.", what, name);
}

static stq_status parse_slice(const json_t *object, int64_t elements, const char *what, int64_t *first,
                              int64_t *count) {
    STQ_CHECK(stq_json_integer(object, "first", 0, elements, what, first));
    return stq_json_integer(object, "count", 0, elements - *first, what, count);
}

static stq_status parse_record(const json_t *object, const char *what, stq_tensor_record *record) {
    STQ_CHECK(parse_pair(object, "bits", what, record->bits));
    STQ_CHECK(parse_pair(object, "target", what, record->target));
    STQ_CHECK(parse_pair(object, "asked", what, record->asked));
    int64_t sharing;
    STQ_CHECK(parse_optional(object, "sharing", 31, what, &sharing));
    record->sharing = (uint8_t)sharing;
    STQ_CHECK(stq_json_integer(object, "missed", 0, INT64_MAX, what, &record->missed));
    STQ_CHECK(parse_zone(object, what, &record->zone));
    STQ_CHECK(stq_json_real(object, "last_log_n", what, &record->last_log_n));
    for (int state = 0; state < 2; state++)
        if (record->bits[state] != 0 && stq_plane_count(record->bits[state]) == 0 &&
            !(state == STQ_SECOND_MOMENT && stq_is_shared(record->bits[state])))
            return stq_error(STQ_CORRUPT, "%s: there is no width of %u bits.", what, record->bits[state]);
    if ((record->bits[0] == 0) != (record->bits[1] == 0))
        return stq_error(STQ_CORRUPT, "%s: one moment has a width, the other has none.", what);
    return parse_members(factor_members, COUNT(factor_members), json_object_get(object, "factors"), what,
                         &record->factors);
}

/* Where in a file something is, for messages. */
typedef struct place {
    char text[256];
} place;

static const char *locate(place *where, const char *file, const char *list, size_t index, const char *name) {
    snprintf(where->text, sizeof where->text, "%.120s: %s %zu '%.80s'", file, list, index, name ? name : "");
    return where->text;
}

static stq_status parse_tensor(const stq_document *document, size_t index, const json_t *object, const char *file,
                               stq_saved_tensor *saved) {
    stq_tensor *tensor = &saved->tensor;
    place where;
    int64_t group;
    uint8_t given[2];
    double depth;
    const char *what = locate(&where, file, "tensor", index, json_string_value(json_object_get(object, "name")));
    STQ_CHECK(stq_json_string(object, "name", what, &tensor->name));
    if (!stq_name_is_plain(tensor->name))
        return stq_error(STQ_CORRUPT, "%s: its name is empty, too long or has control characters.", what);
    STQ_CHECK(stq_json_integer(object, "rows", 1, STQ_MOST_ELEMENTS, what, &tensor->rows));
    STQ_CHECK(stq_json_integer(object, "cols", 1, STQ_MOST_ELEMENTS / tensor->rows, what, &tensor->cols));
    STQ_CHECK(parse_slice(object, tensor->rows * tensor->cols, what, &tensor->first, &tensor->count));
    STQ_CHECK(stq_json_integer(object, "group", 0, (int64_t)document->group_count - 1, what, &group));
    STQ_CHECK(parse_pair(object, "given", what, given));
    STQ_CHECK(stq_json_real(object, "depth", what, &depth));
    tensor->group = (uint32_t)group;
    tensor->m_bits = given[0];
    tensor->v_bits = given[1];
    tensor->depth = depth >= 0 && depth <= 1 ? (float)depth : 0.0f;
    return parse_record(object, what, &saved->record);
}

static stq_status parse_array(size_t index, const json_t *object, const char *file, stq_array *array) {
    place where;
    const char *type;
    json_t *shape;
    const char *what = locate(&where, file, "array", index, json_string_value(json_object_get(object, "name")));
    STQ_CHECK(stq_json_string(object, "name", what, &array->name));
    if (!stq_name_is_plain(array->name))
        return stq_error(STQ_CORRUPT, "%s: its name is empty, too long or has control characters.", what);
    STQ_CHECK(stq_json_string(object, "dtype", what, &type));
    if (!stq_type_dtype(type, &array->type))
        return stq_error(STQ_CORRUPT, "%s: the dtype must be F32, BF16, F16 or U8.", what);
    STQ_CHECK(stq_json_array(object, "shape", 0, STQ_DIMENSIONS, what, &shape));
    array->dimensions = (uint32_t)json_array_size(shape);
    int64_t elements = 1;
    for (uint32_t k = 0; k < array->dimensions; k++) {
        const json_t *size = json_array_get(shape, k);
        json_int_t value = json_integer_value(size);
        if (!json_is_integer(size) || value < 0 || value > STQ_MOST_ELEMENTS ||
            (value > 0 && elements > STQ_MOST_ELEMENTS / value))
            return stq_error(STQ_CORRUPT, "%s: its shape is not that of an array of at most 2^38 elements.", what);
        array->shape[k] = value;
        elements *= value;
    }
    return parse_slice(object, elements, what, &array->first, &array->count);
}

/* A list in fresh memory of `size` bytes an element, no more than the file has. */
static stq_status parse_list(const json_t *root, const char *key, size_t size, uint64_t file_bytes, const char *what,
                             json_t **list, void **memory, size_t *count) {
    STQ_CHECK(stq_json_array(root, key, 0, (size_t)(file_bytes / size) + 1, what, list));
    *count = json_array_size(*list);
    *memory = calloc(*count + 1, size);
    return *memory ? STQ_OK : stq_error(STQ_OUT_OF_MEMORY, "No memory for the description in %s.", what);
}

static stq_status parse_optimizer(stq_document *document, uint64_t file_bytes, const char *what) {
    json_t *list, *optimizer = json_object_get(document->root, "optimizer");
    size_t count;
    void *memory;
    if (optimizer == NULL)
        return STQ_OK;
    document->record.version = STQ_RECORD_VERSION;
    STQ_CHECK(parse_members(record_members, COUNT(record_members), optimizer, what, &document->record));
    int64_t pending;
    STQ_CHECK(parse_optional(optimizer, "pending", UINT32_MAX, what, &pending));
    document->record.pending = (uint32_t)pending;
    STQ_CHECK(parse_list(document->root, "groups", sizeof *document->groups, file_bytes, what, &list, &memory, &count));
    document->groups = memory;
    document->group_count = count;
    for (size_t i = 0; i < count; i++)
        STQ_CHECK(
            parse_members(group_members, COUNT(group_members), json_array_get(list, i), what, &document->groups[i]));
    STQ_CHECK(
        parse_list(document->root, "tensors", sizeof *document->tensors, file_bytes, what, &list, &memory, &count));
    document->tensors = memory;
    for (size_t i = 0; i < count; i++)
        STQ_CHECK(parse_tensor(document, i, json_array_get(list, i), what, &document->tensors[i]));
    document->tensor_count = count;
    return STQ_OK;
}

static stq_status parse_arrays(stq_document *document, uint64_t file_bytes, const char *what) {
    json_t *list;
    void *memory;
    size_t count;
    STQ_CHECK(parse_list(document->root, "arrays", sizeof *document->arrays, file_bytes, what, &list, &memory, &count));
    document->arrays = memory;
    for (size_t i = 0; i < count; i++)
        STQ_CHECK(parse_array(i, json_array_get(list, i), what, &document->arrays[i]));
    document->array_count = count;
    return STQ_OK;
}

static stq_status parse_root(stq_document *document, uint64_t file_bytes, const char *what) {
    const json_t *root = document->root;
    int64_t version, ranks, rank;
    STQ_CHECK(stq_json_integer(root, "format_version", 1, INT32_MAX, what, &version));
    if (version > STQ_FORMAT_VERSION)
        return stq_error(STQ_UNSUPPORTED, "%s has format version %lld; this library reads up to %d. Use a newer one.",
                         what, (long long)version, STQ_FORMAT_VERSION);
    STQ_CHECK(stq_json_integer(root, "step", 0, INT64_MAX, what, &document->step));
    STQ_CHECK(stq_json_integer(root, "ranks", 1, 1000000, what, &ranks));
    STQ_CHECK(stq_json_integer(root, "rank", 0, ranks - 1, what, &rank));
    STQ_CHECK(stq_json_word(root, "run", what, &document->run));
    document->format_version = (uint32_t)version;
    document->ranks = (uint32_t)ranks;
    document->rank = (uint32_t)rank;
    document->application = json_object_get(root, "application");
    document->checksums = json_object_get(root, "checksums");
    if (!json_is_object(document->application) || !json_is_object(document->checksums))
        return stq_error(STQ_CORRUPT, "%s: \"application\" and \"checksums\" must be objects.", what);
    STQ_CHECK(parse_optimizer(document, file_bytes, what));
    return parse_arrays(document, file_bytes, what);
}

stq_status stq_document_parse(stq_document *document, const char *text, uint64_t file_bytes, const char *what) {
    *document = (stq_document){0};
    place where;
    snprintf(where.text, sizeof where.text, "%.200s: the description in the header", what);
    STQ_CHECK(stq_json_parse(text, strlen(text), 0, stq_json_most_values(file_bytes), where.text, &document->root));
    stq_status status = parse_root(document, file_bytes, what);
    if (status != STQ_OK)
        stq_document_release(document);
    return status;
}

void stq_document_release(stq_document *document) {
    json_decref(document->root);
    free(document->groups);
    free(document->tensors);
    free(document->arrays);
    *document = (stq_document){0};
}
