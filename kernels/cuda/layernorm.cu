// layernorm: LayerNorm, forward and backward; formulas stand in cpu/layernorm.c.
//
// A row is read once and held in registers by WARPS warps, NORM_HELD vectors of 16 bytes to a thread, as in norm.cu; longer rows and
// those that do not begin at a multiple of 16 bytes are read anew by each sweep (out of L1 or L2). Gradients of w and b are sums
// over columns, in passes of their own: few adapters train them.
#include "norm.cuh"

struct LayerNorm {
    const float *w, *b; // b may be NULL
    float *mean, *rstd; // forward: written
    float eps;
    int C, rows;
    bool accumulate; // backward
};

// ---- rows that are held ----
// The row of this thread's warps, and the thread's number among them; a block of WARPS == 1 has NORM_ROWS rows.
template <int WARPS> struct Held {
    static constexpr int THREADS = WARPS * WARP, BLOCK = (WARPS == 1 ? NORM_ROWS : WARPS) * WARP;
    static DEVICE int64_t row()
    {
        return WARPS == 1 ? blockIdx.x * (int64_t)NORM_ROWS + threadIdx.x / WARP : blockIdx.x;
    }
    template <typename T> static DEVICE int column(int h) // of the thread's vector h
    {
        return ((int)threadIdx.x % THREADS + h * THREADS) * Pack<T>::N;
    }
};

template <typename T, int WARPS>
__global__ void __launch_bounds__(Held<WARPS>::BLOCK)
    layernorm_fwd(T *__restrict__ y, const T *__restrict__ x, LayerNorm a)
{
    using At = Held<WARPS>;
    constexpr int N = Pack<T>::N;
    __shared__ float scratch[2 * WARPS];
    const int64_t row = At::row();
    if (WARPS == 1 && row >= a.rows) return;
    x += row * a.C, y += row * a.C;
    float v[NORM_HELD][N] = {}, sum = 0, squares = 0;
#pragma unroll
    for (int h = 0; h < NORM_HELD; h++) {
        const int c = At::template column<T>(h);
        if (c < a.C) load_n<N>(v[h], x + c);
#pragma unroll
        for (int i = 0; i < N; i++) sum += v[h][i];
    }
    const float mean = row_sum<WARPS>(sum, scratch, 0) / (float)a.C;
#pragma unroll
    for (int h = 0; h < NORM_HELD; h++) {
        if (At::template column<T>(h) >= a.C) continue;
#pragma unroll
        for (int i = 0; i < N; i++) v[h][i] -= mean, squares = fmaf(v[h][i], v[h][i], squares);
    }
    const float r = rsqrtf(row_sum<WARPS>(squares, scratch, 1) / (float)a.C + a.eps);
    if (At::template column<T>(0) == 0) a.mean[row] = mean, a.rstd[row] = r;
#pragma unroll
    for (int h = 0; h < NORM_HELD; h++) {
        const int c = At::template column<T>(h);
        if (c >= a.C) continue;
        float w[N], b[N] = {};
        load_n<N>(w, a.w + c);
        if (a.b) load_n<N>(b, a.b + c);
#pragma unroll
        for (int i = 0; i < N; i++) v[h][i] = fmaf(v[h][i] * r, w[i], b[i]);
        store_n<N>(y + c, v[h]);
    }
}

