#include "train/presets.h"

#include <stdio.h>
#include <string.h>

static const struct preset presets[] = {
    {.name = "tiny",
     .gpt2 = {.layers = 4, .width = 128, .heads = 4, .context = 128, .vocabulary = 256},
     .sequence_length = 128,
     .train = {.steps = 1500, .batch = 16, .warmup = 50, .learning_rate = 5.6e-3, .weight_decay = 0.1, .beta2 = 0.99}},
    {.name = "small",
     .gpt2 = {.layers = 6, .width = 256, .heads = 4, .context = 256, .vocabulary = 256},
     .sequence_length = 256,
     .train = {.steps = 3000, .batch = 8, .warmup = 100, .learning_rate = 1e-3, .weight_decay = 0.1, .beta2 = 0.99}},
    {.name = "124m",
     .gpt2 = {.layers = 12, .width = 768, .heads = 12, .context = 1024, .vocabulary = 50257},
     .sequence_length = 1024,
     .train = {.steps = 10000, .batch = 8, .warmup = 500, .learning_rate = 6e-4, .weight_decay = 0.1, .beta2 = 0.95}},
    {.name = "355m",
     .gpt2 = {.layers = 24, .width = 1024, .heads = 16, .context = 1024, .vocabulary = 50257},
     .sequence_length = 1024,
     .train = {.steps = 10000, .batch = 8, .warmup = 500, .learning_rate = 3e-4, .weight_decay = 0.1, .beta2 = 0.95}},
    {.name = "774m",
     .gpt2 = {.layers = 36, .width = 1280, .heads = 20, .context = 1024, .vocabulary = 50257},
     .sequence_length = 1024,
     .train = {.steps = 10000, .batch = 8, .warmup = 500, .learning_rate = 2.5e-4, .weight_decay = 0.1, .beta2 = 0.95}},
    {.name = "1.5b",
     .gpt2 = {.layers = 48, .width = 1600, .heads = 25, .context = 1024, .vocabulary = 50257},
     .sequence_length = 1024,
     .train = {.steps = 10000, .batch = 8, .warmup = 500, .learning_rate = 2e-4, .weight_decay = 0.1, .beta2 = 0.95}},
};

enum { COUNT = sizeof(presets) / sizeof(presets[0]) };

const struct preset *preset_find(const char *name) {
    for (int i = 0; i < COUNT; i++) {
        if (strcmp(presets[i].name, name) == 0) {
            return &presets[i];
        }
    }
    return NULL;
}

const char *preset_names(void) {
    static char names[128];
    if (names[0] == 0) {
        for (int i = 0; i < COUNT; i++) {
            size_t length = strlen(names);
            snprintf(names + length, sizeof(names) - length, "%s%s", i ? ", " : "", presets[i].name);
        }
    }
    return names;
}

static const struct vit_preset vit_presets[] = {
    {.name = "tiny",
     .vit = {.layers = 4, .width = 96, .heads = 4, .patch = 4, .classes = 10},
     .train =
         {.steps = 6000, .batch = 128, .warmup = 200, .learning_rate = 2e-3, .weight_decay = 0.05, .beta2 = 0.999}},
    {.name = "small",
     .vit = {.layers = 12, .width = 384, .heads = 6, .patch = 4, .classes = 10},
     .train =
         {.steps = 20000, .batch = 128, .warmup = 1000, .learning_rate = 5e-4, .weight_decay = 0.05, .beta2 = 0.999}},
    {.name = "base",
     .vit = {.layers = 12, .width = 768, .heads = 12, .patch = 4, .classes = 10},
     .train =
         {.steps = 20000, .batch = 128, .warmup = 1000, .learning_rate = 3e-4, .weight_decay = 0.05, .beta2 = 0.999}},
};

const struct vit_preset *vit_preset_find(const char *name) {
    for (size_t i = 0; i < sizeof(vit_presets) / sizeof(vit_presets[0]); i++) {
        if (strcmp(vit_presets[i].name, name) == 0) {
            return &vit_presets[i];
        }
    }
    return NULL;
}
