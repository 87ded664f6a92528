// The parts of the report, in their order on the page.
#ifndef STQUANT_REPORT_FIGURES_H
#define STQUANT_REPORT_FIGURES_H

#include "report/page.h"
#include "report/run_log.h"

// Runs are told apart by this many colours; further ones begin anew with dashed lines.
enum { RUN_COLOURS = 6 };

struct report {
    struct page *page;
    const struct run_log *logs;
    int count;
};

// All runs together.
void report_summary(const struct report *report);
void report_losses(const struct report *report);
void report_memory(const struct report *report);

// True when some log tells bytes of states; report_memory draws nothing otherwise.
int report_has_memory(const struct report *report);

// One run with low-bit states. `cells` bounds the number of coloured cells of a picture.
void report_widths(struct page *page, const struct run_log *log, int64_t cells);
void report_block(struct page *page, const struct run_log *log);
void report_zones(struct page *page, const struct run_log *log);
void report_evolution(struct page *page, const struct run_log *log, int64_t cells);
void report_tensors(struct page *page, const struct run_log *log);

// A heading, with an address that the page's contents link to.
void report_heading(struct page *page, int level, const char *address, const char *text);

// "line r0", with "dashed" from the seventh run on; `what` comes first. Valid until the next call.
const char *report_run_class(const char *what, int run);

// Largest step of any run, at least 1.
int64_t report_last_step(const struct report *report);

// Indices of the tensors with low-bit states at some decision, in `list` (tensor_count); returns how many.
int64_t report_coded_tensors(const struct run_log *log, int64_t *list);

// What a zone is called on the page.
const char *report_zone_name(enum run_zone zone);

// A tensor's name without what says nothing ("h.3.mlp.c_fc.weight": "3 · mlp in"), into `text`, which is returned.
const char *report_short_name(const struct run_tensor *tensor, int with_block, char text[96]);

#endif
