/* test_cap.c - the cap at every step, counted by the host's allocator and not by the library; a decision's scratch. */
#include "testing.h"

#include <math.h>

#include "optim/optimizer.h"

enum { TENSORS = 12, STEPS = 100 };

typedef struct counted {
    uint64_t bytes, peak;
} counted;

static void *allocate(void *context, size_t bytes) {
    counted *count = context;
    count->bytes += bytes;
    count->peak = count->bytes > count->peak ? count->bytes : count->peak;
    return aligned_alloc(64, bytes);
}

static void release(void *context, void *pointer, size_t bytes) {
    ((counted *)context)->bytes -= bytes;
    free(pointer);
}

static stq_adamw *open_counted(const stq_policy_config *policy, const stq_tensor *tensors, counted *count) {
    stq_allocator allocator = {.context = count, .allocate = allocate, .release = release, .granularity = 64};
    stq_adamw_config config = stq_adamw_defaults();
    config.policy = *policy;
    config.allocator = &allocator;
    config.threads = 2;
    stq_adamw *o;
    if (stq_adamw_create(&o, &config, tensors, TENSORS) != STQ_OK)
        fail_msg("%s", stq_last_error());
    return o;
}

static void one_step(stq_adamw *o, const stq_tensor *tensors, float **p, float **g, uint32_t t, stq_status expected) {
    for (uint32_t i = 0; i < TENSORS; i++) {
        float size = expf(3 * test_gaussian(i, t / 20));
        for (uint32_t k = 0; k < (uint32_t)tensors[i].count; k++)
            g[i][k] = size * test_gaussian(1000 + t * TENSORS + i, k);
    }
    stq_step step = {
        .size = sizeof step, .parameters = (void *const *)p, .gradients = (const void *const *)g, .unscale = 1};
    assert_int_equal(stq_adamw_step(o, &step, NULL), expected);
}

static void run_case(const stq_policy_config *policy) {
    stq_tensor tensors[TENSORS];
    float *p[TENSORS], *g[TENSORS];
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"};
    for (int i = 0; i < TENSORS; i++) {
        tensors[i] = stq_tensor_whole(names[i], 16 + 5 * i, 200 + 3 * i * i);
        p[i] = calloc((size_t)tensors[i].count, sizeof(float));
        g[i] = calloc((size_t)tensors[i].count, sizeof(float));
    }
    counted count = {0};
    stq_adamw *o = open_counted(policy, tensors, &count);
    stq_memory memory;
    for (uint32_t t = 0; t < STEPS; t++) {
        one_step(o, tensors, p, g, t, STQ_OK);
        assert_int_equal(stq_adamw_memory(o, &memory), STQ_OK);
        if (count.peak > memory.cap_bytes || memory.peak_bytes > memory.cap_bytes)
            fail_msg("step %u: %llu bytes at the allocator's peak, the cap is %llu", t, (unsigned long long)count.peak,
                     (unsigned long long)memory.cap_bytes);
    }
    /* Where nothing is shared, the cap is used. */
    assert_true(policy->shared_v == STQ_SHARED_AUTO || memory.state_bytes > memory.cap_bytes * 9 / 10);
    /* A store that finds itself above the cap makes no step. */
    float before = p[0][0];
    o->store.global_cap = o->store.global_bytes - 1;
    one_step(o, tensors, p, g, STEPS, STQ_CAP_TOO_SMALL);
    assert_true(p[0][0] == before && stq_adamw_step_count(o) == STEPS);
    stq_adamw_destroy(o);
    assert_int_equal(count.bytes, 0);
    for (int i = 0; i < TENSORS; i++) {
        free(p[i]);
        free(g[i]);
    }
}

static void test_the_allocator_never_sees_more_than_the_cap(void **state) {
    (void)state;
    for (int kind = STQ_POLICY_ZONES; kind <= STQ_POLICY_RATE_DISTORTION; kind++)
        for (int shared = 0; shared < 2; shared++) {
            stq_policy_config policy = stq_policy_defaults();
            policy.kind = (stq_policy_kind)kind;
            policy.shared_v = shared ? STQ_SHARED_AUTO : STQ_SHARED_OFF;
            policy.decide_every = 6;
            policy.state_bits = kind == STQ_POLICY_ZONES ? 5.6 : 6.3;
            run_case(&policy);
        }
}

/* ---- Scratch ---- */

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

#if defined(__GLIBC__) && !defined(SANITIZED)
#define COUNTS_SCRATCH 1
static uint64_t scratch;
static bool counting;
extern void *__libc_malloc(size_t bytes);

void *malloc(size_t bytes) {
    scratch += counting ? bytes : 0;
    return __libc_malloc(bytes);
}
#endif

static void test_scratch_grows_as_the_tensors(void **state) {
    (void)state;
#ifdef COUNTS_SCRATCH
    for (size_t count = 10; count <= 100000; count *= 10) {
        stq_policy_tensor *tensors = calloc(count, sizeof *tensors);
        for (size_t i = 0; i < count; i++)
            tensors[i] = (stq_policy_tensor){.rows = 64, .cols = 64 + (int64_t)(i % 100), .last_log_n = NAN};
        uint64_t parameters = 0, most = 0;
        for (size_t i = 0; i < count; i++)
            parameters += (uint64_t)(tensors[i].count = tensors[i].rows * tensors[i].cols);
        stq_policy policy = {.config = stq_policy_defaults(), .granularity = 64};
        assert_int_equal(stq_policy_init(&policy, tensors, count, parameters), STQ_OK);
        for (int decision = 0; decision < 4; decision++) {
            for (size_t i = 0; i < count; i++) {
                tensors[i].factors =
                    (stq_factors){.n = test_uniform(1 + (uint32_t)decision / 2, (uint32_t)i), .r = 0.5};
                memcpy(tensors[i].bits, tensors[i].target, 2);
            }
            scratch = 0;
            counting = true;
            assert_int_equal(stq_policy_decide(&policy, tensors, count, decision ? 100 * decision : 1), STQ_OK);
            counting = false;
            most = scratch > most ? scratch : most;
        }
        print_message("# %zu tensors: %.1f bytes of scratch each\n", count, (double)most / (double)count);
        assert_true(most > 0 && most <= 128 * (count + 1));
        free(tensors);
    }
#else
    skip();
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_allocator_never_sees_more_than_the_cap),
        cmocka_unit_test(test_scratch_grows_as_the_tensors),
    };
    return cmocka_run_group_tests_name("cap", tests, NULL, NULL);
}
