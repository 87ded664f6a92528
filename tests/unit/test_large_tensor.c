/*
 * test_large_tensor.c - one tensor of 2^31 + 7 elements on the CPU, bfloat16 with states of 2 bits: 4.3 GB of
 * parameters and 1.1 GB of states. Its ends and the values around element 2^31 must be those of slices that are
 * optimized on their own, in which no index is large. Skipped where there is no such memory.
 */
#include "testing.h"

#include <math.h>
#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

#define LARGE_COUNT ((INT64_C(1) << 31) + 7)

enum { STEPS = 2, GUARD = 64, SEGMENT = 65536 };

/* Gradients repeat: many mappings of one piece of memory, so that they take none of their own. */
enum { PERIOD = 1 << 25, PERIOD_BYTES = PERIOD * 2 };

static const uint64_t mapped_bytes = ((uint64_t)LARGE_COUNT * 2 + PERIOD_BYTES - 1) / PERIOD_BYTES * PERIOD_BYTES;

/* Bytes that Linux thinks it can give without swapping; 0 if it does not say. */
static uint64_t available_bytes(void) {
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128];
    unsigned long long kilobytes = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "MemAvailable: %llu kB", &kilobytes) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return (uint64_t)kilobytes * 1024;
}

/* Parameters, gradients, two codes of 2 bits and two scale words a block, and room for what else runs. */
static uint64_t needed_bytes(void) {
    uint64_t states = 2 * (stq_plane_bytes(LARGE_COUNT, 2, 0) + 2 * (uint64_t)stq_block_count(LARGE_COUNT));
    return (uint64_t)LARGE_COUNT * 2 + PERIOD_BYTES + states + (UINT64_C(1) << 30);
}

/* One period of bfloat16 gradients: sizes over several octaves, zeros now and then. */
static void fill_period(uint16_t *gradients) {
#pragma omp parallel for
    for (int64_t i = 0; i < PERIOD; i++) {
        uint32_t hash = stq_hash((uint32_t)i + 99);
        float value = test_gaussian(7, (uint32_t)i) * (hash % 64 == 0 ? 0.0f : ldexpf(1e-3f, -(int)(hash >> 28)));
        gradients[i] = (uint16_t)(stq_float_bits(value) >> 16);
    }
}

