// Kernels of kernels/cuda/head.cu on logits that a GEMM would have made, against the references of the CPU: vocabularies of any size,
// rows aligned or not, gradients in place, targets in and outside of the shard, near-certain and far-off ones.
#include "cuda_kernels.h"
#include "reference.h"

// ---- operands -------------------------------------------------------------------------------------------------------
typedef struct Case {
    const char *name;
    int M, V, C, pad; // pad: columns of u beside its own
    float softcap, scale;
} Case;

typedef struct Work {
    Case c;
    float *h, *rows;   // (M,C), (V,C)
    float *u, *weight; // device: (M,ldu), (M)
    int64_t ldu;
    int32_t *target; // device
    Packed w;
} Work;

static Work work_new(const Case *c)
{
    Work w = {.c = *c, .ldu = c->V + c->pad};
    w.h = device_random("h", DT_F32, (size_t)c->M * c->C, 1, 1);
    w.rows = device_random("rows", DT_F32, (size_t)c->V * c->C, 2, c->scale);
    w.weight = device_random("weight", DT_F32, c->M, 3, 1);
    w.target = cudahost_alloc(sizeof *w.target * (size_t)c->M, "target");
    for (int i = 0; i < c->M; i++) w.target[i] = (int32_t)((uint32_t)i * 7919u % (uint32_t)c->V);
    w.w = (Packed){DT_F32, c->V, c->C, NULL};
    w.w.data = aligned_alloc(64, ROUND_UP(reference->packed_bytes(reference, DT_F32, c->V, c->C), 64));
    reference->op.linear_pack(reference, &w.w, 0, c->V, w.rows, DT_F32, c->C);
    w.u = device_empty("u", DT_F32, (size_t)((c->M - 1) * w.ldu + c->V));
    return w;
}

static void logits(Work *w) // without the cap; columns beside the rows stay NaN
{
    float *u = xmalloc(sizeof *u * (size_t)w->c.M * w->c.V);
    reference->op.head_logits(reference, DT_F32, u, w->h, &w->w, 0, w->c.M);
    for (int i = 0; i < w->c.M; i++) memcpy(w->u + i * w->ldu, u + (size_t)i * w->c.V, sizeof *u * (size_t)w->c.V);
    free(u);
}

static void work_free(Work *w)
{
    cudahost_free(w->h), cudahost_free(w->rows), cudahost_free(w->u), cudahost_free(w->weight),
        cudahost_free(w->target);
    free(w->w.data);
}

static void expect_close(const char *what, const Case *c, const float *got, const float *want, size_t n, double limit)
{
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        const double g = got[i], x = want[i];
        error += (g - x) * (g - x), norm += x * x;
    }
    if (!(error <=
          norm * limit + 1e-12 * (double)n)) // the second: lse is f32, which is what is left where p is nearly 1
        fail_msg("%s, %s: error %.3g of %.3g", what, c->name, error, norm);
}

// ---- statistics -----------------------------------------------------------------------------------------------------
typedef struct Stats {
    float *logp, *lse, *entropy;
} Stats;

static Stats stats_new(int M)
{
    return (Stats){device_empty("logp", DT_F32, M), device_empty("lse", DT_F32, M), device_empty("entropy", DT_F32, M)};
}
static void stats_free(Stats *s)
{
    cudahost_free(s->logp), cudahost_free(s->lse), cudahost_free(s->entropy);
}

static void check_stats(Work *w, const Stats *want)
{
    const int M = w->c.M;
    const size_t bytes = sizeof(float) * (size_t)M;
    Stats s = stats_new(M), first = stats_new(M);
    logits(w);
    FOR_EACH_ORDER(i)
    {
        Stats *to = i ? &s : &first;
        cuda_head_stats(to->logp, to->lse, to->entropy, w->u, w->ldu, w->target, w->c.softcap, w->c.V, M, NULL);
        expect_no_findings(w->c.name);
        if (!i) continue;
        assert_memory_equal(s.logp, first.logp, bytes);
        assert_memory_equal(s.lse, first.lse, bytes);
        assert_memory_equal(s.entropy, first.entropy, bytes);
    }
    expect_close("logp", &w->c, s.logp, want->logp, M, 1e-10);
    expect_close("lse", &w->c, s.lse, want->lse, M, 1e-10);
    expect_close("entropy", &w->c, s.entropy, want->entropy, M, 1e-9);
    for (int i = 0; i < M; i++) assert_true((w->target[i] >= 0 && w->target[i] < w->c.V) || s.logp[i] == 0);
    stats_free(&s), stats_free(&first);
}

