/* Damaged and hostile checkpoints: every byte, every length, headers at random, and files made to deceive. Whatever a
 * file says, the answer is an error that names it, or a checkpoint that is sound. */
#include "checkpoint_testing.h"

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <omp.h>
#include <stdatomic.h>
#include <time.h>

#include "checkpoint/index.h"
#include "checkpoint/safetensors.h"
#include "fuzz/read_anything.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

/* ---- Memory: what is asked for while a file is opened ---- */

static atomic_size_t largest_request;

#ifndef SANITIZED
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);

static void note_request(size_t bytes) {
    if (bytes > atomic_load(&largest_request))
        atomic_store(&largest_request, bytes);
}

void *malloc(size_t bytes) {
    note_request(bytes);
    return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes) {
    note_request(bytes > 0 && count > SIZE_MAX / bytes ? SIZE_MAX : count * bytes);
    return __libc_calloc(count, bytes);
}

void *realloc(void *memory, size_t bytes) {
    note_request(bytes);
    return __libc_realloc(memory, bytes);
}
#endif

/* "Tables take no more memory than the file has bytes and a megabyte" (docs/format.md); a little for rounding. */
static void assert_modest(uint64_t file_bytes) {
    size_t most = (size_t)file_bytes + (1 << 20) + 4096;
    if (atomic_load(&largest_request) > most)
        fail_msg("%zu bytes were asked for at once for a file of %" PRIu64, atomic_load(&largest_request), file_bytes);
}

/* Opens and closes; memory in between is watched. */
static stq_status open_watched(const char *path, uint64_t file_bytes) {
    stq_checkpoint *checkpoint;
    atomic_store(&largest_request, 0);
    stq_status status = stq_checkpoint_open(&checkpoint, path);
    assert_modest(file_bytes);
    stq_checkpoint_close(checkpoint);
    return status;
}

/* ---- A small checkpoint ---- */

enum { WEIGHT_ROWS = 10, WEIGHT_COLS = 30, BIASES = 7 };

typedef struct sample {
    char folder[64]; /* of the run */
    char *part, *index;
    uint8_t *part_bytes, *index_bytes;
    size_t part_size, index_size, data_start;
} sample;

static const char part_name[] = "model-00001-of-00001.safetensors";

/* A matrix of three blocks with widths of 5 and 3 bits, a vector with float32 states, the vector as an array. */
static void sample_open(sample *s) {
    float weights[WEIGHT_ROWS * WEIGHT_COLS] = {0}, biases[BIASES] = {0}, gradients[WEIGHT_ROWS * WEIGHT_COLS];
    stq_tensor tensors[] = {stq_tensor_whole("w", WEIGHT_ROWS, WEIGHT_COLS), stq_tensor_whole("b", 1, BIASES)};
    void *const parameters[] = {weights, biases};
    const void *const given[] = {gradients, gradients};
    stq_adamw_config config = model_config(MODE_FIXED, 5.0);
    stq_adamw *optimizer;
    config.exempt_below = 0;
    make_folder(s->folder);
    assert_ok(stq_adamw_create(&optimizer, &config, tensors, 2));
    for (uint32_t step = 0; step < 3; step++) {
        for (uint32_t i = 0; i < WEIGHT_ROWS * WEIGHT_COLS; i++)
            gradients[i] = test_gaussian(step, i);
        stq_step now = {.size = sizeof now, .parameters = parameters, .gradients = given, .unscale = 1.0};
        assert_ok(stq_adamw_step(optimizer, &now, NULL));
    }
    int64_t shape[] = {BIASES};
    stq_array array = stq_array_whole("b", STQ_FLOAT32, 1, shape, biases);
    stq_saver *saver = open_saver(s->folder, 0);
    stq_save save = {.size = sizeof save, .step = 3, .optimizer = optimizer, .arrays = &array, .array_count = 1};
    assert_ok(stq_saver_save(saver, &save));
    assert_ok(stq_saver_wait(saver, NULL));
    stq_saver_close(saver);
    stq_adamw_destroy(optimizer);
    s->part = text_of("%s/step-00000003/%s", s->folder, part_name);
    s->index = text_of("%s/step-00000003/%s", s->folder, STQ_INDEX_NAME);
    s->part_bytes = read_bytes(s->part, &s->part_size);
    s->index_bytes = read_bytes(s->index, &s->index_size);
    uint64_t length;
    memcpy(&length, s->part_bytes, sizeof length);
    s->data_start = (size_t)length + sizeof length;
}

