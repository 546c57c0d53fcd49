// Implementation of report.h: reads the run directory, then writes the page section by section. Everything
// that comes from a file goes through put_html; the page's policy forbids scripts and foreign resources
// besides.
#include "eval/report.h"
#include "eval/chart.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SAMPLES = 24, FILE_LIMIT = 16 << 20 };

// What `attune eval` leaves: {"metrics": {name: number}, "samples": [{"row", "reference", "output"}]}
static const struct {
    const char *file, *title, *class;
} eval_files[] = {{"eval-base.json", "base model", "base"}, {"eval.json", "tuned model", "tuned"}};

typedef struct Page {
    const char *dir, *state, *machine;
    Series *series;
    int n_series;
    json_t *status, *eval[2]; // NULL: not there. eval: as eval_files
    Buf out;
} Page;

static const char style[] =
    ":root{color-scheme:light "
    "dark;--bg:#f7f7f5;--card:#fff;--ink:#1c1c1a;--soft:#62615c;--rule:#e4e3df;--blue:#2a78d6;"
    "--orange:#d4581f;--good:#18794e;--warn:#9a6700;--bad:#c4281c}"
    "@media(prefers-color-scheme:dark){:root{--bg:#161615;--card:#1f1f1d;--ink:#ecebe6;--soft:#a3a29b;--rule:"
    "#383733;--blue:#5a9ff0;"
    "--orange:#f08a52;--good:#4cc38a;--warn:#e2a336;--bad:#f2736a}}"
    "*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 "
    "system-ui,'DejaVu Sans',sans-serif}"
    "main,header,footer{max-width:1120px;margin:0 auto;padding:0 20px}header{padding-top:36px}"
    "h1{font-size:26px;line-height:1.2;margin:0;overflow-wrap:anywhere}h2{font-size:18px;margin:40px 0 12px}"
    "a{color:var(--blue)}.soft,figcaption "
    "span{color:var(--soft)}.head{display:flex;gap:14px;align-items:center;flex-wrap:wrap}"
    ".badge{border:1.5px solid currentColor;border-radius:99px;padding:1px "
    "12px;font-weight:600;font-size:13px}"
    ".completed{color:var(--good)}.running{color:var(--blue)}.preempted{color:var(--warn)}.failed{color:var(-"
    "-bad)}"
    "nav{margin-top:10px;display:flex;gap:16px;flex-wrap:wrap}"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin:24px 0 0}"
    ".tiles div,figure,.sample,.wide{background:var(--card);border:1px solid "
    "var(--rule);border-radius:10px;padding:12px 16px}"
    ".tiles dt{color:var(--soft);font-size:13px}.tiles dd{margin:0;font-size:21px;font-weight:600}"
    ".tiles dd small{font-size:13px;font-weight:400;color:var(--soft);display:block}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:16px}figure{"
    "margin:0}"
    "figcaption{display:flex;gap:8px;align-items:baseline;flex-wrap:wrap;margin-bottom:4px;font-size:14px}"
    "figcaption "
    ".legend{margin-left:auto;font-size:13px}.key{display:inline-block;width:16px;height:3px;border-radius:"
    "2px;"
    "vertical-align:middle;margin:0 4px 0 "
    "8px;background:var(--blue)}.key.dots{background:var(--orange);height:8px;width:8px;border-radius:50%}"
    "svg{display:block;width:100%;height:auto;overflow:visible}svg "
    "text{font-size:12.5px;fill:var(--soft);font-variant-numeric:tabular-nums}"
    ".end{text-anchor:end}.mid{text-anchor:middle}.axis path{stroke:var(--rule)}svg path{fill:none}"
    "path.line{stroke:var(--blue);stroke-width:2;stroke-linejoin:round}path.raw{stroke:var(--blue);stroke-"
    "width:1;opacity:.35}"
    "path.dots{stroke:var(--orange);stroke-width:1.5;opacity:.7}"
    ".dot{fill:var(--orange);stroke:var(--card);stroke-width:1.5}.at rect{fill:transparent}.at path,.at "
    "circle{opacity:0;pointer-events:none}"
    ".at path{stroke:var(--soft);stroke-dasharray:3 3}.at "
    "circle{fill:var(--blue);stroke:var(--card);stroke-width:1.5}"
    ".at:hover path,.at:hover circle{opacity:1}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:6px "
    "12px;border-bottom:1px solid var(--rule);"
    "font-variant-numeric:tabular-nums}th:first-child{text-align:left}thead "
    "th{color:var(--soft);font-weight:500}tbody tr:last-child>*{border:0}"
    "tbody th{font-weight:500}.sample{margin-bottom:14px}.sample "
    "h3{font-size:13px;color:var(--soft);font-weight:500;margin:0 0 4px}"
    ".sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:14px;margin-top:10px}"
    ".text{white-space:pre-wrap;overflow-wrap:anywhere;max-height:16em;overflow:auto;margin:0;font:inherit}"
    ".tuned{border-left:3px solid var(--blue);padding-left:10px}"
    "pre{margin:0;font:13px/1.5 ui-monospace,'DejaVu Sans "
    "Mono',monospace;overflow-x:auto}footer{padding:36px 20px;color:var(--soft);font-size:13px}"
    "@media print{body{background:#fff}figure,.sample{break-inside:avoid}.text{max-height:none}}";

