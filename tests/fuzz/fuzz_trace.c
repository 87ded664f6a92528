/* libFuzzer's entry for traces: what `stquant factors` reads. Samples are finite numbers, or there are none. */
#define _GNU_SOURCE
#include "memory_file.h"

#include <math.h>
#include <string.h>

#include "train/trace_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[MEMORY_FILE_PATH];
    struct trace_samples samples = {0};
    memory_file(data, size, path);
    enum app_status status = trace_samples_add(&samples, path, TRACE_BOTH, 4);
    if (status != APP_OK && strlen(app_failure()) < 10)
        abort();
    for (size_t i = 0; status == APP_OK && i < samples.count; i++) {
        if (!isfinite(samples.target[i]))
            abort();
        for (int factor = 0; factor < TRACE_FACTORS; factor++)
            if (!isfinite(samples.factors[i * TRACE_FACTORS + (size_t)factor]))
                abort();
    }
    trace_samples_release(&samples);
    return 0;
}
