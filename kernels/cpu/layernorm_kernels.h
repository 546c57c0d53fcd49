// Inner loops of layernorm.c, spelled once for all instruction sets. Formulas stand there.
#pragma once
#include "isa_kernels.h"
#include "vec.h"

// Two sweeps: squares of x less the squared mean would lose what both have in common.
INLINE void layernorm_fwd_as(const DType t, void *y, float *mean, float *rstd, const void *x, const float *w,
                             const float *b, float eps, int C)
{
    vf sum = vf_set(0), squares = vf_set(0);
    EACH_VECTOR(c, n, C) sum += load_some(t, x, c, n);
    const vf m = vf_set(*mean = vf_sum(sum) / (float)C);
    EACH_VECTOR(c, n, C)
    {
        vf u = load_some(t, x, c, n) - m;
        if (n < VL) u = vf_first(u, n);
        squares = vf_fma(u, u, squares);
    }
    const vf r = vf_set(*rstd = 1 / sqrtf(vf_sum(squares) / (float)C + eps));
    EACH_VECTOR(c, n, C)
    {
        const vf bias = b ? load_some(DT_F32, b, c, n) : vf_set(0);
        store_some(t, y, c, vf_fma((load_some(t, x, c, n) - m) * r, load_some(DT_F32, w, c, n), bias), n);
    }
}

static void layernorm_fwd_row(DType t, void *y, float *mean, float *rstd, const void *x, const float *w, const float *b,
                              float eps, int C)
{
    FOR_TYPE(t, layernorm_fwd_as(DT_BF16, y, mean, rstd, x, w, b, eps, C),
             layernorm_fwd_as(DT_F32, y, mean, rstd, x, w, b, eps, C));
}

INLINE void layernorm_bwd_as(const DType t, void *dx, float *sums, const void *dy, const void *x, float mean,
                             float rstd, const float *w, bool accumulate, int C)
{
    const vf m = vf_set(mean), r = vf_set(rstd);
    vf sum = vf_set(0), dot = vf_set(0);
    EACH_VECTOR(c, n, C) // lanes beyond n: dy is 0 there
    {
        vf grad = load_some(t, dy, c, n), z = (load_some(t, x, c, n) - m) * r;
        vf g = grad * load_some(DT_F32, w, c, n);
        sum += g;
        dot = vf_fma(g, z, dot);
        if (!sums) continue;
        store_some(DT_F32, sums, c, vf_fma(grad, z, load_some(DT_F32, sums, c, n)), n);
        store_some(DT_F32, sums + C, c, grad + load_some(DT_F32, sums + C, c, n), n);
    }
    const vf mean_g = vf_set(vf_sum(sum) / (float)C), mean_gz = vf_set(vf_sum(dot) / (float)C);
    EACH_VECTOR(c, n, C)
    {
        vf z = (load_some(t, x, c, n) - m) * r, g = load_some(t, dy, c, n) * load_some(DT_F32, w, c, n);
        vf v = (g - mean_g - z * mean_gz) * r;
        store_some(t, dx, c, accumulate ? v + load_some(t, dx, c, n) : v, n);
    }
}

static void layernorm_bwd_row(DType t, void *dx, float *sums, const void *dy, const void *x, float mean, float rstd,
                              const float *w, bool accumulate, int C)
{
    FOR_TYPE(t, layernorm_bwd_as(DT_BF16, dx, sums, dy, x, mean, rstd, w, accumulate, C),
             layernorm_bwd_as(DT_F32, dx, sums, dy, x, mean, rstd, w, accumulate, C));
}
