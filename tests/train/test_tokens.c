// Byte-pair encoding: the tables, the joining of pairs against the plain algorithm, cutting text into stretches,
// token files, and every kind of bad input.
#include "testing.h"

#include <unistd.h>

#include "train/token_file.h"
#include "train/tokenizer.h"
#include "train/utf8.h"

static struct tokenizer *parse(const char *text) {
    struct tokenizer *tokenizer;
    if (tokenizer_parse("test.bpe", text, strlen(text), &tokenizer) != APP_OK) {
        fail_msg("%s", app_failure());
    }
    return tokenizer;
}

static void assert_refused(const char *text, size_t count, const char *sentence) {
    struct tokenizer *tokenizer = (struct tokenizer *)1;
    assert_int_equal(tokenizer_parse("test.bpe", text, count, &tokenizer), APP_FAILED);
    assert_null(tokenizer);
    if (!strstr(app_failure(), sentence)) {
        fail_msg("'%s' does not say '%s'", app_failure(), sentence);
    }
}

static void assert_tokens(struct tokenizer *tokenizer, const char *text, const int32_t *expected, int64_t count) {
    struct token_list list = {0};
    assert_int_equal(tokenizer_encode(tokenizer, "text", (const uint8_t *)text, (int64_t)strlen(text), 1, &list),
                     APP_OK);
    assert_int_equal(list.count, count);
    assert_memory_equal(list.tokens, expected, (size_t)count * sizeof(*expected));
    token_list_release(&list);
}

// GPT-2 numbers its bytes by the characters that stand for them: '!' is 0, 'A' 32, space 220, newline 198.
static void bytes_have_gpt2s_numbers(void **state) {
    (void)state;
    struct tokenizer *tokenizer = parse("#version: 0.2\nh e\n");
    const struct {
        uint8_t byte;
        int32_t token;
    } known[] = {{'!', 0}, {'A', 32},   {'~', 93},  {0xa1, 94}, {0xff, 187},
                 {0, 188}, {'\n', 198}, {' ', 220}, {0xad, 255}};
    int seen[256] = {0};
    for (int32_t token = 0; token < 256; token++) {
        size_t count;
        const uint8_t *bytes = tokenizer_bytes(tokenizer, token, &count);
        assert_int_equal(count, 1);
        seen[bytes[0]]++;
    }
    for (int byte = 0; byte < 256; byte++) {
        assert_int_equal(seen[byte], 1);
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        size_t count;
        assert_int_equal(tokenizer_bytes(tokenizer, known[i].token, &count)[0], known[i].byte);
    }
    assert_int_equal(tokenizer_vocabulary(tokenizer), 258);
    assert_int_equal(tokenizer_end(tokenizer), 257);
    tokenizer_destroy(tokenizer);
}

static void merges_apply_in_their_order(void **state) {
    (void)state;
    // "\xc4\xa0" is how the file writes a space.
    struct tokenizer *tokenizer = parse("#version: 0.2\nh e\n\xc4\xa0 t\n\xc4\xa0t he\nl l\nhe ll\nhell o\n");
    assert_tokens(tokenizer, "hello the", (int32_t[]){261, 258}, 2);
    assert_tokens(tokenizer, "hehe", (int32_t[]){256, 256}, 2);
    // The space belongs to the word after it; of several spaces only the last one does.
    assert_tokens(tokenizer, "the  the", (int32_t[]){83, 256, 220, 258}, 4);
    assert_tokens(tokenizer, "", NULL, 0);
    tokenizer_destroy(tokenizer);
}

static void windows_line_ends_are_no_part_of_a_merge(void **state) {
    (void)state;
    struct tokenizer *tokenizer = parse("#version: 0.2\r\nh e\r\nhe y\r\n");
    assert_tokens(tokenizer, "hey", (int32_t[]){257}, 1);
    tokenizer_destroy(tokenizer);
}

// Random merges over a small alphabet: many ways to join, overlaps, long tokens.
static struct tokenizer *random_tokenizer(uint32_t seed, int64_t wanted, struct merge *merges, int64_t *made) {
    struct tokenizer *tokenizer = NULL;
    const uint8_t alphabet[] = {64, 65, 66, 0, 220}; // a, b, c, !, space
    *made = 0;
    for (uint32_t draw = 0; *made < wanted && draw < 20 * wanted; draw++) {
        uint32_t parts[2];
        for (uint32_t k = 0; k < 2; k++) {
            const uint32_t pick = (uint32_t)(test_uniform(seed + k, draw) * (double)(*made + 5));
            parts[k] = pick < 5 ? alphabet[pick] : 256 + pick - 5;
        }
        merges[*made] = (struct merge){parts[0], parts[1]};
        struct tokenizer *larger = NULL;
        // A token that exists already is refused, and another pair is drawn.
        if (tokenizer_create("random", merges, *made + 1, &larger) == APP_OK) {
            tokenizer_destroy(tokenizer);
            tokenizer = larger;
            ++*made;
        }
    }
    return tokenizer;
}

