/* read.c - contents of entries, with their checksums, several at a time. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint/file.h"
#include "checkpoint/reader.h"
#include "common/error.h"

/* Read and hashed at once. */
enum { PIECE_BYTES = 4 << 20 };

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
    uint8_t *piece; /* room for a piece where there is no direct target */
    stq_sink sink;
    void *context;
    stq_checksum_state *checksum; /* NULL where nothing is expected */
} reading;

static stq_status read_pieces(const reading *r, int descriptor) {
    uint64_t start = r->file->header.data_start + r->entry->begin;
    /* Doubles what the system reads ahead. Asking for all of it at once (POSIX_FADV_WILLNEED) is slower: Linux fetches
     * that in single pages. */
    posix_fadvise(descriptor, (off_t)start, (off_t)r->entry->bytes, POSIX_FADV_SEQUENTIAL);
    for (uint64_t at = 0; at < r->entry->bytes; at += PIECE_BYTES) {
        uint64_t bytes = r->entry->bytes - at < PIECE_BYTES ? r->entry->bytes - at : PIECE_BYTES;
        uint8_t *to = r->direct ? r->direct + at : r->piece;
        STQ_CHECK(stq_file_read(descriptor, r->file->path, to, bytes, start + at));
        if (r->checksum)
            stq_checksum_add(r->checksum, to, bytes);
        if (r->sink)
            STQ_CHECK(r->sink(r->context, at, to, bytes));
    }
    return STQ_OK;
}

stq_status stq_read_entry(const stq_part_file *file, const stq_entry *entry, void *direct, stq_sink sink,
                          void *context) {
    uint64_t expected, size;
    int descriptor;
    reading r = {.file = file, .entry = entry, .direct = direct, .sink = sink, .context = context};
    bool check = stq_expected_checksum(file, entry, &expected);
    STQ_CHECK(stq_file_open(file->path, &descriptor, &size));
    r.checksum = check ? stq_checksum_begin() : NULL;
    r.piece = direct ? NULL : malloc((size_t)(entry->bytes < PIECE_BYTES ? entry->bytes + 1 : PIECE_BYTES));
    stq_status status = STQ_OK;
    if ((check && !r.checksum) || (!direct && !r.piece))
        status = stq_error(STQ_OUT_OF_MEMORY, "No memory to read %s.", file->path);
    if (status == STQ_OK)
        status = read_pieces(&r, descriptor);
    uint64_t found = stq_checksum_end(r.checksum);
    free(r.piece);
    close(descriptor);
    if (status == STQ_OK && check && found != expected)
        return corrupt(file, entry);
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

stq_status stq_run_jobs(stq_status (*job)(void *context, size_t index), void *context, size_t count, int threads) {
    failure first = {.taken = ATOMIC_FLAG_INIT, .status = STQ_OK};
#pragma omp parallel for schedule(dynamic) num_threads(threads > 0 ? threads : omp_get_max_threads())
    for (size_t i = 0; i < count; i++) {
        stq_status status = atomic_load(&first.any) ? STQ_OK : job(context, i);
        if (status != STQ_OK)
            keep_failure(&first, status);
    }
    return first.status == STQ_OK ? STQ_OK : stq_error(first.status, "%s", first.sentence);
}
