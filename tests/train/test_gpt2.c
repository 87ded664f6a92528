// The GPT-2 as a whole: repeatability, accumulation, the decoder against the batch path, refusals.
// tests/torch/test_gpt2_gradients.py compares losses and gradients with PyTorch.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "train/gpt2.h"
#include "train/matmul.h"
#include "train/memory.h"
#include "train/presets.h"
#include "train/random.h"
#include "train/sample.h"

enum { SEQUENCES = 3, LENGTH = 40, SEED = 5 };
static const struct gpt2_config config = {.layers = 2, .width = 32, .heads = 4, .context = LENGTH, .vocabulary = 61};

static int32_t tokens[SEQUENCES * (LENGTH + 1)], inputs[SEQUENCES * LENGTH], targets[SEQUENCES * LENGTH];

static struct batch make_batch(void) {
    for (int i = 0; i < SEQUENCES * (LENGTH + 1); i++) {
        tokens[i] = (int32_t)random_below(SEED, 3, (uint64_t)i, (uint64_t)config.vocabulary);
    }
    for (int i = 0; i < SEQUENCES * LENGTH; i++) {
        inputs[i] = tokens[i / LENGTH * (LENGTH + 1) + i % LENGTH];
        targets[i] = tokens[i / LENGTH * (LENGTH + 1) + i % LENGTH + 1];
    }
    return (struct batch){.examples = SEQUENCES, .length = LENGTH, .inputs = inputs, .targets = targets};
}

static struct model *make_model(int threads) {
    struct model *model;
    assert_int_equal(gpt2_create(&config, SEQUENCES, LENGTH, threads, SEED, &model), APP_OK);
    return model;
}

static void destroy(struct model *model) { model->operations->destroy(model); }

// The loss, with the gradients in the model.
static double backward(struct model *model, const struct batch *batch, float factor) {
    double loss;
    assert_int_equal(model->operations->forward_backward(model, batch, factor, &loss), APP_OK);
    return loss;
}

static void test_initial_weights_do_not_depend_on_threads(void **state) {
    (void)state;
    struct model *one = make_model(1), *three = make_model(3);
    assert_memory_equal(one->parameters.values, three->parameters.values,
                        (size_t)one->parameters.padded * sizeof(float));
    // Deviations as GPT-2 has them: 0.02, projections into the residual stream by sqrt(2 layers).
    const char *names[] = {"wte.weight", "h.1.attn.c_attn.weight", "h.1.mlp.c_proj.weight"};
    const double deviations[] = {0.02, 0.02, 0.02 / 2};
    for (int i = 0; i < 3; i++) {
        const struct parameter *parameter = parameters_find(&one->parameters, names[i]);
        const int64_t count = parameter->rows * parameter->cols;
        double squares = 0;
        for (int64_t j = 0; j < count; j++) {
            squares += (double)parameter->values[j] * parameter->values[j];
        }
        // The standard error of a deviation is 1 / sqrt(2 count): six of them.
        assert_true(fabs(sqrt(squares / (double)count) / deviations[i] - 1) < 6 / sqrt(2.0 * (double)count));
    }
    destroy(one);
    destroy(three);
}

static void test_same_threads_same_bits(void **state) {
    (void)state;
    struct batch batch = make_batch();
    for (int threads = 1; threads <= 4; threads++) {
        struct model *first = make_model(threads), *second = make_model(threads);
        double loss = backward(first, &batch, 1);
        assert_true(backward(second, &batch, 1) == loss);
        assert_memory_equal(first->parameters.gradients, second->parameters.gradients,
                            (size_t)first->parameters.padded * sizeof(float));
        destroy(first);
        destroy(second);
    }
}

// |a - b| <= bound x the largest |a| of each tensor.
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

static void test_threads_agree_up_to_rounding(void **state) {
    (void)state;
    struct batch batch = make_batch();
    struct model *one = make_model(1), *three = make_model(3);
    double loss = backward(one, &batch, 1);
    assert_true(fabs(backward(three, &batch, 1) - loss) < 1e-6 * loss);
    assert_close(one, three, 1e-5); // as in test_layers.c, an order less: only the order of sums differs
    destroy(one);
    destroy(three);
}

