/* json.c - strict JSON over jansson. */
#include "checkpoint/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/error.h"

/* Counts values and depth without building anything. What is not JSON comes out wrong here and fails in the parser. */
static void scan(const char *text, uint64_t bytes, uint64_t *values, int *deepest) {
    int depth = 0;
    bool in_string = false;
    *values = 1;
    *deepest = 0;
    for (uint64_t i = 0; i < bytes && *deepest <= STQ_JSON_DEPTH; i++) {
        char c = text[i];
        if (in_string) {
            i += c == '\\';
            in_string = c != '"';
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            depth++;
            ++*values;
        } else if (c == '}' || c == ']') {
            depth--;
        } else if (c == ',' || c == ':') {
            ++*values;
        }
        *deepest = depth > *deepest ? depth : *deepest;
    }
}

uint64_t stq_json_most_values(uint64_t file_bytes) { return (UINT64_C(1) << 16) + file_bytes / 32; }

stq_status stq_json_parse(const char *text, uint64_t bytes, uint64_t offset, uint64_t most_values, const char *what,
                          json_t **object) {
    uint64_t values;
    int depth;
    *object = NULL;
    scan(text, bytes, &values, &depth);
    if (depth > STQ_JSON_DEPTH)
        return stq_error(STQ_CORRUPT, "%s: JSON nested deeper than %d levels.", what, STQ_JSON_DEPTH);
    if (values > most_values)
        return stq_error(STQ_CORRUPT, "%s: JSON of more than %llu values, too many for a file of this size.", what,
                         (unsigned long long)most_values);
    json_error_t error;
    json_t *root = json_loadb(text, (size_t)bytes, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL)
        return stq_error(STQ_CORRUPT, "%s: not valid JSON at offset %" PRIu64 ": %s.", what,
                         offset + (uint64_t)(error.position > 0 ? error.position : 0), error.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return stq_error(STQ_CORRUPT, "%s: a JSON object is expected.", what);
    }
    *object = root;
    return STQ_OK;
}

static stq_status wrong(const char *what, const char *key, const char *expected) {
    return stq_error(STQ_CORRUPT, "%s: \"%s\" must be %s.", what, key, expected);
}

stq_status stq_json_integer(const json_t *object, const char *key, int64_t least, int64_t most, const char *what,
                            int64_t *value) {
    const json_t *member = json_object_get(object, key);
    json_int_t number = json_integer_value(member);
    if (!json_is_integer(member) || number < least || number > most)
        return stq_error(STQ_CORRUPT, "%s: \"%s\" must be a whole number from %lld to %lld.", what, key,
                         (long long)least, (long long)most);
    *value = number;
    return STQ_OK;
}

stq_status stq_json_real(const json_t *object, const char *key, const char *what, double *value) {
    const json_t *member = json_object_get(object, key);
    if (!json_is_number(member) && !json_is_null(member))
        return wrong(what, key, "a number or null");
    *value = json_is_null(member) ? NAN : json_number_value(member);
    return STQ_OK;
}

stq_status stq_json_string(const json_t *object, const char *key, const char *what, const char **value) {
    *value = json_string_value(json_object_get(object, key));
    return *value ? STQ_OK : wrong(what, key, "a string");
}

bool stq_parse_word(const char *text, uint64_t *value) {
    if (strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16)
        return false;
    *value = 0;
    for (; *text; text++)
        *value = *value << 4 | (uint64_t)(*text <= '9' ? *text - '0' : *text - 'a' + 10);
    return true;
}

stq_status stq_json_word(const json_t *object, const char *key, const char *what, uint64_t *value) {
    const char *text = json_string_value(json_object_get(object, key));
    return text && stq_parse_word(text, value) ? STQ_OK : wrong(what, key, "a string of 16 hexadecimal digits");
}

stq_status stq_json_array(const json_t *object, const char *key, size_t least, size_t most, const char *what,
                          json_t **value) {
    *value = json_object_get(object, key);
    if (!json_is_array(*value) || json_array_size(*value) < least || json_array_size(*value) > most)
        return stq_error(STQ_CORRUPT, "%s: \"%s\" must be a list of %zu to %zu values.", what, key, least, most);
    return STQ_OK;
}

json_t *stq_json_from_real(double value) { return isfinite(value) ? json_real(value) : json_null(); }

json_t *stq_json_from_word(uint64_t value) {
    char text[17];
    snprintf(text, sizeof text, "%016" PRIx64, value);
    return json_string(text);
}
