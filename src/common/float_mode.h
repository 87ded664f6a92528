/*
 * float_mode.h - the floating-point mode of kernels, factors and steps: round to nearest, subnormals kept. A host may
 * have set flush-to-zero or another rounding, which would change codes, norms and widths; its mode is saved, ours set
 * and then its own restored. A mode belongs to a thread: what calls on a team of them sets it on each.
 */
#ifndef STQ_FLOAT_MODE_H
#define STQ_FLOAT_MODE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* Returns the thread's mode, for stq_float_mode_restore, and sets ours. Call from a function that does no
 * floating-point arithmetic of its own: the compiler may move such arithmetic across the call. */
static inline uint64_t stq_float_mode_set(void) {
#if defined(__x86_64__)
    unsigned saved = _mm_getcsr();
    _mm_setcsr(0x1f80); /* all exceptions masked, nearest even, neither flush-to-zero nor denormals-are-zero */
    return saved;
#elif defined(__aarch64__)
    uint64_t saved, ours = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" : : "r"(ours) : "memory");
    return saved;
#else
    return 0;
#endif
}

static inline void stq_float_mode_restore(uint64_t saved) {
#if defined(__x86_64__)
    _mm_setcsr((unsigned)saved);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(saved) : "memory");
#else
    (void)saved;
#endif
}

#endif
