/* error.h - how a failure gets its sentence. */
#ifndef STQ_ERROR_H
#define STQ_ERROR_H

#include <stquant/base.h>

/* Stores the formatted sentence for stq_last_error() and returns `status`. Sentences name the thing and the way out. */
stq_status stq_error(stq_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Returns from the calling function with the status of a failed call. */
#define STQ_CHECK(call)                       \
    do {                                      \
        stq_status stq_check_status = (call); \
        if (stq_check_status != STQ_OK)       \
            return stq_check_status;          \
    } while (0)

#endif
