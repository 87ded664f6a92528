/* test_adamw.c - the optimizer as its users see it: arithmetic, cap, transitions, skipped steps, allocators, sentences.
 */
#include "testing.h"

#include <math.h>

#include "optim/optimizer.h"

enum { TENSORS = 5 };

/* A small model: two matrices with odd tails, an embedding, a bias, a matrix below the exemption. */
typedef struct model {
    stq_tensor tensors[TENSORS];
    float *parameters[TENSORS];
    float *gradients[TENSORS];
} model;

static void model_open(model *m) {
    m->tensors[0] = stq_tensor_whole("embedding", 500, 96);
    m->tensors[1] = stq_tensor_whole("attention", 128, 384);
    m->tensors[2] = stq_tensor_whole("mlp", 131, 517);
    m->tensors[3] = stq_tensor_whole("bias", 1, 517);
    m->tensors[4] = stq_tensor_whole("small", 10, 20);
    for (uint32_t i = 0; i < TENSORS; i++) {
        int64_t count = m->tensors[i].count;
        m->parameters[i] = malloc((size_t)count * sizeof(float));
        m->gradients[i] = malloc((size_t)count * sizeof(float));
        for (int64_t k = 0; k < count; k++)
            m->parameters[i][k] = 0.02f * test_gaussian(i, (uint32_t)k);
    }
}

static void model_close(model *m) {
    for (int i = 0; i < TENSORS; i++) {
        free(m->parameters[i]);
        free(m->gradients[i]);
    }
}

/* Gradients of step t: scales that differ by tensor and row, a dead row in the embedding, a zero block in the MLP. */
static void model_gradients(model *m, uint32_t t) {
    for (uint32_t i = 0; i < TENSORS; i++)
        for (int64_t k = 0; k < m->tensors[i].count; k++) {
            int64_t row = k / m->tensors[i].cols;
            float scale = ldexpf(1e-3f, (int)(row % 5) - 2 * (int)i);
            bool dead = (i == 0 && row == 7) || (i == 2 && k < 300);
            m->gradients[i][k] = dead ? 0.0f : scale * test_gaussian(t * 31 + i, (uint32_t)k);
        }
}

static stq_step step_of(model *m) {
    return (stq_step){.size = sizeof(stq_step),
                      .parameters = (void *const *)m->parameters,
                      .gradients = (const void *const *)m->gradients,
                      .unscale = 1};
}

static stq_adamw_config config_of(stq_policy_kind kind) {
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = kind;
    config.policy.decide_every = 10;
    config.policy.planned_steps = 200;
    return config;
}

static stq_adamw *create(const stq_adamw_config *config, const model *m) {
    stq_adamw *optimizer;
    if (stq_adamw_create(&optimizer, config, m->tensors, TENSORS) != STQ_OK)
        fail_msg("%s", stq_last_error());
    return optimizer;
}

static void run(stq_adamw *optimizer, model *m, uint32_t first, uint32_t last) {
    for (uint32_t t = first; t <= last; t++) {
        model_gradients(m, t);
        stq_step step = step_of(m);
        if (stq_adamw_step(optimizer, &step, NULL) != STQ_OK)
            fail_msg("step %u: %s", t, stq_last_error());
    }
}

static uint64_t digest_of(const stq_adamw *optimizer, const model *m) {
    uint64_t digest;
    assert_int_equal(stq_adamw_digest(optimizer, &digest), STQ_OK);
    for (int i = 0; i < TENSORS; i++)
        for (int64_t k = 0; k < m->tensors[i].count; k++)
            digest = (digest ^ stq_float_bits(m->parameters[i][k])) * UINT64_C(0x9e3779b97f4a7c15);
    return digest;
}

/* Plain AdamW in double, one element at a time. In 100 steps float32 rounds a parameter 200 times, by half a unit of
 * the last place (2^-24 of its value) at most each, and an update has a relative error of a few units. */
