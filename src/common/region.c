/* region.c - pieces of address space, the state of their huge pages, and what the system is asked for. */
#ifdef __linux__
#define _DEFAULT_SOURCE /* mmap's and madvise's names */
#endif
#include "common/region.h"

#include "common/gaps.h"

#if defined(__linux__)
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SHORTEST_PIECE = 16 * STQ_HUGE_PAGE };

/* Bytes held of a huge page from which on it is lent as one. */
enum { FULL = STQ_HUGE_PAGE / 8 * 7 };

typedef struct page {
    uint32_t held; /* bytes */
    bool huge;     /* asked for as one; else, once trimmed, nothing outside of what is held is resident */
    bool released; /* a part of it, since it was trimmed */
} page;

typedef struct stq_piece {
    struct stq_piece *next;
    uint8_t *memory; /* aligned to a huge page */
    uint64_t bytes;  /* whole huge pages */
    uint64_t small;  /* bytes of the system's pages */
    stq_gaps gaps;
    page pages[];
} stq_piece;

/* ---- Pieces ---- */

/* Address space without memory behind it. The system aligns to its small pages, so a huge page more is asked for and
 * what is too much at both ends goes back. */
static uint8_t *reserve(uint64_t bytes) {
    uint64_t asked = bytes + STQ_HUGE_PAGE;
    uint8_t *memory =
        mmap(NULL, (size_t)asked, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    uint64_t before = (STQ_HUGE_PAGE - (uint64_t)(uintptr_t)memory % STQ_HUGE_PAGE) % STQ_HUGE_PAGE;
    uint64_t behind = STQ_HUGE_PAGE - before;
    if (before != 0)
        (void)munmap(memory, (size_t)before);
    (void)munmap(memory + before + bytes, (size_t)behind);
    (void)madvise(memory + before, (size_t)bytes, MADV_NOHUGEPAGE); /* also where the system gives them unasked */
    return memory + before;
}

static stq_piece *open_piece(uint64_t bytes) {
    uint64_t pages = bytes / STQ_HUGE_PAGE;
    stq_piece *piece = calloc(1, sizeof *piece + (size_t)pages * sizeof piece->pages[0]);
    if (piece == NULL)
        return NULL;
    piece->bytes = bytes;
    piece->small = (uint64_t)sysconf(_SC_PAGESIZE);
    if (stq_gaps_open(&piece->gaps, bytes) && (piece->memory = reserve(bytes)) != NULL)
        return piece;
    stq_gaps_close(&piece->gaps);
    free(piece);
    return NULL;
}

static void close_piece(stq_piece *piece) {
    (void)munmap(piece->memory, (size_t)piece->bytes);
    stq_gaps_close(&piece->gaps);
    free(piece);
}

/* Longer and longer pieces, so that there are few; where they are too long for the system, as short as may be. */
static stq_piece *grow(stq_region *region, uint64_t bytes) {
    uint64_t least = (bytes + STQ_HUGE_PAGE - 1) / STQ_HUGE_PAGE * STQ_HUGE_PAGE;
    uint64_t wanted = region->reserved / 2 / STQ_HUGE_PAGE * STQ_HUGE_PAGE;
    if (wanted < SHORTEST_PIECE)
        wanted = SHORTEST_PIECE;
    stq_piece *piece = wanted > least ? open_piece(wanted) : NULL;
    if (piece == NULL)
        piece = open_piece(least);
    if (piece == NULL)
        return NULL;
    region->reserved += piece->bytes;
    stq_piece **last = &region->pieces;
    while (*last != NULL)
        last = &(*last)->next;
    return *last = piece;
}

/* ---- Pages ---- */

static uint64_t lower(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t higher(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* The bytes of huge page `index` from `begin` to `end`. */
static stq_gap part_of_page(uint64_t index, uint64_t begin, uint64_t end) {
    return (stq_gap){.begin = higher(begin, index * STQ_HUGE_PAGE), .end = lower(end, (index + 1) * STQ_HUGE_PAGE)};
}

static void advise(stq_piece *piece, uint64_t index, int advice) {
    (void)madvise(piece->memory + index * STQ_HUGE_PAGE, STQ_HUGE_PAGE, advice);
}

/* The small pages that lie within the range go back to the system. */
static void give_back(stq_piece *piece, stq_gap range) {
    uint64_t begin = (range.begin + piece->small - 1) / piece->small * piece->small;
    uint64_t end = range.end / piece->small * piece->small;
    if (begin < end)
        (void)madvise(piece->memory + begin, (size_t)(end - begin), MADV_DONTNEED);
}

static void hold(stq_piece *piece, uint64_t begin, uint64_t end) {
    for (uint64_t i = begin / STQ_HUGE_PAGE; i * STQ_HUGE_PAGE < end; i++) {
        page *p = &piece->pages[i];
        stq_gap part = part_of_page(i, begin, end);
        p->held += (uint32_t)(part.end - part.begin);
        if (p->huge || p->held < FULL)
            continue;
        p->huge = true;
        advise(piece, i, MADV_HUGEPAGE);
    }
}

static void let_go(stq_piece *piece, uint64_t begin, uint64_t end) {
    for (uint64_t i = begin / STQ_HUGE_PAGE; i * STQ_HUGE_PAGE < end; i++) {
        stq_gap part = part_of_page(i, begin, end);
        piece->pages[i].held -= (uint32_t)(part.end - part.begin);
        piece->pages[i].released = true;
    }
}

/* A page of which parts go stays small while others are held: the system would make it whole again behind our back. */
static void trim_page(stq_piece *piece, uint64_t index) {
    page *p = &piece->pages[index];
    p->released = false;
    if (p->huge && p->held >= FULL)
        return;
    if (p->huge)
        advise(piece, index, MADV_NOHUGEPAGE);
    p->huge = false;
    uint64_t end = (index + 1) * STQ_HUGE_PAGE;
    for (size_t i = stq_gaps_find(&piece->gaps, index * STQ_HUGE_PAGE); i < piece->gaps.count; i++) {
        const stq_gap *gap = &piece->gaps.list[i];
        if (gap->begin >= end)
            return;
        give_back(piece, part_of_page(index, gap->begin, gap->end));
    }
}

/* ---- The region ---- */

void *stq_region_allocate(stq_region *region, size_t bytes) {
    if (bytes == 0 || bytes > SIZE_MAX / 4)
        return NULL;
    uint64_t begin = 0;
    stq_piece *piece = region->pieces;
    while (piece != NULL && !stq_gaps_take(&piece->gaps, bytes, &begin))
        piece = piece->next;
    if (piece == NULL) {
        piece = grow(region, bytes);
        if (piece == NULL || !stq_gaps_take(&piece->gaps, bytes, &begin))
            return NULL;
    }
    hold(piece, begin, begin + bytes);
    return piece->memory + begin;
}

bool stq_region_release(stq_region *region, void *pointer, size_t bytes) {
    for (stq_piece *piece = region->pieces; piece != NULL; piece = piece->next) {
        uint64_t begin = (uint64_t)(uintptr_t)pointer - (uint64_t)(uintptr_t)piece->memory; /* large for those before */
        if (begin >= piece->bytes)
            continue;
        stq_gaps_give(&piece->gaps, begin, bytes);
        let_go(piece, begin, begin + bytes);
        region->released = true;
        return true;
    }
    return false;
}

void stq_region_trim(stq_region *region) {
    stq_piece **link = &region->pieces;
    while (region->released && *link != NULL) {
        stq_piece *piece = *link;
        if (piece->gaps.taken == 0) {
            *link = piece->next;
            region->reserved -= piece->bytes;
            close_piece(piece);
            continue;
        }
        for (uint64_t i = 0; i < piece->bytes / STQ_HUGE_PAGE; i++)
            if (piece->pages[i].released)
                trim_page(piece, i);
        link = &piece->next;
    }
    region->released = false;
}

#else

void *stq_region_allocate(stq_region *region, size_t bytes) {
    (void)region;
    (void)bytes;
    return NULL;
}

bool stq_region_release(stq_region *region, void *pointer, size_t bytes) {
    (void)region;
    (void)pointer;
    (void)bytes;
    return false;
}

void stq_region_trim(stq_region *region) { (void)region; }

#endif
