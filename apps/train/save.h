// Checkpoints of a run: when they are due, what is in them, and where a run goes on from.
#ifndef STQUANT_TRAIN_SAVE_H
#define STQUANT_TRAIN_SAVE_H

#include <jansson.h>
#include <stdint.h>
#include <stquant/checkpoint.h>

#include "train/failure.h"
#include "train/optimizer.h"
#include "train/parameters.h"

struct save_settings {
    const char *folder; // --checkpoint; null = no checkpoints
    int64_t every;      // steps between checkpoints; 0 = only the last
    int64_t keep;       // checkpoints that stay; 0 = all
    int64_t first_step; // the step that the run goes on from
    int accept_later;   // checkpoints of later steps in the folder are known to be damaged
    int rank, ranks;    // which part of the parameters and states this process writes
    uint64_t run;       // the same number on all ranks; may be 0 with one
};

// What every checkpoint of a run holds.
struct save_source {
    const stq_adamw *optimizer;
    const struct parameter_set *parameters; // whole on every rank
    const json_t *application;              // borrowed
};

struct saving; // null where there are no checkpoints: every function then does nothing

// Makes the folder. Refuses one with checkpoints of later steps than first_step: they would be taken for this
// run's. On failure *saving is null.
enum app_status saving_open(const struct save_settings *settings, struct saving **saving);

// To be called after every step; begins a checkpoint when it is due and the one before is written. A checkpoint
// that cannot be written does not end the run: returns a sentence to warn with, valid until the next call, or null.
const char *saving_step(struct saving *saving, const struct save_source *source, int64_t step);

// The last checkpoint, unless `step` has one; waits until it is on the disk. APP_FAILED if it is not.
enum app_status saving_finish(struct saving *saving, const struct save_source *source, int64_t step);

// Waits for what is being written.
void saving_close(struct saving *saving);

// ---- Going on ----

// The step of the newest checkpoint in a run's folder; -1 where there is none that can be opened.
int64_t saved_step(const char *folder);

// Refuses a folder in which a checkpoint of a later step than `step` would be taken for the newest.
enum app_status save_refuse_later(const char *folder, int64_t step);

// A checkpoint to go on from; close it with stq_checkpoint_close. `path` is a run's folder, a checkpoint's folder or a
// file. `below`: only checkpoints of earlier steps count where `path` is a run's folder; INT64_MAX for any.
enum app_status resume_open(const char *path, int64_t below, stq_checkpoint **checkpoint);

// Reads parameters and states. *changed (may be null): widths were changed to what this run can hold. *corrupt: the
// contents are damaged, and an earlier checkpoint may do.
enum app_status resume_load(const stq_checkpoint *checkpoint, const struct parameter_set *parameters,
                            stq_adamw *optimizer, int *changed, int *corrupt);

// Parameters alone, as whole arrays of the checkpoint; `prefix` stands before their names there ("transformer." or
// "").
enum app_status load_parameters(const stq_checkpoint *checkpoint, const struct parameter_set *parameters,
                                const char *prefix);

// The application's object in the checkpoint, to be released; null where it has none.
json_t *checkpoint_application(const stq_checkpoint *checkpoint);

#endif
