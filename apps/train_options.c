#include "train_options.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    DATA = 'd',
    STEPS = 's',
    BATCH = 'b',
    LEARNING_RATE = 'l',
    OPTIMIZER = 'o',
    SEQUENCE_LENGTH = 0x2000,
    ACCUMULATION,
    WARMUP,
    FLOOR,
    WEIGHT_DECAY,
    BETA1,
    BETA2,
    EPSILON,
    CLIP,
    VALIDATE_EVERY,
    VALIDATION_SHARE,
    VALIDATION_BATCHES,
    SAMPLE_EVERY,
    SAMPLE_LENGTH,
    TEMPERATURE,
    PROMPT,
    STATE_BITS,
    M_BITS,
    V_BITS,
    POLICY,
    CAP_MODE,
    DECIDE_EVERY,
    ANNEALING,
    ERROR_COMPENSATION,
    SEED,
    THREADS,
    LOG,
    SUMMARY,
};

static const struct argp_option option_list[] = {
    {0, 0, 0, 0, "Data:", 2},
    {"data", DATA, "PATH", 0,
     "Text file or folder (with the folders below it), plain or .gz, its bytes being the tokens; may be given several "
     "times. Or one token file, from `stquant data prepare`",
     2},
    {"validation-share", VALIDATION_SHARE, "X", 0, "Last part of the text, kept for validation (0.05)", 2},
    {0, 0, 0, 0, "Training (defaults by preset unless shown):", 3},
    {"steps", STEPS, "N", 0, "Optimizer steps", 3},
    {"batch", BATCH, "N", 0, "Sequences of a batch", 3},
    {"sequence-length", SEQUENCE_LENGTH, "N", 0, "Tokens of a sequence", 3},
    {"gradient-accumulation", ACCUMULATION, "N", 0, "Batches of a step (1)", 3},
    {"learning-rate", LEARNING_RATE, "X", 0, "Highest learning rate", 3},
    {"warmup", WARMUP, "N", 0, "Steps over which the rate rises linearly", 3},
    {"floor", FLOOR, "X", 0, "Last rate as a share of the highest; a cosine leads there (0.1)", 3},
    {"weight-decay", WEIGHT_DECAY, "X", 0, "Decoupled weight decay, on matrices only", 3},
    {"beta1", BETA1, "X", 0, "Decay of the first moment (0.9)", 3},
    {"beta2", BETA2, "X", 0, "Decay of the second moment", 3},
    {"epsilon", EPSILON, "X", 0, "Added to the root of the second moment (1e-8)", 3},
    {"clip", CLIP, "X", 0, "Largest global gradient norm, 0 for no limit (1)", 3},
    {"seed", SEED, "N", 0, "Of initial weights, batches, rounding and samples (1)", 3},
    {"threads", THREADS, "N", 0, "Threads (all processors)", 3},
    {0, 0, 0, 0, "Optimizer states:", 4},
    {"optimizer", OPTIMIZER, "NAME", 0,
     "adamw: float32 states; fixed: one width everywhere; stquant: widths chosen during the run (default)", 4},
    {"state-bits", STATE_BITS, "B", 0,
     "stquant: the cap, in bits per state value with everything included (5.0); fixed: the width of both moments", 4},
    {"m-bits", M_BITS, "N", 0, "fixed: width of the first moment, 2 to 8 (4)", 4},
    {"v-bits", V_BITS, "N", 0, "fixed: width of the second moment, 2 to 8 (4)", 4},
    {"policy", POLICY, "NAME", 0, "stquant: zones or rate-distortion (the library's default)", 4},
    {"cap-mode", CAP_MODE, "NAME", 0, "stquant: peak, the cap holds at every step (default), or mean, on average", 4},
    {"decide-every", DECIDE_EVERY, "K", 0, "stquant: steps between decisions (100)", 4},
    {"annealing", ANNEALING, "X", 0, "stquant: 1, zones matter less as the run goes on (default); 0, they do not", 4},
    {"error-compensation", ERROR_COMPENSATION, "X", 0, "Share of the rounding error applied at once, 0 to 1 (0)", 4},
    {0, 0, 0, 0, "Output:", 5},
    {"validate-every", VALIDATE_EVERY, "N", 0, "Steps between validations (a tenth of the run); 0, only the last", 5},
    {"validation-batches", VALIDATION_BATCHES, "N", 0, "Largest number of batches of a validation (40)", 5},
    {"sample-every", SAMPLE_EVERY, "N", 0, "Steps between samples (0: only after the last step)", 5},
    {"sample-length", SAMPLE_LENGTH, "N", 0, "Bytes of a sample (400); 0, no samples", 5},
    {"temperature", TEMPERATURE, "X", 0, "Of the samples (0.8); 0, the likeliest byte each time", 5},
    {"prompt", PROMPT, "TEXT", 0, "What a sample goes on from (a newline)", 5},
    {"log", LOG, "FILE", 0, "Write one JSON object a step", 5},
    {"summary", SUMMARY, "FILE", 0, "Write a JSON object about the whole run at its end", 5},
    {0}};

