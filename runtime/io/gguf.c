// gguf: reads GGUF files, versions 2 and 3, little endian. Format: docs/gguf.md of ggml.
//   "GGUF" | u32 version | u64 tensors | u64 keys | keys | tensor infos | padding to the alignment | tensor data
//   key:         string name | u32 type | value        (string: u64 length, bytes; array: u32 item type, u64 count, items)
//   tensor info: string name | u32 dims | u64 extent[dims], innermost first | u32 type | u64 offset in the data
// Values stay in the file: gguf_meta.c reads them when asked. Names and layouts as Hugging Face has them: gguf_names.c.
#include "io/gguf_impl.h"
#include <stdlib.h>
#include <string.h>

enum { KEYS_MAX = 65536, TENSORS_MAX = 65536, KEY_NAME_MAX = 1024, TENSOR_NAME_MAX = 63, DIMS_MAX = 4 };

static int take_u32(Reader *r, uint32_t *out)
{
    const uint8_t *p;
    TRY(reader_take(r, 4, &p));
    *out = le32(p);
    return OK;
}

static int take_u64(Reader *r, uint64_t *out)
{
    const uint8_t *p;
    TRY(reader_take(r, 8, &p));
    *out = le64(p);
    return OK;
}

// A name of a key or a tensor, malloc'ed.
static int take_name(Reader *r, const char *what, uint64_t number, size_t limit, char **out)
{
    uint64_t bytes;
    const uint8_t *p = NULL;
    TRY(take_u64(r, &bytes));
    if (bytes <= limit) TRY(reader_take(r, bytes, &p));
    if (!p || !name_ok((const char *)p, (size_t)bytes, limit))
        return fail(E_INPUT, r->source->path, NULL,
                    "the name of %s %llu (%llu bytes) is not 1 to %zu bytes of printable UTF-8", what,
                    (unsigned long long)number, (unsigned long long)bytes, limit);
    *out = xstrndup((const char *)p, (size_t)bytes);
    return OK;
}

// ---- header ---------------------------------------------------------------------------------------------------------
static int read_counts(Reader *r, uint64_t *tensors, uint64_t *keys)
{
    const char *path = r->source->path;
    uint32_t magic, version;
    TRY(take_u32(r, &magic)); // weights_open looked at it
    TRY(take_u32(r, &version));
    if ((version & 0xffff) == 0 && version)
        return fail(E_INPUT, path, "convert it on a little-endian machine",
                    "a big-endian GGUF file, which is not read");
    if (version < 2 || version > 3)
        return fail(E_INPUT, path, "convert the model anew with a current llama.cpp",
                    "GGUF version %u; 2 and 3 are read", version);
    TRY(take_u64(r, tensors));
    TRY(take_u64(r, keys));
    if (*tensors > TENSORS_MAX || *keys > KEYS_MAX)
        return fail(E_INPUT, path, NULL, "%llu tensors and %llu keys; at most %d and %d are read",
                    (unsigned long long)*tensors, (unsigned long long)*keys, TENSORS_MAX, KEYS_MAX);
    return OK;
}

// ---- keys -----------------------------------------------------------------------------------------------------------
static int read_key(Reader *r, Gguf *g)
{
    GgufKey *k = &g->key[g->n_keys];
    uint32_t type, item;
    TRY(take_name(r, "key", (uint64_t)g->n_keys, KEY_NAME_MAX, &k->name));
    g->n_keys++; // from here on meta_free frees the name
    TRY(take_u32(r, &type));
    item = type;
    k->count = 1;
    if (type == GGUF_ARRAY) {
        TRY(take_u32(r, &item));
        TRY(take_u64(r, &k->count));
    }
    if (type >= GGUF_TYPES || item >= GGUF_TYPES || item == GGUF_ARRAY)
        return fail(E_INPUT, tmpf("%s: key %s", r->source->path, k->name), NULL,
                    "unknown value type %u, items of type %u", type, item);
    k->type = (GgufType)type;
    k->item = (GgufType)item;
    k->at = r->at;
    return gguf_skip_items(r, k);
}

static int read_keys(Reader *r, Gguf *g, uint64_t n)
{
    g->key = xcalloc(MAX((size_t)n, 1), sizeof *g->key);
    for (uint64_t i = 0; i < n; i++) TRY(read_key(r, g));
    NameRef *ref = xmalloc(MAX((size_t)n, 1) * sizeof *ref);
    for (int i = 0; i < g->n_keys; i++) ref[i] = (NameRef){g->key[i].name, i};
    const char *twice = names_sort(&g->by_name, ref, g->n_keys);
    if (twice) return fail(E_INPUT, r->source->path, NULL, "key %s is there twice", twice);
    return OK;
}

