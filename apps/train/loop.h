// The training loop. It knows models, data and samples through small interfaces only.
#ifndef STQUANT_TRAIN_LOOP_H
#define STQUANT_TRAIN_LOOP_H

#include <stdint.h>

#include "train/data.h"
#include "train/event_file.h"
#include "train/failure.h"
#include "train/log.h"
#include "train/model.h"
#include "train/optimizer.h"
#include "train/ranks.h"
#include "train/schedule.h"
#include "train/trace.h"

struct loop_settings {
    struct schedule schedule; // its `steps` is the length of the run
    int64_t first_step;       // steps done before; 0 for a new run
    int64_t accumulation;     // batches whose gradients make one step
    int64_t validate_every;   // steps; 0 = after the last step only
    int64_t sample_every;     // steps; 0 = after the last step only
    // Writes a sample into *text, which the loop frees; null for none.
    enum app_status (*sample)(void *context, int64_t step, char **text);
    void *sample_context;
    // Is told of every step that is complete; returns a warning to be printed, or null. Null for nobody.
    const char *(*after_step)(void *context, int64_t step);
    void *after_step_context;
};

struct loop {
    struct loop_settings settings;
    struct model *model;
    struct batch_source *data;
    struct optimizer *optimizer;
    const struct ranks *ranks;
    struct log *log;           // or null
    struct event_file *events; // for TensorBoard, or null
    struct trace *trace;       // or null
    json_t *run;               // what the log's first line tells of the run; borrowed, or null
};

struct loop_outcome {
    int64_t steps;          // made, those before first_step included
    int64_t skipped;        // steps left out because a gradient was not finite
    int signal;             // that stopped the run early; 0 for none
    double train_loss;      // of the last step
    double validation_loss; // the last one; NaN before the first
    double validation_top1; // share of the examples that were classified rightly; NaN where there are no classes
    double step_ms;         // median over the steps, optimizer included, validation and samples not
    double optimizer_ms;    // median
    double per_second;      // tokens or images
    double seconds;         // of the whole run
    char *sample;           // the last one, or null; the caller frees it
};

// The mean loss over the whole validation set, shared out over the ranks; *top1 is NaN where there are no classes.
enum app_status loop_validate(struct model *model, struct batch_source *data, const struct ranks *ranks, double *loss,
                              double *top1);

// Runs. SIGINT and SIGTERM end it after the current step, which is an outcome and not a failure. The
// outcome is valid on failure as well, for the steps that were made.
enum app_status loop_run(struct loop *loop, struct loop_outcome *outcome);

#endif
