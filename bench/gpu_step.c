/*
 * gpu_step.c - times the fused GPU step on the lists of docs/benchmarks.md, beside a device-to-device copy.
 *
 * usage: gpu_step [--list gpt2-xl|flat|both] [--csv FILE] [--widths M,V] [--quick]
 *
 * Gradients are drawn anew before each step, outside the timed part, so that the moments are those of a training run. A
 * line gives the median and the least of 15 steps after 5, the bytes that a step must move, and their share of the
 * copy's speed.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda/kernels.h"
#include "cuda/worklist.h"
#include "gpu_csv.h"
#include "gpu_lists.h"
#include "gpu_random.h"
#include "optim/coefficients.h"

enum { WARM = 5, TIMED = 15, MAX_TENSORS = GPU_LIST_MOST };

static void check(cudaError_t error, const char *call, int line) {
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "gpu_step: line %d: %s: %s\n", line, call, cudaGetErrorString(error));
    exit(1);
}
#define CUDA(call) check((call), #call, __LINE__)

/* Everything of one configuration on the device. */
typedef struct run {
    const gpu_list *model;
    stq_item items[MAX_TENSORS];
    void *allocations[MAX_TENSORS * 16];
    size_t allocation_count;
    stq_device_item *device_items;
    stq_worklist list;
    stq_tile *tiles, *segments;
    int64_t *first_segment, *missed;
    double *sums;
    stq_coefficients *coefficients;
    stq_control *control;
    stq_adamw_group *groups;
    uint64_t state_bytes;
} run;

static void *take(run *r, size_t bytes) {
    void *pointer;
    CUDA(cudaMalloc(&pointer, bytes ? bytes : 1));
    r->allocations[r->allocation_count++] = pointer;
    return pointer;
}

static stq_planes take_planes(run *r, int64_t count, uint32_t bits) {
    stq_planes planes = {.bits = bits};
    for (uint32_t k = 0; k < stq_plane_count(bits); k++) {
        uint8_t *plane = take(r, stq_plane_bytes(count, bits, k));
        r->state_bytes += stq_plane_bytes(count, bits, k);
        if (k == 0)
            planes.base = plane;
        else
            planes.bit[k - 1] = plane;
    }
    if (bits != 32) {
        planes.scales = take(r, (size_t)stq_block_count(count) * 2);
        r->state_bytes += (uint64_t)stq_block_count(count) * 2;
    }
    return planes;
}

static void *take_copy(run *r, const void *from, size_t bytes) {
    void *pointer = take(r, bytes);
    CUDA(cudaMemcpy(pointer, from, bytes, cudaMemcpyHostToDevice));
    return pointer;
}

static void open_run(run *r, const gpu_list *m, uint32_t m_bits, uint32_t v_bits, stq_dtype p_type, stq_dtype g_type) {
    memset(r, 0, sizeof *r);
    r->model = m;
    for (size_t i = 0; i < m->count; i++) {
        int64_t count = m->rows[i] * m->cols[i];
        stq_item *item = &r->items[i];
        *item = (stq_item){.count = count, .tensor = (uint32_t)i, .parameter_type = p_type, .gradient_type = g_type};
        item->parameter = take(r, (size_t)count * stq_dtype_size(p_type));
        item->gradient = take(r, (size_t)count * stq_dtype_size(g_type));
        item->m_out = take_planes(r, count, m->rows[i] == 1 ? 32 : m_bits);
        item->v_out = take_planes(r, count, m->rows[i] == 1 ? 32 : v_bits);
        CUDA(gpu_random_normal(item->parameter, count, p_type == STQ_BFLOAT16, 0.02f, (uint32_t)i, 0));
    }
    if (stq_worklist_make(&r->list, r->items, m->count) != STQ_OK)
        exit(1);
    r->tiles = take_copy(r, r->list.tiles, (size_t)r->list.tile_count * sizeof *r->tiles);
    r->segments = take_copy(r, r->list.segments, (size_t)r->list.segment_count * sizeof *r->segments);
    r->first_segment = take_copy(r, r->list.first_segment, (m->count + 1) * sizeof *r->first_segment);
    r->sums = take(r, ((size_t)r->list.segment_count + m->count + 1) * sizeof *r->sums);
    r->coefficients = take(r, m->count * sizeof *r->coefficients);
    r->missed = take(r, m->count * sizeof *r->missed);
    r->control = take(r, sizeof *r->control);
    r->groups = take(r, sizeof *r->groups);
    r->device_items = take(r, m->count * sizeof *r->device_items);
    CUDA(cudaMemset(r->missed, 0, m->count * sizeof *r->missed));
    CUDA(cudaMemset(r->control, 0, sizeof *r->control));
    stq_adamw_group group = {.learning_rate = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1};
    CUDA(stq_cuda_set_group(r->groups, 0, &group, 0));
}