template <typename T, int WARPS> // dx may be dy
__global__ void __launch_bounds__(Held<WARPS>::BLOCK) layernorm_bwd(T *dx, const T *dy, const T *x, LayerNorm a)
{
    using At = Held<WARPS>;
    constexpr int N = Pack<T>::N;
    __shared__ float scratch[2 * WARPS];
    const int64_t row = At::row();
    if (WARPS == 1 && row >= a.rows) return;
    const float mean = a.mean[row], r = a.rstd[row];
    dx += row * a.C, dy += row * a.C, x += row * a.C;
    float z[NORM_HELD][N] = {}, g[NORM_HELD][N] = {}, sum = 0, dot = 0;
#pragma unroll
    for (int h = 0; h < NORM_HELD; h++) {
        const int c = At::template column<T>(h);
        if (c >= a.C) continue;
        float w[N];
        load_n<N>(z[h], x + c), load_n<N>(g[h], dy + c), load_n<N>(w, a.w + c);
#pragma unroll
        for (int i = 0; i < N; i++) {
            z[h][i] = (z[h][i] - mean) * r, g[h][i] *= w[i];
            sum += g[h][i], dot = fmaf(g[h][i], z[h][i], dot);
        }
    }
    sum = row_sum<WARPS>(sum, scratch, 0) / (float)a.C;
    dot = row_sum<WARPS>(dot, scratch, 1) / (float)a.C;
#pragma unroll
    for (int h = 0; h < NORM_HELD; h++) {
        const int c = At::template column<T>(h);
        if (c >= a.C) continue;
        float old[N] = {};
        if (a.accumulate) load_n<N>(old, dx + c);
#pragma unroll
        for (int i = 0; i < N; i++) old[i] = fmaf(fmaf(-z[h][i], dot, g[h][i] - sum), r, old[i]);
        store_n<N>(dx + c, old);
    }
}

// ---- any row: one block each ----
template <typename T, int N>
__global__ void __launch_bounds__(LONG_THREADS)
    layernorm_fwd_long(T *__restrict__ y, const T *__restrict__ x, LayerNorm a)
{
    __shared__ float scratch[2 * LONG_WARPS];
    const int64_t row = blockIdx.x;
    x += row * a.C, y += row * a.C;
    float sum = 0, squares = 0;
    for (int c = (int)threadIdx.x * N; c < a.C; c += LONG_THREADS * N) {
        float v[N];
        load_n<N>(v, x + c);
#pragma unroll
        for (int i = 0; i < N; i++) sum += v[i];
    }
    const float mean = row_sum<LONG_WARPS>(sum, scratch, 0) / (float)a.C;
    for (int c = (int)threadIdx.x * N; c < a.C; c += LONG_THREADS * N) {
        float v[N];
        load_n<N>(v, x + c);
#pragma unroll
        for (int i = 0; i < N; i++) squares = fmaf(v[i] - mean, v[i] - mean, squares);
    }
    const float r = rsqrtf(row_sum<LONG_WARPS>(squares, scratch, 1) / (float)a.C + a.eps);
    if (threadIdx.x == 0) a.mean[row] = mean, a.rstd[row] = r;
    for (int c = (int)threadIdx.x * N; c < a.C; c += LONG_THREADS * N) {
        float v[N], w[N], b[N] = {};
        load_n<N>(v, x + c), load_n<N>(w, a.w + c);
        if (a.b) load_n<N>(b, a.b + c);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = fmaf((v[i] - mean) * r, w[i], b[i]);
        store_n<N>(y + c, v);
    }
}

template <typename T, int N>
__global__ void __launch_bounds__(LONG_THREADS) layernorm_bwd_long(T *dx, const T *dy, const T *x, LayerNorm a)
{
    __shared__ float scratch[2 * LONG_WARPS];
    const int64_t row = blockIdx.x;
    const float mean = a.mean[row], r = a.rstd[row];
    dx += row * a.C, dy += row * a.C, x += row * a.C;
    float sum = 0, dot = 0;
    for (int c = (int)threadIdx.x * N; c < a.C; c += LONG_THREADS * N) {
        float d[N], v[N], w[N];
        load_n<N>(d, dy + c), load_n<N>(v, x + c), load_n<N>(w, a.w + c);
#pragma unroll
        for (int i = 0; i < N; i++) sum = fmaf(d[i], w[i], sum), dot = fmaf(d[i] * w[i], (v[i] - mean) * r, dot);
    }
    sum = row_sum<LONG_WARPS>(sum, scratch, 0) / (float)a.C;
    dot = row_sum<LONG_WARPS>(dot, scratch, 1) / (float)a.C;
    for (int c = (int)threadIdx.x * N; c < a.C; c += LONG_THREADS * N) {
        float d[N], v[N], w[N], old[N] = {};
        load_n<N>(d, dy + c), load_n<N>(v, x + c), load_n<N>(w, a.w + c);
        if (a.accumulate) load_n<N>(old, dx + c);
#pragma unroll
        for (int i = 0; i < N; i++) old[i] = fmaf(fmaf(-(v[i] - mean) * r, dot, fmaf(d[i], w[i], -sum)), r, old[i]);
        store_n<N>(dx + c, old);
    }
}