static void sample_close(sample *s) {
    free(s->part);
    free(s->index);
    free(s->part_bytes);
    free(s->index_bytes);
    remove_folder(s->folder);
}

static char *checkpoint_path(const sample *s) { return text_of("%s/step-00000003", s->folder); }

static void assert_names(const char *name, const char *what, size_t at) {
    if (strstr(stq_last_error(), name) == NULL)
        fail_msg("%s %zu: \"%s\" does not name %s", what, at, stq_last_error(), name);
}

/* ---- Every byte ---- */

/* Opens and reads everything; the checksums must find the damage. */
static stq_status read_damaged(const char *path) {
    stq_checkpoint *checkpoint;
    stq_status status = stq_checkpoint_open(&checkpoint, path);
    if (status == STQ_OK)
        status = stq_checkpoint_verify(checkpoint);
    stq_checkpoint_close(checkpoint);
    return status;
}

static void assert_located(const sample *s, size_t at) {
    unsigned long long begin = 0, end = 0;
    const char *offsets = strstr(stq_last_error(), "offset");
    assert_names(part_name, "byte", at);
    if (offsets == NULL)
        fail_msg("byte %zu: \"%s\" names no offset", at, stq_last_error());
    if (at < s->data_start)
        return;
    assert_names("tensor '", "byte", at);
    if (sscanf(offsets, "offsets %llu to %llu", &begin, &end) != 2 || at < begin || at >= end)
        fail_msg("byte %zu: \"%s\" is about others", at, stq_last_error());
}

/* One byte after another gets another value: one at random, or with `all` each of the 255 others. */
static int damage_every_byte(const sample *s, const char *path, const uint8_t *bytes, size_t size, uint32_t seed,
                             bool of_part) {
    char *folder = checkpoint_path(s);
    int tries = 0, file = open(path, O_WRONLY);
    assert_true(file >= 0);
    for (size_t at = 0; at < size; at++) {
        int first = 1 + (int)(test_uniform(seed, (uint32_t)at) * 255), count = test_is_long() ? 255 : 1;
        for (int k = 0; k < count; k++) {
            uint8_t value = (uint8_t)(bytes[at] + (first + k - 1) % 255 + 1);
            assert_int_equal(pwrite(file, &value, 1, (off_t)at), 1);
            stq_status status = read_damaged(folder);
            if (status == STQ_OK)
                fail_msg("%s: byte %zu with the value %d was accepted (seed %u)", path, at, value, seed);
            if (of_part)
                assert_located(s, at);
            else
                assert_names("model", "byte of the index", at);
            tries++;
        }
        assert_int_equal(pwrite(file, &bytes[at], 1, (off_t)at), 1);
    }
    close(file);
    assert_ok(read_damaged(folder));
    free(folder);
    return tries;
}

static uint32_t new_seed(void) {
    const char *given = getenv("STQUANT_SEED");
    return given ? (uint32_t)strtoul(given, NULL, 10) : (uint32_t)time(NULL);
}

static void test_every_byte(void **state) {
    (void)state;
    sample s;
    sample_open(&s);
    uint32_t seed = new_seed();
    int tries = damage_every_byte(&s, s.part, s.part_bytes, s.part_size, seed, true);
    tries += damage_every_byte(&s, s.index, s.index_bytes, s.index_size, seed, false);
    printf("# %d damaged bytes of %zu, seed %u\n", tries, s.part_size + s.index_size, seed);
    sample_close(&s);
}

/* Without the index nothing vouches for the header: what is accepted must be sound, and padding may be anything. */
static void test_every_byte_without_index(void **state) {
    (void)state;
    sample s;
    sample_open(&s);
    uint32_t seed = new_seed();
    int accepted = 0, file = open(s.part, O_WRONLY);
    assert_true(file >= 0);
    for (size_t at = 0; at < s.part_size; at++)
        for (int k = 0; k < (test_is_long() ? 8 : 1); k++) {
            uint8_t value = s.part_bytes[at] ^ (uint8_t)(1 << ((int)(test_uniform(seed, (uint32_t)at) * 8) + k) % 8);
            assert_int_equal(pwrite(file, &value, 1, (off_t)at), 1);
            open_watched(s.part, s.part_size);
            if (read_anything(s.part) == STQ_OK)
                accepted++;
            else
                assert_names(part_name, "byte", at);
            assert_int_equal(pwrite(file, &s.part_bytes[at], 1, (off_t)at), 1);
        }
    close(file);
    printf("# %d of %zu bytes of the header are known to the index alone, seed %u\n", accepted, s.data_start, seed);
    assert_true(accepted < (int)s.data_start * (test_is_long() ? 8 : 1));
    sample_close(&s);
}

