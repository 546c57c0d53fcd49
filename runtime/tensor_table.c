// Implementation of tensor_table.h. A name becomes a pattern by replacing its numbers (parts between dots or
// slashes that are all digits) by '#'; pattern, shape and type are the key under which tensors are counted.
#include "tensor_table.h"
#include <stdlib.h>
#include <string.h>

enum { MOST_NUMBERS = 4, MOST_DIGITS = 9, MOST_DIMS = 8 };

typedef struct Group {
    char *pattern, *stored;
    int64_t shape[MOST_DIMS];
    int ndim, numbers;
    int32_t low[MOST_NUMBERS], high[MOST_NUMBERS]; // of the i-th '#'
    uint64_t count, elements, bytes;
} Group;

struct TensorTable {
    Group *group; // (n)
    size_t n, cap;
    json_t *index; // key -> position in group
};

TensorTable *tensor_table_open(void)
{
    TensorTable *t = xcalloc(1, sizeof *t);
    t->index = json_object();
    return t;
}

void tensor_table_free(TensorTable *t)
{
    if (!t) return;
    for (size_t i = 0; i < t->n; i++) {
        free(t->group[i].pattern);
        free(t->group[i].stored);
    }
    free(t->group);
    json_decref(t->index);
    free(t);
}

// Appends the pattern of name; its numbers go to number (at most MOST_NUMBERS; further ones stay in the
// pattern)
static int put_pattern(Buf *out, const char *name, int32_t *number)
{
    int n = 0;
    for (const char *s = name; *s;) {
        size_t part = strcspn(s, "./"), digits = strspn(s, "0123456789");
        if (part && digits == part && digits <= MOST_DIGITS && n < MOST_NUMBERS) {
            number[n++] = (int32_t)strtol(s, NULL, 10);
            buf_puts(out, "#");
        } else {
            buf_put(out, s, part);
        }
        s += part;
        if (*s) buf_put(out, s++, 1);
    }
    return n;
}

static Group *group_new(TensorTable *t, const char *pattern, size_t pattern_bytes)
{
    if (t->n == t->cap) t->group = xrealloc(t->group, (t->cap = MAX(64, 2 * t->cap)) * sizeof *t->group);
    Group *g = &t->group[t->n++];
    *g = (Group){.pattern = xstrndup(pattern, pattern_bytes)};
    return g;
}

static Group *group_find(TensorTable *t, const Buf *key, size_t pattern_bytes, bool *new)
{
    json_t *at = json_object_get(t->index, key->data);
    *new = !at;
    if (at) return &t->group[json_integer_value(at)];
    json_object_set_new(t->index, key->data, json_integer((json_int_t)t->n));
    return group_new(t, key->data, pattern_bytes);
}

void tensor_table_add(TensorTable *t, const char *name, const char *stored, const int64_t *shape, int ndim,
                      uint64_t bytes)
{
    Buf key = {0};
    int32_t number[MOST_NUMBERS];
    uint64_t elements = 1;
    bool new;
    ASSERT(ndim >= 0 && ndim <= MOST_DIMS);
    int numbers = put_pattern(&key, name, number);
    size_t pattern_bytes = key.len;
    buf_printf(&key, " %s", stored);
    for (int i = 0; i < ndim; i++) {
        buf_printf(&key, " %lld", (long long)shape[i]);
        elements *= (uint64_t)shape[i];
    }
    Group *g = group_find(t, &key, pattern_bytes, &new);
    if (new) {
        g->stored = xstrdup(stored);
        g->ndim = ndim;
        g->numbers = numbers;
        for (int i = 0; i < ndim; i++) g->shape[i] = shape[i];
    }
    for (int i = 0; i < numbers; i++) {
        g->low[i] = new ? number[i] : MIN(g->low[i], number[i]);
        g->high[i] = new ? number[i] : MAX(g->high[i], number[i]);
    }
    g->count++;
    g->elements += elements;
    g->bytes += bytes;
    buf_free(&key);
}

uint64_t tensor_table_elements(const TensorTable *t)
{
    uint64_t n = 0;
    for (size_t i = 0; i < t->n; i++) n += t->group[i].elements;
    return n;
}

uint64_t tensor_table_bytes(const TensorTable *t)
{
    uint64_t n = 0;
    for (size_t i = 0; i < t->n; i++) n += t->group[i].bytes;
    return n;
}

// "layers.#.q" -> "layers.{0..29}.q", or the number itself when there is one only
static void put_name(Buf *out, const Group *g)
{
    int i = 0;
    for (const char *c = g->pattern; *c; c++) {
        bool number = *c == '#' && i < g->numbers;
        if (!number)
            buf_put(out, c, 1);
        else if (g->low[i] == g->high[i])
            buf_printf(out, "%d", g->low[i]);
        else
            buf_printf(out, "{%d..%d}", g->low[i], g->high[i]);
        i += number;
    }
}

json_t *tensor_table_json(const TensorTable *t)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < t->n; i++) {
        const Group *g = &t->group[i];
        Buf name = {0};
        put_name(&name, g);
        json_t *shape = json_array();
        for (int d = 0; d < g->ndim; d++) json_array_append_new(shape, json_integer(g->shape[d]));
        json_array_append_new(rows, json_pack("{s:s, s:o, s:s, s:I, s:I}", "name", name.data, "shape", shape, "type",
                                              g->stored, "count", (json_int_t)g->count, "bytes", (json_int_t)g->bytes));
        buf_free(&name);
    }
    return rows;
}

json_t *tensor_table_types(const TensorTable *t)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < t->n; i++) {
        const Group *g = &t->group[i];
        json_int_t tensors = 0, bytes = 0;
        bool seen = false;
        for (size_t k = 0; k < t->n; k++) {
            if (!streq(t->group[k].stored, g->stored)) continue;
            seen |= k < i;
            tensors += (json_int_t)t->group[k].count;
            bytes += (json_int_t)t->group[k].bytes;
        }
        if (!seen)
            json_array_append_new(rows,
                                  json_pack("{s:s, s:I, s:I}", "type", g->stored, "tensors", tensors, "bytes", bytes));
    }
    return rows;
}
