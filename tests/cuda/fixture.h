/*
 * fixture.h - a list of tensors twice, in host memory for the scalar reference and on the device for the kernels, and
 * the comparison of all their bytes. Everything exits with a message where the CUDA runtime fails: a test has no way
 * on.
 */
#ifndef FIXTURE_H
#define FIXTURE_H

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda/kernels.h"
#include "cuda/worklist.h"
#include "optim/coefficients.h"

#define CUDA(call) check_cuda((call), #call, __FILE__, __LINE__)
void check_cuda(cudaError_t error, const char *call, const char *file, int line);

/* Ends the program with the sentence of a call of the library that failed. */
void must(stq_status status);

/* Prints one TAP line and counts failures; returns `passed`. */
bool report(bool passed, const char *format, ...) __attribute__((format(printf, 2, 3)));
int failures(void);

/* What the gradients of an item look like. */
typedef enum gradient_kind {
    GRADIENT_GAUSSIAN,
    GRADIENT_SPARSE,       /* nine of ten elements are 0 */
    GRADIENT_DEAD_COLUMNS, /* each 16th element is always 0 */
    GRADIENT_ZERO,
    GRADIENT_CONSTANT,
    GRADIENT_WIDE,    /* exponents over 120 octaves */
    GRADIENT_TINY,    /* around the subnormal range */
    GRADIENT_HUGE,    /* squares just below the largest float */
    GRADIENT_OUTLIER, /* one element 10^9 times the others */
    GRADIENT_POWERS,  /* powers of two, both zeros */
    GRADIENT_LATE,    /* zero for 20 steps, then Gaussian */
    GRADIENT_KINDS
} gradient_kind;

const char *gradient_name(gradient_kind kind);

/* One tensor, with all planes that any width needs, in both memories. Offsets shift arrays off their alignment. */
typedef struct tensor_spec {
    int64_t count;
    uint32_t m_bits, v_bits; /* 0 = no state before the first step */
    uint32_t m_next, v_next; /* widths that the first step encodes; else as before */
    stq_dtype parameter_type, gradient_type;
    gradient_kind kind;
    double scale;
    int64_t first_block;
    int misalignment; /* elements */
    int64_t cols;     /* length of a row, for v_bits that mean a shared second moment */
} tensor_spec;

typedef struct buffer {
    uint8_t *host;
    uint8_t *device;
    size_t bytes;
} buffer;

typedef struct fixture_state {
    buffer nibbles, pairs, bit[4], floats, scales;
} fixture_state;

typedef struct fixture_tensor {
    tensor_spec spec;
    fixture_state state[2];
    buffer parameter, gradient;
    stq_item item; /* host pointers */
} fixture_tensor;

typedef struct fixture {
    fixture_tensor *tensors;
    size_t count;
    uint64_t seed;
    double error_compensation;
    stq_adamw_group group;
    stq_device_item *device_items;
    stq_worklist list; /* host */
    stq_tile *tiles;   /* device */
    stq_tile *segments;
    int64_t *first_segment;
    double *sums; /* device scratch, and the total behind it */
    stq_coefficients *coefficients;
    stq_control *control;
} fixture;

void fixture_open(fixture *f, const tensor_spec *specs, size_t count, uint64_t seed);
void fixture_close(fixture *f);

/* New gradients for step `step`, in both memories. */
void fixture_gradients(fixture *f, int64_t step);

/* Sets the widths that the next step encodes, 0 = unchanged. */
void fixture_target(fixture *f, size_t tensor, uint32_t m_bits, uint32_t v_bits);

/* One step on both sides. */
void fixture_step(fixture *f, int64_t step, double gradient_factor);

/* The first difference as a message in `text`; false if there is none. */
bool fixture_differs(const fixture *f, char *text, size_t size);

/* Uploads the items with device pointers. */
void fixture_upload_items(fixture *f);

uint32_t random_word(uint64_t *state);
double random_normal(uint64_t *state);

#endif
