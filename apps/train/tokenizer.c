#include "train/tokenizer.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "train/bpe.h"
#include "train/file.h"
#include "train/merges.h"
#include "train/utf8.h"

// GPT-2's pattern, '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+, with \s
// written out as Unicode's White_Space: PCRE2's own \s has the Mongolian vowel separator as well.
#define SPACE "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
static const char pattern[] =
    "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+";

enum {
    STRETCH = 1 << 18,   // bytes of text that one thread encodes at a time
    WORD_BYTES = 23,     // longest piece that is remembered
    WORD_TOKENS = 5,     // and the most tokens of it
    WORD_SLOTS = 1 << 15 // pieces remembered by each thread
};

// A piece met before. A new one simply takes the slot.
struct word {
    uint64_t key[3]; // the bytes, zeros, and the length in the last byte; length 0 is an empty slot
    int32_t tokens[WORD_TOKENS];
    int32_t count;
};

// What one thread works with.
struct encoder {
    pcre2_match_data *match;
    struct word *words; // (WORD_SLOTS)
    struct bpe_scratch scratch;
};

struct tokenizer {
    struct merge_table table;
    pcre2_code *pattern;
    int compiled; // the pattern is machine code
    struct encoder *encoders;
    int encoder_count;
};

static enum app_status compile(struct tokenizer *tokenizer) {
    int error;
    PCRE2_SIZE offset;
    tokenizer->pattern =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error, &offset, NULL);
    if (!tokenizer->pattern) {
        return app_fail(APP_FAILED, "PCRE2 refuses GPT-2's pattern (error %d); it needs a PCRE2 built with Unicode.",
                        error);
    }
    tokenizer->compiled = pcre2_jit_compile(tokenizer->pattern, PCRE2_JIT_COMPLETE) == 0;
    return APP_OK;
}

// Takes over `table`.
static enum app_status create(struct merge_table *table, struct tokenizer **result) {
    struct tokenizer *tokenizer = calloc(1, sizeof(*tokenizer));
    if (!tokenizer) {
        merges_release(table);
        return app_fail(APP_FAILED, "There is no memory for a tokenizer.");
    }
    tokenizer->table = *table;
    enum app_status status = compile(tokenizer);
    if (status != APP_OK) {
        tokenizer_destroy(tokenizer);
        return status;
    }
    *result = tokenizer;
    return APP_OK;
}

enum app_status tokenizer_parse(const char *name, const char *text, size_t count, struct tokenizer **tokenizer) {
    struct merge_table table;
    *tokenizer = NULL;
    enum app_status status = merges_parse(&table, name, text, count);
    return status == APP_OK ? create(&table, tokenizer) : status;
}

enum app_status tokenizer_create(const char *name, const struct merge *merges, int64_t count,
                                 struct tokenizer **tokenizer) {
    struct merge_table table;
    *tokenizer = NULL;
    enum app_status status = merges_from_pairs(&table, name, merges, count);
    return status == APP_OK ? create(&table, tokenizer) : status;
}

enum app_status tokenizer_read(const char *path, struct tokenizer **tokenizer) {
    // GPT-2's file has half a megabyte; whatever is larger than this is not meant.
    const size_t limit = (size_t)256 << 20;
    uint8_t *text = NULL;
    size_t count = 0;
    *tokenizer = NULL;
    enum app_status status = file_read(path, limit, &text, &count);
    if (status == APP_OK) {
        status = tokenizer_parse(path, (const char *)text, count, tokenizer);
    }
    free(text);
    return status;
}

static void release_encoders(struct tokenizer *tokenizer) {
    for (int i = 0; i < tokenizer->encoder_count; i++) {
        pcre2_match_data_free(tokenizer->encoders[i].match);
        free(tokenizer->encoders[i].words);
        bpe_release(&tokenizer->encoders[i].scratch);
    }
    free(tokenizer->encoders);
    tokenizer->encoders = NULL;
    tokenizer->encoder_count = 0;
}

void tokenizer_destroy(struct tokenizer *tokenizer) {
    if (tokenizer) {
        release_encoders(tokenizer);
        pcre2_code_free(tokenizer->pattern);
        merges_release(&tokenizer->table);
        free(tokenizer);
    }
}

const struct merge *tokenizer_merges(const struct tokenizer *tokenizer) { return tokenizer->table.merges; }

int64_t tokenizer_vocabulary(const struct tokenizer *tokenizer) { return TOKENIZER_BYTES + tokenizer->table.count + 1; }

int32_t tokenizer_end(const struct tokenizer *tokenizer) { return (int32_t)(TOKENIZER_BYTES + tokenizer->table.count); }

