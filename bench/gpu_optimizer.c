/*
 * gpu_optimizer.c - times stq_adamw_step() itself on 292 tensors shaped as GPT-2 (820M bfloat16 parameters): what the
 * host spends, an ordinary step, a step that decides widths, and, where decisions are put off by two steps, one that
 * measures gradients for them and one that changes widths.
 *
 * usage: gpu_optimizer [--csv FILE | --profile | --shared]
 *
 * --shared times steps with m at 4 bits and second moments that are shared by rows and by columns.
 *
 * --profile makes a few steps for a profiler, so that it meets every large kernel: steps, a decision, and second
 * moments that are shared by rows and by columns.
 */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gpu_csv.h"
#include "gpu_lists.h"
#include "gpu_random.h"
#include <stquant/adamw.h>

enum { STEPS = 33 };

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

static char names[GPU_LIST_MOST][24];
static stq_tensor tensors[GPU_LIST_MOST];
static size_t tensor_count;

static void add_model(void) {
    static gpu_list list;
    (void)gpu_list_named(&list, "gpt2-xl");
    for (; tensor_count < list.count; tensor_count++) {
        stq_tensor *tensor = &tensors[tensor_count];
        snprintf(names[tensor_count], sizeof names[0], "t%zu", tensor_count);
        *tensor = stq_tensor_whole(names[tensor_count], list.rows[tensor_count], list.cols[tensor_count]);
        tensor->parameter_type = tensor->gradient_type = STQ_BFLOAT16;
    }
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

static void *parameters[GPU_LIST_MOST], *gradients[GPU_LIST_MOST];

/* Milliseconds of one step: on the host until the call returns, and in all. */
typedef struct times {
    double host, all;
} times;

static times time_step(stq_adamw *optimizer, int step, bool norm_supplied) {
    for (size_t i = 0; i < tensor_count; i++)
        CUDA(gpu_random_normal(gradients[i], tensors[i].count, true, 1e-3f, (uint32_t)(step * 1000003 + (int)i), 0));
    CUDA(cudaDeviceSynchronize());
    stq_step request = {.size = sizeof request,
                        .parameters = parameters,
                        .gradients = (const void *const *)gradients,
                        .unscale = 1.0,
                        .max_gradient_norm = 1.0,
                        .norm_supplied = norm_supplied,
                        .gradient_norm = 1.0};
    double before = now();
    must(stq_adamw_step(optimizer, &request, NULL));
    double returned = now();
    CUDA(cudaDeviceSynchronize());
    times t = {.host = returned - before, .all = now() - before};
    return t;
}

/* Medians of a kind of step; how many there were. */
typedef struct summary {
    double host[STEPS], all[STEPS];
    int count;
} summary;

static void add_times(summary *s, times t) {
    s->host[s->count] = t.host;
    s->all[s->count++] = t.all;
}

static void finish(summary *s) {
    qsort(s->host, (size_t)s->count, sizeof *s->host, ascending);
    qsort(s->all, (size_t)s->count, sizeof *s->all, ascending);
}

static const char *device_name(void) {
    static struct cudaDeviceProp properties;
    CUDA(cudaGetDeviceProperties(&properties, 0));
    return properties.name;
}

static void print_summary(FILE *csv, const char *name, int delay, const summary *s) {
    if (s->count == 0)
        return;
    double host = s->host[s->count / 2], all = s->all[s->count / 2];
    printf("decisions put off by %d: %-9s host %.3f ms, in all %.3f ms (median of %d, least %.3f)\n", delay, name, host,
           all, s->count, s->all[0]);
    if (csv)
        fprintf(csv, "%s,%s,%d,%.4f,%.4f,%.4f,%d\n", device_name(), name, delay, host, all, s->all[0], s->count);
}

/* An optimizer's life: steps of three kinds. */
static void run(int delay, FILE *csv) {
    static summary ordinary, measuring, deciding;
    stq_adamw_config config = stq_adamw_defaults();
    config.device = STQ_DEVICE_CUDA;
    config.policy.kind = STQ_POLICY_ZONES;
    config.policy.state_bits = 5.0;
    config.policy.decision_delay = delay;
    stq_adamw *optimizer;
    must(stq_adamw_create(&optimizer, &config, tensors, tensor_count));
    memset(&ordinary, 0, sizeof ordinary);
    memset(&measuring, 0, sizeof measuring);
    memset(&deciding, 0, sizeof deciding);
    for (int step = 1; step <= STEPS; step++) {
        bool measures, only;
        must(stq_adamw_decision_due(optimizer, &measures));
        must(stq_adamw_only_enqueues(optimizer, &only));
        times t = time_step(optimizer, step, false);
        if (step > 2)
            add_times(only ? &ordinary : measures ? &measuring : &deciding, t);
    }
    finish(&ordinary);
    finish(&measuring);
    finish(&deciding);
    print_summary(csv, "ordinary", delay, &ordinary);
    print_summary(csv, delay == 0 ? "decision" : "measuring", delay, &measuring);
    print_summary(csv, "after", delay, &deciding);
    stq_memory memory;
    must(stq_adamw_memory(optimizer, &memory));
    printf("%.3f bits a value, %.3f at the peak\n", memory.final_bits, memory.peak_bits);
    stq_adamw_destroy(optimizer);
}

static stq_tensor shared[GPU_LIST_MOST];

static void time_shared(void) {
    stq_adamw_config config = stq_adamw_defaults();
    config.device = STQ_DEVICE_CUDA;
    config.policy.kind = STQ_POLICY_FIXED;
    config.policy.fixed_m_bits = 4;
    for (int turn = 0; turn < 4; turn++) {
        bool by_column = turn >= 2, supplied = turn % 2 == 1;
        static summary found;
        stq_adamw *optimizer;
        memcpy(shared, tensors, sizeof shared);
        for (size_t i = 0; i < tensor_count; i++)
            if (shared[i].rows > 1) {
                shared[i].m_bits = 4;
                shared[i].v_bits = by_column ? STQ_BITS_SHARED_COL : STQ_BITS_SHARED_ROW;
            }
        must(stq_adamw_create(&optimizer, &config, shared, tensor_count));
        found.count = 0;
        for (int step = 1; step <= STEPS; step++) {
            times t = time_step(optimizer, step, supplied);
            if (step > STEPS / 2)
                add_times(&found, t);
        }
        finish(&found);
        printf("m 4, v shared by %s, %s norm: host %.3f ms, in all %.3f ms (median of %d, least %.3f)\n",
               by_column ? "columns" : "rows", supplied ? "given" : "own", found.host[found.count / 2],
               found.all[found.count / 2], found.count, found.all[0]);
        stq_adamw_destroy(optimizer);
    }
}

static void profile(void) {
    stq_adamw_config config = stq_adamw_defaults();
    config.device = STQ_DEVICE_CUDA;
    for (int turn = 0; turn < 2; turn++) {
        stq_adamw *optimizer;
        config.policy.kind = turn == 0 ? STQ_POLICY_ZONES : STQ_POLICY_FIXED;
        config.policy.fixed_m_bits = 5;
        memcpy(shared, tensors, sizeof shared);
        for (size_t i = 0; i < tensor_count && turn > 0; i++)
            if (shared[i].rows > 1) {
                shared[i].m_bits = 5;
                shared[i].v_bits = i % 2 ? STQ_BITS_SHARED_COL : STQ_BITS_SHARED_ROW;
            }
        must(stq_adamw_create(&optimizer, &config, shared, tensor_count));
        for (int step = 1; step <= 3; step++) {
            times t = time_step(optimizer, step, false);
            printf("%s, step %d: %.3f ms\n", turn ? "v shared" : "zones", step, t.all);
        }
        stq_adamw_destroy(optimizer);
    }
}

int main(int argc, char **argv) {
    bool profiles = argc == 2 && !strcmp(argv[1], "--profile"), shares = argc == 2 && !strcmp(argv[1], "--shared");
    FILE *csv = gpu_csv_open(argc == 3 && !strcmp(argv[1], "--csv") ? argv[2] : NULL, "w",
                             "device,step,delay,host_ms,all_ms,least_ms,steps");
    if (argc != 1 && !csv && !profiles && !shares) {
        fprintf(stderr, "usage: gpu_optimizer [--csv FILE | --profile | --shared]\n");
        return 2;
    }
    add_model();
    for (size_t i = 0; i < tensor_count; i++) {
        CUDA(cudaMalloc(&parameters[i], (size_t)tensors[i].count * 2));
        CUDA(cudaMalloc(&gradients[i], (size_t)tensors[i].count * 2));
        CUDA(gpu_random_normal(parameters[i], tensors[i].count, true, 0.02f, (uint32_t)i, 0));
    }
    if (profiles || shares) {
        if (profiles)
            profile();
        else
            time_shared();
        return 0;
    }
    run(0, csv);
    run(2, csv);
    if (csv)
        fclose(csv);
    return 0;
}
