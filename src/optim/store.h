/*
 * store.h - the state store: planes of every tensor, allocated and freed under the byte cap, and the transitions
 * between widths.
 *
 * A transition happens inside a step. Before it, the planes that the new width needs and the old one lacks are
 * allocated; after it, those that only the old width had are freed. A transition whose new planes do not fit under the
 * cap waits for a later step.
 */
#ifndef STQ_STORE_H
#define STQ_STORE_H

#include "common/memory.h"
#include "quant/layout.h"

typedef struct stq_store {
    stq_pool pool;
    void *arena;           /* scale words of coded tensors, float32 states of exempt ones */
    uint64_t arena_bytes;  /* as requested */
    uint64_t record_bytes; /* the optimizer's own records, charged to the pool */
    stq_item *items;       /* tensor_count entries, owned by the optimizer; in-planes are the present state */
    size_t count;
    uint64_t global_fixed; /* bytes of the whole model that no width changes */
    uint64_t global_bytes; /* of the whole model at the present widths: what the cap is held against, so that slices of
                              it make their transitions in the same steps on every rank */
    uint64_t global_cap;   /* 0 = none */
} stq_store;

/* Bytes of the global tensors that do not depend on widths: arena and records, rounded up as the pool does. The same on
 * every rank, however the tensors are sliced. */
uint64_t stq_store_fixed_bytes(const stq_store *store, const bool *exempt, const stq_tensor *tensors);

/* Allocates the arena and points the items into it. Exempt tensors have no planes but float32 arrays from the first
 * step on. */
stq_status stq_store_open(stq_store *store, const bool *exempt);

/* Frees all planes and the arena. */
void stq_store_close(stq_store *store);

/* In-planes of one state (stq_state) of tensor `index`. */
stq_planes *stq_store_planes(stq_store *store, size_t index, int state);

/*
 * Sets the out-planes for one step: at targets[index][state] where the item has a gradient and new planes fit under the
 * cap, else as the in-planes. They go in the order of stq_policy_transition_phase(); promotions that only add planes
 * wait until no replacement of a base plane is waiting for room. Out of memory: a first allocation fails the call
 * (nothing is left allocated by it), a promotion is put off.
 */
stq_status stq_store_begin(stq_store *store, const uint8_t (*targets)[2]);

/*
 * Outside a step: frees all planes and allocates those of widths[index][state] (0 = no state; 32 exactly where exempt).
 * Contents are undefined. STQ_CAP_TOO_SMALL leaves everything as it was, STQ_OUT_OF_MEMORY no state at all.
 */
stq_status stq_store_set_widths(stq_store *store, const uint8_t (*widths)[2]);

/* Commits one state before the update pass: its out-planes have their contents already. */
void stq_store_settle(stq_store *store, size_t index, int state);

/* After the update pass: frees what only the in-planes had; the out-planes become the in-planes. */
void stq_store_commit(stq_store *store);

/* Instead of commit when the pass was not made: frees what only the out-planes had. */
void stq_store_revert(stq_store *store);

#endif
