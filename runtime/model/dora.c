// dora.c: DoRA (Liu et al. 2024, arXiv:2402.09353; Hugging Face PEFT): each row of W' = W + scale·B·A is given a trained magnitude m in
// place of its norm, so that a layer computes gain ⊙ x·W'ᵀ with gain = m / |W'_n|. Norms follow from A and B: whatever changes those
// marks the layers, and a layer's gains are made anew when it is next used (layer_begin in decoder.c), when its weights are at hand
// under ZeRO 3 too. A weight cut by columns has a part of each row on every tensor rank: the parts of the squares are summed.
#include "model/load.h"
#include <math.h>
#include <stdlib.h>

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

// norm (N) host: of the rows of W + scale·B·A, over all of their columns
static int row_norms(Model *m, const Param *p, float *norm)
{
    const Adapter *a = p->adapter;
    Device *d = m->dev;
    d->op.lora_row_squares(d, m->t, a->inv_norm, &p->packed, &a->A, &a->B, a->scale);
    TRY(d->download(d, norm, a->inv_norm, (size_t)p->N * sizeof(float)));
    if (param_cut_columns(p) && m->mesh && m->mesh->tensor_size > 1)
        TRY(comm_all_reduce(m->mesh->tensor, norm, (size_t)p->N, DT_F32, REDUCE_SUM));
    for (int n = 0; n < p->N; n++) norm[n] = sqrtf(norm[n]);
    return OK;
}

static int refresh_gains(Model *m, Param *p)
{
    Adapter *a = p->adapter;
    Device *d = m->dev;
    int status = OK;
    const size_t N = (size_t)p->N, bytes = N * sizeof(float);
    float *norm = xcalloc(4 * N, sizeof *norm), *magnitude = norm + N, *gain = norm + 2 * N, *less = norm + 3 * N;
    TRY_DONE(row_norms(m, p, norm));
    if (a->fresh) TRY_DONE(d->upload(d, a->magnitude, norm, bytes));
    a->fresh = false;
    TRY_DONE(d->download(d, magnitude, a->magnitude, bytes));
    for (size_t n = 0; n < N; n++) { // a row of zeros stays one
        gain[n] = norm[n] > 0 ? magnitude[n] / norm[n] : 0;
        less[n] = gain[n] - 1;
        norm[n] = norm[n] > 0 ? 1 / norm[n] : 0;
    }
    TRY_DONE(d->upload(d, a->gain, gain, bytes));
    TRY_DONE(d->upload(d, a->inv_norm, norm, bytes));
    if (a->gain_less) TRY_DONE(d->upload(d, a->gain_less, less, bytes));
done:
    free(norm);
    return status;
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
