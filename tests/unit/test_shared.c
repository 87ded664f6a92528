/* test_shared.c - a second moment shared along a dimension: the update pass of every table of kernels against the
 * reference, and the arithmetic of the means. */
#include "testing.h"

#include "quant/convert.h"
#include "quant/kernels.h"
#include "quant/shared.h"

static const char *const names[] = {"reference", "avx2", "avx512", "neon"};
enum { NAMES = sizeof names / sizeof names[0] };

enum { VALUES = 5 * STQ_BLOCK + 17, MEANS = 1000 };

typedef struct update_case {
    int64_t cols;
    int64_t first_block;
    uint32_t v_in, v_out, m_bits;
    stq_dtype dtype;
    float compensation;
} update_case;

/* One update of the same values; the new parameters and the planes written are the result. */
static void run_update(const stq_kernels *kernels, const update_case *one, void *parameters, stq_planes *m,
                       stq_planes *v_out) {
    static float gradient[VALUES], values[VALUES], means[MEANS];
    stq_random random = {.seed = 1};
    for (uint32_t i = 0; i < VALUES; i++) {
        gradient[i] = test_gaussian(7, i) * (i % 50 == 0 ? 1e19f : 1e-3f);
        values[i] = test_gaussian(8, i) * 1e-4f;
        stq_store_float(parameters, one->dtype, i, test_gaussian(9, i), 0);
    }
    for (uint32_t i = 0; i < MEANS; i++)
        means[i] = i % 17 == 0 ? 0.0f : 1e-7f * expf(3 * test_gaussian(10, i));
    assert_int_equal(stq_encode(m, STQ_FIRST_MOMENT, values, VALUES, &random), STQ_OK);
    stq_planes shared = {.base = (uint8_t *)means, .bits = one->v_in};
    stq_item item = {.parameter = parameters,
                     .gradient = gradient,
                     .m_in = *m,
                     .m_out = *m,
                     .v_in = shared,
                     .v_out = stq_is_shared(one->v_out) ? shared : *v_out,
                     .count = VALUES,
                     .first_block = one->first_block,
                     .cols = one->cols,
                     .tensor = 2,
                     .parameter_type = one->dtype};
    stq_coefficients c = {.gradient_factor = 0.5f,
                          .beta1 = 0.9f,
                          .one_minus_beta1 = 0.1f,
                          .beta2 = 0.99f,
                          .one_minus_beta2 = 0.01f,
                          .decay = 0.999f,
                          .step_size = 1e-3f,
                          .epsilon = 1e-8f,
                          .compensation = one->compensation,
                          .step_key = 12345};
    kernels->step(&item, &c, 0, 2);
    kernels->step(&item, &c, 2, stq_block_count(VALUES));
}

static void check_update(const stq_kernels *kernels, const update_case *one) {
    static float expected[VALUES], found[VALUES];
    uint32_t v_bits = stq_is_shared(one->v_out) ? 4 : one->v_out;
    stq_planes m1 = test_planes(VALUES, one->m_bits), m2 = test_planes(VALUES, one->m_bits);
    stq_planes v1 = test_planes(VALUES, v_bits), v2 = test_planes(VALUES, v_bits);
    run_update(&stq_reference_kernels, one, expected, &m1, &v1);
    run_update(kernels, one, found, &m2, &v2);
    assert_memory_equal(expected, found, VALUES * stq_dtype_size(one->dtype));
    for (uint32_t k = 0; k < stq_plane_count(one->m_bits); k++)
        assert_memory_equal(k ? m1.bit[k - 1] : m1.base, k ? m2.bit[k - 1] : m2.base,
                            stq_plane_bytes(VALUES, one->m_bits, k));
    if (!stq_is_shared(one->v_out)) {
        for (uint32_t k = 0; k < stq_plane_count(v_bits); k++)
            assert_memory_equal(k ? v1.bit[k - 1] : v1.base, k ? v2.bit[k - 1] : v2.base,
                                stq_plane_bytes(VALUES, v_bits, k));
        assert_memory_equal(v1.scales, v2.scales, (size_t)stq_block_count(VALUES) * sizeof(uint16_t));
    }
    for (int i = 0; i < VALUES && one->dtype == STQ_FLOAT32; i++)
        assert_true(isfinite(found[i]));
    test_planes_free(&m1);
    test_planes_free(&m2);
    test_planes_free(&v1);
    test_planes_free(&v2);
}

