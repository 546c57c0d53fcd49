// Implementation of facts.h.
#include "facts.h"
#include <stdlib.h>
#include <string.h>

enum { MOST_COLUMNS = 16, KEY_WIDTH = 18 };

// ---- values as text ---------------------------------------------------------------------------------------
static bool ends_in(const char *s, const char *suffix)
{
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && streq(s + n - m, suffix);
}

static void put_scaled(Buf *out, double v, const char *const *unit)
{
    int i = 0;
    for (; v >= 1000 && unit[i + 1]; i++) v /= 1000;
    buf_printf(out, "%.*f%s", i == 0 ? 0 : v >= 100 ? 1 : 2, v, unit[i]);
}

static void put_integer(Buf *out, const char *key, json_int_t v)
{
    static const char *const bytes[] = {" B", " kB", " MB", " GB", " TB", NULL}, *const many[] = {"", " k", " M", " G",
                                                                                                  NULL};
    if (ends_in(key, "bytes") && v >= 0)
        put_scaled(out, (double)v, bytes);
    else if (streq(key, "parameters") && v >= 0)
        put_scaled(out, (double)v, many);
    else
        buf_printf(out, "%lld", (long long)v);
}

static void put_string(Buf *out, const char *s)
{
    for (; *s; s++) buf_put(out, (unsigned char)*s < 0x20 || *s == 0x7f ? "?" : s, 1);
}

// depth: values come from files
static void put_fact(Buf *out, const char *key, const json_t *v, int depth)
{
    const char *name, *comma = "";
    json_t *item;
    size_t i;
    if (depth > 4) {
        buf_puts(out, "...");
        return;
    }
    if (json_is_integer(v)) put_integer(out, key, json_integer_value(v));
    if (json_is_real(v)) buf_printf(out, "%.6g", json_real_value(v));
    if (json_is_boolean(v)) buf_puts(out, json_is_true(v) ? "yes" : "no");
    if (json_is_string(v)) put_string(out, json_string_value(v));
    json_array_foreach(v, i, item)
    {
        buf_puts(out, comma);
        put_fact(out, "", item, depth + 1);
        comma = ", ";
    }
    json_object_foreach((json_t *)v, name, item)
    {
        buf_puts(out, comma);
        put_string(out, name);
        buf_puts(out, " ");
        put_fact(out, name, item, depth + 1);
        comma = ", ";
    }
}

// ---- tables -----------------------------------------------------------------------------------------------
typedef struct Column {
    const char *key;
    bool number; // set to the right
    size_t width;
} Column;

static size_t columns_of(const char *s) // code points: close enough to what a terminal shows
{
    size_t n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static char *cell_text(const char *key, const json_t *row)
{
    Buf b = {0};
    const json_t *v = json_object_get(row, key);
    buf_puts(&b, json_is_array(v) ? "[" : "");
    put_fact(&b, key, v, 0);
    buf_puts(&b, json_is_array(v) ? "]" : "");
    return b.data;
}

static int measure_columns(Column *c, const json_t *rows)
{
    const char *key;
    json_t *value, *row;
    size_t i;
    int n = 0;
    json_object_foreach(json_array_get(rows, 0), key, value)
    {
        if (n == MOST_COLUMNS) break;
        c[n] = (Column){key, json_is_number(value), columns_of(key)};
        json_array_foreach(rows, i, row)
        {
            char *text = cell_text(key, row);
            c[n].width = MAX(c[n].width, columns_of(text));
            free(text);
        }
        n++;
    }
    return n;
}

static void print_cell(const Column *c, const char *text, bool last, FILE *out)
{
    int pad = (int)(c->width - columns_of(text));
    if (c->number)
        fprintf(out, "  %*s%s", pad, "", text);
    else
        fprintf(out, "  %s%*s", text, last ? 0 : pad, "");
}

static void print_table(const char *title, const json_t *rows, FILE *out)
{
    Column c[MOST_COLUMNS];
    json_t *row;
    size_t i;
    int n = measure_columns(c, rows);
    fprintf(out, "\n%s\n", title);
    for (int k = 0; k < n; k++) print_cell(&c[k], c[k].key, k == n - 1, out);
    fputs("\n", out);
    json_array_foreach(rows, i, row)
    {
        for (int k = 0; k < n; k++) {
            char *text = cell_text(c[k].key, row);
            print_cell(&c[k], text, k == n - 1, out);
            free(text);
        }
        fputs("\n", out);
    }
}

static bool is_table(const json_t *v)
{
    return json_is_object(json_array_get(v, 0));
}

void facts_print(json_t *facts, FILE *out)
{
    const char *key;
    json_t *value;
    json_object_foreach(facts, key, value)
    {
        if (is_table(value)) continue;
        Buf text = {0};
        buf_puts(&text, "");
        put_fact(&text, key, value, 0);
        fprintf(out, "%-*s %s\n", KEY_WIDTH, key, text.data);
        buf_free(&text);
    }
    json_object_foreach(facts, key, value) if (is_table(value)) print_table(key, value, out);
}
