// `stquant train`: what every run has, and what a model adds to it.
#ifndef STQUANT_TRAINING_H
#define STQUANT_TRAINING_H

#include <jansson.h>

#include "train/data.h"
#include "train/device.h"
#include "train/loop.h"
#include "train/model.h"
#include "train/optimizer.h"
#include "train/ranks.h"
#include "train_options.h"

// Bytes that a run will take, from the plans of its parts.
struct demand {
    int64_t parameters, gradients, states, activations;
    int64_t total;  // of this process, without what is on a device
    int64_t device; // on it: copies of parameters and gradients, and this rank's states
};

struct training {
    const struct training_kind *kind;
    const struct train_options *options;
    struct optimizer_settings optimizer_settings;
    struct ranks ranks;
    int64_t batch; // of this rank, the options' batch shared out
    struct model *model;
    struct batch_source *data;
    struct device *device; // of the optimizer; null for the CPU
    struct optimizer optimizer;
    struct log *log;
    struct event_file *events; // for TensorBoard, or null
    struct trace *trace;
    struct saving *saving;
    json_t *application; // what checkpoints tell of the run; with --checkpoint
    int64_t first_step;  // steps done before, by --resume
    int fell_back;       // --resume took an earlier checkpoint than the newest, which is damaged
    // Writes a sample, as loop_settings has it, with the training as context; or null.
    enum app_status (*sample)(void *training, int64_t step, char **text);
};

// A model that can be trained. The struct training given to these functions is the first member of the
// kind's own struct.
struct training_kind {
    // Settles the model's shape, as far as possible without reading all the data, and refuses sizes that make
    // no sense.
    enum app_status (*settle)(struct training *training);
    // The tensors of that shape; released by the caller.
    enum app_status (*describe)(const struct training *training, struct parameter_set *set);
    int64_t (*activation_bytes)(const struct training *training);
    // Reads the data into training->data.
    enum app_status (*load)(struct training *training);
    enum app_status (*create_model)(struct training *training);
    // Prints lines about model, data and steps.
    void (*print_head)(const struct training *training);
    // What the loss is counted in, after "nats a".
    const char *(*unit)(const struct training *training);
    // Adds to what the log's first line and the summary tell of the run: model, preset, shape.
    void (*describe_run)(const struct training *training, json_t *run);
};

// What the log's first line and the summary tell of the run. To be released.
json_t *training_describe(const struct training *training);

// What a checkpoint tells of the run: the same and all that decides how it goes on. To be released.
json_t *training_application(const struct training *training);

// Reads the parameters of --init.
enum app_status training_init(struct training *training);

// Reads --resume into the model and the optimizer, and sets first_step and fell_back.
enum app_status training_resume(struct training *training);

// Opens --checkpoint, on rank 0 first.
enum app_status training_open_saving(struct training *training);

// Runs: model and optimizer are made, trained and reported on. Returns the command's exit status. The
// caller releases what belongs to the kind.
int training_run(struct training *training, const char *command);

#endif