const uint8_t *tokenizer_bytes(const struct tokenizer *tokenizer, int32_t token, size_t *count) {
    const uint32_t *starts = tokenizer->table.starts;
    *count = token == tokenizer_end(tokenizer) ? 0 : starts[token + 1] - starts[token];
    return tokenizer->table.bytes + starts[token];
}

static enum app_status list_reserve(struct token_list *list, int64_t more) {
    if (list->count + more <= list->capacity) {
        return APP_OK;
    }
    int64_t capacity = list->capacity ? 2 * list->capacity : 1 << 16;
    capacity = capacity < list->count + more ? list->count + more : capacity;
    int32_t *tokens = realloc(list->tokens, (size_t)capacity * sizeof(*tokens));
    if (!tokens) {
        return app_fail(APP_FAILED, "There is no memory for %lld tokens; encode less text at a time.",
                        (long long)(list->count + more));
    }
    list->tokens = tokens;
    list->capacity = capacity;
    return APP_OK;
}

enum app_status token_list_add(struct token_list *list, int32_t token) {
    enum app_status status = list_reserve(list, 1);
    if (status == APP_OK) {
        list->tokens[list->count++] = token;
    }
    return status;
}

void token_list_release(struct token_list *list) {
    free(list->tokens);
    *list = (struct token_list){0};
}

static enum app_status prepare_encoders(struct tokenizer *tokenizer, int threads) {
    if (threads <= tokenizer->encoder_count) {
        return APP_OK;
    }
    release_encoders(tokenizer);
    tokenizer->encoders = calloc((size_t)threads, sizeof(*tokenizer->encoders));
    for (int i = 0; tokenizer->encoders && i < threads; i++) {
        struct encoder *encoder = &tokenizer->encoders[i];
        tokenizer->encoder_count = i + 1;
        encoder->match = pcre2_match_data_create_from_pattern(tokenizer->pattern, NULL);
        encoder->words = calloc(WORD_SLOTS, sizeof(*encoder->words));
        if (!encoder->match || !encoder->words) {
            release_encoders(tokenizer);
        }
    }
    return tokenizer->encoders ? APP_OK
                               : app_fail(APP_FAILED, "There is no memory for a tokenizer; use fewer threads.");
}

// Length of the piece at `text`, at least 1.
static size_t piece_length(const struct tokenizer *tokenizer, struct encoder *encoder, const uint8_t *text,
                           size_t count) {
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (tokenizer->compiled) {
        found = pcre2_jit_match(tokenizer->pattern, text, count, 0, PCRE2_NO_UTF_CHECK, encoder->match, NULL);
    }
    if (found < 0) {
        found =
            pcre2_match(tokenizer->pattern, text, count, 0, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, encoder->match, NULL);
    }
    // Every character belongs to one of the alternatives, so the match begins where the search did.
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(encoder->match);
    return found > 0 && ends[0] == 0 && ends[1] > 0 ? ends[1] : 0;
}

