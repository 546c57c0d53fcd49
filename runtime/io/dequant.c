// dequant: the table of storage types and one decoder per type that can hold weights; those of quantised blocks are in kernels/quant.c.
#include "io/dequant.h"
#include "f16.h"
#include <string.h>

// ---- plain numbers --------------------------------------------------------------------------------------------------
static void decode_f32(const uint8_t *src, float *dst, size_t n)
{
    memcpy(dst, src, n * sizeof *dst);
}

static void decode_f16(const uint8_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++) dst[i] = load_f16(src + 2 * i);
}

static void decode_bf16(const uint8_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++) dst[i] = bits_to_f32((uint32_t)load_u16(src + 2 * i) << 16);
}

static void decode_f64(const uint8_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double d;
        memcpy(&d, src + 8 * i, sizeof d);
        dst[i] = (float)d;
    }
}

// ---- the table ------------------------------------------------------------------------------------------------------
static const StoredType types[] = {
    // name, GGUF number, in safetensors, block, its bytes, decoder
    {"F32", 0, true, 1, 4, decode_f32},
    {"F16", 1, true, 1, 2, decode_f16},
    {"BF16", 30, true, 1, 2, decode_bf16},
    {"F64", 28, true, 1, 8, decode_f64},
#define QUANT(name, lower, ggml, block, bytes)                                                                         \
    {#name, ggml, false, block, bytes, quant_decode_##lower, &quant_formats[QUANT_##name]},
#include "quant.def"
#undef QUANT
    // listed only
    {"I8", 24, true, 1, 1, NULL},
    {"I16", 25, true, 1, 2, NULL},
    {"I32", 26, true, 1, 4, NULL},
    {"I64", 27, true, 1, 8, NULL},
    {"U8", -1, true, 1, 1, NULL},
    {"U16", -1, true, 1, 2, NULL},
    {"U32", -1, true, 1, 4, NULL},
    {"U64", -1, true, 1, 8, NULL},
    {"BOOL", -1, true, 1, 1, NULL},
    {"C64", -1, true, 1, 8, NULL},
    {"F8_E4M3", -1, true, 1, 1, NULL},
    {"F8_E5M2", -1, true, 1, 1, NULL},
    {"F8_E8M0", -1, true, 1, 1, NULL},
    {"F8_E4M3FNUZ", -1, true, 1, 1, NULL},
    {"F8_E5M2FNUZ", -1, true, 1, 1, NULL},
    {"F6_E2M3", -1, true, 4, 3, NULL},
    {"F6_E3M2", -1, true, 4, 3, NULL},
    {"F4", -1, true, 2, 1, NULL},
    {"Q8_1", 9, false, 32, 40, NULL},
    {"Q8_K", 15, false, 256, 292, NULL},
    {"IQ2_XXS", 16, false, 256, 66, NULL},
    {"IQ2_XS", 17, false, 256, 74, NULL},
    {"IQ3_XXS", 18, false, 256, 98, NULL},
    {"IQ1_S", 19, false, 256, 50, NULL},
    {"IQ4_NL", 20, false, 32, 18, NULL},
    {"IQ3_S", 21, false, 256, 110, NULL},
    {"IQ2_S", 22, false, 256, 82, NULL},
    {"IQ4_XS", 23, false, 256, 136, NULL},
    {"IQ1_M", 29, false, 256, 56, NULL},
    {"TQ1_0", 34, false, 256, 54, NULL},
    {"TQ2_0", 35, false, 256, 66, NULL},
    {"MXFP4", 39, false, 32, 17, NULL},
    {"NVFP4", 40, false, 64, 36, NULL},
    {"Q1_0", 41, false, 128, 18, NULL},
};

const StoredType *stored_type_safetensors(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(types); i++)
        if (types[i].safetensors && streq(types[i].name, name)) return &types[i];
    return NULL;
}

const StoredType *stored_type_ggml(uint32_t number)
{
    for (size_t i = 0; i < COUNT_OF(types); i++)
        if (types[i].ggml >= 0 && (uint32_t)types[i].ggml == number) return &types[i];
    return NULL;
}

bool stored_bytes(const StoredType *t, uint64_t n, uint64_t *bytes)
{
    return n % t->block == 0 && mul_ok(n / t->block, t->block_bytes, bytes);
}
