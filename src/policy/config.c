/* config.c - defaults, checks and the cap of a policy. */
#include <math.h>

#include "common/error.h"
#include "common/memory.h"
#include "policy/project.h"
#include "quant/shared.h"

stq_policy_config stq_policy_defaults(void) {
    stq_policy_config config = {.size = sizeof config,
                                .kind = STQ_POLICY_RATE_DISTORTION,
                                .state_bits = 5.0,
                                .cap_mode = STQ_CAP_PEAK,
                                .fixed_m_bits = 4,
                                .fixed_v_bits = 4,
                                .lowest_bits = STQ_LOWEST_BITS,
                                .highest_bits = STQ_HIGHEST_BITS,
                                .decide_every = 100,
                                .annealing = 1.0};
    return config;
}

const char *stq_zone_name(stq_zone zone) {
    switch (zone) {
    case STQ_ZONE_EXEMPT:
        return "exempt";
    case STQ_ZONE_CRITICAL:
        return "critical";
    case STQ_ZONE_MAGNITUDE:
        return "magnitude";
    case STQ_ZONE_STRUCTURAL:
        return "structural";
    case STQ_ZONE_REDUNDANT:
        return "redundant";
    }
    return "unknown";
}

uint64_t stq_policy_plane_bytes(int64_t count, uint32_t bits, size_t granularity) {
    uint64_t bytes = 0;
    for (uint32_t plane = 0; plane < stq_plane_count(bits); plane++)
        bytes += stq_round_up(stq_plane_bytes(count, bits, plane), granularity);
    return bytes;
}

uint64_t stq_policy_state_bytes(const stq_policy_tensor *tensor, uint32_t bits, size_t granularity) {
    if (bits == STQ_BITS_FLOAT32)
        return 0;
    if (!stq_is_shared(bits))
        return stq_policy_plane_bytes(tensor->count, bits, granularity);
    return stq_round_up((uint64_t)stq_shared_bytes(bits, tensor->rows, tensor->cols), granularity);
}

static stq_status check_widths(const char *low_name, uint32_t low, const char *high_name, uint32_t high) {
    bool right = stq_is_coded(low);
    if (right && stq_is_coded(high))
        return STQ_OK;
    return stq_error(STQ_INVALID_ARGUMENT, "%s is %u; use 2 to 8.", right ? high_name : low_name, right ? high : low);
}

static stq_status check_config(const stq_policy_config *config) {
    if (config->size != sizeof *config)
        return stq_error(STQ_INVALID_ARGUMENT,
                         "The policy's configuration has another version's size; start from stq_policy_defaults().");
    if (config->kind < STQ_POLICY_FLOAT32 || config->kind > STQ_POLICY_RATE_DISTORTION)
        return stq_error(STQ_INVALID_ARGUMENT, "There is no policy of kind %d.", (int)config->kind);
    if (config->cap_mode != STQ_CAP_PEAK && config->cap_mode != STQ_CAP_MEAN)
        return stq_error(STQ_INVALID_ARGUMENT, "There is no cap mode %d.", (int)config->cap_mode);
    STQ_CHECK(check_widths("fixed_m_bits", config->fixed_m_bits, "fixed_v_bits", config->fixed_v_bits));
    STQ_CHECK(check_widths("lowest_bits", config->lowest_bits, "highest_bits", config->highest_bits));
    if (config->lowest_bits > config->highest_bits)
        return stq_error(STQ_INVALID_ARGUMENT, "lowest_bits is %u and highest_bits %u; the lowest cannot be above.",
                         config->lowest_bits, config->highest_bits);
    if (config->shared_v != STQ_SHARED_OFF && config->shared_v != STQ_SHARED_AUTO)
        return stq_error(STQ_INVALID_ARGUMENT, "There is no mode %d of sharing second moments.", (int)config->shared_v);
    if (config->decide_every < 1)
        return stq_error(STQ_INVALID_ARGUMENT, "decide_every is %lld; use 1 or more steps.",
                         (long long)config->decide_every);
    if (config->decision_delay < 0 || config->decision_delay > STQ_LARGEST_DELAY)
        return stq_error(STQ_INVALID_ARGUMENT, "decision_delay is %lld; use 0 to %d steps.",
                         (long long)config->decision_delay, STQ_LARGEST_DELAY);
    if (config->planned_steps < 0)
        return stq_error(STQ_INVALID_ARGUMENT, "planned_steps is %lld; use 0 where the length is not known.",
                         (long long)config->planned_steps);
    if (!(config->annealing >= 0 && config->annealing <= 1))
        return stq_error(STQ_INVALID_ARGUMENT, "annealing is %g; use 0 to 1.", config->annealing);
    if (config->cap_mode == STQ_CAP_MEAN && config->planned_steps == 0)
        return stq_error(STQ_INVALID_ARGUMENT,
                         "A cap on the mean needs the number of planned steps; give it, or cap the peak.");
    if (config->cap_bytes == 0 && !(config->state_bits > 0 && isfinite(config->state_bits)))
        return stq_error(STQ_INVALID_ARGUMENT, "state_bits is %g; use a number above 0, for example 5.",
                         config->state_bits);
    return STQ_OK;
}

