/* json.h - JSON from files that are not trusted, and typed access that says what is wrong. */
#ifndef STQ_JSON_H
#define STQ_JSON_H

#include <jansson.h>
#include <stquant/base.h>

/* Deepest nesting that is read. */
enum { STQ_JSON_DEPTH = 32 };

/*
 * Parses an object. Refused as STQ_CORRUPT, before memory is spent on it: nesting deeper than STQ_JSON_DEPTH, and more
 * values than `most_values`; then: anything that is not JSON, duplicate keys, a value that is no object. `what` names
 * the text in messages, which count offsets from `offset` on: where the text begins in its file.
 */
stq_status stq_json_parse(const char *text, uint64_t bytes, uint64_t offset, uint64_t most_values, const char *what,
                          json_t **object);

/*
 * Most values that the JSON of a file of `file_bytes` may have. A value of two bytes of text costs up to a hundred
 * bytes of memory; real headers have one value for 32 bytes of the file or far less.
 */
uint64_t stq_json_most_values(uint64_t file_bytes);

/* Members of an object. `what` names the object in messages; a missing member or one of another kind is STQ_CORRUPT. */
stq_status stq_json_integer(const json_t *object, const char *key, int64_t least, int64_t most, const char *what,
                            int64_t *value);
stq_status stq_json_real(const json_t *object, const char *key, const char *what, double *value); /* null = NaN */
stq_status stq_json_string(const json_t *object, const char *key, const char *what, const char **value);
stq_status stq_json_word(const json_t *object, const char *key, const char *what, uint64_t *value); /* 16 hex digits */
stq_status stq_json_array(const json_t *object, const char *key, size_t least, size_t most, const char *what,
                          json_t **value);

/* The same the other way. */
json_t *stq_json_from_real(double value); /* NaN = null */
json_t *stq_json_from_word(uint64_t value);

/* 16 lower-case hexadecimal digits, exactly. */
bool stq_parse_word(const char *text, uint64_t *value);

#endif
