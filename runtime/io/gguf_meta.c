// gguf_meta: the values of GGUF keys: checking them when a file is opened, reading them later, as JSON or as C values.
#include "io/gguf_impl.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STRING_MAX = 16 << 20, ARRAY_MAX = 16 << 20 };

size_t gguf_type_bytes(GgufType t)
{
    static const uint8_t bytes[GGUF_TYPES] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
        [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8};
    return bytes[t];
}

static int bad_key(const Source *s, const GgufKey *k, const char *what)
{
    return fail(E_INPUT, tmpf("%s: key %s", s->path, k->name), NULL, "%s", what);
}

static int take_string(Reader *r, const GgufKey *k, const char **text, size_t *bytes)
{
    const uint8_t *p;
    TRY(reader_take(r, 8, &p));
    uint64_t n = le64(p);
    if (n > STRING_MAX)
        return bad_key(r->source, k,
                       tmpf("a string of %llu bytes, at most %d are read", (unsigned long long)n, STRING_MAX));
    TRY(reader_take(r, n, &p));
    *text = (const char *)p;
    *bytes = (size_t)n;
    return OK;
}

// ---- checking -------------------------------------------------------------------------------------------------------
static int skip_strings(Reader *r, const GgufKey *k)
{
    for (uint64_t i = 0; i < k->count; i++) {
        const char *text;
        size_t bytes;
        TRY(take_string(r, k, &text, &bytes));
        if (!utf8_valid(text, bytes, NULL))
            return bad_key(r->source, k, tmpf("string %llu is no UTF-8", (unsigned long long)i));
    }
    return OK;
}

static int skip_numbers(Reader *r, const GgufKey *k)
{
    enum { AT_ONCE = 1 << 13 };
    size_t size = gguf_type_bytes(k->item);
    for (uint64_t left = k->count; left;) {
        uint64_t n = MIN(left, AT_ONCE);
        const uint8_t *p;
        TRY(reader_take(r, n * size, &p));
        for (uint64_t i = 0; k->item == GGUF_BOOL && i < n; i++)
            if (p[i] > 1) return bad_key(r->source, k, "a truth value that is neither 0 nor 1");
        left -= n;
    }
    return OK;
}

int gguf_skip_items(Reader *r, GgufKey *k)
{
    uint64_t least = k->item == GGUF_STRING ? 8 : gguf_type_bytes(k->item);
    if (k->count > ARRAY_MAX)
        return bad_key(r->source, k, tmpf("%llu items, at most %d are read", (unsigned long long)k->count, ARRAY_MAX));
    if (k->count * least > reader_left(r))
        return bad_key(r->source, k, tmpf("%llu items, more than the file can hold", (unsigned long long)k->count));
    return k->item == GGUF_STRING ? skip_strings(r, k) : skip_numbers(r, k);
}

// ---- reading one value ----------------------------------------------------------------------------------------------
const GgufKey *gguf_key(const Weights *w, const char *name)
{
    const Gguf *g = w->meta;
    int i = names_find(&g->by_name, name);
    return i < 0 ? NULL : &g->key[i];
}

static int64_t load_signed(const uint8_t *p, GgufType t)
{
    switch (t) {
    case GGUF_I8: return (int8_t)p[0];
    case GGUF_I16: return (int16_t)(p[0] | p[1] << 8);
    case GGUF_I32: return (int32_t)le32(p);
    default: return (int64_t)le64(p);
    }
}

static uint64_t load_unsigned(const uint8_t *p, GgufType t)
{
    switch (t) {
    case GGUF_U8: return p[0];
    case GGUF_U16: return (uint64_t)(p[0] | p[1] << 8);
    case GGUF_U32: return le32(p);
    default: return le64(p);
    }
}

static bool is_signed(GgufType t)
{
    return t == GGUF_I8 || t == GGUF_I16 || t == GGUF_I32 || t == GGUF_I64;
}
static bool is_float(GgufType t)
{
    return t == GGUF_F32 || t == GGUF_F64;
}

