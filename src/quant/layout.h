/*
 * layout.h - the words that the host, the SIMD kernels and the CUDA kernels share: what one tensor looks like to the
 * update pass. Plain C that nvcc accepts too.
 */
#ifndef STQ_LAYOUT_H
#define STQ_LAYOUT_H

#include <assert.h>
#include <stquant/quant.h>

/* Functions that host and device code call. */
#ifdef __CUDACC__
#define STQ_INLINE static __host__ __device__ __forceinline__
#else
#define STQ_INLINE static inline
#endif

/* Elements in one segment: the unit of reproducible sums, of work lists and of shards. A multiple of STQ_BLOCK. */
#define STQ_SEGMENT 65536

/* Elements of the largest tensor or array. */
#define STQ_MOST_ELEMENTS (INT64_C(1) << 38)

#define STQ_BITS_FLOAT32 32u

/* Widths of codes. */
enum { STQ_LOWEST_BITS = 2, STQ_HIGHEST_BITS = 8 };

static inline bool stq_is_coded(uint32_t bits) { return bits >= STQ_LOWEST_BITS && bits <= STQ_HIGHEST_BITS; }

/* Segments that `count` elements take. */
STQ_INLINE int64_t stq_segment_count(int64_t count) { return (count + STQ_SEGMENT - 1) / STQ_SEGMENT; }

/* Plane `plane` (0 = base) of a state. */
static inline uint8_t *stq_plane(const stq_planes *planes, uint32_t plane) {
    return plane == 0 ? planes->base : planes->bit[plane - 1];
}

/* Bytes of a plane that holds one bit of each of `count` values, whole blocks of them. */
static inline int64_t stq_bit_plane_bytes(int64_t count) {
    return (count + STQ_BLOCK - 1) / STQ_BLOCK * (STQ_BLOCK / 8);
}

/* One tensor's slice in one step; without a gradient (NULL) it takes no part. In-planes are decoded, out-planes are
 * encoded; they are the same unless the width changes in this step. A transition may share the base plane: a block is
 * decoded whole before it is encoded. Where v_in is shared (quant/shared.h), its means are those of this step already:
 * v is read and not updated, and v_out is v_in or planes of codes, which are encoded from v. */
typedef struct stq_item {
    void *parameter;
    const void *gradient;
    stq_planes m_in;
    stq_planes m_out;
    stq_planes v_in;
    stq_planes v_out;
    int64_t count;       /* elements here */
    int64_t first_block; /* global index of the first block: random numbers do not depend on slicing */
    int64_t rows;        /* shape of the global tensor: which mean is whose where v is shared */
    int64_t cols;
    uint32_t tensor; /* the tensor's index in its optimizer */
    uint32_t group;  /* index of its coefficients in this step */
    uint32_t parameter_type;
    uint32_t gradient_type;
} stq_item;

/* What one group needs in one step; computed in double, see optim/coefficients.h. */
typedef struct stq_coefficients {
    float gradient_factor; /* unscale * clip: g' = g * gradient_factor */
    float beta1;
    float one_minus_beta1;
    float beta2;
    float one_minus_beta2;
    float decay;        /* 1 - learning_rate * weight_decay */
    float step_size;    /* learning_rate * sqrt(1 - beta2^t) / (1 - beta1^t) */
    float epsilon;      /* epsilon * sqrt(1 - beta2^t) */
    float compensation; /* error compensation: alpha * kappa_t * (1 - beta1^t); 0 = off */
    uint32_t step_key;  /* stq_step_key(seed, t) */
    /* For float32 states, whose arithmetic is that of torch.optim.AdamW(fused=True), operation for operation. */
    float plain_step;    /* learning_rate / (1 - beta1^t) */
    float plain_root;    /* sqrt(1 - beta2^t) */
    float plain_epsilon; /* epsilon */
} stq_coefficients;

#ifdef __cplusplus
static_assert(sizeof(stq_planes) == 56, "stq_planes is shared with device code");
static_assert(sizeof(stq_item) == 288, "stq_item is shared with device code");
static_assert(sizeof(stq_coefficients) == 52, "stq_coefficients is shared with device code");
#else
_Static_assert(sizeof(stq_planes) == 56, "stq_planes is shared with device code");
_Static_assert(sizeof(stq_item) == 288, "stq_item is shared with device code");
_Static_assert(sizeof(stq_coefficients) == 52, "stq_coefficients is shared with device code");
#endif

#endif
