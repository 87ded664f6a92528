/*
 * Bias and variance of the estimators on a problem whose gradient is known. One weight w (in steps) is jittered by
 * normal noise e of deviation s, as minibatches jitter it, rounded, and pulled towards a target t far away by L(q) = (q
 * - t)^2 / 2. The expected loss J(w) = E L(round(w + e)) is smooth: J'(w) = sum over the ties k + 1/2 of p((k + 1/2 -
 * w) / s) / s (L(k + 1) - L(k)),  p the normal density. An estimator answers (round(v) - t) F(d) for v = w + e, with
 * the library's F. Learning rates are tuned for each estimator, so its mean is scaled by the best factor c before it is
 * compared: bias       root mean square over w of c E[estimate] - J', as a share of J's deviation  root mean square
 * over w of the standard deviation of c estimate, as a share of J's All expectations are sums over fine grids: nothing
 * is random.
 */
#include <math.h>

#include "testing.h"

enum { POSITIONS = 64, NOISE = 2001, HIGH_TIES = 12 };

typedef struct quality {
    double bias, deviation;
} quality;

static double density(double x) { return exp(-x * x / 2) / sqrt(2 * 3.141592653589793); }

static double true_gradient(double w, double s, double t) {
    double sum = 0;
    for (int k = -HIGH_TIES; k < HIGH_TIES; k++) {
        double rise = ((k + 1 - t) * (k + 1 - t) - (k - t) * (k - t)) / 2;
        sum += density((k + 0.5 - w) / s) / s * rise;
    }
    return sum;
}

/* Mean and mean square of the estimate at w. */
static void estimate(const stq_qat_config *config, double w, double s, double t, double *mean, double *square) {
    static float v[NOISE], g[NOISE], out[NOISE];
    static double share[NOISE];
    float step = 1.0f, unused;
    double total = 0;
    for (int i = 0; i < NOISE; i++) {
        double x = 12.0 * i / (NOISE - 1) - 6.0; /* six deviations either way */
        v[i] = (float)(w + s * x);
        g[i] = (float)(rint(v[i]) - t);
        share[i] = density(x);
        total += share[i];
    }
    assert_int_equal(stq_qat_backward(out, &unused, config, v, &step, g, STQ_FLOAT32, 1, NOISE), STQ_OK);
    *mean = *square = 0;
    for (int i = 0; i < NOISE; i++) {
        *mean += share[i] / total * out[i];
        *square += share[i] / total * out[i] * out[i];
    }
}

static quality measure(stq_qat_estimator estimator, double s, double t) {
    double means[POSITIONS], squares[POSITIONS], expected[POSITIONS], product = 0, norm = 0, reference = 0;
    stq_qat_config config = stq_qat_defaults();
    config.estimator = estimator;
    config.bits = 8; /* nothing is clipped */
    for (int i = 0; i < POSITIONS; i++) {
        double w = (i + 0.5) / POSITIONS - 0.5;
        estimate(&config, w, s, t, &means[i], &squares[i]);
        expected[i] = true_gradient(w, s, t);
        product += means[i] * expected[i];
        norm += means[i] * means[i];
        reference += expected[i] * expected[i];
    }
    double c = product / norm, bias = 0, variance = 0;
    for (int i = 0; i < POSITIONS; i++) {
        bias += (c * means[i] - expected[i]) * (c * means[i] - expected[i]);
        variance += c * c * fmax(squares[i] - means[i] * means[i], 0.0);
    }
    return (quality){sqrt(bias / reference), sqrt(variance / reference)};
}

static void measure_all(double s, double t, quality found[3]) {
    static const char *const names[] = {"ste", "stable", "dsq"};
    for (int estimator = STQ_QAT_STRAIGHT_THROUGH; estimator <= STQ_QAT_SOFT; estimator++) {
        found[estimator] = measure((stq_qat_estimator)estimator, s, t);
        print_message("noise %.2f steps, target %g, %s: bias %.3f, deviation %.3f\n", s, t, names[estimator],
                      found[estimator].bias, found[estimator].deviation);
    }
}

/* With little noise J changes near ties alone, where stable and DSQ let gradients pass: less bias than straight
 * through. */
static void little_noise_favours_the_rounding_curve(void **state) {
    (void)state;
    const double noises[] = {0.1, 0.2};
    for (int i = 0; i < 2; i++) {
        quality found[3];
        measure_all(noises[i], 5, found);
        assert_true(found[STQ_QAT_STABLE].bias < found[STQ_QAT_STRAIGHT_THROUGH].bias);
        assert_true(found[STQ_QAT_SOFT].bias < found[STQ_QAT_STRAIGHT_THROUGH].bias);
    }
}

/* With noise of half a step and more, J is nearly L itself: straight through is nearly unbiased, and a factor that
 * depends on d only adds variance. */
static void much_noise_favours_straight_through(void **state) {
    (void)state;
    quality found[3];
    measure_all(0.5, 5, found);
    assert_true(found[STQ_QAT_STRAIGHT_THROUGH].bias < 0.05);
    assert_true(found[STQ_QAT_STRAIGHT_THROUGH].deviation < found[STQ_QAT_STABLE].deviation);
    assert_true(found[STQ_QAT_STRAIGHT_THROUGH].deviation < found[STQ_QAT_SOFT].deviation);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(little_noise_favours_the_rounding_curve),
        cmocka_unit_test(much_noise_favours_straight_through),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