static void test_accumulation_is_the_large_batch(void **state) {
    (void)state;
    struct batch batch = make_batch();
    struct model *whole = make_model(2), *parts = make_model(2);
    double loss = backward(whole, &batch, 1), sum = 0;
    for (int i = 0; i < SEQUENCES; i++) {
        struct batch part = {
            .examples = 1, .length = LENGTH, .inputs = inputs + i * LENGTH, .targets = targets + i * LENGTH};
        sum += backward(parts, &part, 1.0f / SEQUENCES) / SEQUENCES;
    }
    assert_true(fabs(sum - loss) < 1e-6 * loss);
    assert_close(whole, parts, 1e-5);
    destroy(whole);
    destroy(parts);
}

static void test_evaluation_leaves_gradients_alone(void **state) {
    (void)state;
    struct batch batch = make_batch();
    struct model *model = make_model(2);
    double loss = backward(model, &batch, 1), evaluated;
    size_t bytes = (size_t)model->parameters.padded * sizeof(float);
    float *before = malloc(bytes);
    memcpy(before, model->parameters.gradients, bytes);
    assert_int_equal(model->operations->evaluate(model, &batch, &evaluated), APP_OK);
    assert_true(evaluated == loss);
    assert_memory_equal(before, model->parameters.gradients, bytes);
    // Untrained, every token is about as likely as any other.
    assert_true(fabs(loss - log((double)config.vocabulary)) < 0.1);
    free(before);
    destroy(model);
}

static double log_probability(const float *logits, int32_t token) {
    double sum = 0;
    for (int64_t i = 0; i < config.vocabulary; i++) {
        sum += exp((double)logits[i]);
    }
    return logits[token] - log(sum);
}

static void test_decoder_is_the_model(void **state) {
    (void)state;
    struct batch batch = make_batch();
    struct model *model = make_model(2);
    // Larger weights than the initial ones, so that attention is not uniform.
    for (int64_t i = 0; i < model->parameters.padded; i++) {
        model->parameters.values[i] *= 4;
    }
    batch.examples = 1;
    double loss, sum = 0;
    assert_int_equal(model->operations->evaluate(model, &batch, &loss), APP_OK);
    struct gpt2_decoder *decoder;
    const float *logits;
    assert_int_equal(gpt2_decoder_create(model, &decoder), APP_OK);
    for (int i = 0; i < LENGTH; i++) {
        assert_int_equal(gpt2_decoder_next(decoder, inputs[i], &logits), APP_OK);
        sum -= log_probability(logits, targets[i]) / LENGTH;
    }
    assert_true(fabs(sum - loss) < 1e-5 * loss);
    gpt2_decoder_destroy(decoder);
    destroy(model);
}

// Past the context the second half is fed again from position 0: the same as a decoder that starts there.
static void test_decoder_slides(void **state) {
    (void)state;
    make_batch();
    struct model *model = make_model(2);
    struct gpt2_decoder *longer, *fresh;
    const float *logits, *expected;
    assert_int_equal(gpt2_decoder_create(model, &longer), APP_OK);
    assert_int_equal(gpt2_decoder_create(model, &fresh), APP_OK);
    for (int i = 0; i <= LENGTH; i++) {
        assert_int_equal(gpt2_decoder_next(longer, tokens[i], &logits), APP_OK);
    }
    for (int i = LENGTH - LENGTH / 2; i <= LENGTH; i++) {
        assert_int_equal(gpt2_decoder_next(fresh, tokens[i], &expected), APP_OK);
    }
    assert_memory_equal(logits, expected, (size_t)config.vocabulary * sizeof(float));
    assert_int_equal(gpt2_decoder_next(fresh, (int32_t)config.vocabulary, &expected), APP_USAGE);
    gpt2_decoder_destroy(longer);
    gpt2_decoder_destroy(fresh);
    destroy(model);
}

static void test_gradient_descent_learns(void **state) {
    (void)state;
    struct batch batch = make_batch();
    struct model *model = make_model(2);
    double first = backward(model, &batch, 1), last = first;
    for (int step = 0; step < 30; step++) {
        for (int64_t i = 0; i < model->parameters.padded; i++) {
            model->parameters.values[i] -= 0.3f * model->parameters.gradients[i];
        }
        parameters_clear_gradients(&model->parameters);
        last = backward(model, &batch, 1);
    }
    assert_true(last < 0.8 * first);
    destroy(model);
}

