/* Records, buffers and single states: saved, restored, fitted to other caps, and what is refused. */
#include "testing.h"

#include <math.h>

enum { TENSORS = 4, STEPS = 37, MORE = 30 };

/* A model: a matrix of many segments, one with a tail, an exempt vector, and a matrix of given widths. */
static void describe(stq_tensor tensors[TENSORS]) {
    tensors[0] = stq_tensor_whole("embedding", 700, 101);
    tensors[1] = stq_tensor_whole("layer.weight", 97, 53);
    tensors[2] = stq_tensor_whole("layer.bias", 1, 53);
    tensors[3] = stq_tensor_whole("head", 64, 128);
    tensors[3].m_bits = 3;
    tensors[3].v_bits = 7;
}

typedef struct model {
    stq_tensor tensors[TENSORS];
    float *parameters[TENSORS];
    float *gradients[TENSORS];
    stq_adamw *optimizer;
} model;

static stq_adamw_config configuration(stq_policy_kind kind, double bits) {
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = kind;
    config.policy.state_bits = bits;
    config.policy.decide_every = 7;
    config.policy.planned_steps = STEPS + MORE;
    config.policy.fixed_m_bits = 5;
    config.policy.fixed_v_bits = 3;
    config.seed = 77;
    return config;
}

static void open_model(model *m, const stq_adamw_config *config) {
    describe(m->tensors);
    for (int i = 0; i < TENSORS; i++) {
        m->parameters[i] = malloc((size_t)m->tensors[i].count * sizeof(float));
        m->gradients[i] = malloc((size_t)m->tensors[i].count * sizeof(float));
        for (int64_t k = 0; k < m->tensors[i].count; k++)
            m->parameters[i][k] = test_gaussian(1 + (uint32_t)i, (uint32_t)k);
    }
    assert_int_equal(stq_adamw_create(&m->optimizer, config, m->tensors, TENSORS), STQ_OK);
}

static void close_model(model *m) {
    stq_adamw_destroy(m->optimizer);
    for (int i = 0; i < TENSORS; i++) {
        free(m->parameters[i]);
        free(m->gradients[i]);
    }
}

static void run_steps(model *m, int from, int to) {
    for (int t = from; t < to; t++) {
        for (int i = 0; i < TENSORS; i++)
            for (int64_t k = 0; k < m->tensors[i].count; k++)
                m->gradients[i][k] = ldexpf(test_gaussian((uint32_t)(100 + t * TENSORS + i), (uint32_t)k), -t % 5 - i);
        if (t % 11 == 10)
            m->gradients[1][3] = INFINITY;
        stq_step step = {.size = sizeof step,
                         .parameters = (void *const *)m->parameters,
                         .gradients = (const void *const *)m->gradients,
                         .unscale = 1.0,
                         .max_gradient_norm = 1.0};
        assert_int_equal(stq_adamw_step(m->optimizer, &step, NULL), STQ_OK);
    }
}

static uint64_t digest(const model *m) {
    uint64_t value;
    assert_int_equal(stq_adamw_digest(m->optimizer, &value), STQ_OK);
    return value;
}

static void copy_buffers(model *to, const model *from) {
    stq_buffer a[64], b[64];
    size_t count, same;
    assert_int_equal(stq_adamw_buffers(from->optimizer, a, 64, &count), STQ_OK);
    assert_int_equal(stq_adamw_buffers(to->optimizer, b, 64, &same), STQ_OK);
    assert_in_range(count, 1, 64);
    assert_int_equal(count, same);
    for (size_t i = 0; i < count; i++) {
        assert_string_equal(a[i].tensor, b[i].tensor);
        assert_string_equal(stq_part_name(a[i].state, a[i].part), stq_part_name(b[i].state, b[i].part));
        assert_int_equal(a[i].bytes, b[i].bytes);
        memcpy(b[i].data, a[i].data, a[i].bytes);
    }
}

static const stq_policy_kind kinds[] = {STQ_POLICY_FLOAT32, STQ_POLICY_FIXED, STQ_POLICY_ZONES,
                                        STQ_POLICY_RATE_DISTORTION};

