/* test_codec.c - the reference codecs: every code, width and tail; invariants by name; the closed loop of v. */
#include "testing.h"

#include <math.h>

#include "quant/convert.h"
#include "quant/reference.h"

/* Every magnitude code decodes to a value that encodes to the same code: at every width, sign and several scales. */
static void every_m_code_survives(void **state) {
    (void)state;
    const uint32_t words[] = {0x0001, 0x0040, 0x0080, 0x0d80, 0x3f80, 0x3fff, 0x7f7f};
    for (uint32_t bits = 2; bits <= 8; bits++)
        for (size_t w = 0; w < sizeof words / sizeof *words; w++)
            for (uint32_t code = 0; code < 1u << bits; code++) {
                float value = stq_m_decode(code, stq_m_scale(words[w]), bits);
                uint32_t again = stq_m_encode(value * stq_m_prescale(words[w]), stq_m_inverse(words[w]), bits);
                /* A scale of a few units of the smallest float cannot tell all levels apart. */
                if (words[w] >= 0x0080)
                    assert_int_equal(again, code);
                assert_true(again >> (bits - 1) == code >> (bits - 1));
            }
}

/* |Q(m) - m| <= half the widest cell: with t = 1 + 3u, a cell of the upper octave is 4 / 2^bits wide in t, a third of
 * it in u. One unit in the last place of t, and the scale's rounding, come on top. */
static void m_error_is_bounded(void **state) {
    (void)state;
    for (uint32_t bits = 2; bits <= 8; bits++) {
        double bound = 4.0 / (1u << bits) / 3.0 + 1e-6;
        for (uint32_t i = 0; i <= 100000; i++) {
            float m = (float)(i / 100000.0);
            uint32_t word = stq_m_scale_word(stq_float_bits(1.0f));
            float decoded = stq_m_decode(stq_m_encode(-m, stq_m_inverse(word), bits), stq_m_scale(word), bits);
            assert_true(fabs((double)decoded + m) <= bound);
        }
    }
}

/* Every code of every lattice decodes to a node that stays where it is, whatever the random bits. */
static void every_v_node_survives(void **state) {
    (void)state;
    for (uint32_t bits = 2; bits <= 8; bits++)
        for (uint32_t word = 0; word < 0x10000; word += 7) {
            stq_lattice lattice = stq_v_lattice(word, bits);
            for (uint32_t code = lattice.first; code <= lattice.last; code++) {
                float value = stq_v_decode(code, &lattice);
                uint32_t random = stq_hash(word * 256 + code);
                if (value > 0)
                    assert_int_equal(stq_v_encode(stq_float_bits(value), &lattice, random & 0xffff, random >> 8), code);
            }
        }
}

/* v > 0 never decodes to 0, v = 0 always does, nothing decodes above the largest finite float. */
static void v_keeps_zero_and_positive_apart(void **state) {
    (void)state;
    const float extremes[] = {0.0f, 1e-45f, 1e-39f, 1.2e-38f, 1e-20f, 1.0f, 1e20f, 3.4028234e38f, INFINITY};
    enum { COUNT = sizeof extremes / sizeof *extremes };
    for (uint32_t bits = 2; bits <= 8; bits++)
        for (uint32_t mask = 1; mask < 1u << COUNT; mask++) {
            float v[COUNT], decoded[COUNT];
            int count = 0;
            for (int i = 0; i < COUNT; i++)
                if (mask >> i & 1)
                    v[count++] = extremes[i];
            stq_planes planes = test_planes(count, bits);
            stq_reference_encode_v(&planes, 0, v, count, mask);
            stq_reference_decode_v(decoded, &planes, 0, count);
            for (int i = 0; i < count; i++) {
                assert_true((v[i] == 0.0f) == (decoded[i] == 0.0f));
                assert_true(decoded[i] <= 3.4028234e38f);
            }
            test_planes_free(&planes);
        }
}

/* The scale word covers the range: the largest value is never above the last node, the smallest never below the first
 * unless it is under the floor: 2^-24 of the largest, or where the coarsest lattice ends: it has 2^bits - 1 steps (one
 * less with zeros) of 2^(5 - bits) octaves, one of which may be lost at the top. */
static void v_lattice_covers_the_range(void **state) {
    (void)state;
    uint32_t seed = 20240607;
    print_message("seed %u\n", seed);
    for (uint32_t i = 0; i < 200000; i++) {
        uint32_t bits = 2 + i % 7;
        uint32_t has_zero = stq_hash(seed + i) & 1;
        uint32_t a = stq_hash(seed ^ (i * 2)) % STQ_LARGEST_FLOAT_BITS + 1;
        uint32_t b = stq_hash(seed ^ (i * 2 + 1)) % STQ_LARGEST_FLOAT_BITS + 1;
        uint32_t largest = a > b ? a : b;
        uint32_t lowest = a > b ? b : a;
        stq_lattice lattice = stq_v_lattice(stq_v_scale_word(largest, lowest, has_zero, bits), bits);
        uint64_t top = (uint64_t)lattice.low + ((uint64_t)((1u << bits) - 1) << lattice.shift);
        assert_true(top >= largest);
        uint32_t coarsest = ((1u << bits) - 2 - has_zero) << stq_v_coarsest(bits) >> 23;
        uint32_t floor_octaves = coarsest < 24 ? coarsest : 24;
        uint32_t floor_bits = largest > floor_octaves << 23 ? largest - (floor_octaves << 23) : 1;
        uint32_t node = lattice.low + (lattice.first << lattice.shift);
        assert_true(node <= (lowest > floor_bits ? lowest : floor_bits) || lattice.low == 0);
        assert_true(has_zero <= lattice.first);
    }
}

