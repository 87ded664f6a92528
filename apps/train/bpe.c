#include "train/bpe.h"

#include <stdlib.h>

// End of the list of neighbours; also marks a token that was joined to the one before it.
enum { NOWHERE = UINT32_MAX };

static enum app_status reserve(struct bpe_scratch *scratch, size_t count) {
    if (count <= scratch->capacity) {
        return APP_OK;
    }
    bpe_release(scratch);
    scratch->tokens = malloc(count * sizeof(*scratch->tokens));
    scratch->next = malloc(count * sizeof(*scratch->next));
    scratch->previous = malloc(count * sizeof(*scratch->previous));
    // A piece has count - 1 pairs, and each of at most count - 1 joins makes two more.
    scratch->heap = malloc(3 * count * sizeof(*scratch->heap));
    if (!scratch->tokens || !scratch->next || !scratch->previous || !scratch->heap) {
        bpe_release(scratch);
        return app_fail(APP_FAILED, "There is no memory for a word of %zu bytes.", count);
    }
    scratch->capacity = count;
    return APP_OK;
}

void bpe_release(struct bpe_scratch *scratch) {
    free(scratch->tokens);
    free(scratch->next);
    free(scratch->previous);
    free(scratch->heap);
    *scratch = (struct bpe_scratch){0};
}

static int is_before(struct bpe_candidate a, struct bpe_candidate b) {
    return a.merge < b.merge || (a.merge == b.merge && a.position < b.position);
}

static void push(struct bpe_scratch *scratch, struct bpe_candidate candidate) {
    size_t hole = scratch->heap_count++;
    while (hole > 0 && is_before(candidate, scratch->heap[(hole - 1) / 2])) {
        scratch->heap[hole] = scratch->heap[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    scratch->heap[hole] = candidate;
}

static struct bpe_candidate pop(struct bpe_scratch *scratch) {
    struct bpe_candidate *heap = scratch->heap, first = heap[0], last = heap[--scratch->heap_count];
    size_t hole = 0;
    for (size_t child = 1; child < scratch->heap_count; child = 2 * hole + 1) {
        child += child + 1 < scratch->heap_count && is_before(heap[child + 1], heap[child]);
        if (!is_before(heap[child], last)) {
            break;
        }
        heap[hole] = heap[child];
        hole = child;
    }
    heap[hole] = last;
    return first;
}

// Enters the pair that begins at `position`, if it is one of the list.
static void offer(const struct merge_table *table, struct bpe_scratch *scratch, uint32_t position) {
    const uint32_t next = scratch->next[position];
    if (next != NOWHERE) {
        const int32_t merge = merges_find(table, scratch->tokens[position], scratch->tokens[next]);
        if (merge != NO_MERGE) {
            push(scratch, (struct bpe_candidate){merge, position});
        }
    }
}

// True while both tokens of the candidate are there as they were when it was entered.
static int is_current(const struct merge_table *table, const struct bpe_scratch *scratch,
                      struct bpe_candidate candidate) {
    const struct merge merge = table->merges[candidate.merge];
    const uint32_t next = scratch->next[candidate.position];
    return scratch->tokens[candidate.position] == merge.left && next != NOWHERE && scratch->tokens[next] == merge.right;
}

static void join(const struct merge_table *table, struct bpe_scratch *scratch, struct bpe_candidate candidate) {
    const uint32_t left = candidate.position, right = scratch->next[left], after = scratch->next[right];
    scratch->tokens[left] = TOKENIZER_BYTES + (uint32_t)candidate.merge;
    scratch->tokens[right] = NOWHERE;
    scratch->next[left] = after;
    if (after != NOWHERE) {
        scratch->previous[after] = left;
    }
    if (scratch->previous[left] != NOWHERE) {
        offer(table, scratch, scratch->previous[left]);
    }
    offer(table, scratch, left);
}

// A merge only joins tokens that stand before it in the list, so a pair that appears through a join
// stands after the one just joined: taking the first pair of all, leftmost first, is the same as
// joining every occurrence of the best pair and then looking for the next best.
enum app_status bpe_encode(const struct merge_table *table, struct bpe_scratch *scratch, const uint8_t *piece,
                           size_t count, int32_t *tokens, size_t *token_count) {
    enum app_status status = reserve(scratch, count);
    *token_count = 0;
    if (status != APP_OK || count == 0) {
        return status;
    }
    scratch->heap_count = 0;
    for (size_t i = 0; i < count; i++) {
        scratch->tokens[i] = merges_token_of_byte(piece[i]);
        scratch->next[i] = i + 1 < count ? (uint32_t)i + 1 : NOWHERE;
        scratch->previous[i] = i > 0 ? (uint32_t)i - 1 : NOWHERE;
    }
    for (uint32_t i = 0; i < count; i++) {
        offer(table, scratch, i);
    }
    while (scratch->heap_count > 0) {
        const struct bpe_candidate best = pop(scratch);
        if (is_current(table, scratch, best)) {
            join(table, scratch, best);
        }
    }
    for (uint32_t i = 0; i != NOWHERE; i = scratch->next[i]) {
        tokens[(*token_count)++] = (int32_t)scratch->tokens[i];
    }
    return APP_OK;
}
