// template_parser: the half of the parser that reads statements, and what both halves use.
#include "text/template_impl.h"
#include <stdlib.h>

// ---- shared with template_expr.c ------------------------------------------------------------------------------------
const Token *parse_peek(const Parser *p)
{
    return &p->tokens.v[p->at];
}

int(parse_fail)(const Parser *p, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return fail(E_INPUT, tmpf("%s:%d", p->t->place, parse_peek(p)->line), NULL, "chat template: %s", text);
}

Node *parse_node(Parser *p, NodeKind kind)
{
    Node *n = pool_alloc(&p->t->pool, sizeof *n);
    n->kind = (uint8_t)kind;
    n->line = parse_peek(p)->line;
    return n;
}

bool parse_at(const Parser *p, TokenKind kind, const char *text)
{
    const Token *t = parse_peek(p);
    return t->kind == kind && (!text || str_is(t->text, text));
}

bool parse_skip(Parser *p, TokenKind kind, const char *text)
{
    if (!parse_at(p, kind, text) || kind == T_END) return false;
    p->at++;
    return true;
}

int parse_expect(Parser *p, TokenKind kind, const char *text)
{
    static const char *const names[] = {"end of template", "text",     "{{",       "}}",         "{%", "%}",
                                        "a name",          "a string", "a number", "an operator"};
    if (parse_skip(p, kind, text)) return OK;
    const Token *t = parse_peek(p);
    return parse_fail(p, "expected %s, got %s %.*s", text ? text : names[kind], names[t->kind], (int)MIN(t->text.n, 40),
                      t->text.s);
}

int parse_name(Parser *p, Str *out)
{
    *out = parse_peek(p)->text;
    return parse_expect(p, T_NAME, NULL);
}

int parse_enter(Parser *p)
{
    return ++p->nest > NEST_MAX ? parse_fail(p, "nested deeper than %d levels", NEST_MAX) : OK;
}

void node_list_put(Parser *p, NodeList *l, Node *node)
{
    if (l->n == l->cap) {
        l->cap = MAX(4, l->cap * 2);
        Node **grown = pool_alloc(&p->t->pool, (size_t)l->cap * sizeof(Node *));
        if (l->n) memcpy(grown, l->v, (size_t)l->n * sizeof(Node *));
        l->v = grown;
    }
    l->v[l->n++] = node;
}

static void grow_names(Names *names)
{
    names->slots = names->slots ? names->slots * 2 : 128;
    free(names->slot);
    names->slot = xcalloc((size_t)names->slots, sizeof *names->slot);
    for (int i = 0; i < names->n; i++) {
        uint64_t at = hash64(names->v[i].s, (size_t)names->v[i].n, 0);
        while (names->slot[at & (uint64_t)(names->slots - 1)]) at++;
        names->slot[at & (uint64_t)(names->slots - 1)] = i + 1;
    }
}

int parse_intern(Parser *p, Str name)
{
    Names *names = &p->t->names;
    if (names->n * 2 >= names->slots) grow_names(names);
    uint64_t mask = (uint64_t)(names->slots - 1), at = hash64(name.s, (size_t)name.n, 0) & mask;
    for (; names->slot[at]; at = (at + 1) & mask)
        if (str_eq(names->v[names->slot[at] - 1], name)) return names->slot[at] - 1;
    if (names->n == names->cap) {
        names->cap = MAX(64, names->cap * 2);
        names->v = xrealloc(names->v, (size_t)names->cap * sizeof *names->v);
    }
    names->v[names->n] = name;
    names->slot[at] = ++names->n;
    return names->n - 1;
}

// ---- statements -----------------------------------------------------------------------------------------------------
static int parse_body(Parser *p, const char *const *ends, Node **out);

static bool at_any(const Parser *p, const char *const *words)
{
    for (; *words; words++)
        if (parse_at(p, T_NAME, *words)) return true;
    return false;
}

