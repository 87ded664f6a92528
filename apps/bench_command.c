// `stquant bench`: how fast the library is on this machine.
#include "bench.h"

int command_bench(int argc, char **argv) {
    static const struct command_entry benchmarks[] = {
        {"step", "one AdamW step with low-bit states against our own float32 AdamW", command_bench_step},
        {"codec", "encoding and decoding alone, and their signal-to-noise ratio", command_bench_codec},
        {"policy", "a decision about widths, by the number of tensors", command_bench_policy},
        {"score", "what decisions add to the training of a model", command_bench_score},
        {"qat", "the passes of quantization-aware training over a matrix", command_bench_qat}};
    static const struct command_group group = {.name = "stquant bench",
                                               .doc = "How fast the library is on this machine.",
                                               .kind = "command",
                                               .options = "",
                                               .details = "`stquant bench COMMAND --help` tells more.\n\n"
                                                          "Examples:\n\n"
                                                          "  stquant bench step --bits 5 --threads 2\n"
                                                          "  stquant bench codec --json\n",
                                               .entries = benchmarks,
                                               .count = sizeof(benchmarks) / sizeof(benchmarks[0])};
    return command_run_group(&group, argc, argv);
}
