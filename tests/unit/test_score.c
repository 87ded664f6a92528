/* test_score.c - every factor against a dense computation in double, and what must not change its bits. */
#include "testing.h"

#include "quant/convert.h"
#include "score/power.h"

#define SEED 20260401u

/* Noise plus `spikes` directions of rank 1, with rows of different size: something between full and low rank. */
static float *make_gradient(int64_t rows, int64_t cols, int spikes, uint32_t seed) {
    float *g = malloc((size_t)(rows * cols) * sizeof *g);
    assert_non_null(g);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            float value = test_gaussian(seed, (uint32_t)(i * cols + j));
            for (int k = 0; k < spikes; k++)
                value += 3 * test_gaussian(seed + 100 + (uint32_t)k, (uint32_t)i) *
                         test_gaussian(seed + 200 + (uint32_t)k, (uint32_t)j);
            g[i * cols + j] = 1e-3f * value * (1 + (float)(i % 5));
        }
    return g;
}

/* The same two iterations in float64, without any scaling. */
static double rank_in_double(const float *g, int64_t rows, int64_t cols) {
    double *x = malloc((size_t)cols * sizeof *x), *y = malloc((size_t)rows * sizeof *y);
    double frobenius = 0, before = 0, after = 0;
    assert_true(x && y);
    for (int64_t i = 0; i < rows * cols; i++)
        frobenius += (double)g[i] * g[i];
    for (int64_t j = 0; j < cols; j++)
        x[j] = stq_power_start(j);
    for (int iteration = 0; iteration < 2; iteration++) {
        before = after = 0;
        for (int64_t j = 0; j < cols; j++)
            before += x[j] * x[j];
        for (int64_t i = 0; i < rows; i++) {
            y[i] = 0;
            for (int64_t j = 0; j < cols; j++)
                y[i] += g[i * cols + j] * x[j];
        }
        for (int64_t j = 0; j < cols; j++) {
            x[j] = 0;
            for (int64_t i = 0; i < rows; i++)
                x[j] += g[i * cols + j] * y[i];
        }
        for (int64_t j = 0; j < cols; j++)
            after += x[j] * x[j];
    }
    free(x);
    free(y);
    return frobenius / sqrt(after / before);
}

/* The largest singular value squared: cyclic Jacobi rotations of G' G until it is diagonal. */
static double largest_eigenvalue(const float *g, int64_t rows, int64_t cols) {
    double *a = calloc((size_t)(cols * cols), sizeof *a);
    assert_non_null(a);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < cols; i++)
            for (int64_t j = 0; j < cols; j++)
                a[i * cols + j] += (double)g[r * cols + i] * g[r * cols + j];
    for (int sweep = 0; sweep < 30; sweep++)
        for (int64_t p = 0; p < cols; p++)
            for (int64_t q = p + 1; q < cols; q++) {
                if (a[p * cols + q] == 0)
                    continue;
                double theta = (a[q * cols + q] - a[p * cols + p]) / (2 * a[p * cols + q]);
                double t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1));
                double c = 1 / sqrt(t * t + 1), s = t * c;
                for (int64_t k = 0; k < cols; k++) {
                    double akp = a[k * cols + p], akq = a[k * cols + q];
                    a[k * cols + p] = c * akp - s * akq;
                    a[k * cols + q] = s * akp + c * akq;
                }
                for (int64_t k = 0; k < cols; k++) {
                    double apk = a[p * cols + k], aqk = a[q * cols + k];
                    a[p * cols + k] = c * apk - s * aqk;
                    a[q * cols + k] = s * apk + c * aqk;
                }
            }
    double largest = 0;
    for (int64_t i = 0; i < cols; i++)
        largest = a[i * cols + i] > largest ? a[i * cols + i] : largest;
    free(a);
    return largest;
}

static void assert_close(double actual, double expected, double relative) {
    if (!(fabs(actual - expected) <= relative * fabs(expected)))
        fail_msg("%.12g is not within %g of %.12g (seed %u)", actual, relative, expected, SEED);
}

static const struct {
    int64_t rows, cols;
    int spikes;
} shapes[] = {{2, 2, 0}, {7, 40, 1}, {40, 7, 1}, {64, 48, 0}, {64, 48, 2}, {5, 4099, 1}, {3001, 6, 0}, {130, 260, 1}};

enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static void test_factors_against_dense_sums(void **state) {
    (void)state;
    for (uint32_t k = 0; k < SHAPES; k++) {
        int64_t rows = shapes[k].rows, cols = shapes[k].cols, count = rows * cols;
        float *g = make_gradient(rows, cols, shapes[k].spikes, SEED + k);
        stq_tensor tensor = stq_tensor_whole("dense", rows, cols);
        tensor.depth = 0.25f;
        stq_factors factors;
        assert_int_equal(stq_score_factors(&tensor, g, 0.5f, 1, &factors), STQ_OK);
        long double squares = 0, fourths = 0, roots = 0, below = 0;
        float largest = 0;
        for (int64_t i = 0; i < count; i++)
            largest = fmaxf(largest, fabsf(g[i]));
        for (int64_t i = 0; i < rows; i++) {
            long double row = 0;
            for (int64_t j = 0; j < cols; j++) {
                long double square = (long double)g[i * cols + j] * g[i * cols + j];
                row += square;
                fourths += square * square;
                below += fabsf(g[i * cols + j]) * 1024 < largest;
            }
            squares += row;
            roots += sqrtl(row / cols);
        }
        double mean = (double)(squares / count);
        double row_mean = (double)(roots / rows);
        assert_close(factors.n, 0.5 * sqrt(mean), 1e-12);
        assert_close(factors.sharpness, largest / sqrt(mean), 1e-12);
        assert_close(factors.kurtosis, (double)(fourths / count) / (mean * mean), 1e-12);
        assert_close(factors.row_spread, sqrt(mean - row_mean * row_mean) / row_mean, 1e-3);
        assert_true(factors.near_zero == (double)(below / count));
        assert_true(factors.depth == 0.25 && factors.volatility == 0);
        free(g);
    }
}

/* Each product is rounded to half a unit of 2^-30 |G|_F |x|; for these shapes that leaves well under 1e-4. */
static void test_stable_rank_against_double_and_svd(void **state) {
    (void)state;
    for (uint32_t k = 0; k < SHAPES; k++) {
        int64_t rows = shapes[k].rows, cols = shapes[k].cols;
        int64_t smaller = rows < cols ? rows : cols;
        float *g = make_gradient(rows, cols, shapes[k].spikes, SEED + k);
        stq_tensor tensor = stq_tensor_whole("rank", rows, cols);
        stq_factors factors;
        assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &factors), STQ_OK);
        double in_double = rank_in_double(g, rows, cols);
        in_double = in_double < (double)smaller ? in_double : (double)smaller;
        assert_close(factors.r, in_double / (double)smaller, 1e-4);
        if (cols <= 64) {
            double frobenius = 0;
            for (int64_t i = 0; i < rows * cols; i++)
                frobenius += (double)g[i] * g[i];
            /* Two iterations underestimate the norm, so they overestimate the rank; by how much depends on the gap. */
            double exact = frobenius / largest_eigenvalue(g, rows, cols) / (double)smaller;
            assert_true(factors.r >= exact * (1 - 1e-4));
            assert_true(factors.r <= exact * 2);
        }
        free(g);
    }
}

static void test_known_ranks(void **state) {
    (void)state;
    enum { N = 96 };
    static float g[N * N];
    stq_tensor tensor = stq_tensor_whole("known", N, N);
    stq_factors factors;
    for (int i = 0; i < N; i++)
        g[i * N + i] = i % 2 ? 0.01f : -0.01f;
    assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &factors), STQ_OK);
    assert_close(factors.r, 1.0, 1e-5);
    assert_close(factors.near_zero, 1 - 1.0 / N, 1e-12);
    for (int i = 0; i < N * N; i++)
        g[i] = test_gaussian(1, (uint32_t)(i / N)) * test_gaussian(2, (uint32_t)(i % N));
    assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &factors), STQ_OK);
    assert_close(factors.r, 1.0 / N, 1e-4);
    for (int i = 0; i < N * N; i++)
        g[i] = 1;
    assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &factors), STQ_OK);
    assert_close(factors.r, 1.0 / N, 1e-4);
    assert_true(factors.row_spread < 1e-6 && factors.sharpness == 1 && factors.kurtosis == 1);
}

