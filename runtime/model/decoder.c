// decoder.c: the forward and backward passes, written out. One layer:
//   h = norm(x); q, k, v = linear(h), rotated; o = attention; x_mid = x + linear(o)
//   h = norm(x_mid); g, u = linear(h); a = silu(g)·u; x_next = x_mid + linear(a)
// Only trained rows reach the final norm and the head. Backward visits nothing below the lowest trained tensor, computes no gradient
// of a frozen weight, and redoes the norms and the SwiGLU product rather than keep them.
// Where to read next: linear.c (adapters), activations.c (memory), decode.c (generation).
#include "model/decoder_impl.h"
#include <string.h>

// ---- forward --------------------------------------------------------------------------------------------------------
static LinearIn linear_in(const Activations *a, int l, LayerActs *k, ParamId id, ParamId bias, const void *x,
                          int64_t ldx)
{
    const Layer *y = &a->m->layer[l];
    return (LinearIn){.p = y->p[id], .bias = y->p[bias], .x = x, .ldx = ldx, .s = k->s[id]};
}

static void norm(Activations *a, void *y, float *rstd, const void *x, const Param *w)
{
    const ModelConfig *c = &a->m->cfg;
    Device *d = a->m->dev;
    d->op.rmsnorm_fwd(d, a->m->t, y, rstd, x, w->vec, c->norm_offset, c->norm_eps, c->C, a->T);
}

static void *column(const Activations *a, void *base, int64_t col)
{
    return (char *)base + (size_t)col * dtype_size(a->m->t);
}

static void rotate(Activations *a, void *q, void *k, int64_t ldk, bool inverse)
{
    const Model *m = a->m;
    const ModelConfig *c = &m->cfg;
    Device *d = m->dev;
    d->op.rope(d, m->t, q, (int64_t)c->NH * c->D, m->rope_cos, m->rope_sin, a->pos, c->NH, c->D, c->rot, inverse, a->T);
    d->op.rope(d, m->t, k, ldk, m->rope_cos, m->rope_sin, a->pos, c->KV, c->D, c->rot, inverse, a->T);
}

// projections of the attention block: k->q and k->kv, rotated
void layer_qkv(Activations *a, int l, LayerActs *k)
{
    const ModelConfig *c = &a->m->cfg;
    const int64_t KVW = (int64_t)c->KV * c->D;
    norm(a, a->h, k->rstd1, k->x, a->m->layer[l].p[P_ATTN_NORM]);
    LinearIn q = linear_in(a, l, k, P_Q, P_Q_BIAS, a->h, c->C), kk = linear_in(a, l, k, P_K, P_K_BIAS, a->h, c->C),
             v = linear_in(a, l, k, P_V, P_V_BIAS, a->h, c->C);
    linear_forward(a, &q, k->q, (int64_t)c->NH * c->D, NULL);
    linear_forward(a, &kk, k->kv, 2 * KVW, NULL);
    linear_forward(a, &v, column(a, k->kv, KVW), 2 * KVW, NULL);
    rotate(a, k->q, k->kv, 2 * KVW, false);
}

// from attention's output k->o to the layer's output
void layer_mlp(Activations *a, int l, LayerActs *k, void *x_next)
{
    const ModelConfig *c = &a->m->cfg;
    Device *d = a->m->dev;
    LinearIn o = linear_in(a, l, k, P_O, P_O_BIAS, k->o, (int64_t)c->NH * c->D);
    linear_forward(a, &o, k->x_mid, c->C, k->x);
    norm(a, a->h, k->rstd2, k->x_mid, a->m->layer[l].p[P_MLP_NORM]);
    LinearIn gate = linear_in(a, l, k, P_GATE, P_GATE_BIAS, a->h, c->C),
             up = linear_in(a, l, k, P_UP, P_UP_BIAS, a->h, c->C);
    linear_forward(a, &gate, k->gu, 2 * (int64_t)c->F, NULL);
    linear_forward(a, &up, column(a, k->gu, c->F), 2 * (int64_t)c->F, NULL);
    d->op.swiglu_fwd(d, a->m->t, a->a, k->gu, c->F, a->T);
    LinearIn down = linear_in(a, l, k, P_DOWN, P_DOWN_BIAS, a->a, c->F);
    linear_forward(a, &down, x_next, c->C, k->x_mid);
}

