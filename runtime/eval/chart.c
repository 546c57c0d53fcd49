// Implementation of chart.h. A long run has more steps than the chart has pixels: neighbouring values become
// one point (their mean), and its hover text gives their range.
#include "eval/chart.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 640, HEIGHT = 260, LEFT = 58, RIGHT = 14, TOP = 12, BOTTOM = 34, MOST_POINTS = 280, MOST_TICKS = 12 };

// ---- text -------------------------------------------------------------------------------------------------
void put_html(Buf *out, const char *s, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        switch (s[i]) {
        case '&': buf_puts(out, "&amp;"); break;
        case '<': buf_puts(out, "&lt;"); break;
        case '>': buf_puts(out, "&gt;"); break;
        case '"': buf_puts(out, "&quot;"); break;
        case '\'': buf_puts(out, "&#39;"); break;
        default: // HTML has no way to write control characters other than white space
            if ((unsigned char)s[i] < 0x20 && !strchr("\n\t\r", s[i]))
                buf_puts(out, "\xef\xbf\xbd");
            else
                buf_put(out, &s[i], 1);
        }
    }
}

void put_text(Buf *out, const char *s)
{
    put_html(out, s, strlen(s));
}

static void put_thousands(Buf *out, double v)
{
    char digits[400];
    int n = snprintf(digits, sizeof digits, "%.0f", v);
    for (int i = 0; i < n; i++) {
        buf_put(out, &digits[i], 1);
        if (digits[i] != '-' && i + 1 < n && (n - i - 1) % 3 == 0) buf_puts(out, ",");
    }
}

