/* file.c - files and folders over POSIX calls. */
#define _GNU_SOURCE
#include "checkpoint/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"
#include "common/memory.h"

/* Written at once; the system is told to begin with the disk after each, so that the last sync has little left. */
enum { WRITE_BYTES = 8 << 20, READ_BYTES = 8 << 20, DIRECT_BYTES = 32 << 20 };

stq_status stq_file_error(const char *action, const char *path, int error) {
    return stq_error(STQ_IO_ERROR, "Cannot %s %s: %s.", action, path, strerror(error));
}

char *stq_path_join(const char *folder, const char *name) {
    size_t length = strlen(folder) + strlen(name) + 2;
    char *path = malloc(length);
    if (path)
        snprintf(path, length, "%s/%s", folder, name);
    return path;
}

stq_status stq_file_open(const char *path, int *descriptor, uint64_t *size) {
    struct stat status;
    *descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*descriptor < 0)
        return stq_file_error("open", path, errno);
    stq_status result = STQ_OK;
    if (fstat(*descriptor, &status) != 0)
        result = stq_file_error("open", path, errno);
    else if (!S_ISREG(status.st_mode))
        result = stq_error(STQ_IO_ERROR, "%s is not a file.", path);
    if (result != STQ_OK) {
        close(*descriptor);
        *descriptor = -1;
        return result;
    }
    *size = (uint64_t)status.st_size;
    return STQ_OK;
}

static stq_status ends_early(const char *path, uint64_t offset) {
    return stq_error(STQ_CORRUPT, "%s ends at byte %llu, where more was announced; it is cut off.", path,
                     (unsigned long long)offset);
}

stq_status stq_file_read(int descriptor, const char *path, void *data, uint64_t bytes, uint64_t offset) {
    for (uint64_t done = 0; done < bytes;) {
        uint64_t left = bytes - done;
        ssize_t count =
            pread(descriptor, (uint8_t *)data + done, left < READ_BYTES ? left : READ_BYTES, (off_t)(offset + done));
        if (count < 0 && errno != EINTR)
            return stq_file_error("read", path, errno);
        if (count == 0)
            return ends_early(path, offset + done);
        done += count > 0 ? (uint64_t)count : 0;
    }
    return STQ_OK;
}

/* Turns reading or writing past the page cache on or off; false where the file system has none of it. */
static bool set_direct(int descriptor, bool direct) {
    int flags = fcntl(descriptor, F_GETFL);
    return flags >= 0 && fcntl(descriptor, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
}

/* One page tells enough about what was read or written as a whole. Without the right to ask, the answer is yes. */
static bool is_cached(int descriptor, uint64_t offset) {
    unsigned char resident = 1;
    long page = sysconf(_SC_PAGESIZE);
    if (page <= 0)
        return true;
    void *mapped = mmap(NULL, 1, PROT_READ, MAP_SHARED, descriptor, (off_t)(offset / (uint64_t)page * (uint64_t)page));
    if (mapped == MAP_FAILED)
        return true;
    int failed = mincore(mapped, 1, &resident);
    munmap(mapped, 1);
    return failed != 0 || (resident & 1) != 0;
}

bool stq_file_read_directly(int descriptor, uint64_t offset, uint64_t bytes) {
    if (bytes < STQ_LARGE_FILE || is_cached(descriptor, offset + bytes / 2))
        return false;
    return set_direct(descriptor, true);
}

stq_status stq_file_read_pages(int descriptor, const char *path, uint8_t *pages, uint64_t bytes, uint64_t offset,
                               const uint8_t **data) {
    uint64_t before = offset % STQ_FILE_PAGE, needed = before + bytes;
    uint64_t whole = stq_round_up(needed, STQ_FILE_PAGE);
    *data = pages + before;
    for (uint64_t done = 0; done < needed;) {
        ssize_t count = pread(descriptor, pages + done, whole - done, (off_t)(offset - before + done));
        if (count < 0 && errno == EINVAL && set_direct(descriptor, false)) /* promised, but not done by the disk */
            return stq_file_read(descriptor, path, pages + before, bytes, offset);
        if (count < 0 && errno != EINTR)
            return stq_file_error("read", path, errno);
        if (count == 0)
            return ends_early(path, offset - before + done);
        done += count > 0 ? (uint64_t)count : 0;
    }
    return STQ_OK;
}

stq_status stq_file_load(const char *path, uint64_t limit, char **text, uint64_t *bytes) {
    int descriptor;
    *text = NULL;
    STQ_CHECK(stq_file_open(path, &descriptor, bytes));
    stq_status status = STQ_OK;
    if (*bytes > limit)
        status = stq_error(STQ_CORRUPT, "%s has %llu bytes; more than %llu are not plausible.", path,
                           (unsigned long long)*bytes, (unsigned long long)limit);
    else if ((*text = malloc((size_t)*bytes + 1)) == NULL)
        status = stq_error(STQ_OUT_OF_MEMORY, "No memory to read %s.", path);
    if (status == STQ_OK)
        status = stq_file_read(descriptor, path, *text, *bytes, 0);
    close(descriptor);
    if (status != STQ_OK) {
        free(*text);
        *text = NULL;
        return status;
    }
    (*text)[*bytes] = 0;
    return STQ_OK;
}

/*
 * `offset` is where the piece begins in the file. The whole pages of a large piece go past the page cache where memory
 * and file agree in their alignment: that spares the cache a gigabyte that nobody reads soon, and is faster.
 */
static stq_status write_piece(int descriptor, const char *path, const stq_piece *piece, uint64_t offset) {
    uint64_t whole_pages = piece->bytes / STQ_FILE_PAGE * STQ_FILE_PAGE;
    bool aligned = (uintptr_t)piece->data % STQ_FILE_PAGE == 0 && offset % STQ_FILE_PAGE == 0;
    bool direct = aligned && piece->bytes >= STQ_LARGE_FILE && set_direct(descriptor, true);
    for (uint64_t done = 0; done < piece->bytes;) {
        if (direct && (done >= whole_pages || done % STQ_FILE_PAGE != 0)) {
            set_direct(descriptor, false);
            direct = false;
        }
        uint64_t left = (direct ? whole_pages : piece->bytes) - done, most = direct ? DIRECT_BYTES : WRITE_BYTES;
        ssize_t count = write(descriptor, (const uint8_t *)piece->data + done, left < most ? left : most);
        if (count < 0 && errno == EINVAL && direct) { /* promised by the file system, but not done by the disk */
            set_direct(descriptor, false);
            direct = false;
            continue;
        }
        if (count < 0 && errno != EINTR)
            return stq_file_error("write", path, errno);
        if (count <= 0)
            continue;
        if (!direct)
            sync_file_range(descriptor, (off_t)(offset + done), (off_t)count, SYNC_FILE_RANGE_WRITE);
        done += (uint64_t)count;
    }
    if (direct)
        set_direct(descriptor, false);
    return STQ_OK;
}

static stq_status write_pieces(int descriptor, const char *path, const stq_piece *pieces, size_t count) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += pieces[i].bytes;
    /* A disk that is too full says so before anything is written; file systems that cannot tell are tried. */
    if (bytes > 0 && fallocate(descriptor, 0, 0, (off_t)bytes) != 0 && (errno == ENOSPC || errno == EFBIG))
        return stq_file_error("write", path, errno);
    uint64_t offset = 0;
    for (size_t i = 0; i < count; i++) {
        STQ_CHECK(write_piece(descriptor, path, &pieces[i], offset));
        offset += pieces[i].bytes;
    }
    if (fsync(descriptor) != 0)
        return stq_file_error("sync", path, errno);
    return STQ_OK;
}

