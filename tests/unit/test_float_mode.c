/* test_float_mode.c - a host that flushes subnormals and rounds upwards, on every thread of the pool, gets the factors,
 * norms, widths, states and parameters of one that does not, and keeps its mode. */
#include "testing.h"

#include <omp.h>

#include "hostile_mode.h"
#include "quant/convert.h"
#include "score/power.h"

enum { THREADS = 4, ROWS = 700, COLS = 300, COUNT = ROWS * COLS };

static uint64_t saved_mode, saved_modes[THREADS];
static bool kept_modes[THREADS];

/* The lowest bits tell which exceptions have been met, where they are in the same register. */
static bool same_mode(uint64_t a, uint64_t b) { return (a | 0x3f) == (b | 0x3f); }

/* The calling thread's mode first: some OpenMP libraries hand it to the team at each parallel region, and take back
 * what a region sets; with others each thread keeps its own. */
static void become_hostile(void) {
    saved_mode = hostile_mode();
#pragma omp parallel num_threads(THREADS)
    saved_modes[omp_get_thread_num()] = hostile_mode();
}

/* Fails unless every thread has the mode that become_hostile() gave it. */
static void become_usual(void) {
    uint64_t found = hostile_mode(), hostile = hostile_mode();
    bool kept = same_mode(found, hostile);
#pragma omp parallel num_threads(THREADS)
    {
        int i = omp_get_thread_num();
        kept_modes[i] = same_mode(hostile_mode(), hostile);
        stq_float_mode_restore(saved_modes[i]);
    }
    stq_float_mode_restore(saved_mode);
    assert_true(kept);
    for (int i = 0; i < THREADS; i++)
        assert_true(kept_modes[i]);
}

/* Mostly subnormal, in the binades around the smallest normal number. */
static void make_gradient(float *gradient, uint32_t seed) {
    for (uint32_t i = 0; i < COUNT; i++)
        gradient[i] = ldexpf(test_gaussian(seed, i), -127 - (int)(i % 7));
}

static void test_factors(void **state) {
    (void)state;
    static float gradient[COUNT];
    static uint16_t halves[COUNT];
    make_gradient(gradient, 1);
    for (int dtype = STQ_FLOAT32; dtype <= STQ_BFLOAT16; dtype++) {
        for (uint32_t i = 0; i < COUNT; i++)
            halves[i] = stq_to_bfloat16(gradient[i], 0);
        const void *elements = dtype == STQ_FLOAT32 ? (const void *)gradient : (const void *)halves;
        stq_tensor tensor = stq_tensor_whole("flushed", ROWS, COLS);
        tensor.gradient_type = (stq_dtype)dtype;
        for (int threads = 1; threads <= THREADS; threads += THREADS - 1) {
            stq_factors usual, hostile;
            assert_int_equal(stq_score_factors(&tensor, elements, 0x1p-10f, threads, &usual), STQ_OK);
            become_hostile();
            stq_status status = stq_score_factors(&tensor, elements, 0x1p-10f, threads, &hostile);
            become_usual();
            assert_int_equal(status, STQ_OK);
            assert_true(usual.n > 0 && usual.r < 1 && usual.near_zero > 0);
            assert_memory_equal(&usual, &hostile, sizeof usual);
        }
    }
}

/* As a GPU's factors are finished, whatever mode the host has then. */
static void test_finished_factors(void **state) {
    (void)state;
    const stq_tensor tensor = stq_tensor_whole("flushed", ROWS, COLS);
    const stq_moment_sums sums = {.squares = 1e-82, .fourths = 1e-168, .largest_bits = 5000};
    const stq_row_statistics rows = {.near_zero = 7, .squares = 123456789, .roots = 7654321};
    stq_factors usual = stq_score_finish(&tensor, &sums, &rows, 3e8, 5e8, 1 / 3.0);
    become_hostile();
    stq_factors hostile = stq_score_finish(&tensor, &sums, &rows, 3e8, 5e8, 1 / 3.0);
    become_usual();
    assert_true(usual.sharpness > 0);
    assert_memory_equal(&usual, &hostile, sizeof usual);
}

enum { TENSORS = 3, STEPS = 4, LENGTH = 3 * COUNT };

/* What a run leaves behind. */
typedef struct outcome {
    float parameters[LENGTH];
    double norms[STEPS];
    stq_factors factors[TENSORS];
    uint64_t digest;
} outcome;

static float gradients[LENGTH];
static outcome usual_outcome, hostile_outcome;
static const int64_t offsets[TENSORS] = {0, COUNT, 2 * COUNT};

static stq_adamw_config config_of_run(void) {
    static const stq_adamw_group group = {
        .learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-30, .weight_decay = 0.01};
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = STQ_POLICY_ZONES;
    config.policy.state_bits = 5.0;
    config.policy.decide_every = 2;
    config.policy.planned_steps = STEPS;
    config.threads = THREADS;
    config.groups = &group;
    config.group_count = 1;
    return config;
}

