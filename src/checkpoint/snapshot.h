/* snapshot.h - a copy of everything that one rank saves, and its way into a file. */
#ifndef STQ_SNAPSHOT_H
#define STQ_SNAPSHOT_H

#include "checkpoint/document.h"
#include "checkpoint/safetensors.h"

typedef struct stq_snapshot {
    json_t *document;   /* the values of "checksums" are null until the part is written */
    stq_entry *entries; /* their names are owned */
    size_t count;
    uint8_t *data;     /* the data section; kept for the next save */
    uint64_t capacity; /* bytes that `data` has room for */
    uint64_t bytes;
} stq_snapshot;

/* Who saves. */
typedef struct stq_snapshot_origin {
    uint32_t rank;
    uint32_t ranks;
    uint64_t run;
} stq_snapshot_origin;

/* Copies what `save` points to, into zeros or a snapshot that was released. On failure it is released. */
stq_status stq_snapshot_copy(stq_snapshot *snapshot, const stq_save *save, const stq_snapshot_origin *origin);

/* Hashes the entries and writes the file `name` into the open folder; *bytes receives its size. */
stq_status stq_snapshot_write(stq_snapshot *snapshot, int folder, const char *path, const char *name, uint64_t *bytes);

/* Frees everything but the memory of the data: fresh memory takes the system longer to give than the copy takes. */
void stq_snapshot_release(stq_snapshot *snapshot);

void stq_snapshot_free(stq_snapshot *snapshot);

#endif
