// What the subcommands' options have in common.
#include "command.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 64 };

static int print_group_help(const struct command_group *group, FILE *file) {
    fprintf(file, "Usage: %s %s [ARGUMENT...]\n%s\n\n%c%ss:\n", group->name,
            strcmp(group->kind, "model") ? "COMMAND" : "MODEL", group->doc, group->kind[0] - 'a' + 'A',
            group->kind + 1);
    for (int i = 0; i < group->count; i++) {
        fprintf(file, "  %-10s %s\n", group->entries[i].name, group->entries[i].summary);
    }
    fprintf(file, "\n  -?, --help                 Give this help list\n%s\n%s", group->options, group->details);
    return file == stderr ? APP_USAGE : command_report(group->name, APP_OK);
}

int command_run_group(const struct command_group *group, int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "";
    if (strcmp(word, "--help") == 0 || strcmp(word, "-?") == 0 || strcmp(word, "-h") == 0 ||
        strcmp(word, "help") == 0) {
        return print_group_help(group, stdout);
    }
    for (int i = 0; i < group->count; i++) {
        if (strcmp(word, group->entries[i].name) == 0) {
            char name[NAME_BYTES];
            snprintf(name, sizeof(name), "%s %s", group->name, word);
            argv[1] = name;
            return group->entries[i].run(argc - 1, argv + 1);
        }
    }
    if (argc < 2) {
        return print_group_help(group, stderr);
    }
    fprintf(stderr, "%s: there is no %s '%s'; `%s --help` lists them.\n", group->name, group->kind, word, group->name);
    return APP_USAGE;
}

int64_t command_integer(const struct argp_state *state, const char *option, const char *text, int64_t minimum,
                        int64_t maximum) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || errno || value < minimum || value > maximum) {
        argp_failure(state, APP_USAGE, 0, "--%s takes a whole number from %lld to %lld, not '%s'.", option,
                     (long long)minimum, (long long)maximum, text);
    }
    return value;
}

double command_real(const struct argp_state *state, const char *option, const char *text, double minimum,
                    double maximum) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= minimum && value <= maximum)) {
        argp_failure(state, APP_USAGE, 0, "--%s takes a number from %g to %g, not '%s'.", option, minimum, maximum,
                     text);
    }
    return value;
}

int command_number(const struct command_number *list, size_t count, void *options, int key, const char *argument,
                   const struct argp_state *state) {
    for (size_t i = 0; i < count; i++) {
        const struct command_number *number = &list[i];
        if (number->key != key) {
            continue;
        }
        char *field = (char *)options + number->offset;
        if (number->whole) {
            int64_t value =
                command_integer(state, number->name, argument, (int64_t)number->minimum, (int64_t)number->maximum);
            memcpy(field, &value, sizeof(value));
        } else {
            double value = command_real(state, number->name, argument, number->minimum, number->maximum);
            memcpy(field, &value, sizeof(value));
        }
        return 1;
    }
    return 0;
}

void command_argument(const struct argp_state *state, const char *argument, const char **words, unsigned count,
                      const char *hint) {
    if (state->arg_num < count) {
        words[state->arg_num] = argument;
    } else if (hint) {
        argp_failure(state, APP_USAGE, 0, "'%s' is not expected; %s.", argument, hint);
    } else {
        argp_failure(state, APP_USAGE, 0, "'%s' is not expected; `%s --help` lists the options.", argument,
                     state->name);
    }
}

const char *command_choice(const struct argp_state *state, const char *option, const char *text,
                           const char *const *words, int count) {
    for (int i = 0; i < count; i++) {
        if (strcmp(words[i], text) == 0) {
            return words[i];
        }
    }
    char list[256] = "";
    for (int i = 0; i < count; i++) {
        const size_t length = strlen(list);
        snprintf(list + length, sizeof(list) - length, "%s%s", i == 0 ? "" : i + 1 < count ? ", " : " or ", words[i]);
    }
    argp_failure(state, APP_USAGE, 0, "--%s is %s, not '%s'.", option, list, text);
    return NULL;
}

const struct preset *command_preset(const struct argp_state *state, const char *name) {
    const struct preset *preset = preset_find(name);
    if (!preset) {
        argp_failure(state, APP_USAGE, 0, "There is no preset '%s'; the presets are %s.", name, preset_names());
    }
    return preset;
}

enum { LAYERS = 0x1000, WIDTH, HEADS, CONTEXT, VOCABULARY };

static const struct argp_option model_options[] = {
    {"preset", 'p', "tiny|small|124m|355m|774m|1.5b", 0, "The model (tiny)", 0},
    {"layers", LAYERS, "N", 0, "Transformer blocks, instead of the preset's", 0},
    {"width", WIDTH, "N", 0, "Width of the residual stream, a multiple of the heads", 0},
    {"heads", HEADS, "N", 0, "Attention heads", 0},
    {"context", CONTEXT, "N", 0, "Longest sequence, in tokens", 0},
    {"vocabulary", VOCABULARY, "N", 0, "Number of different tokens", 0},
    {0}};

static error_t parse_model(int key, char *argument, struct argp_state *state) {
    struct command_model *model = state->input;
    struct gpt2_config *overrides = &model->overrides;
    switch (key) {
    case ARGP_KEY_INIT:
        model->preset = preset_find("tiny");
        return 0;
    case 'p':
        model->preset = command_preset(state, argument);
        return 0;
    case LAYERS:
        overrides->layers = command_integer(state, "layers", argument, 1, 10000);
        return 0;
    case WIDTH:
        overrides->width = command_integer(state, "width", argument, 1, 1 << 20);
        return 0;
    case HEADS:
        overrides->heads = command_integer(state, "heads", argument, 1, 1 << 20);
        return 0;
    case CONTEXT:
        overrides->context = command_integer(state, "context", argument, 1, 1 << 24);
        return 0;
    case VOCABULARY:
        overrides->vocabulary = command_integer(state, "vocabulary", argument, 2, 1 << 28);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp command_model_argp = {.options = model_options, .parser = parse_model};

static int64_t either(int64_t override, int64_t preset) { return override ? override : preset; }

struct gpt2_config command_model_config(const struct command_model *model, int64_t vocabulary) {
    const struct gpt2_config *preset = &model->preset->gpt2, *overrides = &model->overrides;
    return (struct gpt2_config){.layers = either(overrides->layers, preset->layers),
                                .width = either(overrides->width, preset->width),
                                .heads = either(overrides->heads, preset->heads),
                                .context = either(overrides->context, preset->context),
                                .vocabulary = either(overrides->vocabulary, either(vocabulary, preset->vocabulary))};
}

int command_report(const char *command, enum app_status status) {
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == APP_OK) {
        status = app_fail(APP_FAILED, "Writing to standard output failed; is the disk full?");
    }
    if (status != APP_OK) {
        fprintf(stderr, "%s: %s\n", command, app_failure());
    }
    return (int)status;
}
