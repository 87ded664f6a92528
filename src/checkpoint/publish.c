/* publish.c - the folder of a run. */
#define _GNU_SOURCE
#include "checkpoint/publish.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "checkpoint/document.h"
#include "checkpoint/file.h"
#include "checkpoint/index.h"
#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"
#include "common/error.h"

/* How long a rank waits for another that is replacing a checkpoint: 5 s, which is far longer than two renames take. */
enum { WAIT_ATTEMPTS = 500, WAIT_NANOSECONDS = 10000000 };

/* ---- Names ---- */

void stq_step_name(int64_t step, char *name) { snprintf(name, STQ_STEP_NAME, "step-%08" PRId64, step); }

void stq_partial_name(int64_t step, uint64_t run, char *name) {
    snprintf(name, STQ_STEP_NAME, ".step-%08" PRId64 ".%016" PRIx64 ".partial", step, run);
}

/* .step-N.RUN.old: on its way out, or about to change places with one that is. */
static void old_name(int64_t step, uint64_t run, char *name) {
    stq_partial_name(step, run, name);
    strcpy(strrchr(name, '.'), ".old");
}

/* True for a name of stq_step_name(), exactly. */
static bool parse_step_name(const char *name, int64_t *step) {
    char same[STQ_STEP_NAME];
    if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9' || strlen(name) >= sizeof same)
        return false;
    errno = 0;
    *step = strtoll(name + 5, NULL, 10);
    stq_step_name(*step, same);
    return errno == 0 && strcmp(name, same) == 0;
}

/* .step-N.RUN.partial and .step-N.RUN.old */
static bool is_leftover(const char *name, int64_t *step, uint64_t *run) {
    char same[STQ_STEP_NAME];
    if (sscanf(name, ".step-%" SCNd64 ".%16" SCNx64, step, run) != 2)
        return false;
    stq_partial_name(*step, *run, same);
    if (strcmp(name, same) == 0)
        return true;
    old_name(*step, *run, same);
    return strcmp(name, same) == 0;
}

/* ---- The index of what has been written ---- */

typedef struct collected {
    stq_index_file *files;
    char (*names)[STQ_PART_NAME];
    json_t *weight_map;
    uint64_t total_bytes; /* of the data sections */
} collected;

static stq_status collect_entries(collected *all, const stq_header *header, const char *file) {
    for (size_t i = 0; i < header->count; i++) {
        const stq_entry *entry = &header->entries[i];
        if (json_object_get(all->weight_map, entry->name))
            return stq_error(STQ_INVALID_ARGUMENT, "'%s' was saved by two ranks; each part belongs to one.",
                             entry->name);
        if (json_object_set_new(all->weight_map, entry->name, json_string(file)) != 0)
            return stq_error(STQ_OUT_OF_MEMORY, "No memory for the index of a checkpoint.");
        all->total_bytes += entry->bytes;
    }
    return STQ_OK;
}

/* Checks that the header belongs to this publication. */
static stq_status check_origin(const stq_publication *p, const stq_header *header, uint64_t file_bytes, uint32_t rank,
                               const char *path) {
    stq_document document;
    if (header->metadata == NULL)
        return stq_error(STQ_CORRUPT, "%s has no description of a checkpoint.", path);
    STQ_CHECK(stq_document_parse(&document, header->metadata, file_bytes, path));
    bool same =
        document.step == p->step && document.rank == rank && document.ranks == p->ranks && document.run == p->run;
    stq_document_release(&document);
    return same ? STQ_OK : stq_error(STQ_CORRUPT, "%s belongs to another save.", path);
}

static stq_status collect_part(const stq_publication *p, int folder, uint32_t rank, collected *all) {
    stq_index_file *file = &all->files[rank];
    stq_part_file_name(rank, p->ranks, all->names[rank]);
    char *path = stq_path_join(p->path, all->names[rank]);
    int descriptor = openat(folder, all->names[rank], O_RDONLY | O_CLOEXEC);
    struct stat status_of;
    stq_header header = {0};
    stq_status status = STQ_OK;
    if (path == NULL)
        status = stq_error(STQ_OUT_OF_MEMORY, "No memory for a path in %s.", p->path);
    else if (descriptor < 0 || fstat(descriptor, &status_of) != 0)
        status = stq_file_error("open", path, errno);
    if (status == STQ_OK) {
        *file = (stq_index_file){.name = all->names[rank], .bytes = (uint64_t)status_of.st_size};
        status = stq_header_read(&header, descriptor, file->bytes, path, NULL, &file->checksum);
    }
    if (status == STQ_OK)
        status = check_origin(p, &header, file->bytes, rank, path);
    if (status == STQ_OK)
        status = collect_entries(all, &header, file->name);
    stq_header_release(&header);
    if (descriptor >= 0)
        close(descriptor);
    free(path);
    return status;
}

