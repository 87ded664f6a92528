/* status.c - status names, the thread's last sentence, version, dtypes. */
#include <stdarg.h>
#include <stdio.h>

#include "common/error.h"

#define STRING_(x) #x
#define STRING(x) STRING_(x)

static _Thread_local char last_error[512];

stq_status(stq_error)(stq_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

const char *stq_last_error(void) { return last_error; }

const char *stq_status_name(stq_status status) {
    switch (status) {
    case STQ_OK:
        return "ok";
    case STQ_INVALID_ARGUMENT:
        return "invalid argument";
    case STQ_OUT_OF_MEMORY:
        return "out of memory";
    case STQ_CAP_TOO_SMALL:
        return "cap too small";
    case STQ_UNSUPPORTED:
        return "unsupported";
    case STQ_IO_ERROR:
        return "input/output error";
    case STQ_CORRUPT:
        return "corrupt data";
    case STQ_COMMUNICATION:
        return "communication error";
    case STQ_DEVICE_ERROR:
        return "device error";
    }
    return "unknown status";
}

const char *stq_version(void) {
    return STRING(STQ_VERSION_MAJOR) "." STRING(STQ_VERSION_MINOR) "." STRING(STQ_VERSION_PATCH);
}

size_t stq_dtype_size(stq_dtype dtype) {
    switch (dtype) {
    case STQ_FLOAT32:
        return 4;
    case STQ_BFLOAT16:
    case STQ_FLOAT16:
        return 2;
    case STQ_UINT8:
        return 1;
    }
    return 0;
}

stq_tensor stq_tensor_whole(const char *name, int64_t rows, int64_t cols) {
    stq_tensor tensor = {.name = name, .rows = rows, .cols = cols, .count = rows * cols};
    return tensor;
}
