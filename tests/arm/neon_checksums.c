/*
 * neon_checksums.c - the NEON kernels against the table of checksums, without a test library, so that it can be
 * cross-compiled and run by an emulator (tests/scripts/test_neon.sh).
 *
 * usage: neon_checksums SOURCES [STRIDE]   every STRIDE-th case; prints a TAP line for each
 */
#include "step_runner.h"

int main(int argc, char **argv) {
    static step_row rows[STEP_CASE_TOTAL];
    const stq_kernels *kernels = stq_find_kernels("neon");
    if (argc < 2 || kernels == NULL || !step_rows_read(rows, argv[1]))
        return 1;
    long stride = argc > 2 ? strtol(argv[2], NULL, 10) : 1;
    int failures = 0;
    for (long index = 0; index<STEP_CASE_TOTAL; index += stride> 0 ? stride : 1) {
        bool same = step_case_compare(kernels, rows, (uint32_t)index);
        printf("%s - neon, %s\n", same ? "ok" : "not ok", rows[index].name);
        failures += !same;
    }
    return failures != 0;
}
