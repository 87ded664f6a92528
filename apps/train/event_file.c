#include "train/event_file.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// Numbers of the fields in TensorFlow's messages.
enum { EVENT_WALL_TIME = 1, EVENT_STEP = 2, EVENT_FILE_VERSION = 3, EVENT_SUMMARY = 5 };
enum { SUMMARY_VALUE = 1, VALUE_TAG = 1, VALUE_SIMPLE = 2, VALUE_HISTOGRAM = 5 };
enum { HISTO_MIN = 1, HISTO_MAX, HISTO_NUM, HISTO_SUM, HISTO_SUM_SQUARES, HISTO_LIMIT, HISTO_BUCKET };

// How a field is written.
enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

// A logarithm a value: more of them would cost as much as a step of training.
enum { HISTOGRAM_VALUES = 1 << 16 };

// A message as it grows. Without memory `failed` is set, and what follows is dropped.
struct message {
    uint8_t *bytes;
    size_t count, capacity;
    int failed;
};

struct event_file {
    FILE *file;
    char path[PATH_MAX];
    int64_t step;
    struct message values; // of the summary that is being made
    struct message value, scratch;
};

static void put(struct message *message, const void *bytes, size_t count) {
    if (message->count + count > message->capacity) {
        const size_t capacity = 2 * (message->count + count) + 256;
        uint8_t *larger = realloc(message->bytes, capacity);
        if (!larger) {
            message->failed = 1;
            return;
        }
        message->bytes = larger;
        message->capacity = capacity;
    }
    memcpy(message->bytes + message->count, bytes, count);
    message->count += count;
}

static void put_varint(struct message *message, uint64_t value) {
    uint8_t bytes[10];
    size_t count = 0;
    do {
        bytes[count++] = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
    } while (value);
    put(message, bytes, count);
}

static void put_key(struct message *message, unsigned field, unsigned wire) { put_varint(message, field << 3 | wire); }

static void put_double(struct message *message, unsigned field, double value) {
    put_key(message, field, WIRE_64);
    put(message, &value, sizeof(value));
}

static void put_bytes(struct message *message, unsigned field, const void *bytes, size_t count) {
    put_key(message, field, WIRE_BYTES);
    put_varint(message, count);
    put(message, bytes, count);
}

uint32_t event_crc32c(const void *bytes, size_t count) {
    static uint32_t table[256];
    if (table[1] == 0) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++) {
                value = value >> 1 ^ (value & 1 ? 0x82f63b78u : 0);
            }
            table[i] = value;
        }
    }
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < count; i++) {
        crc = crc >> 8 ^ table[(crc ^ ((const uint8_t *)bytes)[i]) & 0xff];
    }
    return ~crc;
}

