// f16: half-precision numbers in unaligned little-endian bytes, as files hold them.
#pragma once
#include <stdint.h>
#include <string.h>

static inline uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
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
