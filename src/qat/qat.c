/* qat.c - StableQAT over whole matrices: checks, dtypes, threads. */
#include <math.h>
#include <stdlib.h>
#include <stquant/qat.h>
#include <string.h>

#include "common/error.h"
#include "common/float_mode.h"
#include "qat/backend.h"
#include "qat/kernels.h"
#include "quant/convert.h"

/* Weights are taken in runs of this many, through float buffers where they are not float32 already. */
enum { RUN = STQ_QAT_TILE };

static const double pi = 3.141592653589793;
static const double root_two_pi = 4.442882938158366; /* sqrt(2) pi */

stq_qat_config stq_qat_defaults(void) {
    stq_qat_config config = {
        .size = sizeof config, .bits = 4, .estimator = STQ_QAT_STABLE, .harmonics = 1, .softness = 0.2};
    config.amplitudes[0] = 0.21;
    return config;
}

/* The largest S on |d| <= 1/2, on a grid fine enough for eight harmonics. */
static double largest_slope(const stq_qat_config *config) {
    double largest = -INFINITY;
    for (int i = 0; i <= 4096; i++) {
        double s = 0.0;
        for (uint32_t k = 0; k < config->harmonics; k++)
            s += root_two_pi * config->amplitudes[k] * cos((2 * k + 1) * pi * i / 8192.0);
        largest = s > largest ? s : largest;
    }
    return largest;
}

/* 1 + S must not vanish either: the factor would be infinite. */
static double smallest_slope(const stq_qat_config *config) {
    stq_qat_config mirrored = *config;
    for (uint32_t k = 0; k < config->harmonics; k++)
        mirrored.amplitudes[k] = -config->amplitudes[k];
    return -largest_slope(&mirrored);
}

static stq_status check_stable(const stq_qat_config *config) {
    if (config->harmonics < 1 || config->harmonics > STQ_QAT_MAX_HARMONICS)
        return stq_error(STQ_INVALID_ARGUMENT, "The stable estimator takes 1 to %d harmonics, not %u.",
                         STQ_QAT_MAX_HARMONICS, config->harmonics);
    for (uint32_t k = 0; k < config->harmonics; k++)
        if (!isfinite(config->amplitudes[k]))
            return stq_error(STQ_INVALID_ARGUMENT, "Amplitude %u is not finite.", k);
    if (config->harmonics == 1 && config->amplitudes[0] * root_two_pi >= 1.0)
        return stq_error(
            STQ_INVALID_ARGUMENT,
            "The amplitude %g makes the gradient's factor negative near the grid points; with one harmonic it "
            "must be below 0.2251 (1 / (sqrt(2) pi)).",
            config->amplitudes[0]);
    /* Most amplitudes pass without a search: this is checked before every pass over a matrix. */
    double sum = 0.0;
    for (uint32_t k = 0; k < config->harmonics; k++)
        sum += root_two_pi * fabs(config->amplitudes[k]);
    if (sum >= 1.0 && (largest_slope(config) >= 1.0 || smallest_slope(config) <= -1.0))
        return stq_error(
            STQ_INVALID_ARGUMENT,
            "With these amplitudes sqrt(2) pi sum A_k cos((2k + 1) pi d) reaches 1 on |d| <= 1/2 (%.4f to %.4f); scale "
            "them down.",
            smallest_slope(config), largest_slope(config));
    return STQ_OK;
}

static bool device_exists(stq_device device) {
#ifdef STQ_WITH_CUDA
    return device == STQ_DEVICE_CPU || device == STQ_DEVICE_CUDA;
#else
    return device == STQ_DEVICE_CPU;
#endif
}

stq_status stq_qat_on_host(const stq_qat_config *config) {
    if (config->device == STQ_DEVICE_CPU)
        return STQ_OK;
    return stq_error(STQ_UNSUPPORTED,
                     "First steps and packed codes are made on the CPU; copy the weights there and use its device.");
}

