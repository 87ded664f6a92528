/* test_qat.c - StableQAT against the formulas in double, and the limits between the estimators. */
#include "testing.h"

#include <fenv.h>
#include <math.h>

#include <stquant/qat.h>

#include "quant/convert.h"

enum { ROWS = 7, COLS = 2304, COUNT = ROWS * COLS };

typedef struct matrix {
    float weights[COUNT];
    float gradient[COUNT];
    float quantized[COUNT];
    float weight_gradient[COUNT];
    float steps[COUNT];
    float step_gradient[COUNT];
} matrix;

static matrix *matrix_open(uint32_t seed) {
    matrix *m = malloc(sizeof *m);
    for (uint32_t i = 0; i < COUNT; i++) {
        m->weights[i] = 0.05f * test_gaussian(seed, i);
        m->gradient[i] = test_gaussian(seed + 100, i);
    }
    return m;
}

static double factor(const stq_qat_config *c, double d) {
    double s = 0;
    if (c->estimator == STQ_QAT_STRAIGHT_THROUGH)
        return 1;
    if (c->estimator == STQ_QAT_SOFT) {
        double k = log(2 / c->softness - 1);
        double cosh_t = cosh(k * (0.5 - fabs(d)));
        return k / (2 * tanh(k / 2)) / (cosh_t * cosh_t);
    }
    for (uint32_t k = 0; k < c->harmonics; k++)
        s += sqrt(2) * M_PI * c->amplitudes[k] * cos((2 * k + 1) * M_PI * d);
    return (1 - s) / (1 + s);
}

/* Against the formulas in double. v has a relative error of 2^-24, which near a tie or an end may choose the other
 * side: elements closer than 1e-5 to one are left out (and counted: few). The factor's error is that of S, 1e-6, over
 * (1 + S)^2 and the slope. */
static void check_gradients(const stq_qat_config *config, matrix *m) {
    assert_int_equal(stq_qat_initial_steps(m->steps, config, m->weights, STQ_FLOAT32, ROWS, COLS), STQ_OK);
    for (int64_t i = 0; i < stq_qat_step_count(config, ROWS, COLS); i++)
        m->steps[i] *= 0.8f; /* so that some weights are clipped */
    assert_int_equal(stq_qat_backward(m->weight_gradient, m->step_gradient, config, m->weights, m->steps, m->gradient,
                                      STQ_FLOAT32, ROWS, COLS),
                     STQ_OK);
    double lowest = -(double)(1 << (config->bits - 1)), highest = (1 << (config->bits - 1)) - 1;
    int64_t group = config->group ? config->group : COLS;
    int left_out = 0;
    for (int64_t first = 0; first < COUNT; first += group) {
        double sum = 0, step = m->steps[first / group], slack = 1e-5;
        for (int64_t i = first; i < first + group; i++) {
            double v = m->weights[i] / step, d = v - rint(v);
            bool inside = v >= lowest && v <= highest;
            bool near = fabs(fabs(d) - 0.5) < 1e-5 || fabs(v - lowest) < 1e-5 || fabs(v - highest) < 1e-5;
            sum += m->gradient[i] * (inside ? -d : v < lowest ? lowest : highest);
            slack +=
                near ? fabs(m->gradient[i]) * (1 << config->bits) : fabs(m->gradient[i]) * 1e-5 * (1 << config->bits);
            left_out += near;
            if (!near)
                assert_true(fabs(m->weight_gradient[i] - (inside ? m->gradient[i] * factor(config, d) : 0)) <=
                            2e-5 * (1 << config->bits) * fabs(m->gradient[i]) + 1e-7);
        }
        double scale = 1 / sqrt((double)COUNT * fmax(highest, 1));
        assert_true(fabs(m->step_gradient[first / group] - scale * sum) <= scale * slack);
    }
    assert_true(left_out < COUNT / 200);
}

static void gradients_follow_the_formulas(void **state) {
    (void)state;
    matrix *m = matrix_open(1);
    for (int estimator = 0; estimator < 3; estimator++)
        for (uint32_t bits = 1; bits <= 8; bits++)
            for (uint32_t harmonics = 1; harmonics <= 3; harmonics += 2)
                for (int64_t group = 0; group <= 128; group += 128) {
                    stq_qat_config config = stq_qat_defaults();
                    config.bits = bits;
                    config.estimator = (stq_qat_estimator)estimator;
                    config.group = group;
                    config.harmonics = harmonics;
                    config.amplitudes[1] = -0.02;
                    config.amplitudes[2] = 0.01;
                    check_gradients(&config, m);
                }
    free(m);
}

