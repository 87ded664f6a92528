#include "train/text.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

enum { READ_BYTES = 1 << 20 };

static int ends_with(const char *name, const char *ending) {
    size_t length = strlen(name), ending_length = strlen(ending);
    return length >= ending_length && strcmp(name + length - ending_length, ending) == 0;
}

static enum app_status reserve(struct text *text, int64_t more) {
    if (text->count + more <= text->capacity) {
        return APP_OK;
    }
    int64_t capacity = text->capacity ? text->capacity : READ_BYTES;
    while (capacity < text->count + more) {
        capacity *= 2;
    }
    uint8_t *bytes = realloc(text->bytes, (size_t)capacity);
    if (!bytes) {
        return app_fail(APP_FAILED, "There is no memory for more than %lld bytes of text; pass less with --data.",
                        (long long)text->count);
    }
    text->bytes = bytes;
    text->capacity = capacity;
    return APP_OK;
}

// Reads with zlib, which hands through what is not compressed. Files not named *.gz are never
// decompressed: text_add has refused to guess.
static enum app_status read_gzip(struct text *text, const char *path) {
    gzFile file = gzopen(path, "rb");
    if (!file) {
        return app_fail(APP_FAILED, "Cannot read %s: %s.", path, errno ? strerror(errno) : "no memory");
    }
    gzbuffer(file, 1 << 17);
    enum app_status status = APP_OK;
    int count = 0;
    do {
        text->count += count;
        status = reserve(text, READ_BYTES);
    } while (status == APP_OK && (count = gzread(file, text->bytes + text->count, READ_BYTES)) > 0);
    int direct = status == APP_OK && gzdirect(file);
    int closed = gzclose_r(file);
    if (status == APP_OK && direct) {
        status = app_fail(APP_FAILED, "%s is named .gz but is not a gzip file; rename it or compress it.", path);
    } else if (status == APP_OK && (count < 0 || closed != Z_OK)) {
        status = app_fail(APP_FAILED, "%s is a broken or truncated gzip file; get it again.", path);
    }
    return status;
}

static enum app_status read_plain(struct text *text, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        return app_fail(APP_FAILED, "Cannot read %s: %s.", path, strerror(errno));
    }
    enum app_status status = APP_OK;
    size_t count = 0;
    do {
        text->count += (int64_t)count;
        status = reserve(text, READ_BYTES);
    } while (status == APP_OK && (count = fread(text->bytes + text->count, 1, READ_BYTES, file)) > 0);
    if (status == APP_OK && ferror(file)) {
        status = app_fail(APP_FAILED, "Reading %s failed: %s.", path, strerror(errno));
    }
    fclose(file);
    return status;
}

static enum app_status add_file(struct text *text, const char *path) {
    const int64_t start = text->count;
    enum app_status status = ends_with(path, ".gz") ? read_gzip(text, path) : read_plain(text, path);
    if (status != APP_OK) {
        return status;
    }
    const int64_t count = text->count - start;
    if (count == 0) {
        return app_fail(APP_FAILED, "%s is empty; remove it or pass other files with --data.", path);
    }
    const uint8_t *zero = memchr(text->bytes + start, 0, (size_t)count);
    if (zero) {
        return app_fail(APP_FAILED, "%s is not text: byte %lld is zero; pass text files, plain or gzipped.", path,
                        (long long)(zero - (text->bytes + start)));
    }
    if (text->bytes[text->count - 1] != '\n') {
        status = reserve(text, 1);
        if (status == APP_OK) {
            text->bytes[text->count++] = '\n';
        }
    }
    text->documents++;
    return status;
}

static int visible(const struct dirent *entry) { return entry->d_name[0] != '.'; }

// Byte order, whatever the locale: the same text on every machine.
static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

// A walk over the files under a path.
struct walk {
    enum app_status (*visit)(void *context, const char *path);
    void *context;
    int64_t files;
};

static enum app_status walk_path(struct walk *walk, const char *path, int depth);

static enum app_status walk_folder(struct walk *walk, const char *path, int depth) {
    struct dirent **entries = NULL;
    if (depth > 64) {
        return app_fail(APP_FAILED, "%s lies more than 64 folders deep; look for a link that leads back.", path);
    }
    int count = scandir(path, &entries, visible, by_name);
    if (count < 0) {
        return app_fail(APP_FAILED, "Cannot read the folder %s: %s.", path, strerror(errno));
    }
    enum app_status status = APP_OK;
    for (int i = 0; i < count; i++) {
        char child[PATH_MAX];
        int length = snprintf(child, sizeof(child), "%s/%s", path, entries[i]->d_name);
        if (status == APP_OK && length >= (int)sizeof(child)) {
            status = app_fail(APP_FAILED, "A path in the folder %s is too long.", path);
        }
        if (status == APP_OK) {
            status = walk_path(walk, child, depth + 1);
        }
        free(entries[i]);
    }
    free(entries);
    return status;
}

static enum app_status walk_path(struct walk *walk, const char *path, int depth) {
    struct stat file;
    if (stat(path, &file) != 0) {
        return app_fail(APP_FAILED, "Cannot read %s: %s.", path, strerror(errno));
    }
    if (S_ISDIR(file.st_mode)) {
        return walk_folder(walk, path, depth);
    }
    walk->files++;
    return walk->visit(walk->context, path);
}

enum app_status text_each_file(const char *path, enum app_status (*visit)(void *context, const char *path),
                               void *context) {
    struct walk walk = {.visit = visit, .context = context};
    enum app_status status = walk_path(&walk, path, 0);
    if (status == APP_OK && walk.files == 0) {
        status = app_fail(APP_FAILED, "The folder %s holds no files; pass one that holds text.", path);
    }
    return status;
}

static enum app_status add_visited(void *context, const char *path) { return add_file(context, path); }

enum app_status text_add(struct text *text, const char *path) { return text_each_file(path, add_visited, text); }

void text_release(struct text *text) {
    free(text->bytes);
    *text = (struct text){0};
}
