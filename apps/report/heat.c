#include "report/heat.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "report/figures.h"

struct heat_columns heat_columns_make(const struct run_log *log, int64_t rows, int64_t cells) {
    struct heat_columns columns = {.end = log->steps[log->step_count - 1]};
    int64_t most = rows > 0 ? cells / rows : 0;
    most = most < 8 ? 8 : most > 400 ? 400 : most;
    columns.first = malloc(((size_t)log->decision_count + 1) * sizeof(*columns.first));
    if (!columns.first || log->decision_count == 0) {
        return columns;
    }
    const int64_t begin = log->decisions[0].step;
    const double span = fmax(1, (double)(columns.end - begin));
    int64_t last_place = -1;
    for (int64_t d = 0; d < log->decision_count; d++) {
        const int64_t place = log->decision_count <= most
                                  ? d
                                  : (int64_t)((double)(log->decisions[d].step - begin) / span * (double)(most - 1));
        if (place != last_place) {
            columns.first[columns.count++] = d;
            last_place = place;
        }
    }
    columns.first[columns.count] = log->decision_count;
    return columns;
}

void heat_columns_release(struct heat_columns *columns) { free(columns->first); }

struct heat_rows heat_rows_make(const int64_t *tensors, int64_t count) {
    const double height = count <= 48 ? 16 : fmax(2.5, 768.0 / (double)count);
    return (struct heat_rows){.tensors = tensors, .count = count, .height = height};
}

void heat_names(struct page *page, const struct run_log *log, const struct heat_rows *rows, double x, double top) {
    double free_from = -INFINITY;
    char text[96];
    for (int64_t i = 0; i < rows->count; i++) {
        const struct run_tensor *tensor = &log->tensors[rows->tensors[i]];
        const double middle = top + ((double)i + 0.5) * rows->height;
        const int begins = tensor->block < 0 || i == 0 || log->tensors[rows->tensors[i - 1]].block != tensor->block;
        if (rows->height >= 12) {
            report_short_name(tensor, 0, text);
            chart_text(page, x, middle + 4, "end", "row", text);
            if (tensor->block >= 0 && begins) {
                snprintf(text, sizeof(text), "block %lld", (long long)tensor->block);
                chart_text(page, x - 124, middle + 4, "end", "row quiet", text);
            }
        } else if (begins && middle >= free_from) {
            if (tensor->block >= 0) {
                snprintf(text, sizeof(text), "block %lld", (long long)tensor->block);
            } else {
                report_short_name(tensor, 0, text);
            }
            chart_text(page, x, middle + 4, "end", "row", text);
            free_from = middle + 14;
        }
    }
}

static struct scale time_scale(const struct heat_map *map) {
    const double begin = (double)map->log->decisions[0].step, end = (double)map->columns.end;
    return (struct scale){
        .low = begin, .high = end > begin ? end : begin + 1, .from = map->left, .to = map->left + map->width};
}

// Where a column begins; that of the one behind the last is the end of the run.
static double column_place(const struct heat_map *map, const struct scale *scale, int64_t column) {
    const int64_t step =
        column < map->columns.count ? map->log->decisions[map->columns.first[column]].step : (int64_t)scale->high;
    return scale_place(scale, (double)step);
}

// One path for all cells of a colour; neighbours in a row are one rectangle.
static void draw_class(struct page *page, const struct heat_map *map, const struct scale *scale, const int8_t *classes,
                       int chosen) {
    const int64_t count = map->columns.count;
    const double gap = map->rows.height > 5 ? 1 : 0;
    int open = 0;
    for (int64_t row = 0; row < map->rows.count; row++) {
        for (int64_t first = 0, end; first < count; first = end) {
            // NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): heat_draw fills all of it
            for (end = first; end < count && classes[row * count + end] == chosen; end++) {
            }
            if (end > first) {
                const double left = column_place(map, scale, first), right = column_place(map, scale, end);
                page_add(page, open ? "M" : "<path class=\"%s%d\" d=\"M", map->prefix, chosen);
                page_number(page, left, 1);
                page_add(page, " ");
                page_number(page, map->top + (double)row * map->rows.height, 1);
                page_add(page, "h");
                page_number(page, right - left, 1);
                page_add(page, "v");
                page_number(page, map->rows.height - gap, 1);
                page_add(page, "h");
                page_number(page, left - right, 1);
                page_add(page, "z");
                open = 1;
            } else {
                end++;
            }
        }
    }
    page_add(page, open ? "\"/>" : "");
}

void heat_draw(struct page *page, const struct heat_map *map) {
    const int64_t count = map->columns.count;
    const struct scale scale = time_scale(map);
    const double bottom = map->top + (double)map->rows.count * map->rows.height;
    int8_t *classes = malloc((size_t)(map->rows.count * count) + 1);
    if (!classes) {
        page->failed = 1;
        return;
    }
    for (int64_t row = 0; row < map->rows.count; row++) {
        for (int64_t column = 0; column < count; column++) {
            classes[row * count + column] =
                (int8_t)map->classify(map->log, &map->columns, column, map->rows.tensors[row], map->context);
        }
    }
    for (int chosen = 0; chosen < map->classes; chosen++) {
        draw_class(page, map, &scale, classes, chosen);
    }
    free(classes);
    struct panel panel = {.page = page,
                          .left = map->left,
                          .right = map->left + map->width,
                          .top = map->top,
                          .bottom = bottom + 2,
                          .x = scale};
    double ticks[32];
    char text[48];
    const int wanted = map->width > 300 ? 5 : 3, ticks_count = scale_ticks(&panel.x, wanted, ticks);
    page_add(page, "<path d=\"M%.1f %.1fH%.1f\" class=\"axis\"/>", panel.left, panel.bottom, panel.right);
    for (int i = 0; i < ticks_count; i++) {
        const double x = scale_place(&panel.x, ticks[i]);
        page_add(page, "<path d=\"M%.1f %.1fv5\" class=\"axis\"/>", x, panel.bottom);
        chart_text(page, x, panel.bottom + 19, "middle", "tick", chart_format(ticks[i], FORMAT_COUNT, text));
    }
    chart_text(page, panel.right, panel.bottom + 36, "end", "title", "step");
    chart_text(page, map->left, map->top - 10, "start", "title", map->title);
}
