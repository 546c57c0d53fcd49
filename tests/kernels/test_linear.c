// linear_*, lora_* and bias_grad: tuned against reference, gradients against differences, packing, and the promises about
// bits: results depend neither on the number of threads nor on the other rows of a call.
#include "kernel_test.h"

// Of results in bf16 that have a second product or a residual added to them: a device may round these first.
#ifndef KERNEL_BF16_LIMIT
#define KERNEL_BF16_LIMIT 1e-5
#endif

typedef struct Case {
    const char *name;
    int T, N, K, R; // R 0: no adapter
    int pad;        // elements between two rows of x and y
} Case;

static const Case cases[] = {
    {"one of each", 1, 1, 1, 1, 0},
    {"one word", 2, 3, 2, 0, 0},
    {"odd", 5, 7, 9, 3, 0},
    {"odd, padded", 13, 33, 31, 5, 3},
    {"a panel", 14, 32, 32, 16, 0},
    {"just over a panel", 15, 33, 33, 17, 1},
    {"half panels", 29, 16, 48, 8, 0},
    {"decode", 1, 130, 257, 4, 0},
    {"decode 3", 3, 96, 64, 0, 0},
    {"decode 8", 8, 65, 40, 2, 2},
    {"several tiles", 100, 96, 160, 16, 0},
    {"several chunks", 150, 35, 2000, 7, 0},
    {"wide", 20, 700, 36, 33, 0},
    {"long sum", 2, 5, 5000, 0, 0},
    {"many tokens", 2100, 10, 12, 3, 0},
    {"many tokens and columns", 530, 520, 3, 6, 0},
    {"rows on one set of L1", 30, 34, 1000, 3, 1048}, // staged: 4096 or 8192 bytes apart
};

// ---- operands -------------------------------------------------------------------------------------------
typedef struct Work {
    DType t;
    int T, N, K, R;
    int64_t ldx, ldy;
    size_t x_count, y_count; // elements of arrays that end with their last row
    void *x, *y, *residual, *s, *w_rows, *a_rows, *b_rows;
    float *bias, *dw, *db;
    Packed w, a, b; // (N,K), (R,K), (N,R)
} Work;

static Work make_work(Device *d, const Case *c, DType t)
{
    Work w = {.t = t, .T = c->T, .N = c->N, .K = c->K, .R = c->R, .ldx = c->K + c->pad, .ldy = c->N + c->pad};
    w.x_count = (size_t)((c->T - 1) * w.ldx + c->K);
    w.y_count = (size_t)((c->T - 1) * w.ldy + c->N);
    w.x = random_values(t, w.x_count, 1, 1);
    w.y = random_values(t, w.y_count, 2, 1);
    w.residual = random_values(t, w.y_count, 3, 1);
    w.s = random_values(t, (size_t)c->T * c->R, 4, 1);
    w.w_rows = random_values(t, (size_t)c->N * c->K, 5, 1);
    w.a_rows = random_values(t, (size_t)c->R * c->K, 6, 1);
    w.b_rows = random_values(t, (size_t)c->N * c->R, 7, 1);
    w.bias = random_values(DT_F32, c->N, 8, 1);
    w.dw = random_values(DT_F32, (size_t)c->N * c->K, 9, 1);
    w.db = random_values(DT_F32, (size_t)c->N * c->R, 10, 1);
    w.w = pack_values(d, t, w.w_rows, t, c->N, c->K);
    w.a = pack_values(d, t, w.a_rows, t, c->R, c->K);
    w.b = pack_values(d, t, w.b_rows, t, c->N, c->R);
    return w;
}

