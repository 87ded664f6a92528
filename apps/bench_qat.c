// `stquant bench qat`: the passes of quantization-aware training over one matrix, each estimator in turn.
#include <stdio.h>
#include <stdlib.h>
#include <stquant/qat.h>
#include <string.h>

#include "bench.h"
#include "train/quantizer.h"

#include <omp.h>

enum { ESTIMATORS = QUANTIZER_ESTIMATORS, LARGEST_REPEATS = 1000 };

struct settings {
    int64_t rows, columns, bits, repeats, threads;
    int json;
};

enum { ROWS = 'r', COLUMNS = 'c', BITS = 'b', THREADS = 0x2000, REPEATS, JSON };

static const struct argp_option options[] = {{"rows", ROWS, "N", 0, "Rows of the matrix (1024)", 0},
                                             {"columns", COLUMNS, "N", 0, "Weights of a row (4096)", 0},
                                             {"bits", BITS, "N", 0, "Bits of a weight, 1 to 8 (4)", 0},
                                             {"repeats", REPEATS, "N", 0, "Timed rounds (15)", 0},
                                             {"threads", THREADS, "N", 0, "Threads (1)", 0},
                                             {"json", JSON, 0, 0, "Print a JSON object", 0},
                                             {0}};

static error_t parse(int key, char *argument, struct argp_state *state) {
    static const struct command_number numbers[] = {
        {ROWS, "rows", offsetof(struct settings, rows), 1, 1, 1 << 20},
        {COLUMNS, "columns", offsetof(struct settings, columns), 1, 1, 1 << 20},
        {BITS, "bits", offsetof(struct settings, bits), 1, 1, 8},
        {REPEATS, "repeats", offsetof(struct settings, repeats), 1, 1, LARGEST_REPEATS},
        {THREADS, "threads", offsetof(struct settings, threads), 1, 1, 4096}};
    struct settings *settings = state->input;
    switch (key) {
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
    .doc =
        "Times the forward and the backward pass of quantization-aware training over a float32 matrix, the estimators "
        "in turn so that slow phases of the machine meet all.\v"
        "Medians, nanoseconds a weight; the ratio is that of both passes together to ste's, the median over the "
        "rounds.\n\n"
        "Examples:\n\n"
        "  stquant bench qat --threads 2\n"
        "  stquant bench qat --rows 64 --columns 768 --bits 2 --json\n"};

struct buffers {
    float *weights, *gradient, *quantized, *weight_gradient, *steps, *step_gradient;
};

struct times {
    double forward[LARGEST_REPEATS], backward[LARGEST_REPEATS], ratio[LARGEST_REPEATS];
};

// One forward and one backward pass, `inner` times.
static enum app_status time_passes(const struct settings *settings, const stq_qat_config *config,
                                   const struct buffers *buffers, int inner, double *forward, double *backward) {
    const int64_t rows = settings->rows, columns = settings->columns;
    stq_status status = STQ_OK;
    const double begin = bench_seconds();
    for (int i = 0; status == STQ_OK && i < inner; i++) {
        status =
            stq_qat_forward(buffers->quantized, config, buffers->weights, buffers->steps, STQ_FLOAT32, rows, columns);
    }
    const double middle = bench_seconds();
    for (int i = 0; status == STQ_OK && i < inner; i++) {
        status = stq_qat_backward(buffers->weight_gradient, buffers->step_gradient, config, buffers->weights,
                                  buffers->steps, buffers->gradient, STQ_FLOAT32, rows, columns);
    }
    *forward = (middle - begin) / inner;
    *backward = (bench_seconds() - middle) / inner;
    return app_check(status);
}

// The first round only warms up.
static enum app_status measure(const struct settings *settings, const struct buffers *buffers,
                               struct times times[ESTIMATORS]) {
    stq_qat_config config = stq_qat_defaults();
    const int64_t count = settings->rows * settings->columns;
    const int inner = count < 1000000 ? (int)(1000000 / count) + 1 : 1;
    config.bits = (uint32_t)settings->bits;
    if (stq_qat_initial_steps(buffers->steps, &config, buffers->weights, STQ_FLOAT32, settings->rows,
                              settings->columns) != STQ_OK) {
        return app_library_failure();
    }
    for (int round = -1; round < (int)settings->repeats; round++) {
        const int at = round < 0 ? 0 : round;
        for (int estimator = 0; estimator < ESTIMATORS; estimator++) {
            struct times *own = &times[estimator], *straight = &times[STQ_QAT_STRAIGHT_THROUGH];
            config.estimator = (stq_qat_estimator)estimator;
            enum app_status status =
                time_passes(settings, &config, buffers, inner, &own->forward[at], &own->backward[at]);
            if (status != APP_OK) {
                return status;
            }
            own->ratio[at] = (own->forward[at] + own->backward[at]) / (straight->forward[at] + straight->backward[at]);
        }
    }
    return APP_OK;
}

static void print(const struct settings *settings, struct times times[ESTIMATORS]) {
    const double unit = 1e9 / (double)(settings->rows * settings->columns);
    const int repeats = (int)settings->repeats;
    if (settings->json) {
        printf("{\n \"rows\": %lld,\n \"columns\": %lld,\n \"bits\": %lld,\n \"threads\": %lld,\n \"estimators\": [",
               (long long)settings->rows, (long long)settings->columns, (long long)settings->bits,
               (long long)settings->threads);
    } else {
        printf("%lld x %lld weights, %lld bits, %lld threads; nanoseconds a weight\n", (long long)settings->rows,
               (long long)settings->columns, (long long)settings->bits, (long long)settings->threads);
        printf("estimator    forward   backward  both / ste\n");
    }
    for (int estimator = 0; estimator < ESTIMATORS; estimator++) {
        struct times *own = &times[estimator];
        const double forward = unit * bench_median(own->forward, repeats);
        const double backward = unit * bench_median(own->backward, repeats);
        const double ratio = bench_median(own->ratio, repeats);
        if (settings->json) {
            printf("%s\n  {\"name\": \"%s\", \"forward_ns\": %.5g, \"backward_ns\": %.5g, \"ratio_to_ste\": %.5g}",
                   estimator ? "," : "", quantizer_estimators[estimator], forward, backward, ratio);
        } else {
            printf("%-9s %10.4f %10.4f  %10.3f\n", quantizer_estimators[estimator], forward, backward, ratio);
        }
    }
    if (settings->json) {
        printf("\n ]\n}\n");
    }
}

int command_bench_qat(int argc, char **argv) {
    struct settings settings = {.rows = 1024, .columns = 4096, .bits = 4, .repeats = 15, .threads = 1};
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
    omp_set_num_threads((int)settings.threads);
    const size_t matrix = (size_t)(settings.rows * settings.columns) * sizeof(float);
    const size_t vector = (size_t)settings.rows * sizeof(float);
    const int threads = (int)settings.threads;
    struct times *times = calloc(ESTIMATORS, sizeof(*times));
    struct buffers buffers = {.weights = bench_allocate(matrix, threads),
                              .gradient = bench_allocate(matrix, threads),
                              .quantized = bench_allocate(matrix, threads),
                              .weight_gradient = bench_allocate(matrix, threads),
                              .steps = bench_allocate(vector, threads),
                              .step_gradient = bench_allocate(vector, threads)};
    enum app_status status = APP_OK;
    if (!times || !buffers.weights || !buffers.gradient || !buffers.quantized || !buffers.weight_gradient ||
        !buffers.steps || !buffers.step_gradient) {
        status = app_fail(APP_FAILED, "There is no memory; lower --rows.");
    } else {
        bench_fill(buffers.weights, settings.rows * settings.columns, 0.02f, 1, threads);
        bench_fill(buffers.gradient, settings.rows * settings.columns, 1e-3f, 2, threads);
        status = measure(&settings, &buffers, times);
    }
    if (status == APP_OK) {
        print(&settings, times);
    }
    float *const matrices[] = {buffers.weights, buffers.gradient, buffers.quantized, buffers.weight_gradient};
    for (size_t i = 0; i < sizeof(matrices) / sizeof(matrices[0]); i++) {
        bench_release(matrices[i], matrix);
    }
    bench_release(buffers.steps, vector);
    bench_release(buffers.step_gradient, vector);
    free(times);
    return command_report("stquant bench qat", status);
}
