// template_ops: operators, attributes, subscripts and slices, with Python's rules. Integers are 64 bits: what Python would
// make larger is an error.
#include "text/template_impl.h"
#include <math.h>

static int type_error(Eval *e, const char *op, const Value *a, const Value *b)
{
    if (a->kind == V_UNDEFINED) return eval_undefined_used(e, a);
    if (b->kind == V_UNDEFINED) return eval_undefined_used(e, b);
    if (*op == '+' && a->kind == V_STRING)
        return eval_fail(e, "TypeError: can only concatenate str (not \"%s\") to str", value_type(b));
    return eval_fail(e, "TypeError: unsupported operand type(s) for %s: '%s' and '%s'", op, value_type(a),
                     value_type(b));
}

static int overflow(Eval *e)
{
    return eval_fail(e, "an integer exceeds 64 bits");
}

// ---- numbers --------------------------------------------------------------------------------------------------------
static int int_power(Eval *e, int64_t base, int64_t exponent, Value *out)
{
    int64_t result = 1;
    if (exponent < 0) {
        if (base == 0) return eval_fail(e, "ZeroDivisionError: 0 cannot be raised to a negative power");
        *out = v_float(pow((double)base, (double)exponent));
        return OK;
    }
    for (; exponent > 0; exponent >>= 1) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) return overflow(e);
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) return overflow(e);
    }
    *out = v_int(result);
    return OK;
}

static int int_op(Eval *e, BinaryOp op, int64_t a, int64_t b, Value *out)
{
    int64_t r = 0;
    if ((op == OP_DIV || op == OP_FLOOR_DIV || op == OP_MOD) && b == 0)
        return eval_fail(e, "ZeroDivisionError: division by zero");
    if ((op == OP_FLOOR_DIV || op == OP_MOD) && b == -1) { // INT64_MIN / -1 traps
        if (op == OP_FLOOR_DIV && __builtin_sub_overflow((int64_t)0, a, &r)) return overflow(e);
        *out = v_int(op == OP_MOD ? 0 : r);
        return OK;
    }
    bool bad = false;
    switch (op) {
    case OP_ADD: bad = __builtin_add_overflow(a, b, &r); break;
    case OP_SUB: bad = __builtin_sub_overflow(a, b, &r); break;
    case OP_MUL: bad = __builtin_mul_overflow(a, b, &r); break;
    case OP_DIV: *out = v_float((double)a / (double)b); return OK;
    case OP_FLOOR_DIV: r = a / b - (a % b != 0 && (a < 0) != (b < 0)); break;
    case OP_MOD: r = a % b + (a % b != 0 && (a < 0) != (b < 0) ? b : 0); break;
    case OP_POW: return int_power(e, a, b, out);
    }
    if (bad) return overflow(e);
    *out = v_int(r);
    return OK;
}

static int float_op(Eval *e, BinaryOp op, double a, double b, Value *out)
{
    if ((op == OP_DIV || op == OP_FLOOR_DIV || op == OP_MOD) && b == 0)
        return eval_fail(e, "ZeroDivisionError: float division by zero");
    double mod = 0;
    if (op == OP_FLOOR_DIV || op == OP_MOD) {
        mod = fmod(a, b);
        if (mod != 0 && (mod < 0) != (b < 0)) mod += b;
    }
    switch (op) {
    case OP_ADD: *out = v_float(a + b); return OK;
    case OP_SUB: *out = v_float(a - b); return OK;
    case OP_MUL: *out = v_float(a * b); return OK;
    case OP_DIV: *out = v_float(a / b); return OK;
    case OP_FLOOR_DIV: *out = v_float(nearbyint((a - mod) / b)); return OK;
    case OP_MOD: *out = v_float(mod); return OK;
    case OP_POW: break;
    }
    double r = pow(a, b);
    if (isnan(r) && !isnan(a) && !isnan(b)) return eval_fail(e, "a negative number to a fractional power is complex");
    if (isinf(r) && !isinf(a) && !isinf(b)) return eval_fail(e, "OverflowError: numerical result out of range");
    *out = v_float(r);
    return OK;
}

// ---- sequences ------------------------------------------------------------------------------------------------------
static int join_strings(Eval *e, const Value *a, const Value *b, Value *out)
{
    size_t n = (size_t)a->n + (size_t)b->n;
    TRY(eval_charge(e, n));
    char *s = pool_alloc(&e->pool, n + 1);
    memcpy(s, a->s, (size_t)a->n);
    memcpy(s + a->n, b->s, (size_t)b->n);
    *out = v_str((Str){s, (int32_t)n});
    return OK;
}

static int join_items(Eval *e, const Value *a, const Value *b, Value *out)
{
    size_t n = (size_t)a->n + (size_t)b->n;
    TRY(eval_charge(e, n * sizeof(Value)));
    Value *items = new_items(e, (int)n);
    if (a->n) memcpy(items, a->items, (size_t)a->n * sizeof *items);
    if (b->n) memcpy(items + a->n, b->items, (size_t)b->n * sizeof *items);
    *out = v_items((Kind)a->kind, items, (int)n);
    return OK;
}

