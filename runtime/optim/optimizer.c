#include "optim/optimizer.h"
#include <math.h>

Schedule schedule_make(const char *kind, double lr, double min_lr, double warmup, int64_t total)
{
    double steps = warmup < 1 ? ceil(warmup * (double)total) : floor(warmup);
    return (Schedule){.kind = kind, .lr = lr, .min_lr = min_lr, .warmup = (int64_t)steps, .total = total};
}

double schedule_lr(const Schedule *s, int64_t step)
{
    if (step < s->warmup) return s->lr * (double)(step + 1) / (double)s->warmup;
    if (streq(s->kind, "constant") || s->total <= s->warmup) return s->lr;
    double progress = (double)(step - s->warmup) / (double)(s->total - s->warmup);
    double share = streq(s->kind, "linear") ? 1 - progress : 0.5 * (1 + cos(acos(-1.0) * progress));
    return s->lr * (s->min_lr + (1 - s->min_lr) * share);
}

int optimizer_step(Model *m, GradSet *g, const AdamW *o, double lr, double norm, int64_t step)
{
    double factor = o->clip > 0 ? o->clip / (norm + 1e-6) : 1;
    float scale = (float)(factor < 1 ? factor : 1);
    for (int i = 0; i < m->n_trained; i++) {
        Trainable *t = &m->trained[i];
        double decay = t->packed ? o->weight_decay : 0;
        if (!t->part.rows) continue;
        m->dev->op.adamw(m->dev, t->master, t->m, t->v, grad_get(g, i), scale, (float)lr, (float)o->beta1,
                         (float)o->beta2, (float)o->eps, (float)decay, step, (size_t)t->part.rows * (size_t)t->K);
    }
    return params_refresh(m);
}
