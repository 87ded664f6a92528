// The learning rate over a run.
#ifndef STQUANT_TRAIN_SCHEDULE_H
#define STQUANT_TRAIN_SCHEDULE_H

#include <stdint.h>

struct schedule {
    double learning_rate; // the highest
    double floor;         // the last one, as a share of the highest
    int64_t warmup;       // steps of linear rise
    int64_t steps;        // length of the run
};

// The rate of `step`, 1 to steps: rises linearly to the highest at step `warmup`, then falls along half
// a cosine to floor x learning_rate at the last step.
double schedule_rate(const struct schedule *schedule, int64_t step);

#endif
