#include "train/merges.h"

#include <stdlib.h>
#include <string.h>

#include "train/utf8.h"

// Characters that GPT-2's merges file writes as themselves; the other 68 bytes are written as the
// characters 256, 257, ... so that no line holds white space or control characters.
static int is_printable(uint32_t character) {
    return (character >= 33 && character <= 126) || (character >= 161 && character <= 172) ||
           (character >= 174 && character <= 255);
}

uint32_t merges_token_of_byte(uint8_t byte) {
    if (is_printable(byte)) {
        return byte <= 126 ? byte - 33u : byte <= 172 ? byte - 161u + 94u : byte - 174u + 106u;
    }
    return 188u + (byte <= 32 ? byte : byte <= 160 ? byte - 127u + 33u : 67u);
}

// The byte that a character of the file stands for, or -1.
static int byte_of_character(uint32_t character) {
    if (is_printable(character)) {
        return (int)character;
    }
    if (character < 256 || character >= 256 + 68) {
        return -1;
    }
    uint32_t rank = character - 256;
    return (int)(rank <= 32 ? rank : rank < 67 ? rank - 33 + 127 : 173);
}

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 32)) * 0x9e3779b97f4a7c15u;
    return x ^ (x >> 29);
}

static uint32_t pair_slot(const struct merge_table *table, uint32_t left, uint32_t right) {
    return (uint32_t)(mix((uint64_t)left << 32 | right) & (table->slots - 1));
}

int32_t merges_find(const struct merge_table *table, uint32_t left, uint32_t right) {
    for (uint32_t slot = pair_slot(table, left, right);; slot = (slot + 1) & (table->slots - 1)) {
        const int32_t index = table->pair_slots[slot];
        if (index == NO_MERGE || (table->merges[index].left == left && table->merges[index].right == right)) {
            return index;
        }
    }
}

static const uint8_t *token_bytes(const struct merge_table *table, uint32_t token, size_t *count) {
    *count = table->starts[token + 1] - table->starts[token];
    return table->bytes + table->starts[token];
}

// The slot that holds the token of these bytes, or the empty one where it belongs.
static uint32_t string_slot(const struct merge_table *table, const uint8_t *bytes, size_t count) {
    uint64_t hash = count;
    for (size_t i = 0; i < count; i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    }
    for (uint32_t slot = (uint32_t)(mix(hash) & (table->slots - 1));; slot = (slot + 1) & (table->slots - 1)) {
        size_t other_count = 0;
        if (table->string_slots[slot] < 0) {
            return slot;
        }
        const uint8_t *other = token_bytes(table, (uint32_t)table->string_slots[slot], &other_count);
        if (other_count == count && memcmp(other, bytes, count) == 0) {
            return slot;
        }
    }
}

static enum app_status out_of_memory(const char *name) {
    return app_fail(APP_FAILED, "There is no memory for the merges of %s.", name);
}

// Makes room for `more` bytes of tokens.
static enum app_status reserve_bytes(struct merge_table *table, const char *name, size_t more) {
    const size_t used = table->starts[TOKENIZER_BYTES + table->count], limit = (size_t)1 << 30;
    if (more > limit - used) {
        return app_fail(APP_FAILED, "The tokens of %s take more than a gibibyte; it is no usable list of merges.",
                        name);
    }
    if (used + more > table->bytes_capacity) {
        size_t capacity = 2 * (used + more);
        uint8_t *bytes = realloc(table->bytes, capacity);
        if (!bytes) {
            return out_of_memory(name);
        }
        table->bytes = bytes;
        table->bytes_capacity = capacity;
    }
    return APP_OK;
}

