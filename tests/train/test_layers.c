// Every layer against its formula: the forward pass against a plain one in double (reference.h), the
// backward pass against central differences of that one, with every instruction set of this processor.
//
// Thresholds. The layers here sum at most n = 200 terms in float32, whose rounding error is at most
// n u = 200 x 6e-8 = 1.2e-5 of the sum of the terms' magnitudes; with random signs that sum is within 10 x
// of the largest result of its tensor. Differences of the double reference with h = 1e-4 are good to
// h^2 = 1e-8. So 1e-4 of the largest result or gradient in the tensor is what rounding may do, and a
// wrong term, a missing factor or a wrong index is far above it.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "train/attention.h"
#include "train/layers.h"
#include "train/matmul.h"
#include "train/memory.h"
#include "train/random.h"
#include "train/reference.h"
#include "train/transformer.h"

enum { MOST_INPUTS = 16, SEED = 20261122 };
static const double threshold = 1e-4;

// A layer under test. Inputs are everything that has a gradient: activations and parameters.
struct layer {
    const char *name;
    const struct compute *compute;
    struct attention_shape shape; // of layers that have one; rows = sequences x length otherwise
    int64_t rows, width, outputs; // as the layer needs them
    int inputs;
    struct {
        float *values, *gradient;
        int64_t count;
        double scale, offset; // inputs are offset + scale x normal
    } input[MOST_INPUTS];
    int64_t out_count;
    void (*reference)(const struct layer *layer, double *const *inputs, double *out);
    // Computes `out`, and from out_gradient the gradients of all inputs (zero before).
    void (*run)(const struct layer *layer, float *out, const float *out_gradient);
};

static void add_input(struct layer *layer, int64_t count, double scale, double offset) {
    int i = layer->inputs++;
    layer->input[i].values = memory_floats(count);
    layer->input[i].gradient = memory_floats(count);
    layer->input[i].count = count;
    layer->input[i].scale = scale;
    layer->input[i].offset = offset;
}

static void fill_inputs(struct layer *layer) {
    for (int i = 0; i < layer->inputs; i++) {
        random_normal_fill(layer->input[i].values, layer->input[i].count, layer->input[i].scale, SEED, (uint64_t)i);
        for (int64_t j = 0; j < layer->input[i].count; j++) {
            layer->input[i].values[j] += (float)layer->input[i].offset;
        }
        memset(layer->input[i].gradient, 0, (size_t)layer->input[i].count * sizeof(float));
    }
}

static double largest(const float *values, int64_t count) {
    double result = 1e-30;
    for (int64_t i = 0; i < count; i++) {
        result = fmax(result, fabs(values[i]));
    }
    return result;
}

// The sum of weights x outputs.
static double objective(const struct layer *layer, double *const *inputs, double *out, const float *weights) {
    double sum = 0;
    layer->reference(layer, inputs, out);
    for (int64_t i = 0; i < layer->out_count; i++) {
        sum += weights[i] * out[i];
    }
    return sum;
}

static int check_input(const struct layer *layer, double *const *inputs, int index, const float *weights, double *out) {
    const int64_t count = layer->input[index].count, step = count > 150 ? count / 150 : 1;
    const double bound = threshold * largest(layer->input[index].gradient, count), h = 1e-4;
    for (int64_t j = 0; j < count; j += step) {
        const double value = inputs[index][j];
        inputs[index][j] = value + h;
        double above = objective(layer, inputs, out, weights);
        inputs[index][j] = value - h;
        double below = objective(layer, inputs, out, weights);
        inputs[index][j] = value;
        double expected = (above - below) / (2 * h), actual = layer->input[index].gradient[j];
        if (!(fabs(actual - expected) <= bound)) {
            print_error("%s (%s, seed %d): gradient of input %d, element %lld is %.9g, expected %.9g +- %.2g\n",
                        layer->name, layer->compute->kernels->name, SEED, index, (long long)j, actual, expected, bound);
            return 0;
        }
    }
    return 1;
}

