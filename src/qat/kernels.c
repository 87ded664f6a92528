/* kernels.c - the loops for the instruction set that the build names, and the choice among those there are. */
#include "qat/kernels.h"

#include <stquant/quant.h>
#include <string.h>

#define KERNELS stq_qat_plain_kernels
#define NAME "plain"
#include "qat/kernel_template.h"

const stq_qat_kernels *stq_qat_select_kernels(void) {
#if defined(__x86_64__)
    const char *name = stq_cpu_kernels();
    if (strcmp(name, stq_qat_avx512_kernels.name) == 0)
        return &stq_qat_avx512_kernels;
    if (strcmp(name, stq_qat_avx2_kernels.name) == 0)
        return &stq_qat_avx2_kernels;
#endif
    return &stq_qat_plain_kernels;
}
