/* kernels.h - the inner loops of StableQAT over one run of float weights that share a step. */
#ifndef STQ_QAT_KERNELS_H
#define STQ_QAT_KERNELS_H

#include "qat/arithmetic.h"

/* The loops for one instruction set. Every set gives the same bytes. */
typedef struct stq_qat_kernels {
    const char *name;
    /* quantized[i] = step * clamp(round(weights[i] / step)); -0 becomes 0. May work in place. */
    void (*quantize)(float *quantized, const float *weights, float step, const stq_qat_rule *rule, int64_t count);
    /* codes[i] = clamp(round(weights[i] / step)) - lowest, 0 to 255. */
    void (*code)(uint8_t *codes, const float *weights, float step, const stq_qat_rule *rule, int64_t count);
    /* weight_gradient[i] = gradient[i] * factor, for at most a tile; returns the tile's sum of the step's gradient, not
     * yet scaled. May work in place. */
    float (*gradient)(float *weight_gradient, const float *weights, const float *gradient, float step,
                      const stq_qat_rule *rule, int64_t count);
} stq_qat_kernels;

extern const stq_qat_kernels stq_qat_plain_kernels;
#if defined(__x86_64__)
extern const stq_qat_kernels stq_qat_avx2_kernels;
extern const stq_qat_kernels stq_qat_avx512_kernels;
#endif

/* The loops for the instruction set that stq_cpu_kernels() names. */
const stq_qat_kernels *stq_qat_select_kernels(void);

#endif
