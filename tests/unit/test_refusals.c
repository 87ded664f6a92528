/* test_refusals.c - what public functions refuse: the status, and a sentence that names the thing. Each case differs in
 * one argument from a call that is accepted, which is made as well. */
#include "testing.h"

#include <math.h>
#include <unistd.h>

static const stq_tensor weight = {.name = "weight", .rows = 64, .cols = 128, .count = 64 * 128};

/* Fails the test unless the latest call was refused that way. */
#define REFUSED(call, expected, part)                                              \
    do {                                                                           \
        assert_int_equal(call, expected);                                          \
        if (strstr(stq_last_error(), part) == NULL)                                \
            fail_msg("'%s' does not say '%s': %s", #call, part, stq_last_error()); \
    } while (0)

static void test_status_names(void **state) {
    (void)state;
    const char *names[] = {"ok",          "invalid argument",   "out of memory", "cap too small",
                           "unsupported", "input/output error", "corrupt data",  "communication error",
                           "device error"};
    for (int i = 0; i <= STQ_DEVICE_ERROR; i++) {
        assert_non_null(stq_status_name((stq_status)i));
        for (int k = 0; k < i; k++)
            assert_string_not_equal(stq_status_name((stq_status)i), stq_status_name((stq_status)k));
        assert_string_equal(stq_status_name((stq_status)i), names[i]);
    }
    assert_string_equal(stq_status_name((stq_status)99), "unknown status");
}

static stq_status create_with_group(stq_adamw_group group) {
    stq_adamw *optimizer;
    stq_adamw_config config = stq_adamw_defaults();
    config.groups = &group;
    config.group_count = 1;
    stq_status status = stq_adamw_create(&optimizer, &config, &weight, 1);
    stq_adamw_destroy(optimizer);
    return status;
}

static void test_groups(void **state) {
    (void)state;
    stq_adamw_group good = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.01};
    assert_int_equal(create_with_group(good), STQ_OK);
    stq_adamw_group wrong = good;
    wrong.learning_rate = -1;
    REFUSED(create_with_group(wrong), STQ_INVALID_ARGUMENT, "learning rate");
    wrong = good;
    wrong.epsilon = 0;
    REFUSED(create_with_group(wrong), STQ_INVALID_ARGUMENT, "epsilon");
    wrong = good;
    wrong.weight_decay = INFINITY;
    REFUSED(create_with_group(wrong), STQ_INVALID_ARGUMENT, "weight decay");
    wrong = good;
    wrong.beta1 = 1;
    REFUSED(create_with_group(wrong), STQ_INVALID_ARGUMENT, "beta1");
    wrong = good;
    wrong.beta2 = NAN;
    REFUSED(create_with_group(wrong), STQ_INVALID_ARGUMENT, "beta2");
}

static stq_status create(stq_adamw_config config, stq_tensor tensor) {
    stq_adamw *optimizer;
    stq_status status = stq_adamw_create(&optimizer, &config, &tensor, 1);
    assert_true((status == STQ_OK) == (optimizer != NULL));
    stq_adamw_destroy(optimizer);
    return status;
}

static void *no_memory(void *context, size_t bytes) {
    (void)context;
    (void)bytes;
    return NULL;
}

static void test_configurations(void **state) {
    (void)state;
    stq_adamw_config good = stq_adamw_defaults(), wrong = good;
    assert_int_equal(create(good, weight), STQ_OK);
    wrong.group_count = 1;
    REFUSED(create(wrong, weight), STQ_INVALID_ARGUMENT, "group_count");
    wrong = good;
    wrong.device = (stq_device)7;
    REFUSED(create(wrong, weight), STQ_UNSUPPORTED, "device 7");
    wrong = good;
    wrong.allocator = &(stq_allocator){.allocate = no_memory};
    REFUSED(create(wrong, weight), STQ_INVALID_ARGUMENT, "release");
    wrong = good;
    wrong.policy.shared_v = (stq_shared_mode)9;
    REFUSED(create(wrong, weight), STQ_INVALID_ARGUMENT, "9");
    stq_tensor tensor = weight;
    tensor.name = NULL;
    REFUSED(create(good, tensor), STQ_INVALID_ARGUMENT, "no name");
    tensor = weight;
    tensor.group = 3;
    REFUSED(create(good, tensor), STQ_INVALID_ARGUMENT, "group 3");
    tensor = weight;
    tensor.m_bits = 9;
    tensor.v_bits = 4;
    REFUSED(create(good, tensor), STQ_INVALID_ARGUMENT, "widths 9 and 4");
    tensor = weight;
    tensor.parameter_type = STQ_UINT8;
    REFUSED(create(good, tensor), STQ_INVALID_ARGUMENT, "weight");
}

/* Checkpoints find tensors by name: one that two have is refused by the optimizer, its plan and the sharded one. Many
 * names that differ in one character are accepted. */
