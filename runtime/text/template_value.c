// template_value: values as Python has them: truth, equality, order, text, iteration; and the memory they live in.
#define _GNU_SOURCE // memmem
#include "text/template_impl.h"
#include <math.h>
#include <stdlib.h>

// ---- pool -----------------------------------------------------------------------------------------------------------
enum { CHUNK_BYTES = 64 << 10 };
struct PoolChunk {
    PoolChunk *next;
    size_t bytes; // keeps the data behind it 16-byte aligned
};

void *pool_alloc(Pool *p, size_t bytes)
{
    bytes = ROUND_UP(MAX(bytes, 1u), 16u);
    if (!p->chunk || bytes > p->size - p->used) {
        size_t size = MAX(bytes, (size_t)CHUNK_BYTES);
        PoolChunk *c = xcalloc(1, sizeof *c + size);
        *c = (PoolChunk){p->chunk, size};
        p->chunk = c;
        p->size = size;
        p->used = 0;
        p->total += size;
    }
    void *at = (char *)(p->chunk + 1) + p->used;
    p->used += bytes;
    return at;
}

void pool_free(Pool *p)
{
    while (p->chunk) {
        PoolChunk *next = p->chunk->next;
        free(p->chunk);
        p->chunk = next;
    }
}

// ---- making values --------------------------------------------------------------------------------------------------
Value *new_items(Eval *e, int n)
{
    return pool_alloc(&e->pool, (size_t)MAX(n, 1) * sizeof(Value));
}

Value new_string(Eval *e, const char *s, size_t n)
{
    char *copy = pool_alloc(&e->pool, n + 1);
    if (n) memcpy(copy, s, n);
    return v_str((Str){copy, (int32_t)n});
}

int take_buf(Eval *e, Buf *b, Value *out)
{
    int status = eval_charge(e, b->len);
    if (status == OK) *out = new_string(e, b->data, b->len);
    buf_free(b);
    return status;
}

const Value no_values[1];

Value new_iterator(Eval *e, const Value *items, int n)
{
    Iterator *it = pool_alloc(&e->pool, sizeof *it);
    *it = (Iterator){n ? items : no_values, n, 0};
    return (Value){.kind = V_ITERATOR, .iterator = it};
}

// ---- dicts ----------------------------------------------------------------------------------------------------------
Dict *new_dict(Eval *e, int cap)
{
    Dict *d = pool_alloc(&e->pool, sizeof *d);
    d->cap = MAX(cap, 4);
    d->key = new_items(e, d->cap);
    d->value = new_items(e, d->cap);
    return d;
}

bool value_hashable(const Value *v)
{
    return v->kind != V_LIST && v->kind != V_DICT && v->kind != V_VIEW && v->kind != V_NAMESPACE;
}

static int dict_index(Eval *e, const Dict *d, const Value *key, int *index)
{
    if (!value_hashable(key)) return eval_fail(e, "TypeError: unhashable type: '%s'", value_type(key));
    TRY(eval_charge(e, (size_t)d->n * 8));
    for (*index = 0; *index < d->n; ++*index) {
        bool equal;
        const Value *k = &d->key[*index];
        if (k->kind == V_STRING && key->kind == V_STRING) {
            if (str_eq(v_text(k), v_text(key))) return OK;
            continue;
        }
        TRY(value_equal(e, k, key, &equal));
        if (equal) return OK;
    }
    *index = -1;
    return OK;
}

int dict_find(Eval *e, const Dict *d, const Value *key, const Value **value)
{
    int i;
    TRY(dict_index(e, d, key, &i));
    *value = i < 0 ? NULL : &d->value[i];
    return OK;
}

const Value *dict_get(const Dict *d, Str key)
{
    for (int i = 0; i < d->n; i++)
        if (d->key[i].kind == V_STRING && str_eq(v_text(&d->key[i]), key)) return &d->value[i];
    return NULL;
}

int dict_put(Eval *e, Dict *d, const Value *key, const Value *value)
{
    int i;
    TRY(dict_index(e, d, key, &i));
    if (i >= 0) {
        d->value[i] = *value;
        return OK;
    }
    if (d->n == d->cap) {
        TRY(eval_charge(e, (size_t)d->cap * 4 * sizeof(Value)));
        Value *keys = new_items(e, d->cap * 2), *values = new_items(e, d->cap * 2);
        memcpy(keys, d->key, (size_t)d->n * sizeof *keys);
        memcpy(values, d->value, (size_t)d->n * sizeof *values);
        d->key = keys;
        d->value = values;
        d->cap *= 2;
    }
    d->key[d->n] = *key;
    d->value[d->n++] = *value;
    return OK;
}

