/* array.c - descriptions of arrays, which need no library. */
#include <stquant/checkpoint.h>
#include <string.h>

stq_array stq_array_whole(const char *name, stq_dtype type, uint32_t dimensions, const int64_t *shape, void *data) {
    stq_array array = {.name = name, .type = type, .dimensions = dimensions, .count = 1, .data = data};
    for (uint32_t k = 0; k < dimensions && k < STQ_DIMENSIONS; k++) {
        array.shape[k] = shape[k];
        array.count *= shape[k];
    }
    return array;
}
