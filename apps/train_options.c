#include "train_options.h"

#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum {
    STEPS = 's',
    BATCH = 'b',
    LEARNING_RATE = 'l',
    OPTIMIZER = 'o',
    ACCUMULATION = 0x2000,
    WARMUP,
    FLOOR,
    WEIGHT_DECAY,
    BETA1,
    BETA2,
    EPSILON,
    CLIP,
    VALIDATE_EVERY,
    VALIDATION_BATCHES,
    DEVICE,
    STATE_BITS,
    M_BITS,
    V_BITS,
    POLICY,
    CAP_MODE,
    DECIDE_EVERY,
    ANNEALING,
    ERROR_COMPENSATION,
    SHARED_V,
    BITS_FOR,
    SEED,
    THREADS,
    LOG,
    TRACE,
    SUMMARY,
    TENSORBOARD,
    CHECKPOINT,
    SAVE_EVERY,
    KEEP,
    RESUME,
    INIT,
    QAT,
    QAT_ESTIMATOR,
    QAT_AMPLITUDE,
    QAT_SOFTNESS,
    QAT_STEP_RATE,
};

static const struct argp_option option_list[] = {
    {0, 0, 0, 0, "Training (defaults by preset unless shown):", HELP_TRAINING},
    {"steps", STEPS, "N", 0, "Optimizer steps", HELP_TRAINING},
    {"batch", BATCH, "N", 0, "Examples of a batch", HELP_TRAINING},
    {"gradient-accumulation", ACCUMULATION, "N", 0, "Batches of a step (1)", HELP_TRAINING},
    {"learning-rate", LEARNING_RATE, "X", 0, "Highest learning rate", HELP_TRAINING},
    {"warmup", WARMUP, "N", 0, "Steps over which the rate rises linearly", HELP_TRAINING},
    {"floor", FLOOR, "X", 0, "Last rate as a share of the highest; a cosine leads there (0.1)", HELP_TRAINING},
    {"weight-decay", WEIGHT_DECAY, "X", 0, "Decoupled weight decay, on matrices only", HELP_TRAINING},
    {"beta1", BETA1, "X", 0, "Decay of the first moment (0.9)", HELP_TRAINING},
    {"beta2", BETA2, "X", 0, "Decay of the second moment", HELP_TRAINING},
    {"epsilon", EPSILON, "X", 0, "Added to the root of the second moment (1e-8)", HELP_TRAINING},
    {"clip", CLIP, "X", 0, "Largest global gradient norm, 0 for no limit (1)", HELP_TRAINING},
    {"seed", SEED, "N", 0, "Of everything random (1)", HELP_TRAINING},
    {"threads", THREADS, "N", 0, "Threads (all processors)", HELP_TRAINING},
    {0, 0, 0, 0, "Optimizer states:", HELP_STATES},
    {"optimizer", OPTIMIZER, "adamw|fixed|stquant", 0,
     "adamw: float32 states; fixed: one width everywhere; stquant: widths chosen during the run (default)",
     HELP_STATES},
    {"device", DEVICE, "cpu|cuda", 0,
     "Where the states live and the optimizer's step is made (cpu); cuda:N is GPU N. The model computes on the CPU, "
     "and "
     "the results are the same bytes",
     HELP_STATES},
    {"state-bits", STATE_BITS, "B", 0,
     "stquant: the cap, in bits per state value with everything included (5.0); fixed: the width of both moments",
     HELP_STATES},
    {"m-bits", M_BITS, "N", 0, "fixed: width of the first moment, 2 to 8 (4)", HELP_STATES},
    {"v-bits", V_BITS, "N", 0, "fixed: width of the second moment, 2 to 8 (4)", HELP_STATES},
    {"policy", POLICY, "zones|rate-distortion|fixed", 0, "stquant: how widths are chosen (as the library does)",
     HELP_STATES},
    {"cap-mode", CAP_MODE, "peak|mean", 0, "stquant: peak, the cap holds at every step (default), or mean, on average",
     HELP_STATES},
    {"decide-every", DECIDE_EVERY, "K", 0, "stquant: steps between decisions (100)", HELP_STATES},
    {"annealing", ANNEALING, "X", 0, "stquant: 1, zones matter less as the run goes on (default); 0, they do not",
     HELP_STATES},
    {"error-compensation", ERROR_COMPENSATION, "X", 0, "Share of the rounding error applied at once, 0 to 1 (0)",
     HELP_STATES},
    {"shared-v", SHARED_V, "WHICH", 0,
     "stquant: share second moments along rows or columns where that costs little: auto, off (default), or names of "
     "tensors, separated by commas, * for any characters",
     HELP_STATES},
    {"bits-for", BITS_FOR, "NAMES=M,V", 0,
     "Widths of the tensors with such names: 2 to 8, 32, or auto; V may be row or column (one mean each) or coded "
     "(not shared). May be given several times",
     HELP_STATES},
    {0, 0, 0, 0, "Quantization-aware training (docs/qat.md):", HELP_QUANTIZATION},
    {"qat", QAT, "BITS", 0,
     "Compute with the weights of attention and MLP rounded to 1 to 8 bits, with a learned step for each output; the "
     "optimizer keeps training the weights behind them. Usually from a float32 run, by --init",
     HELP_QUANTIZATION},
    {"qat-estimator", QAT_ESTIMATOR, "stable|ste|dsq", 0,
     "How gradients pass the rounding (stable); ste is straight through", HELP_QUANTIZATION},
    {"qat-amplitude", QAT_AMPLITUDE, "A,...", 0,
     "stable: amplitudes of the harmonics (0.21); one alone must be below 0.2251", HELP_QUANTIZATION},
    {"qat-softness", QAT_SOFTNESS, "X", 0, "dsq: between 0 and 1, smaller is steeper (0.2)", HELP_QUANTIZATION},
    {"qat-step-rate", QAT_STEP_RATE, "X", 0, "Learning rate of the steps, as a share of the weights' (1)",
     HELP_QUANTIZATION},
    {0, 0, 0, 0, "Output:", HELP_OUTPUT},
    {"validate-every", VALIDATE_EVERY, "N", 0, "Steps between validations (a tenth of the run); 0, only the last",
     HELP_OUTPUT},
    {"validation-batches", VALIDATION_BATCHES, "N", 0,
     "Largest number of batches of a validation (text: 40; images: all)", HELP_OUTPUT},
    {"log", LOG, "FILE", 0, "Write one JSON object a step", HELP_OUTPUT},
    {"tensorboard", TENSORBOARD, "FOLDER", 0, "Write an event file for TensorBoard: scalars of every step, histograms",
     HELP_OUTPUT},
    {"trace", TRACE, "FILE", 0,
     "Write at each decision the factors of every tensor and the errors of every width, for `stquant factors`",
     HELP_OUTPUT},
    {"summary", SUMMARY, "FILE", 0, "Write a JSON object about the run when it ends", HELP_OUTPUT},
    {"init", INIT, "PATH", 0,
     "Begin with the parameters of a checkpoint or of a safetensors file, also one of Hugging Face's", HELP_TRAINING},
    {"checkpoint", CHECKPOINT, "FOLDER", 0, "Save parameters, states and position there, and after the last step",
     HELP_OUTPUT},
    {"save-every", SAVE_EVERY, "N", 0, "Steps between checkpoints (0: only after the last step)", HELP_OUTPUT},
    {"keep", KEEP, "N", 0, "Checkpoints to keep, the oldest go first (0: all)", HELP_OUTPUT},
    {"resume", RESUME, "PATH", 0,
     "Go on from the newest whole checkpoint in a --checkpoint folder, or from a single one; the other options are "
     "those of the run",
     HELP_OUTPUT},
    {0}};

