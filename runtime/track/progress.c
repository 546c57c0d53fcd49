// Implementation of progress.h. Owns stderr's current line while a bar is drawn on it. Two ways of showing
// one state: render() makes the text, and draw() decides how and when it is written.
#include "track/progress.h"
#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { REDRAW_MS = 100, PLAIN_MS = 10000, PLAIN_SHARE = 20, WIDEST = 160, BAR_MOST = 28, BAR_LEAST = 6 };
static const double SMOOTH = 0.9; // weight of the past in the shown loss

struct Progress {
    char verb[32], extra[64];
    int64_t total, step, first; // first: where this process began counting
    double loss, smooth, weight, tokens_per_s;
    double opened_ms, drawn_ms;
    int64_t drawn_step;
    bool terminal, utf8, colour, line_open;
};

// ---- what the terminal can do
// --------------------------------------------------------------------------------------- By the
// environment's locale, without changing the process's own (numbers are parsed and printed in "C").
static bool locale_is_utf8(void)
{
    locale_t l = newlocale(LC_CTYPE_MASK, "", (locale_t)0);
    if (!l) return false;
    bool utf8 = streq(nl_langinfo_l(CODESET, l), "UTF-8");
    freelocale(l);
    return utf8;
}

static int terminal_width(void)
{
    struct winsize w;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0) return MIN((int)w.ws_col, WIDEST);
    return 80;
}

Progress *progress_open(const char *verb, int64_t total_steps)
{
    const char *term = getenv("TERM"), *no_colour = getenv("NO_COLOR");
    Progress *p = xcalloc(1, sizeof *p);
    snprintf(p->verb, sizeof p->verb, "%s", verb);
    p->total = MAX(0, total_steps);
    p->terminal = isatty(STDERR_FILENO) && !(term && streq(term, "dumb"));
    p->utf8 = locale_is_utf8();
    p->colour = p->terminal && !(no_colour && *no_colour);
    p->opened_ms = now_ms();
    p->loss = p->smooth = NAN;
    return p;
}

void progress_start_at(Progress *p, int64_t done)
{
    if (!p) return;
    p->first = p->step = done;
    p->opened_ms = now_ms();
}

// ---- the text
// -------------------------------------------------------------------------------------------------------
static double share_done(const Progress *p)
{
    return p->total ? MIN(1.0, (double)p->step / (double)p->total) : 0;
}

static void put_duration(Buf *b, double seconds)
{
    int64_t s = (int64_t)(seconds + 0.5);
    if (s >= 86400)
        buf_printf(b, "%lldd %02lld:%02lldh", (long long)(s / 86400), (long long)(s / 3600 % 24),
                   (long long)(s / 60 % 60));
    else if (s >= 3600)
        buf_printf(b, "%lld:%02lld:%02lld", (long long)(s / 3600), (long long)(s / 60 % 60), (long long)(s % 60));
    else
        buf_printf(b, "%lld:%02lld", (long long)(s / 60), (long long)(s % 60));
}

// Elapsed time on the last step, else the time left at the mean speed of this process's steps
static void put_time(Buf *b, const Progress *p)
{
    double elapsed_s = (now_ms() - p->opened_ms) / 1e3;
    int64_t made = p->step - p->first;
    if (p->total && p->step < p->total && made > 0) {
        put_duration(b, elapsed_s / (double)made * (double)(p->total - p->step));
        buf_puts(b, " left");
    } else {
        put_duration(b, elapsed_s);
    }
}

// "1234.5" -> four significant digits without an exponent, for speeds; losses likewise
static void put_number(Buf *b, double x)
{
    double size = fabs(x);
    buf_printf(b, "%.*f", size >= 1000 || !isfinite(x) ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3, x);
}

// The fields right of the bar, each led by two spaces
static void put_fields(Buf *b, const Progress *p)
{
    if (p->total)
        buf_printf(b, "  %lld/%lld", (long long)p->step, (long long)p->total);
    else
        buf_printf(b, "  step %lld", (long long)p->step);
    if (p->weight > 0) {
        buf_puts(b, "  loss ");
        put_number(b, p->smooth / p->weight);
        buf_puts(b, " (now ");
        put_number(b, p->loss);
        buf_puts(b, ")");
    }
    if (p->tokens_per_s > 0) {
        buf_puts(b, "  ");
        put_number(b, p->tokens_per_s);
        buf_puts(b, " tok/s");
    }
    if (*p->extra) buf_printf(b, "  %s", p->extra);
    buf_puts(b, "  ");
    put_time(b, p);
}

static void put_times(Buf *b, const char *s, int n)
{
    while (n-- > 0) buf_puts(b, s);
}

