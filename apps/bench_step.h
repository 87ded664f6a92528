// What `stquant bench step` times: bench_step.c reads the options and prints, bench_step_run.c does the work.
#ifndef STQUANT_BENCH_STEP_H
#define STQUANT_BENCH_STEP_H

#include <stquant/adamw.h>

#include "bench.h"

enum { BENCH_LARGEST_REPEATS = 1000 };

struct bench_step_settings {
    int64_t params, tensors, threads, repeats;
    uint32_t m_bits, v_bits;
    uint32_t to_m_bits, to_v_bits; // of a transition; 0 = none is timed
    stq_dtype dtype;
    const char *isa, *dtype_name;
    const char *list; // of tensors on a GPU; NULL = `tensors` of equal size
    int own_norm, json, gpu;
};

// Seconds of each repeat, sorted after bench_step_run.
struct bench_step_times {
    double low_bit[BENCH_LARGEST_REPEATS], float32[BENCH_LARGEST_REPEATS], copy[BENCH_LARGEST_REPEATS];
    double gigahertz[BENCH_LARGEST_REPEATS]; // of the core, in between
    double host[BENCH_LARGEST_REPEATS];      // until a call on a GPU returned
    // With a transition: a step before it from the same states, the step that makes it, and the one after it.
    double before[BENCH_LARGEST_REPEATS], transition[BENCH_LARGEST_REPEATS], after[BENCH_LARGEST_REPEATS];
};

// Medians of the times, and what one step moves.
struct bench_step_result {
    double low_bit, float32, copy; // seconds
    double least_low_bit, least_float32;
    double gigahertz; // 0 where it cannot be told
    double host;      // seconds until a call on a GPU returned
    char device[256]; // name of the GPU
    double before, transition, after;
    double low_bit_bytes, float32_bytes, copy_bytes;
    stq_memory memory; // of the low-bit states
};

// Sorts the times of both optimizers and takes medians, least and bytes out of them: `arrays` are the bytes of
// parameters and gradients that a step moves, `float32_states` those of the float32 states; result->memory is set.
void bench_step_compare(struct bench_step_result *result, struct bench_step_times *times, int repeats, double arrays,
                        uint64_t float32_states);

enum app_status bench_step_run(const struct bench_step_settings *settings, struct bench_step_result *result);

// The same on a GPU, without transitions; sets the number of parameters and tensors where a list is named. Only in
// builds with STQUANT_APPS_CUDA.
enum app_status bench_step_run_gpu(struct bench_step_settings *settings, struct bench_step_result *result);

#endif
