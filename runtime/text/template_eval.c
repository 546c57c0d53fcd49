// template_eval: runs the tree. Scopes are Jinja's: for, with, macro, set blocks and generation open one, if does not; what a
// loop sets is gone with the iteration; macros see the scope they were defined in.
#include "text/template_impl.h"
#include <stdlib.h>

enum { BREAK = 1, CONTINUE = 2 }; // results of eval_block besides OK and errors

// ---- accounting -----------------------------------------------------------------------------------------------------
int(eval_fail)(const Eval *e, const char *fmt, ...)
{
    char text[700];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return fail(E_INPUT, tmpf("%s:%d", e->t->place, e->line), NULL, "chat template: %s", text);
}

int eval_charge(Eval *e, size_t bytes)
{
    // 256 bytes of copying or searching count like one evaluated expression
    e->steps += bytes > (size_t)POOL_BYTES_MAX ? STEPS_OF_RENDER_MAX : (int64_t)(bytes / 256);
    if (e->steps > STEPS_OF_RENDER_MAX) return eval_fail(e, "takes more than %d steps", STEPS_OF_RENDER_MAX);
    if (bytes > POOL_BYTES_MAX - MIN(e->pool.total, (size_t)POOL_BYTES_MAX))
        return eval_fail(e, "needs more than %d MiB of memory", POOL_BYTES_MAX >> 20);
    return OK;
}

int eval_emit(Eval *e, const char *s, size_t n)
{
    TRY(eval_charge(e, n));
    if (n > OUTPUT_BYTES_MAX - MIN(e->out->len, (size_t)OUTPUT_BYTES_MAX))
        return eval_fail(e, "writes more than %d MiB", OUTPUT_BYTES_MAX >> 20);
    buf_put(e->out, s, n);
    return OK;
}

int eval_undefined_used(const Eval *e, const Value *v)
{
    Value owner = {.kind = v->owner};
    if (v->owner)
        return eval_fail(e, "'%s object' has no attribute '%.*s'", value_type(&owner), (int)MIN(v->n, 200), v->s);
    return eval_fail(e, "'%.*s' is undefined", (int)MIN(v->n, 200), v->s);
}

// ---- scopes ---------------------------------------------------------------------------------------------------------
static Scope *push_scope(Eval *e)
{
    Scope *s = pool_alloc(&e->pool, sizeof *s);
    s->parent = e->scope;
    return e->scope = s;
}

static void set_var(Eval *e, int name, const Value *value)
{
    for (Var *v = e->scope->vars; v; v = v->next) {
        if (v->name != name) continue;
        v->value = *value;
        return;
    }
    Var *v = pool_alloc(&e->pool, sizeof *v);
    *v = (Var){name, *value, e->scope->vars};
    e->scope->vars = v;
}

static const Value *find_var(const Eval *e, int name)
{
    for (const Scope *s = e->scope; s; s = s->parent)
        for (const Var *v = s->vars; v; v = v->next)
            if (v->name == name) return &v->value;
    return NULL;
}

static int eval_name(Eval *e, const Node *n, Value *out)
{
    Str name = e->t->names.v[n->name];
    const Value *v = find_var(e, n->name);
    if (!v) v = dict_get(e->vars, name);
    if (v) {
        *out = *v;
        return OK;
    }
    const Callable *f = find_global(name);
    *out = f ? (Value){.kind = V_FUNCTION, .function = f} : v_undefined(name, 0);
    return OK;
}

static int assign(Eval *e, const Node *target, const Value *value);

static int unpack(Eval *e, const Node *target, const Value *value)
{
    const Value *items;
    int n;
    TRY(value_iterate(e, value, &items, &n));
    if (n != target->n) return eval_fail(e, "ValueError: cannot unpack %d values into %d names", n, target->n);
    for (int i = 0; i < n; i++) TRY(assign(e, target->list[i], &items[i]));
    return OK;
}

static int assign(Eval *e, const Node *target, const Value *value)
{
    if (target->kind == N_TUPLE) return unpack(e, target, value);
    if (target->kind == N_NAME) {
        set_var(e, target->name, value);
        return OK;
    }
    Value ns, key = v_str(target->text);
    TRY(eval_name(e, target, &ns));
    if (ns.kind != V_NAMESPACE) return eval_fail(e, "cannot assign attribute on non-namespace object");
    if (target->text.n && target->text.s[0] == '_')
        return eval_fail(e, "namespace attributes cannot start with an underscore");
    return dict_put(e, ns.dict, &key, value);
}

