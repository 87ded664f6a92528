// The kernels for x86-64 with AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "train/kernels.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#include "train/kernels_template.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
