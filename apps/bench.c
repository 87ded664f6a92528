// What the benchmarks of `stquant bench` share.
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <stquant/quant.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

double bench_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *times, int count) {
    qsort(times, (size_t)count, sizeof(*times), compare_doubles);
    return times[(count - 1) / 2];
}

// A chain of multiplications, three cycles each on all processors with AVX2, or of additions of one cycle.
double bench_gigahertz(void) {
    enum { ROUNDS = 4096, CHAIN = 16 };
    double cycles = 0;
    const double begin = bench_seconds();
#if defined(__x86_64__)
    uint64_t x = 3;
    for (int i = 0; i < ROUNDS; i++) {
        __asm__ volatile(".rept 16\n\timul %0, %0\n\t.endr" : "+r"(x));
    }
    cycles = 3.0 * ROUNDS * CHAIN;
#elif defined(__aarch64__)
    uint64_t x = 3;
    for (int i = 0; i < 3 * ROUNDS; i++) {
        __asm__ volatile(".rept 16\n\tadd %0, %0, %0\n\t.endr" : "+r"(x));
    }
    cycles = 3.0 * ROUNDS * CHAIN;
#endif
    return 1e-9 * cycles / (bench_seconds() - begin);
}

static size_t mapped_size(size_t bytes) {
    const size_t huge = (size_t)1 << 21;
    return (bytes + huge - 1) / huge * huge;
}

void *bench_allocate(size_t bytes, int threads) {
    const size_t size = mapped_size(bytes);
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    madvise(memory, size, MADV_HUGEPAGE);
    const int64_t pages = (int64_t)(size / 4096);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < pages; i++) {
        memory[i * 4096] = 0;
    }
    return memory;
}

void bench_release(void *memory, size_t bytes) {
    if (memory) {
        munmap(memory, mapped_size(bytes));
    }
}

// A finaliser of 32 bits (constants: C. Wellons).
static uint32_t mix(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

void bench_fill(float *values, int64_t count, float deviation, uint32_t seed, int threads) {
    const float unit = deviation * 2.643e-5f; // sqrt(3) / 65536: the sum of four uniforms of 16 bits
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        const uint32_t a = mix((uint32_t)i * 0x9e3779b9u + mix(seed + (uint32_t)(i >> 32))), b = mix(a + 0x85ebca6bu);
        const int32_t sum = (int32_t)((a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16)) - 2 * 65535;
        values[i] = (float)sum * unit;
    }
}

const char *bench_choose_kernels(const struct argp_state *state, const char *isa) {
    if (isa) {
        setenv("STQUANT_ISA", isa, 1);
    }
    const char *used = stq_cpu_kernels();
    if (isa && strcmp(used, isa) != 0) {
        argp_failure(state, APP_USAGE, 0,
                     "There are no kernels '%s' for this machine; it would use '%s'. The names are avx512, avx2, neon "
                     "and reference.",
                     isa, used);
    }
    return used;
}

stq_policy_kind bench_choose_policy(const struct argp_state *state, const char *name) {
    static const char *const policies[] = {"zones", "rate-distortion"};
    return command_choice(state, "policy", name, policies, 2) == policies[0] ? STQ_POLICY_ZONES
                                                                             : STQ_POLICY_RATE_DISTORTION;
}
