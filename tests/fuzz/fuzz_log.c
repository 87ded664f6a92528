/* libFuzzer's entry for the logs of runs: what `stquant report` reads, and what it computes from them. */
#define _GNU_SOURCE
#include "memory_file.h"

#include <string.h>

#include "report/run_log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Everything that is counted is there. */
static void use(const struct run_log *log) {
    for (int64_t i = 1; i < log->step_count; i++)
        if (log->steps[i] <= log->steps[i - 1])
            abort();
    for (int64_t decision = 0; decision < log->decision_count; decision++)
        for (int64_t tensor = 0; tensor < log->tensor_count; tensor++) {
            const struct run_entry *entry = run_log_entry(log, decision, tensor);
            if (entry->zone >= RUN_ZONES || entry->bits[0] > WIDTH_FLOAT32 || entry->bits[1] > WIDTH_FLOAT32)
                abort();
        }
    for (int64_t tensor = 0; tensor < log->tensor_count; tensor++)
        if (strlen(log->tensors[tensor].kind) > strlen(log->tensors[tensor].name))
            abort();
    for (enum run_column column = 0; column < RUN_COLUMNS; column++)
        if (run_log_largest(log, column) < run_log_last(log, column) ||
            run_log_largest(log, column) < run_log_median(log, column))
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[MEMORY_FILE_PATH];
    struct run_log log;
    memory_file(data, size, path);
    enum app_status status = run_log_read(path, &log);
    if (status == APP_OK) {
        use(&log);
        run_log_release(&log);
    } else if (strlen(app_failure()) < 10) {
        abort();
    }
    return 0;
}
