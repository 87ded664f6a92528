/* cpu_bench.c - `stquant bench` without the libraries that the rest of the command needs; see scripts/build-cpu. */
#include "bench.h"

int main(int argc, char **argv) { return command_bench(argc, argv); }