static void test_names(void **state) {
    (void)state;
    enum { COUNT = 5000 };
    static stq_tensor tensors[COUNT];
    static char names[COUNT][16];
    static int64_t offsets[COUNT];
    for (int i = 0; i < COUNT; i++) {
        snprintf(names[i], sizeof names[i], "weight.%d", i);
        tensors[i] = stq_tensor_whole(names[i], 2, 8);
        offsets[i] = i * 16;
    }
    const stq_flat flat = {.offsets = offsets, .length = COUNT * 16};
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = STQ_POLICY_FLOAT32;
    stq_adamw *optimizer;
    stq_sharded *sharded;
    stq_memory memory;
    stq_comm *comm;
    assert_int_equal(stq_comm_create_self(&comm), STQ_OK);
    assert_int_equal(stq_adamw_create(&optimizer, &config, tensors, COUNT), STQ_OK);
    stq_adamw_destroy(optimizer);
    assert_int_equal(stq_sharded_create(&sharded, comm, &config, tensors, COUNT, &flat), STQ_OK);
    stq_sharded_destroy(sharded);
    tensors[4711].name = "weight.12"; /* other memory, equal text */
    const char *sentence = "Tensors 12 and 4711 are both called 'weight.12'";
    REFUSED(stq_adamw_create(&optimizer, &config, tensors, COUNT), STQ_INVALID_ARGUMENT, sentence);
    assert_null(optimizer);
    REFUSED(stq_adamw_plan(&config, tensors, COUNT, &memory), STQ_INVALID_ARGUMENT, sentence);
    REFUSED(stq_sharded_create(&sharded, comm, &config, tensors, COUNT, &flat), STQ_INVALID_ARGUMENT, sentence);
    assert_null(sharded);
    REFUSED(stq_adamw_create(&optimizer, &config, (const stq_tensor[]){weight, weight}, 2), STQ_INVALID_ARGUMENT,
            "Tensors 0 and 1");
    stq_comm_destroy(comm);
}

static void test_steps(void **state) {
    (void)state;
    enum { COUNT = 64 * 128 };
    static float parameter[COUNT], gradient[COUNT];
    stq_adamw *optimizer;
    stq_adamw_config config = stq_adamw_defaults();
    assert_int_equal(stq_adamw_create(&optimizer, &config, &weight, 1), STQ_OK);
    gradient[5] = 1;
    void *parameters[] = {parameter};
    const void *gradients[] = {gradient};
    const stq_step good = {.size = sizeof good, .parameters = parameters, .gradients = gradients, .unscale = 1};
    stq_step wrong = good;
    wrong.size = 3;
    REFUSED(stq_adamw_step(optimizer, &wrong, NULL), STQ_INVALID_ARGUMENT, "size");
    wrong = good;
    wrong.unscale = 0;
    REFUSED(stq_adamw_step(optimizer, &wrong, NULL), STQ_INVALID_ARGUMENT, "unscale");
    wrong = good;
    wrong.max_gradient_norm = -1;
    REFUSED(stq_adamw_step(optimizer, &wrong, NULL), STQ_INVALID_ARGUMENT, "max_gradient_norm");
    wrong = good;
    wrong.gradients = NULL;
    REFUSED(stq_adamw_step(optimizer, &wrong, NULL), STQ_INVALID_ARGUMENT, "gradients");
    wrong = good;
    wrong.parameters = (void *[]){NULL};
    REFUSED(stq_adamw_step(optimizer, &wrong, NULL), STQ_INVALID_ARGUMENT, "weight");
    assert_int_equal(stq_adamw_step_count(optimizer), 0);
    float values[4];
    stq_adamw_group group;
    assert_int_equal(stq_adamw_read_state(optimizer, 0, STQ_FIRST_MOMENT, NULL, 0, 0), STQ_OK);
    assert_int_equal(stq_adamw_set_stream(optimizer, NULL), STQ_OK);
    assert_int_equal(stq_adamw_step(optimizer, &good, NULL), STQ_OK);
    assert_int_equal(stq_adamw_step_count(optimizer), 1);
    assert_true(stq_adamw_decision_seconds(optimizer) >= 0);
    REFUSED(stq_adamw_read_state(optimizer, 1, STQ_FIRST_MOMENT, values, 0, 4), STQ_INVALID_ARGUMENT, "no tensor 1");
    REFUSED(stq_adamw_read_state(optimizer, 0, (stq_state)5, values, 0, 4), STQ_INVALID_ARGUMENT, "no state 5");
    REFUSED(stq_adamw_read_state(optimizer, 0, STQ_FIRST_MOMENT, values, COUNT - 3, 4), STQ_INVALID_ARGUMENT, "weight");
    assert_int_equal(stq_adamw_get_group(optimizer, 0, &group), STQ_OK);
    assert_true(group.beta1 == 0.9);
    REFUSED(stq_adamw_get_group(optimizer, 1, &group), STQ_INVALID_ARGUMENT, "no group 1");
    REFUSED(stq_adamw_set_group(optimizer, 1, &group), STQ_INVALID_ARGUMENT, "no group 1");
    stq_planes planes = {.bits = 5};
    REFUSED(stq_adamw_write_state(optimizer, 0, STQ_FIRST_MOMENT, &planes, 0, COUNT), STQ_INVALID_ARGUMENT, "5 bits");
    planes = test_planes(COUNT, 5);
    uint8_t *last = planes.bit[0];
    planes.bit[0] = NULL;
    for (int which = 0; which < 2; which++)
        REFUSED(stq_adamw_write_state(optimizer, 0, (stq_state)which, &planes, 0, COUNT), STQ_INVALID_ARGUMENT,
                "5 bits");
    planes.bit[0] = last;
    planes.bits = STQ_BITS_SHARED_ROW;
    REFUSED(stq_adamw_write_state(optimizer, 0, STQ_FIRST_MOMENT, &planes, 0, COUNT), STQ_INVALID_ARGUMENT, "64 bits");
    test_planes_free(&planes);
    stq_adamw_destroy(optimizer);
}

