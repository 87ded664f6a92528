/* avx2.c - the loops for AVX2 with FMA. */
#if defined(__x86_64__)

#include "qat/kernels.h"
#include "quant/x86/target.h"

STQ_TARGET_BEGIN("avx2,fma")

#define KERNELS stq_qat_avx2_kernels
#define NAME "avx2"
#include "qat/kernel_template.h"

STQ_TARGET_END

#endif
