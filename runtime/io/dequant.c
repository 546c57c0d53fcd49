// dequant: the table of storage types and one decoder per type that can hold weights.
//
// Quantised blocks are decoded bit for bit as the `gguf` Python package (gguf/quants.py) does in f32: the same products in the
// same order, each rounded once. A fused multiply-add would round differently, so contraction is off (GCC: off in ISO C mode).
// Block layouts: ggml's ggml-common.h. Inner loops run over whole bytes without branches, so that compilers vectorise them.
#include "io/dequant.h"
#include <string.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

static inline uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}
static inline uint32_t load_u32(const uint8_t *p)
{
    return load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

static inline float bits_to_f32(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

// Exact for every f16, whatever the denormal mode of the thread: no operand or result is a denormal f32.
static inline float f16_to_f32(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t normal = magnitude + (112u << 23); // exponent bias 15 -> 127
    uint32_t special = magnitude + (224u << 23);
    float tiny = bits_to_f32(magnitude + (113u << 23)) - 0x1p-14f;
    uint32_t tiny_bits;
    memcpy(&tiny_bits, &tiny, sizeof tiny_bits);
    uint32_t exponent = magnitude & 0x0f800000u;
    uint32_t bits = exponent == 0x0f800000u ? special : exponent == 0 ? tiny_bits : normal;
    return bits_to_f32(bits | sign);
}

static inline float load_f16(const uint8_t *p)
{
    return f16_to_f32(load_u16(p));
}

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

// ---- blocks of 32: low nibbles are elements 0..15, high nibbles 16..31 ----------------------------------------------
// {f16 d; u8 q[16]}: d * (q - 8)
static void decode_q4_0(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks; blocks--, src += 18, dst += 32) {
        float d = load_f16(src);
        const uint8_t *q = src + 2;
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)((q[i] & 15) - 8);
            dst[i + 16] = d * (float)((q[i] >> 4) - 8);
        }
    }
}

// {f16 d, m; u8 q[16]}: d * q + m
static void decode_q4_1(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks; blocks--, src += 20, dst += 32) {
        float d = load_f16(src), m = load_f16(src + 2);
        const uint8_t *q = src + 4;
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)(q[i] & 15) + m;
            dst[i + 16] = d * (float)(q[i] >> 4) + m;
        }
    }
}

// {f16 d; u32 high; u8 q[16]}: d * (q - 16), bit i of `high` is the fifth bit of element i
static void decode_q5_0(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks; blocks--, src += 22, dst += 32) {
        float d = load_f16(src);
        uint32_t high = load_u32(src + 2);
        const uint8_t *q = src + 6;
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)((int)((q[i] & 15) | (high >> i & 1) << 4) - 16);
            dst[i + 16] = d * (float)((int)((q[i] >> 4) | (high >> (i + 16) & 1) << 4) - 16);
        }
    }
}

// {f16 d, m; u32 high; u8 q[16]}: d * q + m
static void decode_q5_1(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks; blocks--, src += 24, dst += 32) {
        float d = load_f16(src), m = load_f16(src + 2);
        uint32_t high = load_u32(src + 4);
        const uint8_t *q = src + 8;
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)(int)((q[i] & 15) | (high >> i & 1) << 4) + m;
            dst[i + 16] = d * (float)(int)((q[i] >> 4) | (high >> (i + 16) & 1) << 4) + m;
        }
    }
}

// {f16 d; i8 q[32]}: q * d
static void decode_q8_0(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks; blocks--, src += 34, dst += 32) {
        float d = load_f16(src);
        for (int i = 0; i < 32; i++) dst[i] = (float)(int8_t)src[2 + i] * d;
    }
}

// ---- blocks of 256 in sub-blocks of 16 or 32 with their own scale ("K") ---------------------------------------------
// {u8 scale[16]; u8 q[64]; f16 d, dmin}: (d * scale_low) * q - dmin * scale_high, per 16
static void decode_q2_k(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks; blocks--, src += 84, dst += 256) {
        const uint8_t *q = src + 16;
        float d = load_f16(src + 80), dmin = load_f16(src + 82);
        for (int s = 0; s < 16; s++) {
            float dl = d * (float)(src[s] & 15), ml = dmin * (float)(src[s] >> 4);
            const uint8_t *qs = q + s / 8 * 32 + s % 2 * 16;
            int shift = s % 8 / 2 * 2;
            for (int i = 0; i < 16; i++) dst[s * 16 + i] = dl * (float)(qs[i] >> shift & 3) - ml;
        }
    }
}

// Sixteen 6-bit scales in 12 bytes: low nibbles of 0..7, then their high nibbles; two more bits each in bytes 8..11.
static inline int q3_k_scale(const uint8_t *packed, int s)
{
    int low = packed[s % 8] >> (s / 8 * 4) & 15, high = packed[8 + s % 4] >> (s / 4 * 2) & 3;
    return (low | high << 4) - 32;
}

