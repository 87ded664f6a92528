// What all runs have in common: the table, losses and speeds, memory of the states.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/chart.h"
#include "report/figures.h"

const char *report_run_class(const char *what, int run) {
    static char text[64];
    snprintf(text, sizeof(text), "%s r%d%s", what, run % RUN_COLOURS, run >= RUN_COLOURS ? " dashed" : "");
    return text;
}

int64_t report_last_step(const struct report *report) {
    int64_t last = 1;
    for (int i = 0; i < report->count; i++) {
        const struct run_log *log = &report->logs[i];
        last = log->steps[log->step_count - 1] > last ? log->steps[log->step_count - 1] : last;
    }
    return last;
}

void report_heading(struct page *page, int level, const char *address, const char *text) {
    page_add(page, "<h%d id=\"%s\">", level, address);
    page_text(page, text);
    page_add(page, "</h%d>\n", level);
}

static struct scale step_scale(const struct report *report) {
    return (struct scale){.low = 0, .high = (double)report_last_step(report)};
}

static void cell(struct page *page, double value, int digits, const char *unit) {
    if (isnan(value)) {
        page_add(page, "<td class=\"number none\">–</td>");
        return;
    }
    page_add(page, "<td class=\"number\">%.*f%s</td>", digits, value, unit);
}

static void bytes_cell(struct page *page, double bytes) {
    char text[48];
    page_add(page, isnan(bytes) ? "<td class=\"number none\">–</td>" : "<td class=\"number\">%s</td>",
             chart_format(bytes, FORMAT_BYTES, text));
}

// What the log tells of how the states are kept.
static void describe_optimizer(struct page *page, const struct run_log *log) {
    if (!log->optimizer) {
        page_add(page, "<td>–</td>");
    } else if (!isnan(log->state_bits)) {
        page_add(page, "<td>%s, cap %.4g bits</td>", strcmp(log->optimizer, "stquant") == 0 ? "stquant" : "low-bit",
                 log->state_bits);
    } else {
        page_add(page, "<td>");
        page_text(page, strcmp(log->optimizer, "adamw") == 0 ? "AdamW, float32 states" : log->optimizer);
        page_add(page, "</td>");
    }
}

static void summary_row(const struct report *report, int index, int top1) {
    const struct run_log *log = &report->logs[index];
    struct page *page = report->page;
    char text[32];
    const double peak = run_log_largest(log, COLUMN_PEAK_BYTES), bytes = isnan(peak) ? NAN : peak;
    page_add(
        page,
        "<tr><th scope=\"row\"><svg class=\"chip\" viewBox=\"0 0 22 10\"><path d=\"M1 5H21\" class=\"%s\"/></svg> ",
        report_run_class("line", index));
    page_text(page, log->name);
    page_add(page, "</th>");
    describe_optimizer(page, log);
    page_add(page, "<td class=\"number\">%s</td>", page_integer(log->steps[log->step_count - 1], text));
    cell(page, run_log_last(log, COLUMN_TRAIN_LOSS), 4, "");
    cell(page, run_log_last(log, COLUMN_VALIDATION_LOSS), 4, "");
    if (top1) {
        cell(page, 100 * run_log_last(log, COLUMN_TOP1), 2, " %");
    }
    bytes_cell(page, run_log_last(log, COLUMN_STATE_BYTES));
    bytes_cell(page, bytes);
    cell(page, 4 * bytes / log->parameters, 2, "");
    cell(page, 100 * (1 - bytes / (8 * log->parameters)), 1, " %");
    const double speed = run_log_median(log, COLUMN_SPEED);
    page_add(page, isnan(speed) ? "<td class=\"number none\">–</td></tr>\n" : "<td class=\"number\">%s</td></tr>\n",
             page_integer(llround(isnan(speed) ? 0 : speed), text));
}

void report_summary(const struct report *report) {
    int top1 = 0;
    for (int i = 0; i < report->count; i++) {
        top1 |= !isnan(run_log_last(&report->logs[i], COLUMN_TOP1));
    }
    page_add(report->page,
             "<div class=\"scroll\"><table class=\"summary\"><thead><tr><th>run</th><th>optimizer states</th>"
             "<th class=\"number\">steps</th><th class=\"number\">training loss</th>"
             "<th class=\"number\">validation loss</th>%s<th class=\"number\">states now</th>"
             "<th class=\"number\">at the peak</th><th class=\"number\">bits a value, peak</th>"
             "<th class=\"number\">less than float32</th><th class=\"number\">per second</th></tr></thead><tbody>\n",
             top1 ? "<th class=\"number\">top-1</th>" : "");
    for (int i = 0; i < report->count; i++) {
        summary_row(report, i, top1);
    }
    page_add(report->page, "</tbody></table></div>\n");
}

