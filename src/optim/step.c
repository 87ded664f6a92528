/*
 * step.c - one gradient's way through the library: norm and finite check, at decision steps factors and widths, planes,
 * and the fused pass.
 */
#include <math.h>
#include <omp.h>

#include "common/error.h"
#include "common/float_mode.h"
#include "optim/coefficients.h"
#include "optim/optimizer.h"
#include "quant/shared.h"

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
        if (o->tensors[i].count > 0 && step->gradients[i] != NULL && step->parameters[i] == NULL)
            return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s' has a gradient but no parameter in this step.",
                             o->tensors[i].name);
    return STQ_OK;
}

/* Returns whether any tensor takes part. */
static bool attach(stq_adamw *o, const stq_step *step) {
    bool any = false;
    for (size_t i = 0; i < o->tensor_count; i++) {
        o->store.items[i].parameter = step->parameters[i];
        o->store.items[i].gradient = step->gradients[i];
        any = any || step->gradients[i] != NULL;
    }
    return any;
}

static stq_status gradient_norm(stq_adamw *o, const stq_step *step, double unscale, double *norm) {
    if (step->norm_supplied) {
        *norm = step->norm_pointer ? *step->norm_pointer : step->gradient_norm;
        return STQ_OK;
    }
    double sum;
    STQ_CHECK(o->backend->sum_squares(o->backend_context, o->store.items, o->tensor_count, &sum));
    *norm = sqrt(sum) * unscale;
    return STQ_OK;
}

/* Factors of tensor `index`, from the caller or computed; a tensor without a gradient keeps those it had. */
static stq_status factors_of(stq_adamw *o, size_t index, const stq_step *step, double unscale) {
    stq_factors *factors = &o->decided[index].factors;
    if (o->exempt[index])
        return STQ_OK;
    if (step->gradients[index] == NULL) {
        if (factors->r == 0)
            factors->r = 1;
        return STQ_OK;
    }
    if (step->factors == NULL)
        return o->backend->factors(o->backend_context, &o->tensors[index], &o->store.items[index], unscale, factors);
    *factors = step->factors[index];
    return STQ_OK;
}

/* Variance over v^2 that a code of 2 to 8 bits adds under the moving average: twice the relative error of sqrt(v),
 * squared. */
static double coding_noise(uint32_t bits) { return stq_is_coded(bits) ? 4 * stq_policy_coding_error(bits) : 0; }

/* How far v varies along rows and columns. Only of whole tensors: a slice does not see all probes. */
static stq_status measure_sharing(stq_adamw *o, size_t i) {
    const stq_item *item = &o->store.items[i];
    stq_policy_tensor *tensor = &o->decided[i];
    tensor->ratio[0] = tensor->ratio[1] = 0;
    bool candidate = o->policy.config.shared_v == STQ_SHARED_AUTO || stq_is_shared(item->v_in.bits);
    if (!candidate || !o->backend->share_probes || o->exempt[i] || tensor->given[STQ_SECOND_MOMENT] != 0 ||
        item->v_in.bits == 0 || item->rows < 2 || item->cols < 2 || item->count != tensor->count)
        return STQ_OK;
    float values[STQ_SHARED_PROBES];
    stq_shared_grid grid = stq_shared_probe_grid(item->rows, item->cols);
    STQ_CHECK(o->backend->share_probes(o->backend_context, item, values));
    stq_shared_ratios(tensor->ratio, values, &grid, coding_noise(item->v_in.bits));
    return STQ_OK;
}

/* Widths out of the factors. */
static stq_status choose_widths(stq_adamw *o, int64_t step_number) {
    for (size_t i = 0; i < o->tensor_count; i++)
        for (int state = 0; state < 2; state++)
            o->decided[i].bits[state] = (uint8_t)stq_store_planes(&o->store, i, state)->bits;
    double begin = omp_get_wtime();
    STQ_CHECK(stq_policy_decide(&o->policy, o->decided, o->tensor_count, step_number));
    o->decision_seconds = omp_get_wtime() - begin;
    for (size_t i = 0; i < o->tensor_count; i++)
        for (int state = 0; state < 2; state++)
            o->targets[i][state] = o->decided[i].target[state];
    return STQ_OK;
}

