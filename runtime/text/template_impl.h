// What the files of the template interpreter share. A template goes through, each stage in its own file:
//   template_lexer.c   source -> tokens (white space control)      template_parser.c, template_expr.c  tokens -> tree
//   template_eval.c    runs the tree                               template_ops.c       operators, subscripts, slices
//   template_value.c   values, their text and their order          template_filters.c, template_tests.c, template_methods.c,
//   template_calls.c   argument binding, global functions          template_format.c    what templates call by name
//   template.c         the public functions
// Semantics are Jinja2 3.1's ImmutableSandboxedEnvironment on Python values; names of Python errors appear in messages.
#pragma once
#include "text/template.h"
#include "text/unicode.h"
#include <string.h>

enum {
    SOURCE_BYTES_MAX = 1 << 20,
    OUTPUT_BYTES_MAX = 4 << 20,
    STEPS_OF_RENDER_MAX = 500000,
    NEST_MAX = 64,        // of the source and of data
    EVAL_DEPTH_MAX = 400, // of the tree, chains of operators and macro calls included
    POOL_BYTES_MAX = 64 << 20,
    RANGE_MAX = 100000, // Jinja's sandbox has the same limit
};

// ---- memory that lives as long as a template or a rendering -------------------------------------------------------------
typedef struct PoolChunk PoolChunk;
typedef struct Pool {
    PoolChunk *chunk;
    size_t used, size; // of the newest chunk
    size_t total;
} Pool;
void *pool_alloc(Pool *p, size_t bytes); // zeroed, 16-byte aligned
void pool_free(Pool *p);

typedef struct Str {
    const char *s;
    int32_t n;
} Str;
#define STR(literal) ((Str){literal, (int32_t)sizeof(literal) - 1})
static inline bool str_eq(Str a, Str b)
{
    return a.n == b.n && memcmp(a.s, b.s, (size_t)a.n) == 0;
}
static inline bool str_is(Str a, const char *b)
{
    return strlen(b) == (size_t)a.n && memcmp(a.s, b, (size_t)a.n) == 0;
}

// ---- values ---------------------------------------------------------------------------------------------------------
typedef enum Kind {
    V_ABSENT, // an argument that was not given; never seen by templates
    V_UNDEFINED,
    V_NONE,
    V_BOOL,
    V_INT,
    V_FLOAT,
    V_STRING,
    V_LIST,
    V_TUPLE,
    V_VIEW,     // dict.items() and kin: has a length, cannot be indexed
    V_ITERATOR, // what Python makes lazily (map, select, reverse): can be walked once
    V_DICT,
    V_NAMESPACE,
    V_LOOP,
    V_MACRO,
    V_FUNCTION,
    V_METHOD,
    KIND_COUNT
} Kind;

typedef struct Value Value;
typedef struct Dict Dict;
typedef struct Iterator Iterator;
typedef struct Loop Loop;
typedef struct Macro Macro;
typedef struct Bound Bound;
typedef struct Callable Callable;

struct Value {
    uint8_t kind;  // Kind
    uint8_t owner; // V_UNDEFINED: the Kind of the value that lacks the attribute, or 0
    int32_t n;     // bytes of a string or of an undefined's name; elements of a list, tuple or view
    union {
        bool b;
        int64_t i;
        double f;
        const char *s;
        const Value *items;
        Dict *dict; // V_DICT and V_NAMESPACE
        Iterator *iterator;
        Loop *loop;
        const Macro *macro;
        const Callable *function;
        const Bound *bound;
    };
};

struct Dict { // in order of insertion
    Value *key, *value;
    int n, cap;
};
struct Iterator {
    const Value *items;
    int n, at;
};
struct Bound { // a method of a value
    Value self;
    const Callable *method;
};