// GPT-2's own procedure: find the first merge of the list that applies anywhere, join it everywhere, again.
static int64_t plain_encode(const struct merge *merges, int64_t merge_count, const uint8_t *text, int64_t count,
                            const int32_t *token_of_byte, int32_t *tokens) {
    for (int64_t i = 0; i < count; i++) {
        tokens[i] = token_of_byte[text[i]];
    }
    for (;;) {
        int64_t best = merge_count;
        for (int64_t i = 0; i + 1 < count; i++) {
            for (int64_t m = 0; m < best; m++) {
                best = (uint32_t)tokens[i] == merges[m].left && (uint32_t)tokens[i + 1] == merges[m].right ? m : best;
            }
        }
        if (best == merge_count) {
            return count;
        }
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++) {
            const int joins = i + 1 < count && (uint32_t)tokens[i] == merges[best].left &&
                              (uint32_t)tokens[i + 1] == merges[best].right;
            tokens[kept++] = joins ? 256 + (int32_t)best : tokens[i];
            i += joins;
        }
        count = kept;
    }
}

static void joining_equals_the_plain_procedure(void **state) {
    (void)state;
    const uint32_t runs = test_is_long() ? 400 : 40;
    for (uint32_t seed = 1; seed <= runs; seed++) {
        struct merge merges[60];
        int64_t made;
        struct tokenizer *tokenizer = random_tokenizer(seed, 60, merges, &made);
        int32_t token_of_byte[256], expected[600];
        for (int32_t token = 0; token < 256; token++) {
            size_t one;
            token_of_byte[tokenizer_bytes(tokenizer, token, &one)[0]] = token;
        }
        for (uint32_t word = 0; word < 40; word++) {
            // Letters alone, so that the text is one piece.
            uint8_t text[600];
            const int64_t count = 1 + (int64_t)(test_uniform(seed + 1000, word) * (word % 8 ? 40 : 600));
            for (int64_t i = 0; i < count; i++) {
                text[i] = (uint8_t)('a' + (int)(test_uniform(seed + 2000 + word, (uint32_t)i) * 3));
            }
            const int64_t expected_count = plain_encode(merges, made, text, count, token_of_byte, expected);
            struct token_list list = {0};
            assert_int_equal(tokenizer_encode(tokenizer, "text", text, count, 1, &list), APP_OK);
            if (list.count != expected_count ||
                memcmp(list.tokens, expected, (size_t)expected_count * sizeof(*expected)) != 0) {
                fail_msg("seed %u, word %u: %lld tokens differ from the plain procedure's %lld", seed, word,
                         (long long)list.count, (long long)expected_count);
            }
            token_list_release(&list);
        }
        tokenizer_destroy(tokenizer);
    }
}

// Long words go another way than remembered ones, and a word of a million letters must end.
static void long_pieces_take_reasonable_time(void **state) {
    (void)state;
    struct tokenizer *tokenizer = parse("a a\naa aa\naaaa aaaa\n");
    const int64_t count = 1 << 20;
    uint8_t *text = malloc((size_t)count);
    memset(text, 'a', (size_t)count);
    struct token_list list = {0};
    assert_int_equal(tokenizer_encode(tokenizer, "text", text, count, 1, &list), APP_OK);
    assert_int_equal(list.count, count / 8);
    list.count = 0;
    memset(text, ' ', (size_t)count);
    assert_int_equal(tokenizer_encode(tokenizer, "text", text, count, 1, &list), APP_OK);
    assert_int_equal(list.count, count);
    token_list_release(&list);
    free(text);
    tokenizer_destroy(tokenizer);
}

