// Quantization-aware training of whole models, against the same model with the quantized weights as its floats and the
// formulas of docs/qat.md in double. tests/unit/test_qat.c covers the library's part.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "train/gpt2.h"
#include "train/random.h"
#include "train/vit.h"

enum { EXAMPLES = 3, LENGTH = 24, SIDE = 12, SEED = 23, LAYERS = 2 };

static int32_t inputs[EXAMPLES * LENGTH], targets[EXAMPLES * LENGTH];
static float images[EXAMPLES * SIDE * SIDE];

// One of the models, so that every test runs on both.
struct kind {
    const char *name;
    struct model *(*create)(const stq_qat_config *qat);
    struct batch (*batch)(void);
};

static struct model *create_gpt2(const stq_qat_config *qat) {
    struct gpt2_config config = {.layers = LAYERS, .width = 32, .heads = 4, .context = LENGTH, .vocabulary = 61};
    struct model *model;
    config.qat = qat ? *qat : config.qat;
    assert_int_equal(gpt2_create(&config, EXAMPLES, LENGTH, 2, SEED, &model), APP_OK);
    return model;
}

static struct batch gpt2_batch(void) {
    for (int i = 0; i < EXAMPLES * LENGTH; i++) {
        inputs[i] = (int32_t)random_below(SEED, 3, (uint64_t)i, 61);
        targets[i] = (int32_t)random_below(SEED, 4, (uint64_t)i, 61);
    }
    return (struct batch){.examples = EXAMPLES, .length = LENGTH, .inputs = inputs, .targets = targets};
}

static struct model *create_vit(const stq_qat_config *qat) {
    struct vit_config config = {.layers = LAYERS,
                                .width = 32,
                                .heads = 4,
                                .patch = 4,
                                .channels = 1,
                                .rows = SIDE,
                                .columns = SIDE,
                                .classes = 5};
    struct model *model;
    config.qat = qat ? *qat : config.qat;
    assert_int_equal(vit_create(&config, EXAMPLES, 2, SEED, &model), APP_OK);
    return model;
}

static struct batch vit_batch(void) {
    random_normal_fill(images, EXAMPLES * SIDE * SIDE, 1, SEED, 5);
    for (int i = 0; i < EXAMPLES; i++) {
        targets[i] = (int32_t)random_below(SEED, 6, (uint64_t)i, 5);
    }
    return (struct batch){.examples = EXAMPLES, .images = images, .targets = targets, .position = 3};
}

static const struct kind kinds[] = {{"gpt2", create_gpt2, gpt2_batch}, {"vit", create_vit, vit_batch}};

static stq_qat_config configure(stq_qat_estimator estimator, uint32_t bits) {
    stq_qat_config config = stq_qat_defaults();
    config.estimator = estimator;
    config.bits = bits;
    return config;
}

static void destroy(struct model *model) { model->operations->destroy(model); }

// Steps a little shorter than the initial ones, so that some weights are clipped.
static struct model *create(const struct kind *kind, const stq_qat_config *qat) {
    struct model *model = kind->create(qat);
    for (int i = 0; i < model->quantizer.count; i++) {
        const struct parameter *steps = model->quantizer.layers[i].steps;
        for (int64_t j = 0; j < steps->cols; j++) {
            steps->values[j] *= 0.77f;
        }
    }
    return model;
}

static double backward(struct model *model, const struct batch *batch, float factor) {
    double loss;
    assert_int_equal(model->operations->forward_backward(model, batch, factor, &loss), APP_OK);
    return loss;
}

// The float model whose weights are the quantized ones.
static struct model *create_rounded(const struct kind *kind, const struct model *quantized) {
    struct model *model = kind->create(NULL);
    assert_int_equal(quantized->parameters.count, model->parameters.count + 4 * LAYERS);
    assert_int_equal(quantizer_round(&quantized->parameters, &quantized->quantizer.config), APP_OK);
    memcpy(model->parameters.values, quantized->parameters.values, (size_t)model->parameters.padded * sizeof(float));
    return model;
}

static double factor_of(const stq_qat_config *config, double d) {
    if (config->estimator == STQ_QAT_STRAIGHT_THROUGH) {
        return 1;
    }
    if (config->estimator == STQ_QAT_SOFT) {
        const double k = log(2 / config->softness - 1), c = cosh(k * (0.5 - fabs(d)));
        return k / (2 * tanh(k / 2)) / (c * c);
    }
    const double s = sqrt(2) * 3.141592653589793 * config->amplitudes[0] * cos(3.141592653589793 * d);
    return (1 - s) / (1 + s);
}

