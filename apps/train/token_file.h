// Files of tokens, written once by `stquant data prepare` and mapped into memory on use. The format
// is described in docs/token-file.md.
#ifndef STQUANT_TRAIN_TOKEN_FILE_H
#define STQUANT_TRAIN_TOKEN_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "train/failure.h"
#include "train/tokenizer.h"

// A file opened for reading. Zero-initialise it.
struct token_file {
    const void *tokens; // (count), uint16_t or uint32_t by token_bytes; mapped, not to be written
    int token_bytes;    // 2 or 4
    int64_t count;      // tokens, ends of documents included
    int64_t documents;
    int64_t vocabulary;         // every token should lie below it; token_file_check makes sure
    const struct merge *merges; // (vocabulary - 257), for tokenizer_create
    void *mapping;
    size_t mapping_bytes;
};

// True when the file begins as a token file does. False also where it cannot be read.
int token_file_recognise(const char *path);

// Maps a file. Refused in a sentence: another format or version, a damaged header, a length that does
// not fit the header (a copy that broke off), damaged merges. The tokens themselves are not read.
enum app_status token_file_open(const char *path, struct token_file *file);

// Reads every token: the checksum must fit and all must lie in the vocabulary. `path` is for messages.
enum app_status token_file_check(const char *path, const struct token_file *file);

void token_file_close(struct token_file *file);

// Token `index`, 0 to count - 1.
static inline int32_t token_file_get(const struct token_file *file, int64_t index) {
    return file->token_bytes == 2 ? ((const uint16_t *)file->tokens)[index]
                                  : (int32_t)((const uint32_t *)file->tokens)[index];
}

// Writes under a temporary name beside `path`, which appears only when the file is whole.
struct token_writer;

// On failure *writer is null.
enum app_status token_writer_open(const char *path, const struct tokenizer *tokenizer, struct token_writer **writer);

// Appends the tokens of a document, and its end.
enum app_status token_writer_add(struct token_writer *writer, const int32_t *tokens, int64_t count);

// Writes the header, hands everything to the disk, renames. Frees the writer, also on failure.
enum app_status token_writer_finish(struct token_writer *writer);

// Removes the temporary file and frees the writer; null is allowed.
void token_writer_abandon(struct token_writer *writer);

#endif