void layer_forward(Activations *a, int l, LayerActs *k, void *x_next)
{
    const ModelConfig *c = &a->m->cfg;
    Device *d = a->m->dev;
    const int64_t Q = (int64_t)c->NH * c->D, KVW = (int64_t)c->KV * c->D;
    layer_qkv(a, l, k);
    d->op.attn_fwd(d, a->m->t, k->o, Q, k->lse, k->q, Q, k->kv, column(a, k->kv, KVW), 2 * KVW, &a->shape);
    layer_mlp(a, l, k, x_next);
}

static int upload_batch(Activations *a, const Batch *b)
{
    Device *d = a->m->dev;
    const ModelConfig *c = &a->m->cfg;
    ASSERT(b->T <= a->T_max && b->M <= a->M_max);
    a->T = b->T;
    a->S = b->S;
    a->M = b->M;
    a->shape = (AttnShape){.S = b->S,
                           .q_start = b->seq_start,
                           .q_len = b->seq_len,
                           .k_start = b->seq_start,
                           .k_len = b->seq_len,
                           .NH = c->NH,
                           .KV = c->KV,
                           .D = c->D,
                           .scale = c->attn_scale,
                           .softcap = c->attn_softcap,
                           .window = c->window};
    TRY(d->upload(d, a->tokens, b->tokens, (size_t)b->T * sizeof *b->tokens));
    TRY(d->upload(d, a->pos, b->pos, (size_t)b->T * sizeof *b->pos));
    TRY(d->upload(d, a->row_key, b->row_key, (size_t)b->T * sizeof *b->row_key));
    TRY(d->upload(d, a->head_row, b->head_row, (size_t)b->M * sizeof *b->head_row));
    return d->upload(d, a->target, b->target, (size_t)b->M * sizeof *b->target);
}

// the trained rows of the last layer's output through the final norm
static void gather_head(Activations *a)
{
    Device *d = a->m->dev;
    const ModelConfig *c = &a->m->cfg;
    d->op.gather_rows(d, a->m->t, a->hg, a->x_out, a->head_row, c->C, a->M);
    d->op.rmsnorm_fwd(d, a->m->t, a->hn, a->rstd_f, a->hg, a->m->top[P_FINAL_NORM]->vec, c->norm_offset, c->norm_eps,
                      c->C, a->M);
}

int decoder_forward(Activations *a, const Batch *b, bool training)
{
    Model *m = a->m;
    Device *d = m->dev;
    TRY(upload_batch(a, b));
    a->dropping = training;
    d->op.embed_fwd(d, m->t, a->layer[0].x, &m->top[P_EMBED]->packed, a->tokens, m->cfg.embed_scale, a->T);
    for (int l = 0; l < m->cfg.L; l++)
        layer_forward(a, l, &a->layer[l], l + 1 < m->cfg.L ? a->layer[l + 1].x : a->x_out);
    gather_head(a);
    return d->sync(d);
}

int decoder_logprobs(Activations *a, float *logp, float *entropy)
{
    Device *d = a->m->dev;
    const size_t bytes = (size_t)a->M * sizeof(float);
    d->op.head_fwd(d, a->m->t, a->logp, a->lse_head, entropy ? a->entropy : NULL, a->hn, &model_head(a->m)->packed,
                   a->target, a->m->cfg.final_softcap, a->M);
    if (entropy) TRY(d->download(d, entropy, a->entropy, bytes));
    return d->download(d, logp, a->logp, bytes);
}

