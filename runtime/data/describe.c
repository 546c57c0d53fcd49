// Implementation of describe.h: every line is parsed, none is kept.
#include "data/describe.h"
#include "data/data_impl.h"

enum { MOST_KEYS = 64 };

typedef struct Census {
    const char *format; // NULL until the first line
    json_t *keys;
    int64_t rows;
    size_t longest;
} Census;

static void detect(Census *c, const json_t *row, const char *place)
{
    const Format *f = NULL;
    if (format_detect(&f, row, place) < 0) {
        error_clear();
        c->format = json_object_get(row, "chosen") ? "preferences" : "unknown";
        return;
    }
    c->format = f->name;
}

static int count_line(Census *c, const char *path, const Line *line)
{
    const char *place = tmpf("%s:%lld", path, (long long)line->number), *key;
    json_t *row, *value;
    TRY(jsonl_parse(&row, line->text, line->bytes, place));
    if (!c->format) detect(c, row, place);
    json_object_foreach(row, key, value)
    {
        json_t *seen = json_object_get(c->keys, key);
        if (seen)
            json_integer_set(seen, json_integer_value(seen) + 1);
        else if (json_object_size(c->keys) < MOST_KEYS)
            json_object_set_new(c->keys, key, json_integer(1));
    }
    json_decref(row);
    c->rows++;
    c->longest = MAX(c->longest, line->bytes);
    return OK;
}

int dataset_describe(const char *path, json_t *facts)
{
    Census c = {.keys = json_object()};
    Jsonl j = {0};
    int status = jsonl_open(&j, path);
    if (status == OK) status = jsonl_next(&j);
    while (status == OK && j.n) {
        for (int i = 0; i < j.n && status == OK; i++) status = count_line(&c, path, &j.line[i]);
        if (status == OK) status = jsonl_next(&j);
    }
    json_int_t bytes = (json_int_t)(j.offset + (int64_t)j.used);
    jsonl_close(&j);
    if (status == OK && !c.rows)
        status = fail(E_INPUT, path, "one JSON object a line is expected", "the file has no rows");
    if (status == OK) {
        json_object_set_new(facts, "format", json_string(c.format));
        json_object_set_new(facts, "rows", json_integer(c.rows));
        json_object_set_new(facts, "file_bytes", json_integer(bytes));
        json_object_set_new(facts, "longest_line_bytes", json_integer((json_int_t)c.longest));
        json_object_set(facts, "keys", c.keys);
    }
    json_decref(c.keys);
    return status;
}
