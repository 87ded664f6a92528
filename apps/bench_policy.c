// `stquant bench policy`: what a decision about widths takes, by the number of tensors.
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <stquant/adamw.h>
#include <string.h>

#include "bench.h"
#include "train/random.h"

enum {
    MOST_TENSORS = 10000000,
    LARGEST_REPEATS = 10000,
    SIZES = 5,
    NAME_BYTES = 32,
    // Factors stay for three decisions: a demotion must be asked for twice.
    DECISIONS_A_CHANGE = 3
};

struct settings {
    int64_t tensors, repeats; // 0: a sweep; chosen by size
    stq_policy_kind kind;
    double state_bits;
    int json;
};

enum { TENSORS = 'n', REPEATS = 0x2000, POLICY, STATE_BITS, JSON };

static const struct argp_option options[] = {
    {"tensors", TENSORS, "N", 0, "Tensors of the list (10, 100, ... 100000, one after the other)", 0},
    {"policy", POLICY, "zones|rate-distortion", 0, "How widths are chosen (rate-distortion)", 0},
    {"state-bits", STATE_BITS, "B", 0, "The cap, in bits per state value (5.0)", 0},
    {"repeats", REPEATS, "N", 0, "Timed decisions (21 or more, by the number of tensors)", 0},
    {"json", JSON, 0, 0, "Print a JSON object", 0},
    {0}};

