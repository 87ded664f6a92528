#include "checkpoint_model.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "train/save.h"

// Members of an object that are all whole numbers above 0.
struct member {
    const char *key;
    int64_t *value;
};

static int read_members(const json_t *object, const struct member *members, int count) {
    for (int i = 0; i < count; i++) {
        const json_t *value = json_object_get(object, members[i].key);
        if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > INT32_MAX) {
            return 0;
        }
        *members[i].value = json_integer_value(value);
    }
    return 1;
}

static int read_gpt2_shape(const json_t *shape, struct gpt2_config *config) {
    const struct member members[] = {{"layers", &config->layers},
                                     {"width", &config->width},
                                     {"heads", &config->heads},
                                     {"context", &config->context},
                                     {"vocabulary", &config->vocabulary}};
    return read_members(shape, members, 5);
}

static int read_vit_shape(const json_t *shape, struct vit_config *config) {
    const struct member members[] = {{"layers", &config->layers},     {"width", &config->width},
                                     {"heads", &config->heads},       {"patch", &config->patch},
                                     {"channels", &config->channels}, {"rows", &config->rows},
                                     {"columns", &config->columns},   {"classes", &config->classes}};
    return read_members(shape, members, 8);
}

// A config.json as Hugging Face's GPT-2 has it.
static int read_config_file(const char *path, struct gpt2_config *config) {
    char name[PATH_MAX];
    struct stat status;
    const struct member members[] = {{"n_layer", &config->layers},
                                     {"n_embd", &config->width},
                                     {"n_head", &config->heads},
                                     {"n_positions", &config->context},
                                     {"vocab_size", &config->vocabulary}};
    const int is_folder = stat(path, &status) == 0 && S_ISDIR(status.st_mode);
    const char *slash = strrchr(path, '/');
    const int folder_length = is_folder ? (int)strlen(path) : slash ? (int)(slash - path) : 1;
    if (snprintf(name, sizeof(name), "%.*s/config.json", folder_length, is_folder || slash ? path : ".") >=
        (int)sizeof(name)) {
        return 0;
    }
    json_t *root = json_load_file(name, JSON_REJECT_DUPLICATES, NULL);
    const int found = read_members(root, members, 5);
    json_decref(root);
    return found;
}

static int find_array(const stq_checkpoint *checkpoint, const char *prefix, const char *name, stq_array *array) {
    char whole[128];
    snprintf(whole, sizeof(whole), "%s%s", prefix, name);
    for (size_t i = 0; stq_checkpoint_array(checkpoint, i, array) == STQ_OK; i++) {
        if (strcmp(array->name, whole) == 0) {
            return 1;
        }
    }
    return 0;
}

static int read_array_shapes(const struct checkpoint_model *model, int64_t heads, struct gpt2_config *config) {
    stq_array tokens, positions, layer;
    if (!find_array(model->checkpoint, model->prefix, "wte.weight", &tokens) || tokens.dimensions != 2 ||
        !find_array(model->checkpoint, model->prefix, "wpe.weight", &positions) || positions.dimensions != 2) {
        return 0;
    }
    *config = (struct gpt2_config){
        .width = tokens.shape[1], .vocabulary = tokens.shape[0], .context = positions.shape[0], .heads = heads};
    if (config->heads == 0) {
        config->heads = config->width % 64 == 0 ? config->width / 64 : 1;
    }
    for (char name[64]; config->layers < 10000; config->layers++) {
        snprintf(name, sizeof(name), "h.%lld.ln_1.weight", (long long)config->layers);
        if (!find_array(model->checkpoint, model->prefix, name, &layer)) {
            break;
        }
    }
    return config->layers > 0;
}

static enum app_status find_shape(struct checkpoint_model *model, const char *path, int64_t heads) {
    stq_array array;
    const json_t *shape = json_object_get(model->application, "shape");
    const char *kind = json_string_value(json_object_get(model->application, "model"));
    model->is_vit = kind && strcmp(kind, "vit") == 0;
    if (model->is_vit) {
        return read_vit_shape(shape, &model->vit)
                   ? vit_check(&model->vit)
                   : app_fail(APP_FAILED, "%s does not tell the shape of its Vision Transformer.", path);
    }
    model->prefix = find_array(model->checkpoint, "transformer.", "wte.weight", &array) ? "transformer." : "";
    if (read_gpt2_shape(shape, &model->gpt2) || read_config_file(path, &model->gpt2) ||
        read_array_shapes(model, heads, &model->gpt2)) {
        return gpt2_check(&model->gpt2);
    }
    return app_fail(APP_FAILED, "%s holds no model that this command knows: a GPT-2 or a Vision Transformer.", path);
}

