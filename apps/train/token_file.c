#include "train/token_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "train/whole_file.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Token files are mapped as they are, and their numbers are little-endian."
#endif

enum { VERSION = 1, ALIGNMENT = 64, TOKENS_AT_ONCE = 1 << 16 };

static const char magic[8] = {'s', 't', 'q', 't', 'o', 'k', 'e', 'n'};

// The first 64 bytes of a file.
struct header {
    char magic[8];
    uint32_t version;
    uint32_t token_bytes;
    int64_t count;
    int64_t documents;
    int64_t merges;
    int64_t tokens_at;   // offset of the first token, a multiple of 64
    uint32_t tokens_crc; // CRC-32 of the tokens
    uint32_t merges_crc; // of the merges
    uint32_t reserved;   // 0
    uint32_t header_crc; // of the 60 bytes before
};
_Static_assert(sizeof(struct header) == 64, "the header has 64 bytes and no gaps");

static uint32_t checksum(uint32_t before, const void *bytes, size_t count) {
    return (uint32_t)crc32_z(before, bytes, count);
}

static int64_t tokens_offset(int64_t merges) {
    const int64_t end = (int64_t)sizeof(struct header) + merges * (int64_t)sizeof(struct merge);
    return (end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

int token_file_recognise(const char *path) {
    char start[sizeof(magic)] = {0};
    FILE *file = fopen(path, "rb");
    const size_t count = file ? fread(start, 1, sizeof(start), file) : 0;
    if (file) {
        fclose(file);
    }
    return count == sizeof(start) && memcmp(start, magic, sizeof(magic)) == 0;
}

static enum app_status check_header(const char *path, const struct header *header, int64_t bytes) {
    if (bytes < (int64_t)sizeof(*header) || memcmp(header->magic, magic, sizeof(magic)) != 0) {
        return app_fail(APP_FAILED, "%s is no token file; `stquant data prepare` makes one out of text.", path);
    }
    if (header->version != VERSION) {
        return app_fail(APP_FAILED,
                        "%s is a token file of version %u, and this program reads version %d; prepare it again.", path,
                        header->version, VERSION);
    }
    if (header->header_crc != checksum(0, header, offsetof(struct header, header_crc)) ||
        (header->token_bytes != 2 && header->token_bytes != 4) || header->count < 0 || header->documents < 0 ||
        header->merges < 0 || header->merges > (1 << 24) || header->tokens_at != tokens_offset(header->merges) ||
        header->count > (INT64_MAX - header->tokens_at) / header->token_bytes) {
        return app_fail(APP_FAILED, "%s is damaged: its header contradicts itself; prepare it again.", path);
    }
    const int64_t expected = header->tokens_at + header->count * header->token_bytes;
    if (bytes != expected) {
        return app_fail(APP_FAILED, "%s has %lld bytes and should have %lld; it was not copied whole.", path,
                        (long long)bytes, (long long)expected);
    }
    return APP_OK;
}

// Checks what is mapped and sets the fields.
static enum app_status read_mapping(const char *path, struct token_file *file) {
    const struct header *header = file->mapping;
    enum app_status status = check_header(path, header, (int64_t)file->mapping_bytes);
    if (status != APP_OK) {
        return status;
    }
    const struct merge *merges = (const struct merge *)(header + 1);
    if (header->merges_crc != checksum(0, merges, (size_t)header->merges * sizeof(*merges))) {
        return app_fail(APP_FAILED, "%s is damaged: its list of merges has another checksum; prepare it again.", path);
    }
    file->merges = merges;
    file->tokens = (const char *)file->mapping + header->tokens_at;
    file->token_bytes = (int)header->token_bytes;
    file->count = header->count;
    file->documents = header->documents;
    file->vocabulary = TOKENIZER_BYTES + header->merges + 1;
    return APP_OK;
}

enum app_status token_file_open(const char *path, struct token_file *file) {
    struct stat information;
    *file = (struct token_file){0};
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0 || fstat(descriptor, &information) != 0) {
        const int reason = errno;
        if (descriptor >= 0) {
            close(descriptor);
        }
        return app_fail(APP_FAILED, "Cannot read %s: %s.", path, strerror(reason));
    }
    if (!S_ISREG(information.st_mode) || information.st_size < (off_t)sizeof(struct header)) {
        close(descriptor);
        return app_fail(APP_FAILED, "%s is no token file; `stquant data prepare` makes one out of text.", path);
    }
    void *mapping = mmap(NULL, (size_t)information.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
    const int reason = errno;
    close(descriptor);
    if (mapping == MAP_FAILED) {
        return app_fail(APP_FAILED, "Cannot map %s into memory: %s.", path, strerror(reason));
    }
    file->mapping = mapping;
    file->mapping_bytes = (size_t)information.st_size;
    enum app_status status = read_mapping(path, file);
    if (status != APP_OK) {
        token_file_close(file);
    }
    return status;
}

enum app_status token_file_check(const char *path, const struct token_file *file) {
    const struct header *header = file->mapping;
    if (checksum(0, file->tokens, (size_t)(file->count * file->token_bytes)) != header->tokens_crc) {
        return app_fail(APP_FAILED, "%s is damaged: its tokens have another checksum; prepare it again.", path);
    }
    for (int64_t i = 0; i < file->count; i++) {
        const int32_t token = token_file_get(file, i);
        if (token < 0 || token >= file->vocabulary) {
            return app_fail(APP_FAILED, "%s is damaged: token %lld is %d, and there are %lld; prepare it again.", path,
                            (long long)i, (int)token, (long long)file->vocabulary);
        }
    }
    return APP_OK;
}

void token_file_close(struct token_file *file) {
    if (file->mapping) {
        munmap(file->mapping, file->mapping_bytes);
    }
    *file = (struct token_file){0};
}

struct token_writer {
    struct whole_file file;
    struct header header;
    int32_t end; // token that ends a document
};

// Header (still without counts), merges and the gap up to the tokens.
static int write_start(struct token_writer *writer, const struct merge *merges) {
    static const char zeros[ALIGNMENT] = {0};
    const struct header *header = &writer->header;
    const size_t count = (size_t)header->merges;
    const size_t gap = (size_t)header->tokens_at - sizeof(*header) - count * sizeof(*merges);
    FILE *stream = writer->file.stream;
    return fwrite(header, sizeof(*header), 1, stream) == 1 && fwrite(merges, sizeof(*merges), count, stream) == count &&
           fwrite(zeros, 1, gap, stream) == gap;
}

enum app_status token_writer_open(const char *path, const struct tokenizer *tokenizer, struct token_writer **result) {
    *result = NULL;
    struct token_writer *writer = calloc(1, sizeof(*writer));
    if (!writer) {
        return app_fail(APP_FAILED, "There is no memory for writing %s.", path);
    }
    enum app_status status = whole_file_open(path, &writer->file);
    if (status != APP_OK) {
        free(writer);
        return status;
    }
    const int64_t vocabulary = tokenizer_vocabulary(tokenizer), merges = vocabulary - TOKENIZER_BYTES - 1;
    const struct merge *list = tokenizer_merges(tokenizer);
    writer->end = tokenizer_end(tokenizer);
    writer->header = (struct header){.version = VERSION,
                                     .token_bytes = vocabulary <= 65536 ? 2 : 4,
                                     .merges = merges,
                                     .tokens_at = tokens_offset(merges),
                                     .merges_crc = checksum(0, list, (size_t)merges * sizeof(*list))};
    memcpy(writer->header.magic, magic, sizeof(magic));
    if (!write_start(writer, list)) {
        status = whole_file_failed(&writer->file, errno);
        token_writer_abandon(writer);
        return status;
    }
    *result = writer;
    return APP_OK;
}

// Up to TOKENS_AT_ONCE tokens in the file's width.
static enum app_status write_some(struct token_writer *writer, const int32_t *tokens, size_t count) {
    uint16_t narrow[TOKENS_AT_ONCE];
    const void *bytes = tokens;
    if (writer->header.token_bytes == 2) {
        for (size_t i = 0; i < count; i++) {
            narrow[i] = (uint16_t)tokens[i];
        }
        bytes = narrow;
    }
    if (fwrite(bytes, writer->header.token_bytes, count, writer->file.stream) != count) {
        return whole_file_failed(&writer->file, errno);
    }
    writer->header.tokens_crc = checksum(writer->header.tokens_crc, bytes, count * writer->header.token_bytes);
    writer->header.count += (int64_t)count;
    return APP_OK;
}

enum app_status token_writer_add(struct token_writer *writer, const int32_t *tokens, int64_t count) {
    enum app_status status = APP_OK;
    for (int64_t first = 0; first < count && status == APP_OK; first += TOKENS_AT_ONCE) {
        const int64_t left = count - first;
        status = write_some(writer, tokens + first, (size_t)(left < TOKENS_AT_ONCE ? left : TOKENS_AT_ONCE));
    }
    if (status == APP_OK) {
        status = write_some(writer, &writer->end, 1);
        writer->header.documents++;
    }
    return status;
}

enum app_status token_writer_finish(struct token_writer *writer) {
    struct header *header = &writer->header;
    header->header_crc = checksum(0, header, offsetof(struct header, header_crc));
    FILE *stream = writer->file.stream;
    const int written = fseeko(stream, 0, SEEK_SET) == 0 && fwrite(header, sizeof(*header), 1, stream) == 1;
    enum app_status status = whole_file_finish(&writer->file, written);
    free(writer);
    return status;
}

void token_writer_abandon(struct token_writer *writer) {
    if (writer) {
        whole_file_abandon(&writer->file);
        free(writer);
    }
}