// Text of several stretches with every kind of neighbour around the newlines where it may be cut.
static void threads_and_stretches_do_not_matter(void **state) {
    (void)state;
    static const char *const parts[] = {"ab",           "ca b", " ",      "\n",  "\n\n", "\n ",      "b!",
                                        "\t",           "!!!",  "12",     "'s",  "\r",   "\xc2\xa0", "\xe3\x80\x80",
                                        "\xe4\xb8\xad", "x's",  "\n\n\n", "a\n", "\n!",  " \n"};
    const uint32_t seed = 7;
    const int64_t bytes = 3 << 20;
    struct merge merges[60];
    int64_t made, count = 0;
    struct tokenizer *tokenizer = random_tokenizer(seed, 60, merges, &made);
    uint8_t *text = malloc((size_t)bytes + 16);
    for (uint32_t i = 0; count < bytes; i++) {
        const char *part = parts[(size_t)(test_uniform(seed, i) * 20)];
        memcpy(text + count, part, strlen(part));
        count += (int64_t)strlen(part);
    }
    struct token_list one = {0}, three = {0}, cut = {0};
    assert_int_equal(tokenizer_encode(tokenizer, "text", text, count, 1, &one), APP_OK);
    assert_int_equal(tokenizer_encode(tokenizer, "text", text, count, 3, &three), APP_OK);
    assert_int_equal(one.count, three.count);
    assert_memory_equal(one.tokens, three.tokens, (size_t)one.count * sizeof(int32_t));
    // Encoding decodes to the same bytes.
    int64_t at = 0;
    for (int64_t i = 0; i < one.count; i++) {
        size_t length;
        const uint8_t *token = tokenizer_bytes(tokenizer, one.tokens[i], &length);
        assert_memory_equal(text + at, token, length);
        at += (int64_t)length;
    }
    assert_int_equal(at, count);
    // Pieces of 1000 bytes from a newline on, one after the other, are below the size of a stretch.
    for (int64_t first = 0, end; first < count; first = end) {
        for (end = first + 1000; end < count && !(text[end - 1] == '\n' && text[end] == 'a'); end++) {
        }
        end = end < count ? end : count;
        // With a letter behind them, the pieces see what the whole text sees.
        const uint8_t kept = text[end];
        text[end] = 'a';
        struct token_list piece = {0};
        const int more = end < count;
        assert_int_equal(tokenizer_encode(tokenizer, "text", text + first, end - first + more, 1, &piece), APP_OK);
        for (int64_t i = 0; i < piece.count - more; i++) {
            assert_int_equal(token_list_add(&cut, piece.tokens[i]), APP_OK);
        }
        token_list_release(&piece);
        text[end] = kept;
    }
    assert_int_equal(cut.count, one.count);
    assert_memory_equal(cut.tokens, one.tokens, (size_t)one.count * sizeof(int32_t));
    token_list_release(&one);
    token_list_release(&three);
    token_list_release(&cut);
    free(text);
    tokenizer_destroy(tokenizer);
}

