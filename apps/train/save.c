#include "train/save.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

// A rank that has not finished its part by then is taken for dead.
enum { SECONDS_FOR_OTHERS = 15 };

struct saving {
    struct save_settings settings;
    stq_saver *saver;
    int due;           // a checkpoint waits for the one before
    int running;       // one is being written
    int64_t last;      // step of the last one begun
    char *application; // JSON, made once
    stq_array *arrays; // of this rank
    char warning[700];
};

int64_t saved_step(const char *folder) {
    char path[PATH_MAX];
    struct stat status;
    stq_checkpoint *checkpoint;
    if (stat(folder, &status) != 0 || stq_checkpoint_find(folder, INT64_MAX, path, sizeof(path)) != STQ_OK ||
        stq_checkpoint_open(&checkpoint, path) != STQ_OK) {
        return -1;
    }
    stq_checkpoint_info info;
    stq_checkpoint_describe(checkpoint, &info);
    stq_checkpoint_close(checkpoint);
    return info.step;
}

enum app_status save_refuse_later(const char *folder, int64_t step) {
    const int64_t later = saved_step(folder);
    return later <= step ? APP_OK
                         : app_fail(APP_USAGE, "%s holds a checkpoint of a later step, %lld; give another folder.",
                                    folder, (long long)later);
}

// Later checkpoints in the folder would be taken for this run's when it is resumed.
static enum app_status refuse_later(const struct save_settings *settings) {
    const int64_t step = settings->rank != 0 || settings->accept_later ? -1 : saved_step(settings->folder);
    if (step <= settings->first_step) {
        return APP_OK;
    }
    return app_fail(APP_USAGE,
                    "%s holds a checkpoint of step %lld already; go on from it with --resume %s, or give another "
                    "folder with --checkpoint.",
                    settings->folder, (long long)step, settings->folder);
}

enum app_status saving_open(const struct save_settings *settings, struct saving **result) {
    *result = NULL;
    if (!settings->folder) {
        return APP_OK;
    }
    enum app_status status = refuse_later(settings);
    struct saving *saving = status == APP_OK ? calloc(1, sizeof(*saving)) : NULL;
    if (!saving) {
        return status != APP_OK ? status : app_fail(APP_FAILED, "There is no memory for checkpoints.");
    }
    saving->settings = *settings;
    saving->last = settings->first_step > 0 ? settings->first_step : -1;
    stq_saver_config config = {.size = sizeof(config),
                               .folder = settings->folder,
                               .keep = (uint32_t)settings->keep,
                               .rank = (uint32_t)settings->rank,
                               .ranks = (uint32_t)settings->ranks,
                               .run = settings->run};
    status = app_check(stq_saver_open(&saving->saver, &config));
    if (status != APP_OK) {
        free(saving);
        return status;
    }
    *result = saving;
    return APP_OK;
}

// Every rank writes the whole parameters that begin in its share of the flat buffer.
static int is_mine(const struct saving *saving, const struct parameter_set *set, const struct parameter *parameter) {
    int ranks = saving->settings.ranks > 1 ? saving->settings.ranks : 1;
    return (int)((double)parameter->offset * ranks / (double)set->padded) == saving->settings.rank;
}

static stq_array describe(const struct parameter *parameter, float *values) {
    int64_t shape[] = {parameter->rows, parameter->cols};
    return stq_array_whole(parameter->name, STQ_FLOAT32, (uint32_t)parameter->dimensions,
                           parameter->dimensions == 1 ? shape + 1 : shape, values);
}

static const char *prepare(struct saving *saving, const struct save_source *source, size_t *count) {
    const struct parameter_set *set = source->parameters;
    if (!saving->arrays) {
        saving->arrays = calloc((size_t)set->count + 1, sizeof(*saving->arrays));
        saving->application = json_dumps(source->application, JSON_COMPACT | JSON_REAL_PRECISION(17));
    }
    if (!saving->arrays || !saving->application) {
        return "There is no memory for a checkpoint.";
    }
    *count = 0;
    for (int i = 0; i < set->count; i++) {
        if (is_mine(saving, set, &set->list[i])) {
            saving->arrays[(*count)++] = describe(&set->list[i], set->list[i].values);
        }
    }
    return NULL;
}

// Begins a checkpoint; null, or what went wrong.
static const char *begin(struct saving *saving, const struct save_source *source, int64_t step) {
    size_t count;
    const char *problem = prepare(saving, source, &count);
    saving->due = 0;
    saving->last = step;
    if (problem) {
        return problem;
    }
    stq_save save = {.size = sizeof(save),
                     .step = step,
                     .optimizer = source->optimizer,
                     .arrays = saving->arrays,
                     .array_count = count,
                     .application = saving->application};
    if (stq_saver_save(saving->saver, &save) != STQ_OK) {
        return stq_last_error();
    }
    saving->running = 1;
    return NULL;
}

// Takes note of how the last one went; null, or what went wrong.
static const char *finish(struct saving *saving) {
    if (!saving->running) {
        return NULL;
    }
    saving->running = 0;
    return stq_saver_wait(saving->saver, NULL) == STQ_OK ? NULL : stq_last_error();
}

static const char *warn(struct saving *saving, const char *problem) {
    if (!problem) {
        return NULL;
    }
    snprintf(saving->warning, sizeof(saving->warning), "checkpoint of step %lld: %s The run goes on.",
             (long long)saving->last, problem);
    return saving->warning;
}

