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
#include <pthread.h>
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
    int (*send)(const void *, size_t, int type, int peer, nccl_comm, cudaStream_t);
    int (*receive)(void *, size_t, int type, int peer, nccl_comm, cudaStream_t);
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

static stq_status load_functions(void) {
    const char *path = getenv("STQUANT_NCCL");
    nccl.handle = dlopen(path && path[0] ? path : "libnccl.so.2", RTLD_NOW | RTLD_GLOBAL);
    if (nccl.handle == NULL)
        return stq_error(STQ_UNSUPPORTED,
                         "NCCL is not there (%s); install libnccl2, or name the file of libnccl.so.2 in STQUANT_NCCL.",
                         dlerror());
    if (BIND("ncclGetUniqueId", get_unique_id) && BIND("ncclCommInitRank", comm_init_rank) &&
        BIND("ncclCommDestroy", comm_destroy) && BIND("ncclCommAbort", comm_abort) &&
        BIND("ncclCommGetAsyncError", comm_async_error) && BIND("ncclAllReduce", all_reduce) &&
        BIND("ncclReduce", reduce) && BIND("ncclReduceScatter", reduce_scatter) && BIND("ncclAllGather", all_gather) &&
        BIND("ncclBroadcast", broadcast) && BIND("ncclSend", send) && BIND("ncclRecv", receive) &&
        BIND("ncclGroupStart", group_start) && BIND("ncclGroupEnd", group_end) &&
        BIND("ncclGetErrorString", error_string))
        return STQ_OK;
    dlclose(nccl.handle);
    nccl.handle = NULL;
    return stq_error(STQ_UNSUPPORTED,
                     "The NCCL that was found lacks functions of version 2; install a current libnccl2.");
}

/* Communicators may be made by several threads at once. */
static stq_status load(void) {
    static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&loading);
    stq_status status = nccl.handle ? STQ_OK : load_functions();
    pthread_mutex_unlock(&loading);
    return status;
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

/* NCCL sums and copies on the device. Host memory, that of a digest for instance, goes there and back; the time-out
 * counts then, since somebody reads the result at once. */
static bool is_host(const void *buffer) {
    struct cudaPointerAttributes attributes;
    if (cudaPointerGetAttributes(&attributes, buffer) != cudaSuccess) {
        (void)cudaGetLastError();
        return true;
    }
    return attributes.type == cudaMemoryTypeUnregistered || attributes.type == cudaMemoryTypeHost;
}

static stq_status cuda_failed(cudaError_t error) {
    return error == cudaSuccess ? STQ_OK : stq_comm_failed(cudaGetErrorString(error));
}

static stq_status finish_stream(void *context);

/* The buffer that NCCL works in: itself, or a copy on the device. */
static stq_status begin_staging(transport *t, void *buffer, size_t bytes, void **staged) {
    *staged = buffer;
    if (!is_host(buffer))
        return STQ_OK;
    STQ_CHECK(cuda_failed(cudaMallocAsync(staged, bytes, t->stream)));
    stq_status status = cuda_failed(cudaMemcpyAsync(*staged, buffer, bytes, cudaMemcpyHostToDevice, t->stream));
    if (status != STQ_OK)
        (void)cudaFreeAsync(*staged, t->stream);
    return status;
}

/* `status` is that of the operation, and is returned if it is a failure. */
static stq_status end_staging(transport *t, void *buffer, size_t bytes, void *staged, stq_status status) {
    if (staged == buffer)
        return status;
    if (status == STQ_OK)
        status = finish_stream(t);
    if (status == STQ_OK)
        status = cuda_failed(cudaMemcpy(buffer, staged, bytes, cudaMemcpyDeviceToHost));
    (void)cudaFreeAsync(staged, t->stream);
    return status;
}