// As TFRecord wants it, so that a checksum over data with checksums in it is no special case.
static uint32_t masked(const void *bytes, size_t count) {
    const uint32_t crc = event_crc32c(bytes, count);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static enum app_status failed(const struct event_file *file, int reason) {
    return app_fail(APP_FAILED, "Writing %s failed: %s; free some space or choose another folder with --tensorboard.",
                    file->path, strerror(reason));
}

static enum app_status write_record(struct event_file *file, const struct message *message) {
    const uint64_t length = message->count;
    const uint32_t length_crc = masked(&length, sizeof(length)), data_crc = masked(message->bytes, message->count);
    if (message->failed) {
        return app_fail(APP_FAILED, "There is no memory for an event of %s.", file->path);
    }
    errno = 0;
    const int written = fwrite(&length, sizeof(length), 1, file->file) == 1 &&
                        fwrite(&length_crc, sizeof(length_crc), 1, file->file) == 1 &&
                        fwrite(message->bytes, 1, message->count, file->file) == message->count &&
                        fwrite(&data_crc, sizeof(data_crc), 1, file->file) == 1 && fflush(file->file) == 0;
    return written ? APP_OK : failed(file, errno);
}

static double wall_time(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// The first record names the version of the format.
static enum app_status write_version(struct event_file *file) {
    static const char version[] = "brain.Event:2";
    struct message event = {0};
    put_double(&event, EVENT_WALL_TIME, wall_time());
    put_bytes(&event, EVENT_FILE_VERSION, version, sizeof(version) - 1);
    enum app_status status = write_record(file, &event);
    free(event.bytes);
    return status;
}

// Makes a folder and those above it.
static int make_folders(const char *path) {
    char partial[PATH_MAX];
    if (snprintf(partial, sizeof(partial), "%s", path) >= (int)sizeof(partial)) {
        errno = ENAMETOOLONG;
        return 0;
    }
    for (char *slash = partial + 1; *slash; slash++) {
        if (*slash == '/') {
            *slash = 0;
            if (mkdir(partial, 0777) != 0 && errno != EEXIST) {
                return 0;
            }
            *slash = '/';
        }
    }
    return mkdir(partial, 0777) == 0 || errno == EEXIST;
}

enum app_status event_file_open(const char *folder, struct event_file **result) {
    char host[64] = "localhost";
    *result = NULL;
    if (!make_folders(folder)) {
        return app_fail(APP_FAILED, "Cannot make the folder %s: %s.", folder, strerror(errno));
    }
    struct event_file *file = calloc(1, sizeof(*file));
    if (!file) {
        return app_fail(APP_FAILED, "There is no memory for event files.");
    }
    gethostname(host, sizeof(host) - 1);
    // The name that TensorBoard looks for; a second run in one second gets another process number.
    if (snprintf(file->path, sizeof(file->path), "%s/events.out.tfevents.%010lld.%s.%ld.0", folder,
                 (long long)time(NULL), host, (long)getpid()) >= (int)sizeof(file->path)) {
        free(file);
        return app_fail(APP_FAILED, "The path %s is too long.", folder);
    }
    file->file = fopen(file->path, "wb");
    if (!file->file) {
        enum app_status status = app_fail(APP_FAILED, "Cannot write %s: %s.", file->path, strerror(errno));
        free(file);
        return status;
    }
    enum app_status status = write_version(file);
    if (status != APP_OK) {
        event_file_close(file);
        return status;
    }
    *result = file;
    return APP_OK;
}

void event_begin(struct event_file *file, int64_t step) {
    file->step = step;
    file->values.count = 0;
    file->values.failed = 0;
}

void event_scalar(struct event_file *file, const char *tag, double value) {
    const float number = (float)value;
    struct message *message = &file->value;
    if (!isfinite(number)) {
        return;
    }
    message->count = 0;
    put_bytes(message, VALUE_TAG, tag, strlen(tag));
    put_key(message, VALUE_SIMPLE, WIRE_32);
    put(message, &number, sizeof(number));
    put_bytes(&file->values, SUMMARY_VALUE, message->bytes, message->count);
    file->values.failed |= message->failed;
}

// Upper limit of bucket i: ..., -1.1e-12, -1e-12, 0 (values up to 1e-12 either side), 1e-12, 1.1e-12, ...
static double bucket_limit(int bucket) {
    const int place = bucket - HISTOGRAM_SIDE;
    return place == 0 ? 1e-12 : place > 0 ? 1e-12 * pow(1.1, place) : -1e-12 * pow(1.1, -place - 1);
}

static int find_bucket(double value) {
    const double size = fabs(value);
    if (size < 1e-12) {
        return HISTOGRAM_SIDE;
    }
    int place = (int)floor(log(size / 1e-12) / log(1.1)) + 1;
    place = place < HISTOGRAM_SIDE ? place : HISTOGRAM_SIDE;
    return value > 0 ? HISTOGRAM_SIDE + place : HISTOGRAM_SIDE - place;
}

void histogram_add_value(struct histogram *histogram, double value, double weight) {
    if (!isfinite(value)) {
        return;
    }
    histogram->smallest = histogram->count > 0 ? fmin(histogram->smallest, value) : value;
    histogram->largest = histogram->count > 0 ? fmax(histogram->largest, value) : value;
    histogram->counts[find_bucket(value)] += weight;
    histogram->count += weight;
    histogram->sum += weight * value;
    histogram->squares += weight * value * value;
}

void histogram_add(struct histogram *histogram, const float *values, int64_t count) {
    const int64_t apart = 1 + count / HISTOGRAM_VALUES;
    for (int64_t i = 0; i < count; i += apart) {
        histogram_add_value(histogram, values[i], (double)(i + apart < count ? apart : count - i));
    }
}

// Limits and counts of the buckets from the first to the last that is not empty, and the empty one before them, whose
// limit is where the first one begins.
static void put_buckets(struct message *message, const struct histogram *histogram) {
    int first = 0, last = HISTOGRAM_BUCKETS - 1;
    while (first < last && histogram->counts[first] == 0) {
        first++;
    }
    while (last > first && histogram->counts[last] == 0) {
        last--;
    }
    first -= first > 0;
    put_key(message, HISTO_LIMIT, WIRE_BYTES);
    put_varint(message, sizeof(double) * (size_t)(last - first + 1));
    for (int i = first; i <= last; i++) {
        const double limit = bucket_limit(i);
        put(message, &limit, sizeof(limit));
    }
    put_bytes(message, HISTO_BUCKET, histogram->counts + first, sizeof(double) * (size_t)(last - first + 1));
}

void event_histogram(struct event_file *file, const char *tag, const struct histogram *histogram) {
    struct message *inner = &file->scratch, *message = &file->value;
    if (histogram->count == 0) {
        return;
    }
    inner->count = message->count = 0;
    put_double(inner, HISTO_MIN, histogram->smallest);
    put_double(inner, HISTO_MAX, histogram->largest);
    put_double(inner, HISTO_NUM, histogram->count);
    put_double(inner, HISTO_SUM, histogram->sum);
    put_double(inner, HISTO_SUM_SQUARES, histogram->squares);
    put_buckets(inner, histogram);
    put_bytes(message, VALUE_TAG, tag, strlen(tag));
    put_bytes(message, VALUE_HISTOGRAM, inner->bytes, inner->count);
    put_bytes(&file->values, SUMMARY_VALUE, message->bytes, message->count);
    file->values.failed |= message->failed | inner->failed;
}

enum app_status event_file_write(struct event_file *file) {
    struct message event = {0};
    if (file->values.count == 0) {
        return APP_OK;
    }
    put_double(&event, EVENT_WALL_TIME, wall_time());
    put_key(&event, EVENT_STEP, WIRE_VARINT);
    put_varint(&event, (uint64_t)file->step);
    put_bytes(&event, EVENT_SUMMARY, file->values.bytes, file->values.count);
    event.failed |= file->values.failed;
    enum app_status status = write_record(file, &event);
    free(event.bytes);
    file->values.count = 0;
    return status;
}

enum app_status event_file_close(struct event_file *file) {
    if (!file) {
        return APP_OK;
    }
    errno = 0;
    enum app_status status = fclose(file->file) == 0 ? APP_OK : failed(file, errno);
    free(file->values.bytes);
    free(file->value.bytes);
    free(file->scratch.bytes);
    free(file);
    return status;
}
