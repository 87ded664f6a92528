/* libFuzzer's entry for what makes a tokenizer: lists of merges in GPT-2's format, and files of tokens, which begin
 * with their magic number. A tokenizer that is accepted encodes a text and gets it back. */
#define _GNU_SOURCE
#include "memory_file.h"

#include <string.h>

#include "train/token_file.h"
#include "train/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void encode(struct tokenizer *tokenizer) {
    static const char text[] = "It was 1811; she'd  seen\n\n the r\xc3\xa9sum\xc3\xa9, aaaaaaab.";
    struct token_list list = {0};
    size_t done = 0;
    if (tokenizer_encode(tokenizer, "text", (const uint8_t *)text, sizeof text - 1, 1, &list) != APP_OK)
        abort();
    for (int64_t i = 0; i < list.count; i++) {
        size_t count;
        const uint8_t *bytes = tokenizer_bytes(tokenizer, list.tokens[i], &count);
        if (done + count > sizeof text - 1 || memcmp(bytes, text + done, count) != 0)
            abort();
        done += count;
    }
    if (done != sizeof text - 1)
        abort();
    token_list_release(&list);
}

static enum app_status read_tokens(const char *path) {
    struct token_file file = {0};
    enum app_status status = token_file_open(path, &file);
    if (status != APP_OK)
        return status;
    struct tokenizer *tokenizer = NULL;
    status = token_file_check(path, &file);
    if (status == APP_OK)
        status = tokenizer_create(path, file.merges, file.vocabulary - TOKENIZER_BYTES - 1, &tokenizer);
    if (status == APP_OK)
        encode(tokenizer);
    for (int64_t i = 0; status == APP_OK && i < file.count; i++)
        if (token_file_get(&file, i) >= file.vocabulary)
            abort();
    tokenizer_destroy(tokenizer);
    token_file_close(&file);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[MEMORY_FILE_PATH];
    struct tokenizer *tokenizer;
    enum app_status status;
    memory_file(data, size, path);
    if (token_file_recognise(path)) {
        status = read_tokens(path);
    } else {
        status = tokenizer_parse("merges", (const char *)data, size, &tokenizer);
        if (status == APP_OK)
            encode(tokenizer);
        tokenizer_destroy(tokenizer);
    }
    if (status != APP_OK && strlen(app_failure()) < 10)
        abort(); /* every refusal has a sentence */
    return 0;
}
