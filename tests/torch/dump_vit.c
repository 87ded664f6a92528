// Runs a small Vision Transformer's forward and backward pass on counter-generated images and writes everything that a
// comparison needs to a file:
//     dump_vit LAYERS WIDTH HEADS PATCH CHANNELS ROWS COLUMNS CLASSES IMAGES SEED FILE
// The file has a line "loss L", a line "correct N", a line "name rows cols" for each tensor, an empty line, and then
// the images (images, channels, rows, columns) as float32, their classes as int32, all values and all gradients as
// float32.
#include <stdio.h>
#include <stdlib.h>

#include "train/random.h"
#include "train/vit.h"

enum { NUMBERS = 10 };

// Initial gains of 1 and biases of 0 would hide errors: everything gets noise.
static void disturb(struct parameter_set *set, uint64_t seed) {
    for (int i = 0; i < set->count; i++) {
        struct parameter *parameter = &set->list[i];
        for (int64_t j = 0; j < parameter->rows * parameter->cols; j++) {
            parameter->values[j] += (float)(0.2 * (random_uniform(seed + 1, (uint64_t)i, (uint64_t)j) - 0.5));
        }
    }
}

static int write_file(const char *path, const struct model *model, const struct batch *batch, int64_t pixels,
                      double loss) {
    const struct parameter_set *set = &model->parameters;
    FILE *file = fopen(path, "wb");
    if (!file) {
        perror(path);
        return 1;
    }
    fprintf(file, "loss %.17g\ncorrect %lld\n", loss, (long long)model->correct);
    for (int i = 0; i < set->count; i++) {
        fprintf(file, "%s %lld %lld\n", set->list[i].name, (long long)set->list[i].rows, (long long)set->list[i].cols);
    }
    fprintf(file, "\n");
    fwrite(batch->images, sizeof(float), (size_t)pixels, file);
    fwrite(batch->targets, sizeof(int32_t), (size_t)batch->examples, file);
    for (int i = 0; i < set->count; i++) {
        fwrite(set->list[i].values, sizeof(float), (size_t)(set->list[i].rows * set->list[i].cols), file);
    }
    for (int i = 0; i < set->count; i++) {
        fwrite(set->list[i].gradients, sizeof(float), (size_t)(set->list[i].rows * set->list[i].cols), file);
    }
    return ferror(file) | fclose(file);
}

int main(int argc, char **argv) {
    long long numbers[NUMBERS];
    if (argc != NUMBERS + 2) {
        fprintf(stderr, "usage: dump_vit LAYERS WIDTH HEADS PATCH CHANNELS ROWS COLUMNS CLASSES IMAGES SEED FILE\n");
        return 2;
    }
    for (int i = 0; i < NUMBERS; i++) {
        numbers[i] = atoll(argv[i + 1]);
    }
    struct vit_config config = {.layers = numbers[0],
                                .width = numbers[1],
                                .heads = numbers[2],
                                .patch = numbers[3],
                                .channels = numbers[4],
                                .rows = numbers[5],
                                .columns = numbers[6],
                                .classes = numbers[7]};
    const int64_t images = numbers[8], pixels = images * config.channels * config.rows * config.columns;
    const uint64_t seed = (uint64_t)numbers[9];
    struct model *model;
    if (vit_create(&config, images, 2, seed, &model) != APP_OK) {
        fprintf(stderr, "%s\n", app_failure());
        return 1;
    }
    disturb(&model->parameters, seed);
    float *values = malloc((size_t)pixels * sizeof(*values));
    int32_t *labels = malloc((size_t)images * sizeof(*labels));
    random_normal_fill(values, pixels, 1, seed, 98);
    for (int64_t i = 0; i < images; i++) {
        labels[i] = (int32_t)random_below(seed, 99, (uint64_t)i, (uint64_t)config.classes);
    }
    struct batch batch = {.examples = images, .images = values, .targets = labels};
    double loss = 0;
    // Twice with half the factor: gradients must accumulate.
    enum app_status status = model->operations->forward_backward(model, &batch, 0.5f, &loss);
    if (status == APP_OK) {
        status = model->operations->forward_backward(model, &batch, 0.5f, &loss);
    }
    int failed = status != APP_OK || write_file(argv[NUMBERS + 1], model, &batch, pixels, loss);
    if (status != APP_OK) {
        fprintf(stderr, "%s\n", app_failure());
    }
    model->operations->destroy(model);
    free(values);
    free(labels);
    return failed;
}
