// head.c: the top of the decoder: final norm of the trained rows, linear and log-softmax that never hold all logits, and the gradients
// of both. Where the vocabulary is cut over tensor ranks, each rank's kernel sees its own rows of the head; three numbers per trained
// token make the whole of the shares: the log of the sum of exponentials, the target's logit, and the mean logit for the entropy.
#include "model/decoder_impl.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool cut(const Activations *a)
{
    return a->m->mesh && a->m->mesh->tensor_size > 1;
}

int head_rows(Activations *a)
{
    Device *d = a->m->dev;
    const ModelConfig *c = &a->m->cfg;
    void *x;
    TRY(stream_gather(a, a->x_out, &x));
    d->op.gather_rows(d, a->m->t, a->hg, x, a->head_row, c->C, a->M);
    d->op.rmsnorm_fwd(d, a->m->t, a->hn, c->C, a->rstd_f, a->hg, a->m->top[P_FINAL_NORM]->vec, c->norm_offset,
                      c->norm_eps, c->C, a->M);
    return OK;
}

// ---- a vocabulary in shares -----------------------------------------------------------------------------------------
// Per trained row, (3,M): log-sum-exp over this rank's rows, the target's logit if it is one of them, else 0, and the mean logit.
static int put_share(Activations *a, float *share, const float *logp, const float *entropy)
{
    Device *d = a->m->dev;
    const size_t M = (size_t)a->M;
    TRY(d->download(d, share, a->lse_head, M * sizeof *share));
    for (size_t i = 0; i < M; i++) {
        const int target = a->local_target[i];
        const bool here = target >= 0 && target < a->m->cut.V;
        share[M + i] = here ? logp[i] + share[i] : 0;
        share[2 * M + i] = entropy ? share[i] - entropy[i] : 0;
    }
    return OK;
}

// In rank order, in double: the same on every rank. all: (ranks,3,M).
static void join_shares(const float *all, int ranks, size_t M, float *lse, float *logp, float *entropy)
{
    for (size_t i = 0; i < M; i++) {
        double most = -INFINITY, sum = 0, target = 0, mean = 0;
        for (int r = 0; r < ranks; r++) most = fmax(most, (double)all[(size_t)r * 3 * M + i]);
        for (int r = 0; r < ranks; r++) {
            const float *share = all + (size_t)r * 3 * M + i;
            const double e = exp((double)share[0] - most);
            sum += e;
            mean += e * (double)share[2 * M];
            target += (double)share[M];
        }
        lse[i] = (float)(most + log(sum));
        logp[i] = (float)(target - (most + log(sum)));
        if (entropy) entropy[i] = (float)(most + log(sum) - mean / sum);
    }
}

// Replaces this rank's log-probabilities and log-sum-exps (host logp, device lse_head) by those over the whole vocabulary.
static int join_vocabulary(Activations *a, float *logp, float *entropy)
{
    Device *d = a->m->dev;
    const Mesh *mesh = a->m->mesh;
    const size_t M = (size_t)a->M, n = 3 * M, ranks = (size_t)mesh->tensor_size;
    float *all = a->shares, *lse = a->shares + ranks * n;
    size_t *start = xcalloc(ranks + 1, sizeof *start);
    for (size_t r = 0; r <= ranks; r++) start[r] = r * n;
    int status = put_share(a, all + (size_t)mesh->tensor_rank * n, logp, entropy);
    if (status == OK) status = comm_all_gather_parts(mesh->tensor, all, start, DT_F32);
    if (status == OK) {
        join_shares(all, mesh->tensor_size, M, lse, logp, entropy);
        status = d->upload(d, a->lse_head, lse, M * sizeof *lse);
    }
    free(start);
    return status;
}

int decoder_logprobs(Activations *a, float *logp, float *entropy)
{
    Device *d = a->m->dev;
    const size_t bytes = (size_t)a->M * sizeof(float);
    d->op.head_fwd(d, a->m->t, a->logp, a->lse_head, entropy ? a->entropy : NULL, a->hn, &model_head(a->m)->packed,
                   a->target, a->m->cfg.final_softcap, a->M);
    if (entropy) TRY(d->download(d, entropy, a->entropy, bytes));
    TRY(d->download(d, logp, a->logp, bytes));
    return cut(a) ? join_vocabulary(a, logp, entropy) : OK;
}

