/* runtime.cc - the emulated CUDA runtime: memory, clocks, and blocks of fibres. */
#include "kernels.h"

#include <deque>
#include <map>
#include <time.h>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;
int emulated_error;

/* ---- Blocks ---- */

namespace {
enum waiting { RUNS, AT_WARP, AT_BLOCK, FINISHED };
/* Where to go on. The compiler's own jumps: the library's take several times as long. They keep no registers, which
 * noipa tells the callers of functions that jump. */
typedef void *place_in_code[5];
struct fibre {
    place_in_code place;
    std::vector<char> stack;
    waiting state;
    uint64_t value;
    int line;  /* of the collective operation that it waits at */
    int phase; /* collective operations of its warp so far */
};
fibre fibres[1024];
uint64_t arrived[32][2][32];
place_in_code scheduler;
const std::function<void()> *job;

__attribute__((noipa)) void go_to(void **place) { __builtin_longjmp(place, 1); }

__attribute__((noipa)) void stop(waiting state) {
    uint32_t self = threadIdx.x;
    fibres[self].state = state;
    if (__builtin_setjmp(fibres[self].place) == 0)
        go_to(scheduler);
}

/* A fibre runs a thread of each block, so that its context is made once: that takes system calls. */
void run_fibre() {
    for (;;) {
        (*job)();
        stop(FINISHED);
    }
}

/* Stacks begin at different places of a page: at the same, those of a warp would share few lines of the cache. */
void enter(fibre &f) {
    ucontext_t context;
    f.stack.resize(1 << 16);
    getcontext(&context);
    context.uc_stack.ss_sp = f.stack.data();
    context.uc_stack.ss_size = f.stack.size() - (&f - fibres) % 32 * 576;
    context.uc_link = NULL; /* it never returns */
    makecontext(&context, run_fibre, 0);
    setcontext(&context);
}

/* Goes on with a fibre until it stops. */
__attribute__((noipa)) void resume(unsigned i) {
    threadIdx.x = i;
    if (__builtin_setjmp(scheduler) != 0)
        return;
    if (fibres[i].stack.empty())
        enter(fibres[i]);
    else
        go_to(fibres[i].place);
}

void begin(unsigned i) {
    fibres[i].state = RUNS;
    fibres[i].phase = 0;
}

/* Runs a warp until all its lanes are at the block's barrier or at their end. */
void run_warp(unsigned first, unsigned lanes) {
    for (;;) {
        unsigned at_warp = 0;
        for (unsigned i = first; i < first + lanes; i++) {
            if (fibres[i].state == RUNS)
                resume(i);
            at_warp += fibres[i].state == AT_WARP;
        }
        if (at_warp == 0)
            return;
        for (unsigned i = first; i < first + lanes; i++) {
            if (at_warp != lanes || fibres[i].line != fibres[first].line) {
                fprintf(stderr, "emulation: lanes are apart, lane %u at line %d, %u of %u at a collective\n", i,
                        fibres[i].line, at_warp, lanes);
                exit(1);
            }
            arrived[first / 32][(fibres[i].phase + 1) & 1][i - first] = fibres[i].value;
        }
        for (unsigned i = first; i < first + lanes; i++) {
            fibres[i].phase++;
            fibres[i].state = RUNS;
        }
    }
}

void run_block(unsigned threads) {
    for (unsigned i = 0; i < threads; i++)
        begin(i);
    for (;;) {
        unsigned waiting = 0;
        for (unsigned first = 0; first < threads; first += 32)
            run_warp(first, threads - first < 32 ? threads - first : 32);
        for (unsigned i = 0; i < threads; i++)
            if (fibres[i].state == AT_BLOCK) {
                fibres[i].state = RUNS;
                waiting++;
            }
        if (waiting == 0)
            return;
    }
}
} // namespace

const uint64_t *emulated_exchange(uint64_t value, int line) {
    uint32_t self = threadIdx.x;
    fibres[self].value = value;
    fibres[self].line = line;
    stop(AT_WARP);
    return arrived[self / 32][fibres[self].phase & 1];
}

void emulated_barrier() { stop(AT_BLOCK); }

static void launch(unsigned blocks, unsigned threads, const std::function<void()> &body) {
    job = &body;
    blockDim.x = threads;
    gridDim.x = blocks;
    for (unsigned block = 0; block < blocks; block++) {
        blockIdx.x = block;
        run_block(threads);
    }
}

/* ---- Streams: all of them are one queue, which is empty as long as work is done at once ---- */

struct emulated_event {
    double time;
    uint64_t place; /* in the queue, counted from its beginning */
};
struct emulated_graph {
    std::vector<std::function<void()>> work;
};

static std::deque<std::function<void()>> queue;
static uint64_t queued, done;
static emulated_graph *captured;

/* With EMULATED_QUEUE work waits until the host waits for it, as late as a GPU could do it. Not in a process of several
 * that mpirun started: the emulated NCCL does its work at once. */
static bool defers() {
    static const bool set = getenv("EMULATED_QUEUE") != NULL && getenv("OMPI_COMM_WORLD_SIZE") == NULL;
    return set;
}

static void run_until(uint64_t place) {
    while (done < place && !queue.empty()) {
        std::function<void()> work = queue.front();
        queue.pop_front();
        work();
        done++;
    }
}

static void run_all() { run_until(queued); }

