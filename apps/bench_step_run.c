// The work of `stquant bench step`: AdamW steps with low-bit states, interleaved with our own float32 AdamW over the
// same parameters and gradients, and transitions between widths.
#include <stdio.h>
#include <stdlib.h>
#include <stquant/stquant.h>
#include <string.h>

#include "bench_step.h"

// Gradients of a step begin at another place of a buffer with this much room, so that they differ from step to step.
enum { SLACK = 65536, WARM_UP = 12, NAME_BYTES = 24 };

// Everything that is timed.
struct bench {
    const struct bench_step_settings *settings;
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

static int64_t tensor_first(const struct bench_step_settings *settings, int64_t i) {
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
    const struct bench_step_settings *settings = bench->settings;
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
        return app_library_failure();
    }
    return APP_OK;
}

// Random values of the dtype; bfloat16 and float16 take bits of floats of the right size.
static void fill(struct bench *bench, uint8_t *memory, int64_t count, float deviation, uint32_t seed) {
    const struct bench_step_settings *settings = bench->settings;
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

static enum app_status open_bench(struct bench *bench, const struct bench_step_settings *settings) {
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
    const struct bench_step_settings *settings = bench->settings;
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
    return app_check(stq_adamw_step(optimizer, &step, NULL));
}

static void copy(const struct bench *bench) {
    const int64_t pieces = (int64_t)(bench->copy_bytes + 65535) / 65536;
#pragma omp parallel for num_threads((int)bench->settings->threads) schedule(static)
    for (int64_t i = 0; i < pieces; i++) {
        const size_t at = (size_t)i * 65536, left = bench->copy_bytes - at;
        memcpy(bench->copy_to + at, bench->copy_from + at, left < 65536 ? left : 65536);
    }
}

// One after the other, `inner` times each, so that a slow phase of the machine meets all.
static enum app_status measure(struct bench *bench, struct bench_step_times *times) {
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
        times->gigahertz[i] = bench_gigahertz();
    }
    return status;
}

// ---- Transitions: the states of one step, put back at their widths with other widths to go to ----

struct snapshot {
    stq_adamw_record record;
    stq_tensor_record *tensors;
    stq_buffer *buffers;
    size_t count; // of buffers
    uint8_t *bytes;
    uint64_t size;
};

static uint64_t total_bytes(const stq_buffer *buffers, size_t count) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        bytes += buffers[i].bytes;
    }
    return bytes;
}

// The buffers' contents to the snapshot, or back.
static void copy_buffers(const struct snapshot *snapshot, int back) {
    uint8_t *at = snapshot->bytes;
    for (size_t i = 0; i < snapshot->count; i++) {
        const stq_buffer *buffer = &snapshot->buffers[i];
        memcpy(back ? buffer->data : at, back ? at : buffer->data, (size_t)buffer->bytes);
        at += buffer->bytes;
    }
}

static enum app_status take_snapshot(const struct bench *bench, struct snapshot *snapshot) {
    const size_t tensors = (size_t)bench->settings->tensors;
    *snapshot = (struct snapshot){.tensors = malloc(tensors * sizeof(*snapshot->tensors))};
    if (!snapshot->tensors || stq_adamw_save_records(bench->low_bit, &snapshot->record, snapshot->tensors, tensors) ||
        stq_adamw_buffers(bench->low_bit, NULL, 0, &snapshot->count)) {
        return app_fail(APP_FAILED, "%s", snapshot->tensors ? stq_last_error() : "There is no memory.");
    }
    snapshot->buffers = malloc(snapshot->count * sizeof(*snapshot->buffers));
    if (!snapshot->buffers ||
        stq_adamw_buffers(bench->low_bit, snapshot->buffers, snapshot->count, &snapshot->count) != STQ_OK) {
        return app_fail(APP_FAILED, "There is no memory for the list of %zu buffers.", snapshot->count);
    }
    snapshot->size = total_bytes(snapshot->buffers, snapshot->count);
    snapshot->bytes = bench_allocate(snapshot->size, 1);
    if (!snapshot->bytes) {
        return app_fail(APP_FAILED, "There is no memory for a copy of the states; lower --params.");
    }
    copy_buffers(snapshot, 0);
    return APP_OK;
}

static void release_snapshot(struct snapshot *snapshot) {
    free(snapshot->tensors);
    free(snapshot->buffers);
    bench_release(snapshot->bytes, snapshot->size);
}