static inline Value v_none(void)
{
    return (Value){.kind = V_NONE};
}
static inline Value v_bool(bool b)
{
    return (Value){.kind = V_BOOL, .b = b};
}
static inline Value v_int(int64_t i)
{
    return (Value){.kind = V_INT, .i = i};
}
static inline Value v_float(double f)
{
    return (Value){.kind = V_FLOAT, .f = f};
}
static inline Value v_str(Str s)
{
    return (Value){.kind = V_STRING, .n = s.n, .s = s.s};
} // not copied
static inline Value v_items(Kind kind, const Value *items, int n)
{
    return (Value){.kind = (uint8_t)kind, .n = n, .items = items};
}
static inline Value v_undefined(Str name, Kind owner)
{
    return (Value){.kind = V_UNDEFINED, .owner = (uint8_t)owner, .n = name.n, .s = name.s};
}
static inline Str v_text(const Value *v)
{
    return (Str){v->s, v->n};
}
static inline bool v_is_number(const Value *v)
{
    return v->kind == V_BOOL || v->kind == V_INT || v->kind == V_FLOAT;
}
static inline bool v_is_int(const Value *v)
{
    return v->kind == V_BOOL || v->kind == V_INT;
}
static inline int64_t v_as_int(const Value *v)
{
    return v->kind == V_BOOL ? v->b : v->i;
}
static inline double v_as_float(const Value *v)
{
    return v->kind == V_FLOAT ? v->f : (double)v_as_int(v);
}

// ---- tokens ---------------------------------------------------------------------------------------------------------
typedef enum TokenKind {
    T_END,
    T_DATA,
    T_PRINT_BEGIN,
    T_PRINT_END,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_NAME,
    T_STRING,
    T_NUMBER,
    T_OPERATOR
} TokenKind;
typedef struct Token {
    TokenKind kind;
    int line;
    Str text;    // data, name, operator; a string's value
    Value value; // number
} Token;
typedef struct Tokens {
    Token *v;
    int n, cap;
} Tokens;
// Text of tokens lives in the pool. place is for errors.
int template_lex(Pool *pool, const char *source, size_t bytes, const char *place, Tokens *out);

// ---- tree -----------------------------------------------------------------------------------------------------------
typedef enum NodeKind {
    // statements                a              b              c           list
    N_TEXT,  //                 (value: the text)
    N_PRINT, //                 expression
    N_IF, //                                                           condition, block, condition, block, ... [else block]
    N_FOR,     //                 target         sequence       filter      body [else block]
    N_SET,     //                 target         expression
    N_CAPTURE, //                target or 0    filters or 0   body        (set block; filter block prints)
    N_MACRO,   //                 body                                      parameters: N_NAME, a = default
    N_WITH,    //                 body                                      target, value, target, value, ...
    N_SCOPE,   //                 body
    N_BREAK,
    N_CONTINUE,
    N_BLOCK, //                                                            statements
    // expressions
    N_CONST,     //              (value)
    N_NAME,      //              (name)
    N_NAMESPACE, //              (name, text: the attribute): only as a target
    N_LIST,      //                                                        elements
    N_TUPLE,     //                                                        elements
    N_DICT,      //                                                        key, value, key, value, ...
    N_ATTR,      //              object         (text: the name)
    N_ITEM,      //              object         index
    N_SLICE,     //              object                                    start, stop, step (0 where left out)
    N_CALL,      //              callee                                    N_ARG
    N_FILTER,    //              input or 0     (text, callable)           N_ARG
    N_TEST,      //              input          (text, callable)           N_ARG
    N_ARG,       //              value          (op: ArgKind; text: keyword)
    N_NOT,
    N_MINUS,
    N_PLUS,
    N_BINARY,  //                left           right                      (op: BinaryOp)
    N_CONCAT,  //                                                          parts of ~
    N_COMPARE, //                left                                      N_OPERAND
    N_OPERAND, //                right                                     (op: CompareOp)
    N_AND,
    N_OR,
    N_CHOICE, //                 condition      then           else or 0
} NodeKind;
typedef enum ArgKind { ARG_POSITIONAL, ARG_KEYWORD, ARG_STAR, ARG_STAR_STAR } ArgKind;
typedef enum BinaryOp { OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_FLOOR_DIV, OP_MOD, OP_POW } BinaryOp;
typedef enum CompareOp { CMP_EQ, CMP_NE, CMP_LT, CMP_LE, CMP_GT, CMP_GE, CMP_IN, CMP_NOT_IN } CompareOp;

