/* test_kernels.c - every table of kernels against the reference: encode and decode alone, host modes, choice of a
 * table. */
#include "testing.h"

#include <fenv.h>

#include "quant/kernels.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { LONGEST = 3 * STQ_BLOCK + 1 };

static const char *const names[] = {"reference", "avx2", "avx512", "neon"};
enum { NAMES = sizeof names / sizeof names[0] };

static bool same_planes(const stq_planes *a, const stq_planes *b, int64_t count) {
    for (uint32_t k = 0; k < stq_plane_count(a->bits); k++)
        if (memcmp(k == 0 ? a->base : a->bit[k - 1], k == 0 ? b->base : b->bit[k - 1],
                   stq_plane_bytes(count, a->bits, k)) != 0)
            return false;
    return memcmp(a->scales, b->scales, (size_t)stq_block_count(count) * sizeof(uint16_t)) == 0;
}

/* Values of a kind: 0 Gaussian, 1 many octaves, 2 with zeros, 3 zeros, 4 tiny, 5 huge, 6 infinite squares, 7 equal, 8
 * not numbers, with a sign. */
static void fill(float *values, int64_t count, uint32_t kind, bool positive) {
    for (int64_t i = 0; i < count; i++) {
        float x = test_gaussian(kind + 100, (uint32_t)i);
        uint32_t hash = stq_hash((uint32_t)i + kind);
        switch (kind) {
        case 1:
            x = stq_bits_float(hash % 0x7f000000u) * (x < 0 ? -1.0f : 1.0f);
            break;
        case 2:
            x = hash % 3 == 0 ? 0.0f : x;
            break;
        case 3:
            x = 0.0f;
            break;
        case 4:
            x *= stq_bits_float(1u << (hash % 20));
            break;
        case 5:
            x = stq_bits_float(0x7f000000u + hash % 0x7fffffu) * (x < 0 ? -1.0f : 1.0f);
            break;
        case 6:
            x = hash % 5 == 0 ? INFINITY : x;
            break;
        case 7:
            x = 0.375f;
            break;
        case 8:
            x = hash % 5 == 0 ? stq_bits_float(0xffc00000u) : x;
            break;
        default:
            break;
        }
        values[i] = positive && !isnan(x) ? fabsf(x) : x;
    }
}

static void check_encoding(const stq_kernels *kernels, uint32_t bits, stq_state state, const float *values,
                           int64_t count) {
    stq_random random = {.seed = 5, .step = 9, .tensor = 3, .first_block = 4};
    stq_planes expected = test_planes(count, bits), planes = test_planes(count, bits);
    float back[LONGEST + 1], expected_back[LONGEST + 1];
    int64_t blocks = stq_block_count(count);
    stq_reference_kernels.encode(&expected, state, values, count, 0, blocks, &random);
    kernels->encode(&planes, state, values, count, 0, blocks / 2, &random);
    kernels->encode(&planes, state, values, count, blocks / 2, blocks, &random);
    assert_true(same_planes(&expected, &planes, count));
    memset(back, 0xa5, sizeof back);
    memset(expected_back, 0xa5, sizeof expected_back);
    stq_reference_kernels.decode(expected_back, &expected, state, count, 0, blocks);
    kernels->decode(back, &planes, state, count, 0, blocks);
    assert_memory_equal(back, expected_back, sizeof back); /* and nothing after `count` */
    test_planes_free(&expected);
    test_planes_free(&planes);
}

static void test_all_lengths(void **state) {
    (void)state;
    for (int k = 1; k < NAMES; k++) {
        const stq_kernels *kernels = stq_find_kernels(names[k]);
        if (kernels == NULL)
            continue;
        for (uint32_t kind = 0; kind < 9; kind++)
            for (uint32_t bits = 2; bits <= 8; bits++)
                for (int64_t count = 1; count <= LONGEST; count += kind == 0 || count > 120 ? 1 : 17) {
                    float values[LONGEST + 1];
                    fill(values + 1, count, kind, false);
                    if (kind != 6 && kind != 8)
                        check_encoding(kernels, bits, STQ_FIRST_MOMENT, values + 1, count);
                    fill(values + 1, count, kind, true);
                    check_encoding(kernels, bits, STQ_SECOND_MOMENT, values + 1, count);
                }
    }
}