static void test_refusals(void **state) {
    (void)state;
    struct model *model;
    struct gpt2_config wrong = config;
    wrong.heads = 5;
    assert_int_equal(gpt2_create(&wrong, 1, 1, 1, 1, &model), APP_USAGE);
    assert_null(model);
    assert_non_null(strstr(app_failure(), "--heads 5"));
    assert_int_equal(gpt2_create(&config, 1, LENGTH + 1, 1, 1, &model), APP_USAGE);
    assert_non_null(strstr(app_failure(), "--context"));
    model = make_model(1);
    struct batch batch = make_batch();
    double loss;
    inputs[7] = (int32_t)config.vocabulary;
    assert_int_equal(model->operations->evaluate(model, &batch, &loss), APP_USAGE);
    assert_non_null(strstr(app_failure(), "token 61"));
    batch.examples = SEQUENCES + 1;
    assert_int_equal(model->operations->evaluate(model, &batch, &loss), APP_USAGE);
    destroy(model);
}

// GPT-2's published sizes.
static void test_presets_have_their_sizes(void **state) {
    (void)state;
    const struct {
        const char *name;
        int64_t parameters;
    } sizes[] = {{"124m", 124439808}, {"355m", 354823168}, {"774m", 774030080}, {"1.5b", 1557611200}};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct parameter_set set = {0};
        assert_int_equal(gpt2_describe(&preset_find(sizes[i].name)->gpt2, &set), APP_OK);
        assert_int_equal(set.elements, sizes[i].parameters);
        parameters_release(&set);
    }
    assert_null(preset_find("huge"));
}

static void test_samples_repeat_and_print(void **state) {
    (void)state;
    struct gpt2_config bytes = config;
    bytes.vocabulary = 256;
    struct model *model;
    assert_int_equal(gpt2_create(&bytes, 1, LENGTH, 2, SEED, &model), APP_OK);
    struct sample_settings settings = {.length = 3 * LENGTH, .temperature = 1, .seed = SEED};
    char *texts[3];
    for (int i = 0; i < 3; i++) { // the third has another number
        assert_int_equal(sample_gpt2(model, &settings, i / 2, &texts[i]), APP_OK);
    }
    assert_string_equal(texts[0], texts[1]);
    assert_string_not_equal(texts[0], texts[2]);
    for (const char *c = texts[0]; *c; c++) {
        assert_true((unsigned char)*c >= 0x20 || *c == '\n' || *c == '\t');
    }
    for (int i = 0; i < 3; i++) {
        free(texts[i]);
    }
    destroy(model);
}

static void test_bytes_become_printable(void **state) {
    (void)state;
    const struct {
        const char *bytes, *text;
    } cases[] = {{"plain\ttext\n", "plain\ttext\n"},
                 {"a\x01\x7f\r!", "a??\?!"},
                 {"\xc3\xa9t\xc3\xa9", "\xc3\xa9t\xc3\xa9"}, // two-byte characters stay
                 {"\xe2\x82\xac!", "\xe2\x82\xac!"},         // three
                 {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"},   // four
                 {"\xc0\xaf\xe0\x80\x80", "?????"},          // overlong
                 {"\xed\xa0\x80", "???"},                    // a surrogate
                 {"\xc2\x9b", "??"},                         // a control character of one terminal or another
                 {"\xf4\x90\x80\x80", "????"},               // past the last code point
                 {"x\x80y", "x?y"},
                 {"end\xe2\x82", "end"}}; // cut off
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[32];
        strcpy(text, cases[i].bytes);
        sample_clean(text, (int64_t)strlen(text));
        assert_string_equal(text, cases[i].text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_initial_weights_do_not_depend_on_threads),
        cmocka_unit_test(test_same_threads_same_bits),
        cmocka_unit_test(test_threads_agree_up_to_rounding),
        cmocka_unit_test(test_accumulation_is_the_large_batch),
        cmocka_unit_test(test_evaluation_leaves_gradients_alone),
        cmocka_unit_test(test_decoder_is_the_model),
        cmocka_unit_test(test_decoder_slides),
        cmocka_unit_test(test_gradient_descent_learns),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_presets_have_their_sizes),
        cmocka_unit_test(test_samples_repeat_and_print),
        cmocka_unit_test(test_bytes_become_printable),
    };
    int failed = cmocka_run_group_tests_name("gpt2", tests, NULL, NULL);
    matmul_release();
    return failed;
}
