// activation: GELU in its three forms, and the gated feed-forward that uses it (GeGLU). References and drivers; the inner loops are
// in activation_kernels.h.
//
//   gate g(x)          erf    Phi(x) = erfc(-x / sqrt 2) / 2                                    (Hendrycks & Gimpel 2016, exact)
//                      tanh   sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))                          (the same, tanh approximation)
//                      quick  sigmoid(1.702 x)                                                  (the same, sigmoid approximation)
//   gelu               y = x g(x)              dx = dy (g(x) + x g'(x))
//   geglu              a = up * gelu(gate)     dup = da gelu(gate), dgate = da up (g + gate g') (Shazeer 2020)
#include "isa_kernels.h"
#include <math.h>

// ---- references -----------------------------------------------------------------------------------------------------
typedef struct Gate {
    double g, slope; // g(x), g(x) + x g'(x)
} Gate;

static Gate gate_at(Gelu kind, double x)
{
    if (kind == GELU_ERF) {
        const double g = erfc(-x * 0.70710678118654752) / 2;
        return (Gate){g, g + x * exp(-x * x / 2) * 0.39894228040143268}; // 1 / sqrt(2 pi)
    }
    const double a = GELU_A(kind), b = GELU_B(kind), s = 1 / (1 + exp(-x * (a + b * x * x)));
    return (Gate){s, s + x * s * (1 - s) * (a + 3 * b * x * x)};
}

void gelu_fwd_ref(Device *d, DType t, Gelu kind, void *y, const void *x, size_t n)
{
    (void)d;
    for (int64_t i = 0; i < (int64_t)n; i++) {
        const double v = cpu_load(x, t, i);
        cpu_store(y, t, i, (float)(v * gate_at(kind, v).g));
    }
}

void gelu_bwd_ref(Device *d, DType t, Gelu kind, void *dx, const void *dy, const void *x, size_t n)
{
    (void)d;
    for (int64_t i = 0; i < (int64_t)n; i++)
        cpu_store(dx, t, i, (float)(cpu_load(dy, t, i) * gate_at(kind, cpu_load(x, t, i)).slope));
}

void geglu_fwd_ref(Device *d, DType t, Gelu kind, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++)
        for (int c = 0; c < F; c++) {
            const double g = cpu_load(gu, t, i * ldgu + c), u = cpu_load(gu, t, i * ldgu + ldgu / 2 + c);
            cpu_store(a, t, i * lda + c, (float)(u * g * gate_at(kind, g).g));
        }
}

void geglu_bwd_ref(Device *d, DType t, Gelu kind, void *dgu, void *a, int64_t lda, const void *da, const void *gu,
                   int64_t ldgu, int F, int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++)
        for (int c = 0; c < F; c++) {
            const double g = cpu_load(gu, t, i * ldgu + c), u = cpu_load(gu, t, i * ldgu + ldgu / 2 + c);
            const double grad = cpu_load(da, t, i * F + c);
            const Gate gate = gate_at(kind, g);
            if (a) cpu_store(a, t, i * lda + c, (float)(u * g * gate.g));
            cpu_store(dgu, t, i * ldgu + c, (float)(grad * u * gate.slope));
            cpu_store(dgu, t, i * ldgu + ldgu / 2 + c, (float)(grad * g * gate.g));
        }
}

// ---- tuned ----------------------------------------------------------------------------------------------------------
enum { RUN = 1 << 12 }; // elements that a thread takes at a time

void gelu_fwd(Device *d, DType t, Gelu kind, void *y, const void *x, size_t n)
{
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)n))
    for (int64_t i = 0; i < (int64_t)n; i += RUN)
        k->gelu_fwd_run(t, kind, cpu_row(y, t, i), cpu_row(x, t, i), (int)MIN(RUN, (int64_t)n - i));
}

void gelu_bwd(Device *d, DType t, Gelu kind, void *dx, const void *dy, const void *x, size_t n)
{
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)n))
    for (int64_t i = 0; i < (int64_t)n; i += RUN)
        k->gelu_bwd_run(t, kind, cpu_row(dx, t, i), cpu_row(dy, t, i), cpu_row(x, t, i), (int)MIN(RUN, (int64_t)n - i));
}

void geglu_fwd(Device *d, DType t, Gelu kind, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T)
{
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *F))
    for (int64_t i = 0; i < T; i++)
        k->geglu_fwd_row(t, kind, cpu_row(a, t, i * lda), cpu_row(gu, t, i * ldgu), ldgu / 2, F);
}

void geglu_bwd(Device *d, DType t, Gelu kind, void *dgu, void *a, int64_t lda, const void *da, const void *gu,
               int64_t ldgu, int F, int T)
{
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *F))
    for (int64_t i = 0; i < T; i++)
        k->geglu_bwd_row(t, kind, cpu_row(dgu, t, i * ldgu), a ? cpu_row(a, t, i * lda) : NULL, cpu_row(da, t, i * F),
                         cpu_row(gu, t, i * ldgu), ldgu / 2, F);
}
