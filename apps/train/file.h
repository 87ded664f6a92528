// Small files, read whole.
#ifndef STQUANT_TRAIN_FILE_H
#define STQUANT_TRAIN_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "train/failure.h"

// Reads a file of up to `limit` bytes, decompressing what gzip has compressed. *bytes is freed by the caller. Refused:
// what cannot be read, larger files, a gzip file that breaks off. On failure *bytes is null.
enum app_status file_read(const char *path, size_t limit, uint8_t **bytes, size_t *count);

#endif
