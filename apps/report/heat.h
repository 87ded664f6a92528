// Heat maps: one row a tensor, time to the right.
#ifndef STQUANT_REPORT_HEAT_H
#define STQUANT_REPORT_HEAT_H

#include <stdint.h>

#include "report/chart.h"
#include "report/run_log.h"

// Stretches of the run between decisions; several decisions share one where there are too many for a picture.
struct heat_columns {
    int64_t count;
    int64_t *first; // (count + 1): column c has the decisions first[c] to first[c + 1] - 1
    int64_t end;    // last step of the run
};

// Few enough columns for `cells` cells in `rows` rows. On failure (no memory) count is 0.
struct heat_columns heat_columns_make(const struct run_log *log, int64_t rows, int64_t cells);
void heat_columns_release(struct heat_columns *columns);

// The rows of a picture.
struct heat_rows {
    const int64_t *tensors; // (count) indices into the log's list
    int64_t count;
    double height; // of a row
};

// Rows as high as fits on a page.
struct heat_rows heat_rows_make(const int64_t *tensors, int64_t count);

// The tensors' names left of x; with low rows the numbers of the blocks only.
void heat_names(struct page *page, const struct run_log *log, const struct heat_rows *rows, double x, double top);

// Colour class of a tensor in a column, "<prefix><number>"; -1 leaves the cell empty.
typedef int heat_class(const struct run_log *log, const struct heat_columns *columns, int64_t column, int64_t tensor,
                       const void *context);

struct heat_map {
    const struct run_log *log;
    struct heat_columns columns;
    struct heat_rows rows;
    double left, top, width;
    const char *title, *prefix;
    int classes; // numbers are 0 to classes - 1
    heat_class *classify;
    const void *context;
};

// Draws cells, the frame and the steps below.
void heat_draw(struct page *page, const struct heat_map *map);

#endif
