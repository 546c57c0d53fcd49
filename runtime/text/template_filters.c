// template_filters: what stands behind "|". Semantics and names of Jinja2's built-in filters; tojson is transformers' own.
#include "text/template_impl.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>

// ---- arguments ------------------------------------------------------------------------------------------------------
static bool given(const Value *v)
{
    return v->kind != V_ABSENT;
}
static bool flag(const Value *v)
{
    return value_truth(v);
}

static int want_int(Eval *e, const Value *v, int64_t missing, int64_t *out)
{
    *out = missing;
    if (!given(v)) return OK;
    if (v->kind == V_UNDEFINED) return eval_undefined_used(e, v);
    if (!v_is_int(v)) return eval_fail(e, "TypeError: '%s' object cannot be interpreted as an integer", value_type(v));
    *out = v_as_int(v);
    return OK;
}

static int text_or(Eval *e, const Value *v, Str missing, Str *out)
{
    *out = missing;
    return given(v) ? value_str(e, v, out) : OK;
}

// Calls a string method on str(value): most text filters are that.
static int string_method(Eval *e, const char *method, const Value *v, const Args *a, Value *out)
{
    Str s;
    TRY(value_str(e, v, &s));
    Value text = v_str(s);
    return call_bound(e, find_method(&text, (Str){method, (int32_t)strlen(method)}), &text, a, out);
}
static const Args no_args = {0};

// ---- text -----------------------------------------------------------------------------------------------------------
static int f_trim(Eval *e, const Value *v, const Args *a, Value *out)
{
    return string_method(e, "strip", v, a, out);
}
static int f_upper(Eval *e, const Value *v, const Args *a, Value *out)
{
    return string_method(e, "upper", v, a, out);
}
static int f_lower(Eval *e, const Value *v, const Args *a, Value *out)
{
    return string_method(e, "lower", v, a, out);
}
static int f_capitalize(Eval *e, const Value *v, const Args *a, Value *out)
{
    return string_method(e, "capitalize", v, a, out);
}
static int f_center(Eval *e, const Value *v, const Args *a, Value *out)
{
    Value width = given(&a->pos[0]) ? a->pos[0] : v_int(80);
    return string_method(e, "center", v, &(Args){.pos = &width, .n = 1}, out);
}

static int f_string(Eval *e, const Value *v, const Args *a, Value *out)
{
    Str s;
    (void)a;
    TRY(value_str(e, v, &s));
    *out = v_str(s);
    return OK;
}

// Words start behind "-", "(", "{", "[", "<" and white space; each is put in title case.
static int f_title(Eval *e, const Value *v, const Args *a, Value *out)
{
    Str s;
    Buf text = {0};
    bool start = true;
    int32_t rest = 0; // where the part of the word that is lowered begins
    (void)a;
    TRY(value_str(e, v, &s));
    TRY(eval_charge(e, (size_t)s.n));
    for (int32_t at = 0, next = 0; at < s.n; at = next) {
        uint32_t cp = utf8_next(s.s, &next);
        if (start) rest = next;
        if (start)
            str_put_case(&text, s, at, next, CASE_UPPER);
        else
            str_put_case(&text, (Str){s.s + rest, s.n - rest}, at - rest, next - rest, CASE_LOWER);
        start = is_python_space(cp) || cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<';
    }
    return take_buf(e, &text, out);
}

static int f_replace(Eval *e, const Value *v, const Args *a, Value *out)
{
    Str s, from, to;
    int64_t count;
    TRY(value_str(e, v, &s));
    TRY(value_str(e, &a->pos[0], &from));
    TRY(value_str(e, &a->pos[1], &to));
    TRY(want_int(e, a->pos[2].kind == V_NONE ? &(Value){0} : &a->pos[2], -1, &count));
    return str_replace(e, s, from, to, count, out);
}

