/* checksum.c - XXH3 by the xxHash library's header, compiled in: no run-time dependency. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "checkpoint/safetensors.h"

struct stq_checksum_state {
    XXH3_state_t *xxh3;
};

uint64_t stq_checksum(const void *data, uint64_t bytes) { return XXH3_64bits(data, (size_t)bytes); }

stq_checksum_state *stq_checksum_begin(void) {
    stq_checksum_state *state = malloc(sizeof *state);
    if (state == NULL)
        return NULL;
    state->xxh3 = XXH3_createState();
    if (state->xxh3 == NULL) {
        free(state);
        return NULL;
    }
    XXH3_64bits_reset(state->xxh3);
    return state;
}

void stq_checksum_add(stq_checksum_state *state, const void *data, uint64_t bytes) {
    XXH3_64bits_update(state->xxh3, data, (size_t)bytes);
}

uint64_t stq_checksum_end(stq_checksum_state *state) {
    if (state == NULL)
        return 0;
    uint64_t value = XXH3_64bits_digest(state->xxh3);
    XXH3_freeState(state->xxh3);
    free(state);
    return value;
}