static stq_status check_given(const stq_policy_tensor *tensors, size_t count) {
    if (count > UINT32_MAX / 2 - 1)
        return stq_error(STQ_INVALID_ARGUMENT, "%zu tensors are more than a policy can rank.", count);
    for (size_t i = 0; i < count; i++)
        for (int state = 0; state < 2; state++) {
            uint32_t bits = tensors[i].given[state];
            bool exists = stq_plane_count(bits) != 0 || (state == STQ_SECOND_MOMENT && stq_is_shared(bits));
            if (bits != 0 && !exists)
                return stq_error(STQ_INVALID_ARGUMENT, "Tensor %zu: a width of %u bits does not exist; use 2 to 8.", i,
                                 bits);
        }
    return STQ_OK;
}

/* Bytes with every choosable width at `bits`. */
static uint64_t bytes_at(const stq_policy *policy, const stq_policy_tensor *tensors, size_t count, uint32_t bits) {
    uint64_t bytes = policy->fixed_bytes;
    for (size_t i = 0; i < count; i++)
        for (int state = 0; state < 2; state++)
            bytes += stq_policy_state_bytes(&tensors[i], tensors[i].given[state] ? tensors[i].given[state] : bits,
                                            policy->granularity);
    return bytes;
}

stq_status stq_policy_init(stq_policy *policy, const stq_policy_tensor *tensors, size_t count, uint64_t parameters) {
    stq_policy_config config = policy->config;
    STQ_CHECK(check_config(&config));
    STQ_CHECK(check_given(tensors, count));
    *policy = (stq_policy){.config = config,
                           .fixed_bytes = policy->fixed_bytes,
                           .granularity = policy->granularity ? policy->granularity : 64,
                           .log_n_average = NAN,
                           .log_r_average = NAN,
                           .log_n_peak = NAN,
                           .volatility_average = NAN};
    policy->smallest_bytes = bytes_at(policy, tensors, count, config.lowest_bits);
    policy->widest_bytes = bytes_at(policy, tensors, count, config.highest_bits);
    if (!stq_policy_chooses(&config))
        return STQ_OK;
    double values = 2.0 * (double)(parameters ? parameters : 1);
    double from_bits = floor(config.state_bits * values / 8);
    uint64_t cap = config.cap_bytes;
    if (cap == 0)
        cap = from_bits < 9e18 ? (uint64_t)from_bits : INT64_MAX;
    cap = cap < INT64_MAX ? cap : INT64_MAX; /* what decisions count in */
    if (cap < policy->smallest_bytes) {
        /* Rounded up in the fourth decimal, so that the figure named is one that works. */
        double smallest = ceil(8e4 * (double)policy->smallest_bytes / values) / 1e4;
        return stq_error(
            STQ_CAP_TOO_SMALL,
            "A cap of %llu bytes (%.4f bits a state value) cannot hold these states; the smallest possible "
            "one is %llu bytes (%.4f bits).",
            (unsigned long long)cap, 8 * (double)cap / values, (unsigned long long)policy->smallest_bytes, smallest);
    }
    policy->cap_bytes = cap;
    return STQ_OK;
}

bool stq_policy_due(const stq_policy *policy, int64_t step) {
    if (step == 1)
        return true;
    if (!stq_policy_chooses(&policy->config))
        return false;
    return stq_is_decision_step(step, policy->config.decide_every);
}

int64_t stq_policy_next_due(const stq_policy *policy, int64_t after) {
    if (after < 1)
        return 1;
    if (!stq_policy_chooses(&policy->config))
        return INT64_MAX;
    int64_t every = policy->config.decide_every;
    int64_t next = after > INT64_MAX - every ? INT64_MAX : (after / every + 1) * every;
    int64_t early = after < 10 ? 10 : after < 30 ? 30 : next;
    return early < next ? early : next;
}
