#include "packed.h"

#include <stdlib.h>
#include <string.h>

#include "checkpoint_model.h"
#include "train/save.h"

// The arrays of a packed checkpoint; names and codes are owned.
struct packing {
    const struct checkpoint_model *model;
    struct parameter_set set; // with steps, filled from the checkpoint
    stq_array *arrays;        // as many as tensors
    char (*names)[64];
    uint8_t **codes; // null for tensors that stay as they are
};

static enum app_status no_memory(const char *path) {
    return app_fail(APP_FAILED, "There is no memory for the parameters of %s.", path);
}

static enum app_status load(struct packing *packing) {
    const struct checkpoint_model *model = packing->model;
    enum app_status status =
        model->is_vit ? vit_describe(&model->vit, &packing->set) : gpt2_describe(&model->gpt2, &packing->set);
    if (status == APP_OK) {
        status = parameters_allocate(&packing->set, 0);
    }
    return status == APP_OK ? checkpoint_model_load(model, &packing->set) : status;
}

static enum app_status pack_weight(struct packing *packing, int index) {
    const struct parameter *weight = &packing->set.list[index];
    char name[64];
    quantizer_name(weight->name, ".steps", name);
    const struct parameter *steps = parameters_find(&packing->set, name);
    const int64_t shape[] = {(int64_t)stq_qat_packed_bytes(&packing->model->qat, weight->cols, weight->rows)};
    packing->codes[index] = malloc((size_t)shape[0]);
    if (!steps || !packing->codes[index]) {
        return no_memory(packing->model->info.path);
    }
    quantizer_name(weight->name, CODES_SUFFIX, packing->names[index]);
    packing->arrays[index] = stq_array_whole(packing->names[index], STQ_UINT8, 1, shape, packing->codes[index]);
    return quantizer_pack(weight, steps, &packing->model->qat, packing->codes[index]);
}

static enum app_status pack(struct packing *packing) {
    const size_t count = (size_t)packing->set.count;
    packing->arrays = calloc(count, sizeof(*packing->arrays));
    packing->names = calloc(count, sizeof(*packing->names));
    packing->codes = calloc(count, sizeof(*packing->codes));
    if (!packing->arrays || !packing->names || !packing->codes) {
        return no_memory(packing->model->info.path);
    }
    enum app_status status = APP_OK;
    for (int i = 0; status == APP_OK && i < packing->set.count; i++) {
        const struct parameter *parameter = &packing->set.list[i];
        if (quantizer_applies(parameter)) {
            status = pack_weight(packing, i);
            continue;
        }
        const int64_t shape[] = {parameter->rows, parameter->cols};
        packing->arrays[i] = stq_array_whole(parameter->name, STQ_FLOAT32, (uint32_t)parameter->dimensions,
                                             parameter->dimensions == 1 ? shape + 1 : shape, parameter->values);
    }
    return status;
}

static enum app_status save(const struct packing *packing, const char *folder) {
    json_t *application = json_copy(packing->model->application);
    json_object_set_new(application, "packed", json_true());
    char *text = json_dumps(application, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(application);
    if (!text) {
        return no_memory(packing->model->info.path);
    }
    stq_saver *saver;
    const stq_saver_config config = {.size = sizeof(config), .folder = folder, .ranks = 1};
    const stq_save job = {.size = sizeof(job),
                          .step = packing->model->info.step,
                          .arrays = packing->arrays,
                          .array_count = (size_t)packing->set.count,
                          .application = text};
    enum app_status status = app_check(stq_saver_open(&saver, &config));
    if (status == APP_OK) {
        status = app_check(stq_saver_save(saver, &job));
        status = status == APP_OK ? app_check(stq_saver_wait(saver, NULL)) : status;
        stq_saver_close(saver);
    }
    free(text);
    return status;
}

static void release(struct packing *packing) {
    for (int i = 0; packing->codes && i < packing->set.count; i++) {
        free(packing->codes[i]);
    }
    free(packing->codes);
    free(packing->names);
    free(packing->arrays);
    parameters_release(&packing->set);
}

// Packed weights must not take the place of a checkpoint of the same step that a run can go on from.
static enum app_status refuse_target(const char *to, int64_t step) {
    stq_checkpoint *there;
    enum app_status status = save_refuse_later(to, step);
    if (status != APP_OK || saved_step(to) < step || resume_open(to, INT64_MAX, &there) != APP_OK) {
        return status;
    }
    json_t *application = checkpoint_application(there);
    if (!json_object_get(application, "packed")) {
        status =
            app_fail(APP_USAGE,
                     "%s holds a checkpoint of step %lld that training can go on from, which the packed weights would "
                     "replace; give another folder.",
                     to, (long long)step);
    }
    json_decref(application);
    stq_checkpoint_close(there);
    return status;
}

enum app_status packed_write(const char *from, const char *to) {
    struct checkpoint_model model;
    enum app_status status = checkpoint_model_open(from, 0, &model);
    if (status != APP_OK) {
        return status;
    }
    struct packing packing = {.model = &model};
    if (!model.qat.bits || model.is_packed) {
        status = app_fail(APP_USAGE, "%s %s; --to packed takes a checkpoint of `stquant train --qat`.", from,
                          model.is_packed ? "is packed already" : "has no quantized weights");
    }
    if (status == APP_OK) {
        status = refuse_target(to, model.info.step);
    }
    if (status == APP_OK) {
        status = load(&packing);
    }
    if (status == APP_OK) {
        status = pack(&packing);
    }
    if (status == APP_OK) {
        status = save(&packing, to);
    }
    release(&packing);
    checkpoint_model_close(&model);
    return status;
}
