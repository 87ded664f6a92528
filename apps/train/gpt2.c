#include "train/gpt2.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/matmul.h"

// The tensors in front of the blocks; the last layer norm follows the blocks.
enum { TOKEN_TABLE, POSITION_TABLE, FIRST_BLOCK, BLOCK_TENSORS = 12 };

enum app_status gpt2_check(const struct gpt2_config *config) {
    const struct {
        const char *option;
        int64_t value, limit;
    } sizes[] = {{"--layers", config->layers, 10000},
                 {"--width", config->width, 1 << 20},
                 {"--heads", config->heads, 1 << 20},
                 {"--context", config->context, 1 << 24},
                 {"--vocabulary", config->vocabulary, 1 << 28}};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (sizes[i].value < 1 || sizes[i].value > sizes[i].limit) {
            return app_fail(APP_USAGE, "%s is %lld; it must lie between 1 and %lld.", sizes[i].option,
                            (long long)sizes[i].value, (long long)sizes[i].limit);
        }
    }
    if (config->width % config->heads != 0) {
        return app_fail(APP_USAGE, "--width %lld is no multiple of --heads %lld; every head needs the same width.",
                        (long long)config->width, (long long)config->heads);
    }
    return config->qat.bits ? quantizer_check(&config->qat) : APP_OK;
}

enum app_status gpt2_describe(const struct gpt2_config *config, struct parameter_set *set) {
    enum app_status status = gpt2_check(config);
    if (status != APP_OK) {
        return status;
    }
    int added = parameters_add(set, "wte.weight", config->vocabulary, config->width, 2, 0.02, 0);
    added |= parameters_add(set, "wpe.weight", config->context, config->width, 2, 0.02, 0);
    for (int layer = 0; layer < config->layers; layer++) {
        char prefix[24];
        snprintf(prefix, sizeof(prefix), "h.%d.", layer);
        added |= transformer_add_parameters(set, prefix, config->width, config->layers, 0.02);
    }
    added |= parameters_add(set, "ln_f.weight", 1, config->width, 1, 0, 1);
    added |= parameters_add(set, "ln_f.bias", 1, config->width, 1, 0, 0);
    added |= config->qat.bits ? quantizer_add_steps(set) : 0;
    if (added < 0) {
        return app_fail(APP_FAILED, "There is no memory for the list of %lld layers; choose fewer --layers.",
                        (long long)config->layers);
    }
    return APP_OK;
}

// Describes the activations, or places them when the arena has memory.
static void place(struct gpt2 *gpt2) {
    const struct attention_shape *shape = &gpt2->largest;
    const int64_t rows = shape->sequences * shape->length, width = shape->width;
    struct transformer_activations unused;
    gpt2->embedded = arena_floats(&gpt2->arena, rows * width);
    const float *input = gpt2->embedded;
    for (int64_t layer = 0; layer < gpt2->config.layers; layer++) {
        struct transformer_activations *activations = gpt2->activations ? &gpt2->activations[layer] : &unused;
        activations->input = input;
        transformer_place_activations(&gpt2->arena, shape, activations);
        input = activations->output;
    }
    transformer_place_scratch(&gpt2->arena, shape, &gpt2->scratch);
    gpt2->last_mean = arena_floats(&gpt2->arena, rows);
    gpt2->last_scale = arena_floats(&gpt2->arena, rows);
    gpt2->last_normalized = arena_floats(&gpt2->arena, rows * width);
    gpt2->gradient = arena_floats(&gpt2->arena, rows * width);
    gpt2->logits = arena_floats(&gpt2->arena, gpt2->head_rows * gpt2->config.vocabulary);
    gpt2->losses = arena_floats(&gpt2->arena, rows);
    if (gpt2->config.qat.bits) {
        quantizer_place(&gpt2->base.quantizer, &gpt2->arena, gpt2->config.layers, width);
    }
}

