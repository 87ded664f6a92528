// Matrix products by oneDNN.
#ifndef STQUANT_TRAIN_MATMUL_H
#define STQUANT_TRAIN_MATMUL_H

#include <stdint.h>

#include "train/failure.h"

// out (rows, columns) = op(a) (rows, inner) x op(b) (inner, columns), all row-major without gaps.
struct product {
    const float *a;        // (rows, inner), or (inner, rows) when transpose_a
    const float *b;        // (inner, columns), or (columns, inner) when transpose_b
    float *out;            // (rows, columns)
    const float *bias;     // (columns), added to each row; or null
    const float *residual; // (rows, columns), added; or null; apart from out
    int64_t rows, columns, inner;
    int transpose_a, transpose_b;
    int accumulate; // out += instead of out =; not with residual
};

// Products of the models' shapes; the compiled primitives are kept for later calls. A failure (no
// memory, a shape that oneDNN refuses) makes this and every later product do nothing until
// matmul_status has returned it. Uses every thread; not to be called from several threads.
void matmul(const struct product *product);

// APP_OK, or the first failure since the last call, with its sentence.
enum app_status matmul_status(void);

// out (rows, columns) = factor x op(a) op(b), or += when `accumulate`; strides count elements from row
// to row. For small products inside a parallel region, on the calling thread alone.
struct small_product {
    const float *a, *b;
    float *out;
    int64_t a_stride, b_stride, out_stride;
    int64_t rows, columns, inner;
    float factor;
    int transpose_a, transpose_b, accumulate;
};
void matmul_small(const struct small_product *product);

// Releases the kept primitives.
void matmul_release(void);

#endif