stq_status stq_qat_check(const stq_qat_config *config, int64_t cols) {
    if (config == NULL || config->size != sizeof *config)
        return stq_error(STQ_INVALID_ARGUMENT,
                         "The configuration has another version's size; start from stq_qat_defaults().");
    if (config->bits < 1 || config->bits > 8)
        return stq_error(STQ_INVALID_ARGUMENT, "Weights cannot have %u bits; use 1 to 8.", config->bits);
    if (config->group < 0 || cols < 1 || (config->group > 0 && cols % config->group != 0))
        return stq_error(STQ_INVALID_ARGUMENT,
                         "A group of %lld weights does not divide rows of %lld; use 0 for whole rows.",
                         (long long)config->group, (long long)cols);
    if (!device_exists(config->device))
        return stq_error(STQ_UNSUPPORTED, "This build of stquant has no device %d; use the CPU.", (int)config->device);
    switch (config->estimator) {
    case STQ_QAT_STRAIGHT_THROUGH:
        return STQ_OK;
    case STQ_QAT_STABLE:
        return check_stable(config);
    case STQ_QAT_SOFT:
        if (config->softness > 0.0 && config->softness < 1.0)
            return STQ_OK;
        return stq_error(STQ_INVALID_ARGUMENT, "The softness is %g; use a number between 0 and 1 (0.2 is usual).",
                         config->softness);
    }
    return stq_error(STQ_INVALID_ARGUMENT, "There is no estimator %d.", (int)config->estimator);
}

int64_t stq_qat_step_count(const stq_qat_config *config, int64_t rows, int64_t cols) {
    return rows * (cols / stq_qat_group(config, cols));
}

/* The factor by its formula, in double. */
static double exact_factor(const stq_qat_config *config, double d) {
    if (config->estimator == STQ_QAT_SOFT) {
        double k = log(2.0 / config->softness - 1.0), cosine = cosh(k * (0.5 - d));
        return k / (2.0 * tanh(k / 2.0)) / (cosine * cosine);
    }
    double s = 0.0;
    for (uint32_t k = 0; k < config->harmonics; k++)
        s += root_two_pi * config->amplitudes[k] * cos((2 * k + 1) * pi * d);
    return (1.0 - s) / (1.0 + s);
}

/* The same in the polynomials' variable t from -1 to 1: |d| is the centre +- sqrt((t + 1) / 8). */
static double factor_at(const stq_qat_config *config, double centre, double t) {
    return exact_factor(config, fabs(centre - sqrt(fmax(t + 1.0, 0.0) / 8.0)));
}

enum { NODES = 8 };

/* Coefficients of Chebyshev's polynomials through 8 nodes, as powers of t: T(0) = 1, T(1) = t, T(k + 1) = 2 t T(k) -
 * T(k - 1). */
static void interpolate(const stq_qat_config *config, double centre, double power[NODES]) {
    double chebyshev[NODES] = {0}, last[NODES] = {1.0}, current[NODES] = {0.0, 1.0};
    for (int node = 0; node < NODES; node++) {
        double t = cos(pi * (node + 0.5) / NODES), value = factor_at(config, centre, t);
        double before = t, polynomial = 1.0; /* T(-1) = T(1) */
        for (int k = 0; k < NODES; k++) {
            chebyshev[k] += (k == 0 ? 1.0 : 2.0) / NODES * value * polynomial;
            double after = 2.0 * t * polynomial - before;
            before = polynomial;
            polynomial = after;
        }
    }
    for (int k = 0; k < NODES; k++) {
        double next[NODES];
        for (int i = 0; i < NODES; i++) {
            power[i] += chebyshev[k] * last[i];
            next[i] = (i > 0 ? 2.0 * current[i - 1] : 0.0) - last[i];
        }
        memcpy(last, current, sizeof last);
        memcpy(current, next, sizeof current);
    }
}

/*
 * Factors are smooth in d^2 (stable) and in (|d| - 1/2)^2 (soft). Where the polynomial of degree 7 that interpolates in
 * t = 8 (|d| - centre)^2 - 1 is within 1e-6, it saves a division for each weight, and an exponential. So it is with one
 * harmonic of an amplitude from 0 to the limit: the nearest singularity (S = -1) is at d^2 = 1 or beyond, and the error
 * falls 13.9-fold with each degree. The error is largest about where T(8) is: there it is looked at. A = 0 gives
 * exactly 1.
 */
static void fit_factor(stq_qat_rule *rule, const stq_qat_config *config) {
    double power[NODES] = {0}, largest = 0.0;
    rule->centre = config->estimator == STQ_QAT_SOFT ? 0.5f : 0.0f;
    interpolate(config, rule->centre, power);
    for (int i = 0; i <= NODES; i++) {
        double t = cos(pi * i / NODES), value = 0.0;
        for (int k = NODES - 1; k >= 0; k--)
            value = value * t + power[k];
        largest = fmax(largest, fabs(value - factor_at(config, rule->centre, t)));
    }
    for (int i = 0; i < NODES; i++)
        rule->polynomial[i] = (float)power[i];
    if (largest < 1e-6)
        rule->factor = STQ_QAT_POLYNOMIAL;
}

