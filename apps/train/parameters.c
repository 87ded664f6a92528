#include "train/parameters.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/memory.h"
#include "train/random.h"

int parameters_add(struct parameter_set *set, const char *name, int64_t rows, int64_t cols, int dimensions,
                   double deviation, float initial) {
    if (set->count == set->capacity) {
        int capacity = set->capacity ? 2 * set->capacity : 64;
        struct parameter *list = realloc(set->list, (size_t)capacity * sizeof(*list));
        if (!list) {
            return -1;
        }
        set->list = list;
        set->capacity = capacity;
    }
    struct parameter *parameter = &set->list[set->count];
    *parameter = (struct parameter){.rows = rows,
                                    .cols = cols,
                                    .dimensions = dimensions,
                                    .deviation = deviation,
                                    .initial = initial,
                                    .offset = set->padded};
    snprintf(parameter->name, sizeof(parameter->name), "%s", name);
    set->elements += rows * cols;
    set->padded += (rows * cols + 15) / 16 * 16;
    return set->count++;
}

static void fill_constant(float *values, int64_t count, float value) {
    for (int64_t i = 0; i < count; i++) {
        values[i] = value;
    }
}

enum app_status parameters_allocate(struct parameter_set *set, uint64_t seed) {
    set->values = memory_pages(set->padded);
    set->gradients = memory_pages(set->padded);
    if (!set->values || !set->gradients) {
        return app_fail(APP_FAILED,
                        "There is no memory for %lld parameters and their gradients; choose a smaller model.",
                        (long long)set->elements);
    }
    parameters_clear_gradients(set);
    memset(set->values, 0, (size_t)set->padded * sizeof(float));
    for (int i = 0; i < set->count; i++) {
        struct parameter *parameter = &set->list[i];
        int64_t count = parameter->rows * parameter->cols;
        parameter->values = set->values + parameter->offset;
        parameter->gradients = set->gradients + parameter->offset;
        if (parameter->deviation > 0) {
            random_normal_fill(parameter->values, count, parameter->deviation, seed, RANDOM_PARAMETERS + (uint64_t)i);
        } else {
            fill_constant(parameter->values, count, parameter->initial);
        }
    }
    return APP_OK;
}

struct parameter *parameters_find(const struct parameter_set *set, const char *name) {
    for (int i = 0; i < set->count; i++) {
        if (strcmp(set->list[i].name, name) == 0) {
            return &set->list[i];
        }
    }
    return NULL;
}

void parameters_clear_gradients(struct parameter_set *set) {
    // Each thread touches the part that it will use, and pages are zeroed in parallel.
    const int64_t chunk = 1 << 16;
#pragma omp parallel for schedule(static)
    for (int64_t start = 0; start < set->padded; start += chunk) {
        int64_t count = set->padded - start < chunk ? set->padded - start : chunk;
        memset(set->gradients + start, 0, (size_t)count * sizeof(float));
    }
}

void parameters_release(struct parameter_set *set) {
    free(set->list);
    free(set->values);
    free(set->gradients);
    *set = (struct parameter_set){0};
}