// Gradients of one layer from those of the rounded model. Where v lies within 1e-4 of a tie or an end of the range,
// float and double may differ in its side: such weights are left out, with their whole column for the step's gradient.
static void check_layer(const struct quantized_linear *layer, const struct parameter *rounded) {
    const stq_qat_config *config = &layer->quantizer->config;
    const int64_t rows = layer->weight->rows, cols = layer->weight->cols;
    const double lowest = -(double)(1 << (config->bits - 1)), highest = (1 << (config->bits - 1)) - 1;
    const double scale = 1 / sqrt((double)(rows * cols) * fmax(highest, 1));
    int64_t left_out = 0;
    for (int64_t j = 0; j < cols; j++) {
        const double step = layer->steps->values[j];
        double sum = 0, magnitude = 0;
        int skipped = 0;
        for (int64_t i = 0; i < rows; i++) {
            const double v = layer->weight->values[i * cols + j] / step, g = rounded->gradients[i * cols + j];
            const double d = v - rint(v), expected = v < lowest || v > highest ? 0 : g * factor_of(config, d);
            sum += g * (v < lowest ? lowest : v > highest ? highest : -d);
            magnitude += fabs(g) * highest;
            if (fabs(fabs(d) - 0.5) < 1e-4 || fabs(v - lowest) < 1e-4 || fabs(v - highest) < 1e-4) {
                left_out++;
                skipped = 1;
            } else if (fabs(layer->weight->gradients[i * cols + j] - expected) > 2e-5 * fabs(g) + 1e-9) {
                fail_msg("%s: gradient of a weight %g, expected %g", layer->weight->name,
                         layer->weight->gradients[i * cols + j], expected);
            }
        }
        if (!skipped && fabs(layer->steps->gradients[j] - scale * sum) > 1e-5 * scale * magnitude + 1e-9) {
            fail_msg("%s: gradient of a step %g, expected %g", layer->steps->name, layer->steps->gradients[j],
                     scale * sum);
        }
    }
    assert_true(left_out < rows * cols / 100);
}

// Weights before they are rounded, for the comparison of their gradients.
static void check_model(const struct kind *kind, const stq_qat_config *config) {
    struct model *model = create(kind, config);
    struct batch batch = kind->batch();
    const size_t bytes = (size_t)model->parameters.padded * sizeof(float);
    float *values = malloc(bytes);
    memcpy(values, model->parameters.values, bytes);
    const double loss = backward(model, &batch, 1);
    assert_memory_equal(values, model->parameters.values, bytes); // training computes with copies
    struct model *rounded = create_rounded(kind, model);
    memcpy(model->parameters.values, values, bytes);
    assert_true(backward(rounded, &batch, 1) == loss);
    double evaluated;
    assert_int_equal(model->operations->evaluate(model, &batch, &evaluated), APP_OK);
    assert_true(evaluated == loss);
    int layer = 0;
    for (int i = 0; i < rounded->parameters.count; i++) {
        const struct parameter *mine = &model->parameters.list[i], *theirs = &rounded->parameters.list[i];
        if (quantizer_applies(mine)) {
            assert_ptr_equal(model->quantizer.layers[layer].weight, mine);
            check_layer(&model->quantizer.layers[layer++], theirs);
        } else {
            assert_memory_equal(mine->gradients, theirs->gradients, (size_t)(mine->rows * mine->cols) * sizeof(float));
        }
    }
    assert_int_equal(layer, 4 * LAYERS);
    free(values);
    destroy(rounded);
    destroy(model);
}

static void test_gradients_are_those_of_the_formulas(void **state) {
    (void)state;
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        for (uint32_t bits = 2; bits <= 4; bits++) {
            for (int estimator = STQ_QAT_STRAIGHT_THROUGH; estimator <= STQ_QAT_SOFT; estimator++) {
                stq_qat_config config = configure((stq_qat_estimator)estimator, bits);
                check_model(&kinds[k], &config);
            }
        }
    }
}

