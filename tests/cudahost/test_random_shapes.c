// Every op that has a kernel, on shapes drawn at random: ragged, primes, one row or column, rows that begin anywhere, operands that are
// left out or share memory. Against the references. attn_*, head_* and lora_bwd: test_attention, test_head, test_lora.
//
// An op's case draws its operands from a Shape and calls the op; it runs once with the reference and once with the kernels, draws the
// same both times, and what it has called `out` is compared.
#include "kernel_test.h"

#ifdef __SANITIZE_ADDRESS__
enum { SHAPES = 30 }; // fibers are slow there
#else
enum { SHAPES = 300 };
#endif
enum { MOST_ARRAYS = 16, MOST_ELEMENTS = 6000 };

typedef struct Array {
    DType t;
    size_t n, bytes;
    void *base, *values;
    bool is_out;
    double magnitude; // of the terms that were summed; 0: bits must be equal
} Array;

typedef struct Shape {
    Device *d;
    uint64_t seed, drawn;
    DType t;
    int rows, width, off; // off: elements from a boundary of 16 bytes
    int n;
    Array array[MOST_ARRAYS];
} Shape;

static Device *ref, *device[COUNT_OF(kernel_isas)]; // of each order

// ---- drawing ----
static int draw(Shape *s, int from, int to) // uniform, both included
{
    uint32_t u[4];
    philox(s->seed, 50, s->drawn++, u);
    return (int)(from + (int64_t)(u[0] % ((uint32_t)to - (uint32_t)from + 1)));
}
static bool chance(Shape *s, int in)
{
    return draw(s, 1, in) == 1;
}
static int draw_size(Shape *s, int most)
{
    static const int special[] = {1, 1, 2, 3, 4, 7, 8, 13, 16, 31, 32, 33, 61, 64, 65, 127, 128, 129, 251, 256, 257};
    return MIN(most, chance(s, 2) ? special[draw(s, 0, COUNT_OF(special) - 1)] : draw(s, 1, most));
}

static void *array(Shape *s, DType t, size_t n, float scale)
{
    const size_t size = dtype_size(t);
    Array *a = &s->array[s->n++];
    assert_true(s->n < MOST_ARRAYS);
    *a = (Array){.t = t, .n = n, .bytes = n * size, .base = aligned_alloc(64, ROUND_UP((n + 16) * size, 64))};
    a->values = (char *)a->base + (size_t)s->off * size;
    for (size_t i = 0; i < n && (t == DT_F32 || t == DT_BF16); i++)
        put(a->values, t, i, random_at(s->seed, s->drawn + i, scale));
    s->drawn += n;
    return a->values;
}
static void *in(Shape *s, DType t, size_t n)
{
    return array(s, t, n, 1);
}
static void *maybe(Shape *s, DType t, size_t n)
{
    void *p = in(s, t, n);
    return chance(s, 2) ? p : NULL;
}
static void *out(Shape *s, DType t, size_t n, double magnitude)
{
    void *p = array(s, t, n, 1);
    s->array[s->n - 1].is_out = true;
    s->array[s->n - 1].magnitude = magnitude;
    return p;
}
static int32_t *integers(Shape *s, size_t n, int from, int to)
{
    int32_t *p = array(s, DT_I32, n, 1);
    for (size_t i = 0; i < n; i++) p[i] = draw(s, from, to);
    return p;
}
static Packed packed(Shape *s, DType t, int N, int K)
{
    const void *src = in(s, t, (size_t)N * (size_t)K);
    const int off = s->off;
    const uint64_t drawn = s->drawn;
    s->off = 0; // packs are aligned, and of a size that is the device's own
    Packed w = {t, N, K, array(s, DT_I64, s->d->packed_bytes(s->d, t, N, K) / 8 + 1, 1)};
    s->off = off, s->drawn = drawn;
    s->d->op.linear_pack(s->d, &w, 0, N, src, t, K);
    return w;
}
static DType draw_type(Shape *s)
{
    return chance(s, 2) ? DT_F32 : DT_BF16;
}
static int draw_ld(Shape *s, int width) // rows with room behind them, of which some begin at a boundary of 16 bytes
{
    return width + draw(s, 0, 3) * draw(s, 1, 8);
}
static size_t elements(const Shape *s)
{
    return (size_t)s->rows * (size_t)s->width;
}

