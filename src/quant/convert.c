/* convert.c - runs of 16-bit floats. */
#include "quant/convert.h"

const float *stq_float_run(const void *array, uint32_t dtype, int64_t first, int64_t count, float *buffer) {
    if (dtype == STQ_FLOAT32)
        return (const float *)array + first;
    const uint16_t *halves = (const uint16_t *)array + first;
    if (dtype == STQ_BFLOAT16)
        for (int64_t i = 0; i < count; i++)
            buffer[i] = stq_from_bfloat16(halves[i]);
    else
        for (int64_t i = 0; i < count; i++)
            buffer[i] = stq_from_float16(halves[i]);
    return buffer;
}
