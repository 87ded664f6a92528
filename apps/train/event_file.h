// TensorBoard's event files: records of TFRecord format (length, data and masked CRC-32C of both), each an Event
// message in protocol buffer encoding (tensorflow/core/util/event.proto, framework/summary.proto).
#ifndef STQUANT_TRAIN_EVENT_FILE_H
#define STQUANT_TRAIN_EVENT_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "train/failure.h"

struct event_file;

// A new file in `folder`, which is made if it is not there. On failure *file is null.
enum app_status event_file_open(const char *folder, struct event_file **file);

// Starts the event of a step; what follows until event_file_write belongs to it.
void event_begin(struct event_file *file, int64_t step);

// A number under a tag ("loss/training"). One that is not finite is left out.
void event_scalar(struct event_file *file, const char *tag, double value);

// Values gathered into TensorBoard's buckets, which grow by a tenth each on both sides of zero. Zero-initialise it.
enum { HISTOGRAM_SIDE = 774, HISTOGRAM_BUCKETS = 2 * HISTOGRAM_SIDE + 1 };
struct histogram {
    double counts[HISTOGRAM_BUCKETS];
    double smallest, largest, count, sum, squares;
};

// Takes in `count` values, of long lists only every so many, with that weight; those that are not finite are left out.
void histogram_add(struct histogram *histogram, const float *values, int64_t count);

// A value that occurs `weight` times.
void histogram_add_value(struct histogram *histogram, double value, double weight);

void event_histogram(struct event_file *file, const char *tag, const struct histogram *histogram);

// Writes the event; one without anything in it is left out.
enum app_status event_file_write(struct event_file *file);

// Closes; tells of data that the system could not write. Null is allowed.
enum app_status event_file_close(struct event_file *file);

// CRC-32C (Castagnoli) of `count` bytes.
uint32_t event_crc32c(const void *bytes, size_t count);

#endif
