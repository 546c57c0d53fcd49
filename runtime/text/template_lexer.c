// template_lexer: source to tokens, with Jinja2's rules for white space: trim_blocks (a newline right behind a block or comment
// goes), lstrip_blocks (blanks between the start of a line and a block or comment go), "-" (all white space on that side goes)
// and "+" (neither rule applies). One newline at the end of the source is dropped.
#include "text/template_impl.h"
#include <errno.h>
#include <stdlib.h>

typedef struct Lexer {
    Pool *pool;
    const char *s; // source with "\n" line ends
    int32_t n, at;
    int line;
    bool line_starting; // what was read last ended in a newline
    const char *place;
    Tokens *out;
    char brackets[256]; // open ( [ { of the current tag
    int depth;
} Lexer;

static int lex_fail(const Lexer *l, const char *what)
{
    return fail(E_INPUT, tmpf("%s:%d", l->place, l->line), NULL, "chat template: %s", what);
}

static Token *put_token(Lexer *l, TokenKind kind, const char *s, int32_t n)
{
    Tokens *t = l->out;
    if (t->n == t->cap) {
        t->cap = MAX(256, t->cap * 2);
        t->v = xrealloc(t->v, (size_t)t->cap * sizeof *t->v);
    }
    t->v[t->n] = (Token){.kind = kind, .line = l->line, .text = {s, n}};
    return &t->v[t->n++];
}

static void advance(Lexer *l, int32_t to)
{
    for (; l->at < to; l->at++) l->line += l->s[l->at] == '\n';
}

static bool ahead(const Lexer *l, int32_t at, const char *text)
{
    int32_t n = (int32_t)strlen(text);
    return l->n - at >= n && memcmp(l->s + at, text, (size_t)n) == 0;
}

static int32_t skip_space(const Lexer *l, int32_t at)
{
    for (int32_t next = at; at < l->n; at = next)
        if (!is_python_space(utf8_next(l->s, &next))) break;
    return at;
}

static int32_t strip_end(const char *s, int32_t begin, int32_t end)
{
    return begin + str_strip((Str){s + begin, end - begin}, NULL, false, true).n;
}

// Text before a tag at `end`, whose first character behind the brace is `sign`; lstrip: the tag is no {{.
static void put_data(Lexer *l, int32_t begin, int32_t end, char sign, bool lstrip)
{
    int32_t stop = end;
    if (sign == '-') {
        stop = strip_end(l->s, begin, end);
    } else if (sign != '+' && lstrip) {
        int32_t line = end;
        while (line > begin && l->s[line - 1] != '\n') line--;
        if ((line > begin || l->line_starting) && strip_end(l->s, line, end) == line) stop = line;
    }
    if (stop > begin) put_token(l, T_DATA, l->s + begin, stop - begin);
    advance(l, end);
}

// Behind a closing tag at l->at: what "-", "" or "+" before `close` take away. 0 when no closing tag stands here.
static bool take_close(Lexer *l, const char *close, bool trim)
{
    char minus[4] = "-", plus[4] = "+";
    strcat(minus, close);
    strcat(plus, close);
    if (ahead(l, l->at, minus)) {
        advance(l, skip_space(l, l->at + 3));
    } else if (trim && ahead(l, l->at, plus)) {
        advance(l, l->at + 3);
    } else if (ahead(l, l->at, close)) {
        int32_t end = l->at + 2;
        advance(l, trim && end < l->n && l->s[end] == '\n' ? end + 1 : end);
    } else {
        return false;
    }
    l->line_starting = l->s[l->at - 1] == '\n';
    return true;
}

// ---- inside a tag ---------------------------------------------------------------------------------------------------
static bool name_char(char c, bool first)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (unsigned char)c >= 0x80 ||
           (!first && c >= '0' && c <= '9');
}

static int hex_escape(Lexer *l, const char *s, int32_t n, int digits, Buf *out)
{
    uint32_t cp = 0;
    char text[4];
    if (n < digits) return lex_fail(l, "truncated escape in a string");
    for (int i = 0; i < digits; i++) {
        char c = s[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) return lex_fail(l, "bad escape in a string");
        cp = cp * 16 + (uint32_t)digit;
    }
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000)) return lex_fail(l, "escape in a string is no character");
    buf_put(out, text, (size_t)utf8_encode(cp, text));
    return OK;
}

