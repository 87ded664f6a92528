// How gradients and states evolve and how they go together.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/figures.h"
#include "report/heat.h"

// Colours of a ratio, d0 (an eighth) over d6 (as usual) to d12 (eight times), half an octave each.
enum { RATIO_CLASSES = 13, RATIO_MIDDLE = 6, MATRIX_LIMIT = 48 };

// What a picture of ratios needs: the factor, and each tensor's geometric mean of it over the run.
struct usual {
    enum run_factor factor;
    double *log_means; // (tensors), base 2; NaN where there is none
};

static int usual_make(struct usual *usual, const struct run_log *log, enum run_factor factor) {
    *usual = (struct usual){factor, malloc((size_t)log->tensor_count * sizeof(double) + 1)};
    for (int64_t tensor = 0; usual->log_means && tensor < log->tensor_count; tensor++) {
        double sum = 0;
        int64_t count = 0;
        for (int64_t d = 0; d < log->decision_count; d++) {
            const double value = run_log_entry(log, d, tensor)->factors[factor];
            if (value > 0) {
                sum += log2(value);
                count++;
            }
        }
        usual->log_means[tensor] = count > 0 ? sum / (double)count : NAN;
    }
    return usual->log_means != NULL;
}

static int classify_ratio(const struct run_log *log, const struct heat_columns *columns, int64_t column, int64_t tensor,
                          const void *context) {
    const struct usual *usual = context;
    double sum = 0;
    int64_t count = 0;
    for (int64_t d = columns->first[column]; d < columns->first[column + 1]; d++) {
        const double value = run_log_entry(log, d, tensor)->factors[usual->factor];
        if (value > 0) {
            sum += log2(value);
            count++;
        }
    }
    if (count == 0 || isnan(usual->log_means[tensor])) {
        return -1;
    }
    const double octaves = sum / (double)count - usual->log_means[tensor];
    const int chosen = (int)lround(2 * octaves) + RATIO_MIDDLE;
    return chosen < 0 ? 0 : chosen >= RATIO_CLASSES ? RATIO_CLASSES - 1 : chosen;
}

static int has_factor(const struct run_log *log, enum run_factor factor) {
    for (int64_t i = 0; i < log->decision_count * log->tensor_count; i++) {
        if (log->entries[i].factors[factor] > 0) {
            return 1;
        }
    }
    return 0;
}

static void draw_ratio_legend(struct page *page, double right, double top) {
    static const char *const ends[2] = {"1/8", "8 x"};
    const double width = 15, left = right - 30 - RATIO_CLASSES * width;
    chart_text(page, left - 6, top + 12, "end", "tick", ends[0]);
    for (int i = 0; i < RATIO_CLASSES; i++) {
        page_add(page, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"14\" class=\"d%d\"/>", left + i * width,
                 top, width, i);
    }
    chart_text(page, left + RATIO_CLASSES * width + 6, top + 12, "start", "tick", ends[1]);
    chart_text(page, left - 40, top + 12, "end", "title", "against the tensor's own mean");
}

static const struct {
    enum run_factor factor;
    const char *title;
} maps[] = {{FACTOR_N, "gradient, n"},
            {FACTOR_M_RMS, "first moment, RMS"},
            {FACTOR_V_RMS, "second moment, root of the mean"},
            {FACTOR_R, "complexity, r"}};

// Up to three pictures side by side: the gradient and both moments, or n and r where the log has no moments.
static void draw_maps(struct page *page, const struct run_log *log, const int64_t *tensors, int64_t count,
                      int64_t cells) {
    const int with_states = has_factor(log, FACTOR_M_RMS) && has_factor(log, FACTOR_V_RMS);
    const int chosen[2][3] = {{0, 3, -1}, {0, 1, 2}};
    const int panels = with_states ? 3 : 2;
    const double left = 236, gap = 18, width = (984 - left - gap * (panels - 1)) / panels, top = 62;
    struct heat_columns columns = heat_columns_make(log, count, cells);
    struct heat_rows rows = heat_rows_make(tensors, count);
    figure_open(page, 1, 1000, top + (double)count * rows.height + 46,
                "Heat maps: magnitude of gradients and moments of every tensor over the steps");
    draw_ratio_legend(page, 984, 6);
    heat_names(page, log, &rows, left - 10, top);
    for (int i = 0; i < panels; i++) {
        struct usual usual;
        if (usual_make(&usual, log, maps[chosen[with_states][i]].factor)) {
            struct heat_map map = {.log = log,
                                   .columns = columns,
                                   .rows = rows,
                                   .left = left + (width + gap) * i,
                                   .top = top,
                                   .width = width,
                                   .title = maps[chosen[with_states][i]].title,
                                   .prefix = "d",
                                   .classes = RATIO_CLASSES,
                                   .classify = classify_ratio,
                                   .context = &usual};
            heat_draw(page, &map);
        }
        free(usual.log_means);
    }
    figure_caption(page);
    page_add(page, with_states
                       ? "How the gradients and both moments of each tensor grow and shrink over the run, each against "
                         "its own geometric mean."
                       : "How magnitude and complexity of each tensor's gradient change over the run, each against its "
                         "own geometric mean.");
    figure_end(page);
    heat_columns_release(&columns);
}

