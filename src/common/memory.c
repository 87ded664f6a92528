/* memory.c - the counted pool. */
#include "common/memory.h"

#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "common/error.h"

/* Large planes lie on huge pages where the system lends them on request: a transition is the first touch of new planes,
 * and a fault for every 4 KiB costs as much as the step. Only whole huge pages are asked for, so that no memory beyond
 * the charged bytes becomes resident. */
static void *library_allocate(void *context, size_t bytes) {
    (void)context;
#ifdef MADV_HUGEPAGE
    if (bytes >= 2 * STQ_HUGE_PAGE) {
        void *pointer = aligned_alloc(STQ_HUGE_PAGE, bytes);
        if (pointer != NULL)
            (void)madvise(pointer, bytes / STQ_HUGE_PAGE * STQ_HUGE_PAGE, MADV_HUGEPAGE);
        return pointer;
    }
#endif
    return aligned_alloc(STQ_POOL_GRANULARITY, bytes); /* charged sizes are multiples of the granularity */
}

static void library_release(void *context, void *pointer, size_t bytes) {
    (void)context;
    (void)bytes;
    free(pointer);
}

void stq_pool_init(stq_pool *pool, const stq_allocator *allocator) {
    *pool = (stq_pool){.allocator = {.allocate = library_allocate, .release = library_release}};
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

stq_status stq_pool_allocate(stq_pool *pool, uint64_t bytes, void **pointer) {
    *pointer = NULL;
    if (bytes == 0)
        return STQ_OK;
    uint64_t rounded = stq_pool_charge(pool, bytes);
    if (pool->cap != 0 && pool->bytes + rounded > pool->cap)
        return stq_error(STQ_CAP_TOO_SMALL,
                         "%llu more bytes of state would exceed the cap of %llu bytes; %llu are in use.",
                         (unsigned long long)rounded, (unsigned long long)pool->cap, (unsigned long long)pool->bytes);
    if (rounded > SIZE_MAX / 2 ||
        (*pointer = pool->allocator.allocate(pool->allocator.context, (size_t)rounded)) == NULL)
        return stq_error(STQ_OUT_OF_MEMORY,
                         "The allocator has no %llu bytes for optimizer states; lower the state bits.",
                         (unsigned long long)rounded);
    charge(pool, rounded);
    return STQ_OK;
}

void stq_pool_release(stq_pool *pool, void *pointer, uint64_t bytes) {
    if (pointer == NULL)
        return;
    uint64_t rounded = stq_pool_charge(pool, bytes);
    pool->allocator.release(pool->allocator.context, pointer, (size_t)rounded);
    pool->bytes -= rounded;
}

void stq_pool_charge_record(stq_pool *pool, uint64_t bytes) { charge(pool, bytes); }