static void other_files_are_no_merges(void **state) {
    (void)state;
    const struct {
        const char *text, *sentence;
    } cases[] = {
        {"", "holds no merges"},
        {"#version: 0.2\n", "holds no merges"},
        {"{\n  \"model\": {", "line 1: not two parts"},
        {"{\"!\": 0, \"\\\"\": 1}", "is neither a byte nor made by an earlier line"},
        {"IQ== 0\n", "line 1: \"IQ==\" is neither a byte nor made by an earlier line"},
        {"h e\nhe l o\n", "line 2: more than two parts"},
        {"h e\n\nt h\n", "line 2: not two parts"},
        {"h e\nt h e\n", "line 2: more than two parts"},
        {"h e\nhel l\n", "line 2: \"hel\" is neither a byte nor made by an earlier line"},
        {"h e\nh e\n", "line 2: makes token 256 once more"},
        {"a b\nb c\nab c\na bc\n", "line 4: makes token 258 once more"},
        {"h e\nt\th\n", "line 2: byte 2 is no character of a merges file"},
        {"h e\n\xff \xfe\n", "line 2: byte 1 is no character of a merges file"},
        {"h e\nh \xc4\x85\n", ""}, // the character 261 stands for byte 5
        {"h e\nh \xc6\x80\n", "line 2: byte 3 is no character of a merges file"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (cases[i].sentence[0]) {
            assert_refused(cases[i].text, strlen(cases[i].text), cases[i].sentence);
        } else {
            tokenizer_destroy(parse(cases[i].text));
        }
    }
    assert_refused("h\0 e\n", 5, "line 1: byte 2 is no character of a merges file");
}

static void merges_of_a_damaged_token_file_are_refused(void **state) {
    (void)state;
    struct tokenizer *tokenizer;
    const struct merge later[] = {{5, 256}}, same[] = {{1, 2}, {1, 2}};
    assert_int_equal(tokenizer_create("x", later, 1, &tokenizer), APP_FAILED);
    assert_non_null(strstr(app_failure(), "joins a token that does not exist yet"));
    assert_int_equal(tokenizer_create("x", same, 2, &tokenizer), APP_FAILED);
    // Tokens that double in length with every merge would fill the memory.
    struct merge doubling[40];
    for (uint32_t i = 0; i < 40; i++) {
        doubling[i] = (struct merge){i ? 255 + i : 3, i ? 255 + i : 3};
    }
    assert_int_equal(tokenizer_create("x", doubling, 40, &tokenizer), APP_FAILED);
    assert_non_null(strstr(app_failure(), "more than 65535 bytes"));
    assert_null(tokenizer);
}

static void text_that_is_not_utf8_is_refused(void **state) {
    (void)state;
    struct tokenizer *tokenizer = parse("h e\n");
    static const char *const wrong[] = {"\x80",         "ab\xc3",           "\xc0\xaf",         "\xe0\x9f\xbf",
                                        "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80",
                                        "\xc3(",        "\xe2\x82"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct token_list list = {0};
        const size_t count = strlen(wrong[i]);
        assert_int_equal(tokenizer_encode(tokenizer, "some text", (const uint8_t *)wrong[i], (int64_t)count, 1, &list),
                         APP_FAILED);
        assert_non_null(strstr(app_failure(), "some text is not UTF-8: byte "));
        assert_int_equal(list.count, 0);
        token_list_release(&list);
    }
    // Every character is read back as it was written.
    for (uint32_t character = 0; character <= 0x110000; character++) {
        uint8_t bytes[4];
        size_t length = 0;
        if (character < 0x80) {
            bytes[length++] = (uint8_t)character;
        } else if (character < 0x800) {
            bytes[length++] = (uint8_t)(0xc0 | character >> 6);
        } else if (character < 0x10000) {
            bytes[length++] = (uint8_t)(0xe0 | character >> 12);
        } else {
            bytes[length++] = (uint8_t)(0xf0 | character >> 18);
        }
        for (int shift = character < 0x80      ? 0
                         : character < 0x800   ? 6
                         : character < 0x10000 ? 12
                                               : 18;
             shift > 0; shift -= 6) {
            bytes[length++] = (uint8_t)(0x80 | (character >> (shift - 6) & 0x3f));
        }
        uint32_t decoded = 0;
        const int valid = character < 0x110000 && (character < 0xd800 || character > 0xdfff);
        assert_int_equal(utf8_decode(bytes, length, &decoded), valid ? length : 0);
        assert_int_equal(utf8_first_error(bytes, length), valid ? length : 0);
        if (valid) {
            assert_int_equal(decoded, character);
        }
    }
    tokenizer_destroy(tokenizer);
}

static void token_files_hold_what_was_written(void **state) {
    (void)state;
    char path[] = "/tmp/stquant-tokens-XXXXXX";
    close(mkstemp(path));
    // Two bytes a token for a small vocabulary, four for one that does not fit.
    for (int64_t merges = 100; merges <= 70000; merges += 69900) {
        struct merge *list = malloc((size_t)merges * sizeof(*list));
        for (int64_t i = 0; i < merges; i++) { // pairs of bytes, then pairs of those
            list[i] = i < 65536 ? (struct merge){(uint32_t)(i / 256), (uint32_t)(i % 256)}
                                : (struct merge){256 + (uint32_t)(i - 65536), 300};
        }
        struct tokenizer *tokenizer;
        assert_int_equal(tokenizer_create("list", list, merges, &tokenizer), APP_OK);
        const int32_t largest = tokenizer_end(tokenizer) - 1, tokens[] = {0, 5, largest, 77};
        struct token_writer *writer;
        assert_int_equal(token_writer_open(path, tokenizer, &writer), APP_OK);
        assert_int_equal(token_writer_add(writer, tokens, 4), APP_OK);
        assert_int_equal(token_writer_add(writer, tokens + 2, 1), APP_OK);
        assert_int_equal(token_writer_finish(writer), APP_OK);
        struct token_file file;
        assert_true(token_file_recognise(path));
        assert_int_equal(token_file_open(path, &file), APP_OK);
        assert_int_equal(token_file_check(path, &file), APP_OK);
        assert_int_equal(file.count, 7);
        assert_int_equal(file.documents, 2);
        assert_int_equal(file.vocabulary, 257 + merges);
        assert_int_equal(file.token_bytes, merges < 65000 ? 2 : 4);
        const int32_t expected[] = {0, 5, largest, 77, largest + 1, largest, largest + 1};
        for (int64_t i = 0; i < 7; i++) {
            assert_int_equal(token_file_get(&file, i), expected[i]);
        }
        assert_memory_equal(file.merges, list, (size_t)merges * sizeof(*list));
        token_file_close(&file);
        tokenizer_destroy(tokenizer);
        free(list);
    }
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_have_gpt2s_numbers),
        cmocka_unit_test(merges_apply_in_their_order),
        cmocka_unit_test(windows_line_ends_are_no_part_of_a_merge),
        cmocka_unit_test(joining_equals_the_plain_procedure),
        cmocka_unit_test(long_pieces_take_reasonable_time),
        cmocka_unit_test(threads_and_stretches_do_not_matter),
        cmocka_unit_test(other_files_are_no_merges),
        cmocka_unit_test(merges_of_a_damaged_token_file_are_refused),
        cmocka_unit_test(text_that_is_not_utf8_is_refused),
        cmocka_unit_test(token_files_hold_what_was_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