static void test_kernels_agree_on_shared_values(void **state) {
    (void)state;
    const int64_t cols[] = {1, 7, 64, 128, 129, 384, 999};
    int cases = 0;
    for (int k = 0; k < NAMES; k++) {
        const stq_kernels *kernels = stq_find_kernels(names[k]);
        if (!kernels)
            continue;
        for (size_t c = 0; c < sizeof cols / sizeof cols[0]; c++)
            for (uint32_t v_in = STQ_BITS_SHARED_ROW; v_in <= STQ_BITS_SHARED_COL; v_in++)
                for (uint32_t v_out = 1; v_out <= 8; v_out++)
                    for (int dtype = STQ_FLOAT32; dtype <= STQ_FLOAT16; dtype++) {
                        update_case one = {.cols = cols[c],
                                           .first_block = v_in == STQ_BITS_SHARED_COL ? 3 : 0,
                                           .v_in = v_in,
                                           .v_out = v_out == 1 ? v_in : v_out,
                                           .m_bits = 2 + (uint32_t)cases % 7,
                                           .dtype = (stq_dtype)dtype,
                                           .compensation = cases % 3 == 0 ? 0.5f : 0.0f};
                        check_update(kernels, &one);
                        cases++;
                    }
    }
    assert_true(cases >= 336);
}

/* ---- Through the optimizer ---- */

enum { ROWS = 96, COLS = 130, ELEMENTS = ROWS * COLS };

/* Gradients whose size goes by row or by column, with jumps in the middle of the run. */
static void make_gradient(float *g, bool by_row, uint32_t step, float spread) {
    for (uint32_t i = 0; i < ELEMENTS; i++) {
        uint32_t line = by_row ? i / COLS : i % COLS;
        float scale = expf(2 * test_gaussian(50, line)) * expf(spread * test_gaussian(51, i));
        g[i] = 1e-3f * scale * test_gaussian(1000 + step, i);
        if (step == 20 && i % 977 == 0)
            g[i] *= 3e3f; /* far beyond what the means let expect */
        if (line == 5 && step < 30)
            g[i] = 0; /* a dead line that comes alive */
    }
}

static stq_adamw *open_shared(uint32_t v_bits, int threads) {
    stq_adamw_config config = stq_adamw_defaults();
    config.threads = threads;
    config.policy.kind = STQ_POLICY_FIXED;
    config.policy.fixed_m_bits = 8;
    stq_tensor tensor = stq_tensor_whole("shared", ROWS, COLS);
    tensor.m_bits = 8;
    tensor.v_bits = v_bits;
    stq_adamw *o;
    if (stq_adamw_create(&o, &config, &tensor, 1) != STQ_OK)
        fail_msg("%s", stq_last_error());
    return o;
}

static void make_step(stq_adamw *o, float *p, const float *g, double clip) {
    stq_step step = {.size = sizeof step,
                     .parameters = (void *[]){p},
                     .gradients = (const void *[]){g},
                     .unscale = 1,
                     .max_gradient_norm = clip};
    if (stq_adamw_step(o, &step, NULL) != STQ_OK)
        fail_msg("%s", stq_last_error());
}

/* The means follow a dense computation in double to the resolution of the sums: 1 / 64^2 of a mean, and what a line
 * that comes alive or a saturated sum, made again, is rounded up by. */