static void assert_same_bits(const stq_factors *a, const stq_factors *b) { assert_memory_equal(a, b, sizeof *a); }

static void test_threads_do_not_matter(void **state) {
    (void)state;
    for (uint32_t k = 0; k < SHAPES; k++) {
        float *g = make_gradient(shapes[k].rows, shapes[k].cols, shapes[k].spikes, SEED + k);
        stq_tensor tensor = stq_tensor_whole("threads", shapes[k].rows, shapes[k].cols);
        stq_factors one, many;
        assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &one), STQ_OK);
        for (int threads = 2; threads <= 7; threads += 5) {
            assert_int_equal(stq_score_factors(&tensor, g, 1, threads, &many), STQ_OK);
            assert_same_bits(&one, &many);
        }
        free(g);
    }
}

/* A power of two changes n alone, at any scale at which the elements stay normal. */
static void test_scale_does_not_matter(void **state) {
    (void)state;
    float *g = make_gradient(64, 48, 2, SEED);
    float *scaled = malloc(64 * 48 * sizeof *scaled);
    assert_non_null(scaled);
    stq_tensor tensor = stq_tensor_whole("scale", 64, 48);
    stq_factors plain, other;
    assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &plain), STQ_OK);
    const int exponents[] = {-95, -60, 40, 120};
    for (size_t k = 0; k < 4; k++) {
        for (int i = 0; i < 64 * 48; i++)
            scaled[i] = ldexpf(g[i], exponents[k]);
        assert_int_equal(stq_score_factors(&tensor, scaled, 1, 1, &other), STQ_OK);
        assert_true(other.n == ldexp(plain.n, exponents[k]));
        other.n = plain.n;
        assert_same_bits(&plain, &other);
    }
    for (int i = 0; i < 64 * 48; i++)
        scaled[i] = ldexpf(g[i], -130); /* most become subnormal: rounding shows, nothing breaks */
    assert_int_equal(stq_score_factors(&tensor, scaled, 1, 1, &other), STQ_OK);
    assert_close(other.r, plain.r, 0.05);
    assert_close(other.n, ldexp(plain.n, -130), 0.05);
    free(g);
    free(scaled);
}

static void test_half_precision_gradients(void **state) {
    (void)state;
    enum { ROWS = 37, COLS = 211 };
    float *g = make_gradient(ROWS, COLS, 1, SEED);
    static float widened[ROWS * COLS];
    static uint16_t halves[ROWS * COLS];
    for (int dtype = STQ_BFLOAT16; dtype <= STQ_FLOAT16; dtype++) {
        for (int i = 0; i < ROWS * COLS; i++) {
            halves[i] = dtype == STQ_BFLOAT16 ? stq_to_bfloat16(g[i], 0) : stq_to_float16(g[i]);
            widened[i] = stq_load_float(halves, (uint32_t)dtype, i);
        }
        stq_tensor tensor = stq_tensor_whole("half", ROWS, COLS);
        stq_factors from_float, from_half;
        assert_int_equal(stq_score_factors(&tensor, widened, 1, 1, &from_float), STQ_OK);
        tensor.gradient_type = (stq_dtype)dtype;
        assert_int_equal(stq_score_factors(&tensor, halves, 1, 2, &from_half), STQ_OK);
        assert_same_bits(&from_float, &from_half);
    }
    free(g);
}

