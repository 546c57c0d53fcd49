#include "eval/sampler.h"

uint64_t sampler_draw(uint64_t seed, uint64_t sequence, uint64_t position)
{
    uint32_t r[4];
    philox(hash64("sampler", 7, seed), sequence, position, r);
    return (uint64_t)r[0] << 32 | r[1];
}
