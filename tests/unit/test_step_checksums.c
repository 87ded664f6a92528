/*
 * test_step_checksums.c - every table of kernels against tests/constants/step_checksums.txt, which the scalar reference
 * made.
 *
 *   test_step_checksums              compares all tables that this machine can run
 *   test_step_checksums --generate   prints the table's text, made by the reference
 *
 * STQUANT_SOURCE is the folder of the sources; ctest sets it.
 */
#include "testing.h"

#include "step_runner.h"

static void generate(void) {
    printf("# case, digests after steps 1, 20 and %d: FNV-1a of planes and scales of m, of v, then parameters\n",
           STEP_CASE_STEPS);
    for (uint32_t index = 0; index < STEP_CASE_TOTAL; index++) {
        step_case which = step_case_at(index);
        uint64_t digests[DIGESTS];
        step_case_run(&stq_reference_kernels, &which, case_seed(index), digests);
        printf("%-36s %016llx %016llx %016llx\n", which.name, (unsigned long long)digests[0],
               (unsigned long long)digests[1], (unsigned long long)digests[2]);
    }
}

static step_row rows[STEP_CASE_TOTAL];

static int read_table(void **state) {
    (void)state;
    const char *source = getenv("STQUANT_SOURCE");
    return !step_rows_read(rows, source != NULL ? source : ".");
}

/* `stride`: every how many cases; the reference is slow. */
static void compare(const char *name, uint32_t stride) {
    const stq_kernels *kernels = stq_find_kernels(name);
    if (kernels == NULL) {
        print_message("%s: this machine or build does not have it\n", name);
        skip();
    }
    uint32_t failures = 0;
    for (uint32_t index = 0; index < STEP_CASE_TOTAL; index += stride)
        failures += !step_case_compare(kernels, rows, index);
    assert_int_equal(failures, 0);
}

static void test_reference(void **state) {
    (void)state;
    compare("reference", test_is_long() ? 1 : 6);
}

static void test_avx2(void **state) {
    (void)state;
    compare("avx2", 1);
}

static void test_avx512(void **state) {
    (void)state;
    compare("avx512", 1);
}

static void test_neon(void **state) {
    (void)state;
    compare("neon", 1);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--generate") == 0) {
        generate();
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_avx512),
        cmocka_unit_test(test_avx2),
        cmocka_unit_test(test_neon),
    };
    return cmocka_run_group_tests_name("step checksums", tests, read_table, NULL);
}