// ---- ops ----
static void linear_pack(Shape *s)
{
    const DType src_t = draw_type(s), dst_t = s->t == DT_F32 ? DT_F32 : draw_type(s);
    const int N = s->rows, K = s->width, n0 = draw(s, 0, N - 1), ld = K + draw(s, 0, 2) * 4;
    Packed w = packed(s, s->t, N, K);
    const void *src = in(s, src_t, (size_t)N * (size_t)ld);
    s->d->op.linear_pack(s->d, &w, n0, N - n0, src, src_t, ld);
    s->d->op.linear_unpack(s->d, &w, 0, N, out(s, dst_t, elements(s), 0), dst_t, K);
}

static void draw_blocks(Shape *s, const QuantFormat *f, uint8_t *to, size_t blocks)
{
    float *values = xmalloc(sizeof *values * (size_t)f->block);
    for (size_t i = 0; i < blocks; i++) {
        double sum;
        do { // until its scales are numbers
            sum = 0;
            for (int k = 0; k < f->bytes; k++) to[i * (size_t)f->bytes + (size_t)k] = (uint8_t)draw(s, 0, 255);
            f->decode(to + i * (size_t)f->bytes, values, 1);
            for (int k = 0; k < f->block; k++) sum += values[k];
        } while (!isfinite(sum));
    }
    free(values);
}

static void linear_pack_blocks(Shape *s)
{
    const Quant format = (Quant)draw(s, 0, QUANT_COUNT - 1);
    const QuantFormat *f = &quant_formats[format];
    const int K = f->block * draw(s, 1, 512 / f->block), N = MIN(s->rows, 9), n0 = draw(s, 0, N - 1);
    const size_t blocks = (size_t)(N - n0) * (size_t)(K / f->block);
    Packed w = packed(s, s->t, N, K);
    void *src = array(s, DT_BF16, blocks * (size_t)f->bytes / 2, 1); // begins at an even address
    draw_blocks(s, f, src, blocks);
    s->d->op.linear_pack_blocks(s->d, &w, n0, N - n0, src, format);
    s->d->op.linear_unpack(s->d, &w, 0, N, out(s, DT_F32, (size_t)N * (size_t)K, 0), DT_F32, K);
}

static void bias_grad(Shape *s)
{
    const int N = s->width, ld = N + draw(s, 0, 2) * 8;
    void *db = out(s, DT_F32, (size_t)N, 1);
    const void *dy = in(s, s->t, (size_t)s->rows * (size_t)ld);
    s->d->op.bias_grad(s->d, s->t, db, dy, ld, N, chance(s, 2), s->rows);
}

static void scale_cols(Shape *s)
{
    const int ld = s->width + draw(s, 0, 2) * 8;
    const size_t n = (size_t)s->rows * (size_t)ld;
    void *y = out(s, s->t, n, 1), *apart = in(s, s->t, n), *u = chance(s, 4) ? y : apart;
    const float *gain = maybe(s, DT_F32, (size_t)s->width), *bias = maybe(s, DT_F32, (size_t)s->width);
    const void *other = maybe(s, s->t, n), *residual = u != y && chance(s, 3) ? y : other;
    s->d->op.scale_cols(s->d, s->t, y, ld, u, ld, gain, bias, residual, s->width, s->rows);
}

static void scale_cols_bwd(Shape *s)
{
    const int N = s->width, ld = N + draw(s, 0, 2) * 8;
    const size_t n = (size_t)s->rows * (size_t)ld;
    void *du = out(s, s->t, n, 1), *dy = in(s, s->t, n), *u = in(s, s->t, n), *dm = out(s, DT_F32, (size_t)N, 1);
    const float *gain = in(s, DT_F32, (size_t)N), *inv_norm = in(s, DT_F32, (size_t)N);
    const int which = draw(s, 0, 3);
    s->d->op.scale_cols_bwd(s->d, s->t, du, ld, which == 0 ? NULL : dm, which == 1 ? du : dy, ld,
                            which == 0   ? NULL
                            : which == 2 ? du
                                         : u,
                            ld, gain, inv_norm, chance(s, 2), N, s->rows);
}