// ---- head, backward -------------------------------------------------------------------------------------------------
// Where the head's weight gradient goes: its own tensor, or the tied embedding's sum, which embed_bwd finishes.
static float *head_gradient(Activations *a, GradSet *g)
{
    const Model *m = a->m;
    const ModelConfig *c = &m->cfg;
    const Param *head = model_head((Model *)m), *embed = m->top[P_EMBED];
    const size_t n = (size_t)c->V * (size_t)c->C;
    bool accumulate;
    a->dembed_at = NULL;
    if (embed->slot >= 0) {
        float *direct = grad_direct(g, embed->slot);
        a->dembed_at = direct ? direct : a->dembed;
        if (!direct) m->dev->zero(m->dev, a->dembed, n * sizeof(float));
    }
    if (head == embed) return a->dembed_at;
    if (head->slot < 0) return NULL;
    float *dw = grad_begin(a, g, head->slot, &accumulate);
    if (!accumulate) m->dev->zero(m->dev, dw, n * sizeof(float));
    return dw;
}

static void vector_gradient(Activations *a, GradSet *g, const Param *p, void *dx, const void *dy, const void *x,
                            const float *rstd, bool accumulate_dx, int rows)
{
    Device *d = a->m->dev;
    const ModelConfig *c = &a->m->cfg;
    float *dw = NULL;
    if (p->slot >= 0) {
        bool accumulate;
        dw = grad_begin(a, g, p->slot, &accumulate);
        if (!accumulate) d->zero(d, dw, (size_t)p->N * sizeof(float));
    }
    d->op.rmsnorm_bwd(d, a->m->t, dx, dw, dy, x, rstd, p->vec, c->norm_offset, accumulate_dx, c->C, rows);
    if (dw) grad_done(a, g, p->slot);
}

// dhead (M,C), the gradient of the normed rows -> a->dx (T,C), the gradient of the last layer's output
static void head_to_decoder(Activations *a, GradSet *g)
{
    Device *d = a->m->dev;
    const Param *head = model_head(a->m);
    if (head->slot >= 0 && head != a->m->top[P_EMBED]) grad_done(a, g, head->slot);
    vector_gradient(a, g, a->m->top[P_FINAL_NORM], a->hn, a->dhead, a->hg, a->rstd_f, false, a->M); // hn is free now
    d->op.scatter_rows(d, a->m->t, a->dx, a->hn, a->head_row, a->m->cfg.C, a->M, a->T);
}

int decoder_head(Activations *a, const float *weight, float *logp, GradSet *g)
{
    Device *d = a->m->dev;
    const size_t bytes = (size_t)a->M * sizeof(float);
    TRY(d->upload(d, a->weight, weight, bytes));
    d->op.head_fwd_bwd(d, a->m->t, a->logp, a->lse_head, a->dhead, head_gradient(a, g), a->weight, a->hn,
                       &model_head(a->m)->packed, a->target, a->m->cfg.final_softcap, a->M);
    head_to_decoder(a, g);
    return d->download(d, logp, a->logp, bytes);
}

int decoder_head_backward(Activations *a, const float *weight, GradSet *g)
{
    Device *d = a->m->dev;
    TRY(d->upload(d, a->weight, weight, (size_t)a->M * sizeof(float)));
    d->op.head_bwd(d, a->m->t, a->dhead, head_gradient(a, g), a->weight, a->lse_head, a->hn, &model_head(a->m)->packed,
                   a->target, a->m->cfg.final_softcap, a->M);
    head_to_decoder(a, g);
    return OK;
}

// ---- layers, backward -----------------------------------------------------------------------------------------------
static bool param_trained(const Param *p)
{
    return p && (p->slot >= 0 || p->adapter);
}

// The lowest layer with anything trained in it; 0 when the embedding is trained, L when no layer is.
static int lowest_layer(const Model *m)
{
    if (m->top[P_EMBED]->slot >= 0) return 0;
    for (int l = 0; l < m->cfg.L; l++)
        for (int id = 0; id < P_COUNT; id++)
            if (param_trained(m->layer[l].p[id])) return l;
    return m->cfg.L;
}

