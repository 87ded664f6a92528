// `stquant train gpt2`: text, shape and samples of a GPT-2.
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "train/memory.h"
#include "train/sample.h"
#include "train/text.h"
#include "train/token_file.h"
#include "training.h"

struct gpt2_options {
    struct train_options shared;
    struct command_model model;
    int64_t sequence_length; // 0 where the preset decides
    int64_t sample_length;
    double validation_share, temperature;
    const char *prompt;
};

struct gpt2_training {
    struct training base;
    struct gpt2_options options;
    struct gpt2_config config;
    struct sample_settings sample_settings;
    struct text text;         // of --data, unless it is a token file
    struct token_file tokens; // otherwise
    struct tokenizer *tokenizer;
    struct sequence sequence; // one or the other
};

static int has_tokens(const struct gpt2_training *gpt2) { return gpt2->tokenizer != NULL; }

// Opens --data when it is a token file, which decides the vocabulary.
static enum app_status open_tokens(struct gpt2_training *gpt2) {
    const struct train_options *options = &gpt2->options.shared;
    for (int i = 0; i < options->data_count; i++) {
        const char *path = options->data[i];
        if (!token_file_recognise(path)) {
            continue;
        }
        if (options->data_count > 1) {
            return app_fail(APP_USAGE, "%s is a token file, which is used alone; prepare one file of all the text.",
                            path);
        }
        enum app_status status = token_file_open(path, &gpt2->tokens);
        return status != APP_OK ? status
                                : tokenizer_create(path, gpt2->tokens.merges,
                                                   gpt2->tokens.vocabulary - TOKENIZER_BYTES - 1, &gpt2->tokenizer);
    }
    return APP_OK;
}

static enum app_status settle(struct training *training) {
    struct gpt2_training *gpt2 = (struct gpt2_training *)training;
    const struct gpt2_options *options = &gpt2->options;
    enum app_status status = open_tokens(gpt2);
    const int64_t needed = has_tokens(gpt2) ? gpt2->tokens.vocabulary : 256;
    gpt2->config = command_model_config(&options->model, needed);
    gpt2->sample_settings = (struct sample_settings){.length = options->sample_length,
                                                     .temperature = options->temperature,
                                                     .prompt = options->prompt,
                                                     .seed = (uint64_t)options->shared.seed,
                                                     .tokenizer = gpt2->tokenizer};
    if (status == APP_OK) {
        status = train_options_qat(&options->shared, &gpt2->config.qat);
    }
    if (status == APP_OK) {
        status = gpt2_check(&gpt2->config);
    }
    if (status == APP_OK && options->sequence_length > gpt2->config.context) {
        status = app_fail(APP_USAGE, "--sequence-length %lld is longer than the model's --context %lld.",
                          (long long)options->sequence_length, (long long)gpt2->config.context);
    }
    if (status == APP_OK && gpt2->config.vocabulary < needed) {
        status = app_fail(APP_USAGE, "--vocabulary %lld is too small for the data; it must be %lld or more.",
                          (long long)gpt2->config.vocabulary, (long long)needed);
    }
    return status;
}

static enum app_status describe(const struct training *training, struct parameter_set *set) {
    return gpt2_describe(&((const struct gpt2_training *)training)->config, set);
}

static int64_t activation_bytes(const struct training *training) {
    const struct gpt2_training *gpt2 = (const struct gpt2_training *)training;
    return gpt2_activation_bytes(&gpt2->config, training->batch, gpt2->options.sequence_length);
}

static enum app_status load(struct training *training) {
    struct gpt2_training *gpt2 = (struct gpt2_training *)training;
    const struct train_options *options = training->options;
    for (int i = 0; i < options->data_count && !has_tokens(gpt2); i++) {
        enum app_status status = text_add(&gpt2->text, options->data[i]);
        if (status != APP_OK) {
            return status;
        }
    }
    gpt2->sequence = has_tokens(gpt2)
                         ? (struct sequence){gpt2->tokens.tokens, gpt2->tokens.token_bytes, gpt2->tokens.count}
                         : (struct sequence){gpt2->text.bytes, 1, gpt2->text.count};
    struct text_source_settings settings = {.batch = training->batch,
                                            .rank = training->ranks.rank,
                                            .ranks = training->ranks.count,
                                            .length = gpt2->options.sequence_length,
                                            .validation_share = gpt2->options.validation_share,
                                            .validation_batches = options->validation_batches,
                                            .seed = (uint64_t)options->seed};
    return text_source_create(&gpt2->sequence, &settings, &training->data);
}

