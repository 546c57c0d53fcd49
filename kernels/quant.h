// quant: block formats of quantised weights (GGUF). Elements of a row lie in whole blocks, one behind the other.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef enum Quant {
#define QUANT(name, lower, ggml, block, bytes) QUANT_##name,
#include "quant.def"
#undef QUANT
    QUANT_COUNT
} Quant;

typedef struct QuantFormat {
    const char *name;
    int block, bytes;                                              // elements of a block, and its size
    void (*decode)(const uint8_t *src, float *dst, size_t blocks); // src need not be aligned
} QuantFormat;
extern const QuantFormat quant_formats[QUANT_COUNT];

#define QUANT(name, lower, ggml, block, bytes) void quant_decode_##lower(const uint8_t *src, float *dst, size_t blocks);
#include "quant.def"
#undef QUANT