static void begin(outcome *result, stq_tensor tensors[TENSORS]) {
    const char *names[TENSORS] = {"first", "second", "third"};
    for (int i = 0; i < TENSORS; i++)
        tensors[i] = stq_tensor_whole(names[i], ROWS, COLS);
    for (uint32_t i = 0; i < LENGTH; i++)
        result->parameters[i] = 0.1f * test_gaussian(7, i);
}

static void make_gradients(uint32_t step) {
    for (uint32_t i = 0; i < TENSORS; i++)
        make_gradient(gradients + offsets[i], 10 * step + i);
}

static void finish(const stq_adamw *optimizer, outcome *result) {
    for (size_t i = 0; i < TENSORS; i++) {
        stq_tensor_info info;
        assert_int_equal(stq_adamw_tensor(optimizer, i, &info), STQ_OK);
        result->factors[i] = info.factors;
    }
    assert_int_equal(stq_adamw_digest(optimizer, &result->digest), STQ_OK);
}

/* Shares second moments that come in float32, as out of a checkpoint. */
static stq_status write_shared(stq_adamw *optimizer, size_t index) {
    float *moments = gradients;
    for (int i = 0; i < COUNT; i++)
        moments[i] = fabsf(moments[i]);
    const stq_planes source = {.base = (uint8_t *)(void *)moments, .bits = STQ_BITS_FLOAT32};
    return stq_adamw_write_state(optimizer, index, STQ_SECOND_MOMENT, &source, 0, COUNT);
}

static void run_optimizer(outcome *result, bool hostile) {
    stq_tensor tensors[TENSORS];
    begin(result, tensors);
    tensors[2].m_bits = 4;
    tensors[2].v_bits = STQ_BITS_SHARED_ROW;
    stq_adamw_config config = config_of_run();
    stq_adamw *optimizer;
    assert_int_equal(stq_adamw_create(&optimizer, &config, tensors, TENSORS), STQ_OK);
    void *parameters[TENSORS];
    const void *pointers[TENSORS];
    for (int i = 0; i < TENSORS; i++) {
        parameters[i] = result->parameters + offsets[i];
        pointers[i] = gradients + offsets[i];
    }
    for (uint32_t t = 0; t < STEPS; t++) {
        stq_step step = {.size = sizeof step,
                         .parameters = parameters,
                         .gradients = pointers,
                         .unscale = 0x1p120,
                         .max_gradient_norm = 1};
        stq_step_result done;
        make_gradients(t);
        if (hostile)
            become_hostile();
        stq_status status = stq_adamw_step(optimizer, &step, &done);
        if (hostile)
            become_usual();
        assert_int_equal(status, STQ_OK);
        result->norms[t] = done.gradient_norm;
    }
    if (hostile)
        become_hostile();
    stq_status status = write_shared(optimizer, 2);
    if (hostile)
        become_usual();
    assert_int_equal(status, STQ_OK);
    finish(optimizer, result);
    stq_adamw_destroy(optimizer);
}

static void run_sharded(outcome *result, bool hostile) {
    stq_tensor tensors[TENSORS];
    begin(result, tensors);
    stq_adamw_config config = config_of_run();
    stq_comm *comm;
    stq_sharded *sharded;
    assert_int_equal(stq_comm_create_self(&comm), STQ_OK);
    assert_int_equal(stq_sharded_create(&sharded, comm, &config, tensors, TENSORS,
                                        &(stq_flat){.offsets = offsets, .length = LENGTH}),
                     STQ_OK);
    for (uint32_t t = 0; t < STEPS; t++) {
        stq_step_result done;
        make_gradients(t);
        if (hostile)
            become_hostile();
        stq_status status = stq_sharded_step(sharded, result->parameters, gradients, 0x1p-118, &done);
        if (hostile)
            become_usual();
        assert_int_equal(status, STQ_OK);
        result->norms[t] = done.gradient_norm;
    }
    finish(stq_sharded_optimizer(sharded), result);
    stq_sharded_destroy(sharded);
    stq_comm_destroy(comm);
}

static void compare(void (*run)(outcome *result, bool hostile)) {
    run(&usual_outcome, false);
    run(&hostile_outcome, true);
    for (int t = 0; t < STEPS; t++)
        assert_true(usual_outcome.norms[t] > 0);
    assert_memory_equal(usual_outcome.norms, hostile_outcome.norms, sizeof usual_outcome.norms);
    assert_memory_equal(usual_outcome.factors, hostile_outcome.factors, sizeof usual_outcome.factors);
    assert_memory_equal(usual_outcome.parameters, hostile_outcome.parameters, sizeof usual_outcome.parameters);
    assert_true(usual_outcome.digest == hostile_outcome.digest);
}

static void test_steps(void **state) {
    (void)state;
    compare(run_optimizer);
}

static void test_sharded_steps(void **state) {
    (void)state;
    compare(run_sharded);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_factors),
        cmocka_unit_test(test_finished_factors),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_sharded_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
