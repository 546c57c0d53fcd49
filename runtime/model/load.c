// load.c brings a model into memory: the table of parameters from params.def, the shapes checked against the configuration, the
// weights read slice by slice from the file straight into the layout of the device. There is never a second full copy.
#include "model/load.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SLICE_BYTES = 256 << 10,
    PANEL_ROWS = 32
}; // slices end on panel boundaries, so that threads never share a panel

// ---- the table ------------------------------------------------------------------------------------------------------
typedef struct ParamShape {
    int N, K;
    bool present;
} ParamShape;

static const char *const param_names[P_COUNT] = {
#define PARAM(id, name, rows, cols, cut, flags, when) [P_##id] = name,
#include "model/params.def"
#undef PARAM
};
static const unsigned param_flags[P_COUNT] = {
#define PARAM(id, name, rows, cols, cut, flags, when) [P_##id] = flags,
#include "model/params.def"
#undef PARAM
};
static const TpKind param_cut[P_COUNT] = {
#define PARAM(id, name, rows, cols, cut, flags, when) [P_##id] = TP_##cut,
#include "model/params.def"
#undef PARAM
};

static ParamShape param_shape(const ModelConfig *c, ParamId id)
{
    const int V = c->V, C = c->C, F = c->F, Q = c->NH * c->D, KVW = c->KV * c->D;
    (void)V, (void)C, (void)F, (void)Q, (void)KVW;
    switch (id) {
#define PARAM(id, name, rows, cols, cut, flags, when)                                                                  \
    case P_##id:                                                                                                       \
        return (ParamShape){rows, cols, when};
#include "model/params.def"
#undef PARAM
    default: return (ParamShape){0};
    }
}

unsigned param_id_flags(ParamId id)
{
    return param_flags[id];
}

static void add_param(Model *m, ParamId id, int layer)
{
    ParamShape s = param_shape(&m->cfg, id);
    if (!s.present) return;
    Param *p = &m->param[m->n_param++];
    const TpSlab slab = tp_slab(&m->cut, param_cut[id], m->cfg.D, s.N, s.K);
    *p = (Param){.id = id,
                 .layer = layer,
                 .N = slab.rows,
                 .K = slab.cols,
                 .full_N = s.N,
                 .full_K = s.K,
                 .row0 = slab.row0,
                 .col0 = slab.col0,
                 .cut = param_cut[id],
                 .slot = -1};
    if (layer >= 0) { // the names of the table have one %d
        const char *name = param_names[id], *at = strstr(name, "%d");
        snprintf(p->name, sizeof p->name, "%.*s%d%s", (int)(at - name), name, layer, at + 2);
        m->layer[layer].p[id] = p;
    } else {
        snprintf(p->name, sizeof p->name, "%s", param_names[id]);
        m->top[id] = p;
    }
}

static void build_table(Model *m)
{
    m->param = xcalloc((size_t)(m->cfg.L + 1) * P_COUNT, sizeof *m->param);
    m->layer = xcalloc((size_t)m->cfg.L, sizeof *m->layer);
    add_param(m, P_EMBED, -1);
    for (int l = 0; l < m->cfg.L; l++)
        for (int id = 0; id < P_COUNT; id++)
            if (param_flags[id] & PF_LAYER) add_param(m, (ParamId)id, l);
    add_param(m, P_FINAL_NORM, -1);
    add_param(m, P_HEAD, -1);
}

Param *model_head(Model *m)
{
    return m->top[P_HEAD] ? m->top[P_HEAD] : m->top[P_EMBED];
}

int64_t model_params(const Model *m)
{
    int64_t n = 0;
    for (int i = 0; i < m->n_param; i++) n += (int64_t)m->param[i].full_N * m->param[i].full_K;
    return n;
}

int64_t model_trained_params(const Model *m)
{
    int64_t n = 0;
    for (int i = 0; i < m->n_trained; i++) n += (int64_t)m->trained[i].full_N * m->trained[i].full_K;
    return n;
}

int model_tokens_check(const Model *m, int tokenizer_vocab, const char *place)
{
    if (tokenizer_vocab <= m->cfg.V) return OK;
    return fail(E_INPUT, place,
                "take the tokenizer that belongs to the model, or one whose added tokens have rows in the embedding",
                "the tokenizer has ids up to %d, the model's embedding %d rows", tokenizer_vocab - 1, m->cfg.V);
}

