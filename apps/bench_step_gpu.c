// The work of `stquant bench step --device cuda`: steps with low-bit states on a GPU, in turn with steps with float32
// states over the same arrays, and a device-to-device copy. Built with the GPU backend only.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_step.h"
#include "gpu_lists.h"
#include "gpu_random.h"
#include "train/cuda_check.h"

enum { WARM_UP = 5, NAME_BYTES = 24 };

// Everything on the device, and the two optimizers.
struct gpu_bench {
    const struct bench_step_settings *settings;
    gpu_list list;
    stq_tensor tensors[GPU_LIST_MOST];
    char names[GPU_LIST_MOST][NAME_BYTES];
    void *parameters[GPU_LIST_MOST];
    void *gradients[GPU_LIST_MOST];
    stq_adamw *low_bit, *float32;
    cudaEvent_t begin, end;
    uint32_t step;
};

static enum app_status open_arrays(struct gpu_bench *bench) {
    const struct bench_step_settings *settings = bench->settings;
    for (size_t i = 0; i < bench->list.count; i++) {
        snprintf(bench->names[i], NAME_BYTES, "%zu", i);
        bench->tensors[i] = stq_tensor_whole(bench->names[i], bench->list.rows[i], bench->list.cols[i]);
        bench->tensors[i].parameter_type = bench->tensors[i].gradient_type = settings->dtype;
        const size_t bytes = (size_t)bench->tensors[i].count * stq_dtype_size(settings->dtype);
        GPU_CHECK(cudaMalloc(&bench->parameters[i], bytes));
        GPU_CHECK(cudaMalloc(&bench->gradients[i], bytes));
        GPU_CHECK(gpu_random_normal(bench->parameters[i], bench->tensors[i].count, settings->dtype == STQ_BFLOAT16,
                                    0.02f, (uint32_t)i, 0));
    }
    GPU_CHECK(cudaEventCreate(&bench->begin));
    GPU_CHECK(cudaEventCreate(&bench->end));
    return APP_OK;
}

// With --list vectors keep float32 states, as they do in training; tensors of the even list have one row, and bits all
// the same.
static enum app_status open_optimizer(struct gpu_bench *bench, stq_policy_kind kind, stq_adamw **optimizer) {
    const struct bench_step_settings *settings = bench->settings;
    stq_adamw_config config = stq_adamw_defaults();
    config.device = STQ_DEVICE_CUDA;
    config.policy.kind = kind;
    config.policy.fixed_m_bits = settings->m_bits;
    config.policy.fixed_v_bits = settings->v_bits;
    for (size_t i = 0; i < bench->list.count; i++) {
        const int coded = kind == STQ_POLICY_FIXED && settings->list == NULL;
        bench->tensors[i].m_bits = coded ? settings->m_bits : 0;
        bench->tensors[i].v_bits = coded ? settings->v_bits : 0;
    }
    if (stq_adamw_create(optimizer, &config, bench->tensors, bench->list.count) != STQ_OK) {
        return app_library_failure();
    }
    return APP_OK;
}

static enum app_status draw(struct gpu_bench *bench) {
    bench->step++;
    for (size_t i = 0; i < bench->list.count; i++) {
        GPU_CHECK(gpu_random_normal(bench->gradients[i], bench->tensors[i].count,
                                    bench->settings->dtype == STQ_BFLOAT16, 1e-3f, bench->step * 1000003u + (uint32_t)i,
                                    0));
    }
    GPU_CHECK(cudaDeviceSynchronize());
    return APP_OK;
}

// Seconds of the device, and of the host until the call returned.
static enum app_status take_step(struct gpu_bench *bench, stq_adamw *optimizer, double *seconds, double *host) {
    const stq_step step = {.size = sizeof(step),
                           .parameters = bench->parameters,
                           .gradients = (const void *const *)bench->gradients,
                           .unscale = 1,
                           .norm_supplied = !bench->settings->own_norm,
                           .gradient_norm = 1};
    float milliseconds;
    GPU_CHECK(cudaEventRecord(bench->begin, 0));
    const double before = bench_seconds();
    if (stq_adamw_step(optimizer, &step, NULL) != STQ_OK) {
        return app_library_failure();
    }
    *host = bench_seconds() - before;
    GPU_CHECK(cudaEventRecord(bench->end, 0));
    GPU_CHECK(cudaEventSynchronize(bench->end));
    GPU_CHECK(cudaEventElapsedTime(&milliseconds, bench->begin, bench->end));
    *seconds = 1e-3 * (double)milliseconds;
    return APP_OK;
}

