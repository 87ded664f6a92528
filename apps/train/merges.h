// The tables of a byte-pair encoding: what each token stands for, and which pairs are joined into
// what.
#ifndef STQUANT_TRAIN_MERGES_H
#define STQUANT_TRAIN_MERGES_H

#include <stddef.h>
#include <stdint.h>

#include "train/failure.h"
#include "train/tokenizer.h"

enum { NO_MERGE = -1, MERGES_LIMIT = 1 << 24, TOKEN_BYTES_LIMIT = 65535 };

struct merge_table {
    struct merge *merges; // (count)
    int64_t count;
    int64_t capacity;
    int32_t *pair_slots;   // (slots) number of the merge whose pair hashes here, or NO_MERGE
    int32_t *string_slots; // (slots) token whose bytes hash here, or -1; only while the table is built
    uint32_t slots;        // a power of two, at least twice the tokens
    uint8_t *bytes;        // of all tokens, one after the other
    size_t bytes_capacity;
    uint32_t *starts; // (256 + capacity + 1): token t is bytes[starts[t]] to bytes[starts[t + 1] - 1]
};

// The token of a byte: printable characters of Latin-1 come first, in the order of their codes.
uint32_t merges_token_of_byte(uint8_t byte);

// Reads the text of a merges file (tokenizer.h). On failure nothing stays allocated.
enum app_status merges_parse(struct merge_table *table, const char *name, const char *text, size_t count);

// Takes merges as numbers; the list is copied. On failure nothing stays allocated.
enum app_status merges_from_pairs(struct merge_table *table, const char *name, const struct merge *merges,
                                  int64_t count);

void merges_release(struct merge_table *table);

// The number of the merge that joins these two tokens, or NO_MERGE.
int32_t merges_find(const struct merge_table *table, uint32_t left, uint32_t right);

#endif
