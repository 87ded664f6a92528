/* gpu_lists.c - the lists of tensors of the GPU benchmarks, and the speed of a copy. */
#include "gpu_lists.h"

#include <string.h>

#include "gpu_random.h"

enum { WARM = 3, TIMED = 11, LAYERS = 24 };

static void add(gpu_list *list, int64_t rows, int64_t cols) {
    list->rows[list->count] = rows;
    list->cols[list->count++] = cols;
    list->parameters += rows * cols;
}

static void add_gpt2(gpu_list *list, int64_t d) {
    add(list, 50257, d);
    add(list, 1024, d);
    for (int layer = 0; layer < LAYERS; layer++) {
        const int64_t shapes[12][2] = {{1, d}, {1, d}, {3 * d, d}, {1, 3 * d}, {d, d},     {1, d},
                                       {1, d}, {1, d}, {4 * d, d}, {1, 4 * d}, {d, 4 * d}, {1, d}};
        for (int i = 0; i < 12; i++)
            add(list, shapes[i][0], shapes[i][1]);
    }
    add(list, 1, d);
    add(list, 1, d);
}

bool gpu_list_named(gpu_list *list, const char *name) {
    memset(list, 0, sizeof *list);
    if (strcmp(name, "gpt2-xl") == 0) {
        list->name = "gpt2-xl";
        add_gpt2(list, 1600);
    } else if (strcmp(name, "flat") == 0) {
        list->name = "flat";
        for (int i = 0; i < 12; i++)
            add(list, 8192, 8192);
    }
    return list->name != NULL;
}

void gpu_list_even(gpu_list *list, int64_t parameters, size_t count) {
    memset(list, 0, sizeof *list);
    list->name = "even";
    for (size_t i = 0; i < count; i++)
        add(list, 1, parameters / (int64_t)count + ((int64_t)i < parameters % (int64_t)count));
}

double gpu_median(float *values, int count) {
    for (int i = 1; i < count; i++)
        for (int j = i; j > 0 && values[j] < values[j - 1]; j--) {
            float t = values[j];
            values[j] = values[j - 1];
            values[j - 1] = t;
        }
    return values[count / 2];
}

static cudaError_t time_copy(void *to, const void *from, size_t bytes, cudaEvent_t begin, cudaEvent_t end, float *ms) {
    cudaError_t error = cudaEventRecord(begin, 0);
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, 0);
    if (error == cudaSuccess)
        error = cudaEventRecord(end, 0);
    if (error == cudaSuccess)
        error = cudaEventSynchronize(end);
    return error == cudaSuccess ? cudaEventElapsedTime(ms, begin, end) : error;
}

cudaError_t gpu_copy_speed(size_t bytes, double *gigabytes) {
    void *memory[2] = {NULL, NULL};
    cudaEvent_t begin = NULL, end = NULL;
    float times[TIMED], ms = 0;
    cudaError_t error = cudaMalloc(&memory[0], bytes);
    if (error == cudaSuccess)
        error = cudaMalloc(&memory[1], bytes);
    if (error == cudaSuccess)
        error = gpu_random_normal(memory[0], (int64_t)(bytes / 4), false, 1.0f, 1, 0);
    if (error == cudaSuccess)
        error = cudaEventCreate(&begin);
    if (error == cudaSuccess)
        error = cudaEventCreate(&end);
    for (int i = -WARM; i < TIMED && error == cudaSuccess; i++) {
        error = time_copy(memory[1], memory[0], bytes, begin, end, &ms);
        times[i < 0 ? 0 : i] = ms;
    }
    if (error == cudaSuccess)
        *gigabytes = 2.0 * (double)bytes / gpu_median(times, TIMED) / 1e6;
    if (begin)
        (void)cudaEventDestroy(begin);
    if (end)
        (void)cudaEventDestroy(end);
    (void)cudaFree(memory[0]);
    (void)cudaFree(memory[1]);
    return error;
}