// ---- checks ---------------------------------------------------------------------------------------------------------
static int check_shapes(Model *m, const Weights *w)
{
    for (int i = 0; i < m->n_param; i++) {
        const Param *p = &m->param[i];
        int at = weights_find(w, p->name);
        if (at < 0)
            return fail(E_INPUT, tmpf("%s: %s", m->base, p->name),
                        "is the download complete, and config.json of the same model?", "the weights lack this tensor");
        const TensorInfo *t = weights_info(w, at);
        bool vector = p->full_K == 1;
        if (t->ndim != (vector ? 1 : 2) || t->shape[0] != p->full_N || (!vector && t->shape[1] != p->full_K))
            return fail(E_INPUT, tmpf("%s: %s", m->base, p->name), "config.json and weights belong to different models",
                        "the shape is [%lld%s%s], the configuration says [%d%s%s]", (long long)t->shape[0],
                        t->ndim > 1 ? ", " : "", t->ndim > 1 ? tmpf("%lld", (long long)t->shape[1]) : "", p->full_N,
                        vector ? "" : ", ", vector ? "" : tmpf("%d", p->full_K));
    }
    return OK;
}

// ---- rotary tables --------------------------------------------------------------------------------------------------
// Llama 3 (Meta's llama-models, "apply_scaling"): wavelengths beyond original/low_freq are divided by factor, those below
// original/high_freq kept, the ones between blended.
static double rope_scaled(const ModelConfig *c, double inv_freq)
{
    if (c->rope_kind == ROPE_LINEAR) return inv_freq / c->rope_factor;
    if (c->rope_kind != ROPE_LLAMA3) return inv_freq;
    double wavelen = 2 * acos(-1.0) / inv_freq, original = c->rope_original_positions;
    if (wavelen < original / c->rope_high_freq) return inv_freq;
    if (wavelen > original / c->rope_low_freq) return inv_freq / c->rope_factor;
    double smooth = (original / wavelen - c->rope_low_freq) / (c->rope_high_freq - c->rope_low_freq);
    return (1 - smooth) * inv_freq / c->rope_factor + smooth * inv_freq;
}

static int build_rope(Model *m, int positions)
{
    const ModelConfig *c = &m->cfg;
    const int half = c->rot / 2;
    size_t bytes = (size_t)positions * (size_t)half * sizeof(float);
    m->positions = positions;
    m->rope_cos = arena_alloc(m->run, bytes);
    m->rope_sin = arena_alloc(m->run, bytes);
    if (arena_measuring(m->run)) return OK;
    float *host = xmalloc(2 * bytes), *cosine = host, *sine = host + (size_t)positions * (size_t)half;
    for (int i = 0; i < half; i++) {
        double f = rope_scaled(c, pow(c->rope_theta, -2.0 * i / c->rot));
        for (int pos = 0; pos < positions; pos++) {
            cosine[(size_t)pos * (size_t)half + (size_t)i] = (float)cos(pos * f);
            sine[(size_t)pos * (size_t)half + (size_t)i] = (float)sin(pos * f);
        }
    }
    int status = m->dev->upload(m->dev, m->rope_cos, cosine, bytes);
    if (status == OK) status = m->dev->upload(m->dev, m->rope_sin, sine, bytes);
    free(host);
    return status;
}

// ---- weights --------------------------------------------------------------------------------------------------------
// With ZeRO 3 a layer's matrices have no place of their own (zero.c gives them slots).
static void describe_params(Model *m)
{
    for (int i = 0; i < m->n_param; i++) {
        Param *p = &m->param[i];
        if (param_flags[p->id] & PF_LINEAR) {
            p->packed = (Packed){.t = m->t, .N = p->N, .K = p->K};
            p->gathered = m->zero == 3 && p->layer >= 0;
        } else {
            p->vec = arena_alloc(m->run, (size_t)p->N * sizeof(float));
        }
    }
}

static void place(Model *m, Packed *w)
{
    w->data = arena_alloc(m->run, m->dev->packed_bytes(m->dev, w->t, w->N, w->K));
}

size_t param_bytes(const Model *m, const Param *p)
{
    const int border = p->adapter && p->adapter->bordered ? p->adapter->R : 0;
    return m->dev->packed_bytes(m->dev, m->t, p->N + border, p->K + border);
}

void place_bordered(Packed *w, Adapter *ad, char *at)
{
    const int64_t ld = w->K + ad->R;
    w->data = at;
    ad->B.data = offset(at, (size_t)w->K, w->t);
    ad->A.data = offset(at, (size_t)(w->N * ld), w->t);
    w->ld = ad->A.ld = ad->B.ld = ld;
}

