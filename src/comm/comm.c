/* comm.c - the communicator handle: checks, counts, names in messages; and the transport of one rank. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include <stquant/comm.h>

struct stq_comm {
    stq_comm_transport transport;
    char name[32];
    bool deciding;
    uint64_t decision_bytes;
};

size_t stq_comm_type_size(stq_comm_type type) {
    static const size_t sizes[] = {1, 4, 8, 4, 8, 2, 2};
    return (unsigned)type < sizeof sizes / sizeof *sizes ? sizes[type] : 0;
}

stq_status stq_comm_create(stq_comm **comm, const stq_comm_transport *transport) {
    *comm = NULL;
    if (transport == NULL || transport->size != sizeof *transport)
        return stq_error(STQ_INVALID_ARGUMENT,
                         "The transport has another version's size; set .size = sizeof(stq_comm_transport).");
    if (transport->ranks < 1 || transport->rank < 0 || transport->rank >= transport->ranks)
        return stq_error(STQ_INVALID_ARGUMENT, "Rank %d of %d does not exist.", transport->rank, transport->ranks);
    bool whole = transport->all_reduce && transport->reduce_scatter && transport->all_gather && transport->broadcast &&
                 transport->barrier;
    if (transport->ranks > 1 && !whole)
        return stq_error(STQ_INVALID_ARGUMENT, "A transport of more than one rank needs all five operations.");
    if ((transport->start_reduce_scatter == NULL) != (transport->wait == NULL))
        return stq_error(STQ_INVALID_ARGUMENT, "start_reduce_scatter and wait belong together.");
    stq_comm *c = calloc(1, sizeof *c);
    if (c == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for a communicator.");
    c->transport = *transport;
    snprintf(c->name, sizeof c->name, "%s", transport->name ? transport->name : "host");
    c->transport.name = c->name;
    *comm = c;
    return STQ_OK;
}

stq_status stq_comm_create_self(stq_comm **comm) {
    return stq_comm_create(comm, &(stq_comm_transport){.size = sizeof(stq_comm_transport), .name = "self", .ranks = 1});
}

stq_status stq_comm_failed(const char *reason) { return stq_error(STQ_COMMUNICATION, "%s", reason ? reason : ""); }

void stq_comm_destroy(stq_comm *comm) {
    if (comm == NULL)
        return;
    if (comm->transport.destroy)
        comm->transport.destroy(comm->transport.context);
    free(comm);
}

int stq_comm_rank(const stq_comm *comm) { return comm->transport.rank; }

int stq_comm_ranks(const stq_comm *comm) { return comm->transport.ranks; }

uint64_t stq_comm_decision_bytes(const stq_comm *comm) { return comm->decision_bytes; }

void stq_comm_count(stq_comm *comm, bool decisions) { comm->deciding = decisions; }

static void count_bytes(stq_comm *comm, int64_t elements, stq_comm_type type) {
    if (comm->deciding)
        comm->decision_bytes += (uint64_t)elements * stq_comm_type_size(type);
}

/* Puts rank and operation in front of what the transport said. */
static stq_status name_failure(const stq_comm *comm, stq_status status, const char *operation, const char *what) {
    if (status == STQ_OK)
        return STQ_OK;
    char reason[256];
    snprintf(reason, sizeof reason, "%s", stq_last_error());
    return stq_error(STQ_COMMUNICATION, "Rank %d of %d: %s of %s over %s failed: %s", comm->transport.rank,
                     comm->transport.ranks, operation, what, comm->name,
                     reason[0] ? reason : "the transport gave no reason.");
}

static stq_status check_message(int64_t count, stq_comm_type type) {
    if (count < 0 || stq_comm_type_size(type) == 0)
        return stq_error(STQ_INVALID_ARGUMENT, "A message of %lld elements of type %d does not exist.",
                         (long long)count, (int)type);
    return STQ_OK;
}

/* One part a rank. */
static stq_status check_parts(const stq_comm *comm, const int64_t *counts, stq_comm_type type) {
    for (int r = 0; r < comm->transport.ranks; r++)
        STQ_CHECK(check_message(counts[r], type));
    return STQ_OK;
}

stq_status stq_comm_all_reduce(stq_comm *comm, void *buffer, int64_t count, stq_comm_type type,
                               stq_comm_operation operation, const char *what) {
    STQ_CHECK(check_message(count, type));
    if (operation != STQ_COMM_SUM && operation != STQ_COMM_MAX && operation != STQ_COMM_MIN)
        return stq_error(STQ_INVALID_ARGUMENT, "There is no operation %d to combine messages by.", (int)operation);
    if (comm->transport.ranks == 1 || count == 0)
        return STQ_OK;
    count_bytes(comm, count, type);
    stq_status status = comm->transport.all_reduce(comm->transport.context, buffer, count, type, operation);
    return name_failure(comm, status, "the all-reduce", what);
}

