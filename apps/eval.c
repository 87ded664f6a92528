// `stquant eval`: the loss of a checkpoint's model on data.
#include <jansson.h>
#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_model.h"
#include "command.h"
#include "train/images.h"
#include "train/log.h"
#include "train/loop.h"
#include "train/matmul.h"
#include "train/text.h"
#include "train/token_file.h"

struct settings {
    const char *path, *data;
    double share; // of the text; 0: as the run had it
    int64_t batch, sequence_length, batches, threads, heads;
    int json;
};

enum { DATA = 'd', SHARE = 0x2000, BATCH, SEQUENCE_LENGTH, BATCHES, THREADS, HEADS, JSON };

static const struct argp_option option_list[] = {
    {"data", DATA, "PATH", 0, "Text file or folder, token file, or folder of images, as for `stquant train`", 0},
    {"validation-share", SHARE, "X", 0, "Last part of the text that is read (as in the run; 0.05). 1: all of it", 0},
    {"validation-batches", BATCHES, "N", 0, "Largest number of batches (as in the run; 40)", 0},
    {"batch", BATCH, "N", 0, "Examples of a batch (as in the run; 8)", 0},
    {"sequence-length", SEQUENCE_LENGTH, "N", 0, "Tokens of a sequence (as in the run; the context)", 0},
    {"heads", HEADS, "N", 0, "Attention heads, where the checkpoint does not tell (one for 64 columns)", 0},
    {"threads", THREADS, "N", 0, "Threads (all processors)", 0},
    {"json", JSON, 0, 0, "Print a JSON object", 0},
    {0}};

#define NUMBER(KEY, NAME, FIELD, WHOLE, MINIMUM, MAXIMUM) \
    { KEY, NAME, offsetof(struct settings, FIELD), WHOLE, MINIMUM, MAXIMUM }

static const struct command_number numbers[] = {
    NUMBER(SHARE, "validation-share", share, 0, 1e-6, 1),
    NUMBER(BATCH, "batch", batch, 1, 1, 1 << 20),
    NUMBER(SEQUENCE_LENGTH, "sequence-length", sequence_length, 1, 1, 1 << 24),
    NUMBER(BATCHES, "validation-batches", batches, 1, 1, 1e9),
    NUMBER(HEADS, "heads", heads, 1, 1, 1 << 20),
    NUMBER(THREADS, "threads", threads, 1, 1, 4096),
};

