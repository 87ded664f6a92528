/*
 * characters.c - a language model of bytes, trained with low-bit Adam states, saved and resumed: all of it in C.
 *
 *   characters TEXT RUN STEPS
 *
 * The model (after Bengio and others, 2003): embeddings of the last 8 bytes, a hidden layer, a distribution over the
 * next byte. A run goes on from the newest checkpoint in the folder RUN, to the same bytes as one never interrupted.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <stquant/stquant.h>

enum { CONTEXT = 8, WIDTH = 32, INPUTS = CONTEXT * WIDTH, HIDDEN = 256, BYTES = 256, BATCH = 64 };
enum { EMBEDDING, LAYER, OUTPUT, TENSORS };

static const char *const names[TENSORS] = {"embedding", "layer", "output"};
static const int64_t shapes[TENSORS][2] = {{BYTES, WIDTH}, {HIDDEN, INPUTS}, {BYTES, HIDDEN}};
static float parameters[TENSORS][BYTES * HIDDEN], gradients[TENSORS][BYTES * HIDDEN]; /* the largest shape */

/* A program ends on the first failure; the library itself never prints or exits. */
static void check(stq_status status) {
    if (status != STQ_OK) {
        fprintf(stderr, "characters: %s\n", stq_last_error());
        exit(1);
    }
}