typedef struct Node Node;
struct Node {
    uint8_t kind; // NodeKind
    uint8_t op;
    bool catch_args, catch_kwargs; // N_MACRO: its body names varargs, kwargs
    int line;
    int name; // index of the interned name
    int n;    // of list
    Str text;
    Value value;
    const Callable *callable; // N_FILTER, N_TEST; NULL: no such name, an error once it runs
    Node *a, *b, *c;
    Node **list;
};

typedef struct Names { // interned identifiers
    Str *v;
    int n, cap;
    int *slot; // hash table: index + 1
    int slots;
} Names;

struct Template {
    Pool pool;
    char *place;
    Names names;
    Node *body;
    int loop_name; // of "loop"
};

typedef struct Parser {
    Template *t;
    Tokens tokens;
    int at;
    int nest;
    bool saw_varargs, saw_kwargs;
} Parser;
int template_parse_tokens(Parser *p); // fills p->t->body
// shared by the two halves of the parser
int parse_fail(const Parser *p, const char *fmt, ...) PRINTF_LIKE(2, 3);
#ifdef __clang_analyzer__ // it cannot see across files that what this returns is negative
#define parse_fail(...) ((void)parse_fail(__VA_ARGS__), E_INPUT)
#endif
Node *parse_node(Parser *p, NodeKind kind);
const Token *parse_peek(const Parser *p);
bool parse_at(const Parser *p, TokenKind kind, const char *text); // text NULL: any
bool parse_skip(Parser *p, TokenKind kind, const char *text);
int parse_expect(Parser *p, TokenKind kind, const char *text);
int parse_name(Parser *p, Str *out);
int parse_enter(Parser *p); // counts nesting; parse_leave after it
static inline void parse_leave(Parser *p)
{
    p->nest--;
}
int parse_intern(Parser *p, Str name);
typedef struct NodeList {
    Node **v;
    int n, cap;
} NodeList;
void node_list_put(Parser *p, NodeList *l, Node *node); // in the template's pool

typedef enum TupleMode {
    TUPLE_FULL,
    TUPLE_NO_CHOICE, // no "x if y": after `in` and `if`
    TUPLE_IN_PARENS, // may be empty
    TUPLE_TARGET,    // names only
    TUPLE_SET_TARGET // names and namespace attributes
} TupleMode;
int parse_expression(Parser *p, Node **out);
int parse_tuple(Parser *p, TupleMode mode, Node **out);
int parse_filters(Parser *p, Node *input, Node **out); // | name(args) ...

// ---- evaluation -----------------------------------------------------------------------------------------------------
typedef struct Var {
    int name;
    Value value;
    struct Var *next;
} Var;
typedef struct Scope {
    struct Scope *parent;
    Var *vars;
} Scope;

struct Macro {
    const Node *node;
    Scope *scope; // where it was defined
};
struct Loop {
    const Value *items;
    int n, at;
    Value changed; // arguments of the last loop.changed(), V_ABSENT before
};

typedef struct Eval {
    const Template *t;
    Pool pool;
    const Dict *vars; // the caller's
    Scope *scope;
    Buf *out;
    int line;
    int depth;
    int64_t steps;
} Eval;

int eval_fail(const Eval *e, const char *fmt, ...) PRINTF_LIKE(2, 3);
#ifdef __clang_analyzer__
#define eval_fail(...) ((void)eval_fail(__VA_ARGS__), E_INPUT)
#endif
// Accounts for work on, or memory of, so many bytes. Everything whose size the template chooses is charged before it is done.
int eval_charge(Eval *e, size_t bytes);
int eval_emit(Eval *e, const char *s, size_t n);
int eval_node(Eval *e, const Node *n, Value *out);
int eval_block(Eval *e, const Node *n);                 // OK, or 1 for break, 2 for continue
int eval_undefined_used(const Eval *e, const Value *v); // the error of using an undefined

