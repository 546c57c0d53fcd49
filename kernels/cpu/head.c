// The vocabulary head: linear + log-softmax that never holds all logits. With h (M,C), W (V,C):
//   u = h·Wᵀ, z = cap ? cap·tanh(u/cap) : u, lse = log Σ exp z, logp = z[target] - lse, entropy = lse - Σ p z
//   dz_v = weight · ([v = target] - p_v) · (1 - (z_v/cap)²),  dh = Σ_v dz_v W_v,  dw_v += Σ_i dz_iv h_i
// FLOPs: 2·M·V·C for each of logits, dh and dw; W is read once per block of rows.
//
// The tuned ops are attention with queries h and keys and values W: they walk over W in slabs of 512 rows with an online
// maximum (Milakov & Gimelshein 2018, arXiv:1805.02867), and head_fwd_bwd sums Σ exp(z - top) W as it goes, so that nothing of
// size V is kept. V is cut into at most 16 slices, each summed by one task in slab order, and the slices are added in their
// order: where the cuts are depends on V alone, so a row's bits depend neither on threads nor on the other rows.
//
// In bf16 a probability has 8 bits. For the target that would drown what training is about, 1 - p, once p is near 1: the
// target's own term is left out of the sums and added in f32 as (1 - p) · W_target, 1 - p being the sum over the others.
#include "gemm.h"
#include <math.h>
#include <string.h>

typedef struct RowStats {
    double lse, entropy;
} RowStats;

// z (V) of one row, in doubles
static void row_logits(double *z, const void *h, DType t, const Packed *w, float softcap)
{
    for (int v = 0; v < w->N; v++) {
        double sum = 0;
        for (int c = 0; c < w->K; c++)
            sum += (double)cpu_load(h, t, c) * cpu_load(w->data, w->t, packed_index(w, v, c));
        z[v] = softcap > 0 ? softcap * tanh(sum / softcap) : sum;
    }
}

static RowStats row_stats(const double *z, int V)
{
    double top = z[0], sum = 0, mean = 0;
    for (int v = 1; v < V; v++) top = fmax(top, z[v]);
    for (int v = 0; v < V; v++) sum += exp(z[v] - top);
    double lse = top + log(sum);
    for (int v = 0; v < V; v++) mean += exp(z[v] - lse) * z[v];
    return (RowStats){lse, lse - mean};
}

void head_fwd_ref(Device *d, DType t, float *logp, float *lse, float *entropy, const void *h, const Packed *w,
                  const int32_t *target, float softcap, int M)
{
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int i = 0; i < M; i++) {
        double *z = cpu_thread_scratch(d, sizeof(double) * (size_t)w->N);
        row_logits(z, cpu_at(h, t, (int64_t)i * w->K), t, w, softcap);
        RowStats s = row_stats(z, w->N);
        logp[i] = cpu_in_shard(target[i], w->N) ? (float)(z[target[i]] - s.lse) : 0;
        lse[i] = (float)s.lse;
        if (entropy) entropy[i] = (float)s.entropy;
    }
}

// dz (V) of one row: the gradient by the logits before the cap
static void row_dz(double *z, float weight, double lse, int target, float softcap, int V)
{
    for (int v = 0; v < V; v++) {
        double slope = softcap > 0 ? 1 - z[v] / softcap * (z[v] / softcap) : 1;
        z[v] = weight * ((v == target) - exp(z[v] - lse)) * slope;
    }
}

// lse NULL: computed, and kept in f64
static void backward_ref(Device *d, DType t, void *dh, float *dw, const float *weight, const float *lse, const void *h,
                         const Packed *w, const int32_t *target, float softcap, int M)
{
    int V = w->N, C = w->K;
    double *dz = cpu_shared_scratch(d, sizeof(double) * (size_t)V * (size_t)M); // (M,V)
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int i = 0; i < M; i++) {
        double *row = dz + (int64_t)i * V;
        row_logits(row, cpu_at(h, t, (int64_t)i * C), t, w, softcap);
        row_dz(row, weight[i], lse ? lse[i] : row_stats(row, V).lse, target[i], softcap, V);
        for (int c = 0; c < C; c++) {
            double sum = 0;
            for (int v = 0; v < V; v++) sum += row[v] * cpu_load(w->data, w->t, packed_index(w, v, c));
            cpu_store(dh, t, (int64_t)i * C + c, (float)sum);
        }
    }
    if (!dw) return;
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int v = 0; v < V; v++)
        for (int c = 0; c < C; c++) {
            double sum = dw[(int64_t)v * C + c];
            for (int i = 0; i < M; i++) sum += dz[(int64_t)i * V + v] * cpu_load(h, t, (int64_t)i * C + c);
            dw[(int64_t)v * C + c] = (float)sum;
        }
}

