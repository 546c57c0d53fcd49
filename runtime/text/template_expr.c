// template_expr: the half of the parser that reads expressions. One function per level of precedence, lowest first, in the
// order and with the names of Jinja2's parser.
#include "text/template_impl.h"

static int parse_or(Parser *p, Node **out);
static int parse_unary(Parser *p, bool with_filters, Node **out);

static bool at_name(const Parser *p, const char *word)
{
    return parse_at(p, T_NAME, word);
}
static bool at_op(const Parser *p, const char *op)
{
    return parse_at(p, T_OPERATOR, op);
}

static Node *binary_node(Parser *p, NodeKind kind, int op, Node *a, Node *b)
{
    Node *n = parse_node(p, kind);
    n->op = (uint8_t)op;
    n->a = a;
    n->b = b;
    return n;
}

// ---- lists, tuples, dicts -------------------------------------------------------------------------------------------
// Expressions up to `close`; with pairs, "key: value".
static int parse_elements(Parser *p, const char *close, bool pairs, Node *node)
{
    NodeList list = {0};
    while (!at_op(p, close)) {
        Node *e;
        if (list.n) TRY(parse_expect(p, T_OPERATOR, ","));
        if (at_op(p, close)) break;
        TRY(parse_expression(p, &e));
        node_list_put(p, &list, e);
        if (!pairs) continue;
        TRY(parse_expect(p, T_OPERATOR, ":"));
        TRY(parse_expression(p, &e));
        node_list_put(p, &list, e);
    }
    node->list = list.v;
    node->n = list.n;
    return parse_expect(p, T_OPERATOR, close);
}

static bool tuple_ends(const Parser *p, TupleMode mode)
{
    if (parse_at(p, T_PRINT_END, NULL) || parse_at(p, T_BLOCK_END, NULL) || at_op(p, ")")) return true;
    return mode == TUPLE_TARGET ? at_name(p, "in") : mode == TUPLE_NO_CHOICE && at_name(p, "recursive");
}

static int parse_target(Parser *p, TupleMode mode, Node **out)
{
    Str name;
    if (at_op(p, "(")) { // (a, b)
        parse_skip(p, T_OPERATOR, "(");
        TRY(parse_enter(p));
        TRY(parse_tuple(p, TUPLE_TARGET, out));
        parse_leave(p);
        return parse_expect(p, T_OPERATOR, ")");
    }
    TRY(parse_name(p, &name));
    *out = parse_node(p, N_NAME);
    (*out)->name = parse_intern(p, name);
    if (mode == TUPLE_SET_TARGET && parse_skip(p, T_OPERATOR, ".")) {
        (*out)->kind = N_NAMESPACE;
        return parse_name(p, &(*out)->text);
    }
    static const char *const constants[] = {"true", "false", "none", "True", "False", "None"};
    for (size_t i = 0; i < COUNT_OF(constants); i++)
        if (str_is(name, constants[i])) return parse_fail(p, "cannot assign to %s", constants[i]);
    return OK;
}

int parse_tuple(Parser *p, TupleMode mode, Node **out)
{
    NodeList list = {0};
    bool is_tuple = false;
    for (;;) {
        Node *e;
        if (list.n) TRY(parse_expect(p, T_OPERATOR, ","));
        if (tuple_ends(p, mode)) break;
        if (mode == TUPLE_TARGET || mode == TUPLE_SET_TARGET)
            TRY(parse_target(p, mode, &e));
        else if (mode == TUPLE_NO_CHOICE)
            TRY(parse_or(p, &e));
        else
            TRY(parse_expression(p, &e));
        node_list_put(p, &list, e);
        if (!at_op(p, ",")) break;
        is_tuple = true;
    }
    if (!is_tuple && list.n) {
        *out = list.v[0];
        return OK;
    }
    if (!is_tuple && mode != TUPLE_IN_PARENS) return parse_fail(p, "expected an expression");
    *out = parse_node(p, N_TUPLE);
    (*out)->list = list.v;
    (*out)->n = list.n;
    return OK;
}

// ---- primaries ------------------------------------------------------------------------------------------------------
static int parse_word(Parser *p, Node **out)
{
    Str name;
    TRY(parse_name(p, &name));
    bool yes = str_is(name, "true") || str_is(name, "True"), no = str_is(name, "false") || str_is(name, "False");
    bool none = str_is(name, "none") || str_is(name, "None");
    Node *n = parse_node(p, yes || no || none ? N_CONST : N_NAME);
    n->value = none ? v_none() : v_bool(yes);
    n->name = parse_intern(p, name);
    p->saw_varargs |= str_is(name, "varargs");
    p->saw_kwargs |= str_is(name, "kwargs");
    *out = n;
    return OK;
}

