/* gaps.c - the list of gaps: first fit, so that what is held gathers at the front. */
#include "common/gaps.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_CAPACITY = 16 };

bool stq_gaps_open(stq_gaps *gaps, uint64_t bytes) {
    *gaps = (stq_gaps){.list = malloc(FIRST_CAPACITY * sizeof *gaps->list), .capacity = FIRST_CAPACITY};
    if (gaps->list == NULL)
        return false;
    gaps->list[gaps->count++] = (stq_gap){.begin = 0, .end = bytes};
    return true;
}

void stq_gaps_close(stq_gaps *gaps) {
    free(gaps->list);
    *gaps = (stq_gaps){.list = NULL};
}

/* Between n takings there are n + 1 gaps at most, and one more while a taking that touches two of them is given back.
 */
static bool reserve(stq_gaps *gaps) {
    if (gaps->taken + 3 <= gaps->capacity)
        return true;
    if (gaps->capacity > SIZE_MAX / 2 / sizeof *gaps->list)
        return false;
    stq_gap *list = realloc(gaps->list, 2 * gaps->capacity * sizeof *list);
    if (list == NULL)
        return false;
    gaps->list = list;
    gaps->capacity *= 2;
    return true;
}

static void insert(stq_gaps *gaps, size_t at, stq_gap gap) {
    memmove(&gaps->list[at + 1], &gaps->list[at], (gaps->count - at) * sizeof *gaps->list);
    gaps->list[at] = gap;
    gaps->count++;
}

static void erase(stq_gaps *gaps, size_t at) {
    gaps->count--;
    memmove(&gaps->list[at], &gaps->list[at + 1], (gaps->count - at) * sizeof *gaps->list);
}

bool stq_gaps_take(stq_gaps *gaps, uint64_t bytes, uint64_t *begin) {
    for (size_t i = 0; i < gaps->count; i++) {
        stq_gap *gap = &gaps->list[i];
        if (gap->end - gap->begin < bytes)
            continue;
        if (!reserve(gaps))
            return false;
        gap = &gaps->list[i];
        *begin = gap->begin;
        gap->begin += bytes;
        if (gap->begin == gap->end)
            erase(gaps, i);
        gaps->taken++;
        return true;
    }
    return false;
}

size_t stq_gaps_find(const stq_gaps *gaps, uint64_t place) {
    size_t low = 0, high = gaps->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (gaps->list[middle].end > place)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

void stq_gaps_give(stq_gaps *gaps, uint64_t begin, uint64_t bytes) {
    size_t at = stq_gaps_find(gaps, begin);
    insert(gaps, at, (stq_gap){.begin = begin, .end = begin + bytes});
    gaps->taken--;
    if (at + 1 < gaps->count && gaps->list[at + 1].begin == gaps->list[at].end) {
        gaps->list[at].end = gaps->list[at + 1].end;
        erase(gaps, at + 1);
    }
    if (at > 0 && gaps->list[at - 1].end == gaps->list[at].begin) {
        gaps->list[at - 1].end = gaps->list[at].end;
        erase(gaps, at);
    }
}