/* All tails: count values in, count values out, neighbours of the planes untouched, padding codes 0. */
static void every_tail_round_trips(void **state) {
    (void)state;
    for (uint32_t bits = 2; bits <= 8; bits++)
        for (int64_t count = 1; count <= 2 * STQ_BLOCK + 1; count++) {
            float values[2 * STQ_BLOCK + 1], decoded[2 * STQ_BLOCK + 2];
            for (int64_t i = 0; i < count; i++)
                values[i] = fabsf(test_gaussian(bits, (uint32_t)(count * 1000 + i)));
            decoded[count] = 12345.0f;
            stq_planes planes = test_planes(count, bits);
            stq_random random = {.seed = 1, .step = 2, .tensor = 3, .first_block = 4};
            for (int s = 0; s < 2; s++) {
                assert_int_equal(stq_encode(&planes, (stq_state)s, values, count, &random), STQ_OK);
                assert_int_equal(stq_decode(decoded, &planes, (stq_state)s, count), STQ_OK);
                assert_true(decoded[count] == 12345.0f);
                for (int64_t i = count; i < stq_block_count(count) * STQ_BLOCK; i++)
                    assert_int_equal(stq_code_get(&planes, i), 0);
            }
            test_planes_free(&planes);
        }
}

/* Acceptance: 6,000 closed-loop steps of v under Adam's moving average, in blocks of values within every width's reach;
 * the mean ratio to the exact average is 1 +- 0.02. 64 blocks and 4,000 steps of about 1,000 correlated ones: the
 * standard error of the mean is 0.5 / sqrt(64 * 128 * 4) = 0.003 at 2 bits and beta2 0.999, and smaller everywhere
 * else. */
static double closed_loop_ratio(uint32_t bits, double beta2, int blocks, int steps, int warm_up) {
    double exact_sum = 0, coded_sum = 0;
    for (int block = 0; block < blocks; block++) {
        float exact[STQ_BLOCK], coded[STQ_BLOCK], scale[STQ_BLOCK];
        stq_planes planes = test_planes(STQ_BLOCK, bits);
        for (int i = 0; i < STQ_BLOCK; i++) {
            scale[i] = 1.0f + 0.25f * (float)test_uniform(9, (uint32_t)(block * STQ_BLOCK + i));
            exact[i] = coded[i] = scale[i] * scale[i];
        }
        for (int t = 0; t < steps; t++) {
            for (int i = 0; i < STQ_BLOCK; i++) {
                uint32_t counter = (uint32_t)((t * blocks + block) * STQ_BLOCK + i);
                /* Squares of a sum of two uniforms: cheap, and far from constant. */
                uint32_t h = stq_hash(counter + 77);
                float g = scale[i] * 2.4f * ((float)(h & 0xffff) / 65536.0f + (float)(h >> 16) / 65536.0f - 1.0f);
                exact[i] = (float)(beta2 * exact[i] + (1 - beta2) * g * g);
                coded[i] = (float)(beta2 * coded[i] + (1 - beta2) * g * g);
            }
            if (t >= warm_up && t % 10 == 0)
                for (int i = 0; i < STQ_BLOCK; i++) {
                    exact_sum += exact[i] / (scale[i] * scale[i]);
                    coded_sum += coded[i] / (scale[i] * scale[i]);
                }
            uint32_t key = stq_block_key(stq_step_key(3, (uint64_t)t), 5, (uint32_t)block, STQ_STREAM_SECOND_MOMENT);
            stq_reference_encode_v(&planes, 0, coded, STQ_BLOCK, key);
            stq_reference_decode_v(coded, &planes, 0, STQ_BLOCK);
        }
        test_planes_free(&planes);
    }
    return coded_sum / exact_sum;
}

static void v_is_unbiased_in_closed_loop(void **state) {
    (void)state;
    for (uint32_t bits = 2; bits <= 8; bits++) {
        enum { BLOCKS = 64 };
        double fast = closed_loop_ratio(bits, 0.95, BLOCKS, 6000, 600);
        double slow = closed_loop_ratio(bits, 0.999, BLOCKS, 6000, 2000);
        print_message("%u bits: mean ratio %.4f at beta2 0.95, %.4f at 0.999\n", bits, fast, slow);
        assert_true(fabs(fast - 1) <= 0.02);
        assert_true(fabs(slow - 1) <= 0.02);
    }
}

/* The expectation of the rounding over all 65,536 words is the value itself, within one word, for cells of up to an
 * octave; beyond, over 24-bit words in even steps. */