// The states of the snapshot; the next step makes the transition to these widths.
static enum app_status put_back(const struct bench *bench, struct snapshot *snapshot, uint32_t m_bits,
                                uint32_t v_bits) {
    const size_t tensors = (size_t)bench->settings->tensors;
    for (size_t i = 0; i < tensors; i++) {
        snapshot->tensors[i].target[STQ_FIRST_MOMENT] = (uint8_t)m_bits;
        snapshot->tensors[i].target[STQ_SECOND_MOMENT] = (uint8_t)v_bits;
    }
    if (stq_adamw_restore(bench->low_bit, &snapshot->record, snapshot->tensors, tensors) ||
        stq_adamw_buffers(bench->low_bit, snapshot->buffers, snapshot->count, &snapshot->count)) {
        return app_library_failure();
    }
    copy_buffers(snapshot, 1);
    return APP_OK;
}

static enum app_status timed_step(struct bench *bench, double *seconds) {
    const double begin = bench_seconds();
    const enum app_status status = take_step(bench, bench->low_bit);
    *seconds = bench_seconds() - begin;
    return status;
}

// That the step made the transition, instead of putting it off.
static enum app_status check_widths(const struct bench *bench) {
    const struct bench_step_settings *settings = bench->settings;
    for (int64_t i = 0; i < settings->tensors; i++) {
        stq_tensor_info info;
        if (stq_adamw_tensor(bench->low_bit, (size_t)i, &info) != STQ_OK || info.m_bits != settings->to_m_bits ||
            info.v_bits != settings->to_v_bits) {
            return app_fail(APP_FAILED, "Tensor %lld did not change its widths: no memory; lower --params.",
                            (long long)i);
        }
    }
    return APP_OK;
}

static enum app_status measure_transitions(struct bench *bench, struct bench_step_times *times) {
    const struct bench_step_settings *settings = bench->settings;
    struct snapshot snapshot;
    enum app_status status = take_snapshot(bench, &snapshot);
    for (int i = -1; i < (int)settings->repeats && status == APP_OK; i++) {
        const int at = i < 0 ? 0 : i; // the first is a warm-up
        status = put_back(bench, &snapshot, settings->m_bits, settings->v_bits);
        status = status == APP_OK ? timed_step(bench, &times->before[at]) : status;
        status = status == APP_OK ? put_back(bench, &snapshot, settings->to_m_bits, settings->to_v_bits) : status;
        status = status == APP_OK ? timed_step(bench, &times->transition[at]) : status;
        status = status == APP_OK ? check_widths(bench) : status;
        status = status == APP_OK ? timed_step(bench, &times->after[at]) : status;
    }
    release_snapshot(&snapshot);
    return status;
}

void bench_step_compare(struct bench_step_result *result, struct bench_step_times *times, int repeats, double arrays,
                        uint64_t float32_states) {
    result->low_bit = bench_median(times->low_bit, repeats);
    result->float32 = bench_median(times->float32, repeats);
    result->least_low_bit = times->low_bit[0];
    result->least_float32 = times->float32[0];
    result->low_bit_bytes = arrays + 2 * (double)result->memory.state_bytes;
    result->float32_bytes = arrays + 2 * (double)float32_states;
}

static void summarise(const struct bench *bench, struct bench_step_times *times, struct bench_step_result *result) {
    const struct bench_step_settings *settings = bench->settings;
    const int repeats = (int)settings->repeats;
    const double arrays = 3 * (double)settings->params * (double)bench->element;
    stq_memory float32_memory;
    stq_adamw_memory(bench->float32, &float32_memory);
    bench_step_compare(result, times, repeats, arrays, float32_memory.state_bytes);
    result->copy = bench_median(times->copy, repeats);
    result->gigahertz = bench_median(times->gigahertz, repeats);
    result->copy_bytes = 2 * (double)bench->copy_bytes;
    if (settings->to_m_bits) {
        result->before = bench_median(times->before, repeats);
        result->transition = bench_median(times->transition, repeats);
        result->after = bench_median(times->after, repeats);
    }
}

enum app_status bench_step_run(const struct bench_step_settings *settings, struct bench_step_result *result) {
    struct bench bench;
    *result = (struct bench_step_result){0};
    struct bench_step_times *times = calloc(1, sizeof(*times));
    if (!times) {
        return app_fail(APP_FAILED, "There is no memory.");
    }
    enum app_status status = open_bench(&bench, settings);
    status = status == APP_OK ? measure(&bench, times) : status;
    if (status == APP_OK) {
        stq_adamw_memory(bench.low_bit, &result->memory);
        status = settings->to_m_bits ? measure_transitions(&bench, times) : APP_OK;
    }
    if (status == APP_OK) {
        summarise(&bench, times, result);
    }
    close_bench(&bench);
    free(times);
    return status;
}