static void test_means_follow_the_definition(void **state) {
    (void)state;
    static float p[ELEMENTS], g[ELEMENTS], v[ELEMENTS];
    for (uint32_t v_bits = STQ_BITS_SHARED_ROW; v_bits <= STQ_BITS_SHARED_COL; v_bits++) {
        bool by_row = v_bits == STQ_BITS_SHARED_ROW;
        double means[COLS] = {0};
        int lines = by_row ? ROWS : COLS;
        stq_adamw *o = open_shared(v_bits, 2);
        memset(p, 0, sizeof p);
        for (uint32_t step = 1; step <= 60; step++) {
            make_gradient(g, by_row, step, 0.3f);
            make_step(o, p, g, 0);
            double sums[COLS] = {0};
            for (int i = 0; i < ELEMENTS; i++)
                sums[by_row ? i / COLS : i % COLS] += (double)g[i] * g[i];
            for (int k = 0; k < lines; k++)
                means[k] = 0.999 * means[k] + 0.001 * sums[k] / (by_row ? COLS : ROWS);
            assert_int_equal(stq_adamw_read_state(o, 0, STQ_SECOND_MOMENT, v, 0, ELEMENTS), STQ_OK);
            for (int i = 0; i < ELEMENTS; i++) {
                double expected = means[by_row ? i / COLS : i % COLS];
                double found = (double)v[i];
                if (!(found >= expected * (1 - 1e-3) &&
                      (step > 1 && step != 20 ? found <= expected * 1.01 + 1e-13 : true)))
                    fail_msg("step %u, element %d: mean %g, should be %g", step, i, found, expected);
            }
        }
        for (int i = 0; i < ELEMENTS; i++)
            assert_true(isfinite(p[i]));
        stq_adamw_destroy(o);
    }
}

static uint64_t digest_of(const stq_adamw *o) {
    uint64_t digest;
    assert_int_equal(stq_adamw_digest(o, &digest), STQ_OK);
    return digest;
}

static void test_threads_change_no_byte(void **state) {
    (void)state;
    static float p1[ELEMENTS], p5[ELEMENTS], g[ELEMENTS];
    for (uint32_t v_bits = STQ_BITS_SHARED_ROW; v_bits <= STQ_BITS_SHARED_COL; v_bits++) {
        stq_adamw *one = open_shared(v_bits, 1), *five = open_shared(v_bits, 5);
        memset(p1, 0, sizeof p1);
        memset(p5, 0, sizeof p5);
        for (uint32_t step = 1; step <= 40; step++) {
            make_gradient(g, v_bits == STQ_BITS_SHARED_COL, step, 0.3f); /* the wrong dimension: many saturate */
            make_step(one, p1, g, 0.1);
            make_step(five, p5, g, 0.1);
        }
        assert_memory_equal(p1, p5, sizeof p1);
        assert_true(digest_of(one) == digest_of(five));
        stq_adamw_destroy(one);
        stq_adamw_destroy(five);
    }
}

