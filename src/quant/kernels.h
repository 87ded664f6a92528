/*
 * kernels.h - the CPU kernels of the Quantization engine: one table per instruction set, all with the same results,
 * byte for byte. The reference is the oracle and is never tuned.
 */
#ifndef STQ_KERNELS_H
#define STQ_KERNELS_H

#include "quant/layout.h"

typedef struct stq_kernels {
    const char *name; /* "reference", ... */
    /* One AdamW step over blocks first_block .. end_block - 1 of an item (counted from the item's start): decodes the
     * in-planes, updates the parameter, encodes the out-planes. `coefficients` are those of item->group. */
    void (*step)(const stq_item *item, const stq_coefficients *coefficients, int64_t first_block, int64_t end_block);
} stq_kernels;

extern const stq_kernels stq_reference_kernels;

/* The fastest table this machine can run. */
const stq_kernels *stq_select_kernels(void);

#endif
