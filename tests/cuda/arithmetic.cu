/* arithmetic.cu - the short square root and quotient against the compiler's IEEE operations, on the device's own
 * approximations. */
#include "arithmetic.h"

#include "cuda/plain.cuh"

static __global__ void root_kernel(uint32_t first, uint32_t end, unsigned long long *wrong) {
    uint64_t stride = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t bits = first + (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; bits <= end; bits += stride) {
        float v = stq_bits_float((uint32_t)bits);
        if (stq_float_bits(stq_exact_root(v, plain_root_reciprocal(v))) != stq_float_bits(__fsqrt_rn(v)))
            atomicAdd(wrong, 1ull);
    }
}

static __device__ void check_quotient(float n, float d, unsigned long long *wrong, float *example) {
    if (stq_float_bits(stq_exact_quotient(n, d, plain_reciprocal(d))) != stq_float_bits(__fdiv_rn(n, d))) {
        atomicAdd(wrong, 1ull);
        example[0] = n;
        example[1] = d;
    }
}

/*
 * All divisors of one binade with the dividends whose quotients come closest to the middle between two floats: n 2^t =
 * q d + c with odd q of 25 bits and |c| < 10. Other quotients are further from a middle than the short form's error
 * reaches (docs/cuda.md), so that this is a proof for every divisor and dividend whose exponents are in range.
 */
static __global__ void hard_kernel(unsigned long long *wrong, unsigned long long *tested, float *example) {
    uint64_t stride = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t d = (1u << 23) + (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; d < 1u << 24; d += stride) {
        int zeros = __ffsll((long long)d) - 1;
        uint64_t odd = d >> zeros, inverse = odd;
        for (int i = 0; i < 6; i++)
            inverse *= 2 - odd * inverse;
        for (int t = 24; t <= 25; t++)
            for (int64_t c = -9; c <= 9; c += 2) {
                uint64_t modulus = 1ull << (t - zeros);
                uint64_t q = (uint64_t)-c * inverse & (modulus - 1);
                if (q < 1u << 24)
                    q += ((1u << 24) - q + modulus - 1) / modulus * modulus;
                for (; q < 1u << 25; q += modulus) {
                    int64_t n = (int64_t)(q * d) + c * (1ll << zeros);
                    if (n & ((1ll << t) - 1) || n >> t < 1 << 23 || n >> t >= 1 << 24)
                        continue;
                    atomicAdd(tested, 1ull);
                    check_quotient(stq_bits_float(127u << 23 | ((uint32_t)(n >> t) & 0x7fffffu)),
                                   stq_bits_float(127u << 23 | ((uint32_t)d & 0x7fffffu)), wrong, example);
                    if (modulus < 1u << 20)
                        break;
                }
            }
    }
}

/* Random operands over the whole ranges that exact.h names, zeros among the dividends. */
static __global__ void random_kernel(uint32_t seed, int rounds, unsigned long long *wrong, float *example) {
    uint32_t key = stq_hash(seed + blockIdx.x * blockDim.x + threadIdx.x);
    for (int i = 0; i < rounds; i++) {
        uint32_t a = stq_hash(key + 2 * i), b = stq_hash(key ^ (2 * i + 1));
        uint32_t exponent_n = 25 + stq_hash(a) % 164, exponent_d = 67 + stq_hash(b) % 120;
        float n = stq_bits_float((a & 0x807fffffu) | exponent_n << 23);
        float d = stq_bits_float((b & 0x7fffffu) | exponent_d << 23);
        /* As in a step: the quotient is no subnormal and the dividend at least 2^-97 where the divisor is large. */
        if (exponent_n + 127 < exponent_d + 4 || exponent_n + 127 > exponent_d + 250)
            continue;
        check_quotient(n, d, wrong, example);
    }
}

static __global__ void inverse_kernel(uint32_t *bits) {
    uint32_t word = blockIdx.x * blockDim.x + threadIdx.x;
    float scale = stq_m_scale(word);
    bits[word] = stq_float_bits(stq_exact_quotient(3.0f, scale, plain_reciprocal(scale)));
}

cudaError_t test_roots(uint32_t first_bits, uint32_t last_bits, unsigned long long *wrong) {
    root_kernel<<<1024, 256>>>(first_bits, last_bits, wrong);
    return cudaGetLastError();
}

cudaError_t test_hard_quotients(unsigned long long *wrong, unsigned long long *tested, float *example) {
    hard_kernel<<<1024, 256>>>(wrong, tested, example);
    return cudaGetLastError();
}

cudaError_t test_random_quotients(uint32_t seed, int rounds, unsigned long long *wrong, float *example) {
    random_kernel<<<1024, 256>>>(seed, rounds, wrong, example);
    return cudaGetLastError();
}

cudaError_t test_inverses(uint32_t *bits) {
    inverse_kernel<<<128, 256>>>(bits);
    return cudaGetLastError();
}
