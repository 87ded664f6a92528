// `stquant bench step`: one AdamW step with low-bit states, interleaved with our own float32 AdamW over the same
// parameters and gradients.
#include <jansson.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <stquant/stquant.h>
#include <string.h>

#include "bench.h"

// Gradients of a step begin at another place of a buffer with this much room, so that they differ from step to step.
enum { SLACK = 65536, LARGEST_REPEATS = 1000, WARM_UP = 12, NAME_BYTES = 24 };

struct settings {
    int64_t params, tensors, threads, repeats;
    uint32_t m_bits, v_bits;
    stq_dtype dtype;
    const char *isa, *dtype_name;
    int own_norm, json;
};

enum { BITS = 'b', PARAMS = 'n', TENSORS = 0x2000, THREADS = 't', ISA, DTYPE, REPEATS, OWN_NORM, JSON };

static const struct argp_option options[] = {
    {"bits", BITS, "B|M,V", 0, "Width of both moments, or of the first and the second (5)", 0},
    {"params", PARAMS, "N", 0, "Parameters (67108864)", 0},
    {"tensors", TENSORS, "N", 0, "Tensors that share them out evenly (16)", 0},
    {"threads", THREADS, "N", 0, "Threads (all)", 0},
    {"isa", ISA, "NAME", 0, "Kernels: avx512, avx2, neon or reference (the fastest)", 0},
    {"dtype", DTYPE, "NAME", 0, "Parameters and gradients: float32 (default), bfloat16 or float16", 0},
    {"repeats", REPEATS, "N", 0, "Timed steps of each kind (11)", 0},
    {"own-norm", OWN_NORM, 0, 0, "Both compute the gradient's norm themselves instead of being given it", 0},
    {"json", JSON, 0, 0, "Print a JSON object", 0},
    {0}};

static void parse_bits(struct settings *settings, const char *argument, const struct argp_state *state) {
    unsigned m_bits, v_bits;
    char rest;
    const int count = sscanf(argument, "%u,%u%c", &m_bits, &v_bits, &rest);
    if (count == 1 && sscanf(argument, "%u%c", &m_bits, &rest) == 1) {
        v_bits = m_bits;
    } else if (count != 2) {
        argp_failure(state, APP_USAGE, 0, "--bits takes a width, or two with a comma between, not '%s'.", argument);
        return;
    }
    if (m_bits < 2 || m_bits > 8 || v_bits < 2 || v_bits > 8) {
        argp_failure(state, APP_USAGE, 0, "--bits takes widths from 2 to 8, not '%s'.", argument);
    }
    settings->m_bits = m_bits;
    settings->v_bits = v_bits;
}

