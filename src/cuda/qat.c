/* qat.c - the passes of quantization-aware training as qat/backend.h has them. */
#include "qat/backend.h"

#include "cuda/backend.h"

stq_status stq_cuda_qat_forward(void *quantized, const stq_qat_pass *pass, void *stream) {
    STQ_CUDA_CHECK(stq_cuda_launch_qat_forward(quantized, pass, stream));
    return STQ_OK;
}

stq_status stq_cuda_qat_backward(void *weight_gradient, float *step_gradient, const stq_qat_pass *pass,
                                 const void *gradient, double scale, void *stream) {
    STQ_CUDA_CHECK(stq_cuda_launch_qat_backward(weight_gradient, step_gradient, pass, gradient, scale, stream));
    return STQ_OK;
}
