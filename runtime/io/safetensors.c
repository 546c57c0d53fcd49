// safetensors: reads single files and sharded directories. Format: the README of safetensors.
//   u64 length of the header, little endian | header: a JSON object, padded with spaces | the tensors' bytes
// The header maps names to {"dtype", "shape", "data_offsets": [begin, end)}, offsets counted from the header's end, and
// "__metadata__" to an object of strings. Accepted only when the tensors cover the rest of the file exactly, without holes or
// overlaps: then there is one reading of a file, and no room for a second file inside it.
// Writing: safetensors_write.c.
#include "io/weights_impl.h"
#include <stdlib.h>
#include <string.h>

enum { HEADER_MAX = 100 * 1000 * 1000, SHARDS_MAX = 512, INDEX_MAX = HEADER_MAX };

// ---- one file -------------------------------------------------------------------------------------------------------
static int header_read(const Source *s, char **text, size_t *bytes)
{
    uint8_t length[8];
    if (s->bytes < sizeof length + 2)
        return fail(E_INPUT, s->path, "fetch or copy the file again", "%llu bytes are no safetensors file",
                    (unsigned long long)s->bytes);
    TRY(source_read(s, 0, length, sizeof length));
    uint64_t n = le64(length), most = MIN(s->bytes - sizeof length, (uint64_t)HEADER_MAX);
    if (n < 2 || n > most)
        return fail(E_INPUT, s->path, "the file is cut short or damaged: fetch or copy it again",
                    "header of %llu bytes, at least 2 and at most %llu are possible", (unsigned long long)n,
                    (unsigned long long)most);
    char *data = xmalloc((size_t)n);
    int status = source_read(s, sizeof length, data, (size_t)n);
    if (status == OK && data[0] != '{') status = fail(E_INPUT, s->path, NULL, "the header does not start with {");
    if (status < 0) {
        free(data);
        return status;
    }
    *text = data;
    *bytes = (size_t)n;
    return OK;
}

// [begin, end) of a tensor relative to the data, not yet compared with anything
static int read_offsets(const char *place, const json_t *offsets, uint64_t *begin, uint64_t *end)
{
    const json_t *b = json_array_get(offsets, 0), *e = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e) || json_integer_value(b) < 0 ||
        json_integer_value(e) < json_integer_value(b))
        return fail(E_INPUT, place, NULL, "data_offsets is not [begin, end] with 0 <= begin <= end");
    *begin = (uint64_t)json_integer_value(b);
    *end = (uint64_t)json_integer_value(e);
    return OK;
}

static int read_shape(const char *place, const json_t *shape, TensorInfo *info)
{
    if (!json_is_array(shape)) return fail(E_INPUT, place, NULL, "shape is not an array");
    size_t ndim = json_array_size(shape);
    if (ndim > COUNT_OF(info->shape))
        return fail(E_INPUT, place, NULL, "%zu dimensions, at most %zu are read", ndim, COUNT_OF(info->shape));
    for (size_t d = 0; d < ndim; d++) {
        const json_t *extent = json_array_get(shape, d);
        if (!json_is_integer(extent) || json_integer_value(extent) < 0)
            return fail(E_INPUT, place, NULL, "dimension %zu of its shape is no whole number", d);
        info->shape[d] = json_integer_value(extent);
    }
    info->ndim = (int)ndim;
    return OK;
}

