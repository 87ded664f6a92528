// The Vision Transformer: finite differences for every tensor, dropout, repeatability, top-1, refusals.
// tests/torch/test_vit_gradients.py compares losses and gradients with PyTorch.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "train/dropout.h"
#include "train/matmul.h"
#include "train/memory.h"
#include "train/presets.h"
#include "train/random.h"
#include "train/vit.h"

enum { IMAGES = 6, ROWS = 12, COLUMNS = 8, CHANNELS = 3, SEED = 11 };
static const struct vit_config config = {.layers = 2,
                                         .width = 32,
                                         .heads = 4,
                                         .patch = 4,
                                         .channels = CHANNELS,
                                         .rows = ROWS,
                                         .columns = COLUMNS,
                                         .classes = 7};

static float images[IMAGES * CHANNELS * ROWS * COLUMNS];
static int32_t labels[IMAGES];

static struct batch make_batch(void) {
    random_normal_fill(images, IMAGES * CHANNELS * ROWS * COLUMNS, 1, SEED, 5);
    for (int i = 0; i < IMAGES; i++) {
        labels[i] = (int32_t)random_below(SEED, 6, (uint64_t)i, 7);
    }
    return (struct batch){.examples = IMAGES, .images = images, .targets = labels, .position = 3};
}

// Noise on every parameter: initial gains of 1 and biases of 0 would hide errors.
static struct model *make_model(const struct vit_config *chosen, int threads) {
    struct model *model;
    assert_int_equal(vit_create(chosen, IMAGES, threads, SEED, &model), APP_OK);
    for (int i = 0; i < model->parameters.count; i++) {
        struct parameter *parameter = &model->parameters.list[i];
        for (int64_t j = 0; j < parameter->rows * parameter->cols; j++) {
            parameter->values[j] += (float)(0.3 * (random_uniform(SEED, 100 + (uint64_t)i, (uint64_t)j) - 0.5));
        }
    }
    return model;
}

static void destroy(struct model *model) { model->operations->destroy(model); }

static double backward(struct model *model, const struct batch *batch, float factor) {
    double loss;
    assert_int_equal(model->operations->forward_backward(model, batch, factor, &loss), APP_OK);
    return loss;
}

// The loss in training, masks included; the gradients it adds are not looked at.
static double loss_at(struct model *model, struct parameter *parameter, const float *values, const float *direction,
                      double step) {
    struct batch batch = make_batch();
    const int64_t count = parameter->rows * parameter->cols;
    for (int64_t j = 0; j < count; j++) {
        parameter->values[j] = (float)(values[j] + step * direction[j]);
    }
    double loss = backward(model, &batch, 1);
    memcpy(parameter->values, values, (size_t)count * sizeof(float));
    return loss;
}

// Along its own gradient g the loss must change by |g| for a step of length 1. The loss is known to about 2e-7, so
// central differences with a step of h are wrong by 2e-7 / h, here 1e-5, against |g| of 0.02 and more: within 1e-3.
// Their truncation is h^2 / 6 times a third derivative.
static void check_differences(const struct vit_config *chosen) {
    struct model *model = make_model(chosen, 2);
    struct batch batch = make_batch();
    const double step = 0.02;
    backward(model, &batch, 1);
    for (int i = 0; i < model->parameters.count; i++) {
        struct parameter *parameter = &model->parameters.list[i];
        const int64_t count = parameter->rows * parameter->cols;
        float *values = malloc((size_t)count * sizeof(float)), *direction = malloc((size_t)count * sizeof(float));
        double squares = 0;
        parameters_clear_gradients(&model->parameters);
        backward(model, &batch, 1);
        for (int64_t j = 0; j < count; j++) {
            squares += (double)parameter->gradients[j] * parameter->gradients[j];
        }
        const double norm = sqrt(squares);
        memcpy(values, parameter->values, (size_t)count * sizeof(float));
        for (int64_t j = 0; j < count; j++) {
            direction[j] = (float)(parameter->gradients[j] / norm);
        }
        const double difference =
            (loss_at(model, parameter, values, direction, step) - loss_at(model, parameter, values, direction, -step)) /
            (2 * step);
        if (!(norm > 0.004 && fabs(difference / norm - 1) < 5e-3)) {
            fail_msg("%s: the loss changes by %g along a gradient of %g", parameter->name, difference, norm);
        }
        free(values);
        free(direction);
    }
    destroy(model);
}

