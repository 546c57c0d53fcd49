// trainable.c decides which tensors the optimizer moves (method lora, full, freeze), allocates their f32 masters and moments, and
// gives them their first values: the base's own, an adapter directory's, or fresh ones that depend on (seed, name, index) only.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/load.h"
#include <math.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

// ---- names ----------------------------------------------------------------------------------------------------------
// "model.layers.0.mlp.up_proj.weight" -> "model.layers.0.mlp.up_proj"
static void module_name(const Param *p, char *out, size_t bytes)
{
    snprintf(out, bytes, "%s", p->name);
    char *dot = strrchr(out, '.');
    if (dot && streq(dot, ".weight")) *dot = 0;
}

// A target names a module in full or by its dotted tail, as in PEFT.
static bool target_matches(const char *target, const char *module)
{
    size_t t = strlen(target), m = strlen(module);
    if (t > m || !streq(module + m - t, target)) return false;
    return t == m || module[m - t - 1] == '.';
}

static int regex_compile(pcre2_code **out, const char *pattern, uint32_t options, const char *place)
{
    int code;
    PCRE2_SIZE at;
    *out = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &code, &at, NULL);
    if (*out) return OK;
    PCRE2_UCHAR message[128];
    pcre2_get_error_message(code, message, sizeof message);
    return fail(E_INPUT, place, NULL, "regular expression \"%s\", character %zu: %s", pattern, (size_t)at + 1,
                (char *)message);
}

static bool regex_matches(const pcre2_code *re, const char *text)
{
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(re, NULL);
    int r = pcre2_match(re, (PCRE2_SPTR)text, strlen(text), 0, 0, match, NULL);
    pcre2_match_data_free(match);
    return r >= 0;
}

// ---- the list -------------------------------------------------------------------------------------------------------
// Backward ends the head first, then the layers from the last to the first, then the embedding; vectors at its very end.
static int unit_of(const Model *m, const Param *p, bool vector)
{
    if (vector) return m->unit_vectors;
    if (p->layer >= 0) return m->cfg.L - p->layer;
    return p->id == P_HEAD ? m->unit_head : m->unit_embed;
}

static bool cut_by_rows(const Param *p)
{
    return p->cut == TP_ROWS_Q || p->cut == TP_ROWS_KV || p->cut == TP_ROWS_F || p->cut == TP_ROWS_V;
}

bool param_cut_columns(const Param *p)
{
    return p->cut == TP_COLS_Q || p->cut == TP_COLS_F;
}

// t: names, storage and shapes are set. own: it is cut like p's rows are, so that ranks hold the same only of a shared head.
static int add_trainable(Model *m, Trainable t, bool cut, GradSum sum)
{
    const int i = m->n_trained++, rank = m->mesh ? m->mesh->tensor_rank : 0;
    t.owner = rank == (t.param->cut == TP_ROWS_KV && cut ? m->cut.kv_first : cut ? rank : 0);
    t.part = part_rows(t.N, zero_part(m), zero_parts(m));
    m->trained[i] = t;
    m->shard[i] = (ShardTensor){t.N, t.K, unit_of(m, t.param, !t.packed), sum, t.owner};
    return i;
}

static void train_whole(Model *m, Param *p)
{
    Trainable t = {.param = p,
                   .packed = param_id_flags(p->id) & PF_LINEAR ? &p->packed : NULL,
                   .vec = p->vec,
                   .N = p->N,
                   .K = p->K,
                   .full_N = p->full_N,
                   .full_K = p->full_K,
                   .row0 = p->row0,
                   .col0 = p->col0};
    snprintf(t.name, sizeof t.name, "%s", p->name);
    const bool of_parts =
        m->sequence && (p->id == P_ATTN_NORM || p->id == P_MLP_NORM); // each rank sees its rows of the stream
    p->slot = add_trainable(m, t, p->cut != TP_WHOLE, of_parts ? SUM_TENSOR : p->cut == TP_ROWS_KV ? SUM_KV : SUM_DATA);
}

static int select_freeze(Model *m, const TrainSpec *spec)
{
    for (int i = 0; i < spec->n_freeze_train; i++) {
        const char *pattern = spec->freeze_train[i];
        pcre2_code *re;
        TRY(regex_compile(&re, pattern, 0, "freeze.train"));
        int hits = 0;
        for (int k = 0; k < m->n_param; k++) {
            if (!regex_matches(re, m->param[k].name)) continue;
            hits++;
            if (m->param[k].slot < 0) train_whole(m, &m->param[k]);
        }
        pcre2_code_free(re);
        if (!hits)
            return fail(E_INPUT, "freeze.train", "`attune inspect MODEL` lists the names",
                        "\"%s\" matches no parameter of the model", pattern);
    }
    return OK;
}

