/* moments.c - single states of an optimizer, read as float32 and written from planes of any width. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/float_mode.h"
#include "optim/optimizer.h"
#include "quant/shared.h"

enum { CHUNK_BLOCKS = 512, CHUNK = CHUNK_BLOCKS * STQ_BLOCK };

/* Encoding outside a step must not reuse the random bits of the step that made the values. */
static const uint64_t transition_seed = UINT64_C(0x7472616e73697421);

/* Host memory for one chunk: values, with room for the begin of a cut block, and its planes. */
typedef struct stq_chunk {
    float values[CHUNK + STQ_BLOCK];
    uint8_t planes[5][CHUNK / 2];
    uint16_t scales[CHUNK_BLOCKS];
} stq_chunk;

static stq_planes chunk_planes(stq_chunk *chunk, uint32_t bits) {
    stq_planes planes = {.base = chunk->planes[0], .scales = chunk->scales, .bits = bits};
    for (uint32_t k = 1; k < stq_plane_count(bits); k++)
        planes.bit[k - 1] = chunk->planes[k];
    return planes;
}

static uint64_t block_bytes(uint32_t bits, uint32_t plane) { return stq_plane_bytes(STQ_BLOCK, bits, plane); }

/* The same planes from block `block` on. */
static stq_planes planes_at(const stq_planes *planes, int64_t block) {
    stq_planes moved = *planes;
    if (planes->bits == 0)
        return moved;
    moved.base += (uint64_t)block * block_bytes(planes->bits, 0);
    for (uint32_t k = 1; k < stq_plane_count(planes->bits); k++)
        moved.bit[k - 1] += (uint64_t)block * block_bytes(planes->bits, k);
    if (stq_is_coded(planes->bits))
        moved.scales += block;
    return moved;
}

/* Decodes `count` <= CHUNK values from element `first` of host planes; *values points into the chunk. */
static stq_status decode_range(stq_chunk *chunk, const stq_planes *planes, stq_state state, int64_t first,
                               int64_t count, float **values) {
    stq_planes from = planes_at(planes, first / STQ_BLOCK);
    int64_t skipped = first % STQ_BLOCK;
    *values = chunk->values + skipped;
    return stq_decode(chunk->values, &from, state, skipped + count);
}

/* Copies `blocks` blocks between planes of one width: write puts host planes into the backend's memory, else the other
 * way. */
static stq_status copy_planes(const stq_adamw *o, const stq_planes *to, const stq_planes *from, int64_t blocks,
                              bool write) {
    stq_status (*copy)(void *, void *, const void *, uint64_t) = write ? o->backend->write : o->backend->read;
    for (uint32_t k = 0; k < stq_plane_count(to->bits); k++)
        STQ_CHECK(copy(o->backend_context, stq_plane(to, k), stq_plane(from, k),
                       (uint64_t)blocks * block_bytes(to->bits, k)));
    return copy(o->backend_context, to->scales, from->scales, (uint64_t)blocks * sizeof(uint16_t));
}

static stq_status check_index(const stq_adamw *o, size_t index, stq_state state) {
    if (index >= o->tensor_count)
        return stq_error(STQ_INVALID_ARGUMENT, "There is no tensor %zu; there are %zu.", index, o->tensor_count);
    if (state != STQ_FIRST_MOMENT && state != STQ_SECOND_MOMENT)
        return stq_error(STQ_INVALID_ARGUMENT, "There is no state %d; use STQ_FIRST_MOMENT or STQ_SECOND_MOMENT.",
                         (int)state);
    return STQ_OK;
}

static const stq_planes *planes_of(const stq_adamw *o, size_t index, stq_state state) {
    const stq_item *item = &o->store.items[index];
    return state == STQ_FIRST_MOMENT ? &item->m_in : &item->v_in;
}

/* ---- Reading ---- */