int gguf_uint(const Weights *w, const char *name, uint64_t *out)
{
    const GgufKey *k = gguf_key(w, name);
    if (!k) return OK;
    if (k->type == GGUF_ARRAY || k->type == GGUF_STRING || k->type == GGUF_BOOL || is_float(k->type))
        return bad_key(&w->source[0], k, "not a whole number");
    uint8_t raw[8] = {0};
    TRY(source_read(&w->source[0], k->at, raw, gguf_type_bytes(k->type)));
    if (is_signed(k->type) && load_signed(raw, k->type) < 0) return bad_key(&w->source[0], k, "negative");
    *out = is_signed(k->type) ? (uint64_t)load_signed(raw, k->type) : load_unsigned(raw, k->type);
    return OK;
}

int gguf_string(const Weights *w, const char *name, char **out)
{
    *out = NULL;
    const GgufKey *k = gguf_key(w, name);
    if (!k) return OK;
    if (k->type != GGUF_STRING) return bad_key(&w->source[0], k, "not a string");
    Reader r = {.source = &w->source[0], .at = k->at};
    const char *text = NULL;
    size_t bytes = 0;
    int status = take_string(&r, k, &text, &bytes);
    if (status == OK) *out = xstrndup(text, bytes);
    reader_free(&r);
    return status;
}

// ---- as JSON --------------------------------------------------------------------------------------------------------
// Shortest form that reads back as the same number, and as a real one: 1e-05, 100000.0. JSON has no infinities: null.
static int format_float(char *s, size_t size, double v, bool f32)
{
    if (!isfinite(v)) return snprintf(s, size, "null");
    int n = snprintf(s, size, f32 ? "%.6g" : "%.15g", v);
    if (f32 ? (float)strtod(s, NULL) != (float)v : strtod(s, NULL) != v)
        n = snprintf(s, size, f32 ? "%.9g" : "%.17g", v);
    if (!strpbrk(s, ".e")) n += snprintf(s + n, size - (size_t)n, ".0");
    return n;
}

static int format_number(char *s, size_t size, const uint8_t *p, GgufType t)
{
    if (t == GGUF_BOOL) return snprintf(s, size, p[0] ? "true" : "false");
    if (t == GGUF_F32) {
        uint32_t bits = le32(p);
        float f;
        memcpy(&f, &bits, sizeof f);
        return format_float(s, size, f, true);
    }
    if (t == GGUF_F64) {
        uint64_t bits = le64(p);
        double d;
        memcpy(&d, &bits, sizeof d);
        return format_float(s, size, d, false);
    }
    if (is_signed(t)) return snprintf(s, size, "%lld", (long long)load_signed(p, t));
    return snprintf(s, size, "%llu", (unsigned long long)load_unsigned(p, t));
}

static int put_item(Buf *b, Reader *r, const GgufKey *k)
{
    if (k->item == GGUF_STRING) {
        const char *text;
        size_t bytes;
        TRY(take_string(r, k, &text, &bytes));
        buf_json_string(b, text, bytes);
        return OK;
    }
    char number[48];
    const uint8_t *p;
    TRY(reader_take(r, gguf_type_bytes(k->item), &p));
    buf_put(b, number, (size_t)format_number(number, sizeof number, p, k->item));
    return OK;
}

char *gguf_meta_json(const Weights *w, const char *name)
{
    const GgufKey *k = gguf_key(w, name);
    if (!k) return NULL;
    Reader r = {.source = &w->source[0], .at = k->at};
    Buf b = {0};
    int status = OK;
    bool array = k->type == GGUF_ARRAY;
    if (array) buf_puts(&b, "[");
    for (uint64_t i = 0; i < k->count && status == OK; i++) {
        if (i) buf_puts(&b, ",");
        status = put_item(&b, &r, k);
    }
    if (array) buf_puts(&b, "]");
    if (status < 0) buf_free(&b); // the file changed since it was opened
    reader_free(&r);
    return b.data;
}
