// decode.c: the forward pass over a key/value cache. A cache row holds [k | v] of one position of one layer; a slot is one sequence.
// The pieces of a layer are decoder.c's own, so a generated token's log-probability is what training would compute.
#include "model/decoder_impl.h"
#include <stdlib.h>

struct KvCache {
    Model *m;
    int slots, capacity;
    void *rows;                                 // (L, slots, capacity, 2*KV*D)
    float *logits;                              // (slots, V)
    SampleMemory sample;                        // (slots)
    int *length;                                // (slots) positions filled
    int32_t *q_start, *q_len, *k_start, *k_len; // (slots) of the extension under way
    int32_t *last;                              // (slots) row of each sequence's last token
    int32_t *pos;                               // (longest extension)
    int pos_cap;
};

int kvcache_open(KvCache **out, Model *m, Arena *run, int slots, int capacity)
{
    const ModelConfig *c = &m->cfg;
    KvCache *k = xcalloc(1, sizeof *k);
    *k = (KvCache){.m = m, .slots = slots, .capacity = capacity};
    k->rows = arena_alloc(run, (size_t)c->L * (size_t)slots * (size_t)capacity * 2 * (size_t)(m->cut.KV * c->D) *
                                   dtype_size(m->t));
    k->logits = arena_alloc(run, (size_t)slots * (size_t)m->cut.V * sizeof(float));
    k->sample.draw = arena_alloc(run, (size_t)slots * sizeof *k->sample.draw);
    k->sample.id = arena_alloc(run, (size_t)slots * sizeof *k->sample.id);
    k->length = xcalloc((size_t)slots, sizeof *k->length);
    int32_t **lists[] = {&k->q_start, &k->q_len, &k->k_start, &k->k_len, &k->last};
    for (size_t i = 0; i < COUNT_OF(lists); i++) *lists[i] = xcalloc((size_t)slots, sizeof(int32_t));
    *out = k;
    return OK;
}

size_t kvcache_bytes(const Model *m, int slots, int capacity)
{
    Arena *counter;
    KvCache *k;
    if (arena_open(&counter, "cache", 0, true) < 0) return 0;
    size_t bytes = kvcache_open(&k, (Model *)m, counter, slots, capacity) == OK ? arena_peak(counter) : 0;
    kvcache_close(k);
    arena_free(counter);
    return bytes;
}

void kvcache_close(KvCache *k)
{
    if (!k) return;
    free(k->length);
    free(k->q_start);
    free(k->q_len);
    free(k->k_start);
    free(k->k_len);
    free(k->last);
    free(k->pos);
    free(k);
}

int kvcache_length(const KvCache *k, int slot)
{
    return k->length[slot];
}
void kvcache_clear(KvCache *k, int slot)
{
    k->length[slot] = 0;
}

static char *layer_rows(const KvCache *k, int l)
{
    const ModelConfig *c = &k->m->cfg;
    return (char *)k->rows +
           (size_t)l * (size_t)k->slots * (size_t)k->capacity * 2 * (size_t)(k->m->cut.KV * c->D) * dtype_size(k->m->t);
}

// Positions, starts and lengths of the sequences of this extension.
static int describe(KvCache *k, const int *slot, const int *count, int n)
{
    int T = 0;
    for (int i = 0; i < n; i++) T += count[i];
    if (T > k->pos_cap) {
        k->pos = xrealloc(k->pos, sizeof *k->pos * (size_t)T);
        k->pos_cap = T;
    }
    for (int i = 0, at = 0; i < n; i++) {
        int have = k->length[slot[i]];
        if (have + count[i] > k->capacity || have + count[i] > k->m->positions)
            return fail(E_FAILED, "generate", NULL, "a sequence of %d tokens does not fit the cache of %d",
                        have + count[i], k->capacity);
        k->q_start[i] = at;
        k->q_len[i] = count[i];
        k->k_start[i] = slot[i] * k->capacity;
        k->k_len[i] = have + count[i];
        for (int j = 0; j < count[i]; j++) k->pos[at + j] = have + j;
        at += count[i];
        k->last[i] = at - 1;
    }
    return T;
}

// the new rows of k and v behind those that each sequence has
static void append_rows(Activations *a, const KvCache *k, int l, const void *kv, int n)
{
    const ModelConfig *c = &k->m->cfg;
    Device *d = k->m->dev;
    const size_t width = 2 * (size_t)(k->m->cut.KV * c->D), size = dtype_size(a->m->t);
    for (int i = 0; i < n; i++) {
        size_t to = (size_t)(k->k_start[i] + k->k_len[i] - k->q_len[i]) * width, from = (size_t)k->q_start[i] * width;
        d->op.convert(d, layer_rows(k, l) + to * size, a->m->t, (const char *)kv + from * size, a->m->t,
                      (size_t)k->q_len[i] * width);
    }
}

static int cached_layer(Activations *a, const KvCache *k, int l, int n)
{
    const Model *m = a->m;
    const ModelConfig *c = &m->cfg;
    Device *d = m->dev;
    LayerActs *y = &a->layer[l];
    const int64_t Q = (int64_t)m->cut.NH * c->D, KVW = (int64_t)m->cut.KV * c->D, ldo = attention_ld(a);
    char *rows = layer_rows(k, l);
    TRY(layer_qkv(a, l, y));
    append_rows(a, k, l, y->kv, n);
    d->op.attn_fwd(d, a->m->t, y->o, ldo, NULL, y->q, Q, rows, rows + (size_t)KVW * dtype_size(a->m->t), 2 * KVW,
                   &a->shape);
    return layer_mlp(a, l, y, l + 1 < c->L ? a->layer[l + 1].x : a->x_out);
}

static int upload_extension(Activations *a, KvCache *k, int T, int n)
{
    Device *d = a->m->dev;
    ASSERT(T <= a->T_max && n <= a->M_max && n <= k->slots);
    a->T = T;
    a->M = n;
    a->dropping = false;
    a->shape = attention_shape(a->m, n, k->q_start, k->q_len, k->k_start, k->k_len);
    TRY(d->upload(d, a->pos, k->pos, (size_t)T * sizeof *k->pos));
    return d->upload(d, a->head_row, k->last, (size_t)n * sizeof *k->last);
}

int decoder_extend(Activations *a, KvCache *k, const int *slot, const int *count, const int32_t *tokens, int n,
                   float *logits)
{
    Model *m = a->m;
    const int L = m->cfg.L;
    if (n) {
        int T = describe(k, slot, count, n);
        if (T < 0) return T;
        TRY(upload_extension(a, k, T, n));
        TRY(embed_tokens(a, tokens));
    }
    for (int l = 0; l < L; l++) {
        TRY(layer_begin(m, l, (l + 1) % L)); // the next token begins at layer 0
        if (n) TRY(cached_layer(a, k, l, n));
    }
    if (!n) return OK;
    TRY(head_rows(a));
    for (int i = 0; i < n; i++) k->length[slot[i]] += count[i];
    shard_logits(a, k->logits);
    return logits ? join_logits(a, k->logits, logits) : OK;
}

int decoder_sample(Activations *a, KvCache *k, const SamplerConfig *s, const uint64_t *draw, int32_t *id)
{
    return sample_logits(a, k->logits, s, &k->sample, draw, id);
}