static void float32_states_follow_adamw(void **state) {
    (void)state;
    model m;
    model_open(&m);
    stq_adamw_config config = config_of(STQ_POLICY_FLOAT32);
    stq_adamw_group group = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1};
    config.groups = &group;
    config.group_count = 1;
    stq_adamw *optimizer = create(&config, &m);
    int64_t count = m.tensors[1].count;
    double *p = malloc((size_t)count * sizeof *p), *a = calloc((size_t)count, sizeof *a),
           *b = calloc((size_t)count, sizeof *b);
    for (int64_t k = 0; k < count; k++)
        p[k] = m.parameters[1][k];
    for (uint32_t t = 1; t <= 100; t++) {
        run(optimizer, &m, t, t);
        for (int64_t k = 0; k < count; k++) {
            double g = m.gradients[1][k];
            a[k] = 0.9 * a[k] + 0.1 * g;
            b[k] = 0.95 * b[k] + 0.05 * g * g;
            double denominator = sqrt(b[k] / (1 - pow(0.95, t))) + 1e-8;
            p[k] = p[k] * (1 - 1e-4) - 1e-3 * a[k] / (1 - pow(0.9, t)) / denominator;
        }
    }
    for (int64_t k = 0; k < count; k++)
        assert_true(fabs(p[k] - m.parameters[1][k]) <= 200 * 0x1p-24 * fabs(p[k]) + 100 * 1e-3 * 1e-6);
    free(p);
    free(a);
    free(b);
    stq_adamw_destroy(optimizer);
    model_close(&m);
}

/* The same bytes for every thread count. */
static void threads_change_no_byte(void **state) {
    (void)state;
    uint64_t digest[3];
    for (int i = 0; i < 3; i++) {
        model m;
        model_open(&m);
        stq_adamw_config config = config_of(STQ_POLICY_ZONES);
        config.threads = i == 2 ? 7 : i + 1;
        stq_adamw *optimizer = create(&config, &m);
        run(optimizer, &m, 1, 35);
        digest[i] = digest_of(optimizer, &m);
        stq_adamw_destroy(optimizer);
        model_close(&m);
    }
    assert_true(digest[0] == digest[1] && digest[1] == digest[2]);
}

/* An allocator of the host's that counts by itself: what the optimizer reports is what was asked of it. */
typedef struct counter {
    uint64_t bytes, peak;
    int64_t live;
    int64_t fail_at; /* the call that fails, counted down; < 0 never */
} counter;