// An adapter lies in the border of its weight where all rows of it begin at words of 16 bytes then, as products want them.
static void place_params(Model *m)
{
    for (int i = 0; i < m->n_param; i++) {
        Param *p = &m->param[i];
        Adapter *ad = p->adapter;
        if (ad) ad->bordered = m->dev->borders && ad->R % 8 == 0 && p->N % 8 == 0 && p->K % 8 == 0;
        if (ad && ad->bordered && !p->gathered) {
            place_bordered(&p->packed, ad, arena_alloc(m->run, param_bytes(m, p)));
            continue;
        }
        if (p->packed.N && !p->gathered) place(m, &p->packed);
        if (!ad) continue;
        place(m, &ad->A), place(m, &ad->B);
        if (!ad->bordered) continue;
        ad->kept_A = ad->A, ad->kept_B = ad->B; // A and B themselves lie in a slot (zero.c)
        m->trained[ad->slot_a].packed = &ad->kept_A;
        m->trained[ad->slot_b].packed = &ad->kept_B;
    }
}

// The rows that [row0, row0+rows) and a part have in common, counted from the part's first; *skip: rows before them in the former.
static Rows common_rows(Rows part, int row0, int rows, int *skip)
{
    int from = MAX(part.row0, row0), to = MIN(part.row0 + part.rows, row0 + rows);
    *skip = from - row0;
    return (Rows){from - part.row0, MAX(to - from, 0)};
}

static void put_rows(void *dst, DType t, const void *src, DType src_t, int64_t ld, int rows, int K)
{
    ASSERT(t == src_t || (t == DT_BF16 && src_t == DT_F32));
    for (int r = 0; r < rows; r++) {
        const char *from = (const char *)src + (size_t)r * (size_t)ld * dtype_size(src_t);
        char *to = (char *)dst + (size_t)r * (size_t)K * dtype_size(t);
        if (t == src_t) memcpy(to, from, (size_t)K * dtype_size(t));
        for (int k = 0; t != src_t && k < K; k++)
            ((bf16_t *)(void *)to)[k] = f32_to_bf16(((const float *)(const void *)from)[k]);
    }
}

int upload_rows(Device *d, void *dst, DType t, const void *src, DType src_t, int64_t ld, int rows, int K)
{
    const size_t bytes = (size_t)rows * (size_t)K * dtype_size(t);
    if (!bytes) return OK;
    if (t == src_t && ld == K) return d->upload(d, dst, src, bytes);
    void *host = xmalloc(bytes);
    put_rows(host, t, src, src_t, ld, rows, K);
    int status = d->upload(d, dst, host, bytes);
    free(host);
    return status;
}

// The rows of a part that src (from its row `skip` on) has.
static int store_part(Model *m, void *part, DType t, int K, Rows to, int skip, const void *src, DType src_t, int64_t ld)
{
    return upload_rows(m->dev, (char *)part + (size_t)to.row0 * (size_t)K * dtype_size(t), t,
                       (const char *)src + (size_t)skip * (size_t)ld * dtype_size(src_t), src_t, ld, to.rows, K);
}

// The norms of DoRA's base weights are no longer those of the weights.
static void weight_changes(Model *m, const Param *p)
{
    if (p->adapter && p->adapter->dora && !m->layer[p->layer].norms_old)
        m->layer[p->layer].norms_old = true; // it is already while threads read the weights
}

static int param_store_blocks(Model *m, Param *p, int row0, int rows, const void *src, Quant format)
{
    weight_changes(m, p);
    m->dev->op.linear_pack_blocks(m->dev, &p->packed, row0, rows, src, format);
    return OK;
}

int param_store(Model *m, Param *p, int row0, int rows, const void *src, DType src_t, int64_t ld)
{
    int skip;
    weight_changes(m, p);
    if (p->vec) {
        ASSERT(src_t == DT_F32 && ld == 1);
        return m->dev->upload(m->dev, p->vec + row0, src, (size_t)rows * sizeof(float));
    }
    if (!p->gathered) m->dev->op.linear_pack(m->dev, &p->packed, row0, rows, src, src_t, ld);
    if (p->slot >= 0) {
        Trainable *t = &m->trained[p->slot];
        ASSERT(src_t == DT_F32);
        Rows to = common_rows(t->part, row0, rows, &skip);
        return store_part(m, t->master, DT_F32, p->K, to, skip, src, src_t, ld);
    }
    if (!p->gathered) return OK;
    Rows to = common_rows(part_rows(p->N, zero_part(m), zero_parts(m)), row0, rows, &skip);
    return store_part(m, p->shard, m->t, p->K, to, skip, src, src_t, ld);
}

typedef struct Slice {
    Param *p;
    int row0, rows;
} Slice;

static Slice *cut_slices(Model *m, int *n)
{
    Slice *s = NULL;
    int count = 0, cap = 0;
    for (int i = 0; i < m->n_param; i++) {
        Param *p = &m->param[i];
        int step = p->full_K == 1 ? p->N : MAX(SLICE_BYTES / (p->full_K * 4) / PANEL_ROWS, 1) * PANEL_ROWS;
        for (int r = 0; r < p->N; r += step) {
            if (count == cap) s = xrealloc(s, sizeof *s * (size_t)(cap = MAX(2 * cap, 256)));
            s[count++] = (Slice){p, r, MIN(step, p->N - r)};
        }
    }
    *n = count;
    return s;
}