static void test_codec(void **state) {
    (void)state;
    float values[128] = {0};
    stq_planes planes = test_planes(128, 4), empty = {.bits = 4};
    stq_random random = {.seed = 1};
    assert_int_equal(stq_encode(&planes, STQ_SECOND_MOMENT, values, 128, &random), STQ_OK);
    assert_int_equal(stq_decode(values, &planes, STQ_SECOND_MOMENT, 128), STQ_OK);
    REFUSED(stq_decode(NULL, &planes, STQ_SECOND_MOMENT, 128), STQ_INVALID_ARGUMENT, "room");
    REFUSED(stq_decode(values, &empty, STQ_SECOND_MOMENT, 128), STQ_INVALID_ARGUMENT, "4 bits");
    REFUSED(stq_decode(values, &planes, (stq_state)7, 128), STQ_INVALID_ARGUMENT, "no state 7");
    REFUSED(stq_encode(&planes, (stq_state)7, values, 128, NULL), STQ_INVALID_ARGUMENT, "no state 7");
    assert_true(strlen(stq_cpu_kernels()) > 3);
    test_planes_free(&planes);
}

static void test_files(void **state) {
    (void)state;
    float values[4] = {1, 2, 3, 4};
    const int64_t shape[] = {4};
    char path[] = "/tmp/stquant-refusals-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    const stq_array good = stq_array_whole("x", STQ_FLOAT32, 1, shape, values);
    assert_int_equal(stq_safetensors_write(path, &good, 1, NULL, 0), STQ_OK);
    stq_array wrong = good;
    wrong.dimensions = 9;
    REFUSED(stq_safetensors_write(path, &wrong, 1, NULL, 0), STQ_INVALID_ARGUMENT, "dimensions");
    wrong = good;
    wrong.shape[0] = -4;
    REFUSED(stq_safetensors_write(path, &wrong, 1, NULL, 0), STQ_INVALID_ARGUMENT, "'x'");
    wrong = good;
    wrong.count = 3;
    REFUSED(stq_safetensors_write(path, &wrong, 1, NULL, 0), STQ_INVALID_ARGUMENT, "not whole");
    static const char *const metadata[][2] = {{"key", "\xff"}};
    REFUSED(stq_safetensors_write(path, &good, 1, metadata, 1), STQ_INVALID_ARGUMENT, "UTF-8");
    stq_saver *saver;
    const stq_saver_config saving = {.size = sizeof saving, .folder = "/tmp", .rank = 2, .ranks = 2, .run = 1};
    REFUSED(stq_saver_open(&saver, &saving), STQ_INVALID_ARGUMENT, "Rank 2 of 2");
    REFUSED(stq_saver_open(&saver, &(stq_saver_config){.size = sizeof saving}), STQ_INVALID_ARGUMENT, "folder");
    REFUSED(stq_saver_open(&saver, &(stq_saver_config){.size = 1}), STQ_INVALID_ARGUMENT, "size");
    REFUSED(stq_saver_open(&saver, &(stq_saver_config){.size = sizeof saving, .folder = "/tmp", .ranks = 2}),
            STQ_INVALID_ARGUMENT, "2 ranks");
    stq_checkpoint *checkpoint;
    stq_adamw_record record;
    stq_adamw_group group;
    stq_checkpoint_tensor tensor;
    assert_int_equal(stq_checkpoint_open(&checkpoint, path), STQ_OK); /* as the refused calls left it */
    REFUSED(stq_checkpoint_record(checkpoint, &record), STQ_INVALID_ARGUMENT, "no states");
    REFUSED(stq_checkpoint_group(checkpoint, 0, &group), STQ_INVALID_ARGUMENT, "no group 0");
    REFUSED(stq_checkpoint_tensor_info(checkpoint, 0, &tensor), STQ_INVALID_ARGUMENT, "no tensor 0");
    stq_checkpoint_close(checkpoint);
    assert_int_equal(remove(path), 0);
    close(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_status_names),   cmocka_unit_test(test_groups),
                                       cmocka_unit_test(test_configurations), cmocka_unit_test(test_names),
                                       cmocka_unit_test(test_steps),          cmocka_unit_test(test_codec),
                                       cmocka_unit_test(test_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