// Allocates for up to `capacity` merges and enters the 256 bytes.
static enum app_status begin(struct merge_table *table, const char *name, int64_t capacity) {
    *table = (struct merge_table){.capacity = capacity, .slots = 1024};
    while (table->slots < 2 * (TOKENIZER_BYTES + capacity)) {
        table->slots *= 2;
    }
    table->merges = calloc((size_t)capacity + 1, sizeof(*table->merges));
    table->pair_slots = malloc(table->slots * sizeof(*table->pair_slots));
    table->string_slots = malloc(table->slots * sizeof(*table->string_slots));
    table->starts = calloc(TOKENIZER_BYTES + (size_t)capacity + 1, sizeof(*table->starts));
    table->bytes_capacity = 4096;
    table->bytes = malloc(table->bytes_capacity);
    if (!table->merges || !table->pair_slots || !table->string_slots || !table->starts || !table->bytes) {
        merges_release(table);
        return out_of_memory(name);
    }
    memset(table->pair_slots, 0xff, table->slots * sizeof(*table->pair_slots));
    memset(table->string_slots, 0xff, table->slots * sizeof(*table->string_slots));
    for (uint32_t i = 0; i <= TOKENIZER_BYTES; i++) {
        table->starts[i] = i;
    }
    for (int byte = 0; byte < TOKENIZER_BYTES; byte++) {
        table->bytes[merges_token_of_byte((uint8_t)byte)] = (uint8_t)byte;
    }
    for (int32_t token = 0; token < TOKENIZER_BYTES; token++) {
        table->string_slots[string_slot(table, table->bytes + token, 1)] = token;
    }
    return APP_OK;
}

// `where` and `number` name the merge in messages: "line" and its number, "merge" and its index.
static enum app_status add(struct merge_table *table, const char *name, const char *where, int64_t number,
                           uint32_t left, uint32_t right) {
    size_t left_count, right_count;
    const int64_t token = TOKENIZER_BYTES + table->count;
    token_bytes(table, left, &left_count);
    token_bytes(table, right, &right_count);
    if (left_count + right_count > TOKEN_BYTES_LIMIT) {
        return app_fail(APP_FAILED, "%s, %s %lld: makes a token of more than %d bytes; this is no list of merges.",
                        name, where, (long long)number, TOKEN_BYTES_LIMIT);
    }
    enum app_status status = reserve_bytes(table, name, left_count + right_count);
    if (status != APP_OK) {
        return status;
    }
    uint8_t *joined = table->bytes + table->starts[token];
    memcpy(joined, token_bytes(table, left, &left_count), left_count);
    memcpy(joined + left_count, token_bytes(table, right, &right_count), right_count);
    const uint32_t slot = string_slot(table, joined, left_count + right_count);
    if (table->string_slots[slot] >= 0) {
        return app_fail(APP_FAILED, "%s, %s %lld: makes token %d once more; every token needs one merge.", name, where,
                        (long long)number, (int)table->string_slots[slot]);
    }
    table->string_slots[slot] = (int32_t)token;
    table->starts[token + 1] = table->starts[token] + (uint32_t)(left_count + right_count);
    uint32_t pair = pair_slot(table, left, right);
    while (table->pair_slots[pair] != NO_MERGE) {
        pair = (pair + 1) & (table->slots - 1);
    }
    table->pair_slots[pair] = (int32_t)table->count;
    table->merges[table->count++] = (struct merge){left, right};
    return APP_OK;
}

static enum app_status finish(struct merge_table *table, enum app_status status) {
    if (status != APP_OK) {
        merges_release(table);
        return status;
    }
    free(table->string_slots);
    table->string_slots = NULL;
    return APP_OK;
}

// One part of a line, from *position up to a space or the end: its token, or -1 with a sentence.
static int32_t parse_part(struct merge_table *table, const char *name, int64_t number, const char *line,
                          size_t *position, size_t end) {
    const size_t first = *position;
    uint8_t *part = table->bytes + table->starts[TOKENIZER_BYTES + table->count]; // room was reserved for the line
    size_t count = 0;
    while (*position < end && line[*position] != ' ') {
        uint32_t character;
        const size_t length = utf8_decode((const uint8_t *)line + *position, end - *position, &character);
        const int byte = length ? byte_of_character(character) : -1;
        if (byte < 0) {
            app_fail(APP_FAILED,
                     "%s, line %lld: byte %zu is no character of a merges file in GPT-2's format (vocab.bpe, "
                     "merges.txt).",
                     name, (long long)number, *position + 1);
            return -1;
        }
        part[count++] = (uint8_t)byte;
        *position += length;
    }
    const int32_t token = count ? table->string_slots[string_slot(table, part, count)] : -1;
    if (count && token < 0) {
        app_fail(APP_FAILED,
                 "%s, line %lld: \"%.*s\" is neither a byte nor made by an earlier line; a merges file in GPT-2's "
                 "format (vocab.bpe, merges.txt) is needed.",
                 name, (long long)number, (int)(count < 60 ? *position - first : 60), line + first);
    } else if (!count) {
        app_fail(APP_FAILED,
                 "%s, line %lld: not two parts separated by one space, as a merges file in GPT-2's format (vocab.bpe, "
                 "merges.txt) has them.",
                 name, (long long)number);
    }
    return token;
}

