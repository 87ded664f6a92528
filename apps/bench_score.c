// `stquant bench score`: what a decision adds to the training of a GPT-2, factors included.
#include <jansson.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <stquant/score.h>

#include "bench.h"
#include "train/matmul.h"
#include "train/optimizer.h"
#include "train/random.h"

enum { LARGEST_REPEATS = 1000 };

struct settings {
    struct command_model model;
    int64_t batch, sequence_length; // 0: the preset's
    int64_t repeats, every, threads;
    stq_policy_kind kind;
    double state_bits;
    int json;
};

enum { BATCH = 'b', REPEATS = 0x2000, SEQUENCE_LENGTH, EVERY, POLICY, STATE_BITS, THREADS, JSON };

static const struct argp_option options[] = {
    {"batch", BATCH, "N", 0, "Sequences of a batch (the preset's)", 0},
    {"sequence-length", SEQUENCE_LENGTH, "N", 0, "Tokens of a sequence (the preset's)", 0},
    {"decide-every", EVERY, "K", 0, "Steps between decisions, for the share (100)", 0},
    {"policy", POLICY, "zones|rate-distortion", 0, "How widths are chosen (rate-distortion)", 0},
    {"state-bits", STATE_BITS, "B", 0, "The cap, in bits per state value (5.0)", 0},
    {"threads", THREADS, "N", 0, "Threads (all processors)", 0},
    {"repeats", REPEATS, "N", 0, "Timed steps of each kind (11)", 0},
    {"json", JSON, 0, 0, "Print a JSON object", 0},
    {0}};

