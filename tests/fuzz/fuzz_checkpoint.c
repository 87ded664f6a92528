/* libFuzzer's entry for files of checkpoints: what begins with a brace is an index, anything else a safetensors file.
 * scripts/check-fuzz builds and runs it. */
#define _GNU_SOURCE
#include "memory_file.h"
#include "read_anything.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static stq_status read_index(const uint8_t *data, size_t size) {
    stq_index index;
    char *text = malloc(size + 1); /* as files are loaded: with a zero byte behind them */
    if (text == NULL)
        abort();
    memcpy(text, data, size);
    text[size] = 0;
    stq_status status = stq_index_parse(&index, text, size, "index");
    if (status == STQ_OK)
        stq_index_release(&index);
    free(text);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[MEMORY_FILE_PATH];
    stq_status status;
    omp_set_num_threads(1);
    if (size > 0 && data[0] == '{') {
        status = read_index(data, size);
    } else {
        memory_file(data, size, path);
        status = read_anything(path);
    }
    /* Every refusal has a sentence. */
    if (status != STQ_OK && strlen(stq_last_error()) < 10)
        abort();
    return 0;
}
