/* test_theory.c - the figures and formulas of docs/theory.md, computed from the codec itself. */
#include "testing.h"

#include <math.h>

enum { WIDTHS = 7, COLUMNS = 4 };

typedef struct figures {
    double of[WIDTHS][COLUMNS]; /* [width - 2][column of the table] */
} figures;

/* The rows of the table that begin with a width. */
static void read_table(figures *doc) {
    char path[4096], line[1024];
    const char *source = getenv("STQUANT_SOURCE");
    snprintf(path, sizeof path, "%s/docs/theory.md", source ? source : ".");
    FILE *file = fopen(path, "r");
    if (file == NULL)
        fail_msg("%s cannot be read; set STQUANT_SOURCE", path);
    int rows = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        int width;
        double f[COLUMNS];
        if (sscanf(line, "| %d | %lf | %lf | %lf | %lf |", &width, &f[0], &f[1], &f[2], &f[3]) == 5) {
            assert_in_range(width, 2, 8);
            memcpy(doc->of[width - 2], f, sizeof f);
            rows++;
        }
    }
    fclose(file);
    assert_int_equal(rows, WIDTHS);
}

static uint32_t magnitude(uint32_t value_bits, float inverse, uint32_t bits) {
    return stq_m_encode(stq_bits_float(value_bits), inverse, bits) & ((1u << (bits - 1)) - 1);
}

/* Largest |Q(m) - m| over the block's largest. The error inside a cell is linear on either side of its middle, so that
 * the ends of all cells, found to the last float, are all that there is to try. */
static double worst_of_m(uint32_t bits, uint32_t largest) {
    uint32_t word = stq_m_scale_word(largest);
    float scale = stq_m_scale(word), inverse = stq_m_inverse(word);
    double worst = 0;
    uint32_t first = 0;
    for (uint32_t code = 0; first <= largest; code++) {
        uint32_t low = first, high = largest; /* the last float of the cell is in low .. high */
        while (low < high) {
            uint32_t middle = low + (high - low + 1) / 2;
            if (magnitude(middle, inverse, bits) == code)
                low = middle;
            else
                high = middle - 1;
        }
        double level = stq_m_decode(code, scale, bits);
        worst = fmax(worst, fabs(level - (double)stq_bits_float(first)));
        worst = fmax(worst, fabs(level - (double)stq_bits_float(low)));
        first = low + 1;
    }
    return worst / (double)stq_bits_float(largest);
}

/* Largest relative distance of two neighbouring normal nodes, over all lattices of a shift. */
static double widest_gap(uint32_t bits, uint32_t shift) {
    uint32_t exponent = shift - stq_v_finest(bits);
    double widest = 0;
    for (uint32_t low = 16; low < 4096; low++) { /* multiples of 2^19 from the smallest normal float on */
        uint32_t grain = shift > 19 ? shift - 19 : 0;
        if (low >> grain << grain != low)
            continue;
        stq_lattice lattice = stq_v_lattice(low << 4 | exponent << 1 | 1, bits);
        for (uint32_t code = 0; code < lattice.last; code++) {
            double a = stq_v_decode(code, &lattice), z = stq_v_decode(code + 1, &lattice);
            widest = fmax(widest, z / a - 1);
        }
    }
    return widest;
}

/* The doc gives three or four digits. */
static void expect(const char *what, uint32_t bits, double computed, double documented) {
    if (!(fabs(computed - documented) <= 1e-3 * computed))
        fail_msg("docs/theory.md, %s at %u bits: %g is written, %g computed", what, bits, documented, computed);
}

static void test_table_of_worst_cases(void **state) {
    (void)state;
    figures doc;
    read_table(&doc);
    for (uint32_t bits = 2; bits <= 8; bits++) {
        const double *row = doc.of[bits - 2];
        double worst = 0;
        /* All mantissas of 8 bits, just at and just above: the scale's rounding is worst there. */
        for (uint32_t word = 0x3f80; word < 0x4000; word++)
            for (uint32_t more = 0; more < 2; more++)
                worst = fmax(worst, worst_of_m(bits, (word << 16) + more));
        expect("m", bits, worst, row[0]);
        expect("v, finest", bits, widest_gap(bits, stq_v_finest(bits)), row[1]);
        double coarsest = widest_gap(bits, stq_v_coarsest(bits));
        expect("v, coarsest", bits, coarsest, row[2]);
        expect("update", bits, sqrt(1 + coarsest), row[3]);
    }
}

