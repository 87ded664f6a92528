// A file that is there whole or not at all: written as PATH.new beside it, and renamed at the end.
#ifndef STQUANT_TRAIN_WHOLE_FILE_H
#define STQUANT_TRAIN_WHOLE_FILE_H

#include <limits.h>
#include <stdio.h>

#include "train/failure.h"

struct whole_file {
    FILE *stream; // to write to
    char path[PATH_MAX], temporary[PATH_MAX];
};

// Begins to write. errno is 0 then, so that it tells why what follows fails. On failure nothing is left behind.
enum app_status whole_file_open(const char *path, struct whole_file *file);

// APP_FAILED with a sentence about a write that failed for `reason`, an errno; 0 stands for memory.
enum app_status whole_file_failed(const struct whole_file *file, int reason);

// Closes and renames where everything was `written`, else tells of errno. On failure nothing is left behind, and a file
// of that name that was there before stays.
enum app_status whole_file_finish(struct whole_file *file, int written);

// Closes and leaves nothing behind.
void whole_file_abandon(struct whole_file *file);

#endif
