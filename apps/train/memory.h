// Memory of the trainer: aligned buffers, an arena for activations that is sized before the run, and
// what the machine has left.
#ifndef STQUANT_TRAIN_MEMORY_H
#define STQUANT_TRAIN_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "train/failure.h"

// `count` floats, aligned to 64 bytes, not initialised; null without memory. Released by free().
float *memory_floats(int64_t count);

// The same on whole pages of 4 KiB, which it shares with nothing else, and their bytes.
float *memory_pages(int64_t count);
size_t memory_page_bytes(int64_t count);

// Bytes that can be allocated without swapping: the kernel's MemAvailable, or what the control
// group leaves where that is less. 0 where neither can be read.
int64_t memory_available(void);

// "12.3 GiB", "640.0 MiB" or "17 bytes" into `text`, which is returned.
const char *memory_text(int64_t bytes, char text[32]);

// Activations. Placing them twice with the same calls, first with `base` null, gives the size: a
// model describes its buffers in one function, which runs once to count and once to place.
struct arena {
    char *base;   // null while counting
    int64_t used; // bytes
};

// The next `count` floats of the arena, aligned to 64 bytes; null while counting.
float *arena_floats(struct arena *arena, int64_t count);

// Allocates arena->used bytes (counted before) and rewinds, ready for placing.
enum app_status arena_allocate(struct arena *arena);

void arena_release(struct arena *arena);

#endif
