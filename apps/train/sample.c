#include "train/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/gpt2.h"
#include "train/random.h"

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

enum app_status sample_gpt2(struct model *model, const struct sample_settings *settings, uint64_t number, char **text) {
    const int64_t vocabulary = ((struct gpt2 *)model)->config.vocabulary;
    const char *prompt = settings->prompt && settings->prompt[0] ? settings->prompt : "\n";
    const float *logits = NULL;
    struct gpt2_decoder *decoder;
    *text = malloc((size_t)settings->length + 1);
    if (!*text) {
        return app_fail(APP_FAILED, "There is no memory for a sample of %lld bytes.", (long long)settings->length);
    }
    enum app_status status = gpt2_decoder_create(model, &decoder);
    for (const char *c = prompt; status == APP_OK && *c; c++) {
        status = gpt2_decoder_next(decoder, (unsigned char)*c, &logits);
    }
    for (int64_t i = 0; status == APP_OK && i < settings->length; i++) {
        double uniform = random_uniform(settings->seed, RANDOM_SAMPLES + (number << 20), (uint64_t)i);
        int32_t token = draw(logits, vocabulary, settings->temperature, uniform);
        (*text)[i] = token < 256 ? (char)token : '?';
        status = i + 1 < settings->length ? gpt2_decoder_next(decoder, token, &logits) : APP_OK;
    }
    gpt2_decoder_destroy(decoder);
    if (status != APP_OK) {
        free(*text);
        *text = NULL;
        return status;
    }
    sample_clean(*text, settings->length);
    return APP_OK;
}
