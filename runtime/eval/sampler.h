// sampler: the random bits of a generated token. They are a function of (seed, sequence, position), so that a token depends neither on
// which sequences are decoded together nor on which rank or device decodes them. What is made of them: kernels/sample.h.
#pragma once
#include "kernels.h"

uint64_t sampler_draw(uint64_t seed, uint64_t sequence, uint64_t position);
