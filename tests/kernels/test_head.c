// head_*: tuned against reference, gradients against differences, near-certain and far-off targets, and the promises about
// bits: a row's results depend neither on the number of threads nor on how many other rows share the call.
#include "kernel_test.h"

typedef struct Case {
    const char *name;
    int M, V, C;
    float softcap, scale; // scale: of the rows of W; logits have a deviation of about scale * sqrt(C) / 3
} Case;

static const Case cases[] = {
    {"two words", 4, 2, 17, 0, 1},
    {"three words", 9, 3, 5, 0, 1},
    {"odd", 5, 37, 9, 0, 1},
    {"odd, capped", 5, 37, 9, 2, 1},
    {"one slab", 17, 512, 32, 0, 1},
    {"just over a slab", 14, 513, 33, 0, 1},
    {"a few slabs", 29, 1500, 40, 0, 1},
    {"a few slabs, capped", 30, 1501, 31, 3, 1},
    {"every slice", 15, 9001, 24, 0, 1},
    {"peaked", 12, 1100, 64, 0, 8},
    {"peaked, capped", 12, 1100, 64, 30, 8},
    {"flat", 12, 1100, 16, 0, 0.01f},
    {"many rows", 600, 70, 8, 0, 1},
};

static bool too_much(size_t k)
{
    return (double)cases[k].M * cases[k].V * cases[k].C > KERNEL_MOST_WORK;
}

// ---- operands -------------------------------------------------------------------------------------------------
typedef struct Work {
    DType t;
    int M, V, C;
    float softcap;
    void *h, *rows;
    float *weight, *dw;
    int32_t *target;
    Packed w;
} Work;

static Work make_work(Device *d, const Case *c, DType t)
{
    Work w = {.t = t, .M = c->M, .V = c->V, .C = c->C, .softcap = c->softcap};
    w.h = random_values(t, (size_t)c->M * c->C, 1, 1);
    w.rows = random_values(t, (size_t)c->V * c->C, 2, c->scale);
    w.weight = random_values(DT_F32, c->M, 3, 1);
    w.dw = random_values(DT_F32, (size_t)c->V * c->C, 4, 1e-3f);
    w.target = xmalloc(sizeof *w.target * (size_t)c->M);
    for (int i = 0; i < c->M; i++) w.target[i] = (int32_t)((uint32_t)i * 7919u % (uint32_t)c->V);
    w.w = pack_values(d, t, w.rows, t, c->V, c->C);
    return w;
}

