/* memory.h - the host's allocator, counted: what the byte counts of the public interface are read from. */
#ifndef STQ_MEMORY_H
#define STQ_MEMORY_H

#include <stquant/base.h>

#include "common/region.h"

/* Of the library's own memory. */
enum { STQ_POOL_GRANULARITY = 64 };

/* Of what comes and goes together: requests of one kind lie beside each other. */
enum { STQ_POOL_KINDS = 15 };

typedef struct stq_pool {
    stq_allocator allocator; /* the host's; without its functions memory is the library's own */
    stq_region regions[STQ_POOL_KINDS];
    uint64_t bytes; /* charged now, every request rounded up to the granularity */
    uint64_t peak;  /* largest so far */
    uint64_t cap;   /* no request may lift `bytes` above this; 0 = none */
} stq_pool;

/* `bytes` rounded up to a multiple of `unit`. */
static inline uint64_t stq_round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

/* Uses a copy of `allocator`; where it is NULL long requests lie in regions of the pool (region.h), short ones come
 * from the C library. There is nothing to close once all is released and trimmed. */
void stq_pool_init(stq_pool *pool, const stq_allocator *allocator);

/* What a request of `bytes` is charged. */
uint64_t stq_pool_charge(const stq_pool *pool, uint64_t bytes);

/* Allocates, beside others of `kind` (below STQ_POOL_KINDS); *pointer is NULL on failure and for 0 bytes.
 * STQ_CAP_TOO_SMALL if the cap does not allow it. */
stq_status stq_pool_allocate(stq_pool *pool, uint32_t kind, uint64_t bytes, void **pointer);

/* Releases what stq_pool_allocate returned for the same `kind` and `bytes`; NULL is allowed. */
void stq_pool_release(stq_pool *pool, uint32_t kind, void *pointer, uint64_t bytes);

/* After releases: what they left of the library's own memory goes back to the system. */
void stq_pool_trim(stq_pool *pool);

/* Charges memory that lives elsewhere (the optimizer's own records). */
void stq_pool_charge_record(stq_pool *pool, uint64_t bytes);

#endif