// Escapes as in Python string literals; s[0] is the character behind the backslash. *used: bytes taken.
static int put_escape(Lexer *l, const char *s, int32_t n, Buf *out, int32_t *used)
{
    static const char from[] = "abfnrtv\\'\"", to[] = "\a\b\f\n\r\t\v\\'\"";
    const char *at = strchr(from, s[0]);
    *used = 1;
    if (s[0] == '\n') return OK; // a continued line
    if (at && s[0]) {
        buf_put(out, &to[at - from], 1);
    } else if (s[0] == 'x' || s[0] == 'u' || s[0] == 'U') {
        int digits = s[0] == 'x' ? 2 : s[0] == 'u' ? 4 : 8;
        TRY(hex_escape(l, s + 1, n - 1, digits, out));
        *used = 1 + digits;
    } else if (s[0] >= '0' && s[0] <= '7') {
        uint32_t cp = 0;
        int32_t i = 0;
        for (; i < 3 && i < n && s[i] >= '0' && s[i] <= '7'; i++) cp = cp * 8 + (uint32_t)(s[i] - '0');
        char text[4];
        buf_put(out, text, (size_t)utf8_encode(cp, text));
        *used = i;
    } else { // an unknown escape stays as it is
        buf_puts(out, "\\");
        *used = 0;
    }
    return OK;
}

static int lex_string(Lexer *l)
{
    char quote = l->s[l->at];
    Buf text = {0};
    int32_t i = l->at + 1;
    int status = OK;
    for (; i < l->n && l->s[i] != quote; i++) {
        if (l->s[i] != '\\') {
            buf_put(&text, &l->s[i], 1);
            continue;
        }
        int32_t used = 0;
        if (i + 1 == l->n) break;
        TRY_DONE(put_escape(l, l->s + i + 1, l->n - i - 1, &text, &used));
        i += used;
    }
    if (i >= l->n) {
        status = lex_fail(l, "string without an end");
        goto done;
    }
    char *copy = pool_alloc(l->pool, text.len + 1);
    if (text.len) memcpy(copy, text.data, text.len);
    put_token(l, T_STRING, copy, (int32_t)text.len);
    advance(l, i + 1);
done:
    buf_free(&text);
    return status;
}

static int32_t digits_end(const Lexer *l, int32_t at)
{
    while (at < l->n && ((l->s[at] >= '0' && l->s[at] <= '9') ||
                         (l->s[at] == '_' && at + 1 < l->n && l->s[at + 1] >= '0' && l->s[at + 1] <= '9')))
        at++;
    return at;
}

static bool digit_at(const Lexer *l, int32_t at)
{
    return at < l->n && l->s[at] >= '0' && l->s[at] <= '9';
}

static int lex_number(Lexer *l)
{
    int32_t begin = l->at, end = digits_end(l, begin);
    bool is_float = false;
    int base = 10;
    char c = begin + 1 < l->n ? (char)(l->s[begin + 1] | 32) : 0;
    if (l->s[begin] == '0' && (c == 'x' || c == 'o' || c == 'b')) {
        base = c == 'x' ? 16 : c == 'o' ? 8 : 2;
        for (end = begin + 2; end < l->n && (name_char(l->s[end], false)); end++) {
        }
    } else {
        if (end < l->n && l->s[end] == '.' && digit_at(l, end + 1)) {
            is_float = true;
            end = digits_end(l, end + 1);
        }
        int32_t e = end + 1 < l->n && (l->s[end] | 32) == 'e' ? end + 1 : 0;
        if (e && (l->s[e] == '+' || l->s[e] == '-')) e++;
        if (e && digit_at(l, e)) {
            is_float = true;
            end = digits_end(l, e);
        }
    }
    char text[64], *stop = text;
    int n = 0;
    for (int32_t i = base == 10 ? begin : begin + 2; i < end && n < (int)sizeof text - 1; i++)
        if (l->s[i] != '_') text[n++] = l->s[i];
    text[n] = 0;
    errno = 0;
    Value v = is_float ? v_float(strtod(text, &stop)) : v_int(strtoll(text, &stop, base));
    if (n == 0 || *stop || n >= (int)sizeof text - 1 || (!is_float && errno))
        return lex_fail(l, "number is malformed or beyond 64 bits");
    put_token(l, T_NUMBER, l->s + begin, end - begin)->value = v;
    advance(l, end);
    return OK;
}

static int balance(Lexer *l, char c)
{
    static const char opening[] = "([{", closing[] = ")]}";
    if (strchr(opening, c)) {
        if (l->depth == (int)sizeof l->brackets) return lex_fail(l, "brackets are nested too deep");
        l->brackets[l->depth++] = c;
        return OK;
    }
    const char *at = strchr(closing, c);
    if (!at) return OK;
    if (l->depth == 0 || l->brackets[l->depth - 1] != opening[at - closing])
        return lex_fail(l, tmpf("unexpected '%c'", c));
    l->depth--;
    return OK;
}

