/* test_region.c - memory in regions: places, contents, and what is resident beside what is held. */
#include "testing.h"

#include <sys/mman.h>

#include "common/region.h"
#include "resident_memory.h"

enum { SLOTS = 200 };

typedef struct slot {
    uint8_t *memory;
    size_t bytes;
    uint32_t seed;
} slot;

static void skip_without_regions(void) {
#ifndef __linux__
    print_message("regions are for Linux\n");
    skip();
#endif
}

/* Bytes of the region's pages that are in memory. */
static uint64_t resident_of(const slot *slots) {
    uint64_t lowest = UINT64_MAX, highest = 0;
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].memory != NULL) {
            uint64_t begin = (uint64_t)(uintptr_t)slots[i].memory;
            lowest = begin < lowest ? begin : lowest;
            highest = begin + slots[i].bytes > highest ? begin + slots[i].bytes : highest;
        }
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), bytes = 0;
    /* Pieces may lie apart and gaps at both ends count as well: whole huge pages, and those that are mapped. */
    lowest = lowest / STQ_HUGE_PAGE * STQ_HUGE_PAGE;
    for (; lowest < highest; lowest += STQ_HUGE_PAGE) {
        unsigned char there[STQ_HUGE_PAGE / 4096];
        if (mincore((void *)(uintptr_t)lowest, STQ_HUGE_PAGE, there) != 0)
            continue;
        for (uint64_t i = 0; i < STQ_HUGE_PAGE / page; i++)
            bytes += (there[i] & 1) * page;
    }
    return bytes;
}

static void fill(const slot *s) {
    for (size_t i = 0; i < s->bytes; i += 64)
        memcpy(s->memory + i, &s->seed, sizeof s->seed);
}

static void check(const slot *s) {
    for (size_t i = 0; i < s->bytes; i += 64)
        assert_memory_equal(s->memory + i, &s->seed, sizeof s->seed);
}

/* 64 bytes to 6 MiB, short ones more often. */
static size_t random_bytes(uint32_t *counter) {
    double scale = test_uniform(11, (*counter)++);
    size_t bytes = (size_t)(scale * scale * scale * scale * (6 << 20));
    return bytes / 64 * 64 + 64;
}

static void release(stq_region *region, slot *s, uint64_t *held) {
    check(s);
    assert_true(stq_region_release(region, s->memory, s->bytes));
    *held -= s->bytes;
    s->memory = NULL;
}

static void take(stq_region *region, slot *s, uint64_t *held, uint32_t *counter) {
    s->bytes = random_bytes(counter);
    s->seed = *counter;
    s->memory = stq_region_allocate(region, s->bytes);
    assert_non_null(s->memory);
    assert_true((uintptr_t)s->memory % 64 == 0);
    fill(s);
    *held += s->bytes;
}

/* A seventh of what is held, and two small pages and the part of one at each end of what is held. */
static uint64_t most_resident(uint64_t held) {
    return held + held / 7 + 2 * (SLOTS + 1) * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Neighbours would overwrite each other's contents if they overlapped. Few are held at the end of each round. */
static void test_random_sequence(void **state) {
    (void)state;
    skip_without_regions();
    static slot slots[SLOTS];
    stq_region region = {.reserved = 0};
    uint64_t held = 0;
    uint32_t counter = 0;
    int rounds = test_is_long() ? 60 : 6;
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < 20 * SLOTS; i++) {
            slot *s = &slots[(int)(test_uniform(12, counter++) * SLOTS)];
            bool many = i < 14 * SLOTS;
            if (s->memory != NULL)
                release(&region, s, &held);
            else if (many || test_uniform(13, counter) < 0.05)
                take(&region, s, &held, &counter);
            if (i % SLOTS != 0)
                continue;
            stq_region_trim(&region);
            if (RESIDENT_COUNTS)
                assert_in_range(resident_of(slots), 0, most_resident(held));
        }
    }
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].memory != NULL)
            release(&region, &slots[i], &held);
    assert_int_equal(held, 0);
    stq_region_trim(&region);
    assert_null(region.pieces);
    assert_int_equal(region.reserved, 0);
}

static void test_refusals(void **state) {
    (void)state;
    skip_without_regions();
    stq_region region = {.reserved = 0};
    uint64_t stranger;
    assert_null(stq_region_allocate(&region, 0));
    assert_null(stq_region_allocate(&region, SIZE_MAX / 64 * 64));
    assert_null(stq_region_allocate(&region, SIZE_MAX / 4 / 64 * 64));
    assert_false(stq_region_release(&region, &stranger, 64));
    void *memory = stq_region_allocate(&region, 64);
    assert_non_null(memory);
    assert_false(stq_region_release(&region, &stranger, 64));
    assert_true(stq_region_release(&region, memory, 64));
    stq_region_trim(&region);
    assert_null(region.pieces);
}

/* What is released is used again before it is trimmed, and a small region keeps to small pages. */
static void test_reuse(void **state) {
    (void)state;
    skip_without_regions();
    stq_region region = {.reserved = 0};
    enum { BYTES = 100 << 10 };
    void *first = stq_region_allocate(&region, BYTES), *second = stq_region_allocate(&region, BYTES);
    assert_ptr_equal(second, (uint8_t *)first + BYTES);
    uint64_t before = test_resident();
    memset(first, 1, BYTES);
    assert_in_range(test_resident_since(before), 0, BYTES + (64 << 10));
    assert_true(stq_region_release(&region, first, BYTES));
    assert_ptr_equal(stq_region_allocate(&region, BYTES), first);
    stq_region_trim(&region);
    assert_int_equal(((uint8_t *)first)[BYTES / 2], 1);
    assert_true(stq_region_release(&region, first, BYTES));
    assert_true(stq_region_release(&region, second, BYTES));
    stq_region_trim(&region);
    assert_int_equal(region.reserved, 0);
}

/* Every second of many is released: their huge pages are no longer full, and still give their parts back. */
static void test_every_second(void **state) {
    (void)state;
    skip_without_regions();
    stq_region region = {.reserved = 0};
    enum { COUNT = 256, BYTES = 200 << 10 };
    static void *memory[COUNT];
    uint64_t before = test_resident();
    for (int i = 0; i < COUNT; i++)
        memory[i] = stq_region_allocate(&region, BYTES);
    for (int i = 0; i < COUNT; i++)
        memset(memory[i], 1, BYTES);
    assert_in_range(test_resident_since(before), COUNT * BYTES, COUNT * BYTES + STQ_HUGE_PAGE);
    for (int i = 0; i < COUNT; i += 2)
        assert_true(stq_region_release(&region, memory[i], BYTES));
    stq_region_trim(&region);
    assert_in_range(test_resident_since(before), COUNT / 2 * BYTES, COUNT / 2 * (BYTES + 2 * 4096) + STQ_HUGE_PAGE);
    for (int i = 1; i < COUNT; i += 2)
        assert_true(stq_region_release(&region, memory[i], BYTES));
    stq_region_trim(&region);
    assert_in_range(test_resident_since(before), 0, STQ_HUGE_PAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_sequence), cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_reuse), cmocka_unit_test(test_every_second)};
    return cmocka_run_group_tests_name("regions of memory", tests, NULL, NULL);
}
