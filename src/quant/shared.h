/*
 * shared.h - the second moment shared along a dimension: one float32 mean of v for each row or each column of the
 * tensor instead of a value per element (after SlimAdam, arXiv 2503.01843). docs/codec.md defines the arithmetic.
 *
 * Means change before the update pass, from exact sums of squared gradients, so that the pass itself only reads them.
 * The sums are integers in units that follow each mean: any order of adding, any split over threads, ranks and GPUs
 * gives the same bits.
 */
#ifndef STQ_SHARED_H
#define STQ_SHARED_H

#include "quant/codec.h"

/* A term saturates here; a saturated term is counted, and the tensor's sums are made again in coarser units. */
#define STQ_SHARED_LARGEST 1073741824.0f

/* Units of a sum are (root of the mean / 64)^2: terms saturate at 512 times the root of the mean. */
#define STQ_SHARED_UNITS 64.0f

/* Elements followed one by one, to see whether sharing still pays. */
#define STQ_SHARED_PROBES 1024

STQ_INLINE bool stq_is_shared(uint32_t bits) { return bits == STQ_BITS_SHARED_ROW || bits == STQ_BITS_SHARED_COL; }

/* How many means a tensor has: one for each row or column. */
STQ_INLINE int64_t stq_shared_count(uint32_t bits, int64_t rows, int64_t cols) {
    return bits == STQ_BITS_SHARED_ROW ? rows : cols;
}

/* Which mean belongs to element `index` of the global tensor. */
STQ_INLINE int64_t stq_shared_index(uint32_t bits, int64_t index, int64_t cols) {
    return bits == STQ_BITS_SHARED_ROW ? index / cols : index % cols;
}

/* The planes of a shared second moment, in one allocation that begins at planes->base. */
STQ_INLINE float *stq_shared_means(const stq_planes *planes) { return (float *)(void *)planes->base; }

/* One factor a mean: the sums are in units of 1 / factor^2. */
STQ_INLINE float *stq_shared_factors(const stq_planes *planes) { return (float *)(void *)planes->bit[0]; }

/* Second moments of the probes. */
STQ_INLINE float *stq_shared_probes(const stq_planes *planes) { return (float *)(void *)planes->bit[1]; }

/* Scratch of a step. */
STQ_INLINE int64_t *stq_shared_sums(const stq_planes *planes) { return (int64_t *)(void *)planes->bit[2]; }

/* Second moments of `count` values from global element `first` on, for the update pass: already those of this step. */
STQ_INLINE void stq_shared_values(float *v, const stq_planes *planes, int64_t cols, int64_t first, int count) {
    const float *means = stq_shared_means(planes);
    int64_t row = first / cols, col = first % cols;
    for (int done = 0; done < count; row++, col = 0) {
        int run = cols - col < count - done ? (int)(cols - col) : count - done;
        if (planes->bits == STQ_BITS_SHARED_ROW)
            for (int i = 0; i < run; i++)
                v[done + i] = means[row];
        else
            for (int i = 0; i < run; i++)
                v[done + i] = means[col + i];
        done += run;
    }
}

/* One element's term of a sum. At least 1 for a gradient that is not 0: a mean is never taken for 0 by rounding, and an
 * update never divides by too little. */
STQ_INLINE uint32_t stq_shared_term(float g, float factor) {
    float scaled = g * factor;
    float square = scaled * scaled;
    square = square < STQ_SHARED_LARGEST ? square : STQ_SHARED_LARGEST;
    uint32_t term = (uint32_t)lrintf(square);
    return g == 0.0f ? 0 : term == 0 ? 1 : term;
}

/* The factor that goes with a mean of g'^2, g' = g * gradient_factor. A mean of 0 gets one at which every g saturates.
 */
STQ_INLINE float stq_shared_factor(float mean, float gradient_factor) {
    float factor = STQ_SHARED_UNITS * gradient_factor / sqrtf(mean);
    return factor < 1.2676506e30f ? factor : 1.2676506e30f; /* 2^100; NaN and infinity too */
}

/* The factor for sums made again: the largest |g| of the tensor gives a term of 2^28 to 2^29. */
STQ_INLINE float stq_shared_safe_factor(float largest) { return 16384.0f / largest; }

/* The new mean from the sum of `elements` terms. */
STQ_INLINE float stq_shared_mean(float mean, int64_t sum, int64_t elements, float factor, const stq_coefficients *c) {
    double unit = (double)c->gradient_factor / (double)factor;
    float square = (float)((double)sum / (double)elements * (unit * unit));
    return fmaf(c->beta2, mean, c->one_minus_beta2 * square);
}

#endif
