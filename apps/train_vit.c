// `stquant train vit`: images and shape of a Vision Transformer.
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "train/images.h"
#include "train/memory.h"
#include "train/vit.h"
#include "training.h"

struct vit_options {
    struct train_options shared;
    const struct vit_preset *preset;
    struct vit_config overrides; // 0 where the preset decides
    double dropout;
    int64_t shift, flip;
};

struct vit_training {
    struct training base;
    struct vit_options options;
    struct vit_config config;
    struct image_data images;
};

static int64_t either(int64_t override, int64_t preset) { return override ? override : preset; }

// The data decide the size of the images, so they are read here.
static enum app_status settle(struct training *training) {
    struct vit_training *vit = (struct vit_training *)training;
    const struct vit_config *overrides = &vit->options.overrides, *preset = &vit->options.preset->vit;
    const int64_t classes = either(overrides->classes, preset->classes);
    enum app_status status = image_data_load(training->options->data[0], classes, &vit->images);
    if (status != APP_OK) {
        return status;
    }
    const struct image_set *set = &vit->images.training;
    vit->config = (struct vit_config){.layers = either(overrides->layers, preset->layers),
                                      .width = either(overrides->width, preset->width),
                                      .heads = either(overrides->heads, preset->heads),
                                      .patch = either(overrides->patch, preset->patch),
                                      .channels = set->channels,
                                      .rows = set->rows,
                                      .columns = set->columns,
                                      .classes = classes,
                                      .dropout = vit->options.dropout};
    status = train_options_qat(training->options, &vit->config.qat);
    return status == APP_OK ? vit_check(&vit->config) : status;
}

static enum app_status describe(const struct training *training, struct parameter_set *set) {
    return vit_describe(&((const struct vit_training *)training)->config, set);
}

static int64_t activation_bytes(const struct training *training) {
    return vit_activation_bytes(&((const struct vit_training *)training)->config, training->batch);
}

static enum app_status load(struct training *training) {
    struct vit_training *vit = (struct vit_training *)training;
    struct image_source_settings settings = {.batch = training->batch,
                                             .rank = training->ranks.rank,
                                             .ranks = training->ranks.count,
                                             .shift = vit->options.shift,
                                             .flip = vit->options.flip != 0,
                                             .validation_batches = training->options->validation_batches,
                                             .seed = (uint64_t)training->options->seed};
    return image_source_create(&vit->images, &settings, &training->data);
}

static enum app_status create_model(struct training *training) {
    const struct train_options *options = training->options;
    return vit_create(&((struct vit_training *)training)->config, training->batch, (int)options->threads,
                      (uint64_t)options->seed, &training->model);
}

static void print_head(const struct training *training) {
    const struct vit_training *vit = (const struct vit_training *)training;
    const struct train_options *options = training->options;
    const struct vit_config *config = &vit->config;
    const struct image_set *set = &vit->images.training;
    const int64_t images = options->steps * options->batch * options->accumulation;
    printf("model      vit %s: %lld layers, width %lld, %lld heads, patches of %lld x %lld, %lld classes; %.2f million "
           "parameters\n",
           vit->options.preset->name, (long long)config->layers, (long long)config->width, (long long)config->heads,
           (long long)config->patch, (long long)config->patch, (long long)config->classes,
           (double)training->model->parameters.elements / 1e6);
    printf("images     %lld of %lld x %lld pixels, %lld channel%s; %lld test images are the validation set\n",
           (long long)set->count, (long long)set->columns, (long long)set->rows, (long long)set->channels,
           set->channels == 1 ? "" : "s", (long long)vit->images.test.count);
    printf("steps      %lld of %lld images, %.1f epochs; learning rate %g, seed %lld, %lld threads\n",
           (long long)options->steps, (long long)(options->batch * options->accumulation),
           (double)images / (double)set->count, options->learning_rate, (long long)options->seed,
           (long long)options->threads);
}

static const char *unit(const struct training *training) {
    (void)training;
    return "n image";
}

static void describe_run(const struct training *training, json_t *run) {
    const struct vit_training *vit = (const struct vit_training *)training;
    const struct vit_config *config = &vit->config;
    json_t *fields =
        json_pack("{s:s, s:s, s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}, s:f, s:I, s:I}", "model", "vit", "preset",
                  vit->options.preset->name, "shape", "layers", (json_int_t)config->layers, "width",
                  (json_int_t)config->width, "heads", (json_int_t)config->heads, "patch", (json_int_t)config->patch,
                  "channels", (json_int_t)config->channels, "rows", (json_int_t)config->rows, "columns",
                  (json_int_t)config->columns, "classes", (json_int_t)config->classes, "dropout", config->dropout,
                  "shift", (json_int_t)vit->options.shift, "flip", (json_int_t)vit->options.flip);
    json_object_update(run, fields);
    json_decref(fields);
}

static const struct training_kind kind = {.settle = settle,
                                          .describe = describe,
                                          .activation_bytes = activation_bytes,
                                          .load = load,
                                          .create_model = create_model,
                                          .print_head = print_head,
                                          .unit = unit,
                                          .describe_run = describe_run};

