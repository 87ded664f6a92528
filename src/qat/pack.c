/* pack.c - the exported form of fake-quantized weights: codes without gaps, and back. */
#include <stquant/qat.h>
#include <string.h>

#include "common/error.h"
#include "common/float_mode.h"
#include "qat/backend.h"
#include "qat/kernels.h"
#include "quant/convert.h"

enum { RUN = 1024 };

uint64_t stq_qat_packed_bytes(const stq_qat_config *config, int64_t rows, int64_t cols) {
    return ((uint64_t)rows * (uint64_t)cols * config->bits + 7) / 8;
}

/* ORs one code into the stream; a code touches at most two bytes. */
static void put(uint8_t *packed, uint64_t index, uint32_t bits, uint32_t code) {
    uint64_t at = index * bits;
    uint32_t shifted = code << (at & 7);
    packed[at >> 3] |= (uint8_t)shifted;
    if (shifted >> 8)
        packed[(at >> 3) + 1] |= (uint8_t)(shifted >> 8);
}

static uint32_t get(const uint8_t *packed, uint64_t index, uint32_t bits) {
    uint64_t at = index * bits;
    uint32_t pair = packed[at >> 3];
    if ((at & 7) + bits > 8)
        pair |= (uint32_t)packed[(at >> 3) + 1] << 8;
    return pair >> (at & 7) & ((1u << bits) - 1);
}

static stq_status check(const stq_qat_config *config, int64_t rows, int64_t cols, bool pointers) {
    STQ_CHECK(stq_qat_check(config, cols));
    STQ_CHECK(stq_qat_on_host(config));
    if (rows < 1 || !pointers)
        return stq_error(STQ_INVALID_ARGUMENT, "Packing needs at least one row, codes, steps and weights.");
    return STQ_OK;
}

/* In our floating-point mode. */
static __attribute__((noinline)) void pack_group(uint8_t *packed, uint32_t bits, const void *weights, stq_dtype dtype,
                                                 int64_t first, int64_t group, float step) {
    const stq_qat_rule rule = stq_qat_range(bits);
    for (int64_t at = 0; at < group; at += RUN) {
        float run[RUN];
        uint8_t codes[RUN];
        int64_t count = group - at < RUN ? group - at : RUN;
        const float *from = stq_float_run(weights, dtype, first + at, count, run);
        stq_qat_select_kernels()->code(codes, from, stq_qat_usable_step(step), &rule, count);
        for (int64_t i = 0; i < count; i++)
            put(packed, (uint64_t)(first + at + i), bits, codes[i]);
    }
}

static __attribute__((noinline)) void unpack_group(float *quantized, uint32_t bits, const uint8_t *packed,
                                                   int64_t first, int64_t group, float step) {
    const float lowest = stq_qat_range(bits).lowest;
    for (int64_t i = first; i < first + group; i++)
        quantized[i] = stq_qat_usable_step(step) * ((float)get(packed, (uint64_t)i, bits) + lowest);
}

stq_status stq_qat_pack(uint8_t *packed, const stq_qat_config *config, const void *weights, const float *steps,
                        stq_dtype dtype, int64_t rows, int64_t cols) {
    STQ_CHECK(check(config, rows, cols, packed && weights && steps && stq_is_float_type(dtype)));
    memset(packed, 0, (size_t)stq_qat_packed_bytes(config, rows, cols));
    int64_t group = stq_qat_group(config, cols);
    uint64_t mode = stq_float_mode_set();
    for (int64_t first = 0; first < rows * cols; first += group)
        pack_group(packed, config->bits, weights, dtype, first, group, steps[first / group]);
    stq_float_mode_restore(mode);
    return STQ_OK;
}

stq_status stq_qat_unpack(float *quantized, const stq_qat_config *config, const uint8_t *packed, const float *steps,
                          int64_t rows, int64_t cols) {
    STQ_CHECK(check(config, rows, cols, packed && quantized && steps));
    int64_t group = stq_qat_group(config, cols);
    uint64_t mode = stq_float_mode_set();
    for (int64_t first = 0; first < rows * cols; first += group)
        unpack_group(quantized, config->bits, packed, first, group, steps[first / group]);
    stq_float_mode_restore(mode);
    return STQ_OK;
}
