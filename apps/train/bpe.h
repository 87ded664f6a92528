// Joins the bytes of one piece of text into tokens.
#ifndef STQUANT_TRAIN_BPE_H
#define STQUANT_TRAIN_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "train/failure.h"
#include "train/merges.h"

// A pair of neighbours that could be joined: its place in the list of merges, and where it begins.
struct bpe_candidate {
    int32_t merge;
    uint32_t position;
};

// Working memory for pieces of any length; grows as needed. Zero-initialise it.
struct bpe_scratch {
    uint32_t *tokens;           // (capacity) token that begins at this byte
    uint32_t *next, *previous;  // (capacity) neighbours in the list of tokens
    struct bpe_candidate *heap; // (3 capacity)
    size_t heap_count, capacity;
};

// The tokens of a piece of `count` bytes (below 2^31), at most `count` of them, into `tokens`;
// *token_count tells how many. O(count log count). Fails only without memory.
enum app_status bpe_encode(const struct merge_table *table, struct bpe_scratch *scratch, const uint8_t *piece,
                           size_t count, int32_t *tokens, size_t *token_count);

void bpe_release(struct bpe_scratch *scratch);

#endif