static void free_work(Work *w)
{
    void *owned[] = {w->x,    w->y,  w->residual, w->s,      w->w_rows, w->a_rows, w->b_rows,
                     w->bias, w->dw, w->db,       w->w.data, w->a.data, w->b.data};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

// ---- one op on one device, into a fresh copy of its output ----------------------------------------------
typedef struct Result {
    DType t;
    size_t count;
    void *data;
} Result;

static Result result_of(DType t, const void *before, size_t count)
{
    return (Result){t, count, copy_values(t, before, count)};
}

static Result run_fwd(Device *d, const Work *w, int variant)
{
    LowRank lr = {w->R, w->s, w->R, &w->b};
    Result r = result_of(w->t, w->y, w->y_count);
    const void *residual = variant == 2 ? w->residual : variant == 3 ? r.data : NULL;
    d->op.linear_fwd(d, w->t, r.data, w->ldy, w->x, w->ldx, &w->w, variant ? &lr : NULL, variant ? w->bias : NULL,
                     residual, w->T);
    return r;
}

static Result run_dx(Device *d, const Work *w, int variant)
{
    LowRank lr = {w->R, w->s, w->R, &w->a};
    Result r = result_of(w->t, w->x, w->x_count);
    d->op.linear_dx(d, w->t, r.data, w->ldx, w->y, w->ldy, &w->w, variant ? &lr : NULL, variant == 2, w->T);
    return r;
}

static Result run_dw(Device *d, const Work *w, int variant)
{
    Result r = result_of(DT_F32, w->dw, (size_t)w->N * w->K);
    d->op.linear_dw(d, w->t, r.data, w->y, w->ldy, w->x, w->ldx, w->N, w->K, variant, w->T);
    return r;
}

static Result run_bias_grad(Device *d, const Work *w, int variant)
{
    Result r = result_of(DT_F32, w->bias, w->N);
    d->op.bias_grad(d, w->t, r.data, w->y, w->ldy, w->N, variant, w->T);
    return r;
}

static Result run_lora_s(Device *d, const Work *w, int variant)
{
    Result r = result_of(w->t, w->s, (size_t)w->T * w->R);
    d->op.lora_s(d, w->t, r.data, w->R, w->x, w->ldx, &w->a, variant ? 0.25f : 1, w->T);
    return r;
}

typedef struct LoraGradients {
    Result ds, db;
} LoraGradients;

static LoraGradients run_lora_bwd(Device *d, const Work *w, int variant)
{
    LoraGradients r = {result_of(w->t, w->s, (size_t)w->T * w->R), result_of(DT_F32, w->db, (size_t)w->N * w->R)};
    d->op.lora_bwd(d, w->t, r.ds.data, w->R, r.db.data, w->y, w->ldy, w->s, w->R, &w->b, variant ? 0.25f : 1, variant,
                   w->T);
    return r;
}

static Result run_lora_ds(Device *d, const Work *w, int variant)
{
    LoraGradients r = run_lora_bwd(d, w, variant);
    free(r.db.data);
    return r.ds;
}

static Result run_lora_db(Device *d, const Work *w, int variant)
{
    LoraGradients r = run_lora_bwd(d, w, variant);
    free(r.ds.data);
    return r.db;
}

static const struct {
    const char *name;
    Result (*run)(Device *d, const Work *w, int variant);
    int variants;
    size_t op; // in OpTable
} ops[] = {
#define ROW(name, run, variants)                                                                                       \
    {                                                                                                                  \
#name, run, variants, offsetof(OpTable, name)                                                                  \
    }
    ROW(linear_fwd, run_fwd, 4),      ROW(linear_dx, run_dx, 3),  ROW(linear_dw, run_dw, 2),
    ROW(bias_grad, run_bias_grad, 2), ROW(lora_s, run_lora_s, 2), ROW(lora_bwd, run_lora_ds, 2),
    ROW(lora_bwd, run_lora_db, 2),
#undef ROW
};

static double limit_of(size_t o, int variant, DType t)
{
    const bool adds = variant && (ops[o].run == run_fwd || ops[o].run == run_dx);
    return adds && t == DT_BF16 ? KERNEL_BF16_LIMIT : nmse_limit(t);
}

static bool has(const Device *d, size_t o)
{
    void *op;
    memcpy(&op, (const char *)&d->op + ops[o].op, sizeof op);
    return op != NULL;
}

// ---- tuned against reference ----------------------------------------------------------------------------
static void compare(Device *const *tuned, Device *ref, const Case *c, DType t)
{
    Work w = make_work(ref, c, t), mine[COUNT_OF(kernel_isas)];
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++)
        if (tuned[i]) mine[i] = make_work(tuned[i], c, t);
    for (size_t o = 0; o < COUNT_OF(ops); o++)
        for (int v = 0; v < ops[o].variants; v++) {
            Result want = ops[o].run(ref, &w, v);
            for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
                if (!tuned[i] || !has(tuned[i], o)) continue;
                Result got = ops[o].run(tuned[i], &mine[i], v);
                expect_nmse(tmpf("%s/%d, %s, %s", ops[o].name, v, c->name, kernel_isas[i]), got.t, got.data, want.data,
                            got.count, limit_of(o, v, got.t));
                free(got.data);
            }
            free(want.data);
        }
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++)
        if (tuned[i]) free_work(&mine[i]);
    free_work(&w);
}