/* Any split into element ranges, as ranks would hold them, gives the integers of the whole. */
static void test_ranges_add_up(void **state) {
    (void)state;
    enum { ROWS = 33, COLS = 2500, PARTS = 5 };
    float *g = make_gradient(ROWS, COLS, 1, SEED);
    static float x[COLS], y_scaled[ROWS];
    static int32_t y[ROWS], y_parts[ROWS], z[COLS], z_parts[COLS];
    const int64_t ends[PARTS + 1] = {0, 128, 128 * 17, 128 * 200, 128 * 403, ROWS * COLS};
    stq_matrix whole = {.elements = g, .cols = COLS, .count = ROWS * COLS, .prescale = 256};
    double frobenius = 0;
    for (int64_t i = 0; i < ROWS * COLS; i++)
        frobenius += (256.0 * g[i]) * (256.0 * g[i]);
    frobenius = sqrt(frobenius);
    stq_power_begin(x, COLS, frobenius);
    stq_power_rows(&whole, x, y);
    for (int i = 0; i < ROWS; i++)
        y_scaled[i] = (float)(y[i] * (STQ_POWER_RANGE / (frobenius * stq_power_norm(y, ROWS))));
    stq_power_columns(&whole, y_scaled, z);
    for (int part = 0; part < PARTS; part++) {
        stq_matrix range = whole;
        range.elements = g + ends[part];
        range.first = ends[part];
        range.count = ends[part + 1] - ends[part];
        stq_power_rows(&range, x, y_parts);
        stq_power_columns(&range, y_scaled, z_parts);
    }
    assert_memory_equal(y, y_parts, sizeof y);
    assert_memory_equal(z, z_parts, sizeof z);
    assert_true(stq_power_norm(y, ROWS) <= STQ_POWER_RANGE && stq_power_norm(z, COLS) <= STQ_POWER_RANGE);
    free(g);
}

static void test_degenerate_gradients(void **state) {
    (void)state;
    static float g[64 * 64];
    stq_tensor tensor = stq_tensor_whole("zeros", 64, 64);
    stq_factors factors, zeros = {.r = 1};
    assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &factors), STQ_OK);
    assert_same_bits(&factors, &zeros);
    g[5] = 1e-45f; /* the smallest subnormal, alone */
    assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &factors), STQ_OK);
    assert_close(factors.r, 1.0 / 64, 1e-4);
    assert_close(factors.sharpness, 64, 1e-9);
    for (int i = 0; i < 64 * 64; i++)
        g[i] = i % 3 ? 3.4028235e38f : -3.4028235e38f;
    assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &factors), STQ_OK);
    assert_close(factors.n, 3.4028235e38, 1e-6);
    assert_true(isfinite(factors.r) && factors.r > 0 && factors.r <= 1);
    stq_tensor row = stq_tensor_whole("bias", 1, 300), column = stq_tensor_whole("column", 300, 1);
    assert_int_equal(stq_score_factors(&row, g, 1, 3, &factors), STQ_OK);
    assert_true(factors.r == 1 && factors.row_spread == 0);
    assert_int_equal(stq_score_factors(&column, g, 1, 3, &factors), STQ_OK);
    assert_true(factors.r == 1);
}

static void test_bad_input_is_named(void **state) {
    (void)state;
    float g[64] = {1};
    stq_tensor tensor = stq_tensor_whole("wte", 8, 8);
    stq_factors factors = {.n = 42};
    g[63] = NAN;
    assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &factors), STQ_INVALID_ARGUMENT);
    assert_non_null(strstr(stq_last_error(), "wte"));
    g[63] = 1;
    assert_int_equal(stq_score_factors(&tensor, g, 0, 1, &factors), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_score_factors(&tensor, NULL, 1, 1, &factors), STQ_INVALID_ARGUMENT);
    tensor.count = 32;
    assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &factors), STQ_INVALID_ARGUMENT);
    tensor = stq_tensor_whole("packed", 8, 8);
    tensor.gradient_type = STQ_UINT8;
    assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &factors), STQ_INVALID_ARGUMENT);
    assert_non_null(strstr(stq_last_error(), "packed"));
    tensor = stq_tensor_whole("huge", (int64_t)1 << 38, 2);
    assert_int_equal(stq_score_factors(&tensor, g, 1, 1, &factors), STQ_INVALID_ARGUMENT);
    assert_true(factors.n == 42);
}

int main(void) {
    printf("# seed %u\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_factors_against_dense_sums),
        cmocka_unit_test(test_stable_rank_against_double_and_svd),
        cmocka_unit_test(test_known_ranks),
        cmocka_unit_test(test_threads_do_not_matter),
        cmocka_unit_test(test_scale_does_not_matter),
        cmocka_unit_test(test_half_precision_gradients),
        cmocka_unit_test(test_ranges_add_up),
        cmocka_unit_test(test_degenerate_gradients),
        cmocka_unit_test(test_bad_input_is_named),
    };
    return cmocka_run_group_tests_name("score", tests, NULL, NULL);
}
