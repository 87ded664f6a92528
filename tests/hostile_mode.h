/* hostile_mode.h - a floating-point mode that a host may have set and that must change no result. No test library:
 * tests/arm uses it too. */
#ifndef HOSTILE_MODE_H
#define HOSTILE_MODE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* As a host may have it: subnormals flushed, rounding upwards. Returns the mode before. */
static inline uint64_t hostile_mode(void) {
#if defined(__x86_64__)
    unsigned saved = _mm_getcsr();
    _mm_setcsr(saved | 0xc040u);
    return saved;
#elif defined(__aarch64__)
    uint64_t saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" : : "r"(saved | 1u << 24 | 1u << 22) : "memory");
    return saved;
#else
    return 0;
#endif
}

static inline void usual_mode(uint64_t saved) {
#if defined(__x86_64__)
    _mm_setcsr((unsigned)saved);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(saved) : "memory");
#else
    (void)saved;
#endif
}

#endif