// Arguments of a call. After binding, pos has one entry per parameter, V_ABSENT where not given, and there are no keywords.
typedef struct Args {
    const Value *pos;
    int n;
    const Str *key; // keywords
    const Value *value;
    int n_key;
} Args;
typedef int Function(Eval *e, const Value *self, const Args *a, Value *out);
struct Callable {
    const char *name;
    Function *fn;
    const char
        *params; // "d,attribute"; "!" marks required ones: "!old,!new,count"; NULL: fn gets the arguments as they are
};
int call_bound(Eval *e, const Callable *c, const Value *self, const Args *a, Value *out);
int call_value(Eval *e, const Value *callee, const Args *a, Value *out);
int eval_macro(Eval *e, const Macro *m, const Args *a, Value *out);
const Callable *find_filter(Str name);
const Callable *find_test(Str name);
const Callable *find_method(const Value *self, Str name);
const Callable *find_global(Str name);

// ---- operations on values -------------------------------------------------------------------------------------------
const char *value_type(const Value *v); // Python's name
bool value_truth(const Value *v);
int value_equal(Eval *e, const Value *a, const Value *b, bool *equal);
int value_compare(Eval *e, const Value *a, const Value *b, const char *op, int *order); // <0, 0, >0
int value_contains(Eval *e, const Value *container, const Value *item, bool *found);
bool value_hashable(const Value *v);                                     // may it be a key?
int value_put_str(Eval *e, const Value *v, Buf *out);                    // str(v)
int value_put_repr(Eval *e, const Value *v, Buf *out);                   // repr(v)
int value_str(Eval *e, const Value *v, Str *out);                        // str(v) as a string of the pool
int value_iterate(Eval *e, const Value *v, const Value **items, int *n); // walks an iterator to its end
int value_length(Eval *e, const Value *v, int64_t *n);
extern const Value no_values[1];                    // what an empty sequence points at
Value *new_items(Eval *e, int n);                   // charge before, for n out of the template's hands
Value new_string(Eval *e, const char *s, size_t n); // copied to the pool
int take_buf(Eval *e, Buf *b, Value *out);          // charges, copies and frees
Value new_iterator(Eval *e, const Value *items, int n);
Dict *new_dict(Eval *e, int cap);
int dict_put(Eval *e, Dict *d, const Value *key, const Value *value);
int dict_find(Eval *e, const Dict *d, const Value *key, const Value **value); // NULL: not there
const Value *dict_get(const Dict *d, Str key);

int op_binary(Eval *e, BinaryOp op, const Value *a, const Value *b, Value *out);
int op_negate(Eval *e, const Value *v, Value *out);
int op_attr(Eval *e, const Value *object, Str name, Value *out);
int op_item(Eval *e, const Value *object, const Value *index, Value *out);
int op_slice(Eval *e, const Value *object, const Value part[3], Value *out);
// attribute of map, sort and kin: "a.b", "0" or a number
int op_attr_path(Eval *e, const Value *object, const Value *path, Value *out);

// ---- text -----------------------------------------------------------------------------------------------------------
typedef enum Case { CASE_UPPER, CASE_LOWER, CASE_TITLE } Case;
int32_t str_offset(Str s, int64_t index);                      // byte offset of code point `index`, at most s.n
Str str_strip(Str s, const Str *chars, bool left, bool right); // chars NULL: white space
void str_put_case(Buf *out, Str s, int32_t begin, int32_t end, Case to); // of s[begin..end); s is the context
int str_replace(Eval *e, Str s, Str from, Str to, int64_t count, Value *out);
int str_lines(Eval *e, Str s, const Value **lines, int *n); // Python's splitlines
const char *str_find(Str haystack, Str needle);             // NULL: not there
void put_float(Buf *out, double f);                         // repr
void put_repr_string(Buf *out, Str s);
typedef struct JsonStyle {
    bool ascii, sort_keys;
    const char *indent; // NULL: one line
    Str item_separator, key_separator;
} JsonStyle;
int put_json(Eval *e, const Value *v, const JsonStyle *style, int depth, Buf *out);
int format_percent(Eval *e, Str format, const Value *args, Value *out); // "%s" % args
int format_braces(Eval *e, Str format, const Args *args, Value *out);   // "{}".format(...)
