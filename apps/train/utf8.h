// UTF-8, strictly: no overlong forms, no surrogates, nothing above U+10FFFF.
#ifndef STQUANT_TRAIN_UTF8_H
#define STQUANT_TRAIN_UTF8_H

#include <stddef.h>
#include <stdint.h>

// The character at `bytes`, of which `count` may be read (at least 1): its length in bytes, and
// *character; 0 where there is none.
size_t utf8_decode(const uint8_t *bytes, size_t count, uint32_t *character);

// Position of the first byte that is not part of a character; `count` where all is well.
size_t utf8_first_error(const uint8_t *bytes, size_t count);

#endif