/* In our floating-point mode, as what follows. */
static __attribute__((noinline)) stq_qat_rule rule_of(const stq_qat_config *config) {
    stq_qat_rule rule = stq_qat_range(config->bits);
    if (config->estimator == STQ_QAT_STRAIGHT_THROUGH)
        return rule;
    if (config->estimator == STQ_QAT_STABLE) {
        rule.factor = STQ_QAT_HARMONICS;
        rule.harmonics = config->harmonics;
        for (uint32_t k = 0; k < config->harmonics; k++)
            rule.amplitudes[k] = (float)(root_two_pi * config->amplitudes[k]);
    } else {
        double k = log(2.0 / config->softness - 1.0);
        rule.factor = STQ_QAT_EXPONENTIAL;
        rule.slope = (float)(-2.0 / log(2.0) * k);
        rule.height = (float)(2.0 * k / tanh(k / 2.0));
    }
    fit_factor(&rule, config);
    return rule;
}

static void store_run(void *array, stq_dtype dtype, int64_t first, int64_t count, const float *values) {
    uint16_t *halves = (uint16_t *)array + first;
    if (dtype == STQ_BFLOAT16)
        for (int64_t i = 0; i < count; i++)
            halves[i] = stq_qat_bfloat16(values[i]);
    else if (dtype == STQ_FLOAT16)
        for (int64_t i = 0; i < count; i++)
            halves[i] = stq_to_float16(values[i]);
}

static stq_status check_matrix(const stq_qat_config *config, const void *weights, const void *steps, stq_dtype dtype,
                               int64_t rows, int64_t cols) {
    STQ_CHECK(stq_qat_check(config, cols));
    if (rows < 1 || weights == NULL || steps == NULL || !stq_is_float_type(dtype))
        return stq_error(STQ_INVALID_ARGUMENT,
                         "A weight matrix needs at least one row, weights, steps and floats as elements.");
    return STQ_OK;
}

static float largest_magnitude(const float *weights, int64_t count) {
    float largest = 0.0f;
    for (int64_t i = 0; i < count; i++)
        largest = fmaxf(largest, fabsf(weights[i]));
    return largest;
}

/* Of 16 fractions of `largest`, the step with the least squared error. */
static float least_squares_step(const float *weights, int64_t count, float largest, const stq_qat_rule *rule) {
    float best = largest;
    double best_error = INFINITY;
    for (int candidate = 1; candidate <= 16; candidate++) {
        float step = stq_qat_usable_step(largest * (float)candidate / 16.0f);
        double error = 0.0;
        for (int64_t i = 0; i < count; i++) {
            double code = fmin(fmax(rint(weights[i] / step), rule->lowest), rule->highest);
            error += (weights[i] - step * code) * (weights[i] - step * code);
        }
        if (error < best_error) {
            best_error = error;
            best = step;
        }
    }
    return best;
}

static __attribute__((noinline)) float initial_step(const float *weights, int64_t count, const stq_qat_rule *rule,
                                                    uint32_t bits) {
    float largest = largest_magnitude(weights, count);
    if (bits == 1)
        return stq_qat_usable_step(largest);
    if (bits == 2)
        return stq_qat_usable_step(least_squares_step(weights, count, largest, rule));
    return stq_qat_usable_step(largest / rule->highest);
}

