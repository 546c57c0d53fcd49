// sampler: one token from a row of logits. Temperature, then top-k, then top-p, in that order, as Hugging
// Face and llama.cpp.
//
// The random number is a function of (seed, sequence, position), so that a token depends neither on which
// sequences are decoded together nor on which rank decodes them.
#pragma once
#include "kernels.h"

typedef struct SamplerConfig {
    double temperature; // 0: greedy, the most likely token (the lowest id among equals)
    double top_p;       // keep the smallest set of most likely tokens whose probabilities reach top_p; 1: all
    int top_k;          // keep this many (lowest ids among equals); 0: all
    uint64_t seed;
} SamplerConfig;

// logits (V) is used as scratch and left undefined. -inf masks a token. Returns the id, or -1 when a logit is
// NaN or +inf or none is finite.
int32_t sample_token(const SamplerConfig *c, float *logits, int V, uint64_t sequence, uint64_t position);
