/*
 * nccl.c - the transport over NCCL, which is loaded at run time: the library then needs neither its headers nor its
 * presence. The few declarations below are NCCL's stable C interface (2.x).
 */
#ifdef STQ_WITH_CUDA
#define _POSIX_C_SOURCE 200809L /* clock_gettime, nanosleep */
#endif

#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include <stquant/comm.h>

#ifndef STQ_WITH_CUDA

stq_status stq_comm_nccl_id(uint8_t id[STQ_COMM_NCCL_ID_BYTES]) {
    (void)id;
    return stq_error(STQ_UNSUPPORTED, "This build has no CUDA, which NCCL needs; configure with -DSTQUANT_CUDA=ON.");
}

stq_status stq_comm_create_nccl(stq_comm **comm, const uint8_t id[STQ_COMM_NCCL_ID_BYTES], int rank, int ranks,
                                void *stream, double timeout_seconds) {
    (void)id;
    (void)rank;
    (void)ranks;
    (void)stream;
    (void)timeout_seconds;
    *comm = NULL;
    return stq_error(STQ_UNSUPPORTED, "This build has no CUDA, which NCCL needs; configure with -DSTQUANT_CUDA=ON.");
}

#else

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <time.h>

typedef struct nccl_id {
    char bytes[STQ_COMM_NCCL_ID_BYTES];
} nccl_id;

typedef void *nccl_comm;

enum { NCCL_SUCCESS = 0, NCCL_IN_PROGRESS = 7, NCCL_SUM = 0, NCCL_MAX = 2, NCCL_MIN = 3 };

/* The functions in use, bound once. */
static struct nccl {
    void *handle;
    int (*get_unique_id)(nccl_id *id);
    int (*comm_init_rank)(nccl_comm *comm, int ranks, nccl_id id, int rank);
    int (*comm_destroy)(nccl_comm comm);
    int (*comm_abort)(nccl_comm comm);
    int (*comm_async_error)(nccl_comm comm, int *result);
    int (*all_reduce)(const void *, void *, size_t, int type, int operation, nccl_comm, cudaStream_t);
    int (*reduce)(const void *, void *, size_t, int type, int operation, int root, nccl_comm, cudaStream_t);
    int (*reduce_scatter)(const void *, void *, size_t, int type, int operation, nccl_comm, cudaStream_t);
    int (*all_gather)(const void *, void *, size_t, int type, nccl_comm, cudaStream_t);
    int (*broadcast)(const void *, void *, size_t, int type, int root, nccl_comm, cudaStream_t);
    int (*group_start)(void);
    int (*group_end)(void);
    const char *(*error_string)(int result);
} nccl;

static bool bind(const char *name, void **function) {
    *function = dlsym(nccl.handle, name);
    return *function != NULL;
}

/* ISO C has no conversion from an object pointer to a function pointer; POSIX has. */
#define BIND(name, member) bind(name, (void **)(void *)&nccl.member)

static stq_status load(void) {
    if (nccl.handle)
        return STQ_OK;
    nccl.handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_GLOBAL);
    if (nccl.handle == NULL)
        return stq_error(STQ_UNSUPPORTED,
                         "NCCL is not there (%s); install libnccl2 or put its folder into LD_LIBRARY_PATH.", dlerror());
    if (BIND("ncclGetUniqueId", get_unique_id) && BIND("ncclCommInitRank", comm_init_rank) &&
        BIND("ncclCommDestroy", comm_destroy) && BIND("ncclCommAbort", comm_abort) &&
        BIND("ncclCommGetAsyncError", comm_async_error) && BIND("ncclAllReduce", all_reduce) &&
        BIND("ncclReduce", reduce) && BIND("ncclReduceScatter", reduce_scatter) && BIND("ncclAllGather", all_gather) &&
        BIND("ncclBroadcast", broadcast) && BIND("ncclGroupStart", group_start) && BIND("ncclGroupEnd", group_end) &&
        BIND("ncclGetErrorString", error_string))
        return STQ_OK;
    dlclose(nccl.handle);
    nccl.handle = NULL;
    return stq_error(STQ_UNSUPPORTED,
                     "The NCCL that was found lacks functions of version 2; install a current libnccl2.");
}

typedef struct transport {
    nccl_comm comm;
    cudaStream_t stream;
    int rank;
    int ranks;
    double timeout_seconds;
    int32_t *flag; /* device memory for the barrier */
} transport;

static stq_status failed(int result) {
    return result == NCCL_SUCCESS ? STQ_OK : stq_comm_failed(nccl.error_string(result));
}

#define NCCL_CHECK(call) STQ_CHECK(failed(call))

static int type_of(stq_comm_type type) {
    static const int types[] = {1, 2, 4, 7, 8, 9, 6}; /* uint8, int32, int64, float32, float64, bfloat16, float16 */
    return types[type];
}

static int operation_of(stq_comm_operation operation) {
    return operation == STQ_COMM_SUM ? NCCL_SUM : operation == STQ_COMM_MAX ? NCCL_MAX : NCCL_MIN;
}

static bool equal_counts(const transport *t, const int64_t *counts) {
    for (int r = 1; r < t->ranks; r++)
        if (counts[r] != counts[0])
            return false;
    return true;
}

static stq_status all_reduce(void *context, void *buffer, int64_t count, stq_comm_type type,
                             stq_comm_operation operation) {
    transport *t = context;
    return failed(
        nccl.all_reduce(buffer, buffer, (size_t)count, type_of(type), operation_of(operation), t->comm, t->stream));
}