// Over which ranks the gradient of something that has p's rows is summed.
static GradSum sum_of_rows(const Param *p)
{
    return p->cut == TP_ROWS_KV ? SUM_KV : param_cut_columns(p) ? SUM_TENSOR : SUM_DATA;
}

static void add_magnitude(Model *m, Param *p, const char *module)
{
    dora_open(m, p);
    Trainable t = {.param = p, .vec = p->adapter->magnitude, .adapter = true, .N = p->N, .K = 1};
    t.full_N = p->full_N, t.full_K = 1, t.row0 = p->row0;
    snprintf(t.name, sizeof t.name, "%s.lora_magnitude_vector", module);
    p->adapter->slot_m = add_trainable(m, t, cut_by_rows(p), sum_of_rows(p));
}

static void add_adapter(Model *m, Param *p, const PeftConfig *c)
{
    char module[96];
    int rank;
    double alpha;
    module_name(p, module, sizeof module);
    peft_module_rank(c, module, &rank, &alpha);
    Adapter *a = p->adapter = xcalloc(1, sizeof *a);
    a->R = rank;
    a->scale = (float)(c->use_rslora ? alpha / sqrt(rank) : alpha / rank);
    a->dropout = (float)c->dropout;
    a->stream = hash64(module, strlen(module), 0);
    a->A = (Packed){.t = m->t, .N = rank, .K = p->K}; // load.c gives them their places
    a->B = (Packed){.t = m->t, .N = p->N, .K = rank};
    // Of a weight cut by rows each rank sees a part of what flows back through A, of one cut by columns a part of what flows
    // through s to B: the one that is not cut has to be summed.
    const bool rows = cut_by_rows(p), cols = param_cut_columns(p);
    Trainable A = {.param = p, .packed = &a->A, .adapter = true, .N = rank, .K = p->K};
    A.full_N = rank, A.full_K = p->full_K, A.col0 = p->col0;
    snprintf(A.name, sizeof A.name, "%s.lora_A.weight", module);
    a->slot_a = add_trainable(m, A, cols, cols ? SUM_DATA : SUM_TENSOR);
    Trainable B = {.param = p, .packed = &a->B, .adapter = true, .N = p->N, .K = rank};
    B.full_N = p->full_N, B.full_K = rank, B.row0 = p->row0;
    snprintf(B.name, sizeof B.name, "%s.lora_B.weight", module);
    a->slot_b = add_trainable(m, B, rows, sum_of_rows(p));
    if (c->use_dora) add_magnitude(m, p, module);
}

static bool all_linear(const PeftConfig *c)
{
    return c->targets && c->targets[0] && !c->targets[1] && streq(c->targets[0], "all-linear");
}

static int lora_by_names(Model *m, const PeftConfig *c)
{
    for (char **target = c->targets; *target; target++) {
        int hits = 0;
        for (int k = 0; k < m->n_param; k++) {
            Param *p = &m->param[k];
            char module[96];
            module_name(p, module, sizeof module);
            if (p->vec || !target_matches(*target, module)) continue;
            if (!(param_id_flags(p->id) & PF_ADAPT))
                return fail(E_INPUT, "lora.targets", "adapters sit on the linear layers of the blocks",
                            "\"%s\" cannot carry an adapter", *target);
            hits++;
            if (!p->adapter) add_adapter(m, p, c);
        }
        if (!hits)
            return fail(E_INPUT, "lora.targets",
                        "for this family: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
                        "\"%s\" names no linear layer of the model", *target);
    }
    return OK;
}

static int lora_by_regex(Model *m, const PeftConfig *c)
{
    pcre2_code *re;
    TRY(regex_compile(&re, c->targets_regex, PCRE2_ANCHORED | PCRE2_ENDANCHORED, "target_modules"));
    for (int k = 0; k < m->n_param; k++) {
        Param *p = &m->param[k];
        char module[96];
        module_name(p, module, sizeof module);
        if ((param_id_flags(p->id) & PF_ADAPT) && regex_matches(re, module)) add_adapter(m, p, c);
    }
    pcre2_code_free(re);
    return m->n_trained ? OK
                        : fail(E_INPUT, "target_modules", NULL, "\"%s\" matches no linear layer", c->targets_regex);
}

