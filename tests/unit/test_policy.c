/* test_policy.c - configuration, caps, zones, annealing, and the invariants of every decision. */
#include "testing.h"

#include "common/error.h"
#include "policy/anneal.h"
#include "policy/rules.h"

#define SEED 604u

enum { MANY = 200 };

static double uniform(uint32_t *state) {
    *state = *state * 747796405u + 2891336453u;
    return ((double)(stq_hash(*state) >> 8) + 0.5) / 16777216.0;
}

static void make_tensors(stq_policy_tensor *tensors, size_t count, uint32_t *random) {
    for (size_t i = 0; i < count; i++)
        tensors[i] = (stq_policy_tensor){.count = (int64_t)(4096 * exp(6 * uniform(random))), .last_log_n = NAN};
}

static void make_factors(stq_policy_tensor *tensors, size_t count, uint32_t *random, double level) {
    for (size_t i = 0; i < count; i++) {
        tensors[i].factors.n = level * exp(4 * uniform(random) - 2);
        tensors[i].factors.r = exp(-4 * uniform(random));
    }
}

static uint64_t parameters(const stq_policy_tensor *tensors, size_t count) {
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (uint64_t)tensors[i].count;
    return sum;
}

static uint64_t bytes(const stq_policy *policy, const stq_policy_tensor *tensors, size_t count, bool now) {
    uint64_t sum = policy->fixed_bytes;
    for (size_t i = 0; i < count; i++)
        for (int state = 0; state < 2; state++) {
            uint32_t bits = now ? tensors[i].bits[state] : tensors[i].target[state];
            if (bits != 32)
                sum += stq_policy_plane_bytes(tensors[i].count, bits, policy->granularity);
        }
    return sum;
}

static void open_policy(stq_policy *policy, stq_policy_kind kind, double bits, const stq_policy_tensor *tensors,
                        size_t count) {
    *policy = (stq_policy){.config = stq_policy_defaults(), .fixed_bytes = 10000, .granularity = 64};
    policy->config.kind = kind;
    policy->config.state_bits = bits;
    if (stq_policy_init(policy, tensors, count, parameters(tensors, count)) != STQ_OK)
        fail_msg("%s", stq_last_error());
}

static void carry_out(stq_policy_tensor *tensors, size_t count) {
    for (size_t i = 0; i < count; i++)
        memcpy(tensors[i].bits, tensors[i].target, 2);
}

static void test_defaults_and_due_steps(void **state) {
    (void)state;
    stq_policy_config config = stq_policy_defaults();
    assert_int_equal(config.size, sizeof config);
    assert_true(config.state_bits == 5.0 && config.decide_every == 100 && config.annealing == 1.0);
    assert_true(config.lowest_bits == 2 && config.highest_bits == 8 && config.cap_mode == STQ_CAP_PEAK);
    stq_policy policy = {.config = config};
    for (int64_t step = 1; step <= 1000; step++)
        assert_int_equal(stq_policy_due(&policy, step), step == 1 || step == 10 || step == 30 || step % 100 == 0);
    policy.config.kind = STQ_POLICY_FIXED;
    for (int64_t step = 1; step <= 1000; step++)
        assert_int_equal(stq_policy_due(&policy, step), step == 1);
    assert_string_equal(stq_zone_name(STQ_ZONE_CRITICAL), "critical");
    assert_string_equal(stq_zone_name((stq_zone)99), "unknown");
}

static void expect_refusal(stq_policy_config config, stq_status expected, const char *word) {
    stq_policy_tensor tensor = {.count = 65536, .last_log_n = NAN};
    stq_policy policy = {.config = config, .granularity = 64};
    assert_int_equal(stq_policy_init(&policy, &tensor, 1, 65536), expected);
    if (!strstr(stq_last_error(), word))
        fail_msg("'%s' does not name %s", stq_last_error(), word);
}