static void test_finite_differences(void **state) {
    (void)state;
    check_differences(&config);
}

static void test_finite_differences_with_dropout(void **state) {
    (void)state;
    struct vit_config dropped = config;
    dropped.dropout = 0.3;
    check_differences(&dropped);
}

// Kept values are scaled so that the mean stays; the mask is the same for the same stream and thread count does not
// matter.
static void test_dropout(void **state) {
    (void)state;
    enum { COUNT = 100003 };
    float *once = malloc(COUNT * sizeof(float)), *again = malloc(COUNT * sizeof(float));
    struct compute one, three;
    assert_int_equal(compute_create(&one, 1, 64), APP_OK);
    assert_int_equal(compute_create(&three, 3, 64), APP_OK);
    const double rates[] = {0.1, 0.5, 0.9};
    for (int r = 0; r < 3; r++) {
        struct dropout dropout = {.rate = rates[r], .seed = SEED, .stream = 8};
        for (int i = 0; i < COUNT; i++) {
            once[i] = again[i] = 1;
        }
        dropout_apply(&one, &dropout, once, COUNT);
        dropout_apply(&three, &dropout, again, COUNT);
        assert_memory_equal(once, again, COUNT * sizeof(float));
        int64_t dropped = 0;
        for (int i = 0; i < COUNT; i++) {
            dropped += once[i] == 0;
            assert_true(once[i] == 0 || fabs(once[i] * (1 - rates[r]) - 1) < 1e-3);
        }
        // Six standard deviations of a binomial count.
        assert_true(fabs((double)dropped - COUNT * rates[r]) < 6 * sqrt(COUNT * rates[r] * (1 - rates[r])));
        dropout.stream = 9;
        dropout_apply(&three, &dropout, again, COUNT);
        assert_memory_not_equal(once, again, COUNT * sizeof(float));
    }
    compute_release(&one);
    compute_release(&three);
    free(once);
    free(again);
}

static void test_dropout_is_for_training_alone(void **state) {
    (void)state;
    struct vit_config dropped = config;
    dropped.dropout = 0.5;
    struct batch batch = make_batch();
    struct model *plain = make_model(&config, 2), *model = make_model(&dropped, 2);
    double expected, evaluated;
    assert_int_equal(plain->operations->evaluate(plain, &batch, &expected), APP_OK);
    const double trained = backward(model, &batch, 1);
    assert_int_equal(model->operations->evaluate(model, &batch, &evaluated), APP_OK);
    assert_true(evaluated == expected);
    assert_true(trained != expected);
    assert_true(backward(model, &batch, 1) == trained);
    batch.position++;
    assert_true(backward(model, &batch, 1) != trained);
    destroy(plain);
    destroy(model);
}

static void assert_close(const struct model *a, const struct model *b, double bound) {
    for (int i = 0; i < a->parameters.count; i++) {
        const struct parameter *x = &a->parameters.list[i], *y = &b->parameters.list[i];
        double largest = 0, difference = 0;
        for (int64_t j = 0; j < x->rows * x->cols; j++) {
            largest = fmax(largest, fabs(x->gradients[j]));
            difference = fmax(difference, fabs((double)x->gradients[j] - y->gradients[j]));
        }
        if (!(largest > 0 && difference <= bound * largest)) {
            fail_msg("%s: gradients differ by %g of %g", x->name, difference, largest);
        }
    }
}

static void test_threads_and_accumulation(void **state) {
    (void)state;
    struct batch batch = make_batch();
    struct model *one = make_model(&config, 1), *again = make_model(&config, 1), *three = make_model(&config, 3);
    const double loss = backward(one, &batch, 1);
    assert_true(backward(again, &batch, 1) == loss);
    assert_memory_equal(one->parameters.gradients, again->parameters.gradients,
                        (size_t)one->parameters.padded * sizeof(float));
    // Only the order of sums differs from here on, as in test_gpt2.c.
    assert_true(fabs(backward(three, &batch, 1) - loss) < 1e-6 * loss);
    assert_close(one, three, 1e-5);
    parameters_clear_gradients(&three->parameters);
    double sum = 0;
    for (int i = 0; i < IMAGES; i++) {
        struct batch part = {.examples = 1, .images = images + i * CHANNELS * ROWS * COLUMNS, .targets = labels + i};
        sum += backward(three, &part, 1.0f / IMAGES) / IMAGES;
    }
    assert_true(fabs(sum - loss) < 1e-6 * loss);
    assert_close(one, three, 1e-5);
    destroy(one);
    destroy(again);
    destroy(three);
}