static int select_lora(Model *m, const PeftConfig *c)
{
    if (c->targets_regex) return lora_by_regex(m, c);
    if (!all_linear(c)) return lora_by_names(m, c);
    for (int k = 0; k < m->n_param; k++)
        if (param_id_flags(m->param[k].id) & PF_ADAPT) add_adapter(m, &m->param[k], c);
    return OK;
}

int trainable_setup(Model *m, const TrainSpec *spec)
{
    m->trained = xcalloc(3 * (size_t)m->n_param, sizeof *m->trained); // an adapter has up to three
    m->shard = xcalloc(3 * (size_t)m->n_param, sizeof *m->shard);
    if (streq(spec->method, "full"))
        for (int k = 0; k < m->n_param; k++) train_whole(m, &m->param[k]);
    else if (streq(spec->method, "freeze"))
        TRY(select_freeze(m, spec));
    else if (streq(spec->method, "lora"))
        TRY(select_lora(m, spec->lora));
    for (int i = 0; i < m->n_trained; i++) {
        Trainable *t = &m->trained[i];
        size_t bytes = (size_t)t->part.rows * (size_t)t->K * sizeof(float);
        if (t->packed)
            t->master = arena_alloc(m->run, bytes);
        else if (t->vec)
            t->master = t->vec + t->part.row0;
        if (!spec->optimizer) continue;
        t->m = arena_alloc(m->run, bytes);
        t->v = arena_alloc(m->run, bytes);
        if (arena_measuring(m->run)) continue;
        TRY(m->dev->zero(m->dev, t->m, bytes)); // a device's memory begins as anything
        TRY(m->dev->zero(m->dev, t->v, bytes));
    }
    return OK;
}

// ---- first values ---------------------------------------------------------------------------------------------------
int adapter_store(Model *m, int i, const float *src, int64_t ld)
{
    Trainable *t = &m->trained[i];
    Device *d = m->dev;
    Adapter *ad = t->param->adapter;
    m->layer[t->param->layer].norms_old = true;
    if (!t->packed) {
        ad->fresh = false;
        return d->upload(d, t->vec, src, (size_t)t->N * sizeof(float));
    }
    d->op.linear_pack(d, t->packed, 0, t->N, src, DT_F32, ld);
    return upload_rows(d, t->master, DT_F32, src + t->part.row0 * ld, DT_F32, ld, t->part.rows, t->K);
}

// PEFT's init_lora_weights=True: A from Kaiming-uniform with a = sqrt(5), that is U(-1/sqrt(K), 1/sqrt(K)); B zero. Element i of the
// whole tensor is word i % 4 of Philox(hash of the name, i / 4), whoever holds it.
static void init_lora_a(const Trainable *t, uint64_t seed, float *host)
{
    const uint64_t key = hash64(t->name, strlen(t->name), seed);
    const float bound = 1 / sqrtf((float)t->full_K);
    uint64_t block = UINT64_MAX;
    uint32_t r[4];
    for (int n = 0; n < t->N; n++)
        for (int k = 0; k < t->K; k++) {
            const uint64_t i = (uint64_t)(t->row0 + n) * (uint64_t)t->full_K + (uint64_t)(t->col0 + k);
            if (i / 4 != block) philox(key, 0, block = i / 4, r);
            *host++ = bound * (2 * u32_to_unit(r[i % 4]) - 1);
        }
}

// The slab's rows in full width.
static int read_adapter_tensor(const Trainable *t, Weights *w, float *host)
{
    const char *name = tmpf("base_model.model.%s", t->name);
    int at = weights_find(w, name);
    if (at < 0) return fail(E_INPUT, name, "is it an adapter for this model?", "the adapter lacks this tensor");
    const TensorInfo *info = weights_info(w, at);
    const long long rows = (long long)info->shape[0], cols = info->ndim > 1 ? (long long)info->shape[1] : 1;
    if (info->ndim != (t->packed ? 2 : 1) || rows != t->full_N || cols != t->full_K)
        return fail(E_INPUT, name,
                    "the adapter was made for another model, or its rank differs from its adapter_config.json",
                    "the adapter's shape is [%lld, %lld], the model needs [%d, %d]", rows, cols, t->full_N, t->full_K);
    return weights_read(w, at, t->row0, t->N, DT_F32, host);
}

