// The command `stquant`: finds the subcommand and hands over.
#include <stdio.h>
#include <stdlib.h>
#include <stquant/base.h>
#include <string.h>

#include "command.h"

static const struct {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} commands[] = {
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

enum { COUNT = sizeof(commands) / sizeof(commands[0]) };

static void print_help(FILE *file) {
    fprintf(file, "Usage: stquant COMMAND [ARGUMENT...]\n"
                  "Adam states at adaptive low precision.\n\nCommands:\n");
    for (int i = 0; i < COUNT; i++) {
        fprintf(file, "  %-10s %s\n", commands[i].name, commands[i].summary);
    }
    fprintf(file, "\n`stquant COMMAND --help` tells more; `stquant --version` prints the version.\n");
}

int main(int argc, char **argv) {
    argp_err_exit_status = APP_USAGE;
    if (argc < 2) {
        print_help(stderr);
        return APP_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        printf("stquant %s\n", stq_version());
        return 0;
    }
    for (int i = 0; i < COUNT; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            char name[64];
            snprintf(name, sizeof(name), "stquant %s", commands[i].name);
            argv[1] = name;
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    fprintf(stderr, "stquant: there is no command '%s'; `stquant --help` lists them.\n", argv[1]);
    return APP_USAGE;
}
