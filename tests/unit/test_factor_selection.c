/* test_factor_selection.c - the greedy guarantee on random and adversarial samples, F against known Gaussians. */
#include "testing.h"

#define SEED 2011u

enum { SAMPLES = 400, COUNT = 8 };

static double normal(uint32_t seed, uint32_t counter) {
    double u = test_uniform(seed, 2 * counter), angle = 6.283185307179586 * test_uniform(seed, 2 * counter + 1);
    return sqrt(-2 * log(u)) * cos(angle);
}

/* Factors that share a common part, a target that is a random combination of some of them and of noise. */
static void make_samples(double *factors, double *target, uint32_t seed) {
    double weights[COUNT], common = test_uniform(seed, 1), noise = test_uniform(seed, 2);
    for (uint32_t j = 0; j < COUNT; j++)
        weights[j] = test_uniform(seed, 10 + j) < 0.5 ? 0 : normal(seed, 20 + j);
    for (uint32_t i = 0; i < SAMPLES; i++) {
        double shared = normal(seed, 1000 + i);
        target[i] = 3 * noise * normal(seed, 3000 + i);
        for (uint32_t j = 0; j < COUNT; j++) {
            double x = common * shared + (1 - common) * normal(seed, 10000 + i * COUNT + j);
            factors[i * COUNT + j] = exp(x); /* ranks do not see this */
            target[i] += weights[j] * x;
        }
    }
}

static void check_guarantee(const stq_selection *s, size_t k, uint32_t seed) {
    if (!(s->value >= s->bound * s->best_value - 1e-9 && s->best_value >= s->value))
        fail_msg("seed %u, k %zu: greedy %g, best %g, gamma %g, bound %g", seed, k, s->value, s->best_value, s->gamma,
                 s->bound);
    assert_true(s->gamma >= 0 && s->gamma <= 1);
    uint32_t set = 0;
    for (size_t i = 0; i < k; i++)
        set |= 1u << s->order[i];
    assert_int_equal(set, s->selected);
}

static void test_guarantee_on_random_samples(void **state) {
    (void)state;
    static double factors[SAMPLES * COUNT], target[SAMPLES];
    double gamma_sum = 0;
    int exact = 0, cases = 0;
    for (uint32_t seed = SEED; seed < SEED + 150; seed++) {
        make_samples(factors, target, seed);
        for (size_t k = 1; k <= 4; k++) {
            stq_selection s;
            assert_int_equal(stq_select_factors(&s, factors, target, SAMPLES, COUNT, k), STQ_OK);
            check_guarantee(&s, k, seed);
            gamma_sum += s.gamma;
            exact += s.best == s.selected;
            cases++;
        }
    }
    print_message("# seeds %u to %u: mean gamma %.3f, greedy is the optimum in %d of %d\n", SEED, SEED + 149,
                  gamma_sum / cases, exact, cases);
}

/* The target is the difference of two nearly equal factors: each alone says nothing, together they say all. */
static void test_gamma_falls_on_adversarial_samples(void **state) {
    (void)state;
    static double factors[SAMPLES * COUNT], target[SAMPLES];
    double before = 2;
    for (int level = 0; level < 6; level++) {
        double apart = pow(0.4, level);
        for (uint32_t i = 0; i < SAMPLES; i++) {
            double x = normal(SEED, i), difference = normal(SEED + 1, i);
            target[i] = difference;
            factors[i * COUNT] = x;
            factors[i * COUNT + 1] = x + apart * difference;
            for (uint32_t j = 2; j < COUNT; j++)
                factors[i * COUNT + j] = 0.3 * difference + normal(SEED + 2, i * COUNT + j);
        }
        stq_selection s;
        assert_int_equal(stq_select_factors(&s, factors, target, SAMPLES, COUNT, 2), STQ_OK);
        check_guarantee(&s, 2, SEED);
        print_message("# apart %.3f: gamma %.4f\n", apart, s.gamma);
        assert_true(level > 4 || s.gamma < before); /* the last is at the limit of the ridge */
        before = s.gamma;
    }
    print_message("# gamma fell to %.4f\n", before);
    assert_true(before < 0.1);
}

/* Correlation rho tells 1/2 log(1 / (1 - rho^2)); independent factors add up; a repeated one adds nothing. */
static void test_value_of_known_gaussians(void **state) {
    (void)state;
    enum { MANY = 20000 };
    static double factors[MANY * 4], target[MANY];
    for (uint32_t i = 0; i < MANY; i++) {
        double a = normal(1, i), b = normal(2, i), c = normal(3, i);
        target[i] = exp(0.6 * a + 0.5 * b + sqrt(1 - 0.36 - 0.25) * c);
        factors[4 * i] = a;
        factors[4 * i + 1] = -b * b * b;
        factors[4 * i + 2] = 2 * a + 7; /* says what the first says */
        factors[4 * i + 3] = 5;         /* never varies */
    }
    const struct {
        uint32_t set;
        double expected;
    } cases[] = {{0, 0},
                 {1, -0.5 * log(1 - 0.36)},
                 {2, -0.5 * log(1 - 0.25)},
                 {3, -0.5 * log(1 - 0.61)},
                 {5, -0.5 * log(1 - 0.36)},
                 {8, 0},
                 {15, -0.5 * log(1 - 0.61)}};
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        double value;
        assert_int_equal(stq_factor_value(&value, cases[k].set, factors, target, MANY, 4), STQ_OK);
        /* The standard error of a correlation from 20,000 samples is 0.007. */
        assert_true(fabs(value - cases[k].expected) < 0.03);
    }
    stq_selection s;
    assert_int_equal(stq_select_factors(&s, factors, target, MANY, 4, 2), STQ_OK);
    assert_true((s.selected == 3 || s.selected == 6) && s.value > 0.43);
}

static void test_bad_input_is_named(void **state) {
    (void)state;
    double factors[40] = {0}, target[20] = {0}, value;
    stq_selection s;
    assert_int_equal(stq_select_factors(&s, factors, target, 20, 2, 0), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_select_factors(&s, factors, target, 20, 2, 3), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_select_factors(&s, factors, target, 20, 17, 2), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_select_factors(&s, factors, target, 3, 2, 1), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_factor_value(&value, 4, factors, target, 20, 2), STQ_INVALID_ARGUMENT);
    factors[2 * 7 + 1] = NAN;
    assert_int_equal(stq_select_factors(&s, factors, target, 20, 2, 1), STQ_INVALID_ARGUMENT);
    assert_non_null(strstr(stq_last_error(), "Factor 1 of sample 7"));
    factors[2 * 7 + 1] = 0;
    target[9] = INFINITY;
    assert_int_equal(stq_select_factors(&s, factors, target, 20, 2, 1), STQ_INVALID_ARGUMENT);
    target[9] = 0;
    assert_int_equal(stq_select_factors(&s, factors, target, 20, 2, 1), STQ_OK);
    assert_true(s.value == 0 && s.best_value == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_guarantee_on_random_samples),
        cmocka_unit_test(test_gamma_falls_on_adversarial_samples),
        cmocka_unit_test(test_value_of_known_gaussians),
        cmocka_unit_test(test_bad_input_is_named),
    };
    return cmocka_run_group_tests_name("factor selection", tests, NULL, NULL);
}