#define WHOLE(KEY, NAME, FIELD, MINIMUM, MAXIMUM) \
    { KEY, NAME, offsetof(struct train_options, FIELD), 1, MINIMUM, MAXIMUM }
#define REAL(KEY, NAME, FIELD, MINIMUM, MAXIMUM) \
    { KEY, NAME, offsetof(struct train_options, FIELD), 0, MINIMUM, MAXIMUM }

static const struct command_number numbers[] = {
    WHOLE(STEPS, "steps", steps, 1, 1e9),
    WHOLE(BATCH, "batch", batch, 1, 1 << 20),
    WHOLE(ACCUMULATION, "gradient-accumulation", accumulation, 1, 1 << 20),
    WHOLE(WARMUP, "warmup", warmup, 0, 1e9),
    WHOLE(VALIDATE_EVERY, "validate-every", validate_every, 0, 1e9),
    WHOLE(VALIDATION_BATCHES, "validation-batches", validation_batches, 1, 1e9),
    WHOLE(M_BITS, "m-bits", m_bits, 2, 8),
    WHOLE(V_BITS, "v-bits", v_bits, 2, 8),
    WHOLE(DECIDE_EVERY, "decide-every", decide_every, 1, 1e9),
    WHOLE(SAVE_EVERY, "save-every", save_every, 0, 1e9),
    WHOLE(KEEP, "keep", keep, 0, 1e9),
    WHOLE(SEED, "seed", seed, 0, 9e18),
    WHOLE(THREADS, "threads", threads, 1, 4096),
    REAL(LEARNING_RATE, "learning-rate", learning_rate, 0, 1e3),
    REAL(FLOOR, "floor", floor, 0, 1),
    REAL(WEIGHT_DECAY, "weight-decay", weight_decay, 0, 1e3),
    REAL(BETA1, "beta1", beta1, 0, 0.999999),
    REAL(BETA2, "beta2", beta2, 0, 0.999999),
    REAL(EPSILON, "epsilon", epsilon, 1e-30, 1),
    REAL(CLIP, "clip", clip, 0, 1e9),
    REAL(STATE_BITS, "state-bits", state_bits, 0, 64),
    REAL(ANNEALING, "annealing", annealing, 0, 1),
    REAL(ERROR_COMPENSATION, "error-compensation", error_compensation, 0, 1),
    REAL(QAT_STEP_RATE, "qat-step-rate", qat_step_rate, 0, 1e3),
};