// {u8 mask[32]; u8 q[64]; u8 scale[12]; f16 d}: (d * scale) * (q - (mask bit clear ? 4 : 0)), per 16
static void decode_q3_k(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks; blocks--, src += 110, dst += 256) {
        float d = load_f16(src + 108);
        for (int s = 0; s < 16; s++) {
            float dl = d * (float)q3_k_scale(src + 96, s);
            const uint8_t *q = src + 32 + s / 8 * 32 + s % 2 * 16, *mask = src + s % 2 * 16;
            int shift = s % 8 / 2 * 2, bit = s / 2;
            for (int i = 0; i < 16; i++)
                dst[s * 16 + i] = dl * (float)((q[i] >> shift & 3) - (~mask[i] >> bit & 1) * 4);
        }
    }
}

// Eight 6-bit (scale, min) pairs in 12 bytes, shared by Q4_K and Q5_K.
static inline void k_scale_min(const uint8_t *packed, int s, float d, float dmin, float *scale, float *min)
{
    int sc, m;
    if (s < 4) {
        sc = packed[s] & 63;
        m = packed[s + 4] & 63;
    } else {
        sc = (packed[s + 4] & 15) | (packed[s - 4] >> 2 & 0x30);
        m = packed[s + 4] >> 4 | (packed[s] >> 2 & 0x30);
    }
    *scale = d * (float)sc;
    *min = dmin * (float)m;
}

// {f16 d, dmin; u8 scale[12]; u8 q[128]}: (d * scale) * q - dmin * min, per 32
static void decode_q4_k(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks; blocks--, src += 144, dst += 256) {
        float d = load_f16(src), dmin = load_f16(src + 2), scale, min;
        for (int s = 0; s < 8; s++) {
            k_scale_min(src + 4, s, d, dmin, &scale, &min);
            const uint8_t *q = src + 16 + s / 2 * 32;
            int shift = s % 2 * 4;
            for (int i = 0; i < 32; i++) dst[s * 32 + i] = scale * (float)(q[i] >> shift & 15) - min;
        }
    }
}

// {f16 d, dmin; u8 scale[12]; u8 high[32]; u8 q[128]}: as Q4_K, bit s of high[i] is the fifth bit in sub-block s
static void decode_q5_k(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks; blocks--, src += 176, dst += 256) {
        float d = load_f16(src), dmin = load_f16(src + 2), scale, min;
        for (int s = 0; s < 8; s++) {
            k_scale_min(src + 4, s, d, dmin, &scale, &min);
            const uint8_t *high = src + 16, *q = src + 48 + s / 2 * 32;
            int shift = s % 2 * 4;
            for (int i = 0; i < 32; i++)
                dst[s * 32 + i] = scale * (float)((q[i] >> shift & 15) | (high[i] >> s & 1) << 4) - min;
        }
    }
}

// {u8 low[128]; u8 high[64]; i8 scale[16]; f16 d}: (d * scale) * (q - 32), scales per 16
static void decode_q6_k(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks; blocks--, src += 210, dst += 256) {
        float d = load_f16(src + 208);
        for (int s = 0; s < 16; s++) {
            float scale = d * (float)(int8_t)src[192 + s];
            const uint8_t *low = src + s / 8 * 64 + s % 4 * 16, *high = src + 128 + s / 8 * 32 + s % 2 * 16;
            int low_shift = s % 8 / 4 * 4, high_shift = s % 8 / 2 * 2;
            for (int i = 0; i < 16; i++) {
                int q = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
                dst[s * 16 + i] = scale * (float)(q - 32);
            }
        }
    }
}

// ---- the table ------------------------------------------------------------------------------------------------------
static const StoredType types[] = {
    // name, GGUF number, in safetensors, block, its bytes, decoder
    {"F32", 0, true, 1, 4, decode_f32},
    {"F16", 1, true, 1, 2, decode_f16},
    {"BF16", 30, true, 1, 2, decode_bf16},
    {"F64", 28, true, 1, 8, decode_f64},
    {"Q4_0", 2, false, 32, 18, decode_q4_0},
    {"Q4_1", 3, false, 32, 20, decode_q4_1},
    {"Q5_0", 6, false, 32, 22, decode_q5_0},
    {"Q5_1", 7, false, 32, 24, decode_q5_1},
    {"Q8_0", 8, false, 32, 34, decode_q8_0},
    {"Q2_K", 10, false, 256, 84, decode_q2_k},
    {"Q3_K", 11, false, 256, 110, decode_q3_k},
    {"Q4_K", 12, false, 256, 144, decode_q4_k},
    {"Q5_K", 13, false, 256, 176, decode_q5_k},
    {"Q6_K", 14, false, 256, 210, decode_q6_k},
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