/* A = 0 is the straight-through estimator, bit for bit. */
/* One harmonic is computed by a fitted polynomial: within 5e-7 of the formula (eight roundings of numbers up to 1.3,
 * and 1e-7 of the fit), on a fine grid of d and for amplitudes up to the limit; never negative. */
static void one_harmonic_is_fitted(void **state) {
    (void)state;
    enum { GRID = 8193 };
    static float weights[GRID], ones[GRID], factors[GRID];
    const double amplitudes[] = {0.0, 0.01, 0.1, 0.21, 0.225};
    stq_qat_config config = stq_qat_defaults();
    float step = 1.0f, step_gradient;
    for (size_t a = 0; a < sizeof amplitudes / sizeof *amplitudes; a++) {
        config.amplitudes[0] = amplitudes[a];
        for (int i = 0; i < GRID; i++) {
            weights[i] = (float)(i - GRID / 2) / (float)(GRID - 1);
            ones[i] = 1.0f;
        }
        assert_int_equal(stq_qat_backward(factors, &step_gradient, &config, weights, &step, ones, STQ_FLOAT32, 1, GRID),
                         STQ_OK);
        for (int i = 0; i < GRID; i++) {
            if (!(fabs(factors[i] - factor(&config, weights[i])) < 5e-7) || factors[i] < 0)
                fail_msg("amplitude %g, d %g: %.9g, expected %.9g", amplitudes[a], weights[i], factors[i],
                         factor(&config, weights[i]));
        }
    }
}

static void zero_amplitude_is_straight_through(void **state) {
    (void)state;
    matrix *m = matrix_open(2);
    float *other = malloc(COUNT * sizeof *other);
    stq_qat_config config = stq_qat_defaults();
    stq_qat_initial_steps(m->steps, &config, m->weights, STQ_FLOAT32, ROWS, COLS);
    config.amplitudes[0] = 0;
    stq_qat_backward(m->weight_gradient, m->step_gradient, &config, m->weights, m->steps, m->gradient, STQ_FLOAT32,
                     ROWS, COLS);
    config.estimator = STQ_QAT_STRAIGHT_THROUGH;
    stq_qat_backward(other, m->step_gradient, &config, m->weights, m->steps, m->gradient, STQ_FLOAT32, ROWS, COLS);
    assert_memory_equal(other, m->weight_gradient, COUNT * sizeof *other);
    free(other);
    free(m);
}

/* Quantizing twice is quantizing once; packed and unpacked is quantized: every width, with groups, in place. */
static void forward_is_idempotent_and_packs(void **state) {
    (void)state;
    for (uint32_t bits = 1; bits <= 8; bits++)
        for (int64_t group = 0; group <= 96; group += 96) {
            matrix *m = matrix_open(bits);
            stq_qat_config config = stq_qat_defaults();
            config.bits = bits;
            config.group = group;
            stq_qat_initial_steps(m->steps, &config, m->weights, STQ_FLOAT32, ROWS, COLS);
            uint8_t *packed = malloc(stq_qat_packed_bytes(&config, ROWS, COLS));
            assert_int_equal(stq_qat_pack(packed, &config, m->weights, m->steps, STQ_FLOAT32, ROWS, COLS), STQ_OK);
            assert_int_equal(stq_qat_forward(m->quantized, &config, m->weights, m->steps, STQ_FLOAT32, ROWS, COLS),
                             STQ_OK);
            assert_int_equal(stq_qat_forward(m->weights, &config, m->quantized, m->steps, STQ_FLOAT32, ROWS, COLS),
                             STQ_OK);
            assert_memory_equal(m->weights, m->quantized, sizeof m->weights);
            assert_int_equal(stq_qat_unpack(m->weights, &config, packed, m->steps, ROWS, COLS), STQ_OK);
            assert_memory_equal(m->weights, m->quantized, sizeof m->weights);
            free(packed);
            free(m);
        }
}

/* Everything that the calls make of the same weights, in the present rounding mode. */
static uint8_t *make_all(matrix *m, const stq_qat_config *config) {
    uint8_t *packed = malloc(stq_qat_packed_bytes(config, ROWS, COLS));
    assert_int_equal(stq_qat_initial_steps(m->steps, config, m->weights, STQ_FLOAT32, ROWS, COLS), STQ_OK);
    assert_int_equal(stq_qat_pack(packed, config, m->weights, m->steps, STQ_FLOAT32, ROWS, COLS), STQ_OK);
    assert_int_equal(stq_qat_unpack(m->quantized, config, packed, m->steps, ROWS, COLS), STQ_OK);
    assert_int_equal(stq_qat_backward(m->weight_gradient, m->step_gradient, config, m->weights, m->steps, m->gradient,
                                      STQ_FLOAT32, ROWS, COLS),
                     STQ_OK);
    return packed;
}

