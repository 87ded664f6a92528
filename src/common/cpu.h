/* cpu.h - what this machine's processor and operating system can run. */
#ifndef STQ_CPU_H
#define STQ_CPU_H

#include <stdbool.h>

/* AVX2, FMA and F16C, with the operating system saving 256-bit registers. */
bool stq_cpu_has_avx2(void);

/* AVX-512 F, BW, DQ, VL and VBMI on top of that, with the operating system saving 512-bit and mask registers. */
bool stq_cpu_has_avx512(void);

#endif