// Options that are numbers: where they go and what they may be.
static const struct number {
    int key;
    const char *name;
    size_t offset;
    int whole;
    double minimum, maximum;
} numbers[] = {
#define WHOLE(KEY, NAME, FIELD, MINIMUM, MAXIMUM) \
    { KEY, NAME, offsetof(struct train_options, FIELD), 1, MINIMUM, MAXIMUM }
#define REAL(KEY, NAME, FIELD, MINIMUM, MAXIMUM) \
    { KEY, NAME, offsetof(struct train_options, FIELD), 0, MINIMUM, MAXIMUM }
    WHOLE(STEPS, "steps", steps, 1, 1e9),
    WHOLE(BATCH, "batch", batch, 1, 1 << 20),
    WHOLE(SEQUENCE_LENGTH, "sequence-length", sequence_length, 1, 1 << 24),
    WHOLE(ACCUMULATION, "gradient-accumulation", accumulation, 1, 1 << 20),
    WHOLE(WARMUP, "warmup", warmup, 0, 1e9),
    WHOLE(VALIDATE_EVERY, "validate-every", validate_every, 0, 1e9),
    WHOLE(VALIDATION_BATCHES, "validation-batches", validation_batches, 1, 1e9),
    WHOLE(SAMPLE_EVERY, "sample-every", sample_every, 0, 1e9),
    WHOLE(SAMPLE_LENGTH, "sample-length", sample_length, 0, 1 << 20),
    WHOLE(M_BITS, "m-bits", m_bits, 2, 8),
    WHOLE(V_BITS, "v-bits", v_bits, 2, 8),
    WHOLE(DECIDE_EVERY, "decide-every", decide_every, 1, 1e9),
    WHOLE(SEED, "seed", seed, 0, 9e18),
    WHOLE(THREADS, "threads", threads, 1, 4096),
    REAL(LEARNING_RATE, "learning-rate", learning_rate, 0, 1e3),
    REAL(FLOOR, "floor", floor, 0, 1),
    REAL(WEIGHT_DECAY, "weight-decay", weight_decay, 0, 1e3),
    REAL(BETA1, "beta1", beta1, 0, 0.999999),
    REAL(BETA2, "beta2", beta2, 0, 0.999999),
    REAL(EPSILON, "epsilon", epsilon, 1e-30, 1),
    REAL(CLIP, "clip", clip, 0, 1e9),
    REAL(VALIDATION_SHARE, "validation-share", validation_share, 1e-6, 0.9),
    REAL(TEMPERATURE, "temperature", temperature, 0, 100),
    REAL(STATE_BITS, "state-bits", state_bits, 0, 64),
    REAL(ANNEALING, "annealing", annealing, 0, 1),
    REAL(ERROR_COMPENSATION, "error-compensation", error_compensation, 0, 1),
};

