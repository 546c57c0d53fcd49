// Inner loops of activation.c, spelled once for all instruction sets. Formulas stand there.
#pragma once
#include "isa_kernels.h"
#include "vec.h"

// erfc(z) / 2 for z >= 0, relative error below 3e-7: t exp(-z² + P(t)) with t = 1 / (1 + z/2), P by Chebyshev's method
// (Press et al., Numerical Recipes, 6.2.2).
INLINE vf vf_half_erfc(vf z)
{
    static const float coefficient[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                                        -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    const vf t = vf_set(1) / vf_fma(z, vf_set(0.5f), vf_set(1));
    vf p = vf_set(coefficient[0]);
    UNROLL
    for (size_t i = 1; i < COUNT_OF(coefficient); i++) p = vf_fma(p, t, vf_set(coefficient[i]));
    return vf_set(0.5f) * t * vf_exp(vf_fma(-z, z, p));
}

typedef struct VecGate {
    vf g, slope; // g(x), g(x) + x g'(x)
} VecGate;

INLINE VecGate gelu_gate(const Gelu kind, vf x)
{
    if (kind == GELU_ERF) {
        const vf far = vf_half_erfc(vf_max(x, -x) * vf_set(0.70710678f));
        const vf g = vf_select(x < vf_set(0), far, vf_set(1) - far);
        return (VecGate){g, vf_fma(x * vf_set(0.39894228f), vf_exp(x * x * vf_set(-0.5f)), g)};
    }
    const vf a = vf_set(GELU_A(kind)), b = vf_set(GELU_B(kind));
    const vf square = vf_min(x * x, vf_set(1e4f)); // s is 0 or 1 beyond
    const vf s = vf_sigmoid(x * vf_fma(square, b, a));
    const vf inner = vf_fma(square, vf_set(3) * b, a);
    return (VecGate){s, vf_fma(x * s * (vf_set(1) - s), inner, s)};
}

INLINE void gelu_fwd_as(const DType t, const Gelu kind, void *y, const void *x, int count)
{
    EACH_VECTOR(c, n, count)
    {
        vf v = load_some(t, x, c, n);
        store_some(t, y, c, v * gelu_gate(kind, v).g, n);
    }
}

INLINE void gelu_bwd_as(const DType t, const Gelu kind, void *dx, const void *dy, const void *x, int count)
{
    EACH_VECTOR(c, n, count)
    store_some(t, dx, c, load_some(t, dy, c, n) * gelu_gate(kind, load_some(t, x, c, n)).slope, n);
}

INLINE void geglu_fwd_as(const DType t, const Gelu kind, void *a, const void *gu, int64_t up, int F)
{
    EACH_VECTOR(c, n, F)
    {
        vf g = load_some(t, gu, c, n), u = load_some(t, gu, up + c, n);
        store_some(t, a, c, u * (g * gelu_gate(kind, g).g), n);
    }
}

INLINE void geglu_bwd_as(const DType t, const Gelu kind, void *dgu, void *a, const void *da, const void *gu, int64_t up,
                         int F)
{
    EACH_VECTOR(c, n, F)
    {
        vf g = load_some(t, gu, c, n), u = load_some(t, gu, up + c, n), grad = load_some(t, da, c, n);
        VecGate gate = gelu_gate(kind, g);
        if (a) store_some(t, a, c, u * (g * gate.g), n);
        store_some(t, dgu, c, grad * u * gate.slope, n);
        store_some(t, dgu, up + c, grad * (g * gate.g), n);
    }
}

// A loop of its own for each type and kind.
#define FOR_GELU(name, t, kind, ...)                                                                                   \
    switch (kind) {                                                                                                    \
    case GELU_ERF: FOR_TYPE(t, name(DT_BF16, GELU_ERF, __VA_ARGS__), name(DT_F32, GELU_ERF, __VA_ARGS__)); break;      \
    case GELU_TANH: FOR_TYPE(t, name(DT_BF16, GELU_TANH, __VA_ARGS__), name(DT_F32, GELU_TANH, __VA_ARGS__)); break;   \
    case GELU_QUICK: FOR_TYPE(t, name(DT_BF16, GELU_QUICK, __VA_ARGS__), name(DT_F32, GELU_QUICK, __VA_ARGS__));       \
    }

static void gelu_fwd_run(DType t, Gelu kind, void *y, const void *x, int n)
{
    FOR_GELU(gelu_fwd_as, t, kind, y, x, n)
}

static void gelu_bwd_run(DType t, Gelu kind, void *dx, const void *dy, const void *x, int n)
{
    FOR_GELU(gelu_bwd_as, t, kind, dx, dy, x, n)
}

static void geglu_fwd_row(DType t, Gelu kind, void *a, const void *gu, int64_t up, int F)
{
    FOR_GELU(geglu_fwd_as, t, kind, a, gu, up, F)
}

static void geglu_bwd_row(DType t, Gelu kind, void *dgu, void *a, const void *da, const void *gu, int64_t up, int F)
{
    FOR_GELU(geglu_bwd_as, t, kind, dgu, a, da, gu, up, F)
}
