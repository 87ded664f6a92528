/*
 * exact.h - correctly rounded square root and quotient out of approximations, for operands well inside the range of
 * floats. The GPU's approximate instructions are one operation each; what IEEE demands beyond them is the refinement
 * below: 4 and 5 operations, against 8 and 13 with the branches of the compiler's own sequences.
 * tests/cuda/arithmetic.cu tries them with the GPU's approximations, tests/cuda/test_emulated.cc with others.
 */
#ifndef STQ_EXACT_H
#define STQ_EXACT_H

#include "quant/codec.h"

/*
 * sqrt(v), given y = 1 / sqrt(v) to within 2 units in the last place; v from 2^-100 to 2^126. One Newton step for the
 * root, its residual computed exactly by fma.
 */
STQ_INLINE float stq_exact_root(float v, float y) {
    float root = v * y;
    float half = 0.5f * y;
    return fmaf(fmaf(-root, root, v), half, root);
}

/*
 * n / d, given r = 1 / d to within 2 units in the last place; d from 2^-60 to 2^60, n 0 or in magnitude from 2^-102 to
 * 2^62 (n = -0 gives +0). The reciprocal is refined first: with it the one correction of the quotient rounds correctly
 * (Markstein 1990).
 */
STQ_INLINE float stq_exact_quotient(float n, float d, float r) {
    float reciprocal = fmaf(fmaf(-d, r, 1.0f), r, r);
    float quotient = n * reciprocal;
    return fmaf(fmaf(-d, quotient, n), reciprocal, quotient);
}

#endif