static enum app_status measure(struct gpu_bench *bench, struct bench_step_times *times) {
    enum app_status status = APP_OK;
    for (int i = -WARM_UP; i < (int)bench->settings->repeats && status == APP_OK; i++) {
        const int at = i < 0 ? 0 : i;
        double host;
        status = draw(bench);
        status = status == APP_OK ? take_step(bench, bench->float32, &times->float32[at], &host) : status;
        status = status == APP_OK ? take_step(bench, bench->low_bit, &times->low_bit[at], &times->host[at]) : status;
    }
    return status;
}

static enum app_status summarise(struct gpu_bench *bench, struct bench_step_times *times,
                                 struct bench_step_result *result) {
    const struct bench_step_settings *settings = bench->settings;
    const int repeats = (int)settings->repeats;
    const double passes = settings->own_norm ? 4 : 3; // over parameters and gradients
    const double arrays = passes * (double)bench->list.parameters * (double)stq_dtype_size(settings->dtype);
    struct cudaDeviceProp device;
    double gigabytes;
    stq_memory float32;
    GPU_CHECK(cudaGetDeviceProperties(&device, 0));
    GPU_CHECK(gpu_copy_speed((size_t)1 << 30, &gigabytes));
    if (stq_adamw_memory(bench->low_bit, &result->memory) || stq_adamw_memory(bench->float32, &float32)) {
        return app_library_failure();
    }
    snprintf(result->device, sizeof(result->device), "%s", device.name);
    bench_step_compare(result, times, repeats, arrays, float32.state_bytes);
    result->host = bench_median(times->host, repeats);
    result->copy = 1;
    result->copy_bytes = 1e9 * gigabytes;
    return APP_OK;
}

static void close_bench(struct gpu_bench *bench) {
    stq_adamw_destroy(bench->low_bit);
    stq_adamw_destroy(bench->float32);
    for (size_t i = 0; i < bench->list.count; i++) {
        (void)cudaFree(bench->parameters[i]);
        (void)cudaFree(bench->gradients[i]);
    }
    if (bench->begin) {
        (void)cudaEventDestroy(bench->begin);
    }
    if (bench->end) {
        (void)cudaEventDestroy(bench->end);
    }
    free(bench);
}

static enum app_status choose_list(struct gpu_bench *bench, struct bench_step_settings *settings) {
    if (settings->list == NULL && settings->tensors > GPU_LIST_MOST) {
        return app_fail(APP_USAGE, "--device cuda takes at most %d tensors; lower --tensors.", (int)GPU_LIST_MOST);
    }
    if (settings->list == NULL) {
        gpu_list_even(&bench->list, settings->params, (size_t)settings->tensors);
    } else {
        (void)gpu_list_named(&bench->list, settings->list);
    }
    settings->params = bench->list.parameters;
    settings->tensors = (int64_t)bench->list.count;
    return APP_OK;
}

enum app_status bench_step_run_gpu(struct bench_step_settings *settings, struct bench_step_result *result) {
    *result = (struct bench_step_result){0};
    struct bench_step_times *times = calloc(1, sizeof(*times));
    struct gpu_bench *bench = calloc(1, sizeof(*bench));
    if (!times || !bench) {
        free(times);
        free(bench);
        return app_fail(APP_FAILED, "There is no memory.");
    }
    bench->settings = settings;
    enum app_status status = choose_list(bench, settings);
    status = status == APP_OK ? open_arrays(bench) : status;
    status = status == APP_OK ? open_optimizer(bench, STQ_POLICY_FIXED, &bench->low_bit) : status;
    status = status == APP_OK ? open_optimizer(bench, STQ_POLICY_FLOAT32, &bench->float32) : status;
    status = status == APP_OK ? measure(bench, times) : status;
    status = status == APP_OK ? summarise(bench, times, result) : status;
    close_bench(bench);
    free(times);
    return status;
}