static void test_against_reference(void **state)
{
    (void)state;
    Device *ref = open_threads("cpu-ref", 2), *tuned[COUNT_OF(kernel_isas)];
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) tuned[i] = open_isa(kernel_isas[i], 2);
    for (size_t k = 0; k < COUNT_OF(cases) * COUNT_OF(kernel_types); k++)
        compare(tuned, ref, &cases[k / 2], kernel_types[k % 2]);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) device_close(tuned[i]);
    device_close(ref);
}

// A bf16 weight under f32 activations and the reverse: operands meet in f32.
static void test_mixed_types(void **state)
{
    (void)state;
    enum { T = 9, N = 37, K = 51 };
    Device *ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *tuned = open_isa(kernel_isas[i], 1);
        for (size_t t = 0; tuned && tuned->op.linear_fwd && t < COUNT_OF(kernel_types); t++) {
            DType x_t = kernel_types[t], w_t = kernel_types[1 - t];
            void *x = random_values(x_t, T * K, 1, 1), *rows = random_values(w_t, N * K, 2, 1);
            void *got = random_values(x_t, T * N, 3, 1), *want = random_values(x_t, T * N, 3, 1);
            Packed w = pack_values(ref, w_t, rows, w_t, N, K), mine = pack_values(tuned, w_t, rows, w_t, N, K);
            tuned->op.linear_fwd(tuned, x_t, got, N, x, K, &mine, NULL, NULL, NULL, T);
            ref->op.linear_fwd(ref, x_t, want, N, x, K, &w, NULL, NULL, NULL, T);
            expect_close("mixed types", x_t, got, want, T * N);
            free(x), free(rows), free(got), free(want), free(w.data), free(mine.data);
        }
        device_close(tuned);
    }
    device_close(ref);
}

// ---- bits -----------------------------------------------------------------------------------------------
static void test_threads_do_not_matter(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++)
        for (int threads = 2; threads <= 5; threads += threads == 3 ? 2 : 1) {
            Device *one = open_isa(kernel_isas[i], 1), *many = open_isa(kernel_isas[i], threads);
            for (size_t k = 0; one && k < COUNT_OF(cases) * COUNT_OF(kernel_types); k++) {
                Work w = make_work(one, &cases[k / 2], kernel_types[k % 2]);
                for (size_t o = 0; o < COUNT_OF(ops); o++) {
                    if (!has(one, o)) continue;
                    Result a = ops[o].run(one, &w, 1), b = ops[o].run(many, &w, 1);
                    expect_same_bits(ops[o].name, b.data, a.data, a.count * dtype_size(a.t));
                    free(a.data), free(b.data);
                }
                free_work(&w);
            }
            device_close(one), device_close(many);
        }
}