static int f_escape(Eval *e, const Value *v, const Args *a, Value *out)
{
    static const struct {
        char c;
        const char *text;
    } rows[] = {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'\'', "&#39;"}, {'"', "&#34;"}};
    Str s;
    Buf text = {0};
    (void)a;
    TRY(value_str(e, v, &s));
    TRY(eval_charge(e, (size_t)s.n));
    for (int32_t i = 0; i < s.n; i++) {
        size_t r = 0;
        while (r < COUNT_OF(rows) && rows[r].c != s.s[i]) r++;
        if (r < COUNT_OF(rows))
            buf_puts(&text, rows[r].text);
        else
            buf_put(&text, &s.s[i], 1);
    }
    return take_buf(e, &text, out);
}

static int f_format(Eval *e, const Value *v, const Args *a, Value *out)
{
    Str s;
    TRY(value_str(e, v, &s));
    Value args = v_items(V_TUPLE, a->pos, a->n);
    if (a->n && a->n_key) return eval_fail(e, "format takes positional or keyword arguments, not both");
    if (a->n_key) {
        Dict *d = new_dict(e, a->n_key);
        for (int i = 0; i < a->n_key; i++)
            TRY(dict_put(e, d, &(Value){.kind = V_STRING, .n = a->key[i].n, .s = a->key[i].s}, &a->value[i]));
        args = (Value){.kind = V_DICT, .dict = d};
    }
    return format_percent(e, s, &args, out);
}

// indent(width=4, first=false, blank=false); width may be the text to put in
static int f_indent(Eval *e, const Value *v, const Args *a, Value *out)
{
    Str s, pad;
    int64_t width = 4;
    const Value *lines;
    int n;
    if (v->kind == V_UNDEFINED) return eval_undefined_used(e, v);
    if (v->kind != V_STRING) return eval_fail(e, "TypeError: indent needs a string, not %s", value_type(v));
    s = v_text(v);
    if (a->pos[0].kind == V_STRING) {
        pad = v_text(&a->pos[0]);
    } else {
        TRY(want_int(e, &a->pos[0], 4, &width));
        width = MAX(width, 0);
        TRY(eval_charge(e, (size_t)MIN(width, INT32_MAX)));
        char *blanks = pool_alloc(&e->pool, (size_t)width + 1);
        memset(blanks, ' ', (size_t)width);
        pad = (Str){blanks, (int32_t)width};
    }
    TRY(eval_charge(e, (size_t)s.n));
    char *ended = pool_alloc(&e->pool, (size_t)s.n + 1); // one more newline, as Jinja adds: a last empty line counts
    memcpy(ended, s.s, (size_t)s.n);
    ended[s.n] = '\n';
    TRY(str_lines(e, (Str){ended, s.n + 1}, &lines, &n));
    TRY(eval_charge(e, (size_t)s.n + (size_t)n * ((size_t)pad.n + 1)));
    Buf text = {0};
    for (int i = 0; i < n; i++) {
        bool padded = i == 0 ? flag(&a->pos[1]) : flag(&a->pos[2]) || lines[i].n > 0;
        if (i) buf_puts(&text, "\n");
        if (padded) buf_put(&text, pad.s, (size_t)pad.n);
        buf_put(&text, lines[i].s, (size_t)lines[i].n);
    }
    return take_buf(e, &text, out);
}

static int f_wordcount(Eval *e, const Value *v, const Args *a, Value *out) // runs of letters, digits and underscores
{
    Str s;
    int64_t words = 0;
    bool inside = false;
    (void)a;
    TRY(value_str(e, v, &s));
    TRY(eval_charge(e, (size_t)s.n));
    for (int32_t i = 0; i < s.n;) {
        uint32_t cp = utf8_next(s.s, &i);
        bool word = cp == '_' || is_alphabetic(cp) || is_numeric(cp);
        words += word && !inside;
        inside = word;
    }
    *out = v_int(words);
    return OK;
}

static int json_indent(Eval *e, const Value *v, JsonStyle *style)
{
    style->indent = NULL;
    if (!given(v) || v->kind == V_NONE) return OK;
    if (v->kind == V_STRING) {
        style->indent = new_string(e, v->s, (size_t)v->n).s;
    } else {
        int64_t width;
        TRY(want_int(e, v, 0, &width));
        width = MAX(width, 0);
        if (width > 64) return eval_fail(e, "tojson indents by at most 64");
        char *blanks = pool_alloc(&e->pool, (size_t)width + 1);
        memset(blanks, ' ', (size_t)width);
        style->indent = blanks;
    }
    style->item_separator = STR(",");
    return OK;
}

// tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)
static int f_tojson(Eval *e, const Value *v, const Args *a, Value *out)
{
    JsonStyle style = {.ascii = flag(&a->pos[0]),
                       .sort_keys = flag(&a->pos[3]),
                       .item_separator = STR(", "),
                       .key_separator = STR(": ")};
    TRY(json_indent(e, &a->pos[1], &style));
    const Value *s = &a->pos[2];
    if (given(s) && s->kind != V_NONE) {
        if ((s->kind != V_TUPLE && s->kind != V_LIST) || s->n != 2 || s->items[0].kind != V_STRING ||
            s->items[1].kind != V_STRING)
            return eval_fail(e, "tojson needs separators as a pair of strings");
        style.item_separator = v_text(&s->items[0]);
        style.key_separator = v_text(&s->items[1]);
    }
    Buf text = {0};
    int status = put_json(e, v, &style, 0, &text);
    if (status == OK) return take_buf(e, &text, out);
    buf_free(&text);
    return status;
}

// ---- numbers --------------------------------------------------------------------------------------------------------
// float(text) as Python reads it
static bool read_float(Str s, double *out)
{
    char text[128], *end;
    s = str_strip(s, NULL, true, true);
    int n = 0;
    for (int32_t i = 0; i < s.n && n < (int)sizeof text - 1; i++)
        if (s.s[i] != '_') text[n++] = s.s[i];
    text[n] = 0;
    if (n == 0 || n == (int)sizeof text - 1 || strpbrk(text, "xXpP()")) return false;
    *out = strtod(text, &end);
    return *end == 0;
}

static bool read_int(Str s, int base, int64_t *out)
{
    char text[80], *end;
    s = str_strip(s, NULL, true, true);
    int n = 0;
    for (int32_t i = 0; i < s.n && n < (int)sizeof text - 1; i++)
        if (s.s[i] != '_') text[n++] = s.s[i];
    text[n] = 0;
    if (n == 0 || n == (int)sizeof text - 1) return false;
    errno = 0;
    *out = strtoll(text, &end, base);
    return *end == 0 && errno == 0;
}

static int f_int(Eval *e, const Value *v, const Args *a, Value *out)
{
    int64_t base, i;
    double f;
    Value missing = given(&a->pos[0]) ? a->pos[0] : v_int(0);
    TRY(want_int(e, &a->pos[1], 10, &base));
    if (v->kind == V_UNDEFINED) return eval_undefined_used(e, v);
    if (v_is_int(v)) {
        *out = v_int(v_as_int(v));
        return OK;
    }
    if (v->kind == V_STRING && base >= 2 && base <= 36 && read_int(v_text(v), (int)base, &i)) {
        *out = v_int(i);
        return OK;
    }
    bool number = v->kind == V_FLOAT || (v->kind == V_STRING && read_float(v_text(v), &f));
    if (v->kind == V_FLOAT) f = v->f;
    *out = missing;
    if (!number || isnan(f) || (isinf(f) && v->kind == V_STRING)) return OK;
    if (!(f > -9.2e18 && f < 9.2e18)) return eval_fail(e, "an integer exceeds 64 bits");
    *out = v_int((int64_t)f);
    return OK;
}

static int f_float(Eval *e, const Value *v, const Args *a, Value *out)
{
    double f;
    if (v->kind == V_UNDEFINED) return eval_undefined_used(e, v);
    if (v_is_number(v))
        *out = v_float(v_as_float(v));
    else if (v->kind == V_STRING && read_float(v_text(v), &f))
        *out = v_float(f);
    else
        *out = given(&a->pos[0]) ? a->pos[0] : v_float(0);
    return OK;
}

