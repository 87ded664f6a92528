// What the benchmarks of `stquant bench` share.
#ifndef STQUANT_BENCH_H
#define STQUANT_BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <stquant/policy.h>

#include "command.h"

int command_bench_step(int argc, char **argv);
int command_bench_codec(int argc, char **argv);
int command_bench_policy(int argc, char **argv);
int command_bench_score(int argc, char **argv);
int command_bench_qat(int argc, char **argv);

// Seconds of a clock that only goes forward.
double bench_seconds(void);

// Sorts `times`; the median of an even number is the lower of the two in the middle.
double bench_median(double *times, int count);

// How many billion cycles a second this core makes just now, measured for about 50 microseconds; 0 where there is no
// instruction of a known number of cycles to measure it with.
double bench_gigahertz(void);

// `bytes` of zeroed memory in huge pages where the system has them, written first by the threads that will use it;
// NULL if there is none. Free with bench_release.
void *bench_allocate(size_t bytes, int threads);
void bench_release(void *memory, size_t bytes);

// values[i] = `deviation` times about normal; from counters, in parallel.
void bench_fill(float *values, int64_t count, float deviation, uint32_t seed, int threads);

// Makes the library use the kernels of that name, or all it has for NULL; returns the name in use. Ends the process
// with status 2 if this machine cannot run them. To be called before anything else of the library.
const char *bench_choose_kernels(const struct argp_state *state, const char *isa);

// The policy that --policy names; ends the process with status 2 where it is neither zones nor rate-distortion.
stq_policy_kind bench_choose_policy(const struct argp_state *state, const char *name);

#endif
