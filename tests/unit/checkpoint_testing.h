/* checkpoint_testing.h - a small model with parameters, gradients and an optimizer, and folders for its checkpoints. */
#ifndef STQ_CHECKPOINT_TESTING_H
#define STQ_CHECKPOINT_TESTING_H

#include "testing.h"

#include <dirent.h>
#include <ftw.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MODEL_TENSORS = 5 };

/* A matrix of several segments, one with a tail, an exempt vector, a matrix of given widths, one never trained. */
static inline void model_describe(stq_tensor tensors[MODEL_TENSORS]) {
    tensors[0] = stq_tensor_whole("h/0.embedding", 700, 101);
    tensors[1] = stq_tensor_whole("layer.weight", 97, 53);
    tensors[2] = stq_tensor_whole("layer.bias", 1, 53);
    tensors[3] = stq_tensor_whole("h\303\244\"d", 64, 128); /* not ASCII, and a quote */
    tensors[3].m_bits = 3;
    tensors[3].v_bits = 7;
    tensors[4] = stq_tensor_whole("late", 80, 64);
}

typedef struct model {
    stq_tensor tensors[MODEL_TENSORS]; /* whole */
    float *parameters[MODEL_TENSORS];
    float *gradients[MODEL_TENSORS];
    int late_from; /* step from which the last tensor has gradients */
    stq_adamw *optimizer;
} model;

/* The policies, and one that shares second moments. */
typedef enum model_mode {
    MODE_FLOAT32 = STQ_POLICY_FLOAT32,
    MODE_FIXED = STQ_POLICY_FIXED,
    MODE_ZONES = STQ_POLICY_ZONES,
    MODE_RATE_DISTORTION = STQ_POLICY_RATE_DISTORTION,
    MODE_SHARED
} model_mode;

static inline stq_adamw_config model_config(int mode, double bits) {
    stq_adamw_config config = stq_adamw_defaults();
    config.policy.kind = mode == MODE_SHARED ? STQ_POLICY_ZONES : (stq_policy_kind)mode;
    config.policy.shared_v = mode == MODE_SHARED ? STQ_SHARED_AUTO : STQ_SHARED_OFF;
    config.policy.state_bits = bits;
    config.policy.decide_every = 7;
    config.policy.planned_steps = 60;
    config.policy.fixed_m_bits = 5;
    config.policy.fixed_v_bits = 3;
    config.error_compensation = 0.25;
    config.seed = UINT64_C(0xfedcba9876543210);
    config.threads = 1; /* threads that share a busy machine spend their time waiting for each other */
    return config;
}

static inline void model_open(model *m, const stq_adamw_config *config) {
    *m = (model){.late_from = 12};
    model_describe(m->tensors);
    for (int i = 0; i < MODEL_TENSORS; i++) {
        m->parameters[i] = malloc((size_t)m->tensors[i].count * sizeof(float));
        m->gradients[i] = malloc((size_t)m->tensors[i].count * sizeof(float));
        for (int64_t k = 0; k < m->tensors[i].count; k++)
            m->parameters[i][k] = test_gaussian(1 + (uint32_t)i, (uint32_t)k);
    }
    assert_int_equal(stq_adamw_create(&m->optimizer, config, m->tensors, MODEL_TENSORS), STQ_OK);
}

static inline void model_close(model *m) {
    stq_adamw_destroy(m->optimizer);
    for (int i = 0; i < MODEL_TENSORS; i++) {
        free(m->parameters[i]);
        free(m->gradients[i]);
    }
}

static inline void model_run(model *m, int from, int to) {
    for (int t = from; t < to; t++) {
        const void *gradients[MODEL_TENSORS];
        for (int i = 0; i < MODEL_TENSORS; i++) {
            for (int64_t k = 0; k < m->tensors[i].count; k++)
                m->gradients[i][k] =
                    ldexpf(test_gaussian((uint32_t)(100 + t * MODEL_TENSORS + i), (uint32_t)k), -t % 5 - i);
            gradients[i] = i == MODEL_TENSORS - 1 && t < m->late_from ? NULL : m->gradients[i];
        }
        stq_step step = {.size = sizeof step,
                         .parameters = (void *const *)m->parameters,
                         .gradients = gradients,
                         .unscale = 1.0,
                         .max_gradient_norm = 1.0};
        stq_status status = stq_adamw_step(m->optimizer, &step, NULL);
        if (status != STQ_OK)
            fail_msg("step %d: %s", t, stq_last_error());
    }
}

