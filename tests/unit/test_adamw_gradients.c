/* test_adamw_gradients.c - steps in which some tensors have no gradient, and what a step may be told about its
 * gradients.
 */
#include "testing.h"

#include <math.h>

enum { COUNT = 300, STEPS = 12 };

static stq_adamw *open_float32(size_t tensor_count) {
    stq_tensor tensors[2] = {stq_tensor_whole("first", 3, 100), stq_tensor_whole("second", 3, 100)};
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = STQ_POLICY_FLOAT32;
    stq_adamw *optimizer;
    assert_int_equal(stq_adamw_create(&optimizer, &config, tensors, tensor_count), STQ_OK);
    return optimizer;
}

static void fill_gradient(float *gradient, uint32_t step) {
    for (uint32_t i = 0; i < COUNT; i++)
        gradient[i] = test_gaussian(7 + step, i);
}

static stq_step_result take_step(stq_adamw *optimizer, stq_step step, void **parameters, const void **gradients) {
    step.size = sizeof step;
    step.parameters = parameters;
    step.gradients = gradients;
    step.unscale = step.unscale == 0 ? 1 : step.unscale;
    stq_step_result result;
    assert_int_equal(stq_adamw_step(optimizer, &step, &result), STQ_OK);
    return result;
}

/* A tensor that has a gradient in every third step ends where it ends alone, in an optimizer that sees those steps
 * only: its bias correction counts its own gradients. */
static void test_missing_gradients_are_steps_not_made(void **state) {
    (void)state;
    float both[COUNT] = {0}, sparse[COUNT] = {0}, alone[COUNT] = {0}, gradient[COUNT];
    stq_adamw *pair = open_float32(2), *single = open_float32(1);
    for (uint32_t step = 0; step < STEPS; step++) {
        fill_gradient(gradient, step);
        bool present = step % 3 == 1;
        take_step(pair, (stq_step){0}, (void *[]){both, sparse}, (const void *[]){gradient, present ? gradient : NULL});
        if (present)
            take_step(single, (stq_step){0}, (void *[]){alone}, (const void *[]){gradient});
    }
    assert_memory_equal(sparse, alone, sizeof sparse);
    assert_memory_not_equal(sparse, both, sizeof sparse);
    assert_int_equal(stq_adamw_step_count(pair), STEPS);
    stq_adamw_destroy(pair);
    stq_adamw_destroy(single);
}

static void test_no_gradient_at_all_is_no_step(void **state) {
    (void)state;
    float parameter[COUNT] = {1};
    stq_adamw *optimizer = open_float32(1);
    take_step(optimizer, (stq_step){0}, (void *[]){parameter}, (const void *[]){NULL});
    assert_int_equal(stq_adamw_step_count(optimizer), 0);
    assert_int_equal(stq_adamw_skipped_count(optimizer), 0);
    assert_true(parameter[0] == 1.0f);
    stq_adamw_destroy(optimizer);
}

/* unscale / loss_scale is the scale, whoever gives it; found_infinite and a supplied norm skip. */
static void test_scale_and_skip_by_pointer(void **state) {
    (void)state;
    float by_value[COUNT] = {0}, by_pointer[COUNT] = {0}, gradient[COUNT];
    fill_gradient(gradient, 0);
    float scale = 1024, found = 0;
    stq_adamw *one = open_float32(1), *other = open_float32(1);
    stq_step_result a = take_step(one, (stq_step){.unscale = 0x1p-10, .max_gradient_norm = 0.01}, (void *[]){by_value},
                                  (const void *[]){gradient});
    stq_step_result b =
        take_step(other, (stq_step){.loss_scale = &scale, .found_infinite = &found, .max_gradient_norm = 0.01},
                  (void *[]){by_pointer}, (const void *[]){gradient});
    assert_memory_equal(by_value, by_pointer, sizeof by_value);
    assert_true(a.gradient_norm == b.gradient_norm && a.gradient_norm > 0.01);

    found = 1;
    b = take_step(other, (stq_step){.found_infinite = &found}, (void *[]){by_pointer}, (const void *[]){gradient});
    assert_true(b.skipped);
    double norm = INFINITY;
    b = take_step(other, (stq_step){.norm_supplied = true, .norm_pointer = &norm}, (void *[]){by_pointer},
                  (const void *[]){gradient});
    assert_true(b.skipped);
    assert_int_equal(stq_adamw_step_count(other), 1);
    assert_int_equal(stq_adamw_skipped_count(other), 2);
    assert_memory_equal(by_value, by_pointer, sizeof by_value);
    stq_adamw_destroy(one);
    stq_adamw_destroy(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_missing_gradients_are_steps_not_made),
        cmocka_unit_test(test_no_gradient_at_all_is_no_step),
        cmocka_unit_test(test_scale_and_skip_by_pointer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
