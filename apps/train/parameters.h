// The parameters of a model: named tensors in one flat buffer of values and one flat buffer of
// gradients of the same layout.
#ifndef STQUANT_TRAIN_PARAMETERS_H
#define STQUANT_TRAIN_PARAMETERS_H

#include <stdint.h>

#include "train/failure.h"

struct parameter {
    char name[48];    // as in Hugging Face's safetensors files of the model
    int64_t rows;     // 1 for a vector
    int64_t cols;     // elements of a row; storage is row-major without gaps
    int dimensions;   // 1 or 2
    int is_steps;     // 1: steps of a quantized weight (quantizer.h)
    int64_t offset;   // of the first element in the flat buffers, a multiple of 16 (one cache line)
    double deviation; // of the normal initialisation; 0 fills with `initial`
    float initial;    // when deviation is 0
    float *values;    // set once the buffers exist
    float *gradients; // the same place in the other buffer
};

struct parameter_set {
    struct parameter *list;
    int count;
    int capacity;
    int64_t elements; // the sum over the tensors, without padding
    int64_t padded;   // length of each flat buffer in elements
    float *values;    // owned; null until allocated
    float *gradients; // owned
};

// Appends a tensor. Returns its index, or -1 without memory. Only before parameters_allocate.
int parameters_add(struct parameter_set *set, const char *name, int64_t rows, int64_t cols, int dimensions,
                   double deviation, float initial);

// Allocates both flat buffers (gradients zeroed) and fills the values from the counter-based
// generator: the same for every thread count.
enum app_status parameters_allocate(struct parameter_set *set, uint64_t seed);

// The tensor of that name, or null.
struct parameter *parameters_find(const struct parameter_set *set, const char *name);

// Sets every gradient to zero.
void parameters_clear_gradients(struct parameter_set *set);

void parameters_release(struct parameter_set *set);

#endif