static int add_tensor(Weights *w, int source, uint64_t data_at, const char *name, const json_t *t)
{
    const char *place = weights_place(w, source, name_ok(name, strlen(name), WEIGHTS_MAX_NAME) ? name : "?");
    Entry e = {.source = source};
    uint64_t end = 0;
    const char *dtype = json_string_value(json_object_get(t, "dtype"));
    if (!json_is_object(t) || json_object_size(t) != 3 || !dtype)
        return fail(E_INPUT, place, NULL, "its header entry is not {dtype, shape, data_offsets}");
    e.type = stored_type_safetensors(dtype);
    if (!e.type) return fail(E_INPUT, place, NULL, "unknown dtype \"%.32s\"", dtype);
    TRY(read_shape(place, json_object_get(t, "shape"), &e.info));
    TRY(read_offsets(place, json_object_get(t, "data_offsets"), &e.offset, &end));
    uint64_t bytes = end - e.offset;
    if (!add_ok(e.offset, data_at, &e.offset)) return fail(E_INPUT, place, NULL, "data_offsets overflows");
    TRY(weights_add(w, name, strlen(name), e));
    if (w->entry[w->n - 1].info.bytes != bytes)
        return fail(E_INPUT, place, NULL, "data_offsets spans %llu bytes, its dtype and shape need %llu",
                    (unsigned long long)bytes, (unsigned long long)w->entry[w->n - 1].info.bytes);
    return OK;
}

static int compare_entries(const void *a,
                           const void *b) // by place in the file; an empty tensor before what follows it
{
    const Entry *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->info.bytes != y->info.bytes) return x->info.bytes < y->info.bytes ? -1 : 1;
    return strcmp(x->info.name, y->info.name);
}

// The tensors of one file, w->entry[first..), follow each other from data_at to the end of the file.
static int check_cover(Weights *w, int source, int first, uint64_t data_at)
{
    const Source *s = &w->source[source];
    uint64_t at = data_at;
    if (w->n > first) qsort(w->entry + first, (size_t)(w->n - first), sizeof *w->entry, compare_entries);
    for (int i = first; i < w->n; i++) {
        const Entry *e = &w->entry[i];
        if (e->offset != at)
            return fail(E_INPUT, weights_place(w, source, e->info.name), NULL, "%s the tensor before it",
                        e->offset < at ? "overlaps" : "leaves a hole after");
        at += e->info.bytes;
    }
    if (at == s->bytes) return OK;
    return fail(E_INPUT, s->path, "fetch or copy the file again", "its tensors end at byte %llu, the file at %llu",
                (unsigned long long)at, (unsigned long long)s->bytes);
}

static int check_metadata(const Source *s, const json_t *meta)
{
    const char *key;
    json_t *value;
    if (!json_is_object(meta)) return fail(E_INPUT, s->path, NULL, "__metadata__ is not an object");
    json_object_foreach((json_t *)meta, key, value) if (!json_is_string(value)) return fail(
        E_INPUT, s->path, NULL, "a value of __metadata__ is not a string");
    return OK;
}

static int add_header(Weights *w, int source, uint64_t data_at, json_t *header)
{
    int first = w->n;
    const char *name;
    json_t *value;
    json_object_foreach(header, name, value)
    {
        if (streq(name, "__metadata__")) {
            TRY(check_metadata(&w->source[source], value));
            if (!w->meta) w->meta = json_incref(value);
        } else {
            TRY(add_tensor(w, source, data_at, name, value));
        }
    }
    return check_cover(w, source, first, data_at);
}

static int add_file(Weights *w, int source)
{
    char *text = NULL;
    size_t bytes = 0;
    TRY(header_read(&w->source[source], &text, &bytes));
    json_error_t error;
    json_t *header = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!header) return fail(E_INPUT, w->source[source].path, NULL, "the header is no JSON: %s", error.text);
    int status = add_header(w, source, 8 + bytes, header);
    json_decref(header);
    return status;
}

// ---- the container --------------------------------------------------------------------------------------------------
static char *safetensors_meta_json(const Weights *w, const char *key)
{
    const json_t *value = json_object_get(w->meta, key);
    return value ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
}

static void safetensors_meta_free(void *meta)
{
    json_decref(meta);
}

static const Container safetensors = {safetensors_meta_json, safetensors_meta_free, false};

int safetensors_open_file(Weights *w)
{
    w->container = &safetensors;
    return add_file(w, 0);
}

