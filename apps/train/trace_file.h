// Reads traces back as samples for the selection of factors. docs/trace.md describes the file.
#ifndef STQUANT_TRAIN_TRACE_FILE_H
#define STQUANT_TRAIN_TRACE_FILE_H

#include <stddef.h>

#include "train/failure.h"

enum trace_states { TRACE_M = 1, TRACE_V = 2, TRACE_BOTH = 3 };

// Factors of a sample, in this order.
enum {
    TRACE_MAGNITUDE, // log of n over its average over the tensors of the decision, weighted by elements
    TRACE_COMPLEXITY,
    TRACE_SHARPNESS,
    TRACE_KURTOSIS,
    TRACE_ROW_SPREAD,
    TRACE_NEAR_ZERO,
    TRACE_VOLATILITY,
    TRACE_DEPTH,
    TRACE_STATE, // 0 for m, 1 for v
    TRACE_RANGE, // octaves of the state inside a block
    TRACE_FACTORS
};

// "n", "r", "sharpness", ...
const char *trace_factor_name(int factor);

struct trace_samples {
    double *factors; // (count, TRACE_FACTORS)
    double *target;  // (count): log of the relative error of the update
    size_t count, capacity;
};

// Adds the samples of a file: for every decision, tensor and asked-for state one with the error of coding at `bits`.
// Decisions without errors (the first of a run) are left out. APP_FAILED with a sentence that names file and line when
// the file cannot be read, is of another version, truncated, or has values that are missing or not finite.
enum app_status trace_samples_add(struct trace_samples *samples, const char *path, int states, int bits);

void trace_samples_release(struct trace_samples *samples);

#endif