/* ---- Every length ---- */

static void cut_every_length(const sample *s, const char *path, const uint8_t *bytes, size_t size, const char *name) {
    char *folder = checkpoint_path(s);
    for (size_t length = size; length-- > 0;) {
        assert_int_equal(truncate(path, (off_t)length), 0);
        if (read_damaged(folder) == STQ_OK)
            fail_msg("%s: %zu of %zu bytes were accepted", path, length, size);
        assert_names(name, "length", length);
        if (strcmp(name, part_name) == 0 && open_watched(path, length) == STQ_OK)
            fail_msg("%s alone: %zu of %zu bytes were accepted", path, length, size);
    }
    write_bytes(path, bytes, size);
    FILE *file = fopen(path, "ab");
    fputc(0, file);
    fclose(file);
    assert_int_equal(read_damaged(folder), STQ_CORRUPT);
    write_bytes(path, bytes, size);
    assert_ok(read_damaged(folder));
    free(folder);
}

static void test_every_length(void **state) {
    (void)state;
    sample s;
    sample_open(&s);
    cut_every_length(&s, s.part, s.part_bytes, s.part_size, part_name);
    cut_every_length(&s, s.index, s.index_bytes, s.index_size, STQ_INDEX_NAME);
    sample_close(&s);
}

/* ---- Headers at random ---- */

typedef struct text {
    char *bytes;
    size_t size;
} text;

static uint32_t draw(uint32_t seed, uint32_t *counter, uint32_t below) {
    return (uint32_t)(test_uniform(seed, (*counter)++) * below);
}

/* Replaces `length` bytes at `at` by `other`. */
static void replace(text *t, size_t at, size_t length, const char *other, size_t other_length) {
    char *bytes = malloc(t->size - length + other_length + 1);
    memcpy(bytes, t->bytes, at);
    memcpy(bytes + at, other, other_length);
    memcpy(bytes + at + other_length, t->bytes + at + length, t->size - at - length);
    free(t->bytes);
    t->bytes = bytes;
    t->size += other_length - length;
}

static void mutate_number(text *t, uint32_t seed, uint32_t *counter) {
    static const char *const numbers[] = {"0",
                                          "-1",
                                          "1",
                                          "7",
                                          "255",
                                          "256",
                                          "64",
                                          "65",
                                          "32",
                                          "9223372036854775807",
                                          "-9223372036854775808",
                                          "9223372036854775808",
                                          "274877906944",
                                          "1e308",
                                          "1e999",
                                          "0.5",
                                          "null",
                                          "[]",
                                          "{}",
                                          "\"x\"",
                                          "4294967296",
                                          "1152921504606846976"};
    size_t at = draw(seed, counter, (uint32_t)t->size);
    at += strcspn(t->bytes + at, "0123456789");
    size_t length = at < t->size ? strspn(t->bytes + at, "0123456789") : 0;
    const char *number = numbers[draw(seed, counter, sizeof numbers / sizeof *numbers)];
    replace(t, at, length, number, strlen(number));
}

static void mutate_bytes(text *t, uint32_t seed, uint32_t *counter) {
    static const char *const pieces[] = {"[",    "]",        "{",          "}",       ",",   ":",
                                         "\"",   "\\\"",     "\\u0000",    "\\/..",   "\n",  "\xc3\xa4",
                                         "\xff", "[[[[[[[[", "{\"a\":1},", "\\ud800", "@128"};
    size_t at = draw(seed, counter, (uint32_t)t->size), most = t->size - at;
    size_t length = draw(seed, counter, 24);
    length = length < most ? length : most;
    switch (draw(seed, counter, 4)) {
    case 0: /* one byte */
        t->bytes[at] = (char)draw(seed, counter, 256);
        break;
    case 1: /* a hole */
        replace(t, at, length, "", 0);
        break;
    case 2: { /* some of it twice */
        char *copy = malloc(length + 1);
        memcpy(copy, t->bytes + at, length);
        replace(t, draw(seed, counter, (uint32_t)t->size), 0, copy, length);
        free(copy);
        break;
    }
    default: {
        const char *piece = pieces[draw(seed, counter, sizeof pieces / sizeof *pieces)];
        replace(t, at, draw(seed, counter, 2) && most > 0, piece, strlen(piece));
    }
    }
    t->bytes[t->size] = 0;
}

