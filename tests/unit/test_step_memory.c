/*
 * test_step_memory.c - a step needs no scratch memory that grows with the tensors: every call of malloc and its kin in
 * this process is counted. Steps at constant widths allocate nothing at all; a transition takes the planes of the new
 * widths from the optimizer's allocator, and nothing else. Calls for pages, which the library's own memory makes, are
 * counted likewise. Only second moments that are shared need scratch: a step without it changes nothing.
 */
#include "testing.h"

#include <limits.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Under a sanitizer malloc is the sanitizer's. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTS_CALLS 0
#elif defined(__GLIBC__)
#define COUNTS_CALLS 1
#else
#define COUNTS_CALLS 0
#endif

static atomic_llong calls, bytes_asked, most_allowed = LLONG_MAX;
static atomic_llong page_calls; /* mmap, munmap, madvise */
static atomic_bool no_pages;    /* mmap fails */

#if COUNTS_CALLS
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *pointer, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static void count_call(size_t bytes) {
    atomic_fetch_add(&calls, 1);
    atomic_fetch_add(&bytes_asked, (long long)bytes);
}

void *malloc(size_t bytes) {
    count_call(bytes);
    return (long long)bytes > atomic_load(&most_allowed) ? NULL : __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes) {
    count_call(count * bytes);
    return __libc_calloc(count, bytes);
}

void *realloc(void *pointer, size_t bytes) {
    count_call(bytes);
    return __libc_realloc(pointer, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes) {
    count_call(bytes);
    return __libc_memalign(alignment, bytes);
}

int posix_memalign(void **pointer, size_t alignment, size_t bytes) {
    *pointer = aligned_alloc(alignment, bytes);
    return *pointer == NULL && bytes != 0 ? 12 : 0; /* ENOMEM */
}

/* The C library itself does not call these by their names. */
void *mmap(void *place, size_t bytes, int protection, int flags, int file, off_t offset) {
    atomic_fetch_add(&page_calls, 1);
    if (atomic_load(&no_pages))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, place, bytes, protection, flags, file, offset);
}

int munmap(void *place, size_t bytes) {
    atomic_fetch_add(&page_calls, 1);
    return (int)syscall(SYS_munmap, place, bytes);
}

int madvise(void *place, size_t bytes, int advice) {
    atomic_fetch_add(&page_calls, 1);
    return (int)syscall(SYS_madvise, place, bytes, advice);
}
#endif

/* The allocator of the states: what it holds now, and the most since `most` was set. */
typedef struct states {
    uint64_t held, most;
    int allocations;
} states;

static void *take(void *context, size_t bytes) {
    states *s = context;
    long long before = atomic_load(&calls), bytes_before = atomic_load(&bytes_asked);
    void *pointer = aligned_alloc(64, bytes);
    atomic_store(&calls, before);
    atomic_store(&bytes_asked, bytes_before);
    s->held += bytes;
    s->most = s->held > s->most ? s->held : s->most;
    s->allocations++;
    return pointer;
}

static void give(void *context, void *pointer, size_t bytes) {
    states *s = context;
    s->held -= bytes;
    free(pointer);
}

enum { TENSORS = 3 };

typedef struct fixture {
    states states;
    stq_tensor tensors[TENSORS];
    void *parameters[TENSORS];
    void *gradients[TENSORS];
    stq_adamw *optimizer;
} fixture;

/* States from the allocator that counts, or from the library's own memory. */
static void open_fixture_with(fixture *f, int64_t rows, uint32_t m_bits, uint32_t v_bits, bool own) {
    *f = (fixture){0};
    for (int i = 0; i < TENSORS; i++) {
        f->tensors[i] = stq_tensor_whole(i == 0 ? "a" : i == 1 ? "b" : "c", rows + i, 257);
        f->tensors[i].m_bits = m_bits;
        f->tensors[i].v_bits = v_bits;
        f->tensors[i].parameter_type = i == 1 ? STQ_BFLOAT16 : STQ_FLOAT32; /* also where values are converted */
        f->parameters[i] = calloc((size_t)f->tensors[i].count, sizeof(float));
        float *gradient = f->gradients[i] = malloc((size_t)f->tensors[i].count * sizeof(float));
        for (int64_t k = 0; k < f->tensors[i].count; k++)
            gradient[k] = 1e-3f * test_gaussian(3, (uint32_t)k);
    }
    const stq_allocator allocator = {.context = &f->states, .allocate = take, .release = give};
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = STQ_POLICY_FIXED;
    config.allocator = own ? NULL : &allocator;
    config.threads = 2;
    if (stq_adamw_create(&f->optimizer, &config, f->tensors, TENSORS) != STQ_OK)
        fail_msg("%s", stq_last_error());
}

