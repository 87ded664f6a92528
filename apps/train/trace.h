// The trace of a run: at each decision every factor of every tensor, and what coding its moments at each width would
// have done to its updates since the decision before. docs/trace.md describes the file.
#ifndef STQUANT_TRAIN_TRACE_H
#define STQUANT_TRAIN_TRACE_H

#include "train/failure.h"
#include "train/optimizer.h"

struct trace; // null where no trace was asked for: trace_step then does nothing

// Creates or empties the file and writes its first line. On failure *trace is null.
enum app_status trace_open(const char *path, const struct optimizer *optimizer, struct trace **trace);

// After a step, while its gradients still lie in the parameter set.
enum app_status trace_step(struct trace *trace, const struct optimizer *optimizer, int64_t step,
                           const stq_step_result *result);

enum app_status trace_close(struct trace *trace);

#endif
