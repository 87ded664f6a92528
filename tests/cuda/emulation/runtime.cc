/* runtime.cc - the emulated CUDA runtime: memory, clocks, and blocks of fibres. */
#include "kernels.h"

#include <map>
#include <setjmp.h>
#include <time.h>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;
int emulated_error;

/* ---- Blocks ---- */

namespace {
enum waiting { RUNS, AT_WARP, AT_BLOCK, FINISHED };
struct fibre {
    ucontext_t context; /* for its first entry */
    jmp_buf place_in_code;
    bool entered;
    std::vector<char> stack;
    waiting state;
    uint64_t value;
    int place;
    int phase; /* collective operations of its warp so far */
};
fibre fibres[1024];
uint64_t arrived[32][2][32];
ucontext_t first_entry;
jmp_buf scheduler;
const std::function<void()> *job;

void stop(waiting state) {
    uint32_t self = threadIdx.x;
    fibres[self].state = state;
    if (_setjmp(fibres[self].place_in_code) == 0)
        _longjmp(scheduler, 1);
    threadIdx.x = self;
}

void run_fibre(int self) {
    threadIdx.x = (uint32_t)self;
    (*job)();
    fibres[self].state = FINISHED;
    _longjmp(scheduler, 1);
}

/* Goes on with a fibre until it stops. swapcontext() alone would make two system calls each time. */
void resume(unsigned i) {
    threadIdx.x = i;
    if (_setjmp(scheduler) != 0)
        return;
    if (fibres[i].entered)
        _longjmp(fibres[i].place_in_code, 1);
    fibres[i].entered = true;
    swapcontext(&first_entry, &fibres[i].context);
}

void begin(unsigned i) {
    fibre &f = fibres[i];
    f.stack.resize(1 << 16);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = &first_entry;
    f.entered = false;
    f.state = RUNS;
    f.phase = 0;
    makecontext(&f.context, (void (*)(void))run_fibre, 1, (int)i);
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
            if (at_warp != lanes || fibres[i].place != fibres[first].place) {
                fprintf(stderr, "emulation: lanes are apart, lane %u at line %d, %u of %u at a collective\n", i,
                        fibres[i].place, at_warp, lanes);
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

const uint64_t *emulated_exchange(uint64_t value, int place) {
    uint32_t self = threadIdx.x;
    fibres[self].value = value;
    fibres[self].place = place;
    stop(AT_WARP);
    return arrived[self / 32][fibres[self].phase & 1];
}

void emulated_barrier() { stop(AT_BLOCK); }

void emulated_launch(unsigned blocks, unsigned threads, const std::function<void()> &body) {
    job = &body;
    blockDim.x = threads;
    gridDim.x = blocks;
    for (unsigned block = 0; block < blocks; block++) {
        blockIdx.x = block;
        run_block(threads);
    }
}

/* ---- The runtime ---- */

static std::map<uintptr_t, size_t> device_memory;

struct emulated_event {
    double time;
};

extern "C" {

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
    *pointer = aligned_alloc(512, (bytes + 512) / 512 * 512);
    if (!*pointer)
        return cudaErrorMemoryAllocation;
    memset(*pointer, 0xa5, bytes);
    device_memory[(uintptr_t)*pointer] = (bytes + 512) / 512 * 512;
    return cudaSuccess;
}
cudaError_t cudaFree(void *pointer) {
    if (pointer && device_memory.erase((uintptr_t)pointer) != 1)
        return cudaErrorInvalidValue;
    free(pointer);
    return cudaSuccess;
}
cudaError_t cudaMallocAsync(void **pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFreeAsync(void *pointer, cudaStream_t) { return cudaFree(pointer); }
cudaError_t cudaMallocHost(void **pointer, size_t bytes) {
    *pointer = malloc(bytes);
    return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *pointer) {
    free(pointer);
    return cudaSuccess;
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
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    if (bytes > 0 &&
        (is_device(to) != (kind != cudaMemcpyDeviceToHost) || is_device(from) != (kind != cudaMemcpyHostToDevice)))
        return cudaErrorInvalidValue;
    memmove(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    if (bytes > 0 && !is_device(to))
        return cudaErrorInvalidValue;
    memset(to, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) { return cudaMemset(to, value, bytes); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = (cudaStream_t)malloc(1);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
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
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    event->time = (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    *milliseconds = (float)(end->time - begin->time);
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }
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
    *devices = 16;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int) {
    snprintf(properties->name, sizeof properties->name, "emulated GPU");
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess                 ? "no error"
           : error == cudaErrorMemoryAllocation ? "out of memory"
                                                : "invalid argument";
}
}
