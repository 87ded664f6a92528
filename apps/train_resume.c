// `stquant train --checkpoint` and `--resume`: what a checkpoint tells of its run, and going on from one.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "train/save.h"
#include "training.h"

json_t *training_application(const struct training *training) {
    const struct train_options *options = training->options;
    json_t *application = training_describe(training);
    json_t *rest =
        json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I}", "warmup", (json_int_t)options->warmup, "floor",
                  options->floor, "weight_decay", options->weight_decay, "beta1", options->beta1, "epsilon",
                  options->epsilon, "clip", options->clip, "error_compensation", options->error_compensation,
                  "decide_every", (json_int_t)options->decide_every, "validate_every",
                  (json_int_t)options->validate_every, "validation_batches", (json_int_t)options->validation_batches);
    json_object_update(application, rest);
    json_decref(rest);
    return application;
}

// Bits of the weights in a run's description; 0 without quantization-aware training.
static json_int_t qat_bits(const json_t *run) { return json_integer_value(json_object_get(run, "qat_bits")); }

static enum app_status check_qat(const char *path, const json_t *saved, const json_t *now) {
    const long long was = qat_bits(saved), is = qat_bits(now);
    if (json_object_get(saved, "packed")) {
        return app_fail(APP_USAGE,
                        "%s holds packed weights, which cannot be trained; use the checkpoint that they "
                        "were made of.",
                        path);
    }
    if (!saved || was == is) {
        return APP_OK;
    }
    if (was == 0) {
        return app_fail(APP_USAGE, "%s is of a run without --qat; begin a new run from its parameters with --init %s.",
                        path, path);
    }
    return app_fail(APP_USAGE, "%s is of a run with --qat %lld; give the same, or begin a new run with --init %s.",
                    path, was, path);
}

// The model's kind and shape must be those of the checkpoint. What only decides how the run goes on may differ, and
// is told.
static enum app_status check_model(const char *path, const json_t *saved, const json_t *now) {
    const json_t *kind = json_object_get(saved, "model"), *shape = json_object_get(saved, "shape");
    if ((kind && !json_equal(kind, json_object_get(now, "model"))) ||
        (shape && !json_equal(shape, json_object_get(now, "shape")))) {
        char *was = json_dumps(shape, JSON_COMPACT | JSON_ENCODE_ANY);
        char *is = json_dumps(json_object_get(now, "shape"), JSON_COMPACT);
        enum app_status status =
            app_fail(APP_USAGE, "%s holds a %s of the shape %s, and this run asks for %s; give the same model.", path,
                     kind ? json_string_value(kind) : "model", was ? was : "?", is ? is : "?");
        free(was);
        free(is);
        return status;
    }
    return check_qat(path, saved, now);
}

static void tell_differences(const json_t *saved, const json_t *now) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)now, key, value) {
        const json_t *before = json_object_get(saved, key);
        if (before && !json_is_object(value) && !json_equal(before, value) &&
            !(json_is_number(before) && json_number_value(before) == json_number_value(value))) {
            char *was = json_dumps(before, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
            char *is = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
            printf("           %s is %s, was %s\n", key, is ? is : "?", was ? was : "?");
            free(was);
            free(is);
        }
    }
}

static enum app_status check_position(const struct training *training, const stq_checkpoint_info *info) {
    if (info->step < training->options->steps) {
        return APP_OK;
    }
    return app_fail(APP_USAGE, "%s is at step %lld already; ask for more with --steps.", info->path,
                    (long long)info->step);
}

// A rank reads only what it needs of the states: what one finds damaged all give up.
static enum app_status agree(const struct training *training, enum app_status status, int *corrupt) {
    double numbers[] = {status != APP_OK, *corrupt};
    enum app_status summed = ranks_sum(&training->ranks, numbers, 2, "checkpoints that could be read");
    if (summed != APP_OK) {
        return summed;
    }
    *corrupt = numbers[1] > 0;
    return status == APP_OK && numbers[0] > 0 ? app_fail(APP_FAILED, "Another rank could not read the checkpoint.")
                                              : status;
}

// One checkpoint. *corrupt: an earlier one may do.
static enum app_status resume_from(struct training *training, const stq_checkpoint *checkpoint, int *corrupt) {
    stq_checkpoint_info info;
    stq_checkpoint_describe(checkpoint, &info);
    json_t *saved = checkpoint_application(checkpoint), *now = training_application(training);
    int changed = 0;
    *corrupt = 0;
    enum app_status status = check_model(info.path, saved, now);
    if (status == APP_OK) {
        status = check_position(training, &info);
    }
    if (status == APP_OK) {
        status = resume_load(checkpoint, &training->model->parameters, training->optimizer.adamw, &changed, corrupt);
    }
    status = agree(training, status, corrupt);
    if (status == APP_OK) {
        training->first_step = info.step;
        printf("resumed    step %lld of %s%s\n", (long long)info.step, info.path,
               changed ? "; widths of the states were changed to what this run can hold" : "");
        tell_differences(saved, now);
    }
    json_decref(saved);
    json_decref(now);
    return status;
}