static void lora_row_squares(Shape *s)
{
    const int N = s->rows, K = s->width, R = draw(s, 1, 40);
    Packed w = packed(s, s->t, N, K), a = packed(s, draw_type(s), R, K), b = packed(s, draw_type(s), N, R);
    s->d->op.lora_row_squares(s->d, s->t, out(s, DT_F32, (size_t)N, 1), &w, &a, &b, 0.5f);
}

static void dora_gain(Shape *s)
{
    const size_t N = (size_t)s->rows;
    float *inv_norm = out(s, DT_F32, N, 1), *gain = out(s, DT_F32, N, 1), *less = out(s, DT_F32, N, 1);
    for (size_t i = 0; i < N; i++) inv_norm[i] = chance(s, 9) ? 0 : fabsf(inv_norm[i]);
    s->d->op.dora_gain(s->d, gain, inv_norm, chance(s, 2) ? less : NULL, out(s, DT_F32, N, 1), chance(s, 3), s->rows);
}

static void embed_fwd(Shape *s)
{
    const int V = draw_size(s, 40), T = s->rows;
    Packed table = packed(s, draw_type(s), V, s->width);
    const int32_t *tokens = integers(s, (size_t)T, -2, V + 1);
    s->d->op.embed_fwd(s->d, s->t, out(s, s->t, elements(s), 1), &table, tokens, chance(s, 2) ? 1 : 0.3f, T);
}

static void embed_bwd(Shape *s)
{
    s->width = 1 + s->width % 64; // it takes a block for each few words and columns
    const int V = draw_size(s, 40), T = s->rows;
    void *dtable = out(s, DT_F32, (size_t)V * (size_t)s->width, 1);
    const void *dx = in(s, s->t, elements(s));
    s->d->op.embed_bwd(s->d, s->t, dtable, dx, integers(s, (size_t)T, -2, V + 1), 0.3f, V, s->width, T);
}

static void rmsnorm_fwd(Shape *s)
{
    const int C = s->width, T = s->rows;
    const int ld = draw_ld(s, C);
    void *y = out(s, s->t, (size_t)T * (size_t)ld, 1);
    float *rstd = out(s, DT_F32, (size_t)T, 1);
    const void *x = in(s, s->t, elements(s));
    s->d->op.rmsnorm_fwd(s->d, s->t, y, ld, rstd, x, in(s, DT_F32, (size_t)C), (float)draw(s, 0, 1), 0.1f, C, T);
}

static void rmsnorm_bwd(Shape *s)
{
    const int C = s->width, T = s->rows;
    const int ld = draw_ld(s, C);
    void *dx = out(s, s->t, (size_t)T * (size_t)ld, 1);
    float *dw = out(s, DT_F32, (size_t)C, 1), *rstd = in(s, DT_F32, (size_t)T);
    const void *dy = in(s, s->t, elements(s)), *x = in(s, s->t, elements(s)), *w = in(s, DT_F32, (size_t)C);
    const bool accumulate = chance(s, 2), in_place = !accumulate && ld == C && chance(s, 2);
    s->d->op.rmsnorm_bwd(s->d, s->t, dx, ld, chance(s, 2) ? dw : NULL, in_place ? dx : dy, x, rstd, w,
                         (float)draw(s, 0, 1), accumulate, C, T);
}

static void layernorm_fwd(Shape *s)
{
    const int C = s->width, T = s->rows;
    void *y = out(s, s->t, elements(s), 1);
    float *mean = out(s, DT_F32, (size_t)T, 1), *rstd = out(s, DT_F32, (size_t)T, 1);
    const void *x = in(s, s->t, elements(s));
    const float *w = in(s, DT_F32, (size_t)C), *b = maybe(s, DT_F32, (size_t)C);
    s->d->op.layernorm_fwd(s->d, s->t, y, mean, rstd, x, w, b, 0.1f, C, T);
}

