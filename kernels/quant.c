// quant: blocks of quantised numbers as GGUF files store them, decoded on the host.
//
// Decoded bit for bit as the `gguf` Python package (gguf/quants.py) does in f32: the same products in the same order, each rounded
// once. A fused multiply-add would round differently, so contraction is off (GCC: off in ISO C mode). Block layouts: ggml's
// ggml-common.h. Inner loops run over whole bytes without branches, so that compilers vectorise them.
#include "quant.h"
#include "f16.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

static inline uint32_t load_u32(const uint8_t *p)
{
    return load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

// ---- blocks of 32: low nibbles are elements 0..15, high nibbles 16..31 ----------------------------------------------
// {f16 d; u8 q[16]}: d * (q - 8)
void quant_decode_q4_0(const uint8_t *src, float *dst, size_t blocks)
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
void quant_decode_q4_1(const uint8_t *src, float *dst, size_t blocks)
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
void quant_decode_q5_0(const uint8_t *src, float *dst, size_t blocks)
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
void quant_decode_q5_1(const uint8_t *src, float *dst, size_t blocks)
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
void quant_decode_q8_0(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks; blocks--, src += 34, dst += 32) {
        float d = load_f16(src);
        for (int i = 0; i < 32; i++) dst[i] = (float)(int8_t)src[2 + i] * d;
    }
}

// ---- blocks of 256 in sub-blocks of 16 or 32 with their own scale ("K") ---------------------------------------------
// {u8 scale[16]; u8 q[64]; f16 d, dmin}: (d * scale_low) * q - dmin * scale_high, per 16
void quant_decode_q2_k(const uint8_t *src, float *dst, size_t blocks)
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
void quant_decode_q3_k(const uint8_t *src, float *dst, size_t blocks)
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
void quant_decode_q4_k(const uint8_t *src, float *dst, size_t blocks)
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
void quant_decode_q5_k(const uint8_t *src, float *dst, size_t blocks)
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
void quant_decode_q6_k(const uint8_t *src, float *dst, size_t blocks)
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
const QuantFormat quant_formats[QUANT_COUNT] = {
#define QUANT(name, lower, ggml, block, bytes) {#name, block, bytes, quant_decode_##lower},
#include "quant.def"
#undef QUANT
};
