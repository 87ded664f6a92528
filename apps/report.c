// `stquant report`: one page about one or several runs, out of their logs.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "report/figures.h"
#include "report/style.h"

// Coloured cells of all pictures of one kind together: what keeps the page below a few megabytes.
enum { CELLS = 36000, TITLE_RUNS = 3 };

struct settings {
    const char *output, *title;
    const char **paths;
    int path_count;
};

static error_t parse(int key, char *argument, struct argp_state *state) {
    struct settings *settings = state->input;
    switch (key) {
    case 'o':
        settings->output = argument;
        return 0;
    case 't':
        settings->title = argument;
        return 0;
    case ARGP_KEY_ARG: {
        const char **paths = realloc(settings->paths, (size_t)(settings->path_count + 1) * sizeof(*paths));
        if (!paths) {
            argp_failure(state, APP_FAILED, 0, "There is no memory for the list of logs.");
            return ENOMEM;
        }
        settings->paths = paths;
        settings->paths[settings->path_count++] = argument;
        return 0;
    }
    case ARGP_KEY_NO_ARGS:
        argp_failure(state, APP_USAGE, 0,
                     "There is no log to report on; `stquant train ... --log run.jsonl` writes one.");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {{"output", 'o', "FILE", 0, "The page to write (report.html)", 0},
                                             {"title", 't', "TEXT", 0, "Its title (the runs' names)", 0},
                                             {0}};

static const struct argp argp = {.options = options,
                                 .parser = parse,
                                 .args_doc = "LOG...",
                                 .doc = "Writes one HTML page about one or several runs: losses, memory of the states, "
                                        "widths of every tensor over time, zones, how gradients and states evolve.\v"
                                        "LOG is what `stquant train --log` wrote, plain or .gz; runs are called by the "
                                        "file's name. The page needs nothing else and no network. Lines that cannot be "
                                        "read, such as the last one of a run that was killed, are left out and "
                                        "counted.\n\n"
                                        "Examples:\n\n"
                                        "  stquant report run.jsonl\n"
                                        "  stquant report float32.jsonl stquant.jsonl --output report.html\n"};

static void begin_page(const struct report *report, const char *title) {
    page_add(report->page, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                           "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
                           "<meta name=\"color-scheme\" content=\"light dark\"><title>");
    page_text(report->page, title);
    page_add(report->page, "</title><style>\n%s</style></head><body><main>\n<h1>", report_style);
    page_text(report->page, title);
    page_add(report->page, "</h1>\n");
}

// What was trained, where the runs agree on it.
static void describe_model(const struct report *report) {
    const struct run_log *first = &report->logs[0];
    char number[32];
    if (!first->model || !(first->parameters > 0)) {
        return;
    }
    for (int i = 1; i < report->count; i++) {
        if (report->logs[i].parameters != first->parameters) {
            return;
        }
    }
    page_add(report->page, "<p class=\"lead\">");
    page_text(report->page, first->model);
    if (first->preset) {
        page_add(report->page, " ");
        page_text(report->page, first->preset);
    }
    page_add(report->page, ", %s parameters</p>\n", page_integer((int64_t)first->parameters, number));
}

static void warn(const struct report *report) {
    for (int i = 0; i < report->count; i++) {
        const struct run_log *log = &report->logs[i];
        if (log->unreadable == 0 && log->repeated == 0 && log->skipped == 0) {
            continue;
        }
        page_add(report->page, "<p class=\"note warning\">");
        page_text(report->page, log->name);
        page_add(report->page, ":");
        if (log->unreadable) {
            page_add(report->page, " %lld of %lld lines could not be read and %s left out (the first is line %lld).",
                     (long long)log->unreadable, (long long)log->lines, log->unreadable == 1 ? "was" : "were",
                     (long long)log->first_unreadable);
        }
        if (log->repeated) {
            page_add(report->page, " %lld steps were told again when the run went on; the later lines count.",
                     (long long)log->repeated);
        }
        if (log->skipped) {
            page_add(report->page, " %lld steps were skipped because a gradient was not finite.",
                     (long long)log->skipped);
        }
        page_add(report->page, "</p>\n");
    }
}

static void add_contents(const struct report *report) {
    page_add(report->page, "<nav><a href=\"#loss\">Loss</a>%s",
             report_has_memory(report) ? "<a href=\"#memory\">Memory</a>" : "");
    for (int i = 0; i < report->count; i++) {
        if (run_log_has_widths(&report->logs[i])) {
            page_add(report->page, "<a href=\"#run%d\">", i);
            page_text(report->page, report->logs[i].name);
            page_add(report->page, "</a>");
        }
    }
    page_add(report->page, "</nav>\n");
}

static void section(struct page *page, int run, const char *name, const char *title) {
    char address[64];
    snprintf(address, sizeof(address), "%s%d", name, run);
    report_heading(page, 3, address, title);
}

// Everything about the states of one run.
static void add_run(const struct report *report, int index, int64_t cells) {
    const struct run_log *log = &report->logs[index];
    struct page *page = report->page;
    char address[32], title[160];
    snprintf(address, sizeof(address), "run%d", index);
    snprintf(title, sizeof(title), report->count > 1 ? "States of %.120s" : "States", log->name);
    report_heading(page, 2, address, title);
    section(page, index, "widths", "Widths over time");
    report_widths(page, log, cells);
    report_block(page, log);
    section(page, index, "zones", "Magnitude and complexity");
    report_zones(page, log);
    section(page, index, "evolution", "How gradients and states evolve");
    report_evolution(page, log, cells);
    section(page, index, "tensors", "Tensors");
    report_tensors(page, log);
}

static void add_samples(const struct report *report) {
    int any = 0;
    for (int i = 0; i < report->count; i++) {
        const struct run_log *log = &report->logs[i];
        if (log->sample) {
            if (!any++) {
                report_heading(report->page, 2, "samples", "What the models write");
            }
            page_add(report->page, "<p class=\"note\">");
            page_text(report->page, log->name);
            page_add(report->page, ", step %lld</p><pre>", (long long)log->sample_step);
            page_text(report->page, log->sample);
            page_add(report->page, "</pre>\n");
        }
    }
}

static void compose(const struct report *report, const char *title) {
    int coded = 0;
    for (int i = 0; i < report->count; i++) {
        coded += run_log_has_widths(&report->logs[i]);
    }
    begin_page(report, title);
    describe_model(report);
    warn(report);
    report_summary(report);
    add_contents(report);
    report_losses(report);
    report_memory(report);
    for (int i = 0; i < report->count; i++) {
        if (run_log_has_widths(&report->logs[i])) {
            add_run(report, i, CELLS / coded);
        }
    }
    add_samples(report);
    page_add(report->page, "</main></body></html>\n");
}

// The names of the first runs.
static void make_title(const struct run_log *logs, int count, char *title, size_t size) {
    size_t length = 0;
    for (int i = 0; i < count && i < TITLE_RUNS && length < size; i++) {
        length += (size_t)snprintf(title + length, size - length, "%s%.60s", i ? ", " : "", logs[i].name);
    }
    if (count > TITLE_RUNS && length < size) {
        snprintf(title + length, size - length, " and %d more", count - TITLE_RUNS);
    }
}

static enum app_status write_report(const struct settings *settings, struct run_log *logs, int *read) {
    struct page page = {0};
    char title[256], size[32];
    for (*read = 0; *read < settings->path_count; ++*read) {
        enum app_status status = run_log_read(settings->paths[*read], &logs[*read]);
        if (status != APP_OK) {
            return status;
        }
    }
    const struct report report = {.page = &page, .logs = logs, .count = settings->path_count};
    make_title(logs, report.count, title, sizeof(title));
    compose(&report, settings->title ? settings->title : title);
    enum app_status status = page_write(&page, settings->output);
    if (status == APP_OK) {
        printf("%s: %d run%s, %s bytes\n", settings->output, report.count, report.count == 1 ? "" : "s",
               page_integer((int64_t)page.count, size));
    }
    for (int i = 0; i < report.count && status == APP_OK; i++) {
        if (logs[i].unreadable) {
            printf("%s: %lld of %lld lines could not be read and are left out (the first is line %lld)\n", logs[i].path,
                   (long long)logs[i].unreadable, (long long)logs[i].lines, (long long)logs[i].first_unreadable);
        }
    }
    page_release(&page);
    return status;
}

int command_report_page(int argc, char **argv) {
    struct settings settings = {.output = "report.html"};
    argp_parse(&argp, argc, argv, 0, NULL, &settings);
    struct run_log *logs = calloc((size_t)settings.path_count, sizeof(*logs));
    int read = 0;
    enum app_status status =
        logs ? write_report(&settings, logs, &read) : app_fail(APP_FAILED, "There is no memory for the logs.");
    for (int i = 0; i < read; i++) {
        run_log_release(&logs[i]);
    }
    free(logs);
    free(settings.paths);
    return command_report(argv[0], status);
}
