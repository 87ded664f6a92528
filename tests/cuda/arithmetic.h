/* arithmetic.h - launches of the arithmetic tests; counters and examples are in device memory. */
#ifndef ARITHMETIC_H
#define ARITHMETIC_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Roots of all floats from first_bits to last_bits that are not the IEEE root. */
cudaError_t test_roots(uint32_t first_bits, uint32_t last_bits, unsigned long long *wrong);
/* The hardest quotients of every divisor; example receives a wrong dividend and its divisor. */
cudaError_t test_hard_quotients(unsigned long long *wrong, unsigned long long *tested, float *example);
/* 262,144 x rounds random quotients. */
cudaError_t test_random_quotients(uint32_t seed, int rounds, unsigned long long *wrong, float *example);
/* 3 / scale for all 32,768 scale words without a sign. */
cudaError_t test_inverses(uint32_t *bits);

#ifdef __cplusplus
}
#endif

#endif
