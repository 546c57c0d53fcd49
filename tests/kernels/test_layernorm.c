// LayerNorm: tuned against reference, gradients against differences, rows whose mean is far from 0.
#include "shapes.h"

static void layernorm_shape(Device *tuned, Device *ref, DType t, int T, int C)
{
    const int64_t n = (int64_t)T * C;
    void *x = values(t, n, 1), *dy = values(t, n, 2), *y[2], *dx[2];
    float *w = values(DT_F32, C, 3), *b = values(DT_F32, C, 4), *mean[2], *rstd[2], *dw[2], *db[2];
    for (int k = 0; k < 2; k++) {
        Device *d = k ? ref : tuned;
        y[k] = values(t, n, 5), dx[k] = values(t, n, 6), mean[k] = values(DT_F32, T, 7), rstd[k] = values(DT_F32, T, 8);
        dw[k] = values(DT_F32, C, 9), db[k] = values(DT_F32, C, 10);
        d->op.layernorm_fwd(d, t, y[k], mean[k], rstd[k], x, w, T % 3 ? b : NULL, 1e-2f, C, T);
        d->op.layernorm_bwd(d, t, dx[k], T == 5 || T == 2 ? NULL : dw[k], T == 5 || T == 3 ? NULL : db[k], dy, x,
                            mean[0], rstd[0], w, C % 2, C, T);
    }
    expect_close("layernorm y", t, y[0], y[1], (size_t)n);
    expect_close("layernorm mean", DT_F32, mean[0], mean[1], (size_t)T);
    expect_close("layernorm rstd", DT_F32, rstd[0], rstd[1], (size_t)T);
    expect_nmse("layernorm dx", t, dx[0], dx[1], (size_t)n, t == DT_BF16 ? 1e-5 : 1e-10);
    expect_close("layernorm dw", DT_F32, dw[0], dw[1], (size_t)C);
    expect_close("layernorm db", DT_F32, db[0], db[1], (size_t)C);
    FREE(x, dy, w, b, y[0], y[1], dx[0], dx[1], mean[0], mean[1], rstd[0], rstd[1], dw[0], dw[1], db[0], db[1]);
}

static void layernorm(void **state)
{
    (void)state;
    for_shapes(layernorm_shape);
}

// The mean of squares less the square of the mean would have no digit left.
static void far_from_zero(void **state)
{
    (void)state;
    enum { C = 37 };
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *d = open_isa(kernel_isas[i], 1);
        if (!d) continue;
        float x[C], one[C], y[C], mean, rstd;
        for (int c = 0; c < C; c++) x[c] = 4096 + (float)(c % 2), one[c] = 1;
        d->op.layernorm_fwd(d, DT_F32, y, &mean, &rstd, x, one, NULL, 0, C, 1);
        const double m = 18.0 / 37, deviation = sqrt(m * (1 - m));
        for (int c = 0; c < C; c++) assert_float_equal(y[c], (c % 2 - m) / deviation, 2e-3); // mean is a float
        device_close(d);
    }
}

typedef struct LayerNormLoss {
    Device *d;
    float *x, *w, *b, *y, *mean, *rstd, *dy;
    int C, T;
} LayerNormLoss;

static double layernorm_loss(void *context)
{
    LayerNormLoss *l = context;
    l->d->op.layernorm_fwd(l->d, DT_F32, l->y, l->mean, l->rstd, l->x, l->w, l->b, 1e-5f, l->C, l->T);
    return dot(l->dy, l->y, (int64_t)l->C * l->T);
}

static void gradients(void **state)
{
    (void)state;
    enum { C = 19, T = 4 };
    Device *d = open_threads("cpu", 1);
    LayerNormLoss l = {d,
                       values(DT_F32, C * T, 1),
                       values(DT_F32, C, 2),
                       values(DT_F32, C, 3),
                       values(DT_F32, C * T, 4),
                       values(DT_F32, T, 5),
                       values(DT_F32, T, 6),
                       values(DT_F32, C * T, 7),
                       C,
                       T};
    float dx[C * T], dw[C] = {0}, db[C] = {0};
    layernorm_loss(&l);
    d->op.layernorm_bwd(d, DT_F32, dx, dw, db, l.dy, l.x, l.mean, l.rstd, l.w, false, C, T);
    expect_gradient("dx", layernorm_loss, &l, l.x, C * T, dx, 1e-2f, 2e-3);
    expect_gradient("dw", layernorm_loss, &l, l.w, C, dw, 1e-2f, 2e-3);
    expect_gradient("db", layernorm_loss, &l, l.b, C, db, 1e-2f, 2e-3);
    FREE(l.x, l.w, l.b, l.y, l.mean, l.rstd, l.dy);
    device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layernorm),
        cmocka_unit_test(far_from_zero),
        cmocka_unit_test(gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
