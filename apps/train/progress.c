#include "train/progress.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "train/memory.h"

double clock_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// What is left of a text is not waited for any longer.
enum { PATIENCE_MS = 2000 };

// What progress_hurry() puts in place of standard output; -1 for nothing.
static volatile sig_atomic_t hurried_output = -1;

// Standard output opened once more: changing the flags of the one at hand would change them for a shell, too. Files
// never keep a writer waiting.
static int open_unwaiting(void) {
    struct stat status;
    if (fstat(STDOUT_FILENO, &status) != 0 || S_ISREG(status.st_mode)) {
        return -1;
    }
    return open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

void progress_hurry(void) {
    const int error = errno;
    if (hurried_output >= 0) {
        dup2(hurried_output, STDOUT_FILENO);
    }
    errno = error;
}

void progress_begin(struct progress *progress, int64_t done, int64_t steps) {
    *progress = (struct progress){.terminal = isatty(STDOUT_FILENO),
                                  .steps = steps,
                                  .first_step = done,
                                  .plain_every = steps >= 20 ? steps / 20 : 1,
                                  .unwaiting = open_unwaiting(),
                                  .begin = clock_seconds()};
    hurried_output = progress->unwaiting;
}

void progress_end(struct progress *progress) {
    hurried_output = -1;
    if (progress->unwaiting >= 0) {
        close(progress->unwaiting);
    }
    progress->unwaiting = -1;
}

void progress_text(struct progress *progress, const char *text) {
    fflush(stdout);
    if (progress->unwaiting < 0) {
        fputs(text, stdout);
        fflush(stdout);
        return;
    }
    for (size_t left = strlen(text); left > 0;) {
        ssize_t written = write(progress->unwaiting, text, left);
        struct pollfd room = {.fd = progress->unwaiting, .events = POLLOUT};
        if (written < 0 && errno != EINTR && (errno != EAGAIN || poll(&room, 1, PATIENCE_MS) <= 0)) {
            return;
        }
        text += written > 0 ? written : 0;
        left -= written > 0 ? (size_t)written : 0;
    }
}

// A line of progress is shown now or not at all.
static void show(struct progress *progress, const char *line) {
    if (progress->unwaiting < 0) {
        fputs(line, stdout);
        fflush(stdout);
        return;
    }
    ssize_t written = write(progress->unwaiting, line, strlen(line));
    (void)written;
}

const char *progress_duration(double seconds, char text[32]) {
    if (!(seconds < 1e7)) {
        return strcpy(text, "unknown");
    }
    long whole = (long)(seconds + 0.5);
    if (whole >= 3600) {
        snprintf(text, 32, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
    } else {
        snprintf(text, 32, "%ld:%02ld", whole / 60, whole % 60);
    }
    return text;
}

const char *progress_rate(double per_second, const char *unit, char text[32]) {
    int large = per_second >= 1000;
    snprintf(text, 32, "%.1f%s %s/s", large ? per_second / 1000 : per_second, large ? "k" : "", unit);
    return text;
}

static void compose(const struct progress *progress, const struct progress_state *state, char *line, size_t size) {
    char bytes[32], left[32], rate[32], validation[64] = "";
    double elapsed = clock_seconds() - progress->begin;
    double remaining = elapsed / (double)(state->step - progress->first_step) * (double)(progress->steps - state->step);
    if (!isnan(state->validation_loss)) {
        int length = snprintf(validation, sizeof(validation), "  validation %.4f", state->validation_loss);
        if (!isnan(state->validation_top1)) {
            snprintf(validation + length, sizeof(validation) - (size_t)length, ", top-1 %.2f %%",
                     100 * state->validation_top1);
        }
    }
    snprintf(line, size, "step %lld/%lld  loss %.4f%s  %s  states %s (%.2f bits)  %s left", (long long)state->step,
             (long long)progress->steps, state->train_loss, validation,
             progress_rate(state->per_second, state->unit, rate), memory_text(state->state_bytes, bytes), state->bits,
             progress_duration(remaining, left));
}

void progress_step(struct progress *progress, const struct progress_state *state) {
    char line[256];
    const int validated = !isnan(state->validation_loss);
    if (!progress->terminal) {
        if (validated || state->step % progress->plain_every == 0) {
            compose(progress, state, line, sizeof(line));
            puts(line);
            fflush(stdout);
        }
        return;
    }
    double now = clock_seconds();
    if (!validated && state->step < progress->steps && now - progress->last_shown < 0.1) {
        return;
    }
    progress->last_shown = now;
    compose(progress, state, line, sizeof(line));
    struct winsize window = {0};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1 && window.ws_col <= strlen(line)) {
        line[window.ws_col - 1] = 0; // a longer one would wrap and could not be written over
    }
    char written[sizeof(line) + 8];
    snprintf(written, sizeof(written), "\r%s\033[K", line);
    show(progress, written);
    progress->pending = 1;
    if (validated) {
        progress_clear(progress); // losses on the validation set stay on the screen
    }
}

void progress_clear(struct progress *progress) {
    if (progress->pending) {
        show(progress, "\n");
        progress->pending = 0;
    }
}
