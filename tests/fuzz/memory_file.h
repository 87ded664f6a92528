/* memory_file.h - a file in memory, whose path is readable like any other's: for readers that take paths. */
#ifndef STQ_MEMORY_FILE_H
#define STQ_MEMORY_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MEMORY_FILE_PATH = 64 };

/* Fills the one file of this process; `path` receives where it is. */
static inline void memory_file(const uint8_t *data, size_t size, char path[MEMORY_FILE_PATH]) {
    static int file = -1;
    if (file < 0)
        file = memfd_create("input", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, 0) != 0 || pwrite(file, data, size, 0) != (ssize_t)size)
        abort();
    snprintf(path, MEMORY_FILE_PATH, "/proc/self/fd/%d", file);
}

#endif
