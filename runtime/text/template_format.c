// template_format: values as JSON (Python's json.dumps), printf-style formatting and str.format.
#include "text/template_impl.h"
#include <stdlib.h>

// ---- JSON -----------------------------------------------------------------------------------------------------------
static void put_json_string(Buf *out, Str s, bool ascii)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    buf_puts(out, "\"");
    for (int32_t at = 0, next = 0; at < s.n; at = next) {
        uint32_t cp = utf8_next(s.s, &next);
        const char *escape = cp && cp < 0x80 ? strchr(from, (int)cp) : NULL;
        if (escape)
            buf_printf(out, "\\%c", to[escape - from]);
        else if (cp < 0x20 || (ascii && cp >= 0x7F && cp < 0x10000))
            buf_printf(out, "\\u%04x", cp);
        else if (ascii && cp >= 0x10000)
            buf_printf(out, "\\u%04x\\u%04x", 0xD800 + ((cp - 0x10000) >> 10), 0xDC00 + ((cp - 0x10000) & 0x3FF));
        else
            buf_put(out, s.s + at, (size_t)(next - at));
    }
    buf_puts(out, "\"");
}

static void put_json_float(Buf *out, double f)
{
    if (f != f)
        buf_puts(out, "NaN");
    else if (f > 1.7976931348623157e308 || f < -1.7976931348623157e308)
        buf_puts(out, f > 0 ? "Infinity" : "-Infinity");
    else
        put_float(out, f);
}

static void put_break(Buf *out, const JsonStyle *style, int depth)
{
    if (!style->indent) return;
    buf_puts(out, "\n");
    for (int i = 0; i < depth; i++) buf_puts(out, style->indent);
}

static void put_separator(Buf *out, Str s)
{
    buf_put(out, s.s, (size_t)s.n);
}

static int put_json_items(Eval *e, const Value *v, const JsonStyle *style, int depth, Buf *out)
{
    buf_puts(out, "[");
    for (int i = 0; i < v->n; i++) {
        if (i) put_separator(out, style->item_separator);
        put_break(out, style, depth + 1);
        TRY(put_json(e, &v->items[i], style, depth + 1, out));
    }
    if (v->n) put_break(out, style, depth);
    buf_puts(out, "]");
    return OK;
}

static int put_json_key(Eval *e, const Value *key, const JsonStyle *style, Buf *out)
{
    Buf text = {0};
    if (key->kind == V_STRING) {
        put_json_string(out, v_text(key), style->ascii);
        return OK;
    }
    if (!v_is_number(key) && key->kind != V_NONE)
        return eval_fail(e, "TypeError: keys must be str, int, float, bool or None, not %s", value_type(key));
    TRY(put_json(e, key, style, 0, &text));
    put_json_string(out, (Str){text.data, (int32_t)text.len}, style->ascii);
    buf_free(&text);
    return OK;
}