void head_bwd_ref(Device *d, DType t, void *dh, float *dw, const float *weight, const float *lse, const void *h,
                  const Packed *w, const int32_t *target, float softcap, int M)
{
    backward_ref(d, t, dh, dw, weight, lse, h, w, target, softcap, M);
}

void head_fwd_bwd_ref(Device *d, DType t, float *logp, float *lse, void *dh, float *dw, const float *weight,
                      const void *h, const Packed *w, const int32_t *target, float softcap, int M)
{
    head_fwd_ref(d, t, logp, lse, NULL, h, w, target, softcap, M);
    backward_ref(d, t, dh, dw, weight, NULL, h, w, target, softcap, M);
}

void head_logits_ref(Device *d, DType t, float *logits, const void *h, const Packed *w, float softcap, int M)
{
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int i = 0; i < M; i++) {
        double *z = cpu_thread_scratch(d, sizeof(double) * (size_t)w->N);
        row_logits(z, cpu_at(h, t, (int64_t)i * w->K), t, w, softcap);
        for (int v = 0; v < w->N; v++) logits[(int64_t)i * w->N + v] = (float)z[v];
    }
}

// ---- tuned ----------------------------------------------------------------------------------------------
enum {
    SLAB = 512,                 // rows of W whose logits a task holds
    SLAB_PANELS = SLAB / PANEL, // the same in panels
    SLAB_LD = SLAB + PANEL,     // between rows of logits, which must not all fall on the same lines of L1
    MOST_SLICES = 16,
    MOST_ROWS = 504,                  // rows of h that share a pass over W
    Z_ROWS = 126,                     // rows of logits at a time, to stay in L2
    LEAST_ROWS = 28,                  // rows of a task, when there are threads for more tasks
    PARTIAL_BYTES = 64 * 1024 * 1024, // of all slices' partial sums, at most
};

typedef struct Head {
    const GemmKernels *k;
    DType t, words;
    const Packed *w;
    const void *h; // (M,C)
    const int32_t *target;
    float softcap;
    const float *weight, *lse; // backward: given
    bool want_sums;            // forward: also Σ exp(z - top) W
    float *dw;                 // backward: NULL or (V,C)
    // the block of rows at work, and how it is cut
    int row0, rows, parts, slices;
    bool stage_h;
    float *partial;    // (slices, rows, C)
    SoftmaxRow *state; // (slices, rows)
    size_t state_bytes;
    // scratch of a task, bytes from its beginning
    size_t z_at, p_at, panel_at, h_at, h_panel_at, dz_panels_at, bytes;
} Head;

static int head_slabs(int V)
{
    return (V + SLAB - 1) / SLAB;
}
static int head_slices(int V)
{
    return MIN(head_slabs(V), MOST_SLICES);
}

// Rows of a pass: depends on the shape alone, because dw is summed pass by pass.
static int head_rows(int V, int C)
{
    int64_t fit = PARTIAL_BYTES / ((int64_t)head_slices(V) * C * (int64_t)sizeof(float));
    return (int)MAX(LEAST_ROWS, MIN(MOST_ROWS, fit));
}

static size_t reserve(Head *p, size_t bytes)
{
    size_t at = p->bytes;
    p->bytes += ROUND_UP(bytes, CACHE_LINE);
    return at;
}