/* Elements first .. first + count - 1 of the slice held here; count <= CHUNK. */
static stq_status read_chunk(const stq_adamw *o, stq_chunk *chunk, const stq_planes *planes, stq_state state,
                             float *values, int64_t first, int64_t count) {
    if (planes->bits == STQ_BITS_FLOAT32)
        return o->backend->read(o->backend_context, values, planes->base + (uint64_t)first * sizeof(float),
                                (uint64_t)count * sizeof(float));
    int64_t first_block = first / STQ_BLOCK;
    stq_planes host = chunk_planes(chunk, planes->bits);
    stq_planes device = planes_at(planes, first_block);
    STQ_CHECK(copy_planes(o, &host, &device, stq_block_count(first % STQ_BLOCK + count), false));
    float *decoded;
    STQ_CHECK(decode_range(chunk, &host, state, first % STQ_BLOCK, count, &decoded));
    memcpy(values, decoded, (size_t)count * sizeof *values);
    return STQ_OK;
}

/* Elements first .. first + count - 1 of the global tensor out of a shared second moment. */
static stq_status read_shared(const stq_adamw *o, size_t index, const stq_planes *planes, float *values, int64_t first,
                              int64_t count) {
    const stq_tensor *tensor = &o->tensors[index];
    size_t bytes = (size_t)stq_shared_count(planes->bits, tensor->rows, tensor->cols) * sizeof(float);
    float *means = malloc(bytes);
    if (means == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to read tensor '%s'.", tensor->name);
    stq_status status = o->backend->read(o->backend_context, means, planes->base, bytes);
    stq_planes host = {.base = (uint8_t *)means, .bits = planes->bits};
    for (int64_t at = 0; status == STQ_OK && at < count; at += CHUNK)
        stq_shared_values(values + at, &host, tensor->cols, first + at, (int)(count - at < CHUNK ? count - at : CHUNK));
    free(means);
    return status;
}

stq_status stq_adamw_read_state(const stq_adamw *o, size_t index, stq_state state, float *values, int64_t first,
                                int64_t count) {
    STQ_CHECK(stq_adamw_settle(o));
    STQ_CHECK(check_index(o, index, state));
    const stq_tensor *tensor = &o->tensors[index];
    int64_t here = first - tensor->first;
    if (count < 0 || here < 0 || here > tensor->count || count > tensor->count - here || (values == NULL && count > 0))
        return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s': %lld elements from %lld are not held here.", tensor->name,
                         (long long)count, (long long)first);
    const stq_planes *planes = planes_of(o, index, state);
    if (count == 0)
        return STQ_OK;
    if (planes->bits == 0) {
        memset(values, 0, (size_t)count * sizeof *values);
        return STQ_OK;
    }
    if (stq_is_shared(planes->bits))
        return read_shared(o, index, planes, values, first, count);
    stq_chunk *chunk = malloc(sizeof *chunk);
    if (chunk == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to decode tensor '%s'.", tensor->name);
    stq_status status = STQ_OK;
    for (int64_t at = 0; status == STQ_OK && at < count;) {
        int64_t length = CHUNK - (here + at) % STQ_BLOCK;
        length = length < count - at ? length : count - at;
        status = read_chunk(o, chunk, planes, state, values + at, here + at, length);
        at += length;
    }
    free(chunk);
    return status;
}

/* ---- Writing ---- */

typedef struct writing {
    stq_adamw *o;
    size_t index;
    stq_state state;
    const stq_planes *source;
    int64_t source_first; /* element of the global tensor at which the source begins */
    int64_t source_end;   /* and the one after its last */
    stq_chunk *chunk;
} writing;

/* Scale words that no encoder writes would decode to infinities. */
static stq_status check_scales(const writing *w, int64_t block, int64_t blocks) {
    for (int64_t k = block; k < block + blocks; k++) {
        uint32_t word = w->source->scales[k];
        bool valid = w->state == STQ_FIRST_MOMENT ? word <= 0x7f7fu : (word >> 4 << 19) <= STQ_LARGEST_FLOAT_BITS;
        if (!valid)
            return stq_error(STQ_CORRUPT,
                             "Tensor '%s': scale word %lld of the %s moment is 0x%04x, which no block has.",
                             w->o->tensors[w->index].name, (long long)k, w->state ? "second" : "first", word);
    }
    return STQ_OK;
}

/* Without branches, as a checkpoint in float32 has as many values as the model twice. */
static bool are_values(const float *values, stq_state state, int64_t count) {
    /* Above these bits lie infinities and NaNs; of second moments anything with a sign but -0. */
    uint32_t mask = state == STQ_SECOND_MOMENT ? UINT32_MAX : INT32_MAX, wrong = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = stq_float_bits(values[i]);
        wrong |= (uint32_t)((bits & mask) > STQ_LARGEST_FLOAT_BITS) & (uint32_t)(bits != UINT32_C(0x80000000));
    }
    return wrong == 0;
}

