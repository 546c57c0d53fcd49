// regex: see regex.h. The only file that includes PCRE2.
//
// What is rewritten, and why:
//   \s \d \w \h and negations  sets are spelt out: PCRE2's \s also holds U+180E, its \w no marks, its \h blanks instead of hex digits
//   \p{..}                     plus the characters that Unicode gained since PCRE2's tables (unicode_new.def)
//   X{n,m}+                    repeats the repeat in Ruby syntax, is possessive in PCRE2: becomes (?:X{n,m})+
//   (?m:..)                    "dot matches newline" is called s in PCRE2
//   \uHHHH                     becomes \x{HHHH}
// Ruby's ^ and $ match at lines: PCRE2_MULTILINE.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum {
    PATTERN_BYTES_MAX = 16384,
    NEST_MAX = 64,
    // Backtracking steps of one search. A run of a million blanks needs about that many; nested repeats soon exceed it.
    MATCH_STEPS_MAX = 4000000,
    HEAP_KIB_MAX = 65536,
};

struct Regex {
    pcre2_code *code;
    pcre2_match_context *limits;
    bool jit;
};

struct RegexMatch {
    pcre2_match_data *data;
};

// ---- translation ----------------------------------------------------------------------------------------------------
typedef struct Translation {
    const char *p, *end; // what is left of the pattern
    Buf out;
    size_t atom;            // where the last atom starts in out: what a quantifier applies to
    size_t group[NEST_MAX]; // where each open group starts
    int depth;
    const char *place;
} Translation;

static const char white_space[] =
    "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

typedef struct NewRange {
    uint32_t first, last;
    char category[3];
} NewRange;
static const NewRange new_ranges[] = {
#define RANGE(first, last, category) {first, last, #category},
#include "text/unicode_new.def"
#undef RANGE
};

static int unsupported(const Translation *t, const char *what)
{
    return fail(E_INPUT, t->place, "pre-tokenizer regexes are limited to what published tokenizers use",
                "regular expression with %s is not supported", what);
}

// Characters newer than PCRE2's tables whose category is `name` ("L", "Lu") or a part of it.
static void put_new_ranges(Buf *out, const char *name, size_t bytes)
{
    for (size_t i = 0; i < COUNT_OF(new_ranges); i++)
        if (strncmp(new_ranges[i].category, name, bytes) == 0)
            buf_printf(out, "\\x{%x}-\\x{%x}", new_ranges[i].first, new_ranges[i].last);
    if (bytes == 3 && memcmp(name, "Han", 3) == 0) buf_puts(out, "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}");
}

// The members of \s, \d, \w, \h or \p{name}, as they stand inside brackets.
static void put_members(Buf *out, char kind, const char *name, size_t bytes)
{
    switch (kind) {
    case 's': buf_puts(out, white_space); break;
    case 'h': buf_puts(out, "0-9A-Fa-f"); break;
    case 'd':
        buf_puts(out, "\\p{Nd}");
        put_new_ranges(out, "Nd", 2);
        break;
    case 'w':
        buf_puts(out, "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}");
        put_new_ranges(out, "L", 1);
        put_new_ranges(out, "M", 1);
        put_new_ranges(out, "Nd", 2);
        put_new_ranges(out, "Nl", 2);
        break;
    default:
        buf_printf(out, "\\p{%.*s}", (int)bytes, name);
        if (bytes <= 3) put_new_ranges(out, name, bytes);
    }
}

// \p{Name}, \P{Name}, \p{^Name}: t->p stands after the p.
static int property_name(Translation *t, bool *negated, const char **name, size_t *bytes)
{
    const char *close = t->p < t->end && *t->p == '{' ? memchr(t->p, '}', (size_t)(t->end - t->p)) : NULL;
    if (!close) return unsupported(t, "\\p without a {name}");
    *name = t->p + 1;
    if (**name == '^') {
        *negated = !*negated;
        ++*name;
    }
    *bytes = (size_t)(close - *name);
    t->p = close + 1;
    if (*bytes == 0 || *bytes > 32) return unsupported(t, "a \\p{} of that length");
    return OK;
}

// A set escape (\s, \D, \p{L}, ...) outside or inside brackets.
static int put_set(Translation *t, char letter, bool in_class)
{
    bool negated = letter >= 'A' && letter <= 'Z';
    char kind = negated ? (char)(letter - 'A' + 'a') : letter;
    const char *name = NULL;
    size_t bytes = 0;
    if (kind == 'p') TRY(property_name(t, &negated, &name, &bytes));
    if (!in_class) {
        buf_puts(&t->out, negated ? "[^" : "[");
        put_members(&t->out, kind, name, bytes);
        buf_puts(&t->out, "]");
        return OK;
    }
    if (!negated)
        put_members(&t->out, kind, name, bytes);
    else if (kind == 's')
        buf_puts(&t->out, "\\P{White_Space}");
    else if (kind == 'p')
        buf_printf(&t->out, "\\P{%.*s}", (int)bytes, name);
    else
        return unsupported(t, "a negated set inside brackets");
    return OK;
}

