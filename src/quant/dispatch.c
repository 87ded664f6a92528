/* dispatch.c - which table of kernels this machine uses. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/cpu.h"
#include "quant/kernels.h"

/* Fastest first. */
static const stq_kernels *const tables[] = {
#if defined(__x86_64__)
    &stq_avx512_kernels,
    &stq_avx2_kernels,
#elif defined(__aarch64__)
    &stq_neon_kernels,
#endif
    &stq_reference_kernels,
};

enum { TABLE_COUNT = sizeof tables / sizeof tables[0] };

static bool can_run(const stq_kernels *kernels) {
#if defined(__x86_64__)
    if (kernels == &stq_avx512_kernels)
        return stq_cpu_has_avx512();
    if (kernels == &stq_avx2_kernels)
        return stq_cpu_has_avx2();
#else
    (void)kernels;
#endif
    return true;
}

const stq_kernels *stq_find_kernels(const char *name) {
    for (size_t i = 0; i < TABLE_COUNT; i++)
        if (strcmp(tables[i]->name, name) == 0)
            return can_run(tables[i]) ? tables[i] : NULL;
    return NULL;
}

const stq_kernels *stq_select_kernels(void) {
    static _Atomic(const stq_kernels *) selected;
    const stq_kernels *kernels = atomic_load_explicit(&selected, memory_order_relaxed);
    if (kernels != NULL)
        return kernels;
    const char *wanted = getenv("STQUANT_ISA");
    kernels = wanted != NULL ? stq_find_kernels(wanted) : NULL;
    for (size_t i = 0; kernels == NULL; i++)
        if (can_run(tables[i])) /* NOLINT(clang-analyzer-core.CallAndMessage): the last table runs everywhere */
            kernels = tables[i];
    atomic_store_explicit(&selected, kernels, memory_order_relaxed);
    return kernels;
}

const char *stq_cpu_kernels(void) { return stq_select_kernels()->name; }
