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
#include "quant/convert.h"

/* A term saturates here; a saturated term is counted, and the tensor's sums are made again in coarser units. */
#define STQ_SHARED_LARGEST 1073741824.0f

/* Units of a sum are (root of the mean / 64)^2: terms saturate at 512 times the root of the mean. */
#define STQ_SHARED_UNITS 64.0f

/* A factor of which no better is known; at 2^100 every gradient that matters saturates. */
#define STQ_SHARED_UNKNOWN 1.2676506e30f

/* Elements followed one by one, at most, to see whether sharing still pays. */
#define STQ_SHARED_PROBES 1024

STQ_INLINE bool stq_is_shared(uint32_t bits) { return bits == STQ_BITS_SHARED_ROW || bits == STQ_BITS_SHARED_COL; }

/* Both states are float32 after the step and were float32, or nothing, before: plain AdamW. */
STQ_INLINE bool stq_is_plain(const stq_item *item) {
    return item->m_out.bits == STQ_BITS_FLOAT32 && item->v_out.bits == STQ_BITS_FLOAT32 &&
           (item->m_in.bits == STQ_BITS_FLOAT32 || item->m_in.bits == 0) &&
           (item->v_in.bits == STQ_BITS_FLOAT32 || item->v_in.bits == 0);
}

/* How many means a tensor has: one for each row or column. */
STQ_INLINE int64_t stq_shared_count(uint32_t bits, int64_t rows, int64_t cols) {
    return bits == STQ_BITS_SHARED_ROW ? rows : cols;
}

/* Which mean belongs to element `index` of the global tensor. */
STQ_INLINE int64_t stq_shared_index(uint32_t bits, int64_t index, int64_t cols) {
    return bits == STQ_BITS_SHARED_ROW ? index / cols : index % cols;
}

/* The probes are a grid of elements, spread evenly over rows and columns: probe i is at row i / cols, column i % cols
 * of it. A tensor of less than 65,536 elements has fewer, so that they take at most half a bit an element. */
typedef struct stq_shared_grid {
    int64_t rows; /* of the grid; rows * cols <= STQ_SHARED_PROBES */
    int64_t cols;
} stq_shared_grid;

STQ_INLINE stq_shared_grid stq_shared_probe_grid(int64_t rows, int64_t cols) {
    int64_t side = rows * cols >= 65536 ? 32 : rows * cols >= 16384 ? 16 : 8;
    stq_shared_grid grid;
    grid.rows = rows < side ? rows : side;
    grid.cols = side * side / grid.rows < cols ? side * side / grid.rows : cols;
    grid.rows = side * side / grid.cols < rows ? side * side / grid.cols : rows;
    return grid;
}

STQ_INLINE int64_t stq_shared_probe_count(int64_t rows, int64_t cols) {
    stq_shared_grid grid = stq_shared_probe_grid(rows, cols);
    return grid.rows * grid.cols;
}

/*
 * The planes of a shared second moment lie in one allocation: the means and after them the gradient factor of the step
 * that made them, then the probes, each part rounded up to 64 bytes. The sums of a step are scratch.
 */

STQ_INLINE int64_t stq_shared_align(int64_t bytes) { return (bytes + 63) / 64 * 64; }

STQ_INLINE int64_t stq_shared_bytes(uint32_t bits, int64_t rows, int64_t cols) {
    return stq_shared_align(4 * (stq_shared_count(bits, rows, cols) + 1)) +
           stq_shared_align(4 * stq_shared_probe_count(rows, cols));
}

/* Points the planes into their allocation. */
STQ_INLINE stq_planes stq_shared_planes(void *allocation, uint32_t bits, int64_t rows, int64_t cols) {
    stq_planes planes;
    memset(&planes, 0, sizeof planes);
    planes.base = (uint8_t *)allocation;
    planes.bit[0] = planes.base + stq_shared_align(4 * (stq_shared_count(bits, rows, cols) + 1));
    planes.bits = bits;
    return planes;
}