static struct word *find_word(const struct encoder *encoder, const uint8_t *piece, size_t count, uint64_t key[3]) {
    key[0] = key[1] = key[2] = 0;
    memcpy(key, piece, count);
    ((uint8_t *)key)[WORD_BYTES] = (uint8_t)count;
    uint64_t hash = (key[0] ^ (key[1] << 7 | key[1] >> 57) ^ (key[2] << 13 | key[2] >> 51)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 31;
    return &encoder->words[(hash * 0xbf58476d1ce4e5b9u) >> 49];
}

static enum app_status encode_piece(const struct tokenizer *tokenizer, struct encoder *encoder, const uint8_t *piece,
                                    size_t count, int32_t *tokens, size_t *token_count) {
    uint64_t key[3];
    if (count > WORD_BYTES) {
        return bpe_encode(&tokenizer->table, &encoder->scratch, piece, count, tokens, token_count);
    }
    struct word *word = find_word(encoder, piece, count, key);
    if (word->key[0] == key[0] && word->key[1] == key[1] && word->key[2] == key[2]) {
        memcpy(tokens, word->tokens, (size_t)word->count * sizeof(*tokens));
        *token_count = (size_t)word->count;
        return APP_OK;
    }
    enum app_status status = bpe_encode(&tokenizer->table, &encoder->scratch, piece, count, tokens, token_count);
    if (status == APP_OK && *token_count <= WORD_TOKENS) {
        memcpy(word->key, key, sizeof(word->key));
        memcpy(word->tokens, tokens, *token_count * sizeof(*tokens));
        word->count = (int32_t)*token_count;
    }
    return status;
}

// The tokens of the first `count` of `available` bytes; the pattern looks at what follows a piece, so
// it must see beyond the stretch. `tokens` has room for `count` of them.
static enum app_status encode_stretch(const struct tokenizer *tokenizer, struct encoder *encoder, const uint8_t *text,
                                      size_t count, size_t available, int32_t *tokens, int64_t *token_count) {
    enum app_status status = APP_OK;
    *token_count = 0;
    for (size_t at = 0, length; at < count && status == APP_OK; at += length) {
        size_t made = 0;
        length = piece_length(tokenizer, encoder, text + at, available - at);
        if (length == 0 || length > count - at) {
            return app_fail(APP_FAILED, "PCRE2 failed on a word, %zu bytes into a stretch of text.", at);
        }
        status = encode_piece(tokenizer, encoder, text + at, length, tokens + *token_count, &made);
        *token_count += (int64_t)made;
    }
    return status;
}

// The end of a stretch of at least STRETCH bytes from `first`. No piece has a newline followed by
// something that is not white space, so cutting there changes no token.
static int64_t stretch_end(const uint8_t *text, int64_t first, int64_t count) {
    for (int64_t at = first + STRETCH; at < count; at++) {
        const uint8_t *newline = memchr(text + at - 1, '\n', (size_t)(count - at));
        if (!newline) {
            return count;
        }
        at = newline + 1 - text;
        if (at == count) {
            return count;
        }
        // White space beyond ASCII begins with one of these bytes; other characters may, too.
        const uint8_t next = text[at];
        if (next > ' ' && next != 0xc2 && next != 0xe1 && next != 0xe2 && next != 0xe3) {
            return at;
        }
    }
    return count;
}

struct stretch {
    int64_t first, count;
    int64_t token_count;
    int32_t *tokens;
    enum app_status status;
    char sentence[256]; // of a failure; sentences are kept per thread
};

static void run_stretch(struct tokenizer *tokenizer, const uint8_t *text, int64_t count, struct stretch *stretch) {
    struct encoder *encoder = &tokenizer->encoders[omp_get_thread_num()];
    stretch->tokens = malloc((size_t)stretch->count * sizeof(*stretch->tokens));
    if (!stretch->tokens) {
        stretch->status =
            app_fail(APP_FAILED, "There is no memory for the tokens of %lld bytes of text.", (long long)stretch->count);
    } else {
        stretch->status = encode_stretch(tokenizer, encoder, text + stretch->first, (size_t)stretch->count,
                                         (size_t)(count - stretch->first), stretch->tokens, &stretch->token_count);
    }
    if (stretch->status != APP_OK) {
        snprintf(stretch->sentence, sizeof(stretch->sentence), "%s", app_failure());
    }
}

// Appends what the stretches made, in their order.
static enum app_status gather(struct stretch *stretches, int64_t count, struct token_list *list) {
    int64_t more = 0;
    for (int64_t i = 0; i < count; i++) {
        if (stretches[i].status != APP_OK) {
            return app_fail(stretches[i].status, "%s", stretches[i].sentence);
        }
        more += stretches[i].token_count;
    }
    enum app_status status = list_reserve(list, more);
    for (int64_t i = 0; i < count && status == APP_OK; i++) {
        memcpy(list->tokens + list->count, stretches[i].tokens,
               (size_t)stretches[i].token_count * sizeof(*list->tokens));
        list->count += stretches[i].token_count;
    }
    return status;
}

enum app_status tokenizer_encode(struct tokenizer *tokenizer, const char *name, const uint8_t *text, int64_t count,
                                 int threads, struct token_list *list) {
    const size_t wrong = utf8_first_error(text, (size_t)count);
    if (wrong < (size_t)count) {
        return app_fail(APP_FAILED,
                        "%s is not UTF-8: byte %zu (0x%02x) is no part of a character; convert it, for example with "
                        "iconv -f latin1 -t utf-8.",
                        name, wrong, text[wrong]);
    }
    enum app_status status = prepare_encoders(tokenizer, threads);
    struct stretch *stretches = calloc((size_t)(count / STRETCH) + 1, sizeof(*stretches));
    if (status != APP_OK || !stretches) {
        free(stretches);
        return status != APP_OK ? status : app_fail(APP_FAILED, "There is no memory for encoding %s.", name);
    }
    int64_t stretch_count = 0;
    for (int64_t first = 0, end; first < count; first = end) {
        end = stretch_end(text, first, count);
        stretches[stretch_count++] = (struct stretch){.first = first, .count = end - first};
    }
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < stretch_count; i++) {
        run_stretch(tokenizer, text, count, &stretches[i]);
    }
    status = gather(stretches, stretch_count, list);
    for (int64_t i = 0; i < stretch_count; i++) {
        free(stretches[i].tokens);
    }
    free(stretches);
    return status;
}