static void layernorm_bwd(Shape *s)
{
    const int C = s->width, T = s->rows;
    void *dx = out(s, s->t, elements(s), 1);
    float *dw = out(s, DT_F32, (size_t)C, 1), *db = out(s, DT_F32, (size_t)C, 1);
    const float *mean = in(s, DT_F32, (size_t)T), *rstd = in(s, DT_F32, (size_t)T), *w = in(s, DT_F32, (size_t)C);
    const void *dy = in(s, s->t, elements(s)), *x = in(s, s->t, elements(s));
    const bool accumulate = chance(s, 2), in_place = !accumulate && chance(s, 3);
    const bool with_dw = chance(s, 2), with_db = chance(s, 2);
    s->d->op.layernorm_bwd(s->d, s->t, dx, with_dw ? dw : NULL, with_db ? db : NULL, in_place ? dx : dy, x, mean, rstd,
                           w, accumulate, C, T);
}

static void rope(Shape *s)
{
    const int heads = draw_size(s, 9), D = 2 * draw_size(s, 64), T = MIN(s->rows, 20), positions = draw(s, 1, 30);
    const int rot = chance(s, 2) ? D : 2 * draw(s, 1, D / 2), ld = heads * D + draw(s, 0, 2) * 8;
    const size_t table = (size_t)positions * (size_t)(rot / 2);
    void *x = out(s, s->t, (size_t)T * (size_t)ld, 1);
    const float *cos = in(s, DT_F32, table), *sin = in(s, DT_F32, table);
    const int32_t *pos = integers(s, (size_t)T, 0, positions - 1);
    s->d->op.rope(s->d, s->t, x, ld, cos, sin, pos, heads, D, rot, chance(s, 2), T);
}

static void swiglu_fwd(Shape *s)
{
    const int lda = draw_ld(s, s->width), ldgu = 2 * draw_ld(s, s->width);
    void *a = out(s, s->t, (size_t)s->rows * (size_t)lda, 1);
    s->d->op.swiglu_fwd(s->d, s->t, a, lda, in(s, s->t, (size_t)s->rows * (size_t)ldgu), ldgu, s->width, s->rows);
}

static void swiglu_bwd(Shape *s)
{
    const int lda = draw_ld(s, s->width), ldgu = 2 * draw_ld(s, s->width);
    const size_t both = (size_t)s->rows * (size_t)ldgu;
    void *dgu = out(s, s->t, both, 1), *a = out(s, s->t, (size_t)s->rows * (size_t)lda, 1);
    const void *da = in(s, s->t, elements(s)), *gu = in(s, s->t, both);
    const bool with_a = chance(s, 2), in_place = chance(s, 3);
    s->d->op.swiglu_bwd(s->d, s->t, dgu, with_a ? a : NULL, lda, da, in_place ? dgu : gu, ldgu, s->width, s->rows);
}

static Gelu draw_gelu(Shape *s)
{
    static const Gelu kinds[] = {GELU_ERF, GELU_TANH, GELU_QUICK};
    return kinds[draw(s, 0, 2)];
}

static void gelu_fwd(Shape *s)
{
    const Gelu kind = draw_gelu(s);
    void *y = out(s, s->t, elements(s), 1), *x = array(s, s->t, elements(s), 4);
    s->d->op.gelu_fwd(s->d, s->t, kind, y, chance(s, 3) ? y : x, elements(s));
}

static void gelu_bwd(Shape *s)
{
    const Gelu kind = draw_gelu(s);
    void *dx = out(s, s->t, elements(s), 1), *dy = in(s, s->t, elements(s)), *x = array(s, s->t, elements(s), 4);
    const int which = draw(s, 0, 2);
    s->d->op.gelu_bwd(s->d, s->t, kind, dx, which == 1 ? dx : dy, which == 2 ? dx : x, elements(s));
}

