/* cpu_bench.c - `stquant bench step` and `codec` without the libraries that the rest of the command needs; see
 * scripts/build-cpu. */
#include <stdio.h>
#include <string.h>

#include "bench.h"

int main(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "step") == 0)
        return command_bench_step(argc - 1, argv + 1);
    if (argc >= 2 && strcmp(argv[1], "codec") == 0)
        return command_bench_codec(argc - 1, argv + 1);
    fputs("Usage: stquant-bench step|codec [OPTION...]\n", stderr);
    return APP_USAGE;
}