/* An optimizer restored from records and buffers goes on with the same bytes. */
static void test_saved_and_restored(void **state) {
    (void)state;
    static float p[ELEMENTS], q[ELEMENTS], g[ELEMENTS];
    stq_adamw *o = open_shared(STQ_BITS_SHARED_ROW, 1), *copy = open_shared(STQ_BITS_SHARED_ROW, 1);
    for (uint32_t step = 1; step <= 25; step++) {
        make_gradient(g, true, step, 0.3f);
        make_step(o, p, g, 0);
    }
    stq_adamw_record record;
    stq_tensor_record tensor;
    stq_buffer buffers[16];
    size_t count;
    assert_int_equal(stq_adamw_save_records(o, &record, &tensor, 1), STQ_OK);
    assert_int_equal(stq_adamw_restore(copy, &record, &tensor, 1), STQ_OK);
    assert_int_equal(stq_adamw_buffers(o, buffers, 16, &count), STQ_OK);
    stq_planes m = {.bits = 8}, v = {.bits = STQ_BITS_SHARED_ROW};
    for (size_t i = 0; i < count; i++) {
        if (buffers[i].part == STQ_PART_SHARED)
            v.base = buffers[i].data;
        else if (buffers[i].part == STQ_PART_SCALES)
            m.scales = buffers[i].data;
        else if (buffers[i].part == STQ_PART_BASE)
            m.base = buffers[i].data;
        else
            m.bit[buffers[i].part - STQ_PART_BIT0] = buffers[i].data;
    }
    assert_string_equal(stq_part_name(STQ_SECOND_MOMENT, STQ_PART_SHARED), "v.shared");
    assert_int_equal(stq_adamw_write_state(copy, 0, STQ_FIRST_MOMENT, &m, 0, ELEMENTS), STQ_OK);
    assert_int_equal(stq_adamw_write_state(copy, 0, STQ_SECOND_MOMENT, &v, 0, ELEMENTS), STQ_OK);
    assert_true(digest_of(o) == digest_of(copy));
    memcpy(q, p, sizeof p);
    for (uint32_t step = 26; step <= 40; step++) {
        make_gradient(g, true, step, 0.3f);
        make_step(o, p, g, 0);
        make_step(copy, q, g, 0);
    }
    assert_memory_equal(p, q, sizeof p);
    assert_true(digest_of(o) == digest_of(copy));
    stq_adamw_destroy(o);
    stq_adamw_destroy(copy);
}

enum { LARGE_ROWS = 260, LARGE_COLS = 384, LARGE = LARGE_ROWS * LARGE_COLS };

static void make_large_gradient(float *g, bool by_row, uint32_t seed, float spread) {
    for (uint32_t i = 0; i < LARGE; i++) {
        uint32_t line = by_row ? i / LARGE_COLS : i % LARGE_COLS;
        g[i] = 1e-3f * expf(2 * test_gaussian(50, line) + spread * test_gaussian(51, i)) * test_gaussian(seed, i);
    }
}

static stq_adamw *open_automatic(stq_policy_kind kind, double bits) {
    stq_adamw_config config = stq_adamw_defaults();
    config.groups = &(stq_adamw_group){1e-3, 0.9, 0.9, 1e-8, 0};
    config.group_count = 1;
    config.policy.kind = kind;
    config.policy.state_bits = bits;
    config.policy.decide_every = 20;
    config.policy.shared_v = STQ_SHARED_AUTO;
    stq_tensor tensors[2] = {stq_tensor_whole("rows", LARGE_ROWS, LARGE_COLS),
                             stq_tensor_whole("columns", LARGE_ROWS, LARGE_COLS)};
    stq_adamw *o;
    if (stq_adamw_create(&o, &config, tensors, 2) != STQ_OK)
        fail_msg("%s", stq_last_error());
    return o;
}

/* Steps first + 1 .. last; the cap holds at each. Gradients level along a dimension, or not at all (spread). */
static void run_automatic(stq_adamw *o, float *p, uint32_t first, uint32_t last, float spread) {
    static float g[2][LARGE];
    for (uint32_t step = first + 1; step <= last; step++) {
        make_large_gradient(g[0], true, 100 + step, spread);
        make_large_gradient(g[1], false, 200 + step, spread);
        stq_step one = {.size = sizeof one,
                        .parameters = (void *[]){p, p + LARGE},
                        .gradients = (const void *[]){g[0], g[1]},
                        .unscale = 1};
        assert_int_equal(stq_adamw_step(o, &one, NULL), STQ_OK);
        stq_memory memory;
        assert_int_equal(stq_adamw_memory(o, &memory), STQ_OK);
        assert_true(memory.state_bytes <= memory.cap_bytes && memory.peak_bytes <= memory.cap_bytes);
    }
}

