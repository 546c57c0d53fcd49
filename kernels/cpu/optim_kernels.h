// Inner loops of optim.c, spelled once for all instruction sets. Formulas stand there.
#pragma once
#include "isa_kernels.h"
#include "vec.h"

static void adamw_run(const AdamStep *a, float *p, float *m, float *v, const float *g, int count)
{
    const vf beta1 = vf_set(a->beta1), beta2 = vf_set(a->beta2), rest1 = vf_set((float)(1 - (double)a->beta1)),
             rest2 = vf_set((float)(1 - (double)a->beta2)), step = vf_set(-a->lr / a->c1),
             root = vf_set(1 / a->sqrt_c2);
    EACH_VECTOR(i, n, count)
    {
        vf gi = load_some(DT_F32, g, i, n) * vf_set(a->g_scale);
        vf mi = vf_fma(beta1, load_some(DT_F32, m, i, n), rest1 * gi);
        vf vi_ = vf_fma(beta2, load_some(DT_F32, v, i, n), rest2 * gi * gi);
        vf pi = load_some(DT_F32, p, i, n) * vf_set(a->decay);
        store_some(DT_F32, m, i, mi, n);
        store_some(DT_F32, v, i, vi_, n);
        store_some(DT_F32, p, i, vf_fma(step, mi / vf_fma(vf_sqrt(vi_), root, vf_set(a->eps)), pi), n);
    }
}

enum { SUM_LANES = 16 };

// The lanes' sum, halves first: the same on every instruction set.
INLINE double sum_lanes(double lane[SUM_LANES])
{
    UNROLL
    for (int n = SUM_LANES / 2; n; n /= 2)
        for (int j = 0; j < n; j++) lane[j] += lane[j + n];
    return lane[0];
}

// Lane i adds elements i, i + 16, ...
static double sum_squares_run(const float *x, int n)
{
    double lane[SUM_LANES] = {0};
    int i = 0;
    for (; i + SUM_LANES <= n; i += SUM_LANES)
        for (int j = 0; j < SUM_LANES; j++) lane[j] += (double)x[i + j] * x[i + j];
    for (; i < n; i++) lane[i % SUM_LANES] += (double)x[i] * x[i];
    return sum_lanes(lane);
}

// The same with four lanes: what a short row needs.
INLINE double sum_squares_short(const float *x, int n)
{
    double lane[4] = {0};
    int i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; j++) lane[j] += (double)x[i + j] * x[i + j];
    for (; i < n; i++) lane[0] += (double)x[i] * x[i];
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

static void row_squares_run(double *out, const float *x, int64_t rows, int K)
{
    enum { SHORT = 64 };
    if (K == 1)
        for (int64_t r = 0; r < rows; r++) out[r] = (double)x[r] * x[r];
    else if (K <= SHORT)
        for (int64_t r = 0; r < rows; r++) out[r] = sum_squares_short(x + r * K, K);
    else
        for (int64_t r = 0; r < rows; r++) out[r] = sum_squares_run(x + r * K, K);
}