// ---- expressions ----------------------------------------------------------------------------------------------------
static int eval_elements(Eval *e, const Node *n, Kind kind, Value *out)
{
    Value *items = new_items(e, n->n);
    for (int i = 0; i < n->n; i++) TRY(eval_node(e, n->list[i], &items[i]));
    *out = v_items(kind, items, n->n);
    return OK;
}

static int eval_dict(Eval *e, const Node *n, Value *out)
{
    Dict *d = new_dict(e, n->n / 2);
    for (int i = 0; i < n->n; i += 2) {
        Value key, value;
        TRY(eval_node(e, n->list[i], &key));
        TRY(eval_node(e, n->list[i + 1], &value));
        TRY(dict_put(e, d, &key, &value));
    }
    *out = (Value){.kind = V_DICT, .dict = d};
    return OK;
}

static int eval_slice(Eval *e, const Node *n, Value *out)
{
    Value object, part[3] = {{0}};
    TRY(eval_node(e, n->a, &object));
    for (int i = 0; i < 3; i++)
        if (n->list[i]) TRY(eval_node(e, n->list[i], &part[i]));
    return op_slice(e, &object, part, out);
}

static int eval_concat(Eval *e, const Node *n, Value *out)
{
    Buf text = {0};
    int status = OK;
    for (int i = 0; i < n->n; i++) {
        Value part;
        TRY_DONE(eval_node(e, n->list[i], &part));
        TRY_DONE(value_put_str(e, &part, &text));
        TRY_DONE(eval_charge(e, text.len));
    }
    return take_buf(e, &text, out);
done:
    buf_free(&text);
    return status;
}

static int compare(Eval *e, CompareOp op, const Value *a, const Value *b, bool *yes)
{
    static const char *const text[] = {"==", "!=", "<", "<=", ">", ">="};
    int order = 0;
    if (op == CMP_IN || op == CMP_NOT_IN) {
        TRY(value_contains(e, b, a, yes));
        *yes ^= op == CMP_NOT_IN;
        return OK;
    }
    if (op == CMP_EQ || op == CMP_NE) {
        TRY(value_equal(e, a, b, yes));
        *yes ^= op == CMP_NE;
        return OK;
    }
    TRY(value_compare(e, a, b, text[op], &order));
    *yes = op == CMP_LT ? order < 0 : op == CMP_LE ? order <= 0 : op == CMP_GT ? order > 0 : order >= 0;
    return OK;
}

static int eval_compare(Eval *e, const Node *n, Value *out)
{
    Value left, right;
    bool yes = true;
    TRY(eval_node(e, n->a, &left));
    for (int i = 0; yes && i < n->n; i++) { // a < b < c is a < b and b < c
        TRY(eval_node(e, n->list[i]->a, &right));
        TRY(compare(e, (CompareOp)n->list[i]->op, &left, &right, &yes));
        left = right;
    }
    *out = v_bool(yes);
    return OK;
}

static int eval_choice(Eval *e, const Node *n, Value *out)
{
    Value condition;
    TRY(eval_node(e, n->a, &condition));
    if (value_truth(&condition)) return eval_node(e, n->b, out);
    if (n->c) return eval_node(e, n->c, out);
    *out = v_undefined(STR("the inline if-expression without an else"), 0);
    return OK;
}

typedef struct ArgList { // arguments being gathered
    Value *pos, *value;
    Str *key;
    int n, n_key, cap, cap_key;
} ArgList;

static int put_positional(Eval *e, ArgList *l, const Value *v, int n)
{
    if (l->n + n > l->cap) {
        l->cap = MAX(l->n + n, l->cap * 2);
        TRY(eval_charge(e, (size_t)l->cap * sizeof(Value)));
        Value *grown = new_items(e, l->cap);
        if (l->n) memcpy(grown, l->pos, (size_t)l->n * sizeof *grown);
        l->pos = grown;
    }
    if (n) memcpy(l->pos + l->n, v, (size_t)n * sizeof *v);
    l->n += n;
    return OK;
}

static int put_keyword(Eval *e, ArgList *l, Str key, const Value *v)
{
    for (int i = 0; i < l->n_key; i++)
        if (str_eq(l->key[i], key))
            return eval_fail(e, "TypeError: keyword argument '%.*s' given twice", (int)MIN(key.n, 100), key.s);
    if (l->n_key == l->cap_key) {
        l->cap_key = MAX(8, l->cap_key * 2);
        TRY(eval_charge(e, (size_t)l->cap_key * 32));
        Value *values = new_items(e, l->cap_key);
        Str *keys = pool_alloc(&e->pool, (size_t)l->cap_key * sizeof *keys);
        if (l->n_key) memcpy(values, l->value, (size_t)l->n_key * sizeof *values);
        if (l->n_key) memcpy(keys, l->key, (size_t)l->n_key * sizeof *keys);
        l->value = values;
        l->key = keys;
    }
    l->key[l->n_key] = key;
    l->value[l->n_key++] = *v;
    return OK;
}

