#include "train/failure.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char sentence[1024];

enum app_status(app_fail)(enum app_status status, const char *format, ...) {
    // The arguments may include the old sentence, so the new one is composed apart from it.
    char composed[sizeof(sentence)];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(composed, sizeof(composed), format, arguments);
    va_end(arguments);
    snprintf(sentence, sizeof(sentence), "%s", composed);
    return status;
}

const char *app_failure(void) { return sentence; }
