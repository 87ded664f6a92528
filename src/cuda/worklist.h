/* worklist.h - which thread block works on what: all tiles and all segments of a list of items, made on the host. */
#ifndef STQ_WORKLIST_H
#define STQ_WORKLIST_H

#include "cuda/lists.h"

typedef struct stq_worklist {
    stq_tile *tiles;
    stq_tile *segments;
    int64_t *first_segment; /* item_count + 1 entries */
    int64_t tile_count;
    int64_t segment_count;
    int64_t item_count;
} stq_worklist;

/* Segments come in the order of the items, tiles too, but those of small items first: some are slow, and must not be
 * what the end of a launch waits for. Allocated with malloc; STQ_OUT_OF_MEMORY leaves nothing behind, STQ_UNSUPPORTED
 * names a list with more than 2^31 - 1 tiles. */
stq_status stq_worklist_make(stq_worklist *list, const stq_item *items, size_t count);

/* The counts of such lists alone. */
void stq_worklist_count(stq_worklist *list, const stq_item *items, size_t count);

void stq_worklist_free(stq_worklist *list);

/* How an item is to be worked on in a step with such coefficients: one of the STQ_KIND values. */
uint32_t stq_item_kind(const stq_item *item, bool compensates);

#endif