enum { DATA = 'd', PRESET = 'p', LAYERS = 0x3000, WIDTH, HEADS, PATCH, CLASSES, DROPOUT, SHIFT, FLIP };

static const struct argp_option option_list[] = {
    {0, 0, 0, 0, "Model:", HELP_MODEL},
    {"preset", PRESET, "tiny|small|base", 0, "The model (tiny)", HELP_MODEL},
    {"layers", LAYERS, "N", 0, "Transformer blocks, instead of the preset's", HELP_MODEL},
    {"width", WIDTH, "N", 0, "Width of the residual stream, a multiple of the heads", HELP_MODEL},
    {"heads", HEADS, "N", 0, "Attention heads", HELP_MODEL},
    {"patch", PATCH, "N", 0, "Side of a patch in pixels (4); divides both sides of the images", HELP_MODEL},
    {"classes", CLASSES, "N", 0, "Number of classes (10)", HELP_MODEL},
    {"dropout", DROPOUT, "X", 0,
     "Dropout after the embedding and after each projection into the residual stream (0: none)", HELP_MODEL},
    {0, 0, 0, 0, "Data:", HELP_DATA},
    {"data", DATA, "FOLDER", 0,
     "Folder of images: idx files as MNIST and Fashion-MNIST have them, plain or .gz, or CIFAR-10's binary version. "
     "`scripts/fetch-images` fetches Fashion-MNIST and prints its folder",
     HELP_DATA},
    {"shift", SHIFT, "N", 0, "Training images are moved by up to N pixels each way (2); 0, not at all", HELP_DATA},
    {"flip", FLIP, "0|1", 0, "Half of the training images are mirrored (1)", HELP_DATA},
    {0}};

#define NUMBER(KEY, NAME, FIELD, WHOLE, MINIMUM, MAXIMUM) \
    { KEY, NAME, offsetof(struct vit_options, FIELD), WHOLE, MINIMUM, MAXIMUM }

static const struct command_number numbers[] = {
    NUMBER(LAYERS, "layers", overrides.layers, 1, 1, 10000),
    NUMBER(WIDTH, "width", overrides.width, 1, 1, 1 << 20),
    NUMBER(HEADS, "heads", overrides.heads, 1, 1, 1 << 20),
    NUMBER(PATCH, "patch", overrides.patch, 1, 1, 4096),
    NUMBER(CLASSES, "classes", overrides.classes, 1, 2, 256),
    NUMBER(DROPOUT, "dropout", dropout, 0, 0, 0.95),
    NUMBER(SHIFT, "shift", shift, 1, 0, 4096),
    NUMBER(FLIP, "flip", flip, 1, 0, 1),
};

static error_t parse(int key, char *argument, struct argp_state *state) {
    struct vit_options *options = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &options->shared;
        return 0;
    case DATA:
        train_options_add_data(&options->shared, argument, state);
        return 0;
    case PRESET:
        options->preset = vit_preset_find(argument);
        if (!options->preset) {
            argp_failure(state, APP_USAGE, 0, "There is no preset '%s'; the presets are tiny, small, base.", argument);
        }
        return 0;
    case ARGP_KEY_ARG:
        command_argument(state, argument, NULL, 0, "images are given with --data");
        return 0;
    default:
        return command_number(numbers, sizeof(numbers) / sizeof(numbers[0]), options, key, argument, state)
                   ? 0
                   : ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child children[] = {{&train_options_argp, 0, 0, 0}, {0}};
static const struct argp argp = {
    .options = option_list,
    .parser = parse,
    .children = children,
    .doc = "Trains a Vision Transformer on images.\v"
           "Where no option says otherwise, the preset decides. The validation set is the test set; its loss and the "
           "share "
           "of images whose likeliest class is right (top-1) are logged.\n\n"
           "Examples:\n\n"
           "  stquant train vit --data \"$(scripts/fetch-images)\" --log run.jsonl\n"
           "  stquant train vit --data cifar-10-batches-bin --preset small --dropout 0.1\n\n"
           "Exit status: 0, 1 when the run failed, 2 when the options make no sense, 130 or 143 when Ctrl-C "
           "or a termination signal ended it after a whole step."};

static void parse_options(struct vit_options *options, int argc, char **argv) {
    *options = (struct vit_options){.preset = vit_preset_find("tiny"), .shift = 2, .flip = 1};
    train_options_begin(&options->shared);
    options->shared.validation_batches = 1 << 20;
    struct argp_state state = {.name = argv[0], .err_stream = stderr, .out_stream = stdout, .root_argp = &argp};
    argp_parse(&argp, argc, argv, 0, NULL, options);
    if (options->shared.data_count != 1) {
        argp_failure(&state, APP_USAGE, 0,
                     options->shared.data_count ? "--data takes one folder of images."
                                                : "There are no images to train on; name a folder with --data.");
    }
    train_options_complete(&options->shared, &options->preset->train);
}

int command_train_vit(int argc, char **argv) {
    struct vit_training vit = {.base = {.kind = &kind}};
    parse_options(&vit.options, argc, argv);
    vit.base.options = &vit.options.shared;
    int exit_status = training_run(&vit.base, argv[0]);
    image_data_release(&vit.images);
    train_options_release(&vit.options.shared);
    return exit_status;
}