static error_t parse(int key, char *argument, struct argp_state *state) {
    struct settings *settings = state->input;
    switch (key) {
    case DATA:
        settings->data = argument;
        return 0;
    case JSON:
        settings->json = 1;
        return 0;
    case ARGP_KEY_ARG:
        command_argument(state, argument, &settings->path, 1, "data are given with --data");
        return 0;
    case ARGP_KEY_END:
        if (!settings->path || !settings->data) {
            argp_failure(state, APP_USAGE, 0, "Name a checkpoint, and data with --data.");
        }
        return 0;
    default:
        return command_number(numbers, sizeof(numbers) / sizeof(numbers[0]), settings, key, argument, state)
                   ? 0
                   : ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = option_list,
    .parser = parse,
    .args_doc = "CHECKPOINT",
    .doc =
        "The loss of a checkpoint's model on data.\v"
        "With the run's own data and no other option, this is the validation loss that the run logged. CHECKPOINT may "
        "also be a GPT-2 of Hugging Face's: a folder with model.safetensors and config.json, or the file alone.\n\n"
        "Examples:\n\n"
        "  stquant eval run --data text.txt\n"
        "  stquant eval gpt2/model.safetensors --data wiki.tokens --json\n"};

// The data, whichever kind.
struct data {
    struct text text;
    struct token_file tokens;
    struct image_data images;
    struct batch_source *source;
    const char *unit; // of the loss
};

// The number of an option that was not given: as the run had it, within what the option allows, or `otherwise`.
static enum app_status recall(const struct checkpoint_model *model, int option, const char *key, double otherwise,
                              double *value) {
    const struct command_number *number = numbers;
    while (number->key != option) {
        number++;
    }
    *value = otherwise;
    if (!checkpoint_model_number(model, key, number->whole, number->minimum, number->maximum, value)) {
        return app_fail(APP_FAILED, "The %s that %s tells is no %snumber from %g to %g; give --%s.", key,
                        model->info.path, number->whole ? "whole " : "", number->minimum, number->maximum,
                        number->name);
    }
    return APP_OK;
}

static enum app_status recall_whole(const struct checkpoint_model *model, int option, const char *key,
                                    int64_t otherwise, int64_t *value) {
    double number;
    if (*value != 0) {
        return APP_OK;
    }
    enum app_status status = recall(model, option, key, (double)otherwise, &number);
    *value = (int64_t)number;
    return status;
}

static enum app_status settle(struct settings *settings, const struct checkpoint_model *model) {
    enum app_status status = recall_whole(model, BATCH, "batch", 8, &settings->batch);
    if (status == APP_OK && !model->is_vit) {
        status =
            recall_whole(model, SEQUENCE_LENGTH, "sequence_length", model->gpt2.context, &settings->sequence_length);
    }
    if (status == APP_OK) {
        status = recall_whole(model, BATCHES, "validation_batches", 40, &settings->batches);
    }
    if (status == APP_OK && settings->share == 0 && !model->is_vit) {
        status = recall(model, SHARE, "validation_share", 0.05, &settings->share);
    }
    return status;
}

static enum app_status open_text(const struct settings *settings, const struct gpt2_config *config, struct data *data) {
    struct sequence sequence;
    int64_t vocabulary = 256;
    enum app_status status = APP_OK;
    if (settings->sequence_length < 1 || settings->sequence_length > config->context) {
        return app_fail(APP_USAGE, "--sequence-length %lld does not fit the model's context of %lld tokens.",
                        (long long)settings->sequence_length, (long long)config->context);
    }
    if (token_file_recognise(settings->data)) {
        status = token_file_open(settings->data, &data->tokens);
        vocabulary = data->tokens.vocabulary;
        sequence = (struct sequence){data->tokens.tokens, data->tokens.token_bytes, data->tokens.count};
        data->unit = "token";
    } else {
        status = text_add(&data->text, settings->data);
        sequence = (struct sequence){data->text.bytes, 1, data->text.count};
        data->unit = "byte";
    }
    if (status == APP_OK && vocabulary > config->vocabulary) {
        status = app_fail(APP_USAGE, "%s has a vocabulary of %lld, the model of %lld; use the data it was trained on.",
                          settings->data, (long long)vocabulary, (long long)config->vocabulary);
    }
    struct text_source_settings source = {.batch = settings->batch,
                                          .length = settings->sequence_length,
                                          .validation_share = settings->share,
                                          .validation_batches = settings->batches};
    return status == APP_OK ? text_source_create(&sequence, &source, &data->source) : status;
}

static enum app_status open_images(const struct settings *settings, const struct vit_config *config,
                                   struct data *data) {
    data->unit = "image";
    enum app_status status = image_data_load(settings->data, config->classes, &data->images);
    const struct image_set *set = &data->images.test;
    if (status == APP_OK &&
        (set->channels != config->channels || set->rows != config->rows || set->columns != config->columns)) {
        status = app_fail(APP_USAGE, "The images in %s have another size than those of the model.", settings->data);
    }
    struct image_source_settings source = {.batch = settings->batch, .validation_batches = settings->batches};
    return status == APP_OK ? image_source_create(&data->images, &source, &data->source) : status;
}

static void close_data(struct data *data) {
    if (data->source) {
        data->source->operations->destroy(data->source);
    }
    text_release(&data->text);
    token_file_close(&data->tokens);
    image_data_release(&data->images);
}

static void print(const struct settings *settings, const struct checkpoint_model *model, const struct data *data,
                  double loss, double top1) {
    if (settings->json) {
        json_t *object =
            json_pack("{s:s, s:I, s:o, s:o, s:s}", "checkpoint", model->info.path, "step", (json_int_t)model->info.step,
                      "loss", log_number(loss), "perplexity", log_number(exp(loss)), "unit", data->unit);
        if (!isnan(top1)) {
            json_object_set_new(object, "top1", json_real(top1));
        }
        json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
        printf("\n");
        json_decref(object);
    } else {
        printf("%s, step %lld\nloss        %.6f nats a%s %s (%.4f bits)\n", model->info.path,
               (long long)model->info.step, loss, data->unit[0] == 'i' ? "n" : "", data->unit, loss / log(2));
        if (isnan(top1)) {
            printf("perplexity  %.4f\n", exp(loss));
        } else {
            printf("top-1       %.2f %%\n", 100 * top1);
        }
    }
}

static enum app_status evaluate(struct settings *settings) {
    struct checkpoint_model checkpoint;
    struct data data = {0};
    struct model *model = NULL;
    double loss = 0, top1 = NAN;
    enum app_status status = checkpoint_model_open(settings->path, settings->heads, &checkpoint);
    if (status != APP_OK) {
        return status;
    }
    status = settle(settings, &checkpoint);
    if (status == APP_OK) {
        status = checkpoint.is_vit ? open_images(settings, &checkpoint.vit, &data)
                                   : open_text(settings, &checkpoint.gpt2, &data);
    }
    if (status == APP_OK) {
        status = checkpoint_model_create(&checkpoint, settings->batch, settings->sequence_length,
                                         settings->threads ? (int)settings->threads : omp_get_max_threads(), &model);
    }
    if (status == APP_OK) {
        const struct ranks alone = {.count = 1};
        status = loop_validate(model, data.source, &alone, &loss, &top1);
    }
    if (status == APP_OK) {
        print(settings, &checkpoint, &data, loss, top1);
    }
    if (model) {
        model->operations->destroy(model);
    }
    close_data(&data);
    checkpoint_model_close(&checkpoint);
    matmul_release();
    return status;
}

int command_eval(int argc, char **argv) {
    struct settings settings = {0};
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
    return command_report(argv[0], evaluate(&settings));
}