STQ_INLINE float *stq_shared_means(const stq_planes *planes) { return (float *)(void *)planes->base; }

/* Second moments of the probes. */
STQ_INLINE float *stq_shared_probes(const stq_planes *planes) { return (float *)(void *)planes->bit[0]; }

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
STQ_INLINE int32_t stq_shared_term(float g, float factor) {
    float scaled = g * factor;
    float square = scaled * scaled;
    square = square < STQ_SHARED_LARGEST ? square : STQ_SHARED_LARGEST;
#ifdef __CUDA_ARCH__
    int32_t term = __float2int_rn(square);
#else
    int32_t term = (int32_t)lrintf(square);
#endif
    return term + (term == 0 && g != 0.0f);
}

/* The factor that goes with a mean of g'^2, g' = g * gradient_factor. A mean of 0 gets one at which every g saturates.
 */
STQ_INLINE float stq_shared_factor(float mean, float gradient_factor) {
    float factor = STQ_SHARED_UNITS * gradient_factor / sqrtf(mean);
    return factor < STQ_SHARED_UNKNOWN ? factor : STQ_SHARED_UNKNOWN;
}

/* The factor for sums made again: the largest |g| of the row or column gives a term of at most 2^28. */
STQ_INLINE float stq_shared_safe_factor(float largest) {
    float factor = 16384.0f / largest;
    return factor < STQ_SHARED_UNKNOWN ? factor : STQ_SHARED_UNKNOWN;
}

/* The new mean from the sum of `elements` terms. */
STQ_INLINE float stq_shared_mean(float mean, int64_t sum, int64_t elements, float factor, const stq_coefficients *c) {
    double unit = (double)c->gradient_factor / (double)factor;
    float square = (float)((double)sum / (double)elements * (unit * unit));
    return fmaf(c->beta2, mean, c->one_minus_beta2 * square);
}

/* One of `count` positions below `size`: a counter's hash picks it inside its share. `size` * `count` < 2^63. */
STQ_INLINE int64_t stq_shared_position(int64_t i, int64_t count, int64_t size) {
    int64_t first = size * i / count;
    int64_t width = size * (i + 1) / count - first;
    return first + (int64_t)stq_hash((uint32_t)i + 0x9e3779b9u * (uint32_t)count) % width;
}

/* The element of the global tensor that probe i follows. */
STQ_INLINE int64_t stq_shared_probe(int64_t i, const stq_shared_grid *grid, int64_t rows, int64_t cols) {
    return stq_shared_position(i / grid->cols, grid->rows, rows) * cols +
           stq_shared_position(i % grid->cols, grid->cols, cols);
}

/* Fixed point for the sum of `elements` second moments of at most `largest`: 40 bits behind the largest one's first,
 * fewer where the sum would not fit. */
STQ_INLINE double stq_shared_fixed_point(float largest, int64_t elements) {
    int exponent, bits = 62;
    (void)frexp((double)largest, &exponent);
    while (elements > 1) {
        elements = (elements + 1) / 2;
        bits--;
    }
    return ldexp(1.0, (bits < 40 ? bits : 40) - exponent);
}

/* A second moment in such a sum: at least 1 where it is not 0. */
STQ_INLINE int64_t stq_shared_moment_term(float v, double scale) {
    if (!(v > 0))
        return 0;
    int64_t term = (int64_t)llrint((double)v * scale);
    return term > 0 ? term : 1;
}

/* The mean of `elements` second moments out of their sum. */
STQ_INLINE float stq_shared_first_mean(int64_t sum, int64_t elements, double scale) {
    return (float)((double)sum / ((double)elements * scale));
}

/* One value out of planes of codes, of float32, or of nothing. */
STQ_INLINE float stq_shared_read_value(const stq_planes *v, int64_t at) {
    if (v->bits == 0)
        return 0.0f;
    if (v->bits == STQ_BITS_FLOAT32)
        return ((const float *)(const void *)v->base)[at];
    stq_lattice lattice = stq_v_lattice(v->scales[at / STQ_BLOCK], v->bits);
    return stq_v_decode(stq_code_get(v, at), &lattice);
}