static void geglu_fwd(Shape *s)
{
    const Gelu kind = draw_gelu(s);
    const int lda = draw_ld(s, s->width), ldgu = 2 * draw_ld(s, s->width);
    void *a = out(s, s->t, (size_t)s->rows * (size_t)lda, 1);
    s->d->op.geglu_fwd(s->d, s->t, kind, a, lda, array(s, s->t, (size_t)s->rows * (size_t)ldgu, 3), ldgu, s->width,
                       s->rows);
}

static void geglu_bwd(Shape *s)
{
    const Gelu kind = draw_gelu(s);
    const int lda = draw_ld(s, s->width), ldgu = 2 * draw_ld(s, s->width);
    const size_t both = (size_t)s->rows * (size_t)ldgu;
    void *dgu = out(s, s->t, both, 1), *a = out(s, s->t, (size_t)s->rows * (size_t)lda, 1);
    const void *da = in(s, s->t, elements(s)), *gu = array(s, s->t, both, 3);
    const bool with_a = chance(s, 2), in_place = chance(s, 3);
    s->d->op.geglu_bwd(s->d, s->t, kind, dgu, with_a ? a : NULL, lda, da, in_place ? dgu : gu, ldgu, s->width, s->rows);
}

static void gather_rows(Shape *s)
{
    const int T = draw_size(s, 30);
    void *y = out(s, s->t, elements(s), 0);
    const void *x = in(s, s->t, (size_t)T * (size_t)s->width);
    s->d->op.gather_rows(s->d, s->t, y, x, integers(s, (size_t)s->rows, 0, T - 1), s->width, s->rows);
}

static void scatter_rows(Shape *s)
{
    const int T = s->rows, rows = draw(s, 0, T), first = draw(s, 0, T - 1);
    const int ld = draw_ld(s, s->width);
    void *x = out(s, s->t, (size_t)T * (size_t)ld, 0);
    const void *y = in(s, s->t, (size_t)rows * (size_t)s->width);
    int32_t *idx = integers(s, (size_t)rows, 0, 0);
    for (int i = 0; i < rows; i++) idx[i] = (first + rows - i) % T;
    s->d->op.scatter_rows(s->d, s->t, x, ld, y, idx, s->width, rows, T);
}

static void dropout(Shape *s)
{
    static const float rates[] = {0, 0.1f, 0.5f, 0.9f};
    const int ld = s->width + draw(s, 0, 2) * 8, T = s->rows;
    const size_t n = (size_t)T * (size_t)ld;
    void *y = out(s, s->t, n, 1);
    const void *x = in(s, s->t, n);
    uint64_t *key = array(s, DT_I64, (size_t)T, 1);
    for (int i = 0; i < T; i++) key[i] = (uint64_t)draw(s, 0, 1 << 30) << draw(s, 0, 30);
    const float p = rates[draw(s, 0, 3)];
    s->d->op.dropout(s->d, s->t, y, ld, x, ld, key, (uint64_t)draw(s, 0, 99), p, chance(s, 2), draw(s, 0, 9), s->width,
                     T);
}

static void convert(Shape *s)
{
    static const DType types[] = {DT_F32, DT_BF16, DT_F16};
    const DType from = types[draw(s, 0, 2)], to = types[draw(s, 0, 2)];
    const size_t n = elements(s);
    const void *x = in(s, DT_F32, n);
    void *src = array(s, from, n, 1);
    ref->op.convert(ref, src, from, x, DT_F32, n);
    s->d->op.convert(s->d, out(s, to, n, 0), to, src, from, n);
}

static double draw_fraction(Shape *s)
{
    return (double)draw(s, 0, 1 << 20) / (1 << 20);
}