bool stq_step_has_widths(const stq_adamw *o) {
    for (size_t i = 0; i < o->tensor_count; i++)
        if (o->targets[i][0] == 0)
            return false;
    return true;
}

stq_status stq_step_settle_decision(stq_adamw *o, int64_t step_number, int64_t attempt) {
    int64_t delay = o->policy.config.decision_delay;
    o->pending_step = 0;
    if (delay == 0 || !stq_step_has_widths(o))
        return choose_widths(o, step_number);
    o->pending_step = step_number;
    o->pending_attempt = attempt + delay;
    return STQ_OK;
}

bool stq_step_concludes(const stq_adamw *o) {
    return o->pending_step != 0 && o->steps + o->skipped + 1 >= o->pending_attempt;
}

stq_status stq_step_conclude(stq_adamw *o, bool *decided) {
    *decided = stq_step_concludes(o);
    if (!*decided)
        return STQ_OK;
    STQ_CHECK(choose_widths(o, o->pending_step));
    o->pending_step = 0;
    return STQ_OK;
}

stq_status stq_step_decide(stq_adamw *o, const stq_step *step, double unscale, int64_t step_number) {
    for (size_t i = 0; i < o->tensor_count; i++) {
        if (stq_policy_chooses(&o->policy.config))
            STQ_CHECK(factors_of(o, i, step, unscale));
        STQ_CHECK(measure_sharing(o, i));
    }
    return stq_step_settle_decision(o, step_number, o->steps + o->skipped + 1);
}

stq_status stq_step_measured(stq_adamw *o, const stq_factors *factors) {
    for (size_t i = 0; i < o->tensor_count; i++) {
        if (!o->exempt[i] && factors[i].r != 0)
            o->decided[i].factors = factors[i];
        else if (!o->exempt[i] && o->decided[i].factors.r == 0)
            o->decided[i].factors.r = 1;
        STQ_CHECK(measure_sharing(o, i));
    }
    return STQ_OK;
}

/* Coefficients of the groups, and after them those of tensors that missed steps: their moments have seen fewer
 * gradients. Random numbers go by the optimizer's step count everywhere. Returns whether a second moment is shared
 * before or after this step. */
static bool set_coefficients(stq_adamw *o, double gradient_factor, int64_t step_number) {
    bool shared = false;
    o->coefficient_count = o->group_count;
    for (size_t i = 0; i < o->group_count; i++)
        o->coefficients[i] = stq_step_coefficients(&o->groups[i], gradient_factor, o->error_compensation, o->seed,
                                                   (uint64_t)step_number);
    for (size_t i = 0; i < o->tensor_count; i++) {
        uint32_t group = o->tensors[i].group;
        stq_item *item = &o->store.items[i];
        item->group = group;
        shared = shared || stq_is_shared(item->v_in.bits) || stq_is_shared(item->v_out.bits);
        if (o->missed[i] == 0 || item->gradient == NULL)
            continue;
        stq_coefficients *own = &o->coefficients[o->coefficient_count];
        *own = stq_step_coefficients(&o->groups[group], gradient_factor, o->error_compensation, o->seed,
                                     (uint64_t)(step_number - o->missed[i]));
        own->step_key = o->coefficients[group].step_key;
        item->group = (uint32_t)o->coefficient_count++;
    }
    return shared;
}

/* Fills the means of second moments that become shared in this step; their codes are freed at once. */
static stq_status begin_sharing(stq_adamw *o) {
    for (size_t i = 0; i < o->tensor_count; i++) {
        const stq_item *item = &o->store.items[i];
        if (!stq_is_shared(item->v_out.bits) || item->v_in.bits == item->v_out.bits)
            continue;
        STQ_CHECK(o->backend->share_begin(o->backend_context, item));
        stq_store_settle(&o->store, i, STQ_SECOND_MOMENT);
    }
    return STQ_OK;
}

static bool any_shared(const stq_adamw *o) {
    for (size_t i = 0; i < o->tensor_count; i++)
        if (stq_is_shared(o->store.items[i].v_in.bits))
            return true;
    return false;
}

static stq_status run_passes(stq_adamw *o, bool shared) {
    if (shared)
        STQ_CHECK(begin_sharing(o));
    if (shared && any_shared(o))
        STQ_CHECK(o->backend->share_step(o->backend_context, o->store.items, o->tensor_count, o->coefficients));
    return o->backend->update(o->backend_context, o->store.items, o->tensor_count, o->coefficients,
                              o->coefficient_count);
}

