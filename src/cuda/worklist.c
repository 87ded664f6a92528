/* worklist.c - tiles and segments of a list of items. */
#include "cuda/worklist.h"

#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "quant/shared.h"

static int64_t parts(int64_t count, int64_t part) { return (count + part - 1) / part; }

/* The parts of all items with at most `most` and more than `least` elements; returns the end of the list. */
static stq_tile *fill(stq_tile *list, const stq_item *items, size_t count, int64_t part, int64_t least, int64_t most) {
    for (size_t i = 0; i < count; i++)
        for (int64_t tile = 0; tile < parts(items[i].count, part); tile++)
            if (items[i].count > least && items[i].count <= most)
                *list++ = (stq_tile){.item = (uint32_t)i, .tile = (uint32_t)tile};
    return list;
}

void stq_worklist_count(stq_worklist *list, const stq_item *items, size_t count) {
    memset(list, 0, sizeof *list);
    list->item_count = (int64_t)count;
    for (size_t i = 0; i < count; i++) {
        list->tile_count += parts(items[i].count, STQ_TILE);
        list->segment_count += parts(items[i].count, STQ_SEGMENT);
    }
}

stq_status stq_worklist_make(stq_worklist *list, const stq_item *items, size_t count) {
    stq_worklist_count(list, items, count);
    if (list->tile_count > INT32_MAX)
        return stq_error(STQ_UNSUPPORTED, "The list has %lld tiles of %d elements; one GPU launch takes 2147483647.",
                         (long long)list->tile_count, STQ_TILE);
    list->tiles = malloc((size_t)list->tile_count * sizeof *list->tiles + 1);
    list->segments = malloc((size_t)list->segment_count * sizeof *list->segments + 1);
    list->first_segment = malloc((count + 1) * sizeof *list->first_segment);
    if (!list->tiles || !list->segments || !list->first_segment) {
        stq_worklist_free(list);
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the work list of %zu tensors.", count);
    }
    stq_tile *large = fill(list->tiles, items, count, STQ_TILE, 0, STQ_TILE);
    fill(large, items, count, STQ_TILE, STQ_TILE, INT64_MAX);
    fill(list->segments, items, count, STQ_SEGMENT, 0, INT64_MAX);
    list->first_segment[0] = 0;
    for (size_t i = 0; i < count; i++)
        list->first_segment[i + 1] = list->first_segment[i] + parts(items[i].count, STQ_SEGMENT);
    return STQ_OK;
}

void stq_worklist_free(stq_worklist *list) {
    free(list->tiles);
    free(list->segments);
    free(list->first_segment);
    memset(list, 0, sizeof *list);
}

static bool stays_coded(const stq_planes *in, const stq_planes *out) {
    return in->bits == out->bits && stq_is_coded(in->bits);
}

static bool aligned(const void *pointer) { return (uintptr_t)pointer % 16 == 0; }

/* Means that stay, where 8 neighbouring values from a multiple of 8 on lie in one row of the tensor. */
static bool stays_shared(const stq_item *item) {
    return stq_is_shared(item->v_in.bits) && item->v_in.bits == item->v_out.bits && item->cols % 8 == 0 &&
           item->rows <= INT32_MAX && item->cols <= INT32_MAX && aligned(item->v_in.base);
}

uint32_t stq_item_kind(const stq_item *item, bool compensates) {
    bool shared = stays_shared(item);
    if (compensates || (!shared && !stays_coded(&item->v_in, &item->v_out)) ||
        !stays_coded(&item->m_in, &item->m_out) || !aligned(item->parameter) || !aligned(item->gradient))
        return STQ_KIND_GENERAL;
    uint32_t second = shared ? STQ_KIND_SHARED : 0;
    if (item->parameter_type == STQ_BFLOAT16 && item->gradient_type == STQ_BFLOAT16)
        return STQ_KIND_BFLOAT16 | second;
    if (item->parameter_type == STQ_FLOAT32 && item->gradient_type == STQ_FLOAT32)
        return STQ_KIND_FLOAT32 | second;
    if (item->parameter_type == STQ_FLOAT32 && item->gradient_type == STQ_BFLOAT16)
        return STQ_KIND_MIXED | second;
    return STQ_KIND_GENERAL;
}
