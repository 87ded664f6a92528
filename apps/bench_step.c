// `stquant bench step`: its options and what it prints.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench_step.h"

enum {
    BITS = 'b',
    PARAMS = 'n',
    THREADS = 't',
    TO = 0x2000,
    TENSORS,
    ISA,
    DTYPE,
    REPEATS,
    OWN_NORM,
    DEVICE,
    LIST,
    JSON
};

static const struct argp_option options[] = {
    {"bits", BITS, "B|M,V", 0, "Width of both moments, or of the first and the second (5)", 0},
    {"to", TO, "B|M,V", 0, "Time the transition to these widths too", 0},
    {"params", PARAMS, "N", 0, "Parameters (67108864)", 0},
    {"tensors", TENSORS, "N", 0, "Tensors that share them out evenly (16)", 0},
    {"threads", THREADS, "N", 0, "Threads (all processors)", 0},
    {"isa", ISA, "avx512|avx2|neon|reference", 0, "Kernels (the fastest)", 0},
    {"dtype", DTYPE, "float32|bfloat16|float16", 0, "Parameters and gradients (float32)", 0},
    {"repeats", REPEATS, "N", 0, "Timed steps of each kind (11)", 0},
    {"device", DEVICE, "cpu|cuda", 0, "Where the step is made (cpu)", 0},
    {"list", LIST, "gpt2-xl|flat", 0,
     "Tensors of a GPU's step instead of --params and --tensors: 292 shaped as GPT-2, 820M parameters, or 12 of "
     "8192 x 8192",
     0},
    {"own-norm", OWN_NORM, 0, 0, "Both compute the gradient's norm themselves instead of being given it", 0},
    {"json", JSON, 0, 0, "Print a JSON object", 0},
    {0}};

static void parse_bits(const char *option, uint32_t *m_bits, uint32_t *v_bits, const char *argument,
                       const struct argp_state *state) {
    char rest;
    const int count = sscanf(argument, "%u,%u%c", m_bits, v_bits, &rest);
    if (count == 1 && sscanf(argument, "%u%c", m_bits, &rest) == 1) {
        *v_bits = *m_bits;
    } else if (count != 2) {
        argp_failure(state, APP_USAGE, 0, "--%s takes a width, or two with a comma between, not '%s'.", option,
                     argument);
    }
    if (*m_bits < 2 || *m_bits > 8 || *v_bits < 2 || *v_bits > 8) {
        argp_failure(state, APP_USAGE, 0, "--%s takes widths from 2 to 8, not '%s'.", option, argument);
    }
}

static void check_device(const struct bench_step_settings *settings, const struct argp_state *state) {
    if (!settings->gpu && settings->list) {
        argp_failure(state, APP_USAGE, 0, "--list needs --device cuda.");
    }
    if (settings->gpu && (settings->to_m_bits || settings->dtype == STQ_FLOAT16)) {
        argp_failure(state, APP_USAGE, 0, "--device cuda times neither --to nor float16.");
    }
#ifndef STQUANT_APPS_CUDA
    if (settings->gpu) {
        argp_failure(state, APP_USAGE, 0,
                     "This stquant was built without its GPU backend; build it with -DSTQUANT_CUDA=ON, which needs "
                     "nvcc, or leave --device cuda out.");
    }
#endif
}