static int parse_number(struct train_options *options, int key, const char *argument, const struct argp_state *state) {
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        const struct number *number = &numbers[i];
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

static void add_data(struct train_options *options, const char *path, const struct argp_state *state) {
    const char **data = realloc(options->data, (size_t)(options->data_count + 1) * sizeof(*data));
    if (!data) {
        argp_failure(state, APP_FAILED, 0, "There is no memory for the list of --data.");
        return;
    }
    options->data = data;
    options->data[options->data_count++] = path;
}

// One of `count` words, or the end of the process.
static const char *choose(const struct argp_state *state, const char *option, const char *text,
                          const char *const *words, int count) {
    for (int i = 0; i < count; i++) {
        if (strcmp(words[i], text) == 0) {
            return words[i];
        }
    }
    argp_failure(state, APP_USAGE, 0, "--%s is %s%s%s or %s, not '%s'.", option, words[0], count > 2 ? ", " : "",
                 count > 2 ? words[1] : "", words[count - 1], text);
    return NULL;
}

static error_t parse(int key, char *argument, struct argp_state *state) {
    static const char *const optimizers[] = {"adamw", "fixed", "stquant"};
    static const char *const policies[] = {"zones", "rate-distortion"};
    static const char *const cap_modes[] = {"peak", "mean"};
    struct train_options *options = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &options->model;
        return 0;
    case DATA:
        add_data(options, argument, state);
        return 0;
    case OPTIMIZER:
        options->optimizer = choose(state, "optimizer", argument, optimizers, 3);
        return 0;
    case POLICY:
        options->policy = choose(state, "policy", argument, policies, 2);
        return 0;
    case CAP_MODE:
        options->cap_mode = choose(state, "cap-mode", argument, cap_modes, 2);
        return 0;
    case PROMPT:
        options->prompt = argument;
        return 0;
    case LOG:
        options->log = argument;
        return 0;
    case SUMMARY:
        options->summary = argument;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0 || strcmp(argument, "gpt2") != 0) {
            argp_failure(state, APP_USAGE, 0,
                         "There is no model '%s'; the model is gpt2, and text is given with --data.", argument);
        }
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_failure(state, APP_USAGE, 0, "Which model? `stquant train gpt2 --data FILE` trains a GPT-2.");
        return 0;
    default:
        return parse_number(options, key, argument, state) ? 0 : ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child children[] = {{&command_model_argp, 0, "Model:", 1}, {0}};
static const struct argp argp = {
    .options = option_list,
    .parser = parse,
    .args_doc = "gpt2",
    .children = children,
    .doc = "Trains a GPT-2 on text.\v"
           "Without further options the preset decides. Example:\n\n"
           "  stquant train gpt2 --preset tiny --data text.txt --optimizer stquant --state-bits 5.0 --log run.jsonl\n\n"
           "Exit status: 0, 1 when the run failed, 2 when the options make no sense, 130 or 143 when Ctrl-C or "
           "a termination signal ended it after a whole step."};

static void complete(struct train_options *options, const struct argp_state *state) {
    const struct preset *preset = options->model.preset;
    int64_t context = command_model_config(&options->model, 0).context;
    if (options->data_count == 0) {
        argp_failure(state, APP_USAGE, 0, "There is no text to train on; name a file or folder with --data.");
    }
    options->steps = options->steps ? options->steps : preset->steps;
    options->batch = options->batch ? options->batch : preset->batch;
    if (options->sequence_length == 0) {
        options->sequence_length = preset->sequence_length < context ? preset->sequence_length : context;
    }
    if (options->warmup < 0) {
        options->warmup = preset->warmup < options->steps / 10 ? preset->warmup : options->steps / 10;
    }
    if (options->validate_every < 0) {
        options->validate_every = options->steps >= 10 ? options->steps / 10 : 1;
    }
    options->learning_rate = isnan(options->learning_rate) ? preset->learning_rate : options->learning_rate;
    options->weight_decay = isnan(options->weight_decay) ? preset->weight_decay : options->weight_decay;
    options->beta2 = isnan(options->beta2) ? preset->beta2 : options->beta2;
}

void train_options_parse(struct train_options *options, int argc, char **argv) {
    stq_policy_config policy = stq_policy_defaults();
    *options = (struct train_options){.warmup = -1,
                                      .learning_rate = NAN,
                                      .weight_decay = NAN,
                                      .beta2 = NAN,
                                      .accumulation = 1,
                                      .validate_every = -1,
                                      .validation_batches = 40,
                                      .sample_length = 400,
                                      .clip = 1,
                                      .floor = 0.1,
                                      .beta1 = 0.9,
                                      .epsilon = 1e-8,
                                      .validation_share = 0.05,
                                      .temperature = 0.8,
                                      .optimizer = "stquant",
                                      .state_bits = NAN,
                                      .decide_every = policy.decide_every,
                                      .annealing = policy.annealing,
                                      .seed = 1};
    struct argp_state state = {.name = argv[0], .err_stream = stderr, .out_stream = stdout, .root_argp = &argp};
    argp_parse(&argp, argc, argv, 0, NULL, options);
    complete(options, &state);
}

// With --optimizer fixed, --state-bits is the width of both moments.
static enum app_status fixed_widths(const struct train_options *options, stq_policy_config *policy) {
    double both = isnan(options->state_bits) ? policy->fixed_m_bits : options->state_bits;
    if (both != floor(both) || both < 2 || both > 8) {
        return app_fail(APP_USAGE, "--optimizer fixed has whole widths from 2 to 8, not --state-bits %g.", both);
    }
    policy->fixed_m_bits = options->m_bits ? (uint32_t)options->m_bits : (uint32_t)both;
    policy->fixed_v_bits = options->v_bits ? (uint32_t)options->v_bits : (uint32_t)both;
    return APP_OK;
}

enum app_status train_options_optimizer(const struct train_options *options, struct optimizer_settings *settings) {
    stq_policy_config policy = stq_policy_defaults();
    policy.decide_every = options->decide_every;
    policy.planned_steps = options->steps;
    policy.annealing = options->annealing;
    if (options->cap_mode) {
        policy.cap_mode = strcmp(options->cap_mode, "mean") == 0 ? STQ_CAP_MEAN : STQ_CAP_PEAK;
    }
    if (options->policy) {
        policy.kind = strcmp(options->policy, "zones") == 0 ? STQ_POLICY_ZONES : STQ_POLICY_RATE_DISTORTION;
    }
    enum app_status status = APP_OK;
    if (strcmp(options->optimizer, "adamw") == 0) {
        policy.kind = STQ_POLICY_FLOAT32;
    } else if (strcmp(options->optimizer, "fixed") == 0) {
        policy.kind = STQ_POLICY_FIXED;
        status = fixed_widths(options, &policy);
    } else {
        policy.state_bits = isnan(options->state_bits) ? policy.state_bits : options->state_bits;
    }
    *settings = (struct optimizer_settings){.policy = policy,
                                            .beta1 = options->beta1,
                                            .beta2 = options->beta2,
                                            .epsilon = options->epsilon,
                                            .weight_decay = options->weight_decay,
                                            .clip = options->clip,
                                            .seed = (uint64_t)options->seed,
                                            .error_compensation = options->error_compensation,
                                            .threads = (int)options->threads};
    return status;
}