static int check_forward(const struct layer *layer, double *const *inputs, const float *out, double *expected) {
    layer->reference(layer, inputs, expected);
    const double bound = threshold * largest(out, layer->out_count);
    for (int64_t i = 0; i < layer->out_count; i++) {
        if (!(fabs(out[i] - expected[i]) <= bound)) {
            print_error("%s (%s, seed %d): output %lld is %.9g, expected %.9g\n", layer->name,
                        layer->compute->kernels->name, SEED, (long long)i, (double)out[i], expected[i]);
            return 0;
        }
    }
    return 1;
}

static void check_layer(struct layer *layer) {
    float *out = memory_floats(layer->out_count), *weights = memory_floats(layer->out_count);
    double *expected = calloc((size_t)layer->out_count, sizeof(double));
    double *inputs[MOST_INPUTS];
    fill_inputs(layer);
    random_normal_fill(weights, layer->out_count, 1, SEED, 77);
    for (int i = 0; i < layer->inputs; i++) {
        inputs[i] = calloc((size_t)layer->input[i].count, sizeof(double));
        for (int64_t j = 0; j < layer->input[i].count; j++) {
            inputs[i][j] = layer->input[i].values[j];
        }
    }
    layer->run(layer, out, weights);
    assert_int_equal(matmul_status(), APP_OK);
    int good = check_forward(layer, inputs, out, expected);
    for (int i = 0; i < layer->inputs; i++) {
        good &= check_input(layer, inputs, i, weights, expected);
    }
    for (int i = 0; i < layer->inputs; i++) {
        free(inputs[i]);
        free(layer->input[i].values);
        free(layer->input[i].gradient);
    }
    free(out);
    free(weights);
    free(expected);
    assert_true(good);
}

// Runs `body` with the kernels of every instruction set that this processor has.
static void with_every_kernel(void (*body)(const struct compute *compute)) {
    static const char *const names[] = {"avx512", "avx2", "generic"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct compute compute;
        setenv("STQUANT_TRAIN_KERNELS", names[i], 1);
        assert_int_equal(compute_create(&compute, 2, 1 << 16), APP_OK);
        unsetenv("STQUANT_TRAIN_KERNELS");
        if (strcmp(compute.kernels->name, names[i]) == 0) {
            body(&compute);
        } else {
            print_message("# %s kernels cannot run here\n", names[i]);
        }
        compute_release(&compute);
    }
}

// --- linear: inputs x, weight, bias, residual ---

static void linear_reference(const struct layer *layer, double *const *inputs, double *out) {
    reference_linear(inputs[0], inputs[1], inputs[2], out, layer->rows, layer->width, layer->outputs);
    for (int64_t i = 0; i < layer->out_count; i++) {
        out[i] += inputs[3][i];
    }
}

static void linear_run(const struct layer *layer, float *out, const float *out_gradient) {
    struct linear linear = {.weight = layer->input[1].values,
                            .bias = layer->input[2].values,
                            .weight_gradient = layer->input[1].gradient,
                            .bias_gradient = layer->input[2].gradient,
                            .inputs = layer->width,
                            .outputs = layer->outputs};
    linear_forward(&linear, layer->input[0].values, layer->input[3].values, out, layer->rows);
    linear_backward_input(&linear, out_gradient, layer->input[0].gradient, layer->rows);
    linear_backward_weight(&linear, layer->input[0].values, out_gradient, layer->rows);
    bias_backward(layer->compute, out_gradient, linear.bias_gradient, layer->rows, layer->outputs);
    memcpy(layer->input[3].gradient, out_gradient, (size_t)layer->out_count * sizeof(float));
}

static void check_linear(const struct compute *compute) {
    const int64_t sizes[][3] = {{1, 1, 1}, {7, 33, 65}, {19, 64, 150}};
    for (size_t i = 0; i < 3; i++) {
        struct layer layer = {.name = "linear",
                              .compute = compute,
                              .rows = sizes[i][0],
                              .width = sizes[i][1],
                              .outputs = sizes[i][2],
                              .out_count = sizes[i][0] * sizes[i][2],
                              .reference = linear_reference,
                              .run = linear_run};
        add_input(&layer, layer.rows * layer.width, 1, 0);
        add_input(&layer, layer.width * layer.outputs, 1, 0);
        add_input(&layer, layer.outputs, 1, 0);
        add_input(&layer, layer.out_count, 1, 0);
        check_layer(&layer);
    }
}

