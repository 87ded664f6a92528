/*
 * gpu_qat.c - times both passes of quantization-aware training on a GPU, beside a device-to-device copy.
 *
 * usage: gpu_qat [--csv FILE] [--quick]
 *
 * Lists of matrices: one of 4096 x 4096, one as large as GPT-2's embedding, and the linear layers of GPT-2 124M. A line
 * gives medians of 15 rounds after 5, in which the estimators take turns; the speed counts the bytes that a pass must
 * move (forward: weights read, rounded ones written; backward: weights and gradient read, gradient written), and the
 * share is that of the copy's speed.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <stquant/qat.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "gpu_csv.h"
#include "gpu_random.h"

enum { WARM = 5, TIMED = 15, MATRICES = 48, ESTIMATORS = 3 };

#define CUDA(call) check((call), #call, __LINE__)
static void check(cudaError_t error, const char *call, int line) {
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "gpu_qat: line %d: %s: %s\n", line, call, cudaGetErrorString(error));
    exit(1);
}

static const char *const names[ESTIMATORS] = {"ste", "stable", "dsq"};

typedef struct list {
    const char *name;
    int64_t shapes[MATRICES][2];
    int count;
} list;

static list one(const char *name, int64_t rows, int64_t cols) {
    return (list){.name = name, .shapes = {{rows, cols}}, .count = 1};
}

static list gpt2(void) {
    static const int64_t block[4][2] = {{2304, 768}, {768, 768}, {3072, 768}, {768, 3072}};
    list l = {.name = "gpt2-124m"};
    for (; l.count < MATRICES; l.count++)
        memcpy(l.shapes[l.count], block[l.count % 4], sizeof block[0]);
    return l;
}

typedef struct matrix {
    int64_t rows, cols;
    void *weights, *gradient, *quantized, *weight_gradient;
    float *steps, *step_gradient;
} matrix;

static int compare(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double median(float *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare);
    return (double)values[count / 2];
}

static float elapsed(cudaEvent_t begin, cudaEvent_t end) {
    float ms;
    CUDA(cudaEventSynchronize(end));
    CUDA(cudaEventElapsedTime(&ms, begin, end));
    return ms;
}

static double copy_speed(cudaEvent_t events[3], size_t bytes) {
    void *from, *to;
    float times[TIMED];
    CUDA(cudaMalloc(&from, bytes));
    CUDA(cudaMalloc(&to, bytes));
    CUDA(gpu_random_normal(from, (int64_t)(bytes / 4), false, 1.0f, 1, 0));
    for (int i = -WARM; i < TIMED; i++) {
        CUDA(cudaEventRecord(events[0], 0));
        CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, 0));
        CUDA(cudaEventRecord(events[1], 0));
        const float ms = elapsed(events[0], events[1]);
        if (i >= 0)
            times[i] = ms;
    }
    CUDA(cudaFree(from));
    CUDA(cudaFree(to));
    return 2.0 * (double)bytes / median(times, TIMED) / 1e6;
}

static void open_matrix(matrix *m, const int64_t *shape, stq_dtype dtype, uint32_t seed) {
    const int64_t count = shape[0] * shape[1];
    const size_t bytes = (size_t)count * stq_dtype_size(dtype), vector = (size_t)shape[0] * sizeof(float);
    *m = (matrix){.rows = shape[0], .cols = shape[1]};
    void **const arrays[] = {&m->weights, &m->gradient, &m->quantized, &m->weight_gradient};
    for (int i = 0; i < 4; i++) {
        CUDA(cudaMalloc(arrays[i], bytes));
        CUDA(gpu_random_normal(*arrays[i], count, dtype == STQ_BFLOAT16, 0.02f, seed + (uint32_t)i, 0));
    }
    CUDA(cudaMalloc((void **)&m->steps, vector));
    CUDA(cudaMalloc((void **)&m->step_gradient, vector));
}

/* Steps with which the largest code is about three deviations of the weights (one at 2 bits). */
static void set_steps(const matrix *m, uint32_t bits) {
    float *steps = malloc((size_t)m->rows * sizeof *steps);
    for (int64_t i = 0; i < m->rows; i++)
        steps[i] = bits == 2 ? 0.02f : 0.06f / (float)((1 << (bits - 1)) - 1);
    CUDA(cudaMemcpy(m->steps, steps, (size_t)m->rows * sizeof *steps, cudaMemcpyHostToDevice));
    free(steps);
}

static void close_matrix(matrix *m) {
    void *const all[] = {m->weights, m->gradient, m->quantized, m->weight_gradient, m->steps, m->step_gradient};
    for (int i = 0; i < 6; i++)
        CUDA(cudaFree(all[i]));
}

static void passed(stq_status status) {
    if (status == STQ_OK)
        return;
    fprintf(stderr, "gpu_qat: %s\n", stq_last_error());
    exit(1);
}

typedef struct times {
    float forward[TIMED], backward[TIMED], ratio[TIMED];
} times;