static stq_status check_values(const writing *w, const float *values, int64_t first, int64_t count) {
    if (are_values(values, w->state, count))
        return STQ_OK;
    for (int64_t i = 0; i < count; i++)
        if (!are_values(&values[i], w->state, 1))
            return stq_error(STQ_CORRUPT, "Tensor '%s': element %lld of the %s moment is %g.",
                             w->o->tensors[w->index].name, (long long)(first + i), w->state ? "second" : "first",
                             (double)values[i]);
    return STQ_OK;
}

/* Codes of v know one zero: by its bits -0 would be the largest value of its block. */
static void drop_negative_zeros(float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = stq_float_bits(values[i]);
        values[i] = stq_bits_float(bits == UINT32_C(0x80000000) ? 0 : bits);
    }
}

/* Elements first .. first + count - 1 of the global tensor, count <= CHUNK; coded targets begin with a block. */
static stq_status encode_chunk(const writing *w, int64_t first, int64_t count) {
    stq_adamw *o = w->o;
    const stq_planes *planes = planes_of(o, w->index, w->state);
    int64_t here = first - o->tensors[w->index].first;
    int64_t in_source = first - w->source_first;
    float *values;
    if (stq_is_coded(w->source->bits))
        STQ_CHECK(
            check_scales(w, in_source / STQ_BLOCK, (in_source + count - 1) / STQ_BLOCK - in_source / STQ_BLOCK + 1));
    if (stq_is_shared(w->source->bits)) {
        stq_shared_values(w->chunk->values, w->source, o->tensors[w->index].cols, first, (int)count);
        values = w->chunk->values;
    } else {
        STQ_CHECK(decode_range(w->chunk, w->source, w->state, in_source, count, &values));
    }
    STQ_CHECK(check_values(w, values, first, count));
    if (planes->bits == STQ_BITS_FLOAT32)
        return o->backend->write(o->backend_context, planes->base + (uint64_t)here * sizeof(float), values,
                                 (uint64_t)count * sizeof(float));
    if (w->state == STQ_SECOND_MOMENT)
        drop_negative_zeros(values, count);
    stq_random random = {.seed = o->seed ^ transition_seed,
                         .step = (uint64_t)o->steps,
                         .tensor = (uint32_t)w->index,
                         .first_block = o->store.items[w->index].first_block + here / STQ_BLOCK};
    stq_planes host = chunk_planes(w->chunk, planes->bits);
    STQ_CHECK(stq_encode(&host, w->state, values, count, &random));
    stq_planes device = planes_at(planes, here / STQ_BLOCK);
    return copy_planes(o, &device, &host, stq_block_count(count), true);
}

static stq_status encode_range(const writing *w, int64_t first, int64_t end) {
    for (int64_t at = first; at < end; at += CHUNK)
        STQ_CHECK(encode_chunk(w, at, end - at < CHUNK ? end - at : CHUNK));
    return STQ_OK;
}