// ---- questions ------------------------------------------------------------------------------------------------------
const char *value_type(const Value *v)
{
    static const char *const names[KIND_COUNT] = {
        [V_ABSENT] = "missing",
        [V_UNDEFINED] = "Undefined",
        [V_NONE] = "NoneType",
        [V_BOOL] = "bool",
        [V_INT] = "int",
        [V_FLOAT] = "float",
        [V_STRING] = "str",
        [V_LIST] = "list",
        [V_TUPLE] = "tuple",
        [V_VIEW] = "dict_items",
        [V_ITERATOR] = "generator",
        [V_DICT] = "dict",
        [V_NAMESPACE] = "Namespace",
        [V_LOOP] = "LoopContext",
        [V_MACRO] = "Macro",
        [V_FUNCTION] = "function",
        [V_METHOD] = "method",
    };
    return names[v->kind];
}

bool value_truth(const Value *v)
{
    switch ((Kind)v->kind) {
    case V_ABSENT:
    case V_UNDEFINED:
    case V_NONE: return false;
    case V_BOOL: return v->b;
    case V_INT: return v->i != 0;
    case V_FLOAT: return v->f != 0;
    case V_STRING:
    case V_LIST:
    case V_TUPLE:
    case V_VIEW: return v->n > 0;
    case V_DICT: return v->dict->n > 0;
    default: return true;
    }
}

static int enter(Eval *e)
{
    e->steps++;
    return ++e->depth > EVAL_DEPTH_MAX ? eval_fail(e, "values or expressions are nested too deep") : eval_charge(e, 0);
}

static int items_equal(Eval *e, const Value *a, const Value *b, bool *equal)
{
    *equal = a->n == b->n;
    for (int i = 0; *equal && i < a->n; i++) TRY(value_equal(e, &a->items[i], &b->items[i], equal));
    return OK;
}

static int dicts_equal(Eval *e, const Dict *a, const Dict *b, bool *equal)
{
    *equal = a->n == b->n;
    for (int i = 0; *equal && i < a->n; i++) {
        const Value *other;
        TRY(dict_find(e, b, &a->key[i], &other));
        *equal = other != NULL;
        if (other) TRY(value_equal(e, &a->value[i], other, equal));
    }
    return OK;
}

int value_equal(Eval *e, const Value *a, const Value *b, bool *equal)
{
    *equal = false;
    e->steps++; // lists that hold one list many times are compared many times
    TRY(eval_charge(e, 0));
    if (v_is_number(a) && v_is_number(b)) {
        *equal = v_is_int(a) && v_is_int(b) ? v_as_int(a) == v_as_int(b) : v_as_float(a) == v_as_float(b);
        return OK;
    }
    if (a->kind != b->kind) return OK;
    switch ((Kind)a->kind) {
    case V_ABSENT:
    case V_UNDEFINED:
    case V_NONE: *equal = true; return OK;
    case V_STRING:
        TRY(eval_charge(e, (size_t)MIN(a->n, b->n)));
        *equal = str_eq(v_text(a), v_text(b));
        return OK;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
        TRY(enter(e));
        TRY(items_equal(e, a, b, equal));
        e->depth--;
        return OK;
    case V_DICT:
        TRY(enter(e));
        TRY(dicts_equal(e, a->dict, b->dict, equal));
        e->depth--;
        return OK;
    default: *equal = a->s == b->s; return OK; // the same object
    }
}

static int items_compare(Eval *e, const Value *a, const Value *b, const char *op, int *order)
{
    for (int i = 0; i < a->n && i < b->n; i++) {
        bool equal;
        TRY(value_equal(e, &a->items[i], &b->items[i], &equal));
        if (!equal) return value_compare(e, &a->items[i], &b->items[i], op, order);
    }
    *order = (a->n > b->n) - (a->n < b->n);
    return OK;
}

