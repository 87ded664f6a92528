// `stquant bench codec`: encoding and decoding alone, one thread, for every width of both moments.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <stquant/quant.h>
#include <string.h>

#include "bench.h"

enum { AVERAGED = 8, LARGEST_REPEATS = 1000 };

struct settings {
    int64_t values, repeats;
    const char *isa;
    int json;
};

enum { VALUES = 'n', REPEATS = 0x2000, ISA, JSON };

static const struct argp_option options[] = {{"values", VALUES, "N", 0, "Values of an array (1048576)", 0},
                                             {"repeats", REPEATS, "N", 0, "Timed calls of each kind (11)", 0},
                                             {"isa", ISA, "avx512|avx2|neon|reference", 0, "Kernels (the fastest)", 0},
                                             {"json", JSON, 0, 0, "Print a JSON object", 0},
                                             {0}};

static error_t parse(int key, char *argument, struct argp_state *state) {
    static const struct command_number numbers[] = {
        {VALUES, "values", offsetof(struct settings, values), 1, 1, (double)(INT64_C(1) << 34)},
        {REPEATS, "repeats", offsetof(struct settings, repeats), 1, 1, LARGEST_REPEATS}};
    struct settings *settings = state->input;
    switch (key) {
    case ISA:
        settings->isa = argument;
        return 0;
    case JSON:
        settings->json = 1;
        return 0;
    case ARGP_KEY_ARG:
        command_argument(state, argument, NULL, 0, NULL);
        return 0;
    case ARGP_KEY_END:
        settings->isa = bench_choose_kernels(state, settings->isa);
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
    .doc = "Times encoding and decoding of arrays, one thread, and measures the signal-to-noise ratio of one coding.\v"
           "First moment: normal values. Second moment: means of 8 squares of normal values. Medians.\n\n"
           "Examples:\n\n"
           "  stquant bench codec\n"
           "  stquant bench codec --isa avx2 --values 65536 --json\n"};

struct result {
    double encode, decode; // nanoseconds a value
    double ratio;          // signal to noise, decibel
    uint64_t bytes;
};

static void release_planes(stq_planes *planes, int64_t count) {
    bench_release(planes->base, stq_plane_bytes(count, planes->bits, 0));
    for (uint32_t k = 1; k < stq_plane_count(planes->bits); k++) {
        bench_release(planes->bit[k - 1], stq_plane_bytes(count, planes->bits, k));
    }
    bench_release(planes->scales, (size_t)stq_block_count(count) * sizeof(uint16_t));
}

// Returns 0 if there is no memory; what was allocated is in `planes` then.
static int allocate_planes(stq_planes *planes, int64_t count) {
    planes->base = bench_allocate(stq_plane_bytes(count, planes->bits, 0), 1);
    int complete = planes->base != NULL;
    for (uint32_t k = 1; k < stq_plane_count(planes->bits); k++) {
        planes->bit[k - 1] = bench_allocate(stq_plane_bytes(count, planes->bits, k), 1);
        complete = complete && planes->bit[k - 1];
    }
    planes->scales = bench_allocate((size_t)stq_block_count(count) * sizeof(uint16_t), 1);
    return complete && planes->scales;
}

static double decibel(const float *values, const float *decoded, int64_t count) {
    double signal = 0, noise = 0;
    for (int64_t i = 0; i < count; i++) {
        const double error = (double)values[i] - (double)decoded[i];
        signal += (double)values[i] * values[i];
        noise += error * error;
    }
    return 10 * log10(signal / noise);
}

static enum app_status measure(const struct settings *settings, stq_state which, uint32_t bits, const float *values,
                               float *decoded, struct result *result) {
    double encode[LARGEST_REPEATS], decode[LARGEST_REPEATS];
    const int64_t count = settings->values;
    stq_planes planes = {.bits = bits};
    enum app_status status =
        allocate_planes(&planes, count) ? APP_OK : app_fail(APP_FAILED, "There is no memory; lower --values.");
    const int inner = count < 1000000 ? (int)(1000000 / count) + 1 : 1;
    for (int i = -1; i < (int)settings->repeats && status == APP_OK; i++) {
        const double begin = bench_seconds();
        for (int k = 0; k < inner && status == APP_OK; k++) {
            const stq_random random = {.seed = 1, .step = (uint64_t)(i * inner + k + 2)};
            status = app_check(stq_encode(&planes, which, values, count, &random));
        }
        const double middle = bench_seconds();
        for (int k = 0; k < inner && status == APP_OK; k++) {
            status = app_check(stq_decode(decoded, &planes, which, count));
        }
        const double end = bench_seconds();
        if (i >= 0) {
            encode[i] = (middle - begin) / inner;
            decode[i] = (end - middle) / inner;
        }
    }
    if (status == APP_OK) {
        result->encode = 1e9 * bench_median(encode, (int)settings->repeats) / (double)count;
        result->decode = 1e9 * bench_median(decode, (int)settings->repeats) / (double)count;
        result->ratio = decibel(values, decoded, count);
    }
    release_planes(&planes, count);
    return status;
}

static void fill_values(stq_state which, float *values, float *scratch, int64_t count) {
    if (which == STQ_FIRST_MOMENT) {
        bench_fill(values, count, 1e-3f, 1, 1);
        return;
    }
    memset(values, 0, (size_t)count * sizeof(*values));
    for (uint32_t k = 0; k < AVERAGED; k++) {
        bench_fill(scratch, count, 1e-3f, 2 + k, 1);
        for (int64_t i = 0; i < count; i++) {
            values[i] += scratch[i] * scratch[i] / AVERAGED;
        }
    }
}

// The first row has none before it.
static void print_row(const struct settings *settings, stq_state which, uint32_t bits, const struct result *result) {
    const char *name = which == STQ_FIRST_MOMENT ? "first" : "second";
    if (!settings->json) {
        printf("%-6s %5u %10.3f %10.3f %8.2f\n", name, bits, result->encode, result->decode, result->ratio);
        return;
    }
    printf("%s\n  {\"moment\": \"%s\", \"bits\": %u, \"encode_ns_per_value\": %.5g, \"decode_ns_per_value\": %.5g, "
           "\"snr_db\": %.5g}",
           which == STQ_FIRST_MOMENT && bits == 2 ? "" : ",", name, bits, result->encode, result->decode,
           result->ratio);
}

static enum app_status measure_all(const struct settings *settings, float *values, float *decoded) {
    if (settings->json) {
        printf("{\n \"isa\": \"%s\",\n \"values\": %lld,\n \"codecs\": [", settings->isa, (long long)settings->values);
    } else {
        printf("%s kernels, one thread, %lld values; nanoseconds a value, signal-to-noise ratio in dB\n", settings->isa,
               (long long)settings->values);
        printf("moment  bits     encode     decode      SNR\n");
    }
    for (stq_state which = STQ_FIRST_MOMENT; which <= STQ_SECOND_MOMENT; which++) {
        fill_values(which, values, decoded, settings->values);
        for (uint32_t bits = 2; bits <= 8; bits++) {
            struct result result;
            const enum app_status status = measure(settings, which, bits, values, decoded, &result);
            if (status != APP_OK) {
                return status;
            }
            print_row(settings, which, bits, &result);
        }
    }
    return APP_OK;
}

int command_bench_codec(int argc, char **argv) {
    struct settings settings = {.values = 1 << 20, .repeats = 11};
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
    const size_t bytes = (size_t)settings.values * sizeof(float);
    float *values = bench_allocate(bytes, 1), *decoded = bench_allocate(bytes, 1);
    enum app_status status = values && decoded ? measure_all(&settings, values, decoded)
                                               : app_fail(APP_FAILED, "There is no memory; lower --values.");
    if (status == APP_OK && settings.json) {
        printf("\n ]\n}\n");
    }
    bench_release(values, bytes);
    bench_release(decoded, bytes);
    return command_report("stquant bench codec", status);
}
