// Runs a small GPT-2's forward and backward pass on a counter-generated batch and writes everything
// that a comparison needs to a file:
//     dump_gpt2 LAYERS WIDTH HEADS CONTEXT VOCABULARY SEQUENCES LENGTH SEED FILE
// The file has a line "loss L", a line "name rows cols" for each tensor, an empty line, and then the
// tokens (sequences, length + 1) as int32, all values and all gradients as float32.
#include <stdio.h>
#include <stdlib.h>

#include "train/gpt2.h"
#include "train/random.h"

// Initial gains of 1 and biases of 0 would hide errors: everything gets noise.
static void disturb(struct parameter_set *set, uint64_t seed) {
    for (int i = 0; i < set->count; i++) {
        struct parameter *parameter = &set->list[i];
        for (int64_t j = 0; j < parameter->rows * parameter->cols; j++) {
            parameter->values[j] += (float)(0.2 * (random_uniform(seed + 1, (uint64_t)i, (uint64_t)j) - 0.5));
        }
    }
}

static int write_file(const char *path, const struct parameter_set *set, const int32_t *tokens, int64_t token_count,
                      double loss) {
    FILE *file = fopen(path, "wb");
    if (!file) {
        perror(path);
        return 1;
    }
    fprintf(file, "loss %.17g\n", loss);
    for (int i = 0; i < set->count; i++) {
        fprintf(file, "%s %lld %lld\n", set->list[i].name, (long long)set->list[i].rows, (long long)set->list[i].cols);
    }
    fprintf(file, "\n");
    fwrite(tokens, sizeof(*tokens), (size_t)token_count, file);
    for (int i = 0; i < set->count; i++) {
        fwrite(set->list[i].values, sizeof(float), (size_t)(set->list[i].rows * set->list[i].cols), file);
    }
    for (int i = 0; i < set->count; i++) {
        fwrite(set->list[i].gradients, sizeof(float), (size_t)(set->list[i].rows * set->list[i].cols), file);
    }
    return ferror(file) | fclose(file);
}

int main(int argc, char **argv) {
    long long numbers[8];
    if (argc != 10) {
        fprintf(stderr, "usage: dump_gpt2 LAYERS WIDTH HEADS CONTEXT VOCABULARY SEQUENCES LENGTH SEED FILE\n");
        return 2;
    }
    for (int i = 0; i < 8; i++) {
        numbers[i] = atoll(argv[i + 1]);
    }
    struct gpt2_config config = {.layers = numbers[0],
                                 .width = numbers[1],
                                 .heads = numbers[2],
                                 .context = numbers[3],
                                 .vocabulary = numbers[4]};
    const int64_t sequences = numbers[5], length = numbers[6];
    const uint64_t seed = (uint64_t)numbers[7];
    struct model *model;
    if (gpt2_create(&config, sequences, length, 2, seed, &model) != APP_OK) {
        fprintf(stderr, "%s\n", app_failure());
        return 1;
    }
    disturb(&model->parameters, seed);
    int64_t token_count = sequences * (length + 1);
    int32_t *tokens = malloc((size_t)token_count * sizeof(*tokens));
    int32_t *inputs = malloc((size_t)token_count * sizeof(*inputs));
    int32_t *targets = malloc((size_t)token_count * sizeof(*targets));
    for (int64_t i = 0; i < token_count; i++) {
        tokens[i] = (int32_t)random_below(seed, 99, (uint64_t)i, (uint64_t)config.vocabulary);
    }
    for (int64_t i = 0; i < sequences * length; i++) {
        inputs[i] = tokens[i / length * (length + 1) + i % length];
        targets[i] = tokens[i / length * (length + 1) + i % length + 1];
    }
    struct batch batch = {.examples = sequences, .length = length, .inputs = inputs, .targets = targets};
    double loss = 0, half_loss = 0;
    // Twice with half the factor: gradients must accumulate.
    enum app_status status = model->operations->forward_backward(model, &batch, 0.5f, &half_loss);
    if (status == APP_OK) {
        status = model->operations->forward_backward(model, &batch, 0.5f, &loss);
    }
    int failed = status != APP_OK || write_file(argv[9], &model->parameters, tokens, token_count, loss);
    if (status != APP_OK) {
        fprintf(stderr, "%s\n", app_failure());
    }
    model->operations->destroy(model);
    free(tokens);
    free(inputs);
    free(targets);
    return failed;
}