// --- layer norm: inputs x, gain, bias ---

static void layer_norm_reference(const struct layer *layer, double *const *inputs, double *out) {
    reference_layer_norm(inputs[0], inputs[1], inputs[2], out, layer->rows, layer->width);
}

static void layer_norm_run(const struct layer *layer, float *out, const float *out_gradient) {
    struct layer_norm norm = {.gain = layer->input[1].values,
                              .bias = layer->input[2].values,
                              .gain_gradient = layer->input[1].gradient,
                              .bias_gradient = layer->input[2].gradient,
                              .width = layer->width};
    float *mean = memory_floats(layer->rows), *scale = memory_floats(layer->rows);
    float *again = memory_floats(layer->out_count);
    layer_norm_forward(layer->compute, &norm, layer->input[0].values, out, mean, scale, layer->rows);
    layer_norm_backward(layer->compute, &norm, layer->input[0].values, mean, scale, out_gradient,
                        layer->input[0].gradient, again, layer->rows);
    for (int64_t i = 0; i < layer->out_count; i++) { // one may be a fused product, the other not
        assert_true(fabsf(again[i] - out[i]) <= 1e-5f * (1 + fabsf(out[i])));
    }
    free(mean);
    free(scale);
    free(again);
}

static void check_layer_norm(const struct compute *compute) {
    const int64_t sizes[][2] = {{1, 2}, {5, 17}, {3, 64}, {2, 200}};
    for (size_t i = 0; i < 4; i++) {
        struct layer layer = {.name = "layer norm",
                              .compute = compute,
                              .rows = sizes[i][0],
                              .width = sizes[i][1],
                              .out_count = sizes[i][0] * sizes[i][1],
                              .reference = layer_norm_reference,
                              .run = layer_norm_run};
        add_input(&layer, layer.out_count, 2, 1);
        add_input(&layer, layer.width, 0.3, 1);
        add_input(&layer, layer.width, 0.3, 0);
        check_layer(&layer);
    }
}

// --- GELU: inputs x, bias (x + bias goes in, as in the MLP) ---

static void gelu_reference(const struct layer *layer, double *const *inputs, double *out) {
    for (int64_t i = 0; i < layer->out_count; i++) {
        out[i] = reference_gelu(inputs[0][i] + inputs[1][i % layer->width]);
    }
}

static void gelu_run(const struct layer *layer, float *out, const float *out_gradient) {
    float *sum = memory_floats(layer->out_count), *again = memory_floats(layer->out_count);
    for (int64_t i = 0; i < layer->out_count; i++) {
        sum[i] = layer->input[0].values[i] + layer->input[1].values[i % layer->width];
    }
    gelu_forward(layer->compute, sum, out, layer->rows, layer->width);
    memcpy(layer->input[0].gradient, out_gradient, (size_t)layer->out_count * sizeof(float));
    gelu_backward(layer->compute, sum, layer->input[0].gradient, again, layer->input[1].gradient, layer->rows,
                  layer->width);
    for (int64_t i = 0; i < layer->out_count; i++) {
        assert_true(fabsf(again[i] - out[i]) <= 1e-6f * (1 + fabsf(out[i])));
    }
    free(sum);
    free(again);
}

static void check_gelu(const struct compute *compute) {
    struct layer layer = {.name = "GELU",
                          .compute = compute,
                          .rows = 5,
                          .width = 39,
                          .out_count = 5 * 39,
                          .reference = gelu_reference,
                          .run = gelu_run};
    add_input(&layer, layer.out_count, 2.5, 0);
    add_input(&layer, layer.width, 0.5, 0);
    check_layer(&layer);
}