static int sorted_keys(Eval *e, const Dict *d, int **out)
{
    int *order = pool_alloc(&e->pool, (size_t)d->n * sizeof *order + 1);
    TRY(eval_charge(e, (size_t)d->n * (size_t)d->n / 4));
    for (int i = 0; i < d->n; i++) {
        int at = i;
        for (; at > 0; at--) {
            int c;
            TRY(value_compare(e, &d->key[order[at - 1]], &d->key[i], "<", &c));
            if (c <= 0) break;
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
    *out = order;
    return OK;
}

static int put_json_dict(Eval *e, const Dict *d, const JsonStyle *style, int depth, Buf *out)
{
    int *order = NULL;
    if (style->sort_keys) TRY(sorted_keys(e, d, &order));
    buf_puts(out, "{");
    for (int k = 0; k < d->n; k++) {
        int i = order ? order[k] : k;
        if (k) put_separator(out, style->item_separator);
        put_break(out, style, depth + 1);
        TRY(put_json_key(e, &d->key[i], style, out));
        put_separator(out, style->key_separator);
        TRY(put_json(e, &d->value[i], style, depth + 1, out));
    }
    if (d->n) put_break(out, style, depth);
    buf_puts(out, "}");
    return OK;
}

int put_json(Eval *e, const Value *v, const JsonStyle *style, int depth, Buf *out)
{
    e->steps++;
    TRY(eval_charge(e, v->kind == V_STRING ? (size_t)v->n : 0));
    if (depth > NEST_MAX) return eval_fail(e, "value is nested deeper than %d levels", NEST_MAX);
    if (out->len > OUTPUT_BYTES_MAX) return eval_fail(e, "JSON of more than %d MiB", OUTPUT_BYTES_MAX >> 20);
    switch ((Kind)v->kind) {
    case V_NONE: buf_puts(out, "null"); return OK;
    case V_BOOL: buf_puts(out, v->b ? "true" : "false"); return OK;
    case V_INT: buf_printf(out, "%lld", (long long)v->i); return OK;
    case V_FLOAT: put_json_float(out, v->f); return OK;
    case V_STRING: put_json_string(out, v_text(v), style->ascii); return OK;
    case V_LIST:
    case V_TUPLE: return put_json_items(e, v, style, depth, out);
    case V_DICT: return put_json_dict(e, v->dict, style, depth, out);
    default: return eval_fail(e, "TypeError: Object of type %s is not JSON serializable", value_type(v));
    }
}

// ---- one conversion, shared by % and format -------------------------------------------------------------------------
typedef struct Spec { // [[fill]align][sign][0][width][.precision][type]
    uint32_t fill;
    char align, sign, type;
    bool comma, alternate;
    int width, precision; // precision -1: not given
} Spec;

static int put_padded(Eval *e, const Spec *s, Str text, Buf *out)
{
    int64_t missing = MAX((int64_t)s->width - utf8_count(text.s, text.n), 0);
    char fill[4];
    int fill_bytes = utf8_encode(s->fill, fill);
    int64_t left = s->align == '>' ? missing : s->align == '^' ? missing / 2 : 0;
    TRY(eval_charge(e, (size_t)missing * 4));
    bool inside = s->align == '=' && text.n && (text.s[0] == '-' || text.s[0] == '+'); // zeros go behind the sign
    if (inside) buf_put(out, text.s, 1);
    if (s->align == '=') left = missing;
    for (int64_t i = 0; i < left; i++) buf_put(out, fill, (size_t)fill_bytes);
    buf_put(out, text.s + inside, (size_t)(text.n - inside));
    for (int64_t i = left; i < missing; i++) buf_put(out, fill, (size_t)fill_bytes);
    return OK;
}

static void group_thousands(Buf *text)
{
    size_t begin = text->len && (text->data[0] == '-' || text->data[0] == '+'), end = begin;
    while (end < text->len && text->data[end] >= '0' && text->data[end] <= '9') end++;
    Buf grouped = {0};
    buf_put(&grouped, text->data, begin);
    for (size_t i = begin; i < end; i++) {
        if (i > begin && (end - i) % 3 == 0) buf_puts(&grouped, ",");
        buf_put(&grouped, &text->data[i], 1);
    }
    buf_put(&grouped, text->data + end, text->len - end);
    buf_free(text);
    *text = grouped;
}

static int put_number(Eval *e, const Spec *s, const Value *v, Buf *text)
{
    char type = s->type;
    const char *plus = s->sign == '+' ? "+" : s->sign == ' ' ? " " : "";
    if (strchr("dixXob", type)) {
        if (!v_is_int(v))
            return eval_fail(e, "TypeError: %%%c format: an integer is required, not %s", type, value_type(v));
        int64_t i = v_as_int(v);
        uint64_t u = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
        buf_puts(text, i < 0 ? "-" : plus);
        if (s->alternate && strchr("xXo", type)) buf_printf(text, "0%c", type);
        if (type == 'b') {
            int bit = 63;
            while (bit > 0 && !(u >> bit & 1)) bit--;
            for (; bit >= 0; bit--) buf_puts(text, u >> bit & 1 ? "1" : "0");
        } else {
            const char *format = type == 'x' ? "%llx" : type == 'X' ? "%llX" : type == 'o' ? "%llo" : "%llu";
            char digits[32];
            snprintf(digits, sizeof digits, format, (unsigned long long)u);
            buf_puts(text, digits);
        }
    } else {
        if (!v_is_number(v)) return eval_fail(e, "TypeError: must be real number, not %s", value_type(v));
        if (s->precision > 100) return eval_fail(e, "precision is too large");
        char format[16], digits[512];
        double f = v_as_float(v) * (type == '%' ? 100 : 1);
        snprintf(format, sizeof format, "%%.*%c", type == '%' ? 'f' : type);
        snprintf(digits, sizeof digits, format, s->precision < 0 ? 6 : s->precision, f);
        if (digits[0] != '-') buf_puts(text, plus);
        buf_puts(text, digits);
        if (type == '%') buf_puts(text, "%");
    }
    if (s->comma) group_thousands(text);
    return OK;
}

static int put_converted(Eval *e, const Spec *spec, const Value *v, Buf *out)
{
    Buf text = {0};
    Spec s = *spec;
    int status = OK;
    if (s.type == 's' || s.type == 'r') {
        TRY_DONE(s.type == 's' ? value_put_str(e, v, &text) : value_put_repr(e, v, &text));
        if (s.precision >= 0) text.len = (size_t)str_offset((Str){text.data, (int32_t)text.len}, s.precision);
    } else if (strchr("dixXobeEfFgG%", s.type) && s.type) {
        TRY_DONE(put_number(e, &s, v, &text));
    } else {
        status = eval_fail(e, "ValueError: unsupported format character '%c'", s.type);
        goto done;
    }
    TRY_DONE(put_padded(e, &s, (Str){text.data ? text.data : "", (int32_t)text.len}, out));
    TRY_DONE(eval_charge(e, out->len));
done:
    buf_free(&text);
    return status;
}

static int take_int(Str f, int32_t *at)
{
    int v = 0;
    while (*at < f.n && f.s[*at] >= '0' && f.s[*at] <= '9' && v < 100000000) v = v * 10 + (f.s[(*at)++] - '0');
    return v;
}

// ---- "%s" % args ----------------------------------------------------------------------------------------------------
typedef struct PercentArgs {
    const Value *single, *items; // a tuple's items, or the one value itself
    int n, used;
    bool mapping_used;
} PercentArgs;

static int percent_arg(Eval *e, Str f, int32_t *at, PercentArgs *p, const Value **v)
{
    if (*at < f.n && f.s[*at] == '(') { // %(name)s
        int32_t begin = ++*at;
        while (*at < f.n && f.s[*at] != ')') ++*at;
        if (*at == f.n) return eval_fail(e, "ValueError: incomplete format key");
        Value key = v_str((Str){f.s + begin, *at - begin});
        ++*at;
        if (p->single->kind != V_DICT) return eval_fail(e, "TypeError: format requires a mapping");
        TRY(dict_find(e, p->single->dict, &key, v));
        p->mapping_used = true;
        return *v ? OK : eval_fail(e, "KeyError: '%.*s'", key.n, key.s);
    }
    *v = NULL;
    return OK;
}

static int percent_one(Eval *e, Str f, int32_t *at, PercentArgs *p, Buf *out)
{
    const Value *v;
    Spec s = {.fill = ' ', .align = '>', .precision = -1};
    TRY(percent_arg(e, f, at, p, &v));
    for (; *at < f.n && strchr("-+ 0#", f.s[*at]); ++*at) {
        char c = f.s[*at];
        if (c == '-') s.align = '<';
        if (c == '+' || (c == ' ' && s.sign != '+')) s.sign = c;
        if (c == '0' && s.align != '<') s.align = '=', s.fill = '0';
        if (c == '#') s.alternate = true;
    }
    s.width = take_int(f, at);
    if (*at < f.n && f.s[*at] == '.') {
        ++*at;
        s.precision = take_int(f, at);
    }
    if (*at == f.n) return eval_fail(e, "ValueError: incomplete format");
    s.type = f.s[(*at)++];
    if (s.type == '%') {
        buf_puts(out, "%");
        return OK;
    }
    if (s.type == 'a' || s.type == 'c') return eval_fail(e, "format character '%c' is not supported", s.type);
    if (s.type == 'u') s.type = 'd';
    if ((s.type == 's' || s.type == 'r') && s.align == '=') s.align = '>', s.fill = ' ';
    if (!v) {
        if (p->used == p->n) return eval_fail(e, "TypeError: not enough arguments for format string");
        v = &p->items[p->used++];
    }
    if (v->kind == V_FLOAT && strchr("di", s.type)) {
        if (!(v->f > -9e18 && v->f < 9e18)) return eval_fail(e, "an integer exceeds 64 bits");
        Value whole = v_int((int64_t)v->f);
        return put_converted(e, &s, &whole, out);
    }
    return put_converted(e, &s, v, out);
}

int format_percent(Eval *e, Str f, const Value *args, Value *out)
{
    PercentArgs p = {.single = args, .items = args, .n = 1};
    if (args->kind == V_TUPLE) p.items = args->items, p.n = args->n;
    Buf text = {0};
    int status = OK;
    for (int32_t at = 0; at < f.n;) {
        const char *percent = memchr(f.s + at, '%', (size_t)(f.n - at));
        int32_t stop = percent ? (int32_t)(percent - f.s) : f.n;
        buf_put(&text, f.s + at, (size_t)(stop - at));
        at = stop + 1;
        if (percent) TRY_DONE(percent_one(e, f, &at, &p, &text));
    }
    if (p.used < p.n && !p.mapping_used && args->kind != V_DICT && args->kind != V_LIST && args->kind != V_UNDEFINED) {
        status = eval_fail(e, "TypeError: not all arguments converted during string formatting");
        goto done;
    }
    return take_buf(e, &text, out);
done:
    buf_free(&text);
    return status;
}

// ---- "{}".format(...) -----------------------------------------------------------------------------------------------
static int parse_spec(Eval *e, Str f, Spec *s)
{
    int32_t at = 0, next = 0;
    uint32_t first = f.n ? utf8_next(f.s, &next) : 0;
    *s = (Spec){.fill = ' ', .precision = -1};
    if (next < f.n && strchr("<>^=", f.s[next])) {
        s->fill = first;
        s->align = f.s[next];
        at = next + 1;
    } else if (f.n && strchr("<>^=", f.s[0])) {
        s->align = f.s[at++];
    }
    if (at < f.n && strchr("+- ", f.s[at])) s->sign = f.s[at++];
    if (at < f.n && f.s[at] == '#') s->alternate = f.s[at++] == '#';
    if (at < f.n && f.s[at] == '0' && !s->align) s->align = '=', s->fill = '0';
    s->width = take_int(f, &at);
    if (at < f.n && f.s[at] == ',') s->comma = f.s[at++] == ',';
    if (at < f.n && f.s[at] == '.') {
        at++;
        s->precision = take_int(f, &at);
    }
    if (at < f.n) s->type = f.s[at++];
    return at == f.n ? OK : eval_fail(e, "ValueError: invalid format specifier '%.*s'", (int)MIN(f.n, 60), f.s);
}

static int put_with_spec(Eval *e, Str spec, char conversion, const Value *v, Buf *out)
{
    Spec s;
    TRY(parse_spec(e, spec, &s));
    bool number = v_is_number(v) && v->kind != V_BOOL && !conversion;
    if (!s.align) s.align = number ? '>' : '<';
    if (!s.type && number && (s.comma || s.sign || s.precision >= 0)) s.type = v->kind == V_INT ? 'd' : 'g';
    if (!s.type) s.type = conversion ? conversion : 's';
    return put_converted(e, &s, v, out);
}

// "name.attr[0]" or "" (the next positional)
static int field_value(Eval *e, Str field, const Args *args, int *next, Value *v)
{
    int32_t at = 0;
    while (at < field.n && field.s[at] != '.' && field.s[at] != '[') at++;
    Str head = {field.s, at};
    int32_t digits = 0;
    int index = take_int(head, &digits);
    if (head.n == 0) index = (*next)++;
    if (digits == head.n) {
        if (index >= args->n) return eval_fail(e, "IndexError: Replacement index %d out of range", index);
        *v = args->pos[index];
    } else {
        int k = 0;
        while (k < args->n_key && !str_eq(args->key[k], head)) k++;
        if (k == args->n_key) return eval_fail(e, "KeyError: '%.*s'", (int)MIN(head.n, 100), head.s);
        *v = args->value[k];
    }
    while (at < field.n) {
        bool bracket = field.s[at] == '[';
        int32_t begin = ++at;
        while (at < field.n && (bracket ? field.s[at] != ']' : field.s[at] != '.' && field.s[at] != '[')) at++;
        Str part = {field.s + begin, at - begin};
        if (bracket) at++;
        digits = 0;
        index = take_int(part, &digits);
        Value from = *v, key = bracket && digits == part.n && part.n ? v_int(index) : v_str(part);
        TRY(bracket ? op_item(e, &from, &key, v) : op_attr(e, &from, part, v));
    }
    return OK;
}

static int put_field(Eval *e, Str body, const Args *args, int *next, Buf *out)
{
    int32_t end = 0;
    char conversion = 0;
    while (end < body.n && body.s[end] != ':' && body.s[end] != '!') end++;
    Str field = {body.s, end};
    if (end < body.n && body.s[end] == '!') {
        conversion = end + 1 < body.n ? body.s[end + 1] : 0;
        if (conversion != 's' && conversion != 'r')
            return eval_fail(e, "ValueError: unknown conversion in a format field");
        end += 2;
    }
    Str spec = {body.s + body.n, 0};
    if (end < body.n) spec = (Str){body.s + end + 1, body.n - end - 1};
    Value v;
    TRY(field_value(e, field, args, next, &v));
    return put_with_spec(e, spec, conversion, &v, out);
}

int format_braces(Eval *e, Str f, const Args *args, Value *out)
{
    Buf text = {0};
    int next = 0, status = OK;
    for (int32_t at = 0; at < f.n; at++) {
        char c = f.s[at];
        if ((c == '{' || c == '}') && at + 1 < f.n && f.s[at + 1] == c) {
            buf_put(&text, &f.s[at++], 1);
        } else if (c == '{') {
            const char *close = memchr(f.s + at, '}', (size_t)(f.n - at));
            Str body = {f.s + at + 1, close ? (int32_t)(close - f.s) - at - 1 : 0};
            if (!close || (body.n && memchr(body.s, '{', (size_t)body.n))) {
                status = eval_fail(e, "ValueError: a '{' of a format string has no end, or fields are nested");
                goto done;
            }
            TRY_DONE(put_field(e, body, args, &next, &text));
            at = (int32_t)(close - f.s);
        } else if (c == '}') {
            status = eval_fail(e, "ValueError: Single '}' encountered in format string");
            goto done;
        } else {
            buf_put(&text, &c, 1);
        }
    }
    return take_buf(e, &text, out);
done:
    buf_free(&text);
    return status;
}
