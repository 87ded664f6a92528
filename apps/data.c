// `stquant data`: text into files of tokens, and what such a file holds.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "train/memory.h"
#include "train/progress.h"
#include "train/text.h"
#include "train/token_file.h"
#include "train/tokenizer.h"

struct settings {
    const char *merges, *output, *separator;
    const char **paths;
    int path_count;
    int64_t threads;
    int text;
};

enum { MERGES = 'm', OUTPUT = 'o', SEPARATOR = 0x2000, THREADS, TEXT };

// What `prepare` works with.
struct preparation {
    const struct settings *settings;
    struct tokenizer *tokenizer;
    struct token_writer *writer;
    struct token_list list;
    int64_t files, documents, tokens, bytes;
};

// One document: its tokens, and the token that ends it.
static enum app_status add_document(struct preparation *preparation, const char *path, const uint8_t *text,
                                    int64_t count) {
    preparation->list.count = 0;
    enum app_status status = tokenizer_encode(preparation->tokenizer, path, text, count,
                                              (int)preparation->settings->threads, &preparation->list);
    if (status == APP_OK) {
        status = token_writer_add(preparation->writer, preparation->list.tokens, preparation->list.count);
    }
    preparation->documents++;
    preparation->tokens += preparation->list.count + 1;
    return status;
}

// The next line that is the separator and nothing else, from `at`; `count` where there is none.
static int64_t find_separator(const uint8_t *text, int64_t at, int64_t count, const char *separator) {
    const size_t length = strlen(separator);
    while (length > 0 && at < count) {
        const uint8_t *found = memmem(text + at, (size_t)(count - at), separator, length);
        if (!found) {
            break;
        }
        at = found - text;
        const int64_t after = at + (int64_t)length;
        if ((at == 0 || text[at - 1] == '\n') && (after == count || text[after] == '\n')) {
            return at;
        }
        at++;
    }
    return count;
}

// A document has a newline at its end, whether or not the file has one before the separator; an empty one is none.
static enum app_status add_documents(struct preparation *preparation, const char *path, const struct text *text) {
    const char *separator = preparation->settings->separator;
    enum app_status status = APP_OK;
    for (int64_t at = 0; at < text->count && status == APP_OK;) {
        const int64_t end = find_separator(text->bytes, at, text->count, separator);
        if (end > at) {
            status = add_document(preparation, path, text->bytes + at, end - at);
        }
        at = end + (int64_t)strlen(separator) + 1;
    }
    return status;
}

static enum app_status add_file(void *context, const char *path) {
    struct preparation *preparation = context;
    struct text text = {0};
    enum app_status status = text_add(&text, path);
    if (status == APP_OK) {
        status = add_documents(preparation, path, &text);
        preparation->files++;
        preparation->bytes += text.count;
    }
    text_release(&text);
    if (status == APP_OK && isatty(STDOUT_FILENO)) {
        printf("\r%lld files, %lld tokens", (long long)preparation->files, (long long)preparation->tokens);
        fflush(stdout);
    }
    return status;
}

static void print_outcome(const struct preparation *preparation, double seconds) {
    char size[32];
    printf("%s%s: %lld tokens of %lld in the vocabulary, %lld document%s, from %s of text (%.2f bytes a token) in %.1f "
           "s\n",
           isatty(STDOUT_FILENO) ? "\r" : "", preparation->settings->output, (long long)preparation->tokens,
           (long long)tokenizer_vocabulary(preparation->tokenizer), (long long)preparation->documents,
           preparation->documents == 1 ? "" : "s", memory_text(preparation->bytes, size),
           (double)preparation->bytes / (double)preparation->tokens, seconds);
}

static enum app_status prepare(const struct settings *settings) {
    struct preparation preparation = {.settings = settings};
    const double begin = clock_seconds();
    enum app_status status = tokenizer_read(settings->merges, &preparation.tokenizer);
    if (status == APP_OK) {
        status = token_writer_open(settings->output, preparation.tokenizer, &preparation.writer);
    }
    for (int i = 0; i < settings->path_count && status == APP_OK; i++) {
        status = text_each_file(settings->paths[i], add_file, &preparation);
    }
    if (status == APP_OK) {
        status = token_writer_finish(preparation.writer);
    } else {
        token_writer_abandon(preparation.writer);
    }
    if (status == APP_OK) {
        print_outcome(&preparation, clock_seconds() - begin);
    }
    token_list_release(&preparation.list);
    tokenizer_destroy(preparation.tokenizer);
    return status;
}

// Documents with the separator between them; prepared again they give the same tokens.
static enum app_status print_text(const struct settings *settings, const struct token_file *file) {
    struct tokenizer *tokenizer;
    enum app_status status =
        tokenizer_create(settings->paths[0], file->merges, file->vocabulary - TOKENIZER_BYTES - 1, &tokenizer);
    if (status != APP_OK) {
        return status;
    }
    for (int64_t i = 0; i < file->count; i++) {
        const int32_t token = token_file_get(file, i);
        size_t count;
        const uint8_t *bytes = tokenizer_bytes(tokenizer, token, &count);
        fwrite(bytes, 1, count, stdout);
        if (token == tokenizer_end(tokenizer) && i + 1 < file->count) {
            printf("%s\n", settings->separator);
        }
    }
    tokenizer_destroy(tokenizer);
    return APP_OK;
}

