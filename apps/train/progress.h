// What a run tells on standard output: on a terminal one line that is written over, elsewhere a plain
// line from time to time.
#ifndef STQUANT_TRAIN_PROGRESS_H
#define STQUANT_TRAIN_PROGRESS_H

#include <stdint.h>

struct progress {
    int terminal;        // standard output is one
    int pending;         // the terminal's current line holds a progress line
    int unwaiting;       // standard output again, for writes that do not wait; -1 where there is none
    int64_t steps;       // of the whole run
    int64_t first_step;  // already done when the clock started
    int64_t plain_every; // steps between plain lines
    double begin;        // clock_seconds() at the start
    double last_shown;
};

// Seconds of a clock that only goes forward.
double clock_seconds(void);

// The clock starts; `done` steps of `steps` are behind.
void progress_begin(struct progress *progress, int64_t done, int64_t steps);

struct progress_state {
    int64_t step;
    double train_loss;
    double validation_loss; // NaN where there is none in this step
    double validation_top1; // NaN where there is none
    double per_second;
    const char *unit; // of per_second
    int64_t state_bytes;
    double bits; // per state value
};

// Shows a step. On a terminal at most ten times a second; elsewhere every plain_every steps and at
// every validation.
void progress_step(struct progress *progress, const struct progress_state *state);

// Shows text as it is. What the other end does not take within seconds is left out: mpirun, once told to end, takes
// nothing for as long as it waits, and a run that waits for it would not be saved.
void progress_text(struct progress *progress, const char *text);

// For a signal's handler: from now on nothing that is written to standard output waits for who reads it.
void progress_hurry(void);

// Ends what progress_begin() began; standard output stays as it is.
void progress_end(struct progress *progress);

// Ends the terminal's progress line, so that what follows starts on a line of its own.
void progress_clear(struct progress *progress);

// "36.1k tokens/s" or "7.3 tokens/s" into `text`, which is returned; `unit` is "tokens".
const char *progress_rate(double per_second, const char *unit, char text[32]);

// "1:05" or "2:03:09" into `text`, which is returned.
const char *progress_duration(double seconds, char text[32]);

#endif