// Smallest and largest of a column over all runs, from a step on.
static void column_range(const struct report *report, enum run_column column, int64_t from, double *low, double *high) {
    for (int i = 0; i < report->count; i++) {
        const struct run_log *log = &report->logs[i];
        for (int64_t k = 0; k < log->step_count; k++) {
            const double value = log->columns[column][k];
            if (isfinite(value) && log->steps[k] >= from) {
                *low = fmin(*low, value);
                *high = fmax(*high, value);
            }
        }
    }
}

// The first steps would squeeze everything else: where they double the range, they are left to the edge. Returns the
// largest loss when it was left out, else NaN.
static double loss_range(const struct report *report, struct scale *scale) {
    double low = INFINITY, high = -INFINITY, late_low = INFINITY, late_high = -INFINITY;
    const int64_t early = report_last_step(report) / 20;
    column_range(report, COLUMN_TRAIN_LOSS, 0, &low, &high);
    column_range(report, COLUMN_VALIDATION_LOSS, 0, &low, &high);
    column_range(report, COLUMN_TRAIN_LOSS, early, &late_low, &late_high);
    column_range(report, COLUMN_VALIDATION_LOSS, early, &late_low, &late_high);
    const int crop = late_high > late_low && high - low > 1.6 * (late_high - late_low);
    *scale = (struct scale){.low = low, .high = crop ? late_high : high};
    scale_widen(scale, 0.04);
    return crop ? high : NAN;
}

// Lines of all runs: noisy columns as a mean over 2 % of the run, with the values themselves pale behind it.
static void draw_column(const struct report *report, const struct panel *panel, enum run_column column) {
    const int sparse = column == COLUMN_VALIDATION_LOSS || column == COLUMN_TOP1;
    const int noisy = column == COLUMN_TRAIN_LOSS || column == COLUMN_GRADIENT_NORM || column == COLUMN_SPEED;
    for (int i = 0; i < report->count; i++) {
        const struct run_log *log = &report->logs[i];
        double *smooth = malloc((size_t)log->step_count * sizeof(*smooth));
        const double *values = log->columns[column];
        if (noisy && smooth && log->step_count > 200) {
            panel_line(panel, log->steps, values, log->step_count, report_run_class("raw", i));
            chart_smooth(values, smooth, log->step_count, log->step_count / 100);
            values = smooth;
        }
        if (!sparse) {
            panel_line(panel, log->steps, values, log->step_count, report_run_class("line", i));
        }
        free(smooth);
    }
    for (int i = 0; i < report->count && sparse; i++) {
        const struct run_log *log = &report->logs[i];
        panel_dots(panel, log->steps, log->columns[column], log->step_count, 3.6, report_run_class("dot", i));
    }
}

// The runs' names beside where their lines end.
static void label_runs(const struct report *report, const struct panel *panel, enum run_column first,
                       enum run_column second, double factor) {
    struct side_label labels[64];
    char classes[64][32], texts[64][96];
    int count = 0;
    for (int i = 0; i < report->count && i < 64; i++) {
        double value = run_log_last(&report->logs[i], first);
        value = isnan(value) ? run_log_last(&report->logs[i], second) : value;
        if (!isnan(value)) {
            snprintf(classes[i], sizeof(classes[i]), "label t%d", i % RUN_COLOURS);
            snprintf(texts[i], sizeof(texts[i]), "%.14s %.4g", report->logs[i].name, value * factor);
            labels[count++] = (struct side_label){.value = value * factor, .text = texts[i], .classes = classes[i]};
        }
    }
    panel_labels(panel, labels, count);
}

