/* libFuzzer's entry for the command line: one word a line, as they stand behind `stquant`. The words are parsed by the
 * command itself, and what the subcommand does with them is done too, in an empty folder; benchmarks end where their
 * work begins. The linker hands argp_parse() and argp_failure() to the functions here (-Wl,--wrap), which come back
 * instead of ending the process. */
#include <argp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define main stquant_main
int stquant_main(int argc, char **argv);
#include "../../apps/main.c"
#undef main

enum { MOST_WORDS = 40, WORD_BYTES = 200 };

static jmp_buf back;
static int exit_status;

static __attribute__((noreturn)) void come_back(int status) {
    exit_status = status;
    longjmp(back, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
error_t __real_argp_parse(const struct argp *argp, int argc, char **argv, unsigned flags, int *index, void *input);
error_t __wrap_argp_parse(const struct argp *argp, int argc, char **argv, unsigned flags, int *index, void *input);
void __wrap_argp_failure(const struct argp_state *state, int status, int error, const char *format, ...);

error_t __wrap_argp_parse(const struct argp *argp, int argc, char **argv, unsigned flags, int *index, void *input) {
    error_t error = __real_argp_parse(argp, argc, argv, flags | ARGP_NO_EXIT, index, input);
    if (error != 0)
        come_back(APP_USAGE);
    for (int i = 1; i < argc; i++)
        if (strncmp(argv[i], "--h", 3) == 0 || strncmp(argv[i], "--us", 4) == 0 || strncmp(argv[i], "-?", 2) == 0)
            come_back(APP_OK); /* help was printed */
    if (strncmp(argv[0], "stquant bench", 13) == 0)
        come_back(APP_OK);
    return 0;
}

void __wrap_argp_failure(const struct argp_state *state, int status, int error, const char *format, ...) {
    char sentence[2000];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    if (state == NULL || status != APP_USAGE || error != 0 || length < 10)
        abort();
    come_back(APP_USAGE);
}

/* Cuts the input into words; without slashes, so that no word leaves the folder. Returns their number. */
static int cut(const uint8_t *data, size_t size, char words[MOST_WORDS][WORD_BYTES]) {
    int count = 0;
    size_t length = 0;
    for (size_t i = 0; i < size && count < MOST_WORDS; i++) {
        if (data[i] == '\n') {
            count++;
            length = 0;
        } else if (data[i] != 0 && length + 1 < WORD_BYTES) {
            words[count][length++] = data[i] == '/' ? '_' : (char)data[i];
        }
    }
    return count;
}

static void enter_empty_folder(void) {
    char folder[] = "/tmp/stquant-fuzz-XXXXXX";
    static int entered;
    if (entered++ > 0)
        return;
    if (mkdtemp(folder) == NULL || chdir(folder) != 0 || freopen("/dev/null", "w", stdout) == NULL)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char words[MOST_WORDS][WORD_BYTES], name[] = "stquant";
    char *arguments[MOST_WORDS + 2] = {name};
    memset(words, 0, sizeof words);
    int count = cut(data, size, words);
    for (int i = 0; i < count; i++)
        arguments[i + 1] = words[i];
    enter_empty_folder();
    if (setjmp(back) == 0)
        exit_status = stquant_main(count + 1, arguments);
    if (exit_status != APP_OK && exit_status != APP_FAILED && exit_status != APP_USAGE)
        abort();
    return 0;
}
