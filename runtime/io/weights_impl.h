// weights_impl: what the readers of model files share. Private to runtime/io.
//
// A container (safetensors.c, gguf.c) validates its files when they are opened and turns every tensor into an Entry; from then
// on weights.c alone reads. Nothing of a file stays mapped: all reading is pread into small buffers, so that a file that is cut
// short meanwhile is an error and no SIGBUS, and no page of a model counts as ours.
#pragma once
#include "io/dequant.h"
#include "io/weights.h"
#include <jansson.h>

enum { WEIGHTS_MAX_NAME = 512, WEIGHTS_MAX_TENSORS = 1 << 20 };

// ---- files (weights_file.c) -----------------------------------------------------------------------------------------
typedef struct Source {
    char *path;
    int fd;
    uint64_t bytes; // when it was opened
} Source;

int source_open(Source *s, const char *path); // E_INPUT unless it is a regular file that can be read
void source_close(Source *s);
int source_read(const Source *s, uint64_t at, void *dst, size_t bytes); // E_INPUT past the end

// Reads a file front to back through a window of its own.
typedef struct Reader {
    const Source *source;
    uint64_t at; // next byte
    uint8_t *window;
    uint64_t window_at;
    size_t window_bytes, window_cap;
} Reader;
// The next bytes, valid until the next call. E_INPUT at the file's end.
int reader_take(Reader *r, uint64_t bytes, const uint8_t **out);
void reader_free(Reader *r);
static inline uint64_t reader_left(const Reader *r)
{
    return r->source->bytes - r->at;
}

static inline uint32_t le32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline uint64_t le64(const uint8_t *p)
{
    return le32(p) | (uint64_t)le32(p + 4) << 32;
}

// ---- names ----------------------------------------------------------------------------------------------------------
typedef struct NameRef {
    const char *name; // owned elsewhere
    int i;
} NameRef;
typedef struct NameTable { // sorted; zero-initialise
    NameRef *ref;
    int n;
} NameTable;
// Takes over ref (n entries, malloc'ed). The duplicated name, or NULL when all differ.
const char *names_sort(NameTable *t, NameRef *ref, int n);
int names_find(const NameTable *t, const char *name); // NameRef.i or -1
// Printable UTF-8 of 1..limit bytes: names of foreign files end up on terminals.
bool name_ok(const char *name, size_t bytes, size_t limit);

// ---- tensors --------------------------------------------------------------------------------------------------------
typedef struct Entry {
    TensorInfo info; // info.name is owned by the Weights
    const StoredType *type;
    int source;      // index of the file
    uint64_t offset; // of the first byte in it
    uint64_t elements;
    uint64_t row_elements; // of one row of weights_read
    uint64_t rope_heads;   // > 0: rows of each head are stored in interleaved rotary order
    float shift;           // added to every stored number
} Entry;

typedef struct Container {
    char *(*meta_json)(const Weights *w, const char *key);
    void (*meta_free)(void *meta);
    bool is_gguf;
} Container;

struct Weights {
    const Container *container;
    void *meta; // the container's own
    Source *source;
    int n_sources;
    Entry *entry;
    int n, cap;
    NameTable by_name;
};

int gguf_open(Weights *w);             // source[0] is open
int safetensors_open_file(Weights *w); // source[0] is open
int safetensors_open_dir(Weights *w, const char *dir);
int safetensors_index_parse(json_t **map, char ***shards, int *n_shards, const char *text, size_t bytes,
                            const char *place);

int weights_add_source(Weights *w, const char *path);
// Appends a tensor after checking name, shape and that its bytes lie in its file; fills info.bytes, elements and row_elements.
int weights_add(Weights *w, const char *name, size_t name_bytes, Entry e);
const char *weights_place(const Weights *w, int source,
                          const char *tensor); // "FILE: tensor NAME", for fail()