static void plan_scratch(Head *p)
{
    size_t rows = (size_t)((p->rows + p->parts - 1) / p->parts), C = (size_t)p->w->K;
    p->bytes = 0;
    p->z_at = reserve(p, MIN(rows, Z_ROWS) * SLAB_LD * sizeof(float));
    p->p_at = reserve(p, rows * SLAB_LD * dtype_size(p->words));
    p->panel_at = reserve(p, MAX(panel_bytes(p->words, (int)C), panel_bytes(p->words, SLAB)));
    p->stage_h = gemm_must_stage(p->words, p->t, (int64_t)C, (int)rows);
    size_t row = (size_t)gemm_staged_ld(p->words, (int)C) * dtype_size(p->words);
    if (p->stage_h) p->h_at = reserve(p, rows * row);
    if (!p->dw) return;
    p->h_panel_at = reserve(p, panel_bytes(p->words, (int)rows));
    p->dz_panels_at = reserve(p, SLAB_PANELS * panel_bytes(p->words, (int)rows));
}

// A task: rows [r0, r1) of the block against one slice of W.
typedef struct HeadTask {
    const Head *p;
    int slice, r0, r1;
    char *scratch;
    GemmSum h; // operand of the logits
} HeadTask;

static float *task_z(const HeadTask *k)
{
    return (float *)(k->scratch + k->p->z_at);
}
static void *task_p(const HeadTask *k, int row) // (rows, SLAB_LD) words
{
    return k->scratch + k->p->p_at + (size_t)row * SLAB_LD * dtype_size(k->p->words);
}
static uint32_t *task_panel(const HeadTask *k)
{
    return (uint32_t *)(k->scratch + k->p->panel_at);
}
static SoftmaxRow *task_state(const HeadTask *k)
{
    return k->p->state + (int64_t)k->slice * k->p->rows + k->r0;
}

static float *task_partial(const HeadTask *k)
{
    return k->p->partial + ((int64_t)k->slice * k->p->rows + k->r0) * k->p->w->K;
}

static const void *head_row(const Head *p, int row) // row of the block
{
    return cpu_at(p->h, p->t, (int64_t)(p->row0 + row) * p->w->K);
}

static void task_h(HeadTask *k)
{
    const Head *p = k->p;
    int C = p->w->K;
    const void *h = head_row(p, k->r0);
    k->h = p->stage_h ? gemm_stage(p->k, p->words, k->scratch + p->h_at, h, p->t, C, k->r1 - k->r0, C)
                      : gemm_rows(p->words, h, C, NULL, C);
}

// Logits of the task's rows [i, i + rows) by W's rows [v0, v0 + n), into z
static void slab_logits(const HeadTask *k, int i, int rows, int v0, int n)
{
    const Head *p = k->p;
    for (int c = 0; c < n; c += PANEL) {
        GemmSum sum = k->h;
        sum.a = (const char *)sum.a + i * sum.row;
        sum.panel = packed_panel(p->w, (v0 + c) / PANEL);
        if (p->words != p->w->t) {
            p->k->widen((float *)task_panel(k), sum.panel, p->w->K);
            sum.panel = task_panel(k);
        }
        GemmOut out = {.y = task_z(k) + c, .t = DT_F32, .ld = SLAB_LD, .scale = 1};
        p->k->block(p->words, &sum, 1, rows, &out, MIN(PANEL, n - c));
    }
}

// partial (rows, C) (+)= p (rows, n) · W[v0..v0+n)
static void slab_sums(const HeadTask *k, int v0, int n, bool add)
{
    const Head *p = k->p;
    int C = p->w->K;
    for (int c = 0; c < C; c += PANEL) {
        p->k->turn(task_panel(k), p->words, p->w, c / PANEL, v0 / PANEL, panel_count(v0 + n));
        GemmSum sum = gemm_rows(p->words, task_p(k, 0), SLAB_LD, task_panel(k), n);
        float *to = task_partial(k) + c;
        GemmOut out = {.y = to, .t = DT_F32, .ld = C, .scale = 1, .add = add ? to : NULL};
        p->k->block(p->words, &sum, 1, k->r1 - k->r0, &out, MIN(PANEL, C - c));
    }
}

