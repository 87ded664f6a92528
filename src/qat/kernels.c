/*
 * kernels.c - the inner loops, written for the compiler's vectoriser and compiled once per instruction set. Results are
 * the same but for the order of the sum in the step's gradient.
 */
#include "qat/kernels.h"

#include <math.h>
#include <stquant/qat.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define EVERY_ISA __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EVERY_ISA
#endif

static inline float clamp(float x, const stq_qat_rule *rule) { return fminf(fmaxf(x, rule->lowest), rule->highest); }

EVERY_ISA
void stq_qat_quantize_run(float *quantized, const float *weights, float step, const stq_qat_rule *rule, int64_t count) {
    stq_qat_rule r = *rule;
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        quantized[i] = step * (clamp(rintf(weights[i] / step), &r) + 0.0f);
}

EVERY_ISA
void stq_qat_code_run(uint8_t *codes, const float *weights, float step, const stq_qat_rule *rule, int64_t count) {
    stq_qat_rule r = *rule;
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        codes[i] = (uint8_t)(clamp(rintf(weights[i] / step), &r) - r.lowest);
}

/* cos(pi d), |d| <= 1/2, to 2^-24: the Taylor series in (pi d)^2, whose next term is 6e-9. */
static inline float cos_pi(float d) {
    float y = d * d * 9.8696044f;
    float c = 2.08767570e-9f;
    c = c * y - 2.75573192e-7f;
    c = c * y + 2.48015873e-5f;
    c = c * y - 1.38888889e-3f;
    c = c * y + 4.16666667e-2f;
    c = c * y - 0.5f;
    return c * y + 1.0f;
}

/* The stable estimator's factor (1 - S) / (1 + S); odd multiples of the angle by Chebyshev's recurrence. */
static inline float stable_factor(float d, const stq_qat_rule *rule) {
    float c = cos_pi(d);
    float twice = 4.0f * c * c - 2.0f; /* 2 cos(2 pi d) */
    float last = c, s = rule->amplitudes[0] * c;
    for (int k = 1; k < rule->harmonics; k++) {
        float next = twice * c - last;
        last = c;
        c = next;
        s += rule->amplitudes[k] * c;
    }
    return (1.0f - s) / (1.0f + s);
}

/* DSQ: k sech^2(k t) / (2 tanh(k / 2)), t the distance to the edge between two steps. */
static inline float soft_factor(float d, const stq_qat_rule *rule) {
    float e = expf(-2.0f * rule->steepness * (0.5f - fabsf(d)));
    return rule->height * 4.0f * e / ((1.0f + e) * (1.0f + e));
}

/* One loop for every estimator: `FACTOR` is inlined, so that each gets a vectorised body of its own. */
#define GRADIENT_LOOP(FACTOR)                                                         \
    do {                                                                              \
        for (int64_t i = 0; i < count; i++) {                                         \
            float v = weights[i] / step;                                              \
            float g = gradient[i];                                                    \
            float rounded = rintf(v);                                                 \
            float d = v - rounded;                                                    \
            int inside = v >= r.lowest && v <= r.highest;                             \
            sum += (double)(g * (inside ? -d : v < r.lowest ? r.lowest : r.highest)); \
            weight_gradient[i] = inside ? g * (FACTOR) : 0.0f;                        \
        }                                                                             \
    } while (0)

EVERY_ISA
static double straight_through(float *weight_gradient, const float *weights, const float *gradient, float step,
                               const stq_qat_rule *rule, int64_t count) {
    stq_qat_rule r = *rule;
    double sum = 0.0;
    GRADIENT_LOOP(1.0f);
    return sum;
}

EVERY_ISA
static double stable_one(float *weight_gradient, const float *weights, const float *gradient, float step,
                         const stq_qat_rule *rule, int64_t count) {
    stq_qat_rule r = *rule;
    r.harmonics = 1;
    double sum = 0.0;
    GRADIENT_LOOP(stable_factor(d, &r));
    return sum;
}

EVERY_ISA
static double stable_many(float *weight_gradient, const float *weights, const float *gradient, float step,
                          const stq_qat_rule *rule, int64_t count) {
    stq_qat_rule r = *rule;
    double sum = 0.0;
    GRADIENT_LOOP(stable_factor(d, &r));
    return sum;
}

static double soft(float *weight_gradient, const float *weights, const float *gradient, float step,
                   const stq_qat_rule *rule, int64_t count) {
    stq_qat_rule r = *rule;
    double sum = 0.0;
    GRADIENT_LOOP(soft_factor(d, &r));
    return sum;
}

double stq_qat_gradient_run(float *weight_gradient, const float *weights, const float *gradient, float step,
                            const stq_qat_rule *rule, int64_t count) {
    switch (rule->estimator) {
    case STQ_QAT_STRAIGHT_THROUGH:
        return straight_through(weight_gradient, weights, gradient, step, rule, count);
    case STQ_QAT_SOFT:
        return soft(weight_gradient, weights, gradient, step, rule, count);
    default:
        if (rule->harmonics == 1)
            return stable_one(weight_gradient, weights, gradient, step, rule, count);
        return stable_many(weight_gradient, weights, gradient, step, rule, count);
    }
}