/* Whole blocks of equal width and position go over as they are; *first receives where they end. */
static stq_status copy_whole_blocks(const writing *w, int64_t *first, int64_t end) {
    const stq_planes *planes = planes_of(w->o, w->index, w->state);
    int64_t in_source = *first - w->source_first;
    if (planes->bits != w->source->bits)
        return STQ_OK;
    bool cut = (end - *first) % STQ_BLOCK != 0 && end != w->source_end;
    int64_t blocks = cut ? (end - *first) / STQ_BLOCK : stq_block_count(end - *first);
    if (planes->bits != w->source->bits || in_source % STQ_BLOCK != 0 || blocks == 0)
        return STQ_OK;
    STQ_CHECK(check_scales(w, in_source / STQ_BLOCK, blocks));
    stq_planes from = planes_at(w->source, in_source / STQ_BLOCK);
    stq_planes to = planes_at(planes, (*first - w->o->tensors[w->index].first) / STQ_BLOCK);
    STQ_CHECK(copy_planes(w->o, &to, &from, blocks, true));
    *first = cut ? *first + blocks * STQ_BLOCK : end;
    return STQ_OK;
}

static bool has_planes(const stq_planes *source, stq_state state) {
    if (stq_is_shared(source->bits))
        return state == STQ_SECOND_MOMENT && source->base != NULL;
    bool whole = stq_plane_count(source->bits) != 0 && (source->scales != NULL || !stq_is_coded(source->bits));
    for (uint32_t k = 0; k < stq_plane_count(source->bits); k++)
        whole = whole && stq_plane(source, k) != NULL;
    return whole;
}

static stq_status check_source(const stq_adamw *o, size_t index, stq_state state, const stq_planes *source,
                               int64_t first, int64_t count) {
    const stq_tensor *tensor = &o->tensors[index];
    int64_t elements = tensor->rows * tensor->cols;
    if (first < 0 || count < 0 || first > elements || count > elements - first)
        return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s' has no %lld elements from %lld; it has %lld.", tensor->name,
                         (long long)count, (long long)first, (long long)elements);
    if (!has_planes(source, state))
        return stq_error(STQ_INVALID_ARGUMENT,
                         "Tensor '%s': the source has not all planes and scale words that %u bits have.", tensor->name,
                         source->bits);
    return STQ_OK;
}

/* Shared planes in host memory, filled from planes of another kind; the caller frees planes->base. */
static stq_status share_planes(const stq_tensor *tensor, const stq_planes *source, stq_planes *planes) {
    int64_t count = tensor->rows * tensor->cols;
    size_t means = (size_t)stq_shared_count(planes->bits, tensor->rows, tensor->cols);
    void *allocation = malloc((size_t)stq_shared_bytes(planes->bits, tensor->rows, tensor->cols));
    int64_t *sums = calloc(means, sizeof *sums);
    float *values = malloc((size_t)count * sizeof *values);
    stq_status status = STQ_OK;
    if (!allocation || !sums || !values)
        status = stq_error(STQ_OUT_OF_MEMORY, "No memory to share the second moment of '%s'.", tensor->name);
    if (status == STQ_OK && stq_is_shared(source->bits))
        for (int64_t at = 0; at < count; at += CHUNK)
            stq_shared_values(values + at, source, tensor->cols, at, (int)(count - at < CHUNK ? count - at : CHUNK));
    else if (status == STQ_OK)
        status = stq_decode(values, source, STQ_SECOND_MOMENT, count);
    for (int64_t i = 0; status == STQ_OK && i < count; i++)
        if (!isfinite(values[i]) || values[i] < 0)
            status = stq_error(STQ_CORRUPT, "Tensor '%s': element %lld of the second moment is %g.", tensor->name,
                               (long long)i, (double)values[i]);
    if (status == STQ_OK) {
        stq_item item = {.count = count, .rows = tensor->rows, .cols = tensor->cols};
        item.v_in = (stq_planes){.base = (uint8_t *)values, .bits = STQ_BITS_FLOAT32};
        *planes = stq_shared_planes(allocation, planes->bits, tensor->rows, tensor->cols);
        uint64_t mode = stq_float_mode_set();
        stq_shared_begin(planes, &item, sums);
        stq_float_mode_restore(mode);
        allocation = NULL;
    }
    free(allocation);
    free(sums);
    free(values);
    return status;
}