static void test_bad_configurations_are_named(void **state) {
    (void)state;
    const stq_policy_config good = stq_policy_defaults();
    stq_policy_config c = good;
#define REFUSE(field, value, word) \
    c = good;                      \
    c.field = value;               \
    expect_refusal(c, STQ_INVALID_ARGUMENT, word)
    REFUSE(size, 3, "size");
    REFUSE(kind, (stq_policy_kind)9, "9");
    REFUSE(cap_mode, (stq_cap_mode)7, "7");
    REFUSE(state_bits, -1, "state_bits");
    REFUSE(state_bits, NAN, "state_bits");
    REFUSE(state_bits, INFINITY, "state_bits");
    REFUSE(fixed_m_bits, 1, "fixed_m_bits");
    REFUSE(fixed_v_bits, 9, "fixed_v_bits");
    REFUSE(lowest_bits, 0, "lowest_bits");
    REFUSE(highest_bits, 32, "highest_bits");
    REFUSE(decide_every, 0, "decide_every");
    REFUSE(planned_steps, -5, "planned_steps");
    REFUSE(annealing, 1.5, "annealing");
    REFUSE(cap_mode, STQ_CAP_MEAN, "planned steps");
#undef REFUSE
    c = good;
    c.lowest_bits = 6;
    c.highest_bits = 5;
    expect_refusal(c, STQ_INVALID_ARGUMENT, "lowest_bits");
}

/* A cap beyond every count of bytes binds nobody. */
static void test_the_largest_caps(void **state) {
    (void)state;
    const uint64_t caps[] = {INT64_MAX, (uint64_t)INT64_MAX + 1, UINT64_MAX};
    for (size_t k = 0; k < sizeof caps / sizeof *caps; k++) {
        stq_policy_tensor tensors[2] = {{.count = 65536, .last_log_n = NAN}, {.count = 12345, .last_log_n = NAN}};
        stq_policy policy = {.config = stq_policy_defaults(), .fixed_bytes = 3000, .granularity = 64};
        policy.config.cap_bytes = caps[k];
        assert_int_equal(stq_policy_init(&policy, tensors, 2, 65536 + 12345), STQ_OK);
        make_factors(tensors, 2, &(uint32_t){SEED}, 1);
        assert_int_equal(stq_policy_decide(&policy, tensors, 2, 1), STQ_OK);
        for (int i = 0; i < 2; i++)
            assert_true(tensors[i].target[0] == 8 && tensors[i].target[1] == 8);
    }
}

/* The figure that the message names is the smallest one that works. */
static void test_cap_too_small_names_the_smallest(void **state) {
    (void)state;
    stq_policy_tensor tensors[2] = {{.count = 65536, .last_log_n = NAN}, {.count = 12345, .last_log_n = NAN}};
    stq_policy policy = {.config = stq_policy_defaults(), .fixed_bytes = 3000, .granularity = 64};
    policy.config.state_bits = 1.5;
    assert_int_equal(stq_policy_init(&policy, tensors, 2, 65536 + 12345), STQ_CAP_TOO_SMALL);
    const char *words = strstr(stq_last_error(), "smallest possible one is ");
    assert_non_null(words);
    unsigned long long smallest_bytes;
    double smallest_bits;
    assert_int_equal(sscanf(words, "smallest possible one is %llu bytes (%lf bits)", &smallest_bytes, &smallest_bits),
                     2);
    policy.config.state_bits = smallest_bits;
    assert_int_equal(stq_policy_init(&policy, tensors, 2, 65536 + 12345), STQ_OK);
    assert_int_equal(policy.smallest_bytes, smallest_bytes);
    policy.config.state_bits = smallest_bits - 2e-4;
    assert_int_equal(stq_policy_init(&policy, tensors, 2, 65536 + 12345), STQ_CAP_TOO_SMALL);
    policy.config.cap_bytes = smallest_bytes;
    assert_int_equal(stq_policy_init(&policy, tensors, 2, 65536 + 12345), STQ_OK);
    policy.config.cap_bytes = smallest_bytes - 1;
    assert_int_equal(stq_policy_init(&policy, tensors, 2, 65536 + 12345), STQ_CAP_TOO_SMALL);
    make_factors(tensors, 2, &(uint32_t){SEED}, 1);
    policy.config.cap_bytes = smallest_bytes;
    assert_int_equal(stq_policy_init(&policy, tensors, 2, 65536 + 12345), STQ_OK);
    assert_int_equal(stq_policy_decide(&policy, tensors, 2, 1), STQ_OK);
    assert_true(tensors[0].target[0] == 2 && tensors[1].target[1] == 2);
}

