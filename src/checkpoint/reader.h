/* reader.h - an opened checkpoint. */
#ifndef STQ_READER_H
#define STQ_READER_H

#include "checkpoint/document.h"
#include "checkpoint/index.h"
#include "checkpoint/safetensors.h"

typedef struct stq_part_file {
    char *path;
    const char *name; /* inside path */
    uint64_t bytes;
    stq_header header;
    stq_document document; /* of a file of another origin: made from its entries */
    bool ours;
} stq_part_file;

/* A part of an array or of a tensor's state. */
typedef struct stq_slice {
    size_t owner; /* index of the array or tensor */
    size_t file;
    int64_t first;
    int64_t count;
} stq_slice;

/* Slices sorted by owner and first element; those of owner i are at start[i] .. start[i + 1] - 1. */
typedef struct stq_slices {
    stq_slice *list;
    size_t *start;
    size_t count;
} stq_slices;

struct stq_checkpoint {
    char *path;
    stq_index index; /* of nothing where a single file is open */
    stq_part_file *files;
    size_t file_count;
    json_t *entries; /* entry name -> [file, place in its header] */
    stq_array *arrays;
    size_t array_count;
    stq_slices array_slices;
    stq_slices tensor_slices; /* of the tensors of files[0].document */
    char *application;
    uint64_t bytes;
};

/* The entry of an array's slice. */
const stq_entry *stq_array_slice_entry(const stq_checkpoint *c, const stq_slice *slice);

/* The tensor with the slice's place, as its file's document has it. */
const stq_saved_tensor *stq_slice_tensor(const stq_checkpoint *c, const stq_slice *slice);

/* The entry of one part of a tensor slice's state ("m.base", ...); STQ_PART_VALUES also finds PyTorch's moments. */
const stq_entry *stq_state_slice_entry(const stq_checkpoint *c, const stq_slice *slice, stq_state state, stq_part part);

/* The checksum that an entry must have. False where the file is of another origin. */
bool stq_expected_checksum(const stq_part_file *file, const stq_entry *entry, uint64_t *checksum);

/* A document for a file of another origin: its float arrays, and PyTorch's AdamW states where they are named as
 * docs/format.md has it. `descriptor` is open for the steps. */
stq_status stq_foreign_document(stq_part_file *file, int descriptor);

/* Is given the bytes of an entry from `offset` on, in order. */
typedef stq_status (*stq_sink)(void *context, uint64_t offset, const void *data, uint64_t bytes);

/*
 * Reads an entry and verifies its checksum. The bytes go to `direct` (room for all of them) where it is not NULL, else
 * to `sink` piece by piece; the sink may be NULL, too.
 */
stq_status stq_read_entry(const stq_part_file *file, const stq_entry *entry, void *direct, stq_sink sink,
                          void *context);

/* Memory for `bytes` bytes, to be freed; much of it in large pages, which fresh memory gets at a fraction of the
 * faults. */
void *stq_allocate_large(uint64_t bytes);

/* Threads for reading much of a checkpoint: more than cores where it is large. */
int stq_reader_threads(const stq_checkpoint *c);

/* Runs job(context, 0 .. count - 1) on `threads` OpenMP threads; the first failure is returned with its sentence, and
 * jobs that have not begun are left out. */
stq_status stq_run_jobs(stq_status (*job)(void *context, size_t index), void *context, size_t count, int threads);

#endif