static int repeat(Eval *e, const Value *v, int64_t times, Value *out)
{
    size_t unit = v->kind == V_STRING ? 1 : sizeof(Value), n;
    if (times < 0) times = 0;
    if (!mul_ok((size_t)v->n, (size_t)times, &n) || !mul_ok(n, unit, &n)) n = SIZE_MAX;
    TRY(eval_charge(e, n));
    char *data = pool_alloc(&e->pool, n + 1);
    size_t part = (size_t)v->n * unit;
    for (size_t at = 0; at < n; at += part) memcpy(data + at, v->s, part); // s and items share their place
    *out = (Value){.kind = v->kind, .n = (int32_t)(n / unit), .s = data};
    return OK;
}

static bool is_sequence(const Value *v)
{
    return v->kind == V_STRING || v->kind == V_LIST || v->kind == V_TUPLE;
}

int op_binary(Eval *e, BinaryOp op, const Value *a, const Value *b, Value *out)
{
    static const char *const text[] = {"+", "-", "*", "/", "//", "%", "**"};
    if (v_is_number(a) && v_is_number(b)) {
        if (v_is_int(a) && v_is_int(b)) return int_op(e, op, v_as_int(a), v_as_int(b), out);
        return float_op(e, op, v_as_float(a), v_as_float(b), out);
    }
    if (op == OP_ADD && a->kind == b->kind && a->kind == V_STRING) return join_strings(e, a, b, out);
    if (op == OP_ADD && a->kind == b->kind && is_sequence(a)) return join_items(e, a, b, out);
    if (op == OP_MUL && is_sequence(a) && v_is_int(b)) return repeat(e, a, v_as_int(b), out);
    if (op == OP_MUL && is_sequence(b) && v_is_int(a)) return repeat(e, b, v_as_int(a), out);
    if (op == OP_MOD && a->kind == V_STRING) return format_percent(e, v_text(a), b, out);
    return type_error(e, text[op], a, b);
}

int op_negate(Eval *e, const Value *v, Value *out)
{
    if (v->kind == V_UNDEFINED) return eval_undefined_used(e, v);
    if (!v_is_number(v)) return eval_fail(e, "TypeError: bad operand type for unary -: '%s'", value_type(v));
    if (v->kind == V_FLOAT) {
        *out = v_float(-v->f);
        return OK;
    }
    return int_op(e, OP_SUB, 0, v_as_int(v), out);
}

// ---- attributes and subscripts --------------------------------------------------------------------------------------
static bool loop_attr(const Loop *l, Str name, Value *out)
{
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"index", l->at + 1},
                   {"index0", l->at},
                   {"revindex", l->n - l->at},
                   {"revindex0", l->n - l->at - 1},
                   {"length", l->n},
                   {"depth", 1},
                   {"depth0", 0}};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        if (!str_is(name, numbers[i].name)) continue;
        *out = v_int(numbers[i].value);
        return true;
    }
    if (str_is(name, "first") || str_is(name, "last")) {
        *out = v_bool(str_is(name, "first") ? l->at == 0 : l->at == l->n - 1);
        return true;
    }
    bool previous = str_is(name, "previtem");
    if (!previous && !str_is(name, "nextitem")) return false;
    int i = previous ? l->at - 1 : l->at + 1;
    *out = i < 0 || i >= l->n ? v_undefined(name, 0) : l->items[i];
    return true;
}

// A field that only `.name` and, failing an element, ['name'] reach.
static bool own_attr(Eval *e, const Value *object, Str name, Value *out)
{
    const Callable *method = find_method(object, name);
    if (method) {
        Bound *b = pool_alloc(&e->pool, sizeof *b);
        *b = (Bound){*object, method};
        *out = (Value){.kind = V_METHOD, .bound = b};
        return true;
    }
    if (object->kind == V_LOOP) return loop_attr(object->loop, name, out);
    const Value *v = object->kind == V_NAMESPACE ? dict_get(object->dict, name) : NULL;
    if (v) *out = *v;
    if (object->kind == V_MACRO && str_is(name, "name")) {
        *out = v_str(object->macro->node->text);
        return true;
    }
    return v != NULL;
}

int op_attr(Eval *e, const Value *object, Str name, Value *out)
{
    if (object->kind == V_UNDEFINED) return eval_undefined_used(e, object);
    if (own_attr(e, object, name, out)) return OK;
    if (object->kind == V_DICT) {
        Value key = v_str(name);
        const Value *v;
        TRY(dict_find(e, object->dict, &key, &v));
        if (v) {
            *out = *v;
            return OK;
        }
    }
    *out = v_undefined(name, (Kind)object->kind);
    return OK;
}

static Value char_at(Str s, int64_t index)
{
    int32_t begin = str_offset(s, index), end = begin;
    utf8_next(s.s, &end);
    return v_str((Str){s.s + begin, end - begin});
}

