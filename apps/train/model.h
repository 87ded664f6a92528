// What the training loop knows of a model.
#ifndef STQUANT_TRAIN_MODEL_H
#define STQUANT_TRAIN_MODEL_H

#include <stdint.h>

#include "train/failure.h"
#include "train/parameters.h"
#include "train/quantizer.h"

// One batch, filled by a batch source (data.h): of tokens or of images.
struct batch {
    int64_t examples;       // B
    int64_t length;         // T, tokens of an example; 0 for images
    const int32_t *inputs;  // (B, T)
    const int32_t *targets; // (B, T): the token that follows each input; for images (B), their classes
    const float *images;    // (B, channels, rows, columns), or null
    int64_t position;       // of a training batch: what random choices of the model are counted by
};

struct model;

// Told that the gradients of tensors first to first + count - 1 are complete while the backward pass goes on, so that
// ranks can begin to sum them.
struct gradient_watch {
    void (*ready)(void *context, int first, int count); // or null
    void *context;
};

struct model_operations {
    // Adds to the gradients those of factor x (mean loss of the batch); *loss = the mean loss in nats.
    enum app_status (*forward_backward)(struct model *model, const struct batch *batch, float factor, double *loss);
    // *loss = the mean loss in nats; gradients stay as they are.
    enum app_status (*evaluate)(struct model *model, const struct batch *batch, double *loss);
    void (*destroy)(struct model *model);
};

// The first member of every model.
struct model {
    const struct model_operations *operations;
    struct parameter_set parameters;
    int64_t activation_bytes; // of the arena
    struct gradient_watch watch;
    struct quantizer quantizer; // no layers where the weights are used as they are
    int64_t correct;            // examples of the last evaluation whose likeliest class was theirs; -1 where the
                                // model knows no classes
};

static inline void model_gradients_ready(const struct model *model, int first, int count) {
    if (model->watch.ready) {
        model->watch.ready(model->watch.context, first, count);
    }
}

#endif