// A head whose bias decides: the classifier says 4 to everything.
static void test_top1_counts_likeliest_classes(void **state) {
    (void)state;
    struct batch batch = make_batch();
    struct model *model = make_model(&config, 2);
    parameters_find(&model->parameters, "head.bias")->values[4] = 1000;
    int64_t fours = 0;
    for (int i = 0; i < IMAGES; i++) {
        labels[i] = i % 3 ? 4 : 2;
        fours += labels[i] == 4;
    }
    double loss;
    assert_int_equal(model->operations->evaluate(model, &batch, &loss), APP_OK);
    assert_int_equal(model->correct, fours);
    destroy(model);
}

static void test_it_learns(void **state) {
    (void)state;
    struct batch batch = make_batch();
    struct model *model = make_model(&config, 2);
    double first = 0, last = 0;
    for (int step = 0; step < 40; step++) {
        parameters_clear_gradients(&model->parameters);
        last = backward(model, &batch, 1);
        first = step ? first : last;
        for (int64_t i = 0; i < model->parameters.padded; i++) {
            model->parameters.values[i] -= 0.05f * model->parameters.gradients[i];
        }
    }
    assert_true(last < 0.2 * first);
    assert_int_equal(model->correct, IMAGES);
    destroy(model);
}

static void test_refusals(void **state) {
    (void)state;
    struct model *model = (struct model *)1;
    struct vit_config wrong = config;
    wrong.patch = 5;
    assert_int_equal(vit_create(&wrong, IMAGES, 1, SEED, &model), APP_USAGE);
    assert_null(model);
    assert_string_equal(app_failure(),
                        "Images of 8 x 12 pixels cannot be cut into patches of 5 x 5; --patch must divide both sides.");
    wrong = config;
    wrong.heads = 5;
    assert_int_equal(vit_check(&wrong), APP_USAGE);
    wrong = config;
    wrong.layers = 0;
    assert_int_equal(vit_check(&wrong), APP_USAGE);
    assert_non_null(strstr(app_failure(), "--layers is 0"));
    model = make_model(&config, 1);
    struct batch batch = make_batch();
    double loss;
    labels[2] = 7;
    assert_int_equal(model->operations->evaluate(model, &batch, &loss), APP_USAGE);
    assert_string_equal(app_failure(), "The data has a class 7, and the model's --classes are 0 to 6.");
    batch.examples = IMAGES + 1;
    assert_int_equal(model->operations->forward_backward(model, &batch, 1, &loss), APP_USAGE);
    destroy(model);
}

// The shapes of the paper (table 1): 86 million parameters in ViT-Base, most of them in the blocks.
static void test_presets(void **state) {
    (void)state;
    const char *names[] = {"tiny", "small", "base"};
    for (int i = 0; i < 3; i++) {
        struct vit_config shape = vit_preset_find(names[i])->vit;
        struct parameter_set set = {0};
        shape.channels = 3;
        shape.rows = shape.columns = 224;
        shape.patch = i == 2 ? 16 : 4;
        shape.classes = i == 2 ? 1000 : 10;
        assert_int_equal(vit_describe(&shape, &set), APP_OK);
        if (i == 2) {
            assert_int_equal(set.elements, 86567656); // as timm's vit_base_patch16_224
        }
        parameters_release(&set);
    }
    assert_null(vit_preset_find("124m"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_finite_differences_with_dropout),
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_dropout_is_for_training_alone),
        cmocka_unit_test(test_threads_and_accumulation),
        cmocka_unit_test(test_top1_counts_likeliest_classes),
        cmocka_unit_test(test_it_learns),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_presets),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    matmul_release();
    return failed;
}
