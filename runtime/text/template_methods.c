// template_methods: the methods of strings, dicts, lists and loops that templates may call. Those that would change a value
// are not here: the sandbox forbids them.
#include "text/template_impl.h"

// ---- arguments ------------------------------------------------------------------------------------------------------
static int want_string(Eval *e, const Value *v, Str *out)
{
    *out = (Str){"", 0};
    if (v->kind == V_UNDEFINED) return eval_undefined_used(e, v);
    if (v->kind != V_STRING) return eval_fail(e, "TypeError: expected a string, not %s", value_type(v));
    *out = v_text(v);
    return OK;
}

static int want_int(Eval *e, const Value *v, int64_t missing, int64_t *out)
{
    *out = missing;
    if (v->kind == V_ABSENT) return OK;
    if (v->kind == V_UNDEFINED) return eval_undefined_used(e, v);
    if (!v_is_int(v)) return eval_fail(e, "TypeError: '%s' object cannot be interpreted as an integer", value_type(v));
    *out = v_as_int(v);
    return OK;
}

// ---- stripping and splitting ----------------------------------------------------------------------------------------
static int strip(Eval *e, const Value *self, const Args *a, bool left, bool right, Value *out)
{
    Str chars;
    bool given = a->pos[0].kind != V_ABSENT && a->pos[0].kind != V_NONE;
    if (given) TRY(want_string(e, &a->pos[0], &chars));
    TRY(eval_charge(e, (size_t)self->n));
    *out = v_str(str_strip(v_text(self), given ? &chars : NULL, left, right));
    return OK;
}
static int str_strip_both(Eval *e, const Value *self, const Args *a, Value *out)
{
    return strip(e, self, a, true, true, out);
}
static int str_lstrip(Eval *e, const Value *self, const Args *a, Value *out)
{
    return strip(e, self, a, true, false, out);
}
static int str_rstrip(Eval *e, const Value *self, const Args *a, Value *out)
{
    return strip(e, self, a, false, true, out);
}

typedef struct Parts { // pieces of a split, in the pool
    Value *v;
    int n, cap;
} Parts;
static int put_part(Eval *e, Parts *p, const char *begin, const char *end)
{
    if (p->n == p->cap) {
        int cap = MAX(8, p->cap * 2);
        TRY(eval_charge(e, (size_t)cap * sizeof(Value)));
        Value *grown = new_items(e, cap);
        if (p->n) memcpy(grown, p->v, (size_t)p->n * sizeof *grown);
        p->v = grown;
        p->cap = cap;
    }
    p->v[p->n++] = v_str((Str){begin, (int32_t)(end - begin)});
    return OK;
}

static void reverse_items(Value *v, int n)
{
    for (int i = 0; i < n / 2; i++) {
        Value t = v[i];
        v[i] = v[n - 1 - i];
        v[n - 1 - i] = t;
    }
}

// *hit: the last place where needle stands, or NULL. Every comparison is charged: a search of "aa..ab" is quadratic.
static int find_last(Eval *e, Str haystack, Str needle, const char **hit)
{
    *hit = NULL;
    if (needle.n > haystack.n) return OK;
    for (const char *at = haystack.s + haystack.n - needle.n; at >= haystack.s; at--) {
        if (needle.n && (at[0] != needle.s[0] || at[needle.n - 1] != needle.s[needle.n - 1])) continue;
        TRY(eval_charge(e, (size_t)needle.n));
        if (memcmp(at, needle.s, (size_t)needle.n) != 0) continue;
        *hit = at;
        return OK;
    }
    return OK;
}

static int find_either(Eval *e, Str haystack, Str needle, bool last, const char **hit)
{
    if (last) return find_last(e, haystack, needle, hit);
    *hit = str_find(haystack, needle);
    return OK;
}