void train_options_add_data(struct train_options *options, const char *path, const struct argp_state *state) {
    const char **data = realloc(options->data, (size_t)(options->data_count + 1) * sizeof(*data));
    if (!data) {
        argp_failure(state, APP_FAILED, 0, "There is no memory for the list of --data.");
        return;
    }
    options->data = data;
    options->data[options->data_count++] = path;
}

// Ends the process with the sentence of a failure.
static void refuse_failure(enum app_status status, const struct argp_state *state) {
    if (status != APP_OK) {
        argp_failure(state, status, 0, "%s", app_failure());
    }
}

// "0.21" or "0.2,0.01": the amplitudes of the harmonics.
static void parse_amplitudes(stq_qat_config *qat, const char *argument, const struct argp_state *state) {
    const char *rest = argument;
    qat->harmonics = 0;
    do {
        char *end;
        const double amplitude = strtod(rest, &end);
        if (end == rest || (*end != 0 && *end != ',') || !isfinite(amplitude) ||
            qat->harmonics == STQ_QAT_MAX_HARMONICS) {
            argp_failure(state, APP_USAGE, 0, "--qat-amplitude takes up to %d numbers, separated by commas, not '%s'.",
                         STQ_QAT_MAX_HARMONICS, argument);
            return;
        }
        qat->amplitudes[qat->harmonics++] = amplitude;
        rest = *end ? end + 1 : end;
    } while (*rest);
}

static error_t parse_qat(int key, char *argument, struct argp_state *state) {
    struct train_options *options = state->input;
    switch (key) {
    case QAT:
        options->qat.bits = (uint32_t)command_integer(state, "qat", argument, 1, 8);
        return 0;
    case QAT_ESTIMATOR:
        command_choice(state, "qat-estimator", argument, quantizer_estimators, QUANTIZER_ESTIMATORS);
        options->qat.estimator = (stq_qat_estimator)quantizer_estimator(argument);
        break;
    case QAT_AMPLITUDE:
        parse_amplitudes(&options->qat, argument, state);
        break;
    case QAT_SOFTNESS:
        options->qat.softness = command_real(state, "qat-softness", argument, 1e-6, 1 - 1e-6);
        break;
    default:
        return command_number(numbers, sizeof(numbers) / sizeof(numbers[0]), options, key, argument, state)
                   ? 0
                   : ARGP_ERR_UNKNOWN;
    }
    options->qat_details = 1;
    return 0;
}

static error_t parse(int key, char *argument, struct argp_state *state) {
    static const char *const optimizers[] = {"adamw", "fixed", "stquant"};
    static const char *const policies[] = {"zones", "rate-distortion", "fixed"};
    static const char *const cap_modes[] = {"peak", "mean"};
    struct train_options *options = state->input;
    switch (key) {
    case OPTIMIZER:
        options->optimizer = command_choice(state, "optimizer", argument, optimizers, 3);
        return 0;
    case DEVICE:
        if (!device_parse(argument, &options->device)) {
            argp_failure(state, APP_USAGE, 0, "--device takes cpu, cuda or cuda:N with the number of a GPU, not '%s'.",
                         argument);
        }
        return 0;
    case POLICY:
        options->policy = command_choice(state, "policy", argument, policies, 3);
        return 0;
    case SHARED_V:
        refuse_failure(width_rules_share(&options->widths, argument, &options->shared_v), state);
        return 0;
    case BITS_FOR:
        refuse_failure(width_rules_add(&options->widths, argument), state);
        return 0;
    case CAP_MODE:
        options->cap_mode = command_choice(state, "cap-mode", argument, cap_modes, 2);
        return 0;
    case LOG:
        options->log = argument;
        return 0;
    case TENSORBOARD:
        options->tensorboard = argument;
        return 0;
    case TRACE:
        options->trace = argument;
        return 0;
    case SUMMARY:
        options->summary = argument;
        return 0;
    case CHECKPOINT:
        options->checkpoint = argument;
        return 0;
    case INIT:
        options->init = argument;
        return 0;
    case RESUME:
        options->resume = argument;
        return 0;
    default:
        return parse_qat(key, argument, state);
    }
}