static enum app_status show(const struct settings *settings) {
    struct token_file file;
    const char *path = settings->paths[0];
    enum app_status status = token_file_open(path, &file);
    if (status == APP_OK) {
        status = token_file_check(path, &file);
    }
    if (status == APP_OK && settings->text) {
        status = print_text(settings, &file);
    } else if (status == APP_OK) {
        printf("%s: %lld tokens of %d bytes, %lld in the vocabulary, %lld document%s; checksum and range are right\n",
               path, (long long)file.count, file.token_bytes, (long long)file.vocabulary, (long long)file.documents,
               file.documents == 1 ? "" : "s");
    }
    token_file_close(&file);
    return status;
}

static void add_path(struct settings *settings, const char *path, const struct argp_state *state) {
    const char **paths = realloc(settings->paths, (size_t)(settings->path_count + 1) * sizeof(*paths));
    if (!paths) {
        argp_failure(state, APP_FAILED, 0, "There is no memory for the list of files.");
        return;
    }
    settings->paths = paths;
    settings->paths[settings->path_count++] = path;
}

static error_t parse(int key, char *argument, struct argp_state *state) {
    struct settings *settings = state->input;
    switch (key) {
    case MERGES:
        settings->merges = argument;
        return 0;
    case OUTPUT:
        settings->output = argument;
        return 0;
    case SEPARATOR:
        settings->separator = argument;
        return 0;
    case THREADS:
        settings->threads = command_integer(state, "threads", argument, 1, 4096);
        return 0;
    case TEXT:
        settings->text = 1;
        return 0;
    case ARGP_KEY_ARG:
        add_path(settings, argument, state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const char separator_help[] = "A line that stands between documents of one file (<|endoftext|>)";

static const struct argp_option prepare_options[] = {
    {"merges", MERGES, "FILE", 0, "GPT-2's list of merges (vocab.bpe, merges.txt), or one in its format; required", 0},
    {"output", OUTPUT, "FILE", 0, "The file of tokens to write; required", 0},
    {"separator", SEPARATOR, "LINE", 0, separator_help, 0},
    {"threads", THREADS, "N", 0, "Threads (all processors)", 0},
    {0}};

static const struct argp prepare_argp = {
    .options = prepare_options,
    .parser = parse,
    .args_doc = "PATH...",
    .doc = "Turns text into tokens by GPT-2's byte-pair encoding and writes a file for `stquant train gpt2 --data`.\v"
           "PATH is a text file or a folder, plain or .gz, in UTF-8. Every file is a document, and so is every part of "
           "a file between lines that are the separator; a token ends each.\n\n"
           "Examples:\n\n"
           "  stquant data prepare --merges vocab.bpe --output wiki.tokens wiki.txt\n"
           "  stquant data prepare -m vocab.bpe -o books.tokens --threads 2 books/\n"};

static const struct argp_option show_options[] = {
    {"text", TEXT, 0, 0, "Print the text that the tokens stand for", 0},
    {"separator", SEPARATOR, "LINE", 0, "Printed between documents (<|endoftext|>)", 0},
    {0}};

static const struct argp show_argp = {.options = show_options,
                                      .parser = parse,
                                      .args_doc = "FILE",
                                      .doc = "Checks a file of tokens and tells what it holds.\v"
                                             "Examples:\n\n"
                                             "  stquant data show wiki.tokens\n"
                                             "  stquant data show --text wiki.tokens | head\n"};

static struct settings begin(void) {
    return (struct settings){.separator = "<|endoftext|>", .threads = omp_get_max_threads()};
}

static int command_prepare(int argc, char **argv) {
    struct settings settings = begin();
    enum app_status status;
    argp_parse(&prepare_argp, argc, argv, 0, NULL, &settings);
    if (!settings.merges || !settings.output) {
        status = app_fail(APP_USAGE, "--%s is missing; `stquant data prepare --merges FILE --output FILE PATH...`.",
                          settings.merges ? "output" : "merges");
    } else if (settings.path_count == 0) {
        status = app_fail(APP_USAGE, "There is no text to prepare; name a file or a folder.");
    } else {
        status = prepare(&settings);
    }
    free(settings.paths);
    return command_report(argv[0], status);
}

static int command_show(int argc, char **argv) {
    struct settings settings = begin();
    argp_parse(&show_argp, argc, argv, 0, NULL, &settings);
    enum app_status status =
        settings.path_count == 1 ? show(&settings) : app_fail(APP_USAGE, "`stquant data show` takes one file.");
    free(settings.paths);
    return command_report(argv[0], status);
}

int command_data(int argc, char **argv) {
    static const struct command_entry commands[] = {
        {"prepare", "turn text into tokens by GPT-2's byte-pair encoding", command_prepare},
        {"show", "check a file of tokens, tell what it holds or print its text", command_show}};
    static const struct command_group group = {
        .name = "stquant data",
        .doc = "Files of tokens.",
        .kind = "command",
        .options = "",
        .details = "`stquant data COMMAND --help` tells more.\n\n"
                   "Examples:\n\n"
                   "  stquant data prepare --merges vocab.bpe --output wiki.tokens wiki.txt\n"
                   "  stquant data show wiki.tokens\n",
        .entries = commands,
        .count = 2};
    return command_run_group(&group, argc, argv);
}
