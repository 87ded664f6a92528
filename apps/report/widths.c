// Widths over time: of every tensor, and of the parameter groups inside one block.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/figures.h"
#include "report/heat.h"

// Classes of colours: w0 is a shared second moment, w2 to w8 widths, w1 float32.
enum { CLASS_SHARED = 0, CLASS_FLOAT32 = 1, WIDTH_CLASSES = 9 };

int64_t report_coded_tensors(const struct run_log *log, int64_t *list) {
    int64_t count = 0;
    for (int64_t tensor = 0; tensor < log->tensor_count; tensor++) {
        int coded = 0;
        for (int64_t d = 0; d < log->decision_count && !coded; d++) {
            coded = run_entry_is_coded(run_log_entry(log, d, tensor));
        }
        if (coded) {
            list[count++] = tensor;
        }
    }
    return count;
}

const char *report_short_name(const struct run_tensor *tensor, int with_block, char text[96]) {
    static const struct {
        const char *kind, *name;
    } known[] = {
        {"attn.c_attn.weight", "attention in"}, {"attn.c_proj.weight", "attention out"}, {"mlp.c_fc.weight", "MLP in"},
        {"mlp.c_proj.weight", "MLP out"},       {"wte.weight", "token embedding"},       {"wpe.weight", "positions"},
        {"positions.weight", "positions"},      {"patch.weight", "patch embedding"},     {"head.weight", "head"}};
    const char *name = tensor->kind;
    size_t length = strlen(name);
    length -= length > 7 && strcmp(name + length - 7, ".weight") == 0 ? 7 : 0;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].kind, tensor->kind) == 0) {
            name = known[i].name;
            length = strlen(name);
        }
    }
    length = length < 60 ? length : 60;
    if (with_block && tensor->block >= 0) {
        snprintf(text, 96, "%lld · %.*s", (long long)tensor->block, (int)length, name);
    } else {
        snprintf(text, 96, "%.*s", (int)length, name);
    }
    return text;
}

static int class_of_width(uint8_t bits) {
    switch (bits) {
    case WIDTH_UNKNOWN:
        return -1;
    case WIDTH_SHARED:
        return CLASS_SHARED;
    case WIDTH_FLOAT32:
        return CLASS_FLOAT32;
    default:
        return bits <= 8 ? bits : -1;
    }
}

// The width that was held longest in the column.
static int classify_width(const struct run_log *log, const struct heat_columns *columns, int64_t column, int64_t tensor,
                          const void *context) {
    const int state = *(const int *)context;
    int64_t held[WIDTH_CLASSES] = {0}, longest = 0;
    int best = -1;
    for (int64_t d = columns->first[column]; d < columns->first[column + 1]; d++) {
        const int64_t until = d + 1 < log->decision_count ? log->decisions[d + 1].step : columns->end + 1;
        const int chosen = class_of_width(run_log_entry(log, d, tensor)->bits[state]);
        if (chosen >= 0) {
            held[chosen] += until - log->decisions[d].step;
            if (held[chosen] > longest) {
                longest = held[chosen];
                best = chosen;
            }
        }
    }
    return best;
}

// Which classes occur anywhere.
static void find_used(const struct run_log *log, const int64_t *tensors, int64_t count, int used[WIDTH_CLASSES]) {
    for (int64_t d = 0; d < log->decision_count; d++) {
        for (int64_t i = 0; i < count; i++) {
            for (int state = 0; state < 2; state++) {
                const int chosen = class_of_width(run_log_entry(log, d, tensors[i])->bits[state]);
                if (chosen >= 0) {
                    used[chosen] = 1;
                }
            }
        }
    }
}

static void draw_legend(struct page *page, const int used[WIDTH_CLASSES], double right, double top) {
    static const int order[WIDTH_CLASSES] = {1, 8, 7, 6, 5, 4, 3, 2, 0};
    double x = right;
    for (int i = 0; i < WIDTH_CLASSES; i++) {
        const int chosen = order[i];
        char text[16];
        if (!used[chosen]) {
            continue;
        }
        snprintf(text, sizeof(text), "%d", chosen);
        const char *name = chosen == CLASS_FLOAT32 ? "float32" : chosen == CLASS_SHARED ? "shared" : text;
        const double width = chosen <= 1 ? 58 : 26;
        x -= width + 2;
        page_add(page, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"18\" class=\"w%d\"/>", x, top, width,
                 chosen);
        page_add(page, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" class=\"on%d\">%s</text>", x + width / 2,
                 top + 13.5, chosen, name);
    }
    chart_text(page, x - 8, top + 14, "end", "title", "bits");
}

