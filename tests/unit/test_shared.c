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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_agree_on_shared_values),
    };
    return cmocka_run_group_tests_name("shared", tests, NULL, NULL);
}