static int split_by(Eval *e, Str s, Str sep, int64_t limit, bool from_right, Parts *p)
{
    while (limit != 0) {
        const char *hit;
        TRY(find_either(e, s, sep, from_right, &hit));
        if (!hit) break;
        if (from_right) {
            TRY(put_part(e, p, hit + sep.n, s.s + s.n));
            s.n = (int32_t)(hit - s.s);
        } else {
            TRY(put_part(e, p, s.s, hit));
            s = (Str){hit + sep.n, (int32_t)(s.s + s.n - hit - sep.n)};
        }
        limit--;
    }
    return put_part(e, p, s.s, s.s + s.n);
}

static int32_t word_edge(Str s, bool from_right, bool in_space) // bytes of the run of (non-)blanks at one end
{
    int32_t n = 0;
    while (n < s.n) {
        int32_t at = from_right ? s.n - n - 1 : n;
        while (from_right && !utf8_is_start(s.s[at])) at--;
        int32_t next = at;
        if (is_python_space(utf8_next(s.s, &next)) != in_space) break;
        n = from_right ? s.n - at : next;
    }
    return n;
}

static int split_words(Eval *e, Str s, int64_t limit, bool from_right, Parts *p)
{
    for (;;) {
        int32_t blank = word_edge(s, from_right, true);
        s = from_right ? (Str){s.s, s.n - blank} : (Str){s.s + blank, s.n - blank};
        if (s.n == 0) return OK;
        if (limit-- == 0) break;
        int32_t word = word_edge(s, from_right, false);
        const char *begin = from_right ? s.s + s.n - word : s.s;
        TRY(put_part(e, p, begin, begin + word));
        s = from_right ? (Str){s.s, s.n - word} : (Str){s.s + word, s.n - word};
    }
    Str rest = str_strip(s, NULL, false, from_right);
    return put_part(e, p, rest.s, rest.s + rest.n);
}

static int split(Eval *e, const Value *self, const Args *a, bool from_right, Value *out)
{
    Parts p = {0};
    int64_t limit;
    Str sep;
    TRY(want_int(e, &a->pos[1], -1, &limit));
    TRY(eval_charge(e, (size_t)self->n));
    if (a->pos[0].kind == V_ABSENT || a->pos[0].kind == V_NONE) {
        TRY(split_words(e, v_text(self), limit, from_right, &p));
    } else {
        TRY(want_string(e, &a->pos[0], &sep));
        if (sep.n == 0) return eval_fail(e, "ValueError: empty separator");
        TRY(split_by(e, v_text(self), sep, limit, from_right, &p));
    }
    if (from_right) reverse_items(p.v, p.n);
    *out = v_items(V_LIST, p.v, p.n);
    return OK;
}
static int str_split(Eval *e, const Value *self, const Args *a, Value *out)
{
    return split(e, self, a, false, out);
}
static int str_rsplit(Eval *e, const Value *self, const Args *a, Value *out)
{
    return split(e, self, a, true, out);
}

static int partition(Eval *e, const Value *self, const Args *a, bool last, Value *out)
{
    Str s = v_text(self), sep, empty = {"", 0};
    TRY(want_string(e, &a->pos[0], &sep));
    if (sep.n == 0) return eval_fail(e, "ValueError: empty separator");
    TRY(eval_charge(e, (size_t)s.n));
    const char *hit;
    TRY(find_either(e, s, sep, last, &hit));
    Value *v = new_items(e, 3);
    v[0] = v_str(hit ? (Str){s.s, (int32_t)(hit - s.s)} : last ? empty : s);
    v[1] = v_str(hit ? sep : empty);
    v[2] = v_str(hit ? (Str){hit + sep.n, (int32_t)(s.s + s.n - hit - sep.n)} : last ? s : empty);
    *out = v_items(V_TUPLE, v, 3);
    return OK;
}
static int str_partition(Eval *e, const Value *self, const Args *a, Value *out)
{
    return partition(e, self, a, false, out);
}
static int str_rpartition(Eval *e, const Value *self, const Args *a, Value *out)
{
    return partition(e, self, a, true, out);
}