// ---- shards ---------------------------------------------------------------------------------------------------------
// A shard lies beside its index: the name is a file name, never a path.
static bool shard_name_ok(const char *name)
{
    size_t n = strlen(name);
    static const char tail[] = ".safetensors";
    return name_ok(name, n, 255) && name[0] != '.' && !strchr(name, '/') && !strchr(name, '\\') && n > strlen(tail) &&
           streq(name + n - strlen(tail), tail);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

// The weight_map of an index (new reference), and the shards it names, sorted (an array whose strings the map owns).
int safetensors_index_parse(json_t **map, char ***shards, int *n_shards, const char *text, size_t bytes,
                            const char *place)
{
    json_error_t error;
    json_t *index = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error), *weight_map = NULL, *value;
    const char *name;
    char **list = NULL;
    int status = OK, n = 0, unique = 0;
    if (!index) return fail(E_INPUT, tmpf("%s:%d", place, error.line), NULL, "no JSON: %s", error.text);
    weight_map = json_object_get(index, "weight_map");
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0) {
        status = fail(E_INPUT, place, NULL, "weight_map is not an object that names the shard of each tensor");
        goto done;
    }
    list = xcalloc(json_object_size(weight_map), sizeof *list);
    json_object_foreach(weight_map, name, value)
    {
        if (!json_is_string(value) || !shard_name_ok(json_string_value(value))) {
            status = fail(E_INPUT, place, "a shard is a file beside its index, named *.safetensors",
                          "weight_map holds a shard that is no plain .safetensors file name");
            goto done;
        }
        list[n++] = (char *)json_string_value(value);
    }
    qsort(list, (size_t)n, sizeof *list, compare_names);
    for (int i = 0; i < n; i++)
        if (i == 0 || !streq(list[i], list[unique - 1])) list[unique++] = list[i];
    if (unique > SHARDS_MAX) {
        status = fail(E_INPUT, place, NULL, "%d shards, at most %d are read", unique, SHARDS_MAX);
        goto done;
    }
    *map = json_incref(weight_map);
    *shards = list;
    *n_shards = unique;
    list = NULL;
done:
    free(list);
    json_decref(index);
    return status;
}

static int check_map(const Weights *w, json_t *map, char **shards, const char *place)
{
    const char *name;
    json_t *shard;
    NameTable table;
    NameRef *ref = xmalloc((size_t)MAX(w->n, 1) * sizeof *ref);
    for (int i = 0; i < w->n; i++) ref[i] = (NameRef){w->entry[i].info.name, i};
    names_sort(&table, ref, w->n); // duplicates are weights_open's to report
    int status = OK;
    json_object_foreach(map, name, shard)
    {
        int i = names_find(&table, name);
        if (i >= 0 && streq(shards[w->entry[i].source], json_string_value(shard))) continue;
        status = fail(E_INPUT, place, "fetch index and shards anew: they are not of one model",
                      "says that %s holds %.200s, which is not so", json_string_value(shard), name);
        break;
    }
    free(ref);
    return status;
}

static int open_shards(Weights *w, const char *dir, const char *index_path)
{
    char *text = NULL, **shards = NULL;
    size_t bytes = 0;
    json_t *map = NULL;
    int status = OK, n = 0;
    TRY(file_read(index_path, INDEX_MAX, &text, &bytes));
    TRY_DONE(safetensors_index_parse(&map, &shards, &n, text, bytes, index_path));
    for (int i = 0; i < n; i++) {
        char *path = xasprintf("%s/%s", dir, shards[i]);
        int source = weights_add_source(w, path);
        free(path);
        TRY_DONE(source);
        TRY_DONE(add_file(w, source));
    }
    TRY_DONE(check_map(w, map, shards, index_path));
    status = OK;
done:
    free(shards);
    free(text);
    json_decref(map);
    return status;
}

static int open_one(Weights *w, const char *path)
{
    TRY(weights_add_source(w, path));
    return add_file(w, 0);
}

int safetensors_open_dir(Weights *w, const char *dir)
{
    w->container = &safetensors;
    char *one = xasprintf("%s/model.safetensors", dir), *index = xasprintf("%s.index.json", one);
    int status = path_exists(one) ? open_one(w, one) : open_shards(w, dir, index);
    free(one);
    free(index);
    return status;
}
