// Texts, batches, the learning rate, random numbers.
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "train/data.h"
#include "train/random.h"
#include "train/schedule.h"
#include "train/text.h"

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/stquant-test-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command);
}

// A path in the test's folder; four may be in use at once.
static const char *path_of(const char *name) {
    static char paths[4][256];
    static int next;
    next = (next + 1) % 4;
    snprintf(paths[next], sizeof(paths[next]), "%s/%s", folder, name);
    return paths[next];
}

static const char *write_file(const char *name, const void *bytes, size_t count) {
    const char *path = path_of(name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
    return path;
}

static void compress(const char *name) {
    char command[256];
    snprintf(command, sizeof(command), "gzip -f '%s'", path_of(name));
    assert_int_equal(system(command), 0);
}

static void test_folder_is_read_in_order(void **state) {
    (void)state;
    mkdir(path_of("tree"), 0777);
    mkdir(path_of("tree/b"), 0777);
    write_file("tree/c", "third\n", 6);
    write_file("tree/b/x", "second", 6); // gets a newline
    write_file("tree/a.txt", "first\n", 6);
    write_file("tree/.hidden", "\0", 1);
    compress("tree/a.txt");
    struct text text = {0};
    assert_int_equal(text_add(&text, path_of("tree")), APP_OK);
    assert_int_equal(text.documents, 3);
    assert_int_equal(text.count, 19);
    assert_memory_equal(text.bytes, "first\nsecond\nthird\n", 19);
    text_release(&text);
}

static void refused(const char *path, const char *part) {
    struct text text = {0};
    assert_int_equal(text_add(&text, path), APP_FAILED);
    if (!strstr(app_failure(), part) || !strstr(app_failure(), path)) {
        fail_msg("\"%s\" names neither %s nor says \"%s\"", app_failure(), path, part);
    }
    text_release(&text);
}

static void test_bad_files_are_refused(void **state) {
    (void)state;
    refused(path_of("missing"), "No such file");
    refused(write_file("empty", "", 0), "is empty");
    refused(write_file("binary", "text\0text", 9), "byte 4 is zero");
    refused(write_file("fake.gz", "not compressed\n", 15), "not a gzip file");
    mkdir(path_of("nothing"), 0777);
    refused(path_of("nothing"), "no files");
    symlink(path_of("loop"), path_of("loop"));
    refused(path_of("loop"), "Cannot read");
    // A gzip file at every truncated length, and with one byte of its checksum changed.
    write_file("cut", "a text of a few words, again and again and again\n", 49);
    compress("cut");
    unsigned char bytes[256];
    FILE *file = fopen(path_of("cut.gz"), "rb");
    size_t count = fread(bytes, 1, sizeof(bytes), file);
    fclose(file);
    for (size_t length = 2; length < count; length++) {
        refused(write_file("short.gz", bytes, length), "gzip");
    }
    bytes[count - 6] ^= 1;
    refused(write_file("wrong.gz", bytes, count), "gzip");
    if (geteuid() != 0) { // root may read everything
        chmod(write_file("closed", "text", 4), 0);
        refused(path_of("closed"), "Permission denied");
    }
}

static void test_links_back_end(void **state) {
    (void)state;
    mkdir(path_of("circle"), 0777);
    write_file("circle/a", "a\n", 2);
    assert_int_equal(symlink(".", path_of("circle/back")), 0);
    struct text text = {0};
    assert_int_equal(text_add(&text, path_of("circle")), APP_FAILED);
    text_release(&text);
}

enum { COUNT = 1000, BATCH = 4, LENGTH = 10 };

// Bytes that tell their position: two in sequence are 1 + p / 250 and 1 + p % 250.
static struct text make_text(void) {
    struct text text = {.bytes = malloc(COUNT), .count = COUNT};
    for (int i = 0; i < COUNT; i++) {
        text.bytes[i] = (uint8_t)(1 + (i * 7 + i / 250) % 255);
    }
    return text;
}

static struct batch_source *make_source(const struct text *text, int64_t validation_batches, uint64_t seed) {
    struct text_source_settings settings = {.batch = BATCH,
                                            .length = LENGTH,
                                            .validation_share = 0.2,
                                            .validation_batches = validation_batches,
                                            .seed = seed};
    struct batch_source *source;
    struct sequence sequence = {.tokens = text->bytes, .token_bytes = 1, .count = text->count};
    assert_int_equal(text_source_create(&sequence, &settings, &source), APP_OK);
    return source;
}

// Where a row of a batch lies in the text, in [first, last); fails when it lies nowhere there.
static int64_t find(const struct text *text, const struct batch *batch, int64_t row, int64_t first, int64_t last) {
    for (int64_t start = first; start + batch->length < last; start++) {
        int64_t i = 0;
        while (i < batch->length && text->bytes[start + i] == batch->inputs[row * batch->length + i] &&
               text->bytes[start + i + 1] == batch->targets[row * batch->length + i]) {
            i++;
        }
        if (i == batch->length) {
            return start;
        }
    }
    fail_msg("row %lld is not a window of bytes %lld to %lld", (long long)row, (long long)first, (long long)last);
    return -1;
}

static void test_training_batches(void **state) {
    (void)state;
    struct text text = make_text();
    struct batch_source *source = make_source(&text, 2, 1), *other = make_source(&text, 2, 2);
    struct batch batch;
    int32_t kept[BATCH * LENGTH];
    int different = 0;
    for (int64_t position = 0; position < 50; position++) {
        source->operations->training(source, position, &batch);
        assert_int_equal(batch.examples, BATCH);
        for (int64_t row = 0; row < BATCH; row++) {
            find(&text, &batch, row, 0, 800);
        }
        // The position alone decides: another one in between changes nothing.
        memcpy(kept, batch.inputs, sizeof(kept));
        source->operations->training(source, position + 1000, &batch);
        different += memcmp(kept, batch.inputs, sizeof(kept)) != 0;
        source->operations->training(source, position, &batch);
        assert_memory_equal(kept, batch.inputs, sizeof(kept));
        other->operations->training(other, position, &batch);
        different += memcmp(kept, batch.inputs, sizeof(kept)) != 0;
    }
    assert_int_equal(different, 100);
    source->operations->destroy(source);
    other->operations->destroy(other);
    text_release(&text);
}

static void test_validation_covers_the_last_part(void **state) {
    (void)state;
    struct text text = make_text();
    const int64_t wanted[] = {1, 3, 1000}; // batches asked for
    const int64_t windows[] = {4, 12, 19}; // (200 - 1) / 10 windows fit without overlap
    for (int i = 0; i < 3; i++) {
        struct batch_source *source = make_source(&text, wanted[i], 1);
        int64_t seen = 0, previous = -1000;
        for (int64_t index = 0; index < source->validation_batches; index++) {
            struct batch batch;
            source->operations->validation(source, index, &batch);
            for (int64_t row = 0; row < batch.examples; row++, seen++) {
                int64_t start = find(&text, &batch, row, 800, 1000);
                assert_true(start - previous >= LENGTH);
                previous = start;
            }
        }
        assert_int_equal(seen, windows[i]);
        assert_int_equal(previous, 1000 - LENGTH - 1); // the last one reaches the text's end
        source->operations->destroy(source);
    }
    text_release(&text);
}

static void test_short_texts_are_refused(void **state) {
    (void)state;
    struct text text = make_text();
    struct text_source_settings settings = {
        .batch = 1, .length = 10, .validation_share = 0.5, .validation_batches = 1, .seed = 1};
    struct batch_source *source;
    for (text.count = 2; text.count <= 30; text.count++) {
        struct sequence sequence = {.tokens = text.bytes, .token_bytes = 1, .count = text.count};
        enum app_status status = text_source_create(&sequence, &settings, &source);
        assert_int_equal(status, text.count >= 22 ? APP_OK : APP_FAILED);
        if (status == APP_OK) {
            struct batch batch;
            source->operations->training(source, 0, &batch);
            source->operations->validation(source, 0, &batch);
            source->operations->destroy(source);
        } else {
            assert_null(source);
            assert_non_null(strstr(app_failure(), "--sequence-length"));
        }
    }
    text_release(&text);
}

static void test_schedule(void **state) {
    (void)state;
    struct schedule schedule = {.learning_rate = 2, .floor = 0.1, .warmup = 10, .steps = 110};
    assert_true(schedule_rate(&schedule, 1) == 0.2);
    assert_true(schedule_rate(&schedule, 10) == 2);
    assert_true(fabs(schedule_rate(&schedule, 60) - 1.1) < 1e-12); // half way: the mean of 2 and 0.2
    assert_true(fabs(schedule_rate(&schedule, 110) - 0.2) < 1e-12);
    for (int64_t step = 11; step <= 110; step++) {
        assert_true(schedule_rate(&schedule, step) < schedule_rate(&schedule, step - 1));
    }
    schedule = (struct schedule){.learning_rate = 3, .floor = 1, .warmup = 0, .steps = 5};
    for (int64_t step = 1; step <= 5; step++) {
        assert_true(schedule_rate(&schedule, step) == 3);
    }
}

static void test_random_numbers(void **state) {
    (void)state;
    enum { DRAWS = 100001 };
    static float values[DRAWS], again[DRAWS];
    random_normal_fill(values, DRAWS, 3, 7, 1);
    double mean = 0, squares = 0, fourth = 0;
    for (int i = 0; i < DRAWS; i++) {
        mean += values[i] / DRAWS;
        squares += (double)values[i] * values[i] / DRAWS;
        fourth += pow(values[i], 4) / DRAWS;
    }
    // Standard errors for n = 1e5: mean 3 / sqrt(n), variance 9 sqrt(2 / n), fourth moment 81 sqrt(96 / n);
    // five of each.
    assert_true(fabs(mean) < 5 * 3 / sqrt(DRAWS));
    assert_true(fabs(squares - 9) < 5 * 9 * sqrt(2.0 / DRAWS));
    assert_true(fabs(fourth - 243) < 5 * 81 * sqrt(96.0 / DRAWS));
    random_normal_fill(again, 777, 3, 7, 1);
    assert_memory_equal(values, again, 777 * sizeof(float));
    int counts[10] = {0};
    for (uint64_t i = 0; i < DRAWS; i++) {
        counts[random_below(3, 4, i, 10)]++;
        double uniform = random_uniform(3, 4, i);
        assert_true(uniform >= 0 && uniform < 1);
    }
    for (int i = 0; i < 10; i++) { // binomial, deviation sqrt(n 0.09); five of them
        assert_true(fabs(counts[i] - DRAWS / 10.0) < 5 * sqrt(0.09 * DRAWS));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_folder_is_read_in_order, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_bad_files_are_refused, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_links_back_end, make_folder, remove_folder),
        cmocka_unit_test(test_training_batches),
        cmocka_unit_test(test_validation_covers_the_last_part),
        cmocka_unit_test(test_short_texts_are_refused),
        cmocka_unit_test(test_schedule),
        cmocka_unit_test(test_random_numbers),
    };
    return cmocka_run_group_tests_name("data", tests, NULL, NULL);
}