static stq_status update(stq_adamw *o, double gradient_factor, int64_t step_number) {
    STQ_CHECK(stq_store_begin(&o->store, o->targets));
    bool shared = set_coefficients(o, gradient_factor, step_number);
    stq_status status = run_passes(o, shared);
    if (status != STQ_OK) {
        stq_store_revert(&o->store);
        return status;
    }
    stq_store_commit(&o->store);
    o->steps = step_number;
    for (size_t i = 0; i < o->tensor_count; i++)
        if (o->store.items[i].gradient == NULL)
            o->missed[i]++;
    o->bits_sum += stq_step_bits(o);
    return STQ_OK;
}

/* Tensors restored without a state have no target yet, which calls for a decision out of turn. */
bool stq_step_due(const stq_adamw *o) {
    bool put_off = o->pending_step != 0 && !stq_step_concludes(o);
    return (stq_policy_due(&o->policy, o->steps + 1) && !put_off) || !stq_step_has_widths(o);
}

bool stq_step_waiting(const stq_adamw *o) {
    for (size_t i = 0; i < o->tensor_count; i++) {
        const stq_item *item = &o->store.items[i];
        if (item->gradient != NULL && (o->targets[i][0] != item->m_in.bits || o->targets[i][1] != item->v_in.bits))
            return true;
    }
    return false;
}

stq_status stq_adamw_settle(const stq_adamw *o) {
    return o->backend->settle ? o->backend->settle((stq_adamw *)(uintptr_t)o) : STQ_OK;
}

stq_status stq_adamw_only_enqueues(const stq_adamw *o, bool *only) {
    *only = !stq_step_due(o) && o->pending_step == 0 && !stq_step_waiting(o) &&
            (!o->backend->undecided || !o->backend->undecided(o->backend_context));
    return STQ_OK;
}

stq_status stq_adamw_gradient_norm(const stq_adamw *o, double *norm) {
    STQ_CHECK(stq_adamw_settle(o));
    *norm = o->gradient_norm;
    return STQ_OK;
}

/* Steps in flight may turn out to be skipped, never more than the host expects. */
stq_status stq_adamw_decision_due(const stq_adamw *o, bool *due) {
    *due = stq_step_due(o);
    if (!*due)
        return STQ_OK;
    STQ_CHECK(stq_adamw_settle(o));
    *due = stq_step_due(o);
    return STQ_OK;
}

static __attribute__((noinline)) stq_status make_step(stq_adamw *o, const stq_step *step, stq_step_result *result) {
    STQ_CHECK(check_step(o, step));
    stq_step_result done = {0};
    if (!attach(o, step)) {
        if (result)
            *result = done;
        return STQ_OK;
    }
    if (o->backend->step)
        return o->backend->step(o, step, result);
    double unscale = step->loss_scale ? step->unscale / (double)*step->loss_scale : step->unscale;
    STQ_CHECK(stq_step_conclude(o, &done.decided));
    STQ_CHECK(gradient_norm(o, step, unscale, &done.gradient_norm));
    o->gradient_norm = done.gradient_norm;
    done.skipped = !isfinite(done.gradient_norm) || (step->found_infinite && *step->found_infinite != 0.0f);
    if (done.skipped) {
        o->skipped++;
    } else {
        int64_t step_number = o->steps + 1;
        bool due;
        STQ_CHECK(stq_adamw_decision_due(o, &due));
        if (due)
            STQ_CHECK(stq_step_decide(o, step, unscale, step_number));
        done.decided = done.decided || (due && o->pending_step == 0);
        STQ_CHECK(update(o, unscale * stq_clip_factor(done.gradient_norm, step->max_gradient_norm), step_number));
    }
    done.waiting = stq_step_waiting(o);
    if (result)
        *result = done;
    return STQ_OK;
}

stq_status stq_adamw_step(stq_adamw *o, const stq_step *step, stq_step_result *result) {
    uint64_t mode = stq_float_mode_set();
    stq_status status = make_step(o, step, result);
    stq_float_mode_restore(mode);
    return status;
}