// ---- reading ----------------------------------------------------------------------------------------------
// The whole file, or NULL when it is not there or too large to show
static char *read_optional(const Page *p, const char *name, size_t *bytes)
{
    const char *path = tmpf("%s/%s", p->dir, name);
    char *text = NULL;
    if (!path_exists(path)) return NULL;
    ErrorRecord before = *error_last(); // the fault that ended a run stays the one that is told
    if (file_read(path, FILE_LIMIT, &text, bytes) < 0) {
        log_warn("%s: left out of the report: %s", path, error_last()->what);
        error_adopt(&before);
        return NULL;
    }
    return text;
}

static json_t *read_json(const Page *p, const char *name)
{
    size_t bytes;
    char *text = read_optional(p, name, &bytes);
    json_t *value = text ? json_loadb(text, bytes, 0, NULL) : NULL;
    free(text);
    if (value && !json_is_object(value)) {
        json_decref(value);
        value = NULL;
    }
    return value;
}

static Series *series_find(const Page *p, const char *key)
{
    for (int i = 0; i < p->n_series; i++)
        if (streq(p->series[i].key, key)) return &p->series[i];
    return NULL;
}

static void series_add(Page *p, const char *key, double x, double y)
{
    Series *s = series_find(p, key);
    if (!s) {
        p->series = xrealloc(p->series, (size_t)(p->n_series + 1) * sizeof *p->series);
        s = &p->series[p->n_series++];
        *s = (Series){.key = xstrdup(key)};
    }
    if (s->n == s->cap) {
        s->cap = MAX(64, 2 * s->cap);
        s->x = xrealloc(s->x, (size_t)s->cap * sizeof *s->x);
        s->y = xrealloc(s->y, (size_t)s->cap * sizeof *s->y);
    }
    s->x[s->n] = x;
    s->y[s->n++] = y;
}

static bool drawable(const json_t *v) // 1e100: far enough from where differences overflow
{
    return json_is_number(v) && fabs(json_number_value(v)) < 1e100;
}

static void add_metrics(Page *p, json_t *line)
{
    const char *key;
    json_t *value, *step = json_object_get(line, "step");
    if (!drawable(step)) return;
    json_object_foreach(line, key, value) if (!streq(key, "step") && drawable(value))
        series_add(p, key, json_number_value(step), json_number_value(value));
}

static void read_metrics(Page *p)
{
    FILE *f = fopen(tmpf("%s/metrics.jsonl", p->dir), "r");
    char *text = NULL;
    size_t cap = 0;
    for (ssize_t n; f && (n = getline(&text, &cap, f)) > 0;) {
        json_t *line = json_loadb(text, (size_t)n, 0, NULL);
        if (line) add_metrics(p, line);
        json_decref(line);
    }
    free(text);
    if (f) fclose(f);
}

// ---- head and tiles ---------------------------------------------------------------------------------------
static const char *base_name(const char *dir)
{
    static _Thread_local char name[256];
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/') n--;
    size_t start = n;
    while (start > 0 && dir[start - 1] != '/') start--;
    snprintf(name, sizeof name, "%.*s", (int)MIN(n - start, sizeof name - 1), dir + start);
    return name;
}