static enum app_status create_model(struct training *training) {
    struct gpt2_training *gpt2 = (struct gpt2_training *)training;
    const struct train_options *options = training->options;
    return gpt2_create(&gpt2->config, training->batch, gpt2->options.sequence_length, (int)options->threads,
                       (uint64_t)options->seed, &training->model);
}

static void print_head(const struct training *training) {
    const struct gpt2_training *gpt2 = (const struct gpt2_training *)training;
    const struct train_options *options = training->options;
    const struct gpt2_config *config = &gpt2->config;
    char bytes[2][32];
    printf("model      gpt2 %s: %lld layers, width %lld, %lld heads, context %lld, vocabulary %lld; %.2f million "
           "parameters\n",
           gpt2->options.model.preset->name, (long long)config->layers, (long long)config->width,
           (long long)config->heads, (long long)config->context, (long long)config->vocabulary,
           (double)training->model->parameters.elements / 1e6);
    int64_t count = gpt2->sequence.count;
    int64_t kept = count - sequence_training_count(&gpt2->sequence, gpt2->options.validation_share);
    if (has_tokens(gpt2)) {
        printf("text       %lld document%s, %lld tokens; the last %lld are the validation set\n",
               (long long)gpt2->tokens.documents, gpt2->tokens.documents == 1 ? "" : "s", (long long)count,
               (long long)kept);
    } else {
        printf("text       %lld file%s, %s; the last %s are the validation set\n", (long long)gpt2->text.documents,
               gpt2->text.documents == 1 ? "" : "s", memory_text(count, bytes[0]), memory_text(kept, bytes[1]));
    }
    printf("steps      %lld of %lld x %lld tokens; learning rate %g, seed %lld, %lld threads\n",
           (long long)options->steps, (long long)(options->batch * options->accumulation),
           (long long)gpt2->options.sequence_length, options->learning_rate, (long long)options->seed,
           (long long)options->threads);
}

static const char *unit(const struct training *training) {
    return has_tokens((const struct gpt2_training *)training) ? " token" : " byte";
}

static void describe_run(const struct training *training, json_t *run) {
    const struct gpt2_training *gpt2 = (const struct gpt2_training *)training;
    const struct gpt2_config *config = &gpt2->config;
    json_t *fields =
        json_pack("{s:s, s:s, s:{s:I, s:I, s:I, s:I, s:I}, s:I, s:f}", "model", "gpt2", "preset",
                  gpt2->options.model.preset->name, "shape", "layers", (json_int_t)config->layers, "width",
                  (json_int_t)config->width, "heads", (json_int_t)config->heads, "context", (json_int_t)config->context,
                  "vocabulary", (json_int_t)config->vocabulary, "sequence_length",
                  (json_int_t)gpt2->options.sequence_length, "validation_share", gpt2->options.validation_share);
    json_object_update(run, fields);
    json_decref(fields);
}

static enum app_status sample(void *context, int64_t step, char **text) {
    struct gpt2_training *gpt2 = context;
    return sample_gpt2(gpt2->base.model, &gpt2->sample_settings, (uint64_t)step, text);
}

static const struct training_kind kind = {.settle = settle,
                                          .describe = describe,
                                          .activation_bytes = activation_bytes,
                                          .load = load,
                                          .create_model = create_model,
                                          .print_head = print_head,
                                          .unit = unit,
                                          .describe_run = describe_run};

enum { DATA = 'd', SEQUENCE_LENGTH = 0x3000, VALIDATION_SHARE, SAMPLE_EVERY, SAMPLE_LENGTH, TEMPERATURE, PROMPT };

static const struct argp_option option_list[] = {
    {0, 0, 0, 0, "Data:", HELP_DATA},
    {"data", DATA, "PATH", 0,
     "Text file or folder (with the folders below it), plain or .gz, its bytes being the tokens; may be given several "
     "times. Or one token file, from `stquant data prepare`",
     2},
    {"validation-share", VALIDATION_SHARE, "X", 0, "Last part of the text, kept for validation (0.05)", HELP_DATA},
    {"sequence-length", SEQUENCE_LENGTH, "N", 0, "Tokens of a sequence", HELP_TRAINING},
    {"sample-every", SAMPLE_EVERY, "N", 0, "Steps between samples (0: only after the last step)", HELP_OUTPUT},
    {"sample-length", SAMPLE_LENGTH, "N", 0, "Bytes of a sample (400); 0, no samples", HELP_OUTPUT},
    {"temperature", TEMPERATURE, "X", 0, "Of the samples (0.8); 0, the likeliest byte each time", HELP_OUTPUT},
    {"prompt", PROMPT, "TEXT", 0, "What a sample goes on from (a newline)", HELP_OUTPUT},
    {0}};

