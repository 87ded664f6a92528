// `stquant inspect`: what a checkpoint holds, tensor by tensor.
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "train/log.h"
#include "train/memory.h"
#include "train/save.h"

struct settings {
    const char *path;
    int json, digest, verify;
};

enum { JSON = 0x2000, DIGEST, VERIFY };

static const struct argp_option options[] = {
    {"json", JSON, 0, 0, "Print a JSON object", 0},
    {"digest", DIGEST, 0, 0, "Print one hash of step, parameters and states: equal for checkpoints that go on alike",
     0},
    {"verify", VERIFY, 0, 0, "Read everything and verify every checksum", 0},
    {0}};

static error_t parse(int key, char *argument, struct argp_state *state) {
    struct settings *settings = state->input;
    switch (key) {
    case JSON:
        settings->json = 1;
        return 0;
    case DIGEST:
        settings->digest = 1;
        return 0;
    case VERIFY:
        settings->verify = 1;
        return 0;
    case ARGP_KEY_ARG:
        command_argument(state, argument, &settings->path, 1, "one checkpoint is inspected at a time");
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_failure(state, APP_USAGE, 0, "Which checkpoint? Name a run's folder, a checkpoint's, or a file.");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = options,
    .parser = parse,
    .args_doc = "CHECKPOINT",
    .doc =
        "What a checkpoint holds.\v"
        "CHECKPOINT is the folder of a run (its newest whole checkpoint is taken), of one checkpoint, or a safetensors "
        "file of any origin. With --digest or --verify alone, only these are done. The signal-to-noise ratios, of "
        "m and of the root of v, are those of one rounding at these widths, from the widths of the codes' cells.\n\n"
        "Examples:\n\n"
        "  stquant inspect run\n"
        "  stquant inspect --verify run/step-00001000\n"};

// One tensor of the optimizer.
struct row {
    stq_checkpoint_tensor tensor;
    double snr[2]; // dB; NaN where there is no noise or nothing
};

static enum app_status read_row(const stq_checkpoint *checkpoint, size_t index, struct row *row) {
    if (stq_checkpoint_tensor_info(checkpoint, index, &row->tensor) != STQ_OK) {
        return app_library_failure();
    }
    for (int state = 0; state < 2; state++) {
        double signal, noise;
        if (stq_checkpoint_noise(checkpoint, index, (stq_state)state, &signal, &noise) != STQ_OK) {
            return app_library_failure();
        }
        row->snr[state] = signal > 0 && noise > 0 ? 10 * log10(signal / noise) : NAN;
    }
    return APP_OK;
}

struct totals {
    int64_t parameters, parameter_bytes, states, state_bytes;
};

static struct totals add_up(const stq_checkpoint *checkpoint, const struct row *rows, size_t count) {
    struct totals totals = {0};
    stq_array array;
    for (size_t i = 0; stq_checkpoint_array(checkpoint, i, &array) == STQ_OK; i++) {
        totals.parameters += array.count;
        totals.parameter_bytes += array.count * (int64_t)stq_dtype_size(array.type);
    }
    for (size_t i = 0; i < count; i++) {
        totals.states += 2 * rows[i].tensor.tensor.count;
        totals.state_bytes += (int64_t)(rows[i].tensor.bytes[0] + rows[i].tensor.bytes[1]);
    }
    return totals;
}

static const char *decibels(double value, char text[16]) {
    snprintf(text, 16, isnan(value) ? "-" : "%.1f", value);
    return text;
}

// Bits, or along what the second moment is shared.
static const char *width(uint32_t bits, char text[8]) {
    snprintf(text, 8, "%u", bits);
    return bits == STQ_BITS_SHARED_ROW ? "row" : bits == STQ_BITS_SHARED_COL ? "col" : text;
}

static void print_table(const stq_checkpoint *checkpoint, const struct row *rows, size_t count) {
    char text[2][32], snr[2][16];
    stq_checkpoint_info info;
    stq_checkpoint_describe(checkpoint, &info);
    struct totals totals = add_up(checkpoint, rows, count);
    printf("%s\nstep %lld, %u file%s, %s; format version %u%s\n", info.path, (long long)info.step, info.ranks,
           info.ranks == 1 ? "" : "s", memory_text((int64_t)info.bytes, text[0]), info.format_version,
           info.format_version == 0 ? " (a file of another origin)" : "");
    printf("%zu arrays, %lld parameters, %s\n", info.array_count, (long long)totals.parameters,
           memory_text(totals.parameter_bytes, text[1]));
    if (count == 0) {
        printf("no optimizer states\n");
        return;
    }
    printf("\n%-32s %16s %3s %3s %12s %-11s %7s %7s\n", "states", "shape", "m", "v", "bytes", "zone", "m dB", "v dB");
    for (size_t i = 0; i < count; i++) {
        const stq_tensor *tensor = &rows[i].tensor.tensor;
        const stq_tensor_record *record = &rows[i].tensor.record;
        char shape[48], v_bits[8];
        snprintf(shape, sizeof(shape), "%lld x %lld", (long long)tensor->rows, (long long)tensor->cols);
        printf("%-32s %16s %3u %3s %12llu %-11s %7s %7s\n", tensor->name, shape, record->bits[0],
               width(record->bits[1], v_bits), (unsigned long long)(rows[i].tensor.bytes[0] + rows[i].tensor.bytes[1]),
               stq_zone_name((stq_zone)record->zone), decibels(rows[i].snr[0], snr[0]),
               decibels(rows[i].snr[1], snr[1]));
    }
    printf("\n%lld state values in %s: %.3f bits a value, %.1f %% less than float32 states\n", (long long)totals.states,
           memory_text(totals.state_bytes, text[0]), 8 * (double)totals.state_bytes / (double)totals.states,
           100 * (1 - (double)totals.state_bytes / (4 * (double)totals.states)));
}

static json_t *format_row(const struct row *row) {
    const stq_tensor *tensor = &row->tensor.tensor;
    const stq_tensor_record *record = &row->tensor.record;
    const char *shared = record->bits[1] == STQ_BITS_SHARED_ROW   ? "row"
                         : record->bits[1] == STQ_BITS_SHARED_COL ? "column"
                                                                  : NULL;
    return json_pack("{s:s, s:I, s:I, s:i, s:i, s:s?, s:I, s:I, s:s, s:I, s:o, s:o, s:o, s:o}", "name", tensor->name,
                     "rows", (json_int_t)tensor->rows, "cols", (json_int_t)tensor->cols, "m_bits", (int)record->bits[0],
                     "v_bits", (int)record->bits[1], "v_shared", shared, "m_bytes", (json_int_t)row->tensor.bytes[0],
                     "v_bytes", (json_int_t)row->tensor.bytes[1], "zone", stq_zone_name((stq_zone)record->zone),
                     "missed", (json_int_t)record->missed, "n", log_number(record->factors.n), "r",
                     log_number(record->factors.r), "m_snr_db", log_number(row->snr[0]), "v_snr_db",
                     log_number(row->snr[1]));
}

static json_t *format_arrays(const stq_checkpoint *checkpoint) {
    static const char *const types[] = {"F32", "BF16", "F16", "U8"};
    json_t *list = json_array();
    stq_array array;
    for (size_t i = 0; stq_checkpoint_array(checkpoint, i, &array) == STQ_OK; i++) {
        json_t *shape = json_array();
        for (uint32_t k = 0; k < array.dimensions; k++) {
            json_array_append_new(shape, json_integer(array.shape[k]));
        }
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:o}", "name", array.name, "dtype", types[array.type], "shape", shape));
    }
    return list;
}

