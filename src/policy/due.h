/* due.h - at which steps policies that choose widths do so; plain C that nvcc accepts too. */
#ifndef STQ_DUE_H
#define STQ_DUE_H

#include "quant/codec.h"

/* Steps are counted from 1. */
STQ_INLINE bool stq_is_decision_step(int64_t step, int64_t every) {
    return step == 1 || step == 10 || step == 30 || step % every == 0;
}

#endif
