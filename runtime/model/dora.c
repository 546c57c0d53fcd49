// dora.c: DoRA (Liu et al. 2024, arXiv:2402.09353; Hugging Face PEFT): each row of W' = W + scale·B·A is given a trained magnitude m in
// place of its norm, so that a layer computes gain ⊙ x·W'ᵀ with gain = m / |W'_n|. Norms follow from A and B: whatever changes those
// marks the layers, and a layer's gains are made anew when it is next used (layer_begin in decoder.c), when its weights are at hand
// under ZeRO 3 too. A weight cut by columns has a part of each row on every tensor rank: the parts of the squares are summed.
#include "model/load.h"

void dora_open(Model *m, Param *p)
{
    Adapter *a = p->adapter;
    const size_t bytes = (size_t)p->N * sizeof(float);
    a->magnitude = arena_alloc(m->run, bytes);
    a->gain = arena_alloc(m->run, bytes);
    a->inv_norm = arena_alloc(m->run, bytes);
    if (a->dropout > 0) a->gain_less = arena_alloc(m->run, bytes);
    a->dora = a->fresh = true;
    m->layer[p->layer].norms_old = true;
}

void dora_changed(Model *m)
{
    for (int i = 0; i < m->n_param; i++)
        if (m->param[i].adapter) m->param[i].adapter->fresh = false;
    for (int l = 0; l < m->cfg.L; l++) m->layer[l].norms_old = true;
}

static int refresh_gains(Model *m, Param *p)
{
    Adapter *a = p->adapter;
    Device *d = m->dev;
    d->op.lora_row_squares(d, m->t, a->inv_norm, &p->packed, &a->A, &a->B, a->scale);
    if (param_cut_columns(p) && m->mesh && m->mesh->tensor_size > 1)
        TRY(comm_all_reduce(m->mesh->tensor, a->inv_norm, (size_t)p->N, DT_F32, REDUCE_SUM));
    d->op.dora_gain(d, a->gain, a->inv_norm, a->gain_less, a->magnitude, a->fresh, p->N);
    a->fresh = false;
    return OK;
}

int dora_ready(Model *m, int layer)
{
    Layer *y = &m->layer[layer];
    if (!y->norms_old) return OK;
    for (int id = 0; id < P_COUNT; id++)
        if (y->p[id] && y->p[id]->adapter && y->p[id]->adapter->dora) TRY(refresh_gains(m, y->p[id]));
    y->norms_old = false;
    return OK;
}