// The logits of a batch need not exist all at once: about a million at a time, and no fewer than 256
// rows, below which matrix products lose speed.
static int64_t choose_head_rows(const struct gpt2_config *config, int64_t rows) {
    int64_t chosen = (1 << 20) / config->vocabulary;
    chosen = chosen < 256 ? 256 : chosen;
    return chosen < rows ? chosen : rows;
}

static void set_shape(struct gpt2 *gpt2, const struct gpt2_config *config, int64_t sequences, int64_t length) {
    gpt2->config = *config;
    gpt2->largest = (struct attention_shape){
        .sequences = sequences, .length = length, .width = config->width, .heads = config->heads, .causal = 1};
    gpt2->head_rows = choose_head_rows(config, sequences * length);
}

int64_t gpt2_activation_bytes(const struct gpt2_config *config, int64_t sequences, int64_t length) {
    struct gpt2 counting = {0};
    set_shape(&counting, config, sequences, length);
    place(&counting);
    return counting.arena.used;
}

static enum app_status bind(struct gpt2 *gpt2) {
    const struct parameter_set *set = &gpt2->base.parameters;
    gpt2->token_table = &set->list[TOKEN_TABLE];
    gpt2->position_table = &set->list[POSITION_TABLE];
    for (int layer = 0; layer < gpt2->config.layers; layer++) {
        gpt2->blocks[layer] = transformer_bind(set, FIRST_BLOCK + layer * BLOCK_TENSORS);
    }
    const struct parameter *gain = &set->list[FIRST_BLOCK + gpt2->config.layers * BLOCK_TENSORS];
    gpt2->last_norm = transformer_bind_norm(gain, gain + 1);
    struct quantizer *quantizer = &gpt2->base.quantizer;
    for (int layer = 0; layer < gpt2->config.layers && quantizer->layers; layer++) {
        transformer_quantize(&gpt2->blocks[layer], quantizer->layers + 4 * layer);
    }
    return quantizer_bind(quantizer, set);
}

static enum app_status check_tokens(const struct gpt2 *gpt2, const struct batch *batch) {
    if (batch->examples < 1 || batch->length < 1 || batch->length > gpt2->config.context ||
        batch->examples * batch->length > gpt2->largest.sequences * gpt2->largest.length ||
        batch->length > gpt2->largest.length) {
        return app_fail(APP_USAGE, "A batch of %lld sequences of %lld tokens does not fit the model's buffers.",
                        (long long)batch->examples, (long long)batch->length);
    }
    for (int64_t i = 0; i < batch->examples * batch->length; i++) {
        int32_t largest = batch->inputs[i] > batch->targets[i] ? batch->inputs[i] : batch->targets[i];
        if (batch->inputs[i] < 0 || batch->targets[i] < 0 || largest >= gpt2->config.vocabulary) {
            return app_fail(APP_USAGE, "The data has a token %d, and the model's --vocabulary ends at %lld.",
                            (int)largest, (long long)gpt2->config.vocabulary - 1);
        }
    }
    return APP_OK;
}

// The blocks' shape for this batch.
static struct attention_shape batch_shape(const struct gpt2 *gpt2, const struct batch *batch) {
    struct attention_shape shape = gpt2->largest;
    shape.sequences = batch->examples;
    shape.length = batch->length;
    return shape;
}

// Up to the last layer norm.
static void forward(struct gpt2 *gpt2, const struct attention_shape *shape, const struct batch *batch) {
    const int64_t rows = shape->sequences * shape->length;
    compute_use(&gpt2->compute);
    embedding_forward(&gpt2->compute, batch->inputs, gpt2->token_table->values, gpt2->position_table->values,
                      gpt2->embedded, rows, shape->length, shape->width);
    const float *output = gpt2->embedded;
    for (int64_t layer = 0; layer < gpt2->config.layers; layer++) {
        transformer_forward(&gpt2->compute, shape, &gpt2->blocks[layer], &gpt2->activations[layer], &gpt2->scratch);
        output = gpt2->activations[layer].output;
    }
    layer_norm_forward(&gpt2->compute, &gpt2->last_norm, output, gpt2->last_normalized, gpt2->last_mean,
                       gpt2->last_scale, rows);
}