/* resume(save(run(n))) then run(k) == run(n + k), in every mode, onto a fresh optimizer and onto a used one. */
static void test_resume_is_exact(void **state) {
    (void)state;
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
        for (int used = 0; used < 2; used++) {
            stq_adamw_config config = configuration(kinds[kind], 5.0);
            model whole, resumed;
            open_model(&whole, &config);
            run_steps(&whole, 0, STEPS);
            stq_adamw_config other = config;
            other.seed = 1;
            open_model(&resumed, &other);
            if (used)
                run_steps(&resumed, 3, 9);
            stq_adamw_record record;
            stq_tensor_record tensors[TENSORS];
            bool changed;
            assert_int_equal(stq_adamw_save_records(whole.optimizer, &record, tensors, TENSORS), STQ_OK);
            assert_int_equal(stq_adamw_fit(resumed.optimizer, &record, tensors, TENSORS, &changed), STQ_OK);
            assert_false(changed);
            assert_int_equal(stq_adamw_restore(resumed.optimizer, &record, tensors, TENSORS), STQ_OK);
            copy_buffers(&resumed, &whole);
            for (int i = 0; i < TENSORS; i++)
                memcpy(resumed.parameters[i], whole.parameters[i], (size_t)whole.tensors[i].count * sizeof(float));
            assert_int_equal(digest(&resumed), digest(&whole));
            run_steps(&whole, STEPS, STEPS + MORE);
            run_steps(&resumed, STEPS, STEPS + MORE);
            assert_int_equal(digest(&resumed), digest(&whole));
            stq_memory a, b;
            stq_adamw_memory(whole.optimizer, &a);
            stq_adamw_memory(resumed.optimizer, &b);
            assert_int_equal(a.state_bytes, b.state_bytes);
            assert_int_equal(stq_adamw_skipped_count(whole.optimizer), stq_adamw_skipped_count(resumed.optimizer));
            assert_true(a.all_in_bits == b.all_in_bits);
            for (int i = 0; i < TENSORS; i++)
                assert_memory_equal(resumed.parameters[i], whole.parameters[i],
                                    (size_t)whole.tensors[i].count * sizeof(float));
            close_model(&whole);
            close_model(&resumed);
        }
}

/* An optimizer that never stepped has no buffers, and its record restores it. */
static void test_fresh_state(void **state) {
    (void)state;
    stq_adamw_config config = configuration(STQ_POLICY_ZONES, 5.0);
    model fresh, used;
    open_model(&fresh, &config);
    open_model(&used, &config);
    run_steps(&used, 0, 5);
    stq_adamw_record record;
    stq_tensor_record tensors[TENSORS];
    size_t count;
    assert_int_equal(stq_adamw_buffers(fresh.optimizer, NULL, 0, &count), STQ_OK);
    assert_int_equal(count, 0);
    assert_int_equal(stq_adamw_save_records(fresh.optimizer, &record, tensors, TENSORS), STQ_OK);
    assert_int_equal(stq_adamw_restore(used.optimizer, &record, tensors, TENSORS), STQ_OK);
    assert_int_equal(digest(&used), digest(&fresh));
    stq_memory a, b;
    stq_adamw_memory(fresh.optimizer, &a);
    stq_adamw_memory(used.optimizer, &b);
    assert_int_equal(a.state_bytes, b.state_bytes);
    for (int i = 0; i < TENSORS; i++)
        memcpy(used.parameters[i], fresh.parameters[i], (size_t)fresh.tensors[i].count * sizeof(float));
    run_steps(&fresh, 0, 5);
    run_steps(&used, 0, 5);
    assert_int_equal(digest(&used), digest(&fresh));
    close_model(&fresh);
    close_model(&used);
}

static float *read_whole(const model *m, size_t i, stq_state which) {
    float *values = malloc((size_t)m->tensors[i].count * sizeof(float));
    assert_int_equal(stq_adamw_read_state(m->optimizer, i, which, values, 0, m->tensors[i].count), STQ_OK);
    return values;
}

/* Ranges of a state decode to the same values as the whole. */
static void test_read_ranges(void **state) {
    (void)state;
    stq_adamw_config config = configuration(STQ_POLICY_ZONES, 5.0);
    model m;
    open_model(&m, &config);
    run_steps(&m, 0, 3);
    for (uint32_t trial = 0; trial < 200; trial++) {
        size_t i = trial % TENSORS;
        stq_state which = (stq_state)(trial / TENSORS % 2);
        float *whole = read_whole(&m, i, which);
        int64_t count = m.tensors[i].count;
        int64_t first = (int64_t)(test_uniform(5, trial) * (double)count);
        int64_t length = (int64_t)(test_uniform(6, trial) * (double)(count - first + 1));
        float *part = malloc((size_t)(length + 1) * sizeof(float));
        assert_int_equal(stq_adamw_read_state(m.optimizer, i, which, part, first, length), STQ_OK);
        assert_memory_equal(part, whole + first, (size_t)length * sizeof(float));
        assert_int_equal(stq_adamw_read_state(m.optimizer, i, which, part, first, count - first + 1),
                         STQ_INVALID_ARGUMENT);
        free(part);
        free(whole);
    }
    close_model(&m);
}

