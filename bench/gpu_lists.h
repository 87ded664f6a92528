/* gpu_lists.h - what the GPU benchmarks have in common: the lists of tensors, and the speed of a copy. */
#ifndef GPU_LISTS_H
#define GPU_LISTS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GPU_LIST_MOST = 512 };

/* Shapes of a list's tensors; vectors have one row. */
typedef struct gpu_list {
    const char *name;
    size_t count;
    int64_t parameters;
    int64_t rows[GPU_LIST_MOST];
    int64_t cols[GPU_LIST_MOST];
} gpu_list;

/* "gpt2-xl": 292 tensors shaped as GPT-2, 24 layers of width 1600, 820M parameters. "flat": 12 of 8192 x 8192. False if
 * there is no list of that name. */
bool gpu_list_named(gpu_list *list, const char *name);

/* `count` tensors of one row that share out `parameters`, the first ones an element more; count <= GPU_LIST_MOST. */
void gpu_list_even(gpu_list *list, int64_t parameters, size_t count);

/* 10^9 bytes a second, read and written, of a copy of `bytes` bytes inside the device's memory: the median of 11. */
cudaError_t gpu_copy_speed(size_t bytes, double *gigabytes);

/* Sorts; the middle of an odd number. */
double gpu_median(float *values, int count);

#endif
