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

/* Selections rather than fminf and fmaxf, which compilers do not vectorise for their NaN; a NaN becomes the lowest. */
static inline float clamp(float x, const stq_qat_rule *rule) {
    x = x > rule->lowest ? x : rule->lowest;
    return x < rule->highest ? x : rule->highest;
}

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

/* The stable estimator's factor (1 - S) / (1 + S); odd multiples of the angle by Chebyshev's recurrence.
 * Always all harmonics, unused ones with amplitude 0: a fixed number keeps the loop around it vectorised. */
static inline float stable_factor(float d, const stq_qat_rule *rule) {
    float c = cos_pi(d);
    float twice = 4.0f * c * c - 2.0f; /* 2 cos(2 pi d) */
    float last = c, s = rule->amplitudes[0] * c;
    for (int k = 1; k < STQ_QAT_MAX_HARMONICS; k++) {
        float next = twice * c - last;
        last = c;
        c = next;
        s += rule->amplitudes[k] * c;
    }
    return (1.0f - s) / (1.0f + s);
}

/* The same with one harmonic: a smooth function of d^2 that fit_factor() in qat.c has made a polynomial of. */
static inline float fitted_factor(float d, const stq_qat_rule *rule) {
    float t = 8.0f * (d * d) - 1.0f;
    float p = rule->polynomial[7];
    for (int k = 6; k >= 0; k--)
        p = p * t + rule->polynomial[k];
    return p;
}

/* 2^x for x <= 0, to 2^-22; below 2^-126 it is that. The series of 2^f, |f| <= 1/2, ends before a term of 1.2e-7. */
static inline float power_of_two(float x) {
    union {
        int32_t bits;
        float value;
    } scale;
    x = x > -126.0f ? x : -126.0f;
    float whole = rintf(x), f = (x - whole) * 0.693147181f;
    float p = 1.38888889e-3f;
    p = p * f + 8.33333333e-3f;
    p = p * f + 4.16666667e-2f;
    p = p * f + 0.166666667f;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    scale.bits = ((int32_t)whole + 127) * (1 << 23);
    return (p * f + 1.0f) * scale.value;
}

/* DSQ: k sech^2(k t) / (2 tanh(k / 2)), t the distance to the edge between two steps; 2.885... is 2 / ln 2. */
static inline float soft_factor(float d, const stq_qat_rule *rule) {
    float e = power_of_two(-2.88539008f * rule->steepness * (0.5f - fabsf(d)));
    return rule->height * 4.0f * e / ((1.0f + e) * (1.0f + e));
}

/* One loop for every estimator: `FACTOR` is inlined, so that each gets a vectorised body of its own. */
#define GRADIENT_LOOP(FACTOR)                                                        \
    do {                                                                             \
        _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < count; i++) { \
            float v = weights[i] / step;                                             \
            float g = gradient[i];                                                   \
            float d = v - rintf(v);                                                  \
            float clamped = clamp(v, &r);                                            \
            sum += (double)(g * (clamped == v ? -d : clamped));                      \
            weight_gradient[i] = clamped == v ? g * (FACTOR) : 0.0f;                 \
        }                                                                            \
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
static double stable_fitted(float *weight_gradient, const float *weights, const float *gradient, float step,
                            const stq_qat_rule *rule, int64_t count) {
    stq_qat_rule r = *rule;
    double sum = 0.0;
    GRADIENT_LOOP(fitted_factor(d, &r));
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

EVERY_ISA
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
        if (rule->is_polynomial)
            return stable_fitted(weight_gradient, weights, gradient, step, rule, count);
        return stable_many(weight_gradient, weights, gradient, step, rule, count);
    }
}
