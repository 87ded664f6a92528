#include "train/dropout.h"

#include "train/random.h"

void dropout_apply(const struct compute *compute, const struct dropout *dropout, float *x, int64_t count) {
    if (dropout->rate <= 0) {
        return;
    }
    // 16 bits decide about a value: the rate is met within 2^-17.
    const uint64_t limit = (uint64_t)(dropout->rate * 65536 + 0.5);
    const float factor = (float)(1 / (1 - (double)limit / 65536));
#pragma omp parallel for schedule(static) num_threads(compute->threads)
    for (int64_t four = 0; four < (count + 3) / 4; four++) {
        uint64_t bits = random_bits(dropout->seed, dropout->stream, (uint64_t)four);
        const int64_t end = 4 * four + 4 < count ? 4 * four + 4 : count;
        for (int64_t i = 4 * four; i < end; i++, bits >>= 16) {
            x[i] = (bits & 0xffff) < limit ? 0 : x[i] * factor;
        }
    }
}