/* float32 states of a plain AdamW, taken over under a cap: the widths fit, and the values are near. */
static void test_import_float32(void **state) {
    (void)state;
    stq_adamw_config plain = configuration(STQ_POLICY_FLOAT32, 5.0);
    stq_adamw_config capped = configuration(STQ_POLICY_ZONES, 5.0);
    model from, to;
    open_model(&from, &plain);
    open_model(&to, &capped);
    run_steps(&from, 0, STEPS);
    stq_adamw_record record;
    stq_tensor_record tensors[TENSORS];
    bool changed;
    assert_int_equal(stq_adamw_save_records(from.optimizer, &record, tensors, TENSORS), STQ_OK);
    assert_int_equal(stq_adamw_restore(to.optimizer, &record, tensors, TENSORS), STQ_CORRUPT);
    assert_int_equal(stq_adamw_fit(to.optimizer, &record, tensors, TENSORS, &changed), STQ_OK);
    assert_true(changed);
    assert_int_equal(tensors[2].bits[0], 32);
    assert_int_equal(tensors[3].bits[0], 3);
    assert_int_equal(tensors[3].bits[1], 7);
    record.peak_bytes = 0;
    assert_int_equal(stq_adamw_restore(to.optimizer, &record, tensors, TENSORS), STQ_OK);
    for (size_t i = 0; i < TENSORS; i++)
        for (int which = 0; which < 2; which++) {
            float *values = read_whole(&from, i, (stq_state)which);
            stq_planes source = {.base = (uint8_t *)values, .bits = 32};
            assert_int_equal(
                stq_adamw_write_state(to.optimizer, i, (stq_state)which, &source, 0, from.tensors[i].count), STQ_OK);
            float *coded = read_whole(&to, i, (stq_state)which);
            double error = 0, norm = 0;
            for (int64_t k = 0; k < from.tensors[i].count; k++) {
                error += ((double)coded[k] - values[k]) * ((double)coded[k] - values[k]);
                norm += (double)values[k] * values[k];
            }
            /* 3 bits of m: 14 dB for Gaussian moments (docs/codec.md's compander), here loosely 7 dB; at 32 bits
             * nothing is lost. */
            assert_true(error <= (tensors[i].bits[which] == 32 ? 0.0 : 0.2 * norm));
            free(values);
            free(coded);
        }
    stq_memory memory;
    stq_adamw_memory(to.optimizer, &memory);
    assert_true(memory.peak_bytes <= memory.cap_bytes);
    run_steps(&to, STEPS, STEPS + MORE);
    stq_adamw_memory(to.optimizer, &memory);
    assert_true(memory.peak_bytes <= memory.cap_bytes);
    close_model(&from);
    close_model(&to);
}

/* float32 and coded moments, taken over where the second one is shared by the caller's wish: the means of rows or
 * columns arrive, from codes as from float32 values, and the run goes on. */