static stq_status reduce_scatter(void *context, void *buffer, const int64_t *counts, stq_comm_type type) {
    transport *t = context;
    char *part = buffer;
    size_t size = stq_comm_type_size(type);
    if (equal_counts(t, counts))
        return failed(nccl.reduce_scatter(buffer, part + (size_t)t->rank * (size_t)counts[0] * size, (size_t)counts[0],
                                          type_of(type), NCCL_SUM, t->comm, t->stream));
    NCCL_CHECK(nccl.group_start());
    int result = NCCL_SUCCESS;
    for (int root = 0; root < t->ranks && result == NCCL_SUCCESS; root++) {
        if (counts[root] > 0)
            result = nccl.reduce(part, part, (size_t)counts[root], type_of(type), NCCL_SUM, root, t->comm, t->stream);
        part += (size_t)counts[root] * size;
    }
    int ended = nccl.group_end();
    return failed(result != NCCL_SUCCESS ? result : ended);
}

static stq_status all_gather(void *context, void *buffer, const int64_t *counts, stq_comm_type type) {
    transport *t = context;
    char *part = buffer;
    size_t size = stq_comm_type_size(type);
    if (equal_counts(t, counts))
        return failed(nccl.all_gather(part + (size_t)t->rank * (size_t)counts[0] * size, buffer, (size_t)counts[0],
                                      type_of(type), t->comm, t->stream));
    NCCL_CHECK(nccl.group_start());
    int result = NCCL_SUCCESS;
    for (int root = 0; root < t->ranks && result == NCCL_SUCCESS; root++) {
        if (counts[root] > 0)
            result = nccl.broadcast(part, part, (size_t)counts[root], type_of(type), root, t->comm, t->stream);
        part += (size_t)counts[root] * size;
    }
    int ended = nccl.group_end();
    return failed(result != NCCL_SUCCESS ? result : ended);
}

static stq_status broadcast(void *context, void *buffer, int64_t count, stq_comm_type type, int root) {
    transport *t = context;
    return failed(nccl.broadcast(buffer, buffer, (size_t)count, type_of(type), root, t->comm, t->stream));
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Waits for the stream; a rank that died shows as an asynchronous error, one that hangs as the time-out. */
static stq_status finish_stream(transport *t) {
    double deadline = now() + t->timeout_seconds;
    for (;;) {
        cudaError_t state = cudaStreamQuery(t->stream);
        if (state == cudaSuccess)
            return STQ_OK;
        if (state != cudaErrorNotReady)
            return stq_comm_failed(cudaGetErrorString(state));
        int result = NCCL_SUCCESS;
        NCCL_CHECK(nccl.comm_async_error(t->comm, &result));
        if (result != NCCL_SUCCESS && result != NCCL_IN_PROGRESS)
            return failed(result);
        if (now() > deadline) {
            nccl.comm_abort(t->comm);
            t->comm = NULL;
            return stq_comm_failed(
                "the other ranks did not answer within the time-out; one of them has ended or hangs.");
        }
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    }
}

static stq_status barrier(void *context) {
    transport *t = context;
    STQ_CHECK(all_reduce(context, t->flag, 1, STQ_COMM_INT32, STQ_COMM_MAX));
    return finish_stream(t);
}

static void destroy(void *context) {
    transport *t = context;
    if (t->comm)
        nccl.comm_destroy(t->comm);
    cudaFree(t->flag);
    free(t);
}

stq_status stq_comm_nccl_id(uint8_t id[STQ_COMM_NCCL_ID_BYTES]) {
    STQ_CHECK(load());
    nccl_id made;
    NCCL_CHECK(nccl.get_unique_id(&made));
    memcpy(id, made.bytes, sizeof made.bytes);
    return STQ_OK;
}

static stq_status open_transport(transport *t, const uint8_t id[STQ_COMM_NCCL_ID_BYTES]) {
    nccl_id copy;
    memcpy(copy.bytes, id, sizeof copy.bytes);
    if (cudaMalloc((void **)&t->flag, sizeof *t->flag) != cudaSuccess)
        return stq_error(STQ_DEVICE_ERROR, "No device memory for a communicator: %s.",
                         cudaGetErrorString(cudaGetLastError()));
    cudaMemset(t->flag, 0, sizeof *t->flag);
    int result = nccl.comm_init_rank(&t->comm, t->ranks, copy, t->rank);
    if (result != NCCL_SUCCESS)
        return stq_error(STQ_COMMUNICATION, "Rank %d of %d could not join NCCL: %s.", t->rank, t->ranks,
                         nccl.error_string(result));
    return STQ_OK;
}

stq_status stq_comm_create_nccl(stq_comm **comm, const uint8_t id[STQ_COMM_NCCL_ID_BYTES], int rank, int ranks,
                                void *stream, double timeout_seconds) {
    *comm = NULL;
    if (ranks < 1 || rank < 0 || rank >= ranks || !(timeout_seconds >= 0))
        return stq_error(STQ_INVALID_ARGUMENT, "Rank %d of %d, or a time-out of %g s, does not exist.", rank, ranks,
                         timeout_seconds);
    STQ_CHECK(load());
    transport *t = calloc(1, sizeof *t);
    if (t == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for a communicator.");
    *t = (transport){
        .stream = stream, .rank = rank, .ranks = ranks, .timeout_seconds = timeout_seconds > 0 ? timeout_seconds : 60};
    stq_status status = open_transport(t, id);
    if (status == STQ_OK)
        status = stq_comm_create(comm, &(stq_comm_transport){.size = sizeof(stq_comm_transport),
                                                             .context = t,
                                                             .name = "NCCL",
                                                             .rank = rank,
                                                             .ranks = ranks,
                                                             .all_reduce = all_reduce,
                                                             .reduce_scatter = reduce_scatter,
                                                             .all_gather = all_gather,
                                                             .broadcast = broadcast,
                                                             .barrier = barrier,
                                                             .destroy = destroy});
    if (status != STQ_OK)
        destroy(t);
    return status;
}

#endif
