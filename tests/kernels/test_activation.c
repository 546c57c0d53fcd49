// GELU and GeGLU: the references against values of PyTorch, the tuned against the references, gradients against differences.
#include "shapes.h"

static const Gelu kinds[] = {GELU_ERF, GELU_TANH, GELU_QUICK};

// ---- known values ---------------------------------------------------------------------------------------------------
// torch.nn.functional.gelu(x, approximate="none" | "tanh") and x * torch.sigmoid(1.702 * x), float64
static void known_values(void **state)
{
    (void)state;
    static const float x[] = {-6, -3, -1, -0.5f, 0, 0.25f, 1, 2, 5};
    static const struct {
        Gelu kind;
        double y[COUNT_OF(x)];
    } want[] = {
        {GELU_ERF,
         {-5.9195258695e-09, -4.0496940949e-03, -1.5865525393e-01, -1.5426876936e-01, 0, 1.4967658142e-01,
          8.4134474607e-01, 1.9544997361e+00, 4.9999985667e+00}},
        {GELU_TANH,
         {-8.4396489797e-11, -3.6373920818e-03, -1.5880800939e-01, -1.5428599017e-01, 0, 1.4967535070e-01,
          8.4119199061e-01, 1.9545976941e+00, 4.9999997708e+00}},
        {GELU_QUICK,
         {-2.2035354979e-04, -1.8071309708e-02, -1.5420423407e-01, -1.4961156339e-01, 0, 1.5119964990e-01,
          8.4579576593e-01, 1.9356586231e+00, 4.9989929837e+00}},
    };
    for (size_t device = 0; device < 2; device++) {
        Device *d = open_threads(device ? "cpu" : "cpu-ref", 1);
        for (size_t k = 0; k < COUNT_OF(want); k++) {
            float y[COUNT_OF(x)];
            d->op.gelu_fwd(d, DT_F32, want[k].kind, y, x, COUNT_OF(x));
            for (size_t i = 0; i < COUNT_OF(x); i++) assert_float_equal(y[i], want[k].y[i], 3e-6 * fabs(want[k].y[i]));
        }
        device_close(d);
    }
}

// ---- shapes ---------------------------------------------------------------------------------------------------------
static void gelu_shape(Device *tuned, Device *ref, DType t, int T, int C)
{
    const size_t n = (size_t)T * (size_t)C;
    const Gelu kind = kinds[(T + C) % 3];
    void *x = random_values(t, n, 1, 8), *dy = values(t, (int64_t)n, 2), *y[2], *dx[2];
    for (int k = 0; k < 2; k++) {
        Device *d = k ? ref : tuned;
        y[k] = copy_values(t, x, n), dx[k] = copy_values(t, dy, n);
        d->op.gelu_fwd(d, t, kind, y[k], T % 2 ? y[k] : x, n); // in place, and not
        d->op.gelu_bwd(d, t, kind, dx[k], C % 2 ? dx[k] : dy, x, n);
    }
    expect_close("gelu y", t, y[0], y[1], n);
    expect_close("gelu dx", t, dx[0], dx[1], n);
    FREE(x, dy, y[0], y[1], dx[0], dx[1]);
}

static void geglu_shape(Device *tuned, Device *ref, DType t, int T, int F)
{
    const int64_t lda = F + T % 2, ld = 2 * (F + T % 3), n = T * lda; // with room behind the halves of rows
    const Gelu kind = kinds[(T + F) % 3];
    void *gu = random_values(t, (size_t)(T * ld), 1, 8), *da = values(t, n, 2), *a[2], *again[2], *dgu[2];
    for (int k = 0; k < 2; k++) {
        Device *d = k ? ref : tuned;
        a[k] = values(t, n, 3), again[k] = values(t, n, 3), dgu[k] = copy_values(t, gu, (size_t)(T * ld));
        d->op.geglu_fwd(d, t, kind, a[k], lda, gu, ld, F, T);
        d->op.geglu_bwd(d, t, kind, dgu[k], T == 3 ? NULL : again[k], lda, da, dgu[k], ld, F, T); // in place
    }
    expect_close("geglu a", t, a[0], a[1], (size_t)n);
    expect_close("geglu dgu", t, dgu[0], dgu[1], (size_t)(T * ld));
    if (T != 3) expect_same_bits("geglu a again", again[0], a[0], (size_t)n * dtype_size(t));
    FREE(gu, da, a[0], a[1], again[0], again[1], dgu[0], dgu[1]);
}

static void gelu(void **state)
{
    (void)state;
    for_shapes(gelu_shape);
}

static void geglu(void **state)
{
    (void)state;
    for_shapes(geglu_shape);
}

static void large_values_are_finite(void **state)
{
    (void)state;
    static const float x[] = {-3e38f, -1e20f, -1e4f, 1e4f, 1e20f, 3e38f}, dy[] = {1, 1, 1, 1, 1, 1};
    for (size_t i = 0; i < COUNT_OF(kernel_isas) * COUNT_OF(kinds); i++) {
        Device *d = open_isa(kernel_isas[i / COUNT_OF(kinds)], 1);
        if (!d) continue;
        float y[COUNT_OF(x)], dx[COUNT_OF(x)];
        d->op.gelu_fwd(d, DT_F32, kinds[i % COUNT_OF(kinds)], y, x, COUNT_OF(x));
        d->op.gelu_bwd(d, DT_F32, kinds[i % COUNT_OF(kinds)], dx, dy, x, COUNT_OF(x));
        for (size_t k = 0; k < COUNT_OF(x); k++) {
            assert_true(fabsf(y[k] - fmaxf(x[k], 0)) <= 1e-6f * fmaxf(x[k], 1));
            assert_float_equal(dx[k], x[k] > 0, 1e-6);
        }
        device_close(d);
    }
}

// ---- gradients ------------------------------------------------------------------------------------------------------
typedef struct GeluLoss {
    Device *d;
    Gelu kind;
    float *gu, *a, *da;
    int F, T;
    bool gated;
} GeluLoss;

static double gelu_loss(void *context)
{
    GeluLoss *l = context;
    const size_t n = (size_t)l->F * (size_t)l->T;
    if (l->gated)
        l->d->op.geglu_fwd(l->d, DT_F32, l->kind, l->a, l->F, l->gu, 2 * l->F, l->F, l->T);
    else
        l->d->op.gelu_fwd(l->d, DT_F32, l->kind, l->a, l->gu, n);
    return dot(l->da, l->a, (int64_t)n);
}

static void gradients(void **state)
{
    (void)state;
    enum { F = 9, T = 3 };
    Device *d = open_threads("cpu", 1);
    for (size_t i = 0; i < 2 * COUNT_OF(kinds); i++) {
        GeluLoss l = {
            d, kinds[i / 2], values(DT_F32, 2 * F * T, 1), values(DT_F32, F * T, 2), values(DT_F32, F * T, 3), F,
            T, i % 2};
        float dgu[2 * F * T];
        if (l.gated)
            d->op.geglu_bwd(d, DT_F32, l.kind, dgu, NULL, 0, l.da, l.gu, 2 * F, F, T);
        else
            d->op.gelu_bwd(d, DT_F32, l.kind, dgu, l.da, l.gu, F * T);
        expect_gradient("dgu", gelu_loss, &l, l.gu, (l.gated ? 2 : 1) * F * T, dgu, 1e-2f, 2e-3);
        FREE(l.gu, l.a, l.da);
    }
    device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_values),
        cmocka_unit_test(gelu),
        cmocka_unit_test(geglu),
        cmocka_unit_test(gradients),
        cmocka_unit_test(large_values_are_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