static int f_abs(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)a;
    if (v->kind == V_UNDEFINED) return eval_undefined_used(e, v);
    if (!v_is_number(v)) return eval_fail(e, "TypeError: bad operand type for abs(): '%s'", value_type(v));
    if (v->kind == V_FLOAT) {
        *out = v_float(fabs(v->f));
        return OK;
    }
    *out = v_int(v_as_int(v));
    return out->i < 0 ? op_negate(e, v, out) : OK;
}

static int f_round(Eval *e, const Value *v, const Args *a, Value *out)
{
    int64_t digits;
    Str method;
    TRY(want_int(e, &a->pos[0], 0, &digits));
    TRY(text_or(e, &a->pos[1], STR("common"), &method));
    if (v->kind == V_UNDEFINED) return eval_undefined_used(e, v);
    if (!v_is_number(v) || digits < -300 || digits > 300)
        return eval_fail(e, "TypeError: round needs a number and few digits");
    double f = v_as_float(v), scale = pow(10, (double)digits);
    if (str_is(method, "ceil") || str_is(method, "floor")) {
        *out = v_float((str_is(method, "ceil") ? ceil(f * scale) : floor(f * scale)) / scale);
        return OK;
    }
    if (!str_is(method, "common")) return eval_fail(e, "round's method must be common, ceil or floor");
    if (v_is_int(v) && digits >= 0) {
        *out = v_int(v_as_int(v));
        return OK;
    }
    char text[700]; // decimal rounding of the exact value, ties to even, as Python's round
    if (digits >= 0)
        snprintf(text, sizeof text, "%.*f", (int)digits, f);
    else
        snprintf(text, sizeof text, "%.17g", nearbyint(f / pow(10, (double)-digits)) * pow(10, (double)-digits));
    f = strtod(text, NULL);
    *out = v_is_int(v) ? v_int((int64_t)f) : v_float(f);
    return OK;
}

// ---- choosing -------------------------------------------------------------------------------------------------------
static int f_default(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)e;
    bool use = v->kind == V_UNDEFINED || (flag(&a->pos[1]) && !value_truth(v));
    *out = !use ? *v : given(&a->pos[0]) ? a->pos[0] : v_str((Str){"", 0});
    return OK;
}

static int f_length(Eval *e, const Value *v, const Args *a, Value *out)
{
    int64_t n;
    (void)a;
    TRY(value_length(e, v, &n));
    *out = v_int(n);
    return OK;
}

static int f_first(Eval *e, const Value *v, const Args *a, Value *out)
{
    const Value *items;
    int n;
    (void)a;
    if (v->kind == V_ITERATOR) { // takes one and leaves the rest
        Iterator *it = v->iterator;
        *out = it->at < it->n ? it->items[it->at++] : v_undefined(STR("first item of an empty sequence"), 0);
        return OK;
    }
    TRY(value_iterate(e, v, &items, &n));
    *out = n ? items[0] : v_undefined(STR("first item of an empty sequence"), 0);
    return OK;
}

static int f_last(Eval *e, const Value *v, const Args *a, Value *out)
{
    const Value *items;
    int n;
    (void)a;
    if (v->kind == V_ITERATOR) return eval_fail(e, "TypeError: 'generator' object is not reversible; write |list|last");
    TRY(value_iterate(e, v, &items, &n));
    *out = n ? items[n - 1] : v_undefined(STR("last item of an empty sequence"), 0);
    return OK;
}

static int f_attr(Eval *e, const Value *v, const Args *a, Value *out)
{
    Str name;
    TRY(value_str(e, &a->pos[0], &name));
    if (v->kind == V_DICT && !find_method(v, name)) { // unlike v.name, never an element
        *out = v_undefined(name, V_DICT);
        return OK;
    }
    return op_attr(e, v, name, out);
}

// ---- sequences ------------------------------------------------------------------------------------------------------
static int f_list(Eval *e, const Value *v, const Args *a, Value *out)
{
    const Value *items = NULL;
    int n;
    (void)a;
    TRY(value_iterate(e, v, &items, &n));
    *out = v_items(V_LIST, items, n);
    return OK;
}