// dw[v0..v0+n) += dzᵀ (n, rows) · h (rows, C)
static void slab_dw(const HeadTask *k, int v0, int n)
{
    const Head *p = k->p;
    int C = p->w->K, rows = k->r1 - k->r0;
    size_t dz_panel = panel_bytes(p->words, rows);
    char *dz_panels = k->scratch + p->dz_panels_at;
    uint32_t *h_panel = (uint32_t *)(k->scratch + p->h_panel_at);
    for (int v = 0; v < n; v += PANEL)
        p->k->columns((uint32_t *)(dz_panels + v / PANEL * dz_panel), p->words, cpu_at(task_p(k, 0), p->words, v),
                      p->words, SLAB_LD, rows, MIN(PANEL, n - v));
    for (int c = 0; c < C; c += PANEL) {
        int width = MIN(PANEL, C - c);
        p->k->columns(h_panel, p->words, cpu_at(head_row(p, k->r0), p->t, c), p->t, C, rows, width);
        for (int v = 0; v < n; v += PANEL) {
            GemmSum sum = gemm_turned((uint32_t *)(dz_panels + v / PANEL * dz_panel), h_panel, rows);
            float *to = p->dw + (int64_t)(v0 + v) * C + c;
            GemmOut out = {.y = to, .t = DT_F32, .ld = C, .scale = 1, .add = to};
            p->k->block(p->words, &sum, 1, MIN(PANEL, n - v), &out, width);
        }
    }
}

static void scale_row(float *x, float scale, int n)
{
    for (int i = 0; i < n; i++) x[i] *= scale;
}

static int target_in(const Head *p, int row, int v0, int n) // column of the slab, or -1
{
    int64_t column = (int64_t)p->target[p->row0 + row] - v0;
    return column >= 0 && column < n ? (int)column : -1;
}

// Adds a row's logits to its softmax
static void row_forward(const HeadTask *k, int i, float *z, int v0, int n, bool first)
{
    const Head *p = k->p;
    SoftmaxRow *s = &task_state(k)[i];
    p->k->softmax(z, p->want_sums ? task_p(k, i) : NULL, p->words, n, target_in(p, k->r0 + i, v0, n), p->softcap, s);
    if (p->want_sums && !first && s->rescale != 1)
        scale_row(task_partial(k) + (int64_t)i * p->w->K, s->rescale, p->w->K);
}

static void row_backward(const HeadTask *k, int i, float *z, int v0, int n)
{
    const Head *p = k->p;
    int row = p->row0 + k->r0 + i;
    p->k->softmax_dz(z, task_p(k, i), p->words, n, target_in(p, k->r0 + i, v0, n), p->softcap, p->weight[row],
                     p->lse[row]);
}

static void head_slab(const HeadTask *k, int v0, int n, bool first)
{
    const Head *p = k->p;
    bool backward = p->weight;
    int rows = k->r1 - k->r0;
    for (int i0 = 0, some; i0 < rows; i0 += some) {
        some = MIN(Z_ROWS, rows - i0);
        slab_logits(k, i0, some, v0, n);
        for (int i = 0; i < some; i++) {
            float *z = task_z(k) + (int64_t)i * SLAB_LD;
            if (backward)
                row_backward(k, i0 + i, z, v0, n);
            else
                row_forward(k, i0 + i, z, v0, n, first);
        }
    }
    if (backward || p->want_sums) slab_sums(k, v0, n, !first);
    if (p->dw) slab_dw(k, v0, n);
}

static void head_task(const Head *p, int slice, int part, char *scratch)
{
    HeadTask k = {.p = p, .slice = slice, .scratch = scratch};
    k.r0 = (int)((int64_t)p->rows * part / p->parts);
    k.r1 = (int)((int64_t)p->rows * (part + 1) / p->parts);
    task_h(&k);
    for (int i = 0; i < k.r1 - k.r0; i++) task_state(&k)[i] = (SoftmaxRow){.top = -INFINITY, .at = -INFINITY};
    int slabs = head_slabs(p->w->N);
    int begin = (int)((int64_t)slabs * slice / p->slices), end = (int)((int64_t)slabs * (slice + 1) / p->slices);
    for (int slab = begin; slab < end; slab++) {
        int v0 = slab * SLAB, n = MIN(SLAB, p->w->N - v0);
        head_slab(&k, v0, n, slab == begin);
    }
}