// ---- backward -------------------------------------------------------------------------------------------------------
// Where the head's weight gradient goes: its own tensor, or the tied embedding's sum, which embed_bwd finishes.
static float *head_gradient(Activations *a, GradSet *g)
{
    const Model *m = a->m;
    const Param *head = model_head((Model *)m), *embed = m->top[P_EMBED];
    const size_t n = (size_t)m->cut.V * (size_t)m->cfg.C;
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

int norm_gradient(Activations *a, GradSet *g, const Param *p, void *dx, int64_t lddx, const void *dy, const void *x,
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
    d->op.rmsnorm_bwd(d, a->m->t, dx, lddx, dw, dy, x, rstd, p->vec, c->norm_offset, accumulate_dx, c->C, rows);
    return p->slot >= 0 ? grad_done(a, g, p->slot) : OK;
}

// dhead (M,C), this rank's share of the gradient of the normed rows -> a->dx (T,C), the gradient of the last layer's output
static int head_to_decoder(Activations *a, GradSet *g)
{
    Device *d = a->m->dev;
    const int C = a->m->cfg.C;
    const Param *head = model_head(a->m);
    if (head->slot >= 0 && head != a->m->top[P_EMBED]) TRY(grad_done(a, g, head->slot));
    TRY(tensor_sum(a, a->dhead, a->M));
    TRY(norm_gradient(a, g, a->m->top[P_FINAL_NORM], a->hn, C, a->dhead, a->hg, a->rstd_f, false,
                      a->M)); // hn is free now
    void *whole = stream_whole(a, a->dx);
    d->op.scatter_rows(d, a->m->t, whole, C + a->stream_room, a->hn, a->head_row, C, a->M, a->T);
    return stream_scatter(a, a->dx, whole);
}

int decoder_head(Activations *a, const float *weight, float *logp, GradSet *g)
{
    Device *d = a->m->dev;
    const size_t bytes = (size_t)a->M * sizeof(float);
    if (cut(a)) { // log-probabilities are known only when the ranks have met
        TRY(decoder_logprobs(a, logp, NULL));
        return decoder_head_backward(a, weight, g);
    }
    TRY(d->upload(d, a->weight, weight, bytes));
    d->op.head_fwd_bwd(d, a->m->t, a->logp, a->lse_head, a->dhead, head_gradient(a, g), a->weight, a->hn,
                       &model_head(a->m)->packed, a->target, a->m->cfg.final_softcap, a->M);
    TRY(head_to_decoder(a, g));
    return d->download(d, logp, a->logp, bytes);
}

int decoder_head_backward(Activations *a, const float *weight, GradSet *g)
{
    Device *d = a->m->dev;
    TRY(d->upload(d, a->weight, weight, (size_t)a->M * sizeof(float)));
    d->op.head_bwd(d, a->m->t, a->dhead, head_gradient(a, g), a->weight, a->lse_head, a->hn, &model_head(a->m)->packed,
                   a->target, a->m->cfg.final_softcap, a->M);
    return head_to_decoder(a, g);
}

// ---- generation -----------------------------------------------------------------------------------------------------
// The ranks' columns of the logits, one block (M,V_r) behind the other, put in rows.
static int join_columns(Activations *a, float *blocks, float *logits)
{
    const Mesh *mesh = a->m->mesh;
    const ModelConfig *c = &a->m->cfg;
    const size_t ranks = (size_t)mesh->tensor_size, M = (size_t)a->M;
    size_t *start = xcalloc(ranks + 1, sizeof *start);
    TpCut *of = xcalloc(ranks, sizeof *of);
    int status = OK;
    for (size_t r = 0; r < ranks && status == OK; r++) {
        status = tp_cut(&of[r], (int)r, mesh->tensor_size, c->NH, c->KV, c->F, c->V);
        start[r + 1] = start[r] + M * (size_t)of[r].V;
    }
    if (status == OK) status = comm_all_gather_parts(mesh->tensor, blocks, start, DT_F32);
    for (size_t r = 0; r < ranks && status == OK; r++)
        for (size_t i = 0; i < M; i++)
            memcpy(logits + i * (size_t)c->V + of[r].v0, blocks + start[r] + i * (size_t)of[r].V,
                   (size_t)of[r].V * sizeof *logits);
    free(of);
    free(start);
    return status;
}

void shard_logits(Activations *a, float *shard)
{
    Device *d = a->m->dev;
    d->op.head_logits(d, a->m->t, shard, a->hn, &model_head(a->m)->packed, a->m->cfg.final_softcap, a->M);
}

int join_logits(Activations *a, const float *shard, float *logits)
{
    Device *d = a->m->dev;
    const TpCut *t = &a->m->cut;
    const size_t M = (size_t)a->M;
    if (!cut(a)) return d->download(d, logits, shard, M * (size_t)t->V * sizeof *logits);
    float *blocks = xmalloc(M * (size_t)a->m->cfg.V * sizeof *blocks);
    int status = d->download(d, blocks + M * (size_t)t->v0, shard, M * (size_t)t->V * sizeof *blocks);
    if (status == OK) status = join_columns(a, blocks, logits);
    free(blocks);
    return status;
}

// On the host: only there are the rows whole.
static int sample_joined(Activations *a, const float *shard, const SamplerConfig *s, const uint64_t *draw, int32_t *id)
{
    const size_t V = (size_t)a->m->cfg.V;
    float *logits = xmalloc((size_t)a->M * V * sizeof *logits);
    const int status = join_logits(a, shard, logits);
    for (int i = 0; i < a->M && status == OK; i++)
        id[i] = sample_row(s, logits + (size_t)i * V, (int)V, s->temperature > 0 ? draw[i] : 0);
    free(logits);
    return status;
}

int sample_logits(Activations *a, const float *shard, const SamplerConfig *s, const SampleMemory *memory,
                  const uint64_t *draw, int32_t *id)
{
    Device *d = a->m->dev;
    const size_t M = (size_t)a->M;
    if (cut(a)) return sample_joined(a, shard, s, draw, id);
    if (s->temperature > 0) TRY(d->upload(d, memory->draw, draw, M * sizeof *draw));
    d->op.sample(d, memory->id, shard, memory->draw, s, a->m->cfg.V, a->M);
    return d->download(d, id, memory->id, M * sizeof *id);
}
