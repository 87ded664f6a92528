#include "train/schedule.h"

#include <math.h>

double schedule_rate(const struct schedule *schedule, int64_t step) {
    if (step <= schedule->warmup) {
        return schedule->learning_rate * (double)step / (double)schedule->warmup;
    }
    const double pi = 3.14159265358979324;
    const int64_t decay = schedule->steps - schedule->warmup;
    double progress = decay > 0 ? (double)(step - schedule->warmup) / (double)decay : 1;
    double share = (1 + cos(pi * (progress < 1 ? progress : 1))) / 2;
    return schedule->learning_rate * (schedule->floor + (1 - schedule->floor) * share);
}
