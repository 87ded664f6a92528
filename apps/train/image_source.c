// Batches of images, moved and mirrored at random for training.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/images.h"
#include "train/random.h"

enum { CHANNELS = 3, ROUNDS = 4 };

struct image_source {
    struct batch_source base;
    struct image_source_settings settings;
    const struct image_data *data;
    float values[CHANNELS][256]; // what a pixel of each value becomes
    float *images;               // (B, channels, rows, columns)
    int32_t *labels;             // (B)
};

// A Feistel network permutes the numbers of 2 x `half` bits; those outside the range are sent through it once more.
int64_t image_shuffled(uint64_t seed, uint64_t epoch, int64_t index, int64_t count) {
    const uint64_t key = random_bits(seed, RANDOM_SHUFFLE, epoch);
    unsigned half = 1;
    while (half < 31 && (INT64_C(1) << (2 * half)) < count) {
        half++;
    }
    const uint64_t mask = (UINT64_C(1) << half) - 1;
    uint64_t value = (uint64_t)index;
    do {
        uint64_t left = value >> half, right = value & mask;
        for (uint64_t round = 0; round < ROUNDS; round++) {
            const uint64_t next = left ^ (random_bits(key, round, right) & mask);
            left = right;
            right = next;
        }
        value = left << half | right;
    } while (value >= (uint64_t)count);
    return (int64_t)value;
}

// How a training image is moved and mirrored.
struct view {
    int64_t down, right;
    int mirrored;
};

static struct view draw_view(const struct image_source_settings *settings, uint64_t index) {
    struct view view = {0};
    const uint64_t moves = 2 * (uint64_t)settings->shift + 1;
    if (settings->shift) {
        view.down = (int64_t)random_below(settings->seed, RANDOM_AUGMENTATION, 3 * index, moves) - settings->shift;
        view.right = (int64_t)random_below(settings->seed, RANDOM_AUGMENTATION, 3 * index + 1, moves) - settings->shift;
    }
    view.mirrored = settings->flip && random_below(settings->seed, RANDOM_AUGMENTATION, 3 * index + 2, 2);
    return view;
}

// Image `from` of the set as the view shows it, into place `to` of the batch.
static void fill_image(struct image_source *source, const struct image_set *set, int64_t from, int64_t to,
                       struct view view) {
    const int64_t rows = set->rows, columns = set->columns, pixels = rows * columns;
    for (int64_t channel = 0; channel < set->channels; channel++) {
        const uint8_t *in = set->pixels + (from * set->channels + channel) * pixels;
        const float *values = source->values[channel];
        float *out = source->images + (to * set->channels + channel) * pixels;
        for (int64_t row = 0; row < rows; row++) {
            const int64_t in_row = row - view.down;
            for (int64_t column = 0; column < columns; column++) {
                const int64_t moved = column - view.right, in_column = view.mirrored ? columns - 1 - moved : moved;
                const int inside = in_row >= 0 && in_row < rows && in_column >= 0 && in_column < columns;
                out[row * columns + column] = values[inside ? in[in_row * columns + in_column] : 0];
            }
        }
    }
    source->labels[to] = set->labels[from];
}

static struct batch filled(const struct image_source *source, int64_t examples, int64_t position) {
    return (struct batch){
        .examples = examples, .targets = source->labels, .images = source->images, .position = position};
}

static void training(struct batch_source *base, int64_t position, struct batch *batch) {
    struct image_source *source = (struct image_source *)base;
    const struct image_source_settings *settings = &source->settings;
    const struct image_set *set = &source->data->training;
    const int64_t part = position * settings->ranks + settings->rank;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < settings->batch; row++) {
        const int64_t index = part * settings->batch + row;
        const int64_t image =
            image_shuffled(settings->seed, (uint64_t)(index / set->count), index % set->count, set->count);
        fill_image(source, set, image, row, draw_view(settings, (uint64_t)index));
    }
    *batch = filled(source, settings->batch, part);
}

static void validation(struct batch_source *base, int64_t index, struct batch *batch) {
    struct image_source *source = (struct image_source *)base;
    const struct image_set *set = &source->data->test;
    const int64_t first = index * source->settings.batch, left = set->count - first;
    const int64_t rows = left < source->settings.batch ? left : source->settings.batch;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        fill_image(source, set, first + row, row, (struct view){0});
    }
    *batch = filled(source, rows, 0);
}

static void destroy(struct batch_source *base) {
    struct image_source *source = (struct image_source *)base;
    free(source->images);
    free(source->labels);
    free(source);
}

static const struct batch_source_operations operations = {
    .training = training, .validation = validation, .destroy = destroy};

// Mean and deviation of each channel, from the counts of the pixel values.
static void scale_values(struct image_source *source) {
    const struct image_set *set = &source->data->training;
    const int64_t pixels = set->rows * set->columns;
    for (int64_t channel = 0; channel < set->channels; channel++) {
        int64_t counts[256] = {0};
        for (int64_t image = 0; image < set->count; image++) {
            const uint8_t *plane = set->pixels + (image * set->channels + channel) * pixels;
            for (int64_t i = 0; i < pixels; i++) {
                counts[plane[i]]++;
            }
        }
        double sum = 0, squares = 0;
        const double total = (double)(set->count * pixels);
        for (int value = 0; value < 256; value++) {
            sum += (double)counts[value] * value;
            squares += (double)counts[value] * value * value;
        }
        const double mean = sum / total, variance = squares / total - mean * mean;
        // A channel of one colour stays at 0.
        const double factor = variance > 1e-6 ? 1 / sqrt(variance) : 0;
        for (int value = 0; value < 256; value++) {
            source->values[channel][value] = (float)((value - mean) * factor);
        }
    }
}

enum app_status image_source_create(const struct image_data *data, const struct image_source_settings *settings,
                                    struct batch_source **result) {
    const struct image_set *set = &data->training;
    *result = NULL;
    struct image_source *source = calloc(1, sizeof(*source));
    if (!source) {
        return app_fail(APP_FAILED, "There is no memory for batches.");
    }
    source->settings = *settings;
    source->settings.ranks = settings->ranks ? settings->ranks : 1;
    source->data = data;
    source->images = calloc((size_t)(settings->batch * set->channels * set->rows * set->columns), sizeof(float));
    source->labels = calloc((size_t)settings->batch, sizeof(*source->labels));
    if (!source->images || !source->labels) {
        destroy(&source->base);
        return app_fail(APP_FAILED, "There is no memory for batches; use a smaller --batch.");
    }
    scale_values(source);
    const int64_t batches = (data->test.count + settings->batch - 1) / settings->batch;
    const int64_t wanted = settings->validation_batches * source->settings.ranks;
    source->base = (struct batch_source){.operations = &operations,
                                         .items = settings->batch,
                                         .unit = "images",
                                         .validation_batches = batches < wanted ? batches : wanted};
    *result = &source->base;
    return APP_OK;
}