static int f_items(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)a;
    if (v->kind == V_UNDEFINED) {
        *out = new_iterator(e, NULL, 0);
        return OK;
    }
    if (v->kind != V_DICT) return eval_fail(e, "TypeError: Can only get item pairs from a mapping.");
    Value view;
    TRY(find_method(v, STR("items"))->fn(e, v, &no_args, &view));
    *out = new_iterator(e, view.items, view.n);
    return OK;
}

static int f_join(Eval *e, const Value *v, const Args *a, Value *out)
{
    const Value *items;
    int n, status = OK;
    Str glue;
    Buf text = {0};
    TRY(text_or(e, &a->pos[0], (Str){"", 0}, &glue));
    TRY(value_iterate(e, v, &items, &n));
    for (int i = 0; i < n; i++) {
        Value item = items[i];
        if (given(&a->pos[1]) && a->pos[1].kind != V_NONE) TRY_DONE(op_attr_path(e, &items[i], &a->pos[1], &item));
        if (i) buf_put(&text, glue.s, (size_t)glue.n);
        TRY_DONE(value_put_str(e, &item, &text));
        TRY_DONE(eval_charge(e, (size_t)glue.n + text.len / 64));
    }
    return take_buf(e, &text, out);
done:
    buf_free(&text);
    return status;
}

static int f_reverse(Eval *e, const Value *v, const Args *a, Value *out)
{
    const Value *items;
    int n;
    (void)a;
    if (v->kind == V_STRING) {
        Value step[3] = {{0}, {0}, v_int(-1)};
        return op_slice(e, v, step, out);
    }
    TRY(value_iterate(e, v, &items, &n));
    Value *copy = new_items(e, n);
    for (int i = 0; i < n; i++) copy[i] = items[n - 1 - i];
    *out = new_iterator(e, copy, n);
    return OK;
}

// ---- order ----------------------------------------------------------------------------------------------------------
typedef struct Keyed {
    Value key, value;
} Keyed;

static int fold_case(Eval *e, Value *v)
{
    return v->kind == V_STRING
               ? string_method(e, "lower", &(Value){.kind = V_STRING, .n = v->n, .s = v->s}, &no_args, v)
               : OK;
}

// "a,b" sorts by the attributes in turn: the key is a tuple.
static int sort_key(Eval *e, const Value *item, const Value *path, bool fold, Value *key)
{
    *key = *item;
    bool by_path = given(path) && path->kind != V_NONE;
    if (!by_path) return fold ? fold_case(e, key) : OK;
    int parts = 1, i = 0;
    for (int32_t k = 0; path->kind == V_STRING && k < path->n; k++) parts += path->s[k] == ',';
    if (parts > 16) return eval_fail(e, "sort takes at most 16 attributes");
    Value *keys = new_items(e, parts);
    Str rest = path->kind == V_STRING ? v_text(path) : (Str){"", 0};
    for (; i < parts; i++) {
        const char *comma = parts > 1 && rest.n > 0 ? memchr(rest.s, ',', (size_t)rest.n) : NULL;
        Str part = {rest.s, comma ? (int32_t)(comma - rest.s) : rest.n};
        Value one = path->kind == V_STRING ? v_str(part) : *path;
        TRY(op_attr_path(e, item, &one, &keys[i]));
        if (fold) TRY(fold_case(e, &keys[i]));
        rest = (Str){part.s + part.n + 1, rest.n - part.n - 1};
    }
    *key = v_items(V_LIST, keys, parts);
    return OK;
}

// Stable merge sort; reverse keeps equal elements in order, as Python does.
static int merge_sort(Eval *e, Keyed *v, Keyed *tmp, int n, bool reverse)
{
    if (n < 2) return OK;
    int half = n / 2, i = 0, k = half, at = 0;
    TRY(merge_sort(e, v, tmp, half, reverse));
    TRY(merge_sort(e, v + half, tmp, n - half, reverse));
    while (i < half && k < n) {
        int order;
        TRY(value_compare(e, &v[k].key, &v[i].key, "<", &order));
        bool right = reverse ? order > 0 : order < 0;
        tmp[at++] = right ? v[k++] : v[i++];
    }
    while (i < half) tmp[at++] = v[i++];
    memcpy(v, tmp, (size_t)at * sizeof *v);
    return eval_charge(e, (size_t)n * 32);
}

