#include "train/transformer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

// The order of a block's tensors in its parameter set.
enum {
    NORM_1_GAIN,
    NORM_1_BIAS,
    ATTENTION_IN_WEIGHT,
    ATTENTION_IN_BIAS,
    ATTENTION_OUT_WEIGHT,
    ATTENTION_OUT_BIAS,
    NORM_2_GAIN,
    NORM_2_BIAS,
    MLP_IN_WEIGHT,
    MLP_IN_BIAS,
    MLP_OUT_WEIGHT,
    MLP_OUT_BIAS,
    TENSORS,
};

int transformer_add_parameters(struct parameter_set *set, const char *prefix, int64_t width, int64_t layers,
                               double deviation) {
    const double residual = deviation / sqrt(2.0 * (double)layers);
    const struct {
        const char *name;
        int64_t rows, cols;
        double deviation;
        float initial;
    } tensors[TENSORS] = {
        [NORM_1_GAIN] = {"ln_1.weight", 1, width, 0, 1},
        [NORM_1_BIAS] = {"ln_1.bias", 1, width, 0, 0},
        [ATTENTION_IN_WEIGHT] = {"attn.c_attn.weight", width, 3 * width, deviation, 0},
        [ATTENTION_IN_BIAS] = {"attn.c_attn.bias", 1, 3 * width, 0, 0},
        [ATTENTION_OUT_WEIGHT] = {"attn.c_proj.weight", width, width, residual, 0},
        [ATTENTION_OUT_BIAS] = {"attn.c_proj.bias", 1, width, 0, 0},
        [NORM_2_GAIN] = {"ln_2.weight", 1, width, 0, 1},
        [NORM_2_BIAS] = {"ln_2.bias", 1, width, 0, 0},
        [MLP_IN_WEIGHT] = {"mlp.c_fc.weight", width, 4 * width, deviation, 0},
        [MLP_IN_BIAS] = {"mlp.c_fc.bias", 1, 4 * width, 0, 0},
        [MLP_OUT_WEIGHT] = {"mlp.c_proj.weight", 4 * width, width, residual, 0},
        [MLP_OUT_BIAS] = {"mlp.c_proj.bias", 1, width, 0, 0},
    };
    int first = set->count;
    for (int i = 0; i < TENSORS; i++) {
        char name[48];
        snprintf(name, sizeof(name), "%s%s", prefix, tensors[i].name);
        if (parameters_add(set, name, tensors[i].rows, tensors[i].cols, tensors[i].rows > 1 ? 2 : 1,
                           tensors[i].deviation, tensors[i].initial) < 0) {
            return -1;
        }
    }
    return first;
}

struct linear transformer_bind_linear(const struct parameter *weight, const struct parameter *bias) {
    return (struct linear){.weight = weight->values,
                           .bias = bias->values,
                           .weight_gradient = weight->gradients,
                           .bias_gradient = bias->gradients,
                           .inputs = weight->rows,
                           .outputs = weight->cols};
}

struct layer_norm transformer_bind_norm(const struct parameter *gain, const struct parameter *bias) {
    return (struct layer_norm){.gain = gain->values,
                               .bias = bias->values,
                               .gain_gradient = gain->gradients,
                               .bias_gradient = bias->gradients,
                               .width = gain->cols};
}

struct transformer_block transformer_bind(const struct parameter_set *set, int first) {
    const struct parameter *tensors = set->list + first;
    return (struct transformer_block){
        .norm_1 = transformer_bind_norm(&tensors[NORM_1_GAIN], &tensors[NORM_1_BIAS]),
        .attention_in = transformer_bind_linear(&tensors[ATTENTION_IN_WEIGHT], &tensors[ATTENTION_IN_BIAS]),
        .attention_out = transformer_bind_linear(&tensors[ATTENTION_OUT_WEIGHT], &tensors[ATTENTION_OUT_BIAS]),
        .norm_2 = transformer_bind_norm(&tensors[NORM_2_GAIN], &tensors[NORM_2_BIAS]),
        .mlp_in = transformer_bind_linear(&tensors[MLP_IN_WEIGHT], &tensors[MLP_IN_BIAS]),
        .mlp_out = transformer_bind_linear(&tensors[MLP_OUT_WEIGHT], &tensors[MLP_OUT_BIAS])};
}

static void quantize_linear(struct linear *linear, const struct quantized_linear *layer) {
    linear->weight = layer->values;
    linear->quantized = layer;
}

void transformer_quantize(struct transformer_block *block, const struct quantized_linear layers[4]) {
    quantize_linear(&block->attention_in, &layers[0]);
    quantize_linear(&block->attention_out, &layers[1]);
    quantize_linear(&block->mlp_in, &layers[2]);
    quantize_linear(&block->mlp_out, &layers[3]);
}

void transformer_place_activations(struct arena *arena, const struct attention_shape *shape,
                                   struct transformer_activations *activations) {
    const int64_t rows = shape->sequences * shape->length, width = shape->width;
    activations->mean_1 = arena_floats(arena, rows);
    activations->scale_1 = arena_floats(arena, rows);
    activations->qkv = arena_floats(arena, rows * 3 * width);
    activations->log_sums = arena_floats(arena, rows * shape->heads);
    activations->attended = arena_floats(arena, rows * width);
    activations->middle = arena_floats(arena, rows * width);
    activations->mean_2 = arena_floats(arena, rows);
    activations->scale_2 = arena_floats(arena, rows);
    activations->hidden = arena_floats(arena, rows * 4 * width);
    activations->output = arena_floats(arena, rows * width);
}