static error_t parse(int key, char *argument, struct argp_state *state) {
    static const struct command_number numbers[] = {
        {TENSORS, "tensors", offsetof(struct settings, tensors), 1, 1, MOST_TENSORS},
        {REPEATS, "repeats", offsetof(struct settings, repeats), 1, 1, LARGEST_REPEATS},
        {STATE_BITS, "state-bits", offsetof(struct settings, state_bits), 0, 0, 64}};
    struct settings *settings = state->input;
    switch (key) {
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

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .doc = "Times decisions about the widths of all states from given factors, one thread.\v"
           "A step with a decision also takes the factors over and keeps the records of what changes; `added` is all "
           "that it takes more than the step before it. The tensors are slices without elements of large tensors, as a "
           "rank has them that owns others: no update, no codes. Their factors change, so that widths do. Medians.\n\n"
           "Examples:\n\n"
           "  stquant bench policy\n"
           "  stquant bench policy --tensors 100000 --policy zones --json\n"};

struct result {
    int64_t tensors, repeats;
    double decision; // seconds
    double added;    // that a step with a decision takes more than one without, the decision included
    double step;     // without a decision
    double changed;  // states whose width changed, mean of a decision
};

// A list of tensors without elements here, and what a step is given.
struct list {
    int64_t count;
    stq_tensor *tensors;
    char *names; // (count, NAME_BYTES)
    stq_factors *factors;
    void **parameters;
    const void **gradients;
    uint8_t (*widths)[2];
    stq_adamw *optimizer;
};

static void release(struct list *list) {
    stq_adamw_destroy(list->optimizer);
    free(list->tensors);
    free(list->names);
    free(list->factors);
    free(list->parameters);
    free(list->gradients);
    free(list->widths);
}

// Matrices of 4,096 to 16.8 million elements, evenly in the logarithm.
static void describe(struct list *list) {
    static const float gradient = 0;
    for (int64_t i = 0; i < list->count; i++) {
        char *name = list->names + i * NAME_BYTES;
        snprintf(name, NAME_BYTES, "t%lld", (long long)i);
        const double octaves = 12 * random_uniform(1, 0, (uint64_t)i);
        list->tensors[i] = stq_tensor_whole(name, 64, (int64_t)(64 * exp2(octaves)));
        list->tensors[i].count = 0;
        list->gradients[i] = &gradient; // nothing of it is read
    }
}

static enum app_status open_list(const struct settings *settings, int64_t count, struct list *list) {
    const size_t n = (size_t)count;
    *list = (struct list){.count = count,
                          .tensors = calloc(n, sizeof(*list->tensors)),
                          .names = calloc(n, NAME_BYTES),
                          .factors = calloc(n, sizeof(*list->factors)),
                          .parameters = calloc(n, sizeof(*list->parameters)),
                          .gradients = calloc(n, sizeof(*list->gradients)),
                          .widths = calloc(n, sizeof(*list->widths))};
    if (!list->tensors || !list->names || !list->factors || !list->parameters || !list->gradients || !list->widths) {
        return app_fail(APP_FAILED, "There is no memory for %lld tensors; lower --tensors.", (long long)count);
    }
    describe(list);
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = settings->kind;
    config.policy.state_bits = settings->state_bits;
    config.policy.decide_every = 2;
    config.threads = 1;
    // The cap of slices without elements: bits of the whole tensors.
    double elements = 0;
    for (int64_t i = 0; i < count; i++) {
        elements += (double)(list->tensors[i].rows * list->tensors[i].cols);
    }
    config.policy.cap_bytes = (uint64_t)(settings->state_bits * elements / 4);
    const stq_status status = stq_adamw_create(&list->optimizer, &config, list->tensors, n);
    return app_check_asked(status);
}

static void draw_factors(struct list *list, int64_t decision) {
    const uint64_t stream = 1 + (uint64_t)(decision / DECISIONS_A_CHANGE);
    for (int64_t i = 0; i < list->count; i++) {
        const uint64_t at = 2 * (uint64_t)i;
        const double wander = random_uniform(2, stream, at), turn = random_uniform(2, stream, at + 1);
        list->factors[i] = (stq_factors){.n = exp(6 * random_uniform(1, 1, at) + 2 * wander - 4),
                                         .r = exp(-4 * random_uniform(1, 1, at + 1) - turn),
                                         .sharpness = 4,
                                         .kurtosis = 3};
    }
}

static enum app_status read_widths(struct list *list, int64_t *changed) {
    for (int64_t i = 0; i < list->count; i++) {
        stq_tensor_info info;
        const enum app_status status = app_check(stq_adamw_tensor(list->optimizer, (size_t)i, &info));
        if (status != APP_OK) {
            return status;
        }
        *changed += (list->widths[i][0] != info.m_bits) + (list->widths[i][1] != info.v_bits);
        list->widths[i][0] = (uint8_t)info.m_bits;
        list->widths[i][1] = (uint8_t)info.v_bits;
    }
    return APP_OK;
}

// One step and its time; the norm is known, so that nothing is summed.
static enum app_status time_step(struct list *list, double *seconds, bool *decided) {
    const stq_step step = {.size = sizeof(step),
                           .parameters = list->parameters,
                           .gradients = list->gradients,
                           .unscale = 1,
                           .norm_supplied = true,
                           .gradient_norm = 1,
                           .factors = list->factors};
    stq_step_result result;
    const double begin = bench_seconds();
    const stq_status status = stq_adamw_step(list->optimizer, &step, &result);
    *seconds = bench_seconds() - begin;
    *decided = result.decided;
    return app_check(status);
}

static enum app_status time_decisions(struct list *list, struct result *result) {
    static double decision[LARGEST_REPEATS], added[LARGEST_REPEATS], plain[LARGEST_REPEATS];
    enum app_status status = APP_OK;
    int64_t changed = 0, decisions = 0;
    double before = 0;
    // The first decision is free of history, the second follows at once: two that do not count.
    for (int64_t k = -2; k < result->repeats && status == APP_OK;) {
        double seconds = 0;
        bool decided = false, due = false;
        status = app_check(stq_adamw_decision_due(list->optimizer, &due));
        if (status == APP_OK && due) {
            draw_factors(list, decisions++);
        }
        status = status == APP_OK ? time_step(list, &seconds, &decided) : status;
        if (status == APP_OK && decided) {
            changed = k > 0 ? changed : 0;
            status = read_widths(list, &changed);
            if (k >= 0) {
                decision[k] = stq_adamw_decision_seconds(list->optimizer);
                added[k] = seconds - before;
                plain[k] = before;
            }
            k++;
        }
        before = seconds;
    }
    result->decision = bench_median(decision, (int)result->repeats);
    result->added = bench_median(added, (int)result->repeats);
    result->step = bench_median(plain, (int)result->repeats);
    result->changed = (double)changed / (double)result->repeats;
    return status;
}

static enum app_status measure(const struct settings *settings, int64_t count, struct result *result) {
    const int64_t by_size = 2000000 / count < 1001 ? 2000000 / count : 1001;
    struct list list;
    *result = (struct result){.tensors = count, .repeats = by_size > 21 ? by_size : 21};
    result->repeats = settings->repeats ? settings->repeats : result->repeats;
    enum app_status status = open_list(settings, count, &list);
    if (status == APP_OK) {
        status = time_decisions(&list, result);
    }
    release(&list);
    return status;
}

// The line time = fixed + slope x tensors with the least squares of relative deviations.
struct line {
    double fixed, slope, worst; // seconds, seconds a tensor, largest relative deviation
};

static struct line fit(const struct result *results, int count) {
    double w = 0, x = 0, xx = 0, y = 0, xy = 0;
    for (int i = 0; i < count; i++) {
        const double n = (double)results[i].tensors, t = results[i].decision, weight = 1 / (t * t);
        w += weight;
        x += weight * n;
        xx += weight * n * n;
        y += weight * t;
        xy += weight * n * t;
    }
    struct line line = {.slope = (w * xy - x * y) / (w * xx - x * x)};
    line.fixed = (y - line.slope * x) / w;
    for (int i = 0; i < count; i++) {
        const double found = line.fixed + line.slope * (double)results[i].tensors;
        line.worst = fmax(line.worst, fabs(found / results[i].decision - 1));
    }
    return line;
}

static json_t *describe_result(const struct result *result) {
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:I}", "tensors", (json_int_t)result->tensors, "decision_ms",
                     1e3 * result->decision, "added_ms", 1e3 * result->added, "step_ms", 1e3 * result->step,
                     "widths_changed", result->changed, "repeats", (json_int_t)result->repeats);
}

