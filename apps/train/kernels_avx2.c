// The kernels for x86-64 with AVX2 and FMA.
#if defined(__x86_64__)
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "train/kernels.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define KERNELS kernels_avx2
#define KERNELS_NAME "avx2"
#include "train/kernels_template.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
