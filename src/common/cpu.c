/* cpu.c - CPUID and XGETBV: a processor's instructions count only if the operating system saves their registers. */
#include "common/cpu.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <stdint.h>

/* Bits of XCR0: registers that the operating system saves. */
#define XCR0_AVX 0x06u
#define XCR0_AVX512 0xe6u

static uint32_t saved_registers(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has_all(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

bool stq_cpu_has_avx2(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has_all(c, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C))
        return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has_all(b, bit_AVX2))
        return false;
    return has_all(saved_registers(), XCR0_AVX);
}

bool stq_cpu_has_avx512(void) {
    uint32_t a, b, c, d;
    if (!stq_cpu_has_avx2() || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return false;
    return has_all(b, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL) && has_all(c, bit_AVX512VBMI) &&
           has_all(saved_registers(), XCR0_AVX512);
}

#else

bool stq_cpu_has_avx2(void) { return false; }

bool stq_cpu_has_avx512(void) { return false; }

#endif