// Row i of y is the same whether it is computed alone, among its neighbours, or at another place of a longer call.
static void expect_rows_alone(Device *d, const Case *c, DType t, int part)
{
    Work w = make_work(d, c, t), some = w;
    for (size_t o = 0; o < 2 && has(d, o); o++) { // linear_fwd, linear_dx
        Result all = ops[o].run(d, &w, 1);
        int64_t ld_out = o ? w.ldx : w.ldy;
        for (int i = 0; i + part <= w.T; i += MAX(part, w.T / 7)) {
            some.T = part;
            some.x = (char *)w.x + i * w.ldx * (int64_t)dtype_size(t);
            some.y = (char *)w.y + i * w.ldy * (int64_t)dtype_size(t);
            some.s = (char *)w.s + (int64_t)i * w.R * (int64_t)dtype_size(t);
            some.x_count = (size_t)((part - 1) * w.ldx + w.K);
            some.y_count = (size_t)((part - 1) * w.ldy + w.N);
            Result few = ops[o].run(d, &some, 1);
            size_t bytes = (size_t)(o ? w.K : w.N) * dtype_size(t);
            for (int j = 0; j < part; j++)
                expect_same_bits(tmpf("row %d of %s, %d rows", i + j, ops[o].name, part),
                                 (char *)few.data + j * ld_out * (int64_t)dtype_size(t),
                                 (char *)all.data + (i + j) * ld_out * (int64_t)dtype_size(t), bytes);
            free(few.data);
        }
        free(all.data);
    }
    free_work(&w);
}

static void test_rows_are_independent(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *d = open_isa(kernel_isas[i], 2);
        for (size_t k = 0; d && k < COUNT_OF(cases) * COUNT_OF(kernel_types); k++)
            for (int part = 1; part <= 6 && part < cases[k / 2].T; part += 5)
                expect_rows_alone(d, &cases[k / 2], kernel_types[k % 2], part);
        device_close(d);
    }
}

// ---- gradients ------------------------------------------------------------------------------------------
// loss = Σ g · y, y = x·Wᵀ + s·Bᵀ with s = scale · x·Aᵀ: everything trainable about a linear layer with an adapter
typedef struct Layer {
    Device *d;
    int T, N, K, R;
    float scale;
    float *x, *w, *a, *b, *g;
} Layer;

static double layer_loss(void *context)
{
    const Layer *l = context;
    Device *d = l->d;
    Packed w = pack_values(d, DT_F32, l->w, DT_F32, l->N, l->K), a = pack_values(d, DT_F32, l->a, DT_F32, l->R, l->K);
    Packed b = pack_values(d, DT_F32, l->b, DT_F32, l->N, l->R);
    float *s = xmalloc(sizeof *s * (size_t)(l->T * l->R)), *y = xmalloc(sizeof *y * (size_t)(l->T * l->N));
    LowRank lr = {l->R, s, l->R, &b};
    d->op.lora_s(d, DT_F32, s, l->R, l->x, l->K, &a, l->scale, l->T);
    d->op.linear_fwd(d, DT_F32, y, l->N, l->x, l->K, &w, &lr, NULL, NULL, l->T);
    double loss = 0;
    for (int i = 0; i < l->T * l->N; i++) loss += (double)l->g[i] * y[i];
    free(s), free(y), free(w.data), free(a.data), free(b.data);
    return loss;
}

typedef struct LayerGradients {
    float *x, *w, *a, *b;
} LayerGradients;

static LayerGradients layer_backward(const Layer *l)
{
    Device *d = l->d;
    Packed w = pack_values(d, DT_F32, l->w, DT_F32, l->N, l->K), a = pack_values(d, DT_F32, l->a, DT_F32, l->R, l->K);
    Packed b = pack_values(d, DT_F32, l->b, DT_F32, l->N, l->R);
    float *s = xmalloc(sizeof *s * (size_t)(l->T * l->R)), *ds = xmalloc(sizeof *ds * (size_t)(l->T * l->R));
    LayerGradients g = {xmalloc(sizeof(float) * (size_t)(l->T * l->K)), xmalloc(sizeof(float) * (size_t)(l->N * l->K)),
                        xmalloc(sizeof(float) * (size_t)(l->R * l->K)), xmalloc(sizeof(float) * (size_t)(l->N * l->R))};
    LowRank lr = {l->R, ds, l->R, &a};
    d->op.lora_s(d, DT_F32, s, l->R, l->x, l->K, &a, l->scale, l->T);
    d->op.lora_bwd(d, DT_F32, ds, l->R, g.b, l->g, l->N, s, l->R, &b, l->scale, false, l->T);
    d->op.linear_dx(d, DT_F32, g.x, l->K, l->g, l->N, &w, &lr, false, l->T);
    d->op.linear_dw(d, DT_F32, g.w, l->g, l->N, l->x, l->K, l->N, l->K, false, l->T);
    d->op.linear_dw(d, DT_F32, g.a, ds, l->R, l->x, l->K, l->R, l->K, false, l->T);
    free(s), free(ds), free(w.data), free(a.data), free(b.data);
    return g;
}