// Head and loss for rows [first, first + rows); with `backward` also the gradients of the head, and
// that of last_normalized into scratch.narrow. The logits of these rows exist only here.
static void head(struct gpt2 *gpt2, const struct batch *batch, int64_t first, int64_t rows, float factor,
                 int backward) {
    const int64_t width = gpt2->config.width, vocabulary = gpt2->config.vocabulary;
    const float *input = gpt2->last_normalized + first * width;
    matmul(&(struct product){.a = input,
                             .b = gpt2->token_table->values,
                             .out = gpt2->logits,
                             .rows = rows,
                             .columns = vocabulary,
                             .inner = width,
                             .transpose_b = 1});
    cross_entropy(&gpt2->compute, gpt2->logits, batch->targets + first, factor, gpt2->losses + first, rows, vocabulary);
    if (backward) {
        matmul(&(struct product){.a = gpt2->logits,
                                 .b = gpt2->token_table->values,
                                 .out = gpt2->scratch.narrow + first * width,
                                 .rows = rows,
                                 .columns = width,
                                 .inner = vocabulary});
        matmul(&(struct product){.a = gpt2->logits,
                                 .b = input,
                                 .out = gpt2->token_table->gradients,
                                 .rows = vocabulary,
                                 .columns = width,
                                 .inner = rows,
                                 .transpose_a = 1,
                                 .accumulate = 1});
    }
}

static double head_and_loss(struct gpt2 *gpt2, const struct batch *batch, float factor, int backward) {
    const int64_t rows = batch->examples * batch->length;
    double sum = 0;
    for (int64_t first = 0; first < rows; first += gpt2->head_rows) {
        const int64_t count = rows - first < gpt2->head_rows ? rows - first : gpt2->head_rows;
        head(gpt2, batch, first, count, factor / (float)rows, backward);
    }
    for (int64_t row = 0; row < rows; row++) {
        sum += gpt2->losses[row];
    }
    return sum / (double)rows;
}

static void backward(struct gpt2 *gpt2, const struct attention_shape *shape, const struct batch *batch) {
    const int64_t rows = shape->sequences * shape->length, last = gpt2->config.layers - 1;
    memset(gpt2->gradient, 0, (size_t)(rows * shape->width) * sizeof(float));
    layer_norm_backward(&gpt2->compute, &gpt2->last_norm, gpt2->activations[last].output, gpt2->last_mean,
                        gpt2->last_scale, gpt2->scratch.narrow, gpt2->gradient, gpt2->scratch.normalized, rows);
    for (int64_t layer = last; layer >= 0; layer--) {
        transformer_backward(&gpt2->compute, shape, &gpt2->blocks[layer], &gpt2->activations[layer], &gpt2->scratch,
                             gpt2->gradient);
        model_gradients_ready(&gpt2->base, FIRST_BLOCK + (int)layer * BLOCK_TENSORS, BLOCK_TENSORS);
    }
    embedding_backward(&gpt2->compute, batch->inputs, gpt2->gradient, gpt2->token_table->gradients,
                       gpt2->position_table->gradients, rows, shape->length, shape->width);
}

static enum app_status gpt2_forward_backward(struct model *model, const struct batch *batch, float factor,
                                             double *loss) {
    struct gpt2 *gpt2 = (struct gpt2 *)model;
    enum app_status status = check_tokens(gpt2, batch);
    if (status != APP_OK) {
        return status;
    }
    status = quantizer_refresh(&model->quantizer);
    if (status != APP_OK) {
        return status;
    }
    struct attention_shape shape = batch_shape(gpt2, batch);
    forward(gpt2, &shape, batch);
    *loss = head_and_loss(gpt2, batch, factor, 1);
    backward(gpt2, &shape, batch);
    status = matmul_status();
    return status == APP_OK ? quantizer_status(&model->quantizer) : status;
}

