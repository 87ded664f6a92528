/* file.h - reading and writing files whole, with failures that name the path. */
#ifndef STQ_FILE_H
#define STQ_FILE_H

#include <stquant/base.h>

/* STQ_IO_ERROR: "Cannot <action> <path>: <reason>." */
stq_status stq_file_error(const char *action, const char *path, int error);

/* folder/name in fresh memory, or NULL without memory. */
char *stq_path_join(const char *folder, const char *name);

/* Opens for reading; *size receives the file's size. Folders and devices are refused. */
stq_status stq_file_open(const char *path, int *descriptor, uint64_t *size);

/* Reads `bytes` bytes from `offset` on. A file that ends before is STQ_CORRUPT. */
stq_status stq_file_read(int descriptor, const char *path, void *data, uint64_t bytes, uint64_t offset);

/*
 * Makes a descriptor read past the page cache, which is faster and leaves the cache to others, where the system can do
 * that and these bytes are not in the cache already. Then only stq_file_read_pages() may read from it; else false.
 */
bool stq_file_read_directly(int descriptor, uint64_t offset, uint64_t bytes);

/*
 * Reads the whole pages around `bytes` bytes at `offset` to `pages`, which is aligned to STQ_FILE_PAGE and has room for
 * two pages more; *data is where the bytes begin there. A file that ends before them is STQ_CORRUPT.
 */
stq_status stq_file_read_pages(int descriptor, const char *path, uint8_t *pages, uint64_t bytes, uint64_t offset,
                               const uint8_t **data);

/* A whole file of at most `limit` bytes in fresh memory, with a zero byte behind it. */
stq_status stq_file_load(const char *path, uint64_t limit, char **text, uint64_t *bytes);

/* What has more than STQ_LARGE_FILE bytes is written and read in whole pages, past the page cache. */
enum { STQ_FILE_PAGE = 4096, STQ_LARGE_FILE = 1 << 20 };

/* One piece of a file to be written. */
typedef struct stq_piece {
    const void *data;
    uint64_t bytes;
} stq_piece;

/*
 * Makes `name` in the folder open as `folder` (whose path is for messages) from the pieces: written under
 * a random name, which nobody else has on whatever host, synced, renamed, and the folder synced. On failure nothing is
 * left behind and an earlier file of that name stays.
 */
stq_status stq_file_make(int folder, const char *path, const char *name, const stq_piece *pieces, size_t count);

/* Opens a folder (O_DIRECTORY). */
stq_status stq_folder_open(const char *path, int *descriptor);

/* Makes a folder and those above it. */
stq_status stq_folder_make(const char *path);

/* Makes what happened to the folder's entries durable. */
stq_status stq_folder_sync(int descriptor, const char *path);

/* Removes a folder that holds files only; what cannot be removed stays. */
void stq_folder_remove(int parent, const char *name);

#endif