static int check_adapter_names(const Model *m, const Weights *w)
{
    if (weights_count(w) == m->n_trained) return OK;
    for (int i = 0; i < weights_count(w); i++) {
        const char *name = weights_info(w, i)->name;
        bool known = false;
        for (int k = 0; k < m->n_trained && !known; k++)
            known = streq(name, tmpf("base_model.model.%s", m->trained[k].name));
        if (!known)
            return fail(E_INPUT, name, "is it an adapter for this model?",
                        "the adapter holds a tensor that fits no target");
    }
    return OK;
}

int trainable_init(Model *m, const TrainSpec *spec, Weights *adapter)
{
    int status = OK;
    size_t largest = 0;
    for (int i = 0; i < m->n_trained; i++)
        if (m->trained[i].adapter) largest = MAX(largest, (size_t)m->trained[i].N * (size_t)m->trained[i].full_K);
    float *host = xmalloc(largest * sizeof(float) + 1);
    if (adapter) TRY_DONE(check_adapter_names(m, adapter));
    for (int i = 0; i < m->n_trained; i++) {
        Trainable *t = &m->trained[i];
        if (!t->adapter) continue; // came with the weights
        if (adapter) {
            TRY_DONE(read_adapter_tensor(t, adapter, host));
            TRY_DONE(adapter_store(m, i, host + t->col0, t->full_K));
            continue;
        }
        if (!t->packed) continue; // a magnitude begins as the norm
        if (i == t->param->adapter->slot_a)
            init_lora_a(t, spec->seed, host);
        else
            memset(host, 0, (size_t)t->N * (size_t)t->K * sizeof(float));
        TRY_DONE(adapter_store(m, i, host, t->K));
    }
done:
    free(host);
    return status;
}

// ---- reading back ---------------------------------------------------------------------------------------------------
// w (K), a row of W, becomes that of W + scale·B·A, b (R) being B's; with DoRA its norm becomes the magnitude
static void merge_row(const Adapter *ad, float *w, const float *A, const float *b, int64_t K, const float *magnitude)
{
    double squares = 0;
    for (int64_t k = 0; k < K; k++) {
        double sum = 0;
        for (int r = 0; r < ad->R; r++) sum += (double)b[r] * A[r * K + k];
        w[k] = (float)(w[k] + ad->scale * sum);
        squares += (double)w[k] * w[k];
    }
    if (!magnitude || squares == 0) return;
    const double gain = *magnitude / sqrt(squares);
    for (int64_t k = 0; k < K; k++) w[k] = (float)(gain * w[k]);
}

// Rows of W with the adapter's f32 masters, in f64 per element.
static int merge_rows(const Model *m, const Param *p, int64_t row0, int64_t rows, float *w)
{
    Device *d = m->dev;
    const Adapter *ad = p->adapter;
    const bool magnitudes = ad->dora && !ad->fresh;
    const int64_t K = p->K, R = ad->R;
    float *A = xmalloc((size_t)(R * K + rows * (R + 1)) * sizeof *A), *B = A + R * K, *magnitude = B + rows * R;
    int status = d->download(d, A, m->trained[ad->slot_a].master, (size_t)(R * K) * sizeof *A);
    if (status == OK)
        status = d->download(d, B, m->trained[ad->slot_b].master + row0 * R, (size_t)(rows * R) * sizeof *B);
    if (status == OK && magnitudes)
        status = d->download(d, magnitude, ad->magnitude + row0, (size_t)rows * sizeof *magnitude);
#pragma omp parallel for
    for (int64_t n = 0; n < (status == OK ? rows : 0); n++)
        merge_row(ad, w + n * K, A, B + n * R, K, magnitudes ? magnitude + n : NULL);
    free(A);
    return status;
}

int param_read(Model *m, const Param *p, bool merge, int64_t row0, int64_t rows, DType dst_t, void *dst)
{
    Device *d = m->dev;
    ASSERT(model_whole(m));
    size_t n = (size_t)rows * (size_t)p->K;
    float *f = dst_t == DT_F32 ? dst : xmalloc(n * sizeof(float));
    int status = OK;
    if (p->vec)
        status = d->download(d, f, p->vec + row0, n * sizeof(float));
    else if (p->slot >= 0)
        status = d->download(d, f, m->trained[p->slot].master + row0 * p->K, n * sizeof(float));
    else
        d->op.linear_unpack(d, &p->packed, (int)row0, (int)rows, f, DT_F32, p->K);
    if (status == OK && merge && p->adapter) status = merge_rows(m, p, row0, rows, f);
    if (dst_t == DT_BF16)
        for (size_t i = 0; i < n; i++) ((bf16_t *)dst)[i] = f32_to_bf16(f[i]);
    if (f != dst) free(f);
    return status;
}
