/*
 * stquant/quant.h - the Quantization engine's codecs, alone: float32 moments to packed codes and back.
 *
 * The codes of a tensor state lie in planes of blocks of 128 values. The most significant bits of a code are in the
 * base plane (a nibble for widths 4 to 8, a pair for 2 and 3), each further bit in a bit plane of its own, most
 * significant first. Within a plane value i of the tensor is at bits 4 (i mod 2) of byte i / 2 (nibbles), 2 (i mod 4)
 * of byte i / 4 (pairs), i mod 8 of byte i / 8 (bits). The last block is padded to 128 values; the padding's codes are
 * 0. Each block has a 16-bit scale word. docs/codec.md defines codes and scale words.
 */
#ifndef STQUANT_QUANT_H
#define STQUANT_QUANT_H

#include <stquant/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Values that share one scale word. */
#define STQ_BLOCK 128

/** Width of a second moment that is shared: one float32 mean a row instead of codes. */
#define STQ_BITS_SHARED_ROW 64u
/** The same with one mean a column. */
#define STQ_BITS_SHARED_COL 65u

/** As a tensor's v_bits: the policy chooses a width, but never shares. */
#define STQ_BITS_NOT_SHARED 1u

/** The planes of one tensor state. All pointers are owned by whoever allocated them, aligned to 16 bytes or more. */
typedef struct stq_planes {
    /** 64 bytes a block (nibbles) or 32 (pairs); 4-byte floats where bits = 32 */
    uint8_t *base;
    /** 16 bytes a block each; the first bits - 4 (bits >= 4) or bits - 2 are in use, the rest is NULL */
    uint8_t *bit[4];
    uint16_t *scales; /**< one word a block; NULL where bits = 32 */
    uint32_t bits;    /**< 2 to 8; 32 = float32 values in `base`; 0 = no planes, every value is 0; the optimizer alone
                           knows the shared widths */
} stq_planes;

/** Which of Adam's two states: each has its own codec. */
typedef enum stq_state {
    STQ_FIRST_MOMENT = 0, /**< m: signed; sign and companded magnitude, nearest rounding */
    STQ_SECOND_MOMENT = 1 /**< v: non-negative; nodes of a logarithmic lattice, stochastic rounding */
} stq_state;

/** Names one use of the random numbers: the same values give the same bits on every backend. */
typedef struct stq_random {
    uint64_t seed;       /**< the optimizer's */
    uint64_t step;       /**< the step that encodes, from 1 */
    uint32_t tensor;     /**< the tensor's index in its optimizer */
    int64_t first_block; /**< global index of the first block coded */
} stq_random;

/** Blocks that `count` values take: ceil(count / 128). */
STQ_API int64_t stq_block_count(int64_t count);

/** Number of planes of a width: 1 for 2, 4 and 32 bits, 2 for 3 and 5, ... 5 for 8; 0 for widths that do not exist. */
STQ_API uint32_t stq_plane_count(uint32_t bits);

/**
 * Bytes of plane `plane` (0 = base) of a state of `count` values at `bits` bits, padding included; 0 for a plane that
 * the width does not have.
 */
STQ_API uint64_t stq_plane_bytes(int64_t count, uint32_t bits, uint32_t plane);

/**
 * Encodes float32 values.
 *
 * @param planes  bits = 2 to 8, planes and scales allocated for `count` values; contents are overwritten
 * @param state   whose codec
 * @param values  count finite values; non-negative for the second moment, and no -0
 * @param count   number of values, 0 or more
 * @param random  used for the second moment; NULL for the first
 * First moment: relative to the block's largest magnitude the error is at most docs/theory.md's table. Second moment:
 * unbiased between the ends of the block's lattice; values further below the block's maximum than docs/codec.md's reach
 * (3 to 24 octaves) are raised to the lattice's floor.
 */
STQ_API stq_status stq_encode(const stq_planes *planes, stq_state state, const float *values, int64_t count,
                              const stq_random *random);

/** Decodes `count` values of planes of any width (0 and 32 included) into `values`. */
STQ_API stq_status stq_decode(float *values, const stq_planes *planes, stq_state state, int64_t count);

/**
 * Name of the kernels that this process uses on the CPU: "avx512", "avx2", "neon", or "reference", plain C. All give
 * the same bytes. Chosen at the first call of the library that needs them, the fastest that processor and operating
 * system can run; the environment variable STQUANT_ISA asks for one of them by name, for tests. Static storage.
 */
STQ_API const char *stq_cpu_kernels(void);

#ifdef __cplusplus
}
#endif

#endif