// "%}", statements, "{% WORD" where WORD is one of ends (NULL-terminated); the word is left as the next token.
static int parse_until(Parser *p, const char *const *ends, Node **out)
{
    parse_skip(p, T_OPERATOR, ":");
    TRY(parse_expect(p, T_BLOCK_END, NULL));
    TRY(parse_enter(p));
    TRY(parse_body(p, ends, out));
    parse_leave(p);
    return OK;
}

// The same for a single end word, which is passed.
static int parse_to_end(Parser *p, const char *end, Node **out)
{
    TRY(parse_until(p, (const char *const[]){end, NULL}, out));
    return parse_expect(p, T_NAME, end);
}

static int parse_if(Parser *p, Node *n)
{
    NodeList list = {0};
    Node *condition, *block;
    do {
        TRY(parse_tuple(p, TUPLE_NO_CHOICE, &condition));
        TRY(parse_until(p, (const char *const[]){"elif", "else", "endif", NULL}, &block));
        node_list_put(p, &list, condition);
        node_list_put(p, &list, block);
    } while (parse_skip(p, T_NAME, "elif"));
    if (parse_skip(p, T_NAME, "else")) {
        TRY(parse_until(p, (const char *const[]){"endif", NULL}, &block));
        node_list_put(p, &list, block);
    }
    n->list = list.v;
    n->n = list.n;
    return parse_expect(p, T_NAME, "endif");
}

static int parse_for(Parser *p, Node *n)
{
    NodeList list = {0};
    Node *block;
    TRY(parse_tuple(p, TUPLE_TARGET, &n->a));
    TRY(parse_expect(p, T_NAME, "in"));
    TRY(parse_tuple(p, TUPLE_NO_CHOICE, &n->b));
    if (parse_skip(p, T_NAME, "if")) TRY(parse_expression(p, &n->c));
    if (parse_at(p, T_NAME, "recursive")) return parse_fail(p, "recursive loops are not supported");
    TRY(parse_until(p, (const char *const[]){"endfor", "else", NULL}, &block));
    node_list_put(p, &list, block);
    if (parse_skip(p, T_NAME, "else")) {
        TRY(parse_until(p, (const char *const[]){"endfor", NULL}, &block));
        node_list_put(p, &list, block);
    }
    n->list = list.v;
    n->n = list.n;
    return parse_expect(p, T_NAME, "endfor");
}

static int parse_set(Parser *p, Node *n)
{
    TRY(parse_tuple(p, TUPLE_SET_TARGET, &n->a));
    if (parse_skip(p, T_OPERATOR, "=")) return parse_tuple(p, TUPLE_FULL, &n->b);
    n->kind = N_CAPTURE;
    TRY(parse_filters(p, NULL, &n->b));
    return parse_to_end(p, "endset", &n->c);
}

static int parse_filter_block(Parser *p, Node *n)
{
    p->at--; // reads "filter name(args) | ..." as "| name(args) | ..."
    p->tokens.v[p->at] = (Token){.kind = T_OPERATOR, .line = n->line, .text = STR("|")};
    TRY(parse_filters(p, NULL, &n->b));
    return parse_to_end(p, "endfilter", &n->c);
}

static int parse_macro(Parser *p, Node *n)
{
    NodeList list = {0};
    Str name;
    TRY(parse_name(p, &n->text));
    n->name = parse_intern(p, n->text);
    TRY(parse_expect(p, T_OPERATOR, "("));
    while (!parse_at(p, T_OPERATOR, ")")) {
        if (list.n) TRY(parse_expect(p, T_OPERATOR, ","));
        TRY(parse_name(p, &name));
        Node *param = parse_node(p, N_NAME);
        param->name = parse_intern(p, name);
        param->text = name;
        if (parse_skip(p, T_OPERATOR, "="))
            TRY(parse_expression(p, &param->a));
        else if (list.n && list.v[list.n - 1]->a)
            return parse_fail(p, "parameter without a default behind one with a default");
        node_list_put(p, &list, param);
    }
    TRY(parse_expect(p, T_OPERATOR, ")"));
    bool outer_varargs = p->saw_varargs, outer_kwargs = p->saw_kwargs;
    p->saw_varargs = p->saw_kwargs = false;
    TRY(parse_to_end(p, "endmacro", &n->a));
    n->catch_args = p->saw_varargs;
    n->catch_kwargs = p->saw_kwargs;
    p->saw_varargs |= outer_varargs;
    p->saw_kwargs |= outer_kwargs;
    n->list = list.v;
    n->n = list.n;
    return OK;
}