/* Means, gradient factor and probes go over as they are. */
static stq_status copy_shared(stq_adamw *o, size_t index, const stq_planes *source) {
    const stq_tensor *tensor = &o->tensors[index];
    const stq_planes *planes = planes_of(o, index, STQ_SECOND_MOMENT);
    int64_t state_bytes = stq_shared_bytes(planes->bits, tensor->rows, tensor->cols);
    int64_t factor = stq_shared_count(planes->bits, tensor->rows, tensor->cols);
    for (int64_t k = 0; k < state_bytes / (int64_t)sizeof(float); k++) {
        float value = ((const float *)(const void *)source->base)[k];
        /* An infinite gradient factor says that there was none yet. */
        if (!(value >= 0) || (k != factor && !isfinite(value)))
            return stq_error(STQ_CORRUPT, "Tensor '%s': value %lld of its shared second moment is %g.", tensor->name,
                             (long long)k, (double)value);
    }
    return o->backend->write(o->backend_context, planes->base, source->base, (uint64_t)state_bytes);
}

/* The whole of a shared second moment. */
static stq_status write_shared(stq_adamw *o, size_t index, const stq_planes *source, int64_t first, int64_t count) {
    const stq_tensor *tensor = &o->tensors[index];
    stq_planes planes = {.bits = planes_of(o, index, STQ_SECOND_MOMENT)->bits};
    if (first != 0 || count != tensor->rows * tensor->cols)
        return stq_error(STQ_UNSUPPORTED, "Tensor '%s': a shared second moment can only be written whole.",
                         tensor->name);
    if (source->bits == planes.bits)
        return copy_shared(o, index, source);
    STQ_CHECK(share_planes(tensor, source, &planes));
    stq_status status = copy_shared(o, index, &planes);
    free(planes.base);
    return status;
}

stq_status stq_adamw_write_state(stq_adamw *o, size_t index, stq_state state, const stq_planes *source, int64_t first,
                                 int64_t count) {
    STQ_CHECK(stq_adamw_settle(o));
    STQ_CHECK(check_index(o, index, state));
    STQ_CHECK(check_source(o, index, state, source, first, count));
    const stq_tensor *tensor = &o->tensors[index];
    int64_t begin = first > tensor->first ? first : tensor->first;
    int64_t end = first + count < tensor->first + tensor->count ? first + count : tensor->first + tensor->count;
    if (begin >= end)
        return STQ_OK;
    const stq_planes *planes = planes_of(o, index, state);
    if (planes->bits == 0)
        return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s' has no state yet; call stq_adamw_restore() first.",
                         tensor->name);
    if (stq_is_shared(planes->bits))
        return write_shared(o, index, source, first, count);
    writing w = {
        .o = o, .index = index, .state = state, .source = source, .source_first = first, .source_end = first + count};
    if (stq_is_coded(planes->bits)) {
        bool cut_end = (end - tensor->first) % STQ_BLOCK != 0 && end != tensor->first + tensor->count;
        if ((begin - tensor->first) % STQ_BLOCK != 0 || cut_end)
            return stq_error(STQ_INVALID_ARGUMENT, "Tensor '%s': elements %lld to %lld cut a block of 128.",
                             tensor->name, (long long)begin, (long long)end);
        STQ_CHECK(copy_whole_blocks(&w, &begin, end));
    }
    w.chunk = malloc(sizeof *w.chunk);
    if (w.chunk == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory to encode tensor '%s'.", tensor->name);
    stq_status status = encode_range(&w, begin, end);
    free(w.chunk);
    return status;
}
