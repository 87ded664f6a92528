/* gpu_csv.h - the CSV file that a GPU benchmark is asked for. */
#ifndef GPU_CSV_H
#define GPU_CSV_H

#include <stdio.h>

/* Opens the file anew ("w") or to append ("a"); an empty one begins with the header. NULL where `path` is NULL, and,
 * with a message, where the file cannot be written. */
static inline FILE *gpu_csv_open(const char *path, const char *mode, const char *header) {
    FILE *csv = path ? fopen(path, mode) : NULL;
    if (path && !csv)
        perror(path);
    if (csv && ftell(csv) == 0)
        fprintf(csv, "%s\n", header);
    return csv;
}

#endif
