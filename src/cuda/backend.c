/* backend.c - the CUDA backend table: memory, lists, copies. */
#include "cuda/backend.h"

#include <stdlib.h>
#include <string.h>

#include "common/error.h"

enum { GRANULARITY = 512 }; /* what the CUDA runtime's pools round requests to */

stq_status stq_cuda_error(cudaError_t error, const char *call) {
    (void)cudaGetLastError(); /* clears an error that does not stick */
    if (error == cudaErrorMemoryAllocation)
        return stq_error(STQ_OUT_OF_MEMORY, "The GPU has no memory left for the optimizer; lower the state bits.");
    return stq_error(STQ_DEVICE_ERROR, "CUDA reports '%s' (%.60s).", cudaGetErrorString(error), call);
}

/* ---- States: the default allocator is the runtime's stream-ordered pool ---- */

static void *allocate(void *context, size_t bytes) {
    stq_cuda *cuda = context;
    void *pointer = NULL;
    if (cudaSetDevice(cuda->device) == cudaSuccess && cudaMallocAsync(&pointer, bytes, cuda->stream) == cudaSuccess)
        return pointer;
    (void)cudaGetLastError();
    return NULL;
}

static void release(void *context, void *pointer, size_t bytes) {
    stq_cuda *cuda = context;
    (void)bytes;
    (void)cudaSetDevice(cuda->device);
    (void)cudaFreeAsync(pointer, cuda->stream);
}

/* ---- Lists ---- */

/* Everything the backend allocates on the device for a list of items, in bytes; a NULL `cuda` only counts. */
static cudaError_t allocate_lists(stq_cuda *cuda, const stq_worklist *list, const stq_adamw *o, int64_t shared_means,
                                  uint64_t *bytes) {
    const size_t items = (size_t)list->item_count, segments = (size_t)list->segment_count;
    const size_t means = (size_t)shared_means;
    stq_cuda none;
    stq_cuda *to = cuda ? cuda : &none;
    const struct {
        void **pointer;
        size_t bytes;
    } parts[] = {
        {(void **)&to->items, items * sizeof *to->items},
        {(void **)&to->tiles, (size_t)list->tile_count * sizeof *to->tiles},
        {(void **)&to->segments, segments * sizeof *to->segments},
        {(void **)&to->first_segment, (items + 1) * sizeof *to->first_segment},
        {(void **)&to->sums, (segments + items + 1) * sizeof *to->sums},
        {(void **)&to->coefficients, items * sizeof *to->coefficients},
        {(void **)&to->groups, o->group_count * sizeof *to->groups},
        {(void **)&to->missed, items * sizeof *to->missed},
        {(void **)&to->control, sizeof *to->control},
        {(void **)&to->gate, sizeof *to->gate},
        {(void **)&to->chunks, (size_t)stq_cuda_count_chunks(o) * sizeof *to->chunks},
        {(void **)&to->share_sums, means * sizeof *to->share_sums},
        {(void **)&to->share_factors, means * sizeof *to->share_factors},
        {(void **)&to->saturated, means ? (items + 1) * sizeof *to->saturated : 0},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (parts[i].bytes == 0)
            continue;
        size_t rounded = (parts[i].bytes + GRANULARITY) / GRANULARITY * GRANULARITY;
        *bytes += rounded;
        cudaError_t error = cuda ? cudaMalloc(parts[i].pointer, rounded) : cudaSuccess;
        if (error != cudaSuccess)
            return error;
    }
    return cudaSuccess;
}

/* Slices are charged as whole tensors are: the policy must see the same bytes on every rank. */
static uint64_t record_bytes(const stq_adamw *o) {
    const size_t count = o->tensor_count;
    const stq_item *items = o->store.items;
    stq_worklist list = {.item_count = (int64_t)count};
    uint64_t bytes = sizeof(stq_cuda) + count * sizeof(stq_share_place);
    int64_t means, probe_values;
    stq_cuda_share_places(o, NULL, &means, &probe_values);
    for (size_t i = 0; i < count; i++) {
        stq_worklist one;
        stq_item whole = {.count = items[i].rows * items[i].cols};
        stq_worklist_count(&one, &whole, 1);
        list.tile_count += one.tile_count;
        list.segment_count += one.segment_count;
    }
    (void)allocate_lists(NULL, &list, o, means, &bytes);
    return bytes + 3 * (uint64_t)count * sizeof(stq_device_item) + stq_cuda_measure_bytes(o, probe_values);
}

static stq_status fill_lists(stq_cuda *cuda, const stq_adamw *o) {
    const stq_worklist *list = &cuda->list;
    const size_t items = (size_t)list->item_count;
    STQ_CUDA_CHECK(
        cudaMemcpy(cuda->tiles, list->tiles, (size_t)list->tile_count * sizeof *list->tiles, cudaMemcpyHostToDevice));
    STQ_CUDA_CHECK(cudaMemcpy(cuda->segments, list->segments, (size_t)list->segment_count * sizeof *list->segments,
                              cudaMemcpyHostToDevice));
    STQ_CUDA_CHECK(cudaMemcpy(cuda->first_segment, list->first_segment, (items + 1) * sizeof *list->first_segment,
                              cudaMemcpyHostToDevice));
    STQ_CUDA_CHECK(cudaMemcpy(cuda->groups, o->groups, o->group_count * sizeof *o->groups, cudaMemcpyHostToDevice));
    return STQ_OK;
}