static int lex_operator(Lexer *l)
{
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
    for (size_t i = 0; i < COUNT_OF(two); i++) {
        if (!ahead(l, l->at, two[i])) continue;
        put_token(l, T_OPERATOR, l->s + l->at, 2);
        advance(l, l->at + 2);
        return OK;
    }
    char c = l->s[l->at];
    if (!strchr("+-/*%~[](){}><=.:|,;", c) || c == 0) return lex_fail(l, tmpf("unexpected character '%c'", c));
    TRY(balance(l, c));
    put_token(l, T_OPERATOR, l->s + l->at, 1);
    advance(l, l->at + 1);
    return OK;
}

static int lex_tag(Lexer *l, bool block)
{
    put_token(l, block ? T_BLOCK_BEGIN : T_PRINT_BEGIN, "", 0);
    for (l->depth = 0; l->at < l->n;) {
        char c = l->s[l->at];
        if (l->depth == 0 && take_close(l, block ? "%}" : "}}", block)) {
            put_token(l, block ? T_BLOCK_END : T_PRINT_END, "", 0);
            return OK;
        }
        int32_t after = skip_space(l, l->at);
        if (after > l->at) {
            advance(l, after);
        } else if (c >= '0' && c <= '9') {
            TRY(lex_number(l));
        } else if (name_char(c, true)) {
            int32_t end = l->at;
            while (end < l->n && name_char(l->s[end], false)) end++;
            put_token(l, T_NAME, l->s + l->at, end - l->at);
            advance(l, end);
        } else if (c == '\'' || c == '"') {
            TRY(lex_string(l));
        } else {
            TRY(lex_operator(l));
        }
    }
    return lex_fail(l, block ? "a {% has no end" : "a {{ has no end");
}

// ---- outside tags ---------------------------------------------------------------------------------------------------
static char sign_at(const Lexer *l, int32_t at)
{
    return at < l->n && (l->s[at] == '-' || l->s[at] == '+') ? l->s[at] : 0;
}

static int lex_comment(Lexer *l)
{
    for (; l->at < l->n; advance(l, l->at + 1))
        if (take_close(l, "#}", true)) return OK;
    return lex_fail(l, "a {# has no end");
}

// {% raw %} at `at`: behind it, or -1.
static int32_t raw_begin(const Lexer *l, int32_t at)
{
    at = skip_space(l, at + 2 + (sign_at(l, at + 2) != 0));
    if (!ahead(l, at, "raw")) return -1;
    at = skip_space(l, at + 3);
    if (ahead(l, at, "-%}")) return skip_space(l, at + 3);
    return ahead(l, at, "%}") ? at + 2 : -1;
}

static int lex_raw(Lexer *l, int32_t begin)
{
    advance(l, begin);
    l->line_starting = l->s[begin - 1] == '\n';
    for (int32_t at = begin; at < l->n; at++) {
        if (!ahead(l, at, "{%")) continue;
        int32_t word = skip_space(l, at + 2 + (sign_at(l, at + 2) != 0));
        if (!ahead(l, word, "endraw")) continue;
        int32_t close = skip_space(l, word + 6);
        if (!ahead(l, close, "%}") && !ahead(l, close, "-%}") && !ahead(l, close, "+%}")) continue;
        put_data(l, begin, at, sign_at(l, at + 2), true);
        advance(l, close);
        take_close(l, "%}", true);
        return OK;
    }
    return lex_fail(l, "a {% raw %} has no end");
}

static int lex_all(Lexer *l)
{
    while (l->at < l->n) {
        int32_t begin = l->at, at = begin;
        while (at < l->n && !(l->s[at] == '{' && at + 1 < l->n && strchr("{%#", l->s[at + 1]) && l->s[at + 1])) at++;
        if (at == l->n) {
            put_token(l, T_DATA, l->s + begin, at - begin);
            break;
        }
        char kind = l->s[at + 1], sign = sign_at(l, at + 2);
        int32_t raw = kind == '%' ? raw_begin(l, at) : -1;
        put_data(l, begin, at, sign, kind != '{');
        if (raw >= 0) {
            TRY(lex_raw(l, raw));
            continue;
        }
        advance(l, at + 2 + (sign != 0));
        l->line_starting = false;
        if (kind == '#')
            TRY(lex_comment(l));
        else
            TRY(lex_tag(l, kind == '%'));
    }
    put_token(l, T_END, "", 0);
    return OK;
}

int template_lex(Pool *pool, const char *source, size_t bytes, const char *place, Tokens *out)
{
    char *copy = pool_alloc(pool, bytes + 1);
    int32_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (source[i] == '\r' && i + 1 < bytes && source[i + 1] == '\n') continue;
        copy[n++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (n && copy[n - 1] == '\n') n--;
    Lexer l = {.pool = pool, .s = copy, .n = n, .line = 1, .line_starting = true, .place = place, .out = out};
    return lex_all(&l);
}
