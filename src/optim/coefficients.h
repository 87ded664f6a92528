/*
 * coefficients.h - the numbers of one step, in double from the step count and the hyper-parameters. Plain
 * multiplications, divisions and square roots in a stated order, so that a GPU computes the same bits.
 */
#ifndef STQ_COEFFICIENTS_H
#define STQ_COEFFICIENTS_H

#include <stquant/adamw.h>

#include "quant/codec.h"

/* base^exponent by squaring: the C library's pow differs in the last place between systems. */
STQ_INLINE double stq_power(double base, uint64_t exponent) {
    double result = 1.0;
    for (; exponent != 0; exponent >>= 1) {
        if (exponent & 1)
            result *= base;
        base *= base;
    }
    return result;
}

/* The factor by which gradients are multiplied to clip their global norm, as torch.nn.utils.clip_grad_norm_ has it. */
STQ_INLINE double stq_clip_factor(double norm, double max_norm) {
    double factor = max_norm > 0.0 ? max_norm / (norm + 1e-6) : 1.0;
    return factor < 1.0 ? factor : 1.0;
}

/*
 * kappa_t * (1 - beta1^t), kappa_t = sum over k >= 1 of beta1^k / (1 - beta1^(t + k)): the updates that an error of the
 * first moment would still have made, in units of this step's. The tail below 2^-40 of the first term is left out.
 */
STQ_INLINE double stq_compensation_weight(double beta1, uint64_t step) {
    double at_step = stq_power(beta1, step);
    double power = beta1;
    double sum = 0.0;
    for (int k = 1; k <= 4096 && power > beta1 * 0x1p-40; k++) {
        sum += power / (1.0 - at_step * power);
        power *= beta1;
    }
    return sum * (1.0 - at_step);
}

/* `gradient_factor` is unscale times clip; `step` counts from 1. */
STQ_INLINE stq_coefficients stq_step_coefficients(const stq_adamw_group *group, double gradient_factor,
                                                  double error_compensation, uint64_t seed, uint64_t step) {
    double correction1 = 1.0 - stq_power(group->beta1, step);
    double root = sqrt(1.0 - stq_power(group->beta2, step));
    stq_coefficients c;
    c.gradient_factor = (float)gradient_factor;
    c.beta1 = (float)group->beta1;
    c.one_minus_beta1 = (float)(1.0 - group->beta1);
    c.beta2 = (float)group->beta2;
    c.one_minus_beta2 = (float)(1.0 - group->beta2);
    c.decay = (float)(1.0 - group->learning_rate * group->weight_decay);
    c.step_size = (float)(group->learning_rate * root / correction1);
    c.epsilon = (float)(group->epsilon * root);
    c.compensation =
        error_compensation == 0.0 ? 0.0f : (float)(error_compensation * stq_compensation_weight(group->beta1, step));
    c.step_key = stq_step_key(seed, step);
    c.plain_step = (float)(group->learning_rate / correction1);
    c.plain_root = (float)root;
    c.plain_epsilon = (float)group->epsilon;
    return c;
}

#endif
