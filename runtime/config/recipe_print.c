// recipe_print: a recipe as YAML that reads back to the same values, as a banner for people, and the options'
// manual.
#include "recipe_impl.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

// ---- scalars ----------------------------------------------------------------------------------------------
// Text that every YAML reader, 1.1 ones included, takes as this text without quotes.
static bool plain_safe(const char *s)
{
    static const char *const words[] = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"};
    bool start =
        isalpha((unsigned char)*s) || *s == '/' || *s == '_' || strncmp(s, "./", 2) == 0 || strncmp(s, "../", 3) == 0;
    if (!start) return false;
    for (const char *c = s; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr("_./-", *c)) return false;
    for (size_t i = 0; i < COUNT_OF(words); i++)
        if (strcasecmp(s, words[i]) == 0) return false;
    return true;
}

// Characters that a double-quoted scalar cannot hold as they are: controls, line breaks, the byte order mark.
static bool must_escape(uint32_t c)
{
    return c < 0x20 || (c >= 0x7F && c <= 0x9F) || c == 0x2028 || c == 0x2029 || c == 0xFEFF || c == 0xFFFE ||
           c == 0xFFFF;
}

// Valid UTF-8: option values were checked when they were read.
static int decode(const char *s, uint32_t *c)
{
    const unsigned char *u = (const unsigned char *)s;
    int n = *u < 0x80 ? 1 : *u < 0xE0 ? 2 : *u < 0xF0 ? 3 : 4;
    *c = n == 1 ? *u : *u & (0xFFu >> (n + 1));
    for (int i = 1; i < n; i++) *c = *c << 6 | (u[i] & 0x3F);
    return n;
}

static void put_text(Buf *b, const char *s)
{
    if (plain_safe(s)) {
        buf_puts(b, s);
        return;
    }
    buf_puts(b, "\"");
    for (uint32_t c; *s;) {
        int n = decode(s, &c);
        if (c == '"' || c == '\\') buf_puts(b, "\\");
        if (must_escape(c))
            buf_printf(b, "\\u%04X", c);
        else
            buf_put(b, s, (size_t)n);
        s += n;
    }
    buf_puts(b, "\"");
}

// The fewest digits that read back to the same double, always with a point: `1.0e-08` is a number for
// YAML 1.1 readers too.
static void put_float(Buf *b, double f)
{
    char s[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, f);
        if (strtod(s, NULL) == f) break;
    }
    size_t whole = strcspn(s, "e");
    buf_put(b, s, whole);
    if (!memchr(s, '.', whole)) buf_puts(b, ".0");
    buf_puts(b, s + whole);
}

static void put_list(Buf *b, const RecipeList *l)
{
    buf_puts(b, "[");
    for (int i = 0; i < l->n; i++) {
        if (i) buf_puts(b, ", ");
        put_text(b, l->item[i]);
    }
    buf_puts(b, "]");
}

static void put_map(Buf *b, const RecipeMap *m)
{
    buf_puts(b, "{");
    for (int i = 0; i < m->n; i++) {
        if (i) buf_puts(b, ", ");
        put_text(b, m->key[i]);
        buf_puts(b, ": ");
        put_text(b, m->value[i]);
    }
    buf_puts(b, "}");
}

static void put_value(Buf *b, const Recipe *r, const Option *o)
{
    const void *at = option_value(r, o);
    switch (o->type) {
    case TYPE_STR:
    case TYPE_CHOICE: put_text(b, *(const char *const *)at); break;
    case TYPE_INT: buf_printf(b, "%lld", (long long)*(const int64_t *)at); break;
    case TYPE_FLOAT: put_float(b, *(const double *)at); break;
    case TYPE_BOOL: buf_puts(b, *(const bool *)at ? "true" : "false"); break;
    case TYPE_LIST: put_list(b, at); break;
    case TYPE_MAP: put_map(b, at); break;
    }
}

static void put_default(Buf *b, const Option *o)
{
    switch (o->type) {
    case TYPE_STR:
    case TYPE_CHOICE: put_text(b, o->text); break;
    case TYPE_INT: buf_printf(b, "%lld", (long long)o->i); break;
    case TYPE_FLOAT: put_float(b, o->f); break;
    case TYPE_BOOL: buf_puts(b, o->b ? "true" : "false"); break;
    case TYPE_LIST: put_list(b, &(RecipeList){.item = (const char **)&o->text, .n = *o->text != 0}); break;
    case TYPE_MAP: buf_puts(b, "{}"); break;
    }
}

// ---- documents --------------------------------------------------------------------------------------------
void recipe_write_yaml(const Recipe *r, Buf *out)
{
    int n;
    const Option *o = option_table(&n);
    const char *section = "";
    for (int i = 0; i < n; i++) {
        if (!streq(o[i].section, section)) buf_printf(out, "%s:\n", section = o[i].section);
        buf_printf(out, "%s%s: ", *section ? "  " : "", o[i].key);
        put_value(out, r, &o[i]);
        buf_puts(out, "\n");
    }
}

void recipe_banner(const Recipe *r, Buf *out)
{
    int n;
    const Option *o = option_table(&n);
    buf_printf(out, "recipe %s\n", *r->file ? r->file : "of the command line");
    for (int i = 0; i < n; i++) {
        Buf value = {0}, usual = {0};
        put_value(&value, r, &o[i]);
        put_default(&usual, &o[i]);
        if (!streq(value.data, usual.data)) {
            buf_printf(out, "  %-22s %s", o[i].name, value.data);
            if (!streq(usual.data, "\"\"") && !streq(usual.data, "[]") && !streq(usual.data, "{}"))
                buf_printf(out, "  (default %s)", usual.data);
            buf_puts(out, "\n");
        }
        buf_free(&value);
        buf_free(&usual);
    }
}

static void put_type(Buf *b, const Option *o)
{
    switch (o->type) {
    case TYPE_STR: buf_puts(b, "text"); break;
    case TYPE_CHOICE: buf_puts(b, o->choices); break;
    case TYPE_INT:
        if (o->i_max == INT64_MAX)
            buf_printf(b, "whole number >= %lld", (long long)o->i_min);
        else
            buf_printf(b, "%lld..%lld", (long long)o->i_min, (long long)o->i_max);
        break;
    case TYPE_FLOAT: buf_printf(b, "number %g..%g", o->f_min, o->f_max); break;
    case TYPE_BOOL: buf_puts(b, "true|false"); break;
    case TYPE_LIST: buf_puts(b, "[text, ...]"); break;
    case TYPE_MAP: buf_puts(b, "{name: text, ...}"); break;
    }
}

void recipe_help(Buf *out)
{
    int n;
    const Option *o = option_table(&n);
    const char *section = NULL;
    buf_puts(out, "A recipe is a YAML file of the options below, with sections one level deep. On the command line,\n"
                  "section.key=value sets one of them: attune train RECIPE train.lr=1e-4 output=runs/second\n");
    for (int i = 0; i < n; i++) {
        if (!section || !streq(o[i].section, section)) {
            section = o[i].section;
            buf_printf(out, *section ? "\n%s:\n" : "\n%s", section);
        }
        const char *indent = *section ? "  " : "";
        buf_printf(out, "%s%s: ", indent, o[i].key);
        put_default(out, &o[i]);
        buf_puts(out, "    # ");
        put_type(out, &o[i]);
        buf_printf(out, "\n%s    %s\n", indent, o[i].help);
    }
}

void recipe_keys(Buf *out)
{
    int n;
    const Option *o = option_table(&n);
    for (int i = 0; i < n; i++) buf_printf(out, "%s\n", o[i].name);
}