// ---- gradients ------------------------------------------------------------------------------------------------------
// Over u's rows: of head_bwd, or of head_fwd_bwd (lse NULL).
static void gradient(Work *w, DType t, const float *lse)
{
    const Case *c = &w->c;
    logits(w);
    if (lse)
        cuda_head_grad(t, w->u, w->ldu, w->weight, lse, w->target, c->softcap, c->V, c->M, NULL);
    else
        cuda_head_loss(t, NULL, NULL, w->u, w->ldu, w->weight, w->target, c->softcap, c->V, c->M, NULL);
    expect_no_findings(c->name);
}

// dh = dz · W and dw = dzᵀ · h, in doubles, as the GEMMs that follow would, against {dh, dw}
static void expect_gradients(const Work *w, DType t, const void *dz, int64_t ld, const float *want)
{
    const int M = w->c.M, V = w->c.V, C = w->c.C;
    const size_t n = (size_t)(M + V) * C;
    double *sum = xcalloc(n, sizeof *sum);
    float *got = xmalloc(n * sizeof *got);
    for (int i = 0; i < M; i++)
        for (int v = 0; v < V; v++) {
            const double z = device_get(dz, t, (size_t)(i * ld + v));
            for (int k = 0; k < C; k++) {
                sum[i * C + k] += z * w->rows[v * C + k];
                sum[(M + v) * C + k] += z * w->h[i * C + k];
            }
        }
    for (size_t i = 0; i < n; i++) got[i] = (float)sum[i];
    const double limit = t == DT_BF16 ? 2e-5 : 1e-10;
    expect_close("dh", &w->c, got, want, (size_t)M * C, limit);
    expect_close("dw", &w->c, got + M * C, want + M * C, (size_t)V * C, limit);
    free(sum), free(got);
}

// gradients: of head_bwd, which has lse, and of head_fwd_bwd, which knows it better
// (way 0, 1 and 2, 3; in f32 and bf16)
enum { WAYS = 4 };
static void check_gradients(Work *w, const float *lse, float *const gradients[2], int from, int to)
{
    const Case *c = &w->c;
    const size_t bytes = sizeof(float) * (size_t)((c->M - 1) * w->ldu + c->V);
    float *first = xmalloc(bytes);
    for (int i = from; i < to; i++) {
        const DType t = i % 2 ? DT_BF16 : DT_F32;
        cudahost_order(CUDAHOST_RANDOM, (uint64_t)i);
        gradient(w, t, i < 2 ? lse : NULL);
        expect_gradients(w, t, w->u, t == DT_BF16 ? 2 * w->ldu : w->ldu, gradients[i / 2]);
        memcpy(first, w->u, bytes);
        cudahost_order(CUDAHOST_REVERSE, 0);
        gradient(w, t, i < 2 ? lse : NULL);
        assert_memory_equal(first, w->u, bytes);
    }
    free(first);
}

static void check_case(const Case *c, bool outside, int from, int to)
{
    Work w = work_new(c);
    if (outside)
        for (int i = 0; i < c->M; i++) w.target[i] = i % 3 == 0 ? -1 - i : i % 3 == 1 ? c->V + i : w.target[i];
    Stats want = stats_new(c->M);
    float *gradients[2];
    const size_t nh = (size_t)c->M * c->C, n = nh + (size_t)c->V * c->C;
    for (int i = 0; i < 2; i++) gradients[i] = xcalloc(n, sizeof(float));
    Device *d = reference;
    d->op.head_fwd(d, DT_F32, want.logp, want.lse, want.entropy, w.h, &w.w, w.target, c->softcap, c->M);
    d->op.head_bwd(d, DT_F32, gradients[0], gradients[0] + nh, w.weight, want.lse, w.h, &w.w, w.target, c->softcap,
                   c->M);
    d->op.head_fwd_bwd(d, DT_F32, want.logp, want.lse, gradients[1], gradients[1] + nh, w.weight, w.h, &w.w, w.target,
                       c->softcap, c->M);
    check_stats(&w, &want);
    check_gradients(&w, want.lse, gradients, from, to);
    free(gradients[0]), free(gradients[1]), stats_free(&want), work_free(&w);
    expect_no_findings(c->name);
}

static const Case cases[] = {
    {"one word", 3, 1, 3, 0, 0, 1},       {"two words", 4, 2, 17, 2, 0, 1},
    {"three words", 9, 3, 5, 1, 0, 1},    {"odd", 5, 37, 9, 0, 0, 1},
    {"odd, capped", 5, 37, 9, 3, 2, 1},   {"one step, less one", 3, 2047, 8, 1, 0, 1},
    {"one step", 3, 2048, 8, 0, 0, 1},    {"one step and one, capped", 3, 2049, 8, 3, 3, 1},
    {"a few steps", 4, 5003, 8, 0, 0, 1}, {"a few steps, aligned", 4, 5003, 8, 5, 0, 1},
    {"peaked", 6, 1100, 64, 0, 0, 8},     {"peaked, capped", 6, 1101, 64, 0, 30, 8},
    {"flat", 6, 1100, 16, 4, 0, 0.01f},   {"many rows", 60, 70, 8, 2, 0, 1},
};

