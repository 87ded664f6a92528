/* resident_memory.h - how much of this process is in memory, for tests of what is given back. */
#ifndef STQ_RESIDENT_MEMORY_H
#define STQ_RESIDENT_MEMORY_H

#include "testing.h"

#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RESIDENT_COUNTS 0 /* the sanitizer's own pages are resident, too */
#else
#define RESIDENT_COUNTS 1
#endif

/* Bytes; skips the test where they cannot be told. */
static inline uint64_t test_resident(void) {
    FILE *file = RESIDENT_COUNTS ? fopen("/proc/self/statm", "r") : NULL;
    unsigned long long all = 0, pages = 0;
    int found = file == NULL ? 0 : fscanf(file, "%llu %llu", &all, &pages);
    if (file != NULL)
        fclose(file);
    if (found != 2) {
        print_message("resident memory cannot be told here\n");
        skip();
    }
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Bytes more than `before`, 0 for less. */
static inline uint64_t test_resident_since(uint64_t before) {
    uint64_t now = test_resident();
    return now > before ? now - before : 0;
}

#endif