static void sample(Shape *s)
{
    const int V = chance(s, 50) ? draw(s, 50000, 50400) : chance(s, 5) ? draw(s, 1000, 5000) : draw_size(s, 300);
    const int n = draw(s, 1, V > 5000 ? 1 : 4), steps = chance(s, 3) ? draw(s, 1, 9) : 0;
    SamplerConfig c = {.temperature = chance(s, 6) ? 0 : 0.01 + 2 * draw_fraction(s), .top_p = 1};
    if (chance(s, 2)) c.top_k = chance(s, 4) ? 1 : draw(s, 1, 2 * V);
    if (chance(s, 2)) c.top_p = chance(s, 4) ? 0.1 * draw_fraction(s) : draw_fraction(s);
    int32_t *id = out(s, DT_I32, (size_t)n, 0);
    float *z = array(s, DT_F32, (size_t)n * (size_t)V, (float)(1 << draw(s, 0, 5)));
    uint64_t *bits = array(s, DT_I64, (size_t)n, 1);
    for (int i = 0; i < n * V; i++) {
        if (steps) z[i] = rintf(z[i] * (float)steps) / (float)steps;
        if (steps == 3 && i % 5) z[i] = -INFINITY;
    }
    if (chance(s, 12)) z[draw(s, 0, n * V - 1)] = chance(s, 2) ? NAN : INFINITY;
    for (int i = 0; i < n; i++) bits[i] = hash64(&i, sizeof i, s->seed);
    s->d->op.sample(s->d, id, z, bits, &c, V, n);
}

static void adamw(Shape *s)
{
    const size_t n = elements(s);
    float *p = out(s, DT_F32, n, 1), *m = out(s, DT_F32, n, 1), *v = out(s, DT_F32, n, 1);
    for (size_t i = 0; i < n; i++) v[i] = fabsf(v[i]);
    const float *g = in(s, DT_F32, n), decay = chance(s, 2) ? 0.1f : 0;
    s->d->op.adamw(s->d, p, m, v, g, 0.7f, 1e-2f, 0.9f, 0.95f, 1e-8f, decay, draw(s, 1, 3000), n);
}

static void row_squares(Shape *s)
{
    const int64_t K = chance(s, 30) ? draw(s, 4000, 9000) : s->width;
    double *sums = xcalloc((size_t)s->rows, sizeof *sums);
    float *got = out(s, DT_F32, (size_t)s->rows, 1);
    s->d->op.row_squares(s->d, sums, in(s, DT_F32, (size_t)(s->rows * K)), s->rows, K);
    for (int i = 0; i < s->rows; i++) got[i] = (float)sums[i];
    free(sums);
}

static int64_t *sums_at(Shape *s, size_t n, bool written) // of any size that leaves room
{
    int64_t *acc = written ? out(s, DT_I64, n, 0) : array(s, DT_I64, n, 1);
    for (size_t i = 0; i < n; i++)
        acc[i] = draw(s, -(1 << 30), 1 << 30) * ((int64_t)1 << draw(s, 0, 26)) + draw(s, 0, 9);
    return acc;
}

static void fix_add(Shape *s)
{
    const size_t n = elements(s);
    int64_t *acc = sums_at(s, n, true);
    float *g = in(s, DT_F32, n);
    int32_t *overflow = out(s, DT_I32, 1, 0);
    *overflow = chance(s, 8);
    const bool broken = chance(s, 4);
    if (broken) g[draw(s, 0, (int)n - 1)] = chance(s, 2) ? NAN : 1e30f;
    s->d->op.fix_add(s->d, acc, g, n, INT64_MAX / 4, overflow);
    if (broken) memset(acc, 0, n * sizeof *acc); // nobody reads what has overflowed
}

static void acc_add(Shape *s)
{
    const size_t n = elements(s);
    const DType t = chance(s, 2) ? DT_F32 : DT_I64;
    void *acc = t == DT_I64 ? sums_at(s, n, true) : out(s, t, n, 0);
    s->d->op.acc_add(s->d, acc, t == DT_I64 ? sums_at(s, n, false) : in(s, t, n), t, n);
}

static void fix_read(Shape *s)
{
    const size_t n = elements(s);
    float *g = out(s, DT_F32, n, 0);
    s->d->op.fix_read(s->d, g, sums_at(s, n, false), n);
}