stq_status stq_qat_initial_steps(float *steps, const stq_qat_config *config, const void *weights, stq_dtype dtype,
                                 int64_t rows, int64_t cols) {
    STQ_CHECK(check_matrix(config, weights, steps, dtype, rows, cols));
    STQ_CHECK(stq_qat_on_host(config));
    int64_t group = stq_qat_group(config, cols);
    stq_qat_rule rule = stq_qat_range(config->bits);
    float *buffer = malloc((size_t)group * sizeof *buffer);
    if (buffer == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for a group of %lld weights.", (long long)group);
    uint64_t mode = stq_float_mode_set();
    for (int64_t i = 0; i < stq_qat_step_count(config, rows, cols); i++)
        steps[i] = initial_step(stq_float_run(weights, dtype, i * group, group, buffer), group, &rule, config->bits);
    stq_float_mode_restore(mode);
    free(buffer);
    return STQ_OK;
}

static int64_t run_length(int64_t at, int64_t group) { return group - at < RUN ? group - at : RUN; }

static void forward_group(void *quantized, const void *weights, stq_dtype dtype, int64_t first, int64_t group,
                          float step, const stq_qat_rule *rule) {
    const stq_qat_kernels *kernels = stq_qat_select_kernels();
    const uint64_t mode = stq_float_mode_set();
    float in[RUN], out[RUN];
    for (int64_t at = 0; at < group; at += RUN) {
        int64_t count = run_length(at, group);
        const float *from = stq_float_run(weights, dtype, first + at, count, in);
        float *to = dtype == STQ_FLOAT32 ? (float *)quantized + first + at : out;
        kernels->quantize(to, from, step, rule, count);
        store_run(quantized, dtype, first + at, count, to);
    }
    stq_float_mode_restore(mode);
}

stq_status stq_qat_forward(void *quantized, const stq_qat_config *config, const void *weights, const float *steps,
                           stq_dtype dtype, int64_t rows, int64_t cols) {
    STQ_CHECK(check_matrix(config, weights, steps, dtype, rows, cols));
    if (quantized == NULL)
        return stq_error(STQ_INVALID_ARGUMENT, "The quantized weights need room.");
    int64_t group = stq_qat_group(config, cols), groups = stq_qat_step_count(config, rows, cols);
    stq_qat_rule rule = stq_qat_range(config->bits);
#ifdef STQ_WITH_CUDA
    if (config->device == STQ_DEVICE_CUDA) {
        const stq_qat_pass pass = {
            .rule = rule, .weights = weights, .steps = steps, .dtype = dtype, .group = group, .groups = groups};
        return stq_cuda_qat_forward(quantized, &pass, config->stream);
    }
#endif
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < groups; i++)
        forward_group(quantized, weights, dtype, i * group, group, stq_qat_usable_step(steps[i]), &rule);
    return STQ_OK;
}

static __attribute__((noinline)) double step_scale(const stq_qat_rule *rule, int64_t rows, int64_t cols) {
    return 1.0 / sqrt((double)rows * (double)cols * (rule->highest > 1.0f ? (double)rule->highest : 1.0));
}

/* Returns the gradient of the step. */
static __attribute__((noinline)) float backward_group(void *weight_gradient, const void *weights, const void *gradient,
                                                      stq_dtype dtype, int64_t first, int64_t group, float step,
                                                      const stq_qat_rule *rule, double scale) {
    const stq_qat_kernels *kernels = stq_qat_select_kernels();
    float w[RUN], g[RUN], out[RUN];
    double sum = 0.0;
    for (int64_t at = 0; at < group; at += RUN) {
        int64_t count = run_length(at, group);
        const float *from = stq_float_run(weights, dtype, first + at, count, w);
        const float *incoming = stq_float_run(gradient, dtype, first + at, count, g);
        float *to = dtype == STQ_FLOAT32 ? (float *)weight_gradient + first + at : out;
        sum += (double)kernels->gradient(to, from, incoming, step, rule, count);
        store_run(weight_gradient, dtype, first + at, count, to);
    }
    return (float)(scale * sum);
}

stq_status stq_qat_backward(void *weight_gradient, float *step_gradient, const stq_qat_config *config,
                            const void *weights, const float *steps, const void *gradient, stq_dtype dtype,
                            int64_t rows, int64_t cols) {
    STQ_CHECK(check_matrix(config, weights, steps, dtype, rows, cols));
    if (weight_gradient == NULL || step_gradient == NULL || gradient == NULL)
        return stq_error(STQ_INVALID_ARGUMENT, "The backward pass needs the gradient and room for both results.");
    int64_t group = stq_qat_group(config, cols), groups = stq_qat_step_count(config, rows, cols);
    uint64_t mode = stq_float_mode_set();
    stq_qat_rule rule = rule_of(config);
    double scale = step_scale(&rule, rows, cols);
    stq_float_mode_restore(mode);
#ifdef STQ_WITH_CUDA
    if (config->device == STQ_DEVICE_CUDA) {
        const stq_qat_pass pass = {
            .rule = rule, .weights = weights, .steps = steps, .dtype = dtype, .group = group, .groups = groups};
        return stq_cuda_qat_backward(weight_gradient, step_gradient, &pass, gradient, scale, config->stream);
    }
#endif
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < groups; i++) {
        uint64_t own_mode = stq_float_mode_set();
        step_gradient[i] = backward_group(weight_gradient, weights, gradient, dtype, i * group, group,
                                          stq_qat_usable_step(steps[i]), &rule, scale);
        stq_float_mode_restore(own_mode);
    }
    return STQ_OK;
}