static stq_status all_reduce(void *context, void *buffer, int64_t count, stq_comm_type type,
                             stq_comm_operation operation) {
    transport *t = context;
    void *staged;
    size_t bytes = (size_t)count * stq_comm_type_size(type);
    STQ_CHECK(begin_staging(t, buffer, bytes, &staged));
    int result =
        nccl.all_reduce(staged, staged, (size_t)count, type_of(type), operation_of(operation), t->comm, t->stream);
    return end_staging(t, buffer, bytes, staged, failed(result));
}

/*
 * Parts of ranks end where segments of tensors do, so that they are nearly but not quite equal, and NCCL's fast
 * operations want them equal. They work on parts of `even` elements; what lies between an even boundary and the true
 * one is handed over between the two neighbours, and the tail behind the even parts is the last rank's.
 */
enum { EVEN_UNIT = 512 }; /* elements: keeps parts aligned */

/* 0 where parts are too different for that. */
static int64_t even_part(const transport *t, const int64_t *counts) {
    int64_t total = 0, start = 0;
    for (int r = 0; r < t->ranks; r++)
        total += counts[r];
    if (total == counts[0] * t->ranks && counts[0] > 0) {
        bool equal = true;
        for (int r = 1; r < t->ranks; r++)
            equal = equal && counts[r] == counts[0];
        if (equal)
            return counts[0];
    }
    int64_t even = total / t->ranks / EVEN_UNIT * EVEN_UNIT;
    for (int r = 1; r < t->ranks; r++) {
        start += counts[r - 1];
        if (llabs(start - r * even) >= even)
            return 0;
    }
    return even;
}

static int64_t tail_of(const transport *t, const int64_t *counts, int64_t even) {
    int64_t total = 0;
    for (int r = 0; r < t->ranks; r++)
        total += counts[r];
    return total - even * t->ranks;
}

/* Hands what lies between even and true boundaries to its owner, or back to the rank of the even part. */
static int hand_over(const transport *t, char *buffer, const int64_t *counts, int64_t even, size_t size,
                     bool to_owner) {
    int64_t start = 0;
    int result = nccl.group_start();
    for (int r = 1; r < t->ranks && result == NCCL_SUCCESS; r++) {
        start += counts[r - 1];
        int64_t low = start < r * even ? start : r * even, high = start < r * even ? r * even : start;
        int owner = start < r * even ? r : r - 1, other = start < r * even ? r - 1 : r;
        int from = to_owner ? other : owner, to = to_owner ? owner : other;
        char *piece = buffer + (size_t)low * size;
        size_t bytes = (size_t)(high - low) * size;
        if (bytes == 0)
            continue;
        if (t->rank == from)
            result = nccl.send(piece, bytes, type_of(STQ_COMM_UINT8), to, t->comm, t->stream);
        else if (t->rank == to)
            result = nccl.receive(piece, bytes, type_of(STQ_COMM_UINT8), from, t->comm, t->stream);
    }
    int ended = nccl.group_end();
    return result != NCCL_SUCCESS ? result : ended;
}

static int reduce_scatter_even(transport *t, char *buffer, const int64_t *counts, int64_t even, stq_comm_type type) {
    size_t size = stq_comm_type_size(type);
    int64_t tail = tail_of(t, counts, even);
    char *own = buffer + (size_t)(even * t->rank) * size, *end = buffer + (size_t)(even * t->ranks) * size;
    int result = nccl.reduce_scatter(buffer, own, (size_t)even, type_of(type), NCCL_SUM, t->comm, t->stream);
    if (result == NCCL_SUCCESS && tail > 0)
        result = nccl.reduce(end, end, (size_t)tail, type_of(type), NCCL_SUM, t->ranks - 1, t->comm, t->stream);
    return result != NCCL_SUCCESS ? result : hand_over(t, buffer, counts, even, size, true);
}