// ---- tensors --------------------------------------------------------------------------------------------------------
// *place: data bytes before this tensor, aligned; offsets have to be exactly that. Entry.offset is relative to the data.
static int read_tensor(Weights *w, Reader *r, uint64_t number, uint64_t alignment, uint64_t *place)
{
    char *name = NULL;
    int status = OK;
    Entry e = {0};
    uint32_t ndim, type;
    uint64_t extent[DIMS_MAX], offset;
    TRY_DONE(take_name(r, "tensor", number, TENSOR_NAME_MAX, &name));
    const char *where = weights_place(w, 0, name);
    TRY_DONE(take_u32(r, &ndim));
    if (ndim > DIMS_MAX) TRY_DONE(fail(E_INPUT, where, NULL, "%u dimensions, at most %d are possible", ndim, DIMS_MAX));
    for (uint32_t d = 0; d < ndim; d++) {
        TRY_DONE(take_u64(r, &extent[d]));
        if (extent[d] < 1 || extent[d] > INT64_MAX)
            TRY_DONE(fail(E_INPUT, where, NULL, "dimension %u is not positive", d));
    }
    e.info.ndim = (int)ndim;
    for (uint32_t d = 0; d < ndim; d++) e.info.shape[d] = (int64_t)extent[ndim - 1 - d];
    TRY_DONE(take_u32(r, &type));
    TRY_DONE(take_u64(r, &offset));
    e.type = stored_type_ggml(type);
    if (!e.type) TRY_DONE(fail(E_INPUT, where, NULL, "unknown tensor type %u", type));
    if (offset != *place)
        TRY_DONE(fail(E_INPUT, where, NULL, "its data is said to be at %llu, the tensors before it end at %llu",
                      (unsigned long long)offset, (unsigned long long)*place));
    e.offset = offset;
    TRY_DONE(weights_add(w, name, strlen(name), e));
    *place = ROUND_UP(offset + w->entry[w->n - 1].info.bytes, alignment); // both at most the file's size
done:
    free(name);
    return status < 0 ? status : OK;
}

static int read_tensors(Weights *w, Reader *r, uint64_t n)
{
    uint64_t alignment = 32, place = 0;
    const GgufKey *k = gguf_key(w, "general.alignment");
    TRY(gguf_uint(w, "general.alignment", &alignment));
    if ((k && k->item != GGUF_U32) || alignment < 8 || alignment > 65536 || (alignment & (alignment - 1)))
        return fail(E_INPUT, tmpf("%s: key general.alignment", r->source->path), NULL,
                    "%llu is no power of two between 8 and 65536 (u32)", (unsigned long long)alignment);
    for (uint64_t i = 0; i < n; i++) TRY(read_tensor(w, r, i, alignment, &place));
    uint64_t data_at = ROUND_UP(r->at, alignment);
    for (int i = 0; i < w->n; i++) {
        Entry *e = &w->entry[i];
        uint64_t end = data_at + e->offset + e->info.bytes; // no overflow: each is at most the file's size
        if (end > r->source->bytes)
            return fail(
                E_INPUT, weights_place(w, 0, e->info.name), "the file is cut short or damaged: fetch or copy it again",
                "ends at byte %llu, the file at %llu", (unsigned long long)end, (unsigned long long)r->source->bytes);
        e->offset += data_at;
    }
    return OK;
}

static int check_split(const Weights *w)
{
    uint64_t parts = 1;
    TRY(gguf_uint(w, "split.count", &parts));
    if (parts <= 1) return OK;
    return fail(E_INPUT, w->source[0].path, "merge them first: llama-gguf-split --merge FIRST.gguf WHOLE.gguf",
                "one of %llu parts of a split GGUF model", (unsigned long long)parts);
}

// ---- the container --------------------------------------------------------------------------------------------------
static void gguf_meta_free(void *meta)
{
    Gguf *g = meta;
    for (int i = 0; i < g->n_keys; i++) free(g->key[i].name);
    free(g->key);
    free(g->by_name.ref);
    free(g);
}

static const Container gguf = {gguf_meta_json, gguf_meta_free, true};

int gguf_open(Weights *w)
{
    Reader r = {.source = &w->source[0]};
    int status = OK;
    uint64_t tensors = 0, keys = 0;
    w->container = &gguf;
    w->meta = xcalloc(1, sizeof(Gguf));
    TRY_DONE(read_counts(&r, &tensors, &keys));
    TRY_DONE(read_keys(&r, w->meta, keys));
    TRY_DONE(check_split(w));
    TRY_DONE(read_tensors(w, &r, tensors));
    TRY_DONE(gguf_map_names(w));
done:
    reader_free(&r);
    return status;
}
