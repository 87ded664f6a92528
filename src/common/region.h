/*
 * region.h - memory that the system lends in huge pages and takes back page by page.
 *
 * A region reserves address space in long pieces and hands out parts of them. A huge page (2 MiB) that is seven eighths
 * held asks for being one, so that its first touch is one fault instead of 512; any other consists of the system's own
 * small pages. Trimming gives back what nobody holds: whole huge pages, and small pages of those that are less full. So
 * what is resident then exceeds what is held by a seventh at most, and by the small pages at both ends of each gap.
 *
 * A huge page goes back whole only if all of it is free: what comes and goes together belongs in one region, the rest
 * in others.
 */
#ifndef STQ_REGION_H
#define STQ_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the pages that the system lends large memory in where it is asked. */
enum { STQ_HUGE_PAGE = 2 << 20 };

/* Zero-initialised: nothing reserved. One thread at a time. */
typedef struct stq_region {
    struct stq_piece *pieces; /* owned; where there is room the first serves */
    uint64_t reserved;        /* bytes of address space */
    bool released;            /* something, since it was trimmed */
} stq_region;

/* `bytes`, a multiple of 64, aligned to 64; contents may be anything. NULL where the system has no memory or is not one
 * that this file knows; the C library's allocator is left then. */
void *stq_region_allocate(stq_region *region, size_t bytes);

/* Takes back what stq_region_allocate returned for the same `bytes`; false for any other pointer. The memory stays
 * resident, for the next request, until the region is trimmed. */
bool stq_region_release(stq_region *region, void *pointer, size_t bytes);

/* Gives what nobody holds back to the system: after the last of several releases, as a huge page that goes in parts
 * costs what small pages do. With nothing held nothing stays reserved. */
void stq_region_trim(stq_region *region);

#endif