static stq_status collect_all(const stq_publication *p, int folder, collected *all) {
    all->files = calloc(p->ranks, sizeof *all->files);
    all->names = calloc(p->ranks, sizeof *all->names);
    all->weight_map = json_object();
    if (!all->files || !all->names || !all->weight_map)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the index of %u files.", p->ranks);
    for (uint32_t rank = 0; rank < p->ranks; rank++)
        STQ_CHECK(collect_part(p, folder, rank, all));
    return STQ_OK;
}

static stq_status write_index(const stq_publication *p, int folder) {
    collected all = {0};
    char *text = NULL;
    stq_status status = collect_all(p, folder, &all);
    if (status == STQ_OK) {
        status = stq_index_format(all.files, p->ranks, p->step, all.total_bytes, all.weight_map, &text);
        all.weight_map = NULL;
    }
    if (status == STQ_OK) {
        /* Several ranks may come here at once; each writes the same bytes. */
        stq_piece piece = {text, strlen(text)};
        status = stq_file_make(folder, p->path, STQ_INDEX_NAME, &piece, 1);
    }
    json_decref(all.weight_map);
    free(all.files);
    free(all.names);
    free(text);
    return status;
}

/* ---- Publication ---- */

static bool exists(int folder, const char *name) {
    struct stat status;
    return fstatat(folder, name, &status, 0) == 0;
}

static bool is_complete(const stq_publication *p, int folder) {
    char name[STQ_PART_NAME];
    for (uint32_t rank = 0; rank < p->ranks; rank++) {
        stq_part_file_name(rank, p->ranks, name);
        if (!exists(folder, name))
            return false;
    }
    return true;
}