static void free_work(Work *w)
{
    void *owned[] = {w->h, w->rows, w->weight, w->dw, w->target, w->w.data};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

// Everything an op of the head gives for rows [row, row + count)
typedef struct Result {
    float *logp, *lse, *entropy, *dw, *logits;
    void *dh;
} Result;

static void *poisoned(DType t, size_t n) // NaN until written
{
    return memset(xmalloc(n * dtype_size(t)), 0xff, n * dtype_size(t));
}

static Result make_result(const Work *w, int count)
{
    return (Result){.logp = poisoned(DT_F32, count),
                    .lse = poisoned(DT_F32, count),
                    .entropy = poisoned(DT_F32, count),
                    .dw = copy_values(DT_F32, w->dw, (size_t)w->V * w->C),
                    .logits = poisoned(DT_F32, (size_t)count * w->V),
                    .dh = poisoned(w->t, (size_t)count * w->C)};
}

static void free_result(Result *r)
{
    void *owned[] = {r->logp, r->lse, r->entropy, r->dw, r->logits, r->dh};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

typedef enum Pass { TWO_PASSES, TWO_PASSES_DW, ONE_PASS, ONE_PASS_DW, PASS_COUNT } Pass;

static Result run(Device *d, const Work *w, int row, int count, Pass pass)
{
    Result r = make_result(w, count);
    const void *h = (const char *)w->h + (size_t)row * w->C * dtype_size(w->t);
    float *dw = pass == TWO_PASSES_DW || pass == ONE_PASS_DW ? r.dw : NULL;
    const float *weight = w->weight + row;
    const int32_t *target = w->target + row;
    d->op.head_logits(d, w->t, r.logits, h, &w->w, w->softcap, count);
    d->op.head_fwd(d, w->t, r.logp, r.lse, r.entropy, h, &w->w, target, w->softcap, count);
    if (pass <= TWO_PASSES_DW)
        d->op.head_bwd(d, w->t, r.dh, dw, weight, r.lse, h, &w->w, target, w->softcap, count);
    else
        d->op.head_fwd_bwd(d, w->t, r.logp, r.lse, r.dh, dw, weight, h, &w->w, target, w->softcap, count);
    return r;
}

// ---- tuned against reference ----------------------------------------------------------------------------------
static void expect_result(const char *where, const Work *w, const Result *got, const Result *want)
{
    double gradient_limit = w->t == DT_BF16 ? 2e-5 : 1e-10;
    expect_nmse(tmpf("logits, %s", where), DT_F32, got->logits, want->logits, (size_t)w->M * w->V, 1e-11);
    expect_nmse(tmpf("logp, %s", where), DT_F32, got->logp, want->logp, w->M, 1e-10);
    expect_nmse(tmpf("lse, %s", where), DT_F32, got->lse, want->lse, w->M, 1e-10);
    expect_nmse(tmpf("entropy, %s", where), DT_F32, got->entropy, want->entropy, w->M, 1e-9);
    expect_nmse(tmpf("dh, %s", where), w->t, got->dh, want->dh, (size_t)w->M * w->C, gradient_limit);
    expect_nmse(tmpf("dw, %s", where), DT_F32, got->dw, want->dw, (size_t)w->V * w->C, gradient_limit);
}

static void compare(Device *const *tuned, Device *ref, const Case *c, DType t)
{
    Work w = make_work(ref, c, t);
    for (int pass = 0; pass < PASS_COUNT; pass++) {
        Result want = run(ref, &w, 0, w.M, pass);
        for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
            if (!tuned[i]) continue;
            Work own = make_work(tuned[i], c, t); // packed its way
            Result got = run(tuned[i], &own, 0, w.M, pass);
            expect_result(tmpf("%s, pass %d, %s", c->name, pass, kernel_isas[i]), &w, &got, &want);
            free_result(&got);
            free_work(&own);
        }
        free_result(&want);
    }
    free_work(&w);
}

static void test_against_reference(void **state)
{
    (void)state;
    Device *ref = open_threads("cpu-ref", 2), *tuned[COUNT_OF(kernel_isas)];
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) tuned[i] = open_isa(kernel_isas[i], 2);
    for (size_t k = 0; k < COUNT_OF(cases) * COUNT_OF(kernel_types); k++)
        if (!too_much(k / 2)) compare(tuned, ref, &cases[k / 2], kernel_types[k % 2]);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) device_close(tuned[i]);
    device_close(ref);
}

// ---- certainty ------------------------------------------------------------------------------------------------
// A target whose probability is nearly 1: the gradient is about 1 - p and must keep its relative precision, also in bf16.
// One whose logit is far below the top: logp is exact, not minus infinity.
static void expect_extremes(Device *d, Device *ref, DType t)
{
    enum { V = 700, C = 16, M = 2 };
    void *rows = random_values(t, V * C, 1, 0.05f), *h = random_values(t, M * C, 2, 0.1f);
    for (int c = 0; c < 4; c++) put(rows, t, 600 * C + c, 4), put(h, t, c, 0.75f), put(h, t, C + c, 20);
    int32_t target[M] = {600, 3}; // logit 12 above noise; row 1: about 320 below the top
    float weight[M] = {1, 1}, logp[M], lse[M], want_logp[M], want_lse[M];
    void *dh = random_values(t, M * C, 3, 1), *want = random_values(t, M * C, 3, 1);
    Packed w = pack_values(d, t, rows, t, V, C), w_ref = pack_values(ref, t, rows, t, V, C);
    d->op.head_fwd_bwd(d, t, logp, lse, dh, NULL, weight, h, &w, target, 0, M);
    ref->op.head_fwd_bwd(ref, t, want_logp, want_lse, want, NULL, weight, h, &w_ref, target, 0, M);
    assert_true(want_logp[0] > -0.02f && want_logp[1] < -250);
    for (int i = 0; i < M; i++) assert_true(fabsf(logp[i] - want_logp[i]) <= 2e-6f * fabsf(want_logp[i]) + 1e-9f);
    expect_nmse("dh of a near-certain target", t, dh, want, C, t == DT_BF16 ? 3e-5 : 1e-10);
    expect_nmse("dh of a far-off target", t, (char *)dh + C * dtype_size(t), (char *)want + C * dtype_size(t), C,
                t == DT_BF16 ? 3e-5 : 1e-10);
    free(rows), free(h), free(dh), free(want), free(w.data), free(w_ref.data);
}

static void test_extremes(void **state)
{
    (void)state;
    Device *ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *d = open_isa(kernel_isas[i], 1);
        for (size_t t = 0; d && t < COUNT_OF(kernel_types); t++) expect_extremes(d, ref, kernel_types[t]);
        device_close(d);
    }
    device_close(ref);
}

