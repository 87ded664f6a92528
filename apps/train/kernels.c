#include "train/kernels.h"

#include <stdlib.h>
#include <string.h>

static int allowed(const struct kernels *kernels) {
    const char *wanted = getenv("STQUANT_TRAIN_KERNELS");
    return !wanted || strcmp(wanted, kernels->name) == 0;
}

const struct kernels *kernels_select(void) {
#if defined(__x86_64__)
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    if (avx512 && allowed(&kernels_avx512)) {
        return &kernels_avx512;
    }
    if (avx2 && allowed(&kernels_avx2)) {
        return &kernels_avx2;
    }
#endif
    (void)allowed;
    return &kernels_generic;
}
