// The command `stquant`: finds the subcommand and hands over.
#include <stdio.h>
#include <stdlib.h>
#include <stquant/base.h>
#include <string.h>

#include "command.h"

static const struct command_entry commands[] = {
    {"train", "train a model, with float32 or low-bit optimizer states", command_train},
    {"plan", "bytes of parameters, gradients and states of a model", command_plan},
    {"data", "turn text into tokens", command_data},
    {"report", "a page about one or several runs, out of their logs", command_report_page},
    {"factors", "which factors tell most about the error of coded states", command_factors},
    {"bench", "how fast the library is on this machine", command_bench},
    {"inspect", "what a checkpoint holds", command_inspect},
    {"convert", "checkpoints with other widths, in other parts, for other programs", command_convert},
    {"eval", "the loss of a checkpoint's model", command_eval},
    {"sample", "text written by a checkpoint's model", command_sample},
};

static const struct command_group group = {
    .name = "stquant",
    .doc = "Adam states at adaptive low precision.",
    .kind = "command",
    .options = "  -V, --version              Print the version\n",
    .details = "`stquant COMMAND --help` tells more.\n\n"
               "Examples:\n\n"
               "  stquant train gpt2 --data text.txt --log stquant.jsonl\n"
               "  stquant train gpt2 --data text.txt --optimizer adamw --log float32.jsonl\n"
               "  stquant report float32.jsonl stquant.jsonl --output report.html\n"
               "  stquant plan --preset 124m --state-bits 5.0\n\n"
               "Exit status: 0, 1 when something failed, 2 when the arguments make no sense.\n",
    .entries = commands,
    .count = sizeof(commands) / sizeof(commands[0])};

int main(int argc, char **argv) {
    argp_err_exit_status = APP_USAGE;
    if (argc > 1 && (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0)) {
        printf("stquant %s\n", stq_version());
        return command_report("stquant", APP_OK);
    }
    return command_run_group(&group, argc, argv);
}
