// The options that `stquant train` has for every model.
#ifndef STQUANT_TRAIN_OPTIONS_H
#define STQUANT_TRAIN_OPTIONS_H

#include <stdint.h>
#include <stquant/qat.h>

#include "command.h"
#include "train/optimizer.h"
#include "train/presets.h"

struct train_options {
    const char **data; // paths, in the order given
    int data_count;

    // 0 (or NaN; -1 for warmup and validate_every) where the preset decides, until train_options_complete.
    int64_t steps, batch, warmup, validate_every;
    double learning_rate, weight_decay, beta2;

    int64_t accumulation, validation_batches, sample_every;
    double clip, floor, beta1, epsilon;

    const char *optimizer;  // "adamw", "fixed" or "stquant"
    double state_bits;      // NaN where not given
    int64_t m_bits, v_bits; // 0 where not given
    const char *policy, *cap_mode;
    int64_t decide_every;
    double annealing, error_compensation;
    struct width_rules widths; // --bits-for and the patterns of --shared-v
    int shared_v;              // 1: second moments may be shared

    stq_qat_config qat;   // of --qat and its estimator; bits 0 without
    double qat_step_rate; // learning rate of the steps, as a share
    int qat_details;      // options were given that need --qat

    int64_t seed;
    int64_t threads;             // 0 = all
    struct device_choice device; // --device, of the optimizer
    const char *log, *summary, *tensorboard, *trace;
    const char *checkpoint, *resume, *init; // null where not given
    int64_t save_every, keep;               // 0: only after the last step; all
};

// Groups of the help text: models put their own options around those that all have in common.
enum { HELP_MODEL = 1, HELP_DATA, HELP_TRAINING, HELP_STATES, HELP_QUANTIZATION, HELP_OUTPUT };

// The options in common, as a child of a model's argp; its input is the struct train_options.
extern const struct argp train_options_argp;

// Adds a path to --data, which every model describes in its own words.
void train_options_add_data(struct train_options *options, const char *path, const struct argp_state *state);

// Fills in the defaults; before parsing.
void train_options_begin(struct train_options *options);

// Fills in what the preset decides; after parsing.
void train_options_complete(struct train_options *options, const struct train_preset *preset);

// Refuses a quantization-aware training that cannot be. `qat` gets bits 0 where none is asked for.
enum app_status train_options_qat(const struct train_options *options, stq_qat_config *qat);

// The optimizer that the options ask for. Refuses widths that do not exist.
enum app_status train_options_optimizer(const struct train_options *options, struct optimizer_settings *settings);

void train_options_release(struct train_options *options);

#endif
