#include "train/vit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/matmul.h"
#include "train/random.h"

// The tensors in front of the blocks, and those behind.
enum { PATCH_WEIGHT, PATCH_BIAS, CLASS_TOKEN, POSITIONS, FIRST_BLOCK, BLOCK_TENSORS = 12 };
enum { LAST_GAIN, LAST_BIAS, HEAD_WEIGHT, HEAD_BIAS };

struct vit {
    struct model base;
    struct vit_config config;
    struct compute compute;
    struct attention_shape largest; // the shape that the buffers are made for
    uint64_t seed;
    struct arena arena;
    struct transformer_block *blocks;            // (L)
    struct transformer_activations *activations; // (L)
    struct transformer_scratch scratch;
    struct linear patch_layer;     // patch values -> C
    struct parameter *class_token; // (C)
    struct parameter *positions;   // (T, C)
    struct layer_norm last_norm;
    struct linear head;            // C -> classes
    float *patches;                // (B, T - 1, patch values)
    float *projected;              // (B, T - 1, C)
    float *embedded;               // (B, T, C)
    float *class_rows;             // (B, C), the class tokens after the blocks
    float *last_mean, *last_scale; // (B)
    float *last_normalized;        // (B, C)
    float *class_gradient;         // (B, C)
    float *logits;                 // (B, classes)
    float *losses;                 // (B)
    float *gradient;               // (B, T, C)
};

static int64_t patch_values(const struct vit_config *config) {
    return config->channels * config->patch * config->patch;
}

static int64_t patch_count(const struct vit_config *config) {
    return config->rows / config->patch * (config->columns / config->patch);
}

enum app_status vit_check(const struct vit_config *config) {
    const struct {
        const char *option;
        int64_t value, limit;
    } sizes[] = {{"--layers", config->layers, 10000},
                 {"--width", config->width, 1 << 20},
                 {"--heads", config->heads, 1 << 20},
                 {"--patch", config->patch, 4096},
                 {"--classes", config->classes, 1 << 20}};
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
    if (config->rows % config->patch != 0 || config->columns % config->patch != 0) {
        return app_fail(APP_USAGE,
                        "Images of %lld x %lld pixels cannot be cut into patches of %lld x %lld; --patch must divide "
                        "both sides.",
                        (long long)config->columns, (long long)config->rows, (long long)config->patch,
                        (long long)config->patch);
    }
    return config->qat.bits ? quantizer_check(&config->qat) : APP_OK;
}

enum app_status vit_describe(const struct vit_config *config, struct parameter_set *set) {
    enum app_status status = vit_check(config);
    if (status != APP_OK) {
        return status;
    }
    const int64_t width = config->width;
    // GPT-2's 0.02 suits a width of 768; narrower layers need larger weights for outputs of the same size.
    const double deviation = 0.02 * sqrt(768.0 / (double)width);
    const int64_t values = patch_values(config);
    int added = parameters_add(set, "patch.weight", values, width, 2, 1 / sqrt((double)values), 0);
    added |= parameters_add(set, "patch.bias", 1, width, 1, 0, 0);
    added |= parameters_add(set, "class_token", 1, width, 1, 0.02, 0);
    added |= parameters_add(set, "positions.weight", 1 + patch_count(config), width, 2, 0.02, 0);
    for (int layer = 0; layer < config->layers; layer++) {
        char prefix[24];
        snprintf(prefix, sizeof(prefix), "h.%d.", layer);
        added |= transformer_add_parameters(set, prefix, width, config->layers, deviation);
    }
    added |= parameters_add(set, "ln_f.weight", 1, width, 1, 0, 1);
    added |= parameters_add(set, "ln_f.bias", 1, width, 1, 0, 0);
    added |= parameters_add(set, "head.weight", width, config->classes, 2, deviation, 0);
    added |= parameters_add(set, "head.bias", 1, config->classes, 1, 0, 0);
    added |= config->qat.bits ? quantizer_add_steps(set) : 0;
    if (added < 0) {
        return app_fail(APP_FAILED, "There is no memory for the list of %lld layers; choose fewer --layers.",
                        (long long)config->layers);
    }
    return APP_OK;
}