static void put_status(Page *p)
{
    static const char *const states[][2] = {
        {"completed", "✓"}, {"running", "…"}, {"preempted", "⏸"}, {"failed", "✗"}, // not by colour alone
    };
    const char *state = p->state ? p->state : json_string_value(json_object_get(p->status, "state"));
    const char *reason = p->state ? NULL : json_string_value(json_object_get(p->status, "reason"));
    for (size_t i = 0; state && i < COUNT_OF(states); i++)
        if (streq(state, states[i][0]))
            buf_printf(&p->out, "<span class=\"badge %s\">%s %s</span>", state, states[i][1], state);
    if (reason && *reason) {
        buf_puts(&p->out, "<span class=\"soft\">");
        put_text(&p->out, reason);
        buf_puts(&p->out, "</span>");
    }
}

static void put_head(Page *p)
{
    Buf *o = &p->out;
    buf_puts(o, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
                "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
                "'unsafe-inline'\"><title>");
    put_text(o, base_name(p->dir));
    buf_printf(o, " · attune</title><style>%s</style></head>\n<body><header><div class=\"head\"><h1>", style);
    put_text(o, base_name(p->dir));
    buf_puts(o, "</h1>");
    put_status(p);
    buf_puts(o, "</div></header>\n<main>\n");
}

static int by_number(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const Series *s)
{
    double *sorted = xmalloc((size_t)s->n * sizeof *sorted);
    memcpy(sorted, s->y, (size_t)s->n * sizeof *sorted);
    qsort(sorted, (size_t)s->n, sizeof *sorted, by_number);
    double m = s->n % 2 ? sorted[s->n / 2] : (sorted[s->n / 2 - 1] + sorted[s->n / 2]) / 2;
    free(sorted);
    return m;
}

static void tile_begin(Buf *o, const char *name)
{
    buf_printf(o, "<div><dt>%s</dt><dd>", name);
}

static void tile_end(Buf *o, const char *note) // note: markup of our own
{
    if (*note) buf_printf(o, "<small>%s</small>", note);
    buf_puts(o, "</dd></div>");
}

static void put_first_to_last(Buf *o, const Series *s)
{
    put_value(o, s->y[0]);
    if (s->n < 2) return;
    buf_puts(o, " → ");
    put_value(o, s->y[s->n - 1]);
}

static void put_tiles(Page *p)
{
    Buf *o = &p->out;
    const Series *loss = series_find(p, "loss"), *valid = series_find(p, "eval/loss"),
                 *speed = series_find(p, "tokens_per_s");
    const Series *ms = series_find(p, "step_ms"), *rss = series_find(p, "rss_bytes");
    buf_puts(o, "<dl class=\"tiles\">");
    if (loss) {
        tile_begin(o, "Steps");
        put_value(o, loss->x[loss->n - 1]);
        tile_end(o, "");
        tile_begin(o, "Training loss");
        put_first_to_last(o, loss);
        tile_end(o, "first → last step");
    }
    if (valid) {
        tile_begin(o, "Validation loss");
        put_first_to_last(o, valid);
        tile_end(o, tmpf("perplexity %.4g", exp(MIN(valid->y[valid->n - 1], 700))));
    }
    if (speed) {
        tile_begin(o, "Tokens per second");
        put_value(o, floor(median(speed) + 0.5));
        tile_end(o, ms ? tmpf("median; %.4g s a step", median(ms) / 1e3) : "median");
    }
    if (rss) {
        double most = 0;
        for (int i = 0; i < rss->n; i++) most = MAX(most, rss->y[i]);
        tile_begin(o, "Memory of rank 0");
        buf_printf(o, most >= 1e9 ? "%.2f GB" : "%.0f MB", most >= 1e9 ? most / 1e9 : most / 1e6);
        tile_end(o, "highest resident size");
    }
    buf_puts(o, "</dl>\n");
}

// ---- curves -----------------------------------------------------------------------------------------------
static const struct {
    const char *line, *points, *title, *unit;
    bool smooth, from_zero;
} known_charts[] = {
    {"loss", "eval/loss", "Loss", "nats per trained token", true, false},
    {"lr", "", "Learning rate", "", false, true},
    {"grad_norm", "", "Gradient norm", "before clipping", true, true},
    {"tokens_per_s", "", "Speed", "tokens/s", true, true},
};

