/* read.c - contents of entries, with their checksums, several at a time. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "checkpoint/file.h"
#include "checkpoint/reader.h"
#include "common/error.h"
#include "common/memory.h"

/* Read at once, so that the whole pages around it fit a room; and hashed and copied at once, while in the core's cache.
 */
enum { ROOM_BYTES = 4 << 20, PIECE_BYTES = ROOM_BYTES - 2 * STQ_FILE_PAGE, HASH_BYTES = 256 << 10 };

/* A thread that reads past the page cache waits most of the time: as many keep a disk at work, one for each so many
 * bytes. */
enum { MOST_READERS = 8, READER_BYTES = 16 << 20 };

static stq_status corrupt(const stq_part_file *file, const stq_entry *entry) {
    return stq_error(STQ_CORRUPT, "%s: tensor '%s' (offsets %" PRIu64 " to %" PRIu64 ") does not match its checksum.",
                     file->path, entry->name, file->header.data_start + entry->begin,
                     file->header.data_start + entry->begin + entry->bytes);
}

/* Where an entry is being read to. */
typedef struct reading {
    const stq_part_file *file;
    const stq_entry *entry;
    uint8_t *direct;
    uint8_t *pages; /* room for a piece, in whole pages; NULL where pieces are read to `direct` */
    stq_sink sink;
    void *context;
    stq_checksum_state *checksum; /* NULL where nothing is expected */
    int descriptor;
    bool past_cache;
} reading;

/* A piece that has been read, on its way to hash and target. */
static stq_status take_piece(const reading *r, uint64_t at, const uint8_t *data, uint64_t bytes) {
    for (uint64_t done = 0; done < bytes; done += HASH_BYTES) {
        uint64_t some = bytes - done < HASH_BYTES ? bytes - done : HASH_BYTES;
        if (r->checksum)
            stq_checksum_add(r->checksum, data + done, some);
        if (r->direct && r->direct + at != data)
            memcpy(r->direct + at + done, data + done, (size_t)some);
    }
    return r->sink ? r->sink(r->context, at, data, bytes) : STQ_OK;
}

static stq_status read_pieces(const reading *r) {
    uint64_t start = r->file->header.data_start + r->entry->begin;
    /* Doubles what the system reads ahead. Asking for all of it at once (POSIX_FADV_WILLNEED) is slower: Linux fetches
     * that in single pages. */
    if (!r->past_cache)
        posix_fadvise(r->descriptor, (off_t)start, (off_t)r->entry->bytes, POSIX_FADV_SEQUENTIAL);
    for (uint64_t at = 0; at < r->entry->bytes; at += PIECE_BYTES) {
        uint64_t bytes = r->entry->bytes - at < PIECE_BYTES ? r->entry->bytes - at : PIECE_BYTES;
        uint8_t *to = r->pages ? r->pages : r->direct + at;
        const uint8_t *data = to;
        if (r->past_cache)
            STQ_CHECK(stq_file_read_pages(r->descriptor, r->file->path, to, bytes, start + at, &data));
        else
            STQ_CHECK(stq_file_read(r->descriptor, r->file->path, to, bytes, start + at));
        STQ_CHECK(take_piece(r, at, data, bytes));
    }
    return STQ_OK;
}

void *stq_allocate_large(uint64_t bytes) {
    if (bytes < STQ_HUGE_PAGE)
        return malloc((size_t)bytes + 1);
    uint64_t whole = stq_round_up(bytes, STQ_HUGE_PAGE);
    void *memory = whole <= SIZE_MAX ? aligned_alloc(STQ_HUGE_PAGE, (size_t)whole) : NULL;
    if (memory)
        madvise(memory, (size_t)whole, MADV_HUGEPAGE);
    return memory;
}

static stq_status read_opened(reading *r) {
    uint64_t expected, most = r->entry->bytes < PIECE_BYTES ? r->entry->bytes : PIECE_BYTES;
    bool check = stq_expected_checksum(r->file, r->entry, &expected);
    r->past_cache =
        stq_file_read_directly(r->descriptor, r->file->header.data_start + r->entry->begin, r->entry->bytes);
    if (r->past_cache) /* a disk reads into a huge page at once, into 4,096 bytes each at other places */
        r->pages = stq_allocate_large(ROOM_BYTES);
    else if (!r->direct)
        r->pages = malloc((size_t)most + 1);
    r->checksum = check ? stq_checksum_begin() : NULL;
    stq_status status = STQ_OK;
    if ((check && !r->checksum) || ((r->past_cache || !r->direct) && !r->pages))
        status = stq_error(STQ_OUT_OF_MEMORY, "No memory to read %s.", r->file->path);
    if (status == STQ_OK)
        status = read_pieces(r);
    uint64_t found = stq_checksum_end(r->checksum);
    free(r->pages);
    return status == STQ_OK && check && found != expected ? corrupt(r->file, r->entry) : status;
}

stq_status stq_read_entry(const stq_part_file *file, const stq_entry *entry, void *direct, stq_sink sink,
                          void *context) {
    uint64_t size;
    reading r = {.file = file, .entry = entry, .direct = direct, .sink = sink, .context = context};
    STQ_CHECK(stq_file_open(file->path, &r.descriptor, &size));
    stq_status status = read_opened(&r);
    close(r.descriptor);
    return status;
}

/* ---- Several at a time ---- */

/* Sentences belong to the thread that failed: the first one is carried over to the caller. */
typedef struct failure {
    atomic_flag taken;
    atomic_bool any;
    stq_status status;
    char sentence[512];
} failure;

static void keep_failure(failure *first, stq_status status) {
    if (!atomic_flag_test_and_set(&first->taken)) {
        snprintf(first->sentence, sizeof first->sentence, "%s", stq_last_error());
        first->status = status;
    }
    atomic_store(&first->any, true);
}

int stq_reader_threads(const stq_checkpoint *c) {
    int cores = omp_get_max_threads();
    int readers = c->bytes / READER_BYTES < MOST_READERS ? (int)(c->bytes / READER_BYTES) : MOST_READERS;
    return readers > cores ? readers : cores;
}

stq_status stq_run_jobs(stq_status (*job)(void *context, size_t index), void *context, size_t count, int threads) {
    failure first = {.taken = ATOMIC_FLAG_INIT, .status = STQ_OK};
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < count; i++) {
        stq_status status = atomic_load(&first.any) ? STQ_OK : job(context, i);
        if (status != STQ_OK)
            keep_failure(&first, status);
    }
    return first.status == STQ_OK ? STQ_OK : stq_error(first.status, "%s", first.sentence);
}
