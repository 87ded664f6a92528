// Widths that the user gives by tensor name: --bits-for 'wte=6,8', --shared-v 'h.*'.
#ifndef STQUANT_TRAIN_WIDTHS_H
#define STQUANT_TRAIN_WIDTHS_H

#include <stddef.h>
#include <stquant/base.h>

#include "train/failure.h"

struct width_rule {
    const char *pattern; // a shell pattern over names or their first parts (wte for wte.weight)
    unsigned m_bits, v_bits;
};

struct width_rules {
    struct width_rule *list;
    size_t count;
    char **texts; // copies of the options' texts
    size_t text_count;
    int shared_patterns; // --shared-v named tensors: all others are not shared
};

// Adds "PATTERN=M,V": M is 2 to 8, 32 or auto; V is that, or row or column (one mean each, instead of codes) or coded
// (as the policy says, but never shared). APP_USAGE with a sentence on anything else.
enum app_status width_rules_add(struct width_rules *rules, const char *text);

// --shared-v: "auto", "off", or patterns, separated by commas, of the tensors whose second moments may be shared.
// *automatic tells whether any may.
enum app_status width_rules_share(struct width_rules *rules, const char *text, int *automatic);

// Sets m_bits and v_bits of the tensors; the last rule that matches a name holds. APP_USAGE when a pattern matches no
// name.
enum app_status width_rules_apply(const struct width_rules *rules, stq_tensor *tensors, size_t count);

void width_rules_release(struct width_rules *rules);

#endif
