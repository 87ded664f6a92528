// GPT-2's byte-pair encoding (Radford et al., 2019; Sennrich et al., 2016): text to tokens and back.
//
// Text is split into pieces (words with the space before them, numbers, punctuation, white space) by
// GPT-2's pattern; in each piece the adjacent pair of tokens that stands first in the list of merges
// is joined, again and again, until no listed pair is left. Tokens 0 to 255 are the bytes in GPT-2's
// order, token 256 + i is made by merge i, and the last one ends a document.
#ifndef STQUANT_TRAIN_TOKENIZER_H
#define STQUANT_TRAIN_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "train/failure.h"

enum { TOKENIZER_BYTES = 256 };

// One merge: the tokens that it joins. Merge i may only join tokens below 256 + i.
struct merge {
    uint32_t left, right;
};

// Immutable once made, but for working memory: one thread at a time may call it.
struct tokenizer;

// Reads a merges file in GPT-2's format: a first line "#version: ...", if any, then one merge a line,
// two parts separated by a space, every byte written as one character (bytes_to_unicode). Refused in
// a sentence that names file and line: lines of another kind, parts that no earlier line makes, the
// same token twice. On failure *tokenizer is null.
enum app_status tokenizer_read(const char *path, struct tokenizer **tokenizer);

// The same from memory; `name` stands for the file in messages.
enum app_status tokenizer_parse(const char *name, const char *text, size_t count, struct tokenizer **tokenizer);

// From merges that a token file carries. Refuses a merge of tokens that do not exist yet.
enum app_status tokenizer_create(const char *name, const struct merge *merges, int64_t count,
                                 struct tokenizer **tokenizer);

void tokenizer_destroy(struct tokenizer *tokenizer);

// The merges, tokenizer_vocabulary() - 257 of them; owned by the tokenizer.
const struct merge *tokenizer_merges(const struct tokenizer *tokenizer);

// Number of tokens: 256 bytes, the merges, and the end of a document.
int64_t tokenizer_vocabulary(const struct tokenizer *tokenizer);

// The token that ends a document, the last of the vocabulary; it stands for no bytes.
int32_t tokenizer_end(const struct tokenizer *tokenizer);

// The bytes of a token (owned by the tokenizer; none for the end of a document), *count of them.
// `token` lies in the vocabulary.
const uint8_t *tokenizer_bytes(const struct tokenizer *tokenizer, int32_t token, size_t *count);

// A growing list of tokens. Zero-initialise it; token_list_release frees it.
struct token_list {
    int32_t *tokens;
    int64_t count, capacity;
};

// Appends the tokens of `text` (`count` bytes), in parallel over stretches of it; the result does not
// depend on `threads` (at least 1). Refuses what is not UTF-8, with the position of the first wrong
// byte; `name` stands for the text in messages. On failure the list is as before.
enum app_status tokenizer_encode(struct tokenizer *tokenizer, const char *name, const uint8_t *text, int64_t count,
                                 int threads, struct token_list *list);

// Appends one token. Fails only without memory.
enum app_status token_list_add(struct token_list *list, int32_t token);

void token_list_release(struct token_list *list);

#endif