static int sorted(Eval *e, Keyed *v, int n, bool reverse, Value *out)
{
    Keyed *tmp = pool_alloc(&e->pool, (size_t)n * sizeof *tmp);
    TRY(merge_sort(e, v, tmp, n, reverse));
    Value *items = new_items(e, n);
    for (int i = 0; i < n; i++) items[i] = v[i].value;
    *out = v_items(V_LIST, items, n);
    return OK;
}

// sort(reverse=false, case_sensitive=false, attribute=none)
static int f_sort(Eval *e, const Value *v, const Args *a, Value *out)
{
    const Value *items;
    int n;
    TRY(value_iterate(e, v, &items, &n));
    TRY(eval_charge(e, (size_t)n * 4 * sizeof(Keyed)));
    Keyed *keyed = pool_alloc(&e->pool, (size_t)n * sizeof *keyed);
    for (int i = 0; i < n; i++) {
        keyed[i].value = items[i];
        TRY(sort_key(e, &items[i], &a->pos[2], !flag(&a->pos[1]), &keyed[i].key));
        if (given(&a->pos[2]) && a->pos[2].kind != V_NONE) continue;
        Value *one = new_items(e, 1); // Jinja compares lists of one, which never orders equal elements
        *one = keyed[i].key;
        keyed[i].key = v_items(V_LIST, one, 1);
    }
    return sorted(e, keyed, n, flag(&a->pos[0]), out);
}

// dictsort(case_sensitive=false, by='key', reverse=false)
static int f_dictsort(Eval *e, const Value *v, const Args *a, Value *out)
{
    Value view, none = {0};
    Str by;
    TRY(text_or(e, &a->pos[1], STR("key"), &by));
    if (v->kind == V_UNDEFINED) return eval_undefined_used(e, v);
    if (v->kind != V_DICT) return eval_fail(e, "TypeError: dictsort needs a mapping, not %s", value_type(v));
    if (!str_is(by, "key") && !str_is(by, "value"))
        return eval_fail(e, "You can only sort by either \"key\" or \"value\"");
    TRY(find_method(v, STR("items"))->fn(e, v, &no_args, &view));
    Keyed *keyed = pool_alloc(&e->pool, (size_t)view.n * sizeof *keyed);
    for (int i = 0; i < view.n; i++) {
        keyed[i].value = view.items[i];
        TRY(sort_key(e, &view.items[i].items[str_is(by, "value")], &none, !flag(&a->pos[0]), &keyed[i].key));
    }
    return sorted(e, keyed, view.n, flag(&a->pos[2]), out);
}

// unique(case_sensitive=false, attribute=none)
static int f_unique(Eval *e, const Value *v, const Args *a, Value *out)
{
    const Value *items;
    int n, kept = 0;
    TRY(value_iterate(e, v, &items, &n));
    Value *copy = new_items(e, n);
    Dict *seen = new_dict(e, n);
    for (int i = 0; i < n; i++) {
        Value key;
        const Value *before;
        TRY(sort_key(e, &items[i], &a->pos[1], !flag(&a->pos[0]), &key));
        if (key.kind == V_LIST && given(&a->pos[1])) key = key.items[0];
        TRY(dict_find(e, seen, &key, &before));
        if (before) continue;
        TRY(dict_put(e, seen, &key, &key));
        copy[kept++] = items[i];
    }
    *out = new_iterator(e, copy, kept);
    return OK;
}

static int extreme(Eval *e, const Value *v, const Args *a, bool max, Value *out)
{
    const Value *items;
    Value best = {0}, key;
    int n;
    TRY(value_iterate(e, v, &items, &n));
    *out = v_undefined(STR("item of an empty sequence"), 0);
    for (int i = 0; i < n; i++) {
        int order = 0;
        TRY(sort_key(e, &items[i], &a->pos[1], !flag(&a->pos[0]), &key));
        if (i) TRY(value_compare(e, &key, &best, max ? ">" : "<", &order));
        if (i && (max ? order <= 0 : order >= 0)) continue;
        best = key;
        *out = items[i];
    }
    return OK;
}
static int f_min(Eval *e, const Value *v, const Args *a, Value *out)
{
    return extreme(e, v, a, false, out);
}
static int f_max(Eval *e, const Value *v, const Args *a, Value *out)
{
    return extreme(e, v, a, true, out);
}

