// The table of tensors.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "report/chart.h"
#include "report/figures.h"

enum { ROWS = 400 };

static void width_cell(struct page *page, uint8_t bits) {
    if (bits == WIDTH_SHARED) {
        page_add(page, "<td class=\"number\">shared</td>");
    } else if (bits == WIDTH_UNKNOWN) {
        page_add(page, "<td class=\"number none\">–</td>");
    } else {
        page_add(page, "<td class=\"number\">%d</td>", bits);
    }
}

// The mean of a width over the steps, weighted by how long each was held, and how often it changed.
static void width_history(const struct run_log *log, int64_t tensor, int state, double *mean, int64_t *changes) {
    const int64_t end = log->steps[log->step_count - 1];
    double sum = 0, held = 0;
    *changes = 0;
    for (int64_t d = 0; d < log->decision_count; d++) {
        const int64_t until = d + 1 < log->decision_count ? log->decisions[d + 1].step : end + 1;
        const uint8_t bits = run_log_entry(log, d, tensor)->bits[state];
        const double steps = (double)(until - log->decisions[d].step);
        if (bits != WIDTH_UNKNOWN) {
            sum += steps * (bits == WIDTH_SHARED ? 0 : bits);
            held += steps;
        }
        *changes += d > 0 && bits != run_log_entry(log, d - 1, tensor)->bits[state];
    }
    *mean = held > 0 ? sum / held : NAN;
}

static void tensor_row(struct page *page, const struct run_log *log, int64_t tensor) {
    const struct run_entry *last = run_log_entry(log, log->decision_count - 1, tensor);
    double means[2];
    int64_t changes[2];
    page_add(page, "<tr><th scope=\"row\">");
    page_text(page, log->tensors[tensor].name);
    page_add(page, "</th><td>%s</td>", report_zone_name(last->zone));
    for (int factor = FACTOR_N; factor <= FACTOR_R; factor++) {
        page_add(page,
                 isfinite(last->factors[factor]) ? "<td class=\"number\">%.3g</td>"
                                                 : "<td class=\"number none\">–</td>",
                 last->factors[factor]);
    }
    for (int state = 0; state < 2; state++) {
        width_history(log, tensor, state, &means[state], &changes[state]);
        width_cell(page, last->bits[state]);
        page_add(page, isnan(means[state]) ? "<td class=\"number none\">–</td>" : "<td class=\"number\">%.2f</td>",
                 means[state]);
    }
    page_add(page, "<td class=\"number\">%lld</td></tr>\n", (long long)(changes[0] + changes[1]));
}

void report_tensors(struct page *page, const struct run_log *log) {
    int64_t *tensors = malloc((size_t)log->tensor_count * sizeof(*tensors) + 1);
    if (!tensors) {
        page->failed = 1;
        return;
    }
    const int64_t count = report_coded_tensors(log, tensors);
    page_add(page, "<div class=\"scroll\"><table class=\"tensors\"><thead><tr><th>tensor</th><th>zone</th>"
                   "<th class=\"number\">n</th><th class=\"number\">r</th><th class=\"number\">m bits</th>"
                   "<th class=\"number\">mean</th><th class=\"number\">v bits</th><th class=\"number\">mean</th>"
                   "<th class=\"number\">changes</th></tr></thead><tbody>\n");
    for (int64_t i = 0; i < count && i < ROWS; i++) {
        tensor_row(page, log, tensors[i]);
    }
    page_add(page, "</tbody></table></div>\n<p class=\"note\">At the last decision (step %lld); means over the steps.",
             (long long)log->decisions[log->decision_count - 1].step);
    if (count > ROWS) {
        page_add(page, " The first %d of %lld tensors.", ROWS, (long long)count);
    }
    page_add(page, "</p>\n");
    free(tensors);
}
