#include "report/run_log.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

// An entry before the number of tensors is known.
struct loose_entry {
    int64_t decision, tensor;
    struct run_entry entry;
};

struct reader {
    struct run_log *log;
    struct loose_entry *loose;
    int64_t loose_count, loose_capacity;
};

static enum app_status out_of_memory(const struct run_log *log) {
    return app_fail(APP_FAILED, "There is no memory for the log %s.", log->path);
}

// The array, with room for one more element than `count`; null without memory, the array as before.
static void *grown(void *array, int64_t count, int64_t *capacity, size_t size) {
    if (count < *capacity) {
        return array;
    }
    const int64_t larger = *capacity ? 2 * *capacity : 256;
    void *moved = realloc(array, (size_t)larger * size);
    *capacity = moved ? larger : *capacity;
    return moved;
}

static double number_of(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static char *string_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? strdup(text) : NULL;
}

// Splits "h.3.mlp.c_fc.weight" into block 3 and kind "mlp.c_fc.weight"; the number stands between dots.
static const char *split_name(const char *name, int64_t *block) {
    for (const char *at = name; *at; at++) {
        if ((at == name || at[-1] == '.') && isdigit((unsigned char)*at)) {
            char *end;
            const long long number = strtoll(at, &end, 10);
            if (*end == '.' && number < (1 << 20)) {
                *block = number;
                return end + 1;
            }
        }
    }
    *block = -1;
    return name;
}

// The tensor of that name, added when it is new; -1 without memory. `guess` is tried first: every
// decision lists the tensors in the same order.
static int64_t find_tensor(struct run_log *log, const char *name, int64_t guess) {
    if (guess < log->tensor_count && strcmp(log->tensors[guess].name, name) == 0) {
        return guess;
    }
    for (int64_t i = 0; i < log->tensor_count; i++) {
        if (strcmp(log->tensors[i].name, name) == 0) {
            return i;
        }
    }
    struct run_tensor *tensors = grown(log->tensors, log->tensor_count, &log->tensor_capacity, sizeof(*tensors));
    if (!tensors) {
        return -1;
    }
    log->tensors = tensors;
    struct run_tensor tensor = {.name = strdup(name)};
    const char *kind = split_name(name, &tensor.block);
    tensor.kind = strdup(kind);
    if (!tensor.name || !tensor.kind) {
        free(tensor.name);
        free(tensor.kind);
        return -1;
    }
    log->tensors[log->tensor_count] = tensor;
    return log->tensor_count++;
}

static uint8_t width_of(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    const double bits = json_is_number(value) ? json_number_value(value) : 0;
    return bits >= 1 && bits <= 32 ? (uint8_t)bits : WIDTH_UNKNOWN;
}

static uint8_t zone_of(const json_t *object) {
    static const char *const names[RUN_ZONES] = {"exempt", "critical", "magnitude", "structural", "redundant"};
    const char *name = json_string_value(json_object_get(object, "zone"));
    for (uint8_t zone = 0; name && zone < RUN_ZONES; zone++) {
        if (strcmp(name, names[zone]) == 0) {
            return zone;
        }
    }
    return ZONE_EXEMPT;
}

// A second moment that is shared along a dimension has 0 bits and says so.
static uint8_t second_width_of(const json_t *object) {
    return json_is_string(json_object_get(object, "v_shared")) ? WIDTH_SHARED : width_of(object, "v_bits");
}

static struct run_entry entry_of(const json_t *object) {
    static const char *const keys[RUN_FACTORS] = {"n", "r", "m_rms", "v_rms"};
    struct run_entry entry = {.bits = {width_of(object, "m_bits"), second_width_of(object)}, .zone = zone_of(object)};
    for (int i = 0; i < RUN_FACTORS; i++) {
        entry.factors[i] = (float)number_of(object, keys[i]);
    }
    return entry;
}

