// Images: the two file formats and what is refused, the order of an epoch, moves and mirrors, scaling.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "train/images.h"
#include "train/random.h"

enum { SEED = 3 };

static void put(uint8_t *bytes, uint32_t number) {
    for (int i = 0; i < 4; i++) {
        bytes[i] = (uint8_t)(number >> (24 - 8 * i));
    }
}

// An idx file in memory: 16 or 8 bytes of header and counted content.
static uint8_t *make_idx(uint32_t magic, const uint32_t *sizes, int dimensions, size_t *count) {
    const size_t header = 4 + 4 * (size_t)dimensions;
    size_t content = 1;
    for (int i = 0; i < dimensions; i++) {
        content *= sizes[i];
    }
    uint8_t *bytes = malloc(header + content);
    put(bytes, magic);
    for (int i = 0; i < dimensions; i++) {
        put(bytes + 4 + 4 * i, sizes[i]);
    }
    for (size_t i = 0; i < content; i++) {
        bytes[header + i] = (uint8_t)(dimensions == 1 ? i % 10 : random_bits(SEED, 1, i) >> 56);
    }
    *count = header + content;
    return bytes;
}

static void assert_sentence(const char *part) {
    if (!strstr(app_failure(), part)) {
        fail_msg("'%s' does not say '%s'", app_failure(), part);
    }
}

static void test_idx(void **state) {
    (void)state;
    const uint32_t sizes[] = {30, 5, 7};
    size_t count, label_count;
    uint8_t *bytes = make_idx(0x803, sizes, 3, &count), *labels = make_idx(0x801, sizes, 1, &label_count);
    struct image_set set = {0};
    assert_int_equal(image_set_parse_idx("f", bytes, count, &set), APP_OK);
    assert_int_equal(set.count, 30);
    assert_int_equal(set.channels, 1);
    assert_int_equal(set.rows, 5);
    assert_int_equal(set.columns, 7);
    assert_memory_equal(set.pixels, bytes + 16, 30 * 35);
    assert_int_equal(image_set_parse_idx_labels("f", labels, label_count, 10, &set), APP_OK);
    assert_memory_equal(set.labels, labels + 8, 30);
    image_set_release(&set);
    free(bytes);
    free(labels);
}

static void test_idx_refusals(void **state) {
    (void)state;
    const uint32_t sizes[] = {30, 5, 7}, none[] = {0, 5, 7}, huge[] = {1, 5000, 1};
    size_t count, other_count;
    uint8_t *bytes = make_idx(0x803, sizes, 3, &count), *other;
    struct image_set set = {0};
    for (size_t cut = 0; cut < count; cut += cut < 20 ? 1 : 97) {
        assert_int_equal(image_set_parse_idx("f", bytes, cut, &set), APP_FAILED);
        assert_null(set.pixels);
    }
    assert_sentence("and 30 images of 7 x 5 take 1050; get it again.");
    other = make_idx(0x801, sizes, 1, &other_count);
    assert_int_equal(image_set_parse_idx("labels.gz", other, other_count, &set), APP_FAILED);
    assert_sentence("labels.gz is no idx file of images: it begins with 0x00000801 and should with 0x00000803.");
    free(other);
    other = make_idx(0x803, none, 3, &other_count);
    assert_int_equal(image_set_parse_idx("f", other, other_count, &set), APP_FAILED);
    assert_sentence("f says that it has 0 images");
    free(other);
    other = make_idx(0x803, huge, 3, &other_count);
    assert_int_equal(image_set_parse_idx("f", other, other_count, &set), APP_FAILED);
    assert_sentence("sides of 1 to 4096");
    free(other);
    // Sizes whose product does not fit in 32 bits.
    put(bytes + 4, 0xffffffff);
    put(bytes + 8, 4096);
    put(bytes + 12, 4096);
    assert_int_equal(image_set_parse_idx("f", bytes, count, &set), APP_FAILED);
    assert_sentence("take 72057594021150720");
    free(bytes);
    // Labels: too few, too many, out of range.
    bytes = make_idx(0x803, sizes, 3, &count);
    assert_int_equal(image_set_parse_idx("f", bytes, count, &set), APP_OK);
    other = make_idx(0x801, (const uint32_t[]){29}, 1, &other_count);
    assert_int_equal(image_set_parse_idx_labels("l", other, other_count, 10, &set), APP_FAILED);
    assert_sentence("l says that it has 29 labels, holds 29, and there are 30 images.");
    free(other);
    other = make_idx(0x801, sizes, 1, &other_count);
    assert_int_equal(image_set_parse_idx_labels("l", other, other_count - 1, 10, &set), APP_FAILED);
    assert_int_equal(image_set_parse_idx_labels("l", other, other_count, 9, &set), APP_FAILED);
    assert_sentence("l: image 9 has label 9, and --classes 9 allows 0 to 8.");
    assert_null(set.labels);
    free(other);
    free(bytes);
    image_set_release(&set);
}

