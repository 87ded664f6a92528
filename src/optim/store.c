/* store.c - planes under the cap, and transitions. */
#include "optim/store.h"

#include <string.h>

#include "common/error.h"
#include "policy/policy.h"
#include "quant/shared.h"

enum { ALIGNMENT = 64 };

/* Kinds of memory: the arena, and of either state what a change of widths makes or frees for many tensors at once, so
 * that whole pages come and go. */
enum { ARENA, NARROW_BASE, WIDE_BASE, FIRST_BIT, SHARED = FIRST_BIT + 4, KINDS_OF_STATE = SHARED };
_Static_assert(1 + 2 * KINDS_OF_STATE == STQ_POOL_KINDS, "memory.h counts the kinds");

/* Arena bytes of one state of `count` values. */
static uint64_t arena_share(int64_t count, bool exempt) {
    if (exempt)
        return stq_round_up(stq_plane_bytes(count, STQ_BITS_FLOAT32, 0), ALIGNMENT);
    return stq_round_up((uint64_t)stq_block_count(count) * sizeof(uint16_t), ALIGNMENT);
}

static uint64_t arena_size(const stq_store *store, const bool *exempt) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < store->count; i++)
        bytes += 2 * arena_share(store->items[i].count, exempt[i]);
    return bytes;
}

uint64_t stq_store_fixed_bytes(const stq_store *store, const bool *exempt, const stq_tensor *tensors) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < store->count; i++)
        bytes += 2 * arena_share(tensors[i].rows * tensors[i].cols, exempt[i]);
    return stq_pool_charge(&store->pool, bytes) + store->record_bytes;
}

stq_planes *stq_store_planes(stq_store *store, size_t index, int state) {
    return state == STQ_FIRST_MOMENT ? &store->items[index].m_in : &store->items[index].v_in;
}

static stq_planes *out_planes(stq_store *store, size_t index, int state) {
    return state == STQ_FIRST_MOMENT ? &store->items[index].m_out : &store->items[index].v_out;
}

stq_status stq_store_open(stq_store *store, const bool *exempt) {
    store->global_bytes = store->global_fixed;
    stq_pool_charge_record(&store->pool, store->record_bytes);
    store->arena_bytes = arena_size(store, exempt);
    STQ_CHECK(stq_pool_allocate(&store->pool, ARENA, store->arena_bytes, &store->arena));
    uint8_t *next = store->arena;
    for (size_t i = 0; i < store->count; i++) {
        for (int state = 0; state < 2; state++) {
            stq_planes *out = out_planes(store, i, state);
            *stq_store_planes(store, i, state) = (stq_planes){.bits = 0};
            *out = (stq_planes){.bits = 0};
            if (exempt[i])
                out->base = next;
            else
                out->scales = (uint16_t *)(void *)next;
            next += arena_share(store->items[i].count, exempt[i]);
        }
    }
    return STQ_OK;
}

static void set_plane(stq_planes *planes, uint32_t k, uint8_t *pointer) {
    if (k == 0)
        planes->base = pointer;
    else
        planes->bit[k - 1] = pointer;
}

/* Widths whose planes come from the pool. */
static bool pooled(uint32_t bits) { return stq_is_coded(bits) || stq_is_shared(bits); }

/* Allocations of a width, and their bytes for a slice of `count` values; a shared v has one, whatever the slice. */
static uint32_t pieces(uint32_t bits) { return stq_is_shared(bits) ? 1 : stq_plane_count(bits); }

static uint64_t piece_bytes(const stq_item *item, int64_t count, uint32_t bits, uint32_t k) {
    if (stq_is_shared(bits))
        return k == 0 ? (uint64_t)stq_shared_bytes(bits, item->rows, item->cols) : 0;
    return stq_plane_bytes(count, bits, k);
}

/* Kind of plane k. */
static uint32_t kind_of(int state, uint32_t bits, uint32_t k) {
    uint32_t base = stq_plane_bytes(STQ_BLOCK, bits, 0) == stq_plane_bytes(STQ_BLOCK, 2, 0) ? NARROW_BASE : WIDE_BASE;
    uint32_t kind = stq_is_shared(bits) ? SHARED : k == 0 ? base : FIRST_BIT + k - 1;
    return kind + (state == STQ_SECOND_MOMENT ? KINDS_OF_STATE : 0);
}

/* True if plane k of a state at `from` bits serves at `to` bits too: bit planes always, base planes of the same kind.
 */
static bool plane_stays(uint32_t from, uint32_t to, uint32_t k, int64_t count) {
    return stq_is_coded(from) && stq_is_coded(to) && stq_plane_bytes(count, from, k) != 0 &&
           stq_plane_bytes(count, from, k) == stq_plane_bytes(count, to, k);
}

