// dequant: how tensors are stored in foreign files, and how their numbers become f32. Private to runtime/io.
#pragma once
#include "base.h"
#include "quant.h"

typedef struct StoredType {
    const char *name;     // as the files' own documentation writes it
    int ggml;             // type number in GGUF files; -1: not a type of GGUF
    bool safetensors;     // a dtype of safetensors
    uint32_t block;       // elements stored together: a row is a whole number of blocks
    uint32_t block_bytes; // their size in the file
    // blocks * block elements; src need not be aligned. NULL: tensors of this type can be listed but are no weights
    void (*decode)(const uint8_t *src, float *dst, size_t blocks);
    const QuantFormat *quant; // NULL: plain numbers
} StoredType;

const StoredType *stored_type_safetensors(const char *name); // NULL: unknown
const StoredType *stored_type_ggml(uint32_t number);         // NULL: unknown
// Bytes of n elements; false when they fill no whole number of blocks or the size overflows.
bool stored_bytes(const StoredType *t, uint64_t n, uint64_t *bytes);