static void test_fixed_float32_and_given_widths(void **state) {
    (void)state;
    stq_policy_tensor tensors[3] = {
        {.count = 65536}, {.count = 65536, .given = {6, 0}}, {.count = 99, .given = {32, 32}}};
    stq_policy policy = {.config = stq_policy_defaults(), .granularity = 64};
    policy.config.kind = STQ_POLICY_FIXED;
    policy.config.fixed_m_bits = 3;
    policy.config.fixed_v_bits = 5;
    policy.config.state_bits = 0.5; /* not applied */
    assert_int_equal(stq_policy_init(&policy, tensors, 3, 131171), STQ_OK);
    assert_int_equal(policy.cap_bytes, 0);
    assert_int_equal(stq_policy_decide(&policy, tensors, 3, 1), STQ_OK);
    const uint8_t fixed[3][2] = {{3, 5}, {6, 5}, {32, 32}};
    for (int i = 0; i < 3; i++)
        assert_memory_equal(tensors[i].target, fixed[i], 2);
    policy.config.kind = STQ_POLICY_FLOAT32;
    tensors[1].given[0] = 0;
    assert_int_equal(stq_policy_init(&policy, tensors, 3, 131171), STQ_OK);
    assert_int_equal(stq_policy_decide(&policy, tensors, 3, 1), STQ_OK);
    assert_true(tensors[0].target[0] == 32 && tensors[1].target[1] == 32);
}

/* Two tensors a zone, all of one size, a cap of exactly 5 bits for the planes. */
static void test_zones_get_their_offsets(void **state) {
    (void)state;
    const double n[4] = {10, 10, 0.1, 0.1}, r[4] = {0.5, 0.01, 0.5, 0.01};
    const uint8_t zones[4] = {STQ_ZONE_CRITICAL, STQ_ZONE_MAGNITUDE, STQ_ZONE_STRUCTURAL, STQ_ZONE_REDUNDANT};
    const uint8_t early[4][2] = {{6, 6}, {5, 6}, {6, 5}, {4, 4}};
    stq_policy_tensor tensors[4];
    for (int i = 0; i < 4; i++)
        tensors[i] = (stq_policy_tensor){.count = 65536, .last_log_n = NAN, .factors = {.n = n[i], .r = r[i]}};
    stq_policy policy = {.config = stq_policy_defaults(), .granularity = 64};
    policy.config.kind = STQ_POLICY_ZONES;
    /* 8 states of 8,192 bytes a bit: 42 bits in all, so that B = 5.25. */
    policy.config.cap_bytes = 42 * 8192;
    policy.config.planned_steps = 1000;
    assert_int_equal(stq_policy_init(&policy, tensors, 4, 4 * 65536), STQ_OK);
    assert_int_equal(stq_policy_decide(&policy, tensors, 4, 1), STQ_OK);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(tensors[i].zone, zones[i]);
        assert_memory_equal(tensors[i].target, early[i], 2);
    }
    assert_int_equal(bytes(&policy, tensors, 4, false), 42 * 8192);
    /* Late the offsets are gone: everybody within one bit of B. */
    carry_out(tensors, 4);
    for (int64_t step = 600; step <= 1000; step += 100) {
        assert_int_equal(stq_policy_decide(&policy, tensors, 4, step), STQ_OK);
        carry_out(tensors, 4);
    }
    for (int i = 0; i < 4; i++)
        for (int s = 0; s < 2; s++)
            assert_true(tensors[i].bits[s] == 5 || tensors[i].bits[s] == 6);
    assert_int_equal(bytes(&policy, tensors, 4, true), 42 * 8192);
}

/* A decision's factors: sums, averages and zones. */
static void measure(stq_policy *policy, stq_policy_tensor *tensors, size_t count) {
    stq_measure sum = {0};
    stq_policy_add_factors(&sum, tensors, count);
    stq_policy_average(policy, &sum);
    stq_policy_set_zones(policy, tensors, count);
}

