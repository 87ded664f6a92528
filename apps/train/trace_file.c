#include "train/trace_file.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION = 1, NARROWEST = 2, WIDTHS = 7 };

// Names as `stquant factors` prints them, and the members of a trace's tensors that they are read from.
static const struct {
    const char *name, *member;
} factors[TRACE_FACTORS] = {
    [TRACE_MAGNITUDE] = {"n", "n"},
    [TRACE_COMPLEXITY] = {"r", "r"},
    [TRACE_SHARPNESS] = {"sharpness", "sharpness"},
    [TRACE_KURTOSIS] = {"kurtosis", "kurtosis"},
    [TRACE_ROW_SPREAD] = {"row_spread", "row_spread"},
    [TRACE_NEAR_ZERO] = {"near_zero", "near_zero"},
    [TRACE_VOLATILITY] = {"volatility", "volatility"},
    [TRACE_DEPTH] = {"depth", "depth"},
    [TRACE_STATE] = {"state", NULL},
    [TRACE_RANGE] = {"range", NULL},
};

const char *trace_factor_name(int factor) { return factors[factor].name; }

// Where in a file reading is, for sentences.
struct place {
    const char *path;
    long line;
};

static enum app_status no_memory(const char *path) {
    return app_fail(APP_FAILED, "There is no memory for the samples of %s.", path);
}

static enum app_status reserve(struct trace_samples *samples, size_t more, const char *path) {
    if (samples->count + more <= samples->capacity) {
        return APP_OK;
    }
    size_t capacity = 2 * samples->capacity + more;
    double *all = realloc(samples->factors, capacity * TRACE_FACTORS * sizeof(*all));
    if (!all) {
        return no_memory(path);
    }
    samples->factors = all;
    double *target = realloc(samples->target, capacity * sizeof(*target));
    if (!target) {
        return no_memory(path);
    }
    samples->target = target;
    samples->capacity = capacity;
    return APP_OK;
}

static enum app_status read_number(const json_t *object, const char *member, const struct place *place, double *value) {
    const json_t *number = json_object_get(object, member);
    const char *name = json_string_value(json_object_get(object, "name"));
    if (!json_is_number(number) || !isfinite(json_number_value(number))) {
        return app_fail(APP_FAILED, "%s, line %ld: '%s' of tensor '%s' is missing or no finite number.", place->path,
                        place->line, member, name ? name : "?");
    }
    *value = json_number_value(number);
    return APP_OK;
}

// The log of the error at `bits`; *known is 0 where the decision has none.
static enum app_status read_error(const json_t *object, const char *member, int bits, const struct place *place,
                                  double *log_error, int *known) {
    const json_t *list = json_object_get(object, member);
    *known = !json_is_null(list);
    if (!*known) {
        return APP_OK;
    }
    const json_t *number = json_array_get(list, (size_t)(bits - NARROWEST));
    double value = json_is_number(number) ? json_number_value(number) : NAN;
    if (json_array_size(list) != WIDTHS || !isfinite(value) || value < 0) {
        const char *name = json_string_value(json_object_get(object, "name"));
        return app_fail(APP_FAILED,
                        "%s, line %ld: '%s' of tensor '%s' is not a list of %d errors, finite and not negative.",
                        place->path, place->line, member, name ? name : "?", WIDTHS);
    }
    *known = value > 0;
    *log_error = log(value);
    return APP_OK;
}

static enum app_status add_state(struct trace_samples *samples, const json_t *tensor, const double *common, int second,
                                 int bits, const struct place *place) {
    double log_error = 0;
    int known;
    enum app_status status = read_error(tensor, second ? "v_error" : "m_error", bits, place, &log_error, &known);
    if (status != APP_OK || !known) {
        return status;
    }
    status = reserve(samples, 1, place->path);
    if (status != APP_OK) {
        return status;
    }
    double *row = samples->factors + samples->count * TRACE_FACTORS;
    memcpy(row, common, TRACE_FACTORS * sizeof(*row));
    row[TRACE_STATE] = second;
    status = read_number(tensor, second ? "v_range" : "m_range", place, &row[TRACE_RANGE]);
    samples->target[samples->count] = log_error;
    samples->count += status == APP_OK;
    return status;
}

