// sample_rule: the arithmetic of sampling (sample.h): single operations on f32 and f64, each rounded once, and integers, so that all
// machines agree. Private to the devices. SAMPLE_FN: what a function is declared as.
#pragma once
#include <stdint.h>
#include <string.h>
#ifndef SAMPLE_FN
#define SAMPLE_FN static inline
#endif

#define SAMPLE_ONE     ((uint64_t)1 << 45)                          // weight of the best token
#define SAMPLE_RATE(t) ((float)(0x1p26 * 1.4426950408889634 / (t))) // for temperature t

// Logits as integers of the same order; both zeros are the same. NaN has no place.
SAMPLE_FN uint32_t sample_key(float logit)
{
    uint32_t bits;
    memcpy(&bits, &logit, sizeof bits);
    if (bits == 0x80000000u) bits = 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
SAMPLE_FN float sample_value(uint32_t key)
{
    const uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
    float logit;
    memcpy(&logit, &bits, sizeof logit);
    return logit;
}
#define SAMPLE_MASKED 0x007fffffu // key of -inf

// 2^45 · exp((logit - top) / temperature), rounded down; 0 below 2^0. The exponent in powers of two has 26 bits behind the point; the
// fraction's power is a polynomial with coefficients of 2^-32, off by 1e-9 at most.
SAMPLE_FN uint64_t sample_weight(float logit, float top, float rate)
{
    const float y = (top - logit) * rate;
    if (!(y < 46 * 0x1p26f)) return logit == top ? SAMPLE_ONE : 0;
    const uint32_t z = (uint32_t)y;
    const uint64_t f = (uint32_t)(z << 6);
    uint64_t t = 639488 - (48550 * f >> 32);
    t = 5712048 - (t * f >> 32);
    t = 41304489 - (t * f >> 32);
    t = 238387495 - (t * f >> 32);
    t = 1031764939 - (t * f >> 32);
    t = 2977044471 - (t * f >> 32);
    t = ((uint64_t)1 << 32) - (t * f >> 32);
    return t << 13 >> (z >> 26);
}

SAMPLE_FN uint64_t sample_high(uint64_t a, uint64_t b) // the upper half of a · b
{
    const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    const uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (uint32_t)middle;
    return a1 * b1 + (middle >> 32) + (other >> 32);
}

// Weight that top-p has to reach, of `total`; at least one token's.
SAMPLE_FN uint64_t sample_needed(uint64_t total, double top_p)
{
    const uint64_t needed = top_p > 0 ? (uint64_t)(top_p * (double)total) : 0;
    return needed ? needed : 1;
}