// With one word there is nothing to learn.
static void test_one_word(void **state)
{
    (void)state;
    const Case c = {"one word", 2, 1, 3, 0, 1};
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *d = open_isa(kernel_isas[i], 1);
        if (!d) continue;
        Work w = make_work(d, &c, DT_F32);
        for (int pass = 0; pass < PASS_COUNT; pass++) {
            Result r = run(d, &w, 0, w.M, pass);
            for (int row = 0; row < w.M; row++) assert_true(r.logp[row] == 0 && fabsf(r.entropy[row]) < 1e-6f);
            for (int j = 0; j < w.M * w.C; j++) assert_true(fabsf(((float *)r.dh)[j]) < 1e-6f);
            free_result(&r);
        }
        free_work(&w);
        device_close(d);
    }
}

// What is not a number must reach the loss, where it is noticed.
static void test_nan_is_not_lost(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *d = open_isa(kernel_isas[i], 1);
        if (!d) continue;
        Work w = make_work(d, &cases[6], DT_F32);
        ((float *)w.h)[3 * w.C + 1] = NAN;
        Result r = run(d, &w, 0, w.M, ONE_PASS);
        for (int row = 0; row < w.M; row++) assert_true(isnan(r.logp[row]) == (row == 3));
        free_result(&r), free_work(&w);
        device_close(d);
    }
}

// ---- bits -----------------------------------------------------------------------------------------------------
static void expect_same_result(const char *what, const Work *w, const Result *got, const Result *want, int row,
                               int count, bool with_dw)
{
    size_t size = dtype_size(w->t);
    expect_same_bits(tmpf("logp, %s", what), got->logp, want->logp + row, sizeof(float) * (size_t)count);
    expect_same_bits(tmpf("lse, %s", what), got->lse, want->lse + row, sizeof(float) * (size_t)count);
    expect_same_bits(tmpf("entropy, %s", what), got->entropy, want->entropy + row, sizeof(float) * (size_t)count);
    expect_same_bits(tmpf("logits, %s", what), got->logits, want->logits + (size_t)row * w->V,
                     sizeof(float) * (size_t)count * w->V);
    expect_same_bits(tmpf("dh, %s", what), got->dh, (char *)want->dh + (size_t)row * w->C * size,
                     (size_t)count * w->C * size);
    if (with_dw) expect_same_bits(tmpf("dw, %s", what), got->dw, want->dw, sizeof(float) * (size_t)w->V * w->C);
}

static void test_threads_do_not_matter(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++)
        for (int threads = 2; threads <= 5; threads += threads == 3 ? 2 : 1) {
            Device *one = open_isa(kernel_isas[i], 1), *many = open_isa(kernel_isas[i], threads);
            for (size_t k = 0; one && k < COUNT_OF(cases) * COUNT_OF(kernel_types); k++) {
                if (too_much(k / 2)) continue;
                Work w = make_work(one, &cases[k / 2], kernel_types[k % 2]);
                for (int pass = 0; pass < PASS_COUNT; pass++) {
                    Result a = run(one, &w, 0, w.M, pass), b = run(many, &w, 0, w.M, pass);
                    expect_same_result(tmpf("%s, %d threads", cases[k / 2].name, threads), &w, &b, &a, 0, w.M, true);
                    free_result(&a), free_result(&b);
                }
                free_work(&w);
            }
            device_close(one), device_close(many);
        }
}

static void test_rows_are_independent(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *d = open_isa(kernel_isas[i], 2);
        for (size_t k = 0; d && k < COUNT_OF(cases) * COUNT_OF(kernel_types); k++) {
            if (too_much(k / 2)) continue;
            Work w = make_work(d, &cases[k / 2], kernel_types[k % 2]);
            for (int pass = TWO_PASSES; pass <= ONE_PASS; pass += ONE_PASS) {
                Result all = run(d, &w, 0, w.M, pass);
                for (int count = 1; count < w.M && count <= 11; count += 5)
                    for (int row = 0; row + count <= w.M; row += w.M / 3 + 1) {
                        Result few = run(d, &w, row, count, pass);
                        expect_same_result(tmpf("%s, row %d of %d", cases[k / 2].name, row, w.M), &w, &few, &all, row,
                                           count, false);
                        free_result(&few);
                    }
                free_result(&all);
            }
            free_work(&w);
        }
        device_close(d);
    }
}

// ---- gradients ------------------------------------------------------------------------------------------------
typedef struct Loss { // Σ weight · logp
    Device *d;
    const Work *w;
    float *rows;
} Loss;

