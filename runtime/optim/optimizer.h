// optimizer: AdamW over the trained tensors, with the global-norm clip folded in, and the learning-rate schedule.
#pragma once
#include "model/model.h"

typedef struct Schedule {
    const char *kind;      // "cosine", "linear", "constant"
    double lr, min_lr;     // peak, and the end as a share of it
    int64_t warmup, total; // steps
} Schedule;
// warmup below 1 is a share of the steps (rounded up, as transformers does), from 1 on a number of steps
Schedule schedule_make(const char *kind, double lr, double min_lr, double warmup, int64_t total);
// Learning rate of step `step` (0-based): step s of w warm-up steps has lr·(s+1)/w, so that no step is wasted at zero; then from
// the peak towards min_lr·lr over the remaining steps.
double schedule_lr(const Schedule *s, int64_t step);

typedef struct AdamW {
    double beta1, beta2, eps, weight_decay, clip;
} AdamW;
// Moves this rank's rows of every trained tensor by their gradient in g, then brings what kernels read up to date (collective). step
// counts from 1. norm is grad_norm's; the clip factor is PyTorch's min(1, clip / (norm + 1e-6)). Matrices decay, vectors do not.
int optimizer_step(Model *m, GradSet *g, const AdamW *o, double lr, double norm, int64_t step);