static void mlp_backward(Activations *a, int l, LayerActs *k, GradSet *g)
{
    const ModelConfig *c = &a->m->cfg;
    const DType t = a->m->t;
    Device *d = a->m->dev;
    const Layer *y = &a->m->layer[l];
    const int64_t F2 = 2 * (int64_t)c->F;
    if (linear_trained(y->p[P_DOWN], y->p[P_DOWN_BIAS])) d->op.swiglu_fwd(d, t, a->a, k->gu, c->F, a->T);
    LinearIn down = linear_in(a, l, k, P_DOWN, P_DOWN_BIAS, a->a, c->F);
    linear_backward(a, &down, a->da, c->F, false, a->dx, c->C, g);
    d->op.swiglu_bwd(d, t, k->gu, NULL, a->da, k->gu, c->F, a->T); // gu becomes its own gradient
    norm(a, a->h, k->rstd2, k->x_mid, y->p[P_MLP_NORM]);
    LinearIn gate = linear_in(a, l, k, P_GATE, P_GATE_BIAS, a->h, c->C),
             up = linear_in(a, l, k, P_UP, P_UP_BIAS, a->h, c->C);
    linear_backward(a, &gate, a->dh, c->C, false, k->gu, F2, g);
    linear_backward(a, &up, a->dh, c->C, true, column(a, k->gu, c->F), F2, g);
    vector_gradient(a, g, y->p[P_MLP_NORM], a->dx, a->dh, k->x_mid, k->rstd2, true, a->T);
}

// below: does anything under this layer's first norm need the gradient?
static void attention_backward(Activations *a, int l, LayerActs *k, bool below, GradSet *g)
{
    const ModelConfig *c = &a->m->cfg;
    Device *d = a->m->dev;
    const Layer *y = &a->m->layer[l];
    const int64_t Q = (int64_t)c->NH * c->D, KVW = (int64_t)c->KV * c->D;
    void *v = column(a, k->kv, KVW), *dv = column(a, a->dkv, KVW);
    LinearIn o = linear_in(a, l, k, P_O, P_O_BIAS, k->o, Q);
    linear_backward(a, &o, a->dout, Q, false, a->dx, c->C, g);
    d->op.attn_bwd(d, a->m->t, a->dq, Q, a->dkv, dv, 2 * KVW, a->dout, k->o, Q, k->lse, k->q, Q, k->kv, v, 2 * KVW,
                   &a->shape);
    rotate(a, a->dq, a->dkv, 2 * KVW, true);
    norm(a, a->h, k->rstd1, k->x, y->p[P_ATTN_NORM]);
    const bool norm_trained = y->p[P_ATTN_NORM]->slot >= 0;
    void *dh = below || norm_trained ? a->dh : NULL;
    LinearIn q = linear_in(a, l, k, P_Q, P_Q_BIAS, a->h, c->C), kk = linear_in(a, l, k, P_K, P_K_BIAS, a->h, c->C),
             vv = linear_in(a, l, k, P_V, P_V_BIAS, a->h, c->C);
    linear_backward(a, &q, dh, c->C, false, a->dq, Q, g);
    linear_backward(a, &kk, dh, c->C, true, a->dkv, 2 * KVW, g);
    linear_backward(a, &vv, dh, c->C, true, dv, 2 * KVW, g);
    if (dh) vector_gradient(a, g, y->p[P_ATTN_NORM], a->dx, a->dh, k->x, k->rstd1, true, a->T);
}

int decoder_backward(Activations *a, GradSet *g)
{
    Model *m = a->m;
    Device *d = m->dev;
    const int lowest = lowest_layer(m);
    for (int l = m->cfg.L - 1; l >= lowest; l--) {
        LayerActs *k = &a->layer[l];
        if (a->recompute) layer_forward(a, l, k, a->x_out); // x_out is free: its gradient is in dx
        mlp_backward(a, l, k, g);
        attention_backward(a, l, k, l > lowest || m->top[P_EMBED]->slot >= 0, g);
    }
    const Param *embed = m->top[P_EMBED];
    if (embed->slot >= 0) {
        d->op.embed_bwd(d, m->t, a->dembed_at, a->dx, a->tokens, m->cfg.embed_scale, m->cfg.V, m->cfg.C, a->T);
        if (!grad_direct(g, embed->slot)) grad_add(g, embed->slot, a->dembed);
    }
    return d->sync(d);
}