// Quantised rows go to the device as they are when all of them, and nobody else, is to have their numbers.
static bool takes_blocks(const Param *p, const Weights *w, int tensor, Quant *format)
{
    return !p->vec && p->slot < 0 && !p->gathered && p->K == p->full_K && weights_blocks(w, tensor, format);
}

// Files give whole rows; this rank keeps its columns of them.
static int read_slice(Model *m, Weights *w, const Slice *s, void *buffer)
{
    Param *p = s->p;
    Quant format;
    const int tensor = weights_find(w, p->name);
    if (takes_blocks(p, w, tensor, &format)) {
        TRY(weights_read_blocks(w, tensor, p->row0 + s->row0, s->rows, buffer));
        return param_store_blocks(m, p, s->row0, s->rows, buffer, format);
    }
    const DType t = p->vec || p->slot >= 0 ? DT_F32 : m->t;
    TRY(weights_read(w, tensor, p->row0 + s->row0, s->rows, t, buffer));
    return param_store(m, p, s->row0, s->rows, (char *)buffer + (size_t)p->col0 * dtype_size(t), t, p->full_K);
}

static int read_weights(Model *m, Weights *w)
{
    int n, status = OK;
    Slice *slices = cut_slices(m, &n);
    size_t largest = 0;
    for (int i = 0; i < n; i++)
        largest = MAX(largest, (size_t)slices[i].rows * (size_t)slices[i].p->full_K * sizeof(float));
    ErrorRecord first = {0};
#pragma omp parallel
    {
        void *buffer = xmalloc(largest);
#pragma omp for schedule(dynamic)
        for (int i = 0; i < n; i++) {
            int failed;
#pragma omp atomic read
            failed = status;
            if (failed < 0) continue;
            int s = read_slice(m, w, &slices[i], buffer);
            if (s == OK) continue;
#pragma omp critical(read_weights_error)
            if (status == OK) {
                first = *error_last();
                status = s;
            }
            error_clear();
        }
        free(buffer);
    }
    if (status < 0) error_adopt(&first);
    free(slices);
    return status;
}

// What this rank is to hold of the model that cfg describes.
static int place_in_mesh(Model *m, const TrainSpec *spec)
{
    const ModelConfig *c = &m->cfg;
    m->mesh = spec->mesh;
    m->zero = m->mesh && m->mesh->data_size > 1 ? spec->zero : 0;
    m->sequence = m->mesh && m->mesh->tensor_size > 1 && spec->sequence;
    m->unit_head = 0; // then the layers, from the last to the first
    m->unit_embed = c->L + 1;
    m->unit_vectors = c->L + 2;
    m->n_units = c->L + 3;
    return tp_cut(&m->cut, m->mesh ? m->mesh->tensor_rank : 0, m->mesh ? m->mesh->tensor_size : 1, c->NH, c->KV, c->F,
                  c->V);
}

bool model_whole(const Model *m)
{
    return (!m->mesh || m->mesh->tensor_size == 1) && !m->zero;
}

int model_open(Model **out, Device *d, DType t, Arena *run, const char *path, int positions, const TrainSpec *spec)
{
    int status = OK;
    Weights *w = NULL, *adapter = NULL;
    Model *m = xcalloc(1, sizeof *m);
    m->dev = d;
    m->t = t;
    m->run = run;
    snprintf(m->base, sizeof m->base, "%s", path);
    ASSERT(!spec->on_paper || arena_measuring(run));
    if (!spec->on_paper) TRY_DONE(weights_open(&w, path));
    TRY_DONE(model_config_read(&m->cfg, path, w));
    TRY_DONE(place_in_mesh(m, spec));
    build_table(m);
    if (w) TRY_DONE(check_shapes(m, w));
    if (spec->adapter_dir) TRY_DONE(weights_open(&adapter, tmpf("%s/adapter_model.safetensors", spec->adapter_dir)));
    describe_params(m);
    TRY_DONE(trainable_setup(m, spec));
    place_params(m);
    TRY_DONE(zero_open(m));
    TRY_DONE(build_rope(m, positions));
    if (!arena_measuring(run)) {
        TRY_DONE(read_weights(m, w));
        TRY_DONE(trainable_init(m, spec, adapter));
    }
    *out = m;
    m = NULL;
done:
    weights_close(adapter);
    weights_close(w);
    model_close(m);
    return status;
}

void model_close(Model *m)
{
    if (!m) return;
    zero_close(m);
    for (int i = 0; i < m->n_param; i++) free(m->param[i].adapter);
    free(m->trained);
    free(m->shard);
    free(m->layer);
    free(m->param);
    free(m);
}
