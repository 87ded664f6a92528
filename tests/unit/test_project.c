/* test_project.c - how near to the best the linear-time projection comes: an exact dynamic programme over bytes for
 * small cases, the Lagrangian bound for large ones. */
#include "testing.h"

#include "policy/rules.h"

#define SEED 1604u

enum { LOWEST = 2, HIGHEST = 6, WIDTHS = HIGHEST - LOWEST + 1, TENSORS = 6, STATES = 2 * TENSORS };

/* Counts are multiples of this, so that a bit plane is a whole number of units of 512 bytes and sums are small
 * integers. */
enum { GRAIN = 4096, UNIT = GRAIN / 8, LARGEST = 64, UNITS = STATES * LARGEST * HIGHEST };

typedef struct small_case {
    stq_policy policy;
    stq_policy_tensor tensors[TENSORS];
    size_t count; /* of tensors */
    double distortion[STATES][WIDTHS];
    int units[STATES]; /* of one bit of the state */
} small_case;

static void make_tensors(stq_policy_tensor *tensors, size_t count, uint32_t seed) {
    for (size_t i = 0; i < count; i++) {
        uint32_t at = (uint32_t)(4 * i);
        int64_t grains = (int64_t)exp(log(LARGEST) * test_uniform(seed, at));
        tensors[i] = (stq_policy_tensor){.count = GRAIN * grains, .last_log_n = NAN};
        tensors[i].factors.n = exp(6 * test_uniform(seed, at + 1) - 3);
        tensors[i].factors.r = exp(-5 * test_uniform(seed, at + 2));
    }
}

static void open_policy(stq_policy *policy, const stq_policy_tensor *tensors, size_t count, double share) {
    uint64_t parameters = 0;
    for (size_t i = 0; i < count; i++)
        parameters += (uint64_t)tensors[i].count;
    *policy = (stq_policy){.config = stq_policy_defaults(), .granularity = 64};
    policy->config.kind = STQ_POLICY_RATE_DISTORTION;
    policy->config.lowest_bits = LOWEST;
    policy->config.highest_bits = HIGHEST;
    assert_int_equal(stq_policy_init(policy, tensors, count, parameters), STQ_OK);
    uint64_t span = policy->widest_bytes - policy->smallest_bytes;
    policy->cap_bytes = policy->smallest_bytes + (uint64_t)(share * (double)span);
}

static double distortion_of(const stq_policy *policy, const stq_policy_tensor *tensor, int state, uint32_t bits) {
    return (double)tensor->count * exp2(stq_distortion_log_weight(policy, tensor)) *
           stq_distortion((stq_state)state, bits);
}

static double chosen_distortion(const stq_policy *policy, const stq_policy_tensor *tensors, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        for (int state = 0; state < 2; state++)
            sum += distortion_of(policy, &tensors[i], state, tensors[i].target[state]);
    return sum;
}

/* The least distortion of all widths within the cap. */
static double best_distortion(const small_case *c) {
    static double best[2][UNITS + 1];
    int states = (int)(2 * c->count), capacity = (int)(c->policy.cap_bytes / UNIT);
    for (int u = 0; u <= capacity; u++)
        best[0][u] = 0;
    for (int s = 0; s < states; s++) {
        const double *before = best[s % 2];
        double *after = best[(s + 1) % 2];
        for (int u = 0; u <= capacity; u++) {
            after[u] = INFINITY;
            for (int w = 0; w < WIDTHS && (LOWEST + w) * c->units[s] <= u; w++) {
                double sum = before[u - (LOWEST + w) * c->units[s]] + c->distortion[s][w];
                after[u] = sum < after[u] ? sum : after[u];
            }
        }
    }
    return best[states % 2][capacity];
}

static void make_case(small_case *c, uint32_t seed) {
    c->count = 1 + (size_t)(TENSORS * test_uniform(seed, 1000));
    make_tensors(c->tensors, c->count, seed);
    open_policy(&c->policy, c->tensors, c->count, test_uniform(seed, 1001));
    assert_int_equal(stq_policy_decide(&c->policy, c->tensors, c->count, 1), STQ_OK);
    for (size_t s = 0; s < 2 * c->count; s++) {
        c->units[s] = (int)(c->tensors[s / 2].count / GRAIN);
        for (uint32_t w = 0; w < WIDTHS; w++)
            c->distortion[s][w] = distortion_of(&c->policy, &c->tensors[s / 2], (int)(s % 2), LOWEST + w);
    }
}