/* The header with a few changes, before the data as it was. */
static size_t write_mutant(const sample *s, uint32_t seed) {
    uint32_t counter = 0, changes = 1 + draw(seed, &counter, 6);
    bool numbers = draw(seed, &counter, 2);
    text header = {.bytes = malloc(s->data_start + 1), .size = s->data_start - 8};
    memcpy(header.bytes, s->part_bytes + 8, header.size);
    header.bytes[header.size] = 0;
    for (uint32_t i = 0; i < changes && header.size > 0; i++) {
        if (numbers)
            mutate_number(&header, seed, &counter);
        else
            mutate_bytes(&header, seed, &counter);
        header.bytes[header.size] = 0;
    }
    size_t data = s->part_size - s->data_start, size = 8 + header.size + data;
    uint64_t length = header.size;
    uint8_t *bytes = malloc(size);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header.bytes, header.size);
    memcpy(bytes + 8 + header.size, s->part_bytes + s->data_start, data);
    write_bytes(s->part, bytes, size);
    free(bytes);
    free(header.bytes);
    return size;
}

static void test_fuzzed_headers(void **state) {
    (void)state;
    sample s;
    sample_open(&s);
    uint32_t seed = new_seed();
    int headers = test_is_long() ? 10000 : 1000, accepted = 0;
    for (int i = 0; i < headers; i++) {
        size_t size = write_mutant(&s, seed + (uint32_t)i * 7919);
        open_watched(s.part, size);
        if (read_anything(s.part) == STQ_OK)
            accepted++;
        else
            assert_names(part_name, "mutant", (size_t)i);
    }
    printf("# %d of %d headers were accepted, seed %u\n", accepted, headers, seed);
    /* Some changes are harmless: a learning rate, a space. Most are not. */
    assert_in_range(accepted, 1, headers / 2);
    sample_close(&s);
}

/* ---- Files made to deceive ---- */

static void write_header(const char *path, const char *header, size_t data_bytes) {
    size_t length = strlen(header), size = 8 + length + data_bytes;
    uint8_t *bytes = calloc(size, 1);
    uint64_t field = length;
    memcpy(bytes, &field, 8);
    memcpy(bytes + 8, header, length);
    write_bytes(path, bytes, size);
    free(bytes);
}

#define ENTRY(NAME, TYPE, SHAPE, OFFSETS) \
    "\"" NAME "\":{\"dtype\":\"" TYPE "\",\"shape\":" SHAPE ",\"data_offsets\":" OFFSETS "}"

