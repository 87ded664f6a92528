// The subcommands, and what their options have in common.
#ifndef STQUANT_COMMAND_H
#define STQUANT_COMMAND_H

#include <argp.h>
#include <stdint.h>

#include "train/gpt2.h"
#include "train/presets.h"

// Each takes its own arguments with its full name ("stquant plan") in argv[0], and returns the exit
// status: 0, 1 when the run failed, 2 when the arguments make no sense.
int command_train(int argc, char **argv);
int command_train_gpt2(int argc, char **argv); // "stquant train gpt2"
int command_train_vit(int argc, char **argv);
int command_plan(int argc, char **argv);
int command_data(int argc, char **argv);
int command_report_page(int argc, char **argv);
int command_factors(int argc, char **argv);
int command_bench(int argc, char **argv);
int command_convert(int argc, char **argv);
int command_inspect(int argc, char **argv);
int command_eval(int argc, char **argv);
int command_sample(int argc, char **argv);

struct command_entry {
    const char *name, *summary;
    int (*run)(int argc, char **argv); // argv[0] is the full name
};

// Subcommands below one name ("stquant data").
struct command_group {
    const char *name;    // in full
    const char *doc;     // what they are about, one sentence
    const char *kind;    // what one is called, "command" or "model"
    const char *options; // lines about options of the group itself beside --help; may be empty
    const char *details; // behind the list: paragraphs, examples
    const struct command_entry *entries;
    int count;
};

// Runs the subcommand that argv[1] names, or prints the group's help; returns the exit status.
int command_run_group(const struct command_group *group, int argc, char **argv);

// Numbers in options. Text that is no number, or one outside the range, ends the process with status 2 and
// a sentence that names the option. `option` is its long name without dashes.
int64_t command_integer(const struct argp_state *state, const char *option, const char *text, int64_t minimum,
                        int64_t maximum);
double command_real(const struct argp_state *state, const char *option, const char *text, double minimum,
                    double maximum);

// An option that is a number: where in the options' struct it goes (int64_t or double), and what it may be.
struct command_number {
    int key;
    const char *name; // long name without dashes
    size_t offset;
    int whole; // int64_t
    double minimum, maximum;
};

// Takes the number of option `key` into `options`; 0 where the list has no such option. Ends the process as above.
int command_number(const struct command_number *list, size_t count, void *options, int key, const char *argument,
                   const struct argp_state *state);

// Takes what is no option: the first `count` arguments go into `words`, one more ends the process with status 2. `hint`
// is the end of that sentence and tells where such a thing belongs; null refers to the help text.
void command_argument(const struct argp_state *state, const char *argument, const char **words, unsigned count,
                      const char *hint);

// One of `count` words; ends the process with status 2 when it is none of them.
const char *command_choice(const struct argp_state *state, const char *option, const char *text,
                           const char *const *words, int count);

// The preset of that name; ends the process with status 2 when there is none.
const struct preset *command_preset(const struct argp_state *state, const char *name);

// Options of a model's shape, as a child of a subcommand's argp; its input is a struct command_model.
struct command_model {
    const struct preset *preset;
    struct gpt2_config overrides; // 0 where the preset decides
};
extern const struct argp command_model_argp;

// The preset's shape with the overrides. `vocabulary` takes the place of the preset's, unless it is 0.
struct gpt2_config command_model_config(const struct command_model *model, int64_t vocabulary);

// Sees to it that what the command has printed was taken, which otherwise is a failure like any other. Prints the
// sentence of the last failure on standard error; returns the status as exit status.
int command_report(const char *command, enum app_status status);

#endif
