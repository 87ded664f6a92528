#include "report/chart.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TICKS = 32, LABELS = 64 };

double scale_place(const struct scale *scale, double value) {
    if (scale->logarithmic) {
        const double share = log(value / scale->low) / log(scale->high / scale->low);
        return scale->from + share * (scale->to - scale->from);
    }
    return scale->from + (value - scale->low) / (scale->high - scale->low) * (scale->to - scale->from);
}

void scale_widen(struct scale *scale, double share) {
    if (scale->logarithmic) {
        if (!(scale->low > 0 && scale->high >= scale->low)) {
            scale->low = 0.1;
            scale->high = 1;
        }
        const double factor = fmax(pow(scale->high / scale->low, share), 1.05);
        scale->low /= factor;
        scale->high *= factor;
        return;
    }
    if (!(isfinite(scale->low) && isfinite(scale->high) && scale->high >= scale->low)) {
        scale->low = 0;
        scale->high = 1;
    }
    double margin = (scale->high - scale->low) * share;
    if (scale->high == scale->low) {
        margin = fmax(fabs(scale->high) * 0.05, 1e-6);
    }
    scale->low -= margin;
    scale->high += margin;
}

// The smallest of 1, 2 and 5 times a power of ten that is at least `least`.
static double round_step(double least) {
    const double power = pow(10, floor(log10(least)));
    const double factors[] = {1, 2, 5, 10};
    for (int i = 0; i < 4; i++) {
        if (factors[i] * power >= least * (1 - 1e-9)) {
            return factors[i] * power;
        }
    }
    return 10 * power;
}

static int linear_ticks(const struct scale *scale, double step, double ticks[TICKS]) {
    int count = 0;
    for (double index = ceil(scale->low / step - 1e-9); count < TICKS && index * step <= scale->high + 1e-9 * step;
         index++) {
        ticks[count++] = index * step + 0.0; // no -0
    }
    return count;
}

int scale_ticks(const struct scale *scale, int wanted, double ticks[TICKS]) {
    if (!scale->logarithmic) {
        return linear_ticks(scale, round_step((scale->high - scale->low) / wanted), ticks);
    }
    const double decades = log10(scale->high / scale->low);
    const double every = fmax(1, ceil(decades / wanted));
    const double within[] = {1, 2, 5};
    const int finer = decades < 1.2 ? 3 : 1;
    int count = 0;
    for (double power = floor(log10(scale->low)); power <= log10(scale->high); power++) {
        for (int i = 0; i < finer; i++) {
            const double tick = within[i] * pow(10, power);
            if (count < TICKS && tick >= scale->low * (1 - 1e-9) && tick <= scale->high * (1 + 1e-9) &&
                fmod(fabs(power), every) == 0) {
                ticks[count++] = tick;
            }
        }
    }
    return count;
}

int scale_byte_ticks(const struct scale *scale, int wanted, double ticks[TICKS]) {
    double unit = 1;
    while (scale->high / unit >= 1024) {
        unit *= 1024;
    }
    return linear_ticks(scale, unit * round_step((scale->high - scale->low) / unit / wanted), ticks);
}

// "1.50" becomes "1.5", "2.00" becomes "2".
static void trim_zeros(char *text) {
    size_t length = strlen(text);
    if (!strchr(text, '.')) {
        return;
    }
    while (text[length - 1] == '0') {
        text[--length] = 0;
    }
    if (text[length - 1] == '.') {
        text[length - 1] = 0;
    }
}

static const char *format_power(double value, char text[48]) {
    static const char *const superscripts[10] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
    if (value == 0 || (fabs(value) >= 0.001 && fabs(value) < 1e5)) {
        snprintf(text, 48, "%.4g", value);
        return text;
    }
    int exponent = (int)floor(log10(fabs(value)) + 1e-9);
    char digits[8];
    const double mantissa = value / pow(10, exponent);
    size_t length = 0;
    if (fabs(mantissa - 1) > 1e-6) {
        length = (size_t)snprintf(text, 48, "%.3g·", mantissa);
    }
    length += (size_t)snprintf(text + length, 48 - length, "10%s", exponent < 0 ? "⁻" : "");
    snprintf(digits, sizeof(digits), "%d", abs(exponent) % 1000);
    for (int i = 0; digits[i]; i++) {
        length += (size_t)snprintf(text + length, 48 - length, "%s", superscripts[digits[i] - '0']);
    }
    return text;
}