static void v_rounding_is_unbiased(void **state) {
    (void)state;
    for (uint32_t bits = 2; bits <= 8; bits++)
        for (uint32_t e = 0; e < 8; e++) {
            stq_lattice lattice = stq_v_lattice(1000u << 4 | e << 1 | 1, bits);
            if (lattice.low % (1u << lattice.shift) != 0)
                lattice.low = lattice.low >> lattice.shift << lattice.shift;
            uint32_t value_bits = lattice.low + (1u << lattice.shift) + (1u << lattice.shift) / 3;
            double sum = 0;
            for (uint32_t word = 0; word < 65536; word++) {
                uint32_t code = stq_v_encode(value_bits, &lattice, word, word << 8 | 128);
                sum += stq_v_decode(code, &lattice);
            }
            double value = stq_bits_float(value_bits);
            double gap = stq_bits_float(lattice.low + (2u << lattice.shift)) -
                         stq_bits_float(lattice.low + (1u << lattice.shift));
            assert_true(fabs(sum / 65536 - value) <= gap / 65536 * 1.01);
        }
}

/* Words are uniform and neighbours, steps and blocks are uncorrelated: |z| < 5 for each mean, chi-square of 256 cells <
 * 255 + 6 standard deviations (22.6 each). */
static void random_words_are_uniform(void **state) {
    (void)state;
    static double high[256], low[256];
    enum { BLOCKS = 20000 };
    uint16_t last[STQ_BLOCK] = {0};
    double mean = 0, neighbour = 0, next = 0;
    for (uint32_t block = 0; block < BLOCKS; block++) {
        uint32_t key = stq_block_key(stq_step_key(1, block / 100), 3, block % 100, STQ_STREAM_SECOND_MOMENT);
        double before = 0;
        for (uint32_t i = 0; i < STQ_BLOCK; i++) {
            uint32_t pair = stq_random_pair(key, i / 2);
            uint16_t word = (uint16_t)(i % 2 ? pair >> 16 : pair);
            double u = word / 65536.0 - 0.5;
            high[word >> 8]++;
            low[word & 255]++;
            mean += u;
            neighbour += u * before;
            next += u * (last[i] / 65536.0 - 0.5);
            before = u;
            last[i] = word;
        }
    }
    double n = (double)BLOCKS * STQ_BLOCK;
    double chi_high = 0, chi_low = 0;
    for (int i = 0; i < 256; i++) {
        chi_high += pow(high[i] - n / 256, 2) / (n / 256);
        chi_low += pow(low[i] - n / 256, 2) / (n / 256);
    }
    assert_true(fabs(mean) / sqrt(n / 12) < 5);
    assert_true(fabs(neighbour) * 12 / sqrt(n) < 5);
    assert_true(fabs(next) * 12 / sqrt(n) < 5);
    assert_true(chi_high < 255 + 6 * 22.6);
    assert_true(chi_low < 255 + 6 * 22.6);
}

/* All 65,536 halves: float16 and bfloat16 survive the way to float32 and back (NaN stay NaN). */
static void every_half_survives(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t half = (uint16_t)h;
        float value = stq_from_float16(half);
        if (isnan(value))
            assert_true(isnan(stq_from_float16(stq_to_float16(value))));
        else
            assert_int_equal(stq_to_float16(value), half);
        float wide = stq_from_bfloat16(half);
        assert_int_equal(stq_to_bfloat16(wide, 0), half);
        if (!isnan(wide) && !isinf(wide))
            assert_int_equal(stq_to_bfloat16(wide, 0xffff), half);
    }
}

static void misuse_is_refused_with_a_sentence(void **state) {
    (void)state;
    float value = 1;
    stq_planes planes = {.bits = 9};
    assert_int_equal(stq_encode(&planes, STQ_FIRST_MOMENT, &value, 1, NULL), STQ_INVALID_ARGUMENT);
    assert_non_null(strstr(stq_last_error(), "9 bits"));
    planes = test_planes(1, 5);
    assert_int_equal(stq_encode(&planes, STQ_SECOND_MOMENT, &value, 1, NULL), STQ_INVALID_ARGUMENT);
    free(planes.bit[0]);
    planes.bit[0] = NULL;
    assert_int_equal(stq_decode(&value, &planes, STQ_FIRST_MOMENT, 1), STQ_INVALID_ARGUMENT);
    assert_int_equal(stq_decode(&value, NULL, STQ_FIRST_MOMENT, 1), STQ_INVALID_ARGUMENT);
    test_planes_free(&planes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_m_code_survives),
        cmocka_unit_test(m_error_is_bounded),
        cmocka_unit_test(every_v_node_survives),
        cmocka_unit_test(v_keeps_zero_and_positive_apart),
        cmocka_unit_test(v_lattice_covers_the_range),
        cmocka_unit_test(every_tail_round_trips),
        cmocka_unit_test(v_is_unbiased_in_closed_loop),
        cmocka_unit_test(v_rounding_is_unbiased),
        cmocka_unit_test(random_words_are_uniform),
        cmocka_unit_test(every_half_survives),
        cmocka_unit_test(misuse_is_refused_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