static int parse_string(Parser *p, Node **out)
{
    Node *n = parse_node(p, N_CONST);
    Str all = parse_peek(p)->text;
    parse_skip(p, T_STRING, NULL);
    while (parse_at(p, T_STRING, NULL)) { // adjacent literals are one
        Str more = parse_peek(p)->text;
        char *joined = pool_alloc(&p->t->pool, (size_t)all.n + (size_t)more.n + 1);
        memcpy(joined, all.s, (size_t)all.n);
        memcpy(joined + all.n, more.s, (size_t)more.n);
        all = (Str){joined, all.n + more.n};
        parse_skip(p, T_STRING, NULL);
        if (p->t->pool.total > POOL_BYTES_MAX) return parse_fail(p, "string is too long");
    }
    n->value = v_str(all);
    *out = n;
    return OK;
}

static int parse_bracketed(Parser *p, Node **out)
{
    if (parse_skip(p, T_OPERATOR, "(")) {
        TRY(parse_tuple(p, TUPLE_IN_PARENS, out));
        return parse_expect(p, T_OPERATOR, ")");
    }
    bool list = parse_skip(p, T_OPERATOR, "[");
    if (!list) TRY(parse_expect(p, T_OPERATOR, "{"));
    *out = parse_node(p, list ? N_LIST : N_DICT);
    return parse_elements(p, list ? "]" : "}", !list, *out);
}

static int parse_primary(Parser *p, Node **out)
{
    const Token *t = parse_peek(p);
    if (t->kind == T_NAME) return parse_word(p, out);
    if (t->kind == T_STRING) return parse_string(p, out);
    if (t->kind == T_NUMBER) {
        *out = parse_node(p, N_CONST);
        (*out)->value = t->value;
        parse_skip(p, T_NUMBER, NULL);
        return OK;
    }
    if (!at_op(p, "(") && !at_op(p, "[") && !at_op(p, "{")) {
        bool end = t->kind == T_BLOCK_END || t->kind == T_PRINT_END;
        return parse_fail(p, "unexpected %.*s", end ? 10 : (int)MIN(t->text.n, 60), end ? "end of tag" : t->text.s);
    }
    TRY(parse_enter(p));
    TRY(parse_bracketed(p, out));
    parse_leave(p);
    return OK;
}

// ---- calls, subscripts, filters, tests ------------------------------------------------------------------------------
static int parse_arg(Parser *p, Node **out)
{
    Node *arg = parse_node(p, N_ARG);
    *out = arg;
    const Token *t = parse_peek(p), *next = t->kind == T_END ? t : t + 1;
    if (parse_skip(p, T_OPERATOR, "*")) {
        arg->op = ARG_STAR;
    } else if (parse_skip(p, T_OPERATOR, "**")) {
        arg->op = ARG_STAR_STAR;
    } else if (t->kind == T_NAME && next->kind == T_OPERATOR && str_is(next->text, "=")) {
        arg->op = ARG_KEYWORD;
        arg->text = t->text;
        parse_skip(p, T_NAME, NULL);
        parse_skip(p, T_OPERATOR, "=");
    }
    return parse_expression(p, &arg->a);
}

static int parse_args(Parser *p, Node *node)
{
    NodeList list = {0};
    int last = ARG_POSITIONAL;
    TRY(parse_expect(p, T_OPERATOR, "("));
    TRY(parse_enter(p));
    while (!at_op(p, ")")) {
        Node *arg;
        if (list.n) TRY(parse_expect(p, T_OPERATOR, ","));
        if (at_op(p, ")")) break;
        TRY(parse_arg(p, &arg));
        bool in_order = arg->op == ARG_POSITIONAL ? last == ARG_POSITIONAL : last != ARG_STAR_STAR;
        if (!in_order) return parse_fail(p, "positional argument behind a keyword argument");
        last = MAX(last, arg->op);
        node_list_put(p, &list, arg);
    }
    parse_leave(p);
    node->list = list.v;
    node->n = list.n;
    return parse_expect(p, T_OPERATOR, ")");
}

static int parse_call(Parser *p, Node *callee, Node **out)
{
    Node *n = parse_node(p, N_CALL);
    n->a = callee;
    *out = n;
    return parse_args(p, n);
}