void report_widths(struct page *page, const struct run_log *log, int64_t cells) {
    int64_t *tensors = malloc((size_t)log->tensor_count * sizeof(*tensors) + 1);
    if (!tensors) {
        page->failed = 1;
        return;
    }
    const int64_t count = report_coded_tensors(log, tensors);
    struct heat_columns columns = heat_columns_make(log, count, cells);
    if (count > 0 && columns.count > 0) {
        int used[WIDTH_CLASSES] = {0};
        const int states[2] = {0, 1};
        const double left = 236, width = 362, top = 62;
        struct heat_map map = {.log = log,
                               .columns = columns,
                               .rows = heat_rows_make(tensors, count),
                               .left = left,
                               .top = top,
                               .width = width,
                               .title = "first moment m",
                               .prefix = "w",
                               .classes = WIDTH_CLASSES,
                               .classify = classify_width,
                               .context = &states[0]};
        find_used(log, tensors, count, used);
        figure_open(page, 1, 1000, top + (double)count * map.rows.height + 46,
                    "Heat map: bits of both moments of every tensor over the steps");
        draw_legend(page, used, 984, 8);
        heat_names(page, log, &map.rows, left - 10, top);
        heat_draw(page, &map);
        map.left = 984 - width;
        map.title = "second moment v";
        map.context = &states[1];
        heat_draw(page, &map);
        figure_caption(page);
        page_add(page,
                 "Bits of a value over the steps, one row a tensor, from the first layer above to the last below. ");
        if (count < log->tensor_count) {
            page_add(page, "%lld vectors and small tensors keep float32 states and are not shown. ",
                     (long long)(log->tensor_count - count));
        }
        if (columns.count < log->decision_count) {
            page_add(page, "%lld decisions are drawn in %lld columns, each with the width that was held longest in it.",
                     (long long)log->decision_count, (long long)columns.count);
        }
        figure_end(page);
    }
    heat_columns_release(&columns);
    free(tensors);
}

// Parameter groups: the kinds of tensors that the blocks have.
enum { GROUPS = 8 };

struct groups {
    const char *kinds[GROUPS];
    int64_t examples[GROUPS]; // a tensor of each
    int count;
    int64_t last_block;
};

static struct groups find_groups(const struct run_log *log, const int64_t *tensors, int64_t count) {
    struct groups groups = {.last_block = -1};
    for (int64_t i = 0; i < count; i++) {
        const struct run_tensor *tensor = &log->tensors[tensors[i]];
        if (tensor->block < 0) {
            continue;
        }
        groups.last_block = tensor->block > groups.last_block ? tensor->block : groups.last_block;
        int known = 0;
        for (int g = 0; g < groups.count; g++) {
            known |= strcmp(groups.kinds[g], tensor->kind) == 0;
        }
        if (!known && groups.count < GROUPS) {
            groups.kinds[groups.count] = tensor->kind;
            groups.examples[groups.count++] = tensors[i];
        }
    }
    return groups;
}

// Bits of one group at every decision: those of one block, and the narrowest and widest of all blocks.
struct band {
    double *own, *low, *high; // (decisions)
};

static int fill_band(struct band *band, const struct run_log *log, const int64_t *tensors, int64_t count,
                     const char *kind, int64_t block, int state) {
    const size_t bytes = (size_t)log->decision_count * sizeof(double);
    *band = (struct band){malloc(bytes), malloc(bytes), malloc(bytes)};
    if (!band->own || !band->low || !band->high) {
        return 0;
    }
    for (int64_t d = 0; d < log->decision_count; d++) {
        band->own[d] = band->low[d] = band->high[d] = NAN;
        for (int64_t i = 0; i < count; i++) {
            const struct run_tensor *tensor = &log->tensors[tensors[i]];
            const uint8_t bits = run_log_entry(log, d, tensors[i])->bits[state];
            if (tensor->block < 0 || strcmp(tensor->kind, kind) != 0 || bits < 1 || bits > 8) {
                continue;
            }
            const double value = bits == WIDTH_SHARED ? 0 : bits;
            band->low[d] = fmin(band->low[d], value);
            band->high[d] = fmax(band->high[d], value);
            // A little apart, so that both moments can be seen where they have the same width.
            band->own[d] = tensor->block == block ? value + (state ? -0.05 : 0.05) : band->own[d];
        }
    }
    return 1;
}