/* Headers over 64 bytes of data, and what the answer must name. */
static const struct {
    const char *what, *header;
    stq_status expected;
    const char *names[3];
} hostile[] = {
    {"overlapping tensors",
     "{" ENTRY("a", "U8", "[40]", "[0,40]") "," ENTRY("b", "U8", "[40]", "[24,64]") "}",
     STQ_CORRUPT,
     {"tensor 'b'", "offset 24", "inside the tensor before it"}},
    {"the same bytes twice",
     "{" ENTRY("a", "U8", "[64]", "[0,64]") "," ENTRY("b", "U8", "[64]", "[0,64]") "}",
     STQ_CORRUPT,
     {"tensor 'b'", "offset 0", "inside the tensor before it"}},
    {"a hole",
     "{" ENTRY("a", "U8", "[32]", "[0,32]") "," ENTRY("b", "U8", "[24]", "[40,64]") "}",
     STQ_CORRUPT,
     {"tensor 'b'", "offset 40", "behind a hole"}},
    {"offsets past the end",
     "{" ENTRY("a", "U8", "[65]", "[0,65]") "}",
     STQ_CORRUPT,
     {"tensor 'a'", "offset 65", "64"}},
    {"offsets far past the end",
     "{" ENTRY("a", "U8", "[9223372036854775807]", "[0,9223372036854775807]") "}",
     STQ_CORRUPT,
     {"tensor 'a'"}},
    {"offsets backwards", "{" ENTRY("a", "U8", "[8]", "[64,56]") "}", STQ_CORRUPT, {"tensor 'a'", "data_offsets"}},
    {"negative offsets", "{" ENTRY("a", "U8", "[64]", "[-8,56]") "}", STQ_CORRUPT, {"tensor 'a'", "data_offsets"}},
    {"one offset", "{" ENTRY("a", "U8", "[64]", "[64]") "}", STQ_CORRUPT, {"tensor 'a'", "data_offsets"}},
    {"data left over", "{" ENTRY("a", "U8", "[60]", "[0,60]") "}", STQ_CORRUPT, {"offset 60", "64"}},
    {"a shape that overflows",
     "{" ENTRY("a", "F32", "[4294967296,4294967296]", "[0,64]") "}",
     STQ_CORRUPT,
     {"tensor 'a'", "too many elements"}},
    {"a shape that overflows behind a zero",
     "{" ENTRY("a", "F32", "[0,9223372036854775807,9223372036854775807]", "[0,64]") "}",
     STQ_CORRUPT,
     {"tensor 'a'"}},
    {"a negative size", "{" ENTRY("a", "F32", "[-16]", "[0,64]") "}", STQ_CORRUPT, {"tensor 'a'", "shape"}},
    {"a size that is no integer", "{" ENTRY("a", "F32", "[16.0]", "[0,64]") "}", STQ_CORRUPT, {"tensor 'a'", "shape"}},
    {"a shape of another size", "{" ENTRY("a", "F32", "[15]", "[0,64]") "}", STQ_CORRUPT, {"tensor 'a'", "64", "60"}},
    {"nine dimensions", "{" ENTRY("a", "F32", "[16,1,1,1,1,1,1,1,1]", "[0,64]") "}", STQ_CORRUPT, {"tensor 'a'"}},
    {"duplicate keys",
     "{" ENTRY("a", "U8", "[32]", "[0,32]") "," ENTRY("a", "U8", "[32]", "[32,64]") "}",
     STQ_CORRUPT,
     {"offset", "duplicate"}},
    {"duplicate keys that differ in their escapes",
     "{" ENTRY("a", "U8", "[32]", "[0,32]") "," ENTRY("\\u0061", "U8", "[32]", "[32,64]") "}",
     STQ_CORRUPT,
     {"offset", "duplicate"}},
    {"an unknown type", "{" ENTRY("a", "F7", "[64]", "[0,64]") "}", STQ_UNSUPPORTED, {"tensor 'a'", "F7"}},
    {"no name", "{" ENTRY("", "U8", "[64]", "[0,64]") "}", STQ_CORRUPT, {"name"}},
    {"a name with a line feed", "{" ENTRY("a\\nb", "U8", "[64]", "[0,64]") "}", STQ_CORRUPT, {"name"}},
    {"a name with a zero byte", "{" ENTRY("a\\u0000b", "U8", "[64]", "[0,64]") "}", STQ_CORRUPT, {"offset"}},
    {"invalid UTF-8", "{" ENTRY("\xff", "U8", "[64]", "[0,64]") "}", STQ_CORRUPT, {"offset"}},
    {"members that nobody knows",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[64],\"data_offsets\":[0,64],\"x\":1}}",
     STQ_CORRUPT,
     {"tensor 'a'"}},
    {"a list", "[1]", STQ_CORRUPT, {"offset 8"}},
    {"no end", "{\"a\":", STQ_CORRUPT, {"offset 13"}},
    {"metadata of numbers", "{\"__metadata__\":{\"stquant\":1}}", STQ_CORRUPT, {"__metadata__"}},
    {"a description that is no JSON", "{\"__metadata__\":{\"stquant\":\"}\"}}", STQ_CORRUPT, {"offset"}},
};

static void test_hostile_headers(void **state) {
    (void)state;
    char folder[64];
    make_folder(folder);
    char *path = text_of("%s/hostile.safetensors", folder);
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        write_header(path, hostile[i].header, 64);
        stq_status status = open_watched(path, 8 + strlen(hostile[i].header) + 64);
        if (status != hostile[i].expected)
            fail_msg("%s: %s (%s)", hostile[i].what, stq_status_name(status), status ? stq_last_error() : "");
        assert_names("hostile.safetensors", hostile[i].what, i);
        for (int k = 0; k < 3 && hostile[i].names[k]; k++)
            assert_names(hostile[i].names[k], hostile[i].what, i);
    }
    free(path);
    remove_folder(folder);
}

/* Lengths and nesting that would cost memory or stack. */
static void test_huge_counts(void **state) {
    (void)state;
    char folder[64];
    make_folder(folder);
    char *path = text_of("%s/huge.safetensors", folder);
    const uint64_t lengths[] = {UINT64_MAX, INT64_MAX, UINT64_C(1) << 40, 100000001, 57, 1, 0};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        uint8_t bytes[64] = "........{}";
        memcpy(bytes, &lengths[i], 8);
        write_bytes(path, bytes, sizeof bytes);
        assert_int_equal(open_watched(path, sizeof bytes), STQ_CORRUPT);
        assert_names("length field at offset 0", "length", (size_t)lengths[i]);
    }
    const int depths[] = {33, 1000, 1000000};
    for (size_t i = 0; i < 3; i++) {
        char *deep = calloc((size_t)depths[i] + 16, 1);
        strcpy(deep, "{\"a\":");
        memset(deep + 5, '[', (size_t)depths[i]);
        write_header(path, deep, 0);
        assert_int_equal(open_watched(path, strlen(deep) + 8), STQ_CORRUPT);
        assert_names("nested deeper", "depth", (size_t)depths[i]);
        free(deep);
    }
    /* A million values of two bytes each. */
    char *many = calloc(2000016, 1);
    strcpy(many, "{\"a\":[");
    for (int i = 0; i < 1000000; i++)
        memcpy(many + 6 + 2 * i, "1,", 2);
    write_header(path, many, 0);
    assert_int_equal(open_watched(path, strlen(many) + 8), STQ_CORRUPT);
    assert_names("too many", "values", 1000000);
    free(many);
    free(path);
    remove_folder(folder);
}