static inline uint64_t model_digest(const model *m) {
    uint64_t value;
    assert_int_equal(stq_adamw_digest(m->optimizer, &value), STQ_OK);
    return value;
}

/* The parameters as arrays; vectors have one dimension. */
static inline void model_arrays(const model *m, stq_array arrays[MODEL_TENSORS]) {
    for (int i = 0; i < MODEL_TENSORS; i++) {
        const stq_tensor *tensor = &m->tensors[i];
        int64_t shape[] = {tensor->rows, tensor->cols};
        bool vector = tensor->rows == 1;
        arrays[i] =
            stq_array_whole(tensor->name, STQ_FLOAT32, vector ? 1 : 2, vector ? shape + 1 : shape, m->parameters[i]);
    }
}

static inline void assert_ok(stq_status status) {
    if (status != STQ_OK)
        fail_msg("%s: %s", stq_status_name(status), stq_last_error());
}

/* The expected status, with a sentence. */
static inline void assert_refused(stq_status status, stq_status expected) {
    if (status != expected)
        fail_msg("%s (%s) where %s was expected", stq_status_name(status), status ? stq_last_error() : "",
                 stq_status_name(expected));
    assert_true(strlen(stq_last_error()) > 10);
}

static inline stq_status model_save(const model *m, stq_saver *saver, int64_t step) {
    stq_array arrays[MODEL_TENSORS];
    model_arrays(m, arrays);
    stq_save save = {.size = sizeof save,
                     .step = step,
                     .optimizer = m->optimizer,
                     .arrays = arrays,
                     .array_count = MODEL_TENSORS,
                     .application = "{\"position\": 12, \"name\": \"a model\"}"};
    return stq_saver_save(saver, &save);
}

static inline stq_saver *open_saver(const char *folder, uint32_t keep) {
    stq_saver *saver;
    stq_saver_config config = {.size = sizeof config, .folder = folder, .keep = keep};
    assert_ok(stq_saver_open(&saver, &config));
    return saver;
}

static inline stq_status model_load(model *m, const char *path, bool *changed) {
    stq_checkpoint *checkpoint;
    stq_array arrays[MODEL_TENSORS];
    stq_status status = stq_checkpoint_open(&checkpoint, path);
    if (status != STQ_OK)
        return status;
    model_arrays(m, arrays);
    status = stq_checkpoint_load_arrays(checkpoint, arrays, MODEL_TENSORS);
    if (status == STQ_OK)
        status = stq_checkpoint_load_optimizer(checkpoint, m->optimizer, changed);
    stq_checkpoint_close(checkpoint);
    return status;
}

static inline void assert_same_model(const model *a, const model *b) {
    assert_int_equal(model_digest(a), model_digest(b));
    for (int i = 0; i < MODEL_TENSORS; i++)
        assert_memory_equal(a->parameters[i], b->parameters[i], (size_t)a->tensors[i].count * sizeof(float));
}

/* ---- Folders ---- */

/* A fresh folder; `path` has room for 64 bytes. In memory where that is possible: syncing a disk shared with others can
 * take a second. */
static inline void make_folder(char *path) {
    snprintf(path, 64, "%s/stquant-test-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(path));
}

static inline int remove_one(const char *path, const struct stat *status, int flag, struct FTW *walk) {
    (void)status, (void)flag, (void)walk;
    return remove(path);
}

static inline void remove_folder(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

static inline char *text_of(const char *format, ...) {
    char *text;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0)
        abort();
    va_end(arguments);
    return text;
}

static inline uint8_t *read_bytes(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *bytes = malloc(*size + 1);
    assert_int_equal(fread(bytes, 1, *size, file), *size);
    fclose(file);
    return bytes;
}

static inline void write_bytes(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

/* Names in a folder, but . and .. and the lock. */
static inline int count_names(const char *path) {
    DIR *folder = opendir(path);
    int count = 0;
    assert_non_null(folder);
    for (const struct dirent *entry = readdir(folder); entry; entry = readdir(folder))
        count +=
            strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 && strcmp(entry->d_name, ".lock") != 0;
    closedir(folder);
    return count;
}

#endif