// [index], [start:stop:step]; behind the bracket
static int parse_index(Parser *p, Node *object, Node **out)
{
    Node *part[3] = {0};
    int colons = 0;
    TRY(parse_enter(p));
    while (!at_op(p, "]")) {
        if (parse_skip(p, T_OPERATOR, ":")) {
            if (++colons > 2) return parse_fail(p, "too many colons in a slice");
            continue;
        }
        if (part[colons]) return parse_fail(p, "expected ] or :");
        TRY(parse_expression(p, &part[colons]));
        if (at_op(p, ",")) return parse_fail(p, "subscripts with several indexes are not supported");
    }
    parse_leave(p);
    TRY(parse_expect(p, T_OPERATOR, "]"));
    if (!colons && !part[0]) return parse_fail(p, "expected an index");
    Node *n = parse_node(p, colons ? N_SLICE : N_ITEM);
    n->a = object;
    n->b = part[0];
    if (colons) {
        NodeList list = {0};
        for (int i = 0; i < 3; i++) node_list_put(p, &list, part[i]);
        n->list = list.v;
        n->n = list.n;
    }
    *out = n;
    return OK;
}

static int parse_dot(Parser *p, Node *object, Node **out)
{
    const Token *t = parse_peek(p);
    if (t->kind == T_NUMBER && t->value.kind == V_INT) { // x.0
        Node *n = parse_node(p, N_ITEM), *index = parse_node(p, N_CONST);
        index->value = t->value;
        n->a = object;
        n->b = index;
        *out = n;
        parse_skip(p, T_NUMBER, NULL);
        return OK;
    }
    Node *n = parse_node(p, N_ATTR);
    n->a = object;
    *out = n;
    return parse_name(p, &n->text);
}

static int parse_postfix(Parser *p, Node **node)
{
    for (;;) {
        if (parse_skip(p, T_OPERATOR, "."))
            TRY(parse_dot(p, *node, node));
        else if (parse_skip(p, T_OPERATOR, "["))
            TRY(parse_index(p, *node, node));
        else if (at_op(p, "("))
            TRY(parse_call(p, *node, node));
        else
            return OK;
    }
}

int parse_filters(Parser *p, Node *input, Node **out)
{
    *out = input;
    while (parse_skip(p, T_OPERATOR, "|")) {
        Node *n = parse_node(p, N_FILTER);
        n->a = *out;
        TRY(parse_name(p, &n->text));
        n->callable = find_filter(n->text);
        if (at_op(p, "(")) TRY(parse_args(p, n));
        *out = n;
    }
    return OK;
}

static bool test_argument_follows(const Parser *p)
{
    const Token *t = parse_peek(p);
    if (t->kind == T_NAME)
        return !str_is(t->text, "else") && !str_is(t->text, "or") && !str_is(t->text, "and") && !str_is(t->text, "is");
    return t->kind == T_STRING || t->kind == T_NUMBER || at_op(p, "(") || at_op(p, "[") || at_op(p, "{");
}

static int parse_test(Parser *p, Node **node) // behind "is"
{
    bool negated = parse_skip(p, T_NAME, "not");
    Node *n = parse_node(p, N_TEST);
    n->a = *node;
    TRY(parse_name(p, &n->text));
    n->callable = find_test(n->text);
    if (at_op(p, "(")) {
        TRY(parse_args(p, n));
    } else if (at_name(p, "is")) {
        return parse_fail(p, "tests cannot be chained with is");
    } else if (test_argument_follows(p)) {
        NodeList list = {0};
        Node *arg = parse_node(p, N_ARG);
        TRY(parse_primary(p, &arg->a));
        TRY(parse_postfix(p, &arg->a));
        node_list_put(p, &list, arg);
        n->list = list.v;
        n->n = list.n;
    }
    *node = negated ? binary_node(p, N_NOT, 0, n, NULL) : n;
    return OK;
}

static int parse_filter_expr(Parser *p, Node **node)
{
    for (;;) {
        if (at_op(p, "|"))
            TRY(parse_filters(p, *node, node));
        else if (parse_skip(p, T_NAME, "is"))
            TRY(parse_test(p, node));
        else if (at_op(p, "("))
            TRY(parse_call(p, *node, node));
        else
            return OK;
    }
}

// ---- operators, tightest first --------------------------------------------------------------------------------------
static int parse_unary(Parser *p, bool with_filters, Node **out)
{
    bool minus = parse_skip(p, T_OPERATOR, "-"), plus = !minus && parse_skip(p, T_OPERATOR, "+");
    if (minus || plus) {
        Node *operand;
        TRY(parse_enter(p));
        TRY(parse_unary(p, false, &operand));
        parse_leave(p);
        *out = binary_node(p, minus ? N_MINUS : N_PLUS, 0, operand, NULL);
    } else {
        TRY(parse_primary(p, out));
    }
    TRY(parse_postfix(p, out));
    return with_filters ? parse_filter_expr(p, out) : OK;
}

static int parse_pow(Parser *p, Node **out)
{
    TRY(parse_unary(p, true, out));
    while (parse_skip(p, T_OPERATOR, "**")) {
        Node *right;
        TRY(parse_unary(p, true, &right));
        *out = binary_node(p, N_BINARY, OP_POW, *out, right);
    }
    return OK;
}