static error_t parse(int key, char *argument, struct argp_state *state) {
    static const struct command_number numbers[] = {
        {BATCH, "batch", offsetof(struct settings, batch), 1, 1, 1 << 20},
        {SEQUENCE_LENGTH, "sequence-length", offsetof(struct settings, sequence_length), 1, 1, 1 << 24},
        {EVERY, "decide-every", offsetof(struct settings, every), 1, 1, 1e9},
        {THREADS, "threads", offsetof(struct settings, threads), 1, 1, 4096},
        {REPEATS, "repeats", offsetof(struct settings, repeats), 1, 1, LARGEST_REPEATS},
        {STATE_BITS, "state-bits", offsetof(struct settings, state_bits), 0, 0, 64}};
    struct settings *settings = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &settings->model;
        return 0;
    case POLICY:
        settings->kind = bench_choose_policy(state, argument);
        return 0;
    case JSON:
        settings->json = 1;
        return 0;
    case ARGP_KEY_ARG:
        command_argument(state, argument, NULL, 0, NULL);
        return 0;
    default:
        return command_number(numbers, sizeof(numbers) / sizeof(numbers[0]), settings, key, argument, state)
                   ? 0
                   : ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child children[] = {{&command_model_argp, 0, "Model:", 1}, {0}};
static const struct argp argp = {
    .options = options,
    .parser = parse,
    .children = children,
    .doc = "Times training steps of a GPT-2 on random tokens, with and without a decision about the widths: the "
           "factors of all gradients and the choice.\v"
           "The share is that of a decision every K steps in the time of all steps. Medians.\n\n"
           "Examples:\n\n"
           "  stquant bench score --preset tiny\n"
           "  stquant bench score --preset small --threads 2 --json\n"};

struct result {
    double step;      // seconds: forward, backward, optimizer; without a decision
    double optimizer; // of which the optimizer
    double decision;  // what a decision adds
    double factors;   // of which the factors, timed alone
    int64_t scratch;  // bytes that the factors need at most
};

struct bench {
    const struct settings *settings;
    struct gpt2_config config;
    struct model *model;
    struct optimizer optimizer;
    int32_t *tokens; // (2, batch, length): inputs and targets
};

static enum app_status open_bench(struct bench *bench) {
    const struct settings *settings = bench->settings;
    const int64_t count = settings->batch * settings->sequence_length;
    struct optimizer_settings optimizer = {.policy = stq_policy_defaults(),
                                           .beta1 = 0.9,
                                           .beta2 = 0.95,
                                           .epsilon = 1e-8,
                                           .weight_decay = 0.1,
                                           .clip = 1,
                                           .threads = (int)settings->threads};
    optimizer.policy.kind = settings->kind;
    optimizer.policy.state_bits = settings->state_bits;
    optimizer.policy.decide_every = 2;
    bench->tokens = malloc(2 * (size_t)count * sizeof(*bench->tokens));
    if (!bench->tokens) {
        return app_fail(APP_FAILED, "There is no memory for the tokens; lower --batch.");
    }
    for (int64_t i = 0; i < 2 * count; i++) {
        bench->tokens[i] = (int32_t)random_below(1, 1, (uint64_t)i, (uint64_t)bench->config.vocabulary);
    }
    enum app_status status = gpt2_create(&bench->config, settings->batch, settings->sequence_length,
                                         (int)settings->threads, 1, &bench->model);
    if (status == APP_OK) {
        status = optimizer_create(&bench->optimizer, &optimizer, &bench->model->parameters, NULL, NULL);
    }
    return status;
}

static void close_bench(struct bench *bench) {
    optimizer_release(&bench->optimizer);
    if (bench->model) {
        bench->model->operations->destroy(bench->model);
    }
    matmul_release();
    free(bench->tokens);
}

// One training step; *whole and *optimizer are seconds.
static enum app_status train_step(struct bench *bench, double *whole, double *optimizer, bool *decided) {
    const struct settings *settings = bench->settings;
    const struct batch batch = {.examples = settings->batch,
                                .length = settings->sequence_length,
                                .inputs = bench->tokens,
                                .targets = bench->tokens + settings->batch * settings->sequence_length};
    stq_step_result result = {0};
    double loss;
    const double begin = bench_seconds();
    parameters_clear_gradients(&bench->model->parameters);
    enum app_status status = bench->model->operations->forward_backward(bench->model, &batch, 1, &loss);
    const double middle = bench_seconds();
    if (status == APP_OK) {
        status = optimizer_step(&bench->optimizer, 1e-4, &result);
    }
    const double end = bench_seconds();
    *whole = end - begin;
    *optimizer = end - middle;
    *decided = result.decided;
    return status;
}

// The factors of all tensors that have low-bit states.
static enum app_status time_factors(const struct bench *bench, struct result *result, double *seconds) {
    const struct parameter_set *set = &bench->model->parameters;
    const double begin = bench_seconds();
    for (int i = 0; i < set->count; i++) {
        const struct parameter *parameter = &set->list[i];
        const stq_tensor tensor = stq_tensor_whole(parameter->name, parameter->rows, parameter->cols);
        stq_tensor_info info;
        stq_factors factors;
        if (stq_adamw_tensor(bench->optimizer.adamw, (size_t)i, &info) != STQ_OK || info.m_bits == 32) {
            continue;
        }
        const int64_t scratch = 4 * (parameter->rows + bench->settings->threads * parameter->cols);
        result->scratch = scratch > result->scratch ? scratch : result->scratch;
        if (stq_score_factors(&tensor, parameter->gradients, 1, (int)bench->settings->threads, &factors) != STQ_OK) {
            return app_library_failure();
        }
    }
    *seconds = bench_seconds() - begin;
    return APP_OK;
}

static enum app_status measure(struct bench *bench, struct result *result) {
    static double whole[LARGEST_REPEATS], plain[LARGEST_REPEATS], added[LARGEST_REPEATS], factors[LARGEST_REPEATS];
    const int repeats = (int)bench->settings->repeats;
    double step, optimizer = 0;
    enum app_status status = APP_OK;
    // Steps 1 and 2 both decide; from then on every second one.
    for (int k = -2; k < repeats && status == APP_OK;) {
        const double before = optimizer;
        bool decided;
        status = train_step(bench, &step, &optimizer, &decided);
        if (status == APP_OK && !decided && k >= 0) {
            whole[k] = step;
            plain[k] = optimizer;
        } else if (status == APP_OK && decided && k >= 0) {
            added[k] = optimizer - before;
            status = time_factors(bench, result, &factors[k]);
        }
        k += decided;
    }
    result->step = bench_median(whole, repeats);
    result->optimizer = bench_median(plain, repeats);
    result->decision = bench_median(added, repeats);
    result->factors = bench_median(factors, repeats);
    return status;
}

static void print_json(const struct settings *settings, const struct bench *bench, const struct result *result,
                       double share) {
    json_t *object = json_pack(
        "{s:s, s:I, s:i, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:I}", "preset",
        settings->model.preset->name, "parameters", (json_int_t)bench->model->parameters.elements, "tensors",
        bench->model->parameters.count, "batch", (json_int_t)settings->batch, "sequence_length",
        (json_int_t)settings->sequence_length, "threads", (json_int_t)settings->threads, "decide_every",
        (json_int_t)settings->every, "training_step_ms", 1e3 * result->step, "optimizer_ms", 1e3 * result->optimizer,
        "decision_ms", 1e3 * result->decision, "factors_ms", 1e3 * result->factors, "decision_of_step",
        result->decision / result->step, "share_of_total", share, "scratch_bytes", (json_int_t)result->scratch);
    json_dumpf(object, stdout, JSON_REAL_PRECISION(6) | JSON_INDENT(1));
    printf("\n");
    json_decref(object);
}

static void print_table(const struct settings *settings, const struct bench *bench, const struct result *result,
                        double share) {
    printf("gpt2 %s: %lld parameters in %d tensors, batches of %lld x %lld tokens, %lld threads\n",
           settings->model.preset->name, (long long)bench->model->parameters.elements, bench->model->parameters.count,
           (long long)settings->batch, (long long)settings->sequence_length, (long long)settings->threads);
    printf("training step       %10.3f ms\n", 1e3 * result->step);
    printf("  of which optimizer%10.3f ms\n", 1e3 * result->optimizer);
    printf("a decision adds     %10.3f ms, %.1f %% of a step\n", 1e3 * result->decision,
           100 * result->decision / result->step);
    printf("  factors alone     %10.3f ms, %lld bytes of scratch\n", 1e3 * result->factors, (long long)result->scratch);
    printf("every %lld steps: %.3f %% of the training\n", (long long)settings->every, 100 * share);
}

static enum app_status run(struct settings *settings) {
    const struct preset *preset = settings->model.preset;
    struct bench bench = {.settings = settings, .config = command_model_config(&settings->model, 0)};
    struct result result = {0};
    settings->batch = settings->batch ? settings->batch : preset->train.batch;
    if (settings->sequence_length == 0) {
        settings->sequence_length =
            preset->sequence_length < bench.config.context ? preset->sequence_length : bench.config.context;
    }
    settings->threads = settings->threads ? settings->threads : omp_get_max_threads();
    enum app_status status = gpt2_check(&bench.config);
    if (status == APP_OK && settings->sequence_length > bench.config.context) {
        status = app_fail(APP_USAGE, "--sequence-length %lld is longer than the model's --context %lld.",
                          (long long)settings->sequence_length, (long long)bench.config.context);
    }
    if (status == APP_OK) {
        status = open_bench(&bench);
    }
    if (status == APP_OK) {
        status = measure(&bench, &result);
    }
    if (status == APP_OK) {
        const double every = result.decision / (double)settings->every;
        (settings->json ? print_json : print_table)(settings, &bench, &result, every / (result.step + every));
    }
    close_bench(&bench);
    return status;
}

int command_bench_score(int argc, char **argv) {
    struct settings settings = {.repeats = 11, .every = 100, .kind = STQ_POLICY_RATE_DISTORTION, .state_bits = 5};
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
    return command_report("stquant bench score", run(&settings));
}
