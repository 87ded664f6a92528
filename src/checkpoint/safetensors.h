/*
 * safetensors.h - one safetensors file: 8 bytes of header length (little-endian), a JSON header, the data. The reader
 * accepts what the format's reference implementation accepts and nothing else: data without holes or overlap that ends
 * with the file.
 */
#ifndef STQ_SAFETENSORS_H
#define STQ_SAFETENSORS_H

#include <jansson.h>
#include <stquant/checkpoint.h>

#include "checkpoint/file.h"

/* Longest header, as in the reference implementation. */
#define STQ_LONGEST_HEADER UINT64_C(100000000)

/* The header's length field, and what it is padded to a multiple of: so much, or a page where there is much data. */
enum { STQ_HEADER_LENGTH_BYTES = 8, STQ_HEADER_ALIGNMENT = 64 };

/* Bytes of an element of a safetensors type ("F32", "U8", ...), 0 for an unknown one. */
uint32_t stq_type_bytes(const char *type);

/* The type's name for a stq_dtype. */
const char *stq_type_name(stq_dtype type);

/* True if `type` is a stq_dtype, which goes to *dtype. */
bool stq_type_dtype(const char *type, stq_dtype *dtype);

/* UTF-8 (checked by the JSON parser) without control characters, 1 to 1,000 bytes. */
bool stq_name_is_plain(const char *name);

/* Checks name, element type, dimensions and shape of an array to be written; *elements receives how many it has. */
stq_status stq_array_check(const stq_array *array, int64_t *elements);

/* One tensor of a file. */
typedef struct stq_entry {
    const char *name; /* owned by the header */
    const char *type;
    uint32_t dimensions;
    int64_t shape[STQ_DIMENSIONS];
    uint64_t begin; /* in the data section */
    uint64_t bytes;
} stq_entry;

typedef struct stq_header {
    json_t *root;        /* owns all strings */
    uint64_t data_start; /* offset of the data section in the file */
    stq_entry *entries;  /* by offset; NULL where there are none */
    size_t count;
    const char *metadata; /* __metadata__.stquant, or NULL */
} stq_header;

/*
 * Reads and parses the header of an open file of `file_bytes` bytes; *checksum receives XXH3 of everything before the
 * data. Another than *expected (NULL: none is) is refused before anything is parsed. `path` is for messages.
 * STQ_CORRUPT says what is wrong and where; nothing stays allocated then.
 */
stq_status stq_header_read(stq_header *header, int descriptor, uint64_t file_bytes, const char *path,
                           const uint64_t *expected, uint64_t *checksum);

void stq_header_release(stq_header *header);

/*
 * The first data_start bytes of a file with these entries, whose `begin` and `bytes` are set. `metadata` is an object
 * of strings or NULL; it is not taken over. *header is fresh memory of *bytes bytes.
 */
stq_status stq_header_format(const stq_entry *entries, size_t count, json_t *metadata, char **header, uint64_t *bytes);

/* XXH3, 64 bits, seed 0. */
uint64_t stq_checksum(const void *data, uint64_t bytes);

/* The same in pieces. */
typedef struct stq_checksum_state stq_checksum_state;
stq_checksum_state *stq_checksum_begin(void); /* NULL without memory */
void stq_checksum_add(stq_checksum_state *state, const void *data, uint64_t bytes);
uint64_t stq_checksum_end(stq_checksum_state *state); /* frees; NULL is allowed */

#endif