static void test_annealing_with_and_without_a_horizon(void **state) {
    (void)state;
    stq_policy_tensor tensor = {.count = 65536, .last_log_n = NAN};
    stq_policy policy;
    open_policy(&policy, STQ_POLICY_ZONES, 5, &tensor, 1);
    policy.config.planned_steps = 1000;
    assert_true(stq_policy_tau(&policy, 1) == 1.0);
    assert_true(fabs(stq_policy_tau(&policy, 251) - 0.5) < 1e-12);
    assert_true(stq_policy_tau(&policy, 501) == 0.0 && stq_policy_tau(&policy, 5000) == 0.0);
    policy.config.annealing = 0.25;
    assert_true(stq_policy_tau(&policy, 900) == 0.75);
    policy.config.annealing = 1;
    policy.config.planned_steps = 0;
    double n = 1, before = 2;
    for (int64_t step = 100; step <= 2000; step += 100, n *= 0.8) {
        tensor.factors = (stq_factors){.n = n, .r = 1};
        measure(&policy, &tensor, 1);
        policy.decisions++;
        double tau = stq_policy_tau(&policy, step);
        assert_true(tau > 0 && tau <= 1 && tau <= before);
        before = tau;
    }
    assert_true(before < 0.1);
    /* A jump of the gradients' size: a new task, or the learning rate restarted. It fades again. */
    tensor.factors.n = 30 * n;
    measure(&policy, &tensor, 1);
    policy.decisions++;
    assert_true(stq_policy_tau(&policy, 2100) == 1.0);
    for (int k = 0; k < 8; k++) {
        measure(&policy, &tensor, 1);
        policy.decisions++;
    }
    assert_true(policy.reheating < 0.01);
}

/* Everything that must hold between two decisions, whatever the factors do. */
static void check_decision(const stq_policy *policy, const stq_policy_tensor *before, const stq_policy_tensor *after,
                           size_t count, int64_t step) {
    bool peak = policy->config.cap_mode == STQ_CAP_PEAK;
    int64_t room = (int64_t)(stq_policy_budget(policy, step) - bytes(policy, after, count, false));
    assert_true(room >= 0);
    bool first = before[0].bits[0] == 0 && before[0].given[0] != 32;
    for (size_t i = 0; i < count; i++)
        for (int s = 0; s < 2; s++) {
            int was = before[i].bits[s], is = after[i].target[s];
            if (before[i].given[s] != 0) {
                assert_int_equal(is, before[i].given[s]);
                continue;
            }
            assert_in_range(is, policy->config.lowest_bits, policy->config.highest_bits);
            if (first || !peak)
                continue;
            assert_in_range(is, was - 1, was + 1);
            if (is < was)
                assert_true(before[i].asked[s] >= 1); /* asked for then, and again now */
            bool may_grow = is == was && after[i].asked[s] == 0 && is < (int)policy->config.highest_bits && is != 3;
            if (may_grow)
                assert_true((int64_t)stq_policy_plane_bytes(after[i].count, (uint32_t)is + 1, policy->granularity) -
                                (int64_t)stq_policy_plane_bytes(after[i].count, (uint32_t)is, policy->granularity) >
                            room);
        }
}

/* Makes the transitions as a store would, in the order of phases, and checks the cap at each. */
static void check_transitions(const stq_policy *policy, stq_policy_tensor *tensors, size_t count) {
    uint64_t level = bytes(policy, tensors, count, true);
    for (int phase = 1; phase <= 3; phase++)
        for (int pass = 0; pass < 2; pass++)
            for (size_t i = 0; i < count; i++)
                for (int s = 0; s < 2; s++) {
                    uint32_t from = tensors[i].bits[s], to = tensors[i].target[s];
                    if (stq_policy_transition_phase(from, to) != phase || (to > from) != (pass == 1))
                        continue;
                    uint64_t old = stq_policy_plane_bytes(tensors[i].count, from, policy->granularity);
                    uint64_t new = stq_policy_plane_bytes(tensors[i].count, to, policy->granularity);
                    uint64_t during = phase == 2 ? level + new : phase == 3 ? level + new - old : level;
                    assert_true(during <= policy->cap_bytes);
                    level = level + new - old;
                    tensors[i].bits[s] = (uint8_t)to;
                }
    assert_int_equal(level, bytes(policy, tensors, count, false));
}

