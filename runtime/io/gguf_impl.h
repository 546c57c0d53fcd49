// gguf_impl: what gguf.c, gguf_meta.c and gguf_names.c share. Private to them.
#pragma once
#include "io/weights_impl.h"

typedef enum GgufType { // of metadata values, numbered as in the file
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
} GgufType;

typedef struct GgufKey {
    char *name;
    GgufType type, item; // item: of an array's items, else the type
    uint64_t count;      // items; 1 for scalars and strings
    uint64_t at;         // of the first item in the file
} GgufKey;

typedef struct Gguf { // the `meta` of a Weights
    GgufKey *key;
    int n_keys;
    NameTable by_name;
} Gguf;

// ---- gguf_meta.c: values ----
size_t gguf_type_bytes(GgufType t); // 0: strings and arrays
int gguf_skip_items(Reader *r,
                    GgufKey *k); // checks k->count items from the reader's place on and moves behind them
const GgufKey *gguf_key(const Weights *w, const char *name); // NULL: absent
// A whole number >= 0 of any integer type. absent: *out untouched. E_INPUT: another type or negative.
int gguf_uint(const Weights *w, const char *name, uint64_t *out);
int gguf_string(const Weights *w, const char *name,
                char **out); // malloc'ed; NULL: absent. E_INPUT: not a string
char *gguf_meta_json(const Weights *w, const char *key);

// ---- gguf_names.c ----
// Gives every entry its Hugging Face name and undoes what llama.cpp's converter did to it.
int gguf_map_names(Weights *w);