/* A host that rounds upwards gets the same bytes, and keeps its mode. */
static void the_hosts_rounding_does_not_matter(void **state) {
    (void)state;
    const stq_qat_estimator estimators[] = {STQ_QAT_STABLE, STQ_QAT_SOFT};
    for (uint32_t bits = 2; bits <= 8; bits += 2)
        for (size_t k = 0; k < 2; k++) {
            matrix *usual = matrix_open(bits), *upward = matrix_open(bits);
            stq_qat_config config = stq_qat_defaults();
            config.bits = bits;
            config.estimator = estimators[k];
            uint8_t *codes = make_all(usual, &config);
            fesetround(FE_UPWARD);
            uint8_t *others = make_all(upward, &config);
            int mode = fegetround();
            fesetround(FE_TONEAREST);
            size_t steps = (size_t)stq_qat_step_count(&config, ROWS, COLS) * sizeof(float);
            assert_int_equal(mode, FE_UPWARD);
            assert_memory_equal(usual->steps, upward->steps, steps);
            assert_memory_equal(codes, others, stq_qat_packed_bytes(&config, ROWS, COLS));
            assert_memory_equal(usual->quantized, upward->quantized, sizeof usual->quantized);
            assert_memory_equal(usual->weight_gradient, upward->weight_gradient, sizeof usual->weight_gradient);
            assert_memory_equal(usual->step_gradient, upward->step_gradient, steps);
            free(codes);
            free(others);
            free(usual);
            free(upward);
        }
}

