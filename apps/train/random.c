#include "train/random.h"

#include <math.h>

// The finaliser of MurmurHash3 with the constants of Stafford's variant 13, as in SplitMix64.
static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
    const uint64_t golden = UINT64_C(0x9e3779b97f4a7c15);
    uint64_t key = mix(mix(seed + golden) + (stream + 1) * golden);
    return mix(key + (index + 1) * golden);
}

double random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (double)(random_bits(seed, stream, index) >> 11) * 0x1p-53;
}

uint64_t random_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound) {
    return (uint64_t)(((unsigned __int128)random_bits(seed, stream, index) * bound) >> 64);
}

void random_normal_fill(float *values, int64_t count, double deviation, uint64_t seed, uint64_t stream) {
    const double two_pi = 6.283185307179586;
#pragma omp parallel for schedule(static)
    for (int64_t pair = 0; pair < (count + 1) / 2; pair++) { // Box-Muller: two uniforms, two normals
        double radius = sqrt(-2.0 * log(1.0 - random_uniform(seed, stream, 2 * (uint64_t)pair)));
        double angle = two_pi * random_uniform(seed, stream, 2 * (uint64_t)pair + 1);
        values[2 * pair] = (float)(deviation * radius * cos(angle));
        if (2 * pair + 1 < count) {
            values[2 * pair + 1] = (float)(deviation * radius * sin(angle));
        }
    }
}
