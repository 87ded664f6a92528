/* test_qat_kernels.c - the loops of every instruction set that this machine has give the plain loops' bytes, and sums
 * have the order that qat/arithmetic.h states. */
#include "testing.h"

#include <math.h>

#include "common/cpu.h"
#include "qat/kernels.h"

enum { COUNT = STQ_QAT_TILE };

static float weights[COUNT], gradient[COUNT];

static void draw(uint32_t seed) {
    for (uint32_t i = 0; i < COUNT; i++) {
        weights[i] = 0.05f * test_gaussian(seed, i);
        gradient[i] = test_gaussian(seed + 100, i);
        if (i % 37 == 5)
            weights[i] = 0.005f * (float)(i % 64) - 0.1f; /* ties and grid points of the step */
        if (i % 101 == 7)
            weights[i] = i & 1 ? 1e30f : -1e-40f;
    }
    weights[300] = NAN;
    weights[301] = INFINITY;
    weights[302] = -0.0f;
}

static stq_qat_rule rule_for(uint32_t factor, uint32_t bits) {
    return (stq_qat_rule){.lowest = -(float)(1 << (bits - 1)),
                          .highest = (float)((1 << (bits - 1)) - 1),
                          .factor = factor,
                          .polynomial = {0.36f, 0.41f, 0.07f, -0.03f, 0.01f, -0.002f, 0.0003f, 1e-5f},
                          .centre = bits & 1 ? 0.5f : 0.0f,
                          .harmonics = 3,
                          .amplitudes = {0.9f, -0.1f, 0.05f},
                          .slope = -6.4f,
                          .height = 5.5f};
}

static void check_table(const stq_qat_kernels *kernels) {
    float expected[COUNT], found[COUNT];
    uint8_t expected_codes[COUNT], codes[COUNT];
    const int64_t counts[] = {1, 3, 15, 16, 17, 100, 127, 128, 129, 768, 1000, COUNT};
    const stq_qat_kernels *plain = &stq_qat_plain_kernels;
    for (uint32_t factor = STQ_QAT_ONE; factor <= STQ_QAT_EXPONENTIAL; factor++)
        for (uint32_t bits = 1; bits <= 8; bits++)
            for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
                const stq_qat_rule rule = rule_for(factor, bits);
                draw(bits * 10 + (uint32_t)i);
                plain->quantize(expected, weights, 0.01f, &rule, counts[i]);
                kernels->quantize(found, weights, 0.01f, &rule, counts[i]);
                assert_memory_equal(found, expected, (size_t)counts[i] * sizeof *found);
                plain->code(expected_codes, weights, 0.01f, &rule, counts[i]);
                kernels->code(codes, weights, 0.01f, &rule, counts[i]);
                assert_memory_equal(codes, expected_codes, (size_t)counts[i]);
                float sum = plain->gradient(expected, weights, gradient, 0.01f, &rule, counts[i]);
                float other = kernels->gradient(found, weights, gradient, 0.01f, &rule, counts[i]);
                assert_memory_equal(found, expected, (size_t)counts[i] * sizeof *found);
                assert_memory_equal(&sum, &other, sizeof sum);
            }
}

static void every_instruction_set_gives_the_same_bytes(void **state) {
    (void)state;
    check_table(stq_qat_select_kernels());
#if defined(__x86_64__)
    if (stq_cpu_has_avx2())
        check_table(&stq_qat_avx2_kernels);
    if (stq_cpu_has_avx512())
        check_table(&stq_qat_avx512_kernels);
#endif
}

/* All weights are beyond the range, so that the terms are known without the passes' own arithmetic. */
static void sums_have_the_stated_order(void **state) {
    (void)state;
    const stq_qat_rule rule = rule_for(STQ_QAT_ONE, 3); /* -4 to 3 */
    float accumulators[STQ_QAT_ACCUMULATORS] = {0}, lanes[STQ_QAT_LANES], out[COUNT];
    const int64_t count = 1000;
    for (int64_t i = 0; i < count; i++) {
        weights[i] = i & 1 ? 9.0f : -9.0f;
        gradient[i] = test_gaussian(7, (uint32_t)i);
        accumulators[i % STQ_QAT_ACCUMULATORS] += gradient[i] * (i & 1 ? 3.0f : -4.0f);
    }
    for (int j = 0; j < STQ_QAT_LANES; j++)
        lanes[j] =
            (accumulators[4 * j] + accumulators[4 * j + 1]) + (accumulators[4 * j + 2] + accumulators[4 * j + 3]);
    for (int width = 16; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            lanes[j] += lanes[j + width];
    float sum = stq_qat_select_kernels()->gradient(out, weights, gradient, 1.0f, &rule, count);
    assert_memory_equal(&sum, &lanes[0], sizeof sum);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_instruction_set_gives_the_same_bytes),
        cmocka_unit_test(sums_have_the_stated_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