static enum app_status gpt2_evaluate(struct model *model, const struct batch *batch, double *loss) {
    struct gpt2 *gpt2 = (struct gpt2 *)model;
    enum app_status status = check_tokens(gpt2, batch);
    if (status != APP_OK) {
        return status;
    }
    status = quantizer_refresh(&model->quantizer);
    if (status != APP_OK) {
        return status;
    }
    struct attention_shape shape = batch_shape(gpt2, batch);
    forward(gpt2, &shape, batch);
    *loss = head_and_loss(gpt2, batch, 0, 0);
    return matmul_status();
}

static void gpt2_destroy(struct model *model) {
    struct gpt2 *gpt2 = (struct gpt2 *)model;
    parameters_release(&gpt2->base.parameters);
    compute_release(&gpt2->compute);
    arena_release(&gpt2->arena);
    quantizer_release(&gpt2->base.quantizer);
    free(gpt2->blocks);
    free(gpt2->activations);
    free(gpt2);
}

static const struct model_operations operations = {
    .forward_backward = gpt2_forward_backward, .evaluate = gpt2_evaluate, .destroy = gpt2_destroy};

static int64_t scratch_floats(const struct gpt2_config *config, int64_t length) {
    int64_t layers = layers_scratch_floats(4 * config->width), attention = attention_scratch_floats(length);
    return layers > attention ? layers : attention;
}

static enum app_status allocate(struct gpt2 *gpt2, int threads, uint64_t seed) {
    const struct gpt2_config *config = &gpt2->config;
    gpt2->blocks = calloc((size_t)config->layers, sizeof(*gpt2->blocks));
    gpt2->activations = calloc((size_t)config->layers, sizeof(*gpt2->activations));
    if (!gpt2->blocks || !gpt2->activations) {
        return app_fail(APP_FAILED, "There is no memory for %lld layers.", (long long)config->layers);
    }
    enum app_status status = gpt2_describe(config, &gpt2->base.parameters);
    if (status == APP_OK && config->qat.bits) {
        status = quantizer_create(&gpt2->base.quantizer, &config->qat, config->layers);
    }
    if (status == APP_OK) {
        status = compute_create(&gpt2->compute, threads, scratch_floats(config, gpt2->largest.length));
    }
    if (status == APP_OK) {
        status = parameters_allocate(&gpt2->base.parameters, seed);
    }
    if (status == APP_OK) {
        gpt2->arena.used = gpt2_activation_bytes(config, gpt2->largest.sequences, gpt2->largest.length);
        gpt2->base.activation_bytes = gpt2->arena.used;
        status = arena_allocate(&gpt2->arena);
    }
    return status;
}

enum app_status gpt2_create(const struct gpt2_config *config, int64_t sequences, int64_t length, int threads,
                            uint64_t seed, struct model **model) {
    *model = NULL;
    enum app_status status = gpt2_check(config);
    if (status != APP_OK) {
        return status;
    }
    if (length > config->context) {
        return app_fail(APP_USAGE, "--sequence-length %lld is longer than the model's --context %lld.",
                        (long long)length, (long long)config->context);
    }
    struct gpt2 *gpt2 = calloc(1, sizeof(*gpt2));
    if (!gpt2) {
        return app_fail(APP_FAILED, "There is no memory for a model.");
    }
    gpt2->base.operations = &operations;
    gpt2->base.correct = -1;
    set_shape(gpt2, config, sequences, length);
    status = allocate(gpt2, threads, seed);
    if (status == APP_OK) {
        place(gpt2);
        status = bind(gpt2);
    }
    if (status != APP_OK) {
        gpt2_destroy(&gpt2->base);
        return status;
    }
    *model = &gpt2->base;
    return APP_OK;
}