// ---- all of them ----
static const struct {
    const char *name;
    void (*run)(Shape *s);
} ops[] = {
    {"linear_pack", linear_pack},
    {"linear_pack_blocks", linear_pack_blocks},
    {"bias_grad", bias_grad},
    {"scale_cols", scale_cols},
    {"scale_cols_bwd", scale_cols_bwd},
    {"lora_row_squares", lora_row_squares},
    {"dora_gain", dora_gain},
    {"embed_fwd", embed_fwd},
    {"embed_bwd", embed_bwd},
    {"rmsnorm_fwd", rmsnorm_fwd},
    {"rmsnorm_bwd", rmsnorm_bwd},
    {"layernorm_fwd", layernorm_fwd},
    {"layernorm_bwd", layernorm_bwd},
    {"rope", rope},
    {"swiglu_fwd", swiglu_fwd},
    {"swiglu_bwd", swiglu_bwd},
    {"gelu_fwd", gelu_fwd},
    {"gelu_bwd", gelu_bwd},
    {"geglu_fwd", geglu_fwd},
    {"geglu_bwd", geglu_bwd},
    {"gather_rows", gather_rows},
    {"scatter_rows", scatter_rows},
    {"dropout", dropout},
    {"convert", convert},
    {"sample", sample},
    {"adamw", adamw},
    {"row_squares", row_squares},
    {"fix_add", fix_add},
    {"acc_add", acc_add},
    {"fix_read", fix_read},
};

static Shape shape_of(Device *d, uint64_t seed)
{
    Shape s = {.d = d, .seed = seed};
    s.t = draw_type(&s);
    s.rows = draw_size(&s, 300);
    s.width = draw_size(&s, MIN(chance(&s, 40) ? 3000 : 300, MAX(1, MOST_ELEMENTS / s.rows)));
    s.off = chance(&s, 4);
    return s;
}

static void shape_free(Shape *s)
{
    for (int i = 0; i < s->n; i++) free(s->array[i].base);
}

static double distance(const Array *got, const Array *want) // by what rounding may cost
{
    double error = 0, norm = (double)got->n * want->magnitude * want->magnitude;
    for (size_t i = 0; i < got->n; i++) {
        const double g = get(got->values, got->t, i), w = get(want->values, got->t, i);
        error += (g - w) * (g - w), norm += w * w;
    }
    return error == 0 ? 0 : error / norm / nmse_limit(got->t);
}

static void expect_shape(const char *name, const Shape *got, const Shape *want)
{
    for (int i = 0, o = 0; i < want->n; i++) {
        const Array *g = &got->array[i], *w = &want->array[i];
        if (!w->is_out) continue;
        const char *what = tmpf("%s, %s, %d x %d, %s, output %d", name, dtype_name(want->t), want->rows, want->width,
                                want->off ? "rows begin anywhere" : "aligned", o++);
        if (w->magnitude == 0)
            expect_same_bits(what, g->values, w->values, w->bytes);
        else if (!(distance(g, w) <= 1))
            fail_msg("%s: error %.3g times the limit", what, distance(g, w));
    }
}

static void random_shapes(void **state)
{
    (void)state;
    for (size_t op = 0; op < COUNT_OF(ops); op++)
        for (int i = 0; i < SHAPES; i++) {
            const uint64_t seed = 1000 * op + (uint64_t)i;
            Shape want = shape_of(ref, seed), got = shape_of(device[i % COUNT_OF(device)], seed);
            ops[op].run(&want);
            ops[op].run(&got);
            expect_shape(ops[op].name, &got, &want);
            shape_free(&want), shape_free(&got);
        }
}

static int open_devices(void **state)
{
    (void)state;
    ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(device); i++) device[i] = open_isa(kernel_isas[i], 1);
    return 0;
}
static int close_devices(void **state)
{
    (void)state;
    device_close(ref);
    for (size_t i = 0; i < COUNT_OF(device); i++) device_close(device[i]);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_shapes)};
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
