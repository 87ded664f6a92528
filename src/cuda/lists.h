/*
 * lists.h - what the host hands to the GPU kernels: the work list, the items as the device sees them, and the control
 * record of one step. Shared by C and CUDA; everything here lies in device memory while kernels run.
 */
#ifndef STQ_LISTS_H
#define STQ_LISTS_H

#include "quant/layout.h"

/* A warp's row: two blocks, 8 values a lane. */
#define STQ_ROW 256
/* Rows of a group: 16 blocks, whose 32 keys and scale words the 32 lanes hold. */
#define STQ_WARP_ROWS 8
#define STQ_TILE_WARPS 8
/* Such groups of rows that a warp works on, one after the other. */
#ifndef STQ_WARP_GROUPS
#define STQ_WARP_GROUPS 2
#endif
/* Elements that one thread block works on: half a segment. */
#define STQ_TILE (STQ_ROW * STQ_WARP_ROWS * STQ_WARP_GROUPS * STQ_TILE_WARPS)

/* How an item is worked on. The plain kinds: widths 2 to 8 that do not change in this step, or a second moment that is
 * shared and stays so, in rows of a multiple of 8 values; no error compensation, arrays aligned to 16 bytes. */
enum {
    STQ_KIND_GENERAL = 0,
    STQ_KIND_BFLOAT16 = 1, /* parameter and gradient */
    STQ_KIND_FLOAT32 = 2,  /* parameter and gradient */
    STQ_KIND_MIXED = 3,    /* float32 parameter, bfloat16 gradient */
    STQ_KIND_SHARED = 4    /* a bit more in each of these: the second moment is shared */
};

/* One item on the device. */
typedef struct stq_device_item {
    stq_item item;
    uint32_t kind;
    uint32_t probes_at; /* where the values at its probes go, see stq_cuda_read_probes() */
    int64_t means_at;   /* where the scratch for its means lies; -1: its second moment is never shared */
} stq_device_item;

/* One thread block's work: elements STQ_TILE * tile and following of an item. */
typedef struct stq_tile {
    uint32_t item;
    uint32_t tile;
} stq_tile;

/* The state of an optimizer's steps. It lives on the device, so that a step needs nothing from the host. */
typedef struct stq_control {
    int64_t steps;   /* made */
    int64_t skipped; /* not made because a gradient was not finite */
    double norm;     /* global, after unscaling, of the latest step */
    uint32_t skip;   /* not 0: the latest step changes nothing */
    uint32_t reserved;
} stq_control;

/* What a step's coefficients are made from. The pointers are device pointers or NULL. */
typedef struct stq_prepare {
    double unscale;
    double max_gradient_norm;
    double given_norm;           /* with norm_supplied */
    const double *norm;          /* instead of given_norm */
    const double *sum_squares;   /* of the gradients, if no norm is supplied */
    const float *loss_scale;     /* divides unscale */
    const float *found_infinite; /* other than 0: skip */
    double error_compensation;
    uint64_t seed;
    uint32_t norm_supplied;
    uint32_t reserved;
} stq_prepare;

/* Thread blocks that share out the means of an item. */
#ifndef STQ_SHARE_PARTS
#define STQ_SHARE_PARTS 16
#endif

/* What a step does for second moments that are shared (quant/shared.h) is done with. Everything is in device memory. */
typedef struct stq_share_lists {
    const stq_device_item *items;
    int64_t item_count;
    const stq_tile *segments;
    int64_t segment_count;
    int64_t *sums;                        /* scratch, one a mean: items[i].means_at and following */
    float *factors;                       /* likewise */
    uint32_t *saturated;                  /* scratch, one an item, and behind them whether any is */
    const stq_coefficients *coefficients; /* one an item */
    const stq_control *control;
} stq_share_lists;

/* Whether a step's gradients are measured for a decision; it lives on the device, which knows whether the step is made.
 */
typedef struct stq_gate {
    uint32_t active;   /* in this step */
    uint32_t measured; /* since the host opened the gate */
    int64_t step;      /* whose gradients were measured last */
    double unscale;    /* of that step's gradients */
} stq_gate;

/* Rows that one thread block takes in the products behind the stable rank. */
#define STQ_SCORE_ROWS 64

/* One tensor's factors in the making. The host fills the second part and zeroes the sums. */
typedef struct stq_score {
    double squares, fourths;                          /* as in stq_moment_sums */
    double frobenius;                                 /* of the prescaled gradient */
    double y_norm, z_norm;                            /* of the last products, 0 if a product vanished */
    double y_scale;                                   /* of y in the next product */
    unsigned long long near_zero, row_squares, roots; /* as in stq_row_statistics */
    uint32_t largest_bits;
    float prescale, threshold, fixed_point;
    uint32_t small_x, small_y; /* whether all products with the vectors' elements are small, see factors.cu */

    uint32_t ranked; /* 0: no power iteration, the tensor has one row or one column, or takes no part */
    uint32_t reserved;
    int64_t rows, cols;          /* rows 0: takes no part */
    int64_t first, count;        /* elements held here */
    int64_t rows_at, columns_at; /* places of its two vectors, multiples of STQ_SCORE_ALIGN */
} stq_score;

/* Room of a vector of `count`, so that the next one begins where entries can be loaded together. */
#define STQ_SCORE_ALIGN 8
#define STQ_SCORE_ROOM(count) (((count) + STQ_SCORE_ALIGN - 1) / STQ_SCORE_ALIGN * STQ_SCORE_ALIGN)

#ifdef __cplusplus
static_assert(sizeof(stq_device_item) == 304, "stq_device_item is shared with device code");
#else
_Static_assert(sizeof(stq_device_item) == 304, "stq_device_item is shared with device code");
#endif

#endif
