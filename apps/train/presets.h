// The models that the command knows by name.
#ifndef STQUANT_TRAIN_PRESETS_H
#define STQUANT_TRAIN_PRESETS_H

#include <stdint.h>

#include "train/gpt2.h"
#include "train/vit.h"

// What a run uses where nothing else is asked for.
struct train_preset {
    int64_t steps, batch, warmup;
    double learning_rate, weight_decay, beta2;
};

struct preset {
    const char *name;
    struct gpt2_config gpt2;
    int64_t sequence_length;
    struct train_preset train;
};

struct vit_preset {
    const char *name;
    struct vit_config vit; // the sizes of the images are those of the data
    struct train_preset train;
};

// The Vision Transformer of that name, or null.
const struct vit_preset *vit_preset_find(const char *name);

// The preset of that name, or null.
const struct preset *preset_find(const char *name);

// "tiny, small, 124m, ...".
const char *preset_names(void);

#endif
