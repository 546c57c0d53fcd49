// sft: maximum likelihood. Loss = -Σ logp / n over the trained tokens of the whole step, so dLoss/dlogp = -1/n for each of them,
// however they are spread over micro-batches and ranks. pretrain is the same loss on rows whose every token is trained.
#include "objective/objective.h"

static void likelihood_weigh(const ObjectiveStep *s, const Batch *b, const float *logp, float *weight)
{
    (void)logp;
    const float w = -1.0f / (float)s->trained_tokens;
    for (int i = 0; i < b->M; i++) weight[i] = w;
}

static double likelihood_loss(const ObjectiveStep *s, const Batch *b, const float *logp)
{
    (void)s;
    double sum = 0;
    for (int i = 0; i < b->M; i++) sum -= (double)logp[i];
    return sum;
}

const Objective objective_sft = {"sft", true, likelihood_weigh, likelihood_loss};
const Objective objective_pretrain = {"pretrain", true, likelihood_weigh, likelihood_loss};