static void round_of(const matrix *matrices, int count, const stq_qat_config *config, stq_dtype dtype,
                     cudaEvent_t events[3], float *forward, float *backward) {
    CUDA(cudaEventRecord(events[0], 0));
    for (int i = 0; i < count; i++) {
        const matrix *m = &matrices[i];
        passed(stq_qat_forward(m->quantized, config, m->weights, m->steps, dtype, m->rows, m->cols));
    }
    CUDA(cudaEventRecord(events[1], 0));
    for (int i = 0; i < count; i++) {
        const matrix *m = &matrices[i];
        passed(stq_qat_backward(m->weight_gradient, m->step_gradient, config, m->weights, m->steps, m->gradient, dtype,
                                m->rows, m->cols));
    }
    CUDA(cudaEventRecord(events[2], 0));
    *forward = elapsed(events[0], events[1]);
    *backward = elapsed(events[1], events[2]);
}

static void bench(FILE *csv, const char *device, double copy, cudaEvent_t events[3], const list *l, stq_dtype dtype,
                  uint32_t bits) {
    static matrix matrices[MATRICES];
    static times all[ESTIMATORS];
    double weights = 0;
    for (int i = 0; i < l->count; i++) {
        open_matrix(&matrices[i], l->shapes[i], dtype, (uint32_t)(4 * i));
        set_steps(&matrices[i], bits);
        weights += (double)l->shapes[i][0] * (double)l->shapes[i][1];
    }
    for (int round = -WARM; round < TIMED; round++)
        for (int e = 0; e < ESTIMATORS; e++) {
            stq_qat_config config = stq_qat_defaults();
            const int at = round < 0 ? 0 : round;
            config.bits = bits;
            config.estimator = (stq_qat_estimator)e;
            config.device = STQ_DEVICE_CUDA;
            round_of(matrices, l->count, &config, dtype, events, &all[e].forward[at], &all[e].backward[at]);
            all[e].ratio[at] = (all[e].forward[at] + all[e].backward[at]) / (all[0].forward[at] + all[0].backward[at]);
        }
    const char *type = dtype == STQ_BFLOAT16 ? "bfloat16" : "float32";
    const double bytes = weights * (double)stq_dtype_size(dtype);
    for (int e = 0; e < ESTIMATORS; e++) {
        const double forward = median(all[e].forward, TIMED), backward = median(all[e].backward, TIMED);
        const double ratio = median(all[e].ratio, TIMED);
        const double read = 2.0 * bytes / forward / 1e6, both = 3.0 * bytes / backward / 1e6;
        printf(
            "%-10s %-8s %u bits %-6s forward %.4f ms %4.0f GB/s %5.1f %%  backward %.4f ms %4.0f GB/s %5.1f %%  both / "
            "ste %.3f\n",
            l->name, type, bits, names[e], forward, read, 100 * read / copy, backward, both, 100 * both / copy, ratio);
        if (csv)
            fprintf(csv, "%s,%s,%s,%u,%s,%.5f,%.5f,%.1f,%.1f,%.1f,%.4f,%.4f,%.4f\n", device, l->name, type, bits,
                    names[e], forward, backward, read, both, copy, read / copy, both / copy, ratio);
    }
    fflush(stdout);
    for (int i = 0; i < l->count; i++)
        close_matrix(&matrices[i]);
}

int main(int argc, char **argv) {
    const char *path = NULL;
    bool quick = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--csv") && i + 1 < argc)
            path = argv[++i];
        else if (!strcmp(argv[i], "--quick"))
            quick = true;
        else {
            fprintf(stderr, "usage: gpu_qat [--csv FILE] [--quick]\n");
            return 2;
        }
    }
    struct cudaDeviceProp device;
    CUDA(cudaGetDeviceProperties(&device, 0));
    FILE *csv = gpu_csv_open(path, "w",
                             "device,list,dtype,bits,estimator,forward_ms,backward_ms,forward_gb_per_s,"
                             "backward_gb_per_s,copy_gb_per_s,forward_share,backward_share,ratio_to_ste");
    if (path && !csv)
        return 1;
    cudaEvent_t events[3];
    for (int i = 0; i < 3; i++)
        CUDA(cudaEventCreate(&events[i]));
    const size_t copied = quick ? (size_t)1 << 20 : (size_t)1 << 31;
    const double copy = copy_speed(events, copied);
    printf("%s, copy %.0f GB/s\n", device.name, copy);
    const list lists[] = {one("4096x4096", 4096, 4096), one("50304x768", 50304, 768), gpt2()};
    const list small = one("8x2048", 8, 2048);
    for (int i = 0; i < (quick ? 1 : 3); i++)
        for (int dtype = STQ_FLOAT32; dtype <= STQ_BFLOAT16; dtype++)
            for (uint32_t bits = 2; bits <= 4; bits++)
                bench(csv, device.name, copy, events, quick ? &small : &lists[i], (stq_dtype)dtype, bits);
    if (csv)
        fclose(csv);
    printf("copy again %.0f GB/s\n", copy_speed(events, copied));
    return 0;
}