static void test_cifar(void **state) {
    (void)state;
    enum { RECORDS = 3, RECORD = 3073 };
    uint8_t *bytes = malloc(RECORDS * RECORD);
    for (int i = 0; i < RECORDS * RECORD; i++) {
        bytes[i] = i % RECORD ? (uint8_t)(random_bits(SEED, 2, (uint64_t)i) >> 56) : (uint8_t)(i / RECORD + 7);
    }
    struct image_set set = {0};
    assert_int_equal(image_set_parse_cifar("c", bytes, RECORDS * RECORD, 10, &set), APP_OK);
    assert_int_equal(image_set_parse_cifar("c", bytes + RECORD, RECORD, 10, &set), APP_OK);
    assert_int_equal(set.count, 4);
    assert_int_equal(set.channels, 3);
    assert_int_equal(set.rows, 32);
    const uint8_t expected[] = {7, 8, 9, 8};
    assert_memory_equal(set.labels, expected, 4);
    for (int i = 0; i < RECORDS; i++) {
        assert_memory_equal(set.pixels + i * 3072, bytes + i * RECORD + 1, 3072);
    }
    assert_int_equal(image_set_parse_cifar("c", bytes, RECORD - 1, 10, &set), APP_FAILED);
    assert_sentence("c has 3072 bytes, no multiple of the 3073");
    assert_int_equal(image_set_parse_cifar("c", bytes, 0, 10, &set), APP_FAILED);
    assert_int_equal(image_set_parse_cifar("c", bytes, RECORDS * RECORD, 9, &set), APP_FAILED);
    assert_sentence("c: image 2 has label 9");
    image_set_release(&set);
    free(bytes);
}

// Every image once an epoch, in another order each epoch, for counts around powers of two.
static void test_epochs_are_permutations(void **state) {
    (void)state;
    const int64_t counts[] = {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4095, 4097, 60000};
    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
        const int64_t count = counts[c];
        uint8_t *seen = calloc((size_t)count, 1);
        int64_t moved = 0, same = 0;
        for (int64_t i = 0; i < count; i++) {
            const int64_t image = image_shuffled(SEED, 4, i, count);
            assert_in_range(image, 0, count - 1);
            assert_int_equal(seen[image], 0);
            seen[image] = 1;
            moved += image != i;
            same += image == image_shuffled(SEED, 5, i, count);
        }
        if (count >= 1000) {
            // A random permutation has one fixed point on average; ten has a chance of 1e-7.
            assert_true(moved > count - 10);
            assert_true(same < 10);
        }
        free(seen);
    }
}

static struct image_data make_data(int64_t training, int64_t test, int64_t channels, int64_t rows, int64_t columns) {
    struct image_data data = {0};
    struct image_set *sets[] = {&data.training, &data.test};
    const int64_t counts[] = {training, test};
    for (int s = 0; s < 2; s++) {
        const size_t pixels = (size_t)(counts[s] * channels * rows * columns);
        *sets[s] = (struct image_set){.count = counts[s],
                                      .channels = channels,
                                      .rows = rows,
                                      .columns = columns,
                                      .pixels = malloc(pixels),
                                      .labels = malloc((size_t)counts[s])};
        for (size_t i = 0; i < pixels; i++) {
            // Never 0, so that what moves in can be told apart; another brightness for each channel.
            const size_t channel = i / (size_t)(rows * columns) % (size_t)channels;
            sets[s]->pixels[i] = (uint8_t)(1 + random_bits(SEED, 3, i) % 200 + 20 * channel);
        }
        for (int64_t i = 0; i < counts[s]; i++) {
            sets[s]->labels[i] = (uint8_t)(i % 10);
        }
    }
    return data;
}

// Without moves a batch holds images of the set, and over the training set every channel has mean 0, deviation 1.
static void test_scaling(void **state) {
    (void)state;
    struct image_data data = make_data(64, 10, 3, 6, 5);
    struct image_source_settings settings = {.batch = 16, .validation_batches = 100, .seed = SEED};
    struct batch_source *source;
    assert_int_equal(image_source_create(&data, &settings, &source), APP_OK);
    assert_int_equal(source->items, 16);
    assert_string_equal(source->unit, "images");
    double sums[3] = {0}, squares[3] = {0};
    int counts[10] = {0};
    for (int64_t position = 0; position < 4; position++) {
        struct batch batch;
        source->operations->training(source, position, &batch);
        assert_int_equal(batch.examples, 16);
        assert_int_equal(batch.position, position);
        for (int i = 0; i < 16 * 90; i++) {
            sums[i / 30 % 3] += batch.images[i];
            squares[i / 30 % 3] += (double)batch.images[i] * batch.images[i];
        }
        for (int i = 0; i < 16; i++) {
            counts[batch.targets[i]]++;
        }
    }
    for (int channel = 0; channel < 3; channel++) {
        assert_true(fabs(sums[channel] / (64 * 30)) < 1e-5);
        assert_true(fabs(squares[channel] / (64 * 30) - 1) < 1e-4);
    }
    for (int label = 0; label < 10; label++) {
        assert_int_equal(counts[label], label < 4 ? 7 : 6);
    }
    source->operations->destroy(source);
    image_data_release(&data);
}

