// `stquant sample`: text written by a checkpoint's model.
#include <omp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "checkpoint_model.h"
#include "command.h"
#include "train/matmul.h"
#include "train/sample.h"
#include "train/token_file.h"

struct settings {
    const char *path, *prompt, *tokens, *merges;
    int64_t length, seed, number, threads, heads;
    double temperature;
};

enum { PROMPT = 'p', LENGTH = 0x2000, TEMPERATURE, SEED, NUMBER_OF_SAMPLES, TOKENS, MERGES, HEADS, THREADS };

static const struct argp_option option_list[] = {
    {"prompt", PROMPT, "TEXT", 0, "What the text goes on from (a newline)", 0},
    {"length", LENGTH, "N", 0, "Bytes to write (400)", 0},
    {"temperature", TEMPERATURE, "X", 0, "Of the choice of tokens (0.8); 0, the likeliest each time", 0},
    {"seed", SEED, "N", 0, "Another seed, another text (1)", 0},
    {"samples", NUMBER_OF_SAMPLES, "N", 0, "Texts to write (1)", 0},
    {"tokens", TOKENS, "FILE", 0, "Token file that the model was trained on, for its list of merges", 0},
    {"merges", MERGES, "FILE", 0, "List of merges (GPT-2's merges.txt); without either, tokens are bytes", 0},
    {"heads", HEADS, "N", 0, "Attention heads, where the checkpoint does not tell (one for 64 columns)", 0},
    {"threads", THREADS, "N", 0, "Threads (all processors)", 0},
    {0}};

#define NUMBER(KEY, NAME, FIELD, WHOLE, MINIMUM, MAXIMUM) \
    { KEY, NAME, offsetof(struct settings, FIELD), WHOLE, MINIMUM, MAXIMUM }

static const struct command_number numbers[] = {
    NUMBER(LENGTH, "length", length, 1, 1, 1 << 24), NUMBER(TEMPERATURE, "temperature", temperature, 0, 0, 100),
    NUMBER(SEED, "seed", seed, 1, 0, 9e18),          NUMBER(NUMBER_OF_SAMPLES, "samples", number, 1, 1, 1e6),
    NUMBER(HEADS, "heads", heads, 1, 1, 1 << 20),    NUMBER(THREADS, "threads", threads, 1, 1, 4096),
};

static error_t parse(int key, char *argument, struct argp_state *state) {
    struct settings *settings = state->input;
    switch (key) {
    case PROMPT:
        settings->prompt = argument;
        return 0;
    case TOKENS:
        settings->tokens = argument;
        return 0;
    case MERGES:
        settings->merges = argument;
        return 0;
    case ARGP_KEY_ARG:
        command_argument(state, argument, &settings->path, 1, "text to go on from is given with --prompt");
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_failure(state, APP_USAGE, 0, "Which checkpoint? Name a run's folder, a checkpoint's, or a file.");
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
    .doc = "Text written by a checkpoint's GPT-2.\v"
           "CHECKPOINT may also be a GPT-2 of Hugging Face's: a folder with model.safetensors and config.json, or the "
           "file alone.\n\n"
           "Examples:\n\n"
           "  stquant sample run --prompt \"It is a truth\"\n"
           "  stquant sample gpt2 --merges gpt2/merges.txt --samples 3 --temperature 0.7\n"};

static enum app_status open_tokenizer(const struct settings *settings, struct token_file *file,
                                      struct tokenizer **tokenizer) {
    *tokenizer = NULL;
    if (settings->merges) {
        return tokenizer_read(settings->merges, tokenizer);
    }
    if (!settings->tokens) {
        return APP_OK;
    }
    enum app_status status = token_file_open(settings->tokens, file);
    return status == APP_OK
               ? tokenizer_create(settings->tokens, file->merges, file->vocabulary - TOKENIZER_BYTES - 1, tokenizer)
               : status;
}

static enum app_status check(const struct settings *settings, const struct checkpoint_model *checkpoint,
                             const struct tokenizer *tokenizer) {
    if (checkpoint->is_vit) {
        return app_fail(APP_USAGE, "%s holds a Vision Transformer, which writes no text.", settings->path);
    }
    const int64_t vocabulary = checkpoint->gpt2.vocabulary;
    if (!tokenizer && vocabulary > 256 + 255) {
        return app_fail(
            APP_USAGE,
            "The model has %lld tokens, which are not bytes; name its token file with --tokens, or its list "
            "of merges with --merges.",
            (long long)vocabulary);
    }
    if (tokenizer && tokenizer_vocabulary(tokenizer) > vocabulary) {
        return app_fail(APP_USAGE, "The list of merges makes %lld tokens, the model has %lld.",
                        (long long)tokenizer_vocabulary(tokenizer), (long long)vocabulary);
    }
    return APP_OK;
}

static enum app_status write_samples(const struct settings *settings, struct model *model,
                                     struct tokenizer *tokenizer) {
    struct sample_settings sample = {.tokenizer = tokenizer,
                                     .length = settings->length,
                                     .temperature = settings->temperature,
                                     .prompt = settings->prompt,
                                     .seed = (uint64_t)settings->seed};
    for (int64_t i = 0; i < settings->number; i++) {
        char *text;
        enum app_status status = sample_gpt2(model, &sample, (uint64_t)i, &text);
        if (status != APP_OK) {
            return status;
        }
        printf("%s%s\n", settings->prompt ? settings->prompt : "", text);
        free(text);
    }
    return APP_OK;
}

static enum app_status sample(const struct settings *settings) {
    struct checkpoint_model checkpoint;
    struct token_file file = {0};
    struct tokenizer *tokenizer;
    struct model *model = NULL;
    enum app_status status = checkpoint_model_open(settings->path, settings->heads, &checkpoint);
    if (status != APP_OK) {
        return status;
    }
    status = open_tokenizer(settings, &file, &tokenizer);
    if (status == APP_OK) {
        status = check(settings, &checkpoint, tokenizer);
    }
    if (status == APP_OK) {
        status = checkpoint_model_create(&checkpoint, 1, checkpoint.gpt2.context,
                                         settings->threads ? (int)settings->threads : omp_get_max_threads(), &model);
    }
    if (status == APP_OK) {
        status = write_samples(settings, model, tokenizer);
    }
    if (model) {
        model->operations->destroy(model);
    }
    tokenizer_destroy(tokenizer);
    token_file_close(&file);
    checkpoint_model_close(&checkpoint);
    matmul_release();
    return status;
}

int command_sample(int argc, char **argv) {
    struct settings settings = {.length = 400, .temperature = 0.8, .seed = 1, .number = 1};
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
    return command_report(argv[0], sample(&settings));
}