static int str_splitlines(Eval *e, const Value *self, const Args *a, Value *out)
{
    const Value *lines;
    int n;
    if (value_truth(&a->pos[0])) return eval_fail(e, "splitlines with keepends is not supported");
    TRY(str_lines(e, v_text(self), &lines, &n));
    *out = v_items(V_LIST, lines, n);
    return OK;
}

// ---- searching ------------------------------------------------------------------------------------------------------
static int affix(Eval *e, Str s, const Value *arg, bool end, bool *yes)
{
    const Value *choices = arg;
    int n = 1;
    if (arg->kind == V_TUPLE) choices = arg->items, n = arg->n;
    *yes = false;
    for (int i = 0; i < n && !*yes; i++) {
        Str x;
        TRY(want_string(e, &choices[i], &x));
        TRY(eval_charge(e, (size_t)x.n));
        *yes = x.n <= s.n && memcmp(end ? s.s + s.n - x.n : s.s, x.s, (size_t)x.n) == 0;
    }
    return OK;
}
static int str_startswith(Eval *e, const Value *self, const Args *a, Value *out)
{
    bool yes;
    TRY(affix(e, v_text(self), &a->pos[0], false, &yes));
    *out = v_bool(yes);
    return OK;
}
static int str_endswith(Eval *e, const Value *self, const Args *a, Value *out)
{
    bool yes;
    TRY(affix(e, v_text(self), &a->pos[0], true, &yes));
    *out = v_bool(yes);
    return OK;
}
static int str_removeprefix(Eval *e, const Value *self, const Args *a, Value *out)
{
    bool yes;
    TRY(affix(e, v_text(self), &a->pos[0], false, &yes));
    *out = yes ? v_str((Str){self->s + a->pos[0].n, self->n - a->pos[0].n}) : *self;
    return OK;
}
static int str_removesuffix(Eval *e, const Value *self, const Args *a, Value *out)
{
    bool yes;
    TRY(affix(e, v_text(self), &a->pos[0], true, &yes));
    *out = yes ? v_str((Str){self->s, self->n - a->pos[0].n}) : *self;
    return OK;
}

static int find(Eval *e, const Value *self, const Args *a, bool last, int64_t *index)
{
    Str s = v_text(self), x;
    TRY(want_string(e, &a->pos[0], &x));
    TRY(eval_charge(e, (size_t)s.n));
    const char *hit;
    TRY(find_either(e, s, x, last, &hit));
    *index = hit ? utf8_count(s.s, (int32_t)(hit - s.s)) : -1;
    return OK;
}
static int str_find_first(Eval *e, const Value *self, const Args *a, Value *out)
{
    int64_t i;
    TRY(find(e, self, a, false, &i));
    *out = v_int(i);
    return OK;
}
static int str_rfind(Eval *e, const Value *self, const Args *a, Value *out)
{
    int64_t i;
    TRY(find(e, self, a, true, &i));
    *out = v_int(i);
    return OK;
}
static int str_index(Eval *e, const Value *self, const Args *a, Value *out)
{
    TRY(str_find_first(e, self, a, out));
    return out->i < 0 ? eval_fail(e, "ValueError: substring not found") : OK;
}
static int str_count(Eval *e, const Value *self, const Args *a, Value *out)
{
    Str s = v_text(self), x;
    int64_t n = 0;
    TRY(want_string(e, &a->pos[0], &x));
    TRY(eval_charge(e, (size_t)s.n));
    if (x.n == 0) {
        *out = v_int(utf8_count(s.s, s.n) + 1);
        return OK;
    }
    for (const char *at = s.s; (at = str_find((Str){at, (int32_t)(s.s + s.n - at)}, x)); at += x.n) n++;
    *out = v_int(n);
    return OK;
}

