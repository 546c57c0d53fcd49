// sample: how a token is drawn from a row of logits. Temperature, then top-k, then top-p, in that order, as Hugging Face and llama.cpp.
//
// The rule is exact, so that every device draws the same token: tokens are ordered by logit, the lower id first among equals; a token's
// weight is an integer, 2^45 times its probability relative to the best token's (sample_rule.h), which any order of adding gives the
// same sum of. Top-k keeps the first k; top-p keeps of those the shortest beginning whose weights reach top_p of all of them. With a
// row's 64 random bits u, the token is the first in the order of ids at which the sum of weights kept exceeds u / 2^64 of all, so that
// filters that drop nothing change nothing.
#pragma once
#include <stdint.h>

typedef struct SamplerConfig {
    double temperature; // 0: greedy, the most likely token (the lowest id among equals)
    double top_p;       // keep the smallest set of most likely tokens whose probabilities reach top_p; 1: all
    int top_k;          // keep this many (lowest ids among equals); 0: all
    uint64_t seed;      // for who makes the random bits; not read by the op
} SamplerConfig;

enum { SAMPLE_MOST_TOKENS = (1 << 19) - 1 }; // of a vocabulary: sums of weights stay below 2^64

#ifdef __cplusplus
extern "C" {
#endif
// The op `sample` for one row of host memory: logits (V), -inf masks a token. The id, or -1 when a logit is NaN or +inf or none is
// finite. draw: random bits, of no use without a temperature.
int32_t sample_row(const SamplerConfig *c, const float *logits, int V, uint64_t draw);
#ifdef __cplusplus
}
#endif
