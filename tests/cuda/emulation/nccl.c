/*
 * nccl.c - a libnccl.so.2 for processes of one host whose device memory is emulated: every operation goes through a
 * file of shared memory that the id names. Operations of a group are done in order when it ends; NCCL would run sends
 * and receives side by side, so here all sends of a group come first.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "quant/convert.h"

enum { RANKS = 16, MAILBOX = 1 << 20, PENDING = 64 };

typedef struct nccl_id {
    char bytes[128];
} nccl_id;

/* Shared by the ranks. */
typedef struct world {
    volatile int64_t rounds[RANKS]; /* barriers that each rank has come to */
    volatile int64_t sent[RANKS][RANKS];
    volatile int64_t received[RANKS][RANKS];
    uint8_t mail[RANKS][RANKS][1 << 17];
    uint8_t data[RANKS][MAILBOX];
} world;

typedef struct communicator {
    world *world;
    int rank, ranks;
    int failed;
} communicator;

typedef struct message {
    communicator *comm;
    void *buffer;
    size_t bytes;
    int peer;
    bool send;
} message;

static message pending[PENDING];
static int pending_count, depth;
static const int sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

static bool wait_until(communicator *c, const volatile int64_t *value, int64_t least) {
    for (int tries = 0; __atomic_load_n(value, __ATOMIC_ACQUIRE) < least; tries++) {
        if (c->failed || tries > 60000) {
            c->failed = 1;
            return false;
        }
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    }
    return true;
}

static bool barrier(communicator *c) {
    int64_t round = c->world->rounds[c->rank] + 1;
    __atomic_store_n(&c->world->rounds[c->rank], round, __ATOMIC_RELEASE);
    bool whole = true;
    for (int r = 0; r < c->ranks; r++)
        whole = wait_until(c, &c->world->rounds[r], round) && whole;
    return whole;
}

int ncclGetVersion(int *version) {
    *version = 22800;
    return 0;
}

int ncclGetUniqueId(nccl_id *id) {
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "/emulated-nccl-%ld", (long)getpid());
    int file = shm_open(id->bytes, O_CREAT | O_EXCL | O_RDWR, 0600);
    return file < 0 || ftruncate(file, sizeof(world)) != 0 || close(file) != 0;
}

int ncclCommInitRank(communicator **comm, int ranks, nccl_id id, int rank) {
    communicator *c = calloc(1, sizeof *c);
    int file = shm_open(id.bytes, O_RDWR, 0600);
    if (!c || file < 0 || ranks > RANKS)
        return 2;
    c->world = mmap(NULL, sizeof(world), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    c->rank = rank;
    c->ranks = ranks;
    close(file);
    *comm = c;
    bool met = barrier(c);
    if (rank == 0)
        shm_unlink(id.bytes);
    return met ? 0 : 6;
}

int ncclCommDestroy(communicator *comm) {
    free(comm);
    return 0;
}
int ncclCommAbort(communicator *comm) { return ncclCommDestroy(comm); }
int ncclCommGetAsyncError(communicator *comm, int *result) {
    *result = comm->failed ? 6 : 0;
    return 0;
}
const char *ncclGetErrorString(int result) { return result ? "remote process exited (emulated)" : "no error"; }

static double load(const void *data, int type, size_t i) {
    switch (type) {
    case 2:
        return ((const int32_t *)data)[i];
    case 7:
        return (double)((const float *)data)[i];
    case 8:
        return ((const double *)data)[i];
    default:
        return (double)stq_bits_float((uint32_t)((const uint16_t *)data)[i] << 16);
    }
}

/* Integers wrap. */
static void combine(void *to, const void *from, int type, int operation, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (type == 4 || type == 2) {
            int64_t a = type == 4 ? ((int64_t *)to)[i] : ((int32_t *)to)[i];
            int64_t b = type == 4 ? ((const int64_t *)from)[i] : ((const int32_t *)from)[i];
            int64_t sum = (int64_t)((uint64_t)a + (uint64_t)b);
            int64_t result = operation == 0 ? sum : operation == 2 ? (a > b ? a : b) : (a < b ? a : b);
            if (type == 4)
                ((int64_t *)to)[i] = result;
            else
                ((int32_t *)to)[i] = (int32_t)(uint32_t)result;
            continue;
        }
        double a = load(to, type, i), b = load(from, type, i);
        double result = operation == 0 ? a + b : operation == 2 ? (a > b ? a : b) : (a < b ? a : b);
        if (type == 7)
            ((float *)to)[i] = (float)result;
        else if (type == 8)
            ((double *)to)[i] = result;
        else
            ((uint16_t *)to)[i] = (uint16_t)stq_to_bfloat16((float)result, 0x8000u);
    }
}

