#include "report/page.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/utf8.h"
#include "train/whole_file.h"

// Makes room for `more` bytes and a final zero.
static int reserve(struct page *page, size_t more) {
    if (page->failed) {
        return 0;
    }
    if (page->count + more + 1 > page->capacity) {
        const size_t capacity = 2 * (page->count + more) + (1 << 16);
        char *bytes = realloc(page->bytes, capacity);
        if (!bytes) {
            page->failed = 1;
            return 0;
        }
        page->bytes = bytes;
        page->capacity = capacity;
    }
    return 1;
}

static void append(struct page *page, const char *bytes, size_t count) {
    if (reserve(page, count)) {
        memcpy(page->bytes + page->count, bytes, count);
        page->count += count;
    }
}

void page_add(struct page *page, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    const int length = vsnprintf(NULL, 0, format, arguments);
    if (length >= 0 && reserve(page, (size_t)length)) {
        vsnprintf(page->bytes + page->count, (size_t)length + 1, format, again);
        page->count += (size_t)length;
    }
    va_end(again);
    va_end(arguments);
}

void page_text(struct page *page, const char *text) {
    const uint8_t *bytes = (const uint8_t *)text;
    for (size_t left = strlen(text); left > 0;) {
        uint32_t character;
        const size_t length = utf8_decode(bytes, left, &character);
        const int control = length && (character < 0x20 || (character >= 0x7f && character < 0xa0));
        const char *entity = !length                                             ? "?"
                             : control && character != '\n' && character != '\t' ? "?"
                             : character == '&'                                  ? "&amp;"
                             : character == '<'                                  ? "&lt;"
                             : character == '>'                                  ? "&gt;"
                             : character == '"'                                  ? "&quot;"
                                                                                 : NULL;
        append(page, entity ? entity : (const char *)bytes, entity ? strlen(entity) : length);
        bytes += length ? length : 1;
        left -= length ? length : 1;
    }
}

void page_number(struct page *page, double value, int digits) {
    char text[64];
    int length = snprintf(text, sizeof(text), "%.*f", digits, value);
    while (digits > 0 && text[length - 1] == '0') {
        length--;
    }
    length -= digits > 0 && text[length - 1] == '.';
    if (length == 2 && text[0] == '-' && text[1] == '0') {
        append(page, "0", 1);
    } else {
        append(page, text, (size_t)length);
    }
}

const char *page_integer(int64_t value, char text[32]) {
    char plain[24];
    const int length = snprintf(plain, sizeof(plain), "%lld", (long long)value), negative = plain[0] == '-';
    int out = 0;
    for (int i = 0; i < length; i++) {
        if (i > negative && (length - i) % 3 == 0) {
            text[out++] = ',';
        }
        text[out++] = plain[i];
    }
    text[out] = 0;
    return text;
}

enum app_status page_write(const struct page *page, const char *path) {
    struct whole_file file;
    if (page->failed) {
        return app_fail(APP_FAILED, "There is no memory for the report.");
    }
    enum app_status status = whole_file_open(path, &file);
    if (status == APP_OK) {
        status = whole_file_finish(&file, fwrite(page->bytes, 1, page->count, file.stream) == page->count);
    }
    return status;
}

void page_release(struct page *page) {
    free(page->bytes);
    *page = (struct page){0};
}
