// How the trainer reports that something went wrong: a status, which is also the exit status of the
// command, and one sentence that names the thing and the way out.
#ifndef STQUANT_TRAIN_FAILURE_H
#define STQUANT_TRAIN_FAILURE_H

#include <stquant/base.h>

enum app_status {
    APP_OK = 0,     // done
    APP_FAILED = 1, // the run failed: no memory, a full disk, a file that cannot be used
    APP_USAGE = 2,  // what was asked for makes no sense: an unknown preset, an impossible cap
};

// Records a complete sentence and returns `status`, so
// that a caller can write `return app_fail(APP_USAGE, "...", ...)`. The sentence is kept per thread;
// a later failure replaces it.
__attribute__((format(printf, 2, 3))) enum app_status app_fail(enum app_status status, const char *format, ...);

#ifdef __clang_analyzer__ // which sees no other file, and would take a failure for APP_OK
#define app_fail(status, ...) ((void)app_fail(status, __VA_ARGS__), (status))
#endif

// The same with the library's sentence about its last failure.
static inline enum app_status app_library_failure(void) { return app_fail(APP_FAILED, "%s", stq_last_error()); }

// What a status of the library means for the command: APP_OK, or APP_FAILED with the library's sentence.
static inline enum app_status app_check(stq_status status) { return status == STQ_OK ? APP_OK : app_library_failure(); }

// The same where what was asked for may be at fault: APP_USAGE for an impossible cap or an invalid argument.
static inline enum app_status app_check_asked(stq_status status) {
    const int usage = status == STQ_CAP_TOO_SMALL || status == STQ_INVALID_ARGUMENT;
    return usage ? app_fail(APP_USAGE, "%s", stq_last_error()) : app_check(status);
}

// The last sentence recorded on this thread; empty when there was none.
const char *app_failure(void);

#endif
