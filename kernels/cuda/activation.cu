// activation: GELU in its three forms, GeGLU and SwiGLU, forward and backward; formulas stand in cpu/activation.c and, of SwiGLU, in
// cpu/elementwise.c. Bound by memory: the arithmetic of erfc hides behind it.
#include "rows.cuh"

// An activation is x g(x), of a gate g.
struct Gate {
    float g, slope; // g(x), g(x) + x g'(x)
};

struct Silu {
    static DEVICE Gate at(float x)
    {
        const float s = __fdividef(1, 1 + exp_fast(-x));
        return {s, fmaf(x * s, 1 - s, s)};
    }
};

template <Gelu KIND> struct GeluOf {
    static DEVICE Gate at(float x)
    {
        if constexpr (KIND == GELU_ERF) {
            const float g = 0.5f * erfcf(-0.70710678f * x);
            return {g, fmaf(0.39894228f * x, exp2_fast(-0.72134752f * x * x), g)};
        } else {
            constexpr float A = GELU_A(KIND), B = GELU_B(KIND);
            const float square = fminf(x * x, 1e4f); // s is 0 or 1 beyond
            const float s = 1 / (1 + exp2_fast(-1.44269504f * x * fmaf(square, B, A)));
            return {s, fmaf(x * s * (1 - s), fmaf(square, 3 * B, A), s)};
        }
    }
};

template <typename T, typename ACT, int N>
__global__ void __launch_bounds__(ROW_THREADS) act_fwd(T *y, const T *x, size_t n) // y may be x
{
    const size_t i = flat_item() * N;
    if (i >= n) return;
    float v[N];
    load_n<N>(v, x + i);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] *= ACT::at(v[k]).g;
    store_n<N>(y + i, v);
}

template <typename T, typename ACT, int N>
__global__ void __launch_bounds__(ROW_THREADS) act_bwd(T *dx, const T *dy, const T *x, size_t n) // dx may be dy or x
{
    const size_t i = flat_item() * N;
    if (i >= n) return;
    float v[N], d[N];
    load_n<N>(v, x + i), load_n<N>(d, dy + i);
#pragma unroll
    for (int k = 0; k < N; k++) d[k] *= ACT::at(v[k]).slope;
    store_n<N>(dx + i, d);
}

template <typename T, typename ACT, int N>
__global__ void __launch_bounds__(ROW_THREADS)
    glu_fwd(T *__restrict__ a, int64_t lda, const T *__restrict__ gu, int64_t ldgu, int F, int rows)
{
    RowWalk w = row_walk();
    const int64_t c = w.item * N;
    if (c >= F) return;
    for (; w.row < rows; w.row += w.step) {
        const T *gate = gu + w.row * ldgu + c;
        float g[N], u[N];
        load_n<N>(g, gate), load_n<N>(u, gate + ldgu / 2);
#pragma unroll
        for (int i = 0; i < N; i++) u[i] *= g[i] * ACT::at(g[i]).g;
        store_n<N>(a + w.row * lda + c, u);
    }
}

template <typename T, typename ACT, int N> // dgu may be gu
__global__ void __launch_bounds__(ROW_THREADS) glu_bwd(T *dgu, T *__restrict__ a, int64_t lda, const T *__restrict__ da,
                                                       const T *gu, int64_t ldgu, int F, int rows)
{
    RowWalk w = row_walk();
    const int64_t c = w.item * N;
    if (c >= F) return;
    for (; w.row < rows; w.row += w.step) {
        const T *gate = gu + w.row * ldgu + c;
        T *dgate = dgu + w.row * ldgu + c;
        float g[N], u[N], d[N], act[N];
        load_n<N>(g, gate), load_n<N>(u, gate + ldgu / 2), load_n<N>(d, da + w.row * F + c);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const Gate at = ACT::at(g[i]);
            act[i] = g[i] * at.g;
            g[i] = d[i] * u[i] * at.slope;
            u[i] *= act[i];
            d[i] *= act[i];
        }
        store_n<N>(dgate, g), store_n<N>(dgate + ldgu / 2, d);
        if (a) store_n<N>(a + w.row * lda + c, u);
    }
}

// ---- launchers ------------------------------------------------------------------------------------------------------
template <typename T, typename ACT> static void launch_act_fwd(void *y, const void *x, size_t n, cudaStream_t stream)
{
    constexpr int N = Pack<T>::N;
    if (aligned16(y, x) && whole<N>(n))
        LAUNCH((act_fwd<T, ACT, N>), flat_blocks(n, N), ROW_THREADS, 0, stream, (T *)y, (const T *)x, n);
    else
        LAUNCH((act_fwd<T, ACT, 1>), flat_blocks(n, 1), ROW_THREADS, 0, stream, (T *)y, (const T *)x, n);
}

