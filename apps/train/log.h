// The log of a run: one JSON object a line, each handed to the system at once, so that a reader
// may follow and a run that ends early leaves whole lines.
#ifndef STQUANT_TRAIN_LOG_H
#define STQUANT_TRAIN_LOG_H

#include <jansson.h>
#include <stdint.h>

#include "train/failure.h"

struct log; // null where no log was asked for: every function then does nothing

// Creates or empties the file. A run that goes on after `first_step` keeps the lines up to that step. On failure *log
// is null.
enum app_status log_open(const char *path, int64_t first_step, struct log **log);

// Writes `object` (whose reference is taken over, also on failure) and a newline. A full disk or any other
// failure of the file is APP_FAILED, with a sentence.
enum app_status log_write(struct log *log, json_t *object);

// Closes; tells of data that the system could not write.
enum app_status log_close(struct log *log);

// A JSON number, or null where the value is infinite or not a number, which JSON cannot say.
json_t *log_number(double value);

// Writes a whole JSON file under a temporary name and renames it. Takes over the reference.
enum app_status log_write_file(const char *path, json_t *object);

#endif
