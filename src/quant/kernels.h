/*
 * kernels.h - the CPU kernels of the Quantization engine: one table per instruction set, all with the same results,
 * byte for byte. The reference is the oracle and is never tuned; the others are instances of kernel_template.h.
 */
#ifndef STQ_KERNELS_H
#define STQ_KERNELS_H

#include "quant/layout.h"

typedef struct stq_kernels {
    const char *name; /* "reference", "avx2", "avx512", "neon" */
    /* One AdamW step over blocks first_block .. end_block - 1 of an item (counted from the item's start): decodes the
     * in-planes, updates the parameter, encodes the out-planes. `coefficients` are those of item->group. */
    void (*step)(const stq_item *item, const stq_coefficients *coefficients, int64_t first_block, int64_t end_block);
    /* Encodes blocks first_block .. end_block - 1 of an array of `count` values into planes of 2 to 8 bits. `random` is
     * for the second moment; NULL for the first. */
    void (*encode)(const stq_planes *planes, stq_state state, const float *values, int64_t count, int64_t first_block,
                   int64_t end_block, const stq_random *random);
    /* Decodes blocks first_block .. end_block - 1 of planes of any width (0 and 32 included) into the same places of
     * `values`, an array of `count`. */
    void (*decode)(float *values, const stq_planes *planes, stq_state state, int64_t count, int64_t first_block,
                   int64_t end_block);
} stq_kernels;

extern const stq_kernels stq_reference_kernels;
#if defined(__x86_64__)
extern const stq_kernels stq_avx2_kernels;
extern const stq_kernels stq_avx512_kernels;
#elif defined(__aarch64__)
extern const stq_kernels stq_neon_kernels;
#endif

/* The fastest table this machine can run. The environment variable STQUANT_ISA, for tests, asks for a table by name; a
 * name that this machine cannot run is ignored. Decided at the first call; any thread may call. */
const stq_kernels *stq_select_kernels(void);

/* The table of that name, or NULL if this build or this machine does not have it. */
const stq_kernels *stq_find_kernels(const char *name);

#endif