static void enqueue(const std::function<void()> &work) {
    if (captured) {
        captured->work.push_back(work);
    } else if (defers()) {
        queue.push_back(work);
        queued++;
    } else {
        work();
    }
}

/* What waits for the device would make a capture fail. */
static cudaError_t wait_until(uint64_t place) {
    if (captured)
        return cudaErrorInvalidValue;
    run_until(place);
    return cudaSuccess;
}

void emulated_launch(unsigned blocks, unsigned threads, const std::function<void()> &body) {
    enqueue([=] { launch(blocks, threads, body); });
}

/* ---- The runtime ---- */

static std::map<uintptr_t, size_t> device_memory;
static std::map<uintptr_t, size_t> pinned;

extern "C" {

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
    *pointer = aligned_alloc(512, (bytes + 512) / 512 * 512);
    if (!*pointer)
        return cudaErrorMemoryAllocation;
    memset(*pointer, 0xa5, bytes);
    device_memory[(uintptr_t)*pointer] = (bytes + 512) / 512 * 512;
    return cudaSuccess;
}
static cudaError_t free_device(void *pointer) {
    if (pointer && device_memory.erase((uintptr_t)pointer) != 1)
        return cudaErrorInvalidValue;
    free(pointer);
    return cudaSuccess;
}
cudaError_t cudaFree(void *pointer) {
    run_all();
    return free_device(pointer);
}
cudaError_t cudaMallocAsync(void **pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFreeAsync(void *pointer, cudaStream_t) {
    enqueue([=] { free_device(pointer); });
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **pointer, size_t bytes) {
    *pointer = malloc(bytes);
    if (*pointer)
        memset(*pointer, 0xa5, bytes);
    pinned[(uintptr_t)*pointer] = bytes;
    return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *pointer) {
    run_all();
    pinned.erase((uintptr_t)pointer);
    free(pointer);
    return cudaSuccess;
}
cudaError_t cudaHostRegister(void *pointer, size_t bytes, unsigned) {
    if ((uintptr_t)pointer % 4096 || bytes % 4096)
        return cudaErrorInvalidValue; /* others would share a page with what is not locked */
    pinned[(uintptr_t)pointer] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *pointer) {
    run_all();
    return pinned.erase((uintptr_t)pointer) == 1 ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    auto after = device_memory.upper_bound((uintptr_t)pointer);
    bool device = after != device_memory.begin();
    if (device) {
        --after;
        device = (uintptr_t)pointer < after->first + after->second;
    }
    attributes->type = device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}
/* Copies between the two memories must say the right direction. */
static bool is_device(const void *pointer) {
    struct cudaPointerAttributes attributes;
    cudaPointerGetAttributes(&attributes, pointer);
    return attributes.type == cudaMemoryTypeDevice;
}
static bool is_pinned(const void *pointer) {
    auto after = pinned.upper_bound((uintptr_t)pointer);
    return after != pinned.begin() && (uintptr_t)pointer < (--after)->first + after->second;
}
static bool right_direction(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    return bytes == 0 ||
           (is_device(to) == (kind != cudaMemcpyDeviceToHost) && is_device(from) == (kind != cudaMemcpyHostToDevice));
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    run_all();
    if (!right_direction(to, from, bytes, kind))
        return cudaErrorInvalidValue;
    memmove(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t) {
    if (!right_direction(to, from, bytes, kind))
        return cudaErrorInvalidValue;
    if (kind == cudaMemcpyHostToDevice && !is_pinned(from)) { /* pageable memory is read at once */
        std::vector<char> copy((const char *)from, (const char *)from + bytes);
        enqueue([=] { memcpy(to, copy.data(), copy.size()); });
    } else {
        enqueue([=] { memmove(to, from, bytes); });
    }
    return cudaSuccess;
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    if (bytes > 0 && !is_device(to))
        return cudaErrorInvalidValue;
    enqueue([=] { memset(to, value, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) { return cudaMemset(to, value, bytes); }
cudaError_t cudaMemGetInfo(size_t *room, size_t *all) {
    *room = *all = (size_t)1 << 31;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = (cudaStream_t)malloc(1);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait_until(queued); }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamBeginCapture(cudaStream_t, enum cudaStreamCaptureMode) {
    run_all();
    captured = new emulated_graph();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    *graph = captured;
    captured = NULL;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *replay, cudaGraph_t graph, unsigned long long) {
    *replay = new emulated_graph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t replay, cudaStream_t) {
    for (const std::function<void()> &work : replay->work)
        enqueue(work);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t replay) {
    run_all();
    delete replay;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = new emulated_event();
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    enqueue([=] {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        event->time = (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
    });
    event->place = queued;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return event->place > done ? wait_until(event->place) : cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return event->place > done ? cudaErrorNotReady : cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    *milliseconds = (float)(end->time - begin->time);
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return wait_until(queued); }
static int current;
cudaError_t cudaGetDevice(int *device) {
    *device = current;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    current = device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *devices) {
    const char *given = getenv("EMULATED_GPUS");
    *devices = given ? atoi(given) : 16;
    return *devices > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    snprintf(properties->name, sizeof properties->name, "emulated GPU");
    memset(properties->uuid.bytes, 1 + device, sizeof properties->uuid.bytes);
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess                 ? "no error"
           : error == cudaErrorMemoryAllocation ? "out of memory"
           : error == cudaErrorNoDevice         ? "no device is detected"
                                                : "invalid argument";
}
}
