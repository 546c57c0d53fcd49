// evaluate: losses and generated-text metrics over a dataset. Private to runtime/.
#pragma once
#include "session.h"

enum { LOSS_FIX_BITS = 36 }; // fractional bits of order-free sums of losses, in training and evaluation alike

typedef int ScoredFn(void *ctx, const Batch *b, const float *logp); // logp (M), host
// Calls fn for each of this rank's micro-batches of the first `rows` rows (0: all).
int evaluate_rows(Session *s, Activations *a, const Dataset *d, int micro_tokens, int64_t rows, ScoredFn *fn,
                  void *ctx);

typedef struct LossSum {
    double loss, perplexity;
    int64_t tokens;
} LossSum;
int evaluate_loss(Session *s, Activations *a, const Dataset *d, int micro_tokens, int64_t rows, LossSum *out);
// Largest micro-batch of an evaluation, for sizing arenas.
LoaderBounds evaluate_bounds(const Dataset *d, int micro_tokens, int64_t rows, const Mesh *mesh);

// Positions that the evaluation of a recipe's metrics needs, beside micro-batches of T tokens: generation goes on behind the prompt.
int evaluate_positions(const Recipe *r, int T);

// Bytes that it takes, beside model and micro-batches: of generation, on this rank.
int evaluate_bytes(const Session *s, const Model *m, const Dataset *d, size_t *bytes);

typedef struct RougeMeans {
    double r1, r2, rl, rlsum; // means of F1
} RougeMeans;
int evaluate_rouge(Session *s, const Dataset *d, int64_t rows, int max_new, bool stem, RougeMeans *out, json_t *samples,
                   int max_samples);
// eval.metrics of the recipe into a JSON object name -> value; up to max_samples {"row", "reference", "output"} into samples
int evaluate_metrics(Session *s, Activations *a, const Dataset *d, json_t *out, json_t *samples, int max_samples);