/* Number `index` of a sequence of its own for every seed (splitmix64). */
static uint64_t counted_random(uint64_t seed, uint64_t index) {
    uint64_t z = seed * 0xd1342543de82ef95u + (index + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* out[row] = sum over cols of weight[row][col] x[col]. */
static void forward(int weight, const float *x, float *out) {
    for (int64_t row = 0, i = 0; row < shapes[weight][0]; row++) {
        out[row] = 0;
        for (int64_t col = 0; col < shapes[weight][1]; col++)
            out[row] += parameters[weight][i++] * x[col];
    }
}

/* Adds to the weight's gradient and, with the gradient of the output in d_out, to d_x, that of the input. */
static void backward(int weight, const float *x, const float *d_out, float *d_x) {
    for (int64_t row = 0, i = 0; row < shapes[weight][0]; row++)
        for (int64_t col = 0; col < shapes[weight][1]; col++, i++) {
            gradients[weight][i] += d_out[row] * x[col];
            d_x[col] += d_out[row] * parameters[weight][i];
        }
}

/* The loss, -log p(text[CONTEXT] | the bytes before it), and its gradients, each `scale` times. */
static double learn(const unsigned char *text, float scale) {
    float x[INPUTS], hidden[HIDDEN], out[BYTES], d_hidden[HIDDEN] = {0}, d_x[INPUTS] = {0}, highest = -INFINITY,
                                                 sum = 0;
    for (int c = 0; c < CONTEXT; c++)
        memcpy(x + c * WIDTH, parameters[EMBEDDING] + text[c] * WIDTH, WIDTH * sizeof *x);
    forward(LAYER, x, hidden);
    for (int h = 0; h < HIDDEN; h++)
        hidden[h] = tanhf(hidden[h]);
    forward(OUTPUT, hidden, out);
    for (int byte = 0; byte < BYTES; byte++)
        highest = fmaxf(highest, out[byte]);
    for (int byte = 0; byte < BYTES; byte++)
        sum += out[byte] = expf(out[byte] - highest);
    double loss = log((double)sum) - log((double)out[text[CONTEXT]]);
    for (int byte = 0; byte < BYTES; byte++)
        out[byte] = scale * (out[byte] / sum - (byte == text[CONTEXT] ? 1.0f : 0.0f)); /* now its gradient */
    backward(OUTPUT, hidden, out, d_hidden);
    for (int h = 0; h < HIDDEN; h++)
        d_hidden[h] *= 1.0f - hidden[h] * hidden[h];
    backward(LAYER, x, d_hidden, d_x);
    for (int i = 0; i < INPUTS; i++)
        gradients[EMBEDDING][text[i / WIDTH] * WIDTH + i % WIDTH] += d_x[i];
    return loss * scale;
}

/* One step: a batch of positions, chosen by the step's number. Returns the mean loss in nats a byte. */
static double train(stq_adamw *optimizer, const unsigned char *text, size_t length) {
    uint64_t step = (uint64_t)stq_adamw_step_count(optimizer);
    double loss = 0;
    memset(gradients, 0, sizeof gradients);
    for (uint64_t i = 0; i < BATCH; i++)
        loss += learn(text + counted_random(step, i) % (length - CONTEXT), 1.0f / BATCH);
    void *const p[] = {parameters[0], parameters[1], parameters[2]};
    const void *const g[] = {gradients[0], gradients[1], gradients[2]};
    stq_step one = {.size = sizeof one, .parameters = p, .gradients = g, .unscale = 1.0, .max_gradient_norm = 1.0};
    check(stq_adamw_step(optimizer, &one, NULL));
    return loss;
}

int main(int count, char **arguments) {
    static unsigned char text[1 << 22];
    FILE *file = count == 4 ? fopen(arguments[1], "rb") : NULL;
    size_t length = file ? fread(text, 1, sizeof text, file) : 0;
    if (length <= CONTEXT || atoi(arguments[3]) < 1) {
        fprintf(stderr, "usage: characters TEXT RUN STEPS: a text of more than %d bytes, a folder, a number\n",
                CONTEXT);
        return 2;
    }
    fclose(file);
    stq_tensor tensors[TENSORS];
    stq_array arrays[TENSORS];
    for (int t = 0; t < TENSORS; t++) {
        tensors[t] = stq_tensor_whole(names[t], shapes[t][0], shapes[t][1]);
        for (int64_t i = 0; i < tensors[t].count; i++)
            parameters[t][i] = (float)(int32_t)counted_random((uint64_t)t, (uint64_t)i) * 0x1p-35f;
        arrays[t] = stq_array_whole(names[t], STQ_FLOAT32, 2, shapes[t], parameters[t]);
    }
    stq_adamw *optimizer;
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.state_bits = 5.0; /* the cap on all states: bits per value, everything included */
    check(stq_adamw_create(&optimizer, &config, tensors, TENSORS));
    stq_saver *saver;
    stq_saver_config saving = {.size = sizeof saving, .folder = arguments[2], .keep = 2};
    check(stq_saver_open(&saver, &saving));
    stq_checkpoint *checkpoint;
    if (stq_checkpoint_open(&checkpoint, arguments[2]) == STQ_OK) { /* the newest whole one of the run */
        check(stq_checkpoint_load_arrays(checkpoint, arrays, TENSORS));
        check(stq_checkpoint_load_optimizer(checkpoint, optimizer, NULL));
        stq_checkpoint_close(checkpoint);
    }
    double mean = 0; /* running, over about 50 steps */
    int64_t last = stq_adamw_step_count(optimizer) + atoi(arguments[3]);
    for (int64_t step = stq_adamw_step_count(optimizer) + 1; step <= last; step++) {
        double loss = train(optimizer, text, length);
        mean = mean > 0 ? 0.98 * mean + 0.02 * loss : loss;
        if (step % 100 == 0 || step == last)
            printf("step %5lld   loss %.3f\n", (long long)step, mean);
    }
    stq_save save = {
        .size = sizeof save, .step = last, .optimizer = optimizer, .arrays = arrays, .array_count = TENSORS};
    check(stq_saver_save(saver, &save));
    check(stq_saver_wait(saver, NULL));
    stq_saver_close(saver);
    stq_memory memory;
    uint64_t digest;
    check(stq_adamw_memory(optimizer, &memory));
    check(stq_adamw_digest(optimizer, &digest));
    printf("states: %.2f bits a value at the peak, %llu bytes less than float32; digest %016llx\n", memory.peak_bits,
           (unsigned long long)(8 * memory.parameters - memory.peak_bytes), (unsigned long long)digest);
    stq_adamw_destroy(optimizer);
    return 0;
}
