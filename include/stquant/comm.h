/*
 * stquant/comm.h - the Distributed engine's communicator: what ranks say to each other, over one process, over
 * callbacks that the host supplies, over NCCL, or over MPI (stquant/comm_mpi.h, in a library of its own).
 *
 * Every rank makes the same calls in the same order. All operations work in place. Failures and time-outs come back as
 * STQ_COMMUNICATION with a sentence that names the rank and the operation; the communicator is of no further use then
 * but to be freed.
 */
#ifndef STQUANT_COMM_H
#define STQUANT_COMM_H

#include <stquant/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Element type of a message. */
typedef enum stq_comm_type {
    STQ_COMM_UINT8 = 0,
    STQ_COMM_INT32 = 1,
    STQ_COMM_INT64 = 2,
    STQ_COMM_FLOAT32 = 3,
    STQ_COMM_FLOAT64 = 4,
    STQ_COMM_BFLOAT16 = 5, /**< sums are rounded to nearest by the transport; not over MPI */
    STQ_COMM_FLOAT16 = 6   /**< likewise */
} stq_comm_type;

/** How an all-reduce combines. Integer sums wrap; integer results do not depend on the order of ranks. */
typedef enum stq_comm_operation { STQ_COMM_SUM = 0, STQ_COMM_MAX = 1, STQ_COMM_MIN = 2 } stq_comm_operation;

/** Bytes of one element; 0 for an unknown type. */
STQ_API size_t stq_comm_type_size(stq_comm_type type);

/** A communicator. Opaque; freed by stq_comm_destroy(). */
typedef struct stq_comm stq_comm;

/**
 * What a transport supplies. A host (a framework's process group, say) fills it in and passes it to stq_comm_create();
 * the library's own transports do the same. Functions return STQ_OK or STQ_COMMUNICATION; those that fail leave buffers
 * undefined.
 */
typedef struct stq_comm_transport {
    size_t size;      /**< sizeof(stq_comm_transport), for compatibility of later versions */
    void *context;    /**< handed back in every call */
    const char *name; /**< "mpi", ...; for messages; copied */
    int rank;         /**< 0 to ranks - 1 */
    int ranks;        /**< >= 1 */
    /** Combines `count` elements of all ranks; every rank has the result, the same bytes everywhere. */
    stq_status (*all_reduce)(void *context, void *buffer, int64_t count, stq_comm_type type,
                             stq_comm_operation operation);
    /** The buffer of sum(counts) elements is cut into parts, one a rank; rank r's part becomes the sum over ranks on
     * rank r, the rest is undefined. */
    stq_status (*reduce_scatter)(void *context, void *buffer, const int64_t *counts, stq_comm_type type);
    /** Rank r's part of the buffer is copied to every rank. */
    stq_status (*all_gather)(void *context, void *buffer, const int64_t *counts, stq_comm_type type);
    /** Rank `root`'s buffer is copied to every rank. */
    stq_status (*broadcast)(void *context, void *buffer, int64_t count, stq_comm_type type, int root);
    /** Returns when every rank has come here. */
    stq_status (*barrier)(void *context);
    /** Optional: begins a reduce_scatter of a buffer that nobody touches until `wait`, so that it overlaps with other
     * work; `request` identifies it. NULL: stq_comm_start_reduce_scatter() does the work at once. */
    stq_status (*start_reduce_scatter)(void *context, void *buffer, const int64_t *counts, stq_comm_type type,
                                       void **request);
    /** Optional, with the former: returns when the request is done, and frees it. */
    stq_status (*wait)(void *context, void *request);
    /** Optional: returns when all operations so far are done, where they are only enqueued on a stream. */
    stq_status (*finish)(void *context);
    /** Optional: frees the context. */
    void (*destroy)(void *context);
} stq_comm_transport;

/** A communicator of one rank: every operation returns at once. */
STQ_API stq_status stq_comm_create_self(stq_comm **comm);

/** A communicator over a transport, which is copied; its context is the communicator's from then on. On failure *comm
 * is NULL, and the context is still the caller's. */
STQ_API stq_status stq_comm_create(stq_comm **comm, const stq_comm_transport *transport);

/** Bytes of an NCCL id. */
#define STQ_COMM_NCCL_ID_BYTES 128

/**
 * A fresh NCCL id, made on one rank and brought to the others by the host (MPI, a file, a store). NCCL is loaded at run
 * time: libnccl.so.2, or the file that the environment variable STQUANT_NCCL names (PyTorch brings one along);
 * STQ_UNSUPPORTED names what is missing.
 */