// Rows [row0, row0 + rows) as tasks; returns bytes of state and partial sums.
static size_t cut_pass(const Device *d, Head *p, int row0, int rows, bool sums)
{
    int threads = cpu_threads(d);
    p->row0 = row0;
    p->rows = rows;
    // More tasks than slices only where rows are independent of each other: dw is summed over them.
    int wanted = (2 * threads + p->slices - 1) / p->slices;
    p->parts = p->dw ? 1 : MAX(1, MIN(wanted, rows / LEAST_ROWS));
    plan_scratch(p);
    p->state_bytes = ROUND_UP((size_t)p->slices * (size_t)rows * sizeof(SoftmaxRow), CACHE_LINE);
    return p->state_bytes + (sums ? (size_t)p->slices * (size_t)rows * (size_t)p->w->K * sizeof(float) : 0);
}

// Runs all tasks of these rows.
static void head_pass(Device *d, Head *p, int row0, int rows)
{
    p->state = cpu_shared_scratch(d, cut_pass(d, p, row0, rows, p->want_sums || p->weight));
    p->partial = (float *)((char *)p->state + p->state_bytes);
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(cpu_threads(d))
    for (int slice = 0; slice < p->slices; slice++)
        for (int part = 0; part < p->parts; part++) head_task(p, slice, part, cpu_thread_scratch(d, p->bytes));
}

// sums: partial sums of the rows of W are made.
static bool head_only_notes(Device *d, Head *p, int M, bool sums)
{
    if (!cpu_only_notes(d, 0, 0)) return false;
    size_t shared = cut_pass(d, p, 0, MIN(head_rows(p->w->N, p->w->K), M), sums);
    return cpu_only_notes(d, p->bytes, shared);
}

static Head plan_head(const Device *d, DType t, const void *h, const Packed *w, const int32_t *target, float softcap)
{
    Head p = {.k = gemm_kernels(d), .t = t, .w = w, .h = h, .target = target, .softcap = softcap};
    p.words = gemm_words(p.k, t, w->t);
    p.slices = head_slices(w->N);
    return p;
}

// A row's slices brought to one maximum, in slice order; the target still apart.
typedef struct Merged {
    double top, sum, sum_z, at, lse, others; // others = 1 - p(target)
    bool here;                               // the target is among W's rows; if not, at is -inf and others 1
} Merged;

static Merged merge_row(const Head *p, int row)
{
    Merged m = {.top = -INFINITY, .at = -INFINITY, .here = cpu_in_shard(p->target[p->row0 + row], p->w->N)};
    for (int s = 0; s < p->slices; s++) {
        const SoftmaxRow *x = &p->state[(int64_t)s * p->rows + row];
        m.top = fmax(m.top, x->top);
        m.at = fmax(m.at, x->at);
    }
    for (int s = 0; s < p->slices; s++) {
        const SoftmaxRow *x = &p->state[(int64_t)s * p->rows + row];
        double scale = exp(x->top - m.top);
        m.sum += scale * x->sum;
        m.sum_z += scale * (x->sum_z + x->sum * (x->top - m.top));
    }
    double own = exp(m.at - m.top), all = m.sum + own;
    m.lse = m.top + log(all);
    m.others = m.sum / all;
    return m;
}

static double merged_logp(const Merged *m)
{
    if (!m->here) return 0;
    return m->others < 0.5 ? log1p(-m->others) : m->at - m->lse;
}

static double merged_entropy(const Merged *m) // lse - Σ p z, with z taken from the top
{
    double own = exp(m->at - m->top), all = m->sum + own;
    double own_z = own > 0 ? own * (m->at - m->top) : 0; // without a target it is minus infinity that falls away
    return log(all) - (m->sum_z + own_z) / all;
}

void head_fwd(Device *d, DType t, float *logp, float *lse, float *entropy, const void *h, const Packed *w,
              const int32_t *target, float softcap, int M)
{
    Head p = plan_head(d, t, h, w, target, softcap);
    int step = head_rows(w->N, w->K);
    if (head_only_notes(d, &p, M, false)) return;
    for (int row0 = 0; row0 < M; row0 += step) {
        head_pass(d, &p, row0, MIN(step, M - row0));
        for (int i = 0; i < p.rows; i++) {
            Merged m = merge_row(&p, i);
            logp[row0 + i] = (float)merged_logp(&m);
            lse[row0 + i] = (float)m.lse;
            if (entropy) entropy[row0 + i] = (float)merged_entropy(&m);
        }
    }
}