static int parse_product(Parser *p, Node **out)
{
    static const struct {
        const char *text;
        BinaryOp op;
    } ops[] = {{"*", OP_MUL}, {"/", OP_DIV}, {"//", OP_FLOOR_DIV}, {"%", OP_MOD}};
    TRY(parse_pow(p, out));
    for (size_t i = 0; i < COUNT_OF(ops);) {
        if (!parse_skip(p, T_OPERATOR, ops[i].text)) {
            i++;
            continue;
        }
        Node *right;
        TRY(parse_pow(p, &right));
        *out = binary_node(p, N_BINARY, ops[i].op, *out, right);
        i = 0;
    }
    return OK;
}

static int parse_concat(Parser *p, Node **out)
{
    NodeList list = {0};
    TRY(parse_product(p, out));
    if (!at_op(p, "~")) return OK;
    node_list_put(p, &list, *out);
    while (parse_skip(p, T_OPERATOR, "~")) {
        Node *part;
        TRY(parse_product(p, &part));
        node_list_put(p, &list, part);
    }
    *out = parse_node(p, N_CONCAT);
    (*out)->list = list.v;
    (*out)->n = list.n;
    return OK;
}

static int parse_sum(Parser *p, Node **out)
{
    TRY(parse_concat(p, out));
    for (;;) {
        bool add = parse_skip(p, T_OPERATOR, "+");
        if (!add && !parse_skip(p, T_OPERATOR, "-")) return OK;
        Node *right;
        TRY(parse_concat(p, &right));
        *out = binary_node(p, N_BINARY, add ? OP_ADD : OP_SUB, *out, right);
    }
}

static bool take_compare(Parser *p, CompareOp *op)
{
    static const struct {
        const char *text;
        CompareOp op;
    } ops[] = {{"==", CMP_EQ}, {"!=", CMP_NE}, {"<=", CMP_LE}, {">=", CMP_GE}, {"<", CMP_LT}, {">", CMP_GT}};
    for (size_t i = 0; i < COUNT_OF(ops); i++) {
        *op = ops[i].op;
        if (parse_skip(p, T_OPERATOR, ops[i].text)) return true;
    }
    *op = CMP_IN;
    if (parse_skip(p, T_NAME, "in")) return true;
    const Token *t = parse_peek(p);
    if (!at_name(p, "not") || t[1].kind != T_NAME || !str_is(t[1].text, "in")) return false;
    *op = CMP_NOT_IN;
    return parse_skip(p, T_NAME, "not") && parse_skip(p, T_NAME, "in");
}

static int parse_compare(Parser *p, Node **out)
{
    NodeList list = {0};
    CompareOp op;
    TRY(parse_sum(p, out));
    while (take_compare(p, &op)) {
        Node *operand = binary_node(p, N_OPERAND, (int)op, NULL, NULL);
        TRY(parse_sum(p, &operand->a));
        node_list_put(p, &list, operand);
    }
    if (!list.n) return OK;
    *out = binary_node(p, N_COMPARE, 0, *out, NULL);
    (*out)->list = list.v;
    (*out)->n = list.n;
    return OK;
}

static int parse_not(Parser *p, Node **out)
{
    if (!parse_skip(p, T_NAME, "not")) return parse_compare(p, out);
    Node *operand;
    TRY(parse_enter(p));
    TRY(parse_not(p, &operand));
    parse_leave(p);
    *out = binary_node(p, N_NOT, 0, operand, NULL);
    return OK;
}

static int parse_and(Parser *p, Node **out)
{
    TRY(parse_not(p, out));
    while (parse_skip(p, T_NAME, "and")) {
        Node *right;
        TRY(parse_not(p, &right));
        *out = binary_node(p, N_AND, 0, *out, right);
    }
    return OK;
}

static int parse_or(Parser *p, Node **out)
{
    TRY(parse_and(p, out));
    while (parse_skip(p, T_NAME, "or")) {
        Node *right;
        TRY(parse_and(p, &right));
        *out = binary_node(p, N_OR, 0, *out, right);
    }
    return OK;
}

int parse_expression(Parser *p, Node **out)
{
    TRY(parse_enter(p));
    TRY(parse_or(p, out));
    while (parse_skip(p, T_NAME, "if")) {
        Node *choice = parse_node(p, N_CHOICE);
        choice->b = *out;
        TRY(parse_or(p, &choice->a));
        if (parse_skip(p, T_NAME, "else")) TRY(parse_expression(p, &choice->c));
        *out = choice;
    }
    parse_leave(p);
    return OK;
}