// ---- launchers ------------------------------------------------------------------------------------------------------
template <typename T, int WARPS> static unsigned held_blocks(int rows)
{
    return (unsigned)(WARPS == 1 ? (rows + NORM_ROWS - 1) / NORM_ROWS : rows);
}

// The held kernel with the fewest warps that have room for a row, as LAUNCH(kernel<T, WARPS>); else the long one.
#define LAUNCH_NORM(name, wide, to, ...)                                                                               \
    do {                                                                                                               \
        constexpr int WARP_HOLDS = WARP * NORM_HELD * Pack<T>::N;                                                      \
        if ((wide) && a.C <= WARP_HOLDS)                                                                               \
            LAUNCH((name<T, 1>), (held_blocks<T, 1>(a.rows)), Held<1>::BLOCK, 0, stream, to, __VA_ARGS__, a);          \
        else if ((wide) && a.C <= 4 * WARP_HOLDS)                                                                      \
            LAUNCH((name<T, 4>), (held_blocks<T, 4>(a.rows)), Held<4>::BLOCK, 0, stream, to, __VA_ARGS__, a);          \
        else if (wide)                                                                                                 \
            LAUNCH((name##_long<T, Pack<T>::N>), (unsigned)a.rows, LONG_THREADS, 0, stream, to, __VA_ARGS__, a);       \
        else                                                                                                           \
            LAUNCH((name##_long<T, 1>), (unsigned)a.rows, LONG_THREADS, 0, stream, to, __VA_ARGS__, a);                \
    } while (0)

template <typename T> static void launch_layernorm_fwd(void *y, const void *x, const LayerNorm &a, cudaStream_t stream)
{
    const bool wide = aligned16(y, x, a.w, a.b) && whole<Pack<T>::N>(a.C);
    LAUNCH_NORM(layernorm_fwd, wide, (T *)y, (const T *)x);
}

template <typename T>
static void launch_layernorm_bwd(void *dx, const void *dy, const void *x, const LayerNorm &a, cudaStream_t stream)
{
    const bool wide = aligned16(dx, dy, x, a.w) && whole<Pack<T>::N>(a.C);
    LAUNCH_NORM(layernorm_bwd, wide, (T *)dx, (const T *)dy, (const T *)x);
}

void cuda_layernorm_fwd(DType t, void *y, float *mean, float *rstd, const void *x, const float *w, const float *b,
                        float eps, int C, int T, cudaStream_t stream)
{
    const LayerNorm a = {w, b, mean, rstd, eps, C, T, false};
    if (T && C) BY_TYPE(t, launch_layernorm_fwd, y, x, a, stream);
}

// dw and db first: dx may be dy
void cuda_layernorm_bwd(DType t, void *dx, float *dw, float *db, const void *dy, const void *x, const float *mean,
                        const float *rstd, const float *w, bool accumulate, int C, int T, void *scratch,
                        cudaStream_t stream)
{
    if (T == 0 || C == 0) return;
    if (db) cuda_bias_grad(t, db, dy, C, C, true, T, scratch, stream);
    if (dw) {
        ColumnArgs c = {};
        c.dy = dy, c.u = x, c.row_scale = rstd, c.row_shift = mean, c.lddy = c.ldu = c.C = C, c.rows = T;
        column_sums(t, SUM_DY_U_ROW, (float *)scratch, c, stream);
        sum_partials(dw, (float *)scratch, column_partials(C, T), C, NULL, true, stream);
    }
    const LayerNorm a = {w, NULL, const_cast<float *>(mean), const_cast<float *>(rstd), 0, C, T, accumulate};
    BY_TYPE(t, launch_layernorm_bwd, dx, dy, x, a, stream);
}