/* Every rank's `count` elements, in pieces, to `take`. */
static int exchange(communicator *c, const void *send, void *receive, size_t count, int type, int operation, int from,
                    int to) {
    size_t size = (size_t)sizes[type], piece = MAILBOX / size;
    for (size_t at = 0; at < count; at += piece) {
        size_t now = count - at < piece ? count - at : piece;
        memcpy(c->world->data[c->rank], (const char *)send + at * size, now * size);
        if (!barrier(c))
            return 6;
        if (receive) {
            char *result = (char *)receive + at * size;
            memcpy(result, c->world->data[from], now * size);
            for (int r = from + 1; r < to; r++)
                combine(result, c->world->data[r], type, operation, now);
        }
        if (!barrier(c))
            return 6;
    }
    return 0;
}

int ncclAllReduce(const void *send, void *receive, size_t count, int type, int operation, communicator *c,
                  void *stream) {
    (void)stream;
    return exchange(c, send, receive, count, type, operation, 0, c->ranks);
}
int ncclReduce(const void *send, void *receive, size_t count, int type, int operation, int root, communicator *c,
               void *stream) {
    (void)stream;
    return exchange(c, send, root == c->rank ? receive : NULL, count, type, operation, 0, c->ranks);
}
int ncclReduceScatter(const void *send, void *receive, size_t count, int type, int operation, communicator *c,
                      void *stream) {
    int result = 0;
    for (int root = 0; root < c->ranks && result == 0; root++)
        result = ncclReduce((const char *)send + (size_t)root * count * (size_t)sizes[type], receive, count, type,
                            operation, root, c, stream);
    return result;
}
int ncclBroadcast(const void *send, void *receive, size_t count, int type, int root, communicator *c, void *stream) {
    (void)stream;
    return exchange(c, send, receive, count, type, 0, root, root + 1);
}
int ncclAllGather(const void *send, void *receive, size_t count, int type, communicator *c, void *stream) {
    int result = 0;
    for (int root = 0; root < c->ranks && result == 0; root++)
        result = ncclBroadcast(send, (char *)receive + (size_t)root * count * (size_t)sizes[type], count, type, root, c,
                               stream);
    return result;
}

static int deliver(message *m) {
    communicator *c = m->comm;
    int from = m->send ? c->rank : m->peer, to = m->send ? m->peer : c->rank;
    world *w = c->world;
    if (m->send) {
        if (m->bytes > sizeof w->mail[0][0] || !wait_until(c, &w->received[from][to], w->sent[from][to]))
            return 6;
        memcpy(w->mail[from][to], m->buffer, m->bytes);
        __atomic_store_n(&w->sent[from][to], w->sent[from][to] + 1, __ATOMIC_RELEASE);
        return 0;
    }
    if (!wait_until(c, &w->sent[from][to], w->received[from][to] + 1))
        return 6;
    memcpy(m->buffer, w->mail[from][to], m->bytes);
    __atomic_store_n(&w->received[from][to], w->received[from][to] + 1, __ATOMIC_RELEASE);
    return 0;
}

int ncclGroupStart(void) {
    depth++;
    return 0;
}
int ncclGroupEnd(void) {
    int result = 0;
    if (--depth > 0)
        return 0;
    for (int sends = 1; sends >= 0; sends--)
        for (int i = 0; i < pending_count; i++)
            if (pending[i].send == (bool)sends && result == 0)
                result = deliver(&pending[i]);
    pending_count = 0;
    return result;
}
static int post(message m) {
    if (pending_count == PENDING)
        return 3;
    pending[pending_count++] = m;
    depth++;
    return ncclGroupEnd();
}
int ncclSend(const void *buffer, size_t count, int type, int peer, communicator *c, void *stream) {
    (void)stream;
    return post((message){c, (void *)(uintptr_t)buffer, count * (size_t)sizes[type], peer, true});
}
int ncclRecv(void *buffer, size_t count, int type, int peer, communicator *c, void *stream) {
    (void)stream;
    return post((message){c, buffer, count * (size_t)sizes[type], peer, false});
}