static enum app_status add_decision(struct reader *reader, int64_t step, const json_t *line, const json_t *tensors) {
    struct run_log *log = reader->log;
    struct run_decision *decisions =
        grown(log->decisions, log->decision_count, &log->decision_capacity, sizeof(*decisions));
    if (!decisions) {
        return out_of_memory(log);
    }
    log->decisions = decisions;
    log->decisions[log->decision_count] = (struct run_decision){
        .step = step, .n_average = number_of(line, "n_average"), .r_average = number_of(line, "r_average")};
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        const json_t *object = json_array_get(tensors, i);
        const char *name = json_string_value(json_object_get(object, "name"));
        if (!name) {
            continue;
        }
        const int64_t tensor = find_tensor(log, name, (int64_t)i);
        struct loose_entry *loose = grown(reader->loose, reader->loose_count, &reader->loose_capacity, sizeof(*loose));
        if (tensor < 0 || !loose) {
            reader->loose = loose ? loose : reader->loose;
            return out_of_memory(log);
        }
        reader->loose = loose;
        reader->loose[reader->loose_count++] =
            (struct loose_entry){.decision = log->decision_count, .tensor = tensor, .entry = entry_of(object)};
    }
    log->decision_count++;
    return APP_OK;
}

// A run that went on from a checkpoint tells steps once more; what it told before does not count.
static void forget_from(struct reader *reader, int64_t step) {
    struct run_log *log = reader->log;
    while (log->step_count > 0 && log->steps[log->step_count - 1] >= step) {
        log->step_count--;
        log->repeated++;
    }
    while (log->decision_count > 0 && log->decisions[log->decision_count - 1].step >= step) {
        log->decision_count--;
    }
    while (reader->loose_count > 0 && reader->loose[reader->loose_count - 1].decision >= log->decision_count) {
        reader->loose_count--;
    }
}

static int add_columns(struct run_log *log, int64_t step, const json_t *line) {
    static const char *const keys[RUN_COLUMNS] = {"train_loss",    "validation_loss",  "validation_top1",
                                                  "learning_rate", "gradient_norm",    "tokens_per_s",
                                                  "state_bytes",   "peak_state_bytes", "mean_bits"};
    int64_t capacity = log->step_capacity;
    for (int i = 0; i < RUN_COLUMNS; i++) {
        capacity = log->step_capacity;
        double *column = grown(log->columns[i], log->step_count, &capacity, sizeof(*column));
        if (!column) {
            return 0;
        }
        log->columns[i] = column;
        column[log->step_count] = number_of(line, keys[i]);
    }
    int64_t *steps = grown(log->steps, log->step_count, &log->step_capacity, sizeof(*steps));
    if (!steps) {
        return 0;
    }
    log->steps = steps;
    if (isnan(log->columns[COLUMN_SPEED][log->step_count])) {
        log->columns[COLUMN_SPEED][log->step_count] = number_of(line, "images_per_s");
    }
    log->steps[log->step_count++] = step;
    return 1;
}

static void read_run(struct run_log *log, const json_t *run) {
    free(log->model);
    free(log->preset);
    free(log->optimizer);
    log->model = string_of(run, "model");
    log->preset = string_of(run, "preset");
    log->optimizer = string_of(run, "optimizer");
    log->parameters = number_of(run, "parameters");
    log->state_bits = number_of(run, "state_bits");
}