void transformer_place_scratch(struct arena *arena, const struct attention_shape *shape,
                               struct transformer_scratch *scratch) {
    const int64_t rows = shape->sequences * shape->length, width = shape->width;
    scratch->normalized = arena_floats(arena, rows * width);
    scratch->narrow = arena_floats(arena, rows * width);
    scratch->wide = arena_floats(arena, rows * 4 * width);
    scratch->gated = arena_floats(arena, rows * 4 * width);
}

// out = residual + dropout(projection of x).
static void project_forward(const struct compute *compute, const struct linear *projection,
                            const struct dropout *dropout, const float *x, const float *residual, float *out,
                            int64_t rows) {
    const int64_t count = rows * projection->outputs;
    if (dropout->rate <= 0) {
        linear_forward(projection, x, residual, out, rows);
        return;
    }
    linear_forward(projection, x, NULL, out, rows);
    dropout_apply(compute, dropout, out, count);
#pragma omp parallel for schedule(static) num_threads(compute->threads)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t first = row * projection->outputs;
        compute->kernels->add(out + first, residual + first, out + first, projection->outputs);
    }
}

// The gradient of the projection's result: that of the sum, or, with dropout, its masked copy in `masked`.
static const float *project_backward(const struct compute *compute, const struct linear *projection,
                                     const struct dropout *dropout, const float *gradient, float *masked,
                                     int64_t rows) {
    if (dropout->rate > 0) {
        memcpy(masked, gradient, (size_t)(rows * projection->outputs) * sizeof(float));
        dropout_apply(compute, dropout, masked, rows * projection->outputs);
        gradient = masked;
    }
    bias_backward(compute, gradient, projection->bias_gradient, rows, projection->outputs);
    return gradient;
}

static struct dropout mlp_dropout(const struct transformer_block *block) {
    struct dropout dropout = block->dropout;
    dropout.stream++;
    return dropout;
}

void transformer_forward(const struct compute *compute, const struct attention_shape *shape,
                         const struct transformer_block *block, const struct transformer_activations *activations,
                         const struct transformer_scratch *scratch) {
    const struct transformer_activations *a = activations;
    const int64_t rows = shape->sequences * shape->length;
    const struct dropout dropout = mlp_dropout(block);

    layer_norm_forward(compute, &block->norm_1, a->input, scratch->normalized, a->mean_1, a->scale_1, rows);
    linear_forward(&block->attention_in, scratch->normalized, NULL, a->qkv, rows);
    attention_forward(compute, shape, a->qkv, a->attended, a->log_sums);
    project_forward(compute, &block->attention_out, &block->dropout, a->attended, a->input, a->middle, rows);

    layer_norm_forward(compute, &block->norm_2, a->middle, scratch->normalized, a->mean_2, a->scale_2, rows);
    linear_forward(&block->mlp_in, scratch->normalized, NULL, a->hidden, rows);
    gelu_forward(compute, a->hidden, scratch->gated, rows, 4 * shape->width);
    project_forward(compute, &block->mlp_out, &dropout, scratch->gated, a->middle, a->output, rows);
}

void transformer_backward(const struct compute *compute, const struct attention_shape *shape,
                          const struct transformer_block *block, const struct transformer_activations *activations,
                          const struct transformer_scratch *scratch, float *gradient) {
    const struct transformer_activations *a = activations;
    const int64_t rows = shape->sequences * shape->length, width = shape->width;

    const struct dropout dropout = mlp_dropout(block);

    // The MLP: scratch->wide holds the gradient of the hidden layer, scratch->gated GELU's output.
    const float *branch = project_backward(compute, &block->mlp_out, &dropout, gradient, scratch->normalized, rows);
    linear_backward_input(&block->mlp_out, branch, scratch->wide, rows);
    gelu_backward(compute, a->hidden, scratch->wide, scratch->gated, block->mlp_in.bias_gradient, rows, 4 * width);
    linear_backward_weight(&block->mlp_out, scratch->gated, branch, rows);
    linear_backward_input(&block->mlp_in, scratch->wide, scratch->narrow, rows);
    layer_norm_backward(compute, &block->norm_2, a->middle, a->mean_2, a->scale_2, scratch->narrow, gradient,
                        scratch->normalized, rows);
    linear_backward_weight(&block->mlp_in, scratch->normalized, scratch->wide, rows);

    // Attention: scratch->wide holds the gradient of queries, keys and values.
    branch = project_backward(compute, &block->attention_out, &block->dropout, gradient, scratch->normalized, rows);
    linear_backward_input(&block->attention_out, branch, scratch->narrow, rows);
    linear_backward_weight(&block->attention_out, a->attended, branch, rows);
    attention_backward(compute, shape, a->qkv, a->attended, a->log_sums, scratch->narrow, scratch->wide);
    bias_backward(compute, scratch->wide, block->attention_in.bias_gradient, rows, 3 * width);
    linear_backward_input(&block->attention_in, scratch->wide, scratch->narrow, rows);
    layer_norm_backward(compute, &block->norm_1, a->input, a->mean_1, a->scale_1, scratch->narrow, gradient,
                        scratch->normalized, rows);
    linear_backward_weight(&block->attention_in, scratch->normalized, scratch->wide, rows);
}
