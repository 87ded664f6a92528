// 100 steps of the library's AdamW with float32 states on counter-generated gradients, for a comparison:
//     dump_adamw LEARNING_RATE BETA1 BETA2 EPSILON WEIGHT_DECAY CLIP SEED FILE
// The file holds float32 numbers without a header: the parameters of all tensors, and then for each step
// the gradients and the parameters after the step. Shapes: (48, 64), (1, 100), (300, 20). The learning rate
// of step t is LEARNING_RATE / (1 + t / 50).
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <stquant/adamw.h>

#include "train/random.h"

enum { TENSORS = 3, STEPS = 100 };

static const struct {
    const char *name;
    int64_t rows, cols;
} shapes[TENSORS] = {{"a", 48, 64}, {"b", 1, 100}, {"c", 300, 20}};

// Gradients as training has them: scales that differ between tensors and elements and change over
// time, with zeros in between.
static void fill_gradients(float *values, int64_t count, uint64_t seed, int tensor, int step) {
    random_normal_fill(values, count, 1, seed, (uint64_t)(1000 * (step + 1) + tensor));
    for (int64_t i = 0; i < count; i++) {
        double scale = pow(10, -3 + 4 * random_uniform(seed, 7, (uint64_t)i)) / (1 + 0.1 * step) / (1 + tensor);
        values[i] = random_below(seed, 8, (uint64_t)(i + step), 10) == 0 ? 0 : values[i] * (float)scale;
    }
}

static int write_all(FILE *file, float *const *tensors) {
    int written = 1;
    for (int i = 0; i < TENSORS; i++) {
        size_t count = (size_t)(shapes[i].rows * shapes[i].cols);
        written &= fwrite(tensors[i], sizeof(float), count, file) == count;
    }
    return written;
}

static int run(stq_adamw *optimizer, stq_adamw_group group, double clip, uint64_t seed, FILE *file,
               float *const *values, float *const *gradients) {
    const double highest = group.learning_rate;
    int good = write_all(file, values);
    for (int t = 0; t < STEPS && good; t++) {
        for (int i = 0; i < TENSORS; i++) {
            fill_gradients(gradients[i], shapes[i].rows * shapes[i].cols, seed, i, t);
        }
        group.learning_rate = highest / (1 + t / 50.0);
        stq_step step = {.size = sizeof(step),
                         .parameters = (void *const *)values,
                         .gradients = (const void *const *)gradients,
                         .unscale = 1,
                         .max_gradient_norm = clip};
        good = stq_adamw_set_group(optimizer, 0, &group) == STQ_OK &&
               stq_adamw_step(optimizer, &step, NULL) == STQ_OK && write_all(file, gradients) &&
               write_all(file, values);
    }
    return good;
}

int main(int argc, char **argv) {
    double numbers[6];
    if (argc != 9) {
        fprintf(stderr, "usage: dump_adamw LEARNING_RATE BETA1 BETA2 EPSILON WEIGHT_DECAY CLIP SEED FILE\n");
        return 2;
    }
    for (int i = 0; i < 6; i++) {
        numbers[i] = atof(argv[i + 1]);
    }
    const uint64_t seed = (uint64_t)atoll(argv[7]);
    stq_adamw_group group = {.learning_rate = numbers[0],
                             .beta1 = numbers[1],
                             .beta2 = numbers[2],
                             .epsilon = numbers[3],
                             .weight_decay = numbers[4]};
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = STQ_POLICY_FLOAT32;
    config.groups = &group;
    config.group_count = 1;
    stq_tensor tensors[TENSORS];
    float *values[TENSORS], *gradients[TENSORS];
    for (int i = 0; i < TENSORS; i++) {
        const int64_t count = shapes[i].rows * shapes[i].cols;
        tensors[i] = stq_tensor_whole(shapes[i].name, shapes[i].rows, shapes[i].cols);
        values[i] = malloc((size_t)count * sizeof(float));
        gradients[i] = malloc((size_t)count * sizeof(float));
        random_normal_fill(values[i], count, i == 0 ? 1 : 0.02, seed, (uint64_t)i);
    }
    stq_adamw *optimizer;
    if (stq_adamw_create(&optimizer, &config, tensors, TENSORS) != STQ_OK) {
        fprintf(stderr, "%s\n", stq_last_error());
        return 1;
    }
    FILE *file = fopen(argv[8], "wb");
    int good = file && run(optimizer, group, numbers[5], seed, file, values, gradients);
    if (!good) {
        fprintf(stderr, "dump_adamw: %s\n", stq_last_error());
    }
    good &= file && fclose(file) == 0;
    stq_adamw_destroy(optimizer);
    for (int i = 0; i < TENSORS; i++) {
        free(values[i]);
        free(gradients[i]);
    }
    return !good;
}
