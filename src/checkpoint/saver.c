/* saver.c - saving in a thread: copy, hash, write, publish. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "checkpoint/file.h"
#include "checkpoint/index.h"
#include "checkpoint/publish.h"
#include "checkpoint/snapshot.h"
#include "common/error.h"

#define LOCK_NAME ".lock"

struct stq_saver {
    char *path; /* of the run's folder */
    int folder;
    int lock; /* -1 where the file system has none */
    uint32_t keep;
    stq_snapshot_origin origin;

    pthread_t thread;
    bool started;     /* the thread has to be joined */
    atomic_bool busy; /* the thread is at work */
    stq_snapshot snapshot;

    /* Of the last save; the thread's until it is joined. */
    stq_save_result result;
    stq_status status;
    char message[512];
};

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- Opening and closing ---- */

static stq_status check_config(const stq_saver_config *config) {
    if (config->size != sizeof *config)
        return stq_error(STQ_INVALID_ARGUMENT,
                         "stq_saver_config has another version's size; set .size = sizeof(stq_saver_config).");
    if (config->folder == NULL || config->folder[0] == 0)
        return stq_error(STQ_INVALID_ARGUMENT, "A saver needs a folder.");
    uint32_t ranks = config->ranks ? config->ranks : 1;
    if (config->rank >= ranks || ranks > 99999)
        return stq_error(STQ_INVALID_ARGUMENT, "Rank %u of %u: ranks count from 0 and are at most 99,999.",
                         config->rank, ranks);
    if (ranks > 1 && config->run == 0)
        return stq_error(STQ_INVALID_ARGUMENT, "With %u ranks a saver needs the number of the run.", ranks);
    return STQ_OK;
}

/* A number that no earlier run had: the time in nanoseconds, mixed with the process. */
static uint64_t new_run(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t run = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    run ^= (uint64_t)getpid() << 40;
    return run ? run : 1;
}

