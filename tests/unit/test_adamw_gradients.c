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

static stq_adamw *open_fixed(void) {
    stq_tensor tensors[2] = {stq_tensor_whole("first", 60, 100), stq_tensor_whole("second", 60, 100)};
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = STQ_POLICY_FIXED;
    stq_adamw *optimizer;
    assert_int_equal(stq_adamw_create(&optimizer, &config, tensors, 2), STQ_OK);
    return optimizer;
}

/* Step `step`, in which the second tensor has a gradient from the fourth step on. */
static void take_late_step(stq_adamw *optimizer, float (*parameters)[6000], uint32_t step) {
    static float gradient[6000];
    for (uint32_t i = 0; i < 6000; i++)
        gradient[i] = test_gaussian(70 + step, i);
    take_step(optimizer, (stq_step){0}, (void *[]){parameters[0], parameters[1]},
              (const void *[]){gradient, step >= 3 ? gradient : NULL});
}

/* The records keep the steps a tensor missed: a run that is saved and restored before and after the second tensor's
 * first gradient ends where the uninterrupted one does. */
static void test_missed_steps_survive_a_restore(void **state) {
    (void)state;
    static float parameters[2][6000];
    for (uint32_t saved_at = 2; saved_at <= 5; saved_at += 3) {
        uint64_t digests[2];
        for (int interrupted = 0; interrupted < 2; interrupted++) {
            stq_adamw *optimizer = open_fixed();
            memset(parameters, 0, sizeof parameters);
            for (uint32_t step = 0; step < 8; step++) {
                if (interrupted && step == saved_at) {
                    stq_adamw_record record;
                    stq_tensor_record tensors[2];
                    bool changed;
                    assert_int_equal(stq_adamw_save_records(optimizer, &record, tensors, 2), STQ_OK);
                    assert_int_equal(tensors[1].missed, saved_at < 3 ? saved_at : 3);
                    assert_int_equal(tensors[1].bits[0], saved_at < 3 ? 0 : 4);
                    stq_buffer from[16], to[16];
                    size_t count, again;
                    assert_int_equal(stq_adamw_buffers(optimizer, from, 16, &count), STQ_OK);
                    stq_adamw *other = open_fixed();
                    assert_int_equal(stq_adamw_fit(other, &record, tensors, 2, &changed), STQ_OK);
                    assert_false(changed);
                    assert_int_equal(stq_adamw_restore(other, &record, tensors, 2), STQ_OK);
                    assert_int_equal(stq_adamw_buffers(other, to, 16, &again), STQ_OK);
                    assert_int_equal(again, count);
                    for (size_t i = 0; i < count; i++)
                        memcpy(to[i].data, from[i].data, from[i].bytes);
                    stq_adamw_destroy(optimizer);
                    optimizer = other;
                }
                take_late_step(optimizer, parameters, step);
            }
            assert_int_equal(stq_adamw_digest(optimizer, &digests[interrupted]), STQ_OK);
            stq_adamw_destroy(optimizer);
        }
        assert_true(digests[0] == digests[1]);
    }
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

/* A tensor may join a run: its record has no widths, stq_adamw_fit() gives it a target, and its first gradient planes.
 */
static void test_a_tensor_joins_a_run(void **state) {
    (void)state;
    static float parameters[2][6000];
    stq_adamw *optimizer = open_fixed();
    stq_adamw_record record = {.version = STQ_RECORD_VERSION, .steps = 5, .log_n_average = NAN, .log_r_average = NAN};
    record.log_n_peak = record.volatility_average = NAN;
    stq_tensor_record none = {.missed = 5, .last_log_n = NAN};
    stq_tensor_record tensors[2] = {none, none};
    assert_int_equal(stq_adamw_restore(optimizer, &record, tensors, 2), STQ_CORRUPT);
    assert_int_equal(stq_adamw_fit(optimizer, &record, tensors, 2, NULL), STQ_OK);
    assert_int_equal(tensors[1].bits[0], 0);
    assert_int_equal(tensors[1].target[0], 4);
    assert_int_equal(stq_adamw_restore(optimizer, &record, tensors, 2), STQ_OK);
    take_late_step(optimizer, parameters, 5);
    stq_tensor_info info;
    assert_int_equal(stq_adamw_tensor(optimizer, 1, &info), STQ_OK);
    assert_int_equal(info.m_bits, 4);
    stq_adamw_destroy(optimizer);
}

enum { ROWS = 96, COLS = 128, SMALL = 777 };

/* Widths (m, v) that one slice of a tensor gets at a cap, 0 where the cap is refused. */
static void widths_of_slice(int64_t first, int64_t count, double state_bits, uint32_t widths[2]) {
    static float parameter[ROWS * COLS], small[SMALL], gradient[ROWS * COLS];
    stq_tensor tensors[2] = {stq_tensor_whole("sliced", ROWS, COLS), stq_tensor_whole("small", 1, SMALL)};
    tensors[0].first = first;
    tensors[0].count = count;
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = STQ_POLICY_ZONES;
    config.policy.state_bits = state_bits;
    stq_adamw *optimizer;
    widths[0] = widths[1] = 0;
    if (stq_adamw_create(&optimizer, &config, tensors, 2) != STQ_OK)
        return;
    const stq_factors factors[2] = {{.n = 1e-3, .r = 0.2}, {.n = 1e-3, .r = 1}};
    take_step(optimizer, (stq_step){.factors = factors, .norm_supplied = true, .gradient_norm = 1},
              (void *[]){parameter, small}, (const void *[]){gradient, gradient});
    stq_tensor_info info;
    assert_int_equal(stq_adamw_tensor(optimizer, 0, &info), STQ_OK);
    widths[0] = info.m_bits;
    widths[1] = info.v_bits;
    stq_adamw_destroy(optimizer);
}

/* Slices of a tensor, each in an optimizer of its own, get the widths that the whole one gets at every cap: bytes are
 * reckoned from the global tensors. The caller knows the factors. */
static void test_slices_decide_as_the_whole(void **state) {
    (void)state;
    uint32_t lowest = 8, highest = 0;
    for (double bits = 3; bits < 12; bits += 0.0625) {
        uint32_t whole[2], upper[2], lower[2];
        widths_of_slice(0, ROWS * COLS, bits, whole);
        widths_of_slice(0, 61 * COLS, bits, upper);
        widths_of_slice(61 * COLS, 35 * COLS, bits, lower);
        assert_memory_equal(upper, whole, sizeof whole);
        assert_memory_equal(lower, whole, sizeof whole);
        lowest = whole[0] < lowest ? whole[0] : lowest;
        highest = whole[0] > highest ? whole[0] : highest;
    }
    assert_true(lowest == 0 && highest == 8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_missing_gradients_are_steps_not_made),
        cmocka_unit_test(test_missed_steps_survive_a_restore),
        cmocka_unit_test(test_a_tensor_joins_a_run),
        cmocka_unit_test(test_no_gradient_at_all_is_no_step),
        cmocka_unit_test(test_slices_decide_as_the_whole),
        cmocka_unit_test(test_scale_and_skip_by_pointer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