// ---- new strings ----------------------------------------------------------------------------------------------------
static int change_case(Eval *e, Str s, Case first, Case rest, Value *out) // first: of the first character
{
    Buf text = {0};
    int32_t next = 0;
    TRY(eval_charge(e, (size_t)s.n));
    if (s.n) utf8_next(s.s, &next);
    str_put_case(&text, s, 0, next, first);
    str_put_case(&text, s, next, s.n, rest);
    return take_buf(e, &text, out);
}
static int str_upper(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)a;
    return change_case(e, v_text(self), CASE_UPPER, CASE_UPPER, out);
}
static int str_lower(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)a;
    return change_case(e, v_text(self), CASE_LOWER, CASE_LOWER, out);
}
static int str_capitalize(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)a;
    return change_case(e, v_text(self), CASE_TITLE, CASE_LOWER, out);
}
static int str_title(Eval *e, const Value *self, const Args *a, Value *out) // every run of letters starts in upper case
{
    Buf text = {0};
    (void)a;
    TRY(eval_charge(e, (size_t)self->n));
    bool inside = false;
    for (int32_t at = 0, next = 0; at < self->n; at = next) {
        bool letter = is_alphabetic(utf8_next(self->s, &next));
        str_put_case(&text, v_text(self), at, next, inside ? CASE_LOWER : CASE_TITLE);
        inside = letter;
    }
    return take_buf(e, &text, out);
}

static int str_replace_method(Eval *e, const Value *self, const Args *a, Value *out)
{
    Str from, to;
    int64_t count;
    TRY(want_string(e, &a->pos[0], &from));
    TRY(want_string(e, &a->pos[1], &to));
    TRY(want_int(e, &a->pos[2], -1, &count));
    return str_replace(e, v_text(self), from, to, count, out);
}

static int str_join(Eval *e, const Value *self, const Args *a, Value *out)
{
    const Value *items;
    int n, status = OK;
    Buf text = {0};
    TRY(value_iterate(e, &a->pos[0], &items, &n));
    for (int i = 0; i < n; i++) {
        Str s;
        TRY_DONE(want_string(e, &items[i], &s));
        TRY_DONE(eval_charge(e, (size_t)s.n + (size_t)self->n + text.len / 64));
        if (i) buf_put(&text, self->s, (size_t)self->n);
        buf_put(&text, s.s, (size_t)s.n);
    }
    return take_buf(e, &text, out);
done:
    buf_free(&text);
    return status;
}

static int str_format(Eval *e, const Value *self, const Args *a, Value *out)
{
    return format_braces(e, v_text(self), a, out);
}

// align: '<' left, '>' right, '^' centre as str.center, '0' zeros behind the sign
static int pad(Eval *e, const Value *self, const Args *a, char align, Value *out)
{
    int64_t width, left;
    Str fill = {align == '0' ? "0" : " ", 1};
    TRY(want_int(e, &a->pos[0], 0, &width));
    if (align != '0' && a->pos[1].kind != V_ABSENT) TRY(want_string(e, &a->pos[1], &fill));
    if (utf8_count(fill.s, fill.n) != 1)
        return eval_fail(e, "TypeError: the fill character must be exactly one character long");
    int64_t missing = MAX(width - utf8_count(self->s, self->n), 0);
    TRY(eval_charge(e, (size_t)self->n + (size_t)MIN(missing, INT32_MAX) * 4));
    left = align == '<' ? 0 : align == '^' ? missing / 2 + (missing & width & 1) : missing;
    bool sign = align == '0' && self->n && (self->s[0] == '-' || self->s[0] == '+');
    Buf text = {0};
    buf_put(&text, self->s, sign);
    for (int64_t i = 0; i < left; i++) buf_put(&text, fill.s, (size_t)fill.n);
    buf_put(&text, self->s + sign, (size_t)(self->n - sign));
    for (int64_t i = left; i < missing; i++) buf_put(&text, fill.s, (size_t)fill.n);
    return take_buf(e, &text, out);
}
static int str_ljust(Eval *e, const Value *self, const Args *a, Value *out)
{
    return pad(e, self, a, '<', out);
}
static int str_rjust(Eval *e, const Value *self, const Args *a, Value *out)
{
    return pad(e, self, a, '>', out);
}
static int str_center(Eval *e, const Value *self, const Args *a, Value *out)
{
    return pad(e, self, a, '^', out);
}
static int str_zfill(Eval *e, const Value *self, const Args *a, Value *out)
{
    return pad(e, self, a, '0', out);
}

