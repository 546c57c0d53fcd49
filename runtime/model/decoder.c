// decoder.c: the forward and backward passes, written out. One layer:
//   h = norm(x); q, k, v = linear(h), rotated; o = attention; x_mid = x + linear(o)
//   h = norm(x_mid); g, u = linear(h); a = silu(g)·u; x_next = x_mid + linear(a)
// Only trained rows reach the final norm and the head. Backward visits nothing below the lowest trained tensor, computes no gradient
// of a frozen weight, and redoes the norms and the SwiGLU product rather than keep them.
//
// Tensor parallel (Shoeybi et al. 2019, Megatron-LM): q, k, v, gate and up are cut by rows, so each rank has some heads and some
// feed-forward columns; o and down by columns, so their outputs are shares whose sum is the layer's. What flows into and out of the
// blocks is whole on each rank, or in parts (tensor.c): one sum after o and one after down forward, one before each norm backward.
// Where to read next: linear.c (adapters), tensor.c (where tensor ranks meet), head.c (embedding's other end), activations.c (memory), zero.c (parameters that other data
// ranks keep), decode.c (generation).
#include "model/decoder_impl.h"
#include <string.h>

// ---- forward --------------------------------------------------------------------------------------------------------
static LinearIn linear_in(const Activations *a, int l, LayerActs *k, ParamId id, ParamId bias, Columns x)
{
    const Layer *y = &a->m->layer[l];
    return (LinearIn){.p = y->p[id], .bias = y->p[bias], .x = x, .s = k->s[id]};
}

// A matrix of its own, `width` columns and what room there is.
static Columns with_room(void *x, int64_t width, int room)
{
    return (Columns){x, width + room, room};
}

// a->h (T,C): all rows, normed, of the stream x
static int block_input(Activations *a, float *rstd, const void *x, const Param *w)
{
    const ModelConfig *c = &a->m->cfg;
    Device *d = a->m->dev;
    const Rows own = stream_rows(a);
    d->op.rmsnorm_fwd(d, a->m->t, row_of(a, a->h, own.row0), c->C + a->stream_room, rstd, x, w->vec, c->norm_offset,
                      c->norm_eps, c->C, own.rows);
    return stream_complete(a, a->h);
}

// a->dh (T,C), shares of the gradient of a block's normed input -> added to the stream's gradient dx
static int block_input_gradient(Activations *a, GradSet *g, const Param *w, const void *x, const float *rstd)
{
    const Rows own = stream_rows(a);
    TRY(stream_sum(a, a->dh));
    return norm_gradient(a, g, w, a->dx, a->m->cfg.C + a->stream_room, row_of(a, a->dh, own.row0), x, rstd, true,
                         own.rows);
}

static void *column(const Activations *a, void *base, int64_t col)
{
    return offset(base, (size_t)col, a->m->t);
}

static int64_t q_width(const Model *m)
{
    return (int64_t)m->cut.NH * m->cfg.D;
}
static int64_t kv_width(const Model *m)
{
    return (int64_t)m->cut.KV * m->cfg.D;
}

static void rotate(Activations *a, void *q, int64_t ldq, void *k, int64_t ldk, bool inverse)
{
    const Model *m = a->m;
    const ModelConfig *c = &m->cfg;
    Device *d = m->dev;
    d->op.rope(d, m->t, q, ldq, m->rope_cos, m->rope_sin, a->pos, m->cut.NH, c->D, c->rot, inverse, a->T);
    d->op.rope(d, m->t, k, ldk, m->rope_cos, m->rope_sin, a->pos, m->cut.KV, c->D, c->rot, inverse, a->T);
}

// projections of the attention block: k->q and k->kv, rotated
int layer_qkv(Activations *a, int l, LayerActs *k)
{
    const int64_t Q = q_width(a->m), KVW = kv_width(a->m);
    const Columns h = with_room(a->h, a->m->cfg.C, a->stream_room);
    TRY(block_input(a, k->rstd1, k->x, a->m->layer[l].p[P_ATTN_NORM]));
    LinearIn q = linear_in(a, l, k, P_Q, P_Q_BIAS, h), kk = linear_in(a, l, k, P_K, P_K_BIAS, h),
             v = linear_in(a, l, k, P_V, P_V_BIAS, h);
    linear_forward(a, &q, k->q, Q, NULL);
    linear_forward(a, &kk, k->kv, 2 * KVW, NULL);
    linear_forward(a, &v, column(a, k->kv, KVW), 2 * KVW, NULL);
    rotate(a, k->q, Q, k->kv, 2 * KVW, false);
    return OK;
}

