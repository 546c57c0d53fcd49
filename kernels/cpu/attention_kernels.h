// Inner loops of attention.c, spelled once for all instruction sets. Formulas stand there.
//
// Both directions are small matrix products over blocks of queries and keys, so that scratch depends on D alone, however
// long the rows. Everything multiplied is moved in words of 32 bits: an f32, or (where the machine multiplies bf16) a pair of
// bf16 neighbours along the sum. A tile is TILE_ROWS rows times a panel of TILE_COLUMNS columns, accumulated in registers:
//     tile[i][c] (+)= sum over words w of a[i][w] . panel[w][c]
// bf16 tensors become f32 words where the machine lacks the instruction.
//
// Forward, per key block: S = Q K' for a tile of rows, softmax with the running maximum, O = O corr + P V. A row counts
// (query, head of the group), so that the heads of a group share the packed keys.
// Backward, per (query block, key block): tiles of TILE_ROWS keys give S' and dP', from them P' and dS'; dV += P' dO and
// dK += dS' Q at once; dS is kept for the block in pairs of keys, and gives dQ += dS K at its end. Five products, every sum
// owned by one task.
#pragma once
#include "isa_kernels.h"
#include "vec.h"

#define LOG2_E 1.44269504f
#define LN_2   0.693147181f

enum {
    TILE_ROWS = VL == 16 ? 14 : 6, // accumulators are 2 TILE_ROWS registers; even, because keys go in pairs
    FEW_ROWS = 4,                  // of a decoded token, and of what is left at the end
    TILE_COLUMNS = 2 * VL,
    FWD_ROWS = ATTN_TASK_ROWS,
    FWD_KEYS = 512,
    BWD_QUERIES = 256,
    BWD_KEYS = (512 + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS,
};

// ---- words ----------------------------------------------------------------------------------------------------------
static DType word_type(DType t)
{
    return VL == 16 ? t : DT_F32;
} // what a word holds when tensors are t
static int words_of(DType e, int n)
{
    return e == DT_BF16 ? (n + 1) / 2 : n;
}
static int row_words(DType e, int D)
{
    return ROUND_UP(words_of(e, D), VL);
} // stride of a row of D, for transpose_words

// Row of D elements of type t into words.
static void load_row(uint32_t *row, DType t, const void *x, int64_t at, int D)
{
    DType e = word_type(t);
    if (t == e) {
        memcpy(row, cpu_at(x, t, at), (size_t)D * dtype_size(t));
        return;
    }
    EACH_VECTOR(c, n, D) store_some(DT_F32, row, c, load_some(DT_BF16, x, at + c, n), n);
}

static void zero_rows(uint32_t *row, int64_t count, int ld)
{
    memset(row, 0, (size_t)count * ld * sizeof *row);
}

// panels of columns: column j is row j of x, the sum runs along the row. rows: a multiple of TILE_COLUMNS.
static void pack_rows_as_columns(uint32_t *panels, const uint32_t *x, int rows, int ld)
{
    for (int j = 0; j < rows; j += TILE_COLUMNS, panels += (int64_t)TILE_COLUMNS * ld)
        for (int half = 0; half < TILE_COLUMNS; half += VL)
            for (int w = 0; w < ld; w += VL)
                transpose_words(panels + (int64_t)w * TILE_COLUMNS + half, TILE_COLUMNS,
                                x + (int64_t)(j + half) * ld + w, ld);
}

// panels whose columns are the D columns of x, the sum runs along the rows (pairs of rows make a word); words of a panel:
// words_of(e, rows). Columns from D to the panel's end hold rubbish, and so do the columns of results that it reaches: never
// stored.
static void pack_columns(DType e, uint32_t *panels, const uint32_t *x, int rows, int ld, int D)
{
    int words = words_of(e, rows);
    for (int c = 0; c < D; c += VL) {
        uint32_t *to = panels + (int64_t)(c / TILE_COLUMNS) * TILE_COLUMNS * words + c % TILE_COLUMNS;
        for (int w = 0; w < words; w++, to += TILE_COLUMNS)
            if (e == DT_BF16) {
                const bf16_t *a = (const bf16_t *)(x + (int64_t)2 * w * ld) + c, *b = a + 2 * (int64_t)ld;
                vu low = vu_of_vh((vh) * (const vh_mem *)a);
                vu high = vu_of_vh((vh) * (const vh_mem *)b);
                store_words(to, low | high << 16);
            } else {
                store_words(to, load_words(x + (int64_t)w * ld + c));
            }
    }
}

// ---- the tile -------------------------------------------------------------------------------------------------------
INLINE vf multiply_add(const DType e, vf sum, uint32_t a, vu b)
{
#if VL == 16
    if (e == DT_BF16) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
#endif
    (void)e;
    return vf_fma((vf)vu_set(a), (vf)b, sum);
}

// Word (i, w) of the left side lies at a[i * row_step + w * word_step].
INLINE void tile_as(const DType e, const int m, float *y, int64_t ldy, bool add, const uint32_t *a, int64_t row_step,
                    int64_t word_step, const uint32_t *panel, int words)
{
    vf sum[TILE_ROWS][2];
    UNROLL
    for (int i = 0; i < m; i++) {
        sum[i][0] = add ? load_f32(y + i * ldy) : vf_set(0);
        sum[i][1] = add ? load_f32(y + i * ldy + VL) : vf_set(0);
    }
    for (int w = 0; w < words; w++, a += word_step, panel += TILE_COLUMNS) {
        vu left = load_words(panel), right = load_words(panel + VL);
        UNROLL
        for (int i = 0; i < m; i++) {
            sum[i][0] = multiply_add(e, sum[i][0], a[i * row_step], left);
            sum[i][1] = multiply_add(e, sum[i][1], a[i * row_step], right);
        }
    }
    UNROLL
    for (int i = 0; i < m; i++) {
        store_f32(y + i * ldy, sum[i][0]);
        store_f32(y + i * ldy + VL, sum[i][1]);
    }
}

// Kept out of line, so that the sums stay in registers.
#define TILE(name, e, rows, row_step, word_step)                                                                       \
    static __attribute__((noinline)) void name(float *y, int64_t ldy, bool add, const uint32_t *a, int64_t ld,         \
                                               const uint32_t *panel, int words)                                       \
    {                                                                                                                  \
        (void)ld;                                                                                                      \
        tile_as(e, rows, y, ldy, add, a, row_step, word_step, panel, words);                                           \
    }
TILE(tile_rows_f32, DT_F32, TILE_ROWS, ld, 1)
TILE(tile_few_f32, DT_F32, FEW_ROWS, ld, 1)
TILE(tile_columns_f32, DT_F32, TILE_ROWS, 1, ld)
#if VL == 16
TILE(tile_rows_bf16, DT_BF16, TILE_ROWS, ld, 1)
TILE(tile_few_bf16, DT_BF16, FEW_ROWS, ld, 1)
TILE(tile_columns_bf16, DT_BF16, TILE_ROWS, 1, ld)
#else
#define tile_rows_bf16    tile_rows_f32
#define tile_few_bf16     tile_few_f32
#define tile_columns_bf16 tile_columns_f32
#endif
typedef void TileFunction(float *, int64_t, bool, const uint32_t *, int64_t, const uint32_t *, int);

// Several panels that lie `panel_words` apart beside each other: y (TILE_ROWS, panels * TILE_COLUMNS).
INLINE void tile_run(TileFunction *tile, float *y, int64_t ldy, bool add, const uint32_t *a, int64_t ld,
                     const uint32_t *panel, int64_t panel_words, int words, int panels)
{
    for (int p = 0; p < panels; p++) tile(y + p * TILE_COLUMNS, ldy, add, a, ld, panel + p * panel_words, words);
}

// ---- softmax --------------------------------------------------------------------------------------------------------
static void fill(float *x, int from, int to, float value)
{
    for (int c = from; c < to; c++) x[c] = value;
}

// Elements of type e that have grown over the row x of f32.
static void zero_elements(DType e, float *x, int from, int to)
{
    size_t size = e == DT_BF16 ? 2 : 4;
    if (from < to) memset((char *)x + (size_t)from * size, 0, (size_t)(to - from) * size);
}

// z -> cap tanh(z / cap) for z = scale x, in place; slope (unless NULL) gets the derivative by z.
static void softcap_row(float *x, float *slope, int from, int to, float scale, float cap)
{
    for (int c = from; c < to; c += VL) {
        vf th = vf_tanh(load_f32(x + c) * vf_set(scale / cap));
        store_f32(x + c, th * vf_set(cap));
        if (slope) store_f32(slope + c, vf_fma(-th, th, vf_set(1)));
    }
}

// Powers of two: exp(score) = 2^(rate x), x what softcap_row or the product left.
static float score_rate(const AttnShape *a)
{
    return (a->softcap > 0 ? 1 : a->scale) * LOG2_E;
}

typedef struct RowState { // of the running softmax, in powers of two
    float top, sum;
} RowState;

// p = 2^(rate x - top), in place: words of type e grow over the f32 that they come from. Returns the sum.
INLINE float exp_row(const DType e, float *x, int from, int to, float rate, float top)
{
    vf sum = vf_set(0), k = vf_set(rate), shift = vf_set(-top);
    for (int c = from; c < to; c += VL) {
        vf p = vf_exp2(vf_fma(load_f32(x + c), k, shift));
        sum += p;
        store_vf(e, x, c, p);
    }
    return vf_sum(sum);
}

// Scores x [from, to) become probabilities (words of type e), those outside [see_from, see_to) zero. from and to are
// multiples of TILE_COLUMNS. Returns what earlier sums of this row are to be multiplied by.
static float softmax_row(DType e, RowState *row, float *x, int from, int to, int see_from, int see_to, float rate)
{
    if (see_from >= see_to) {
        zero_elements(e, x, from, to);
        return 1;
    }
    fill(x, from, see_from, -INFINITY);
    fill(x, see_to, to, -INFINITY);
    vf high = load_f32(x + from);
    for (int c = from + VL; c < to; c += VL) high = vf_max(high, load_f32(x + c));
    float top = fmaxf(row->top, vf_highest(high) * rate);
    float sum = FOR_TYPE(e, exp_row(DT_BF16, x, from, to, rate, top), exp_row(DT_F32, x, from, to, rate, top));
    float corr = exp2f(row->top - top);
    row->sum = row->sum * corr + sum;
    row->top = top;
    return corr;
}

// ---- forward --------------------------------------------------------------------------------------------------------
typedef struct Forward { // one task
    const AttnJob *job;
    DType e;
    int s, kv_head, group, row0, rows, off;
    int ld, columns;         // words of a row; f32 columns of an output row
    uint32_t *q, *keys, *kt; // rows (FWD_ROWS + TILE_ROWS, ld), block of k or v (FWD_KEYS, ld), panels of k
    uint32_t *vp;            // panels of v
    float *score, *out;      // (TILE_ROWS, FWD_KEYS), (FWD_ROWS + TILE_ROWS, columns)
    RowState *row;
} Forward;

static int64_t fwd_carve(Forward *f, char *scratch) // returns bytes
{
    enum { Q_ROWS = FWD_ROWS + TILE_ROWS };
    int64_t used = 0;
#define CARVE(p, count)                                                                                                \
    do {                                                                                                               \
        (p) = (void *)(scratch + used);                                                                                \
        used += ROUND_UP((int64_t)(count) * (int64_t)sizeof *(p), CACHE_LINE);                                         \
    } while (0)
    CARVE(f->q, Q_ROWS * f->ld);
    CARVE(f->keys, FWD_KEYS * f->ld + TILE_COLUMNS);
    CARVE(f->kt, FWD_KEYS * f->ld);
    CARVE(f->vp, FWD_KEYS * f->columns);
    CARVE(f->score, TILE_ROWS * FWD_KEYS);
    CARVE(f->out, Q_ROWS * f->columns);
    CARVE(f->row, Q_ROWS);
    return used;
}

static size_t attn_fwd_scratch(DType t, int D)
{
    DType e = word_type(t);
    Forward f = {.ld = row_words(e, D), .columns = attn_columns(D)};
    return (size_t)fwd_carve(&f, NULL);
}

static int fwd_query(const Forward *f, int r)
{
    return (f->row0 + r) / f->group;
}
static int fwd_head(const Forward *f, int r)
{
    return f->kv_head * f->group + (f->row0 + r) % f->group;
}

static int fwd_see_to(const Forward *f, int r)
{
    return fwd_query(f, r) + f->off + 1;
}
static int fwd_see_from(const Forward *f, int r)
{
    int window = f->job->a->window;
    return window ? MAX(fwd_see_to(f, r) - window, 0) : 0;
}

static void fwd_load_queries(Forward *f)
{
    const AttnJob *j = f->job;
    for (int r = 0; r < f->rows; r++) {
        int64_t at = (j->a->q_start[f->s] + fwd_query(f, r)) * j->ldq + (int64_t)fwd_head(f, r) * j->a->D;
        load_row(f->q + (int64_t)r * f->ld, j->t, j->q, at, j->a->D);
        f->row[r] = (RowState){-INFINITY, 0};
    }
    zero_rows(f->q + (int64_t)f->rows * f->ld, TILE_ROWS, f->ld);
}

static void fwd_load_keys(Forward *f, const void *x, int k0, int k1)
{
    const AttnJob *j = f->job;
    int64_t at = (j->a->k_start[f->s] + k0) * j->ldkv + (int64_t)f->kv_head * j->a->D;
    for (int i = 0; i < k1 - k0; i++) load_row(f->keys + (int64_t)i * f->ld, j->t, x, at + i * j->ldkv, j->a->D);
    zero_rows(f->keys + (int64_t)(k1 - k0) * f->ld, ROUND_UP(k1 - k0, TILE_COLUMNS) - (k1 - k0), f->ld);
}

static void fwd_pack(Forward *f, int k0, int k1)
{
    int rows = ROUND_UP(k1 - k0, TILE_COLUMNS);
    fwd_load_keys(f, f->job->k, k0, k1);
    pack_rows_as_columns(f->kt, f->keys, rows, f->ld);
    fwd_load_keys(f, f->job->v, k0, k1);
    pack_columns(f->e, f->vp, f->keys, rows, f->ld, f->job->a->D);
}

static void fwd_scale_out(float *out, float corr, int columns)
{
    for (int c = 0; c < columns; c += VL) store_f32(out + c, load_f32(out + c) * vf_set(corr));
}

static void fwd_store_row(const Forward *f, int r, const float *out)
{
    const AttnJob *j = f->job;
    int64_t query = j->a->q_start[f->s] + fwd_query(f, r), head = fwd_head(f, r);
    const RowState *row = &f->row[r];
    vf k = vf_set(1 / row->sum);
    EACH_VECTOR(c, n, j->a->D)
    store_some(j->t, j->o, query * j->ldo + head * j->a->D + c, load_f32(out + c) * k, n);
    if (j->lse) j->lse[head * j->TQ + query] = (row->top + log2f(row->sum)) * LN_2;
}

static TileFunction *fwd_tile_function(DType e, int rows)
{
    if (rows <= FEW_ROWS) return FOR_TYPE(e, tile_few_bf16, tile_few_f32);
    return FOR_TYPE(e, tile_rows_bf16, tile_rows_f32);
}

// Rows [r, r + n) against the packed keys [k0, k1).
static void fwd_tile(Forward *f, int r, int n, int k0, int k1)
{
    const AttnShape *a = f->job->a;
    int rows = ROUND_UP(k1 - k0, TILE_COLUMNS), see_to = MIN(fwd_see_to(f, r + n - 1), k1) - k0;
    int from = MAX(fwd_see_from(f, r) - k0, 0) / TILE_COLUMNS * TILE_COLUMNS, to = ROUND_UP(see_to, TILE_COLUMNS);
    if (from >= see_to) return;
    bool first = fwd_see_from(f, r) >= k0, last = fwd_see_to(f, r + n - 1) <= k1;
    TileFunction *tile = fwd_tile_function(f->e, n);
    // A tile done in one go uses the first rows of `out`, which are in cache: those of tile 0 are done by then.
    float *out = f->out + (first && last ? 0 : (int64_t)r * f->columns);
    tile_run(tile, f->score + from, FWD_KEYS, false, f->q + (int64_t)r * f->ld, f->ld, f->kt + (int64_t)from * f->ld,
             (int64_t)TILE_COLUMNS * f->ld, words_of(f->e, a->D), (to - from) / TILE_COLUMNS);
    for (int i = 0; i < n; i++) { // rows beyond n have zero queries, thus zero words
        float *x = f->score + i * FWD_KEYS;
        if (a->softcap > 0) softcap_row(x, NULL, from, to, a->scale, a->softcap);
        float corr = softmax_row(f->e, &f->row[r + i], x, from, to, MAX(fwd_see_from(f, r + i) - k0, from),
                                 MIN(fwd_see_to(f, r + i) - k0, see_to), score_rate(a));
        if (!first) fwd_scale_out(out + i * f->columns, corr, f->columns);
    }
    int words = words_of(f->e, rows), word0 = words_of(f->e, from);
    tile_run(tile, out, f->columns, !first, (const uint32_t *)f->score + word0, FWD_KEYS,
             f->vp + (int64_t)word0 * TILE_COLUMNS, (int64_t)words * TILE_COLUMNS, words_of(f->e, to) - word0,
             ROUND_UP(a->D, TILE_COLUMNS) / TILE_COLUMNS);
    for (int i = 0; last && i < n; i++) fwd_store_row(f, r + i, out + i * f->columns);
}

static void attn_fwd_task(const AttnJob *job, int s, int kv_head, int row0, int rows, void *scratch)
{
    const AttnShape *a = job->a;
    DType e = word_type(job->t);
    Forward f = {.job = job,
                 .e = e,
                 .s = s,
                 .kv_head = kv_head,
                 .group = a->NH / a->KV,
                 .row0 = row0,
                 .rows = rows,
                 .off = a->k_len[s] - a->q_len[s],
                 .ld = row_words(e, a->D),
                 .columns = attn_columns(a->D)};
    fwd_carve(&f, scratch);
    fwd_load_queries(&f);
    int end = fwd_see_to(&f, rows - 1);
    for (int k0 = fwd_see_from(&f, 0); k0 < end; k0 += FWD_KEYS) {
        int k1 = MIN(k0 + FWD_KEYS, end);
        fwd_pack(&f, k0, k1);
        for (int r = 0; r < rows; r += TILE_ROWS) fwd_tile(&f, r, MIN(TILE_ROWS, rows - r), k0, k1);
    }
}

// ---- backward -------------------------------------------------------------------------------------------------------
typedef struct Backward { // one task
    const AttnJob *job;
    DType e;
    int s, head, off;
    int ld, columns;          // words of a row; f32 columns of an output row
    int q0, q1, k0;           // block of queries; first key of the block of keys
    uint32_t *rows;           // (BWD_QUERIES, ld) on their way into panels
    uint32_t *qt, *dt;        // panels of q and dout, columns are queries
    uint32_t *qc, *dc;        // panels of q and dout, columns are channels
    uint32_t *k, *v, *kc;     // (BWD_KEYS, ld) rows; panels of k, columns are channels
    uint32_t *pairs;          // dS: (words_of(BWD_KEYS), PAIRS_LD), a word is a query and a pair of keys
    float *p, *ds, *slope;    // (TILE_ROWS, BWD_QUERIES) of a tile of keys; p and ds become words in place
    float *dq, *lse2, *delta; // (BWD_QUERIES + TILE_ROWS, columns), (BWD_QUERIES) each
    float *dkv;               // (k_len, 2, columns), the task's result
} Backward;

enum { PAIRS_LD = BWD_QUERIES + TILE_ROWS };

static int64_t bwd_carve(Backward *b, char *scratch) // returns bytes
{
    int64_t used = 0;
    CARVE(b->rows, BWD_QUERIES * b->ld + TILE_COLUMNS);
    CARVE(b->qt, BWD_QUERIES * b->ld);
    CARVE(b->dt, BWD_QUERIES * b->ld);
    CARVE(b->qc, BWD_QUERIES * b->columns);
    CARVE(b->dc, BWD_QUERIES * b->columns);
    CARVE(b->k, BWD_KEYS * b->ld + TILE_COLUMNS);
    CARVE(b->v, BWD_KEYS * b->ld);
    CARVE(b->kc, BWD_KEYS * b->columns);
    CARVE(b->pairs, words_of(b->e, BWD_KEYS) * PAIRS_LD);
    CARVE(b->p, TILE_ROWS * BWD_QUERIES);
    CARVE(b->ds, TILE_ROWS * BWD_QUERIES);
    CARVE(b->slope, TILE_ROWS * BWD_QUERIES);
    CARVE(b->dq, (BWD_QUERIES + TILE_ROWS) * b->columns);
    CARVE(b->lse2, BWD_QUERIES);
    CARVE(b->delta, BWD_QUERIES);
    return used;
}

static size_t attn_bwd_scratch(DType t, int D)
{
    DType e = word_type(t);
    Backward b = {.e = e, .ld = row_words(e, D), .columns = attn_columns(D)};
    return (size_t)bwd_carve(&b, NULL);
}

static int bwd_see_to(const Backward *b, int query)
{
    return query + b->off + 1;
} // keys that a query sees
static int bwd_see_from(const Backward *b, int query)
{
    int window = b->job->a->window;
    return window ? MAX(query + b->off + 1 - window, 0) : 0;
}
static int bwd_seen_from(const Backward *b, int key)
{
    return MAX(key - b->off, 0);
} // queries that see a key
static int bwd_seen_to(const Backward *b, int key)
{
    const AttnShape *a = b->job->a;
    return a->window ? MIN(key - b->off + a->window, a->q_len[b->s]) : a->q_len[b->s];
}

// Rows of q or dout, padded with zeros, as panels both ways.
static void bwd_pack_queries(Backward *b, const void *x, int64_t ld, uint32_t *as_columns, uint32_t *channels)
{
    const AttnJob *j = b->job;
    int D = j->a->D, n = b->q1 - b->q0, rows = ROUND_UP(n, TILE_COLUMNS);
    int64_t at = (j->a->q_start[b->s] + b->q0) * ld + (int64_t)b->head * D;
    for (int i = 0; i < n; i++) load_row(b->rows + (int64_t)i * b->ld, j->t, x, at + i * ld, D);
    zero_rows(b->rows + (int64_t)n * b->ld, rows - n, b->ld);
    pack_rows_as_columns(as_columns, b->rows, rows, b->ld);
    pack_columns(b->e, channels, b->rows, rows, b->ld, D);
}

static void bwd_load_queries(Backward *b)
{
    const AttnJob *j = b->job;
    int D = j->a->D, n = b->q1 - b->q0;
    bwd_pack_queries(b, j->q, j->ldq, b->qt, b->qc);
    bwd_pack_queries(b, j->dout, j->ldo, b->dt, b->dc);
    for (int i = 0; i < ROUND_UP(n, TILE_COLUMNS); i++) {
        b->lse2[i] = INFINITY; // beyond the end: p = 0
        b->delta[i] = 0;
        if (i >= n) continue;
        int64_t query = j->a->q_start[b->s] + b->q0 + i, at = query * j->ldo + (int64_t)b->head * D;
        vf sum = vf_set(0);
        EACH_VECTOR(c, w, D)
        sum = vf_fma(load_some(j->t, j->o, at + c, w), load_some(j->t, j->dout, at + c, w), sum);
        b->delta[i] = vf_sum(sum);
        b->lse2[i] = j->lse[(int64_t)b->head * j->TQ + query] * LOG2_E;
    }
}

// Keys [from, to) of the block; zeros up to the end of the last tile.
static void bwd_load_keys(Backward *b, int from, int to)
{
    const AttnJob *j = b->job;
    const AttnShape *a = j->a;
    int64_t at = a->k_start[b->s] * j->ldkv + (int64_t)(b->head / (a->NH / a->KV)) * a->D;
    for (int key = from; key < to; key++) {
        load_row(b->k + (int64_t)(key - b->k0) * b->ld, j->t, j->k, at + key * j->ldkv, a->D);
        load_row(b->v + (int64_t)(key - b->k0) * b->ld, j->t, j->v, at + key * j->ldkv, a->D);
    }
    int end = ROUND_UP(to - b->k0, TILE_ROWS);
    zero_rows(b->k + (int64_t)(to - b->k0) * b->ld, end - (to - b->k0), b->ld);
    zero_rows(b->v + (int64_t)(to - b->k0) * b->ld, end - (to - b->k0), b->ld);
    pack_columns(b->e, b->kc, b->k, end, b->ld, a->D);
}

INLINE void bwd_exp_row(const DType e, float *x, const float *lse2, int from, int to, float rate)
{
    for (int c = from; c < to; c += VL)
        store_vf(e, x, c, vf_exp2(vf_fma(load_f32(x + c), vf_set(rate), -load_f32(lse2 + c))));
}

// Row i of the tile: scores of a key against queries [from, to) of the block become probabilities.
static void bwd_probabilities(Backward *b, int i, int key, int key_end, int from, int to)
{
    const AttnShape *a = b->job->a;
    float *x = b->p + i * BWD_QUERIES;
    int see_from = MIN(MAX(bwd_seen_from(b, key) - b->q0, from), to);
    int see_to = key < key_end ? MAX(MIN(bwd_seen_to(b, key) - b->q0, to), see_from) : see_from;
    if (a->softcap > 0) softcap_row(x, b->slope + i * BWD_QUERIES, from, to, a->scale, a->softcap);
    FOR_TYPE(b->e, bwd_exp_row(DT_BF16, x, b->lse2, from, to, score_rate(a)),
             bwd_exp_row(DT_F32, x, b->lse2, from, to, score_rate(a)));
    zero_elements(b->e, x, from, see_from);
    zero_elements(b->e, x, see_to, to);
}

// Rows i and i + 1 of the tile: dP becomes dS = P (dP - delta) [slope], in `ds` and in `pairs`.
INLINE void bwd_score_gradients(const DType e, Backward *b, int i, uint32_t *pairs, int from, int to, bool softcap)
{
    float *x = b->ds + i * BWD_QUERIES, *y = x + BWD_QUERIES;
    const float *p = b->p + i * BWD_QUERIES, *slope = b->slope + i * BWD_QUERIES;
    for (int c = from; c < to; c += VL) {
        vf delta = load_f32(b->delta + c);
        vf u = load_vf(e, p, c) * (load_f32(x + c) - delta);
        vf v = load_vf(e, p + BWD_QUERIES, c) * (load_f32(y + c) - delta);
        if (softcap) {
            u *= load_f32(slope + c);
            v *= load_f32(slope + BWD_QUERIES + c);
        }
        store_vf(e, x, c, u);
        store_vf(e, y, c, v);
        if (e == DT_BF16) {
            vu low = vu_of_vh(bf16_of_vf(u)), high = vu_of_vh(bf16_of_vf(v));
            store_words(pairs + c, low | high << 16);
        } else {
            store_words(pairs + c, (vu)u);
            store_words(pairs + PAIRS_LD + c, (vu)v);
        }
    }
}

// dQ reads whole tiles of queries, which may begin before `from` or end after `to`.
static void bwd_pad_pairs(uint32_t *pairs, int words, int from, int to)
{
    int before = MAX(from - TILE_ROWS, 0), after = MIN(to + TILE_ROWS, PAIRS_LD);
    for (int w = 0; w < words; w++, pairs += PAIRS_LD) {
        memset(pairs + before, 0, (size_t)(from - before) * sizeof *pairs);
        memset(pairs + to, 0, (size_t)(after - to) * sizeof *pairs);
    }
}

// Keys [key, key + TILE_ROWS) against the block of queries; keys from key_end on are padding.
static void bwd_key_tile(Backward *b, int key, int key_end)
{
    const AttnShape *a = b->job->a;
    int queries = ROUND_UP(b->q1 - b->q0, TILE_COLUMNS), last = key + TILE_ROWS - 1;
    int from = MAX(bwd_seen_from(b, key) - b->q0, 0) / TILE_COLUMNS * TILE_COLUMNS;
    int to = MIN(ROUND_UP(bwd_seen_to(b, last) - b->q0, TILE_COLUMNS), queries);
    if (from >= to) return;
    TileFunction *tile = b->e == DT_BF16 ? tile_rows_bf16 : tile_rows_f32;
    int depth = words_of(b->e, a->D), panels = (to - from) / TILE_COLUMNS;
    int64_t row = (int64_t)(key - b->k0) * b->ld, at = (int64_t)from * b->ld, next = (int64_t)TILE_COLUMNS * b->ld;

    tile_run(tile, b->p + from, BWD_QUERIES, false, b->k + row, b->ld, b->qt + at, next, depth, panels);
    for (int i = 0; i < TILE_ROWS; i++) bwd_probabilities(b, i, key + i, key_end, from, to);
    tile_run(tile, b->ds + from, BWD_QUERIES, false, b->v + row, b->ld, b->dt + at, next, depth, panels);
    uint32_t *pairs = b->pairs + (int64_t)words_of(b->e, key - b->k0) * PAIRS_LD;
    for (int i = 0; i < TILE_ROWS; i += 2) {
        uint32_t *to_pairs = pairs + (int64_t)words_of(b->e, i) * PAIRS_LD;
        FOR_TYPE(b->e, bwd_score_gradients(DT_BF16, b, i, to_pairs, from, to, a->softcap > 0),
                 bwd_score_gradients(DT_F32, b, i, to_pairs, from, to, a->softcap > 0));
    }
    bwd_pad_pairs(pairs, words_of(b->e, TILE_ROWS), from, to);

    bool add = bwd_seen_from(b, key) < b->q0; // an earlier block of queries has stored
    int word0 = words_of(b->e, from), words = words_of(b->e, to) - word0,
        wide = ROUND_UP(a->D, TILE_COLUMNS) / TILE_COLUMNS;
    int64_t channels = (int64_t)words_of(b->e, queries) * TILE_COLUMNS;
    float *dk = b->dkv + (int64_t)key * 2 * b->columns, *dv = dk + b->columns;
    tile_run(tile, dv, 2 * b->columns, add, (const uint32_t *)b->p + word0, BWD_QUERIES, b->dc + word0 * TILE_COLUMNS,
             channels, words, wide);
    tile_run(tile, dk, 2 * b->columns, add, (const uint32_t *)b->ds + word0, BWD_QUERIES, b->qc + word0 * TILE_COLUMNS,
             channels, words, wide);
}

// dq of the block of queries (+)= dS K over keys [from, to) of the block of keys.
static void bwd_query_gradients(Backward *b, int from, int to)
{
    TileFunction *tile = b->e == DT_BF16 ? tile_columns_bf16 : tile_columns_f32;
    int wide = ROUND_UP(b->job->a->D, TILE_COLUMNS) / TILE_COLUMNS;
    int64_t channels = (int64_t)words_of(b->e, ROUND_UP(to - b->k0, TILE_ROWS)) * TILE_COLUMNS;
    for (int q = b->q0; q < b->q1; q += TILE_ROWS) {
        int begin = MAX(bwd_see_from(b, q), from), end = MIN(bwd_see_to(b, MIN(q + TILE_ROWS, b->q1) - 1), to);
        if (begin >= end) continue;
        int word0 = b->e == DT_BF16 ? (begin - b->k0) / 2 : begin - b->k0;
        tile_run(tile, b->dq + (int64_t)(q - b->q0) * b->columns, b->columns, bwd_see_from(b, q) < b->k0,
                 b->pairs + (int64_t)word0 * PAIRS_LD + q - b->q0, PAIRS_LD, b->kc + (int64_t)word0 * TILE_COLUMNS,
                 channels, words_of(b->e, end - b->k0) - word0, wide);
    }
}

static void bwd_query_block(Backward *b)
{
    const AttnJob *j = b->job;
    const AttnShape *a = j->a;
    bwd_load_queries(b);
    int first = bwd_see_from(b, b->q0) / TILE_ROWS * TILE_ROWS, end = bwd_see_to(b, b->q1 - 1);
    for (b->k0 = first / BWD_KEYS * BWD_KEYS; b->k0 < end; b->k0 += BWD_KEYS) {
        int from = MAX(b->k0, first), to = MIN(b->k0 + BWD_KEYS, end);
        bwd_load_keys(b, from, to);
        for (int key = from; key < to; key += TILE_ROWS) bwd_key_tile(b, key, to);
        bwd_query_gradients(b, from, to);
    }
    for (int64_t i = 0; i < b->q1 - b->q0; i++) {
        int64_t at = (a->q_start[b->s] + b->q0 + i) * j->lddq + (int64_t)b->head * a->D;
        EACH_VECTOR(c, n, a->D)
        store_some(j->t, j->dq, at + c, load_f32(b->dq + i * b->columns + c) * vf_set(a->scale), n);
    }
}

static void attn_bwd_task(const AttnJob *job, int s, int head, float *dkv, void *scratch)
{
    const AttnShape *a = job->a;
    DType e = word_type(job->t);
    Backward b = {.job = job,
                  .e = e,
                  .s = s,
                  .head = head,
                  .off = a->k_len[s] - a->q_len[s],
                  .ld = row_words(e, a->D),
                  .columns = attn_columns(a->D),
                  .dkv = dkv};
    bwd_carve(&b, scratch);
    for (int key = 0; key < a->k_len[s]; key += TILE_ROWS) // keys that have left every query's window
        if (bwd_seen_to(&b, key + TILE_ROWS - 1) <= 0)
            memset(dkv + (int64_t)key * 2 * b.columns, 0, (size_t)TILE_ROWS * 2 * b.columns * sizeof *dkv);
    for (b.q0 = 0; b.q0 < a->q_len[s]; b.q0 = b.q1) {
        b.q1 = MIN(b.q0 + BWD_QUERIES, a->q_len[s]);
        bwd_query_block(&b);
    }
}

INLINE void attn_sum_heads_as(const DType t, void *y, const float *x, int64_t stride, int count, float scale, int D)
{
    EACH_VECTOR(c, n, D)
    {
        vf sum = load_f32(x + c);
        for (int i = 1; i < count; i++) sum += load_f32(x + i * stride + c);
        store_some(t, y, c, sum * vf_set(scale), n);
    }
}

static void attn_sum_heads(DType t, void *y, const float *x, int64_t stride, int count, float scale, int D)
{
    FOR_TYPE(t, attn_sum_heads_as(DT_BF16, y, x, stride, count, scale, D),
             attn_sum_heads_as(DT_F32, y, x, stride, count, scale, D));
}
