// Dropout (Srivastava et al., 2014): in training each value is set to 0 with probability `rate`, and what stays is
// divided by 1 - rate. The mask is counted, not stored: the backward pass makes it once more.
#ifndef STQUANT_TRAIN_DROPOUT_H
#define STQUANT_TRAIN_DROPOUT_H

#include <stdint.h>

#include "train/layers.h"

struct dropout {
    double rate;           // in [0, 1); 0 changes nothing
    uint64_t seed, stream; // which mask
};

// x (count): values in the forward pass, their gradients in the backward pass.
void dropout_apply(const struct compute *compute, const struct dropout *dropout, float *x, int64_t count);

#endif
