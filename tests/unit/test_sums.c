/* test_sums.c - reproducible sums: the stated order, and no influence of threads or of how values are fed. */
#include "testing.h"

#include "quant/convert.h"
#include "score/sums.h"

/* A float with random exponent, so that every order of adding gives other bits. */
static float sample(uint32_t index) {
    uint32_t hash = stq_hash(index + 1);
    float value = ldexpf(1.0f + (float)(hash & 0x7fffff) / 8388608.0f, (int)(hash >> 23 & 31) - 16);
    return hash >> 31 ? -value : value;
}

/* The definition, word by word: starting at the next power of two. */
static double tree_by_definition(const double *values, int64_t count) {
    double a[STQ_TREE_WIDTH] = {0};
    for (int64_t i = 0; i < count; i++)
        a[i % STQ_TREE_WIDTH] += values[i];
    int64_t width = 1;
    while (width < count && width < STQ_TREE_WIDTH)
        width *= 2;
    for (width /= 2; width >= 1; width /= 2)
        for (int64_t j = 0; j < width; j++)
            a[j] += a[j + width];
    return a[0];
}

static void test_tree_sum_is_the_definition(void **state) {
    (void)state;
    static double values[3 * STQ_TREE_WIDTH + 7];
    for (uint32_t i = 0; i < 3 * STQ_TREE_WIDTH + 7; i++)
        values[i] = sample(i);
    const int64_t counts[] = {0, 1, 2, 3, 5, 31, 64, 1000, 2047, 2048, 2049, 4096, 3 * STQ_TREE_WIDTH + 7};
    for (size_t k = 0; k < sizeof counts / sizeof counts[0]; k++) {
        double expected = tree_by_definition(values, counts[k]);
        assert_true(stq_tree_sum(values, counts[k]) == expected);
        stq_tree pieces = {.count = 0};
        for (int64_t first = 0; first < counts[k]; first += 37)
            stq_tree_add(&pieces, values + first, counts[k] - first < 37 ? counts[k] - first : 37);
        assert_true(stq_tree_finish(&pieces) == expected);
    }
}

static void test_segments_of_every_dtype(void **state) {
    (void)state;
    enum { COUNT = 20001 };
    static float floats[COUNT];
    static uint16_t halves[COUNT];
    static double squares[COUNT], fourths[COUNT];
    for (int dtype = STQ_FLOAT32; dtype <= STQ_FLOAT16; dtype++) {
        for (uint32_t i = 0; i < COUNT; i++) {
            floats[i] = sample(i) / 16;
            halves[i] = dtype == STQ_FLOAT16 ? stq_to_float16(floats[i]) : stq_to_bfloat16(floats[i], 0);
        }
        const void *array = dtype == STQ_FLOAT32 ? (const void *)floats : (const void *)halves;
        uint32_t largest = 0;
        for (int64_t i = 0; i < COUNT; i++) {
            float g = stq_load_float(array, (uint32_t)dtype, i);
            squares[i] = (double)g * (double)g;
            fourths[i] = squares[i] * squares[i];
            uint32_t bits = stq_float_bits(fabsf(g));
            largest = bits > largest ? bits : largest;
        }
        stq_moment_sums sums;
        stq_segment_moments(&sums, array, (stq_dtype)dtype, COUNT);
        assert_true(sums.squares == tree_by_definition(squares, COUNT));
        assert_true(sums.fourths == tree_by_definition(fourths, COUNT));
        assert_int_equal(sums.largest_bits, largest);
        assert_true(stq_segment_sum_squares(array, (stq_dtype)dtype, COUNT) == sums.squares);
    }
}

static void test_tensor_sums_ignore_threads(void **state) {
    (void)state;
    enum { SEGMENTS = 301 };
    const int64_t count = (SEGMENTS - 1) * (int64_t)STQ_SEGMENT + 12345; /* more than one wave of segments */
    float *gradient = malloc((size_t)count * sizeof *gradient);
    assert_non_null(gradient);
    for (int64_t i = 0; i < count; i++)
        gradient[i] = sample((uint32_t)i);
    static double segments[SEGMENTS];
    for (int64_t i = 0; i < SEGMENTS; i++) {
        int64_t left = count - i * STQ_SEGMENT;
        int64_t length = left < STQ_SEGMENT ? left : STQ_SEGMENT;
        segments[i] = stq_segment_sum_squares(gradient + i * STQ_SEGMENT, STQ_FLOAT32, length);
    }
    double expected = tree_by_definition(segments, SEGMENTS);
    for (int threads = 1; threads <= 3; threads++) {
        stq_moment_sums sums;
        stq_tensor_moments(&sums, gradient, STQ_FLOAT32, count, threads);
        assert_true(sums.squares == expected);
    }
    free(gradient);
}

static void test_non_finite_values_show(void **state) {
    (void)state;
    float gradient[300] = {1.0f};
    const float bad[] = {INFINITY, -INFINITY, NAN};
    for (size_t k = 0; k < 3; k++) {
        gradient[217] = bad[k];
        stq_moment_sums sums;
        stq_tensor_moments(&sums, gradient, STQ_FLOAT32, 300, 1);
        assert_false(isfinite(sums.squares));
        assert_true(sums.largest_bits >= 0x7f800000u);
        assert_false(isfinite(stq_segment_sum_squares(gradient, STQ_FLOAT32, 300)));
    }
    /* The largest float everywhere is finite: its square fits in a double. */
    for (size_t i = 0; i < 300; i++)
        gradient[i] = 3.4028235e38f;
    assert_true(isfinite(stq_segment_sum_squares(gradient, STQ_FLOAT32, 300)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tree_sum_is_the_definition),
        cmocka_unit_test(test_segments_of_every_dtype),
        cmocka_unit_test(test_tensor_sums_ignore_threads),
        cmocka_unit_test(test_non_finite_values_show),
    };
    return cmocka_run_group_tests_name("sums", tests, NULL, NULL);
}