static void *counted_allocate(void *context, size_t bytes) {
    counter *c = context;
    if (c->fail_at >= 0 && c->fail_at-- == 0)
        return NULL;
    c->bytes += bytes;
    c->peak = c->bytes > c->peak ? c->bytes : c->peak;
    c->live++;
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static void counted_release(void *context, void *pointer, size_t bytes) {
    counter *c = context;
    c->bytes -= bytes;
    c->live--;
    free(pointer);
}

/* At every step, transitions included, the bytes asked of the allocator and the records stay under the cap. */
static void cap_holds_at_every_step(void **state) {
    (void)state;
    const double caps[] = {6.5, 5.0, 4.0};
    for (int kind = STQ_POLICY_ZONES; kind <= STQ_POLICY_RATE_DISTORTION; kind++)
        for (size_t c = 0; c < sizeof caps / sizeof *caps; c++) {
            model m;
            model_open(&m);
            counter count = {.fail_at = -1};
            stq_allocator allocator = {.context = &count, .allocate = counted_allocate, .release = counted_release};
            stq_adamw_config config = config_of((stq_policy_kind)kind);
            config.allocator = &allocator;
            config.policy.state_bits = caps[c];
            stq_adamw *optimizer = create(&config, &m);
            stq_memory memory;
            for (uint32_t t = 1; t <= 120; t++) {
                run(optimizer, &m, t, t);
                stq_adamw_memory(optimizer, &memory);
                assert_int_equal(memory.state_bytes, count.bytes + optimizer->store.record_bytes);
                assert_true(memory.peak_bytes <= memory.cap_bytes);
            }
            assert_int_equal(memory.peak_bytes, count.peak + optimizer->store.record_bytes);
            assert_true(memory.peak_bits <= caps[c]);
            /* The cap is spent: no narrower than one bit of the smallest coded tensor's state would still fit, times a
             * few. */
            assert_true(memory.final_bits >= caps[c] - 0.35);
            stq_adamw_destroy(optimizer);
            assert_int_equal(count.live, 0);
            assert_int_equal(count.bytes, 0);
            model_close(&m);
        }
}

/* A non-finite gradient anywhere leaves parameters, states and the count as they were. */
static void bad_gradients_skip_the_step_whole(void **state) {
    (void)state;
    model m;
    model_open(&m);
    stq_adamw_config config = config_of(STQ_POLICY_ZONES);
    stq_adamw *optimizer = create(&config, &m);
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        if (i == 1)
            run(optimizer, &m, 1, 5);
        uint64_t before = digest_of(optimizer, &m);
        model_gradients(&m, 6);
        m.gradients[i + 1][m.tensors[i + 1].count - 1] = bad[i];
        stq_step step = step_of(&m);
        stq_step_result result;
        assert_int_equal(stq_adamw_step(optimizer, &step, &result), STQ_OK);
        assert_true(result.skipped && !isfinite(result.gradient_norm));
        assert_true(digest_of(optimizer, &m) == before);
    }
    assert_int_equal(stq_adamw_skipped_count(optimizer), 3);
    assert_int_equal(stq_adamw_step_count(optimizer), 5);
    stq_adamw_destroy(optimizer);
    model_close(&m);
}

/* Rows that never see a gradient do not move (no weight decay), at the narrowest widths and with error compensation. */
static void dead_rows_do_not_drift(void **state) {
    (void)state;
    model m;
    model_open(&m);
    stq_adamw_config config = config_of(STQ_POLICY_FIXED);
    stq_adamw_group group = {.learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0};
    config.groups = &group;
    config.group_count = 1;
    config.error_compensation = 1;
    config.policy.fixed_m_bits = config.policy.fixed_v_bits = 2;
    float before[96];
    memcpy(before, m.parameters[0] + 7 * 96, sizeof before);
    stq_adamw *optimizer = create(&config, &m);
    run(optimizer, &m, 1, 60);
    assert_memory_equal(before, m.parameters[0] + 7 * 96, sizeof before);
    stq_adamw_destroy(optimizer);
    model_close(&m);
}

/* Unscaling and clipping are one factor: half-scaled gradients with unscale 2 give the same bytes; a clipped step is a
 * step with smaller gradients. */
static void unscale_and_clip_are_a_factor(void **state) {
    (void)state;
    uint64_t digest[2];
    for (int i = 0; i < 2; i++) {
        model m;
        model_open(&m);
        stq_adamw_config config = config_of(STQ_POLICY_FIXED);
        stq_adamw *optimizer = create(&config, &m);
        for (uint32_t t = 1; t <= 10; t++) {
            model_gradients(&m, t);
            for (int k = 0; i == 1 && k < TENSORS; k++)
                for (int64_t e = 0; e < m.tensors[k].count; e++)
                    m.gradients[k][e] *= 0.5f;
            stq_step step = step_of(&m);
            step.unscale = i == 1 ? 2 : 1;
            step.max_gradient_norm = 0.25;
            stq_step_result result;
            assert_int_equal(stq_adamw_step(optimizer, &step, &result), STQ_OK);
            assert_true(result.gradient_norm > 0.25);
        }
        digest[i] = digest_of(optimizer, &m);
        stq_adamw_destroy(optimizer);
        model_close(&m);
    }
    assert_true(digest[0] == digest[1]);
}