static void open_fixture(fixture *f, int64_t rows, uint32_t m_bits, uint32_t v_bits) {
    open_fixture_with(f, rows, m_bits, v_bits, false);
}

static void close_fixture(fixture *f) {
    stq_adamw_destroy(f->optimizer);
    assert_int_equal(f->states.held, 0);
    for (int i = 0; i < TENSORS; i++) {
        free(f->parameters[i]);
        free(f->gradients[i]);
    }
}

/* One step; returns how often memory was asked for, the states' allocator left aside. */
static long long count_step(fixture *f, bool own_norm) {
    stq_step step = {.size = sizeof step,
                     .parameters = f->parameters,
                     .gradients = (const void *const *)f->gradients,
                     .unscale = 1,
                     .norm_supplied = !own_norm,
                     .gradient_norm = 1};
    f->states.most = f->states.held;
    f->states.allocations = 0;
    long long before = atomic_load(&calls);
    assert_int_equal(stq_adamw_step(f->optimizer, &step, NULL), STQ_OK);
    return atomic_load(&calls) - before;
}

/* Makes the next step write these widths, whatever the contents. */
static void aim(fixture *f, uint32_t m_bits, uint32_t v_bits) {
    stq_adamw_record record;
    stq_tensor_record records[TENSORS];
    assert_int_equal(stq_adamw_save_records(f->optimizer, &record, records, TENSORS), STQ_OK);
    for (int i = 0; i < TENSORS; i++) {
        records[i].target[STQ_FIRST_MOMENT] = (uint8_t)m_bits;
        records[i].target[STQ_SECOND_MOMENT] = (uint8_t)v_bits;
    }
    assert_int_equal(stq_adamw_restore(f->optimizer, &record, records, TENSORS), STQ_OK);
    stq_buffer buffers[16 * TENSORS];
    size_t count;
    assert_int_equal(stq_adamw_buffers(f->optimizer, buffers, 16 * TENSORS, &count), STQ_OK);
    assert_in_range(count, 1, 16 * TENSORS);
    for (size_t i = 0; i < count; i++)
        memset(buffers[i].data, 0, (size_t)buffers[i].bytes);
}

static void skip_without_counts(void) {
    if (COUNTS_CALLS) {
        long long before = atomic_load(&calls);
        void *volatile pointer = malloc(1);
        free(pointer);
        assert_int_equal(atomic_load(&calls), before + 1); /* the counting itself works */
        return;
    }
    print_message("calls of malloc cannot be counted here\n");
    skip();
}

static void test_plain_steps(void **state) {
    (void)state;
    skip_without_counts();
    for (uint32_t bits = 2; bits <= 8; bits++)
        for (int large = 0; large < 2; large++) {
            fixture f;
            open_fixture(&f, large ? 1000 : 10, bits, 10 - bits);
            count_step(&f, true); /* the states, and the threads of a first parallel region */
            for (int own_norm = 0; own_norm < 2; own_norm++) {
                assert_int_equal(count_step(&f, own_norm), 0);
                assert_int_equal(f.states.allocations, 0);
            }
            close_fixture(&f);
        }
}

/* Bytes of all tensors' planes of these widths, as the allocator gives them out. */
static uint64_t plane_bytes(const fixture *f, uint32_t m_bits, uint32_t v_bits) {
    uint64_t bytes = 0;
    for (int i = 0; i < TENSORS; i++)
        for (int state = 0; state < 2; state++) {
            uint32_t bits = state ? v_bits : m_bits;
            for (uint32_t k = 0; k < stq_plane_count(bits); k++)
                bytes += (stq_plane_bytes(f->tensors[i].count, bits, k) + 63) / 64 * 64;
        }
    return bytes;
}