static error_t parse(int key, char *argument, struct argp_state *state) {
    static const char *const dtypes[] = {"float32", "bfloat16", "float16"};
    static const char *const devices[] = {"cpu", "cuda"}, *const lists[] = {"gpt2-xl", "flat"};
    static const struct command_number numbers[] = {
        {PARAMS, "params", offsetof(struct bench_step_settings, params), 1, 1, (double)(INT64_C(1) << 38)},
        {TENSORS, "tensors", offsetof(struct bench_step_settings, tensors), 1, 1, 1 << 24},
        {THREADS, "threads", offsetof(struct bench_step_settings, threads), 1, 1, 4096},
        {REPEATS, "repeats", offsetof(struct bench_step_settings, repeats), 1, 1, BENCH_LARGEST_REPEATS}};
    struct bench_step_settings *settings = state->input;
    switch (key) {
    case BITS:
        parse_bits("bits", &settings->m_bits, &settings->v_bits, argument, state);
        return 0;
    case TO:
        parse_bits("to", &settings->to_m_bits, &settings->to_v_bits, argument, state);
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
    case DEVICE:
        settings->gpu = command_choice(state, "device", argument, devices, 2) == devices[1];
        return 0;
    case LIST:
        settings->list = command_choice(state, "list", argument, lists, 2);
        return 0;
    case OWN_NORM:
        settings->own_norm = 1;
        return 0;
    case JSON:
        settings->json = 1;
        return 0;
    case ARGP_KEY_ARG:
        command_argument(state, argument, NULL, 0, NULL);
        return 0;
    case ARGP_KEY_END:
        if (settings->tensors > settings->params) {
            argp_failure(state, APP_USAGE, 0, "There are more tensors than parameters; lower --tensors.");
        }
        check_device(settings, state);
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
    .doc = "Times AdamW steps with low-bit states and, in turn with them, our float32 AdamW over the same arrays.\v"
           "Medians; a step's bytes are gradients once, parameters and states twice. copy_gb_per_s is memcpy with as "
           "many threads, bytes read and written. Gradients differ from step to step. Cycles are those of one core "
           "for 16 of its values, at the frequency that a chain of dependent instructions shows in between; they tell "
           "something about the kernels only where everything stays in the cache (--params 65536 --threads 1). A "
           "transition's ratio is to the mean of the steps before and after it, which it follows from the same states "
           "with the allocation of its planes. On a GPU times are the device's, between events around the call, and "
           "share_of_copy is the speed at which a step's bytes move (with --own-norm gradients twice) by that of a "
           "device-to-device copy.\n\n"
           "Examples:\n\n"
           "  stquant bench step\n"
           "  stquant bench step --bits 4,3 --params 1000000 --threads 1 --json\n"
           "  stquant bench step --device cuda --list gpt2-xl --dtype bfloat16 --json\n"};

static double cycles(const struct bench_step_settings *settings, const struct bench_step_result *result,
                     double seconds) {
    return 16e9 * seconds * result->gigahertz * (double)settings->threads / (double)settings->params;
}

static double transition_ratio(const struct bench_step_result *result) {
    return 2 * result->transition / (result->before + result->after);
}

// How much of a copy's speed the bytes of a low-bit step move at.
static double share_of_copy(const struct bench_step_result *result) {
    return result->low_bit_bytes / result->low_bit / (result->copy_bytes / result->copy);
}

static void print_text(const struct bench_step_settings *settings, const struct bench_step_result *result) {
    const double scale = 1e9 / (double)settings->params;
    printf("%s kernels, %lld threads, %lld parameters (%s) in %lld tensors, widths %u and %u\n", settings->isa,
           (long long)settings->threads, (long long)settings->params, settings->dtype_name,
           (long long)settings->tensors, settings->m_bits, settings->v_bits);
    printf(
        "low-bit states   %8.4f ns a parameter (least %.4f), %6.1f GB/s, %.1f cycles for 16, %.2f bits a state value\n",
        scale * result->low_bit, scale * result->least_low_bit, 1e-9 * result->low_bit_bytes / result->low_bit,
        cycles(settings, result, result->low_bit), result->memory.final_bits);
    printf("float32 states   %8.4f ns a parameter (least %.4f), %6.1f GB/s, %.1f cycles for 16\n",
           scale * result->float32, scale * result->least_float32, 1e-9 * result->float32_bytes / result->float32,
           cycles(settings, result, result->float32));
    printf("copy             %37s %6.1f GB/s\n", "", 1e-9 * result->copy_bytes / result->copy);
    printf("speedup          %8.3f\nshare of copy    %8.3f\n", result->float32 / result->low_bit,
           share_of_copy(result));
    if (settings->to_m_bits) {
        printf("to %u and %u       %8.4f ns a parameter, %.4f before and %.4f after; ratio %.3f\n", settings->to_m_bits,
               settings->to_v_bits, scale * result->transition, scale * result->before, scale * result->after,
               transition_ratio(result));
    }
}

static void print_gpu_text(const struct bench_step_settings *settings, const struct bench_step_result *result) {
    printf("%s, %lld parameters (%s) in %lld tensors, widths %u and %u\n", result->device, (long long)settings->params,
           settings->dtype_name, (long long)settings->tensors, settings->m_bits, settings->v_bits);
    printf(
        "low-bit states   %8.3f ms (least %.3f), %7.1f GB/s, %.2f bits a state value; the call returns after %.3f ms\n",
        1e3 * result->low_bit, 1e3 * result->least_low_bit, 1e-9 * result->low_bit_bytes / result->low_bit,
        result->memory.final_bits, 1e3 * result->host);
    printf("float32 states   %8.3f ms (least %.3f), %7.1f GB/s\n", 1e3 * result->float32, 1e3 * result->least_float32,
           1e-9 * result->float32_bytes / result->float32);
    printf("copy             %26s %7.1f GB/s\n", "", 1e-9 * result->copy_bytes / result->copy);
    printf("speedup          %8.3f\nshare of copy    %8.3f\n", result->float32 / result->low_bit,
           share_of_copy(result));
}

// Names and words need no escapes.
static void print_json(const struct bench_step_settings *settings, const struct bench_step_result *result) {
    const double scale = 1e9 / (double)settings->params;
    if (settings->gpu) {
        printf("{\n \"device\": \"cuda\",\n \"device_name\": \"%s\",\n \"list\": \"%s\",\n", result->device,
               settings->list ? settings->list : "even");
        printf(" \"step_ms\": %.6g,\n \"least_step_ms\": %.6g,\n \"host_ms\": %.6g,\n", 1e3 * result->low_bit,
               1e3 * result->least_low_bit, 1e3 * result->host);
    } else {
        printf("{\n \"device\": \"cpu\",\n \"isa\": \"%s\",\n \"threads\": %lld,\n", settings->isa,
               (long long)settings->threads);
    }
    printf(" \"params\": %lld,\n \"tensors\": %lld,\n \"dtype\": \"%s\",\n", (long long)settings->params,
           (long long)settings->tensors, settings->dtype_name);
    printf(" \"m_bits\": %u,\n \"v_bits\": %u,\n \"repeats\": %lld,\n \"norm\": \"%s\",\n", settings->m_bits,
           settings->v_bits, (long long)settings->repeats, settings->own_norm ? "own" : "supplied");
    printf(" \"ns_per_param\": %.6g,\n \"float32_ns_per_param\": %.6g,\n \"speedup\": %.6g,\n", scale * result->low_bit,
           scale * result->float32, result->float32 / result->low_bit);
    printf(" \"least_ns_per_param\": %.6g,\n \"float32_least_ns_per_param\": %.6g,\n", scale * result->least_low_bit,
           scale * result->least_float32);
    printf(" \"gb_per_s\": %.6g,\n \"float32_gb_per_s\": %.6g,\n \"copy_gb_per_s\": %.6g,\n",
           1e-9 * result->low_bit_bytes / result->low_bit, 1e-9 * result->float32_bytes / result->float32,
           1e-9 * result->copy_bytes / result->copy);
    printf(" \"share_of_copy\": %.6g,\n", share_of_copy(result));
    if (result->gigahertz > 0) {
        printf(
            " \"core_gigahertz\": %.6g,\n \"cycles_per_16_values\": %.6g,\n \"float32_cycles_per_16_values\": %.6g,\n",
            result->gigahertz, cycles(settings, result, result->low_bit), cycles(settings, result, result->float32));
    }
    if (settings->to_m_bits) {
        printf(" \"to_m_bits\": %u,\n \"to_v_bits\": %u,\n \"transition_ns_per_param\": %.6g,\n", settings->to_m_bits,
               settings->to_v_bits, scale * result->transition);
        printf(" \"before_ns_per_param\": %.6g,\n \"after_ns_per_param\": %.6g,\n \"transition_ratio\": %.6g,\n",
               scale * result->before, scale * result->after, transition_ratio(result));
    }
    printf(" \"all_in_bits\": %.6g,\n \"state_bytes\": %llu\n}\n", result->memory.final_bits,
           (unsigned long long)result->memory.state_bytes);
}

int command_bench_step(int argc, char **argv) {
    struct bench_step_settings settings = {.params = 1 << 26,
                                           .tensors = 16,
                                           .threads = omp_get_max_threads(),
                                           .repeats = 11,
                                           .m_bits = 5,
                                           .v_bits = 5,
                                           .dtype_name = "float32"};
    struct bench_step_result result;
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
#ifdef STQUANT_APPS_CUDA
    const enum app_status status =
        settings.gpu ? bench_step_run_gpu(&settings, &result) : bench_step_run(&settings, &result);
#else
    const enum app_status status = bench_step_run(&settings, &result);
#endif
    if (status == APP_OK) {
        (settings.json ? print_json : settings.gpu ? print_gpu_text : print_text)(&settings, &result);
    }
    return command_report("stquant bench step", status);
}