/* Whatever allocation fails, nothing leaks, nothing half-made remains, and the optimizer goes on where it can. */
static void failing_allocations_leave_everything_whole(void **state) {
    (void)state;
    for (int64_t fail_at = 0; fail_at < 30; fail_at++) {
        model m;
        model_open(&m);
        counter count = {.fail_at = fail_at};
        stq_allocator allocator = {.context = &count, .allocate = counted_allocate, .release = counted_release};
        stq_adamw_config config = config_of(STQ_POLICY_ZONES);
        config.allocator = &allocator;
        stq_adamw *optimizer;
        stq_status status = stq_adamw_create(&optimizer, &config, m.tensors, TENSORS);
        if (status != STQ_OK) {
            assert_int_equal(status, STQ_OUT_OF_MEMORY);
            assert_null(optimizer);
        } else {
            uint64_t before = digest_of(optimizer, &m);
            model_gradients(&m, 1);
            stq_step step = step_of(&m);
            status = stq_adamw_step(optimizer, &step, NULL);
            if (status != STQ_OK) {
                assert_int_equal(status, STQ_OUT_OF_MEMORY);
                assert_true(digest_of(optimizer, &m) == before);
            }
            run(optimizer, &m, 1, 45);
        }
        stq_adamw_destroy(optimizer);
        assert_int_equal(count.live, 0);
        model_close(&m);
    }
}

/* Given widths are kept; widths differ between tensors under a policy and change during a run. */
static void widths_are_given_or_chosen(void **state) {
    (void)state;
    model m;
    model_open(&m);
    m.tensors[1].m_bits = 3;
    m.tensors[1].v_bits = 7;
    m.tensors[2].m_bits = m.tensors[2].v_bits = 32;
    m.tensors[3].m_bits = 8;
    m.tensors[3].v_bits = 8;
    stq_adamw_config config = config_of(STQ_POLICY_ZONES);
    config.policy.state_bits = 16;
    stq_adamw *optimizer = create(&config, &m);
    run(optimizer, &m, 1, 12);
    stq_tensor_info info;
    stq_adamw_tensor(optimizer, 1, &info);
    assert_true(info.m_bits == 3 && info.v_bits == 7);
    stq_adamw_tensor(optimizer, 2, &info);
    assert_true(info.m_bits == 32 && info.v_bits == 32);
    stq_adamw_tensor(optimizer, 3, &info);
    assert_true(info.m_bits == 8 && info.v_bits == 8);
    stq_adamw_tensor(optimizer, 4, &info);
    assert_true(info.m_bits == 32 && info.zone == STQ_ZONE_EXEMPT);
    assert_int_equal(stq_adamw_tensor(optimizer, TENSORS, &info), STQ_INVALID_ARGUMENT);
    stq_adamw_destroy(optimizer);
    model_close(&m);
}

/* The plan says what the run then takes: fixed widths to the byte, a policy within its cap. */
static void plan_agrees_with_the_run(void **state) {
    (void)state;
    for (int kind = STQ_POLICY_FLOAT32; kind <= STQ_POLICY_RATE_DISTORTION; kind++) {
        model m;
        model_open(&m);
        stq_adamw_config config = config_of((stq_policy_kind)kind);
        stq_memory plan, memory;
        assert_int_equal(stq_adamw_plan(&config, m.tensors, TENSORS, &plan), STQ_OK);
        stq_adamw *optimizer = create(&config, &m);
        run(optimizer, &m, 1, 3);
        stq_adamw_memory(optimizer, &memory);
        if (kind == STQ_POLICY_FLOAT32 || kind == STQ_POLICY_FIXED)
            assert_int_equal(plan.state_bytes, memory.state_bytes);
        else
            assert_true(plan.state_bytes <= memory.cap_bytes && memory.state_bytes <= memory.cap_bytes);
        assert_int_equal(plan.smallest_bytes, memory.smallest_bytes);
        stq_adamw_destroy(optimizer);
        model_close(&m);
    }
}