static int parse_with(Parser *p, Node *n)
{
    NodeList list = {0};
    while (!parse_at(p, T_BLOCK_END, NULL)) {
        Node *target, *value;
        if (list.n) TRY(parse_expect(p, T_OPERATOR, ","));
        TRY(parse_tuple(p, TUPLE_TARGET, &target));
        TRY(parse_expect(p, T_OPERATOR, "="));
        TRY(parse_expression(p, &value));
        node_list_put(p, &list, target);
        node_list_put(p, &list, value);
    }
    n->list = list.v;
    n->n = list.n;
    return parse_to_end(p, "endwith", &n->a);
}

// transformers marks assistant tokens with this; what stands inside is printed as it is
static int parse_generation(Parser *p, Node *n)
{
    return parse_to_end(p, "endgeneration", &n->a);
}

static int parse_print_statement(Parser *p, Node *n)
{
    TRY(parse_tuple(p, TUPLE_FULL, &n->a));
    if (n->a->kind == N_TUPLE) n->a->kind = N_CONCAT; // {% print a, b %}
    return OK;
}

static int parse_nothing(Parser *p, Node *n)
{
    (void)p, (void)n;
    return OK;
}

typedef struct Statement {
    const char *word;
    NodeKind kind;
    int (*parse)(Parser *p, Node *n);
} Statement;
static const Statement statements[] = {
    {"if", N_IF, parse_if},
    {"for", N_FOR, parse_for},
    {"set", N_SET, parse_set},
    {"macro", N_MACRO, parse_macro},
    {"with", N_WITH, parse_with},
    {"filter", N_CAPTURE, parse_filter_block},
    {"print", N_PRINT, parse_print_statement},
    {"generation", N_SCOPE, parse_generation},
    {"break", N_BREAK, parse_nothing},
    {"continue", N_CONTINUE, parse_nothing},
};

static int parse_statement(Parser *p, Node **out)
{
    for (size_t i = 0; i < COUNT_OF(statements); i++) {
        if (!parse_at(p, T_NAME, statements[i].word)) continue;
        *out = parse_node(p, statements[i].kind);
        p->at++;
        TRY(statements[i].parse(p, *out));
        return parse_expect(p, T_BLOCK_END, NULL);
    }
    const Token *t = parse_peek(p);
    return parse_fail(p, "unknown or misplaced tag {%% %.*s %%}", (int)MIN(t->text.n, 40), t->text.s);
}

// Statements up to the end of the template (ends NULL) or up to "{% WORD", the block's beginning passed.
static int parse_body(Parser *p, const char *const *ends, Node **out)
{
    NodeList list = {0};
    Node *block = parse_node(p, N_BLOCK), *n = NULL;
    while (!parse_at(p, T_END, NULL)) {
        if (parse_at(p, T_DATA, NULL)) {
            n = parse_node(p, N_TEXT);
            n->text = parse_peek(p)->text;
            p->at++;
        } else if (parse_skip(p, T_PRINT_BEGIN, NULL)) {
            n = parse_node(p, N_PRINT);
            TRY(parse_tuple(p, TUPLE_FULL, &n->a));
            TRY(parse_expect(p, T_PRINT_END, NULL));
        } else {
            TRY(parse_expect(p, T_BLOCK_BEGIN, NULL));
            if (ends && at_any(p, ends)) break;
            TRY(parse_statement(p, &n));
        }
        node_list_put(p, &list, n);
    }
    if (ends && parse_at(p, T_END, NULL)) return parse_fail(p, "template ends where {%% %s %%} is missing", ends[0]);
    block->list = list.v;
    block->n = list.n;
    *out = block;
    return OK;
}

int template_parse_tokens(Parser *p)
{
    p->t->loop_name = parse_intern(p, STR("loop"));
    return parse_body(p, NULL, &p->t->body);
}