/* From and to every width. Base planes of the other kind exist beside the old ones for the time of the step. */
static void test_transitions(void **state) {
    (void)state;
    skip_without_counts();
    for (uint32_t from = 2; from <= 8; from++)
        for (uint32_t to = 2; to <= 8; to++)
            for (int large = 0; large < 2; large++) {
                fixture f;
                uint32_t other_from = 10 - from, other_to = 10 - to;
                open_fixture(&f, large ? 500 : 10, from, other_from);
                count_step(&f, true);
                aim(&f, to, other_to);
                uint64_t held = f.states.held;
                assert_int_equal(count_step(&f, false), 0);
                uint64_t old_planes = plane_bytes(&f, from, other_from), planes = plane_bytes(&f, to, other_to);
                assert_int_equal(f.states.held, held - old_planes + planes);
                assert_in_range(f.states.most, f.states.held > held ? f.states.held : held, held + planes);
                assert_int_equal(count_step(&f, false), 0);
                assert_int_equal(f.states.allocations, 0);
                close_fixture(&f);
            }
}

/* What malloc gives while the library's own memory grows, at most: lists of gaps and pages, two for each of up to six
 * kinds of planes of either state, whatever their length. */
enum { LISTS = 16 << 10 };

/* Planes of 64 KiB and more; mmap may fail, and aligned_alloc serves. */
static void test_library_memory(void **state) {
    (void)state;
    skip_without_counts();
    for (int without_pages = 0; without_pages < 2; without_pages++)
        for (uint32_t to = 2; to <= 8; to++) {
            fixture f;
            atomic_store(&no_pages, without_pages);
            open_fixture_with(&f, 2100, 10 - to, to, true);
            count_step(&f, true);
            long long pages_before = atomic_load(&page_calls);
            assert_int_equal(count_step(&f, true), 0);
            assert_int_equal(atomic_load(&page_calls), pages_before);
            aim(&f, to, 10 - to);
            long long before = atomic_load(&bytes_asked);
            pages_before = atomic_load(&page_calls);
            count_step(&f, false);
            long long asked = atomic_load(&bytes_asked) - before;
            assert_in_range(asked, without_pages && to != 5 ? 64 << 10 : 0,
                            LISTS + (without_pages ? (long long)plane_bytes(&f, to, 10 - to) : 0));
            assert_true(to == 5 || atomic_load(&page_calls) > pages_before);
            pages_before = atomic_load(&page_calls);
            assert_int_equal(count_step(&f, false), 0);
            assert_int_equal(atomic_load(&page_calls), pages_before);
            stq_memory memory;
            assert_int_equal(stq_adamw_memory(f.optimizer, &memory), STQ_OK);
            assert_true(memory.state_bytes >= plane_bytes(&f, to, 10 - to));
            close_fixture(&f);
            atomic_store(&no_pages, false);
        }
}

/* The scratch of the last tensor, which has the most rows, is refused. */
static void test_no_memory_for_shared_moments(void **state) {
    (void)state;
    skip_without_counts();
    fixture f;
    open_fixture(&f, 1000, 4, STQ_BITS_SHARED_ROW);
    count_step(&f, false);
    uint64_t before, after;
    assert_int_equal(stq_adamw_digest(f.optimizer, &before), STQ_OK);
    stq_step step = {.size = sizeof step,
                     .parameters = f.parameters,
                     .gradients = (const void *const *)f.gradients,
                     .unscale = 1,
                     .norm_supplied = true,
                     .gradient_norm = 1};
    atomic_store(&most_allowed, (1000 + TENSORS - 2) * (sizeof(int64_t) + sizeof(float)));
    assert_int_equal(stq_adamw_step(f.optimizer, &step, NULL), STQ_OUT_OF_MEMORY);
    atomic_store(&most_allowed, LLONG_MAX);
    assert_int_equal(stq_adamw_digest(f.optimizer, &after), STQ_OK);
    assert_true(before == after);
    assert_int_equal(count_step(&f, false), 1);
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_plain_steps), cmocka_unit_test(test_transitions),
                                       cmocka_unit_test(test_library_memory),
                                       cmocka_unit_test(test_no_memory_for_shared_moments)};
    return cmocka_run_group_tests_name("memory of a step", tests, NULL, NULL);
}