/* LARGE_COUNT gradients; NULL if they cannot be mapped. */
static uint16_t *open_gradients(void) {
    int file = memfd_create("gradients", 0);
    if (file < 0 || ftruncate(file, PERIOD_BYTES) != 0)
        return NULL;
    uint8_t *all = mmap(NULL, mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    bool mapped = all != MAP_FAILED;
    for (uint64_t at = 0; mapped && at < mapped_bytes; at += PERIOD_BYTES)
        mapped = mmap(all + at, PERIOD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != MAP_FAILED;
    close(file);
    if (!mapped)
        return NULL;
    fill_period((uint16_t *)(void *)all);
    return (uint16_t *)(void *)all;
}

static stq_adamw *open_optimizer(int64_t first, int64_t count) {
    stq_tensor tensor = stq_tensor_whole("large", 1, LARGE_COUNT);
    tensor.first = first;
    tensor.count = count;
    tensor.parameter_type = tensor.gradient_type = STQ_BFLOAT16;
    tensor.m_bits = tensor.v_bits = 2;
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = STQ_POLICY_FIXED;
    config.seed = 4711;
    stq_adamw *optimizer;
    if (stq_adamw_create(&optimizer, &config, &tensor, 1) != STQ_OK)
        fail_msg("%s", stq_last_error());
    return optimizer;
}

static double run_steps(stq_adamw *optimizer, uint16_t *parameters, const uint16_t *gradients, double norm) {
    stq_step_result result = {0};
    for (int t = 0; t < STEPS; t++) {
        stq_step step = {.size = sizeof step,
                         .parameters = (void *[]){parameters},
                         .gradients = (const void *[]){gradients},
                         .unscale = 1,
                         .norm_supplied = norm > 0,
                         .gradient_norm = norm};
        assert_int_equal(stq_adamw_step(optimizer, &step, &result), STQ_OK);
        assert_false(result.skipped);
    }
    return result.gradient_norm;
}

/* Compares elements first .. first + count - 1 with a slice of its own. */
static void compare_slice(const stq_adamw *large, const uint16_t *parameters, const uint16_t *gradients, int64_t first,
                          int64_t count) {
    uint16_t *slice = calloc((size_t)count, sizeof *slice);
    float *expected = malloc((size_t)count * sizeof *expected), *values = malloc((size_t)count * sizeof *values);
    stq_adamw *optimizer = open_optimizer(first, count);
    run_steps(optimizer, slice, gradients + first, 1);
    assert_memory_equal(slice, parameters + first, (size_t)count * sizeof *slice);
    for (stq_state state = STQ_FIRST_MOMENT; state <= STQ_SECOND_MOMENT; state++) {
        assert_int_equal(stq_adamw_read_state(optimizer, 0, state, expected, first, count), STQ_OK);
        assert_int_equal(stq_adamw_read_state(large, 0, state, values, first, count), STQ_OK);
        assert_memory_equal(values, expected, (size_t)count * sizeof *values);
    }
    stq_adamw_destroy(optimizer);
    free(slice);
    free(expected);
    free(values);
}

/* Squares of all gradients in double, one period at a time. */
static double expected_norm(const uint16_t *gradients) {
    double period = 0, rest = 0;
    for (int64_t i = 0; i < PERIOD; i++) {
        double g = stq_bits_float((uint32_t)gradients[i] << 16);
        period += g * g;
        rest += i < LARGE_COUNT % PERIOD ? g * g : 0;
    }
    return sqrt(period * (double)(LARGE_COUNT / PERIOD) + rest);
}

static void test_large_tensor(void **state) {
    (void)state;
    if (!test_is_long()) {
        print_message("takes 20 s; make check-long runs it\n");
        skip();
    }
    if (available_bytes() < needed_bytes()) {
        print_message("needs %.1f GB of free memory, there are %.1f\n", 1e-9 * (double)needed_bytes(),
                      1e-9 * (double)available_bytes());
        skip();
    }
    size_t bytes = (size_t)LARGE_COUNT * 2;
    uint8_t *room = mmap(NULL, bytes + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const uint16_t *gradients = open_gradients();
    if (room == MAP_FAILED || gradients == NULL) {
        print_message("this process may not map %.1f GB\n", 1e-9 * (double)(bytes + mapped_bytes));
        skip();
    }
    madvise(room, bytes, MADV_HUGEPAGE);
    memset(room + bytes, 0xa5, GUARD);
    uint16_t *parameters = (uint16_t *)(void *)room;
    stq_adamw *optimizer = open_optimizer(0, LARGE_COUNT);
    double begin = omp_get_wtime(), norm = run_steps(optimizer, parameters, gradients, 0);
    print_message("%d steps on %lld elements: %.1f s\n", STEPS, (long long)LARGE_COUNT, omp_get_wtime() - begin);
    /* Segment sums in float and their tree in double: far nearer than this. */
    assert_true(fabs(norm / expected_norm(gradients) - 1) < 1e-5);
    for (int i = 0; i < GUARD; i++)
        assert_int_equal(room[bytes + (size_t)i], 0xa5);
    const int64_t middle = INT64_C(1) << 30, end = INT64_C(1) << 31;
    compare_slice(optimizer, parameters, gradients, 0, 4 * SEGMENT);
    compare_slice(optimizer, parameters, gradients, middle - SEGMENT, 2 * SEGMENT);
    compare_slice(optimizer, parameters, gradients, end - 8 * SEGMENT, LARGE_COUNT - end + 8 * SEGMENT);
    stq_adamw_destroy(optimizer);
    munmap(room, bytes + GUARD);
    munmap((void *)(uintptr_t)gradients, mapped_bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_large_tensor)};
    return cmocka_run_group_tests_name("large tensor", tests, NULL, NULL);
}
