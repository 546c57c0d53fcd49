// template_tests: what stands behind "is".
#include "text/template_impl.h"

static int test_defined(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)e, (void)a;
    *out = v_bool(v->kind != V_UNDEFINED);
    return OK;
}

static int test_undefined(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)e, (void)a;
    *out = v_bool(v->kind == V_UNDEFINED);
    return OK;
}

static int is_kind(const Value *v, Kind kind, Value *out)
{
    *out = v_bool(v->kind == kind);
    return OK;
}
#define KIND_TEST(name, kind)                                                                                          \
    static int test_##name(Eval *e, const Value *v, const Args *a, Value *out)                                         \
    {                                                                                                                  \
        (void)e, (void)a;                                                                                              \
        return is_kind(v, kind, out);                                                                                  \
    }
KIND_TEST(none, V_NONE)
KIND_TEST(boolean, V_BOOL)
KIND_TEST(integer, V_INT)
KIND_TEST(float, V_FLOAT)
KIND_TEST(string, V_STRING)
KIND_TEST(mapping, V_DICT)
#undef KIND_TEST

static int test_true(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)e, (void)a;
    *out = v_bool(v->kind == V_BOOL && v->b);
    return OK;
}

static int test_false(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)e, (void)a;
    *out = v_bool(v->kind == V_BOOL && !v->b);
    return OK;
}

static int test_number(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)e, (void)a;
    *out = v_bool(v_is_number(v));
    return OK;
}

static int test_sequence(Eval *e, const Value *v, const Args *a, Value *out) // has a length and subscripts
{
    (void)e, (void)a;
    *out = v_bool(v->kind == V_STRING || v->kind == V_LIST || v->kind == V_TUPLE || v->kind == V_DICT ||
                  v->kind == V_UNDEFINED);
    return OK;
}

static int test_iterable(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)e, (void)a;
    bool no = v_is_number(v) || v->kind == V_NONE || v->kind == V_NAMESPACE || v->kind >= V_MACRO;
    *out = v_bool(!no);
    return OK;
}

static int test_callable(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)e, (void)a;
    *out = v_bool(v->kind == V_MACRO || v->kind == V_FUNCTION || v->kind == V_METHOD || v->kind == V_UNDEFINED);
    return OK;
}

static int remainder_is(Eval *e, const Value *v, int64_t divisor, int64_t wanted, Value *out)
{
    Value d = v_int(divisor), r;
    bool equal;
    TRY(op_binary(e, OP_MOD, v, &d, &r));
    d = v_int(wanted);
    TRY(value_equal(e, &r, &d, &equal));
    *out = v_bool(equal);
    return OK;
}
static int test_odd(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)a;
    return remainder_is(e, v, 2, 1, out);
}
static int test_even(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)a;
    return remainder_is(e, v, 2, 0, out);
}
static int test_divisible(Eval *e, const Value *v, const Args *a, Value *out)
{
    if (!v_is_int(&a->pos[0])) return eval_fail(e, "TypeError: divisibleby needs an integer");
    return remainder_is(e, v, v_as_int(&a->pos[0]), 0, out);
}

static int test_equal(Eval *e, const Value *v, const Args *a, Value *out)
{
    bool equal;
    TRY(value_equal(e, v, &a->pos[0], &equal));
    *out = v_bool(equal);
    return OK;
}

static int test_not_equal(Eval *e, const Value *v, const Args *a, Value *out)
{
    TRY(test_equal(e, v, a, out));
    out->b = !out->b;
    return OK;
}

#define ORDER_TEST(name, op)                                                                                           \
    static int test_##name(Eval *e, const Value *v, const Args *a, Value *out)                                         \
    {                                                                                                                  \
        int order;                                                                                                     \
        TRY(value_compare(e, v, &a->pos[0], #op, &order));                                                             \
        *out = v_bool(order op 0);                                                                                     \
        return OK;                                                                                                     \
    }
ORDER_TEST(less, <)
ORDER_TEST(less_equal, <=)
ORDER_TEST(greater, >)
ORDER_TEST(greater_equal, >=)
#undef ORDER_TEST

static int test_in(Eval *e, const Value *v, const Args *a, Value *out)
{
    bool found;
    TRY(value_contains(e, &a->pos[0], v, &found));
    *out = v_bool(found);
    return OK;
}

static int test_same(Eval *e, const Value *v, const Args *a, Value *out)
{
    bool equal = false;
    const Value *o = &a->pos[0];
    if (v->kind == o->kind && v->kind < V_STRING) TRY(value_equal(e, v, o, &equal));
    if (v->kind == o->kind && v->kind >= V_STRING) equal = v->s == o->s && v->n == o->n;
    *out = v_bool(equal);
    return OK;
}

// islower, isupper: at least one cased character and none of the other case
static int test_case(Eval *e, const Value *v, bool lower, Value *out)
{
    Str s;
    bool any = false, other = false;
    TRY(value_str(e, v, &s));
    for (int32_t i = 0; i < s.n;) {
        uint32_t cp = utf8_next(s.s, &i);
        any |= lower ? is_lower(cp) : is_upper(cp);
        other |= is_title(cp) || (lower ? is_upper(cp) : is_lower(cp));
    }
    *out = v_bool(any && !other);
    return OK;
}
static int test_lower(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)a;
    return test_case(e, v, true, out);
}
static int test_upper(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)a;
    return test_case(e, v, false, out);
}

static int test_filter(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)e, (void)a;
    *out = v_bool(v->kind == V_STRING && find_filter(v_text(v)));
    return OK;
}
static int test_test(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)e, (void)a;
    *out = v_bool(v->kind == V_STRING && find_test(v_text(v)));
    return OK;
}
static int test_escaped(Eval *e, const Value *v, const Args *a, Value *out)
{
    (void)e, (void)v, (void)a;
    *out = v_bool(false);
    return OK;
}

const Callable *find_test(Str name)
{
    static const Callable tests[] = {
        {"defined", test_defined, ""},
        {"undefined", test_undefined, ""},
        {"none", test_none, ""},
        {"boolean", test_boolean, ""},
        {"true", test_true, ""},
        {"false", test_false, ""},
        {"integer", test_integer, ""},
        {"float", test_float, ""},
        {"number", test_number, ""},
        {"string", test_string, ""},
        {"mapping", test_mapping, ""},
        {"sequence", test_sequence, ""},
        {"iterable", test_iterable, ""},
        {"callable", test_callable, ""},
        {"odd", test_odd, ""},
        {"even", test_even, ""},
        {"divisibleby", test_divisible, "!num"},
        {"eq", test_equal, "!other"},
        {"==", test_equal, "!other"},
        {"equalto", test_equal, "!other"},
        {"ne", test_not_equal, "!other"},
        {"!=", test_not_equal, "!other"},
        {"lt", test_less, "!other"},
        {"<", test_less, "!other"},
        {"lessthan", test_less, "!other"},
        {"le", test_less_equal, "!other"},
        {"<=", test_less_equal, "!other"},
        {"gt", test_greater, "!other"},
        {">", test_greater, "!other"},
        {"greaterthan", test_greater, "!other"},
        {"ge", test_greater_equal, "!other"},
        {">=", test_greater_equal, "!other"},
        {"in", test_in, "!seq"},
        {"sameas", test_same, "!other"},
        {"lower", test_lower, ""},
        {"upper", test_upper, ""},
        {"filter", test_filter, ""},
        {"test", test_test, ""},
        {"escaped", test_escaped, ""},
    };
    for (size_t i = 0; i < COUNT_OF(tests); i++)
        if (str_is(name, tests[i].name)) return &tests[i];
    return NULL;
}