// The test set comes whole and in order, the last batch smaller.
static void test_validation(void **state) {
    (void)state;
    struct image_data data = make_data(20, 21, 1, 4, 4);
    struct image_source_settings settings = {
        .batch = 8, .validation_batches = 100, .shift = 3, .flip = 1, .seed = SEED};
    struct batch_source *source;
    assert_int_equal(image_source_create(&data, &settings, &source), APP_OK);
    assert_int_equal(source->validation_batches, 3);
    for (int64_t index = 0; index < 3; index++) {
        struct batch batch;
        source->operations->validation(source, index, &batch);
        assert_int_equal(batch.examples, index < 2 ? 8 : 5);
        for (int64_t i = 0; i < batch.examples; i++) {
            assert_int_equal(batch.targets[i], (index * 8 + i) % 10);
            for (int64_t j = 1; j < 16; j++) { // brighter pixels stay brighter
                const uint8_t *pixels = data.test.pixels + (index * 8 + i) * 16;
                const float *values = batch.images + i * 16;
                assert_int_equal(pixels[j] > pixels[0], values[j] > values[0]);
            }
        }
    }
    source->operations->destroy(source);
    image_data_release(&data);
}

// Is `image` the pixels moved and mirrored so? Black moves in. Values are told apart by comparing with each pixel's
// own.
static int is_view(const float *image, const uint8_t *pixels, const float *values, int64_t side, int64_t down,
                   int64_t right, int mirrored) {
    for (int64_t row = 0; row < side; row++) {
        for (int64_t column = 0; column < side; column++) {
            const int64_t in_row = row - down, moved = column - right;
            const int64_t in_column = mirrored ? side - 1 - moved : moved;
            const int inside = in_row >= 0 && in_row < side && in_column >= 0 && in_column < side;
            if (image[row * side + column] != values[inside ? pixels[in_row * side + in_column] : 0]) {
                return 0;
            }
        }
    }
    return 1;
}

static void test_moves_and_mirrors(void **state) {
    (void)state;
    enum { SIDE = 8, BATCHES = 200 };
    struct image_data data = make_data(1, 1, 1, SIDE, SIDE);
    for (int i = 0; i < 256; i++) { // a test image that tells what each value becomes
        data.test.pixels[i % (SIDE * SIDE)] = (uint8_t)i;
    }
    struct image_source_settings settings = {.batch = 1, .validation_batches = 1, .shift = 1, .flip = 1, .seed = SEED};
    struct batch_source *source;
    struct batch batch;
    float values[256] = {0};
    assert_int_equal(image_source_create(&data, &settings, &source), APP_OK);
    for (int first = 0; first < 256; first += SIDE * SIDE) {
        for (int i = 0; i < SIDE * SIDE; i++) {
            data.test.pixels[i] = (uint8_t)(first + i);
        }
        source->operations->validation(source, 0, &batch);
        memcpy(values + first, batch.images, SIDE * SIDE * sizeof(float));
    }
    int views[18] = {0};
    for (int64_t position = 0; position < BATCHES; position++) {
        source->operations->training(source, position, &batch);
        int found = 0;
        for (int view = 0; view < 18; view++) {
            if (is_view(batch.images, data.training.pixels, values, SIDE, view % 3 - 1, view / 3 % 3 - 1, view / 9)) {
                views[view]++;
                found++;
            }
        }
        assert_int_equal(found, 1);
    }
    // Each of the 18 views is as likely: 11 are expected, and none has a chance of 1e-5.
    for (int view = 0; view < 18; view++) {
        assert_in_range(views[view], 1, 40);
    }
    source->operations->destroy(source);
    image_data_release(&data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_idx),
        cmocka_unit_test(test_idx_refusals),
        cmocka_unit_test(test_cifar),
        cmocka_unit_test(test_epochs_are_permutations),
        cmocka_unit_test(test_scaling),
        cmocka_unit_test(test_validation),
        cmocka_unit_test(test_moves_and_mirrors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