int value_compare(Eval *e, const Value *a, const Value *b, const char *op, int *order)
{
    if (a->kind == V_UNDEFINED) return eval_undefined_used(e, a);
    if (b->kind == V_UNDEFINED) return eval_undefined_used(e, b);
    if (v_is_number(a) && v_is_number(b)) {
        if (v_is_int(a) && v_is_int(b))
            *order = (v_as_int(a) > v_as_int(b)) - (v_as_int(a) < v_as_int(b));
        else
            *order = (v_as_float(a) > v_as_float(b)) - (v_as_float(a) < v_as_float(b));
        return OK;
    }
    if (a->kind == V_STRING && b->kind == V_STRING) { // UTF-8 sorts as code points do
        int32_t n = MIN(a->n, b->n);
        TRY(eval_charge(e, (size_t)n));
        int c = memcmp(a->s, b->s, (size_t)n);
        *order = c ? c : (a->n > b->n) - (a->n < b->n);
        return OK;
    }
    if (a->kind == b->kind && (a->kind == V_LIST || a->kind == V_TUPLE)) {
        TRY(enter(e));
        TRY(items_compare(e, a, b, op, order));
        e->depth--;
        return OK;
    }
    return eval_fail(e, "TypeError: '%s' not supported between instances of '%s' and '%s'", op, value_type(a),
                     value_type(b));
}

int value_contains(Eval *e, const Value *container, const Value *item, bool *found)
{
    *found = false;
    if (container->kind == V_STRING) {
        if (item->kind == V_UNDEFINED) return eval_undefined_used(e, item);
        if (item->kind != V_STRING)
            return eval_fail(e, "TypeError: 'in <string>' requires string as left operand, not %s", value_type(item));
        TRY(eval_charge(e, (size_t)container->n));
        *found = str_find(v_text(container), v_text(item)) != NULL;
        return OK;
    }
    if (container->kind == V_DICT) {
        const Value *value;
        TRY(dict_find(e, container->dict, item, &value));
        *found = value != NULL;
        return OK;
    }
    const Value *items;
    int n;
    TRY(value_iterate(e, container, &items, &n));
    for (int i = 0; i < n && !*found; i++) TRY(value_equal(e, &items[i], item, found));
    return OK;
}

int value_length(Eval *e, const Value *v, int64_t *n)
{
    switch ((Kind)v->kind) {
    case V_UNDEFINED: *n = 0; return OK;
    case V_STRING: *n = utf8_count(v->s, v->n); return eval_charge(e, (size_t)v->n);
    case V_LIST:
    case V_TUPLE:
    case V_VIEW: *n = v->n; return OK;
    case V_DICT: *n = v->dict->n; return OK;
    case V_LOOP: *n = v->loop->n; return OK;
    default: return eval_fail(e, "TypeError: object of type '%s' has no len()", value_type(v));
    }
}

int value_iterate(Eval *e, const Value *v, const Value **items, int *n)
{
    *items = no_values;
    switch ((Kind)v->kind) {
    case V_UNDEFINED: *n = 0; return OK;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW: *items = v->items, *n = v->n; break;
    case V_DICT: *items = v->dict->key, *n = v->dict->n; break;
    case V_ITERATOR:
        *items = v->iterator->items + v->iterator->at, *n = v->iterator->n - v->iterator->at;
        v->iterator->at = v->iterator->n;
        break;
    case V_STRING: {
        int32_t count = utf8_count(v->s, v->n), at = 0;
        TRY(eval_charge(e, (size_t)count * sizeof(Value)));
        Value *chars = new_items(e, count);
        for (int32_t i = 0; i < count; i++) {
            int32_t begin = at;
            utf8_next(v->s, &at);
            chars[i] = v_str((Str){v->s + begin, at - begin});
        }
        *items = chars, *n = count;
        break;
    }
    default: return eval_fail(e, "TypeError: '%s' object is not iterable", value_type(v));
    }
    return eval_charge(e, (size_t)*n * 16);
}

