/* error.h - how a failure gets its sentence. */
#ifndef STQ_ERROR_H
#define STQ_ERROR_H

#include <stquant/base.h>

/* Stores the formatted sentence for stq_last_error() and returns `status`. Sentences name the thing and the way out. */
stq_status stq_error(stq_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#ifdef __clang_analyzer__ /* which sees no other file, and would take a failure for STQ_OK */
#define stq_error(status, ...) ((void)stq_error(status, __VA_ARGS__), (status))
#endif

/* Returns from the calling function with the status of a failed call. */
#define STQ_CHECK(call)                       \
    do {                                      \
        stq_status stq_check_status = (call); \
        if (stq_check_status != STQ_OK)       \
            return stq_check_status;          \
    } while (0)

#endif