/* Thresholds: at the ends of the range the gradient passes, beyond it does not; the codes' ends are reached. */
static void thresholds_are_where_they_should_be(void **state) {
    (void)state;
    stq_qat_config config = stq_qat_defaults();
    config.estimator = STQ_QAT_STRAIGHT_THROUGH;
    config.bits = 3;
    const float weights[8] = {-4.0f, -4.001f, -5.0f, 3.0f, 3.001f, 9.0f, 0.5f, 1.5f};
    const float gradient[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    const float expected_gradient[8] = {1, 0, 0, 1, 0, 0, 1, 1};
    const float expected[8] = {-4, -4, -4, 3, 3, 3, 0, 2}; /* ties to even */
    float step = 1, quantized[8], weight_gradient[8], step_gradient;
    stq_qat_forward(quantized, &config, weights, &step, STQ_FLOAT32, 1, 8);
    stq_qat_backward(weight_gradient, &step_gradient, &config, weights, &step, gradient, STQ_FLOAT32, 1, 8);
    assert_memory_equal(quantized, expected, sizeof quantized);
    assert_memory_equal(weight_gradient, expected_gradient, sizeof weight_gradient);
    step = -1; /* counts as the floor of 1e-5 */
    stq_qat_forward(quantized, &config, weights, &step, STQ_FLOAT32, 1, 8);
    assert_true(quantized[0] == -4 * 1e-5f);
}

/* bfloat16 and float16 are the float32 results, rounded to nearest. */
static void halves_follow_float32(void **state) {
    (void)state;
    matrix *m = matrix_open(5);
    stq_qat_config config = stq_qat_defaults();
    for (int dtype = STQ_BFLOAT16; dtype <= STQ_FLOAT16; dtype++) {
        uint16_t *weights = malloc(COUNT * 2), *gradient = malloc(COUNT * 2), *result = malloc(COUNT * 2);
        for (int64_t i = 0; i < COUNT; i++) {
            weights[i] = dtype == STQ_BFLOAT16 ? stq_to_bfloat16(m->weights[i], 0) : stq_to_float16(m->weights[i]);
            gradient[i] = dtype == STQ_BFLOAT16 ? stq_to_bfloat16(m->gradient[i], 0) : stq_to_float16(m->gradient[i]);
            m->weights[i] = stq_load_float(weights, (uint32_t)dtype, i);
            m->gradient[i] = stq_load_float(gradient, (uint32_t)dtype, i);
        }
        stq_qat_initial_steps(m->steps, &config, weights, (stq_dtype)dtype, ROWS, COLS);
        stq_qat_backward(m->weight_gradient, m->step_gradient, &config, m->weights, m->steps, m->gradient, STQ_FLOAT32,
                         ROWS, COLS);
        stq_qat_backward(result, m->step_gradient, &config, weights, m->steps, gradient, (stq_dtype)dtype, ROWS, COLS);
        double relative = dtype == STQ_BFLOAT16 ? 0x1p-8 : 0x1p-11;
        for (int64_t i = 0; i < COUNT; i++)
            assert_true(fabs(stq_load_float(result, (uint32_t)dtype, i) - m->weight_gradient[i]) <=
                        relative * fabs(m->weight_gradient[i]) + 1e-7);
        free(weights);
        free(gradient);
        free(result);
    }
    free(m);
}

/* At 2 bits the start by least squares beats max |w|, whose largest code is 1. */
static void two_bits_start_well(void **state) {
    (void)state;
    matrix *m = matrix_open(6);
    stq_qat_config config = stq_qat_defaults();
    config.bits = 2;
    stq_qat_initial_steps(m->steps, &config, m->weights, STQ_FLOAT32, ROWS, COLS);
    for (int row = 0; row < ROWS; row++) {
        double searched = 0, naive = 0;
        float largest = 0;
        for (int i = 0; i < COLS; i++)
            largest = fmaxf(largest, fabsf(m->weights[row * COLS + i]));
        for (int i = 0; i < COLS; i++) {
            double w = m->weights[row * COLS + i];
            searched += pow(w - m->steps[row] * fmin(fmax(rint(w / m->steps[row]), -2), 1), 2);
            naive += pow(w - largest * fmin(fmax(rint(w / largest), -2), 1), 2);
        }
        assert_true(searched < naive);
    }
    free(m);
}

static void misuse_is_refused_with_a_sentence(void **state) {
    (void)state;
    stq_qat_config config = stq_qat_defaults();
    config.amplitudes[0] = 0.2252;
    assert_int_equal(stq_qat_check(&config, 8), STQ_INVALID_ARGUMENT);
    assert_non_null(strstr(stq_last_error(), "0.2251"));
    config.amplitudes[0] = 0.2250;
    assert_int_equal(stq_qat_check(&config, 8), STQ_OK);
    config.harmonics = 2;
    config.amplitudes[1] = 0.1;
    assert_int_equal(stq_qat_check(&config, 8), STQ_INVALID_ARGUMENT);
    config = stq_qat_defaults();
    config.harmonics = 9;
    assert_int_equal(stq_qat_check(&config, 8), STQ_INVALID_ARGUMENT);
    config = stq_qat_defaults();
    config.bits = 9;
    assert_int_equal(stq_qat_check(&config, 8), STQ_INVALID_ARGUMENT);
    config = stq_qat_defaults();
    config.estimator = STQ_QAT_STRAIGHT_THROUGH;
    config.harmonics = 1000; /* of no meaning here, and not followed */
    float one = 1, gradient = 1, step_gradient;
    assert_int_equal(stq_qat_backward(&gradient, &step_gradient, &config, &one, &one, &one, STQ_FLOAT32, 1, 1), STQ_OK);
    assert_true(gradient == 1);
    config = stq_qat_defaults();
    config.group = 3;
    assert_int_equal(stq_qat_check(&config, 8), STQ_INVALID_ARGUMENT);
    config = stq_qat_defaults();
    config.estimator = STQ_QAT_SOFT;
    config.softness = 1;
    assert_int_equal(stq_qat_check(&config, 8), STQ_INVALID_ARGUMENT);
    float w = 1;
    config = stq_qat_defaults();
    assert_int_equal(stq_qat_forward(NULL, &config, &w, &w, STQ_FLOAT32, 1, 1), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_qat_forward(&w, &config, NULL, &w, STQ_FLOAT32, 1, 1), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_qat_forward(&w, &config, &w, &w, STQ_UINT8, 1, 1), STQ_INVALID_ARGUMENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_follow_the_formulas),
        cmocka_unit_test(one_harmonic_is_fitted),
        cmocka_unit_test(zero_amplitude_is_straight_through),
        cmocka_unit_test(forward_is_idempotent_and_packs),
        cmocka_unit_test(the_hosts_rounding_does_not_matter),
        cmocka_unit_test(thresholds_are_where_they_should_be),
        cmocka_unit_test(halves_follow_float32),
        cmocka_unit_test(two_bits_start_well),
        cmocka_unit_test(misuse_is_refused_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
