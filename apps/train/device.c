#include "train/device.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

int device_parse(const char *text, struct device_choice *choice) {
    *choice = (struct device_choice){.gpu = strncmp(text, "cuda", 4) == 0, .index = -1};
    if (strcmp(text, "cpu") == 0 || strcmp(text, "cuda") == 0) {
        return 1;
    }
    if (!choice->gpu || text[4] != ':' || text[5] < '0' || text[5] > '9') {
        return 0;
    }
    char *end;
    long index = strtol(text + 5, &end, 10);
    choice->index = index < INT_MAX ? (int)index : INT_MAX;
    return *end == '\0';
}

#ifdef STQUANT_APPS_CUDA

#include <stdio.h>

#include "train/cuda_check.h"
#include "train/memory.h"

// ---- Which GPU ----

static enum app_status choose(struct device *device, const struct device_choice *choice, const struct ranks *ranks) {
    int devices = 0, local = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices < 1) {
        (void)cudaGetLastError();
        return app_fail(APP_FAILED,
                        "There is no GPU that CUDA can use here (%s); train with --device cpu, or see to NVIDIA's "
                        "driver and CUDA_VISIBLE_DEVICES.",
                        error != cudaSuccess ? cudaGetErrorString(error) : "it counts none");
    }
    if (choice->index >= devices) {
        return app_fail(APP_USAGE, "There is no GPU %d; CUDA sees %d here, and --device cuda:0 is the first.",
                        choice->index, devices);
    }
    enum app_status status = choice->index < 0 ? ranks_local(ranks, &local) : APP_OK;
    if (status != APP_OK) {
        return status;
    }
    device->index = choice->index < 0 ? local % devices : choice->index;
    struct cudaDeviceProp properties;
    GPU_CHECK(cudaSetDevice(device->index));
    GPU_CHECK(cudaGetDeviceProperties(&properties, device->index));
    snprintf(device->name, sizeof(device->name), "%.*s", (int)sizeof(device->name) - 1, properties.name);
    cudaStream_t stream;
    GPU_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    device->stream = stream;
    return APP_OK;
}

// ---- Ranks ----

enum { ID_BYTES = 16 };

// A GPU's name in the whole world, so that it does not matter which GPUs each rank was given to see.
static enum app_status gather_ids(const struct device *device, const struct ranks *ranks, uint8_t *ids) {
    struct cudaDeviceProp properties;
    int64_t *counts = calloc((size_t)ranks->count, sizeof(*counts));
    if (!counts) {
        return app_fail(APP_FAILED, "There is no memory for a list of %d ranks.", ranks->count);
    }
    for (int r = 0; r < ranks->count; r++) {
        counts[r] = ID_BYTES;
    }
    stq_status gathered = STQ_OK;
    const cudaError_t error = cudaGetDeviceProperties(&properties, device->index);
    if (error == cudaSuccess) {
        memcpy(ids + (size_t)ranks->rank * ID_BYTES, &properties.uuid, ID_BYTES);
        gathered = stq_comm_all_gather(ranks->comm, ids, counts, STQ_COMM_UINT8, "the names of the GPUs");
    }
    free(counts);
    if (error != cudaSuccess) {
        return cuda_failed(error);
    }
    return app_check(gathered);
}

static enum app_status check_ids(const struct device *device, const struct ranks *ranks, const uint8_t *ids) {
    for (int r = 1; r < ranks->count; r++) {
        for (int other = 0; other < r; other++) {
            if (memcmp(ids + (size_t)r * ID_BYTES, ids + (size_t)other * ID_BYTES, ID_BYTES) == 0) {
                return app_fail(APP_USAGE,
                                "Ranks %d and %d would share a GPU (%s), which NCCL refuses; start no more ranks on a "
                                "host than it has GPUs, or train with --device cpu.",
                                other, r, device->name);
            }
        }
    }
    return APP_OK;
}

// NCCL's communicator, made over that of MPI.
static enum app_status join(struct device *device, const struct ranks *ranks, double timeout) {
    uint8_t *ids = calloc((size_t)ranks->count, ID_BYTES);
    if (!ids) {
        return app_fail(APP_FAILED, "There is no memory for a list of %d ranks.", ranks->count);
    }
    enum app_status status = gather_ids(device, ranks, ids);
    if (status == APP_OK) {
        status = check_ids(device, ranks, ids);
    }
    free(ids);
    if (status == APP_OK && stq_comm_create_nccl_over(&device->comm, ranks->comm, device->stream, timeout) != STQ_OK) {
        status = app_library_failure();
    }
    return status;
}

