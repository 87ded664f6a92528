/*
 * step.c - one gradient's way through the library: norm and finite check, at decision steps factors and widths, planes,
 * and the fused pass.
 */
#include <math.h>

#include "common/error.h"
#include "optim/coefficients.h"
#include "optim/optimizer.h"

static stq_status check_step(const stq_adamw *o, const stq_step *step) {
    if (step == NULL || step->size != sizeof *step)
        return stq_error(STQ_INVALID_ARGUMENT, "stq_step has another version's size; set .size = sizeof(stq_step).");
    if (!(step->unscale > 0) || !isfinite(step->unscale))
        return stq_error(STQ_INVALID_ARGUMENT, "unscale is %g; use 1, or 1 / loss scale.", step->unscale);
    if (!(step->max_gradient_norm >= 0))
        return stq_error(STQ_INVALID_ARGUMENT, "max_gradient_norm is %g; use 0 for no clipping.",
                         step->max_gradient_norm);
    if (step->parameters == NULL || step->gradients == NULL)
        return stq_error(STQ_INVALID_ARGUMENT, "A step needs parameters and gradients.");
    for (size_t i = 0; i < o->tensor_count; i++)
        if (o->tensors[i].count > 0 && (step->parameters[i] == NULL || step->gradients[i] == NULL))
            return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s' has no parameter or no gradient in this step.",
                             o->tensors[i].name);
    return STQ_OK;
}

static stq_status gradient_norm(stq_adamw *o, const stq_step *step, double *norm) {
    *norm = step->gradient_norm;
    if (step->norm_supplied)
        return STQ_OK;
    double sum;
    STQ_CHECK(o->backend->sum_squares(o->backend_context, o->store.items, o->tensor_count, &sum));
    *norm = sqrt(sum) * step->unscale;
    return STQ_OK;
}

static stq_status decide(stq_adamw *o, double unscale, int64_t step_number) {
    stq_policy_kind kind = o->policy.config.kind;
    bool needs_factors = kind == STQ_POLICY_ZONES || kind == STQ_POLICY_RATE_DISTORTION;
    for (size_t i = 0; i < o->tensor_count; i++) {
        if (needs_factors && !o->exempt[i])
            STQ_CHECK(o->backend->factors(o->backend_context, &o->tensors[i], &o->store.items[i], unscale,
                                          &o->decided[i].factors));
        for (int state = 0; state < 2; state++)
            o->decided[i].bits[state] = (uint8_t)stq_store_planes(&o->store, i, state)->bits;
    }
    STQ_CHECK(stq_policy_decide(&o->policy, o->decided, o->tensor_count, step_number));
    for (size_t i = 0; i < o->tensor_count; i++)
        for (int state = 0; state < 2; state++)
            o->targets[i][state] = o->decided[i].target[state];
    return STQ_OK;
}

static stq_status update(stq_adamw *o, double gradient_factor, int64_t step_number) {
    STQ_CHECK(stq_store_begin(&o->store, o->targets));
    for (size_t i = 0; i < o->group_count; i++)
        o->coefficients[i] = stq_step_coefficients(&o->groups[i], gradient_factor, o->error_compensation, o->seed,
                                                   (uint64_t)step_number);
    stq_status status = o->backend->update(o->backend_context, o->store.items, o->tensor_count, o->coefficients);
    if (status != STQ_OK) {
        stq_store_revert(&o->store);
        return status;
    }
    stq_store_commit(&o->store);
    o->steps = step_number;
    o->bits_sum += 4.0 * (double)o->store.pool.bytes / (double)(o->parameters ? o->parameters : 1);
    return STQ_OK;
}

stq_status stq_adamw_step(stq_adamw *o, const stq_step *step, stq_step_result *result) {
    STQ_CHECK(check_step(o, step));
    for (size_t i = 0; i < o->tensor_count; i++) {
        o->store.items[i].parameter = step->parameters[i];
        o->store.items[i].gradient = step->gradients[i];
    }
    stq_step_result done = {0};
    STQ_CHECK(gradient_norm(o, step, &done.gradient_norm));
    done.skipped = !isfinite(done.gradient_norm);
    if (done.skipped) {
        o->skipped++;
    } else {
        int64_t step_number = o->steps + 1;
        done.decided = stq_policy_due(&o->policy, step_number);
        if (done.decided)
            STQ_CHECK(decide(o, step->unscale, step_number));
        STQ_CHECK(update(o, step->unscale * stq_clip_factor(done.gradient_norm, step->max_gradient_norm), step_number));
    }
    if (result)
        *result = done;
    return STQ_OK;
}
