/*
 * stquant/qat.h - StableQAT (arXiv 2601.19320): quantization-aware training of weights, with a gradient that follows
 * the rounding operator.
 *
 * Weights w are fake-quantized with one learned step a per group (a row, or a part of one):
 *     v = w / a,  w_q = a * clamp(round(v), lowest, highest)      round: to nearest, ties to even
 *     lowest = -2^(bits - 1), highest = 2^(bits - 1) - 1; at 1 bit -1 and 0
 * The gradient of a is LSQ's (Esser et al. 2020). The gradient of w passes inside the clipping range, times the
 * estimator's factor at d = v - round(v), and is 0 outside. docs/qat.md derives the factors.
 */
#ifndef STQUANT_QAT_H
#define STQUANT_QAT_H

#include <stquant/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Most harmonics that the stable estimator takes. */
#define STQ_QAT_MAX_HARMONICS 8

/** Which factor the gradient of w gets inside the clipping range. */
typedef enum stq_qat_estimator {
    STQ_QAT_STRAIGHT_THROUGH = 0, /**< 1 (Bengio et al. 2013) */
    STQ_QAT_STABLE = 1,           /**< (1 - S) / (1 + S), S = sqrt(2) pi sum_k A_k cos((2k + 1) pi d) */
    STQ_QAT_SOFT = 2              /**< DSQ (Gong et al. 2019): derivative of a scaled tanh across each step */
} stq_qat_estimator;

/** How weights are fake-quantized. Fill it with stq_qat_defaults() and change what differs. */
typedef struct stq_qat_config {
    size_t size;                 /**< sizeof(stq_qat_config), for compatibility of later versions */
    uint32_t bits;               /**< 1 to 8; default 4 */
    stq_qat_estimator estimator; /**< default STQ_QAT_STABLE */
    /** Weights that share one step: 0 = a whole row (default), else a divisor of the columns. */
    int64_t group;
    uint32_t harmonics; /**< stable: number of amplitudes in use, 1 to STQ_QAT_MAX_HARMONICS; default 1 */
    /** Stable: A_k; default A_0 = 0.21. S must stay below 1 on |d| <= 1/2; one harmonic: A_0 < 0.2251 = 1 / (sqrt(2)
     * pi). */
    double amplitudes[STQ_QAT_MAX_HARMONICS];
    double softness; /**< soft: DSQ's alpha in (0, 1); smaller is steeper; default 0.2 */
    /** Where the forward and the backward pass work; default STQ_DEVICE_CPU. With STQ_DEVICE_CUDA every pointer of
     * theirs is one into the memory of the calling thread's current GPU, the call only enqueues work on `stream`, and
     * results are the CPU's bytes (but for a NaN's). The other functions want STQ_DEVICE_CPU. */
    stq_device device;
    void *stream; /**< a cudaStream_t; default NULL, the default stream; of no meaning on the CPU */
} stq_qat_config;

/** The defaults named above. */
STQ_API stq_qat_config stq_qat_defaults(void);

/**
 * Checks a configuration against a weight matrix of `cols` columns. STQ_INVALID_ARGUMENT names the field, and for
 * amplitudes the largest value that works.
 */
STQ_API stq_status stq_qat_check(const stq_qat_config *config, int64_t cols);

/** Steps (scales) that a rows x cols matrix has: rows * cols / group. */
STQ_API int64_t stq_qat_step_count(const stq_qat_config *config, int64_t rows, int64_t cols);

/**
 * Initial steps from the weights: the group's max |w| / highest (at 1 bit max |w|, at 2 bits by least squares over a
 * search of 16 fractions of the maximum, because max |w| would put half of a row to zero); at least 1e-5.
 *
 * @param steps    receives stq_qat_step_count() floats
 * @param weights  rows * cols elements of `dtype`, row-major
 */
STQ_API stq_status stq_qat_initial_steps(float *steps, const stq_qat_config *config, const void *weights,
                                         stq_dtype dtype, int64_t rows, int64_t cols);

/**
 * Forward: quantized = a * clamp(round(w / a)). `quantized` may be `weights`. Steps below 1e-5 count as 1e-5.
 * Idempotent: quantizing the result again with the same steps gives the same bytes (float32).
 */
STQ_API stq_status stq_qat_forward(void *quantized, const stq_qat_config *config, const void *weights,
                                   const float *steps, stq_dtype dtype, int64_t rows, int64_t cols);

/**
 * Backward, one pass: from the loss's gradient with respect to the quantized weights to those of weights and steps.
 *
 * @param weight_gradient    receives rows * cols elements of `dtype`; may be `gradient`
 * @param step_gradient      receives stq_qat_step_count() floats, overwritten: s * sum g * { lowest where v < lowest;
 * highest where v > highest; else round(v) - v }, s = 1 / sqrt(rows * cols * max(highest, 1)), as in the published
 * code. The sum has a fixed order: the same bytes for any number of threads, on every processor
 * @param gradient           rows * cols elements of `dtype`
 */
STQ_API stq_status stq_qat_backward(void *weight_gradient, float *step_gradient, const stq_qat_config *config,
                                    const void *weights, const float *steps, const void *gradient, stq_dtype dtype,
                                    int64_t rows, int64_t cols);

/** Bytes of the packed codes of rows x cols weights at config->bits: ceil(rows * cols * bits / 8). */
STQ_API uint64_t stq_qat_packed_bytes(const stq_qat_config *config, int64_t rows, int64_t cols);

/** Packs clamp(round(w / a)) - lowest, `bits` bits each, least significant first, without gaps. */
STQ_API stq_status stq_qat_pack(uint8_t *packed, const stq_qat_config *config, const void *weights, const float *steps,
                                stq_dtype dtype, int64_t rows, int64_t cols);

/** Unpacks into float32: the same bytes as stq_qat_forward() gave from the weights that were packed (float32). */
STQ_API stq_status stq_qat_unpack(float *quantized, const stq_qat_config *config, const uint8_t *packed,
                                  const float *steps, int64_t rows, int64_t cols);

#ifdef __cplusplus
}
#endif

#endif
