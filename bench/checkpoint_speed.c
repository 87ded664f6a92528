/* checkpoint_speed.c - saves and loads one large checkpoint, and says how long each took. Compiled and run by
 * bench/checkpoint.
 *
 * usage: checkpoint_speed FOLDER float32|packed MATRICES
 *
 * Reads words from standard input. `save` prints: bytes, seconds of the copy, seconds of everything else until it is
 * published. `load` prints: bytes, seconds to open, verify and load parameters and states, bytes of the states; the
 * caller has to see to a cold cache. One process does all, so that its memory is there when the clock runs. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <stquant/stquant.h>
#include <string.h>
#include <time.h>

enum { COLS = 4096, ROWS = 1024 }; /* of each matrix: 4 Mi parameters */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void check(stq_status status) {
    if (status != STQ_OK) {
        fprintf(stderr, "checkpoint_speed: %s\n", stq_last_error());
        exit(1);
    }
}

typedef struct model {
    size_t count;
    stq_tensor *tensors;
    stq_array *arrays;
    void **parameters;
    const void **gradients;
    stq_adamw *optimizer;
} model;

/* Parameters and gradients of noise; contents do not matter here but that no disk can guess them. */
static float *noise(size_t count, uint64_t seed) {
    float *values = malloc(count * sizeof *values);
    for (size_t i = 0; values && i < count; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
        values[i] = (float)(int64_t)(seed >> 16) * 0x1p-47f;
    }
    return values;
}

static void make_model(model *m, size_t count, bool packed) {
    int64_t shape[] = {ROWS, COLS};
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = packed ? STQ_POLICY_RATE_DISTORTION : STQ_POLICY_FLOAT32;
    config.policy.state_bits = 5.0;
    *m = (model){.count = count};
    m->tensors = calloc(count, sizeof *m->tensors);
    m->arrays = calloc(count, sizeof *m->arrays);
    m->parameters = calloc(count, sizeof *m->parameters);
    m->gradients = calloc(count, sizeof *m->gradients);
    float *gradient = noise((size_t)ROWS * COLS, 1);
    for (size_t i = 0; i < count; i++) {
        char *name = malloc(32);
        snprintf(name, 32, "layer.%zu.weight", i);
        m->tensors[i] = stq_tensor_whole(name, ROWS, COLS);
        m->parameters[i] = noise((size_t)ROWS * COLS, i + 2);
        m->gradients[i] = gradient;
        m->arrays[i] = stq_array_whole(name, STQ_FLOAT32, 2, shape, m->parameters[i]);
    }
    check(stq_adamw_create(&m->optimizer, &config, m->tensors, count));
}

static void save(model *m, stq_saver *saver) {
    stq_save what = {
        .size = sizeof what, .step = 1, .optimizer = m->optimizer, .arrays = m->arrays, .array_count = m->count};
    stq_save_result result;
    check(stq_saver_save(saver, &what));
    check(stq_saver_wait(saver, &result));
    printf("%llu %.6f %.6f\n", (unsigned long long)result.bytes, result.copy_seconds, result.write_seconds);
}

static void load(model *m, const char *folder) {
    stq_checkpoint *checkpoint;
    stq_checkpoint_info info;
    double begin = seconds();
    check(stq_checkpoint_open(&checkpoint, folder));
    check(stq_checkpoint_load_arrays(checkpoint, m->arrays, m->count));
    check(stq_checkpoint_load_optimizer(checkpoint, m->optimizer, NULL));
    double end = seconds();
    check(stq_checkpoint_describe(checkpoint, &info));
    uint64_t states = 0;
    for (size_t i = 0; i < info.tensor_count; i++) {
        stq_checkpoint_tensor tensor;
        check(stq_checkpoint_tensor_info(checkpoint, i, &tensor));
        states += tensor.bytes[0] + tensor.bytes[1];
    }
    printf("%llu %.6f %llu\n", (unsigned long long)info.bytes, end - begin, (unsigned long long)states);
    stq_checkpoint_close(checkpoint);
}

int main(int argc, char **argv) {
    model m;
    char word[8];
    if (argc != 4) {
        fprintf(stderr, "usage: checkpoint_speed FOLDER float32|packed MATRICES\n");
        return 2;
    }
    make_model(&m, strtoul(argv[3], NULL, 10), strcmp(argv[2], "packed") == 0);
    stq_step step = {.size = sizeof step, .parameters = m.parameters, .gradients = m.gradients, .unscale = 1.0};
    check(stq_adamw_step(m.optimizer, &step, NULL));
    stq_saver *saver;
    stq_saver_config config = {.size = sizeof config, .folder = argv[1]};
    check(stq_saver_open(&saver, &config));
    while (scanf("%7s", word) == 1) {
        if (strcmp(word, "save") == 0)
            save(&m, saver);
        else
            load(&m, argv[1]);
        fflush(stdout);
    }
    stq_saver_close(saver);
    return 0;
}
