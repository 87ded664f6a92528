// How the trainer reports that something went wrong: a status, which is also the exit status of the
// command, and one sentence that names the thing and the way out.
#ifndef STQUANT_TRAIN_FAILURE_H
#define STQUANT_TRAIN_FAILURE_H

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

// The last sentence recorded on this thread; empty when there was none.
const char *app_failure(void);

#endif