static void expect_layer_gradients(Device *d)
{
    enum { T = 19, N = 37, K = 35, R = 5 };
    Layer l = {.d = d, .T = T, .N = N, .K = K, .R = R, .scale = 0.5f};
    l.x = random_values(DT_F32, T * K, 1, 1), l.w = random_values(DT_F32, N * K, 2, 1);
    l.a = random_values(DT_F32, R * K, 3, 1), l.b = random_values(DT_F32, N * R, 4, 1);
    l.g = random_values(DT_F32, T * N, 5, 1);
    LayerGradients g = layer_backward(&l);
    expect_gradient("dx", layer_loss, &l, l.x, T * K, g.x, 0.25f, 1e-4); // the loss is linear in each of them
    expect_gradient("dw", layer_loss, &l, l.w, N * K, g.w, 0.25f, 1e-4);
    expect_gradient("dA", layer_loss, &l, l.a, R * K, g.a, 0.25f, 1e-4);
    expect_gradient("dB", layer_loss, &l, l.b, N * R, g.b, 0.25f, 1e-4);
    void *owned[] = {l.x, l.w, l.a, l.b, l.g, g.x, g.w, g.a, g.b};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

static void test_gradients(void **state)
{
    (void)state;
    Device *ref = open_threads("cpu-ref", 1);
    expect_layer_gradients(ref);
    device_close(ref);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *d = open_isa(kernel_isas[i], 2);
        if (d && has(d, 0)) expect_layer_gradients(d);
        device_close(d);
    }
}

// ---- packing --------------------------------------------------------------------------------------------
// Packed bit by bit as a file reader would, at any cut, a weight is the same as packed at once (by the reference, where it is a
// device of the same layout), and comes back exactly.
static void expect_packing(Device *d, Device *ref, int N, int K, DType t, DType src_t, int step)
{
    int64_t ld = K + 3;
    size_t count = (size_t)((N - 1) * ld + K), bytes = d->packed_bytes(d, t, N, K);
    void *src = random_values(src_t, count, 1, 1), *back = random_values(t, count, 2, 1);
    Packed whole = {t, N, K, aligned_alloc(64, ROUND_UP(bytes, 64))}, parts = whole;
    parts.data = aligned_alloc(64, ROUND_UP(bytes, 64));
    memset(whole.data, 0xff, bytes), memset(parts.data, 0xff, bytes); // NaN wherever nothing is written
    Device *by = streq(d->name, "cpu") ? ref : d;
    by->op.linear_pack(by, &whole, 0, N, src, src_t, ld);
    for (int n = 0; n < N; n += step)
        d->op.linear_pack(d, &parts, n, MIN(step, N - n), (char *)src + n * ld * (int64_t)dtype_size(src_t), src_t, ld);
    expect_same_bits(tmpf("packed (%d,%d) %s by %d", N, K, dtype_name(t), step), parts.data, whole.data, bytes);
    d->op.linear_unpack(d, &parts, 0, N, back, t, ld);
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            float v = get(src, src_t, (size_t)(n * ld + k));
            if (t == DT_BF16) v = bf16_to_f32(f32_to_bf16(v));
            assert_true(get(back, t, (size_t)(n * ld + k)) == v);
        }
    free(src), free(back), free(whole.data), free(parts.data);
}

static void test_packing(void **state)
{
    (void)state;
    static const int shapes[][2] = {{1, 1}, {31, 5}, {32, 32}, {33, 31}, {64, 17}, {100, 70}, {130, 33}};
    static const int steps[] = {1, 7, 32, 40, 1000};
    Device *ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *d = open_isa(kernel_isas[i], 2);
        for (size_t s = 0; d && s < COUNT_OF(shapes) * COUNT_OF(steps) * 4; s++) {
            const int *shape = shapes[s / 4 % COUNT_OF(shapes)];
            expect_packing(d, ref, shape[0], shape[1], kernel_types[s % 2], kernel_types[s / 2 % 2],
                           steps[s / 4 / COUNT_OF(shapes)]);
        }
        device_close(d);
    }
    device_close(ref);
}

