// The options of `stquant train`.
#ifndef STQUANT_TRAIN_OPTIONS_H
#define STQUANT_TRAIN_OPTIONS_H

#include <stdint.h>

#include "command.h"
#include "train/optimizer.h"

struct train_options {
    struct command_model model;
    const char **data; // paths, in the order given
    int data_count;

    // 0 (or NaN) where the preset decides, until train_options_parse has filled them in.
    int64_t steps, batch, sequence_length, warmup;
    double learning_rate, weight_decay, beta2;

    int64_t accumulation, validate_every, validation_batches, sample_every, sample_length;
    double clip, floor, beta1, epsilon, validation_share, temperature;
    const char *prompt;

    const char *optimizer;  // "adamw", "fixed" or "stquant"
    double state_bits;      // NaN where not given
    int64_t m_bits, v_bits; // 0 where not given
    const char *policy, *cap_mode;
    int64_t decide_every;
    double annealing, error_compensation;

    int64_t seed;
    int64_t threads; // 0 = all
    const char *log, *summary;
};

// Parses and completes; ends the process with status 2 when the arguments make no sense.
void train_options_parse(struct train_options *options, int argc, char **argv);

// The optimizer that the options ask for. Refuses widths that do not exist.
enum app_status train_options_optimizer(const struct train_options *options, struct optimizer_settings *settings);

#endif
