#include "train/file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static enum app_status read_all(gzFile file, const char *path, size_t limit, uint8_t **bytes, size_t *count) {
    size_t capacity = 1 << 20;
    *bytes = malloc(capacity);
    *count = 0;
    for (int got = 1; *bytes && got > 0;) {
        const size_t room = capacity - *count;
        got = gzread(file, *bytes + *count, room < (1u << 30) ? (unsigned)room : 1u << 30);
        if (got < 0) {
            int code;
            const char *reason = gzerror(file, &code);
            return code == Z_ERRNO ? app_fail(APP_FAILED, "Cannot read %s: %s.", path, strerror(errno))
                                   : app_fail(APP_FAILED, "%s is a broken gzip file (%s); get it again.", path, reason);
        }
        *count += (size_t)got;
        if (*count > limit) {
            return app_fail(APP_FAILED, "%s has more than %zu bytes, too many for what it should be.", path, limit);
        }
        if (*count == capacity) {
            uint8_t *larger = realloc(*bytes, capacity *= 2);
            if (!larger) {
                free(*bytes);
            }
            *bytes = larger;
        }
    }
    return *bytes ? APP_OK : app_fail(APP_FAILED, "There is no memory for %s.", path);
}

enum app_status file_read(const char *path, size_t limit, uint8_t **bytes, size_t *count) {
    *bytes = NULL;
    errno = 0;
    gzFile file = gzopen(path, "rb");
    if (!file) {
        return app_fail(APP_FAILED, "Cannot read %s: %s.", path, errno ? strerror(errno) : "there is no memory");
    }
    gzbuffer(file, 1 << 17);
    enum app_status status = read_all(file, path, limit, bytes, count);
    // Only closing tells that a compressed file ended too early.
    if (gzclose_r(file) == Z_BUF_ERROR && status == APP_OK) {
        status = app_fail(APP_FAILED, "%s is a truncated gzip file; get it again.", path);
    }
    if (status != APP_OK) {
        free(*bytes);
        *bytes = NULL;
    }
    return status;
}