// --- attention: input qkv ---

static void attention_reference(const struct layer *layer, double *const *inputs, double *out) {
    const struct attention_shape *shape = &layer->shape;
    reference_attention(inputs[0], out, shape->sequences, shape->length, shape->width, shape->heads, shape->causal);
}

static void attention_run(const struct layer *layer, float *out, const float *out_gradient) {
    const struct attention_shape *shape = &layer->shape;
    float *log_sums = memory_floats(shape->sequences * shape->heads * shape->length);
    attention_forward(layer->compute, shape, layer->input[0].values, out, log_sums);
    // What the buffer held before must not matter.
    memset(layer->input[0].gradient, 0x7f, (size_t)layer->input[0].count * sizeof(float));
    attention_backward(layer->compute, shape, layer->input[0].values, out, log_sums, out_gradient,
                       layer->input[0].gradient);
    free(log_sums);
}

static void check_attention(const struct compute *compute) {
    // Sequences (B), length (T), width (C), heads: one position, odd sizes, more than one block of queries.
    const int64_t sizes[][4] = {{1, 1, 4, 1}, {2, 5, 6, 3}, {1, 17, 8, 2}, {1, 70, 6, 2}, {1, 130, 3, 1}};
    for (int causal = 0; causal <= 1; causal++) {
        for (size_t i = 0; i < 5; i++) {
            struct layer layer = {.name = causal ? "causal attention" : "attention",
                                  .compute = compute,
                                  .shape = {.sequences = sizes[i][0],
                                            .length = sizes[i][1],
                                            .width = sizes[i][2],
                                            .heads = sizes[i][3],
                                            .causal = causal},
                                  .out_count = sizes[i][0] * sizes[i][1] * sizes[i][2],
                                  .reference = attention_reference,
                                  .run = attention_run};
            add_input(&layer, 3 * layer.out_count, 1, 0);
            check_layer(&layer);
        }
    }
}

// --- embeddings: inputs token table, position table ---

enum { VOCABULARY = 11, POSITIONS = 6, EMBEDDING_WIDTH = 18 };

static int32_t embedded_token(int64_t row) { return (int32_t)random_below(SEED, 5, (uint64_t)row, VOCABULARY); }

static void embedding_reference(const struct layer *layer, double *const *inputs, double *out) {
    for (int64_t i = 0; i < layer->out_count; i++) {
        int64_t row = i / EMBEDDING_WIDTH, j = i % EMBEDDING_WIDTH;
        out[i] =
            inputs[0][embedded_token(row) * EMBEDDING_WIDTH + j] + inputs[1][row % POSITIONS * EMBEDDING_WIDTH + j];
    }
}

static void embedding_run(const struct layer *layer, float *out, const float *out_gradient) {
    int32_t *tokens = malloc((size_t)layer->rows * sizeof(*tokens));
    for (int64_t row = 0; row < layer->rows; row++) {
        tokens[row] = embedded_token(row);
    }
    embedding_forward(layer->compute, tokens, layer->input[0].values, layer->input[1].values, out, layer->rows,
                      POSITIONS, EMBEDDING_WIDTH);
    embedding_backward(layer->compute, tokens, out_gradient, layer->input[0].gradient, layer->input[1].gradient,
                       layer->rows, POSITIONS, EMBEDDING_WIDTH);
    free(tokens);
}

static void check_embedding(const struct compute *compute) {
    struct layer layer = {.name = "embedding",
                          .compute = compute,
                          .rows = 4 * POSITIONS,
                          .out_count = 4 * POSITIONS * EMBEDDING_WIDTH,
                          .reference = embedding_reference,
                          .run = embedding_run};
    add_input(&layer, VOCABULARY * EMBEDDING_WIDTH, 1, 0);
    add_input(&layer, POSITIONS * EMBEDDING_WIDTH, 1, 0);
    check_layer(&layer);
}

// --- cross-entropy: input logits; every row's loss has the same weight ---

static const float loss_factor = 0.25f;