/* Every code at every scale word. */
static void test_all_codes(void **state) {
    (void)state;
    float expected[2 * STQ_BLOCK], values[2 * STQ_BLOCK];
    for (uint32_t bits = 2; bits <= 8; bits++) {
        stq_planes planes = test_planes(2 * STQ_BLOCK, bits);
        for (uint32_t plane = 0; plane < stq_plane_count(bits); plane++)
            for (uint64_t i = 0; i < stq_plane_bytes(2 * STQ_BLOCK, bits, plane); i++)
                (plane == 0 ? planes.base : planes.bit[plane - 1])[i] = (uint8_t)stq_hash((uint32_t)(i + 1000 * plane));
        for (int k = 1; k < NAMES; k++) {
            const stq_kernels *kernels = stq_find_kernels(names[k]);
            for (uint32_t word = 0; kernels != NULL && word < 65536; word += test_is_long() ? 1 : 7) {
                planes.scales[0] = (uint16_t)word;
                planes.scales[1] = (uint16_t)(word ^ 1);
                for (stq_state s = STQ_FIRST_MOMENT; s <= STQ_SECOND_MOMENT; s++) {
                    if (s == STQ_FIRST_MOMENT && (word | 1) > 0x7f7f)
                        continue;
                    stq_reference_kernels.decode(expected, &planes, s, 2 * STQ_BLOCK, 0, 2);
                    kernels->decode(values, &planes, s, 2 * STQ_BLOCK, 0, 2);
                    if (memcmp(values, expected, sizeof values) != 0)
                        fail_msg("%s: %u bits, state %d, scale word %u", names[k], bits, (int)s, word);
                }
            }
        }
        test_planes_free(&planes);
    }
}

/* A host that flushes subnormals and rounds upwards gets the same bytes and keeps its mode. */
static void test_host_modes(void **state) {
    (void)state;
    enum { COUNT = 2 * STQ_BLOCK + 5 };
    float values[COUNT], back[COUNT], expected_back[COUNT];
    fill(values, COUNT, 4, true);
    stq_random random = {.seed = 5};
    stq_planes expected = test_planes(COUNT, 5), planes = test_planes(COUNT, 5);
    stq_reference_kernels.encode(&expected, STQ_FIRST_MOMENT, values, COUNT, 0, 3, &random);
    stq_reference_kernels.decode(expected_back, &expected, STQ_FIRST_MOMENT, COUNT, 0, 3);
    for (int k = 0; k < NAMES; k++) {
        const stq_kernels *kernels = stq_find_kernels(names[k]);
        if (kernels == NULL)
            continue;
        fesetround(FE_UPWARD);
#if defined(__x86_64__)
        unsigned saved = _mm_getcsr(), hostile = saved | 0x8040u;
        _mm_setcsr(hostile);
#endif
        kernels->encode(&planes, STQ_FIRST_MOMENT, values, COUNT, 0, 3, &random);
        kernels->decode(back, &planes, STQ_FIRST_MOMENT, COUNT, 0, 3);
        int rounding = fegetround();
#if defined(__x86_64__)
        unsigned after = _mm_getcsr();
        _mm_setcsr(saved);
        assert_int_equal(after & 0xffc0u, hostile & 0xffc0u);
#endif
        fesetround(FE_TONEAREST);
        assert_int_equal(rounding, FE_UPWARD);
        assert_true(same_planes(&expected, &planes, COUNT));
        assert_memory_equal(back, expected_back, sizeof back);
    }
    test_planes_free(&expected);
    test_planes_free(&planes);
}

static void test_choice(void **state) {
    (void)state;
    assert_null(stq_find_kernels("no such instruction set"));
    assert_ptr_equal(stq_find_kernels("reference"), &stq_reference_kernels);
    const stq_kernels *chosen = stq_select_kernels();
    assert_ptr_equal(stq_find_kernels(chosen->name), chosen);
    const char *wanted = getenv("STQUANT_ISA");
    if (wanted != NULL && stq_find_kernels(wanted) != NULL)
        assert_string_equal(chosen->name, wanted);
    print_message("kernels: %s\n", chosen->name);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_lengths),
        cmocka_unit_test(test_all_codes),
        cmocka_unit_test(test_host_modes),
        cmocka_unit_test(test_choice),
    };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