/* A new file under a name of its own: processes of several hosts may write into one folder, and threads of one. */
static int open_temporary(int folder, char temporary[40]) {
    uint64_t number;
    if (getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number)
        return -1;
    snprintf(temporary, 40, ".stquant-%016" PRIx64 ".tmp", number);
    return openat(folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}

stq_status stq_file_make(int folder, const char *path, const char *name, const stq_piece *pieces, size_t count) {
    char temporary[40];
    char *whole = stq_path_join(path, name);
    if (whole == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for a path in %s.", path);
    int descriptor = open_temporary(folder, temporary);
    stq_status status = descriptor < 0 ? stq_file_error("create", whole, errno) : STQ_OK;
    if (status == STQ_OK) {
        status = write_pieces(descriptor, whole, pieces, count);
        if (close(descriptor) != 0 && status == STQ_OK)
            status = stq_file_error("close", whole, errno);
    }
    if (status == STQ_OK && renameat(folder, temporary, folder, name) != 0)
        status = stq_file_error("rename", whole, errno);
    if (status != STQ_OK && descriptor >= 0)
        unlinkat(folder, temporary, 0);
    free(whole);
    return status == STQ_OK ? stq_folder_sync(folder, path) : status;
}

stq_status stq_folder_open(const char *path, int *descriptor) {
    *descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *descriptor < 0 ? stq_file_error("open the folder", path, errno) : STQ_OK;
}

stq_status stq_folder_make(const char *path) {
    char *part = strdup(path);
    if (part == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the path %s.", path);
    int error = 0;
    for (char *end = part; error == 0 && *end != 0;) {
        end += strspn(end, "/");
        end += strcspn(end, "/");
        char kept = *end;
        *end = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            error = errno;
        *end = kept;
    }
    free(part);
    return error ? stq_file_error("make the folder", path, error) : STQ_OK;
}

stq_status stq_folder_sync(int descriptor, const char *path) {
    return fsync(descriptor) == 0 ? STQ_OK : stq_file_error("sync the folder", path, errno);
}

void stq_folder_remove(int parent, const char *name) {
    int descriptor = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *folder = descriptor < 0 ? NULL : fdopendir(descriptor);
    if (folder == NULL) {
        if (descriptor >= 0)
            close(descriptor);
        return;
    }
    for (const struct dirent *entry = readdir(folder); entry; entry = readdir(folder))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(descriptor, entry->d_name, 0);
    closedir(folder);
    unlinkat(parent, name, AT_REMOVEDIR);
}
