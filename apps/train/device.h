// A GPU that the optimizer's states live on, while the model computes on the CPU: parameters and gradients are mirrored
// there. Nothing of CUDA's headers is seen here; builds without CUDA refuse to open one.
#ifndef STQUANT_TRAIN_DEVICE_H
#define STQUANT_TRAIN_DEVICE_H

#include <stdint.h>
#include <stquant/comm.h>

#include "train/failure.h"
#include "train/parameters.h"
#include "train/ranks.h"

// What --device asks for.
struct device_choice {
    int gpu;   // 0: the CPU
    int index; // which GPU, as CUDA counts them; -1: the rank's number on its host, modulo the number of GPUs there
};

struct device {
    int index;
    char name[64];  // as CUDA tells it: "NVIDIA H200"
    void *stream;   // a cudaStream_t, on which everything is enqueued
    stq_comm *comm; // NCCL's, over the ranks; null with one
    float *values;  // device memory, of the layout of the parameter set's flat buffers; null before device_mirror
    float *gradients;
    const struct parameter_set *set; // the host's side; its buffers are locked in memory where the system allows it
    int locked;                      // how many of its two buffers are
    int current;                     // the values are those of the host
};

// "cpu", "cuda" or "cuda:N". 0 if the text is none of them.
int device_parse(const char *text, struct device_choice *choice);

// Chooses the GPU and joins the ranks through NCCL, which have one GPU each or are refused. *device is null on a CPU
// and after a failure. `timeout` is what one operation may wait for the other ranks, in seconds.
enum app_status device_open(const struct device_choice *choice, const struct ranks *ranks, double timeout,
                            struct device **device);

// Whether `bytes` bytes are free on the GPU.
enum app_status device_check_memory(const struct device *device, int64_t bytes);

// Allocates the mirror. `set` must outlive the device or device_unmirror.
enum app_status device_mirror(struct device *device, const struct parameter_set *set);

// Enqueues the copies that a step needs: gradients, and the values where those of the host were changed.
enum app_status device_send(struct device *device);

// Copies the values back and waits for them.
enum app_status device_fetch(struct device *device);

// Frees the mirror; the set's buffers are as before.
void device_unmirror(struct device *device);

// Null is allowed. `failed`: other ranks may be gone, and are not waited for.
void device_close(struct device *device, int failed);

#endif
