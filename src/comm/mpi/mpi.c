/*
 * mpi.c - the transport over MPI. Every operation is started without blocking and then polled, so that a rank that died
 * or hangs becomes a sentence after the time-out and not a run that stands still.
 */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <stquant/comm_mpi.h>

/* Elements of one MPI call at most: its counts are ints. */
static const int64_t largest_message = INT64_C(1) << 30;

typedef struct transport {
    MPI_Comm comm;
    int rank;
    int ranks;
    double timeout_seconds;
    bool finalize;
} transport;

/* A started reduce-scatter: one reduction a rank and a piece. */
typedef struct pending {
    int count;
    MPI_Request *requests;
} pending;

static stq_status failed(int code) {
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    return stq_comm_failed(text);
}

/* Programs compile this file too, which see no more than the public headers. */
#define CHECK(call)                       \
    do {                                  \
        stq_status check_status = (call); \
        if (check_status != STQ_OK)       \
            return check_status;          \
    } while (0)

#define MPI_CHECK(call)              \
    do {                             \
        int mpi_code = (call);       \
        if (mpi_code != MPI_SUCCESS) \
            return failed(mpi_code); \
    } while (0)

/* Seconds, set by stq_comm_mpi_limit_waits(); 0 = none. */
static volatile sig_atomic_t wait_limit;

void stq_comm_mpi_limit_waits(int seconds) { wait_limit = seconds; }

static stq_status timed_out(double seconds) {
    char reason[128];
    snprintf(reason, sizeof reason, "the other ranks did not answer within %g s; one of them has ended or hangs.",
             seconds);
    return stq_comm_failed(reason);
}

/* Polls with growing pauses (up to 1 ms): ranks may share cores. */
static stq_status wait_all(const transport *t, int count, MPI_Request *requests) {
    double seconds = t->timeout_seconds, begin = MPI_Wtime();
    struct timespec pause = {.tv_nsec = 1000};
    for (int spins = 0;; spins++) {
        int done = 0;
        MPI_CHECK(MPI_Testall(count, requests, &done, MPI_STATUSES_IGNORE));
        if (done)
            return STQ_OK;
        if (wait_limit > 0 && wait_limit < seconds) {
            seconds = wait_limit;
            begin = MPI_Wtime();
        }
        if (MPI_Wtime() - begin > seconds)
            return timed_out(seconds);
        if (spins < 200)
            continue;
        nanosleep(&pause, NULL);
        if (pause.tv_nsec < 1000000)
            pause.tv_nsec *= 2;
    }
}

static stq_status type_of(stq_comm_type type, MPI_Datatype *result) {
    switch (type) {
    case STQ_COMM_UINT8:
        *result = MPI_UINT8_T;
        return STQ_OK;
    case STQ_COMM_INT32:
        *result = MPI_INT32_T;
        return STQ_OK;
    case STQ_COMM_INT64:
        *result = MPI_INT64_T;
        return STQ_OK;
    case STQ_COMM_FLOAT32:
        *result = MPI_FLOAT;
        return STQ_OK;
    case STQ_COMM_FLOAT64:
        *result = MPI_DOUBLE;
        return STQ_OK;
    default:
        return stq_comm_failed("MPI has no 16-bit floats; reduce float32.");
    }
}

static MPI_Op operation_of(stq_comm_operation operation) {
    return operation == STQ_COMM_SUM ? MPI_SUM : operation == STQ_COMM_MAX ? MPI_MAX : MPI_MIN;
}

static int piece(int64_t left) { return (int)(left < largest_message ? left : largest_message); }

static stq_status all_reduce(void *context, void *buffer, int64_t count, stq_comm_type type,
                             stq_comm_operation operation) {
    const transport *t = context;
    MPI_Datatype datatype = MPI_DATATYPE_NULL;
    CHECK(type_of(type, &datatype));
    for (int64_t at = 0; at < count; at += largest_message) {
        MPI_Request request;
        char *from = (char *)buffer + (size_t)at * stq_comm_type_size(type);
        MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, from, piece(count - at), datatype, operation_of(operation), t->comm,
                                 &request));
        CHECK(wait_all(t, 1, &request));
    }
    return STQ_OK;
}

static int piece_count(const transport *t, const int64_t *counts) {
    int64_t pieces = 0;
    for (int r = 0; r < t->ranks; r++)
        pieces += (counts[r] + largest_message - 1) / largest_message;
    return (int)pieces;
}

/* One reduction to rank `root` of its part, in place there. */
static stq_status start_part(const transport *t, char *part, int64_t count, stq_comm_type type, int root, pending *p) {
    MPI_Datatype datatype = MPI_DATATYPE_NULL;
    CHECK(type_of(type, &datatype));
    for (int64_t at = 0; at < count; at += largest_message) {
        char *from = part + (size_t)at * stq_comm_type_size(type);
        const void *send = t->rank == root ? MPI_IN_PLACE : from;
        /* Elsewhere the receive buffer does not count, but must not be the send buffer. */
        void *receive = t->rank == root ? from : NULL;
        MPI_CHECK(
            MPI_Ireduce(send, receive, piece(count - at), datatype, MPI_SUM, root, t->comm, &p->requests[p->count]));
        p->count++;
    }
    return STQ_OK;
}

