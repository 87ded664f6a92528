/* kernel_common.h - what the vector layers and kernel_template.h share; included before an instruction set is switched
 * on. */
#ifndef STQ_KERNEL_COMMON_H
#define STQ_KERNEL_COMMON_H

#include "common/float_mode.h"
#include "quant/codec.h"
#include "quant/convert.h"
#include "quant/kernels.h"
#include "quant/shared.h"

#define INLINE static inline __attribute__((always_inline))

/* Entries of the tables of m's levels: all codes of 5 bits, all magnitudes of 6. */
#define STQ_LEVELS 32

/* Unrolls the following loop, whose length is a constant of at most 32. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

#endif
