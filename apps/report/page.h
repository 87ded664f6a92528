// The HTML page as it grows in memory.
#ifndef STQUANT_REPORT_PAGE_H
#define STQUANT_REPORT_PAGE_H

#include <stddef.h>
#include <stdint.h>

#include "train/failure.h"

// Zero-initialise it. Without memory `failed` is set and everything after that is dropped; page_write tells.
struct page {
    char *bytes;
    size_t count, capacity;
    int failed;
    int pictures; // numbers what needs a name of its own on the page
};

// Appends formatted text, as it is.
__attribute__((format(printf, 2, 3))) void page_add(struct page *page, const char *format, ...);

// Appends text for HTML and SVG: &, <, > and quotes are written as entities, and what is not UTF-8 or a control
// character as a question mark.
void page_text(struct page *page, const char *text);

// Appends a number in the shortest form with up to `digits` digits behind the point.
void page_number(struct page *page, double value, int digits);

// Writes the page under a temporary name and renames it.
enum app_status page_write(const struct page *page, const char *path);

void page_release(struct page *page);

// "1,234,567" into `text`, which is returned.
const char *page_integer(int64_t value, char text[32]);

#endif
