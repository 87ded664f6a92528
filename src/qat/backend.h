/* backend.h - where the passes of quantization-aware training work: what they ask of a GPU. */
#ifndef STQ_QAT_BACKEND_H
#define STQ_QAT_BACKEND_H

#include "qat/arithmetic.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A checked matrix: `groups` groups of `group` weights, one step each. */
typedef struct stq_qat_pass {
    stq_qat_rule rule;
    const void *weights;
    const float *steps;
    stq_dtype dtype;
    int64_t group;
    int64_t groups;
} stq_qat_pass;

/* Enqueue the pass on a cudaStream_t. Pointers are the device's. src/cuda/qat.c, in builds with CUDA. */
stq_status stq_cuda_qat_forward(void *quantized, const stq_qat_pass *pass, void *stream);
stq_status stq_cuda_qat_backward(void *weight_gradient, float *step_gradient, const stq_qat_pass *pass,
                                 const void *gradient, double scale, void *stream);

/* STQ_UNSUPPORTED where a configuration asks for another device than the CPU; for calls that have no pass on a GPU. */
stq_status stq_qat_on_host(const stq_qat_config *config);

#ifdef __cplusplus
}
#endif

#endif