// ---- questions about strings ----------------------------------------------------------------------------------------
static bool is_digit(uint32_t cp)
{
    return cp < 0x80 ? cp >= '0' && cp <= '9' : is_numeric(cp);
}
static bool is_alnum(uint32_t cp)
{
    return is_alphabetic(cp) || is_digit(cp);
}
static int all_chars(Eval *e, const Value *self, bool (*test)(uint32_t), Value *out)
{
    bool yes = self->n > 0;
    TRY(eval_charge(e, (size_t)self->n));
    for (int32_t i = 0; yes && i < self->n;) yes = test(utf8_next(self->s, &i));
    *out = v_bool(yes);
    return OK;
}
static int str_isdigit(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)a;
    return all_chars(e, self, is_digit, out);
}
static int str_isalpha(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)a;
    return all_chars(e, self, is_alphabetic, out);
}
static int str_isalnum(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)a;
    return all_chars(e, self, is_alnum, out);
}
static int str_isspace(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)a;
    return all_chars(e, self, is_python_space, out);
}
static int run_test(Eval *e, const char *test, const Value *self, Value *out)
{
    return find_test((Str){test, (int32_t)strlen(test)})->fn(e, self, NULL, out);
}
static int str_isupper(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)a;
    return run_test(e, "upper", self, out);
}
static int str_islower(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)a;
    return run_test(e, "lower", self, out);
}

// ---- dicts ----------------------------------------------------------------------------------------------------------
static int dict_get_method(Eval *e, const Value *self, const Args *a, Value *out)
{
    const Value *v;
    TRY(dict_find(e, self->dict, &a->pos[0], &v));
    *out = v ? *v : a->pos[1].kind == V_ABSENT ? v_none() : a->pos[1];
    return OK;
}

static int dict_items(Eval *e, const Value *self, const Args *a, Value *out)
{
    const Dict *d = self->dict;
    (void)a;
    TRY(eval_charge(e, (size_t)d->n * 3 * sizeof(Value)));
    Value *pairs = new_items(e, d->n), *members = new_items(e, d->n * 2);
    for (int i = 0; i < d->n; i++) {
        members[2 * i] = d->key[i];
        members[2 * i + 1] = d->value[i];
        pairs[i] = v_items(V_TUPLE, members + 2 * i, 2);
    }
    *out = v_items(V_VIEW, pairs, d->n);
    return OK;
}
static int dict_keys(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)e, (void)a;
    *out = v_items(V_VIEW, self->dict->key, self->dict->n);
    return OK;
}
static int dict_values(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)e, (void)a;
    *out = v_items(V_VIEW, self->dict->value, self->dict->n);
    return OK;
}
static int copy_self(Eval *e, const Value *self, const Args *a, Value *out) // nothing can change it
{
    (void)e, (void)a;
    *out = *self;
    return OK;
}

// ---- lists and loops ------------------------------------------------------------------------------------------------
static int list_index(Eval *e, const Value *self, const Args *a, Value *out)
{
    for (int i = 0; i < self->n; i++) {
        bool equal;
        TRY(value_equal(e, &self->items[i], &a->pos[0], &equal));
        *out = v_int(i);
        if (equal) return OK;
    }
    return eval_fail(e, "ValueError: value is not in the list");
}
static int list_count(Eval *e, const Value *self, const Args *a, Value *out)
{
    int64_t n = 0;
    for (int i = 0; i < self->n; i++) {
        bool equal;
        TRY(value_equal(e, &self->items[i], &a->pos[0], &equal));
        n += equal;
    }
    *out = v_int(n);
    return OK;
}