// Describes the activations, or places them when the arena has memory.
static void place(struct vit *vit) {
    const struct attention_shape *shape = &vit->largest;
    const int64_t images = shape->sequences, width = shape->width, patches = images * (shape->length - 1);
    struct arena *arena = &vit->arena;
    struct transformer_activations unused;
    vit->patches = arena_floats(arena, patches * patch_values(&vit->config));
    vit->projected = arena_floats(arena, patches * width);
    vit->embedded = arena_floats(arena, images * shape->length * width);
    const float *input = vit->embedded;
    for (int64_t layer = 0; layer < vit->config.layers; layer++) {
        struct transformer_activations *activations = vit->activations ? &vit->activations[layer] : &unused;
        activations->input = input;
        transformer_place_activations(arena, shape, activations);
        input = activations->output;
    }
    transformer_place_scratch(arena, shape, &vit->scratch);
    vit->class_rows = arena_floats(arena, images * width);
    vit->last_mean = arena_floats(arena, images);
    vit->last_scale = arena_floats(arena, images);
    vit->last_normalized = arena_floats(arena, images * width);
    vit->class_gradient = arena_floats(arena, images * width);
    vit->logits = arena_floats(arena, images * vit->config.classes);
    vit->losses = arena_floats(arena, images);
    vit->gradient = arena_floats(arena, images * shape->length * width);
    if (vit->config.qat.bits) {
        quantizer_place(&vit->base.quantizer, arena, vit->config.layers, width);
    }
}

static void set_shape(struct vit *vit, const struct vit_config *config, int64_t images) {
    vit->config = *config;
    vit->largest = (struct attention_shape){
        .sequences = images, .length = 1 + patch_count(config), .width = config->width, .heads = config->heads};
}

int64_t vit_activation_bytes(const struct vit_config *config, int64_t images) {
    struct vit counting = {0};
    set_shape(&counting, config, images);
    place(&counting);
    return counting.arena.used;
}

static enum app_status bind(struct vit *vit) {
    const struct parameter_set *set = &vit->base.parameters;
    const struct parameter *behind = &set->list[FIRST_BLOCK + vit->config.layers * BLOCK_TENSORS];
    vit->patch_layer = transformer_bind_linear(&set->list[PATCH_WEIGHT], &set->list[PATCH_BIAS]);
    vit->class_token = &set->list[CLASS_TOKEN];
    vit->positions = &set->list[POSITIONS];
    for (int layer = 0; layer < vit->config.layers; layer++) {
        vit->blocks[layer] = transformer_bind(set, FIRST_BLOCK + layer * BLOCK_TENSORS);
    }
    vit->last_norm = transformer_bind_norm(&behind[LAST_GAIN], &behind[LAST_BIAS]);
    vit->head = transformer_bind_linear(&behind[HEAD_WEIGHT], &behind[HEAD_BIAS]);
    struct quantizer *quantizer = &vit->base.quantizer;
    for (int layer = 0; layer < vit->config.layers && quantizer->layers; layer++) {
        transformer_quantize(&vit->blocks[layer], quantizer->layers + 4 * layer);
    }
    return quantizer_bind(quantizer, set);
}

static enum app_status check_batch(const struct vit *vit, const struct batch *batch) {
    if (!batch->images || batch->examples < 1 || batch->examples > vit->largest.sequences) {
        return app_fail(APP_USAGE, "A batch of %lld images does not fit the model's buffers.",
                        (long long)batch->examples);
    }
    for (int64_t i = 0; i < batch->examples; i++) {
        if (batch->targets[i] < 0 || batch->targets[i] >= vit->config.classes) {
            return app_fail(APP_USAGE, "The data has a class %d, and the model's --classes are 0 to %lld.",
                            (int)batch->targets[i], (long long)vit->config.classes - 1);
        }
    }
    return APP_OK;
}

// Which masks the dropout of this batch takes; none outside training.
static void set_dropout(struct vit *vit, const struct batch *batch, int training) {
    const uint64_t stream = RANDOM_DROPOUT + (uint64_t)batch->position * (uint64_t)(2 * vit->config.layers + 1);
    for (int64_t layer = 0; layer < vit->config.layers; layer++) {
        vit->blocks[layer].dropout = (struct dropout){
            .rate = training ? vit->config.dropout : 0, .seed = vit->seed, .stream = stream + 1 + 2 * (uint64_t)layer};
    }
}

// The mask over the embedding goes before that of the first block.
static struct dropout embedding_dropout(const struct vit *vit) {
    struct dropout dropout = vit->blocks[0].dropout;
    dropout.stream--;
    return dropout;
}

// patches (B, T - 1, channels x patch x patch) out of images (B, channels, rows, columns).
static void cut_patches(const struct vit *vit, const struct batch *batch) {
    const struct vit_config *config = &vit->config;
    const int64_t side = config->patch, across = config->columns / side, count = patch_count(config);
#pragma omp parallel for schedule(static) num_threads(vit->compute.threads)
    for (int64_t index = 0; index < batch->examples * count; index++) {
        const int64_t image = index / count, down = index % count / across * side, right = index % across * side;
        float *out = vit->patches + index * patch_values(config);
        for (int64_t channel = 0; channel < config->channels; channel++) {
            const float *plane = batch->images + (image * config->channels + channel) * config->rows * config->columns;
            for (int64_t row = 0; row < side; row++, out += side) {
                memcpy(out, plane + (down + row) * config->columns + right, (size_t)side * sizeof(float));
            }
        }
    }
}