static bool is_charted(const char *key)
{
    for (size_t i = 0; i < COUNT_OF(known_charts); i++)
        if (streq(key, known_charts[i].points)) return true;
    return false;
}

static void put_charts(Page *p)
{
    if (!p->n_series) return;
    buf_puts(&p->out, "<h2 id=\"curves\">Curves</h2>\n<div class=\"charts\">\n");
    for (size_t i = 0; i < COUNT_OF(known_charts); i++)
        chart_svg(&(Chart){.title = known_charts[i].title,
                           .unit = known_charts[i].unit,
                           .id = tmpf("c%zu", i),
                           .line = series_find(p, known_charts[i].line),
                           .line_name = "training",
                           .points = series_find(p, known_charts[i].points),
                           .points_name = "validation",
                           .smooth = known_charts[i].smooth,
                           .from_zero = known_charts[i].from_zero},
                  &p->out);
    for (int i = 0; i < p->n_series; i++) {
        const char *key = p->series[i].key;
        if (strncmp(key, "eval/", 5) || is_charted(key) || p->series[i].n < 2) continue; // one value is no curve
        chart_svg(&(Chart){.title = key + 5,
                           .unit = "validation",
                           .id = tmpf("e%d", i),
                           .line_name = "",
                           .points_name = key + 5,
                           .points = &p->series[i]},
                  &p->out);
    }
    buf_puts(&p->out, "</div>\n");
}

// ---- evaluation -------------------------------------------------------------------------------------------
static void put_cell(Buf *o, const json_t *v)
{
    buf_puts(o, "<td>");
    if (json_is_number(v)) put_value(o, json_number_value(v));
    buf_puts(o, "</td>");
}

static const json_t *metric(const Page *p, size_t file, const char *name)
{
    return json_object_get(json_object_get(p->eval[file], "metrics"), name);
}

// A column for each of eval_files that is there; a metric's row stands where the first file that has it puts it
static void put_eval_files(Page *p)
{
    Buf *o = &p->out;
    const char *name;
    json_t *value;
    buf_puts(o, "<thead><tr><th scope=\"col\">on the test data</th>");
    for (size_t i = 0; i < COUNT_OF(eval_files); i++)
        if (p->eval[i]) buf_printf(o, "<th scope=\"col\">%s</th>", eval_files[i].title);
    buf_puts(o, "</tr></thead><tbody>\n");
    for (size_t i = 0; i < COUNT_OF(eval_files); i++)
        json_object_foreach(json_object_get(p->eval[i], "metrics"), name, value)
        {
            if (i > 0 && metric(p, 0, name)) continue;
            buf_puts(o, "<tr><th scope=\"row\">");
            put_text(o, name);
            buf_puts(o, "</th>");
            for (size_t k = 0; k < COUNT_OF(eval_files); k++)
                if (p->eval[k]) put_cell(o, metric(p, k, name));
            buf_puts(o, "</tr>\n");
        }
    buf_puts(o, "</tbody>");
}

// Without them: what was evaluated during training
static void put_eval_series(Page *p)
{
    Buf *o = &p->out;
    buf_puts(o, "<thead><tr><th scope=\"col\">on the validation data</th><th scope=\"col\">first</th><th "
                "scope=\"col\">last</th></tr></thead>"
                "<tbody>\n");
    for (int i = 0; i < p->n_series; i++) {
        const Series *s = &p->series[i];
        if (strncmp(s->key, "eval/", 5)) continue;
        buf_puts(o, "<tr><th scope=\"row\">");
        put_text(o, s->key + 5);
        buf_puts(o, "</th><td>");
        put_value(o, s->y[0]);
        buf_puts(o, "</td><td>");
        put_value(o, s->y[s->n - 1]);
        buf_puts(o, "</td></tr>\n");
    }
    buf_puts(o, "</tbody>");
}