static int32_t loss_target(const struct layer *layer, int64_t row) {
    return (int32_t)random_below(SEED, 6, (uint64_t)row, (uint64_t)layer->width);
}

static void cross_entropy_reference(const struct layer *layer, double *const *inputs, double *out) {
    out[0] = 0;
    for (int64_t row = 0; row < layer->rows; row++) {
        out[0] += loss_factor *
                  reference_cross_entropy(inputs[0] + row * layer->width, layer->width, loss_target(layer, row));
    }
}

static void cross_entropy_run(const struct layer *layer, float *out, const float *out_gradient) {
    int32_t *targets = malloc((size_t)layer->rows * sizeof(*targets));
    float *losses = memory_floats(layer->rows);
    for (int64_t row = 0; row < layer->rows; row++) {
        targets[row] = loss_target(layer, row);
    }
    memcpy(layer->input[0].gradient, layer->input[0].values, (size_t)layer->input[0].count * sizeof(float));
    cross_entropy(layer->compute, layer->input[0].gradient, targets, loss_factor * out_gradient[0], losses, layer->rows,
                  layer->width);
    out[0] = 0;
    for (int64_t row = 0; row < layer->rows; row++) {
        out[0] += loss_factor * losses[row];
    }
    free(targets);
    free(losses);
}

static void check_cross_entropy(const struct compute *compute) {
    const double offsets[] = {0, 300, -2e4}; // logits far from zero must not overflow
    for (size_t i = 0; i < 3; i++) {
        struct layer layer = {.name = "cross-entropy",
                              .compute = compute,
                              .rows = 4,
                              .width = 53,
                              .out_count = 1,
                              .reference = cross_entropy_reference,
                              .run = cross_entropy_run};
        add_input(&layer, 4 * 53, 2, offsets[i]);
        check_layer(&layer);
    }
}

// --- the transformer block: inputs x and its twelve tensors ---

static void block_reference(const struct layer *layer, double *const *inputs, double *out) {
    const struct attention_shape *shape = &layer->shape;
    const int64_t rows = layer->rows, width = shape->width;
    double *normalized = calloc((size_t)(rows * 10 * width), sizeof(double));
    double *qkv = normalized + rows * width, *attended = qkv + rows * 3 * width, *middle = attended + rows * width;
    double *hidden = middle + rows * width;
    reference_layer_norm(inputs[0], inputs[1], inputs[2], normalized, rows, width);
    reference_linear(normalized, inputs[3], inputs[4], qkv, rows, width, 3 * width);
    reference_attention(qkv, attended, shape->sequences, shape->length, width, shape->heads, shape->causal);
    reference_linear(attended, inputs[5], inputs[6], middle, rows, width, width);
    for (int64_t i = 0; i < rows * width; i++) {
        middle[i] += inputs[0][i];
    }
    reference_layer_norm(middle, inputs[7], inputs[8], normalized, rows, width);
    reference_linear(normalized, inputs[9], inputs[10], hidden, rows, width, 4 * width);
    for (int64_t i = 0; i < rows * 4 * width; i++) {
        hidden[i] = reference_gelu(hidden[i]);
    }
    reference_linear(hidden, inputs[11], inputs[12], out, rows, 4 * width, width);
    for (int64_t i = 0; i < rows * width; i++) {
        out[i] += middle[i];
    }
    free(normalized);
}