static int put_double_star(Eval *e, ArgList *l, const Value *v)
{
    if (v->kind != V_DICT) return eval_fail(e, "TypeError: argument after ** must be a mapping, not %s", value_type(v));
    for (int i = 0; i < v->dict->n; i++) {
        if (v->dict->key[i].kind != V_STRING) return eval_fail(e, "TypeError: keywords must be strings");
        TRY(put_keyword(e, l, v_text(&v->dict->key[i]), &v->dict->value[i]));
    }
    return OK;
}

static int eval_args(Eval *e, const Node *n, Args *out)
{
    ArgList l = {0};
    for (int i = 0; i < n->n; i++) {
        const Node *arg = n->list[i];
        Value v;
        const Value *items;
        int count;
        TRY(eval_node(e, arg->a, &v));
        switch ((ArgKind)arg->op) {
        case ARG_POSITIONAL: TRY(put_positional(e, &l, &v, 1)); break;
        case ARG_KEYWORD: TRY(put_keyword(e, &l, arg->text, &v)); break;
        case ARG_STAR:
            TRY(value_iterate(e, &v, &items, &count));
            TRY(put_positional(e, &l, items, count));
            break;
        case ARG_STAR_STAR: TRY(put_double_star(e, &l, &v)); break;
        }
    }
    *out = (Args){l.n ? l.pos : no_values, l.n, l.key, l.value, l.n_key};
    return OK;
}

static int eval_call(Eval *e, const Node *n, Value *out)
{
    Value callee;
    Args args;
    TRY(eval_node(e, n->a, &callee));
    TRY(eval_args(e, n, &args));
    e->line = n->line;
    return call_value(e, &callee, &args, out);
}

// A filter or a test; input: what stands before it.
static int eval_named(Eval *e, const Node *n, const Value *input, Value *out)
{
    Args args;
    if (!n->callable)
        return eval_fail(e, "no %s named '%.*s'", n->kind == N_FILTER ? "filter" : "test", (int)MIN(n->text.n, 100),
                         n->text.s);
    TRY(eval_args(e, n, &args));
    return call_bound(e, n->callable, input, &args, out);
}

static int eval_operand(Eval *e, const Node *n, Value *out) // one operand in n->a
{
    Value v;
    TRY(eval_node(e, n->a, &v));
    e->line = n->line;
    switch ((NodeKind)n->kind) {
    case N_ATTR: return op_attr(e, &v, n->text, out);
    case N_FILTER:
    case N_TEST: return eval_named(e, n, &v, out);
    case N_NOT: *out = v_bool(!value_truth(&v)); return OK;
    case N_MINUS: return op_negate(e, &v, out);
    case N_PLUS:
        if (v.kind == V_UNDEFINED) return eval_undefined_used(e, &v);
        if (!v_is_number(&v)) return eval_fail(e, "TypeError: bad operand type for unary +: '%s'", value_type(&v));
        *out = v.kind == V_BOOL ? v_int(v.b) : v;
        return OK;
    case N_AND:
    case N_OR:
        if (value_truth(&v) == (n->kind == N_AND)) return eval_node(e, n->b, out);
        *out = v;
        return OK;
    default: ASSERT(!"not an operator"); return OK;
    }
}

static int eval_two(Eval *e, const Node *n, Value *out) // operands in n->a and n->b
{
    Value a, b;
    TRY(eval_node(e, n->a, &a));
    TRY(eval_node(e, n->b, &b));
    e->line = n->line;
    return n->kind == N_ITEM ? op_item(e, &a, &b, out) : op_binary(e, (BinaryOp)n->op, &a, &b, out);
}

static int dispatch(Eval *e, const Node *n, Value *out)
{
    switch ((NodeKind)n->kind) {
    case N_NAME: return eval_name(e, n, out);
    case N_LIST: return eval_elements(e, n, V_LIST, out);
    case N_TUPLE: return eval_elements(e, n, V_TUPLE, out);
    case N_DICT: return eval_dict(e, n, out);
    case N_SLICE: return eval_slice(e, n, out);
    case N_CALL: return eval_call(e, n, out);
    case N_CONCAT: return eval_concat(e, n, out);
    case N_COMPARE: return eval_compare(e, n, out);
    case N_CHOICE: return eval_choice(e, n, out);
    case N_ITEM:
    case N_BINARY: return eval_two(e, n, out);
    default: return eval_operand(e, n, out);
    }
}