const char *chart_format(double value, enum chart_format format, char text[48]) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    switch (format) {
    case FORMAT_COUNT:
        if (fabs(value) >= 1e6) {
            snprintf(text, 48, "%gM", value / 1e6);
        } else if (fabs(value) >= 1e4) {
            snprintf(text, 48, "%gk", value / 1e3);
        } else {
            snprintf(text, 48, "%g", value);
        }
        return text;
    case FORMAT_BYTES:
        while (unit < 4 && fabs(value) >= 1024) {
            value /= 1024;
            unit++;
        }
        snprintf(text, 48, "%.*f", value >= 100 ? 0 : value >= 10 ? 1 : 2, value);
        trim_zeros(text);
        if (value != 0) {
            snprintf(text + strlen(text), 48 - strlen(text), " %s", units[unit]);
        }
        return text;
    case FORMAT_POWER:
        return format_power(value, text);
    default:
        snprintf(text, 48, "%.4g", value);
        return text;
    }
}

void chart_text(struct page *page, double x, double y, const char *anchor, const char *classes, const char *text) {
    page_add(page, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">", x, y, anchor, classes);
    page_text(page, text);
    page_add(page, "</text>");
}

struct panel panel_make(struct page *page, double left, double top, double width, double height, struct scale x,
                        struct scale y) {
    struct panel panel = {
        .page = page, .left = left, .top = top, .right = left + width, .bottom = top + height, .x = x, .y = y};
    panel.x.from = panel.left;
    panel.x.to = panel.right;
    panel.y.from = panel.bottom;
    panel.y.to = panel.top;
    return panel;
}

static int axis_ticks(const struct scale *scale, enum chart_format format, int wanted, double ticks[TICKS]) {
    return format == FORMAT_BYTES ? scale_byte_ticks(scale, wanted, ticks) : scale_ticks(scale, wanted, ticks);
}

static void draw_y_axis(const struct panel *panel, enum chart_format format, const char *title) {
    double ticks[TICKS];
    char text[48];
    const int wanted = panel->bottom - panel->top > 200 ? 6 : 4;
    const int count = axis_ticks(&panel->y, format, wanted, ticks);
    for (int i = 0; i < count; i++) {
        const double y = scale_place(&panel->y, ticks[i]);
        page_add(panel->page, "<path d=\"M%.1f %.1fH%.1f\" class=\"grid\"/>", panel->left, y, panel->right);
        if (!panel->bare_y) {
            chart_text(panel->page, panel->left - 8, y + 4, "end", "tick", chart_format(ticks[i], format, text));
        }
    }
    if (title) {
        chart_text(panel->page, panel->left, panel->top - 12, "start", "title", title);
    }
}

void panel_axes(struct panel *panel, enum chart_format x_format, enum chart_format y_format, const char *x_title,
                const char *y_title) {
    double ticks[TICKS];
    char text[48];
    panel->clip = ++panel->page->pictures;
    page_add(
        panel->page, "<clipPath id=\"clip%d\"><rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/></clipPath>",
        panel->clip, panel->left - 2, panel->top - 2, panel->right - panel->left + 4, panel->bottom - panel->top + 4);
    draw_y_axis(panel, y_format, y_title);
    page_add(panel->page, "<path d=\"M%.1f %.1fH%.1f\" class=\"axis\"/>", panel->left, panel->bottom, panel->right);
    const int wanted = panel->right - panel->left > 500 ? 8 : panel->right - panel->left > 250 ? 5 : 3;
    const int count = axis_ticks(&panel->x, x_format, wanted, ticks);
    for (int i = 0; i < count; i++) {
        const double x = scale_place(&panel->x, ticks[i]);
        page_add(panel->page, "<path d=\"M%.1f %.1fv5\" class=\"axis\"/>", x, panel->bottom);
        chart_text(panel->page, x, panel->bottom + 19, "middle", "tick", chart_format(ticks[i], x_format, text));
    }
    if (x_title) {
        chart_text(panel->page, panel->right, panel->bottom + 36, "end", "title", x_title);
    }
}

static double clamp(double value, double low, double high) { return value < low ? low : value > high ? high : value; }

// What lies far outside is cut off by the clip path; this keeps its numbers short.
static double place_y(const struct panel *panel, double value) {
    const double height = panel->bottom - panel->top;
    return clamp(scale_place(&panel->y, value), panel->top - 2 * height, panel->bottom + 2 * height);
}

static int is_inside(const struct panel *panel, double y) { return y >= panel->top - 1 && y <= panel->bottom + 1; }

// The points of one column of pixels.
struct column {
    double x;
    double first, low, high, last;
    int low_before_high, count;
};

static void put_point(struct page *page, int *open, double x, double y) {
    page_add(page, *open ? "L" : "M");
    page_number(page, x, 1);
    page_add(page, " ");
    page_number(page, y, 1);
    *open = 1;
}

static void flush_column(struct page *page, const struct column *column, int *open) {
    if (column->count == 0) {
        return;
    }
    put_point(page, open, column->x, column->first);
    if (column->count > 2) {
        put_point(page, open, column->x, column->low_before_high ? column->low : column->high);
        put_point(page, open, column->x, column->low_before_high ? column->high : column->low);
    }
    if (column->count > 1) {
        put_point(page, open, column->x, column->last);
    }
}