#define NUMBER(KEY, NAME, FIELD, WHOLE, MINIMUM, MAXIMUM) \
    { KEY, NAME, offsetof(struct gpt2_options, FIELD), WHOLE, MINIMUM, MAXIMUM }

static const struct command_number numbers[] = {
    NUMBER(SEQUENCE_LENGTH, "sequence-length", sequence_length, 1, 1, 1 << 24),
    NUMBER(SAMPLE_EVERY, "sample-every", shared.sample_every, 1, 0, 1e9),
    NUMBER(SAMPLE_LENGTH, "sample-length", sample_length, 1, 0, 1 << 20),
    NUMBER(VALIDATION_SHARE, "validation-share", validation_share, 0, 1e-6, 0.9),
    NUMBER(TEMPERATURE, "temperature", temperature, 0, 0, 100),
};

static error_t parse(int key, char *argument, struct argp_state *state) {
    struct gpt2_options *options = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &options->model;
        state->child_inputs[1] = &options->shared;
        return 0;
    case DATA:
        train_options_add_data(&options->shared, argument, state);
        return 0;
    case PROMPT:
        options->prompt = argument;
        return 0;
    case ARGP_KEY_ARG:
        command_argument(state, argument, NULL, 0, "text is given with --data");
        return 0;
    default:
        return command_number(numbers, sizeof(numbers) / sizeof(numbers[0]), options, key, argument, state)
                   ? 0
                   : ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child children[] = {
    {&command_model_argp, 0, "Model:", HELP_MODEL}, {&train_options_argp, 0, 0, 0}, {0}};
static const struct argp argp = {
    .options = option_list,
    .parser = parse,
    .children = children,
    .doc = "Trains a GPT-2 on text.\v"
           "Where no option says otherwise, the preset decides. Ranks that mpirun starts share a batch out.\n\n"
           "Examples:\n\n"
           "  stquant train gpt2 --data text.txt --state-bits 5.0 --log run.jsonl\n"
           "  stquant train gpt2 --data text.txt --optimizer adamw --tensorboard board\n"
           "  stquant train gpt2 --data wiki.tokens --preset small --checkpoint run\n"
           "  stquant train gpt2 --data wiki.tokens --preset small --checkpoint run \\\n"
           "      --resume run\n"
           "  mpirun -n 2 stquant train gpt2 --data text.txt --threads 1\n"
           "  stquant train gpt2 --data text.txt --preset 124m --device cuda\n\n"
           "Exit status: 0, 1 when the run failed, 2 when the options make no sense, 130 or 143 when Ctrl-C or "
           "a termination signal ended it after a whole step."};

static void parse_options(struct gpt2_options *options, int argc, char **argv) {
    *options = (struct gpt2_options){.sample_length = 400, .validation_share = 0.05, .temperature = 0.8};
    train_options_begin(&options->shared);
    struct argp_state state = {.name = argv[0], .err_stream = stderr, .out_stream = stdout, .root_argp = &argp};
    argp_parse(&argp, argc, argv, 0, NULL, options);
    if (options->shared.data_count == 0) {
        argp_failure(&state, APP_USAGE, 0, "There is no text to train on; name a file or folder with --data.");
    }
    const struct preset *preset = options->model.preset;
    const int64_t context = command_model_config(&options->model, 0).context;
    if (options->sequence_length == 0) {
        options->sequence_length = preset->sequence_length < context ? preset->sequence_length : context;
    }
    train_options_complete(&options->shared, &preset->train);
}

int command_train_gpt2(int argc, char **argv) {
    struct gpt2_training gpt2 = {.base = {.kind = &kind}};
    parse_options(&gpt2.options, argc, argv);
    gpt2.base.options = &gpt2.options.shared;
    gpt2.base.sample = gpt2.options.sample_length ? sample : NULL;
    int exit_status = training_run(&gpt2.base, argv[0]);
    text_release(&gpt2.text);
    token_file_close(&gpt2.tokens);
    tokenizer_destroy(gpt2.tokenizer);
    train_options_release(&gpt2.options.shared);
    return exit_status;
}
