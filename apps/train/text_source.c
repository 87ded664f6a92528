// Batches out of a text: its bytes, or tokens that were made of it before.
#include <stdlib.h>

#include "train/data.h"
#include "train/random.h"

struct text_source {
    struct batch_source base;
    struct text_source_settings settings;
    struct sequence sequence;
    int64_t training_count;   // the first part
    int64_t validation_count; // the last part
    int64_t validation_windows;
    int32_t *inputs, *targets; // (B, T)
};

int64_t sequence_training_count(const struct sequence *sequence, double validation_share) {
    return sequence->count - (int64_t)((double)sequence->count * validation_share);
}

static int32_t token_at(const struct sequence *sequence, int64_t index) {
    switch (sequence->token_bytes) {
    case 1:
        return ((const uint8_t *)sequence->tokens)[index];
    case 2:
        return ((const uint16_t *)sequence->tokens)[index];
    default:
        return ((const int32_t *)sequence->tokens)[index];
    }
}

// Example `row` reads the T + 1 tokens from `window` on.
static void fill_row(struct text_source *source, int64_t row, int64_t window) {
    const int64_t length = source->settings.length;
    for (int64_t i = 0; i < length; i++) {
        source->inputs[row * length + i] = token_at(&source->sequence, window + i);
        source->targets[row * length + i] = token_at(&source->sequence, window + i + 1);
    }
}

static struct batch filled(const struct text_source *source, int64_t examples) {
    return (struct batch){
        .examples = examples, .length = source->settings.length, .inputs = source->inputs, .targets = source->targets};
}

static void training(struct batch_source *base, int64_t position, struct batch *batch) {
    struct text_source *source = (struct text_source *)base;
    const int64_t starts = source->training_count - source->settings.length;
    for (int64_t row = 0; row < source->settings.batch; row++) {
        uint64_t index =
            (uint64_t)((position * source->settings.ranks + source->settings.rank) * source->settings.batch + row);
        fill_row(source, row, (int64_t)random_below(source->settings.seed, RANDOM_BATCHES, index, (uint64_t)starts));
    }
    *batch = filled(source, source->settings.batch);
}

static void validation(struct batch_source *base, int64_t index, struct batch *batch) {
    struct text_source *source = (struct text_source *)base;
    const int64_t first = index * source->settings.batch, windows = source->validation_windows;
    const int64_t room = source->validation_count - source->settings.length - 1;
    int64_t rows = windows - first < source->settings.batch ? windows - first : source->settings.batch;
    for (int64_t row = 0; row < rows; row++) {
        int64_t start = windows > 1 ? (int64_t)((double)room * (double)(first + row) / (double)(windows - 1)) : 0;
        fill_row(source, row, source->training_count + start);
    }
    *batch = filled(source, rows);
}

static void destroy(struct batch_source *base) {
    struct text_source *source = (struct text_source *)base;
    free(source->inputs);
    free(source->targets);
    free(source);
}

static const struct batch_source_operations operations = {
    .training = training, .validation = validation, .destroy = destroy};

static enum app_status check_length(const struct text_source *source) {
    const char *unit = source->sequence.token_bytes == 1 ? "byte" : "token";
    const int64_t needed = source->settings.length + 1;
    const int no_training = source->settings.validation_share >= 1;
    if ((source->training_count >= needed || no_training) && source->validation_count >= needed) {
        return APP_OK;
    }
    return app_fail(APP_FAILED,
                    "The text has %lld %ss, %lld for training and the last %lld for validation; each part needs at "
                    "least %lld, one sequence and a %s: pass more text or a smaller --sequence-length.",
                    (long long)source->sequence.count, unit, (long long)source->training_count,
                    (long long)source->validation_count, (long long)needed, unit);
}

enum app_status text_source_create(const struct sequence *sequence, const struct text_source_settings *settings,
                                   struct batch_source **result) {
    *result = NULL;
    struct text_source *source = calloc(1, sizeof(*source));
    if (!source) {
        return app_fail(APP_FAILED, "There is no memory for batches.");
    }
    const size_t tokens = (size_t)(settings->batch * settings->length);
    source->settings = *settings;
    source->settings.ranks = settings->ranks ? settings->ranks : 1;
    source->sequence = *sequence;
    source->training_count = sequence_training_count(sequence, settings->validation_share);
    source->validation_count = sequence->count - source->training_count;
    source->inputs = calloc(tokens, sizeof(*source->inputs));
    source->targets = calloc(tokens, sizeof(*source->targets));
    enum app_status status = check_length(source);
    if (status == APP_OK && (!source->inputs || !source->targets)) {
        status = app_fail(APP_FAILED, "There is no memory for batches; use a smaller --batch.");
    }
    if (status != APP_OK) {
        destroy(&source->base);
        return status;
    }
    int64_t windows = (source->validation_count - 1) / settings->length;
    const int64_t wanted = settings->validation_batches * settings->batch * source->settings.ranks;
    source->validation_windows = windows < wanted ? windows : wanted;
    source->base = (struct batch_source){.operations = &operations,
                                         .items = (int64_t)tokens,
                                         .unit = "tokens",
                                         .validation_batches =
                                             (source->validation_windows + settings->batch - 1) / settings->batch};
    *result = &source->base;
    return APP_OK;
}
