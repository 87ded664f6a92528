/* avx512.c - the loops for AVX-512. */
#if defined(__x86_64__)

#include "qat/kernels.h"
#include "quant/x86/target.h"

STQ_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma")

#define KERNELS stq_qat_avx512_kernels
#define NAME "avx512"
#include "qat/kernel_template.h"

STQ_TARGET_END

#endif