static void print_json(const struct settings *settings, const struct result *results, int count) {
    const char *policy = settings->kind == STQ_POLICY_ZONES ? "zones" : "rate-distortion";
    json_t *object = count == 1 ? describe_result(results) : json_object();
    if (count > 1) {
        const struct line line = fit(results, count);
        json_t *sizes = json_array();
        for (int i = 0; i < count; i++) {
            json_array_append_new(sizes, describe_result(&results[i]));
        }
        json_object_set_new(object, "sizes", sizes);
        json_object_set_new(object, "line",
                            json_pack("{s:f, s:f, s:f}", "fixed_us", 1e6 * line.fixed, "ns_per_tensor",
                                      1e9 * line.slope, "largest_relative_deviation", line.worst));
    }
    json_object_set_new(object, "policy", json_string(policy));
    json_object_set_new(object, "state_bits", json_real(settings->state_bits));
    json_dumpf(object, stdout, JSON_REAL_PRECISION(6) | JSON_INDENT(1));
    printf("\n");
    json_decref(object);
}

static void print_table(const struct result *results, int count) {
    printf("   tensors  decision ms  ns/tensor  added ms   step ms  widths changed\n");
    for (int i = 0; i < count; i++) {
        printf("%10lld %12.4f %10.1f %9.4f %9.4f %15.1f\n", (long long)results[i].tensors, 1e3 * results[i].decision,
               1e9 * results[i].decision / (double)results[i].tensors, 1e3 * results[i].added, 1e3 * results[i].step,
               results[i].changed);
    }
    if (count > 1) {
        const struct line line = fit(results, count);
        printf("a straight line: %.2f us + %.1f ns a tensor, at most %.0f %% from the figures above\n",
               1e6 * line.fixed, 1e9 * line.slope, 100 * line.worst);
    }
}

int command_bench_policy(int argc, char **argv) {
    struct settings settings = {.kind = STQ_POLICY_RATE_DISTORTION, .state_bits = 5};
    struct result results[SIZES];
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
    const int count = settings.tensors ? 1 : SIZES;
    int64_t tensors = settings.tensors ? settings.tensors : 10;
    enum app_status status = APP_OK;
    for (int i = 0; i < count && status == APP_OK; i++, tensors *= 10) {
        status = measure(&settings, tensors, &results[i]);
    }
    if (status == APP_OK && settings.json) {
        print_json(&settings, results, count);
    } else if (status == APP_OK) {
        print_table(results, count);
    }
    return command_report("stquant bench policy", status);
}
