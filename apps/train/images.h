// Images with classes, for training and testing.
#ifndef STQUANT_TRAIN_IMAGES_H
#define STQUANT_TRAIN_IMAGES_H

#include <stddef.h>
#include <stdint.h>

#include "train/data.h"
#include "train/failure.h"

// Zero-initialise it; image_set_release frees it.
struct image_set {
    int64_t count, channels, rows, columns;
    uint8_t *pixels; // (count, channels, rows, columns), owned
    uint8_t *labels; // (count), owned
};

struct image_data {
    struct image_set training, test;
};

// Loads a folder of idx files (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte,
// t10k-labels-idx1-ubyte, each plain or .gz: MNIST, Fashion-MNIST) or of CIFAR-10's binary version (data_batch_1.bin to
// data_batch_5.bin, test_batch.bin). Labels lie in [0, classes). Refused in a sentence: a folder of neither kind, files
// that are missing, broken or of another kind, images of different sizes, labels out of range. On failure nothing
// stays allocated.
enum app_status image_data_load(const char *folder, int64_t classes, struct image_data *data);

void image_data_release(struct image_data *data);

// The parts of an idx file of images, or of labels for the images that `set` has. `name` stands for the file in
// messages.
enum app_status image_set_parse_idx(const char *name, const uint8_t *bytes, size_t count, struct image_set *set);
enum app_status image_set_parse_idx_labels(const char *name, const uint8_t *bytes, size_t count, int64_t classes,
                                           struct image_set *set);

// Appends the records of a CIFAR-10 file: a label and 3 x 32 x 32 bytes each.
enum app_status image_set_parse_cifar(const char *name, const uint8_t *bytes, size_t count, int64_t classes,
                                      struct image_set *set);

void image_set_release(struct image_set *set);

struct image_source_settings {
    int64_t batch;              // of this rank
    int64_t rank, ranks;        // training batches are cut into one part a rank; 0 ranks count as 1
    int64_t shift;              // training images are moved by up to this many pixels each way, black moves in
    int flip;                   // half of the training images are mirrored, left to right
    int64_t validation_batches; // at most
    uint64_t seed;
};

// Batches of images, scaled to mean 0 and deviation 1 of each channel of the training set. Every image comes once an
// epoch, in an order counted from seed and epoch. `data` must outlive the source. On failure *source is null.
enum app_status image_source_create(const struct image_data *data, const struct image_source_settings *settings,
                                    struct batch_source **source);

// Element `index` of a permutation of [0, count) that is counted from seed and epoch.
int64_t image_shuffled(uint64_t seed, uint64_t epoch, int64_t index, int64_t count);

#endif