static void test_import_shared(void **state) {
    (void)state;
    const uint32_t shared[] = {STQ_BITS_SHARED_ROW, STQ_BITS_SHARED_COL};
    for (int which = 0; which < 2; which++) {
        stq_adamw_config plain = configuration(which ? STQ_POLICY_FLOAT32 : STQ_POLICY_ZONES, 6.0);
        model from, to;
        open_model(&from, &plain);
        run_steps(&from, 0, STEPS);
        describe(to.tensors);
        to.tensors[1].m_bits = 4;
        to.tensors[1].v_bits = shared[which];
        stq_adamw_config config = configuration(STQ_POLICY_ZONES, 6.0);
        assert_int_equal(stq_adamw_create(&to.optimizer, &config, to.tensors, TENSORS), STQ_OK);
        stq_adamw_record record;
        stq_tensor_record tensors[TENSORS];
        assert_int_equal(stq_adamw_save_records(from.optimizer, &record, tensors, TENSORS), STQ_OK);
        assert_int_equal(stq_adamw_fit(to.optimizer, &record, tensors, TENSORS, NULL), STQ_OK);
        assert_int_equal(tensors[1].bits[STQ_SECOND_MOMENT], shared[which]);
        record.peak_bytes = 0;
        assert_int_equal(stq_adamw_restore(to.optimizer, &record, tensors, TENSORS), STQ_OK);
        for (size_t i = 0; i < TENSORS; i++)
            for (int k = 0; k < 2; k++) {
                float *values = read_whole(&from, i, (stq_state)k);
                stq_planes source = {.base = (uint8_t *)values, .bits = 32};
                assert_int_equal(
                    stq_adamw_write_state(to.optimizer, i, (stq_state)k, &source, 0, from.tensors[i].count), STQ_OK);
                if (i == 1 && k == 1) {
                    float *means = read_whole(&to, i, STQ_SECOND_MOMENT);
                    int64_t rows = from.tensors[i].rows, cols = from.tensors[i].cols;
                    for (int64_t line = 0; line < (which ? cols : rows); line++) {
                        double sum = 0;
                        for (int64_t e = 0; e < (which ? rows : cols); e++)
                            sum += (double)values[which ? e * cols + line : line * cols + e];
                        double mean = sum / (double)(which ? rows : cols);
                        /* The sums have 30 bits or more below the largest value; means are rounded to floats. */
                        assert_true(fabs((double)means[which ? line : line * cols] - mean) <= 1e-6 * mean);
                    }
                    free(means);
                }
                free(values);
            }
        memcpy(to.parameters, from.parameters, sizeof to.parameters);
        memcpy(to.gradients, from.gradients, sizeof to.gradients);
        run_steps(&to, STEPS, STEPS + MORE);
        stq_adamw_destroy(to.optimizer);
        close_model(&from);
    }
}

/* A lower cap on load: without fit it is refused and nothing changes; with it the widths sink and the run goes on. */
static void test_lower_cap(void **state) {
    (void)state;
    stq_adamw_config high = configuration(STQ_POLICY_ZONES, 6.5);
    stq_adamw_config low = configuration(STQ_POLICY_ZONES, 5.0);
    model from, to;
    open_model(&from, &high);
    open_model(&to, &low);
    run_steps(&from, 0, STEPS);
    run_steps(&to, 0, 4);
    uint64_t before = digest(&to);
    stq_adamw_record record;
    stq_tensor_record tensors[TENSORS];
    assert_int_equal(stq_adamw_save_records(from.optimizer, &record, tensors, TENSORS), STQ_OK);
    assert_int_equal(stq_adamw_restore(to.optimizer, &record, tensors, TENSORS), STQ_CAP_TOO_SMALL);
    assert_int_equal(digest(&to), before);
    bool changed;
    assert_int_equal(stq_adamw_fit(to.optimizer, &record, tensors, TENSORS, &changed), STQ_OK);
    assert_true(changed);
    record.peak_bytes = 0;
    assert_int_equal(stq_adamw_restore(to.optimizer, &record, tensors, TENSORS), STQ_OK);
    for (size_t i = 0; i < TENSORS; i++)
        for (int which = 0; which < 2; which++) {
            float *values = read_whole(&from, i, (stq_state)which);
            stq_planes source = {.base = (uint8_t *)values, .bits = 32};
            /* In two parts, cut at a block. */
            int64_t half = from.tensors[i].count / 2 / STQ_BLOCK * STQ_BLOCK;
            assert_int_equal(stq_adamw_write_state(to.optimizer, i, (stq_state)which, &source, 0, half), STQ_OK);
            source.base = (uint8_t *)(values + half);
            assert_int_equal(
                stq_adamw_write_state(to.optimizer, i, (stq_state)which, &source, half, from.tensors[i].count - half),
                STQ_OK);
            free(values);
        }
    run_steps(&to, STEPS, STEPS + MORE);
    stq_memory memory;
    stq_adamw_memory(to.optimizer, &memory);
    assert_true(memory.peak_bytes <= memory.cap_bytes);
    close_model(&from);
    close_model(&to);
}