static stq_status allocate_staging(stq_cuda *cuda, const stq_adamw *o) {
    const size_t items = o->tensor_count;
    cuda->present = calloc(items + 1, sizeof *cuda->present);
    cuda->places = calloc(items + 1, sizeof *cuda->places);
    if (!cuda->present || !cuda->places)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the lists of %zu tensors.", items);
    for (int i = 0; i < STQ_CUDA_SLOTS; i++) {
        STQ_CUDA_CHECK(cudaMallocHost((void **)&cuda->staged[i], (items + 1) * sizeof *cuda->staged[i]));
        memset(cuda->staged[i], 0, items * sizeof *cuda->staged[i]);
        STQ_CUDA_CHECK(cudaEventCreateWithFlags(&cuda->copied[i], cudaEventDisableTiming));
    }
    STQ_CUDA_CHECK(cudaMallocHost((void **)&cuda->counted, sizeof *cuda->counted));
    stq_cuda_share_places(o, cuda->places, &cuda->means, &cuda->probe_values);
    return STQ_OK;
}

static stq_status fill_context(stq_cuda *cuda, stq_adamw *o, int device) {
    int devices = 0;
    uint64_t bytes = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || device < 0 || device >= devices)
        return stq_error(STQ_UNSUPPORTED, "There is no GPU %d here; there are %d that CUDA can use.", device, devices);
    cuda->device = device;
    STQ_CUDA_CHECK(cudaSetDevice(device));
    STQ_CHECK(stq_worklist_make(&cuda->list, o->store.items, o->tensor_count));
    STQ_CHECK(allocate_staging(cuda, o));
    STQ_CUDA_CHECK(allocate_lists(cuda, &cuda->list, o, cuda->means, &bytes));
    STQ_CHECK(fill_lists(cuda, o));
    return stq_cuda_open_measures(cuda, o);
}

static void close_context(void *context) {
    stq_cuda *cuda = context;
    if (cuda == NULL)
        return;
    (void)cudaSetDevice(cuda->device);
    (void)cudaStreamSynchronize(cuda->stream);
    void *device[] = {cuda->items,         cuda->tiles,     cuda->segments, cuda->first_segment, cuda->sums,
                      cuda->coefficients,  cuda->groups,    cuda->missed,   cuda->control,       cuda->share_sums,
                      cuda->share_factors, cuda->saturated, cuda->gate,     cuda->chunks};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        (void)cudaFree(device[i]);
    for (int i = 0; i < STQ_CUDA_SLOTS; i++) {
        (void)cudaFreeHost(cuda->staged[i]);
        if (cuda->copied[i])
            (void)cudaEventDestroy(cuda->copied[i]);
    }
    (void)cudaFreeHost(cuda->counted);
    stq_cuda_close_measures(cuda);
    (void)cudaGetLastError();
    stq_worklist_free(&cuda->list);
    free(cuda->present);
    free(cuda->places);
    free(cuda);
}

static stq_status open_context(stq_adamw *o, int device) {
    stq_cuda *cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL)
        return stq_error(STQ_OUT_OF_MEMORY, "No memory for the CUDA backend.");
    o->backend_context = cuda;
    if (o->store.pool.allocator.allocate == allocate)
        o->store.pool.allocator.context = cuda;
    return fill_context(cuda, o, device);
}

/* ---- Copies and groups: the null stream is that of the thread's current device ---- */

static stq_status copy_out(void *context, void *host, const void *source, uint64_t bytes) {
    stq_cuda *cuda = context;
    STQ_CUDA_CHECK(cudaSetDevice(cuda->device));
    STQ_CUDA_CHECK(cudaMemcpyAsync(host, source, (size_t)bytes, cudaMemcpyDeviceToHost, cuda->stream));
    STQ_CUDA_CHECK(cudaStreamSynchronize(cuda->stream));
    return STQ_OK;
}

static stq_status copy_in(void *context, void *target, const void *host, uint64_t bytes) {
    stq_cuda *cuda = context;
    STQ_CUDA_CHECK(cudaSetDevice(cuda->device));
    STQ_CUDA_CHECK(cudaMemcpyAsync(target, host, (size_t)bytes, cudaMemcpyHostToDevice, cuda->stream));
    STQ_CUDA_CHECK(cudaStreamSynchronize(cuda->stream));
    return STQ_OK;
}

static stq_status set_group(void *context, size_t index, const stq_adamw_group *group) {
    stq_cuda *cuda = context;
    STQ_CUDA_CHECK(cudaSetDevice(cuda->device));
    STQ_CUDA_CHECK(stq_cuda_set_group(cuda->groups, (int64_t)index, group, cuda->stream));
    return STQ_OK;
}

static void set_stream(void *context, void *stream) {
    stq_cuda *cuda = context;
    cuda->stream = stream;
}

const stq_backend stq_cuda_backend = {
    .read = copy_out,
    .write = copy_in,
    .allocator = {.allocate = allocate, .release = release, .granularity = GRANULARITY},
    .record_bytes = record_bytes,
    .open = open_context,
    .close = close_context,
    .step = stq_cuda_adamw_step,
    .settle = stq_cuda_settle,
    .undecided = stq_cuda_undecided,
    .set_group = set_group,
    .set_stream = set_stream,
    .share_probes = stq_cuda_share_probes,
    .shards_open = stq_cuda_shards_open,
    .shards_close = stq_cuda_shards_close,
    .shards_norm = stq_cuda_shards_norm,
    .shards_factors = stq_cuda_shards_factors,
};
