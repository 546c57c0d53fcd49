// activations.c carves what the two passes need from the step arena: once per run, for the largest micro-batch. In a measuring
// arena it only counts, which is how plans know the figure.
#include "model/decoder_impl.h"
#include <stdlib.h>
#include <string.h>

size_t act_bytes(const Activations *a, int64_t rows, int64_t cols)
{
    return (size_t)rows * (size_t)cols * dtype_size(a->m->t);
}

int64_t attention_ld(const Activations *a)
{
    return (int64_t)a->m->cut.NH * a->m->cfg.D + a->room;
}

// Rank of the adapter on a linear layer; of the widest one in any layer when a set is shared by all (l < 0).
static int adapter_rank(const Model *m, int l, ParamId id)
{
    int R = 0;
    for (int i = MAX(l, 0); i < (l < 0 ? m->cfg.L : l + 1); i++) {
        const Param *p = m->layer[i].p[id];
        if (p && p->adapter) R = MAX(R, p->adapter->R);
    }
    return R;
}

// The widest bordered adapter: what the rows that linears read need behind them.
static int widest_border(const Model *m)
{
    int R = 0;
    for (int i = 0; i < m->n_param; i++) {
        const Adapter *ad = m->param[i].adapter;
        if (ad && ad->bordered) R = MAX(R, ad->R);
    }
    return R;
}

// Whether s needs a place of its own until backward: h and a, behind which it lies in forward, are made anew there; o is kept, and with
// it what lies in its room.
static bool s_apart(const Model *m, int l, ParamId id)
{
    bool apart = id != P_O;
    for (int i = MAX(l, 0); i < (l < 0 ? m->cfg.L : l + 1); i++) {
        const Param *p = m->layer[i].p[id];
        if (p && p->adapter && !p->adapter->bordered) apart = true;
    }
    return apart;
}

// l < 0: a set that every layer uses in turn
static void carve_layer(Activations *a, Arena *step, LayerActs *k, int l)
{
    const ModelConfig *c = &a->m->cfg;
    const TpCut *cut = &a->m->cut;
    const int T = a->T_max, Q = cut->NH * c->D, KVW = cut->KV * c->D, rows = stream_rows_max(a->m, T);
    k->rstd1 = arena_alloc(step, (size_t)rows * sizeof(float));
    k->q = arena_alloc(step, act_bytes(a, T, Q));
    k->kv = arena_alloc(step, act_bytes(a, T, 2 * KVW));
    k->o = arena_alloc(step, act_bytes(a, T, attention_ld(a)));
    k->lse = a->train ? arena_alloc(step, (size_t)T * (size_t)cut->NH * sizeof(float)) : NULL;
    k->x_mid = arena_alloc(step, act_bytes(a, rows, c->C));
    k->rstd2 = arena_alloc(step, (size_t)rows * sizeof(float));
    k->gu = arena_alloc(step, act_bytes(a, T, 2 * (cut->F + a->room)));
    for (int id = 0; id < P_COUNT; id++)
        if (s_apart(a->m, l, (ParamId)id))
            k->s[id] = arena_alloc(step, act_bytes(a, T, adapter_rank(a->m, l, (ParamId)id)));
}

static void carve_layers(Activations *a, Arena *step)
{
    const ModelConfig *c = &a->m->cfg;
    const bool keep_all = a->train && !a->recompute;
    const size_t stream = act_bytes(a, stream_rows_max(a->m, a->T_max), c->C);
    for (int l = 0; l < c->L; l++) {
        if (keep_all || l == 0)
            carve_layer(a, step, &a->layer[l], keep_all ? l : -1);
        else
            a->layer[l] = a->layer[0]; // one set, used again by every layer
        if (a->train || l < 2)
            a->layer[l].x = arena_alloc(step, stream);
        else
            a->layer[l].x = a->layer[l - 2].x; // two in turn: input and output
    }
    a->x_out = a->train || c->L < 2 ? arena_alloc(step, stream) : a->layer[c->L - 2].x;
}