static int compare_indices(const void *a, const void *b, void *context) {
    const double *values = context;
    const double x = values[*(const int64_t *)a], y = values[*(const int64_t *)b];
    return (x > y) - (x < y);
}

// Ranks of the values, ties sharing their mean. `order` is scratch (count).
static void rank_values(double *values, int64_t count, int64_t *order, double *ranks) {
    for (int64_t i = 0; i < count; i++) {
        order[i] = i;
    }
    qsort_r(order, (size_t)count, sizeof(*order), compare_indices, values);
    for (int64_t first = 0, end; first < count; first = end) {
        for (end = first; end < count && values[order[end]] == values[order[first]]; end++) {
        }
        for (int64_t i = first; i < end; i++) {
            ranks[order[i]] = (double)(first + end - 1) / 2;
        }
    }
}

// Pearson's correlation; NaN where one of the two does not vary.
static double correlate(const double *x, const double *y, int64_t count) {
    double mean_x = 0, mean_y = 0, xx = 0, yy = 0, xy = 0;
    for (int64_t i = 0; i < count; i++) {
        mean_x += x[i] / (double)count;
        mean_y += y[i] / (double)count;
    }
    for (int64_t i = 0; i < count; i++) {
        xx += (x[i] - mean_x) * (x[i] - mean_x);
        yy += (y[i] - mean_y) * (y[i] - mean_y);
        xy += (x[i] - mean_x) * (y[i] - mean_y);
    }
    return count > 2 && xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : NAN;
}

// Something that every tensor has at a decision; bits count from BITS on.
enum { BITS_M = RUN_FACTORS, BITS_V, N_BEFORE };

static double quantity(const struct run_log *log, int64_t decision, int64_t tensor, int which) {
    if (which == N_BEFORE) {
        return decision > 0 ? run_log_entry(log, decision - 1, tensor)->factors[FACTOR_N] : NAN;
    }
    const struct run_entry *entry = run_log_entry(log, decision, tensor);
    if (which >= BITS_M) {
        return entry->bits[which - BITS_M] ? entry->bits[which - BITS_M] : NAN;
    }
    return entry->factors[which];
}

// Spearman's rank correlation over the tensors between n and another quantity, at each decision.
static int rank_correlations(const struct run_log *log, const int64_t *tensors, int64_t count, int which,
                             double *result) {
    double *values = malloc(4 * (size_t)count * sizeof(*values) + 1);
    int64_t *order = malloc((size_t)count * sizeof(*order) + 1);
    int any = 0;
    for (int64_t d = 0; values && order && d < log->decision_count; d++) {
        double *x = values, *y = values + count, *rank_x = values + 2 * count, *rank_y = values + 3 * count;
        int64_t usable = 0;
        for (int64_t i = 0; i < count; i++) {
            x[usable] = quantity(log, d, tensors[i], FACTOR_N);
            y[usable] = quantity(log, d, tensors[i], which);
            usable += isfinite(x[usable]) && isfinite(y[usable]);
        }
        rank_values(x, usable, order, rank_x);
        rank_values(y, usable, order, rank_y);
        result[d] = correlate(rank_x, rank_y, usable);
        any |= isfinite(result[d]) != 0;
    }
    free(values);
    free(order);
    return any;
}