stq_status stq_comm_reduce_scatter(stq_comm *comm, void *buffer, const int64_t *counts, stq_comm_type type,
                                   const char *what) {
    STQ_CHECK(check_parts(comm, counts, type));
    if (comm->transport.ranks == 1)
        return STQ_OK;
    stq_status status = comm->transport.reduce_scatter(comm->transport.context, buffer, counts, type);
    return name_failure(comm, status, "the reduce-scatter", what);
}

stq_status stq_comm_all_gather(stq_comm *comm, void *buffer, const int64_t *counts, stq_comm_type type,
                               const char *what) {
    STQ_CHECK(check_parts(comm, counts, type));
    if (comm->transport.ranks == 1)
        return STQ_OK;
    count_bytes(comm, counts[comm->transport.rank], type);
    stq_status status = comm->transport.all_gather(comm->transport.context, buffer, counts, type);
    return name_failure(comm, status, "the all-gather", what);
}

stq_status stq_comm_broadcast(stq_comm *comm, void *buffer, int64_t count, stq_comm_type type, int root,
                              const char *what) {
    STQ_CHECK(check_message(count, type));
    if (root < 0 || root >= comm->transport.ranks)
        return stq_error(STQ_INVALID_ARGUMENT, "There is no rank %d to broadcast from; there are %d.", root,
                         comm->transport.ranks);
    if (comm->transport.ranks == 1 || count == 0)
        return STQ_OK;
    stq_status status = comm->transport.broadcast(comm->transport.context, buffer, count, type, root);
    return name_failure(comm, status, "the broadcast", what);
}

stq_status stq_comm_barrier(stq_comm *comm, const char *what) {
    if (comm->transport.ranks == 1)
        return STQ_OK;
    return name_failure(comm, comm->transport.barrier(comm->transport.context), "the barrier", what);
}

stq_status stq_comm_finish(stq_comm *comm, const char *what) {
    if (comm->transport.finish == NULL)
        return STQ_OK;
    return name_failure(comm, comm->transport.finish(comm->transport.context), "the exchange", what);
}

stq_status stq_comm_start_reduce_scatter(stq_comm *comm, void *buffer, const int64_t *counts, stq_comm_type type,
                                         void **request, const char *what) {
    *request = NULL;
    if (comm->transport.ranks == 1 || comm->transport.start_reduce_scatter == NULL)
        return stq_comm_reduce_scatter(comm, buffer, counts, type, what);
    STQ_CHECK(check_parts(comm, counts, type));
    stq_status status = comm->transport.start_reduce_scatter(comm->transport.context, buffer, counts, type, request);
    return name_failure(comm, status, "the start of the reduce-scatter", what);
}

stq_status stq_comm_wait(stq_comm *comm, void *request, const char *what) {
    if (request == NULL)
        return STQ_OK;
    return name_failure(comm, comm->transport.wait(comm->transport.context, request), "the reduce-scatter", what);
}

stq_status stq_comm_agree(stq_comm *comm, uint64_t digest, const char *what) {
    int ranks = comm->transport.ranks;
    if (ranks == 1)
        return STQ_OK;
    uint64_t *digests = calloc((size_t)ranks, sizeof *digests);
    int64_t *ones = calloc((size_t)ranks, sizeof *ones);
    stq_status status = STQ_OK;
    if (digests == NULL || ones == NULL) {
        status = stq_error(STQ_OUT_OF_MEMORY, "No memory for the digests of %d ranks.", ranks);
    } else {
        for (int r = 0; r < ranks; r++)
            ones[r] = 1;
        digests[comm->transport.rank] = digest;
        status = stq_comm_all_gather(comm, digests, ones, STQ_COMM_INT64, what);
    }
    for (int r = 1; status == STQ_OK && r < ranks; r++)
        if (digests[r] != digests[0])
            status = stq_error(STQ_COMMUNICATION,
                               "Rank %d disagrees with rank 0 about %s; its digest is %016llx, not %016llx.", r, what,
                               (unsigned long long)digests[r], (unsigned long long)digests[0]);
    free(digests);
    free(ones);
    return status;
}

stq_status stq_comm_create_nccl_over(stq_comm **comm, stq_comm *bootstrap, void *stream, double timeout_seconds) {
    uint8_t message[1 + STQ_COMM_NCCL_ID_BYTES] = {0}; /* whether there is an id, and the id */
    stq_status made = STQ_OK;
    *comm = NULL;
    if (stq_comm_rank(bootstrap) == 0) {
        made = stq_comm_nccl_id(message + 1);
        message[0] = made == STQ_OK;
    }
    STQ_CHECK(stq_comm_broadcast(bootstrap, message, sizeof message, STQ_COMM_UINT8, 0, "NCCL's id"));
    if (made != STQ_OK)
        return made; /* with its sentence: nothing has failed since */
    if (message[0] == 0)
        return stq_error(STQ_COMMUNICATION, "Rank 0 has no NCCL id for rank %d of %d; it says why.",
                         stq_comm_rank(bootstrap), stq_comm_ranks(bootstrap));
    return stq_comm_create_nccl(comm, message + 1, stq_comm_rank(bootstrap), stq_comm_ranks(bootstrap), stream,
                                timeout_seconds);
}