static int put_hex(Translation *t, int digits)
{
    if (t->end - t->p < digits) return unsupported(t, "a short \\u escape");
    for (int i = 0; i < digits; i++)
        if (!strchr("0123456789abcdefABCDEF", t->p[i])) return unsupported(t, "a bad \\u escape");
    buf_printf(&t->out, "\\x{%.*s}", digits, t->p);
    t->p += digits;
    return OK;
}

static int put_code_point(Translation *t) // \x{...}
{
    const char *close = memchr(t->p, '}', (size_t)(t->end - t->p));
    if (!close || close - t->p > 8) return unsupported(t, "a bad \\x{} escape");
    buf_printf(&t->out, "\\x%.*s", (int)(close + 1 - t->p), t->p);
    t->p = close + 1;
    return OK;
}

static int put_escape(Translation *t, bool in_class)
{
    if (t->p == t->end) return unsupported(t, "a backslash at its end");
    char c = *t->p++;
    if (strchr("sSdDwWhHpP", c)) return put_set(t, c, in_class);
    if (c == 'u') return put_hex(t, 4);
    if (c == 'v') {
        buf_puts(&t->out, "\\x{0b}");
        return OK;
    }
    if (c == 'x' && t->p < t->end && *t->p == '{') return put_code_point(t);
    bool letter_or_digit = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (letter_or_digit && !strchr(in_class ? "ntrfaex" : "ntrfaexAzZ", c)) return unsupported(t, tmpf("\\%c", c));
    if ((unsigned char)c >= 0x80)
        t->p--; // an escaped letter of another script is itself; its bytes are copied by the caller
    else
        buf_printf(&t->out, "\\%c", c);
    return OK;
}

// Members up to the closing bracket. Brackets inside brackets are a union in Ruby syntax: their members join the outer set.
static int put_class_members(Translation *t, int depth)
{
    for (bool first = true; t->p < t->end; first = false) {
        char c = *t->p++;
        if (c == ']' && !first) return OK;
        if (c == '[') {
            if (depth == NEST_MAX || (t->p < t->end && (*t->p == '^' || *t->p == ':')))
                return unsupported(t, "this kind of brackets inside brackets");
            TRY(put_class_members(t, depth + 1));
        } else if (c == '&' && t->p < t->end && *t->p == '&') {
            return unsupported(t, "an intersection (&&)");
        } else if (c == '\\') {
            TRY(put_escape(t, true));
        } else {
            buf_put(&t->out, &c, 1);
        }
    }
    return unsupported(t, "an unclosed [");
}

static int put_class(Translation *t)
{
    buf_puts(&t->out, "[");
    if (t->p < t->end && *t->p == '^') {
        buf_puts(&t->out, "^");
        t->p++;
    }
    TRY(put_class_members(t, 0));
    buf_puts(&t->out, "]");
    return OK;
}

// After "(": which kind of group, copied up to its body.
static int put_group_head(Translation *t)
{
    static const char *const heads[] = {"?:", "?=", "?!", "?>", "?<=", "?<!", "?i:", "?i)", "?-i:", "?m:"};
    if (t->p == t->end || *t->p != '?') {
        if (t->p < t->end && *t->p == '*') return unsupported(t, "(*");
        return OK;
    }
    for (size_t i = 0; i < COUNT_OF(heads); i++) {
        size_t n = strlen(heads[i]);
        if ((size_t)(t->end - t->p) < n || memcmp(t->p, heads[i], n) != 0) continue;
        buf_puts(&t->out, streq(heads[i], "?m:") ? "?s:" : heads[i]);
        t->p += n;
        if (heads[i][n - 1] == ')') t->depth--; // an option setting, not a group
        return OK;
    }
    return unsupported(t, "this kind of group (?");
}

// {n}, {n,}, {n,m}: copied whole, because the + after it means something else in PCRE2.
static int put_interval(Translation *t)
{
    const char *close = memchr(t->p, '}', (size_t)(t->end - t->p));
    size_t n = close ? (size_t)(close - t->p) : 0;
    if (n == 0 || n > 16 || strspn(t->p, "0123456789,") < n) return unsupported(t, "a bare {");
    Buf body = {0};
    buf_printf(&body, "{%.*s}", (int)n, t->p);
    bool fixed = !memchr(t->p, ',', n);
    t->p = close + 1;
    char next = t->p < t->end ? *t->p : 0;
    int status = OK;
    if (next == '?' && fixed) {
        status = unsupported(t, "{n}?");
    } else if (next == '+') {
        Buf atom = {0};
        buf_put(&atom, t->out.data + t->atom, t->out.len - t->atom);
        t->out.len = t->atom;
        buf_printf(&t->out, "(?:%.*s%s)", (int)atom.len, atom.data ? atom.data : "", body.data);
        buf_free(&atom);
    } else {
        buf_put(&t->out, body.data, body.len);
    }
    buf_free(&body);
    return status;
}