const char *saving_step(struct saving *saving, const struct save_source *source, int64_t step) {
    if (!saving) {
        return NULL;
    }
    const char *warning = NULL;
    saving->due |= saving->settings.every > 0 && step % saving->settings.every == 0;
    if (saving->running && !stq_saver_busy(saving->saver)) {
        warning = warn(saving, finish(saving));
    }
    // Ranks save the same steps, whatever their disks; one alone puts a checkpoint off rather than wait.
    if (saving->due && saving->running && saving->settings.ranks > 1) {
        warning = warn(saving, finish(saving));
    }
    if (saving->due && !saving->running) {
        const char *problem = warn(saving, begin(saving, source, step));
        warning = problem ? problem : warning;
    }
    return warning;
}

static bool is_published(const struct save_settings *settings, int64_t step) {
    char path[PATH_MAX];
    struct stat index;
    snprintf(path, sizeof(path), "%s/step-%08lld/model.safetensors.index.json", settings->folder, (long long)step);
    return stat(path, &index) == 0;
}

// The last rank to finish its part publishes. Rank 0 sees to it that somebody has, and the others stay until then, so
// that none leaves while another one writes. Files tell, as a rank that died would not answer.
static const char *wait_for_others(const struct saving *saving, int64_t step) {
    const struct save_settings *settings = &saving->settings;
    const struct timespec pause = {.tv_nsec = 20000000};
    bool published = settings->ranks <= 1;
    for (int tries = 0; !published; tries++) {
        if (settings->rank != 0) {
            published = is_published(settings, step);
        } else if (stq_checkpoint_publish(settings->folder, step, (uint32_t)settings->ranks, settings->run,
                                          &published) != STQ_OK) {
            return stq_last_error();
        }
        if (!published && tries == SECONDS_FOR_OTHERS * 50) {
            return "the parts of other ranks are missing.";
        }
        if (!published) {
            nanosleep(&pause, NULL);
        }
    }
    return NULL;
}

enum app_status saving_finish(struct saving *saving, const struct save_source *source, int64_t step) {
    if (!saving) {
        return APP_OK;
    }
    const char *problem = finish(saving);
    if (saving->last != step || problem) {
        problem = begin(saving, source, step);
        problem = problem ? problem : finish(saving);
    }
    problem = problem ? problem : wait_for_others(saving, step);
    return problem
               ? app_fail(APP_FAILED, "The last checkpoint, of step %lld, is not written: %s", (long long)step, problem)
               : APP_OK;
}

void saving_close(struct saving *saving) {
    if (saving) {
        stq_saver_close(saving->saver);
        free(saving->application);
        free(saving->arrays);
        free(saving);
    }
}

enum app_status resume_open(const char *path, int64_t below, stq_checkpoint **checkpoint) {
    char found[PATH_MAX];
    struct stat folder;
    *checkpoint = NULL;
    if (below != INT64_MAX) {
        if (stq_checkpoint_find(path, below, found, sizeof(found)) != STQ_OK) {
            return app_library_failure();
        }
        path = found;
    } else if (stat(path, &folder) != 0) {
        return app_fail(APP_USAGE, "There is no checkpoint %s.", path);
    }
    stq_status status = stq_checkpoint_open(checkpoint, path);
    return app_check(status);
}

static stq_status load_arrays(const stq_checkpoint *checkpoint, const struct parameter_set *set, const char *prefix) {
    const size_t name_bytes = strlen(prefix) + sizeof(set->list[0].name);
    stq_array *arrays = calloc((size_t)set->count + 1, sizeof(*arrays));
    char *names = calloc((size_t)set->count + 1, name_bytes);
    stq_status status = arrays && names ? STQ_OK : STQ_OUT_OF_MEMORY;
    for (int i = 0; status == STQ_OK && i < set->count; i++) {
        char *name = names + (size_t)i * name_bytes;
        snprintf(name, name_bytes, "%s%s", prefix, set->list[i].name);
        arrays[i] = describe(&set->list[i], set->list[i].values);
        arrays[i].name = name;
    }
    if (status == STQ_OK) {
        status = stq_checkpoint_load_arrays(checkpoint, arrays, (size_t)set->count);
    }
    free(arrays);
    free(names);
    return status;
}

enum app_status load_parameters(const stq_checkpoint *checkpoint, const struct parameter_set *parameters,
                                const char *prefix) {
    return app_check_asked(load_arrays(checkpoint, parameters, prefix));
}

enum app_status resume_load(const stq_checkpoint *checkpoint, const struct parameter_set *parameters,
                            stq_adamw *optimizer, int *changed, int *corrupt) {
    bool widths_changed = false;
    stq_status status = load_arrays(checkpoint, parameters, "");
    if (status == STQ_OK) {
        status = stq_checkpoint_load_optimizer(checkpoint, optimizer, &widths_changed);
    }
    *corrupt = status == STQ_CORRUPT || status == STQ_IO_ERROR;
    if (changed) {
        *changed = widths_changed;
    }
    return app_check_asked(status);
}

json_t *checkpoint_application(const stq_checkpoint *checkpoint) {
    stq_checkpoint_info info;
    stq_checkpoint_describe(checkpoint, &info);
    json_t *application = info.format_version > 0 ? json_loads(info.application, 0, NULL) : NULL;
    return application;
}
