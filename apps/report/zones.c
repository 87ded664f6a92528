// Tensors in the plane of magnitude n and structural complexity r, with the four zones.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/chart.h"
#include "report/figures.h"

enum { PANELS = 4, KINDS = 6 };

// Kinds of tensors that are told apart by colour: in the order of their first appearance, the last one for all others.
struct kinds {
    const char *names[KINDS];
    int64_t examples[KINDS];
    int count;
    int others;
};

static struct kinds find_kinds(const struct run_log *log, const int64_t *tensors, int64_t count) {
    struct kinds kinds = {0};
    for (int64_t i = 0; i < count; i++) {
        const char *kind = log->tensors[tensors[i]].kind;
        int known = 0;
        for (int k = 0; k < kinds.count; k++) {
            known |= strcmp(kinds.names[k], kind) == 0;
        }
        if (!known && kinds.count < KINDS) {
            kinds.names[kinds.count] = kind;
            kinds.examples[kinds.count++] = tensors[i];
        } else if (!known) {
            kinds.others = 1;
        }
    }
    return kinds;
}

static int kind_of(const struct kinds *kinds, const struct run_tensor *tensor) {
    for (int k = 0; k < kinds->count; k++) {
        if (strcmp(kinds->names[k], tensor->kind) == 0) {
            return k;
        }
    }
    return KINDS;
}

// The decision nearest to a share of the run, on a scale that begins fast: 0, 0.1, 0.4 and 1 of the steps.
static int64_t decision_near(const struct run_log *log, double share) {
    const double wanted = share * (double)log->decisions[log->decision_count - 1].step;
    int64_t best = 0;
    for (int64_t d = 0; d < log->decision_count; d++) {
        if (fabs((double)log->decisions[d].step - wanted) < fabs((double)log->decisions[best].step - wanted)) {
            best = d;
        }
    }
    return best;
}

// Where two zones meet: the log's average, or between the largest value below and the smallest above.
static double boundary(const struct run_log *log, int64_t decision, const int64_t *tensors, int64_t count, int of_r) {
    const struct run_decision *told = &log->decisions[decision];
    const double average = of_r ? told->r_average : told->n_average;
    double below = 0, above = INFINITY;
    if (average > 0) {
        return average;
    }
    for (int64_t i = 0; i < count; i++) {
        const struct run_entry *entry = run_log_entry(log, decision, tensors[i]);
        const double value = entry->factors[of_r ? FACTOR_R : FACTOR_N];
        const int high = entry->zone == ZONE_CRITICAL || entry->zone == (of_r ? ZONE_STRUCTURAL : ZONE_MAGNITUDE);
        if (entry->zone == ZONE_EXEMPT || !(value > 0)) {
            continue;
        }
        below = high ? below : fmax(below, value);
        above = high ? fmin(above, value) : above;
    }
    return below > 0 && isfinite(above) ? sqrt(below * above) : NAN;
}

const char *report_zone_name(enum run_zone zone) {
    static const char *const names[RUN_ZONES] = {"exempt", "critical", "magnitude-dominant", "structural", "redundant"};
    return names[zone];
}

static void draw_point(const struct panel *panel, const struct run_log *log, int64_t decision, int64_t tensor,
                       const struct kinds *kinds) {
    const struct run_entry *entry = run_log_entry(log, decision, tensor);
    const double n = entry->factors[FACTOR_N], r = entry->factors[FACTOR_R];
    if (!(n > 0 && r > 0)) {
        return;
    }
    page_add(panel->page, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" class=\"k%d\"><title>", scale_place(&panel->x, r),
             scale_place(&panel->y, n), kind_of(kinds, &log->tensors[tensor]));
    page_text(panel->page, log->tensors[tensor].name);
    page_add(panel->page, ": n %.3g, r %.3g, %s; m %d, v %d bits</title></circle>", n, r, report_zone_name(entry->zone),
             entry->bits[0], entry->bits[1]);
}