template <typename T, typename ACT>
static void launch_act_bwd(void *dx, const void *dy, const void *x, size_t n, cudaStream_t stream)
{
    constexpr int N = Pack<T>::N;
    T *to = (T *)dx;
    const T *grad = (const T *)dy, *at = (const T *)x;
    if (aligned16(dx, dy, x) && whole<N>(n))
        LAUNCH((act_bwd<T, ACT, N>), flat_blocks(n, N), ROW_THREADS, 0, stream, to, grad, at, n);
    else
        LAUNCH((act_bwd<T, ACT, 1>), flat_blocks(n, 1), ROW_THREADS, 0, stream, to, grad, at, n);
}

template <typename T, typename ACT>
static void launch_glu_fwd(void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int rows, cudaStream_t stream)
{
    constexpr int N = Pack<T>::N;
    const bool wide = aligned16(a, gu) && whole<N>(F, lda, ldgu / 2);
    const RowGrid g = row_grid(wide ? F / N : F, rows, 1);
    if (wide)
        LAUNCH((glu_fwd<T, ACT, N>), g.grid, g.block, 0, stream, (T *)a, lda, (const T *)gu, ldgu, F, rows);
    else
        LAUNCH((glu_fwd<T, ACT, 1>), g.grid, g.block, 0, stream, (T *)a, lda, (const T *)gu, ldgu, F, rows);
}

template <typename T, typename ACT>
static void launch_glu_bwd(void *dgu, void *a, int64_t lda, const void *da, const void *gu, int64_t ldgu, int F,
                           int rows, cudaStream_t stream)
{
    constexpr int N = Pack<T>::N;
    const bool wide = aligned16(dgu, a, da, gu) && whole<N>(F, lda, ldgu / 2);
    const RowGrid g = row_grid(wide ? F / N : F, rows, 1);
    T *to = (T *)dgu, *again = (T *)a;
    const T *grad = (const T *)da, *at = (const T *)gu;
    if (wide)
        LAUNCH((glu_bwd<T, ACT, N>), g.grid, g.block, 0, stream, to, again, lda, grad, at, ldgu, F, rows);
    else
        LAUNCH((glu_bwd<T, ACT, 1>), g.grid, g.block, 0, stream, to, again, lda, grad, at, ldgu, F, rows);
}

// fn<element type, activation>(arguments)
#define BY_KIND(t, kind, fn, ...)                                                                                      \
    switch (kind) {                                                                                                    \
    case GELU_ERF:                                                                                                     \
        (t) == DT_BF16 ? fn<bf16, GeluOf<GELU_ERF>>(__VA_ARGS__) : fn<float, GeluOf<GELU_ERF>>(__VA_ARGS__);           \
        break;                                                                                                         \
    case GELU_TANH:                                                                                                    \
        (t) == DT_BF16 ? fn<bf16, GeluOf<GELU_TANH>>(__VA_ARGS__) : fn<float, GeluOf<GELU_TANH>>(__VA_ARGS__);         \
        break;                                                                                                         \
    case GELU_QUICK:                                                                                                   \
        (t) == DT_BF16 ? fn<bf16, GeluOf<GELU_QUICK>>(__VA_ARGS__) : fn<float, GeluOf<GELU_QUICK>>(__VA_ARGS__);       \
        break;                                                                                                         \
    }

void cuda_gelu_fwd(DType t, Gelu kind, void *y, const void *x, size_t n, cudaStream_t stream)
{
    if (n) BY_KIND(t, kind, launch_act_fwd, y, x, n, stream);
}

void cuda_gelu_bwd(DType t, Gelu kind, void *dx, const void *dy, const void *x, size_t n, cudaStream_t stream)
{
    if (n) BY_KIND(t, kind, launch_act_bwd, dx, dy, x, n, stream);
}

void cuda_geglu_fwd(DType t, Gelu kind, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T,
                    cudaStream_t stream)
{
    if (T && F) BY_KIND(t, kind, launch_glu_fwd, a, lda, gu, ldgu, F, T, stream);
}

void cuda_geglu_bwd(DType t, Gelu kind, void *dgu, void *a, int64_t lda, const void *da, const void *gu, int64_t ldgu,
                    int F, int T, cudaStream_t stream)
{
    if (T && F) BY_KIND(t, kind, launch_glu_bwd, dgu, a, lda, da, gu, ldgu, F, T, stream);
}

void cuda_swiglu_fwd(DType t, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T, cudaStream_t stream)
{
    if (T == 0 || F == 0) return;
    t == DT_BF16 ? launch_glu_fwd<bf16, Silu>(a, lda, gu, ldgu, F, T, stream)
                 : launch_glu_fwd<float, Silu>(a, lda, gu, ldgu, F, T, stream);
}

void cuda_swiglu_bwd(DType t, void *dgu, void *a, int64_t lda, const void *da, const void *gu, int64_t ldgu, int F,
                     int T, cudaStream_t stream)
{
    if (T == 0 || F == 0) return;
    t == DT_BF16 ? launch_glu_bwd<bf16, Silu>(dgu, a, lda, da, gu, ldgu, F, T, stream)
                 : launch_glu_bwd<float, Silu>(dgu, a, lda, da, gu, ldgu, F, T, stream);
}
