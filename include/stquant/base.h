/*
 * stquant/base.h - what every part of the library shares: version, status codes, dtypes, allocator, tensor description.
 *
 * Conventions of the whole library:
 *  - Every function that can fail returns a stq_status; results go through pointers, which are written on success only
 *    unless a comment says otherwise. The library never prints, exits or aborts.
 *  - Element counts and offsets are 64 bits wide. Sizes are in bytes and say so.
 *  - Parameters come before gradients in every argument list.
 *  - Objects are not thread-safe: one thread at a time may use one object. Different objects are independent.
 */
#ifndef STQUANT_BASE_H
#define STQUANT_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Version of these headers; stq_version() tells that of the library. The build takes its version from here. */
#define STQ_VERSION_MAJOR 0
#define STQ_VERSION_MINOR 1 /**< second part */
#define STQ_VERSION_PATCH 0 /**< third part */

#if defined(STQ_STATIC) || !defined(__GNUC__)
#define STQ_API
#else
#define STQ_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** Outcome of a call. Anything but STQ_OK comes with a sentence in stq_last_error(). */
typedef enum stq_status {
    STQ_OK = 0,
    STQ_INVALID_ARGUMENT = 1, /**< an argument is out of range; nothing was changed */
    STQ_OUT_OF_MEMORY = 2,    /**< the allocator returned NULL, or a size does not fit in size_t */
    STQ_CAP_TOO_SMALL = 3,    /**< the byte cap is below the smallest possible one, which the message names */
    STQ_UNSUPPORTED = 4,      /**< this build or this machine cannot do it */
    STQ_IO_ERROR = 5,         /**< the operating system refused to read or write */
    STQ_CORRUPT = 6,          /**< stored data contradicts its own description */
    STQ_COMMUNICATION = 7,    /**< another rank failed, timed out or disagrees */
    STQ_DEVICE_ERROR = 8      /**< the GPU runtime reported an error */
} stq_status;

/** Short name of a status ("ok", "invalid argument", ...), never NULL; static storage. */
STQ_API const char *stq_status_name(stq_status status);

/**
 * One sentence about the calling thread's most recent failure, naming the thing and the way out; "" before any failure.
 * Owned by the library, valid until the thread's next failing call.
 */
STQ_API const char *stq_last_error(void);

/** "MAJOR.MINOR.PATCH" of the library that is linked; static storage. */
STQ_API const char *stq_version(void);

/** Element type of a parameter or gradient array. */
typedef enum stq_dtype {
    STQ_FLOAT32 = 0,
    STQ_BFLOAT16 = 1, /**< parameters are written with stochastic rounding */
    STQ_FLOAT16 = 2,  /**< parameters are written rounded to nearest even */
    STQ_UINT8 = 3     /**< arrays of checkpoints only (packed weights); everything else refuses it */
} stq_dtype;

/** What holds parameters, gradients and states, and computes the steps. */
typedef enum stq_device {
    STQ_DEVICE_CPU = 0,
    STQ_DEVICE_CUDA = 1 /**< only in builds with CUDA; others answer STQ_UNSUPPORTED */
} stq_device;

/** Bytes of one element: 4, 2, 2 or 1; 0 for an unknown dtype. */
STQ_API size_t stq_dtype_size(stq_dtype dtype);

/**
 * Host-supplied memory for the optimizer states, so that a framework's own accounting sees them. For a CUDA optimizer
 * the pointers are device pointers, usable on the optimizer's stream.
 */
typedef struct stq_allocator {
    void *context; /**< handed back in every call; owned by the host */
    /** Returns at least `bytes` bytes (never 0 asked), aligned to 64 or more, or NULL. Contents may be anything. */
    void *(*allocate)(void *context, size_t bytes);
    /** Takes back what `allocate` returned, with the same `bytes`. */
    void (*release)(void *context, void *pointer, size_t bytes);
    /** Every request is charged rounded up to a multiple of this (512 for PyTorch's CUDA allocator); 0 means 64. */
    size_t granularity;
} stq_allocator;

/**
 * One parameter tensor, or this process's slice of it. Precision, factors and random numbers belong to the global
 * tensor: they do not depend on how it is sliced.
 */
typedef struct stq_tensor {
    const char *name;         /**< unique in its list, which is checked; UTF-8, copied by the library */
    int64_t rows;             /**< global shape, folded to two dimensions; 1-D tensors are 1 x n; rows >= 1 */
    int64_t cols;             /**< cols >= 1; rows * cols <= 2^38 */
    int64_t first;            /**< first element (of the row-major global tensor) held here */
    int64_t count;            /**< elements held here, 0 to rows * cols - first */
    stq_dtype parameter_type; /**< element type of the parameter array */
    stq_dtype gradient_type;  /**< element type of the gradient array */
    uint32_t group;           /**< index into the optimizer's groups (learning rate, betas, ...) */
    uint32_t m_bits;          /**< first moment: 0 = the policy chooses, 2 to 8 = this width always, 32 = float32 */
    uint32_t v_bits;          /**< second moment: likewise, or STQ_BITS_SHARED_ROW, STQ_BITS_SHARED_COL,
                                   STQ_BITS_NOT_SHARED; m_bits and v_bits are 32 together or not at all */
    float depth; /**< relative depth in the network, 0 (input) to 1 (output); a factor of the score engine */
} stq_tensor;

/** A whole float32 tensor of rows x cols, group 0, widths left to the policy. `name` is not copied here. */
STQ_API stq_tensor stq_tensor_whole(const char *name, int64_t rows, int64_t cols);

#ifdef __cplusplus
}
#endif

#endif
