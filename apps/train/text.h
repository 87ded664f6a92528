// Text to train on: files and folders, plain or gzipped, as one sequence of bytes.
#ifndef STQUANT_TRAIN_TEXT_H
#define STQUANT_TRAIN_TEXT_H

#include <stdint.h>

#include "train/failure.h"

struct text {
    uint8_t *bytes; // owned
    int64_t count;
    int64_t capacity;
    int64_t documents; // files read
};

// Appends a file, or every file in a folder and the folders below it, sorted by name; names that begin
// with a dot are left out. Files named *.gz are decompressed. A document that does not end with a
// newline gets one. Refused in a sentence that names the file: missing, unreadable, empty, not text
// (a zero byte), a broken gzip file, a folder without files. Nothing is skipped in silence.
enum app_status text_add(struct text *text, const char *path);

// Calls `visit` for a file, or for every file in a folder as text_add takes them, until one fails. Refuses a
// folder without files.
enum app_status text_each_file(const char *path, enum app_status (*visit)(void *context, const char *path),
                               void *context);

void text_release(struct text *text);

#endif
