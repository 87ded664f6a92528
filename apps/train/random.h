// Counter-based random numbers: every number is a function of (seed, stream, index) alone, so that
// results depend neither on the number of threads nor on the order of calls, and a run can resume
// at any position.
#ifndef STQUANT_TRAIN_RANDOM_H
#define STQUANT_TRAIN_RANDOM_H

#include <stdint.h>

// Streams keep uses of one seed apart. Parameter tensor i draws from RANDOM_PARAMETERS + i.
enum {
    RANDOM_BATCHES = 1,
    RANDOM_SAMPLES = 2,
    RANDOM_SHUFFLE = 3,
    RANDOM_AUGMENTATION = 4,
    RANDOM_PARAMETERS = 1 << 16,
};

// Dropout takes streams from here on, several for each batch.
#define RANDOM_DROPOUT (UINT64_C(1) << 62)

// 64 uniform bits.
uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index);

// Uniform in [0, 1), 53 bits.
double random_uniform(uint64_t seed, uint64_t stream, uint64_t index);

// Uniform integer in [0, bound); bound > 0. The bias is below bound / 2^64.
uint64_t random_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound);

// values[i] = mean 0, standard deviation `deviation`, normal; i in [0, count). Parallel.
void random_normal_fill(float *values, int64_t count, double deviation, uint64_t seed, uint64_t stream);

#endif
