/* hostile_mode.h - a floating-point mode that a host may have set and that must change no result. No test library:
 * tests/arm uses it too. */
#ifndef HOSTILE_MODE_H
#define HOSTILE_MODE_H

#include "common/float_mode.h"

/* Subnormals flushed, rounding upwards: bits of the register that float_mode.h saves. */
#if defined(__x86_64__)
#define HOSTILE_BITS UINT64_C(0xc040)
#elif defined(__aarch64__)
#define HOSTILE_BITS (UINT64_C(1) << 24 | UINT64_C(1) << 22)
#else
#define HOSTILE_BITS UINT64_C(0)
#endif

/* As a host may have it. Returns the mode before, for stq_float_mode_restore(). */
static inline uint64_t hostile_mode(void) {
    uint64_t saved = stq_float_mode_set();
    stq_float_mode_restore(saved | HOSTILE_BITS);
    return saved;
}

#endif
