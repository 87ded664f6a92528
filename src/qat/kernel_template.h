/*
 * kernel_template.h - the inner loops, written for the compiler's vectoriser and compiled once for each instruction
 * set. The including file defines KERNELS, the name of its table, and NAME, what the table calls itself.
 */

static void quantize(float *quantized, const float *weights, float step, const stq_qat_rule *rule, int64_t count) {
    stq_qat_rule r = *rule;
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        quantized[i] = step * (stq_qat_round(stq_qat_clamp(weights[i] / step, &r)) + 0.0f);
}

static void code(uint8_t *codes, const float *weights, float step, const stq_qat_rule *rule, int64_t count) {
    stq_qat_rule r = *rule;
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        codes[i] = (uint8_t)(stq_qat_round(stq_qat_clamp(weights[i] / step, &r)) - r.lowest);
}

/* Accumulators to lanes to one sum, in the order of arithmetic.h. */
static float fold(const float *accumulators) {
    float lanes[STQ_QAT_LANES];
    for (int j = 0; j < STQ_QAT_LANES; j++) {
        const float *four = accumulators + STQ_QAT_LANE_VALUES * j;
        lanes[j] = (four[0] + four[1]) + (four[2] + four[3]);
    }
    for (int width = STQ_QAT_LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            lanes[j] += lanes[j + width];
    return lanes[0];
}

/* One loop for every estimator: `FACTOR` is inlined, so that each gets a vectorised body of its own. */
#define GRADIENT_LOOP(LENGTH, FACTOR)                                    \
    do {                                                                 \
        const float *w = weights + first, *g = gradient + first;         \
        float *out = weight_gradient + first;                            \
        _Pragma("omp simd") for (int64_t j = 0; j < (LENGTH); j++) {     \
            float v = w[j] / step, incoming = g[j];                      \
            float clamped = stq_qat_clamp(v, &r);                        \
            float d = clamped - stq_qat_round(clamped);                  \
            accumulators[j] += incoming * (clamped == v ? -d : clamped); \
            out[j] = clamped == v ? incoming * (FACTOR) : 0.0f;          \
        }                                                                \
    } while (0)

#define GRADIENT_FUNCTION(FUNCTION, FACTOR)                                                                \
    static float FUNCTION(float *weight_gradient, const float *weights, const float *gradient, float step, \
                          const stq_qat_rule *rule, int64_t count) {                                       \
        stq_qat_rule r = *rule;                                                                            \
        float accumulators[STQ_QAT_ACCUMULATORS] = {0};                                                    \
        int64_t first = 0;                                                                                 \
        for (; first + STQ_QAT_ACCUMULATORS <= count; first += STQ_QAT_ACCUMULATORS)                       \
            GRADIENT_LOOP(STQ_QAT_ACCUMULATORS, FACTOR);                                                   \
        GRADIENT_LOOP(count - first, FACTOR);                                                              \
        return fold(accumulators);                                                                         \
    }

GRADIENT_FUNCTION(gradient_one, 1.0f)
GRADIENT_FUNCTION(gradient_polynomial, stq_qat_polynomial_factor(d, &r))
/* Always all harmonics: a fixed number keeps the loop around them vectorised. */
GRADIENT_FUNCTION(gradient_harmonics, stq_qat_harmonics_factor(d, &r, STQ_QAT_MAX_HARMONICS))
GRADIENT_FUNCTION(gradient_exponential, stq_qat_exponential_factor(d, &r))

static float gradient(float *weight_gradient, const float *weights, const float *incoming, float step,
                      const stq_qat_rule *rule, int64_t count) {
    switch (rule->factor) {
    case STQ_QAT_ONE:
        return gradient_one(weight_gradient, weights, incoming, step, rule, count);
    case STQ_QAT_POLYNOMIAL:
        return gradient_polynomial(weight_gradient, weights, incoming, step, rule, count);
    case STQ_QAT_HARMONICS:
        return gradient_harmonics(weight_gradient, weights, incoming, step, rule, count);
    default:
        return gradient_exponential(weight_gradient, weights, incoming, step, rule, count);
    }
}

const stq_qat_kernels KERNELS = {.name = NAME, .quantize = quantize, .code = code, .gradient = gradient};
