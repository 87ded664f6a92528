// `stquant plan`: what a model and its optimizer states take, before anybody spends hours.
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "train/memory.h"
#include "train/optimizer.h"

struct settings {
    struct command_model model;
    double state_bits;
    int64_t batch, sequence_length; // 0: the preset's
    int json;
};

enum { STATE_BITS = 0x2000, JSON, BATCH, SEQUENCE_LENGTH };

static const struct argp_option options[] = {
    {"state-bits", STATE_BITS, "B", 0, "The cap on the states: bits per value with everything included (5.0)", 0},
    {"batch", BATCH, "N", 0, "Sequences of a batch, for the activations", 0},
    {"sequence-length", SEQUENCE_LENGTH, "N", 0, "Tokens of a sequence, for the activations", 0},
    {"json", JSON, 0, 0, "Print a JSON object", 0},
    {0}};

static error_t parse(int key, char *argument, struct argp_state *state) {
    struct settings *settings = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &settings->model;
        return 0;
    case STATE_BITS:
        settings->state_bits = command_real(state, "state-bits", argument, 0, 64);
        return 0;
    case BATCH:
        settings->batch = command_integer(state, "batch", argument, 1, 1 << 20);
        return 0;
    case SEQUENCE_LENGTH:
        settings->sequence_length = command_integer(state, "sequence-length", argument, 1, 1 << 24);
        return 0;
    case JSON:
        settings->json = 1;
        return 0;
    case ARGP_KEY_ARG:
        command_argument(state, argument, NULL, 0, NULL);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child children[] = {{&command_model_argp, 0, "Model:", 1}, {0}};
static const struct argp argp = {
    .options = options,
    .parser = parse,
    .children = children,
    .doc = "Bytes of a model's parameters, gradients, activations and optimizer states.\v"
           "States: float32 is Adam's usual two moments; 8 and 4 bits are one width everywhere; stquant is this "
           "library under the cap. Vectors and small tensors keep float32 states in all of them. Every figure of the "
           "states counts codes, scales, padding and records.\n\n"
           "Examples:\n\n"
           "  stquant plan --preset 1.5b\n"
           "  stquant plan --layers 6 --width 384 --heads 6 --state-bits 4.0 --json\n"};

// One row of the table: states of one kind.
struct states {
    const char *name, *key;
    stq_memory memory;
};

enum { FLOAT32, EIGHT, FOUR, ADAPTIVE, KINDS };

static enum app_status plan_states(const struct settings *settings, const struct parameter_set *parameters,
                                   struct states states[KINDS]) {
    const struct {
        const char *name, *key;
        stq_policy_kind kind;
        uint32_t bits;
    } kinds[KINDS] = {{"float32", "float32", STQ_POLICY_FLOAT32, 0},
                      {"8 bits", "fixed_8_bits", STQ_POLICY_FIXED, 8},
                      {"4 bits", "fixed_4_bits", STQ_POLICY_FIXED, 4},
                      {"stquant", "stquant", stq_policy_defaults().kind, 0}};
    for (int i = 0; i < KINDS; i++) {
        struct optimizer_settings optimizer = {
            .policy = stq_policy_defaults(), .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8};
        optimizer.policy.kind = kinds[i].kind;
        optimizer.policy.state_bits = settings->state_bits;
        if (kinds[i].bits) {
            optimizer.policy.fixed_m_bits = optimizer.policy.fixed_v_bits = kinds[i].bits;
        }
        states[i].name = kinds[i].name;
        states[i].key = kinds[i].key;
        enum app_status status = optimizer_plan(&optimizer, parameters, &states[i].memory);
        if (status != APP_OK) {
            return status;
        }
    }
    return APP_OK;
}

static void print_row(const char *name, int64_t bytes, double bits) {
    char text[32], bits_text[32] = "";
    if (bits > 0) {
        snprintf(bits_text, sizeof(bits_text), "%10.2f", bits);
    }
    printf("  %-34s %12s %18lld %s\n", name, memory_text(bytes, text), (long long)bytes, bits_text);
}

static void print_table(const struct settings *settings, const struct gpt2_config *config,
                        const struct parameter_set *set, int64_t activations, const struct states states[KINDS]) {
    char name[64];
    printf("GPT-2 %s: %lld layers, width %lld, %lld heads, context %lld, vocabulary %lld\n",
           settings->model.preset->name, (long long)config->layers, (long long)config->width, (long long)config->heads,
           (long long)config->context, (long long)config->vocabulary);
    printf("%lld parameters in %d tensors\n\n", (long long)set->elements, set->count);
    printf("  %-34s %12s %18s %10s\n", "", "", "bytes", "bits/value");
    print_row("parameters, float32", set->elements * 4, 0);
    print_row("gradients, float32", set->elements * 4, 0);
    snprintf(name, sizeof(name), "activations, batch of %lld x %lld", (long long)settings->batch,
             (long long)settings->sequence_length);
    print_row(name, activations, 0);
    for (int i = 0; i < KINDS; i++) {
        snprintf(name, sizeof(name), "states, %s", states[i].name);
        if (i == ADAPTIVE) {
            snprintf(name, sizeof(name), "states, stquant, cap of %.4g bits", settings->state_bits);
        }
        print_row(name, (int64_t)states[i].memory.state_bytes, states[i].memory.final_bits);
    }
    const stq_memory *ours = &states[ADAPTIVE].memory;
    print_row("states, smallest possible cap", (int64_t)ours->smallest_bytes,
              4.0 * (double)ours->smallest_bytes / (double)set->elements);
    printf("\nstquant's states take %.1f %% less than float32 states.\n",
           100 * (1 - (double)ours->state_bytes / (double)states[FLOAT32].memory.state_bytes));
}

static void print_json(const struct settings *settings, const struct gpt2_config *config,
                       const struct parameter_set *set, int64_t activations, const struct states states[KINDS]) {
    json_t *list = json_object();
    for (int i = 0; i < KINDS; i++) {
        json_object_set_new(list, states[i].key,
                            json_pack("{s:I, s:f}", "bytes", (json_int_t)states[i].memory.state_bytes, "bits",
                                      states[i].memory.final_bits));
    }
    const stq_memory *ours = &states[ADAPTIVE].memory;
    json_object_set_new(list, "smallest_cap",
                        json_pack("{s:I, s:f}", "bytes", (json_int_t)ours->smallest_bytes, "bits",
                                  4.0 * (double)ours->smallest_bytes / (double)set->elements));
    json_t *object = json_pack(
        "{s:s, s:{s:I, s:I, s:I, s:I, s:I}, s:I, s:i, s:I, s:I, s:I, s:I, s:I, s:f, s:o}", "preset",
        settings->model.preset->name, "model", "layers", (json_int_t)config->layers, "width", (json_int_t)config->width,
        "heads", (json_int_t)config->heads, "context", (json_int_t)config->context, "vocabulary",
        (json_int_t)config->vocabulary, "parameters", (json_int_t)set->elements, "tensors", set->count,
        "parameter_bytes", (json_int_t)(set->elements * 4), "gradient_bytes", (json_int_t)(set->elements * 4),
        "activation_bytes", (json_int_t)activations, "batch", (json_int_t)settings->batch, "sequence_length",
        (json_int_t)settings->sequence_length, "state_bits", settings->state_bits, "states", list);
    json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    printf("\n");
    json_decref(object);
}

static enum app_status plan(struct settings *settings) {
    const struct preset *preset = settings->model.preset;
    struct gpt2_config config = command_model_config(&settings->model, 0);
    struct parameter_set set = {0};
    struct states states[KINDS];
    settings->batch = settings->batch ? settings->batch : preset->train.batch;
    if (settings->sequence_length == 0) {
        settings->sequence_length = preset->sequence_length < config.context ? preset->sequence_length : config.context;
    }
    enum app_status status = gpt2_describe(&config, &set);
    if (status == APP_OK && settings->sequence_length > config.context) {
        status = app_fail(APP_USAGE, "--sequence-length %lld is longer than the model's --context %lld.",
                          (long long)settings->sequence_length, (long long)config.context);
    }
    if (status == APP_OK) {
        status = plan_states(settings, &set, states);
    }
    if (status == APP_OK) {
        int64_t activations = gpt2_activation_bytes(&config, settings->batch, settings->sequence_length);
        (settings->json ? print_json : print_table)(settings, &config, &set, activations, states);
    }
    parameters_release(&set);
    return status;
}

int command_plan(int argc, char **argv) {
    struct settings settings = {.state_bits = 5.0};
    error_t error = argp_parse(&argp, argc, argv, 0, NULL, &settings);
    return error ? APP_USAGE : command_report(argv[0], plan(&settings));
}
