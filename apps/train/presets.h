// The models that the command knows by name.
#ifndef STQUANT_TRAIN_PRESETS_H
#define STQUANT_TRAIN_PRESETS_H

#include <stdint.h>

#include "train/gpt2.h"

struct preset {
    const char *name;
    const char *purpose; // one line for the help text
    struct gpt2_config gpt2;
    // What a run uses where nothing else is asked for.
    int64_t steps, batch, sequence_length, warmup;
    double learning_rate, weight_decay, beta2;
};

// The preset of that name, or null.
const struct preset *preset_find(const char *name);

// Preset number `index`, from 0; null after the last one.
const struct preset *preset_at(int index);

// "tiny, small, 124m, ...".
const char *preset_names(void);

#endif