// from attention's output k->o to the layer's output
int layer_mlp(Activations *a, int l, LayerActs *k, void *x_next)
{
    const int64_t F = a->m->cut.F, half = F + a->room;
    const Columns h = with_room(a->h, a->m->cfg.C, a->stream_room), act = with_room(a->a, F, a->room);
    Device *d = a->m->dev;
    LinearIn o = linear_in(a, l, k, P_O, P_O_BIAS, with_room(k->o, q_width(a->m), a->room));
    TRY(block_output(a, &o, k->x_mid, k->x));
    TRY(block_input(a, k->rstd2, k->x_mid, a->m->layer[l].p[P_MLP_NORM]));
    LinearIn gate = linear_in(a, l, k, P_GATE, P_GATE_BIAS, h), up = linear_in(a, l, k, P_UP, P_UP_BIAS, h);
    linear_forward(a, &gate, k->gu, 2 * half, NULL);
    linear_forward(a, &up, column(a, k->gu, half), 2 * half, NULL);
    d->op.swiglu_fwd(d, a->m->t, act.at, act.ld, k->gu, 2 * half, (int)F, a->T);
    LinearIn down = linear_in(a, l, k, P_DOWN, P_DOWN_BIAS, act);
    return block_output(a, &down, x_next, k->x_mid);
}

static int layer_forward(Activations *a, int l, LayerActs *k, void *x_next)
{
    Device *d = a->m->dev;
    const int64_t Q = q_width(a->m), KVW = kv_width(a->m);
    TRY(layer_qkv(a, l, k));
    d->op.attn_fwd(d, a->m->t, k->o, attention_ld(a), k->lse, k->q, Q, k->kv, column(a, k->kv, KVW), 2 * KVW,
                   &a->shape);
    return layer_mlp(a, l, k, x_next);
}

AttnShape attention_shape(const Model *m, int S, const int32_t *q_start, const int32_t *q_len, const int32_t *k_start,
                          const int32_t *k_len)
{
    const ModelConfig *c = &m->cfg;
    return (AttnShape){.S = S,
                       .q_start = q_start,
                       .q_len = q_len,
                       .k_start = k_start,
                       .k_len = k_len,
                       .NH = m->cut.NH,
                       .KV = m->cut.KV,
                       .D = c->D,
                       .scale = c->attn_scale,
                       .softcap = c->attn_softcap,
                       .window = c->window};
}

// Ids counted from the first row of the vocabulary that this rank has; those of other ranks fall outside its table.
static int upload_ids(Activations *a, int32_t *to, int32_t *local, const int32_t *ids, int n)
{
    Device *d = a->m->dev;
    for (int i = 0; i < n; i++) local[i] = ids[i] - a->m->cut.v0;
    return d->upload(d, to, local, (size_t)n * sizeof *to);
}

int embed_tokens(Activations *a, const int32_t *tokens)
{
    Model *m = a->m;
    Device *d = m->dev;
    TRY(upload_ids(a, a->tokens, a->local_token, tokens, a->T));
    void *x = a->layer[0].x, *whole = stream_whole(a, x);
    d->op.embed_fwd(d, m->t, whole, &m->top[P_EMBED]->packed, a->tokens, m->cfg.embed_scale, a->T);
    TRY(stream_sum(a, whole));
    return stream_scatter(a, x, whole);
}

static int upload_batch(Activations *a, const Batch *b)
{
    Device *d = a->m->dev;
    ASSERT(b->T <= a->T_max && b->M <= a->M_max);
    a->T = b->T;
    a->S = b->S;
    a->M = b->M;
    a->shape = attention_shape(a->m, b->S, b->seq_start, b->seq_len, b->seq_start, b->seq_len);
    TRY(d->upload(d, a->pos, b->pos, (size_t)b->T * sizeof *b->pos));
    TRY(d->upload(d, a->row_key, b->row_key, (size_t)b->T * sizeof *b->row_key));
    TRY(d->upload(d, a->head_row, b->head_row, (size_t)b->M * sizeof *b->head_row));
    return upload_ids(a, a->target, a->local_target, b->target, b->M);
}

int layer_begin(Model *m, int l, int next)
{
    TRY(zero_need(m, l));
    TRY(zero_ask(m, next));
    return dora_ready(m, l);
}