int eval_node(Eval *e, const Node *n, Value *out)
{
    if (n->kind == N_CONST) {
        *out = n->value;
        return OK;
    }
    e->line = n->line;
    e->steps++;
    TRY(eval_charge(e, 0));
    if (++e->depth > EVAL_DEPTH_MAX)
        return eval_fail(e, "expressions or macro calls are nested deeper than %d", EVAL_DEPTH_MAX);
    TRY(dispatch(e, n, out));
    e->depth--;
    return OK;
}

// ---- statements -----------------------------------------------------------------------------------------------------
static int exec_if(Eval *e, const Node *n)
{
    Value condition;
    int i = 0;
    for (; i + 1 < n->n; i += 2) {
        TRY(eval_node(e, n->list[i], &condition));
        if (value_truth(&condition)) return eval_block(e, n->list[i + 1]);
    }
    return i < n->n ? eval_block(e, n->list[i]) : OK;
}

// The items that pass "for x in items if condition".
static int keep_items(Eval *e, const Node *n, const Value **items, int *count)
{
    Value *kept = new_items(e, *count), pass;
    int k = 0;
    Scope *outer = e->scope;
    for (int i = 0; i < *count; i++) {
        push_scope(e);
        TRY(assign(e, n->a, &(*items)[i]));
        TRY(eval_node(e, n->c, &pass));
        if (value_truth(&pass)) kept[k++] = (*items)[i];
        e->scope = outer;
    }
    *items = kept;
    *count = k;
    return OK;
}

static int exec_for(Eval *e, const Node *n)
{
    Value sequence;
    Scope *outer = e->scope;
    Loop *loop = pool_alloc(&e->pool, sizeof *loop);
    int status = OK;
    TRY(eval_node(e, n->b, &sequence));
    TRY(value_iterate(e, &sequence, &loop->items, &loop->n));
    if (n->c) TRY(keep_items(e, n, &loop->items, &loop->n));
    Value self = {.kind = V_LOOP, .loop = loop};
    for (; loop->at < loop->n && status != BREAK; loop->at++) {
        push_scope(e);
        set_var(e, e->t->loop_name, &self);
        TRY(assign(e, n->a, &loop->items[loop->at]));
        e->steps++;
        TRY(status = eval_block(e, n->list[0]));
        e->scope = outer;
    }
    if (loop->n || n->n < 2) return OK;
    push_scope(e);
    TRY(status = eval_block(e, n->list[1]));
    e->scope = outer;
    return status;
}

// Runs a block and gives what it printed.
static int capture(Eval *e, const Node *body, Value *out)
{
    Buf text = {0}, *outer = e->out;
    Scope *scope = e->scope;
    push_scope(e);
    e->out = &text;
    int status = eval_block(e, body);
    e->out = outer;
    e->scope = scope;
    if (status > 0) status = eval_fail(e, "break or continue outside a loop");
    if (status == OK) return take_buf(e, &text, out);
    buf_free(&text);
    return status;
}

// Filters of a set or filter block: the innermost has no input of its own.
static int apply_filters(Eval *e, const Node *filter, const Value *input, Value *out)
{
    if (!filter) {
        *out = *input;
        return OK;
    }
    Value v;
    TRY(apply_filters(e, filter->a, input, &v));
    return eval_named(e, filter, &v, out);
}

static int exec_capture(Eval *e, const Node *n)
{
    Value text, v;
    TRY(capture(e, n->c, &text));
    TRY(apply_filters(e, n->b, &text, &v));
    if (n->a) return assign(e, n->a, &v);
    Str s;
    TRY(value_str(e, &v, &s));
    return eval_emit(e, s.s, (size_t)s.n);
}

static int exec_with(Eval *e, const Node *n)
{
    Scope *outer = e->scope;
    Value *values = new_items(e, n->n);
    for (int i = 1; i < n->n; i += 2) TRY(eval_node(e, n->list[i], &values[i])); // all in the outer scope
    push_scope(e);
    for (int i = 0; i < n->n; i += 2) TRY(assign(e, n->list[i], &values[i + 1]));
    int status = eval_block(e, n->a);
    e->scope = outer;
    return status;
}

static int exec_scope(Eval *e, const Node *n)
{
    Scope *outer = e->scope;
    push_scope(e);
    int status = eval_block(e, n->a);
    e->scope = outer;
    return status;
}