static json_t *format_object(const stq_checkpoint *checkpoint, const struct row *rows, size_t count) {
    stq_checkpoint_info info;
    stq_checkpoint_describe(checkpoint, &info);
    struct totals totals = add_up(checkpoint, rows, count);
    json_t *tensors = json_array();
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(tensors, format_row(&rows[i]));
    }
    json_t *application = checkpoint_application(checkpoint);
    return json_pack("{s:s, s:I, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o}", "path", info.path, "step",
                     (json_int_t)info.step, "format_version", (int)info.format_version, "files", (int)info.ranks,
                     "bytes", (json_int_t)info.bytes, "parameters", (json_int_t)totals.parameters, "parameter_bytes",
                     (json_int_t)totals.parameter_bytes, "state_values", (json_int_t)totals.states, "state_bytes",
                     (json_int_t)totals.state_bytes, "application", application ? application : json_object(), "arrays",
                     format_arrays(checkpoint), "tensors", tensors);
}

// The description, as a table or into *object.
static enum app_status describe(const stq_checkpoint *checkpoint, json_t **object) {
    stq_checkpoint_info info;
    stq_checkpoint_describe(checkpoint, &info);
    struct row *rows = calloc(info.tensor_count + 1, sizeof(*rows));
    enum app_status status =
        rows ? APP_OK : app_fail(APP_FAILED, "There is no memory for a table of %zu rows.", info.tensor_count);
    for (size_t i = 0; status == APP_OK && i < info.tensor_count; i++) {
        status = read_row(checkpoint, i, &rows[i]);
    }
    if (status == APP_OK && object) {
        *object = format_object(checkpoint, rows, info.tensor_count);
    } else if (status == APP_OK) {
        print_table(checkpoint, rows, info.tensor_count);
    }
    free(rows);
    return status;
}

static enum app_status digest(const stq_checkpoint *checkpoint, json_t *object) {
    char text[24];
    uint64_t value;
    if (stq_checkpoint_digest(checkpoint, &value) != STQ_OK) {
        return app_library_failure();
    }
    snprintf(text, sizeof(text), "%016" PRIx64, value);
    if (object) {
        json_object_set_new(object, "digest", json_string(text));
    } else {
        printf("%s\n", text);
    }
    return APP_OK;
}

static enum app_status verify(const stq_checkpoint *checkpoint, json_t *object) {
    stq_checkpoint_info info;
    stq_checkpoint_describe(checkpoint, &info);
    if (stq_checkpoint_verify(checkpoint) != STQ_OK) {
        return app_library_failure();
    }
    if (object) {
        json_object_set_new(object, "verified", json_true());
    } else {
        printf("%s: %zu tensors in %u file%s, %s\n", info.path, info.entry_count, info.ranks,
               info.ranks == 1 ? "" : "s",
               info.format_version > 0 ? "every checksum is right" : "readable; there are no checksums");
    }
    return APP_OK;
}

static enum app_status inspect(const struct settings *settings) {
    stq_checkpoint *checkpoint;
    json_t *object = NULL;
    enum app_status status = resume_open(settings->path, INT64_MAX, &checkpoint);
    if (status != APP_OK) {
        return status;
    }
    if (settings->json || (!settings->digest && !settings->verify)) {
        status = describe(checkpoint, settings->json ? &object : NULL);
    }
    if (status == APP_OK && settings->verify) {
        status = verify(checkpoint, object);
    }
    if (status == APP_OK && settings->digest) {
        status = digest(checkpoint, object);
    }
    if (status == APP_OK && object) {
        json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        printf("\n");
    }
    json_decref(object);
    stq_checkpoint_close(checkpoint);
    return status;
}

int command_inspect(int argc, char **argv) {
    struct settings settings = {0};
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
    return command_report(argv[0], inspect(&settings));
}