// ---- text -----------------------------------------------------------------------------------------------------------
void put_float(Buf *out, double f)
{
    char text[40];
    if (isnan(f) || isinf(f)) {
        buf_puts(out, isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
        return;
    }
    int precision = 1; // the fewest digits that read back as the same number
    do snprintf(text, sizeof text, "%.*e", precision - 1, f);
    while (strtod(text, NULL) != f && ++precision <= 17);
    int exponent = atoi(strchr(text, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        snprintf(text, sizeof text, "%.*f", MAX(precision - 1 - exponent, 1), f);
    } else { // Python writes 1e+16, 1.5e-07
        char *e = strchr(text, 'e');
        snprintf(e, sizeof text - (size_t)(e - text), "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    }
    buf_puts(out, text);
}

void put_repr_string(Buf *out, Str s)
{
    bool has_single = s.n && memchr(s.s, '\'', (size_t)s.n), has_double = s.n && memchr(s.s, '"', (size_t)s.n);
    char quote = has_single && !has_double ? '"' : '\'';
    buf_put(out, &quote, 1);
    for (int32_t at = 0, next = 0; at < s.n; at = next) {
        uint32_t cp = utf8_next(s.s, &next);
        if (cp == '\n' || cp == '\r' || cp == '\t')
            buf_puts(out, cp == '\n' ? "\\n" : cp == '\r' ? "\\r" : "\\t");
        else if (cp == '\\' || cp == (uint32_t)quote)
            buf_printf(out, "\\%c", (char)cp);
        else if (is_printable(cp))
            buf_put(out, s.s + at, (size_t)(next - at));
        else
            buf_printf(out, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
    }
    buf_put(out, &quote, 1);
}

static int put_list(Eval *e, const Value *v, const char *open, const char *close, Buf *out)
{
    buf_puts(out, open);
    for (int i = 0; i < v->n; i++) {
        if (i) buf_puts(out, ", ");
        TRY(value_put_repr(e, &v->items[i], out));
    }
    if (v->kind == V_TUPLE && v->n == 1) buf_puts(out, ",");
    buf_puts(out, close);
    return OK;
}

static int put_dict(Eval *e, const Dict *d, Buf *out)
{
    buf_puts(out, "{");
    for (int i = 0; i < d->n; i++) {
        if (i) buf_puts(out, ", ");
        TRY(value_put_repr(e, &d->key[i], out));
        buf_puts(out, ": ");
        TRY(value_put_repr(e, &d->value[i], out));
    }
    buf_puts(out, "}");
    return OK;
}

static int put_container(Eval *e, const Value *v, Buf *out)
{
    if (v->kind == V_LIST) return put_list(e, v, "[", "]", out);
    if (v->kind == V_TUPLE) return put_list(e, v, "(", ")", out);
    if (v->kind == V_VIEW) return put_list(e, v, "dict_items([", "])", out);
    return put_dict(e, v->dict, out);
}

int value_put_repr(Eval *e, const Value *v, Buf *out)
{
    if (out->len > OUTPUT_BYTES_MAX) return eval_fail(e, "text of more than %d MiB", OUTPUT_BYTES_MAX >> 20);
    switch ((Kind)v->kind) {
    case V_ABSENT:
    case V_UNDEFINED: buf_puts(out, "Undefined"); return OK;
    case V_NONE: buf_puts(out, "None"); return OK;
    case V_BOOL: buf_puts(out, v->b ? "True" : "False"); return OK;
    case V_INT: buf_printf(out, "%lld", (long long)v->i); return OK;
    case V_FLOAT: put_float(out, v->f); return OK;
    case V_STRING:
        TRY(eval_charge(e, (size_t)v->n));
        put_repr_string(out, v_text(v));
        return OK;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
    case V_DICT:
        TRY(enter(e));
        TRY(put_container(e, v, out));
        e->depth--;
        return OK;
    default: buf_printf(out, "<%s>", value_type(v)); return OK;
    }
}

int value_put_str(Eval *e, const Value *v, Buf *out)
{
    if (v->kind == V_UNDEFINED) return OK;
    if (v->kind != V_STRING) return value_put_repr(e, v, out);
    TRY(eval_charge(e, (size_t)v->n));
    buf_put(out, v->s, (size_t)v->n);
    return OK;
}

int value_str(Eval *e, const Value *v, Str *out)
{
    *out = (Str){"", 0};
    if (v->kind == V_STRING) *out = v_text(v);
    if (v->kind == V_STRING || v->kind == V_UNDEFINED) return OK;
    Buf text = {0};
    Value copy = v_none();
    int status = value_put_repr(e, v, &text);
    if (status < 0) {
        buf_free(&text);
        return status;
    }
    TRY(take_buf(e, &text, &copy));
    *out = v_text(&copy);
    return OK;
}

// ---- string operations ----------------------------------------------------------------------------------------------
int32_t str_offset(Str s, int64_t index)
{
    int32_t at = 0;
    for (; at < s.n && index > 0; index--) utf8_next(s.s, &at);
    return at;
}

static bool in_chars(uint32_t cp, const Str *chars)
{
    if (!chars) return is_python_space(cp);
    for (int32_t i = 0; i < chars->n;)
        if (utf8_next(chars->s, &i) == cp) return true;
    return false;
}

Str str_strip(Str s, const Str *chars, bool left, bool right)
{
    int32_t begin = 0, end = s.n;
    for (int32_t next = 0; left && begin < end; begin = next)
        if (!in_chars(utf8_next(s.s, &next), chars)) break;
    while (right && end > begin) {
        int32_t at = end - 1;
        while (!utf8_is_start(s.s[at])) at--;
        int32_t next = at;
        if (!in_chars(utf8_next(s.s, &next), chars)) break;
        end = at;
    }
    return (Str){s.s + begin, end - begin};
}

// Greek sigma at the end of a word has its own small form.
static bool final_sigma(Str s, int32_t at, int32_t next)
{
    bool letter_before = false, letter_after = false;
    if (at > 0) {
        int32_t i = at - 1;
        while (!utf8_is_start(s.s[i])) i--;
        letter_before = is_alphabetic(utf8_next(s.s, &i));
    }
    if (next < s.n) letter_after = is_alphabetic(utf8_next(s.s, &next));
    return letter_before && !letter_after;
}

void str_put_case(Buf *out, Str s, int32_t begin, int32_t end, Case to)
{
    for (int32_t at = begin, next = begin; at < end; at = next) {
        uint32_t mapped[3], cp = utf8_next(s.s, &next);
        char text[4];
        int n = to == CASE_UPPER   ? to_upper(cp, mapped)
                : to == CASE_TITLE ? to_title(cp, mapped)
                                   : to_lower(cp, mapped);
        if (to == CASE_LOWER && cp == 0x3A3 && final_sigma(s, at, next)) mapped[0] = 0x3C2;
        for (int i = 0; i < n; i++) buf_put(out, text, (size_t)utf8_encode(mapped[i], text));
    }
}

const char *str_find(Str haystack, Str needle)
{
    if (needle.n == 0) return haystack.s;
    return memmem(haystack.s, (size_t)haystack.n, needle.s, (size_t)needle.n); // linear, whatever the needle
}

// An empty `from` matches before every character and at the end.
static void replace_between(Buf *out, Str s, Str to, int64_t count)
{
    int32_t at = 0;
    for (; count != 0; count--) {
        int32_t begin = at;
        buf_put(out, to.s, (size_t)to.n);
        if (at == s.n) return;
        utf8_next(s.s, &at);
        buf_put(out, s.s + begin, (size_t)(at - begin));
    }
    buf_put(out, s.s + at, (size_t)(s.n - at));
}

int str_replace(Eval *e, Str s, Str from, Str to, int64_t count, Value *out)
{
    int64_t hits = 0, limit = count < 0 ? INT64_MAX : count;
    const char *at = s.s, *end = s.s + s.n;
    TRY(eval_charge(e, (size_t)s.n));
    for (const char *hit = at; from.n && hits < limit && (hit = str_find((Str){hit, (int32_t)(end - hit)}, from));
         hit += from.n)
        hits++;
    if (!from.n) hits = MIN((int64_t)utf8_count(s.s, s.n) + 1, limit);
    TRY(eval_charge(e, (size_t)s.n + (size_t)hits * (size_t)to.n));
    Buf text = {0};
    if (!from.n) {
        replace_between(&text, s, to, hits);
        return take_buf(e, &text, out);
    }
    for (; hits > 0; hits--) {
        const char *hit = str_find((Str){at, (int32_t)(end - at)}, from);
        buf_put(&text, at, (size_t)(hit - at));
        buf_put(&text, to.s, (size_t)to.n);
        at = hit + from.n;
    }
    buf_put(&text, at, (size_t)(end - at));
    return take_buf(e, &text, out);
}

static bool is_line_end(uint32_t cp)
{
    return (cp >= '\n' && cp <= '\r') || (cp >= 0x1C && cp <= 0x1E) || cp == 0x85 || cp == 0x2028 || cp == 0x2029;
}

int str_lines(Eval *e, Str s, const Value **lines, int *n)
{
    int count = 1;
    TRY(eval_charge(e, (size_t)s.n));
    for (int32_t i = 0; i < s.n;) count += is_line_end(utf8_next(s.s, &i));
    TRY(eval_charge(e, (size_t)count * sizeof(Value)));
    Value *v = new_items(e, count);
    *n = 0;
    int32_t begin = 0;
    for (int32_t at = 0, next = 0; at < s.n; at = next) {
        uint32_t cp = utf8_next(s.s, &next);
        if (!is_line_end(cp)) continue;
        v[(*n)++] = v_str((Str){s.s + begin, at - begin});
        if (cp == '\r' && next < s.n && s.s[next] == '\n') next++;
        begin = next;
    }
    if (begin < s.n) v[(*n)++] = v_str((Str){s.s + begin, s.n - begin});
    *lines = v;
    return OK;
}
