// generate: many prompts at once over a key/value cache. A sequence's tokens depend on its prompt, the sampler's seed and its
// sequence number alone: never on what is decoded beside it, or on which rank. Private to runtime/.
#pragma once
#include "eval/sampler.h"
#include "session.h"

typedef struct Generation {
    const int32_t *prompt;
    int n_prompt;
    uint64_t sequence;     // names its random numbers
    const char *reference; // for metrics; may be NULL
    int32_t *out;          // malloc'ed; generations_free
    int n_out;             // without the end-of-text token
    bool ended;            // by an end-of-text token
    double ttft_ms, total_ms;
} Generation;

typedef struct GenerateConfig {
    int max_new;
    SamplerConfig sampler;
    void (*on_token)(void *ctx, int32_t id); // as they come, when there is one prompt only; may be NULL
    void *ctx;
} GenerateConfig;

// Bytes that generate_all takes, beside the model, for n prompts of up to `longest` tokens.
size_t generate_bytes(const Model *m, int n, int longest, int max_new);
int generate_all(Session *s, Generation *g, int n, const GenerateConfig *c);
void generations_free(Generation *g, int n); // frees the array too