static void carve_backward(Activations *a, Arena *step)
{
    const Model *m = a->m;
    const ModelConfig *c = &m->cfg;
    const TpCut *cut = &m->cut;
    const int T = a->T_max;
    int R = 0, dropped = 0, scaled = 0;
    size_t largest = 0;
    for (int i = 0; i < m->n_param; i++) {
        const Adapter *ad = m->param[i].adapter;
        if (!ad) continue;
        R = MAX(R, ad->R);
        if (ad->dropout > 0) dropped = MAX(dropped, m->param[i].K);
        if (ad->dora) scaled = MAX(scaled, m->param[i].N);
    }
    for (int i = 0; i < m->n_trained; i++)
        if (m->trained[i].param->id != P_EMBED)
            largest = MAX(largest, (size_t)m->trained[i].N * (size_t)m->trained[i].K);
    a->drop = arena_alloc(step, act_bytes(a, T, dropped));
    a->ds = arena_alloc(step, act_bytes(a, T, R));
    a->u = arena_alloc(step, act_bytes(a, T, scaled ? scaled + a->room : 0));
    a->dx = arena_alloc(step, act_bytes(a, stream_rows_max(m, T), c->C + a->stream_room));
    a->dh = arena_alloc(step, act_bytes(a, T, c->C));
    a->da = arena_alloc(step, act_bytes(a, T, cut->F));
    a->dq = arena_alloc(step, act_bytes(a, T, cut->NH * c->D + a->room));
    a->dkv = arena_alloc(step, act_bytes(a, T, 2 * (cut->KV * c->D + a->room)));
    a->dout = arena_alloc(step, act_bytes(a, T, attention_ld(a)));
    a->dhead = arena_alloc(step, act_bytes(a, a->M_max, c->C));
    a->dw = arena_alloc(step, largest * sizeof(float));
    if (m->top[P_EMBED]->slot >= 0) a->dembed = arena_alloc(step, (size_t)cut->V * (size_t)c->C * sizeof(float));
}

int activations_open(Activations **out, Model *m, Arena *step, int T, int S, int M, bool train, bool recompute)
{
    const ModelConfig *c = &m->cfg;
    Activations *a = xcalloc(1, sizeof *a);
    *a = (Activations){.m = m, .T_max = T, .S_max = S, .M_max = M, .train = train, .recompute = recompute};
    a->room = widest_border(m);
    a->stream_room = m->sequence ? 0 : a->room;           // rows that ranks exchange lie side by side
    ASSERT(!a->stream_room || m->top[P_EMBED]->slot < 0); // so do those of which the embedding's gradient is made
    a->layer = xcalloc((size_t)c->L, sizeof *a->layer);
    carve_layers(a, step);
    a->h = arena_alloc(step, act_bytes(a, T, c->C + a->stream_room));
    if (m->sequence) a->full = arena_alloc(step, act_bytes(a, T, c->C));
    a->a = arena_alloc(step, act_bytes(a, T, m->cut.F + a->room));
    a->hg = arena_alloc(step, act_bytes(a, M, c->C));
    a->hn = arena_alloc(step, act_bytes(a, M, c->C));
    a->rstd_f = arena_alloc(step, (size_t)M * sizeof(float));
    a->logp = arena_alloc(step, (size_t)M * sizeof(float));
    a->lse_head = arena_alloc(step, (size_t)M * sizeof(float));
    a->weight = arena_alloc(step, (size_t)M * sizeof(float));
    a->entropy = arena_alloc(step, (size_t)M * sizeof(float));
    a->tokens = arena_alloc(step, (size_t)T * sizeof(int32_t));
    a->pos = arena_alloc(step, (size_t)T * sizeof(int32_t));
    a->row_key = arena_alloc(step, (size_t)T * sizeof(uint64_t));
    a->head_row = arena_alloc(step, (size_t)M * sizeof(int32_t));
    a->target = arena_alloc(step, (size_t)M * sizeof(int32_t));
    const size_t ranks = m->mesh ? (size_t)m->mesh->tensor_size : 1;
    a->shares = ranks > 1 ? xcalloc((size_t)M * 3 * (ranks + 1), sizeof *a->shares) : NULL;
    a->row_start = xcalloc(ranks + 1, sizeof *a->row_start);
    a->local_token = xcalloc((size_t)T + 1, sizeof *a->local_token);
    a->local_target = xcalloc((size_t)M + 1, sizeof *a->local_target);
    if (train) carve_backward(a, step);
    *out = a;
    return OK;
}

size_t activations_bytes(const Model *m, int T, int M, bool train, bool recompute)
{
    Arena *counter;
    Activations *a;
    if (arena_open(&counter, "step", 0, true) < 0) return 0;
    size_t bytes = activations_open(&a, (Model *)m, counter, T, 1, M, train, recompute) == OK ? arena_peak(counter) : 0;
    activations_close(a);
    arena_free(counter);
    return bytes;
}

void activations_close(Activations *a)
{
    if (!a) return;
    free(a->shares);
    free(a->row_start);
    free(a->local_token);
    free(a->local_target);
    free(a->layer);
    free(a);
}
