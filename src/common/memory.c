/* memory.c - the counted pool, over the host's allocator or the library's own memory. */
#include "common/memory.h"

#include <stdlib.h>

#include "common/error.h"

/* Checkers of memory see the C library's blocks one by one, and not what lies beside them in a region. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define STQ_PLANES_BY_MALLOC
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define STQ_PLANES_BY_MALLOC
#endif

/* From this many bytes on requests lie in a region: eight small pages. Below it, tiny models need no pages of their own
 * and long lists of small tensors no lists of gaps. */
enum { SHORTEST_IN_REGION = 32 << 10 };

static bool belongs_in_region(uint64_t bytes) {
#ifdef STQ_PLANES_BY_MALLOC
    (void)bytes;
    return false;
#else
    return bytes >= SHORTEST_IN_REGION;
#endif
}

/* Bytes are a multiple of the granularity. */
static void *allocate(stq_pool *pool, uint32_t kind, size_t bytes) {
    if (pool->allocator.allocate != NULL)
        return pool->allocator.allocate(pool->allocator.context, bytes);
    void *pointer = belongs_in_region(bytes) ? stq_region_allocate(&pool->regions[kind], bytes) : NULL;
    return pointer != NULL ? pointer : aligned_alloc(STQ_POOL_GRANULARITY, bytes);
}

static void release(stq_pool *pool, uint32_t kind, void *pointer, size_t bytes) {
    if (pool->allocator.allocate != NULL)
        pool->allocator.release(pool->allocator.context, pointer, bytes);
    else if (!belongs_in_region(bytes) || !stq_region_release(&pool->regions[kind], pointer, bytes))
        free(pointer);
}

void stq_pool_init(stq_pool *pool, const stq_allocator *allocator) {
    *pool = (stq_pool){.bytes = 0};
    if (allocator)
        pool->allocator = *allocator;
    if (pool->allocator.granularity == 0)
        pool->allocator.granularity = STQ_POOL_GRANULARITY;
}

uint64_t stq_pool_charge(const stq_pool *pool, uint64_t bytes) {
    return stq_round_up(bytes, pool->allocator.granularity);
}

static void charge(stq_pool *pool, uint64_t bytes) {
    pool->bytes += bytes;
    if (pool->bytes > pool->peak)
        pool->peak = pool->bytes;
}

stq_status stq_pool_allocate(stq_pool *pool, uint32_t kind, uint64_t bytes, void **pointer) {
    *pointer = NULL;
    if (bytes == 0)
        return STQ_OK;
    uint64_t rounded = stq_pool_charge(pool, bytes);
    if (pool->cap != 0 && pool->bytes + rounded > pool->cap)
        return stq_error(STQ_CAP_TOO_SMALL,
                         "%llu more bytes of state would exceed the cap of %llu bytes; %llu are in use.",
                         (unsigned long long)rounded, (unsigned long long)pool->cap, (unsigned long long)pool->bytes);
    if (rounded > SIZE_MAX / 2 || (*pointer = allocate(pool, kind, (size_t)rounded)) == NULL)
        return stq_error(STQ_OUT_OF_MEMORY,
                         "The allocator has no %llu bytes for optimizer states; lower the state bits.",
                         (unsigned long long)rounded);
    charge(pool, rounded);
    return STQ_OK;
}

void stq_pool_release(stq_pool *pool, uint32_t kind, void *pointer, uint64_t bytes) {
    if (pointer == NULL)
        return;
    uint64_t rounded = stq_pool_charge(pool, bytes);
    release(pool, kind, pointer, (size_t)rounded);
    pool->bytes -= rounded;
}

void stq_pool_trim(stq_pool *pool) {
    for (int kind = 0; kind < STQ_POOL_KINDS; kind++)
        stq_region_trim(&pool->regions[kind]);
}

void stq_pool_charge_record(stq_pool *pool, uint64_t bytes) { charge(pool, bytes); }