enum app_status device_open(const struct device_choice *choice, const struct ranks *ranks, double timeout,
                            struct device **device) {
    *device = NULL;
    if (!choice->gpu) {
        return APP_OK;
    }
    struct device *opened = calloc(1, sizeof(*opened));
    if (!opened) {
        return app_fail(APP_FAILED, "There is no memory for --device.");
    }
    enum app_status status = choose(opened, choice, ranks);
    if (status == APP_OK && ranks->comm) {
        status = join(opened, ranks, timeout);
    }
    if (status != APP_OK) {
        device_close(opened, 1);
        return status;
    }
    *device = opened;
    return APP_OK;
}

void device_close(struct device *device, int failed) {
    if (!device) {
        return;
    }
    device_unmirror(device);
    if (!failed) {
        stq_comm_destroy(device->comm);
    }
    if (device->stream) {
        (void)cudaStreamDestroy(device->stream);
    }
    free(device);
}

// ---- The mirror ----

static size_t buffer_bytes(const struct parameter_set *set) { return (size_t)set->padded * sizeof(float); }

enum app_status device_check_memory(const struct device *device, int64_t bytes) {
    size_t room, all;
    char needed[32], there[32];
    GPU_CHECK(cudaMemGetInfo(&room, &all));
    if ((uint64_t)bytes <= room) {
        return APP_OK;
    }
    return app_fail(
        APP_FAILED,
        "Parameters, gradients and states need %s on the GPU (%s), where %s are free; choose a smaller model, or train "
        "with --device cpu.",
        memory_text(bytes, needed), device->name, memory_text((int64_t)room, there));
}

// Copies from locked pages are faster. Where the system locks no more of them, they are made all the same. The buffers
// share no page with anything else.
static int lock(float *buffer, int64_t count) {
    const int locked = cudaHostRegister(buffer, memory_page_bytes(count), cudaHostRegisterDefault) == cudaSuccess;
    (void)cudaGetLastError();
    return locked;
}

enum app_status device_mirror(struct device *device, const struct parameter_set *set) {
    const size_t bytes = buffer_bytes(set);
    device->set = set;
    GPU_CHECK(cudaMalloc((void **)&device->values, bytes));
    GPU_CHECK(cudaMalloc((void **)&device->gradients, bytes));
    device->locked = lock(set->values, set->padded);
    device->locked += device->locked && lock(set->gradients, set->padded);
    return APP_OK;
}

void device_unmirror(struct device *device) {
    if (device->locked > 0) {
        (void)cudaHostUnregister(device->set->values);
    }
    if (device->locked > 1) {
        (void)cudaHostUnregister(device->set->gradients);
    }
    (void)cudaFree(device->values);
    (void)cudaFree(device->gradients);
    device->values = device->gradients = NULL;
    device->locked = device->current = 0;
}

enum app_status device_send(struct device *device) {
    const struct parameter_set *set = device->set;
    if (!device->current) {
        GPU_CHECK(
            cudaMemcpyAsync(device->values, set->values, buffer_bytes(set), cudaMemcpyHostToDevice, device->stream));
    }
    GPU_CHECK(
        cudaMemcpyAsync(device->gradients, set->gradients, buffer_bytes(set), cudaMemcpyHostToDevice, device->stream));
    device->current = 1;
    return APP_OK;
}

enum app_status device_fetch(struct device *device) {
    const struct parameter_set *set = device->set;
    // With several ranks a wait for the stream alone would have no end where one of them is dead.
    if (device->comm && stq_comm_finish(device->comm, "the parameters") != STQ_OK) {
        return app_library_failure();
    }
    GPU_CHECK(cudaMemcpyAsync(set->values, device->values, buffer_bytes(set), cudaMemcpyDeviceToHost, device->stream));
    GPU_CHECK(cudaStreamSynchronize(device->stream));
    return APP_OK;
}

#else

enum app_status device_open(const struct device_choice *choice, const struct ranks *ranks, double timeout,
                            struct device **device) {
    (void)ranks;
    (void)timeout;
    *device = NULL;
    return choice->gpu ? app_fail(APP_FAILED, "This stquant was built without its GPU backend; build it with "
                                              "-DSTQUANT_CUDA=ON, which needs nvcc, or train with --device cpu.")
                       : APP_OK;
}

// There is no device to be given to these.
enum app_status device_check_memory(const struct device *device, int64_t bytes) {
    (void)device;
    (void)bytes;
    return APP_OK;
}

enum app_status device_mirror(struct device *device, const struct parameter_set *set) {
    (void)device;
    (void)set;
    return APP_OK;
}

enum app_status device_send(struct device *device) {
    (void)device;
    return APP_OK;
}

enum app_status device_fetch(struct device *device) {
    (void)device;
    return APP_OK;
}

void device_unmirror(struct device *device) { (void)device; }

void device_close(struct device *device, int failed) {
    (void)device;
    (void)failed;
}

#endif