/* Returns how many widths changed after the first decision, under caps that leave a choice. */
static int run_random(stq_policy_kind kind, uint32_t seed, double bits) {
    static stq_policy_tensor tensors[MANY], before[MANY];
    uint32_t random = seed;
    size_t count = 1 + (size_t)(uniform(&random) * MANY);
    make_tensors(tensors, count, &random);
    if (count > 3) {
        tensors[1].given[0] = tensors[1].given[1] = 32;
        tensors[2].given[1] = 5;
    }
    stq_policy policy;
    open_policy(&policy, kind, bits, tensors, count);
    int widths_changed = 0;
    for (int decision = 0; decision < 40; decision++) {
        int64_t step = decision == 0 ? 1 : decision * 100;
        /* Factors stay for three decisions, so that demotions can be confirmed. */
        if (decision % 3 == 0)
            make_factors(tensors, count, &random, exp(-0.05 * decision));
        memcpy(before, tensors, sizeof tensors);
        assert_int_equal(stq_policy_decide(&policy, tensors, count, step), STQ_OK);
        check_decision(&policy, before, tensors, count, step);
        for (size_t i = 0; i < count; i++)
            widths_changed += decision > 0 && memcmp(tensors[i].bits, tensors[i].target, 2) != 0;
        if (decision == 0)
            carry_out(tensors, count);
        else
            check_transitions(&policy, tensors, count);
    }
    assert_int_equal(policy.forced, 0);
    return bits < 7 && bits > 2.5 ? widths_changed : 0;
}

static void test_invariants_under_random_factors(void **state) {
    (void)state;
    const double caps[] = {2.4, 2.9, 3.3, 3.9, 4.4, 5.0, 6.1, 8.6};
    int changed[2] = {0, 0};
    for (uint32_t k = 0; k < 80; k++) {
        uint32_t seed = SEED + k;
        print_message("# seed %u\n", seed);
        changed[k % 2] += run_random(k % 2 ? STQ_POLICY_ZONES : STQ_POLICY_RATE_DISTORTION, seed, caps[k / 2 % 8]);
    }
    print_message("widths changed: %d by rate-distortion, %d by zones\n", changed[0], changed[1]);
    assert_true(changed[0] > 100 && changed[1] > 1000);
}

static void test_demotion_needs_two_requests(void **state) {
    (void)state;
    /* Two equal tensors: the bits follow the larger gradient, but only after the second request. */
    stq_policy_tensor tensors[2] = {{.count = 65536, .last_log_n = NAN}, {.count = 65536, .last_log_n = NAN}};
    stq_policy policy;
    open_policy(&policy, STQ_POLICY_ZONES, 5.7, tensors, 2);
    tensors[0].factors = (stq_factors){.n = 10, .r = 0.5};
    tensors[1].factors = (stq_factors){.n = 0.1, .r = 0.01};
    assert_int_equal(stq_policy_decide(&policy, tensors, 2, 1), STQ_OK);
    carry_out(tensors, 2);
    assert_true(tensors[0].bits[0] > tensors[1].bits[0]);
    uint8_t first = tensors[0].bits[0];
    stq_factors swap = tensors[0].factors;
    tensors[0].factors = tensors[1].factors;
    tensors[1].factors = swap;
    assert_int_equal(stq_policy_decide(&policy, tensors, 2, 10), STQ_OK);
    assert_int_equal(tensors[0].target[0], first);
    assert_int_equal(tensors[0].asked[0], 1);
    carry_out(tensors, 2);
    assert_int_equal(stq_policy_decide(&policy, tensors, 2, 30), STQ_OK);
    assert_int_equal(tensors[0].target[0], first - 1);
    assert_true(tensors[1].target[0] > tensors[1].bits[0]);
}

/* One tensor's bits, in the order in which fixed widths lower the loss: m's third before v's, v's third and fourth
 * before m's fourth (docs/decisions/008-first-bits-of-v.md). */
static void test_order_of_a_tensors_bits(void **state) {
    (void)state;
    static const uint8_t widths[][2] = {{2, 2}, {3, 2}, {3, 3}, {3, 4}, {4, 4}, {5, 4}, {5, 5}, {6, 5}, {6, 6}};
    for (size_t k = 0; k < sizeof widths / sizeof widths[0]; k++) {
        stq_policy_tensor tensor = {.count = 1 << 20, .last_log_n = NAN, .factors = {.n = 1, .r = 0.5}};
        stq_policy policy;
        double mean = (widths[k][0] + widths[k][1]) / 2.0, fixed = 8 * 10000.0 / (2 * (1 << 20));
        open_policy(&policy, STQ_POLICY_RATE_DISTORTION, mean + 0.13 + fixed, &tensor, 1);
        assert_int_equal(stq_policy_decide(&policy, &tensor, 1, 1), STQ_OK);
        assert_int_equal(tensor.target[STQ_FIRST_MOMENT], widths[k][0]);
        assert_int_equal(tensor.target[STQ_SECOND_MOMENT], widths[k][1]);
    }
}