// How the weights are quantized, as the run told it (training_describe).
static enum app_status find_qat(struct checkpoint_model *model, const char *path) {
    const int estimator = quantizer_estimator(json_string_value(json_object_get(model->application, "qat_estimator")));
    const json_t *amplitudes = json_object_get(model->application, "qat_amplitudes");
    stq_qat_config *qat = &model->qat;
    double bits = 0;
    *qat = stq_qat_defaults();
    if (!checkpoint_model_number(model, "qat_bits", 1, 0, 8, &bits)) {
        return app_fail(APP_FAILED,
                        "%s does not tell how its weights are quantized: its qat_bits are no width of 0 to 8.", path);
    }
    if (!checkpoint_model_number(model, "qat_softness", 0, 0, DBL_MAX, &qat->softness)) {
        return app_fail(APP_FAILED, "%s does not tell how its weights are quantized: its qat_softness is no number.",
                        path);
    }
    qat->bits = (uint32_t)bits;
    qat->estimator = estimator < 0 ? STQ_QAT_STABLE : (stq_qat_estimator)estimator;
    for (size_t k = 0; k < json_array_size(amplitudes) && k < STQ_QAT_MAX_HARMONICS; k++) {
        qat->amplitudes[k] = json_number_value(json_array_get(amplitudes, k));
        qat->harmonics = (uint32_t)k + 1;
    }
    if (qat->bits && stq_qat_check(qat, 1) != STQ_OK) {
        return app_fail(APP_FAILED, "%s does not tell how its weights are quantized: %s", path, stq_last_error());
    }
    model->is_packed = qat->bits && json_object_get(model->application, "packed") != NULL;
    model->gpt2.qat = model->vit.qat = model->is_packed ? (stq_qat_config){0} : *qat;
    return APP_OK;
}

enum app_status checkpoint_model_open(const char *path, int64_t heads, struct checkpoint_model *model) {
    *model = (struct checkpoint_model){.prefix = ""};
    enum app_status status = resume_open(path, INT64_MAX, &model->checkpoint);
    if (status != APP_OK) {
        return status;
    }
    stq_checkpoint_describe(model->checkpoint, &model->info);
    model->application = checkpoint_application(model->checkpoint);
    status = find_shape(model, path, heads);
    if (status == APP_OK) {
        status = find_qat(model, path);
    }
    if (status != APP_OK) {
        checkpoint_model_close(model);
    }
    return status;
}

// One weight (inputs, outputs) from its codes (outputs, inputs) and steps (outputs).
static enum app_status load_packed(const struct checkpoint_model *model, const struct parameter *weight) {
    char names[2][64];
    const uint64_t bytes = stq_qat_packed_bytes(&model->qat, weight->cols, weight->rows);
    const int64_t code_shape[] = {(int64_t)bytes}, step_shape[] = {weight->cols};
    uint8_t *codes = malloc((size_t)bytes);
    float *steps = malloc((size_t)weight->cols * sizeof(*steps));
    quantizer_name(weight->name, CODES_SUFFIX, names[0]);
    quantizer_name(weight->name, ".steps", names[1]);
    const stq_array arrays[] = {stq_array_whole(names[0], STQ_UINT8, 1, code_shape, codes),
                                stq_array_whole(names[1], STQ_FLOAT32, 1, step_shape, steps)};
    enum app_status status = APP_OK;
    if (!codes || !steps) {
        status = app_fail(APP_FAILED, "There is no memory for the codes of '%s'.", weight->name);
    } else if (stq_checkpoint_load_arrays(model->checkpoint, arrays, 2) != STQ_OK) {
        status = app_library_failure();
    } else {
        status = quantizer_unpack(weight, steps, &model->qat, codes);
    }
    free(codes);
    free(steps);
    return status;
}

enum app_status checkpoint_model_load(const struct checkpoint_model *model, const struct parameter_set *set) {
    if (!model->is_packed) {
        return load_parameters(model->checkpoint, set, model->prefix);
    }
    struct parameter_set plain = *set;
    plain.count = 0;
    plain.list = calloc((size_t)set->count, sizeof(*plain.list));
    if (!plain.list) {
        return app_fail(APP_FAILED, "There is no memory for the list of %d tensors.", set->count);
    }
    enum app_status status = APP_OK;
    for (int i = 0; status == APP_OK && i < set->count; i++) {
        if (quantizer_applies(&set->list[i])) {
            status = load_packed(model, &set->list[i]);
        } else {
            plain.list[plain.count++] = set->list[i];
        }
    }
    if (status == APP_OK) {
        status = load_parameters(model->checkpoint, &plain, model->prefix);
    }
    free(plain.list);
    return status;
}

enum app_status checkpoint_model_create(const struct checkpoint_model *checkpoint, int64_t examples, int64_t length,
                                        int threads, struct model **model) {
    enum app_status status = checkpoint->is_vit ? vit_create(&checkpoint->vit, examples, threads, 0, model)
                                                : gpt2_create(&checkpoint->gpt2, examples, length, threads, 0, model);
    if (status == APP_OK) {
        status = checkpoint_model_load(checkpoint, &(*model)->parameters);
    }
    return status;
}

int checkpoint_model_number(const struct checkpoint_model *model, const char *key, int whole, double minimum,
                            double maximum, double *value) {
    const json_t *told = json_object_get(model->application, key);
    const double number = json_number_value(told);
    if (!told) {
        return 1;
    }
    if (!json_is_number(told) || number < minimum || number > maximum || (whole && number != floor(number))) {
        return 0;
    }
    *value = number;
    return 1;
}

void checkpoint_model_close(struct checkpoint_model *model) {
    json_decref(model->application);
    stq_checkpoint_close(model->checkpoint);
    *model = (struct checkpoint_model){.prefix = ""};
}