static enum app_status parse_line(struct merge_table *table, const char *name, int64_t number, const char *line,
                                  size_t length) {
    size_t position = 0;
    enum app_status status = reserve_bytes(table, name, length);
    if (status != APP_OK) {
        return status;
    }
    const int32_t left = parse_part(table, name, number, line, &position, length);
    if (left < 0) {
        return APP_FAILED;
    }
    position += position < length; // the space
    const int32_t right = parse_part(table, name, number, line, &position, length);
    if (right < 0) {
        return APP_FAILED;
    }
    if (position < length) {
        return app_fail(APP_FAILED, "%s, line %lld: more than two parts; a line of a merges file has two.", name,
                        (long long)number);
    }
    return add(table, name, "line", number, (uint32_t)left, (uint32_t)right);
}

// Length of the line at `text`, without its end.
static size_t line_length(const char *text, size_t count) {
    const char *end = memchr(text, '\n', count);
    return end ? (size_t)(end - text) : count;
}

static int64_t count_lines(const char *text, size_t count) {
    int64_t lines = 0;
    for (size_t at = 0; at < count; at += line_length(text + at, count - at) + 1) {
        lines++;
    }
    return lines;
}

enum app_status merges_parse(struct merge_table *table, const char *name, const char *text, size_t count) {
    const int64_t lines = count_lines(text, count);
    if (lines > MERGES_LIMIT) {
        return app_fail(APP_FAILED, "%s has %lld lines, more than the %d merges that can be used.", name,
                        (long long)lines, MERGES_LIMIT);
    }
    enum app_status status = begin(table, name, lines);
    if (status != APP_OK) {
        return status;
    }
    size_t at = 0;
    for (int64_t number = 1; number <= lines && status == APP_OK; number++) {
        const char *line = text + at;
        size_t length = line_length(line, count - at);
        at += length + 1;
        length -= length > 0 && line[length - 1] == '\r';
        const int is_version = number == 1 && length >= 8 && memcmp(line, "#version", 8) == 0;
        if (!is_version && !(length == 0 && number == lines)) {
            status = parse_line(table, name, number, line, length);
        }
    }
    if (status == APP_OK && table->count == 0) {
        status = app_fail(APP_FAILED,
                          "%s holds no merges; pass a merges file in GPT-2's format (vocab.bpe, merges.txt).", name);
    }
    return finish(table, status);
}

enum app_status merges_from_pairs(struct merge_table *table, const char *name, const struct merge *merges,
                                  int64_t count) {
    if (count < 0 || count > MERGES_LIMIT) {
        return app_fail(APP_FAILED, "%s says that it has %lld merges; at most %d can be used.", name, (long long)count,
                        MERGES_LIMIT);
    }
    enum app_status status = begin(table, name, count);
    if (status != APP_OK) {
        return status;
    }
    for (int64_t i = 0; i < count && status == APP_OK; i++) {
        if (merges[i].left >= TOKENIZER_BYTES + i || merges[i].right >= TOKENIZER_BYTES + i) {
            status = app_fail(APP_FAILED, "%s is damaged: merge %lld joins a token that does not exist yet.", name,
                              (long long)i);
        } else {
            status = add(table, name, "merge", i, merges[i].left, merges[i].right);
        }
    }
    return finish(table, status);
}

void merges_release(struct merge_table *table) {
    free(table->merges);
    free(table->pair_slots);
    free(table->string_slots);
    free(table->bytes);
    free(table->starts);
    *table = (struct merge_table){0};
}