/* Bytes of the whole tensor's planes at `to` that those at `from` do not hold already. */
static uint64_t growth(const stq_store *store, size_t index, uint32_t from, uint32_t to) {
    const stq_item *item = &store->items[index];
    int64_t count = item->rows * item->cols;
    uint64_t bytes = 0;
    for (uint32_t k = 0; pooled(to) && k < pieces(to); k++)
        if (!plane_stays(from, to, k, count))
            bytes += stq_pool_charge(&store->pool, piece_bytes(item, count, to, k));
    return bytes;
}

static void release_difference(stq_store *store, const stq_item *item, int state, const stq_planes *planes,
                               const stq_planes *kept) {
    for (uint32_t k = 0; pooled(planes->bits) && k < pieces(planes->bits); k++)
        if (stq_plane(planes, k) != NULL && (kept == NULL || stq_plane(planes, k) != stq_plane(kept, k)))
            stq_pool_release(&store->pool, kind_of(state, planes->bits, k), stq_plane(planes, k),
                             piece_bytes(item, item->count, planes->bits, k));
}

/* Builds out-planes of `bits`; on failure releases what it allocated and leaves *out alone. */
static stq_status allocate_planes(stq_store *store, const stq_item *item, int state, const stq_planes *in,
                                  stq_planes *out, uint32_t bits) {
    stq_planes planes = {.scales = out->scales, .bits = bits};
    for (uint32_t k = 0; k < pieces(bits); k++) {
        void *pointer = plane_stays(in->bits, bits, k, item->count) ? stq_plane(in, k) : NULL;
        stq_status status = STQ_OK;
        if (pointer == NULL)
            status = stq_pool_allocate(&store->pool, kind_of(state, bits, k), piece_bytes(item, item->count, bits, k),
                                       &pointer);
        if (status != STQ_OK) {
            release_difference(store, item, state, &planes, in);
            return status;
        }
        set_plane(&planes, k, pointer);
    }
    if (stq_is_shared(bits)) {
        planes = stq_shared_planes(planes.base, bits, item->rows, item->cols);
        planes.scales = out->scales;
    }
    *out = planes;
    return STQ_OK;
}

/* Sets one state's out-planes; puts a transition off that does not fit. */
static stq_status begin_state(stq_store *store, size_t index, int state, uint32_t target) {
    const stq_planes *in = stq_store_planes(store, index, state);
    stq_planes *out = out_planes(store, index, state);
    if (target == STQ_BITS_FLOAT32) {
        out->bits = STQ_BITS_FLOAT32;
        return STQ_OK;
    }
    bool first = in->bits == 0;
    uint64_t more = growth(store, index, in->bits, target);
    if (!first && store->global_cap != 0 && store->global_bytes + more > store->global_cap)
        return STQ_OK;
    stq_status status = allocate_planes(store, &store->items[index], state, in, out, target);
    if (status == STQ_OK)
        store->global_bytes += more;
    return first ? status : STQ_OK;
}

/* The cap holds in every step, whatever the policy asked for: with planes before and after the step both allocated. */
static stq_status check_cap(const stq_store *store) {
    if (store->global_cap == 0 || store->global_bytes <= store->global_cap)
        return STQ_OK;
    return stq_error(STQ_CAP_TOO_SMALL, "The states would take %llu bytes, the cap is %llu; no step was made.",
                     (unsigned long long)store->global_bytes, (unsigned long long)store->global_cap);
}

/* First widths come with the promotions. */
static int phase_of(uint32_t from, uint32_t to) {
    int phase = stq_policy_transition_phase(from, to);
    return phase == 0 ? 3 : phase;
}

/* Sets the out-planes of a step in which no width changes; returns whether one is to change. */
static bool begin_unchanged(stq_store *store, const uint8_t (*targets)[2]) {
    bool changes = false;
    for (size_t i = 0; i < store->count; i++)
        for (int state = 0; state < 2; state++) {
            const stq_planes *in = stq_store_planes(store, i, state);
            if (in->bits != 0)
                *out_planes(store, i, state) = *in;
            changes = changes || (in->bits != targets[i][state] && store->items[i].gradient != NULL);
        }
    return changes;
}