static enum app_status add_tensor(struct trace_samples *samples, const json_t *tensor, double average, int states,
                                  int bits, const struct place *place) {
    double common[TRACE_FACTORS] = {0};
    for (int i = 0; i < TRACE_STATE; i++) {
        enum app_status status = read_number(tensor, factors[i].member, place, &common[i]);
        if (status != APP_OK) {
            return status;
        }
    }
    if (common[TRACE_MAGNITUDE] <= 0) { // no gradient: nothing was coded
        return APP_OK;
    }
    common[TRACE_MAGNITUDE] = log(common[TRACE_MAGNITUDE]) - average;
    enum app_status status = APP_OK;
    for (int second = 0; second < 2 && status == APP_OK; second++) {
        if (states & (second ? TRACE_V : TRACE_M)) {
            status = add_state(samples, tensor, common, second, bits, place);
        }
    }
    return status;
}

// Average of log n over the tensors of a decision, weighted by elements.
static enum app_status average_magnitude(const json_t *tensors, const struct place *place, double *average) {
    double sum = 0, elements = 0;
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        const json_t *tensor = json_array_get(tensors, i);
        double n, rows, cols;
        enum app_status status = read_number(tensor, "n", place, &n);
        status = status == APP_OK ? read_number(tensor, "rows", place, &rows) : status;
        status = status == APP_OK ? read_number(tensor, "cols", place, &cols) : status;
        if (status != APP_OK) {
            return status;
        }
        if (n > 0) {
            sum += rows * cols * log(n);
            elements += rows * cols;
        }
    }
    *average = elements > 0 ? sum / elements : 0;
    return APP_OK;
}

static enum app_status add_line(struct trace_samples *samples, const json_t *line, int states, int bits,
                                const struct place *place) {
    if (place->line == 1) {
        const json_t *version = json_object_get(line, "stquant_trace");
        if (!json_is_integer(version)) {
            return app_fail(APP_FAILED, "%s is no trace: its first line has no 'stquant_trace'. --trace writes one.",
                            place->path);
        }
        if (json_integer_value(version) != VERSION) {
            return app_fail(APP_FAILED, "%s is a trace of version %lld; this command reads version %d.", place->path,
                            (long long)json_integer_value(version), VERSION);
        }
        return APP_OK;
    }
    const json_t *tensors = json_object_get(line, "tensors");
    if (!json_is_array(tensors)) {
        return app_fail(APP_FAILED, "%s, line %ld: there is no list 'tensors'.", place->path, place->line);
    }
    double average;
    enum app_status status = average_magnitude(tensors, place, &average);
    for (size_t i = 0; status == APP_OK && i < json_array_size(tensors); i++) {
        status = add_tensor(samples, json_array_get(tensors, i), average, states, bits, place);
    }
    return status;
}

static enum app_status read_lines(struct trace_samples *samples, FILE *file, int states, int bits,
                                  struct place *place) {
    char *text = NULL;
    size_t capacity = 0;
    ssize_t length;
    enum app_status status = APP_OK;
    while (status == APP_OK && (length = getline(&text, &capacity, file)) > 0) {
        place->line++;
        json_error_t error;
        json_t *line = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, &error);
        if (!line || text[length - 1] != '\n') {
            status = app_fail(APP_FAILED, "%s, line %ld: %s; the file is truncated or no trace.", place->path,
                              place->line, line ? "the line does not end" : error.text);
        } else {
            status = add_line(samples, line, states, bits, place);
        }
        json_decref(line);
    }
    free(text);
    if (status == APP_OK && ferror(file)) {
        status = app_fail(APP_FAILED, "Reading %s failed: %s.", place->path, strerror(errno));
    }
    if (status == APP_OK && place->line == 0) {
        status = app_fail(APP_FAILED, "%s is empty; --trace writes a trace.", place->path);
    }
    return status;
}

enum app_status trace_samples_add(struct trace_samples *samples, const char *path, int states, int bits) {
    FILE *file = fopen(path, "r");
    if (!file) {
        return app_fail(APP_FAILED, "%s cannot be read: %s.", path, strerror(errno));
    }
    struct place place = {.path = path};
    enum app_status status = read_lines(samples, file, states, bits, &place);
    fclose(file);
    return status;
}

void trace_samples_release(struct trace_samples *samples) {
    free(samples->factors);
    free(samples->target);
    *samples = (struct trace_samples){0};
}