static void test_zero_amplitude_is_straight_through(void **state) {
    (void)state;
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        stq_qat_config stable = configure(STQ_QAT_STABLE, 3), straight = configure(STQ_QAT_STRAIGHT_THROUGH, 3);
        stable.amplitudes[0] = 0;
        struct model *a = create(&kinds[k], &stable), *b = create(&kinds[k], &straight);
        struct batch batch = kinds[k].batch();
        assert_true(backward(a, &batch, 1) == backward(b, &batch, 1));
        assert_memory_equal(a->parameters.gradients, b->parameters.gradients,
                            (size_t)a->parameters.padded * sizeof(float));
        destroy(a);
        destroy(b);
    }
}

// |a - b| <= 1e-5 x the largest |a| of each tensor, as in test_gpt2.c.
static void test_accumulation_adds_up(void **state) {
    (void)state;
    const stq_qat_config config = configure(STQ_QAT_STABLE, 4);
    struct model *whole = create(&kinds[0], &config), *parts = create(&kinds[0], &config);
    struct batch batch = kinds[0].batch();
    backward(whole, &batch, 1);
    for (int i = 0; i < EXAMPLES; i++) {
        struct batch part = {
            .examples = 1, .length = LENGTH, .inputs = inputs + i * LENGTH, .targets = targets + i * LENGTH};
        backward(parts, &part, 1.0f / EXAMPLES);
    }
    for (int i = 0; i < whole->parameters.count; i++) {
        const struct parameter *x = &whole->parameters.list[i], *y = &parts->parameters.list[i];
        double largest = 0, difference = 0;
        for (int64_t j = 0; j < x->rows * x->cols; j++) {
            largest = fmax(largest, fabs(x->gradients[j]));
            difference = fmax(difference, fabs((double)x->gradients[j] - y->gradients[j]));
        }
        assert_true(largest > 0 && difference <= 1e-5 * largest);
    }
    destroy(whole);
    destroy(parts);
}

static void test_packed_weights_are_the_rounded_ones(void **state) {
    (void)state;
    for (uint32_t bits = 1; bits <= 8; bits++) {
        const stq_qat_config config = configure(STQ_QAT_STABLE, bits);
        struct model *model = create(&kinds[0], &config);
        assert_int_equal(quantizer_refresh(&model->quantizer), APP_OK);
        for (int i = 0; i < model->quantizer.count; i++) {
            const struct quantized_linear *layer = &model->quantizer.layers[i];
            const size_t count = (size_t)(layer->weight->rows * layer->weight->cols);
            uint8_t *codes = malloc((size_t)stq_qat_packed_bytes(&config, layer->weight->cols, layer->weight->rows));
            assert_int_equal(quantizer_pack(layer->weight, layer->steps, &config, codes), APP_OK);
            memset(layer->weight->values, 0xff, count * sizeof(float));
            assert_int_equal(quantizer_unpack(layer->weight, layer->steps->values, &config, codes), APP_OK);
            assert_memory_equal(layer->weight->values, layer->values, count * sizeof(float));
            free(codes);
        }
        destroy(model);
    }
}

// The steps come last, so that every other tensor begins as without quantization.
static void test_other_tensors_begin_alike(void **state) {
    (void)state;
    const stq_qat_config config = configure(STQ_QAT_STABLE, 4);
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        struct model *plain = kinds[k].create(NULL), *quantized = kinds[k].create(&config);
        assert_memory_equal(plain->parameters.values, quantized->parameters.values,
                            (size_t)plain->parameters.padded * sizeof(float));
        assert_string_equal(quantized->quantizer.layers[5].steps->name, "h.1.attn.c_proj.steps");
        destroy(plain);
        destroy(quantized);
    }
}

static void test_refusals(void **state) {
    (void)state;
    struct gpt2_config config = {.layers = 1, .width = 8, .heads = 1, .context = 4, .vocabulary = 9};
    struct model *model;
    config.qat = configure(STQ_QAT_STABLE, 4);
    config.qat.amplitudes[0] = 0.2252;
    assert_int_equal(gpt2_create(&config, 1, 4, 1, 1, &model), APP_USAGE);
    assert_non_null(strstr(app_failure(), "0.2251"));
    assert_null(model);
    config.qat.bits = 9;
    assert_int_equal(gpt2_create(&config, 1, 4, 1, 1, &model), APP_USAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_are_those_of_the_formulas),
        cmocka_unit_test(test_zero_amplitude_is_straight_through),
        cmocka_unit_test(test_accumulation_adds_up),
        cmocka_unit_test(test_packed_weights_are_the_rounded_ones),
        cmocka_unit_test(test_other_tensors_begin_alike),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
