/*
 * test_residency.c - states are in memory as the optimizer counts them: transitions between widths give back what they
 * free, whatever planes lie beside it, and small states take no more than they need.
 */
#include "testing.h"

#include "common/memory.h"
#include "resident_memory.h"

enum { TENSORS = 24, COUNT = 700000 };

typedef struct model {
    stq_tensor tensors[TENSORS];
    void *parameters[TENSORS];
    const void *gradients[TENSORS];
    stq_adamw *optimizer;
} model;

static void step(model *m) {
    const stq_step step = {.size = sizeof step,
                           .parameters = m->parameters,
                           .gradients = m->gradients,
                           .unscale = 1,
                           .norm_supplied = true,
                           .gradient_norm = 1};
    assert_int_equal(stq_adamw_step(m->optimizer, &step, NULL), STQ_OK);
}

static void open_model(model *m, float *arrays, uint32_t bits) {
    static char names[TENSORS][8];
    for (int i = 0; i < TENSORS; i++) {
        snprintf(names[i], sizeof names[i], "%d", i);
        m->tensors[i] = stq_tensor_whole(names[i], 1, COUNT);
        m->tensors[i].m_bits = m->tensors[i].v_bits = bits;
        m->parameters[i] = arrays + (size_t)i * COUNT;
        m->gradients[i] = arrays + (size_t)(TENSORS + i) * COUNT;
    }
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = STQ_POLICY_FIXED;
    config.threads = 2;
    assert_int_equal(stq_adamw_create(&m->optimizer, &config, m->tensors, TENSORS), STQ_OK);
    step(m);
}

/* Changes the widths of tensors first, first + every, ... in one step. */
static void change(model *m, int first, int every, uint32_t bits) {
    stq_adamw_record record;
    stq_tensor_record records[TENSORS];
    stq_buffer *buffers = NULL;
    size_t count = 0;
    assert_int_equal(stq_adamw_save_records(m->optimizer, &record, records, TENSORS), STQ_OK);
    for (int i = first; i < TENSORS; i += every)
        records[i].target[STQ_FIRST_MOMENT] = records[i].target[STQ_SECOND_MOMENT] = (uint8_t)bits;
    assert_int_equal(stq_adamw_restore(m->optimizer, &record, records, TENSORS), STQ_OK);
    assert_int_equal(stq_adamw_buffers(m->optimizer, NULL, 0, &count), STQ_OK);
    buffers = calloc(count, sizeof *buffers);
    assert_int_equal(stq_adamw_buffers(m->optimizer, buffers, count, &count), STQ_OK);
    for (size_t i = 0; i < count; i++)
        memset(buffers[i].data, 0, (size_t)buffers[i].bytes);
    free(buffers);
    step(m);
}

static uint64_t state_bytes(const model *m) {
    stq_memory memory;
    assert_int_equal(stq_adamw_memory(m->optimizer, &memory), STQ_OK);
    return memory.state_bytes;
}

/* Beyond what was resident before there were states, against what they are charged: a seventh more, as huge pages may
 * be less than full, and a huge page for what else a step takes. */
static void check_resident(const model *m, uint64_t before) {
    uint64_t charged = state_bytes(m), now = test_resident_since(before);
    assert_in_range(now, charged / 10 * 9, charged + charged / 7 + STQ_HUGE_PAGE);
}

static void check_widths(const model *m, int first, int every, uint32_t bits) {
    for (int i = first; i < TENSORS; i += every) {
        stq_tensor_info info;
        assert_int_equal(stq_adamw_tensor(m->optimizer, (size_t)i, &info), STQ_OK);
        assert_int_equal(info.m_bits, bits);
        assert_int_equal(info.v_bits, bits);
    }
}

static void test_transitions(void **state) {
    (void)state;
    model m;
    uint64_t before = test_resident(); /* or skips */
    float *arrays = malloc((size_t)2 * TENSORS * COUNT * sizeof *arrays);
    for (size_t i = 0; i < (size_t)2 * TENSORS * COUNT; i++)
        arrays[i] = 1e-3f;
    open_model(&m, arrays, 4); /* threads and their stacks */
    stq_adamw_destroy(m.optimizer);
    before = test_resident();
    open_model(&m, arrays, 8);
    check_resident(&m, before);
    static const struct {
        int first, every;
        uint32_t bits;
    } changes[] = {{0, 1, 2}, {0, 1, 3}, {0, 1, 4}, {0, 2, 8}, {0, 1, 8}, {1, 3, 5}, {0, 3, 3}, {0, 1, 5}, {0, 1, 2}};
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        change(&m, changes[i].first, changes[i].every, changes[i].bits);
        check_widths(&m, changes[i].first, changes[i].every, changes[i].bits);
        check_resident(&m, before);
    }
    stq_adamw_destroy(m.optimizer);
    assert_in_range(test_resident_since(before), 0, STQ_HUGE_PAGE);
    free(arrays);
}

/* States of less than a huge page take what they are charged, not a huge page. */
static void test_tiny(void **state) {
    (void)state;
    model m;
    static float parameters[100000], gradients[100000];
    uint64_t before = 0;
    for (int i = 0; i < 2; i++) {
        stq_adamw_config config = stq_adamw_defaults();
        config.policy.kind = STQ_POLICY_FIXED;
        m.tensors[0] = stq_tensor_whole("tiny", 1, 100000);
        m.tensors[0].m_bits = m.tensors[0].v_bits = 6;
        m.parameters[0] = parameters;
        m.gradients[0] = gradients;
        before = test_resident();
        assert_int_equal(stq_adamw_create(&m.optimizer, &config, m.tensors, 1), STQ_OK);
        step(&m);
        if (i == 1)
            assert_in_range(test_resident_since(before), 0, state_bytes(&m) + (128 << 10));
        stq_adamw_destroy(m.optimizer);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_transitions), cmocka_unit_test(test_tiny)};
    return cmocka_run_group_tests_name("resident states", tests, NULL, NULL);
}