static void extend_column(struct column *column, double x, double y) {
    if (column->count++ == 0) {
        *column = (struct column){.x = x, .first = y, .low = y, .high = y, .last = y, .count = 1};
        return;
    }
    if (y < column->low) {
        column->low = y;
        column->low_before_high = 0;
    }
    if (y > column->high) {
        column->high = y;
        column->low_before_high = 1;
    }
    column->last = y;
}

void panel_line(const struct panel *panel, const int64_t *steps, const double *values, int64_t count,
                const char *classes) {
    struct column column = {0};
    int open = 0;
    page_add(panel->page, "<path clip-path=\"url(#clip%d)\" class=\"%s\" d=\"", panel->clip, classes);
    for (int64_t i = 0; i < count; i++) {
        const int usable = isfinite(values[i]) && (!panel->y.logarithmic || values[i] > 0);
        const double x = scale_place(&panel->x, (double)steps[i]);
        if (!usable || (column.count > 0 && fabs(x - column.x) >= 1)) {
            flush_column(panel->page, &column, &open);
            column.count = 0;
        }
        if (usable) {
            extend_column(&column, x, place_y(panel, values[i]));
        } else {
            open = 0;
        }
    }
    flush_column(panel->page, &column, &open);
    page_add(panel->page, "\"/>");
}

void panel_steps(const struct panel *panel, const int64_t *steps, const double *values, int64_t count, int64_t end,
                 const char *classes) {
    int open = 0;
    double drawn = 0;
    page_add(panel->page, "<path class=\"%s\" d=\"", classes);
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(values[i])) {
            open = 0;
            continue;
        }
        const double x = scale_place(&panel->x, (double)steps[i]), y = place_y(panel, values[i]);
        if (!open) {
            put_point(panel->page, &open, x, y);
        } else if (y != drawn) {
            page_add(panel->page, "H%.1fV%.1f", x, y);
        }
        drawn = y;
    }
    if (open) {
        page_add(panel->page, "H%.1f", scale_place(&panel->x, (double)end));
    }
    page_add(panel->page, "\"/>");
}

void panel_dots(const struct panel *panel, const int64_t *steps, const double *values, int64_t count, double radius,
                const char *classes) {
    for (int64_t i = 0; i < count; i++) {
        if (isfinite(values[i]) && (!panel->y.logarithmic || values[i] > 0) &&
            is_inside(panel, scale_place(&panel->y, values[i]))) {
            page_add(panel->page, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" class=\"%s\"/>",
                     scale_place(&panel->x, (double)steps[i]), place_y(panel, values[i]), radius, classes);
        }
    }
}

static int compare_labels(const void *a, const void *b) {
    const double x = ((const struct side_label *)a)->value, y = ((const struct side_label *)b)->value;
    return (x < y) - (x > y);
}

void panel_labels(const struct panel *panel, struct side_label *labels, int count) {
    double places[LABELS];
    const double apart = 17;
    count = count < LABELS ? count : LABELS;
    qsort(labels, (size_t)count, sizeof(*labels), compare_labels);
    for (int i = 0; i < count; i++) {
        places[i] = clamp(place_y(panel, labels[i].value), panel->top, panel->bottom);
        places[i] = i > 0 && places[i] < places[i - 1] + apart ? places[i - 1] + apart : places[i];
    }
    // What was pushed out at the bottom goes back up, and pushes the others.
    double limit = panel->bottom + 4;
    for (int i = count - 1; i >= 0 && places[i] > limit; i--) {
        places[i] = limit;
        limit -= apart;
    }
    for (int i = 0; i < count; i++) {
        chart_text(panel->page, panel->right + 10, places[i] + 4, "start", labels[i].classes, labels[i].text);
    }
}

void figure_open(struct page *page, int wide, double width, double height, const char *label) {
    page_add(page,
             "<figure class=\"%s\"><div class=\"scroll\"><svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"",
             wide ? "wide" : "part", width, height);
    page_text(page, label);
    page_add(page, "\">");
}

void figure_caption(struct page *page) { page_add(page, "</svg></div><figcaption>"); }

void figure_end(struct page *page) { page_add(page, "</figcaption></figure>\n"); }

void chart_smooth(const double *values, double *smooth, int64_t count, int64_t half_window) {
    double sum = 0;
    int64_t used = 0, first = 0, next = 0;
    for (int64_t i = 0; i < count; i++) {
        for (; next < count && next <= i + half_window; next++) {
            sum += isfinite(values[next]) ? values[next] : 0;
            used += isfinite(values[next]) != 0;
        }
        for (; first < i - half_window; first++) {
            sum -= isfinite(values[first]) ? values[first] : 0;
            used -= isfinite(values[first]) != 0;
        }
        smooth[i] = used > 0 && isfinite(values[i]) ? sum / (double)used : NAN;
    }
}