// The quadrants' names, in the corners of the plot.
static void name_zones(const struct panel *panel, double n, double r) {
    struct page *page = panel->page;
    if (isnan(n) || isnan(r)) {
        return;
    }
    const double x = fmin(fmax(scale_place(&panel->x, r), panel->left), panel->right);
    const double y = fmin(fmax(scale_place(&panel->y, n), panel->top), panel->bottom);
    page_add(page, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"tint\"/>", x, panel->top,
             panel->right - x, y - panel->top);
    page_add(page, "<path d=\"M%.1f %.1fV%.1fM%.1f %.1fH%.1f\" class=\"boundary\"/>", x, panel->top, panel->bottom,
             panel->left, y, panel->right);
    chart_text(page, panel->right - 5, panel->top + 14, "end", "zone", "critical");
    chart_text(page, panel->left + 5, panel->top + 14, "start", "zone", "magnitude");
    chart_text(page, panel->right - 5, panel->bottom - 6, "end", "zone", "structural");
    chart_text(page, panel->left + 5, panel->bottom - 6, "start", "zone", "redundant");
}

static void factor_ranges(const struct run_log *log, const int64_t decisions[PANELS], const int64_t *tensors,
                          int64_t count, struct scale *n, struct scale *r) {
    *n = *r = (struct scale){.low = INFINITY, .high = 0, .logarithmic = 1};
    for (int p = 0; p < PANELS; p++) {
        for (int64_t i = 0; i < count; i++) {
            const struct run_entry *entry = run_log_entry(log, decisions[p], tensors[i]);
            struct scale *scales[2] = {n, r};
            for (int k = 0; k < 2; k++) {
                const double value = entry->factors[k ? FACTOR_R : FACTOR_N];
                if (value > 0) {
                    scales[k]->low = fmin(scales[k]->low, value);
                    scales[k]->high = fmax(scales[k]->high, value);
                }
            }
        }
    }
    scale_widen(n, 0.12);
    scale_widen(r, 0.12);
}

static void draw_legend(struct page *page, const struct run_log *log, const struct kinds *kinds, double y) {
    double x = 56;
    char text[96];
    for (int k = 0; k < kinds->count + kinds->others; k++) {
        const int other = k == kinds->count;
        const char *name = other ? "others" : report_short_name(&log->tensors[kinds->examples[k]], 0, text);
        page_add(page, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\" class=\"k%d\"/>", x, y - 4, other ? KINDS : k);
        chart_text(page, x + 10, y, "start", "label quiet", name);
        x += 34 + 7.2 * (double)strlen(name);
    }
}

void report_zones(struct page *page, const struct run_log *log) {
    static const double shares[PANELS] = {0, 0.1, 0.4, 1};
    int64_t *tensors = malloc((size_t)log->tensor_count * sizeof(*tensors) + 1), decisions[PANELS];
    if (!tensors) {
        page->failed = 1;
        return;
    }
    const int64_t count = report_coded_tensors(log, tensors);
    const struct kinds kinds = find_kinds(log, tensors, count);
    struct scale n, r;
    for (int p = 0; p < PANELS; p++) {
        decisions[p] = decision_near(log, shares[p]);
    }
    factor_ranges(log, decisions, tensors, count, &n, &r);
    if (count == 0) {
        free(tensors);
        return;
    }
    figure_open(page, 1, 1000, 330, "Tensors in the plane of complexity r and magnitude n at four decisions");
    for (int p = 0, drawn = 0; p < PANELS; p++) {
        if (p > 0 && decisions[p] == decisions[p - 1]) {
            continue;
        }
        char title[64], number[32];
        struct panel panel = panel_make(page, 56 + 236 * drawn, 34, 214, 214, r, n);
        snprintf(title, sizeof(title), "step %s", page_integer(log->decisions[decisions[p]].step, number));
        panel.bare_y = drawn > 0;
        panel_axes(&panel, FORMAT_POWER, FORMAT_POWER, "complexity r", title);
        if (drawn == 0) {
            chart_text(page, panel.left - 8, panel.top - 12, "end", "title", "n");
        }
        name_zones(&panel, boundary(log, decisions[p], tensors, count, 0),
                   boundary(log, decisions[p], tensors, count, 1));
        for (int64_t i = 0; i < count; i++) {
            draw_point(&panel, log, decisions[p], tensors[i], &kinds);
        }
        drawn++;
    }
    draw_legend(page, log, &kinds, 316);
    figure_caption(page);
    page_add(page,
             "Each point is a tensor: upwards n, the root mean square of its gradient, to the right r, its stable rank "
             "as a share of the full one. The lines are the averages over tensors and decisions that part the zones.");
    figure_end(page);
    free(tensors);
}