/* Names are names: slashes and dots lead nowhere. */
static void test_names_with_slashes(void **state) {
    (void)state;
    char folder[64];
    make_folder(folder);
    char *path = text_of("%s/names.safetensors", folder);
    write_header(path, "{" ENTRY("../../etc/a", "F32", "[8]", "[0,32]") "," ENTRY("/", "F32", "[8]", "[32,64]") "}",
                 64);
    assert_ok(read_anything(path));
    assert_int_equal(count_names(folder), 1);
    char *index = text_of("%s/%s", folder, STQ_INDEX_NAME);
    const char *const files[] = {"../names.safetensors", "/etc/passwd", "a/b", ".hidden", "..", "", "a\\u0001b"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *foreign = text_of("{\"metadata\":{},\"weight_map\":{\"a\":\"%s\"}}", files[i]);
        write_bytes(index, foreign, strlen(foreign));
        assert_int_equal(open_watched(folder, strlen(foreign)), STQ_CORRUPT);
        assert_names(STQ_INDEX_NAME, "file", i);
        free(foreign);
        stq_index_file file = {.name = i == 6 ? "a\001b" : files[i], .bytes = 8};
        char *ours;
        assert_ok(stq_index_format(&file, 1, 1, 8, json_object(), &ours));
        write_bytes(index, ours, strlen(ours));
        assert_int_equal(open_watched(folder, strlen(ours)), STQ_CORRUPT);
        assert_names(STQ_INDEX_NAME, "file", i);
        free(ours);
    }
    free(index);
    free(path);
    remove_folder(folder);
}

/* ---- Descriptions made to deceive, with checksums that are right ---- */

/* The part's description with `change` made to it (a path of keys, a JSON value), header and index to match. */
static void write_description(const sample *s, const char *change, const char *value) {
    char keys[100], *rest = NULL;
    json_t *header = json_loadb((const char *)s->part_bytes + 8, s->data_start - 8, 0, NULL);
    json_t *metadata = json_object_get(header, "__metadata__");
    json_t *root = json_loads(json_string_value(json_object_get(metadata, "stquant")), 0, NULL), *at = root;
    json_t *replacement = json_loads(value, JSON_DECODE_ANY, NULL);
    assert_non_null(replacement);
    snprintf(keys, sizeof keys, "%s", change);
    char *key = strtok_r(keys, "/", &rest);
    for (char *next = strtok_r(NULL, "/", &rest); next; key = next, next = strtok_r(NULL, "/", &rest))
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
    assert_non_null(at);
    assert_int_equal(json_is_array(at) ? json_array_set_new(at, (size_t)atoi(key), replacement)
                                       : json_object_set_new(at, key, replacement),
                     0);
    char *described = json_dumps(root, JSON_COMPACT);
    json_object_set_new(metadata, "stquant", json_string(described));
    char *dumped = json_dumps(header, JSON_COMPACT);
    size_t length = strlen(dumped), data = s->part_size - s->data_start, size = 8 + length + data;
    uint8_t *bytes = malloc(size);
    uint64_t field = length;
    memcpy(bytes, &field, 8);
    memcpy(bytes + 8, dumped, length);
    memcpy(bytes + 8 + length, s->part_bytes + s->data_start, data);
    write_bytes(s->part, bytes, size);
    stq_index_file file = {.name = part_name, .bytes = size, .checksum = stq_checksum(bytes, 8 + length)};
    char *index;
    assert_ok(stq_index_format(&file, 1, 3, data, json_object(), &index));
    write_bytes(s->index, index, strlen(index));
    free(index);
    free(bytes);
    free(dumped);
    free(described);
    json_decref(root);
    json_decref(header);
}