STQ_API stq_status stq_comm_nccl_id(uint8_t id[STQ_COMM_NCCL_ID_BYTES]);

/**
 * A communicator over NCCL for buffers in the memory of the calling thread's current CUDA device. Work is enqueued on
 * `stream` (a cudaStream_t); operations return once it is enqueued. Those on host memory copy it to the device and
 * back, and return with the result: for a few bytes, not for gradients.
 *
 * @param timeout_seconds  how long stq_comm_finish(), stq_comm_barrier() and operations on host memory may take;
 *                         0 = 60. The creation waits for all ranks as long as NCCL does
 */
STQ_API stq_status stq_comm_create_nccl(stq_comm **comm, const uint8_t id[STQ_COMM_NCCL_ID_BYTES], int rank, int ranks,
                                        void *stream, double timeout_seconds);

/**
 * stq_comm_create_nccl() for the ranks of another communicator, over MPI for example: its rank 0 makes the id and
 * broadcasts it. Collective over `bootstrap`, which is not needed afterwards. Where rank 0 cannot make an id, it fails
 * as stq_comm_nccl_id() does, and the others with STQ_COMMUNICATION.
 */
STQ_API stq_status stq_comm_create_nccl_over(stq_comm **comm, stq_comm *bootstrap, void *stream,
                                             double timeout_seconds);

/** For transports: notes why an operation failed (a clause, "the other ranks did not answer") for the message of the
 * call that was under way, and returns STQ_COMMUNICATION. */
STQ_API stq_status stq_comm_failed(const char *reason);

/** Frees a communicator; NULL is allowed. Ranks need not meet. */
STQ_API void stq_comm_destroy(stq_comm *comm);

/** This rank, 0 to stq_comm_ranks() - 1. */
STQ_API int stq_comm_rank(const stq_comm *comm);

/** Number of ranks. */
STQ_API int stq_comm_ranks(const stq_comm *comm);

/** Bytes that this rank has handed to the transport so far, by operations other than gradients and parameters (see
 *  stq_comm_count()): what decisions cost. */
STQ_API uint64_t stq_comm_decision_bytes(const stq_comm *comm);

/** Until the next call, traffic counts as belonging to decisions (true) or to gradients and parameters (false, the
 * start). */
STQ_API void stq_comm_count(stq_comm *comm, bool decisions);

/** See stq_comm_transport. `what` names the data in messages: "the gradients", ... */
STQ_API stq_status stq_comm_all_reduce(stq_comm *comm, void *buffer, int64_t count, stq_comm_type type,
                                       stq_comm_operation operation, const char *what);

/** See stq_comm_transport; `counts` has one entry a rank. */
STQ_API stq_status stq_comm_reduce_scatter(stq_comm *comm, void *buffer, const int64_t *counts, stq_comm_type type,
                                           const char *what);

/** See stq_comm_transport; `counts` has one entry a rank. */
STQ_API stq_status stq_comm_all_gather(stq_comm *comm, void *buffer, const int64_t *counts, stq_comm_type type,
                                       const char *what);

/** See stq_comm_transport. */
STQ_API stq_status stq_comm_broadcast(stq_comm *comm, void *buffer, int64_t count, stq_comm_type type, int root,
                                      const char *what);

/** See stq_comm_transport. */
STQ_API stq_status stq_comm_barrier(stq_comm *comm, const char *what);

/** Returns when all operations so far are done and their results may be read, or with the failure of one of them; at
 * once where operations do not return before. Not collective. */
STQ_API stq_status stq_comm_finish(stq_comm *comm, const char *what);

/** Begins a reduce-scatter; `*request` goes to stq_comm_wait() exactly once (it may be NULL: done already). */
STQ_API stq_status stq_comm_start_reduce_scatter(stq_comm *comm, void *buffer, const int64_t *counts,
                                                 stq_comm_type type, void **request, const char *what);

/** Waits for a request and frees it. */
STQ_API stq_status stq_comm_wait(stq_comm *comm, void *request, const char *what);

/**
 * Compares a digest over the ranks: STQ_COMMUNICATION names the first rank whose digest differs from rank 0's.
 */
STQ_API stq_status stq_comm_agree(stq_comm *comm, uint64_t digest, const char *what);

#ifdef __cplusplus
}
#endif

#endif