static double head_loss(void *context)
{
    const Loss *l = context;
    const Work *w = l->w;
    Packed packed = pack_values(l->d, DT_F32, l->rows, DT_F32, w->V, w->C);
    float *logp = xmalloc(sizeof *logp * (size_t)w->M), *lse = xmalloc(sizeof *lse * (size_t)w->M);
    l->d->op.head_fwd(l->d, DT_F32, logp, lse, NULL, w->h, &packed, w->target, w->softcap, w->M);
    double loss = 0;
    for (int i = 0; i < w->M; i++) loss += (double)w->weight[i] * logp[i];
    free(logp), free(lse), free(packed.data);
    return loss;
}

static void expect_head_gradients(Device *ref, Device *d, float softcap)
{
    const Case c = {"gradient", 9, 530, 12, softcap, 1};
    for (int pass = TWO_PASSES_DW; pass <= ONE_PASS_DW; pass++) {
        Work w = make_work(d, &c, DT_F32);
        memset(w.dw, 0, sizeof(float) * (size_t)(c.V * c.C));
        Result r = run(d, &w, 0, w.M, pass);
        Loss loss = {ref, &w, w.rows};
        expect_gradient("dh", head_loss, &loss, w.h, (size_t)(w.M * w.C), r.dh, 0.01f, 2e-3);
        if (pass != ONE_PASS) expect_gradient("dw", head_loss, &loss, w.rows, (size_t)(w.V * w.C), r.dw, 0.02f, 2e-3);
        free_result(&r), free_work(&w);
    }
}

static void test_gradients(void **state)
{
    (void)state;
    Device *ref = open_threads("cpu-ref", 2);
    for (int capped = 0; capped < 2; capped++) {
        expect_head_gradients(ref, ref, capped ? 2 : 0);
        for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
            Device *d = open_isa(kernel_isas[i], 2);
            if (d) expect_head_gradients(ref, d, capped ? 2 : 0);
            device_close(d);
        }
    }
    device_close(ref);
}

// ---- shards of the vocabulary ---------------------------------------------------------------------------------
// The whole head, put together from shards of W: lse and logp of what each gives, then gradients with the lse of the whole.
typedef struct Shard {
    int v0, V;
    float *logp, *lse;
    int32_t *target;
    Packed w;
} Shard;

static Shard make_shard(Device *d, const Work *w, int v0, int v1)
{
    Shard s = {.v0 = v0, .V = v1 - v0, .logp = poisoned(DT_F32, w->M), .lse = poisoned(DT_F32, w->M)};
    s.target = xmalloc(sizeof *s.target * (size_t)w->M);
    for (int i = 0; i < w->M; i++) s.target[i] = w->target[i] - v0;
    const char *rows = (const char *)w->rows + (size_t)v0 * w->C * dtype_size(w->t);
    s.w = pack_values(d, w->t, rows, w->t, s.V, w->C);
    return s;
}

static void join_shards(const Shard *s, int count, int row, float *logp, float *lse)
{
    double sum = 0, at = 0;
    int owners = 0;
    for (int k = 0; k < count; k++) sum += exp((double)s[k].lse[row] - s[0].lse[row]);
    for (int k = 0; k < count; k++) {
        if (s[k].target[row] < 0 || s[k].target[row] >= s[k].V) {
            assert_true(s[k].logp[row] == 0);
            continue;
        }
        at = (double)s[k].logp[row] + s[k].lse[row];
        owners++;
    }
    assert_int_equal(owners, 1);
    double all = s[0].lse[row] + log(sum);
    lse[row] = (float)all, logp[row] = (float)(at - all);
}

static void shards_backward(Device *d, const Work *w, const Shard *shard, int count, const float *lse, Result *got)
{
    size_t n = (size_t)w->M * w->C;
    float *sum = xcalloc(n, sizeof *sum);
    void *dh = poisoned(w->t, n);
    for (int k = 0; k < count; k++) {
        const Shard *s = &shard[k];
        d->op.head_bwd(d, w->t, dh, got->dw + (size_t)s->v0 * w->C, w->weight, lse, w->h, &s->w, s->target, w->softcap,
                       w->M);
        for (size_t i = 0; i < n; i++) sum[i] += get(dh, w->t, i);
    }
    for (size_t i = 0; i < n; i++) put(got->dh, w->t, i, sum[i]);
    free(sum), free(dh);
}