// `cells` columns; the bar is drawn in half cells where the locale has the characters
static void put_bar(Buf *b, const Progress *p, int cells)
{
    int halves = (int)(share_done(p) * 2 * cells);
    int full = halves / 2, half = p->utf8 ? halves % 2 : 0;
    if (p->colour) buf_puts(b, "\033[32m");
    put_times(b, p->utf8 ? "━" : "#", full);
    if (half) buf_puts(b, "╸");
    if (p->colour) buf_puts(b, "\033[0;2m");
    put_times(b, p->utf8 ? (p->colour ? "━" : " ") : ".", cells - full - half);
    if (p->colour) buf_puts(b, "\033[0m");
}

// Cuts to `columns` characters: a line that wraps could not be redrawn
static void cut_columns(Buf *b, int columns)
{
    size_t i = 0;
    for (; i < b->len && columns >= 0; i++)
        if (((unsigned char)b->data[i] & 0xc0) != 0x80 && columns-- == 0) break;
    if (i < b->len) b->data[b->len = i] = '\0';
}

static void render(Buf *line, const Progress *p, int width)
{
    Buf head = {0}, fields = {0};
    buf_printf(&head, "%s", p->verb);
    if (p->total) buf_printf(&head, " %3d%% ", (int)(share_done(p) * 100));
    put_fields(&fields, p);
    int used = 1; // the last column stays empty: some terminals wrap when it is written
    for (size_t i = 0; i < head.len + fields.len; i++) {
        char c = i < head.len ? head.data[i] : fields.data[i - head.len];
        used += ((unsigned char)c & 0xc0) != 0x80;
    }
    int cells = p->total ? MIN(BAR_MOST, width - used) : 0;
    if (cells < BAR_LEAST) {
        buf_put(&head, fields.data, fields.len);
        cut_columns(&head, width - 1);
        buf_put(line, head.data, head.len);
    } else {
        buf_put(line, head.data, head.len);
        put_bar(line, p, cells);
        buf_put(line, fields.data, fields.len);
    }
    buf_free(&head);
    buf_free(&fields);
}

// ---- writing
// --------------------------------------------------------------------------------------------------------
static void write_all(const Buf *b)
{
    fflush(stderr);
    for (size_t done = 0; done < b->len;) { // one write for a line, so that the lines of several ranks do not mix
        ssize_t n = write(STDERR_FILENO, b->data + done, b->len - done);
        if (n <= 0) return; // a closed terminal must not end a run
        done += (size_t)n;
    }
}

static void draw_terminal(Progress *p)
{
    Buf out = {0};
    buf_puts(&out, "\r");
    render(&out, p, terminal_width());
    buf_puts(&out, "\033[K");
    write_all(&out);
    buf_free(&out);
    p->line_open = true;
}

static void draw_plain(const Progress *p)
{
    Buf out = {0};
    buf_printf(&out, "%s", p->verb);
    if (p->total) buf_printf(&out, " %3d%%", (int)(share_done(p) * 100));
    put_fields(&out, p);
    buf_puts(&out, "\n");
    write_all(&out);
    buf_free(&out);
}

// The last step is always drawn, and the first
static bool is_due(const Progress *p)
{
    if (p->drawn_step == 0 || (p->total && p->step >= p->total)) return true;
    double since_ms = now_ms() - p->drawn_ms;
    if (p->terminal) return since_ms >= REDRAW_MS;
    int64_t share = p->total / PLAIN_SHARE;
    return since_ms >= PLAIN_MS || (share && p->step / share != p->drawn_step / share);
}

static void draw(Progress *p)
{
    if (p->terminal)
        draw_terminal(p);
    else
        draw_plain(p);
    p->drawn_ms = now_ms();
    p->drawn_step = p->step;
}

void progress_step(Progress *p, int64_t step, double loss, double tokens_per_s, const char *extra)
{
    if (!p) return;
    p->step = step;
    p->tokens_per_s = tokens_per_s;
    snprintf(p->extra, sizeof p->extra, "%s", extra ? extra : "");
    if (!isnan(loss)) { // exponential mean, corrected for its start (as Adam's)
        p->loss = loss;
        p->smooth = p->weight > 0 ? SMOOTH * p->smooth + (1 - SMOOTH) * loss : (1 - SMOOTH) * loss;
        p->weight = SMOOTH * p->weight + (1 - SMOOTH);
    }
    if (is_due(p)) draw(p);
}

void progress_note(Progress *p, const char *fmt, ...)
{
    if (!p) return;
    Buf out = {0};
    va_list ap;
    va_start(ap, fmt);
    char text[1024];
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    buf_printf(&out, "%s%s\n", p->line_open ? "\r\033[K" : "", text);
    write_all(&out);
    buf_free(&out);
    if (p->line_open) draw_terminal(p);
}

void progress_close(Progress *p)
{
    if (!p) return;
    if (p->drawn_step != p->step && p->step > p->first) draw(p);
    if (p->line_open) {
        Buf end = {0};
        buf_puts(&end, "\n");
        write_all(&end);
        buf_free(&end);
    }
    free(p);
}