static void draw_correlations(struct page *page, const struct run_log *log, const int64_t *tensors, int64_t count) {
    static const struct {
        int which;
        const char *name;
    } lines[] = {{N_BEFORE, "n one decision before"}, {FACTOR_V_RMS, "second moment"}, {FACTOR_M_RMS, "first moment"},
                 {FACTOR_R, "complexity r"},          {BITS_M, "bits of m"},           {BITS_V, "bits of v"}};
    enum { LINES = sizeof(lines) / sizeof(lines[0]) };
    const int64_t decisions = log->decision_count, end = log->steps[log->step_count - 1];
    double *values = malloc((size_t)decisions * sizeof(*values));
    int64_t *steps = malloc((size_t)decisions * sizeof(*steps));
    struct side_label labels[LINES];
    char classes[LINES][32];
    int label_count = 0;
    const struct scale x = {.low = 0, .high = (double)end}, y = {.low = -1.05, .high = 1.05};
    figure_open(page, 1, 1000, 330,
                "Rank correlation over the tensors between the gradient's magnitude and other quantities");
    struct panel panel = panel_make(page, 56, 34, 756, 240, x, y);
    panel_axes(&panel, FORMAT_COUNT, FORMAT_PLAIN, "step", "rank correlation with the gradient's magnitude n");
    for (int64_t d = 0; steps && d < decisions; d++) {
        steps[d] = log->decisions[d].step;
    }
    for (int i = 0; values && steps && i < LINES; i++) {
        if (!rank_correlations(log, tensors, count, lines[i].which, values)) {
            continue;
        }
        char line[32];
        snprintf(line, sizeof(line), "line thin c%d", i);
        panel_line(&panel, steps, values, decisions, line);
        double last = NAN;
        for (int64_t d = 0; d < decisions; d++) {
            last = isfinite(values[d]) ? values[d] : last;
        }
        snprintf(classes[label_count], sizeof(classes[0]), "label tc%d", i);
        labels[label_count] =
            (struct side_label){.value = last, .text = lines[i].name, .classes = classes[label_count]};
        label_count++;
    }
    panel_labels(&panel, labels, label_count);
    figure_caption(page);
    page_add(page, "At each decision, over the tensors: do those with large gradients also have large moments, high "
                   "complexity, many bits, and were they the same one decision before? 1, in the same order; 0, no "
                   "relation (Spearman).");
    figure_end(page);
    free(values);
    free(steps);
}

// Correlation over time between the logarithms of a factor of every two tensors, d0 (-1) to d12 (1).
static void draw_matrix(struct page *page, const struct run_log *log, const int64_t *tensors, int64_t count,
                        enum run_factor factor, const char *title) {
    const int64_t shown = count < MATRIX_LIMIT ? count : MATRIX_LIMIT, decisions = log->decision_count;
    const double side = 330.0 / (double)shown, left = 130, top = 40;
    const int64_t every = (int64_t)ceil(11 / side); // names stay apart
    double *values = malloc((size_t)(shown * decisions) * sizeof(*values) + 1);
    char text[96];
    if (!values) {
        page->failed = 1;
        return;
    }
    for (int64_t i = 0; i < shown; i++) {
        for (int64_t d = 0; d < decisions; d++) {
            const double value = run_log_entry(log, d, tensors[i * count / shown])->factors[factor];
            values[i * decisions + d] = value > 0 ? log2(value) : 0;
        }
    }
    figure_open(page, 0, 480, 390, title);
    chart_text(page, left, top - 14, "start", "title", title);
    for (int64_t i = 0; i < shown; i++) {
        const struct run_tensor *tensor = &log->tensors[tensors[i * count / shown]];
        if (i % every == 0) {
            chart_text(page, left - 6, top + ((double)i + 0.5) * side + 4, "end", "row small",
                       report_short_name(tensor, 1, text));
        }
        for (int64_t j = 0; j < shown; j++) {
            const double value = i == j ? 1 : correlate(values + i * decisions, values + j * decisions, decisions);
            if (isfinite(value)) {
                page_add(page, "<path d=\"M%.1f %.1fh%.1fv%.1fh%.1fz\" class=\"d%d\"/>", left + (double)j * side,
                         top + (double)i * side, side, side, -side, (int)lround(6 * value) + RATIO_MIDDLE);
            }
        }
    }
    figure_caption(page);
    page_add(page,
             "Correlation over the run between every two tensors, of the logarithm: red, they rise and fall together; "
             "blue, against each other.%s",
             shown < count ? " Evenly chosen tensors." : "");
    figure_end(page);
    free(values);
}

void report_evolution(struct page *page, const struct run_log *log, int64_t cells) {
    int64_t *tensors = malloc((size_t)log->tensor_count * sizeof(*tensors) + 1);
    if (!tensors) {
        page->failed = 1;
        return;
    }
    const int64_t count = report_coded_tensors(log, tensors);
    if (count > 0 && has_factor(log, FACTOR_N)) {
        draw_maps(page, log, tensors, count, cells);
        if (log->decision_count > 2 && count > 3) {
            draw_correlations(page, log, tensors, count);
            page_add(page, "<div class=\"parts\">");
            draw_matrix(page, log, tensors, count, FACTOR_N, "gradients, tensor by tensor");
            if (has_factor(log, FACTOR_V_RMS)) {
                draw_matrix(page, log, tensors, count, FACTOR_V_RMS, "second moments, tensor by tensor");
            }
            page_add(page, "</div>\n");
        }
    }
    free(tensors);
}