static void close_run(run *r) {
    CUDA(cudaDeviceSynchronize());
    for (size_t i = 0; i < r->allocation_count; i++)
        CUDA(cudaFree(r->allocations[i]));
    stq_worklist_free(&r->list);
}

static void upload_items(run *r) {
    static stq_device_item items[MAX_TENSORS];
    for (size_t i = 0; i < r->model->count; i++) {
        items[i].item = r->items[i];
        items[i].kind = stq_item_kind(&r->items[i], false);
    }
    CUDA(cudaMemcpy(r->device_items, items, r->model->count * sizeof *items, cudaMemcpyHostToDevice));
}

static void draw_gradients(run *r, int step) {
    for (size_t i = 0; i < r->model->count; i++)
        CUDA(gpu_random_normal((void *)(uintptr_t)r->items[i].gradient, r->items[i].count,
                               r->items[i].gradient_type == STQ_BFLOAT16, 1e-3f, (uint32_t)(step * 1000003 + (int)i),
                               0));
}

/* Enqueues one step; with `own_norm` the gradient pass too. */
static void enqueue(run *r, bool own_norm) {
    stq_prepare request = {.unscale = 1.0, .max_gradient_norm = 1.0, .given_norm = 0.5, .norm_supplied = !own_norm};
    double *total = r->sums + r->list.segment_count + r->list.item_count;
    request.sum_squares = total;
    if (own_norm)
        CUDA(stq_cuda_sum_squares(r->device_items, r->list.item_count, r->segments, r->list.segment_count,
                                  r->first_segment, r->sums, total, 0));
    CUDA(stq_cuda_prepare(&request, r->device_items, r->groups, r->missed, r->coefficients, r->list.item_count,
                          r->control, 0));
    CUDA(stq_cuda_step(r->device_items, r->tiles, r->list.tile_count, r->coefficients, r->control, 0));
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

typedef struct timing {
    double median, least, host;
} timing;

static timing time_steps(run *r, bool own_norm, int *step) {
    cudaEvent_t begin, end;
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    float times[TIMED], host[TIMED];
    for (int i = -WARM; i < TIMED; i++) {
        draw_gradients(r, ++*step);
        CUDA(cudaDeviceSynchronize());
        double before = now();
        CUDA(cudaEventRecord(begin, 0));
        enqueue(r, own_norm);
        double after = now();
        CUDA(cudaEventRecord(end, 0));
        CUDA(cudaEventSynchronize(end));
        if (i >= 0) {
            CUDA(cudaEventElapsedTime(&times[i], begin, end));
            host[i] = (float)(after - before);
        }
    }
    CUDA(cudaEventDestroy(begin));
    CUDA(cudaEventDestroy(end));
    timing t = {.median = gpu_median(times, TIMED), .host = gpu_median(host, TIMED)};
    t.least = times[0];
    return t;
}

static void bench(FILE *csv, const char *device, double copy, const gpu_list *m, uint32_t m_bits, uint32_t v_bits,
                  stq_dtype type) {
    static run r;
    open_run(&r, m, m_bits, v_bits, type, type);
    upload_items(&r);
    int step = 0;
    draw_gradients(&r, ++step);
    enqueue(&r, false);
    CUDA(cudaDeviceSynchronize());
    for (size_t i = 0; i < m->count; i++) {
        r.items[i].m_in = r.items[i].m_out;
        r.items[i].v_in = r.items[i].v_out;
    }
    upload_items(&r);
    double size = (double)stq_dtype_size(type) * (double)m->parameters;
    for (int own_norm = 0; own_norm < 2; own_norm++) {
        timing t = time_steps(&r, own_norm, &step);
        double bytes = (own_norm ? 4.0 : 3.0) * size + 2.0 * (double)r.state_bytes;
        double floor = bytes / copy / 1e6;
        printf("%-8s %u,%u %s %-11s median %.3f ms  least %.3f  floor %.3f  share of copy %.1f %%  host %.3f ms\n",
               m->name, m_bits, v_bits, type == STQ_BFLOAT16 ? "bf16" : "fp32", own_norm ? "own norm" : "given norm",
               t.median, t.least, floor, 100 * floor / t.median, t.host);
        fflush(stdout);
        if (csv)
            fprintf(csv, "%s,stquant,%s,%u,%u,%s,%s,%.4f,%.4f,%.0f,%.1f,%.4f,%.4f,%.3f\n", device, m->name, m_bits,
                    v_bits, type == STQ_BFLOAT16 ? "bfloat16" : "float32", own_norm ? "own" : "given", t.median,
                    t.least, bytes, copy, floor / t.median, t.host,
                    8.0 * (double)r.state_bytes / (2.0 * (double)m->parameters));
    }
    close_run(&r);
}

int main(int argc, char **argv) {
    const char *list = "both", *path = NULL;
    uint32_t only_m = 0, only_v = 0;
    bool quick = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--list") && i + 1 < argc)
            list = argv[++i];
        else if (!strcmp(argv[i], "--csv") && i + 1 < argc)
            path = argv[++i];
        else if (!strcmp(argv[i], "--widths") && i + 1 < argc && sscanf(argv[i + 1], "%u,%u", &only_m, &only_v) == 2)
            i++;
        else if (!strcmp(argv[i], "--quick"))
            quick = true;
        else {
            fprintf(stderr, "usage: gpu_step [--list gpt2-xl|flat|both] [--csv FILE] [--widths M,V] [--quick]\n");
            return 2;
        }
    }
    struct cudaDeviceProp device;
    CUDA(cudaGetDeviceProperties(&device, 0));
    FILE *csv = gpu_csv_open(path, "w",
                             "device,optimizer,list,m_bits,v_bits,dtype,norm,median_ms,least_ms,bytes,copy_gb_per_s,"
                             "share_of_copy,host_ms,all_in_bits");
    if (path && !csv)
        return 1;
    double copy, again;
    CUDA(gpu_copy_speed((size_t)1 << 31, &copy));
    printf("%s, copy %.0f GB/s\n", device.name, copy);
    static const uint32_t widths[][2] = {{5, 5}, {4, 4}, {3, 3}, {8, 8}, {5, 6}, {2, 2}};
    static gpu_list models[2];
    (void)gpu_list_named(&models[0], "gpt2-xl");
    (void)gpu_list_named(&models[1], "flat");
    for (int i = 0; i < 2; i++) {
        if (strcmp(list, "both") && strcmp(list, models[i].name))
            continue;
        for (int half = 1; half >= 0; half--)
            for (int w = 0; w < (only_m ? 1 : quick ? 2 : 6); w++)
                bench(csv, device.name, copy, &models[i], only_m ? only_m : widths[w][0],
                      only_m ? only_v : widths[w][1], half ? STQ_BFLOAT16 : STQ_FLOAT32);
    }
    if (csv)
        fclose(csv);
    CUDA(gpu_copy_speed((size_t)1 << 31, &again));
    printf("copy again %.0f GB/s\n", again);
    return 0;
}