static int put_next(Translation *t)
{
    char c = *t->p++;
    if (c == '{') return put_interval(t);
    if (strchr("?*+|", c) && c) {
        buf_put(&t->out, &c, 1);
        return OK;
    }
    if (c == ')') {
        if (t->depth == 0) return unsupported(t, "an unmatched )");
        buf_puts(&t->out, ")");
        t->atom = t->group[--t->depth];
        return OK;
    }
    t->atom = t->out.len;
    if (c == '\\') return put_escape(t, false);
    if (c == '[') return put_class(t);
    buf_put(&t->out, &c, 1);
    if (c == '(') {
        if (t->depth == NEST_MAX) return unsupported(t, "more than 64 nested groups");
        t->group[t->depth++] = t->atom;
        return put_group_head(t);
    }
    // a character of several bytes is one atom
    while (t->p < t->end && ((unsigned char)*t->p & 0xC0) == 0x80) buf_put(&t->out, t->p++, 1);
    return OK;
}

static int translate(Translation *t)
{
    while (t->p < t->end) TRY(put_next(t));
    if (t->depth) return unsupported(t, "an unclosed (");
    return OK;
}

static void quote_literal(Buf *out, const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (strchr("\\^$.[]|()?*+{}#-", text[i]) && text[i]) buf_puts(out, "\\");
        if (text[i])
            buf_put(out, &text[i], 1);
        else
            buf_puts(out, "\\x{0}");
    }
}

// ---- compiling and searching ----------------------------------------------------------------------------------------
static int compile(Regex *r, const Buf *pattern, const char *place)
{
    int error = 0;
    PCRE2_SIZE at = 0;
    pcre2_compile_context *c = pcre2_compile_context_create(NULL);
    if (c) {
        pcre2_set_newline(c, PCRE2_NEWLINE_LF);
        pcre2_set_parens_nest_limit(c, NEST_MAX + 8);
        uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_UTF_CHECK;
        r->code =
            pcre2_compile((PCRE2_SPTR)(pattern->data ? pattern->data : ""), pattern->len, options, &error, &at, c);
        pcre2_compile_context_free(c);
    }
    if (!r->code) {
        unsigned char message[128] = "out of memory";
        if (error) pcre2_get_error_message(error, message, sizeof message);
        return fail(E_INPUT, place, NULL, "regular expression cannot be compiled: %s (at %zu of %.200s)",
                    (char *)message, (size_t)at, pattern->data ? pattern->data : "");
    }
    r->jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0;
    r->limits = pcre2_match_context_create(NULL);
    if (!r->limits) return fail(E_MISSING, place, NULL, "out of memory");
    pcre2_set_match_limit(r->limits, MATCH_STEPS_MAX);
    pcre2_set_heap_limit(r->limits, HEAP_KIB_MAX);
    return OK;
}

int regex_compile(Regex **out, const char *pattern, size_t bytes, bool literal, const char *place)
{
    *out = NULL;
    size_t bad = 0;
    if (bytes > PATTERN_BYTES_MAX)
        return fail(E_INPUT, place, NULL, "regular expression of %zu bytes, at most %d are read", bytes,
                    PATTERN_BYTES_MAX);
    if (!utf8_valid(pattern, bytes, &bad)) return fail(E_INPUT, place, NULL, "regular expression is not valid UTF-8");
    Translation t = {.p = pattern, .end = pattern + bytes, .place = place};
    Regex *r = xcalloc(1, sizeof *r);
    int status = OK;
    if (literal)
        quote_literal(&t.out, pattern, bytes);
    else
        TRY_DONE(translate(&t));
    TRY_DONE(compile(r, &t.out, place));
    *out = r;
    r = NULL;
done:
    buf_free(&t.out);
    regex_free(r);
    return status;
}

void regex_free(Regex *r)
{
    if (!r) return;
    pcre2_code_free(r->code);
    pcre2_match_context_free(r->limits);
    free(r);
}

RegexMatch *regex_match_new(void)
{
    RegexMatch *m = xcalloc(1, sizeof *m);
    m->data = pcre2_match_data_create(1, NULL); // the whole match only; groups are not asked for
    ASSERT(m->data);
    return m;
}

void regex_match_free(RegexMatch *m)
{
    if (!m) return;
    pcre2_match_data_free(m->data);
    free(m);
}

int regex_find(const Regex *r, RegexMatch *m, const char *text, size_t bytes, size_t from, size_t *begin, size_t *end)
{
    PCRE2_SPTR s = (PCRE2_SPTR)text;
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (r->jit) rc = pcre2_jit_match(r->code, s, bytes, from, PCRE2_NO_UTF_CHECK, m->data, r->limits);
    // The interpreter keeps its frames on the heap, within the heap limit.
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(r->code, s, bytes, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->data, r->limits);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0)
        return fail(E_INPUT, NULL, "the tokenizer's regular expression backtracks too much on this text",
                    "pre-tokenizer regular expression gave up (PCRE2 error %d)", rc);
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(m->data);
    *begin = span[0];
    *end = span[1];
    return 1;
}