// embedded (B, T, C) = class token and projected patches, plus positions.
static void embed(const struct vit *vit, int64_t images) {
    const int64_t length = vit->largest.length, width = vit->config.width;
    linear_forward(&vit->patch_layer, vit->patches, NULL, vit->projected, images * (length - 1));
#pragma omp parallel for schedule(static) num_threads(vit->compute.threads)
    for (int64_t row = 0; row < images * length; row++) {
        const int64_t image = row / length, t = row % length;
        const float *token = t ? vit->projected + (image * (length - 1) + t - 1) * width : vit->class_token->values;
        vit->compute.kernels->add(token, vit->positions->values + t * width, vit->embedded + row * width, width);
    }
}

// Sums over the images; in one thread each column, so that the order does not depend on their number.
static void embed_backward(const struct vit *vit, int64_t images) {
    const int64_t length = vit->largest.length, width = vit->config.width;
#pragma omp parallel for schedule(static) num_threads(vit->compute.threads)
    for (int64_t t = 0; t < length; t++) {
        float *position = vit->positions->gradients + t * width;
        for (int64_t image = 0; image < images; image++) {
            const float *gradient = vit->gradient + (image * length + t) * width;
            vit->compute.kernels->add(position, gradient, position, width);
            if (t == 0) {
                vit->compute.kernels->add(vit->class_token->gradients, gradient, vit->class_token->gradients, width);
            } else {
                memcpy(vit->projected + (image * (length - 1) + t - 1) * width, gradient,
                       (size_t)width * sizeof(float));
            }
        }
    }
    const int64_t patches = images * (length - 1);
    bias_backward(&vit->compute, vit->projected, vit->patch_layer.bias_gradient, patches, width);
    linear_backward_weight(&vit->patch_layer, vit->patches, vit->projected, patches);
}

// Up to the logits.
static void forward(struct vit *vit, const struct attention_shape *shape, const struct batch *batch) {
    const int64_t images = batch->examples, width = shape->width;
    const struct dropout dropout = embedding_dropout(vit);
    const float *output = vit->embedded;
    cut_patches(vit, batch);
    embed(vit, images);
    dropout_apply(&vit->compute, &dropout, vit->embedded, images * shape->length * width);
    for (int64_t layer = 0; layer < vit->config.layers; layer++) {
        transformer_forward(&vit->compute, shape, &vit->blocks[layer], &vit->activations[layer], &vit->scratch);
        output = vit->activations[layer].output;
    }
    for (int64_t image = 0; image < images; image++) {
        memcpy(vit->class_rows + image * width, output + image * shape->length * width, (size_t)width * sizeof(float));
    }
    layer_norm_forward(&vit->compute, &vit->last_norm, vit->class_rows, vit->last_normalized, vit->last_mean,
                       vit->last_scale, images);
    linear_forward(&vit->head, vit->last_normalized, NULL, vit->logits, images);
}

static void count_correct(struct vit *vit, const struct batch *batch) {
    const int64_t classes = vit->config.classes;
    vit->base.correct = 0;
    for (int64_t image = 0; image < batch->examples; image++) {
        const float *logits = vit->logits + image * classes;
        int64_t best = 0;
        for (int64_t j = 1; j < classes; j++) {
            best = logits[j] > logits[best] ? j : best;
        }
        vit->base.correct += best == batch->targets[image];
    }
}

// The logits become their own gradients.
static double mean_loss(struct vit *vit, const struct batch *batch, float factor) {
    double sum = 0;
    cross_entropy(&vit->compute, vit->logits, batch->targets, factor / (float)batch->examples, vit->losses,
                  batch->examples, vit->config.classes);
    for (int64_t image = 0; image < batch->examples; image++) {
        sum += vit->losses[image];
    }
    return sum / (double)batch->examples;
}