void put_value(Buf *out, double v)
{
    double size = fabs(v);
    char text[64];
    if (size >= 1000 && size < 1e15) {
        put_thousands(out, v);
        return;
    }
    if (size == 0 || (size >= 1e-3 && size < 1000)) {
        snprintf(text, sizeof text, "%.4g", v);
        buf_puts(out, text);
        return;
    }
    if (!isfinite(v)) {
        buf_puts(out, isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
        return;
    }
    int exponent = (int)floor(log10(size));
    buf_printf(out, "%.3ge%d", v / pow(10, exponent), exponent);
}

// ---- points -----------------------------------------------------------------------------------------------
typedef struct Point {
    double first, last, mean, low, high; // steps it covers; values
} Point;

// At most MOST_POINTS points of about equally many values; *n of them
static Point *points_of(const Series *s, int *n)
{
    *n = MIN(s->n, MOST_POINTS);
    Point *p = xcalloc((size_t)*n + 1, sizeof *p);
    for (int k = 0; k < *n; k++) {
        int begin = (int)((int64_t)k * s->n / *n), end = (int)((int64_t)(k + 1) * s->n / *n);
        p[k] = (Point){.first = s->x[begin], .last = s->x[end - 1], .low = s->y[begin], .high = s->y[begin]};
        for (int i = begin; i < end; i++) {
            p[k].mean += s->y[i] / (end - begin);
            p[k].low = MIN(p[k].low, s->y[i]);
            p[k].high = MAX(p[k].high, s->y[i]);
        }
    }
    return p;
}

// ---- axes -------------------------------------------------------------------------------------------------
typedef struct Axis {
    double low, high, step; // ticks at multiples of step
} Axis;

// Steps of 1, 2 or 5 times a power of ten, about `ticks` of them
static double nice_step(double range, int ticks, bool whole)
{
    double raw = range / ticks, power = pow(10, floor(log10(raw))), m = raw / power;
    double step = (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10) * power;
    return whole ? MAX(1, step) : step;
}

// An axis that holds [low, high]; its ends are ticks when round_ends
static Axis axis_of(double low, double high, int ticks, bool whole, bool round_ends)
{
    if (!(high - low > 1e-12 * MAX(fabs(high), fabs(low)))) { // one value: it stands in the middle
        double pad = low == 0 ? 1 : fabs(low) * 0.1;
        low -= whole ? 1 : pad;
        high += whole ? 1 : pad;
    }
    Axis a = {low, high, nice_step(high - low, ticks, whole)};
    if (round_ends) {
        a.low = floor(low / a.step + 1e-9) * a.step;
        a.high = ceil(high / a.step - 1e-9) * a.step;
    }
    return a;
}

static void widen(const Series *s, double *x0, double *x1, double *y0, double *y1)
{
    for (int i = 0; s && i < s->n; i++) {
        *x0 = MIN(*x0, s->x[i]);
        *x1 = MAX(*x1, s->x[i]);
        *y0 = MIN(*y0, s->y[i]);
        *y1 = MAX(*y1, s->y[i]);
    }
}

typedef struct Frame {
    Axis x, y;
} Frame;

static double px(const Frame *f, double x)
{
    return LEFT + (x - f->x.low) / (f->x.high - f->x.low) * (WIDTH - LEFT - RIGHT);
}

static double py(const Frame *f, double y)
{
    return HEIGHT - BOTTOM - (y - f->y.low) / (f->y.high - f->y.low) * (HEIGHT - TOP - BOTTOM);
}

static void put_axes(Buf *out, const Frame *f)
{
    buf_puts(out, "<g class=\"axis\" aria-hidden=\"true\">");
    double y = ceil(f->y.low / f->y.step - 1e-9) * f->y.step;
    for (int i = 0; i < MOST_TICKS && y <= f->y.high + 1e-9 * f->y.step; i++, y += f->y.step) {
        buf_printf(out, "<path d=\"M%d %.1fH%d\"/><text x=\"%d\" y=\"%.1f\" class=\"end\">", LEFT, py(f, y),
                   WIDTH - RIGHT, LEFT - 8, py(f, y) + 4);
        put_value(out, fabs(y) < 1e-9 * f->y.step ? 0 : y);
        buf_puts(out, "</text>");
    }
    double x = ceil(f->x.low / f->x.step - 1e-9) * f->x.step;
    for (int i = 0; i < MOST_TICKS && x <= f->x.high + 1e-9 * f->x.step; i++, x += f->x.step) {
        buf_printf(out, "<text x=\"%.1f\" y=\"%d\" class=\"mid\">", px(f, x), HEIGHT - 12);
        put_value(out, x);
        buf_puts(out, "</text>");
    }
    buf_puts(out, "</g>");
}

// ---- curves -----------------------------------------------------------------------------------------------
// smooth: the mean over a twentieth of the points around each, fewer but as many on both sides near the ends
static double smoothed(const Point *p, int n, int i)
{
    int half = MIN(n / 40, MIN(i, n - 1 - i));
    double sum = 0;
    for (int k = i - half; k <= i + half; k++) sum += p[k].mean;
    return sum / (2 * half + 1);
}

static void put_path(Buf *out, const Frame *f, const Point *p, int n, const char *class, bool smooth)
{
    buf_printf(out, "<path class=\"%s\" d=\"", class);
    for (int i = 0; i < n; i++)
        buf_printf(out, "%c%.1f %.1f", i ? 'L' : 'M', px(f, (p[i].first + p[i].last) / 2),
                   py(f, smooth ? smoothed(p, n, i) : p[i].mean));
    buf_puts(out, "\"/>");
}

static void put_hover_text(Buf *out, const Chart *c, const Point *p, const char *name)
{
    buf_puts(out, "step ");
    put_value(out, p->first);
    if (p->last > p->first) {
        buf_puts(out, "–");
        put_value(out, p->last);
    }
    buf_puts(out, ": ");
    put_text(out, name);
    buf_puts(out, " ");
    put_value(out, p->mean);
    buf_puts(out, " ");
    put_text(out, c->unit);
    if (p->high > p->low) {
        buf_puts(out, " (");
        put_value(out, p->low);
        buf_puts(out, " to ");
        put_value(out, p->high);
        buf_puts(out, ")");
    }
}

// A transparent column per point that shows a mark and the value under the pointer
static void put_columns(Buf *out, const Chart *c, const Frame *f, const Point *p, int n)
{
    for (int i = 0; i < n; i++) {
        double x = px(f, (p[i].first + p[i].last) / 2);
        double left = i ? (px(f, (p[i - 1].first + p[i - 1].last) / 2) + x) / 2 : LEFT;
        double right = i + 1 < n ? (px(f, (p[i + 1].first + p[i + 1].last) / 2) + x) / 2 : WIDTH - RIGHT;
        buf_printf(out, "<g class=\"at\"><rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>", left, TOP,
                   MAX(0.1, right - left), HEIGHT - TOP - BOTTOM);
        buf_printf(out, "<path d=\"M%.1f %dV%d\"/><circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"/><title>", x, TOP,
                   HEIGHT - BOTTOM, x, py(f, p[i].mean));
        put_hover_text(out, c, &p[i], c->line_name);
        buf_puts(out, "</title></g>");
    }
}

static void put_dots(Buf *out, const Chart *c, const Frame *f, const Point *p, int n)
{
    for (int i = 0; i < n; i++) {
        buf_printf(out, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"><title>",
                   px(f, (p[i].first + p[i].last) / 2), py(f, p[i].mean));
        put_hover_text(out, c, &p[i], c->points_name);
        buf_puts(out, "</title></circle>");
    }
}

// What the curve says, for those who do not see it
static void put_description(Buf *out, const char *name, const Series *s)
{
    if (!s || !s->n) return;
    double low = s->y[0], high = s->y[0];
    for (int i = 0; i < s->n; i++) low = MIN(low, s->y[i]), high = MAX(high, s->y[i]);
    put_text(out, name);
    buf_puts(out, ": ");
    put_value(out, s->y[0]);
    buf_puts(out, " at step ");
    put_value(out, s->x[0]);
    buf_puts(out, ", ");
    put_value(out, s->y[s->n - 1]);
    buf_puts(out, " at step ");
    put_value(out, s->x[s->n - 1]);
    buf_puts(out, "; lowest ");
    put_value(out, low);
    buf_puts(out, ", highest ");
    put_value(out, high);
    buf_puts(out, ". ");
}

static void put_caption(Buf *out, const Chart *c, bool both)
{
    buf_puts(out, "<figcaption><b>");
    put_text(out, c->title);
    buf_puts(out, "</b> <span>");
    put_text(out, c->unit);
    buf_puts(out, "</span>");
    if (both) {
        buf_puts(out, "<span class=\"legend\"><i class=\"key line\"></i>");
        put_text(out, c->line_name);
        buf_puts(out, " <i class=\"key dots\"></i>");
        put_text(out, c->points_name);
        buf_puts(out, "</span>");
    }
    buf_puts(out, "</figcaption>");
}

void chart_svg(const Chart *c, Buf *out)
{
    static const Series none;
    const Series *line = c->line ? c->line : &none, *dots = c->points ? c->points : &none;
    double x0 = INFINITY, x1 = -INFINITY, y0 = c->from_zero ? 0 : INFINITY, y1 = -INFINITY;
    widen(line, &x0, &x1, &y0, &y1);
    widen(dots, &x0, &x1, &y0, &y1);
    if (!line->n && !dots->n) return;
    Frame f = {axis_of(x0, x1, 8, true, false), axis_of(y0, y1, 4, false, true)};
    int n_line, n_dots;
    Point *p = points_of(line, &n_line), *d = points_of(dots, &n_dots);
    buf_puts(out, "<figure>");
    put_caption(out, c, n_line && n_dots);
    buf_printf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-labelledby=\"%s-t %s-d\"><title id=\"%s-t\">", WIDTH,
               HEIGHT, c->id, c->id, c->id);
    put_text(out, c->title);
    buf_printf(out, " by step</title><desc id=\"%s-d\">", c->id);
    put_description(out, c->line_name, line);
    put_description(out, c->points_name, dots);
    buf_puts(out, "</desc>");
    put_axes(out, &f);
    if (n_line) put_path(out, &f, p, n_line, c->smooth ? "raw" : "line", false);
    if (n_line && c->smooth) put_path(out, &f, p, n_line, "line", true);
    if (n_dots) put_path(out, &f, d, n_dots, "dots", false);
    put_columns(out, c, &f, p, n_line);
    put_dots(out, c, &f, d, n_dots);
    buf_puts(out, "</svg></figure>\n");
    free(p);
    free(d);
}