const struct argp train_options_argp = {.options = option_list, .parser = parse};

void train_options_begin(struct train_options *options) {
    stq_policy_config policy = stq_policy_defaults();
    *options = (struct train_options){.warmup = -1,
                                      .learning_rate = NAN,
                                      .weight_decay = NAN,
                                      .beta2 = NAN,
                                      .accumulation = 1,
                                      .validate_every = -1,
                                      .validation_batches = 40,
                                      .clip = 1,
                                      .floor = 0.1,
                                      .beta1 = 0.9,
                                      .epsilon = 1e-8,
                                      .optimizer = "stquant",
                                      .state_bits = NAN,
                                      .decide_every = policy.decide_every,
                                      .annealing = policy.annealing,
                                      .qat = stq_qat_defaults(),
                                      .qat_step_rate = 1,
                                      .seed = 1};
    options->qat.bits = 0;
}

void train_options_complete(struct train_options *options, const struct train_preset *preset) {
    options->steps = options->steps ? options->steps : preset->steps;
    options->batch = options->batch ? options->batch : preset->batch;
    if (options->warmup < 0) {
        options->warmup = preset->warmup < options->steps / 10 ? preset->warmup : options->steps / 10;
    }
    if (options->validate_every < 0) {
        options->validate_every = options->steps >= 10 ? options->steps / 10 : 1;
    }
    options->learning_rate = isnan(options->learning_rate) ? preset->learning_rate : options->learning_rate;
    options->weight_decay = isnan(options->weight_decay) ? preset->weight_decay : options->weight_decay;
    options->beta2 = isnan(options->beta2) ? preset->beta2 : options->beta2;
    options->threads = options->threads ? options->threads : omp_get_max_threads();
}

void train_options_release(struct train_options *options) {
    free(options->data);
    options->data = NULL;
    width_rules_release(&options->widths);
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

enum app_status train_options_qat(const struct train_options *options, stq_qat_config *qat) {
    *qat = options->qat;
    if (options->qat.bits) {
        return quantizer_check(qat);
    }
    return options->qat_details
               ? app_fail(APP_USAGE, "The options of an estimator need --qat, with the bits of a weight.")
               : APP_OK;
}

enum app_status train_options_optimizer(const struct train_options *options, struct optimizer_settings *settings) {
    stq_policy_config policy = stq_policy_defaults();
    policy.decide_every = options->decide_every;
    policy.planned_steps = options->steps;
    policy.annealing = options->annealing;
    policy.shared_v = options->shared_v ? STQ_SHARED_AUTO : STQ_SHARED_OFF;
    if (options->cap_mode) {
        policy.cap_mode = strcmp(options->cap_mode, "mean") == 0 ? STQ_CAP_MEAN : STQ_CAP_PEAK;
    }
    if (options->policy) {
        policy.kind = strcmp(options->policy, "zones") == 0 ? STQ_POLICY_ZONES : STQ_POLICY_RATE_DISTORTION;
    }
    enum app_status status = APP_OK;
    if (strcmp(options->optimizer, "adamw") == 0) {
        policy.kind = STQ_POLICY_FLOAT32;
    } else if (strcmp(options->optimizer, "fixed") == 0 || (options->policy && strcmp(options->policy, "fixed") == 0)) {
        policy.kind = STQ_POLICY_FIXED;
        status = fixed_widths(options, &policy);
    } else {
        policy.state_bits = isnan(options->state_bits) ? policy.state_bits : options->state_bits;
    }
    *settings = (struct optimizer_settings){.policy = policy,
                                            .rules = &options->widths,
                                            .beta1 = options->beta1,
                                            .beta2 = options->beta2,
                                            .epsilon = options->epsilon,
                                            .weight_decay = options->weight_decay,
                                            .clip = options->clip,
                                            .step_rate = options->qat_step_rate,
                                            .seed = (uint64_t)options->seed,
                                            .error_compensation = options->error_compensation,
                                            .threads = (int)options->threads};
    return status;
}
