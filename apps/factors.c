// `stquant factors`: which factors of a gradient tell most about the error of coded states.
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <stquant/score.h>
#include <string.h>

#include "command.h"
#include "train/trace_file.h"

struct settings {
    const char **paths;
    int path_count;
    const char *held_out[64];
    int held_out_count;
    int64_t k, bits;
    int states;
    int json;
};

enum { K = 'k', BITS = 'b', STATE = 0x3000, HELD_OUT, JSON };

static const struct argp_option options[] = {
    {"k", K, "N", 0, "How many factors to choose, 1 to 6 (2)", 0},
    {"bits", BITS, "N", 0, "The width whose error is explained, 2 to 8 (4)", 0},
    {"state", STATE, "m|v|both", 0, "Errors of which moments (both)", 0},
    {"held-out", HELD_OUT, "TRACE", 0, "Also score the chosen factors on this trace; may be given several times", 0},
    {"json", JSON, 0, 0, "Print a JSON object", 0},
    {0}};

static error_t parse(int key, char *argument, struct argp_state *state) {
    static const char *const words[] = {"m", "v", "both"};
    struct settings *settings = state->input;
    switch (key) {
    case K:
        settings->k = command_integer(state, "k", argument, 1, STQ_MOST_SELECTED);
        return 0;
    case BITS:
        settings->bits = command_integer(state, "bits", argument, 2, 8);
        return 0;
    case STATE: {
        const char *word = command_choice(state, "state", argument, words, 3);
        settings->states = word == words[0] ? TRACE_M : word == words[1] ? TRACE_V : TRACE_BOTH;
        return 0;
    }
    case HELD_OUT:
        if (settings->held_out_count == 64) {
            argp_failure(state, APP_USAGE, 0, "--held-out can be given 64 times.");
        }
        settings->held_out[settings->held_out_count++] = argument;
        return 0;
    case JSON:
        settings->json = 1;
        return 0;
    case ARGP_KEY_ARG:
        settings->paths[settings->path_count++] = argument;
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_failure(state, APP_USAGE, 0, "Name at least one trace, written by `stquant train ... --trace FILE`.");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .args_doc = "TRACE...",
    .doc =
        "Chooses, out of all factors that the score engine knows, those that tell most about the relative error of the "
        "updates when states are coded: greedily, with the submodularity ratio that guarantees how near the "
        "optimum that is, and the optimum itself.\v"
        "The value of a set of factors is 1/2 log(var(Y) / var(Y | X)) in nats, for the logarithm Y of the error and "
        "the factors X, each after a transformation to normal scores by rank.\n\n"
        "Examples:\n\n"
        "  stquant train gpt2 --data text.txt --trace run.trace\n"
        "  stquant factors run.trace --k 2 --bits 4\n"
        "  stquant factors run.trace --state v --held-out other.trace --json\n"};

// A list of names; `set` in the order of `order`, or in that of the factors.
static json_t *list_names(uint32_t set, const uint32_t *order, int64_t k) {
    json_t *list = json_array();
    for (int64_t i = 0; order && i < k; i++) {
        json_array_append_new(list, json_string(trace_factor_name((int)order[i])));
    }
    for (int i = 0; !order && i < TRACE_FACTORS; i++) {
        if (set >> i & 1) {
            json_array_append_new(list, json_string(trace_factor_name(i)));
        }
    }
    return list;
}

static void print_names(const char *head, const json_t *names, double value) {
    printf("%-20s", head);
    for (size_t i = 0; i < json_array_size(names); i++) {
        printf("%s%s", i ? ", " : "", json_string_value(json_array_get(names, i)));
    }
    printf(": %.4f nats\n", value);
}

static void print(const struct settings *settings, const stq_selection *s, size_t samples, const double *held_out) {
    json_t *selected = list_names(0, s->order, settings->k), *best = list_names(s->best, NULL, 0);
    json_t *result = json_pack("{s:O, s:f, s:O, s:f, s:f, s:f, s:I, s:I}", "selected", selected, "value", s->value,
                               "best", best, "best_value", s->best_value, "gamma", s->gamma, "bound", s->bound,
                               "samples", (json_int_t)samples, "bits", (json_int_t)settings->bits);
    if (held_out) {
        json_object_set_new(result, "held_out_value", json_real(*held_out));
    }
    if (settings->json) {
        json_dumpf(result, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        printf("\n");
    } else {
        printf("%zu samples, errors at %lld bits\n", samples, (long long)settings->bits);
        print_names("chosen greedily", selected, s->value);
        print_names("the optimum", best, s->best_value);
        printf("%-20s%.4f, so that the greedy value is at least %.1f %% of the optimum; it is %.1f %%\n",
               "submodularity ratio", s->gamma, 100 * s->bound,
               s->best_value > 0 ? 100 * s->value / s->best_value : 100);
        if (held_out) {
            printf("%-20s%.4f nats\n", "on held-out traces", *held_out);
        }
    }
    json_decref(result);
    json_decref(selected);
    json_decref(best);
}

static enum app_status read_traces(const struct settings *settings, const char *const *paths, int count,
                                   struct trace_samples *samples) {
    for (int i = 0; i < count; i++) {
        enum app_status status = trace_samples_add(samples, paths[i], settings->states, (int)settings->bits);
        if (status != APP_OK) {
            return status;
        }
    }
    return APP_OK;
}

static enum app_status run(const struct settings *settings, struct trace_samples *samples,
                           struct trace_samples *held_out) {
    enum app_status status = read_traces(settings, settings->paths, settings->path_count, samples);
    if (status == APP_OK) {
        status = read_traces(settings, settings->held_out, settings->held_out_count, held_out);
    }
    if (status != APP_OK) {
        return status;
    }
    stq_selection selection;
    status = app_check(stq_select_factors(&selection, samples->factors, samples->target, samples->count, TRACE_FACTORS,
                                          (size_t)settings->k));
    double value;
    if (status == APP_OK && settings->held_out_count) {
        status = app_check(stq_factor_value(&value, selection.selected, held_out->factors, held_out->target,
                                            held_out->count, TRACE_FACTORS));
    }
    if (status == APP_OK) {
        print(settings, &selection, samples->count, settings->held_out_count ? &value : NULL);
    }
    return status;
}

int command_factors(int argc, char **argv) {
    struct settings settings = {.k = 2, .bits = 4, .states = TRACE_BOTH};
    settings.paths = calloc((size_t)argc + 1, sizeof(*settings.paths));
    if (!settings.paths) {
        return command_report(argv[0], app_fail(APP_FAILED, "There is no memory for the arguments."));
    }
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
    struct trace_samples samples = {0}, held_out = {0};
    enum app_status status = run(&settings, &samples, &held_out);
    trace_samples_release(&samples);
    trace_samples_release(&held_out);
    free(settings.paths);
    return command_report(argv[0], status);
}
