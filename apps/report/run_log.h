// A training run's log (`stquant train --log`), read into columns.
#ifndef STQUANT_REPORT_RUN_LOG_H
#define STQUANT_REPORT_RUN_LOG_H

#include <stdint.h>

#include "train/failure.h"

// What is told at every step. NaN where a line has no such number (JSON's null, or no such field).
enum run_column {
    COLUMN_TRAIN_LOSS,
    COLUMN_VALIDATION_LOSS,
    COLUMN_TOP1, // share of the validation images that were recognised, 0 to 1
    COLUMN_LEARNING_RATE,
    COLUMN_GRADIENT_NORM,
    COLUMN_SPEED, // tokens (or images) per second
    COLUMN_STATE_BYTES,
    COLUMN_PEAK_BYTES,
    COLUMN_BITS, // all-in bits per state value at this step
    RUN_COLUMNS
};

// Widths as the log has them; a second moment that is shared along a dimension has its own mark.
enum { WIDTH_UNKNOWN = 0, WIDTH_FLOAT32 = 32, WIDTH_SHARED = 1 };

enum run_zone { ZONE_EXEMPT, ZONE_CRITICAL, ZONE_MAGNITUDE, ZONE_STRUCTURAL, ZONE_REDUNDANT, RUN_ZONES };

// Further numbers that a log may have for each tensor at a decision; NaN where it has not.
enum run_factor { FACTOR_N, FACTOR_R, FACTOR_M_RMS, FACTOR_V_RMS, RUN_FACTORS };

// One tensor at one decision.
struct run_entry {
    float factors[RUN_FACTORS];
    uint8_t bits[2]; // of m and v
    uint8_t zone;    // enum run_zone
};

struct run_tensor {
    char *name;    // owned
    int64_t block; // number in the name ("h.3.mlp..."), -1 where there is none
    char *kind;    // owned; what follows the number ("mlp..."), or the whole name
};

struct run_decision {
    int64_t step;
    double n_average, r_average; // boundaries of the zones; NaN where the log has none
};

struct run_log {
    char *path;                       // owned
    char *name;                       // owned: what the report calls the run
    char *model, *preset, *optimizer; // owned; null where the log does not tell
    double parameters;                // NaN where the log does not tell and it cannot be computed
    double state_bits;                // the cap; NaN for none

    int64_t step_count, step_capacity;
    int64_t *steps;               // (step_count), rising
    double *columns[RUN_COLUMNS]; // (step_count) each

    int64_t tensor_count, tensor_capacity;
    struct run_tensor *tensors;
    int64_t decision_count, decision_capacity;
    struct run_decision *decisions;
    struct run_entry *entries; // (decision_count, tensor_count)

    char *sample; // owned: the last text that the model wrote, or null
    int64_t sample_step;
    int64_t lines;            // of the file
    int64_t unreadable;       // lines left out because they are no whole JSON object
    int64_t first_unreadable; // number of the first one, from 1
    int64_t repeated;         // steps that a later line told once more: the run went on from before them
    int64_t skipped;          // steps that the optimizer skipped
};

// Reads a log, plain or gzipped. Lines that cannot be read are left out and counted. A file without one
// readable step is refused in a sentence. On failure nothing stays allocated.
enum app_status run_log_read(const char *path, struct run_log *log);

// The entry of a tensor at a decision.
static inline const struct run_entry *run_log_entry(const struct run_log *log, int64_t decision, int64_t tensor) {
    return &log->entries[decision * log->tensor_count + tensor];
}

// True when one of the moments is a low-bit one.
static inline int run_entry_is_coded(const struct run_entry *entry) {
    return (entry->bits[0] >= 1 && entry->bits[0] <= 8) || (entry->bits[1] >= 1 && entry->bits[1] <= 8);
}

// True when some tensor has low-bit states at some decision.
int run_log_has_widths(const struct run_log *log);

// The last value of a column that is a number, NaN without one.
double run_log_last(const struct run_log *log, enum run_column column);

// The largest one, NaN without one.
double run_log_largest(const struct run_log *log, enum run_column column);

// The median over the steps, NaN without one.
double run_log_median(const struct run_log *log, enum run_column column);

void run_log_release(struct run_log *log);

#endif
