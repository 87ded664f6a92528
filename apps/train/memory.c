#include "train/memory.h"

#include <stdio.h>
#include <stdlib.h>

enum { PAGE = 4096 };

float *memory_floats(int64_t count) {
    if (count < 0 || count > INT64_MAX / 8) {
        return NULL;
    }
    size_t bytes = ((size_t)count * sizeof(float) + 63) / 64 * 64;
    return aligned_alloc(64, bytes ? bytes : 64);
}

size_t memory_page_bytes(int64_t count) { return ((size_t)count * sizeof(float) + PAGE - 1) / PAGE * PAGE; }

float *memory_pages(int64_t count) {
    if (count < 0 || count > INT64_MAX / 8) {
        return NULL;
    }
    return aligned_alloc(PAGE, count ? memory_page_bytes(count) : PAGE);
}

// A number in a file of the kernel; -1 where it cannot be read or says "max".
static int64_t read_number(const char *path, const char *format) {
    FILE *file = fopen(path, "r");
    if (!file) {
        return -1;
    }
    long long value = -1;
    char line[256];
    while (fgets(line, sizeof(line), file) && sscanf(line, format, &value) != 1) {
    }
    fclose(file);
    return value;
}

int64_t memory_available(void) {
    int64_t kibibytes = read_number("/proc/meminfo", "MemAvailable: %lld");
    int64_t available = kibibytes < 0 ? 0 : kibibytes * 1024;
    int64_t limit = read_number("/sys/fs/cgroup/memory.max", "%lld");
    int64_t used = read_number("/sys/fs/cgroup/memory.current", "%lld");
    if (limit > 0 && used >= 0 && (available == 0 || limit - used < available)) {
        available = limit > used ? limit - used : 1;
    }
    return available;
}

const char *memory_text(int64_t bytes, char text[32]) {
    static const char *units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1000.0 && unit < 5) {
        value /= 1024.0;
        unit++;
    }
    snprintf(text, 32, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return text;
}

float *arena_floats(struct arena *arena, int64_t count) {
    char *place = arena->base ? arena->base + arena->used : NULL;
    arena->used += (count * (int64_t)sizeof(float) + 63) / 64 * 64;
    return (float *)(void *)place;
}

enum app_status arena_allocate(struct arena *arena) {
    char needed[32];
    arena->base = aligned_alloc(64, (size_t)(arena->used ? arena->used : 64));
    if (!arena->base) {
        return app_fail(APP_FAILED,
                        "There is no memory for %s of activations; use a smaller --batch or --sequence-length.",
                        memory_text(arena->used, needed));
    }
    arena->used = 0;
    return APP_OK;
}

void arena_release(struct arena *arena) {
    free(arena->base);
    *arena = (struct arena){0};
}
