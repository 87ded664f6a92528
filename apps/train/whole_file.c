#include "train/whole_file.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum app_status whole_file_open(const char *path, struct whole_file *file) {
    if (snprintf(file->path, sizeof(file->path), "%s", path) >= PATH_MAX ||
        snprintf(file->temporary, sizeof(file->temporary), "%s.new", path) >= PATH_MAX) {
        return app_fail(APP_FAILED, "The path %s is too long.", path);
    }
    file->stream = fopen(file->temporary, "wb");
    if (!file->stream) {
        return app_fail(APP_FAILED, "Cannot write %s: %s.", path, strerror(errno));
    }
    errno = 0;
    return APP_OK;
}

enum app_status whole_file_failed(const struct whole_file *file, int reason) {
    return app_fail(APP_FAILED, "Writing %s failed: %s; free some space or choose another file.", file->path,
                    reason ? strerror(reason) : "there is no memory");
}

enum app_status whole_file_finish(struct whole_file *file, int written) {
    written = written && fflush(file->stream) == 0 && fsync(fileno(file->stream)) == 0;
    int reason = errno;
    if (fclose(file->stream) != 0 && written) {
        written = 0;
        reason = errno;
    }
    if (written && rename(file->temporary, file->path) != 0) {
        written = 0;
        reason = errno;
    }
    if (!written) {
        unlink(file->temporary);
        return whole_file_failed(file, reason);
    }
    return APP_OK;
}

void whole_file_abandon(struct whole_file *file) {
    fclose(file->stream);
    unlink(file->temporary);
}
