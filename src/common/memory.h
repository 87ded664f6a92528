/* memory.h - the host's allocator, counted: what the byte counts of the public interface are read from. */
#ifndef STQ_MEMORY_H
#define STQ_MEMORY_H

#include <stquant/base.h>

/* Of the C library's allocator, as this pool uses it. */
enum { STQ_POOL_GRANULARITY = 64 };

/* Bytes of the pages that the system lends large memory in where it is asked: one fault instead of 512. */
enum { STQ_HUGE_PAGE = 2 << 20 };

typedef struct stq_pool {
    stq_allocator allocator;
    uint64_t bytes; /* charged now, every request rounded up to the granularity */
    uint64_t peak;  /* largest so far */
    uint64_t cap;   /* no request may lift `bytes` above this; 0 = none */
} stq_pool;

/* `bytes` rounded up to a multiple of `unit`. */
static inline uint64_t stq_round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

/* Uses a copy of `allocator`, or the C library's where it is NULL. */
void stq_pool_init(stq_pool *pool, const stq_allocator *allocator);

/* What a request of `bytes` is charged. */
uint64_t stq_pool_charge(const stq_pool *pool, uint64_t bytes);

/* Allocates; *pointer is NULL on failure and for 0 bytes. STQ_CAP_TOO_SMALL if the cap does not allow it. */
stq_status stq_pool_allocate(stq_pool *pool, uint64_t bytes, void **pointer);

/* Releases what stq_pool_allocate returned for the same `bytes`; NULL is allowed. */
void stq_pool_release(stq_pool *pool, void *pointer, uint64_t bytes);

/* Charges memory that lives elsewhere (the optimizer's own records). */
void stq_pool_charge_record(stq_pool *pool, uint64_t bytes);

#endif