static void block_run(const struct layer *layer, float *out, const float *out_gradient) {
    const struct attention_shape *shape = &layer->shape;
    struct parameter tensors[12];
    struct parameter_set set = {.list = tensors, .count = 12};
    struct parameter_set described = {0};
    struct transformer_activations activations;
    struct transformer_scratch scratch;
    struct arena arena = {0};
    assert_int_equal(transformer_add_parameters(&described, "h.0.", shape->width, 2, 0.02), 0);
    for (int i = 0; i < 12; i++) {
        tensors[i] = described.list[i];
        tensors[i].values = layer->input[i + 1].values;
        tensors[i].gradients = layer->input[i + 1].gradient;
        assert_int_equal(tensors[i].rows * tensors[i].cols, layer->input[i + 1].count);
    }
    struct transformer_block block = transformer_bind(&set, 0);
    for (int pass = 0; pass < 2; pass++) {
        transformer_place_activations(&arena, shape, &activations);
        transformer_place_scratch(&arena, shape, &scratch);
        if (pass == 0) {
            assert_int_equal(arena_allocate(&arena), APP_OK);
        }
    }
    activations.input = layer->input[0].values;
    transformer_forward(layer->compute, shape, &block, &activations, &scratch);
    memcpy(out, activations.output, (size_t)layer->out_count * sizeof(float));
    memcpy(layer->input[0].gradient, out_gradient, (size_t)layer->out_count * sizeof(float));
    transformer_backward(layer->compute, shape, &block, &activations, &scratch, layer->input[0].gradient);
    arena_release(&arena);
    parameters_release(&described);
}

static void check_block(const struct compute *compute) {
    for (int causal = 0; causal <= 1; causal++) {
        const int64_t width = 12, rows = 2 * 5;
        struct layer layer = {.name = causal ? "causal block" : "block",
                              .compute = compute,
                              .rows = rows,
                              .shape = {.sequences = 2, .length = 5, .width = width, .heads = 3, .causal = causal},
                              .out_count = rows * width,
                              .reference = block_reference,
                              .run = block_run};
        add_input(&layer, rows * width, 1, 0);
        for (int norm = 0; norm < 2; norm++) {
            const int64_t wide = norm ? 4 * width : 3 * width, narrow = norm ? 4 * width : width;
            add_input(&layer, width, 0.3, 1);
            add_input(&layer, width, 0.3, 0);
            add_input(&layer, width * wide, 0.3, 0);
            add_input(&layer, wide, 0.3, 0);
            add_input(&layer, narrow * width, 0.3, 0);
            add_input(&layer, width, 0.3, 0);
        }
        check_layer(&layer);
    }
}

#define LAYER_TEST(NAME)                    \
    static void test_##NAME(void **state) { \
        (void)state;                        \
        with_every_kernel(check_##NAME);    \
    }

LAYER_TEST(linear)
LAYER_TEST(layer_norm)
LAYER_TEST(gelu)
LAYER_TEST(attention)
LAYER_TEST(embedding)
LAYER_TEST(cross_entropy)
LAYER_TEST(block)

// --- what a diverged run must show: NaN and infinity in an input reach the output ---

static void check_poison(const struct compute *compute) {
    const float poisons[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        float x[40], out[40], mean, scale, inverse_sum, log_sum;
        float gain[40], bias[40];
        for (int j = 0; j < 40; j++) {
            x[j] = (float)j / 40, gain[j] = 1, bias[j] = 0;
        }
        x[21] = poisons[i];
        compute->kernels->layer_norm(x, gain, bias, out, &mean, &scale, 1, 40);
        assert_true(isnan(out[0]));
        compute->kernels->gelu(x, out, 40);
        assert_true(poisons[i] < 0 ? out[21] == 0 || isnan(out[21]) : !isfinite(out[21]));
        if (!(poisons[i] < 0)) { // minus infinity is a legal logit: probability 0
            float logits[40];
            memcpy(logits, x, sizeof(logits));
            assert_false(isfinite(compute->kernels->cross_entropy(logits, 40, 3, 1)));
            float scores[48];
            memcpy(scores, x, sizeof(x));
            compute->kernels->attention_softmax(scores, 48, 1, 40, 1, 0, &inverse_sum, &log_sum);
            assert_false(isfinite(log_sum) && isfinite(scores[0] * inverse_sum));
        }
    }
}

LAYER_TEST(poison)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),    cmocka_unit_test(test_layer_norm), cmocka_unit_test(test_gelu),
        cmocka_unit_test(test_attention), cmocka_unit_test(test_embedding),  cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_block),     cmocka_unit_test(test_poison),
    };
    int failed = cmocka_run_group_tests_name("layers", tests, NULL, NULL);
    matmul_release();
    return failed;
}