static double largest_step(const small_case *c) {
    double largest = 0;
    for (size_t s = 0; s < 2 * c->count; s++)
        for (int w = 0; w + 1 < WIDTHS; w++)
            largest = fmax(largest, c->distortion[s][w] - c->distortion[s][w + 1]);
    return largest;
}

static void test_small_cases_against_the_optimum(void **state) {
    (void)state;
    enum { CASES = 1000 };
    double sum = 0, worst = 0;
    int exact = 0;
    for (uint32_t k = 0; k < CASES; k++) {
        small_case c;
        make_case(&c, SEED + k);
        double best = best_distortion(&c);
        double found = chosen_distortion(&c.policy, c.tensors, c.count);
        double gap = found - best;
        if (!(gap >= -1e-9 * best && gap <= largest_step(&c) * (1 + 1e-9)))
            fail_msg("seed %u: distortion %g, the best is %g, the largest step %g", SEED + k, found, best,
                     largest_step(&c));
        sum += gap / best;
        worst = fmax(worst, gap / best);
        exact += gap <= 1e-9 * best;
    }
    print_message("# seeds %u to %u: mean gap %.3f %%, largest %.1f %%, %d of %d exact\n", SEED, SEED + CASES - 1,
                  100 * sum / CASES, 100 * worst, exact, CASES);
    assert_true(sum / CASES <= 0.02);
}

/* max over lambda of the sum over states of min over widths of (D + lambda bytes), less lambda cap: no choice of widths
 * within the cap has less distortion. The maximum of this concave function is found by bisection on the bytes of the
 * minimisers. */
static double lagrangian_bound(const stq_policy *policy, const stq_policy_tensor *tensors, size_t count) {
    double low = 0, high = 1e3, bound = 0;
    for (int iteration = 0; iteration < 100; iteration++) {
        double lambda = (low + high) / 2, sum = 0, bytes = 0;
        for (size_t i = 0; i < count; i++)
            for (int state = 0; state < 2; state++) {
                double best = INFINITY, best_bytes = 0;
                for (uint32_t bits = LOWEST; bits <= HIGHEST; bits++) {
                    double size = (double)stq_policy_plane_bytes(tensors[i].count, bits, policy->granularity);
                    double cost = distortion_of(policy, &tensors[i], state, bits) + lambda * size;
                    if (cost < best) {
                        best = cost;
                        best_bytes = size;
                    }
                }
                sum += best;
                bytes += best_bytes;
            }
        bound = fmax(bound, sum - lambda * (double)policy->cap_bytes);
        if (bytes > (double)policy->cap_bytes)
            low = lambda;
        else
            high = lambda;
    }
    return bound;
}

static void test_large_cases_against_the_bound(void **state) {
    (void)state;
    enum { COUNT = 5000 }; /* long enough for the sums that choices have in common */
    static stq_policy_tensor tensors[COUNT];
    for (uint32_t k = 0; k < 10; k++) {
        stq_policy policy;
        make_tensors(tensors, COUNT, SEED + k);
        open_policy(&policy, tensors, COUNT, 0.05 + 0.1 * k);
        assert_int_equal(stq_policy_decide(&policy, tensors, COUNT, 1), STQ_OK);
        double bound = lagrangian_bound(&policy, tensors, COUNT);
        double found = chosen_distortion(&policy, tensors, COUNT);
        print_message("# seed %u: %.4f %% above the bound\n", SEED + k, 100 * (found / bound - 1));
        assert_true(found >= bound * (1 - 1e-9));
        assert_true(found <= bound * 1.01);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_cases_against_the_optimum),
        cmocka_unit_test(test_large_cases_against_the_bound),
    };
    return cmocka_run_group_tests_name("project", tests, NULL, NULL);
}
