#include "train/widths.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <stquant/quant.h>
#include <string.h>

static char *keep_text(struct width_rules *rules, const char *text) {
    char **texts = realloc(rules->texts, (rules->text_count + 1) * sizeof(*texts));
    char *copy = strdup(text);
    if (texts) {
        rules->texts = texts;
    }
    if (!texts || !copy) {
        free(copy);
        return NULL;
    }
    texts[rules->text_count++] = copy;
    return copy;
}

static enum app_status add_rule(struct width_rules *rules, const char *pattern, unsigned m_bits, unsigned v_bits) {
    struct width_rule *list = realloc(rules->list, (rules->count + 1) * sizeof(*list));
    if (!list) {
        return app_fail(APP_FAILED, "There is no memory for the widths of '%s'.", pattern);
    }
    rules->list = list;
    list[rules->count++] = (struct width_rule){.pattern = pattern, .m_bits = m_bits, .v_bits = v_bits};
    return APP_OK;
}

// A width in words; 0 where it is none. `second` allows the words of second moments.
static int parse_width(const char *text, int second, unsigned *bits) {
    static const struct {
        const char *word;
        unsigned bits;
    } words[] = {{"row", STQ_BITS_SHARED_ROW}, {"column", STQ_BITS_SHARED_COL}, {"coded", STQ_BITS_NOT_SHARED}};
    for (size_t i = 0; second && i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(text, words[i].word) == 0) {
            *bits = words[i].bits;
            return 1;
        }
    }
    if (strcmp(text, "auto") == 0) {
        *bits = 0;
        return 1;
    }
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    *bits = (unsigned)value;
    return *text >= '0' && *text <= '9' && *end == '\0' && ((value >= 2 && value <= 8) || value == 32);
}

enum app_status width_rules_add(struct width_rules *rules, const char *text) {
    char *copy = keep_text(rules, text);
    if (!copy) {
        return app_fail(APP_FAILED, "There is no memory for --bits-for.");
    }
    char *widths = strrchr(copy, '=');
    char *comma = widths ? strchr(widths, ',') : NULL;
    unsigned m_bits, v_bits;
    if (!comma || widths == copy) {
        return app_fail(APP_USAGE, "--bits-for takes PATTERN=M,V, for example 'wte=6,8', not '%s'.", text);
    }
    *widths++ = *comma++ = '\0';
    if (!parse_width(widths, 0, &m_bits) || !parse_width(comma, 1, &v_bits)) {
        return app_fail(APP_USAGE,
                        "--bits-for '%s': a width is 2 to 8, 32 or auto; of a second moment also row, column or coded.",
                        text);
    }
    if ((m_bits == 32) != (v_bits == 32)) {
        return app_fail(APP_USAGE, "--bits-for '%s': both moments are 32 bits wide or neither is.", text);
    }
    return add_rule(rules, copy, m_bits, v_bits);
}

enum app_status width_rules_share(struct width_rules *rules, const char *text, int *automatic) {
    *automatic = strcmp(text, "off") != 0;
    if (!*automatic || strcmp(text, "auto") == 0) {
        return APP_OK;
    }
    char *copy = keep_text(rules, text);
    if (!copy) {
        return app_fail(APP_FAILED, "There is no memory for --shared-v.");
    }
    rules->shared_patterns = 1;
    enum app_status status = APP_OK;
    for (char *pattern = strtok(copy, ","); pattern && status == APP_OK; pattern = strtok(NULL, ",")) {
        status = add_rule(rules, pattern, 0, 0);
    }
    return status;
}

// A pattern stands for a whole name, or for the parts before a dot: wte for wte.weight, h.0 for its first block.
static int matches_name(const char *pattern, const char *name) {
    if (fnmatch(pattern, name, 0) == 0) {
        return 1;
    }
    char prefix[256];
    for (const char *dot = strchr(name, '.'); dot && (size_t)(dot - name) < sizeof(prefix);
         dot = strchr(dot + 1, '.')) {
        memcpy(prefix, name, (size_t)(dot - name));
        prefix[dot - name] = '\0';
        if (fnmatch(pattern, prefix, 0) == 0) {
            return 1;
        }
    }
    return 0;
}

enum app_status width_rules_apply(const struct width_rules *rules, stq_tensor *tensors, size_t count) {
    for (size_t i = 0; rules->shared_patterns && i < count; i++) {
        tensors[i].v_bits = STQ_BITS_NOT_SHARED;
    }
    for (size_t k = 0; k < rules->count; k++) {
        const struct width_rule *rule = &rules->list[k];
        size_t matches = 0;
        for (size_t i = 0; i < count; i++) {
            if (matches_name(rule->pattern, tensors[i].name)) {
                tensors[i].m_bits = rule->m_bits;
                tensors[i].v_bits = rule->v_bits;
                matches++;
            }
        }
        if (matches == 0) {
            return app_fail(APP_USAGE, "No tensor's name matches '%s'; names are %s, %s and so on.", rule->pattern,
                            tensors[0].name, tensors[count - 1].name);
        }
    }
    return APP_OK;
}

void width_rules_release(struct width_rules *rules) {
    for (size_t i = 0; i < rules->text_count; i++) {
        free(rules->texts[i]);
    }
    free(rules->texts);
    free(rules->list);
    *rules = (struct width_rules){0};
}
