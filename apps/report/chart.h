// Charts as inline SVG. Colours, fonts and line widths are classes of the page's style sheet (style.h), so that they
// follow light and dark.
#ifndef STQUANT_REPORT_CHART_H
#define STQUANT_REPORT_CHART_H

#include <stdint.h>

#include "report/page.h"

// How numbers at an axis are written.
enum chart_format {
    FORMAT_PLAIN, // 0.25
    FORMAT_COUNT, // 20k
    FORMAT_BYTES, // 1.5 MiB
    FORMAT_POWER  // 0.02, 3·10⁻⁵
};

// From data to the picture's units.
struct scale {
    double low, high; // data; low < high, both positive when logarithmic
    int logarithmic;
    double from, to; // where low and high lie
};

double scale_place(const struct scale *scale, double value);

// Makes low and high usable: finite, apart, and a little wider than the data.
void scale_widen(struct scale *scale, double share);

// One plot inside a picture.
struct panel {
    struct page *page;
    double left, top, right, bottom; // of the plot itself, without what stands around it
    struct scale x, y;
    int clip;   // what lies outside is cut off; set by panel_axes
    int bare_y; // grid lines without numbers, for panels beside another one
};

// A panel at this place, its scales set to it (y upwards) and to the ranges given.
struct panel panel_make(struct page *page, double left, double top, double width, double height, struct scale x,
                        struct scale y);

// Grid lines and numbers; titles (or null) stand above the y axis and below the end of the x axis. Before the lines.
void panel_axes(struct panel *panel, enum chart_format x_format, enum chart_format y_format, const char *x_title,
                const char *y_title);

// A line through the points, broken where a value is not a number. Of many points in one column of pixels only the
// first, the lowest, the highest and the last are drawn, which gives the same picture.
void panel_line(const struct panel *panel, const int64_t *steps, const double *values, int64_t count,
                const char *classes);

// The same, rising and falling in steps: a value holds until the next one.
void panel_steps(const struct panel *panel, const int64_t *steps, const double *values, int64_t count, int64_t end,
                 const char *classes);

// A dot at every value.
void panel_dots(const struct panel *panel, const int64_t *steps, const double *values, int64_t count, double radius,
                const char *classes);

// A text beside the plot at a height of the y axis.
struct side_label {
    double value; // wished height, in data
    const char *text;
    const char *classes; // of the text
};

// Writes labels to the right of the plot, apart from each other. Sorts the list. At most 64.
void panel_labels(const struct panel *panel, struct side_label *labels, int count);

// Opens a figure with a picture of that size; `label` describes it to those who cannot see it. Wide figures fill the
// page, others stand beside each other.
void figure_open(struct page *page, int wide, double width, double height, const char *label);

// Closes the picture; the caption follows as HTML, then figure_end.
void figure_caption(struct page *page);
void figure_end(struct page *page);

// A text at a place; anchor is "start", "middle" or "end".
void chart_text(struct page *page, double x, double y, const char *anchor, const char *classes, const char *text);

// A number in a format, into `text`, which is returned.
const char *chart_format(double value, enum chart_format format, char text[48]);

// Positions of round numbers on a scale, about `wanted` of them; at most 32. Returns how many.
int scale_ticks(const struct scale *scale, int wanted, double ticks[32]);

// The same for bytes: round numbers of the largest unit that fits.
int scale_byte_ticks(const struct scale *scale, int wanted, double ticks[32]);

// Centred mean over a share of the run, at every point that has a value; `smooth` (count).
void chart_smooth(const double *values, double *smooth, int64_t count, int64_t half_window);

#endif