// dh of one row: the slices' sums, in slice order
static void sum_slices(const Head *p, int row, float *dh, const float *scale)
{
    int C = p->w->K;
    for (int s = 0; s < p->slices; s++) {
        const float *from = p->partial + ((int64_t)s * p->rows + row) * C, by = scale ? scale[s] : 1;
        for (int c = 0; c < C; c++) dh[c] += by * from[c];
    }
}

static void store_row(const Head *p, void *dh, int row, const float *from)
{
    for (int c = 0; c < p->w->K; c++) cpu_store(dh, p->t, (int64_t)(p->row0 + row) * p->w->K + c, from[c]);
}

void head_bwd(Device *d, DType t, void *dh, float *dw, const float *weight, const float *lse, const void *h,
              const Packed *w, const int32_t *target, float softcap, int M)
{
    Head p = plan_head(d, t, h, w, target, softcap);
    p.weight = weight, p.lse = lse, p.dw = dw;
    int step = head_rows(w->N, w->K);
    if (head_only_notes(d, &p, M, true)) return;
    for (int row0 = 0; row0 < M; row0 += step) {
        head_pass(d, &p, row0, MIN(step, M - row0));
#pragma omp parallel for num_threads(cpu_threads(d))
        for (int i = 0; i < p.rows; i++) {
            float *row = cpu_thread_scratch(d, sizeof *row * (size_t)w->K);
            memset(row, 0, sizeof *row * (size_t)w->K);
            sum_slices(&p, i, row, NULL);
            store_row(&p, dh, i, row);
        }
    }
}

// dh = weight · ((1 - p) · slope · W_target - Σ over the others of p · slope · W)
static void one_pass_dh(const Head *p, int row, const Merged *m, float weight, void *dh, float *scratch)
{
    int C = p->w->K;
    double all = exp(m->lse - m->top), cap = p->softcap;
    float scale[MOST_SLICES];
    for (int s = 0; s < p->slices; s++)
        scale[s] = (float)(-weight * exp(p->state[(int64_t)s * p->rows + row].top - m->top) / all);
    if (m->here) {
        cpu_unpack_rows(p->w, p->target[p->row0 + row], 1, scratch, DT_F32, C);
        scale_row(scratch, (float)(weight * m->others * (cap > 0 ? 1 - m->at / cap * (m->at / cap) : 1)), C);
    } else {
        memset(scratch, 0, (size_t)C * sizeof *scratch);
    }
    sum_slices(p, row, scratch, scale);
    store_row(p, dh, row, scratch);
}

void head_fwd_bwd(Device *d, DType t, float *logp, float *lse, void *dh, float *dw, const float *weight, const void *h,
                  const Packed *w, const int32_t *target, float softcap, int M)
{
    if (dw) { // dz must be known when its slab of dw is summed: two passes
        head_fwd(d, t, logp, lse, NULL, h, w, target, softcap, M);
        head_bwd(d, t, dh, dw, weight, lse, h, w, target, softcap, M);
        return;
    }
    Head p = plan_head(d, t, h, w, target, softcap);
    p.want_sums = true;
    int step = head_rows(w->N, w->K);
    if (head_only_notes(d, &p, M, true)) return;
    for (int row0 = 0; row0 < M; row0 += step) {
        head_pass(d, &p, row0, MIN(step, M - row0));
#pragma omp parallel for num_threads(cpu_threads(d))
        for (int i = 0; i < p.rows; i++) {
            Merged m = merge_row(&p, i);
            logp[row0 + i] = (float)merged_logp(&m);
            lse[row0 + i] = (float)m.lse;
            one_pass_dh(&p, i, &m, weight[row0 + i], dh, cpu_thread_scratch(d, sizeof(float) * (size_t)w->K));
        }
    }
}

void head_logits(Device *d, DType t, float *logits, const void *h, const Packed *w, float softcap, int M)
{
    gemm_product(d, &(GemmProduct){.t = t,
                                   .T = M,
                                   .columns = w->N,
                                   .terms = 1,
                                   .term = {{h, w->K, w}},
                                   .out = {.y = logits, .t = DT_F32, .ld = w->N, .scale = 1}});
    if (softcap <= 0) return;
    int64_t n = (int64_t)M * w->N;
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int64_t i = 0; i < n; i++) logits[i] = softcap * tanhf(logits[i] / softcap);
}
