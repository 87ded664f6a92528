/* libFuzzer's entry for images: the first byte chooses idx images, idx images with the labels behind them, or a file of
 * CIFAR-10's. What is accepted has as many pixels and labels as it says. */
#include <stdlib.h>
#include <string.h>

#include "train/images.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CLASSES = 10 };

/* Touches all pixels and labels. */
static void use(const struct image_set *set) {
    unsigned sum = 0;
    for (int64_t i = 0; i < set->count * set->channels * set->rows * set->columns; i++)
        sum += set->pixels[i];
    for (int64_t i = 0; set->labels != NULL && i < set->count; i++)
        if (set->labels[i] >= CLASSES)
            abort();
    if (sum > 255u * (uint64_t)(set->count * set->channels * set->rows * set->columns))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct image_set set = {0};
    enum app_status status;
    if (size < 2)
        return 0;
    const uint8_t kind = data[0], cut = data[1]; /* labels are the last `cut` bytes */
    data += 2;
    size -= 2;
    if (kind % 3 == 2) {
        status = image_set_parse_cifar("images", data, size, CLASSES, &set);
        if (status == APP_OK) /* a second file appends */
            status = image_set_parse_cifar("images", data, size, CLASSES, &set);
    } else {
        size_t labels = kind % 3 == 1 && cut < size ? cut : 0;
        status = image_set_parse_idx("images", data, size - labels, &set);
        if (status == APP_OK && labels > 0)
            status = image_set_parse_idx_labels("labels", data + size - labels, labels, CLASSES, &set);
    }
    if (status == APP_OK)
        use(&set);
    else if (strlen(app_failure()) < 10)
        abort();
    image_set_release(&set);
    return 0;
}
