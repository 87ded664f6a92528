/* anneal.c - global averages, annealing and reheating, the schedule of the mean cap. */
#include "policy/anneal.h"

#include <math.h>

/* Weight of a decision in the exponential averages of log n and log r. Gradients shrink over a run, so that a slow
 * average would lag and call every tensor small. */
static const double average_weight = 0.5;

/* A decision's mean volatility is a jump if it is at least this (log of a factor of 1.65) and this many times its
 * average. */
static const double jump_least = 0.5;
static const double jump_ratio = 3;

/* Decisions at steps 1, 10 and 30, where the gradients of a fresh model collapse, say nothing about volatility. */
enum { EARLY_DECISIONS = 3 };

static const double pi = 3.14159265358979323846;

static bool takes_part(const stq_policy_tensor *tensor) { return tensor->given[0] == 0 || tensor->given[1] == 0; }

static void add_tensor(stq_measure *sum, stq_policy_tensor *tensor) {
    stq_factors *factors = &tensor->factors;
    factors->volatility = 0;
    if (!stq_policy_has_gradient(factors))
        return;
    double log_n = log(factors->n), elements = (double)tensor->count;
    if (isfinite(tensor->last_log_n)) {
        factors->volatility = fabs(log_n - tensor->last_log_n);
        sum->volatile_elements += elements;
        sum->volatility += elements * factors->volatility;
    }
    tensor->last_log_n = log_n;
    sum->elements += elements;
    sum->log_n += elements * log_n;
    sum->log_r += elements * log(factors->r);
}

static double average(double before, double now) {
    return isfinite(before) ? before + average_weight * (now - before) : now;
}

static void reheat(stq_policy *policy, double volatility) {
    policy->reheating *= 0.5;
    if (policy->decisions < EARLY_DECISIONS)
        return;
    if (volatility >= jump_least && volatility >= jump_ratio * policy->volatility_average)
        policy->reheating = 1;
    else
        policy->volatility_average = average(policy->volatility_average, volatility);
}

/* Whether log r is at least its average, `threshold` being the average's exponential: a logarithm only where rounding
 * could decide. */
static bool is_complex(const stq_policy *policy, double r, double threshold) {
    if (fabs(r - threshold) > 1e-9 * threshold)
        return r > threshold;
    return log(r) >= policy->log_r_average;
}

static stq_zone zone_of(const stq_policy *policy, const stq_policy_tensor *tensor, double r_threshold) {
    if (!stq_policy_has_gradient(&tensor->factors))
        return STQ_ZONE_REDUNDANT;
    /* [n high][r high]; each is as good as random: no branch. */
    static const stq_zone zones[2][2] = {{STQ_ZONE_REDUNDANT, STQ_ZONE_STRUCTURAL},
                                         {STQ_ZONE_MAGNITUDE, STQ_ZONE_CRITICAL}};
    return zones[tensor->last_log_n >= policy->log_n_average][is_complex(policy, tensor->factors.r, r_threshold)];
}

void stq_policy_add_factors(stq_measure *sum, stq_policy_tensor *tensors, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (takes_part(&tensors[i]))
            add_tensor(sum, &tensors[i]);
}

void stq_policy_average(stq_policy *policy, const stq_measure *sum) {
    if (sum->elements > 0) {
        policy->log_n_average = average(policy->log_n_average, sum->log_n / sum->elements);
        policy->log_r_average = average(policy->log_r_average, sum->log_r / sum->elements);
        if (policy->decisions >= EARLY_DECISIONS - 1 && !(policy->log_n_average < policy->log_n_peak))
            policy->log_n_peak = policy->log_n_average;
    }
    reheat(policy, sum->volatile_elements > 0 ? sum->volatility / sum->volatile_elements : 0);
}

void stq_policy_set_zones(const stq_policy *policy, stq_policy_tensor *tensors, size_t count) {
    double r_threshold = exp(policy->log_r_average);
    for (size_t i = 0; i < count; i++)
        tensors[i].zone =
            (uint8_t)(takes_part(&tensors[i]) ? zone_of(policy, &tensors[i], r_threshold) : STQ_ZONE_EXEMPT);
}

/* The cosine of the plan, before `annealing` and reheating. */
static double planned_tau(const stq_policy *policy, double step) {
    double horizon = (double)policy->config.planned_steps / 2;
    return step < horizon ? (1 + cos(pi * step / horizon)) / 2 : 0;
}

double stq_policy_tau(const stq_policy *policy, int64_t step) {
    double tau = 1;
    if (policy->config.planned_steps > 0)
        tau = planned_tau(policy, (double)(step - 1));
    else if (isfinite(policy->log_n_peak))
        tau = exp(policy->log_n_average - policy->log_n_peak);
    tau = 1 - policy->config.annealing * (1 - tau);
    return tau > policy->reheating ? tau : policy->reheating;
}

/* The integral of the annealing factor over the steps from `step` steps on to the end of the plan. */
static double remaining_tau(const stq_policy *policy, double step) {
    double end = (double)policy->config.planned_steps, horizon = end / 2, a = policy->config.annealing;
    double cosine = step < horizon ? (horizon - step) / 2 - horizon / (2 * pi) * sin(pi * step / horizon) : 0;
    return (1 - a) * (end - step) + a * cosine;
}

/* Steps made when the next decision comes. */
static double next_decision(const stq_policy *policy, int64_t step) {
    int64_t next = stq_policy_next_due(policy, step);
    return (double)(next < policy->config.planned_steps ? next - 1 : policy->config.planned_steps);
}

/*
 * The budget falls with tau from `high` to `low`, chosen so that its mean over the run is the cap: `high` the widest
 * possible if that leaves `low` possible. What earlier steps spent more or less than that is spread over the remaining
 * ones.
 */
static double scheduled_budget(const stq_policy *policy, int64_t step) {
    double cap = (double)policy->cap_bytes, smallest = (double)policy->smallest_bytes;
    double high = (double)policy->widest_bytes, steps = (double)policy->config.planned_steps;
    double made = (double)(step - 1), mean_tau = remaining_tau(policy, 0) / steps;
    if (cap >= high || mean_tau >= 1)
        return cap < high ? cap : high;
    double low = (cap - mean_tau * high) / (1 - mean_tau);
    if (low < smallest) {
        low = smallest;
        high = (cap - (1 - mean_tau) * low) / mean_tau;
    }
    if (made >= steps)
        return low;
    double end = next_decision(policy, step);
    double tau = (remaining_tau(policy, made) - remaining_tau(policy, end)) / (end - made);
    double planned = low * (steps - made) + (high - low) * remaining_tau(policy, made);
    double left = cap * steps - policy->spent;
    double budget = low + tau * (high - low) + (left - planned) / (steps - made);
    return budget > smallest ? budget : smallest;
}

uint64_t stq_policy_budget(const stq_policy *policy, int64_t step) {
    if (policy->config.cap_mode == STQ_CAP_PEAK)
        return policy->cap_bytes;
    return (uint64_t)scheduled_budget(policy, step);
}