static error_t parse(int key, char *argument, struct argp_state *state) {
    static const char *const dtypes[] = {"float32", "bfloat16", "float16"};
    struct settings *settings = state->input;
    switch (key) {
    case BITS:
        parse_bits(settings, argument, state);
        return 0;
    case PARAMS:
        settings->params = command_integer(state, "params", argument, 1, INT64_C(1) << 38);
        return 0;
    case TENSORS:
        settings->tensors = command_integer(state, "tensors", argument, 1, 1 << 24);
        return 0;
    case THREADS:
        settings->threads = command_integer(state, "threads", argument, 1, 4096);
        return 0;
    case ISA:
        settings->isa = argument;
        return 0;
    case DTYPE:
        settings->dtype_name = command_choice(state, "dtype", argument, dtypes, 3);
        settings->dtype = settings->dtype_name == dtypes[0]   ? STQ_FLOAT32
                          : settings->dtype_name == dtypes[1] ? STQ_BFLOAT16
                                                              : STQ_FLOAT16;
        return 0;
    case REPEATS:
        settings->repeats = command_integer(state, "repeats", argument, 1, LARGEST_REPEATS);
        return 0;
    case OWN_NORM:
        settings->own_norm = 1;
        return 0;
    case JSON:
        settings->json = 1;
        return 0;
    case ARGP_KEY_ARG:
        argp_failure(state, APP_USAGE, 0, "'%s' is not expected; `stquant bench step --help` lists the options.",
                     argument);
        return 0;
    case ARGP_KEY_END:
        if (settings->tensors > settings->params) {
            argp_failure(state, APP_USAGE, 0, "There are more tensors than parameters; lower --tensors.");
        }
        settings->isa = bench_choose_kernels(state, settings->isa);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .doc = "Times AdamW steps with low-bit states and, in turn with them, our float32 AdamW over the same arrays.\v"
           "Medians; a step's bytes are gradients once, parameters and states twice. copy_gb_per_s is memcpy with as "
           "many threads, bytes read and written. Gradients differ from step to step."};

// Everything that is timed.
struct bench {
    const struct settings *settings;
    stq_tensor *tensors;
    void **parameters;
    const void **gradients;
    uint8_t *parameter_memory, *gradient_memory;
    size_t element, parameter_bytes, gradient_bytes;
    stq_adamw *low_bit, *float32;
    uint8_t *copy_from, *copy_to;
    size_t copy_bytes;
    uint32_t step;
};

static int64_t tensor_first(const struct settings *settings, int64_t i) {
    return settings->params / settings->tensors * i +
           (i < settings->params % settings->tensors ? i : settings->params % settings->tensors);
}

static void *huge_allocate(void *context, size_t bytes) { return bench_allocate(bytes, *(const int *)context); }

static void huge_release(void *context, void *pointer, size_t bytes) {
    (void)context;
    bench_release(pointer, bytes);
}

static enum app_status open_optimizer(const struct bench *bench, stq_policy_kind kind, stq_adamw **optimizer) {
    static int threads;
    const struct settings *settings = bench->settings;
    threads = (int)settings->threads;
    // Many small tensors would each take a huge page of their own.
    const stq_allocator huge = {.context = &threads, .allocate = huge_allocate, .release = huge_release};
    const int large = settings->params / settings->tensors >= 1 << 22;
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = kind;
    config.policy.fixed_m_bits = settings->m_bits;
    config.policy.fixed_v_bits = settings->v_bits;
    config.threads = (int)settings->threads;
    config.allocator = large ? &huge : NULL;
    const uint32_t bits[2] = {settings->m_bits, settings->v_bits};
    for (int64_t i = 0; i < settings->tensors; i++) {
        bench->tensors[i].m_bits = kind == STQ_POLICY_FLOAT32 ? 32 : bits[0];
        bench->tensors[i].v_bits = kind == STQ_POLICY_FLOAT32 ? 32 : bits[1];
    }
    if (stq_adamw_create(optimizer, &config, bench->tensors, (size_t)settings->tensors) != STQ_OK) {
        return app_fail(APP_FAILED, "%s", stq_last_error());
    }
    return APP_OK;
}

// Random values of the dtype; bfloat16 and float16 take bits of floats of the right size.
static void fill(struct bench *bench, uint8_t *memory, int64_t count, float deviation, uint32_t seed) {
    const struct settings *settings = bench->settings;
    if (settings->dtype == STQ_FLOAT32) {
        bench_fill((float *)(void *)memory, count, deviation, seed, (int)settings->threads);
        return;
    }
    enum { PIECE = 4096 };
#pragma omp parallel for num_threads((int)settings->threads) schedule(static)
    for (int64_t first = 0; first < count; first += PIECE) {
        float values[PIECE];
        bench_fill(values, PIECE, deviation, seed + (uint32_t)(first / PIECE), 1);
        for (int64_t i = 0; i < PIECE && first + i < count; i++) {
            uint32_t bits;
            memcpy(&bits, &values[i], sizeof(bits));
            uint16_t half = (uint16_t)(bits >> 16);
            if (settings->dtype == STQ_FLOAT16) { // truncated; tiny values become 0
                const uint32_t exponent = bits >> 23 & 255;
                half = exponent < 113 ? 0 : (uint16_t)((exponent - 112) << 10 | (bits >> 13 & 0x3ff));
                half |= (uint16_t)(bits >> 16 & 0x8000);
            }
            memcpy(memory + 2 * (first + i), &half, sizeof(half));
        }
    }
}

static enum app_status open_bench(struct bench *bench, const struct settings *settings) {
    const int threads = (int)settings->threads;
    *bench = (struct bench){.settings = settings, .element = stq_dtype_size(settings->dtype)};
    bench->tensors = calloc((size_t)settings->tensors, sizeof(*bench->tensors));
    bench->parameters = calloc((size_t)settings->tensors, sizeof(*bench->parameters));
    bench->gradients = calloc((size_t)settings->tensors, sizeof(*bench->gradients));
    bench->parameter_bytes = (size_t)settings->params * bench->element;
    bench->gradient_bytes = (size_t)(settings->params + SLACK) * bench->element;
    bench->copy_bytes = bench->parameter_bytes < (size_t)1 << 28 ? bench->parameter_bytes : (size_t)1 << 28;
    bench->parameter_memory = bench_allocate(bench->parameter_bytes, threads);
    bench->gradient_memory = bench_allocate(bench->gradient_bytes, threads);
    bench->copy_from = bench_allocate(bench->copy_bytes, threads);
    bench->copy_to = bench_allocate(bench->copy_bytes, threads);
    char *names = calloc((size_t)settings->tensors, NAME_BYTES);
    if (!bench->tensors || !bench->parameters || !bench->gradients || !names || !bench->parameter_memory ||
        !bench->gradient_memory || !bench->copy_from || !bench->copy_to) {
        free(names);
        return app_fail(APP_FAILED, "There is no memory for %lld parameters and their gradients; lower --params.",
                        (long long)settings->params);
    }
    fill(bench, bench->parameter_memory, settings->params, 0.02f, 1);
    fill(bench, bench->gradient_memory, settings->params + SLACK, 1e-3f, 2);
    for (int64_t i = 0; i < settings->tensors; i++) {
        const int64_t first = tensor_first(settings, i), count = tensor_first(settings, i + 1) - first;
        snprintf(names + NAME_BYTES * i, NAME_BYTES, "%lld", (long long)i);
        bench->tensors[i] = stq_tensor_whole(names + NAME_BYTES * i, 1, count);
        bench->tensors[i].parameter_type = bench->tensors[i].gradient_type = settings->dtype;
        bench->parameters[i] = bench->parameter_memory + (size_t)first * bench->element;
    }
    enum app_status status = open_optimizer(bench, STQ_POLICY_FIXED, &bench->low_bit);
    if (status == APP_OK) {
        status = open_optimizer(bench, STQ_POLICY_FLOAT32, &bench->float32);
    }
    free(names);
    return status;
}

static void close_bench(struct bench *bench) {
    stq_adamw_destroy(bench->low_bit);
    stq_adamw_destroy(bench->float32);
    bench_release(bench->parameter_memory, bench->parameter_bytes);
    bench_release(bench->gradient_memory, bench->gradient_bytes);
    bench_release(bench->copy_from, bench->copy_bytes);
    bench_release(bench->copy_to, bench->copy_bytes);
    free(bench->tensors);
    free(bench->parameters);
    free(bench->gradients);
}

static enum app_status take_step(struct bench *bench, stq_adamw *optimizer) {
    const struct settings *settings = bench->settings;
    // In cache the gradients must stay there too.
    const uint32_t places = settings->params < SLACK ? 256 : SLACK / 16;
    const size_t place = 16 * bench->element * (++bench->step * 7919u % places);
    for (int64_t i = 0; i < settings->tensors; i++) {
        bench->gradients[i] = bench->gradient_memory + place + (size_t)tensor_first(settings, i) * bench->element;
    }
    const stq_step step = {.size = sizeof(step),
                           .parameters = bench->parameters,
                           .gradients = bench->gradients,
                           .unscale = 1,
                           .norm_supplied = !settings->own_norm,
                           .gradient_norm = 1};
    return stq_adamw_step(optimizer, &step, NULL) == STQ_OK ? APP_OK : app_fail(APP_FAILED, "%s", stq_last_error());
}

static void copy(const struct bench *bench) {
    const int64_t pieces = (int64_t)(bench->copy_bytes + 65535) / 65536;
#pragma omp parallel for num_threads((int)bench->settings->threads) schedule(static)
    for (int64_t i = 0; i < pieces; i++) {
        const size_t at = (size_t)i * 65536, left = bench->copy_bytes - at;
        memcpy(bench->copy_to + at, bench->copy_from + at, left < 65536 ? left : 65536);
    }
}

struct times {
    double low_bit[LARGEST_REPEATS], float32[LARGEST_REPEATS], copy[LARGEST_REPEATS];
};

// One after the other, `inner` times each, so that a slow phase of the machine meets all.
static enum app_status measure(struct bench *bench, struct times *times) {
    const int64_t params = bench->settings->params;
    const int inner = params < 1000000 ? (int)(2000000 / params) + 1 : 1;
    enum app_status status = APP_OK;
    for (int i = 0; i < WARM_UP && status == APP_OK; i++) {
        status = take_step(bench, bench->low_bit);
        status = status == APP_OK ? take_step(bench, bench->float32) : status;
    }
    for (int i = 0; i < (int)bench->settings->repeats && status == APP_OK; i++) {
        const double begin = bench_seconds();
        for (int k = 0; k < inner && status == APP_OK; k++) {
            status = take_step(bench, bench->float32);
        }
        const double middle = bench_seconds();
        for (int k = 0; k < inner && status == APP_OK; k++) {
            status = take_step(bench, bench->low_bit);
        }
        const double end = bench_seconds();
        for (int k = 0; k < inner; k++) {
            copy(bench);
        }
        times->float32[i] = (middle - begin) / inner;
        times->low_bit[i] = (end - middle) / inner;
        times->copy[i] = (bench_seconds() - end) / inner;
    }
    return status;
}

static void print_result(const struct bench *bench, struct times *times) {
    const struct settings *settings = bench->settings;
    const int repeats = (int)settings->repeats;
    const double params = (double)settings->params;
    const double low_bit = bench_median(times->low_bit, repeats), float32 = bench_median(times->float32, repeats);
    const double copied = bench_median(times->copy, repeats);
    stq_memory low_memory, float32_memory;
    stq_adamw_memory(bench->low_bit, &low_memory);
    stq_adamw_memory(bench->float32, &float32_memory);
    const double arrays = 3 * params * (double)bench->element;
    const double low_bytes = arrays + 2 * (double)low_memory.state_bytes;
    const double float32_bytes = arrays + 2 * (double)float32_memory.state_bytes;
    if (!settings->json) {
        printf("%s kernels, %lld threads, %lld parameters (%s) in %lld tensors, widths %u and %u\n", settings->isa,
               (long long)settings->threads, (long long)settings->params, settings->dtype_name,
               (long long)settings->tensors, settings->m_bits, settings->v_bits);
        printf("low-bit states   %8.4f ns a parameter (least %.4f), %6.1f GB/s, %.2f bits a state value\n",
               1e9 * low_bit / params, 1e9 * times->low_bit[0] / params, 1e-9 * low_bytes / low_bit,
               low_memory.final_bits);
        printf("float32 states   %8.4f ns a parameter (least %.4f), %6.1f GB/s\n", 1e9 * float32 / params,
               1e9 * times->float32[0] / params, 1e-9 * float32_bytes / float32);
        printf("memcpy           %37s %6.1f GB/s\n", "", 2e-9 * (double)bench->copy_bytes / copied);
        printf("speedup          %8.3f\n", float32 / low_bit);
        return;
    }
    json_t *object = json_pack(
        "{s:s, s:I, s:I, s:I, s:s, s:i, s:i, s:I, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I}", "isa",
        settings->isa, "threads", (json_int_t)settings->threads, "params", (json_int_t)settings->params, "tensors",
        (json_int_t)settings->tensors, "dtype", settings->dtype_name, "m_bits", (int)settings->m_bits, "v_bits",
        (int)settings->v_bits, "repeats", (json_int_t)settings->repeats, "norm",
        settings->own_norm ? "own" : "supplied", "ns_per_param", 1e9 * low_bit / params, "float32_ns_per_param",
        1e9 * float32 / params, "speedup", float32 / low_bit, "least_ns_per_param", 1e9 * times->low_bit[0] / params,
        "float32_least_ns_per_param", 1e9 * times->float32[0] / params, "gb_per_s", 1e-9 * low_bytes / low_bit,
        "float32_gb_per_s", 1e-9 * float32_bytes / float32, "copy_gb_per_s", 2e-9 * (double)bench->copy_bytes / copied,
        "all_in_bits", low_memory.final_bits, "state_bytes", (json_int_t)low_memory.state_bytes);
    json_dumpf(object, stdout, JSON_REAL_PRECISION(6) | JSON_INDENT(1));
    printf("\n");
    json_decref(object);
}

int command_bench_step(int argc, char **argv) {
    struct settings settings = {.params = 1 << 26,
                                .tensors = 16,
                                .threads = omp_get_max_threads(),
                                .repeats = 11,
                                .m_bits = 5,
                                .v_bits = 5,
                                .dtype_name = "float32"};
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
    struct bench bench;
    struct times *times = malloc(sizeof(*times));
    enum app_status status = times ? open_bench(&bench, &settings) : app_fail(APP_FAILED, "There is no memory.");
    if (status == APP_OK) {
        status = measure(&bench, times);
    }
    if (status == APP_OK) {
        print_result(&bench, times);
    }
    if (times) {
        close_bench(&bench);
    }
    free(times);
    return command_report("stquant bench step", status);
}
