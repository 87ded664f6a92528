/*
 * index.h - model.safetensors.index.json: which file holds which tensor, as the ecosystem has it, and under
 * metadata.stquant the size and the header's checksum of every file, and a checksum of the index itself.
 */
#ifndef STQ_INDEX_H
#define STQ_INDEX_H

#include <jansson.h>
#include <stquant/base.h>

#define STQ_INDEX_NAME "model.safetensors.index.json"

/* One file of a checkpoint. */
typedef struct stq_index_file {
    const char *name; /* owned by the index; no folder in it */
    uint64_t bytes;
    uint64_t checksum; /* XXH3 of everything before the data */
    bool has_checksum; /* false in indices of another origin */
} stq_index_file;

typedef struct stq_index {
    json_t *root;
    stq_index_file *files; /* by name */
    size_t count;
    uint64_t bytes; /* of the index itself */
    int64_t step;
    bool ours; /* has metadata.stquant */
} stq_index;

/* Parses an index. `path` is for messages. On failure nothing stays allocated. */
stq_status stq_index_parse(stq_index *index, const char *text, uint64_t bytes, const char *path);

/* Reads and parses a file. */
stq_status stq_index_read(stq_index *index, const char *path);

void stq_index_release(stq_index *index);

/* The text of an index. `weight_map` (entry name -> file name) is taken over. *text is fresh memory. */
stq_status stq_index_format(const stq_index_file *files, size_t count, int64_t step, uint64_t total_bytes,
                            json_t *weight_map, char **text);

/* "model-00001-of-00004.safetensors" for rank 0 of 4, to a buffer of STQ_PART_NAME bytes. */
enum { STQ_PART_NAME = 64 };
void stq_part_file_name(uint32_t rank, uint32_t ranks, char *name);

#endif