stq_status stq_store_begin(stq_store *store, const uint8_t (*targets)[2]) {
    if (!begin_unchanged(store, targets))
        return check_cap(store);
    bool waiting = false;
    for (int phase = 1; phase <= 3 && !(phase == 3 && waiting); phase++)
        for (size_t i = 0; i < store->count; i++)
            for (int state = 0; state < 2; state++) {
                uint32_t bits = stq_store_planes(store, i, state)->bits;
                uint32_t target = targets[i][state];
                if (target == bits || phase_of(bits, target) != phase || store->items[i].gradient == NULL)
                    continue;
                stq_status status = begin_state(store, i, state, target);
                if (status != STQ_OK) {
                    stq_store_revert(store);
                    return status;
                }
                waiting = waiting || (phase == 2 && out_planes(store, i, state)->bits != target);
            }
    stq_status status = check_cap(store);
    if (status != STQ_OK)
        stq_store_revert(store);
    return status;
}

/* Takes what a transition frees off the whole model's bytes. */
static void count_freed(stq_store *store, size_t index, uint32_t from, uint32_t to) {
    store->global_bytes -= growth(store, index, to, from);
}

void stq_store_settle(stq_store *store, size_t index, int state) {
    stq_planes *in = stq_store_planes(store, index, state);
    const stq_planes *out = out_planes(store, index, state);
    if (in->bits == out->bits)
        return; /* nothing moves within a width, and lists may be long */
    release_difference(store, &store->items[index], state, in, out);
    count_freed(store, index, in->bits, out->bits);
    *in = *out;
}

void stq_store_commit(stq_store *store) {
    for (size_t i = 0; i < store->count; i++)
        for (int state = 0; state < 2; state++)
            stq_store_settle(store, i, state);
    stq_pool_trim(&store->pool);
}

void stq_store_revert(stq_store *store) {
    for (size_t i = 0; i < store->count; i++)
        for (int state = 0; state < 2; state++) {
            const stq_planes *in = stq_store_planes(store, i, state);
            stq_planes *out = out_planes(store, i, state);
            if (in->bits == out->bits)
                continue;
            release_difference(store, &store->items[i], state, out, in);
            count_freed(store, i, out->bits, in->bits);
            if (in->bits != 0) {
                *out = *in;
            } else if (out->bits != STQ_BITS_FLOAT32) {
                *out = (stq_planes){.scales = out->scales};
            } else {
                out->bits = 0;
            }
        }
    stq_pool_trim(&store->pool);
}

/* No state: only the arena's pointers stay. */
static void clear_state(stq_store *store, size_t index, int state) {
    stq_planes *in = stq_store_planes(store, index, state);
    stq_planes *out = out_planes(store, index, state);
    release_difference(store, &store->items[index], state, in, NULL);
    count_freed(store, index, in->bits, 0);
    *out =
        pooled(in->bits) ? (stq_planes){.scales = in->scales} : (stq_planes){.base = out->base, .scales = out->scales};
    *in = (stq_planes){.bits = 0};
}

static stq_status check_room(stq_store *store, const uint8_t (*widths)[2]) {
    uint64_t bytes = store->global_fixed;
    for (size_t i = 0; i < store->count; i++)
        for (int state = 0; state < 2; state++)
            bytes += growth(store, i, 0, widths[i][state]);
    if (store->global_cap != 0 && bytes > store->global_cap)
        return stq_error(STQ_CAP_TOO_SMALL, "The saved widths take %llu bytes, the cap is %llu.",
                         (unsigned long long)bytes, (unsigned long long)store->global_cap);
    return STQ_OK;
}

static void clear_all(stq_store *store) {
    for (size_t i = 0; i < store->count; i++)
        for (int state = 0; state < 2; state++)
            clear_state(store, i, state);
}

/* Of states that are clear. */
static stq_status begin_all(stq_store *store, const uint8_t (*widths)[2]) {
    for (size_t i = 0; i < store->count; i++)
        for (int state = 0; state < 2; state++) {
            stq_status status = widths[i][state] == 0 ? STQ_OK : begin_state(store, i, state, widths[i][state]);
            *stq_store_planes(store, i, state) = *out_planes(store, i, state);
            if (widths[i][state] == 0)
                *stq_store_planes(store, i, state) = (stq_planes){.bits = 0};
            if (status != STQ_OK) {
                *stq_store_planes(store, i, state) = (stq_planes){.bits = 0};
                clear_all(store);
                return status;
            }
        }
    return STQ_OK;
}

stq_status stq_store_set_widths(stq_store *store, const uint8_t (*widths)[2]) {
    STQ_CHECK(check_room(store, widths));
    clear_all(store);
    stq_status status = begin_all(store, widths);
    stq_pool_trim(&store->pool);
    return status;
}

void stq_store_close(stq_store *store) {
    for (size_t i = 0; i < store->count; i++)
        for (int state = 0; state < 2; state++)
            release_difference(store, &store->items[i], state, stq_store_planes(store, i, state), NULL);
    stq_pool_release(&store->pool, ARENA, store->arena, store->arena_bytes);
    stq_pool_trim(&store->pool);
    store->arena = NULL;
}
