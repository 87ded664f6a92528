/*
 * gpu_optimizer.c - times stq_adamw_step() itself on 292 tensors shaped as GPT-2 (820M bfloat16 parameters): what the
 * host spends, an ordinary step, and a step that decides widths.
 *
 * usage: gpu_optimizer [--csv FILE]
 */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gpu_random.h"
#include <stquant/adamw.h>

enum { LAYERS = 24, TENSORS = 4 + 12 * LAYERS, STEPS = 33 };

static void check(cudaError_t error, const char *call, int line) {
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "gpu_optimizer: line %d: %s: %s\n", line, call, cudaGetErrorString(error));
    exit(1);
}
#define CUDA(call) check((call), #call, __LINE__)

static void must(stq_status status) {
    if (status == STQ_OK)
        return;
    fprintf(stderr, "gpu_optimizer: %s: %s\n", stq_status_name(status), stq_last_error());
    exit(1);
}

static char names[TENSORS][16];
static stq_tensor tensors[TENSORS];
static size_t tensor_count;

static void add(int64_t rows, int64_t cols) {
    snprintf(names[tensor_count], sizeof names[0], "t%zu", tensor_count);
    tensors[tensor_count] = stq_tensor_whole(names[tensor_count], rows, cols);
    tensors[tensor_count].parameter_type = STQ_BFLOAT16;
    tensors[tensor_count++].gradient_type = STQ_BFLOAT16;
}

static void add_model(void) {
    const int64_t d = 1600;
    add(50257, d);
    add(1024, d);
    for (int layer = 0; layer < LAYERS; layer++) {
        const int64_t shapes[12][2] = {{1, d}, {1, d}, {3 * d, d}, {1, 3 * d}, {d, d},     {1, d},
                                       {1, d}, {1, d}, {4 * d, d}, {1, 4 * d}, {d, 4 * d}, {1, d}};
        for (int i = 0; i < 12; i++)
            add(shapes[i][0], shapes[i][1]);
    }
    add(1, d);
    add(1, d);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Milliseconds of one step: on the host until the call returns, and in all. */
typedef struct times {
    double host, all;
} times;

static times time_step(stq_adamw *optimizer, void **parameters, void **gradients, int step) {
    for (size_t i = 0; i < tensor_count; i++)
        CUDA(gpu_random_normal(gradients[i], tensors[i].count, true, 1e-3f, (uint32_t)(step * 1000003 + (int)i), 0));
    CUDA(cudaDeviceSynchronize());
    stq_step request = {.size = sizeof request,
                        .parameters = parameters,
                        .gradients = (const void *const *)gradients,
                        .unscale = 1.0,
                        .max_gradient_norm = 1.0};
    double before = now();
    must(stq_adamw_step(optimizer, &request, NULL));
    double returned = now();
    CUDA(cudaDeviceSynchronize());
    times t = {.host = returned - before, .all = now() - before};
    return t;
}

int main(int argc, char **argv) {
    static void *parameters[TENSORS], *gradients[TENSORS];
    FILE *csv = argc == 3 && !strcmp(argv[1], "--csv") ? fopen(argv[2], "w") : NULL;
    if (argc != 1 && !csv) {
        fprintf(stderr, "usage: gpu_optimizer [--csv FILE]\n");
        return 2;
    }
    add_model();
    for (size_t i = 0; i < tensor_count; i++) {
        CUDA(cudaMalloc(&parameters[i], (size_t)tensors[i].count * 2));
        CUDA(cudaMalloc(&gradients[i], (size_t)tensors[i].count * 2));
        CUDA(gpu_random_normal(parameters[i], tensors[i].count, true, 0.02f, (uint32_t)i, 0));
    }
    stq_adamw_config config = stq_adamw_defaults();
    config.device = STQ_DEVICE_CUDA;
    config.policy.kind = STQ_POLICY_ZONES;
    config.policy.state_bits = 5.0;
    stq_adamw *optimizer;
    must(stq_adamw_create(&optimizer, &config, tensors, tensor_count));
    double host[STEPS], all[STEPS], deciding[STEPS];
    int ordinary = 0, decisions = 0;
    for (int step = 1; step <= STEPS; step++) {
        bool due;
        must(stq_adamw_decision_due(optimizer, &due));
        times t = time_step(optimizer, parameters, gradients, step);
        if (step <= 2)
            continue;
        if (due) {
            deciding[decisions++] = t.all;
        } else {
            host[ordinary] = t.host;
            all[ordinary++] = t.all;
        }
    }
    qsort(host, (size_t)ordinary, sizeof *host, ascending);
    qsort(all, (size_t)ordinary, sizeof *all, ascending);
    qsort(deciding, (size_t)decisions, sizeof *deciding, ascending);
    stq_memory memory;
    must(stq_adamw_memory(optimizer, &memory));
    printf("ordinary step: host %.3f ms, in all %.3f ms (median of %d); with a decision: %.3f ms (least of %d); "
           "%.3f bits a value, %.3f at the peak\n",
           host[ordinary / 2], all[ordinary / 2], ordinary, deciding[0], decisions, memory.final_bits,
           memory.peak_bits);
    if (csv) {
        fprintf(csv, "step,host_ms,all_ms,steps\nordinary,%.4f,%.4f,%d\ndecision,,%.4f,%d\n", host[ordinary / 2],
                all[ordinary / 2], ordinary, deciding[0], decisions);
        fclose(csv);
    }
    stq_adamw_destroy(optimizer);
    return 0;
}