// Half a page: one column of all runs.
static void small_chart(const struct report *report, enum run_column column, const char *title, const char *caption,
                        enum chart_format format, int logarithmic) {
    double low = INFINITY, high = -INFINITY;
    column_range(report, column, 0, &low, &high);
    if (!(high >= low)) {
        return;
    }
    struct scale y = {.low = low, .high = high, .logarithmic = logarithmic && low > 0};
    if (!y.logarithmic && low >= 0) {
        y.low = 0;
    }
    scale_widen(&y, y.logarithmic ? 0.03 : 0.04);
    y.low = !y.logarithmic && low >= 0 ? 0 : y.low;
    figure_open(report->page, 0, 480, 250, title);
    struct panel panel = panel_make(report->page, 62, 34, 400, 166, step_scale(report), y);
    panel_axes(&panel, FORMAT_COUNT, format, "step", title);
    draw_column(report, &panel, column);
    figure_caption(report->page);
    page_text(report->page, caption);
    figure_end(report->page);
}

void report_losses(const struct report *report) {
    struct page *page = report->page;
    struct scale y;
    report_heading(page, 2, "loss", "Loss");
    const double left_out = loss_range(report, &y);
    figure_open(page, 1, 1000, 400, "Training and validation loss of each run over the steps");
    struct panel panel = panel_make(page, 56, 34, 800, 312, step_scale(report), y);
    panel_axes(&panel, FORMAT_COUNT, FORMAT_PLAIN, "step", "loss (nats)");
    draw_column(report, &panel, COLUMN_TRAIN_LOSS);
    draw_column(report, &panel, COLUMN_VALIDATION_LOSS);
    label_runs(report, &panel, COLUMN_VALIDATION_LOSS, COLUMN_TRAIN_LOSS, 1);
    figure_caption(page);
    page_add(page,
             "Training loss as a mean over 2 %% of the run%s; dots are the validation loss. The numbers at the end "
             "are the last validation loss.",
             report->logs[0].step_count > 200 ? ", the pale lines behind it step by step" : "");
    if (!isnan(left_out)) {
        page_add(page, " The first steps lie above the picture, up to %.3g.", left_out);
    }
    figure_end(page);
    page_add(page, "<div class=\"parts\">");
    small_chart(report, COLUMN_TOP1, "top-1 (share of the validation images)",
                "Images whose likeliest class is theirs.", FORMAT_PLAIN, 0);
    small_chart(report, COLUMN_GRADIENT_NORM, "gradient norm", "Global norm of the gradient before clipping.",
                FORMAT_POWER, 1);
    small_chart(report, COLUMN_LEARNING_RATE, "learning rate", "The schedule.", FORMAT_POWER, 0);
    small_chart(report, COLUMN_BITS, "bits per state value", "All bytes of the states over two values a parameter.",
                FORMAT_PLAIN, 0);
    small_chart(report, COLUMN_SPEED, "tokens or images per second", "Speed of each step, optimizer included.",
                FORMAT_COUNT, 0);
    page_add(page, "</div>\n");
}

static double most_parameters(const struct report *report) {
    double most = NAN;
    for (int i = 0; i < report->count; i++) {
        most = fmax(most, report->logs[i].parameters);
    }
    return most;
}

static const struct {
    const char *name;
    double bytes; // for a parameter: two values
} references[] = {{"32 bits", 8}, {"8 bits", 2}, {"4 bits", 1}};

static void memory_over_time(const struct report *report, double parameters) {
    struct page *page = report->page;
    struct scale y = {.low = 0, .high = 8.4 * parameters};
    struct side_label labels[64];
    char texts[64][96], classes[64][32], bytes[48];
    int count = 0;
    figure_open(page, 1, 1000, 360, "Bytes of the optimizer states over the steps, beside float32, 8 and 4 bits");
    struct panel panel = panel_make(page, 76, 34, 744, 272, step_scale(report), y);
    panel_axes(&panel, FORMAT_COUNT, FORMAT_BYTES, "step", "bytes of the states");
    for (int i = 0; i < 3; i++) {
        const double value = references[i].bytes * parameters, place = scale_place(&panel.y, value);
        page_add(page, "<path d=\"M%.1f %.1fH%.1f\" class=\"reference\"/>", panel.left, place, panel.right);
        snprintf(texts[count], sizeof(texts[0]), "%s  %s", references[i].name,
                 chart_format(value, FORMAT_BYTES, bytes));
        labels[count] = (struct side_label){.value = value, .text = texts[count], .classes = "label quiet"};
        count++;
    }
    for (int i = 0; i < report->count; i++) {
        const struct run_log *log = &report->logs[i];
        const double last = run_log_last(log, COLUMN_STATE_BYTES);
        panel_line(&panel, log->steps, log->columns[COLUMN_PEAK_BYTES], log->step_count, report_run_class("peak", i));
        panel_line(&panel, log->steps, log->columns[COLUMN_STATE_BYTES], log->step_count, report_run_class("line", i));
        if (!isnan(last) && count < 64) {
            snprintf(texts[count], sizeof(texts[0]), "%.14s  %s", log->name, chart_format(last, FORMAT_BYTES, bytes));
            snprintf(classes[count], sizeof(classes[0]), "label t%d", i % RUN_COLOURS);
            labels[count] = (struct side_label){.value = last, .text = texts[count], .classes = classes[count]};
            count++;
        }
    }
    panel_labels(&panel, labels, count);
    figure_caption(page);
    page_add(page,
             "Both moments with scales, padding and records, as the allocator has them; the thin line is the peak so "
             "far. Grey lines: every value at 32, 8 and 4 bits, without scales.");
    figure_end(page);
}

