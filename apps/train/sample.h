// Text written by a model.
#ifndef STQUANT_TRAIN_SAMPLE_H
#define STQUANT_TRAIN_SAMPLE_H

#include <stdint.h>

#include "train/failure.h"
#include "train/model.h"
#include "train/tokenizer.h"

struct sample_settings {
    struct tokenizer *tokenizer; // null where tokens are bytes
    int64_t length;              // bytes to write
    double temperature;          // of the softmax; 0 takes the likeliest byte each time
    const char *prompt;          // fed first; not part of the result
    uint64_t seed;
};

// Writes `length` bytes with a GPT-2; what ends a document is written as a newline. `number` tells samples of one run
// apart: the same numbers and parameters give the same text. *text is valid UTF-8 without control characters but
// newline and tab (others become '?'); the caller frees it.
enum app_status sample_gpt2(struct model *model, const struct sample_settings *settings, uint64_t number, char **text);

// Makes bytes fit to print, in place and with a zero at text[count]: valid UTF-8 stays, an incomplete
// character at the end is cut off, everything else that is not text becomes '?'.
void sample_clean(char *text, int64_t count);

#endif