static void expect_shards(Device *d, Device *ref, const Case *c, DType t)
{
    enum { SHARDS = 3 };
    Work w = make_work(d, c, t), w_ref = make_work(ref, c, t);
    const int cut[SHARDS + 1] = {0, MAX(1, c->V / 5), MAX(2, c->V - c->V / 3), c->V};
    Result want = run(ref, &w_ref, 0, w.M, TWO_PASSES_DW), got = make_result(&w, w.M);
    Shard shard[SHARDS];
    for (int k = 0; k < SHARDS; k++) {
        shard[k] = make_shard(d, &w, cut[k], cut[k + 1]);
        d->op.head_fwd(d, t, shard[k].logp, shard[k].lse, NULL, w.h, &shard[k].w, shard[k].target, w.softcap, w.M);
    }
    for (int i = 0; i < w.M; i++) join_shards(shard, SHARDS, i, got.logp, got.lse);
    shards_backward(d, &w, shard, SHARDS, got.lse, &got);
    double limit = t == DT_BF16 ? 3e-5 : 1e-10;
    expect_nmse(tmpf("logp of shards, %s", c->name), DT_F32, got.logp, want.logp, w.M, 1e-10);
    expect_nmse(tmpf("lse of shards, %s", c->name), DT_F32, got.lse, want.lse, w.M, 1e-10);
    expect_nmse(tmpf("dh of shards, %s", c->name), t, got.dh, want.dh, (size_t)w.M * w.C, limit);
    expect_nmse(tmpf("dw of shards, %s", c->name), DT_F32, got.dw, want.dw, (size_t)w.V * w.C, limit);
    for (int k = 0; k < SHARDS; k++)
        free(shard[k].logp), free(shard[k].lse), free(shard[k].target), free(shard[k].w.data);
    free_result(&want), free_result(&got), free_work(&w), free_work(&w_ref);
}

// Every target outside: tuned as the reference, in every pass; entropy and lse as if the target were inside.
static void expect_foreign_targets(Device *d, Device *ref, const Case *c, DType t)
{
    Work w = make_work(d, c, t), w_ref = make_work(ref, c, t);
    Result inside = run(ref, &w_ref, 0, w.M, TWO_PASSES);
    for (int i = 0; i < w.M; i++) w.target[i] = w_ref.target[i] = i % 2 ? -1 - w.target[i] : w.V + w.target[i];
    for (int pass = 0; pass < PASS_COUNT; pass++) {
        Result want = run(ref, &w_ref, 0, w.M, pass), got = run(d, &w, 0, w.M, pass);
        expect_result(tmpf("%s, foreign targets, pass %d", c->name, pass), &w, &got, &want);
        for (int i = 0; i < w.M; i++) assert_true(got.logp[i] == 0);
        expect_nmse("lse", DT_F32, got.lse, inside.lse, w.M, 1e-10);
        expect_nmse("entropy", DT_F32, got.entropy, inside.entropy, w.M, 1e-9);
        free_result(&want), free_result(&got);
    }
    free_result(&inside), free_work(&w), free_work(&w_ref);
}

static void test_shards_of_the_vocabulary(void **state)
{
    (void)state;
    Device *ref = open_threads("cpu-ref", 2);
    for (size_t i = 0; i < COUNT_OF(kernel_isas) + 1; i++) {
        Device *d = i < COUNT_OF(kernel_isas) ? open_isa(kernel_isas[i], 2) : open_threads("cpu-ref", 2);
        for (size_t k = COUNT_OF(kernel_types); d && k < COUNT_OF(cases) * COUNT_OF(kernel_types); k++) {
            if (too_much(k / 2)) continue;
            expect_shards(d, ref, &cases[k / 2], kernel_types[k % 2]); // of three words or more
            expect_foreign_targets(d, ref, &cases[k / 2], kernel_types[k % 2]);
        }
        device_close(d);
    }
    device_close(ref);
}

static void test_scratch_settles(void **state)
{
    (void)state;
    Device *d = open_threads("cpu", 2);
    Work w = make_work(d, &cases[6], DT_BF16);
    size_t settled = 0;
    for (int i = 0; i < 4; i++) {
        for (int pass = 0; pass < PASS_COUNT; pass++) {
            Result r = run(d, &w, 0, w.M, pass);
            free_result(&r);
        }
        if (i == 2) settled = d->scratch_bytes(d);
    }
    assert_int_equal(d->scratch_bytes(d), settled);
    free_work(&w);
    device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_one_word),
        cmocka_unit_test(test_nan_is_not_lost),
        cmocka_unit_test(test_threads_do_not_matter),
        cmocka_unit_test(test_rows_are_independent),
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_shards_of_the_vocabulary),
        cmocka_unit_test(test_scratch_settles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