static const struct {
    const char *key, *value;
    stq_status expected;
} lies[] = {
    {"format_version", "2", STQ_UNSUPPORTED},
    {"format_version", "0", STQ_CORRUPT},
    {"step", "-1", STQ_CORRUPT},
    {"ranks", "2", STQ_CORRUPT},
    {"rank", "1", STQ_CORRUPT},
    {"run", "\"12\"", STQ_CORRUPT},
    {"arrays", "{}", STQ_CORRUPT},
    {"arrays/0/name", "\"c\"", STQ_CORRUPT},
    {"arrays/0/dtype", "\"U8\"", STQ_CORRUPT},
    {"arrays/0/dtype", "\"F16\"", STQ_CORRUPT},
    {"arrays/0/shape", "[8]", STQ_CORRUPT},
    {"arrays/0/shape", "[274877906944,274877906944]", STQ_CORRUPT},
    {"arrays/0/first", "1", STQ_CORRUPT},
    {"arrays/0/count", "8", STQ_CORRUPT},
    {"checksums", "{}", STQ_CORRUPT},
    {"checksums/b", "\"0123\"", STQ_CORRUPT},
    {"checksums/b", "\"0123456789abcdef\"", STQ_CORRUPT},
    {"groups", "[]", STQ_CORRUPT},
    {"groups/0/beta1", "\"x\"", STQ_CORRUPT},
    {"optimizer/steps", "-3", STQ_CORRUPT},
    {"optimizer/seed", "1", STQ_CORRUPT},
    {"tensors/0/name", "\"b\"", STQ_CORRUPT},
    {"tensors/0/name", "\"\"", STQ_CORRUPT},
    {"tensors/0/rows", "0", STQ_CORRUPT},
    {"tensors/0/rows", "11", STQ_CORRUPT},
    {"tensors/0/cols", "9223372036854775807", STQ_CORRUPT},
    {"tensors/0/first", "128", STQ_CORRUPT},
    {"tensors/0/count", "128", STQ_CORRUPT},
    {"tensors/0/group", "1", STQ_CORRUPT},
    {"tensors/0/bits", "[9,3]", STQ_CORRUPT},
    {"tensors/0/bits", "[5,0]", STQ_CORRUPT},
    {"tensors/0/bits", "[6,3]", STQ_CORRUPT},
    {"tensors/0/bits", "[65,65]", STQ_CORRUPT},
    {"tensors/0/bits", "[5]", STQ_CORRUPT},
    {"tensors/0/missed", "-1", STQ_CORRUPT},
    {"tensors/0/zone", "\"red\"", STQ_CORRUPT},
    {"tensors/0/factors", "[]", STQ_CORRUPT},
    {"tensors/1/bits", "[5,3]", STQ_CORRUPT},
    {"tensors", "[]", STQ_OK}, /* no states: sound, if odd */
    {"application", "[]", STQ_CORRUPT},
};

static void test_hostile_descriptions(void **state) {
    (void)state;
    sample s;
    sample_open(&s);
    char *folder = checkpoint_path(&s);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        write_description(&s, lies[i].key, lies[i].value);
        open_watched(folder, s.part_size + s.index_size);
        stq_status status = read_anything(folder);
        if (status != lies[i].expected)
            fail_msg("%s = %s: %s (%s)", lies[i].key, lies[i].value, stq_status_name(status),
                     status ? stq_last_error() : "");
        if (status != STQ_OK)
            assert_names("step-00000003", lies[i].key, i);
    }
    free(folder);
    sample_close(&s);
}

/* Moments that no run leaves, in files whose checksums are right. */
static void test_hostile_contents(void **state) {
    (void)state;
    sample s;
    sample_open(&s);
    static const struct {
        const char *entry;
        size_t at;
        uint32_t word;
        size_t bytes;
    } contents[] = {
        {"state.b.m.values", 8, 0x7fc00000, 4},  /* not a number */
        {"state.b.m.values", 0, 0x7f800000, 4},  /* infinite */
        {"state.b.v.values", 12, 0xbf800000, 4}, /* negative */
        {"state.w.m.scales", 2, 0xffff, 2},      /* no scale word of an encoder */
        {"state.w.v.scales", 0, 0xffff, 2},
    };
    json_t *header = json_loadb((const char *)s.part_bytes + 8, s.data_start - 8, 0, NULL);
    char *folder = checkpoint_path(&s);
    for (size_t i = 0; i < sizeof contents / sizeof *contents; i++) {
        json_t *offsets = json_object_get(json_object_get(header, contents[i].entry), "data_offsets");
        assert_non_null(offsets);
        size_t begin = s.data_start + (size_t)json_integer_value(json_array_get(offsets, 0));
        size_t end = s.data_start + (size_t)json_integer_value(json_array_get(offsets, 1));
        uint8_t kept[4];
        memcpy(kept, s.part_bytes + begin + contents[i].at, 4);
        memcpy(s.part_bytes + begin + contents[i].at, &contents[i].word, contents[i].bytes);
        char *key = text_of("checksums/%s", contents[i].entry);
        char *digits = text_of("\"%016" PRIx64 "\"", stq_checksum(s.part_bytes + begin, end - begin));
        write_description(&s, key, digits);
        if (read_anything(folder) != STQ_CORRUPT)
            fail_msg("%s with 0x%x was accepted", contents[i].entry, contents[i].word);
        assert_names(part_name, contents[i].entry, i);
        assert_names(contents[i].entry[6] == 'w' ? "'w'" : "'b'", contents[i].entry, i);
        memcpy(s.part_bytes + begin + contents[i].at, kept, 4);
        free(key);
        free(digits);
    }
    json_decref(header);
    free(folder);
    sample_close(&s);
}

