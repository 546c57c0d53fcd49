#include "sharding.h"
#include <math.h>

enum { LIMB_BITS = 32, LOWEST = -256 }; // weight of limb 0's lowest bit: 2^LOWEST

void exact_add(ExactSum *s, double x)
{
    if (x == 0) return;
    int e;
    double fraction = frexp(x, &e); // x = fraction * 2^e, fraction in [0.5, 1)
    if (!isfinite(x) || x < 0 || e > -LOWEST) {
        s->limb[EXACT_LIMBS]++;
        return;
    }
    uint64_t mantissa = (uint64_t)ldexp(fraction, 53);
    int lowest = e - 53 - LOWEST; // of the mantissa, in bits above the sum's lowest
    if (lowest < 0) {
        mantissa = lowest > -64 ? mantissa >> -lowest : 0;
        lowest = 0;
    }
    unsigned __int128 bits = (unsigned __int128)mantissa << (lowest % LIMB_BITS);
    for (int i = lowest / LIMB_BITS; bits; i++, bits >>= LIMB_BITS) s->limb[i] += (int64_t)(uint32_t)bits;
}

int exact_reduce(ExactSum *s, Comm *c)
{
    return comm_all_reduce(c, s->limb, EXACT_LIMBS + 1, DT_I64, REDUCE_SUM);
}

// Carries first: only then do equal sums have equal limbs, and equal roundings here.
double exact_value(const ExactSum *s)
{
    if (s->limb[EXACT_LIMBS]) return INFINITY;
    uint32_t limb[EXACT_LIMBS];
    uint64_t carry = 0;
    for (int i = 0; i < EXACT_LIMBS; i++) {
        carry += (uint64_t)s->limb[i];
        limb[i] = (uint32_t)carry;
        carry >>= LIMB_BITS;
    }
    double sum = (double)carry;
    for (int i = EXACT_LIMBS - 1; i >= 0; i--) sum = sum * 0x1p32 + limb[i];
    return ldexp(sum, LOWEST);
}
