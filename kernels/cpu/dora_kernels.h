// Inner loops of dora.c, spelled once for all instruction sets. Formulas stand there.
#pragma once
#include "gemm.h"
#include "isa_kernels.h"
#include "vec.h"

INLINE void scale_cols_as(const DType t, void *y, const void *u, const float *gain, const float *bias,
                          const void *residual, int N)
{
    EACH_VECTOR(c, n, N)
    {
        vf v = load_some(t, u, c, n);
        if (gain) v *= load_some(DT_F32, gain, c, n);
        if (bias) v += load_some(DT_F32, bias, c, n);
        if (residual) v += load_some(t, residual, c, n);
        store_some(t, y, c, v, n);
    }
}

static void scale_cols_row(DType t, void *y, const void *u, const float *gain, const float *bias, const void *residual,
                           int N)
{
    FOR_TYPE(t, scale_cols_as(DT_BF16, y, u, gain, bias, residual, N),
             scale_cols_as(DT_F32, y, u, gain, bias, residual, N));
}

INLINE void scale_cols_bwd_as(const DType t, void *du, float *sum, const void *dy, const void *u, const float *gain,
                              int N)
{
    EACH_VECTOR(c, n, N)
    {
        vf g = load_some(t, dy, c, n);
        if (sum) store_some(DT_F32, sum, c, vf_fma(g, load_some(t, u, c, n), load_some(DT_F32, sum, c, n)), n);
        store_some(t, du, c, g * load_some(DT_F32, gain, c, n), n);
    }
}

static void scale_cols_bwd_row(DType t, void *du, float *sum, const void *dy, const void *u, const float *gain, int N)
{
    FOR_TYPE(t, scale_cols_bwd_as(DT_BF16, du, sum, dy, u, gain, N),
             scale_cols_bwd_as(DT_F32, du, sum, dy, u, gain, N));
}

static void add_squares(double sum[PANEL], const float *x, int rows)
{
    for (int j = 0; j < PANEL; j += VL) {
        vf squares = vf_set(0);
        for (int i = 0; i < rows; i++) {
            vf v = load_f32(x + i * PANEL + j);
            squares = vf_fma(v, v, squares);
        }
        for (int l = 0; l < VL; l++) sum[j + l] += (double)squares[l];
    }
}
