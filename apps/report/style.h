// The page's style sheet: one set of colours for light, one for dark.
#ifndef STQUANT_REPORT_STYLE_H
#define STQUANT_REPORT_STYLE_H

extern const char *const report_style;

#endif