/* True if the folder `name` holds the first part of this publication. */
static bool holds_first_part(const stq_publication *p, const char *name, bool with_index) {
    collected all = {0};
    int folder = openat(p->folder, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return false;
    all.files = calloc(p->ranks, sizeof *all.files);
    all.names = calloc(p->ranks, sizeof *all.names);
    all.weight_map = json_object();
    bool holds = all.files && all.names && all.weight_map && (!with_index || exists(folder, STQ_INDEX_NAME)) &&
                 collect_part(p, folder, 0, &all) == STQ_OK;
    json_decref(all.weight_map);
    free(all.files);
    free(all.names);
    close(folder);
    return holds;
}

/* True if the published checkpoint of this step is the one that this run has just written: a run that saves a step
 * again has two of them for a moment, and the one that still lies in the partial folder is not published. */
static bool is_published(const stq_publication *p, const char *partial, const char *name) {
    return holds_first_part(p, name, true) && !holds_first_part(p, partial, false);
}

/*
 * A checkpoint of this step exists, from a run before: they change places, and the old one goes. Of several ranks that
 * come here at once the one that gets the new folder under another name does it; two would change the places back.
 */
static stq_status replace_published(const stq_publication *p, const char *partial, const char *name) {
    char claimed[STQ_STEP_NAME];
    old_name(p->step, p->run, claimed);
    if (renameat(p->folder, partial, p->folder, claimed) != 0)
        return stq_file_error("publish", partial, errno);
    if (renameat2(p->folder, claimed, p->folder, name, RENAME_EXCHANGE) == 0) {
        stq_folder_remove(p->folder, claimed);
        return STQ_OK;
    }
    /* File systems that exchange nothing: for a moment there is no checkpoint of this step. */
    if (renameat(p->folder, name, p->folder, partial) == 0 && renameat(p->folder, claimed, p->folder, name) == 0) {
        stq_folder_remove(p->folder, partial);
        return STQ_OK;
    }
    stq_status status = stq_file_error("publish", partial, errno);
    if (!exists(p->folder, name))
        (void)renameat(p->folder, partial, p->folder, name);
    (void)renameat(p->folder, claimed, p->folder, partial);
    return status;
}

static stq_status move_into_place(const stq_publication *p, const char *partial, const char *name) {
    if (renameat(p->folder, partial, p->folder, name) == 0)
        return STQ_OK;
    if (errno != ENOTEMPTY && errno != EEXIST)
        return stq_file_error("publish", partial, errno);
    return replace_published(p, partial, name);
}

/* Another rank may have been faster at any point; where it is just about to replace a checkpoint, that is waited for.
 */
static bool is_published_by_another(const stq_publication *p, const char *partial, const char *name) {
    char claimed[STQ_STEP_NAME];
    old_name(p->step, p->run, claimed);
    for (int attempt = 0; attempt < WAIT_ATTEMPTS; attempt++) {
        if (is_published(p, partial, name))
            return true;
        if (!exists(p->folder, claimed))
            break;
        nanosleep(&(struct timespec){.tv_nsec = WAIT_NANOSECONDS}, NULL);
    }
    return is_published(p, partial, name);
}

static stq_status try_to_publish(const stq_publication *p, const char *partial, const char *name, bool *complete) {
    int folder = openat(p->folder, partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return stq_file_error("open", partial, errno);
    *complete = is_complete(p, folder);
    stq_status status = *complete ? write_index(p, folder) : STQ_OK;
    close(folder);
    if (status == STQ_OK && *complete)
        status = move_into_place(p, partial, name);
    return status;
}

stq_status stq_publish(const stq_publication *p, bool *published) {
    char partial[STQ_STEP_NAME], name[STQ_STEP_NAME];
    bool complete = true;
    stq_partial_name(p->step, p->run, partial);
    stq_step_name(p->step, name);
    *published = false;
    stq_status status = try_to_publish(p, partial, name, &complete);
    if (status == STQ_OK)
        *published = complete;
    else {
        char sentence[512];
        snprintf(sentence, sizeof sentence, "%s", stq_last_error());
        *published = is_published_by_another(p, partial, name);
        if (!*published)
            return stq_error(status, "%s", sentence);
    }
    return *published ? stq_folder_sync(p->folder, p->path) : STQ_OK;
}

/* ---- Lists and removal ---- */

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Calls `visit` for every name in the folder until it returns false. */
static stq_status visit_names(int folder, const char *path, bool (*visit)(void *context, const char *name),
                              void *context) {
    int descriptor = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = descriptor < 0 ? NULL : fdopendir(descriptor);
    if (stream == NULL) {
        stq_status status = stq_file_error("list the folder", path, errno);
        if (descriptor >= 0)
            close(descriptor);
        return status;
    }
    bool more = true;
    for (const struct dirent *entry = readdir(stream); entry && more; entry = readdir(stream))
        more = visit(context, entry->d_name);
    closedir(stream);
    return more ? STQ_OK : stq_error(STQ_OUT_OF_MEMORY, "No memory to list the folder %s.", path);
}

typedef struct step_list {
    int folder;
    int64_t below;
    int64_t *steps;
    size_t count;
    size_t capacity;
} step_list;

static bool list_step(void *context, const char *name) {
    step_list *list = context;
    char index[STQ_STEP_NAME + sizeof STQ_INDEX_NAME + 1];
    int64_t step;
    if (!parse_step_name(name, &step) || step >= list->below)
        return true;
    snprintf(index, sizeof index, "%s/%s", name, STQ_INDEX_NAME);
    if (!exists(list->folder, index))
        return true;
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 16;
        int64_t *steps = realloc(list->steps, capacity * sizeof *steps);
        if (steps == NULL)
            return false;
        list->steps = steps;
        list->capacity = capacity;
    }
    list->steps[list->count++] = step;
    return true;
}

stq_status stq_list_steps(int folder, const char *path, int64_t below, int64_t **steps, size_t *count) {
    step_list list = {.folder = folder, .below = below};
    *steps = NULL;
    *count = 0;
    stq_status status = visit_names(folder, path, list_step, &list);
    if (status != STQ_OK) {
        free(list.steps);
        return status;
    }
    if (list.count > 0)
        qsort(list.steps, list.count, sizeof *list.steps, newest_first);
    *steps = list.steps;
    *count = list.count;
    return STQ_OK;
}

/* Which leftovers to remove: those of other runs, or those that this run gave up before `step`. */
typedef struct leftovers {
    int folder;
    uint64_t run;
    bool of_others;
    int64_t step;
} leftovers;

static bool remove_leftover(void *context, const char *name) {
    const leftovers *which = context;
    int64_t step;
    uint64_t run;
    if (!is_leftover(name, &step, &run))
        return true;
    if (which->of_others ? run != which->run : run == which->run && step < which->step)
        stq_folder_remove(which->folder, name);
    return true;
}

void stq_remove_leftovers(int folder, uint64_t run) {
    leftovers of_others = {.folder = folder, .run = run, .of_others = true};
    visit_names(folder, "of the run", remove_leftover, &of_others);
}

void stq_prune(const stq_publication *p, uint32_t keep) {
    int64_t *steps;
    size_t count;
    leftovers given_up = {.folder = p->folder, .run = p->run, .step = p->step};
    visit_names(p->folder, p->path, remove_leftover, &given_up);
    if (keep == 0 || stq_list_steps(p->folder, p->path, p->step + 1, &steps, &count) != STQ_OK)
        return;
    for (size_t i = keep; i < count; i++) {
        char name[STQ_STEP_NAME], old[STQ_STEP_NAME];
        stq_step_name(steps[i], name);
        old_name(steps[i], p->run, old);
        /* Renamed first, so that a checkpoint that is half removed is never seen. */
        if (renameat(p->folder, name, p->folder, old) == 0)
            stq_folder_remove(p->folder, old);
    }
    free(steps);
}