static int loop_cycle(Eval *e, const Value *self, const Args *a, Value *out)
{
    if (a->n == 0) return eval_fail(e, "TypeError: no items for cycling given");
    *out = a->pos[self->loop->at % a->n];
    return OK;
}
static int loop_changed(Eval *e, const Value *self, const Args *a, Value *out)
{
    Value now = v_items(V_TUPLE, a->pos, a->n);
    bool same = false;
    if (self->loop->changed.kind != V_ABSENT) TRY(value_equal(e, &self->loop->changed, &now, &same));
    self->loop->changed = now;
    *out = v_bool(!same);
    return OK;
}

// ---- tables ---------------------------------------------------------------------------------------------------------
static const Callable string_methods[] = {
    {"strip", str_strip_both, "chars"},
    {"lstrip", str_lstrip, "chars"},
    {"rstrip", str_rstrip, "chars"},
    {"split", str_split, "sep,maxsplit"},
    {"rsplit", str_rsplit, "sep,maxsplit"},
    {"splitlines", str_splitlines, "keepends"},
    {"partition", str_partition, "!sep"},
    {"rpartition", str_rpartition, "!sep"},
    {"startswith", str_startswith, "!prefix"},
    {"endswith", str_endswith, "!suffix"},
    {"removeprefix", str_removeprefix, "!prefix"},
    {"removesuffix", str_removesuffix, "!suffix"},
    {"find", str_find_first, "!sub"},
    {"rfind", str_rfind, "!sub"},
    {"index", str_index, "!sub"},
    {"count", str_count, "!sub"},
    {"upper", str_upper, ""},
    {"lower", str_lower, ""},
    {"casefold", str_lower, ""},
    {"title", str_title, ""},
    {"capitalize", str_capitalize, ""},
    {"replace", str_replace_method, "!old,!new,count"},
    {"join", str_join, "!iterable"},
    {"format", str_format, NULL},
    {"ljust", str_ljust, "!width,fillchar"},
    {"rjust", str_rjust, "!width,fillchar"},
    {"center", str_center, "!width,fillchar"},
    {"zfill", str_zfill, "!width"},
    {"isdigit", str_isdigit, ""},
    {"isnumeric", str_isdigit, ""},
    {"isdecimal", str_isdigit, ""},
    {"isalpha", str_isalpha, ""},
    {"isalnum", str_isalnum, ""},
    {"isspace", str_isspace, ""},
    {"isupper", str_isupper, ""},
    {"islower", str_islower, ""},
    {NULL, NULL, NULL},
};
static const Callable dict_methods[] = {
    {"get", dict_get_method, "!key,default"},
    {"items", dict_items, ""},
    {"keys", dict_keys, ""},
    {"values", dict_values, ""},
    {"copy", copy_self, ""},
    {NULL, NULL, NULL},
};
static const Callable list_methods[] = {
    {"index", list_index, "!value"}, {"count", list_count, "!value"}, {"copy", copy_self, ""}, {NULL, NULL, NULL}};
static const Callable loop_methods[] = {
    {"cycle", loop_cycle, NULL}, {"changed", loop_changed, NULL}, {NULL, NULL, NULL}};

const Callable *find_method(const Value *self, Str name)
{
    static const Callable *const tables[KIND_COUNT] = {
        [V_STRING] = string_methods, [V_DICT] = dict_methods, [V_LIST] = list_methods,
        [V_TUPLE] = list_methods,    [V_LOOP] = loop_methods,
    };
    for (const Callable *c = tables[self->kind]; c && c->name; c++)
        if (str_is(name, c->name)) return c;
    return NULL;
}
