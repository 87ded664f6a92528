#include "train/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/whole_file.h"

struct log {
    int file;
    off_t length; // of the whole lines written
    char path[PATH_MAX];
};

// True for a whole line about a step up to `last_step`.
static int is_kept(const char *line, ssize_t length, int64_t last_step) {
    json_t *object = line[length - 1] == '\n' ? json_loadb(line, (size_t)length, 0, NULL) : NULL;
    const json_t *step = json_object_get(object, "step");
    int kept = json_is_integer(step) && json_integer_value(step) <= last_step;
    json_decref(object);
    return kept;
}

// Cuts off what follows step `last_step`; errno says why it cannot.
static int cut_after(struct log *log, int64_t last_step) {
    char *line = NULL;
    size_t room = 0;
    FILE *file = last_step > 0 ? fopen(log->path, "r") : NULL;
    for (ssize_t length; file && (length = getline(&line, &room, file)) > 0 && is_kept(line, length, last_step);) {
        log->length += length;
    }
    free(line);
    if (file) {
        fclose(file);
    }
    return ftruncate(log->file, log->length) == 0 && lseek(log->file, log->length, SEEK_SET) >= 0;
}

enum app_status log_open(const char *path, int64_t first_step, struct log **result) {
    *result = NULL;
    struct log *log = calloc(1, sizeof(*log));
    if (!log) {
        return app_fail(APP_FAILED, "There is no memory for the log.");
    }
    snprintf(log->path, sizeof(log->path), "%s", path);
    log->file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (log->file < 0 || (!cut_after(log, first_step) && errno != EINVAL && errno != ESPIPE)) {
        enum app_status status = app_fail(APP_FAILED, "Cannot write the log %s: %s.", path, strerror(errno));
        if (log->file >= 0) {
            close(log->file);
        }
        free(log);
        return status;
    }
    *result = log;
    return APP_OK;
}

static enum app_status fail(const struct log *log, int reason) {
    return app_fail(APP_FAILED, "Writing the log %s failed: %s; free some space or choose another file with --log.",
                    log->path, strerror(reason));
}

enum app_status log_write(struct log *log, json_t *object) {
    if (!log) {
        json_decref(object);
        return APP_OK;
    }
    char *line = object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(object);
    if (!line) {
        return app_fail(APP_FAILED, "There is no memory for a line of the log %s.", log->path);
    }
    size_t length = strlen(line), done = 0;
    line[length++] = '\n'; // in place of the final zero
    while (done < length) {
        ssize_t count = write(log->file, line + done, length - done);
        if (count < 0 && errno != EINTR) {
            break;
        }
        done += count > 0 ? (size_t)count : 0;
    }
    int reason = errno;
    free(line);
    if (done < length) {
        // A line that reached the file in part is cut off again; a file that cannot be cut is a device.
        int cut = ftruncate(log->file, log->length);
        (void)cut;
        return fail(log, reason);
    }
    log->length += (off_t)length;
    return APP_OK;
}

enum app_status log_close(struct log *log) {
    if (!log) {
        return APP_OK;
    }
    enum app_status status = close(log->file) == 0 ? APP_OK : fail(log, errno);
    free(log);
    return status;
}

json_t *log_number(double value) { return isfinite(value) ? json_real(value) : json_null(); }

enum app_status log_write_file(const char *path, json_t *object) {
    struct whole_file file;
    enum app_status status = whole_file_open(path, &file);
    if (status == APP_OK) {
        const int written = object && json_dumpf(object, file.stream, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) == 0 &&
                            fputc('\n', file.stream) != EOF;
        status = whole_file_finish(&file, written);
    }
    json_decref(object);
    return status;
}