static void release_band(struct band *band) {
    free(band->own);
    free(band->low);
    free(band->high);
}

// The stretch between low and high, there and back.
static void draw_band(const struct panel *panel, const struct run_log *log, const struct band *band, int64_t end,
                      const char *classes) {
    int open = 0;
    double last_high = NAN;
    page_add(panel->page, "<path class=\"%s\" d=\"", classes);
    for (int64_t d = 0; d < log->decision_count; d++) {
        if (isnan(band->high[d]) || band->high[d] == last_high) {
            continue;
        }
        const double x = scale_place(&panel->x, (double)log->decisions[d].step);
        page_add(panel->page, open ? "H%.1fV%.1f" : "M%.1f %.1f", x, scale_place(&panel->y, band->high[d] + 0.08));
        last_high = band->high[d];
        open = 1;
    }
    double right = scale_place(&panel->x, (double)end);
    for (int64_t d = log->decision_count - 1; d >= 0 && open; d--) {
        if (isnan(band->low[d]) || (d > 0 && band->low[d] == band->low[d - 1])) {
            continue;
        }
        page_add(panel->page, "H%.1fV%.1f", right, scale_place(&panel->y, band->low[d] - 0.08));
        right = scale_place(&panel->x, (double)log->decisions[d].step);
    }
    page_add(panel->page, open ? "H%.1fZ\"/>" : "\"/>", right);
}

static void draw_group(struct page *page, const struct run_log *log, const int64_t *tensors, int64_t count,
                       const struct groups *groups, int group, int64_t block) {
    static const char *const names[2] = {"m", "v"};
    const int64_t end = log->steps[log->step_count - 1], begin = log->decisions[0].step;
    const struct scale x = {.low = (double)begin, .high = (double)(end > begin ? end : begin + 1)};
    const struct scale y = {.low = 1.5, .high = 8.5};
    struct panel panel = panel_make(page, 40 + 245 * (group % 4), 34 + 244 * (group / 4), 185, 160, x, y);
    struct side_label labels[2];
    int label_count = 0;
    char text[96];
    panel_axes(&panel, FORMAT_COUNT, FORMAT_PLAIN, group + 4 >= groups->count ? "step" : NULL,
               report_short_name(&log->tensors[groups->examples[group]], 0, text));
    for (int state = 0; state < 2; state++) {
        struct band band;
        char classes[32];
        if (fill_band(&band, log, tensors, count, groups->kinds[group], block, state)) {
            int64_t steps_count = log->decision_count;
            int64_t *steps = malloc((size_t)steps_count * sizeof(*steps));
            for (int64_t d = 0; steps && d < steps_count; d++) {
                steps[d] = log->decisions[d].step;
            }
            snprintf(classes, sizeof(classes), "band %s", names[state]);
            draw_band(&panel, log, &band, end, classes);
            snprintf(classes, sizeof(classes), "line %s", names[state]);
            if (steps) {
                panel_steps(&panel, steps, band.own, steps_count, end, classes);
            }
            const double last = band.own[steps_count - 1];
            if (!isnan(last)) {
                labels[label_count++] = (struct side_label){
                    .value = last, .text = names[state], .classes = state ? "label tv" : "label tm"};
            }
            free(steps);
        }
        release_band(&band);
    }
    panel_labels(&panel, labels, label_count);
}

void report_block(struct page *page, const struct run_log *log) {
    int64_t *tensors = malloc((size_t)log->tensor_count * sizeof(*tensors) + 1);
    if (!tensors) {
        page->failed = 1;
        return;
    }
    const int64_t count = report_coded_tensors(log, tensors);
    const struct groups groups = find_groups(log, tensors, count);
    const int64_t block = groups.last_block / 2;
    if (groups.count > 0) {
        const int lines = (groups.count + 3) / 4;
        figure_open(page, 1, 1000, 244 * lines + 4, "Bits of the parameter groups inside one block over the steps");
        for (int group = 0; group < groups.count; group++) {
            draw_group(page, log, tensors, count, &groups, group, block);
        }
        figure_caption(page);
        page_add(
            page,
            "Bits of the parameter groups inside block %lld (of 0 to %lld): lines, first moment m and second moment v; "
            "the pale bands reach from the narrowest to the widest of all blocks.",
            (long long)block, (long long)groups.last_block);
        figure_end(page);
    }
    free(tensors);
}
