#include "train/utf8.h"

#include <string.h>

size_t utf8_decode(const uint8_t *bytes, size_t count, uint32_t *character) {
    static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    const uint8_t first = bytes[0];
    if (first < 0x80) {
        *character = first;
        return 1;
    }
    const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || length > count) {
        return 0;
    }
    uint32_t value = first & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80) {
            return 0;
        }
        value = value << 6 | (bytes[i] & 0x3f);
    }
    if (value < smallest[length] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) {
        return 0;
    }
    *character = value;
    return length;
}

size_t utf8_first_error(const uint8_t *bytes, size_t count) {
    size_t at = 0;
    while (at < count) {
        uint64_t eight;
        // Most text is ASCII: eight bytes at a time.
        if (at + sizeof(eight) <= count) {
            memcpy(&eight, bytes + at, sizeof(eight));
            if (!(eight & 0x8080808080808080u)) {
                at += sizeof(eight);
                continue;
            }
        }
        uint32_t character;
        const size_t length = utf8_decode(bytes + at, count - at, &character);
        if (length == 0) {
            return at;
        }
        at += length;
    }
    return at;
}