/* Two parts of seven elements, of which the second begins elsewhere than the first ends, or is of another save. */
static void test_hostile_parts(void **state) {
    (void)state;
    float values[BIASES] = {1, 2, 3, 4, 5, 6, 7};
    int64_t shape[] = {BIASES};
    const struct {
        int64_t first;
        const char *named;
    } seconds[] = {{4, NULL}, {3, "overlap at element 4"}, {5, "leave a hole at element 4"}};
    for (size_t i = 0; i < 3; i++) {
        char folder[64];
        make_folder(folder);
        for (uint32_t rank = 0; rank < 2; rank++) {
            stq_saver *saver;
            stq_saver_config config = {.size = sizeof config, .folder = folder, .rank = rank, .ranks = 2, .run = 9};
            assert_ok(stq_saver_open(&saver, &config));
            stq_array array = stq_array_whole("b", STQ_FLOAT32, 1, shape, values);
            array.first = rank ? seconds[i].first : 0;
            array.count = rank ? BIASES - array.first : 4;
            array.data = values + array.first;
            stq_save save = {.size = sizeof save, .step = 1, .arrays = &array, .array_count = 1};
            assert_ok(stq_saver_save(saver, &save));
            assert_ok(stq_saver_wait(saver, NULL));
            stq_saver_close(saver);
        }
        stq_checkpoint *checkpoint;
        stq_status status = stq_checkpoint_open(&checkpoint, folder);
        stq_checkpoint_close(checkpoint);
        assert_int_equal(status, seconds[i].named ? STQ_CORRUPT : STQ_OK);
        if (seconds[i].named) {
            assert_names("model-00002-of-00002", "part", i);
            assert_names("'b'", "part", i);
            assert_names(seconds[i].named, "part", i);
        }
        remove_folder(folder);
    }
}

/* What the fuzzer begins with, and what it found: none of it does harm. */
static void test_corpus(void **state) {
    (void)state;
    char *folder =
        text_of("%s/tests/fuzz/corpus/checkpoint", getenv("STQUANT_SOURCE") ? getenv("STQUANT_SOURCE") : ".");
    DIR *stream = opendir(folder);
    int files = 0, accepted = 0;
    if (stream == NULL)
        fail_msg("there is no %s; run this test with scripts/run-tests", folder);
    for (const struct dirent *entry = readdir(stream); entry; entry = readdir(stream)) {
        if (entry->d_name[0] == '.')
            continue;
        char *path = text_of("%s/%s", folder, entry->d_name);
        bool sound = strncmp(entry->d_name, "sound-", 6) == 0;
        stq_status status = read_anything(path);
        if ((status == STQ_OK) != sound)
            fail_msg("%s: %s (%s)", entry->d_name, stq_status_name(status), status ? stq_last_error() : "");
        files++;
        accepted += status == STQ_OK;
        free(path);
    }
    closedir(stream);
    free(folder);
    assert_in_range(accepted, 4, files - 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_byte),
        cmocka_unit_test(test_every_byte_without_index),
        cmocka_unit_test(test_every_length),
        cmocka_unit_test(test_fuzzed_headers),
        cmocka_unit_test(test_hostile_headers),
        cmocka_unit_test(test_huge_counts),
        cmocka_unit_test(test_names_with_slashes),
        cmocka_unit_test(test_hostile_descriptions),
        cmocka_unit_test(test_hostile_contents),
        cmocka_unit_test(test_hostile_parts),
        cmocka_unit_test(test_corpus),
    };
    omp_set_num_threads(1); /* these files are small, and there are many */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