/* Parts of a state written to slices that begin elsewhere: every value arrives, whatever the cuts (at whole blocks). */
static void test_slices(void **state) {
    (void)state;
    const int64_t rows = 40, cols = 96, count = rows * cols;
    stq_adamw_config config = configuration(STQ_POLICY_FIXED, 5.0);
    float *values = malloc((size_t)count * sizeof(float));
    for (int64_t k = 0; k < count; k++)
        values[k] = test_gaussian(3, (uint32_t)k);
    stq_planes coded = test_planes(count, 5);
    assert_int_equal(stq_encode(&coded, STQ_FIRST_MOMENT, values, count, NULL), STQ_OK);
    float *expected = malloc((size_t)count * sizeof(float));
    assert_int_equal(stq_decode(expected, &coded, STQ_FIRST_MOMENT, count), STQ_OK);
    for (int64_t first = 0; first < count; first += 7 * STQ_BLOCK) {
        stq_tensor slice = stq_tensor_whole("w", rows, cols);
        slice.m_bits = 5, slice.v_bits = 3;
        slice.first = first;
        slice.count = count - first < 7 * STQ_BLOCK ? count - first : 7 * STQ_BLOCK;
        stq_adamw *optimizer;
        assert_int_equal(stq_adamw_create(&optimizer, &config, &slice, 1), STQ_OK);
        stq_adamw_record record = {.version = STQ_RECORD_VERSION,
                                   .steps = 4,
                                   .log_n_average = NAN,
                                   .log_r_average = NAN,
                                   .log_n_peak = NAN,
                                   .volatility_average = NAN};
        stq_tensor_record tensor = {.bits = {5, 3}, .target = {5, 3}, .last_log_n = NAN};
        assert_int_equal(stq_adamw_restore(optimizer, &record, &tensor, 1), STQ_OK);
        for (int64_t part = 0; part < count; part += 3 * STQ_BLOCK) {
            stq_planes from = coded;
            from.base += part / 2;
            from.bit[0] += part / 8;
            from.scales += part / STQ_BLOCK;
            int64_t length = count - part < 3 * STQ_BLOCK ? count - part : 3 * STQ_BLOCK;
            assert_int_equal(stq_adamw_write_state(optimizer, 0, STQ_FIRST_MOMENT, &from, part, length), STQ_OK);
        }
        float *read = malloc((size_t)slice.count * sizeof(float));
        assert_int_equal(stq_adamw_read_state(optimizer, 0, STQ_FIRST_MOMENT, read, first, slice.count), STQ_OK);
        assert_memory_equal(read, expected + first, (size_t)slice.count * sizeof(float));
        stq_planes plain = {.base = (uint8_t *)values, .bits = 32};
        assert_int_equal(stq_adamw_write_state(optimizer, 0, STQ_FIRST_MOMENT, &plain, 0, first + 100),
                         STQ_INVALID_ARGUMENT);
        assert_int_equal(stq_adamw_write_state(optimizer, 0, STQ_FIRST_MOMENT, &plain, 0, count + 1),
                         STQ_INVALID_ARGUMENT);
        free(read);
        stq_adamw_destroy(optimizer);
    }
    test_planes_free(&coded);
    free(values);
    free(expected);
}

/* What a run leaves behind, and one field of it with a value that no run leaves. */
typedef struct records {
    stq_adamw_record all;
    stq_tensor_record of[TENSORS];
} records;

#define INTEGER(FIELD, VALUE)                                                                 \
    {                                                                                         \
#FIELD, offsetof(records, FIELD), sizeof(((records *)0)->FIELD), { .integer = VALUE } \
    }
#define REAL(FIELD, VALUE)                                                  \
    {                                                                       \
#FIELD, offsetof(records, FIELD), sizeof(double), { .real = VALUE } \
    }

static const struct {
    const char *name;
    size_t offset, bytes;
    union {
        int64_t integer; /* little-endian: its first bytes are those of a narrower one */
        double real;
    } value;
} spoiled[] = {
    INTEGER(all.version, STQ_RECORD_VERSION + 1),
    INTEGER(all.steps, -1),
    INTEGER(all.steps, 0),
    INTEGER(all.steps, INT64_MAX),
    INTEGER(all.skipped, -5),
    INTEGER(all.skipped, INT64_MAX),
    INTEGER(all.decisions, INT64_MAX),
    INTEGER(all.forced, INT64_MAX),
    REAL(all.log_n_average, INFINITY),
    REAL(all.log_r_average, 1e300),
    REAL(all.reheating, NAN),
    REAL(all.bits_sum, -1),
    INTEGER(of[0].bits[0], 9),
    INTEGER(of[1].bits[1], 0),
    INTEGER(of[2].bits[0], 4),
    INTEGER(of[0].zone, 5),
    REAL(of[0].factors.r, NAN),
    INTEGER(of[1].target[0], 1),
    REAL(of[3].last_log_n, -INFINITY),
};