static int has_array(const stq_checkpoint *checkpoint, const char *prefix, const char *name) {
    char whole[128];
    stq_array array;
    snprintf(whole, sizeof(whole), "%s%s", prefix, name);
    for (size_t i = 0; stq_checkpoint_array(checkpoint, i, &array) == STQ_OK; i++) {
        if (strcmp(array.name, whole) == 0) {
            return 1;
        }
    }
    return 0;
}

// Steps are taken over from a run with the same bits; else they are set from the weights.
static enum app_status load_initial(const struct training *training, const stq_checkpoint *checkpoint,
                                    const char *prefix) {
    struct model *model = training->model;
    struct parameter_set set = model->parameters;
    json_t *saved = checkpoint_application(checkpoint);
    const int packed = json_object_get(saved, "packed") != NULL,
              has_steps = qat_bits(saved) == training->options->qat.bits;
    json_decref(saved);
    if (packed) {
        return app_fail(APP_USAGE,
                        "%s holds packed weights, which cannot be trained; use the checkpoint that they were "
                        "made of.",
                        training->options->init);
    }
    if (has_steps) {
        return load_parameters(checkpoint, &set, prefix);
    }
    set.count -= model->quantizer.count;
    enum app_status status = load_parameters(checkpoint, &set, prefix);
    return status == APP_OK ? quantizer_start(&model->quantizer) : status;
}

enum app_status training_init(struct training *training) {
    stq_checkpoint *checkpoint;
    const struct parameter_set *set = &training->model->parameters;
    enum app_status status = resume_open(training->options->init, INT64_MAX, &checkpoint);
    if (status != APP_OK) {
        return status;
    }
    // Hugging Face's models of a task carry the name of the base model in front.
    const char *prefix = has_array(checkpoint, "transformer.", set->list[0].name) ? "transformer." : "";
    status = load_initial(training, checkpoint, prefix);
    if (status == APP_OK) {
        stq_checkpoint_info info;
        stq_checkpoint_describe(checkpoint, &info);
        printf("parameters from %s\n", info.path);
    }
    stq_checkpoint_close(checkpoint);
    return status;
}

enum app_status training_resume(struct training *training) {
    stq_checkpoint *checkpoint;
    int64_t below = INT64_MAX;
    int corrupt = 1;
    enum app_status status = APP_OK;
    // A checkpoint whose contents are damaged was whole by its headers: the one before it may be sound.
    while (corrupt) {
        status = resume_open(training->options->resume, below, &checkpoint);
        if (status != APP_OK) {
            return status;
        }
        stq_checkpoint_info info;
        stq_checkpoint_describe(checkpoint, &info);
        status = resume_from(training, checkpoint, &corrupt);
        const int64_t step = info.step;
        const int single = strstr(info.path, training->options->resume) == info.path &&
                           strlen(info.path) == strlen(training->options->resume);
        stq_checkpoint_close(checkpoint);
        if (single || !corrupt || step == 0) {
            return status;
        }
        fprintf(stderr, "warning: %s The checkpoint before it is tried.\n", app_failure());
        training->fell_back = 1;
        below = step;
    }
    return status;
}

// A number that no earlier run had, the same on all ranks.
static enum app_status choose_run(const struct training *training, uint64_t *run) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    // Whole numbers of up to 52 bits go through the sum exactly.
    uint64_t own = ((uint64_t)now.tv_sec << 22 ^ (uint64_t)now.tv_nsec >> 8 ^ (uint64_t)getpid() << 30) >> 2;
    double number = training->ranks.rank == 0 ? (double)(own % (UINT64_C(1) << 52) | 1) : 0;
    enum app_status status = ranks_sum(&training->ranks, &number, 1, "the number of the run");
    *run = (uint64_t)number;
    return status;
}

enum app_status training_open_saving(struct training *training) {
    const struct train_options *options = training->options;
    struct save_settings settings = {.folder = options->checkpoint,
                                     .every = options->save_every,
                                     .keep = options->keep,
                                     .first_step = training->first_step,
                                     .accept_later = training->fell_back,
                                     .rank = training->ranks.rank,
                                     .ranks = training->ranks.count};
    if (!options->checkpoint) {
        return APP_OK;
    }
    enum app_status status = choose_run(training, &settings.run);
    if (status != APP_OK) {
        return status;
    }
    training->application = training_application(training);
    // Rank 0 makes the folder and clears it of what earlier runs left.
    if (settings.rank == 0) {
        status = saving_open(&settings, &training->saving);
    }
    double failed = status != APP_OK;
    enum app_status summed = ranks_sum(&training->ranks, &failed, 1, "the folder for checkpoints");
    if (status != APP_OK || summed != APP_OK) {
        return status != APP_OK ? status : summed;
    }
    if (failed > 0) {
        return app_fail(APP_FAILED, "Rank 0 could not open the folder %s.", options->checkpoint);
    }
    return settings.rank == 0 ? APP_OK : saving_open(&settings, &training->saving);
}
