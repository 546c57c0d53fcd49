// chart: a curve over training steps as inline SVG, for report.c. Colours and fonts are the page's style
// sheet's.
#pragma once
#include "kernels.h"

typedef struct Series {
    char *key;     // as in metrics.jsonl: "loss", "eval/loss"
    double *x, *y; // (n) steps, in file order, and values; all finite
    int n, cap;
} Series;

typedef struct Chart {
    const char *title, *unit;            // unit: shown with the title and in hover texts; may be ""
    const char *id;                      // unique on the page
    const Series *line;                  // the curve; NULL or empty: none
    const Series *points;                // drawn as connected dots (evaluations); NULL or empty: none
    const char *line_name, *points_name; // of the legend, when there are both
    bool smooth;                         // draw a running mean over the faint values
    bool from_zero;                      // the axis begins at 0
} Chart;

void chart_svg(const Chart *c, Buf *out);             // a whole <figure>
void put_html(Buf *out, const char *s, size_t bytes); // escaped for element content and quoted attributes
void put_text(Buf *out, const char *s);               // the same for a string
void put_value(Buf *out, double v);                   // for people: 1.234, 12,345, 2e-4
