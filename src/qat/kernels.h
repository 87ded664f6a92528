/* kernels.h - the inner loops of StableQAT over one run of float weights that share a step. */
#ifndef STQ_QAT_KERNELS_H
#define STQ_QAT_KERNELS_H

#include <stdint.h>

/* A configuration as the loops need it. */
typedef struct stq_qat_rule {
    float lowest; /* code range */
    float highest;
    int estimator;
    float amplitudes[8]; /* stable: sqrt(2) pi A_k; 0 where not in use */
    int is_polynomial;   /* stable: the factor is the polynomial below, to 1e-7 */
    float polynomial[8]; /* in 8 d^2 - 1, lowest power first */
    float steepness;     /* soft: k = ln(2 / alpha - 1) */
    float height;        /* soft: k / (2 tanh(k / 2)) */
} stq_qat_rule;

/* quantized[i] = step * clamp(round(weights[i] / step)); -0 becomes 0. May work in place. */
void stq_qat_quantize_run(float *quantized, const float *weights, float step, const stq_qat_rule *rule, int64_t count);

/* codes[i] = clamp(round(weights[i] / step)) - lowest, 0 to 255. */
void stq_qat_code_run(uint8_t *codes, const float *weights, float step, const stq_qat_rule *rule, int64_t count);

/* weight_gradient[i] = gradient[i] * factor; returns the sum of the step's gradient, not yet scaled. May work in place.
 */
double stq_qat_gradient_run(float *weight_gradient, const float *weights, const float *gradient, float step,
                            const stq_qat_rule *rule, int64_t count);

#endif
