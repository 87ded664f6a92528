/* testing.h - what the unit tests share: cmocka, printed seeds, counter-based inputs. */
#ifndef STQ_TESTING_H
#define STQ_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/codec.h"
#include <stquant/stquant.h>

/* True when slow tests shall run at full counts (make check-long). */
static inline bool test_is_long(void) { return getenv("STQUANT_LONG") != NULL; }

/* Uniform in (0, 1), from a counter: the same on every machine. */
static inline double test_uniform(uint32_t seed, uint32_t counter) {
    return ((double)stq_hash(stq_hash(seed) ^ counter * 0x9e3779b9u) + 0.5) / 4294967296.0;
}

/* About Gaussian, standard deviation 1 (four uniforms of 16 bits): exact arithmetic only, so reproducible everywhere.
 */
static inline float test_gaussian(uint32_t seed, uint32_t counter) {
    uint32_t a = stq_hash(stq_hash(seed) ^ counter * 0x9e3779b9u);
    uint32_t b = stq_hash(a + 0x85ebca6bu);
    int32_t sum = (int32_t)((a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16)) - 2 * 65535;
    return (float)sum * 2.643e-5f; /* sqrt(3) / 65536 */
}

/* Planes of `count` values on the heap, filled with 0xa5 so that unwritten bytes show. */
static inline stq_planes test_planes(int64_t count, uint32_t bits) {
    stq_planes planes = {.bits = bits};
    for (uint32_t k = 0; k < stq_plane_count(bits); k++) {
        uint8_t *plane = malloc(stq_plane_bytes(count, bits, k));
        memset(plane, 0xa5, stq_plane_bytes(count, bits, k));
        if (k == 0)
            planes.base = plane;
        else
            planes.bit[k - 1] = plane;
    }
    planes.scales = malloc((size_t)stq_block_count(count) * sizeof(uint16_t));
    return planes;
}

static inline void test_planes_free(stq_planes *planes) {
    free(planes->base);
    for (int k = 0; k < 4; k++)
        free(planes->bit[k]);
    free(planes->scales);
}

#endif