static void test_against_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        check_case(&cases[i], false, 0, WAYS);
        check_case(&cases[i], true, 0, WAYS);
    }
}

static void test_random_shapes(void **state)
{
    (void)state;
    for (int i = 0; i < 280; i++) {
        uint32_t u[4];
        philox((uint64_t)i, 9, 0, u);
        const uint32_t most = i % 70 == 0 ? 4500 : i % 10 == 0 ? 700 : 60;
        const Case c = {tmpf("shape %d", i), 1 + (int)(u[0] % 4), 1 + (int)(u[1] % most), 7,
                        (int)(u[2] % 7),     i % 3 ? 0 : 1.5f,    i % 5 ? 1 : 6};
        check_case(&c, i / WAYS % 2, i % WAYS, i % WAYS + 1);
    }
}

// ---- certainty ------------------------------------------------------------------------------------------------------
// A target of probability near 1: 1 - p must keep its relative precision. One far below the top: logp is exact.
static void test_extremes(void **state)
{
    (void)state;
    enum { V = 700, M = 2 };
    float *u = device_random("u", DT_F32, V * M, 1, 0.1f), *weight = device_empty("weight", DT_F32, M);
    int32_t *target = cudahost_alloc(sizeof *target * M, "target");
    u[600] = 18, target[0] = 600, weight[0] = 1;
    u[V + 600] = 320, target[1] = 3, weight[1] = 1;
    const float far = u[V + 3] - 320;
    double others = 0;
    for (int v = 0; v < V; v++) others += v == 600 ? 0 : exp((double)u[v] - 18);
    others /= 1 + others;
    Stats s = stats_new(M);
    cudahost_order(CUDAHOST_FORWARD, 0);
    cuda_head_loss(DT_F32, s.logp, s.lse, u, V, weight, target, 0, V, M, NULL);
    expect_no_findings("extremes");
    assert_true(fabs(u[600] - others) <= 3e-6 * others);
    assert_true(fabs(s.logp[0] - log1p(-others)) <= 3e-6 * others);
    assert_true(fabsf(s.logp[1] - far) <= 2e-6f * 320);
    assert_true(fabsf(u[V + 3] - 1) <= 1e-6f && fabsf(u[V + 600] + 1) <= 1e-6f);
    stats_free(&s), cudahost_free(u), cudahost_free(target), cudahost_free(weight);
}

// What is not a number reaches the loss of its row; a logit of minus infinity is a word that cannot be.
static void test_nan_and_infinity(void **state)
{
    (void)state;
    enum { V = 2500, M = 3 };
    float *u = device_random("u", DT_F32, V * M, 1, 2), *weight = device_random("weight", DT_F32, M, 2, 1);
    int32_t *target = cudahost_alloc(sizeof *target * M, "target");
    for (int i = 0; i < M; i++) target[i] = 11 * i;
    u[V + 77] = NAN;
    u[2 * V + 77] = -INFINITY;
    Stats s = stats_new(M);
    cudahost_order(CUDAHOST_FORWARD, 0);
    cuda_head_stats(s.logp, s.lse, s.entropy, u, V, target, 0, V, M, NULL);
    cuda_head_loss(DT_F32, NULL, NULL, u, V, weight, target, 0, V, M, NULL);
    expect_no_findings("nan");
    for (int i = 0; i < M; i++) assert_true(isnan(s.logp[i]) == (i == 1) && isnan(s.entropy[i]) == (i == 1));
    assert_true(isnan(u[V + 77]) && !isnan(u[77]) && u[2 * V + 77] == 0);
    stats_free(&s), cudahost_free(u), cudahost_free(target), cudahost_free(weight);
}

// ---- sampling -------------------------------------------------------------------------------------------------------
static void test_cap(void **state)
{
    (void)state;
    enum { N = 1027 };
    float *z = device_random("z", DT_F32, N, 1, 40), *want = xmalloc(N * sizeof *want);
    for (int i = 0; i < N; i++) want[i] = (float)(5 * tanh(z[i] / 5.0));
    cuda_softcap(z, 5, N, NULL);
    cuda_softcap(z, 5, 0, NULL);
    expect_close("logits", &(Case){.name = "capped"}, z, want, N, 1e-12);
    free(want), cudahost_free(z);
    expect_no_findings("cap");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference), cmocka_unit_test(test_random_shapes), cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_nan_and_infinity),  cmocka_unit_test(test_cap),
    };
    return cmocka_run_group_tests(tests, open_reference, close_reference);
}