/* v at probe i of a slice, 0 where the probe is not in it: of shared, coded and float32 planes. */
STQ_INLINE float stq_shared_read_probe(const stq_item *item, const stq_shared_grid *grid, int64_t i) {
    int64_t at = stq_shared_probe(i, grid, item->rows, item->cols) - item->first_block * STQ_BLOCK;
    if (at < 0 || at >= item->count)
        return 0.0f;
    return stq_is_shared(item->v_in.bits) ? stq_shared_probes(&item->v_in)[i] : stq_shared_read_value(&item->v_in, at);
}

/* Probe i takes this step's gradient in, if it lies in the slice. */
STQ_INLINE void stq_shared_follow_probe(const stq_item *item, const stq_shared_grid *grid, const stq_coefficients *c,
                                        int64_t i) {
    float *probe = stq_shared_probes(&item->v_in) + i;
    int64_t at = stq_shared_probe(i, grid, item->rows, item->cols) - item->first_block * STQ_BLOCK;
    if (at < 0 || at >= item->count)
        return;
    float g = stq_load_float(item->gradient, item->gradient_type, at) * c->gradient_factor;
    *probe = fmaf(c->beta2, *probe, c->one_minus_beta2 * (g * g));
}

/* ---- The CPU's stages, over parts of an item; src/quant/shared.c ---- */

/* Scratch of one item's step: an entry for each mean. */
typedef struct stq_shared_sums {
    float *factors; /* the sums are in units of 1 / factor^2 */
    int64_t *sums;
} stq_shared_sums;

/* Factors of means first .. end - 1 from the step before; zeroes their sums. */
void stq_shared_prepare(const stq_item *item, const stq_shared_sums *scratch, int64_t first, int64_t end);

/* Adds the terms of the item's slice that belong to means `first` .. `end` - 1 to the sums; returns how many saturated.
 */
int64_t stq_shared_add(const stq_item *item, const stq_shared_sums *scratch, int64_t first, int64_t end);

/* Raises zeroed sums of means `first` .. `end` - 1 to the bits of the largest |g| that belongs to each. */
void stq_shared_largest(const stq_item *item, const stq_shared_sums *scratch, int64_t first, int64_t end);

/* Turns the largest magnitudes in the sums into safe factors; the sums are zeroed. */
void stq_shared_rescale(const stq_shared_sums *scratch, int64_t first, int64_t end);

/* Means first .. end - 1 from their sums. */
void stq_shared_finish(const stq_item *item, const stq_shared_sums *scratch, const stq_coefficients *coefficients,
                       int64_t first, int64_t end);

/* Last: the probes that lie in the slice take this step's gradient in, and the gradient factor is kept. */
void stq_shared_follow(const stq_item *item, const stq_coefficients *coefficients);

/* Begins sharing: fills `shared` from the second moment in item->v_in (codes or nothing, the whole tensor). `sums` is
 * scratch for an entry for each mean. */
void stq_shared_begin(const stq_planes *shared, const stq_item *item, int64_t *sums);

/* Values of v at the probes that lie in the slice, 0 at the others: of shared, coded and float32 planes. */
void stq_shared_read_probes(float *values, const stq_item *item);

/*
 * Signal-to-noise ratio mean^2 / variance of v inside a row ([0]: what sharing by rows would level) and inside a column
 * ([1]), harmonic mean over the rows and columns of the grid; 0 where there is nothing to tell. `noise` is the variance
 * of v over v^2 that its coding adds; it is taken off. At most `STQ_SHARED_BEST`.
 */
void stq_shared_ratios(double ratios[2], const float *values, const stq_shared_grid *grid, double noise);

#define STQ_SHARED_BEST 1000.0

#endif