// sum(attribute=none, start=0)
static int f_sum(Eval *e, const Value *v, const Args *a, Value *out)
{
    const Value *items;
    int n;
    TRY(value_iterate(e, v, &items, &n));
    *out = given(&a->pos[1]) ? a->pos[1] : v_int(0);
    for (int i = 0; i < n; i++) {
        Value item = items[i], total = *out;
        if (given(&a->pos[0]) && a->pos[0].kind != V_NONE) TRY(op_attr_path(e, &items[i], &a->pos[0], &item));
        TRY(op_binary(e, OP_ADD, &total, &item, out));
    }
    return OK;
}

// ---- map and select -------------------------------------------------------------------------------------------------
static int map_attribute(Eval *e, const Value *items, int n, const Args *a, Value *mapped)
{
    const Value *path = NULL, *missing = NULL;
    for (int k = 0; k < a->n_key; k++) {
        if (str_is(a->key[k], "attribute"))
            path = &a->value[k];
        else if (str_is(a->key[k], "default"))
            missing = &a->value[k];
        else
            return eval_fail(e, "Unexpected keyword argument '%.*s'", (int)MIN(a->key[k].n, 100), a->key[k].s);
    }
    if (!path) return eval_fail(e, "map requires a filter argument");
    for (int i = 0; i < n; i++) {
        TRY(op_attr_path(e, &items[i], path, &mapped[i]));
        if (missing && mapped[i].kind == V_UNDEFINED) mapped[i] = *missing;
    }
    return OK;
}

// What map and select walk: nothing for any value that counts as false, even one that cannot be walked.
static int iterate_if_true(Eval *e, const Value *v, const Value **items, int *n)
{
    *n = 0;
    return value_truth(v) ? value_iterate(e, v, items, n) : OK;
}

static int f_map(Eval *e, const Value *v, const Args *a, Value *out)
{
    const Value *items = NULL;
    int n;
    TRY(iterate_if_true(e, v, &items, &n));
    Value *mapped = new_items(e, n);
    if (a->n == 0) {
        TRY(map_attribute(e, items, n, a, mapped));
    } else {
        const Callable *filter = a->pos[0].kind == V_STRING ? find_filter(v_text(&a->pos[0])) : NULL;
        Args rest = {a->pos + 1, a->n - 1, a->key, a->value, a->n_key};
        if (!filter) return eval_fail(e, "no such filter in map");
        for (int i = 0; i < n; i++) {
            e->steps++;
            TRY(call_bound(e, filter, &items[i], &rest, &mapped[i]));
        }
    }
    *out = new_iterator(e, mapped, n);
    return OK;
}

// select and reject test the items, selectattr and rejectattr an attribute of them.
static int choose(Eval *e, const Value *v, const Args *a, bool wanted, bool by_attribute, Value *out)
{
    const Value *items = NULL;
    int n, kept = 0;
    if (by_attribute && a->n == 0) return eval_fail(e, "Missing parameter for attribute name");
    Args rest = {a->pos + by_attribute, a->n - by_attribute, a->key, a->value, a->n_key};
    const Callable *test = NULL;
    if (rest.n) {
        test = rest.pos[0].kind == V_STRING ? find_test(v_text(&rest.pos[0])) : NULL;
        if (!test) return eval_fail(e, "no such test in a selection");
        rest.pos++;
        rest.n--;
    }
    TRY(iterate_if_true(e, v, &items, &n));
    Value *copy = new_items(e, n);
    for (int i = 0; i < n; i++) {
        Value item = items[i], yes;
        e->steps++;
        if (by_attribute) TRY(op_attr_path(e, &items[i], &a->pos[0], &item));
        if (test) TRY(call_bound(e, test, &item, &rest, &yes));
        if ((test ? value_truth(&yes) : value_truth(&item)) == wanted) copy[kept++] = items[i];
    }
    *out = new_iterator(e, copy, kept);
    return OK;
}
static int f_select(Eval *e, const Value *v, const Args *a, Value *out)
{
    return choose(e, v, a, true, false, out);
}
static int f_reject(Eval *e, const Value *v, const Args *a, Value *out)
{
    return choose(e, v, a, false, false, out);
}
static int f_selectattr(Eval *e, const Value *v, const Args *a, Value *out)
{
    return choose(e, v, a, true, true, out);
}
static int f_rejectattr(Eval *e, const Value *v, const Args *a, Value *out)
{
    return choose(e, v, a, false, true, out);
}

