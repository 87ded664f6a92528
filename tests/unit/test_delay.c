/* test_delay.c - decisions that are put off: when they are made, what a skipped step does to that, and resuming while
 * one is on its way. */
#include "testing.h"

enum { TENSORS = 3, ROWS = 128, COLS = 160, ELEMENTS = ROWS * COLS, DELAY = 3, EVERY = 8, STEPS = 30 };

typedef struct run {
    stq_adamw *optimizer;
    float parameters[TENSORS][ELEMENTS];
    bool decided[STEPS + 1];
} run;

static stq_adamw *create(int64_t delay) {
    static const char *const names[TENSORS] = {"a", "b", "c"};
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = STQ_POLICY_ZONES;
    config.policy.state_bits = 4.6;
    config.policy.decide_every = EVERY;
    config.policy.decision_delay = delay;
    stq_tensor tensors[TENSORS];
    for (int i = 0; i < TENSORS; i++)
        tensors[i] = stq_tensor_whole(names[i], ROWS, COLS);
    stq_adamw *optimizer;
    if (stq_adamw_create(&optimizer, &config, tensors, TENSORS) != STQ_OK)
        fail_msg("%s", stq_last_error());
    return optimizer;
}

static run *open_run(int64_t delay) {
    run *r = calloc(1, sizeof *r);
    r->optimizer = create(delay);
    for (uint32_t t = 0; t < TENSORS; t++)
        for (uint32_t i = 0; i < ELEMENTS; i++)
            r->parameters[t][i] = test_gaussian(1 + t, i);
    return r;
}

static void close_run(run *r) {
    stq_adamw_destroy(r->optimizer);
    free(r);
}

/* One attempt; with `infinite` it is skipped. Gradients of the tensors change places in size, so that widths change. */
static void attempt(run *r, int number, bool infinite) {
    static float gradients[TENSORS][ELEMENTS];
    for (uint32_t t = 0; t < TENSORS; t++)
        for (uint32_t i = 0; i < ELEMENTS; i++)
            gradients[t][i] = test_gaussian((uint32_t)(100 + number), t * ELEMENTS + i) *
                              ldexpf(1, (int)((t + (uint32_t)number / 6) % TENSORS) * 6);
    if (infinite)
        gradients[1][7] = INFINITY;
    void *parameters[TENSORS];
    const void *pointers[TENSORS];
    for (int i = 0; i < TENSORS; i++) {
        parameters[i] = r->parameters[i];
        pointers[i] = gradients[i];
    }
    stq_step step = {.size = sizeof step, .parameters = parameters, .gradients = pointers, .unscale = 1};
    stq_step_result result;
    if (stq_adamw_step(r->optimizer, &step, &result) != STQ_OK)
        fail_msg("%s", stq_last_error());
    assert_int_equal(result.skipped, infinite);
    r->decided[number] = result.decided;
}

static void test_widths_change_later(void **state) {
    (void)state;
    for (int delay = 0; delay <= DELAY; delay += DELAY) {
        run *r = open_run(delay);
        for (int step = 1; step <= STEPS; step++) {
            bool only;
            assert_int_equal(stq_adamw_only_enqueues(r->optimizer, &only), STQ_OK);
            attempt(r, step, false);
            assert_true(!only || !r->decided[step]);
        }
        for (int step = 1; step <= STEPS; step++) {
            int from = step - delay;
            bool expected = step == 1 || (from > 1 && (from == 10 || from == 30 || from % EVERY == 0));
            /* Step 10 is passed over while the decision of step 8 is on its way. */
            expected = expected && !(delay > 0 && from == 10);
            if (r->decided[step] != expected)
                fail_msg("delay %d: step %d decided: %d", delay, step, r->decided[step]);
        }
        close_run(r);
    }
}

/* Attempts count, so that a GPU need not know whether a step was made. */
static void test_skipped_steps_count(void **state) {
    (void)state;
    run *r = open_run(DELAY);
    for (int number = 1; number <= 20; number++)
        attempt(r, number, number == 8 || number == 10 || number == 12);
    /* Step 8 is attempt 9; its decision comes 3 attempts later, in one that is skipped. Step 10 is attempt 13. */
    for (int number = 2; number <= 20; number++)
        assert_int_equal(r->decided[number], number == 12 || number == 16);
    assert_int_equal(stq_adamw_step_count(r->optimizer), 17);
    close_run(r);
}

static void copy_states(stq_adamw *to, const stq_adamw *from) {
    stq_adamw_record record;
    stq_tensor_record tensors[TENSORS];
    stq_buffer source[64], target[64];
    size_t count, same;
    bool changed;
    assert_int_equal(stq_adamw_save_records(from, &record, tensors, TENSORS), STQ_OK);
    assert_int_equal(stq_adamw_fit(to, &record, tensors, TENSORS, &changed), STQ_OK);
    assert_false(changed);
    assert_int_equal(stq_adamw_restore(to, &record, tensors, TENSORS), STQ_OK);
    assert_int_equal(stq_adamw_buffers(from, source, 64, &count), STQ_OK);
    assert_int_equal(stq_adamw_buffers(to, target, 64, &same), STQ_OK);
    assert_int_equal(count, same);
    for (size_t i = 0; i < count; i++)
        memcpy(target[i].data, source[i].data, source[i].bytes);
}

/* Resumed after any step, the run goes on byte for byte, and the saving changed nothing. */
static void test_resume_is_exact(void **state) {
    (void)state;
    run *whole = open_run(DELAY);
    uint64_t expected, found;
    for (int number = 1; number <= STEPS; number++)
        attempt(whole, number, number == 13);
    assert_int_equal(stq_adamw_digest(whole->optimizer, &expected), STQ_OK);
    for (int at = 1; at < STEPS; at++) {
        run *r = open_run(DELAY);
        for (int number = 1; number <= STEPS; number++) {
            attempt(r, number, number == 13);
            if (number != at)
                continue;
            stq_adamw *resumed = create(DELAY);
            copy_states(resumed, r->optimizer);
            stq_adamw_destroy(r->optimizer);
            r->optimizer = resumed;
        }
        assert_int_equal(stq_adamw_digest(r->optimizer, &found), STQ_OK);
        if (found != expected || memcmp(r->parameters, whole->parameters, sizeof r->parameters) != 0)
            fail_msg("resumed after attempt %d the run goes another way", at);
        close_run(r);
    }
    close_run(whole);
}

static void test_refused(void **state) {
    (void)state;
    stq_adamw *optimizer = create(0);
    stq_adamw_config config = stq_adamw_defaults();
    stq_tensor tensor = stq_tensor_whole("a", ROWS, COLS);
    stq_adamw *none;
    for (int64_t delay = -1; delay <= 17; delay += 18) {
        config.policy.decision_delay = delay;
        assert_int_equal(stq_adamw_create(&none, &config, &tensor, 1), STQ_INVALID_ARGUMENT);
        assert_non_null(strstr(stq_last_error(), "decision_delay"));
    }
    stq_adamw_record record;
    stq_tensor_record tensors[TENSORS];
    assert_int_equal(stq_adamw_save_records(optimizer, &record, tensors, TENSORS), STQ_OK);
    const uint32_t wrong[] = {17, 1u << 8, 1 | 1u << 8, 200u << 8 | 3};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        record.pending = wrong[i];
        assert_int_equal(stq_adamw_restore(optimizer, &record, tensors, TENSORS), STQ_CORRUPT);
    }
    stq_adamw_destroy(optimizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_widths_change_later),
        cmocka_unit_test(test_skipped_steps_count),
        cmocka_unit_test(test_resume_is_exact),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("delay", tests, NULL, NULL);
}