static int exec_print(Eval *e, const Node *n)
{
    Value v;
    Str s;
    TRY(eval_node(e, n->a, &v));
    TRY(value_str(e, &v, &s));
    return eval_emit(e, s.s, (size_t)s.n);
}

static int exec_set(Eval *e, const Node *n)
{
    Value v;
    TRY(eval_node(e, n->b, &v));
    return assign(e, n->a, &v);
}

static int exec_macro(Eval *e, const Node *n)
{
    Macro *m = pool_alloc(&e->pool, sizeof *m);
    *m = (Macro){n, e->scope};
    set_var(e, n->name, &(Value){.kind = V_MACRO, .macro = m});
    return OK;
}

static int exec(Eval *e, const Node *n)
{
    switch ((NodeKind)n->kind) {
    case N_TEXT: return eval_emit(e, n->text.s, (size_t)n->text.n);
    case N_PRINT: return exec_print(e, n);
    case N_IF: return exec_if(e, n);
    case N_FOR: return exec_for(e, n);
    case N_SET: return exec_set(e, n);
    case N_CAPTURE: return exec_capture(e, n);
    case N_MACRO: return exec_macro(e, n);
    case N_WITH: return exec_with(e, n);
    case N_SCOPE: return exec_scope(e, n);
    case N_BREAK: return BREAK;
    case N_CONTINUE: return CONTINUE;
    default: ASSERT(!"not a statement"); return OK;
    }
}

int eval_block(Eval *e, const Node *n)
{
    if (++e->depth > EVAL_DEPTH_MAX)
        return eval_fail(e, "blocks or macro calls are nested deeper than %d", EVAL_DEPTH_MAX);
    int status = OK;
    for (int i = 0; i < n->n && status == OK; i++) {
        e->line = n->list[i]->line;
        e->steps++;
        TRY(eval_charge(e, 0));
        TRY(status = exec(e, n->list[i]));
    }
    e->depth--;
    return status;
}

// ---- macros ---------------------------------------------------------------------------------------------------------
static int bind_parameter(Eval *e, const Node *param, int i, const Args *a, bool *taken)
{
    Value v = v_undefined(param->text, 0);
    if (i < a->n) {
        v = a->pos[i];
    } else {
        int k = 0;
        while (k < a->n_key && !str_eq(a->key[k], param->text)) k++;
        if (k < a->n_key) {
            v = a->value[k];
            taken[k] = true;
        } else if (param->a) {
            TRY(eval_node(e, param->a, &v));
        }
    }
    set_var(e, param->name, &v);
    return OK;
}

static int bind_rest(Eval *e, const Macro *m, const Args *a, const bool *taken)
{
    const Node *n = m->node;
    Dict *rest = new_dict(e, a->n_key);
    for (int k = 0; k < a->n_key; k++) {
        Value key = v_str(a->key[k]);
        if (taken[k]) continue;
        if (!n->catch_kwargs)
            return eval_fail(e, "TypeError: macro '%.*s' takes no keyword argument '%.*s'", n->text.n, n->text.s,
                             a->key[k].n, a->key[k].s);
        TRY(dict_put(e, rest, &key, &a->value[k]));
    }
    if (a->n > n->n && !n->catch_args)
        return eval_fail(e, "TypeError: macro '%.*s' takes not more than %d argument(s)", n->text.n, n->text.s, n->n);
    for (int i = 0; i < e->t->names.n && (n->catch_args || n->catch_kwargs); i++) {
        Str name = e->t->names.v[i];
        int extra = MAX(a->n - n->n, 0);
        Value args = v_items(V_TUPLE, extra ? a->pos + n->n : no_values, extra),
              kwargs = {.kind = V_DICT, .dict = rest};
        if (str_is(name, "varargs") && n->catch_args) set_var(e, i, &args);
        if (str_is(name, "kwargs") && n->catch_kwargs) set_var(e, i, &kwargs);
    }
    return OK;
}

int eval_macro(Eval *e, const Macro *m, const Args *a, Value *out)
{
    Scope *caller = e->scope;
    bool *taken = pool_alloc(&e->pool, (size_t)a->n_key + 1);
    int line = e->line;
    e->scope = m->scope;
    push_scope(e);
    for (int i = 0; i < m->node->n; i++) TRY(bind_parameter(e, m->node->list[i], i, a, taken));
    TRY(bind_rest(e, m, a, taken));
    TRY(capture(e, m->node->a, out));
    e->scope = caller;
    e->line = line;
    return OK;
}
