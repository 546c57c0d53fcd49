// json_scan: see json_scan.h.
#include "text/json_scan.h"
#include "text/unicode.h"
#include <string.h>

void json_scan_free(JsonScan *s)
{
    buf_free(&s->text);
}

char scan_peek(JsonScan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t')) s->p++;
    return s->p < s->end ? *s->p : 0;
}

bool scan_take(JsonScan *s, char c)
{
    if (s->bad || scan_peek(s) != c) return false;
    s->p++;
    return true;
}

static bool scan_fail(JsonScan *s)
{
    s->bad = true;
    return false;
}

static bool hex4(JsonScan *s, uint32_t *value)
{
    *value = 0;
    if (s->end - s->p < 4) return false;
    for (int i = 0; i < 4; i++) {
        char c = *s->p++;
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) return false;
        *value = *value * 16 + (uint32_t)digit;
    }
    return true;
}

// \uHHHH, or two of them for a character beyond U+FFFF; s->p stands after the u.
static bool unicode_escape(JsonScan *s)
{
    uint32_t cp, low;
    if (!hex4(s, &cp) || cp == 0) return false;
    if (cp >= 0xDC00 && cp < 0xE000) return false;
    if (cp >= 0xD800 && cp < 0xDC00) {
        if (s->end - s->p < 2 || s->p[0] != '\\' || s->p[1] != 'u') return false;
        s->p += 2;
        if (!hex4(s, &low) || low < 0xDC00 || low > 0xDFFF) return false;
        cp = 0x10000 + ((cp - 0xD800) << 10) + (low - 0xDC00);
    }
    char text[4];
    buf_put(&s->text, text, (size_t)utf8_encode(cp, text));
    return true;
}

static bool escape(JsonScan *s)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (s->p == s->end) return false;
    char c = *s->p++;
    if (c == 'u') return unicode_escape(s);
    const char *at = c ? strchr(from, c) : NULL;
    if (at) buf_put(&s->text, &to[at - from], 1);
    return at != NULL;
}

// Plain characters up to a quote, a backslash or a control character.
static const char *plain_end(const JsonScan *s)
{
    const char *p = s->p;
    while (p < s->end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20) p++;
    return p;
}

bool scan_string(JsonScan *s, const char **text, size_t *bytes)
{
    if (!scan_take(s, '"')) return scan_fail(s);
    const char *stop = plain_end(s);
    *text = s->p;
    *bytes = (size_t)(stop - s->p);
    if (stop < s->end && *stop == '"') { // the common case: no copy
        s->p = stop + 1;
        return true;
    }
    s->text.len = 0;
    buf_put(&s->text, s->p, *bytes);
    for (s->p = stop; s->p < s->end && *s->p == '\\'; s->p = stop) {
        s->p++;
        if (!escape(s)) return scan_fail(s);
        stop = plain_end(s);
        buf_put(&s->text, s->p, (size_t)(stop - s->p));
    }
    if (s->p == s->end || *s->p != '"') return scan_fail(s);
    s->p++;
    *text = s->text.data;
    *bytes = s->text.len;
    return true;
}

bool scan_int(JsonScan *s, int64_t *value)
{
    bool minus = scan_take(s, '-');
    if (s->bad || scan_peek(s) < '0' || scan_peek(s) > '9') return scan_fail(s);
    *value = 0;
    for (int digits = 0; s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++) {
        if (++digits > 18) return scan_fail(s);
        *value = *value * 10 + (*s->p - '0');
    }
    if (minus) *value = -*value;
    return true;
}

bool scan_more(JsonScan *s, char close, bool *first)
{
    if (s->bad || scan_take(s, close)) return false;
    if (!*first && !scan_take(s, ',')) return scan_fail(s);
    *first = false;
    return true;
}

// ---- finding members ------------------------------------------------------------------------------------------------
static bool skip_string(JsonScan *s)
{
    if (!scan_take(s, '"')) return scan_fail(s);
    for (; s->p < s->end && *s->p != '"'; s->p++)
        if (*s->p == '\\') s->p++;
    if (s->p >= s->end) return scan_fail(s);
    s->p++;
    return true;
}

// Passes over one value by counting brackets.
static bool skip_value(JsonScan *s)
{
    int64_t depth = 0;
    do {
        char c = scan_peek(s);
        if (c == 0) return scan_fail(s);
        if (c == '"') {
            if (!skip_string(s)) return false;
            continue;
        }
        if (c == ']' || c == '}') depth--;
        if (c == '[' || c == '{') depth++;
        s->p++;
        bool word = c != '[' && c != '{' && c != ']' && c != '}' && c != ',' && c != ':';
        while (word && s->p < s->end && !strchr(",:]}[{\" \n\r\t", *s->p)) s->p++;
    } while (depth > 0);
    return depth == 0 || scan_fail(s);
}

// The value of member `key` of the object that s stands at.
static bool find_member(JsonScan s, const char *key, JsonRange *out)
{
    bool first = true;
    size_t n = strlen(key);
    *out = (JsonRange){0};
    if (!scan_take(&s, '{')) return false;
    while (scan_more(&s, '}', &first)) {
        scan_peek(&s);
        const char *name = s.p;
        if (!skip_string(&s)) return false;
        bool match = (size_t)(s.p - name) == n + 2 && memcmp(name + 1, key, n) == 0;
        if (!scan_take(&s, ':')) return false;
        scan_peek(&s);
        const char *begin = s.p;
        if (!skip_value(&s)) return false;
        if (match) *out = (JsonRange){begin, s.p};
        if (match) return true;
    }
    return false;
}

void json_find_members(const char *text, size_t bytes, const char *outer, const char *a, const char *b, JsonRange *at_a,
                       JsonRange *at_b)
{
    JsonRange object;
    *at_a = *at_b = (JsonRange){0};
    if (!find_member((JsonScan){.p = text, .end = text + bytes}, outer, &object)) return;
    find_member((JsonScan){.p = object.begin, .end = object.end}, a, at_a);
    find_member((JsonScan){.p = object.begin, .end = object.end}, b, at_b);
}
