#include "train/images.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/file.h"

enum {
    LARGEST_SIDE = 4096,
    CIFAR_SIDE = 32,
    CIFAR_PIXELS = 3 * CIFAR_SIDE * CIFAR_SIDE,
    CIFAR_RECORD = 1 + CIFAR_PIXELS,
    CIFAR_FILES = 5
};
static const size_t largest_file = (size_t)8 << 30;

void image_set_release(struct image_set *set) {
    free(set->pixels);
    free(set->labels);
    *set = (struct image_set){0};
}

void image_data_release(struct image_data *data) {
    image_set_release(&data->training);
    image_set_release(&data->test);
}

static uint32_t big_endian(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

// The header of an idx file: a type, and the sizes of `dimensions` dimensions.
static enum app_status parse_header(const char *name, const uint8_t *bytes, size_t count, int dimensions,
                                    const char *content, uint32_t *sizes) {
    const uint32_t expected = 0x800u + (uint32_t)dimensions; // unsigned bytes
    const size_t header = 4 + 4 * (size_t)dimensions;
    if (count < header || big_endian(bytes) != expected) {
        return app_fail(APP_FAILED, "%s is no idx file of %s: it begins with 0x%08x and should with 0x%08x.", name,
                        content, count >= 4 ? big_endian(bytes) : 0, expected);
    }
    for (int i = 0; i < dimensions; i++) {
        sizes[i] = big_endian(bytes + 4 + 4 * i);
    }
    return APP_OK;
}

enum app_status image_set_parse_idx(const char *name, const uint8_t *bytes, size_t count, struct image_set *set) {
    uint32_t sizes[3];
    enum app_status status = parse_header(name, bytes, count, 3, "images", sizes);
    if (status != APP_OK) {
        return status;
    }
    if (sizes[0] == 0 || sizes[1] == 0 || sizes[2] == 0 || sizes[1] > LARGEST_SIDE || sizes[2] > LARGEST_SIDE) {
        return app_fail(APP_FAILED, "%s says that it has %u images of %u x %u pixels; sides of 1 to %d can be used.",
                        name, sizes[0], sizes[2], sizes[1], LARGEST_SIDE);
    }
    const uint64_t needed = (uint64_t)sizes[0] * sizes[1] * sizes[2];
    if (count - 16 != needed) {
        return app_fail(APP_FAILED, "%s has %zu bytes of pixels, and %u images of %u x %u take %llu; get it again.",
                        name, count - 16, sizes[0], sizes[2], sizes[1], (unsigned long long)needed);
    }
    uint8_t *pixels = malloc(needed);
    if (!pixels) {
        return app_fail(APP_FAILED, "There is no memory for the images of %s.", name);
    }
    memcpy(pixels, bytes + 16, needed);
    image_set_release(set);
    *set =
        (struct image_set){.count = sizes[0], .channels = 1, .rows = sizes[1], .columns = sizes[2], .pixels = pixels};
    return APP_OK;
}

static enum app_status check_label(const char *name, int label, int64_t index, int64_t classes) {
    return label < classes ? APP_OK
                           : app_fail(APP_FAILED, "%s: image %lld has label %d, and --classes %lld allows 0 to %lld.",
                                      name, (long long)index, label, (long long)classes, (long long)classes - 1);
}

enum app_status image_set_parse_idx_labels(const char *name, const uint8_t *bytes, size_t count, int64_t classes,
                                           struct image_set *set) {
    uint32_t size = 0;
    enum app_status status = parse_header(name, bytes, count, 1, "labels", &size);
    if (status != APP_OK) {
        return status;
    }
    if (count - 8 != size || size != set->count) {
        return app_fail(APP_FAILED, "%s says that it has %u labels, holds %zu, and there are %lld images.", name, size,
                        count - 8, (long long)set->count);
    }
    for (uint32_t i = 0; i < size && status == APP_OK; i++) {
        status = check_label(name, bytes[8 + i], i, classes);
    }
    uint8_t *labels = status == APP_OK ? malloc(size) : NULL;
    if (!labels) {
        return status != APP_OK ? status : app_fail(APP_FAILED, "There is no memory for the labels of %s.", name);
    }
    memcpy(labels, bytes + 8, size);
    free(set->labels);
    set->labels = labels;
    return APP_OK;
}

enum app_status image_set_parse_cifar(const char *name, const uint8_t *bytes, size_t count, int64_t classes,
                                      struct image_set *set) {
    if (count == 0 || count % CIFAR_RECORD != 0) {
        return app_fail(APP_FAILED, "%s has %zu bytes, no multiple of the %d of an image and its label in CIFAR-10.",
                        name, count, CIFAR_RECORD);
    }
    const int64_t more = (int64_t)(count / CIFAR_RECORD);
    uint8_t *pixels = realloc(set->pixels, (size_t)(set->count + more) * CIFAR_PIXELS);
    set->pixels = pixels ? pixels : set->pixels;
    uint8_t *labels = realloc(set->labels, (size_t)(set->count + more));
    set->labels = labels ? labels : set->labels;
    if (!pixels || !labels) {
        return app_fail(APP_FAILED, "There is no memory for the images of %s.", name);
    }
    for (int64_t i = 0; i < more; i++) {
        const uint8_t *record = bytes + i * CIFAR_RECORD;
        enum app_status status = check_label(name, record[0], i, classes);
        if (status != APP_OK) {
            return status;
        }
        labels[set->count + i] = record[0];
        memcpy(pixels + (set->count + i) * CIFAR_PIXELS, record + 1, CIFAR_PIXELS);
    }
    set->count += more;
    set->channels = 3;
    set->rows = set->columns = CIFAR_SIDE;
    return APP_OK;
}

// The path of folder/name or folder/name.gz, whichever can be read; false for neither, with the first one in `path`.
static int find_file(const char *folder, const char *name, char path[PATH_MAX]) {
    static const char *const endings[] = {".gz", ""};
    for (int i = 0; i < 2; i++) {
        if (snprintf(path, PATH_MAX, "%s/%s%s", folder, name, endings[i]) < PATH_MAX && access(path, R_OK) == 0) {
            return 1;
        }
    }
    return 0;
}

static enum app_status load_idx(const char *folder, const char *prefix, int64_t classes, struct image_set *set) {
    char path[PATH_MAX], name[64];
    for (int labels = 0; labels < 2; labels++) {
        uint8_t *bytes = NULL;
        size_t count = 0;
        snprintf(name, sizeof(name), labels ? "%s-labels-idx1-ubyte" : "%s-images-idx3-ubyte", prefix);
        find_file(folder, name, path);
        enum app_status status = file_read(path, largest_file, &bytes, &count);
        if (status == APP_OK) {
            status = labels ? image_set_parse_idx_labels(path, bytes, count, classes, set)
                            : image_set_parse_idx(path, bytes, count, set);
        }
        free(bytes);
        if (status != APP_OK) {
            return status;
        }
    }
    return APP_OK;
}

static enum app_status load_cifar_file(const char *folder, const char *name, int64_t classes, struct image_set *set) {
    char path[PATH_MAX];
    uint8_t *bytes = NULL;
    size_t count = 0;
    find_file(folder, name, path);
    enum app_status status = file_read(path, largest_file, &bytes, &count);
    if (status == APP_OK) {
        status = image_set_parse_cifar(path, bytes, count, classes, set);
    }
    free(bytes);
    return status;
}

static enum app_status load_cifar(const char *folder, int64_t classes, struct image_data *data) {
    enum app_status status = APP_OK;
    for (int i = 1; i <= CIFAR_FILES && status == APP_OK; i++) {
        char name[32];
        snprintf(name, sizeof(name), "data_batch_%d.bin", i);
        status = load_cifar_file(folder, name, classes, &data->training);
    }
    return status == APP_OK ? load_cifar_file(folder, "test_batch.bin", classes, &data->test) : status;
}

enum app_status image_data_load(const char *folder, int64_t classes, struct image_data *data) {
    char path[PATH_MAX];
    enum app_status status;
    *data = (struct image_data){0};
    if (find_file(folder, "train-images-idx3-ubyte", path)) {
        status = load_idx(folder, "train", classes, &data->training);
        if (status == APP_OK) {
            status = load_idx(folder, "t10k", classes, &data->test);
        }
    } else if (find_file(folder, "data_batch_1.bin", path)) {
        status = load_cifar(folder, classes, data);
    } else {
        status = app_fail(APP_FAILED,
                          "%s holds no images that are known here: neither train-images-idx3-ubyte.gz (MNIST, "
                          "Fashion-MNIST) nor data_batch_1.bin (CIFAR-10, binary version).",
                          folder);
    }
    const struct image_set *training = &data->training, *test = &data->test;
    if (status == APP_OK && (training->rows != test->rows || training->columns != test->columns)) {
        status = app_fail(APP_FAILED,
                          "%s has training images of %lld x %lld and test images of %lld x %lld pixels; they must have "
                          "one size.",
                          folder, (long long)training->columns, (long long)training->rows, (long long)test->columns,
                          (long long)test->rows);
    }
    if (status != APP_OK) {
        image_data_release(data);
    }
    return status;
}
