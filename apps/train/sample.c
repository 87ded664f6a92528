#include "train/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/gpt2.h"
#include "train/random.h"

// NOLINTBEGIN(clang-analyzer-core.NullDereference): a prompt has a token at least, so that there are logits.
// A draw from softmax(logits / temperature) with `uniform` in [0, 1).
static int32_t draw(const float *logits, int64_t count, double temperature, double uniform) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    if (temperature <= 0) {
        return (int32_t)best;
    }
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += exp(((double)logits[i] - logits[best]) / temperature);
    }
    double left = uniform * sum;
    for (int64_t i = 0; i < count; i++) {
        left -= exp(((double)logits[i] - logits[best]) / temperature);
        if (left < 0) {
            return (int32_t)i;
        }
    }
    return (int32_t)best;
}
// NOLINTEND(clang-analyzer-core.NullDereference)

// Bytes of the UTF-8 character that begins at text[0], of at most `count`: 1 to 4, 0 when it is none, -1
// when it may be one whose end is missing.
static int character_length(const unsigned char *text, int64_t count) {
    if (text[0] < 0x80) {
        return text[0] >= 0x20 && text[0] != 0x7f ? 1 : text[0] == '\n' || text[0] == '\t';
    }
    int length = text[0] >= 0xc2 && text[0] <= 0xdf   ? 2
                 : text[0] >= 0xe0 && text[0] <= 0xef ? 3
                 : text[0] >= 0xf0 && text[0] <= 0xf4 ? 4
                                                      : 0;
    for (int i = 1; i < length; i++) {
        if (i >= count) {
            return -1;
        }
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    // Overlong forms, surrogates, and what lies past the last code point; C1 controls.
    if ((text[0] == 0xe0 && text[1] < 0xa0) || (text[0] == 0xed && text[1] > 0x9f) ||
        (text[0] == 0xf0 && text[1] < 0x90) || (text[0] == 0xf4 && text[1] > 0x8f) ||
        (text[0] == 0xc2 && text[1] < 0xa0)) {
        return 0;
    }
    return length;
}

void sample_clean(char *text, int64_t count) {
    text[count] = 0;
    for (int64_t i = 0; i < count;) {
        int length = character_length((const unsigned char *)text + i, count - i);
        if (length < 0) {
            text[i] = 0;
            return;
        }
        if (length == 0) {
            text[i] = '?';
        }
        i += length > 0 ? length : 1;
    }
}

// The prompt's tokens; a document's end, or a newline, where there is none.
static enum app_status encode_prompt(const struct sample_settings *settings, struct token_list *list) {
    const char *prompt = settings->prompt && settings->prompt[0] ? settings->prompt : NULL;
    enum app_status status = APP_OK;
    if (settings->tokenizer && !prompt) {
        return token_list_add(list, tokenizer_end(settings->tokenizer));
    }
    if (settings->tokenizer) {
        return tokenizer_encode(settings->tokenizer, "The text of --prompt", (const uint8_t *)prompt,
                                (int64_t)strlen(prompt), 1, list);
    }
    for (const char *c = prompt ? prompt : "\n"; status == APP_OK && *c; c++) {
        status = token_list_add(list, (unsigned char)*c);
    }
    return status;
}

// Appends what a token stands for, up to `length` bytes of text in all.
static void append(const struct sample_settings *settings, int32_t token, char *text, int64_t *count) {
    const uint8_t byte = token < 256 ? (uint8_t)token : '?', newline = '\n';
    const uint8_t *bytes = &byte;
    size_t length = 1;
    if (settings->tokenizer && token < tokenizer_end(settings->tokenizer)) {
        bytes = tokenizer_bytes(settings->tokenizer, token, &length);
    } else if (settings->tokenizer) {
        bytes = &newline;
    }
    for (size_t i = 0; i < length && *count < settings->length; i++) {
        text[(*count)++] = (char)bytes[i];
    }
}

enum app_status sample_gpt2(struct model *model, const struct sample_settings *settings, uint64_t number, char **text) {
    const int64_t vocabulary = ((struct gpt2 *)model)->config.vocabulary;
    const float *logits = NULL;
    struct gpt2_decoder *decoder = NULL;
    struct token_list prompt = {0};
    int64_t count = 0;
    *text = malloc((size_t)settings->length + 1);
    if (!*text) {
        return app_fail(APP_FAILED, "There is no memory for a sample of %lld bytes.", (long long)settings->length);
    }
    enum app_status status = encode_prompt(settings, &prompt);
    if (status == APP_OK) {
        status = gpt2_decoder_create(model, &decoder);
    }
    for (int64_t i = 0; status == APP_OK && i < prompt.count; i++) {
        status = gpt2_decoder_next(decoder, prompt.tokens[i], &logits);
    }
    for (uint64_t i = 0; status == APP_OK && count < settings->length; i++) {
        double uniform = random_uniform(settings->seed, RANDOM_SAMPLES + (number << 20), i);
        int32_t token = draw(logits, vocabulary, settings->temperature, uniform);
        append(settings, token, *text, &count);
        status = count < settings->length ? gpt2_decoder_next(decoder, token, &logits) : APP_OK;
    }
    gpt2_decoder_destroy(decoder);
    token_list_release(&prompt);
    if (status != APP_OK) {
        free(*text);
        *text = NULL;
        return status;
    }
    sample_clean(*text, count);
    return APP_OK;
}