/* A lock ends with its process, however that ends. File systems without locks go without. */
static stq_status take_lock(stq_saver *saver) {
    saver->lock = openat(saver->folder, LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (saver->lock < 0)
        return stq_file_error("write to the folder", saver->path, errno);
    if (flock(saver->lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return stq_error(STQ_IO_ERROR, "Another run saves into %s; give each run a folder of its own.", saver->path);
    return STQ_OK;
}

static stq_status open_folder(stq_saver *saver) {
    if (saver->origin.rank == 0)
        STQ_CHECK(stq_folder_make(saver->path));
    STQ_CHECK(stq_folder_open(saver->path, &saver->folder));
    if (saver->origin.rank != 0)
        return STQ_OK;
    STQ_CHECK(take_lock(saver));
    stq_remove_leftovers(saver->folder, saver->origin.run);
    return STQ_OK;
}

stq_status stq_saver_open(stq_saver **saver, const stq_saver_config *config) {
    *saver = NULL;
    STQ_CHECK(check_config(config));
    stq_saver *s = calloc(1, sizeof *s);
    if (s == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for a saver.");
    s->folder = s->lock = -1;
    s->keep = config->keep;
    s->origin = (stq_snapshot_origin){
        .rank = config->rank, .ranks = config->ranks ? config->ranks : 1, .run = config->run ? config->run : new_run()};
    s->result.step = -1;
    s->path = strdup(config->folder);
    stq_status status =
        s->path ? open_folder(s) : stq_error(STQ_OUT_OF_MEMORY, "No memory for the path %s.", config->folder);
    if (status != STQ_OK) {
        stq_saver_close(s);
        return status;
    }
    *saver = s;
    return STQ_OK;
}

static void join(stq_saver *saver) {
    if (saver->started)
        pthread_join(saver->thread, NULL);
    saver->started = false;
}

void stq_saver_close(stq_saver *saver) {
    if (saver == NULL)
        return;
    join(saver);
    stq_snapshot_free(&saver->snapshot);
    if (saver->lock >= 0)
        close(saver->lock);
    if (saver->folder >= 0)
        close(saver->folder);
    free(saver->path);
    free(saver);
}

/* ---- Writing ---- */

static stq_status write_into(stq_saver *saver, const char *partial, const char *file) {
    char *path = stq_path_join(saver->path, partial);
    int folder = -1;
    if (path == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for a path in %s.", saver->path);
    stq_status status = STQ_OK;
    if (mkdirat(saver->folder, partial, 0777) != 0 && errno != EEXIST)
        status = stq_file_error("make the folder", path, errno);
    if (status == STQ_OK)
        status = stq_folder_open(path, &folder);
    if (status == STQ_OK)
        status = stq_snapshot_write(&saver->snapshot, folder, path, file, &saver->result.bytes);
    if (folder >= 0)
        close(folder);
    free(path);
    return status;
}

static stq_status write_and_publish(stq_saver *saver) {
    char partial[STQ_STEP_NAME], file[STQ_PART_NAME];
    stq_publication publication = {.folder = saver->folder,
                                   .path = saver->path,
                                   .step = saver->result.step,
                                   .ranks = saver->origin.ranks,
                                   .run = saver->origin.run};
    stq_partial_name(publication.step, publication.run, partial);
    stq_part_file_name(saver->origin.rank, saver->origin.ranks, file);
    stq_status status = write_into(saver, partial, file);
    stq_snapshot_release(&saver->snapshot);
    if (status == STQ_OK)
        status = stq_publish(&publication, &saver->result.published);
    if (status != STQ_OK && saver->origin.ranks == 1)
        stq_folder_remove(saver->folder, partial);
    if (status == STQ_OK && saver->result.published)
        stq_prune(&publication, saver->keep);
    return status;
}

static void *work(void *argument) {
    stq_saver *saver = argument;
    double begin = seconds();
    saver->status = write_and_publish(saver);
    snprintf(saver->message, sizeof saver->message, "%s", saver->status == STQ_OK ? "" : stq_last_error());
    saver->result.write_seconds = seconds() - begin;
    atomic_store(&saver->busy, false);
    return NULL;
}

stq_status stq_saver_save(stq_saver *saver, const stq_save *save) {
    if (save->size != sizeof *save)
        return stq_error(STQ_INVALID_ARGUMENT, "stq_save has another version's size; set .size = sizeof(stq_save).");
    if (save->step < 0 || (save->arrays == NULL && save->array_count > 0))
        return stq_error(STQ_INVALID_ARGUMENT, "A save needs a step of 0 or more, and arrays where it counts some.");
    join(saver);
    double begin = seconds();
    STQ_CHECK(stq_snapshot_copy(&saver->snapshot, save, &saver->origin));
    saver->result = (stq_save_result){.step = save->step, .copy_seconds = seconds() - begin};
    saver->status = STQ_OK;
    atomic_store(&saver->busy, true);
    saver->started = pthread_create(&saver->thread, NULL, work, saver) == 0;
    if (!saver->started) /* no more threads: the caller does it */
        work(saver);
    return STQ_OK;
}

bool stq_saver_busy(stq_saver *saver) { return atomic_load(&saver->busy); }

stq_status stq_saver_wait(stq_saver *saver, stq_save_result *result) {
    join(saver);
    if (result)
        *result = saver->result;
    return saver->status == STQ_OK ? STQ_OK : stq_error(saver->status, "%s", saver->message);
}

stq_status stq_checkpoint_publish(const char *folder, int64_t step, uint32_t ranks, uint64_t run, bool *published) {
    stq_publication publication = {.path = folder, .step = step, .ranks = ranks, .run = run};
    *published = false;
    STQ_CHECK(stq_folder_open(folder, &publication.folder));
    stq_status status = stq_publish(&publication, published);
    close(publication.folder);
    return status;
}