static void test_sharing_follows_the_ratio(void **state) {
    (void)state;
    static float p[2 * LARGE];
    for (int kind = STQ_POLICY_ZONES; kind <= STQ_POLICY_RATE_DISTORTION; kind++) {
        memset(p, 0, sizeof p);
        stq_adamw *o = open_automatic((stq_policy_kind)kind, kind == STQ_POLICY_ZONES ? 4.2 : 4.6);
        stq_tensor_info rows, columns;
        run_automatic(o, p, 0, 100, 0.05f);
        assert_int_equal(stq_adamw_tensor(o, 0, &rows), STQ_OK);
        assert_int_equal(stq_adamw_tensor(o, 1, &columns), STQ_OK);
        assert_int_equal(rows.v_bits, STQ_BITS_SHARED_ROW);
        assert_int_equal(columns.v_bits, STQ_BITS_SHARED_COL);
        assert_true(rows.m_bits + columns.m_bits >= 11); /* what v leaves goes to m */
        run_automatic(o, p, 100, 400, 2.0f);
        assert_int_equal(stq_adamw_tensor(o, 0, &rows), STQ_OK);
        assert_int_equal(stq_adamw_tensor(o, 1, &columns), STQ_OK);
        assert_in_range(rows.v_bits, 2, 8);
        assert_in_range(columns.v_bits, 2, 8);
        stq_adamw_destroy(o);
    }
}

static void test_ratios_of_known_fields(void **state) {
    (void)state;
    static float values[STQ_SHARED_PROBES];
    stq_shared_grid grid = stq_shared_probe_grid(500, 700);
    assert_true(grid.rows == 32 && grid.cols == 32);
    double ratios[2];
    for (int i = 0; i < 1024; i++) /* gamma of 8 Gaussians' squares in each row: ratio 4 */
    {
        float sum = 0;
        for (uint32_t k = 0; k < 8; k++)
            sum += test_gaussian(60 + k, (uint32_t)i) * test_gaussian(60 + k, (uint32_t)i);
        values[i] = sum * expf(3 * test_gaussian(70, (uint32_t)i / 32));
    }
    stq_shared_ratios(ratios, values, &grid, 0);
    assert_true(ratios[0] > 3.2 && ratios[0] < 5 && ratios[1] < 0.5);
    stq_shared_ratios(ratios, values, &grid, 0.2);
    assert_true(ratios[0] > 10);
    for (int i = 0; i < 1024; i++)
        values[i] = 1;
    stq_shared_ratios(ratios, values, &grid, 0);
    assert_true(fabs(ratios[0] - STQ_SHARED_BEST) < 1e-6 && fabs(ratios[1] - STQ_SHARED_BEST) < 1e-6);
    memset(values, 0, sizeof values);
    stq_shared_ratios(ratios, values, &grid, 0);
    assert_true(ratios[0] == 0 && ratios[1] == 0);
}

/* Every probe lies in the tensor, no two are the same element. */
static void test_probes_are_distinct(void **state) {
    (void)state;
    const int64_t shapes[][2] = {{2, 4096}, {4096, 2}, {1024, 4}, {33, 31}, {50257, 768}, {1, 5000}, {5, 5}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        int64_t rows = shapes[s][0], cols = shapes[s][1], before = -1;
        stq_shared_grid grid = stq_shared_probe_grid(rows, cols);
        assert_true(grid.rows * grid.cols <= STQ_SHARED_PROBES && grid.rows <= rows && grid.cols <= cols);
        assert_true(grid.rows * grid.cols == rows * cols || grid.rows * grid.cols >= 48);
        for (int64_t i = 0; i < grid.rows * grid.cols; i++) {
            int64_t at = stq_shared_probe(i, &grid, rows, cols);
            assert_true(at > before && at < rows * cols);
            before = at;
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_agree_on_shared_values),
        cmocka_unit_test(test_means_follow_the_definition),
        cmocka_unit_test(test_threads_change_no_byte),
        cmocka_unit_test(test_saved_and_restored),
        cmocka_unit_test(test_sharing_follows_the_ratio),
        cmocka_unit_test(test_ratios_of_known_fields),
        cmocka_unit_test(test_probes_are_distinct),
    };
    return cmocka_run_group_tests_name("shared", tests, NULL, NULL);
}
