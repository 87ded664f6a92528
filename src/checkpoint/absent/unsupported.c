/* unsupported.c - the functions of checkpoint.h in a library that was built without jansson or xxHash. */
#include <stquant/checkpoint.h>

#include "common/error.h"

static stq_status unsupported(void) {
    return stq_error(STQ_UNSUPPORTED, "This library was built without checkpoints; build it with jansson and xxHash.");
}

stq_status stq_saver_open(stq_saver **saver, const stq_saver_config *config) {
    (void)config;
    *saver = NULL;
    return unsupported();
}

void stq_saver_close(stq_saver *saver) { (void)saver; }

stq_status stq_saver_save(stq_saver *saver, const stq_save *save) {
    (void)saver, (void)save;
    return unsupported();
}

bool stq_saver_busy(stq_saver *saver) {
    (void)saver;
    return false;
}

stq_status stq_saver_wait(stq_saver *saver, stq_save_result *result) {
    (void)saver, (void)result;
    return unsupported();
}

stq_status stq_checkpoint_publish(const char *folder, int64_t step, uint32_t ranks, uint64_t run, bool *published) {
    (void)folder, (void)step, (void)ranks, (void)run;
    *published = false;
    return unsupported();
}

stq_status stq_checkpoint_find(const char *folder, int64_t below, char *path, size_t size) {
    (void)folder, (void)below, (void)path, (void)size;
    return unsupported();
}

stq_status stq_checkpoint_open(stq_checkpoint **checkpoint, const char *path) {
    (void)path;
    *checkpoint = NULL;
    return unsupported();
}

void stq_checkpoint_close(stq_checkpoint *checkpoint) { (void)checkpoint; }

stq_status stq_checkpoint_describe(const stq_checkpoint *checkpoint, stq_checkpoint_info *info) {
    (void)checkpoint, (void)info;
    return unsupported();
}

stq_status stq_checkpoint_array(const stq_checkpoint *checkpoint, size_t index, stq_array *array) {
    (void)checkpoint, (void)index, (void)array;
    return unsupported();
}

stq_status stq_checkpoint_tensor_info(const stq_checkpoint *checkpoint, size_t index, stq_checkpoint_tensor *tensor) {
    (void)checkpoint, (void)index, (void)tensor;
    return unsupported();
}

stq_status stq_checkpoint_record(const stq_checkpoint *checkpoint, stq_adamw_record *record) {
    (void)checkpoint, (void)record;
    return unsupported();
}

stq_status stq_checkpoint_group(const stq_checkpoint *checkpoint, size_t index, stq_adamw_group *group) {
    (void)checkpoint, (void)index, (void)group;
    return unsupported();
}

stq_status stq_checkpoint_entry_info(const stq_checkpoint *checkpoint, size_t index, stq_checkpoint_entry *entry) {
    (void)checkpoint, (void)index, (void)entry;
    return unsupported();
}

stq_status stq_checkpoint_load_arrays(const stq_checkpoint *checkpoint, const stq_array *arrays, size_t array_count) {
    (void)checkpoint, (void)arrays, (void)array_count;
    return unsupported();
}

stq_status stq_checkpoint_load_optimizer(const stq_checkpoint *checkpoint, stq_adamw *optimizer, bool *changed) {
    (void)checkpoint, (void)optimizer, (void)changed;
    return unsupported();
}

stq_status stq_checkpoint_verify(const stq_checkpoint *checkpoint) {
    (void)checkpoint;
    return unsupported();
}

stq_status stq_checkpoint_digest(const stq_checkpoint *checkpoint, uint64_t *digest) {
    (void)checkpoint, (void)digest;
    return unsupported();
}

stq_status stq_checkpoint_noise(const stq_checkpoint *checkpoint, size_t tensor, stq_state state, double *signal,
                                double *noise) {
    (void)checkpoint, (void)tensor, (void)state, (void)signal, (void)noise;
    return unsupported();
}

stq_status stq_checkpoint_read_state(const stq_checkpoint *checkpoint, size_t index, stq_state state, float *values) {
    (void)checkpoint, (void)index, (void)state, (void)values;
    return unsupported();
}

stq_status stq_safetensors_write(const char *path, const stq_array *arrays, size_t array_count,
                                 const char *const (*metadata)[2], size_t metadata_count) {
    (void)path, (void)arrays, (void)array_count, (void)metadata, (void)metadata_count;
    return unsupported();
}