/* The mean of the bytes over the run is the cap, high early and low late. */
static void test_mean_mode_keeps_the_mean(void **state) {
    (void)state;
    const double caps[] = {3.0, 4.25, 6.5};
    for (size_t k = 0; k < 3; k++) {
        uint32_t random = SEED;
        static stq_policy_tensor tensors[60];
        make_tensors(tensors, 60, &random);
        make_factors(tensors, 60, &random, 1);
        stq_policy policy = {.config = stq_policy_defaults(), .granularity = 64};
        policy.config.cap_mode = STQ_CAP_MEAN;
        policy.config.planned_steps = 4000;
        policy.config.state_bits = caps[k];
        assert_int_equal(stq_policy_init(&policy, tensors, 60, parameters(tensors, 60)), STQ_OK);
        double sum = 0, early = 0, late = 0;
        for (int64_t step = 1; step <= 4000; step++) {
            if (stq_policy_due(&policy, step)) {
                assert_int_equal(stq_policy_decide(&policy, tensors, 60, step), STQ_OK);
                carry_out(tensors, 60);
            }
            double now = (double)bytes(&policy, tensors, 60, true);
            sum += now;
            early += step == 40 ? now : 0;
            late += step == 4000 ? now : 0;
        }
        double mean = sum / 4000 / (double)policy.cap_bytes;
        if (!(mean > 0.97 && mean < 1.001))
            fail_msg("a mean cap of %g bits was met to %g (seed %u)", caps[k], mean, SEED);
        assert_true(early > 1.1 * (double)policy.cap_bytes && late < 0.99 * (double)policy.cap_bytes);
    }
}

static void test_zero_and_missing_gradients(void **state) {
    (void)state;
    for (int kind = STQ_POLICY_ZONES; kind <= STQ_POLICY_RATE_DISTORTION; kind++) {
        stq_policy_tensor tensors[3] = {{.count = 65536, .last_log_n = NAN},
                                        {.count = 65536, .last_log_n = NAN},
                                        {.count = 65536, .last_log_n = NAN}};
        for (int i = 0; i < 3; i++)
            tensors[i].factors.r = 1;
        stq_policy policy;
        open_policy(&policy, (stq_policy_kind)kind, 4.7, tensors, 3);
        assert_int_equal(stq_policy_decide(&policy, tensors, 3, 1), STQ_OK);
        carry_out(tensors, 3);
        assert_int_equal(tensors[0].zone, STQ_ZONE_REDUNDANT);
        tensors[0].factors = (stq_factors){.n = 1, .r = 1};
        for (int64_t step = 10; step < 2000; step += 20)
            if (stq_policy_due(&policy, step)) {
                assert_int_equal(stq_policy_decide(&policy, tensors, 3, step), STQ_OK);
                carry_out(tensors, 3);
            }
        assert_true(tensors[0].bits[0] > tensors[1].bits[0]);
        assert_true(isfinite(policy.log_n_average));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_and_due_steps),
        cmocka_unit_test(test_bad_configurations_are_named),
        cmocka_unit_test(test_the_largest_caps),
        cmocka_unit_test(test_cap_too_small_names_the_smallest),
        cmocka_unit_test(test_fixed_float32_and_given_widths),
        cmocka_unit_test(test_zones_get_their_offsets),
        cmocka_unit_test(test_annealing_with_and_without_a_horizon),
        cmocka_unit_test(test_invariants_under_random_factors),
        cmocka_unit_test(test_demotion_needs_two_requests),
        cmocka_unit_test(test_order_of_a_tensors_bits),
        cmocka_unit_test(test_mean_mode_keeps_the_mean),
        cmocka_unit_test(test_zero_and_missing_gradients),
    };
    return cmocka_run_group_tests_name("policy", tests, NULL, NULL);
}