static void free_pending(pending *p) {
    free(p->requests);
    free(p);
}

static stq_status start_reduce_scatter(void *context, void *buffer, const int64_t *counts, stq_comm_type type,
                                       void **request) {
    const transport *t = context;
    pending *p = calloc(1, sizeof *p);
    if (p)
        p->requests = calloc((size_t)piece_count(t, counts) + 1, sizeof(MPI_Request));
    if (p == NULL || p->requests == NULL) {
        free(p);
        return stq_comm_failed("there is no memory for its requests.");
    }
    char *part = buffer;
    for (int root = 0; root < t->ranks; root++) {
        stq_status status = start_part(t, part, counts[root], type, root, p);
        if (status != STQ_OK) {
            free_pending(p);
            return status;
        }
        part += (size_t)counts[root] * stq_comm_type_size(type);
    }
    *request = p;
    return STQ_OK;
}

static stq_status wait_request(void *context, void *request) {
    pending *p = request;
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): what was not begun is not waited for */
    stq_status status = wait_all(context, p->count, p->requests);
    free_pending(p);
    return status;
}

static stq_status reduce_scatter(void *context, void *buffer, const int64_t *counts, stq_comm_type type) {
    void *request = NULL;
    CHECK(start_reduce_scatter(context, buffer, counts, type, &request));
    return wait_request(context, request);
}

static stq_status broadcast(void *context, void *buffer, int64_t count, stq_comm_type type, int root) {
    const transport *t = context;
    MPI_Datatype datatype = MPI_DATATYPE_NULL;
    CHECK(type_of(type, &datatype));
    for (int64_t at = 0; at < count; at += largest_message) {
        MPI_Request request;
        char *from = (char *)buffer + (size_t)at * stq_comm_type_size(type);
        MPI_CHECK(MPI_Ibcast(from, piece(count - at), datatype, root, t->comm, &request));
        CHECK(wait_all(t, 1, &request));
    }
    return STQ_OK;
}

/* A broadcast from each rank: no counts or displacements beyond an int, however large the buffer. */
static stq_status all_gather(void *context, void *buffer, const int64_t *counts, stq_comm_type type) {
    const transport *t = context;
    char *part = buffer;
    for (int root = 0; root < t->ranks; root++) {
        CHECK(broadcast(context, part, counts[root], type, root));
        part += (size_t)counts[root] * stq_comm_type_size(type);
    }
    return STQ_OK;
}

static stq_status barrier(void *context) {
    const transport *t = context;
    MPI_Request request;
    MPI_CHECK(MPI_Ibarrier(t->comm, &request));
    return wait_all(t, 1, &request);
}

static void destroy(void *context) {
    transport *t = context;
    bool finalize = t->finalize;
    MPI_Comm_free(&t->comm);
    free(t);
    int finalized = 0;
    if (finalize && MPI_Finalized(&finalized) == MPI_SUCCESS && !finalized)
        MPI_Finalize();
}

bool stq_comm_mpi_launched(void) {
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        const char *value = getenv(variables[i]);
        if (value && atoi(value) > 1)
            return true;
    }
    return false;
}

void stq_comm_mpi_abort(int exit_status) {
    int initialized = 0, finalized = 0;
    MPI_Initialized(&initialized);
    MPI_Finalized(&finalized);
    if (initialized && !finalized)
        MPI_Abort(MPI_COMM_WORLD, exit_status);
}

static stq_status open_world(transport *t) {
    int initialized = 0, provided = 0;
    MPI_CHECK(MPI_Initialized(&initialized));
    if (!initialized)
        MPI_CHECK(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided));
    t->finalize = !initialized;
    MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &t->comm));
    MPI_CHECK(MPI_Comm_set_errhandler(t->comm, MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_rank(t->comm, &t->rank));
    MPI_CHECK(MPI_Comm_size(t->comm, &t->ranks));
    return STQ_OK;
}

stq_status stq_comm_create_mpi(stq_comm **comm, double timeout_seconds) {
    *comm = NULL;
    if (!(timeout_seconds >= 0)) {
        (void)stq_comm_failed("The time-out must not be negative; use 0 for the default of 60 s.");
        return STQ_INVALID_ARGUMENT;
    }
    transport *t = calloc(1, sizeof *t);
    if (t == NULL) {
        (void)stq_comm_failed("No memory for a communicator.");
        return STQ_OUT_OF_MEMORY;
    }
    t->timeout_seconds = timeout_seconds > 0 ? timeout_seconds : 60;
    stq_status status = open_world(t);
    if (status != STQ_OK) {
        free(t);
        return status;
    }
    status = stq_comm_create(comm, &(stq_comm_transport){.size = sizeof(stq_comm_transport),
                                                         .context = t,
                                                         .name = "MPI",
                                                         .rank = t->rank,
                                                         .ranks = t->ranks,
                                                         .all_reduce = all_reduce,
                                                         .reduce_scatter = reduce_scatter,
                                                         .all_gather = all_gather,
                                                         .broadcast = broadcast,
                                                         .barrier = barrier,
                                                         .start_reduce_scatter = start_reduce_scatter,
                                                         .wait = wait_request,
                                                         .destroy = destroy});
    if (status != STQ_OK)
        destroy(t);
    return status;
}