// ---- quantised blocks -----------------------------------------------------------------------------------
static void random_block(const QuantFormat *q, uint64_t seed, uint8_t *block, float *decoded)
{
    for (bool finite = false; !finite; seed += 1000003) { // what stands for a scale may be infinite
        for (int i = 0; i < q->bytes; i++) block[i] = (uint8_t)(hash64(&i, sizeof i, seed) >> 8);
        q->decode(block, decoded, 1);
        finite = true;
        for (int i = 0; i < q->block; i++) finite &= isfinite(decoded[i]);
    }
}

// Packed out of blocks, in parts, a weight has the bits of one packed out of the decoded numbers.
static void expect_blocks(Device *d, Quant format, int N, int K, DType t, int step)
{
    const QuantFormat *q = &quant_formats[format];
    const size_t blocks = (size_t)(K / q->block), row_bytes = blocks * (size_t)q->bytes,
                 bytes = d->packed_bytes(d, t, N, K);
    uint8_t *src = xmalloc((size_t)N * row_bytes);
    float *numbers = xmalloc((size_t)N * (size_t)K * sizeof *numbers);
    for (size_t b = 0; b < (size_t)N * blocks; b++)
        random_block(q, 7 + b, src + b * (size_t)q->bytes, numbers + b * (size_t)q->block);
    Packed want = pack_values(d, t, numbers, DT_F32, N, K), got = pack_values(d, t, numbers, DT_F32, N, K);
    memset(got.data, 0xff, bytes);
    for (int n = 0; n < N; n += step)
        d->op.linear_pack_blocks(d, &got, n, MIN(step, N - n), src + (size_t)n * row_bytes, format);
    expect_same_bits(tmpf("%s (%d,%d) %s by %d", q->name, N, K, dtype_name(t), step), got.data, want.data, bytes);
    free(src), free(numbers), free(want.data), free(got.data);
}

static void test_blocks(void **state)
{
    (void)state;
    // rows, and blocks of a row; of blocks of 256 at most 70 rows
    static const int shapes[][2] = {{1, 1}, {33, 2}, {150, 1}};
    Device *ref = open_threads("cpu-ref", 1);
    for (int format = 0; format < QUANT_COUNT; format++)
        for (size_t i = 0; i < COUNT_OF(shapes) * COUNT_OF(kernel_types); i++) {
            const int block = quant_formats[format].block, N = MIN(shapes[i / 2][0], 70 * 256 / block),
                      K = shapes[i / 2][1] * block, steps[] = {7, 32, N};
            expect_blocks(ref, (Quant)format, N, K, kernel_types[i % 2], 32);
            for (size_t k = 0; k < COUNT_OF(kernel_isas); k++) {
                Device *d = open_isa(kernel_isas[k], 2);
                if (d) expect_blocks(d, (Quant)format, N, K, kernel_types[i % 2], steps[MIN(k, 2)]);
                device_close(d);
            }
        }
    device_close(ref);
}

// No memory is taken once the ops have seen their shapes. Which thread takes a task is chance, so that a thread may meet its first
// one late: the memory has settled when nothing grows for a long while.
static void test_scratch_settles(void **state)
{
    (void)state;
    Device *d = open_threads("cpu", 2);
    if (!has(d, 0)) {
        device_close(d);
        return;
    }
    Work w = make_work(d, &cases[10], DT_BF16);
    size_t settled = 0;
    int rounds = 0;
    for (int quiet = 0; quiet < 20 && rounds < 1000; rounds++) {
        for (size_t o = 0; o < COUNT_OF(ops); o++) free(ops[o].run(d, &w, 1).data);
        quiet = d->scratch_bytes(d) == settled ? quiet + 1 : 0;
        settled = d->scratch_bytes(d);
    }
    assert_true(rounds < 1000);
    free_work(&w);
    device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference),
        cmocka_unit_test(test_mixed_types),
        cmocka_unit_test(test_threads_do_not_matter),
        cmocka_unit_test(test_rows_are_independent),
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_packing),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_scratch_settles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
