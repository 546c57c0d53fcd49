// objective: what is being minimised. An objective turns the log-probabilities of a micro-batch's trained tokens into one weight per
// token, dLoss/dlogp, and its share of the step's loss. The decoder and the loop know nothing else of it.
#pragma once
#include "data/data.h"

typedef struct ObjectiveStep {
    int64_t trained_tokens; // of the whole step over all ranks: the one denominator
} ObjectiveStep;

typedef struct Objective {
    const char *name;
    bool weights_known; // weights do not depend on log-probabilities: forward and backward of the head are one pass
    void (*weigh)(const ObjectiveStep *s, const Batch *b, const float *logp,
                  float *weight); // logp is NULL when weights_known
    double (*loss)(const ObjectiveStep *s, const Batch *b,
                   const float *logp); // this micro-batch's share, not yet divided
} Objective;

const Objective *objective_find(const char *name); // NULL: unknown