static int all_gather_even(transport *t, char *buffer, const int64_t *counts, int64_t even, stq_comm_type type) {
    size_t size = stq_comm_type_size(type);
    int64_t tail = tail_of(t, counts, even);
    char *own = buffer + (size_t)(even * t->rank) * size, *end = buffer + (size_t)(even * t->ranks) * size;
    int result = hand_over(t, buffer, counts, even, size, false);
    if (result == NCCL_SUCCESS)
        result = nccl.all_gather(own, buffer, (size_t)even, type_of(type), t->comm, t->stream);
    if (result == NCCL_SUCCESS && tail > 0)
        result = nccl.broadcast(end, end, (size_t)tail, type_of(type), t->ranks - 1, t->comm, t->stream);
    return result;
}

/* Any parts: one reduction, or one broadcast, a rank. */
static int each_part(transport *t, char *part, const int64_t *counts, stq_comm_type type, bool reduce) {
    int result = nccl.group_start();
    for (int root = 0; root < t->ranks && result == NCCL_SUCCESS; root++) {
        size_t count = (size_t)counts[root];
        if (count > 0 && reduce)
            result = nccl.reduce(part, part, count, type_of(type), NCCL_SUM, root, t->comm, t->stream);
        else if (count > 0)
            result = nccl.broadcast(part, part, count, type_of(type), root, t->comm, t->stream);
        part += count * stq_comm_type_size(type);
    }
    int ended = nccl.group_end();
    return result != NCCL_SUCCESS ? result : ended;
}

static size_t bytes_of(const transport *t, const int64_t *counts, stq_comm_type type) {
    return (size_t)tail_of(t, counts, 0) * stq_comm_type_size(type);
}

static stq_status reduce_scatter(void *context, void *buffer, const int64_t *counts, stq_comm_type type) {
    transport *t = context;
    void *staged;
    int64_t even = even_part(t, counts);
    size_t bytes = bytes_of(t, counts, type);
    STQ_CHECK(begin_staging(t, buffer, bytes, &staged));
    int result =
        even > 0 ? reduce_scatter_even(t, staged, counts, even, type) : each_part(t, staged, counts, type, true);
    return end_staging(t, buffer, bytes, staged, failed(result));
}

static stq_status all_gather(void *context, void *buffer, const int64_t *counts, stq_comm_type type) {
    transport *t = context;
    void *staged;
    int64_t even = even_part(t, counts);
    size_t bytes = bytes_of(t, counts, type);
    STQ_CHECK(begin_staging(t, buffer, bytes, &staged));
    int result = even > 0 ? all_gather_even(t, staged, counts, even, type) : each_part(t, staged, counts, type, false);
    return end_staging(t, buffer, bytes, staged, failed(result));
}

static stq_status broadcast(void *context, void *buffer, int64_t count, stq_comm_type type, int root) {
    transport *t = context;
    void *staged;
    size_t bytes = (size_t)count * stq_comm_type_size(type);
    STQ_CHECK(begin_staging(t, buffer, bytes, &staged));
    int result = nccl.broadcast(staged, staged, (size_t)count, type_of(type), root, t->comm, t->stream);
    return end_staging(t, buffer, bytes, staged, failed(result));
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Ends what NCCL has enqueued, so that the stream and the process can end too. */
static stq_status give_up(transport *t, const char *reason) {
    stq_status status = stq_comm_failed(reason);
    if (t->comm)
        nccl.comm_abort(t->comm);
    t->comm = NULL;
    return status;
}

/* Waits for the stream; a rank that died shows as an asynchronous error, one that hangs as the time-out. */
static stq_status finish_stream(void *context) {
    transport *t = context;
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
            return give_up(t, nccl.error_string(result));
        if (now() > deadline)
            return give_up(t, "the other ranks did not answer within the time-out; one of them has ended or hangs.");
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
    cudaDeviceSynchronize();
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
                                                             .finish = finish_stream,
                                                             .destroy = destroy});
    if (status != STQ_OK)
        destroy(t);
    return status;
}

#endif