// batch(linecount, fill_with=none)
static int f_batch(Eval *e, const Value *v, const Args *a, Value *out)
{
    const Value *items;
    int n;
    int64_t size;
    TRY(want_int(e, &a->pos[0], 1, &size));
    TRY(value_iterate(e, v, &items, &n));
    if (size < 1 || size > RANGE_MAX) return eval_fail(e, "batch needs a size from 1 to %d", RANGE_MAX);
    int rows = (int)((n + size - 1) / size);
    TRY(eval_charge(e, (size_t)(rows + size) * sizeof(Value)));
    Value *row = new_items(e, rows);
    for (int i = 0; i < rows; i++) row[i] = v_items(V_LIST, items + i * size, (int)MIN(size, n - i * size));
    bool fill = given(&a->pos[1]) && a->pos[1].kind != V_NONE && rows && row[rows - 1].n < size;
    if (fill) {
        Value *last = new_items(e, (int)size);
        for (int i = 0; i < size; i++) last[i] = i < row[rows - 1].n ? row[rows - 1].items[i] : a->pos[1];
        row[rows - 1] = v_items(V_LIST, last, (int)size);
    }
    *out = new_iterator(e, row, rows);
    return OK;
}

const Callable *find_filter(Str name)
{
    static const Callable filters[] = {
        {"abs", f_abs, ""},
        {"attr", f_attr, "!name"},
        {"batch", f_batch, "!linecount,fill_with"},
        {"capitalize", f_capitalize, ""},
        {"center", f_center, "width"},
        {"count", f_length, ""},
        {"d", f_default, "default_value,boolean"},
        {"default", f_default, "default_value,boolean"},
        {"dictsort", f_dictsort, "case_sensitive,by,reverse"},
        {"e", f_escape, ""},
        {"escape", f_escape, ""},
        {"first", f_first, ""},
        {"float", f_float, "default"},
        {"forceescape", f_escape, ""},
        {"format", f_format, NULL},
        {"indent", f_indent, "width,first,blank"},
        {"int", f_int, "default,base"},
        {"items", f_items, ""},
        {"join", f_join, "d,attribute"},
        {"last", f_last, ""},
        {"length", f_length, ""},
        {"list", f_list, ""},
        {"lower", f_lower, ""},
        {"map", f_map, NULL},
        {"max", f_max, "case_sensitive,attribute"},
        {"min", f_min, "case_sensitive,attribute"},
        {"reject", f_reject, NULL},
        {"rejectattr", f_rejectattr, NULL},
        {"replace", f_replace, "!old,!new,count"},
        {"reverse", f_reverse, ""},
        {"round", f_round, "precision,method"},
        {"safe", f_string, ""},
        {"select", f_select, NULL},
        {"selectattr", f_selectattr, NULL},
        {"sort", f_sort, "reverse,case_sensitive,attribute"},
        {"string", f_string, ""},
        {"sum", f_sum, "attribute,start"},
        {"title", f_title, ""},
        {"tojson", f_tojson, "ensure_ascii,indent,separators,sort_keys"},
        {"trim", f_trim, "chars"},
        {"unique", f_unique, "case_sensitive,attribute"},
        {"upper", f_upper, ""},
        {"wordcount", f_wordcount, ""},
    };
    for (size_t i = 0; i < COUNT_OF(filters); i++)
        if (str_is(name, filters[i].name)) return &filters[i];
    return NULL;
}
