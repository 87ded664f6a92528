/*
 * document.h - what a part says about itself: the JSON object in __metadata__.stquant of its header. docs/format.md has
 * every member.
 */
#ifndef STQ_DOCUMENT_H
#define STQ_DOCUMENT_H

#include <jansson.h>
#include <stquant/checkpoint.h>

/* A tensor of the optimizer, and the slice of it that this part holds. */
typedef struct stq_saved_tensor {
    stq_tensor tensor; /* name owned by the document; first and count are the part's */
    stq_tensor_record record;
} stq_saved_tensor;

typedef struct stq_document {
    json_t *root; /* owns all strings; NULL where the document was not read from a file */
    uint32_t format_version;
    int64_t step;
    uint32_t rank;
    uint32_t ranks;
    uint64_t run;
    stq_adamw_record record; /* with tensor_count > 0 */
    stq_adamw_group *groups;
    size_t group_count;
    stq_saved_tensor *tensors;
    size_t tensor_count; /* 0 = no states */
    stq_array *arrays;   /* of this part; data is NULL */
    size_t array_count;
    json_t *application; /* borrowed from root */
    json_t *checksums;   /* entry name -> 16 hexadecimal digits; borrowed from root */
} stq_document;

/* Reads the document of a file of `file_bytes` bytes, `what` for messages. On failure nothing stays allocated. */
stq_status stq_document_parse(stq_document *document, const char *text, uint64_t file_bytes, const char *what);

/* The JSON object of a document, with an empty "checksums" to be filled in (`root` and `checksums` of the document are
 * not used). `policy` is the optimizer's configuration, told for readers' information; NULL without states. */
stq_status stq_document_format(const stq_document *document, const stq_policy_config *policy, json_t **root);

void stq_document_release(stq_document *document);

/* Elements of a shape, which is known not to overflow. */
int64_t stq_shape_elements(uint32_t dimensions, const int64_t *shape);

/* Name of an array's entry: its own, or name@first for a part, written to `name`. False if it does not fit. */
bool stq_array_entry_name(const stq_array *array, char *name, size_t size);

/* Name of a state's entry: state.TENSOR.PART, and @first for a slice. */
bool stq_state_entry_name(const stq_tensor *tensor, const char *part, char *name, size_t size);

/* Room for any entry's name. */
enum { STQ_ENTRY_NAME = 1100 };

#endif
