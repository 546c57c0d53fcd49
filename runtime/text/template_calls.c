// template_calls: binding arguments to parameters, calling values, and the global functions of templates.
#define _DEFAULT_SOURCE // struct tm's zone members, for strftime
#include "text/template_impl.h"
#include <stdlib.h>
#include <time.h>

enum { PARAMS_MAX = 8 };

// ---- binding --------------------------------------------------------------------------------------------------------
typedef struct Param {
    Str name;
    bool required;
} Param;

static int split_params(const char *params, Param out[PARAMS_MAX])
{
    int n = 0;
    while (*params) {
        size_t len = strcspn(params, ",");
        bool required = *params == '!';
        ASSERT(n < PARAMS_MAX);
        out[n++] = (Param){{params + required, (int32_t)len - required}, required};
        params += len + (params[len] == ',');
    }
    return n;
}

int call_bound(Eval *e, const Callable *c, const Value *self, const Args *a, Value *out)
{
    if (!c->params) return c->fn(e, self, a, out);
    Param params[PARAMS_MAX];
    Value bound[PARAMS_MAX] = {{0}};
    int n = split_params(c->params, params);
    if (a->n > n) return eval_fail(e, "TypeError: %s takes at most %d arguments (%d given)", c->name, n, a->n);
    if (a->n) memcpy(bound, a->pos, (size_t)a->n * sizeof *bound);
    for (int k = 0; k < a->n_key; k++) {
        int i = 0;
        while (i < n && !str_eq(params[i].name, a->key[k])) i++;
        if (i == n || bound[i].kind != V_ABSENT)
            return eval_fail(e, "TypeError: %s got an unexpected argument '%.*s'", c->name, (int)MIN(a->key[k].n, 100),
                             a->key[k].s);
        bound[i] = a->value[k];
    }
    for (int i = 0; i < n; i++)
        if (params[i].required && bound[i].kind == V_ABSENT)
            return eval_fail(e, "TypeError: %s needs the argument '%.*s'", c->name, params[i].name.n, params[i].name.s);
    Args all = {.pos = bound, .n = n};
    return c->fn(e, self, &all, out);
}

int call_value(Eval *e, const Value *callee, const Args *a, Value *out)
{
    Value none = {0};
    switch ((Kind)callee->kind) {
    case V_UNDEFINED: return eval_undefined_used(e, callee);
    case V_MACRO: return eval_macro(e, callee->macro, a, out);
    case V_FUNCTION: return call_bound(e, callee->function, &none, a, out);
    case V_METHOD: return call_bound(e, callee->bound->method, &callee->bound->self, a, out);
    default: return eval_fail(e, "TypeError: '%s' object is not callable", value_type(callee));
    }
}

// ---- globals --------------------------------------------------------------------------------------------------------
static int fn_range(Eval *e, const Value *self, const Args *a, Value *out)
{
    int64_t v[3] = {0, 0, 1};
    (void)self;
    int given = 0;
    for (; given < 3 && a->pos[given].kind != V_ABSENT; given++) {
        const Value *arg = &a->pos[given];
        if (arg->kind == V_UNDEFINED) return eval_undefined_used(e, arg);
        if (!v_is_int(arg))
            return eval_fail(e, "TypeError: '%s' object cannot be interpreted as an integer", value_type(arg));
        v[given] = v_as_int(arg);
    }
    int64_t start = given > 1 ? v[0] : 0, stop = given > 1 ? v[1] : v[0], step = v[2];
    if (step == 0) return eval_fail(e, "ValueError: range() arg 3 must not be zero");
    double count = ((double)stop - (double)start) / (double)step;
    if (count > RANGE_MAX) return eval_fail(e, "OverflowError: range too big, at most %d items", RANGE_MAX);
    int64_t n = 0;
    for (int64_t i = start; n <= RANGE_MAX && (step > 0 ? i < stop : i > stop); n++)
        if (__builtin_add_overflow(i, step, &i)) {
            n++;
            break;
        }
    TRY(eval_charge(e, (size_t)n * sizeof(Value)));
    Value *items = new_items(e, (int)n);
    for (int64_t i = 0; i < n; i++) items[i] = v_int(start + i * step);
    *out = v_items(V_LIST, items, (int)n);
    return OK;
}

// dict(mapping or pairs, key=value, ...), and the same for namespace
static int build_dict(Eval *e, const char *what, const Args *a, Dict **out)
{
    Dict *d = *out = new_dict(e, a->n_key);
    if (a->n > 1) return eval_fail(e, "TypeError: %s expected at most 1 positional argument", what);
    if (a->n && (a->pos[0].kind == V_DICT || a->pos[0].kind == V_NAMESPACE)) {
        const Dict *from = a->pos[0].dict;
        for (int i = 0; i < from->n; i++) TRY(dict_put(e, d, &from->key[i], &from->value[i]));
    } else if (a->n) {
        const Value *items, *pair;
        int n, two;
        TRY(value_iterate(e, &a->pos[0], &items, &n));
        for (int i = 0; i < n; i++) {
            TRY(value_iterate(e, &items[i], &pair, &two));
            if (two != 2) return eval_fail(e, "ValueError: %s needs pairs, element %d has %d", what, i, two);
            TRY(dict_put(e, d, &pair[0], &pair[1]));
        }
    }
    for (int k = 0; k < a->n_key; k++) {
        Value key = v_str(a->key[k]);
        TRY(dict_put(e, d, &key, &a->value[k]));
    }
    return OK;
}

static int fn_dict(Eval *e, const Value *self, const Args *a, Value *out)
{
    Dict *d;
    (void)self;
    TRY(build_dict(e, "dict", a, &d));
    *out = (Value){.kind = V_DICT, .dict = d};
    return OK;
}

static int fn_namespace(Eval *e, const Value *self, const Args *a, Value *out)
{
    Dict *d;
    (void)self;
    TRY(build_dict(e, "namespace", a, &d));
    *out = (Value){.kind = V_NAMESPACE, .dict = d};
    return OK;
}

static int fn_raise(Eval *e, const Value *self, const Args *a, Value *out)
{
    Str message;
    (void)self, (void)out;
    TRY(value_str(e, &a->pos[0], &message));
    return eval_fail(e, "%.*s", (int)MIN(message.n, 600), message.s);
}

static int fn_strftime(Eval *e, const Value *self, const Args *a, Value *out)
{
    (void)self;
    if (a->pos[0].kind != V_STRING || a->pos[0].n > 200)
        return eval_fail(e, "strftime_now needs a format of at most 200 bytes");
    char format[204], text[1024];
    snprintf(format, sizeof format, "%.*s ", a->pos[0].n,
             a->pos[0].s); // the blank tells an empty result from an overflow
    time_t now = time(NULL);
    struct tm local;
    localtime_r(&now, &local);
    size_t n = strftime(text, sizeof text, format, &local);
    if (n == 0) return eval_fail(e, "strftime_now gives too long a text");
    *out = new_string(e, text, n - 1);
    return OK;
}

const Callable *find_global(Str name)
{
    static const Callable globals[] = {
        {"range", fn_range, "!start,stop,step"},  {"dict", fn_dict, NULL},
        {"namespace", fn_namespace, NULL},        {"raise_exception", fn_raise, "!message"},
        {"strftime_now", fn_strftime, "!format"},
    };
    for (size_t i = 0; i < COUNT_OF(globals); i++)
        if (str_is(name, globals[i].name)) return &globals[i];
    return NULL;
}