static void put_evaluation(Page *p)
{
    bool files = p->eval[0] || p->eval[1], any = files;
    for (int i = 0; i < p->n_series; i++) any |= !strncmp(p->series[i].key, "eval/", 5);
    if (!any) return;
    buf_puts(&p->out, "<h2 id=\"evaluation\">Evaluation</h2>\n<div class=\"wide\"><table>");
    if (files)
        put_eval_files(p);
    else
        put_eval_series(p);
    buf_puts(&p->out, "</table></div>\n");
}

// ---- samples, recipe, machine -----------------------------------------------------------------------------
static void put_side(Buf *o, const json_t *sample, const char *key, const char *title, const char *class)
{
    const json_t *v = json_object_get(sample, key);
    if (!json_is_string(v)) return;
    buf_printf(o, "<div class=\"%s\"><h3>%s</h3><div class=\"text\">", class, title);
    put_html(o, json_string_value(v), json_string_length(v));
    buf_puts(o, "</div></div>");
}

// The same data row in another file's samples, or NULL
static const json_t *sample_of_row(const json_t *eval, const json_t *row)
{
    const json_t *sample;
    size_t i;
    json_array_foreach(json_object_get(eval, "samples"), i,
                       sample) if (json_equal(json_object_get(sample, "row"), row)) return sample;
    return NULL;
}

static void put_sample(Page *p, const json_t *sample)
{
    Buf *o = &p->out;
    const json_t *row = json_object_get(sample, "row");
    buf_puts(o, "<div class=\"sample\">");
    put_side(o, sample, "prompt", "prompt", "prompt");
    buf_puts(o, "<div class=\"sides\">");
    put_side(o, sample, "reference", "reference", "reference");
    for (size_t i = 0; i < COUNT_OF(eval_files); i++)
        put_side(o, sample_of_row(p->eval[i], row), "output", eval_files[i].title, eval_files[i].class);
    buf_puts(o, "</div></div>\n");
}

// The samples of the tuned model, beside the base model's of the same rows; or the base model's alone
static void put_samples(Page *p)
{
    const json_t *samples = json_object_get(p->eval[p->eval[1] ? 1 : 0], "samples"), *sample;
    size_t i;
    if (!json_array_size(samples)) return;
    buf_puts(&p->out, "<h2 id=\"samples\">Samples</h2>\n");
    json_array_foreach(samples, i, sample) if (i < MOST_SAMPLES) put_sample(p, sample);
}

static void put_block(Page *p, const char *id, const char *title, const char *text, size_t bytes)
{
    if (!bytes) return;
    buf_printf(&p->out, "<h2 id=\"%s\">%s</h2>\n<div class=\"wide\"><pre>", id, title);
    put_html(&p->out, text, bytes);
    buf_puts(&p->out, "</pre></div>\n");
}

// ---- the page ---------------------------------------------------------------------------------------------
static void read_run(Page *p)
{
    p->status = read_json(p, "status.json");
    for (size_t i = 0; i < COUNT_OF(eval_files); i++) p->eval[i] = read_json(p, eval_files[i].file);
    read_metrics(p);
}

static void put_page(Page *p)
{
    size_t bytes = 0;
    char *recipe = read_optional(p, "recipe.yaml", &bytes);
    put_head(p);
    put_tiles(p);
    put_charts(p);
    put_evaluation(p);
    put_samples(p);
    put_block(p, "recipe", "Recipe", recipe, bytes);
    put_block(p, "machine", "Machine", p->machine, strlen(p->machine));
    buf_puts(&p->out, "</main>\n<footer>Written by attune. This page loads nothing from "
                      "elsewhere.</footer></body></html>\n");
    free(recipe);
}

static void page_free(Page *p)
{
    for (int i = 0; i < p->n_series; i++) {
        free(p->series[i].key);
        free(p->series[i].x);
        free(p->series[i].y);
    }
    free(p->series);
    json_decref(p->status);
    for (size_t i = 0; i < COUNT_OF(eval_files); i++) json_decref(p->eval[i]);
    buf_free(&p->out);
}

int report_write(const char *output_dir, const char *state, const char *machine)
{
    Page p = {.dir = output_dir, .state = state, .machine = machine};
    read_run(&p);
    put_page(&p);
    int status = file_write_atomic(tmpf("%s/report.html", output_dir), p.out.data, p.out.len);
    page_free(&p);
    return status;
}