int op_item(Eval *e, const Value *object, const Value *index, Value *out)
{
    if (object->kind == V_UNDEFINED) return eval_undefined_used(e, object);
    if (object->kind == V_DICT && value_hashable(index)) {
        const Value *v;
        TRY(dict_find(e, object->dict, index, &v));
        if (v) {
            *out = *v;
            return OK;
        }
    } else if (is_sequence(object) && v_is_int(index)) {
        int64_t n, i = v_as_int(index);
        TRY(value_length(e, object, &n));
        if (i < 0) i += n;
        if (i >= 0 && i < n) {
            *out = object->kind == V_STRING ? char_at(v_text(object), i) : object->items[i];
            return OK;
        }
    }
    if (index->kind == V_STRING && own_attr(e, object, v_text(index), out)) return OK;
    Str name;
    TRY(value_str(e, index, &name));
    *out = v_undefined(name, (Kind)object->kind);
    return OK;
}

int op_attr_path(Eval *e, const Value *object, const Value *path, Value *out)
{
    *out = *object;
    if (path->kind != V_STRING) return op_item(e, object, path, out);
    for (Str rest = v_text(path); rest.n >= 0;) {
        const char *dot = rest.n ? memchr(rest.s, '.', (size_t)rest.n) : NULL;
        Str part = {rest.s, dot ? (int32_t)(dot - rest.s) : rest.n};
        rest = (Str){part.s + part.n + 1, rest.n - part.n - 1};
        bool digits = part.n > 0 && part.n < 10;
        int64_t number = 0;
        for (int32_t i = 0; i < part.n; i++) {
            digits = digits && part.s[i] >= '0' && part.s[i] <= '9';
            if (digits) number = number * 10 + (part.s[i] - '0');
        }
        Value step = digits ? v_int(number) : v_str(part), from = *out;
        TRY(op_item(e, &from, &step, out));
    }
    return OK;
}

// ---- slices: Python's slice.indices ---------------------------------------------------------------------------------
static int slice_bound(Eval *e, const Value *v, int64_t n, int64_t missing, bool backwards, int64_t *out)
{
    *out = missing;
    if (v->kind == V_NONE || v->kind == V_ABSENT) return OK;
    if (v->kind == V_UNDEFINED) return eval_undefined_used(e, v);
    if (!v_is_int(v)) return eval_fail(e, "TypeError: slice indices must be integers or None");
    int64_t i = v_as_int(v), low = backwards ? -1 : 0, high = backwards ? n - 1 : n;
    if (i < 0) i = i < -n ? -n - 1 : i;
    if (i < 0) i += n;
    *out = MIN(MAX(i, low), high);
    return OK;
}

static int slice_string(Eval *e, Str s, int64_t start, int64_t step, int64_t count, Value *out)
{
    if (step == 1) { // shares the text
        int32_t begin = str_offset(s, start), end = begin + str_offset((Str){s.s + begin, s.n - begin}, count);
        *out = v_str((Str){s.s + begin, end - begin});
        return OK;
    }
    Value whole = v_str(s);
    const Value *chars;
    int n;
    TRY(value_iterate(e, &whole, &chars, &n));
    Buf text = {0};
    for (int64_t k = 0; k < count; k++) buf_put(&text, chars[start + k * step].s, (size_t)chars[start + k * step].n);
    return take_buf(e, &text, out);
}

int op_slice(Eval *e, const Value *object, const Value part[3], Value *out)
{
    int64_t n, step = 1, start, stop;
    if (object->kind == V_UNDEFINED) return eval_undefined_used(e, object);
    if (!is_sequence(object)) return eval_fail(e, "TypeError: '%s' object is not subscriptable", value_type(object));
    TRY(value_length(e, object, &n));
    if (part[2].kind != V_NONE && part[2].kind != V_ABSENT) {
        if (!v_is_int(&part[2])) return eval_fail(e, "TypeError: slice indices must be integers or None");
        step = v_as_int(&part[2]);
        if (step == 0) return eval_fail(e, "ValueError: slice step cannot be zero");
        step = MAX(MIN(step, INT32_MAX), -INT32_MAX);
    }
    bool back = step < 0;
    TRY(slice_bound(e, &part[0], n, back ? n - 1 : 0, back, &start));
    TRY(slice_bound(e, &part[1], n, back ? -1 : n, back, &stop));
    int64_t span = back ? start - stop : stop - start, stride = back ? -step : step;
    int64_t count = span > 0 ? (span + stride - 1) / stride : 0;
    if (object->kind == V_STRING) return slice_string(e, v_text(object), start, step, count, out);
    TRY(eval_charge(e, step == 1 ? 0 : (size_t)count * sizeof(Value)));
    const Value *items = object->items + (count ? start : 0);
    if (step != 1) {
        Value *copy = new_items(e, (int)count);
        for (int64_t k = 0; k < count; k++) copy[k] = items[k * step];
        items = copy;
    }
    *out = v_items((Kind)object->kind, items, (int)count);
    return OK;
}
