// What TensorBoard gets to see of a run.
#ifndef STQUANT_TRAIN_TENSORBOARD_H
#define STQUANT_TRAIN_TENSORBOARD_H

#include <stdint.h>

#include "train/event_file.h"
#include "train/optimizer.h"
#include "train/parameters.h"

// One step. Numbers that a step does not have are NaN.
struct tensorboard_step {
    int64_t step;
    double train_loss, validation_loss, validation_top1, learning_rate, gradient_norm;
    double per_second;
    const char *unit; // of per_second: "tokens" or "images"
    double state_bytes, peak_bytes, bits;
    int decided; // widths were decided: those of every tensor are written, and histograms
};

// Writes the scalars of a step and, at decisions and validations, histograms of gradients and parameters and the widths
// of every tensor. `file` may be null: nothing is written then.
enum app_status tensorboard_write(struct event_file *file, const struct tensorboard_step *step,
                                  const struct optimizer *optimizer, const struct parameter_set *parameters);

#endif