static void backward(struct vit *vit, const struct attention_shape *shape) {
    const int64_t images = shape->sequences, width = shape->width, values = images * shape->length * width;
    const struct dropout dropout = embedding_dropout(vit);
    bias_backward(&vit->compute, vit->logits, vit->head.bias_gradient, images, vit->config.classes);
    linear_backward_weight(&vit->head, vit->last_normalized, vit->logits, images);
    linear_backward_input(&vit->head, vit->logits, vit->scratch.narrow, images);
    memset(vit->class_gradient, 0, (size_t)(images * width) * sizeof(float));
    layer_norm_backward(&vit->compute, &vit->last_norm, vit->class_rows, vit->last_mean, vit->last_scale,
                        vit->scratch.narrow, vit->class_gradient, vit->scratch.normalized, images);
    memset(vit->gradient, 0, (size_t)values * sizeof(float));
    for (int64_t image = 0; image < images; image++) {
        memcpy(vit->gradient + image * shape->length * width, vit->class_gradient + image * width,
               (size_t)width * sizeof(float));
    }
    for (int64_t layer = vit->config.layers - 1; layer >= 0; layer--) {
        transformer_backward(&vit->compute, shape, &vit->blocks[layer], &vit->activations[layer], &vit->scratch,
                             vit->gradient);
        model_gradients_ready(&vit->base, FIRST_BLOCK + (int)layer * BLOCK_TENSORS, BLOCK_TENSORS);
    }
    dropout_apply(&vit->compute, &dropout, vit->gradient, values);
    embed_backward(vit, images);
}

static enum app_status run(struct model *model, const struct batch *batch, float factor, int training, double *loss) {
    struct vit *vit = (struct vit *)model;
    enum app_status status = check_batch(vit, batch);
    if (status != APP_OK) {
        return status;
    }
    status = quantizer_refresh(&model->quantizer);
    if (status != APP_OK) {
        return status;
    }
    struct attention_shape shape = vit->largest;
    shape.sequences = batch->examples;
    set_dropout(vit, batch, training);
    forward(vit, &shape, batch);
    count_correct(vit, batch);
    *loss = mean_loss(vit, batch, factor);
    if (training) {
        backward(vit, &shape);
    }
    status = matmul_status();
    return status == APP_OK ? quantizer_status(&model->quantizer) : status;
}

static enum app_status vit_forward_backward(struct model *model, const struct batch *batch, float factor,
                                            double *loss) {
    return run(model, batch, factor, 1, loss);
}

static enum app_status vit_evaluate(struct model *model, const struct batch *batch, double *loss) {
    return run(model, batch, 0, 0, loss);
}

static void vit_destroy(struct model *model) {
    struct vit *vit = (struct vit *)model;
    parameters_release(&vit->base.parameters);
    compute_release(&vit->compute);
    arena_release(&vit->arena);
    quantizer_release(&vit->base.quantizer);
    free(vit->blocks);
    free(vit->activations);
    free(vit);
}

static const struct model_operations operations = {
    .forward_backward = vit_forward_backward, .evaluate = vit_evaluate, .destroy = vit_destroy};

static enum app_status allocate(struct vit *vit, int threads) {
    const struct vit_config *config = &vit->config;
    vit->blocks = calloc((size_t)config->layers, sizeof(*vit->blocks));
    vit->activations = calloc((size_t)config->layers, sizeof(*vit->activations));
    if (!vit->blocks || !vit->activations) {
        return app_fail(APP_FAILED, "There is no memory for %lld layers.", (long long)config->layers);
    }
    enum app_status status = vit_describe(config, &vit->base.parameters);
    if (status == APP_OK && config->qat.bits) {
        status = quantizer_create(&vit->base.quantizer, &config->qat, config->layers);
    }
    if (status == APP_OK) {
        const int64_t widest = 4 * config->width > config->classes ? 4 * config->width : config->classes;
        const int64_t layers = layers_scratch_floats(widest), attention = attention_scratch_floats(vit->largest.length);
        status = compute_create(&vit->compute, threads, layers > attention ? layers : attention);
    }
    if (status == APP_OK) {
        status = parameters_allocate(&vit->base.parameters, vit->seed);
    }
    if (status == APP_OK) {
        vit->arena.used = vit_activation_bytes(config, vit->largest.sequences);
        vit->base.activation_bytes = vit->arena.used;
        status = arena_allocate(&vit->arena);
    }
    return status;
}

enum app_status vit_create(const struct vit_config *config, int64_t images, int threads, uint64_t seed,
                           struct model **model) {
    *model = NULL;
    enum app_status status = vit_check(config);
    if (status != APP_OK) {
        return status;
    }
    struct vit *vit = calloc(1, sizeof(*vit));
    if (!vit) {
        return app_fail(APP_FAILED, "There is no memory for a model.");
    }
    vit->base.operations = &operations;
    vit->seed = seed;
    set_shape(vit, config, images);
    status = allocate(vit, threads);
    if (status == APP_OK) {
        place(vit);
        status = bind(vit);
    }
    if (status != APP_OK) {
        vit_destroy(&vit->base);
        return status;
    }
    *model = &vit->base;
    return APP_OK;
}