int decoder_forward(Activations *a, const Batch *b, bool training)
{
    Model *m = a->m;
    const int L = m->cfg.L;
    a->idle = !b;
    a->dropping = training;
    TRY(zero_ask(m, 0));
    if (b) TRY(upload_batch(a, b));
    if (b) TRY(embed_tokens(a, b->tokens));
    for (int l = 0; l < L; l++) {
        TRY(layer_begin(m, l, l + 1));
        if (b) TRY(layer_forward(a, l, &a->layer[l], l + 1 < L ? a->layer[l + 1].x : a->x_out));
    }
    if (b) TRY(head_rows(a));
    return m->dev->sync(m->dev);
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

static int mlp_backward(Activations *a, int l, LayerActs *k, GradSet *g)
{
    const int C = a->m->cfg.C;
    const int64_t F = a->m->cut.F, half = F + a->room, ldgu = 2 * half;
    const DType t = a->m->t;
    const Columns h = with_room(a->h, C, a->stream_room), act = with_room(a->a, F, a->room);
    const Columns dgate = {k->gu, ldgu, a->room}, dup = {column(a, k->gu, half), ldgu, a->room};
    Device *d = a->m->dev;
    const Layer *y = &a->m->layer[l];
    void *dy;
    TRY(stream_gather(a, a->dx, &dy));
    if (linear_trained(y->p[P_DOWN], y->p[P_DOWN_BIAS]))
        d->op.swiglu_fwd(d, t, act.at, act.ld, k->gu, ldgu, (int)F, a->T);
    LinearIn down = linear_in(a, l, k, P_DOWN, P_DOWN_BIAS, act);
    TRY(linear_backward(a, &down, a->da, F, false, with_room(dy, C, a->stream_room), g));
    d->op.swiglu_bwd(d, t, k->gu, NULL, 0, a->da, k->gu, ldgu, (int)F, a->T); // gu becomes its own gradient
    TRY(block_input(a, k->rstd2, k->x_mid, y->p[P_MLP_NORM]));
    LinearIn gate = linear_in(a, l, k, P_GATE, P_GATE_BIAS, h), up = linear_in(a, l, k, P_UP, P_UP_BIAS, h);
    TRY(linear_backward(a, &gate, a->dh, C, false, dgate, g));
    TRY(linear_backward(a, &up, a->dh, C, true, dup, g));
    return block_input_gradient(a, g, y->p[P_MLP_NORM], k->x_mid, k->rstd2);
}

// below: does anything under this layer's first norm need the gradient?
static int attention_backward(Activations *a, int l, LayerActs *k, bool below, GradSet *g)
{
    const int C = a->m->cfg.C;
    Device *d = a->m->dev;
    const Layer *y = &a->m->layer[l];
    const int64_t Q = q_width(a->m), KVW = kv_width(a->m), ldo = attention_ld(a), half = KVW + a->room;
    const Columns h = with_room(a->h, C, a->stream_room), dq = with_room(a->dq, Q, a->room);
    const Columns dk = {a->dkv, 2 * half, a->room}, dv = {column(a, a->dkv, half), 2 * half, a->room};
    void *dy;
    TRY(stream_gather(a, a->dx, &dy));
    LinearIn o = linear_in(a, l, k, P_O, P_O_BIAS, with_room(k->o, Q, a->room));
    TRY(linear_backward(a, &o, a->dout, ldo, false, with_room(dy, C, a->stream_room), g));
    d->op.attn_bwd(d, a->m->t, dq.at, dq.ld, dk.at, dv.at, dk.ld, a->dout, k->o, ldo, k->lse, k->q, Q, k->kv,
                   column(a, k->kv, KVW), 2 * KVW, &a->shape);
    rotate(a, dq.at, dq.ld, dk.at, dk.ld, true);
    TRY(block_input(a, k->rstd1, k->x, y->p[P_ATTN_NORM]));
    const bool needed = below || y->p[P_ATTN_NORM]->slot >= 0;
    void *dh = needed ? a->dh : NULL;
    LinearIn q = linear_in(a, l, k, P_Q, P_Q_BIAS, h), kk = linear_in(a, l, k, P_K, P_K_BIAS, h),
             v = linear_in(a, l, k, P_V, P_V_BIAS, h);
    TRY(linear_backward(a, &q, dh, C, false, dq, g));
    TRY(linear_backward(a, &kk, dh, C, true, dk, g));
    TRY(linear_backward(a, &v, dh, C, true, dv, g));
    return needed ? block_input_gradient(a, g, y->p[P_ATTN_NORM], k->x, k->rstd1) : OK;
}

static int layer_backward(Activations *a, int l, bool below, GradSet *g)
{
    LayerActs *k = &a->layer[l];
    if (a->recompute) TRY(layer_forward(a, l, k, a->x_out)); // x_out is free: its gradient is in dx
    TRY(mlp_backward(a, l, k, g));
    return attention_backward(a, l, k, below, g);
}

static int embed_backward(Activations *a, GradSet *g)
{
    Model *m = a->m;
    Device *d = m->dev;
    const Param *embed = m->top[P_EMBED];
    void *dx;
    if (embed->slot < 0) return OK;
    TRY(stream_gather(a, a->dx, &dx));
    d->op.embed_bwd(d, m->t, a->dembed_at, dx, a->tokens, m->cfg.embed_scale, embed->N, m->cfg.C, a->T);
    return grad_direct(g, embed->slot) ? OK : grad_add(g, embed->slot, a->dembed);
}

// Units of gradients end in the order of their numbers: head, layers from the last on, embedding, vectors.
int decoder_backward(Activations *a, GradSet *g)
{
    Model *m = a->m;
    const int lowest = lowest_layer(m);
    TRY(grad_unit_done(g, m->unit_head));
    for (int l = m->cfg.L - 1; l >= lowest; l--) {
        TRY(layer_begin(m, l, l > lowest ? l - 1 : -1));
        if (!a->idle) TRY(layer_backward(a, l, l > lowest || m->top[P_EMBED]->slot >= 0, g));
        TRY(grad_unit_done(g, m->cfg.L - l));
    }
    if (!a->idle) TRY(embed_backward(a, g));
    TRY(grad_unit_done(g, m->unit_embed));
    TRY(grad_unit_done(g, m->unit_vectors));
    return m->dev->sync(m->dev);
}