// One line. Lines that are JSON objects but tell of no step are nothing to complain of.
static enum app_status read_line(struct reader *reader, const char *text, size_t length) {
    struct run_log *log = reader->log;
    json_t *line = json_loadb(text, length, 0, NULL);
    log->lines++;
    if (!json_is_object(line)) {
        log->first_unreadable = log->unreadable++ ? log->first_unreadable : log->lines;
        json_decref(line);
        return APP_OK;
    }
    const json_t *step_field = json_object_get(line, "step"), *run = json_object_get(line, "run");
    const json_t *tensors = json_object_get(line, "tensors");
    enum app_status status = APP_OK;
    if (json_is_object(run)) {
        read_run(log, run);
    }
    if (json_is_integer(step_field)) {
        const int64_t step = (int64_t)json_integer_value(step_field);
        forget_from(reader, step);
        if (!add_columns(log, step, line)) {
            status = out_of_memory(log);
        }
        log->skipped += json_is_true(json_object_get(line, "skipped"));
        if (status == APP_OK && json_is_array(tensors)) {
            status = add_decision(reader, step, line, tensors);
        }
        if (json_is_string(json_object_get(line, "sample"))) {
            free(log->sample);
            log->sample = string_of(line, "sample");
            log->sample_step = step;
        }
    }
    json_decref(line);
    return status;
}

static int is_blank(const char *text, size_t length) {
    while (length > 0 && isspace((unsigned char)text[length - 1])) {
        length--;
    }
    return length == 0;
}

// Takes the whole lines out of the first `count` bytes; `last` says that no more will come. Returns
// the bytes used in *used.
static enum app_status take_lines(struct reader *reader, const char *text, size_t count, int last, size_t *used) {
    enum app_status status = APP_OK;
    *used = 0;
    while (*used < count && status == APP_OK) {
        const char *end = memchr(text + *used, '\n', count - *used);
        if (!end && !last) {
            break;
        }
        const size_t length = end ? (size_t)(end - text) - *used : count - *used;
        if (!is_blank(text + *used, length)) {
            status = read_line(reader, text + *used, length);
        }
        *used += length + (end != NULL);
    }
    return status;
}

static enum app_status read_lines(struct reader *reader, gzFile file) {
    size_t capacity = 1 << 20, count = 0, used = 0;
    char *text = malloc(capacity);
    enum app_status status = text ? APP_OK : out_of_memory(reader->log);
    for (int read = 1; status == APP_OK && read > 0;) {
        if (count == capacity) {
            char *larger = realloc(text, capacity *= 2);
            if (!larger) {
                status = out_of_memory(reader->log);
                break;
            }
            text = larger;
        }
        const size_t room = capacity - count;
        read = gzread(file, text + count, room < (1u << 30) ? (unsigned)room : 1u << 30);
        count += read > 0 ? (size_t)read : 0;
        status = take_lines(reader, text, count, read <= 0, &used);
        memmove(text, text + used, count - used);
        count -= used;
        int code = Z_OK;
        if (read < 0) {
            gzerror(file, &code);
        }
        if (code == Z_ERRNO) {
            status = app_fail(APP_FAILED, "Cannot read %s: %s.", reader->log->path, strerror(errno));
        } else if (read < 0) {
            // A compressed log that breaks off is read as far as it goes.
            reader->log->first_unreadable =
                reader->log->unreadable++ ? reader->log->first_unreadable : ++reader->log->lines;
        }
    }
    free(text);
    return status;
}

// Puts the loose entries into their places.
static enum app_status arrange(struct reader *reader) {
    struct run_log *log = reader->log;
    const int64_t count = log->decision_count * log->tensor_count;
    log->entries = malloc((size_t)count * sizeof(*log->entries) + 1);
    if (!log->entries) {
        return out_of_memory(log);
    }
    for (int64_t i = 0; i < count; i++) {
        log->entries[i] = (struct run_entry){.factors = {NAN, NAN, NAN, NAN}};
    }
    for (int64_t i = 0; i < reader->loose_count; i++) {
        const struct loose_entry *loose = &reader->loose[i];
        log->entries[loose->decision * log->tensor_count + loose->tensor] = loose->entry;
    }
    return APP_OK;
}