/* Each is refused, and nothing changes. */
static void test_hostile_records(void **state) {
    (void)state;
    stq_adamw_config config = configuration(STQ_POLICY_ZONES, 5.0);
    model m;
    open_model(&m, &config);
    run_steps(&m, 0, STEPS);
    uint64_t before = digest(&m);
    records good, wrong;
    assert_int_equal(stq_adamw_save_records(m.optimizer, &good.all, good.of, TENSORS), STQ_OK);
    for (size_t i = 0; i < sizeof spoiled / sizeof *spoiled; i++) {
        wrong = good;
        memcpy((char *)&wrong + spoiled[i].offset, &spoiled[i].value, spoiled[i].bytes);
        stq_status status = stq_adamw_restore(m.optimizer, &wrong.all, wrong.of, TENSORS);
        if (status != (i == 0 ? STQ_UNSUPPORTED : STQ_CORRUPT))
            fail_msg("case %zu, %s: %s", i, spoiled[i].name, stq_status_name(status));
        assert_true(strlen(stq_last_error()) > 20);
        assert_int_equal(digest(&m), before);
    }
    assert_int_equal(stq_adamw_restore(m.optimizer, &good.all, good.of, TENSORS - 1), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_adamw_restore(m.optimizer, &good.all, good.of, TENSORS), STQ_OK);
    close_model(&m);
}

/* Scale words and values that no encoder writes are refused. */
static void test_hostile_contents(void **state) {
    (void)state;
    stq_adamw_config config = configuration(STQ_POLICY_FIXED, 5.0);
    model m;
    open_model(&m, &config);
    run_steps(&m, 0, 1);
    stq_planes planes = test_planes(m.tensors[0].count, 5);
    assert_int_equal(stq_adamw_write_state(m.optimizer, 0, STQ_FIRST_MOMENT, &planes, 0, m.tensors[0].count),
                     STQ_CORRUPT);
    memset(planes.scales, 0xff, 2);
    assert_int_equal(stq_adamw_write_state(m.optimizer, 0, STQ_SECOND_MOMENT, &planes, 0, m.tensors[0].count),
                     STQ_CORRUPT);
    test_planes_free(&planes);
    float *values = calloc((size_t)m.tensors[0].count, sizeof(float));
    stq_planes plain = {.base = (uint8_t *)values, .bits = 32};
    values[m.tensors[0].count - 1] = -1e-30f;
    assert_int_equal(stq_adamw_write_state(m.optimizer, 0, STQ_FIRST_MOMENT, &plain, 0, m.tensors[0].count), STQ_OK);
    assert_int_equal(stq_adamw_write_state(m.optimizer, 0, STQ_SECOND_MOMENT, &plain, 0, m.tensors[0].count),
                     STQ_CORRUPT);
    values[0] = NAN;
    assert_int_equal(stq_adamw_write_state(m.optimizer, 0, STQ_FIRST_MOMENT, &plain, 0, m.tensors[0].count),
                     STQ_CORRUPT);
    free(values);
    close_model(&m);
}

/* -0 is no negative second moment, and counts as 0: the other values of its block are coded as beside a 0. */
static void test_negative_zeros(void **state) {
    (void)state;
    stq_adamw_config config = configuration(STQ_POLICY_FIXED, 5.0);
    float *values[2], *found[2];
    for (int which = 0; which < 2; which++) {
        model m;
        open_model(&m, &config);
        run_steps(&m, 0, 1);
        int64_t count = m.tensors[0].count;
        values[which] = malloc((size_t)count * sizeof(float));
        for (int64_t k = 0; k < count; k++) {
            float deviation = test_gaussian(5, (uint32_t)k);
            values[which][k] = k % 7 == 0 ? (which ? -0.0f : 0.0f) : 1e-6f * deviation * deviation;
        }
        stq_planes plain = {.base = (uint8_t *)values[which], .bits = 32};
        assert_int_equal(stq_adamw_write_state(m.optimizer, 0, STQ_SECOND_MOMENT, &plain, 0, count), STQ_OK);
        found[which] = read_whole(&m, 0, STQ_SECOND_MOMENT);
        if (which)
            assert_memory_equal(found[0], found[1], (size_t)count * sizeof(float));
        close_model(&m);
    }
    for (int which = 0; which < 2; which++) {
        free(values[which]);
        free(found[which]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume_is_exact),  cmocka_unit_test(test_fresh_state),
        cmocka_unit_test(test_read_ranges),      cmocka_unit_test(test_import_float32),
        cmocka_unit_test(test_lower_cap),        cmocka_unit_test(test_import_shared),
        cmocka_unit_test(test_slices),           cmocka_unit_test(test_hostile_records),
        cmocka_unit_test(test_hostile_contents), cmocka_unit_test(test_negative_zeros),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