// A bar with its text behind it; with `peak` (or NaN) a mark.
static void bar(struct page *page, double y, const char *name, double bytes, double peak, double parameters,
                const char *classes) {
    const double left = 190, width = 500, factor = width / (8 * parameters);
    char text[160], now[48], most[48];
    chart_text(page, left - 12, y + 15, "end", "label", name);
    page_add(page, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"20\" class=\"%s\"/>", left, y, bytes * factor,
             classes);
    double end = left + bytes * factor;
    chart_format(bytes, FORMAT_BYTES, now);
    if (isnan(peak)) {
        snprintf(text, sizeof(text), "%s", now);
    } else {
        end = fmax(end, left + peak * factor);
        page_add(page, "<path d=\"M%.1f %.1fv24\" class=\"mark\"/>", left + peak * factor, y - 2);
        const double saved = 100 * (1 - peak / (8 * parameters));
        const int length = snprintf(text, sizeof(text), "%s now, peak %s", now, chart_format(peak, FORMAT_BYTES, most));
        if (saved >= 0.05) {
            snprintf(text + length, sizeof(text) - (size_t)length, ": %.1f %% less", saved);
        }
    }
    chart_text(page, end + 10, y + 15, "start", "label quiet", text);
}

static void memory_bars(const struct report *report, double parameters) {
    struct page *page = report->page;
    char name[32], classes[32];
    double y = 8;
    figure_open(page, 1, 1000, 30 * (3 + report->count) + 12, "Bytes of the optimizer states as bars");
    for (int i = 0; i < 3; i++, y += 30) {
        bar(page, y, references[i].name, references[i].bytes * parameters, NAN, parameters, "bar plain");
    }
    for (int i = 0; i < report->count; i++) {
        const struct run_log *log = &report->logs[i];
        const double bytes = run_log_last(log, COLUMN_STATE_BYTES), peak = run_log_largest(log, COLUMN_PEAK_BYTES);
        if (!isnan(bytes)) {
            snprintf(name, sizeof(name), "%.24s", log->name);
            snprintf(classes, sizeof(classes), "bar f%d", i % RUN_COLOURS);
            bar(page, y, name, bytes, fmax(bytes, peak), parameters, classes);
            y += 30;
        }
    }
    figure_caption(page);
    page_add(page, "The same at the end of each run; the mark is the peak, which is what a machine must have.");
    figure_end(page);
}

int report_has_memory(const struct report *report) {
    for (int i = 0; i < report->count; i++) {
        if (!isnan(run_log_last(&report->logs[i], COLUMN_STATE_BYTES))) {
            return most_parameters(report) > 0;
        }
    }
    return 0;
}

void report_memory(const struct report *report) {
    const double parameters = most_parameters(report);
    if (!report_has_memory(report)) {
        return;
    }
    report_heading(report->page, 2, "memory", "Memory of the optimizer states");
    memory_over_time(report, parameters);
    memory_bars(report, parameters);
    for (int i = 0; i < report->count; i++) {
        if (report->logs[i].parameters != parameters) {
            page_add(report->page,
                     "<p class=\"note\">The runs have different numbers of parameters; float32, 8 and 4 bits "
                     "are those of the largest.</p>\n");
            break;
        }
    }
}