/* E[Q(v)] = v inside the lattice over all words, raised below it, never 0 for positive values. */
static void test_bias_is_at_the_ends_only(void **state) {
    (void)state;
    for (uint32_t bits = 2; bits <= 8; bits++) {
        uint32_t shift = 23; /* one octave a cell */
        if (shift > stq_v_coarsest(bits))
            shift = stq_v_coarsest(bits);
        stq_lattice lattice = stq_v_lattice(1024u << 4 | (shift - stq_v_finest(bits)) << 1 | 1, bits);
        double low = stq_v_decode(0, &lattice);
        for (int k = 1; k < 8; k++) {
            uint32_t value = lattice.low + (uint32_t)k * (1u << shift) / 8;
            double sum = 0, exact = stq_bits_float(value), gap = stq_v_decode(1, &lattice) - low;
            for (uint32_t word = 0; word < 65536; word++)
                sum += stq_v_decode(stq_v_encode(value, &lattice, word, word << 8 | 128), &lattice);
            assert_true(fabs(sum / 65536 - exact) <= gap / 65536 * 1.01);
            uint32_t below = lattice.low - (uint32_t)k * (1u << 20);
            for (uint32_t word = 0; word < 65536; word += 257)
                assert_true(stq_v_decode(stq_v_encode(below, &lattice, word, 0), &lattice) == low);
        }
    }
}

/* Var[e] / v^2 = (d / 2) E|g^2 / v - 1| under a slow average. Gradients of two values, so that the expectation is
 * known: g^2 / v is 0.5 or 1.5. 4,096 values over 12,000 steps at beta2 0.999 hold about 4,096 * 6 independent samples
 * of the variance: a standard error of 1 %. The formula leaves terms of the order of (1 - beta2) / d out. */
static void test_closed_loop_variance(void **state) {
    (void)state;
    enum { VALUES = 4096, STEPS = 12000, WARM_UP = 5000 };
    static float coded[VALUES];
    static double exact[VALUES];
    for (uint32_t bits = 6; bits <= 8; bits++) {
        uint32_t shift = 24 - (bits - 2); /* 1/8, 1/16, 1/32 of an octave's first value */
        stq_lattice lattice = stq_v_lattice(0x3f800000u >> 19 << 4 | (shift - stq_v_finest(bits)) << 1 | 1, bits);
        double d = ldexp(1, (int)shift - 23) / 1.5, squares = 0, sum = 0;
        int64_t counted = 0;
        for (int i = 0; i < VALUES; i++)
            exact[i] = coded[i] = 1.5f;
        for (uint32_t t = 0; t < STEPS; t++)
            for (uint32_t i = 0; i < VALUES; i++) {
                uint32_t random = stq_hash(stq_hash(t * VALUES + i) + bits);
                double gain = 0.001 * 1.5 * (random & 1 ? 1.5 : 0.5);
                exact[i] = 0.999 * exact[i] + gain;
                float v = (float)(0.999 * (double)coded[i] + gain);
                if (t >= WARM_UP && t % 50 == 0) {
                    double error = (double)v / exact[i] - 1;
                    squares += error * error;
                    sum += error;
                    counted++;
                }
                coded[i] = stq_v_decode(stq_v_encode(stq_float_bits(v), &lattice, random >> 16, 0), &lattice);
            }
        double variance = squares / (double)counted, predicted = d / 2 * 0.5;
        print_message("# gap %.4f: variance %.5f, predicted %.5f, bias %.5f\n", d, variance, predicted,
                      sum / (double)counted);
        assert_true(fabs(variance / predicted - 1) < 0.1);
        assert_true(fabs(sum / (double)counted) < 0.01);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_of_worst_cases),
        cmocka_unit_test(test_bias_is_at_the_ends_only),
        cmocka_unit_test(test_closed_loop_variance),
    };
    return cmocka_run_group_tests_name("theory", tests, NULL, NULL);
}