// Parameters from the bytes and the bits per value, where the log does not tell them.
static void complete(struct run_log *log) {
    for (int64_t i = 0; isnan(log->parameters) && i < log->step_count; i++) {
        const double bytes = log->columns[COLUMN_STATE_BYTES][i], bits = log->columns[COLUMN_BITS][i];
        if (bytes > 0 && bits > 0) {
            log->parameters = round(4 * bytes / bits);
        }
    }
}

static char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    char *name = strdup(slash ? slash + 1 : path);
    static const char *const endings[] = {".gz", ".jsonl", ".json", ".log"};
    for (size_t i = 0; name && i < sizeof(endings) / sizeof(endings[0]); i++) {
        const size_t length = strlen(name), ending = strlen(endings[i]);
        if (length > ending && strcmp(name + length - ending, endings[i]) == 0) {
            name[length - ending] = 0;
        }
    }
    return name;
}

enum app_status run_log_read(const char *path, struct run_log *log) {
    *log = (struct run_log){.parameters = NAN, .state_bits = NAN};
    log->path = strdup(path);
    log->name = base_name(path);
    if (!log->path || !log->name) {
        run_log_release(log);
        return app_fail(APP_FAILED, "There is no memory for the log %s.", path);
    }
    struct reader reader = {.log = log};
    errno = 0;
    gzFile file = gzopen(path, "rb");
    enum app_status status = APP_OK;
    if (!file) {
        status = app_fail(APP_FAILED, "Cannot read %s: %s.", path, errno ? strerror(errno) : "no memory");
    } else {
        gzbuffer(file, 1 << 18);
        status = read_lines(&reader, file);
        gzclose_r(file);
    }
    if (status == APP_OK && log->step_count == 0) {
        status =
            app_fail(APP_FAILED,
                     "%s holds no step of a run (%lld lines, %lld of them no JSON); pass a log written by `stquant "
                     "train --log`.",
                     path, (long long)log->lines, (long long)log->unreadable);
    }
    if (status == APP_OK) {
        status = arrange(&reader);
    }
    free(reader.loose);
    if (status != APP_OK) {
        run_log_release(log);
        return status;
    }
    complete(log);
    return APP_OK;
}

int run_log_has_widths(const struct run_log *log) {
    for (int64_t i = 0; i < log->decision_count * log->tensor_count; i++) {
        if (run_entry_is_coded(&log->entries[i])) {
            return 1;
        }
    }
    return 0;
}

double run_log_last(const struct run_log *log, enum run_column column) {
    for (int64_t i = log->step_count - 1; i >= 0; i--) {
        if (!isnan(log->columns[column][i])) {
            return log->columns[column][i];
        }
    }
    return NAN;
}

double run_log_largest(const struct run_log *log, enum run_column column) {
    double largest = NAN;
    for (int64_t i = 0; i < log->step_count; i++) {
        largest = fmax(largest, log->columns[column][i]);
    }
    return largest;
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double run_log_median(const struct run_log *log, enum run_column column) {
    double *values = malloc((size_t)log->step_count * sizeof(*values));
    int64_t count = 0;
    for (int64_t i = 0; values && i < log->step_count; i++) {
        if (!isnan(log->columns[column][i])) {
            values[count++] = log->columns[column][i];
        }
    }
    if (count == 0) {
        free(values);
        return NAN;
    }
    qsort(values, (size_t)count, sizeof(*values), compare_doubles);
    const double median = (values[(count - 1) / 2] + values[count / 2]) / 2;
    free(values);
    return median;
}

void run_log_release(struct run_log *log) {
    for (int64_t i = 0; i < log->tensor_count; i++) {
        free(log->tensors[i].name);
        free(log->tensors[i].kind);
    }
    for (int i = 0; i < RUN_COLUMNS; i++) {
        free(log->columns[i]);
    }
    free(log->path);
    free(log->name);
    free(log->model);
    free(log->preset);
    free(log->optimizer);
    free(log->steps);
    free(log->tensors);
    free(log->decisions);
    free(log->entries);
    free(log->sample);
    *log = (struct run_log){0};
}