static void refuse(stq_adamw_config config, const stq_tensor *tensors, size_t count, stq_status expected,
                   const char *word) {
    stq_adamw *optimizer = (stq_adamw *)1;
    assert_int_equal(stq_adamw_create(&optimizer, &config, tensors, count), expected);
    assert_null(optimizer);
    if (strstr(stq_last_error(), word) == NULL)
        fail_msg("'%s' does not say '%s'", stq_last_error(), word);
}

static void misuse_is_refused_with_a_sentence(void **state) {
    (void)state;
    model m;
    model_open(&m);
    stq_adamw_config config = config_of(STQ_POLICY_ZONES);
    config.policy.state_bits = 1.0;
    refuse(config, m.tensors, TENSORS, STQ_CAP_TOO_SMALL, "bits");
    config = config_of(STQ_POLICY_ZONES);
    config.size = 3;
    refuse(config, m.tensors, TENSORS, STQ_INVALID_ARGUMENT, "stq_adamw_defaults");
    config = config_of(STQ_POLICY_ZONES);
    refuse(config, m.tensors, 0, STQ_INVALID_ARGUMENT, "at least one tensor");
    config.error_compensation = NAN;
    refuse(config, m.tensors, TENSORS, STQ_INVALID_ARGUMENT, "compensation");
    config = config_of(STQ_POLICY_ZONES);
    stq_adamw_group group = {.learning_rate = 1, .beta1 = 1.0, .beta2 = 0.5, .epsilon = 1e-8};
    config.groups = &group;
    config.group_count = 1;
    refuse(config, m.tensors, TENSORS, STQ_INVALID_ARGUMENT, "beta1");
    config = config_of(STQ_POLICY_ZONES);
    stq_tensor tensor = stq_tensor_whole("huge", INT64_C(1) << 30, INT64_C(1) << 30);
    refuse(config, &tensor, 1, STQ_INVALID_ARGUMENT, "huge");
    tensor = stq_tensor_whole("odd", 100, 100);
    tensor.m_bits = 9;
    refuse(config, &tensor, 1, STQ_INVALID_ARGUMENT, "odd");
    tensor.m_bits = 0;
    tensor.first = 1;
    refuse(config, &tensor, 1, STQ_INVALID_ARGUMENT, "slice");
    model_close(&m);
}

/* The step's golden value: 200 steps with decisions, on counter-based gradients. A change of any byte of codes, scales
 * or parameters shows here; it is deliberate only together with a line in CHANGELOG.md (format:). */
static void golden_digest_of_200_steps(void **state) {
    (void)state;
    model m;
    model_open(&m);
    stq_adamw_config config = config_of(STQ_POLICY_FIXED);
    config.seed = 42;
    config.policy.fixed_m_bits = 4;
    config.policy.fixed_v_bits = 5;
    stq_adamw *optimizer = create(&config, &m);
    run(optimizer, &m, 1, 200);
    uint64_t digest = digest_of(optimizer, &m);
    print_message("digest %016llx\n", (unsigned long long)digest);
    assert_true(digest == UINT64_C(0xb5a923950f35fc2c));
    stq_adamw_destroy(optimizer);
    model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(float32_states_follow_adamw),
        cmocka_unit_test(threads_change_no_byte),
        cmocka_unit_test(cap_holds_at_every_step),
        cmocka_unit_test(bad_gradients_skip_the_step_whole),
        cmocka_unit_test(dead_rows_do_not_drift),
        cmocka_unit_test(unscale_and_clip_are_a_factor),
        cmocka_unit_test(failing_allocations_leave_everything_whole),
        cmocka_unit_test(widths_are_given_or_chosen),
        cmocka_unit_test(plan_agrees_with_the_run),
        cmocka_unit_test(misuse_is_refused_with_a_sentence),
        cmocka_unit_test(golden_digest_of_200_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
