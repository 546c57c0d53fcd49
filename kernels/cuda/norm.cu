// norm: RMSNorm, forward and backward; formulas stand in cpu/elementwise.c.
//
// A row is read once and held in registers by WARPS warps, HELD vectors of 16 bytes to a thread: vector v belongs to thread
// v % (WARPS * 32). Rows too long for that, and those that do not begin at a multiple of 16 bytes, go through kernels that
// read a row twice (the second time out of L1 or L2).
#include "norm.cuh"

// ---- forward ----
template <typename T, int WARPS>
__global__ void __launch_bounds__((WARPS == 1 ? NORM_ROWS : WARPS) * WARP)
    rmsnorm_fwd(T *__restrict__ y, int64_t ldy, float *__restrict__ rstd, const T *__restrict__ x,
                const float *__restrict__ w, float w_offset, float eps, int C, int rows)
{
    constexpr int N = Pack<T>::N, THREADS = WARPS * WARP;
    __shared__ float scratch[2 * WARPS];
    const int64_t row = WARPS == 1 ? blockIdx.x * (int64_t)NORM_ROWS + threadIdx.x / WARP : blockIdx.x;
    const int thread = (int)threadIdx.x % THREADS;
    if (WARPS == 1 && row >= rows) return;
    x += row * C, y += row * ldy;
    Pack<T> held[NORM_HELD];
    float sum = 0;
#pragma unroll
    for (int h = 0; h < NORM_HELD; h++) {
        const int c = (thread + h * THREADS) * N;
        if (c < C) held[h] = load16(x + c);
    }
#pragma unroll
    for (int h = 0; h < NORM_HELD; h++) {
        if ((thread + h * THREADS) * N >= C) continue;
#pragma unroll
        for (int i = 0; i < N; i++) sum = fmaf(to_f32(held[h].v[i]), to_f32(held[h].v[i]), sum);
    }
    const float r = rsqrtf(row_sum<WARPS>(sum, scratch, 0) / (float)C + eps);
    if (thread == 0) rstd[row] = r;
#pragma unroll
    for (int h = 0; h < NORM_HELD; h++) {
        const int c = (thread + h * THREADS) * N;
        if (c >= C) continue;
        float g[N];
        load_n<N>(g, w + c);
#pragma unroll
        for (int i = 0; i < N; i++) held[h].v[i] = from_f32<T>((g[i] + w_offset) * to_f32(held[h].v[i]) * r);
        store16(y + c, held[h]);
    }
}

template <typename T, int N>
__global__ void __launch_bounds__(LONG_THREADS)
    rmsnorm_fwd_long(T *__restrict__ y, int64_t ldy, float *__restrict__ rstd, const T *__restrict__ x,
                     const float *__restrict__ w, float w_offset, float eps, int C)
{
    __shared__ float scratch[2 * LONG_WARPS];
    const int64_t row = blockIdx.x;
    x += row * C, y += row * ldy;
    float sum = 0;
    for (int c = (int)threadIdx.x * N; c < C; c += LONG_THREADS * N) {
        float v[N];
        load_n<N>(v, x + c);
#pragma unroll
        for (int i = 0; i < N; i++) sum = fmaf(v[i], v[i], sum);
    }
    const float r = rsqrtf(row_sum<LONG_WARPS>(sum, scratch, 0) / (float)C + eps);
    if (threadIdx.x == 0) rstd[row] = r;
    for (int c = (int)threadIdx.x * N; c < C; c += LONG_THREADS * N) {
        float v[N], g[N];
        load_n<N>(v, x + c), load_n<N>(g, w + c);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = (g[i] + w_offset) * v[i] * r;
        store_n<N>(y + c, v);
    }
}

template <typename T>
static void launch_rmsnorm_fwd(void *y, int64_t ldy, float *rstd, const void *x, const float *w, float w_offset,
                               float eps, int C, int rows, cudaStream_t stream)
{
    constexpr int N = Pack<T>::N, WARP_HOLDS = WARP * NORM_HELD * N;
    const bool wide = aligned16(y, x, w) && whole<N>(C, ldy);
    const unsigned blocks = (unsigned)rows, few = (unsigned)((rows + NORM_ROWS - 1) / NORM_ROWS);
    T *to = (T *)y;
    const T *from = (const T *)x;
    if (wide && C <= WARP_HOLDS)
        LAUNCH((rmsnorm_fwd<T, 1>), few, NORM_ROWS * WARP, 0, stream, to, ldy, rstd, from, w, w_offset, eps, C, rows);
    else if (wide && C <= 4 * WARP_HOLDS)
        LAUNCH((rmsnorm_fwd<T, 4>), blocks, 4 * WARP, 0, stream, to, ldy, rstd, from, w, w_offset, eps, C, rows);
    else if (wide && C <= 16 * WARP_HOLDS)
        LAUNCH((rmsnorm_fwd<T, 16>), blocks, 16 * WARP, 0, stream, to, ldy, rstd, from, w, w_offset, eps, C, rows);
    else if (wide)
        LAUNCH((rmsnorm_fwd_long<T, N>), blocks, LONG_THREADS, 0, stream, to, ldy, rstd, from, w, w_offset, eps, C);
    else
        LAUNCH((rmsnorm_fwd_long<T, 1>), blocks, LONG_THREADS, 0, stream, to, ldy, rstd, from, w, w_offset, eps, C);
}

void cuda_rmsnorm_fwd(DType t, void *y, int64_t ldy, float *rstd, const void *x, const float *w, float w_offset,
                      float eps, int C, int T, cudaStream_t stream)
{
    if (T && C) BY_TYPE(t, launch_rmsnorm_fwd, y, ldy, rstd, x, w, w_offset, eps, C, T, stream);
}

// ---- backward ----
// Blocks walk over rows with w, and the sums of their part of dw, in registers. dw of a block's groups of warps meets in
// shared memory, dw of blocks in sum_partials.
struct NormArgs {
    const float *rstd, *w;
    float w_offset;
    int lddx, C, rows;
    bool accumulate;
};
template <int WARPS, int HELD> struct NormShape { // of a block
    static constexpr int THREADS = WARPS * WARP;  // of a row
    static constexpr int GROUPS = WARPS < 8 ? 8 / WARPS : 1, BLOCK = GROUPS * THREADS;
};

// dx of a row that this thread holds some of; adds to dw. `there`: whether this group has a row at all.
template <typename T, int WARPS, int HELD, bool DW>
DEVICE void norm_row(T *dx, const T *dy, const T *x, const NormArgs &a, int64_t row, bool there,
                     const float (&u)[HELD][Pack<T>::N], float (&dw)[HELD][Pack<T>::N], float *scratch, int turn)
{
    constexpr int N = Pack<T>::N, THREADS = WARPS * WARP;
    const int thread = (int)threadIdx.x % THREADS;
    Pack<T> held_x[HELD], held_dy[HELD];
    const float r = there ? a.rstd[row] : 0;
    x += row * a.C, dy += row * a.C, dx += row * a.lddx;
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        const int c = (thread + h * THREADS) * N;
        if (!there || c >= a.C) continue;
        held_x[h] = load16(x + c);
        held_dy[h] = load16(dy + c);
    }
    float dot = 0;
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (!there || (thread + h * THREADS) * N >= a.C) continue;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float product = to_f32(held_dy[h].v[i]) * to_f32(held_x[h].v[i]);
            dot = fmaf(product, u[h][i], dot);
            if constexpr (DW) dw[h][i] = fmaf(product, r, dw[h][i]);
        }
    }
    const float k = -r * r * r / (float)a.C * row_sum<WARPS>(dot, scratch, turn);
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        const int c = (thread + h * THREADS) * N;
        if (!there || c >= a.C) continue;
        T *to = dx + c;
        Pack<T> v = {}; // what is there, then what is to be
        if (a.accumulate) v = load16(to);
#pragma unroll
        for (int i = 0; i < N; i++)
            v.v[i] =
                from_f32<T>(fmaf(to_f32(held_x[h].v[i]), k, u[h][i] * to_f32(held_dy[h].v[i]) * r) + to_f32(v.v[i]));
        store16(to, v);
    }
}

template <typename T, int WARPS, int HELD, bool DW>
__global__ void __launch_bounds__(NormShape<WARPS, HELD>::BLOCK)
    rmsnorm_bwd(T *dx, float *__restrict__ partial, const T *dy, const T *x, NormArgs a)
{
    using Shape = NormShape<WARPS, HELD>;
    constexpr int N = Pack<T>::N, THREADS = Shape::THREADS, GROUPS = Shape::GROUPS;
    __shared__ float scratch[2 * WARPS * GROUPS];
    const int thread = (int)threadIdx.x % THREADS, group = (int)threadIdx.x / THREADS;
    float u[HELD][N] = {}, dw[HELD][N] = {};
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        const int c = (thread + h * THREADS) * N;
        if (c >= a.C) continue;
        load_n<N>(u[h], a.w + c);
#pragma unroll
        for (int i = 0; i < N; i++) u[h][i] += a.w_offset;
    }
    int turn = 0;
    for (int64_t first = (int64_t)blockIdx.x * GROUPS; first < a.rows; first += (int64_t)gridDim.x * GROUPS, turn ^= 1)
        norm_row<T, WARPS, HELD, DW>(dx, dy, x, a, first + group, first + group < a.rows, u, dw, scratch, turn);
    if constexpr (DW) {
        if constexpr (GROUPS > 1) { // they meet in the first: [group - 1][4 of a thread's elements][thread]
            constexpr int FOURS = HELD * N / 4;
            __shared__ __align__(16) float sums[GROUPS - 1][FOURS][THREADS][4];
            if (group)
#pragma unroll
                for (int k = 0; k < FOURS; k++) {
                    const float *v = &dw[k * 4 / N][k * 4 % N], four[4] = {v[0], v[1], v[2], v[3]};
                    store_n<4>(sums[group - 1][k][thread], four);
                }
            __syncthreads();
            if (group) return;
#pragma unroll
            for (int k = 0; k < FOURS; k++)
                for (int g = 1; g < GROUPS; g++) {
                    float four[4], *v = &dw[k * 4 / N][k * 4 % N];
                    load_n<4>(four, sums[g - 1][k][thread]);
                    v[0] += four[0], v[1] += four[1], v[2] += four[2], v[3] += four[3];
                }
        }
#pragma unroll
        for (int h = 0; h < HELD; h++) {
            const int c = (thread + h * THREADS) * N;
            if (c < a.C) store_n<N>(partial + (int64_t)blockIdx.x * a.C + c, dw[h]);
        }
    }
}

template <typename T, int N>
__global__ void __launch_bounds__(LONG_THREADS) rmsnorm_bwd_long(T *dx, const T *dy, const T *x, NormArgs a)
{
    __shared__ float scratch[2 * LONG_WARPS];
    const int64_t row = blockIdx.x;
    const float r = a.rstd[row];
    dx += row * a.lddx, dy += row * a.C, x += row * a.C;
    float dot = 0;
    for (int c = (int)threadIdx.x * N; c < a.C; c += LONG_THREADS * N) {
        float d[N], v[N], u[N];
        load_n<N>(d, dy + c), load_n<N>(v, x + c), load_n<N>(u, a.w + c);
#pragma unroll
        for (int i = 0; i < N; i++) dot = fmaf(d[i] * v[i], u[i] + a.w_offset, dot);
    }
    const float k = -r * r * r / (float)a.C * row_sum<LONG_WARPS>(dot, scratch, 0);
    for (int c = (int)threadIdx.x * N; c < a.C; c += LONG_THREADS * N) {
        float d[N], v[N], u[N], old[N] = {};
        load_n<N>(d, dy + c), load_n<N>(v, x + c), load_n<N>(u, a.w + c);
        if (a.accumulate) load_n<N>(old, dx + c);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = fmaf(v[i], k, (u[i] + a.w_offset) * d[i] * r) + old[i];
        store_n<N>(dx + c, v);
    }
}

// Blocks of a launch: as many as two H100's worth of resident ones, or with dw fewer, since each leaves a partial.
template <int WARPS, int HELD> static int norm_blocks(int rows, bool dw)
{
    using Shape = NormShape<WARPS, HELD>;
    const int most = (dw ? 1 : 4) * 132 * 1024 / Shape::BLOCK;
    const int all = (rows + Shape::GROUPS - 1) / Shape::GROUPS;
    return all < most ? all : most;
}

template <typename T, int WARPS, int HELD>
static void launch_held(void *dx, float *dw, const void *dy, const void *x, const NormArgs &a, float *partial,
                        cudaStream_t stream)
{
    using Shape = NormShape<WARPS, HELD>;
    const int blocks = norm_blocks<WARPS, HELD>(a.rows, dw);
    if (!dw) {
        LAUNCH((rmsnorm_bwd<T, WARPS, HELD, false>), (unsigned)blocks, Shape::BLOCK, 0, stream, (T *)dx, NULL,
               (const T *)dy, (const T *)x, a);
        return;
    }
    LAUNCH((rmsnorm_bwd<T, WARPS, HELD, true>), (unsigned)blocks, Shape::BLOCK, 0, stream, (T *)dx, partial,
           (const T *)dy, (const T *)x, a);
    sum_partials(dw, partial, blocks, a.C, NULL, true, stream);
}

// dw first: dx may be dy
template <typename T, int N>
static void launch_long(void *dx, float *dw, const void *dy, const void *x, const NormArgs &a, float *partial,
                        cudaStream_t stream)
{
    if (dw) {
        ColumnArgs c = {};
        c.dy = dy, c.u = x, c.row_scale = a.rstd, c.lddy = c.ldu = c.C = a.C, c.rows = a.rows;
        column_sums(DTYPE<T>, SUM_DY_U_ROW, partial, c, stream);
        sum_partials(dw, partial, column_partials(a.C, a.rows), a.C, NULL, true, stream);
    }
    LAUNCH((rmsnorm_bwd_long<T, N>), (unsigned)a.rows, LONG_THREADS, 0, stream, (T *)dx, (const T *)dy, (const T *)x,
           a);
}

template <typename T>
static void launch_rmsnorm_bwd(void *dx, float *dw, const void *dy, const void *x, const NormArgs &a, float *partial,
                               cudaStream_t stream)
{
    constexpr int N = Pack<T>::N, VECTORS = WARP * N;
    const bool wide = aligned16(dx, dy, x, a.w, partial) && whole<N>(a.C, a.lddx);
    if (wide && a.C <= 2 * VECTORS)
        launch_held<T, 1, 2>(dx, dw, dy, x, a, partial, stream);
    else if (wide && a.C <= 4 * 2 * VECTORS)
        launch_held<T, 4, 2>(dx, dw, dy, x, a, partial, stream);
    else if (wide && a.C <= 16 * 2 * VECTORS)
        launch_held<T, 16, 2>(dx, dw, dy, x, a, partial, stream);
    else if (wide && a.C <= 16 * 4 * VECTORS)
        launch_held<T, 16, 4>(dx, dw, dy, x, a, partial, stream);
    else if (wide)
        launch_long<T, N>(dx, dw, dy, x, a, partial, stream);
    else
        launch_long<T, 1>(dx, dw, dy, x, a, partial, stream);
}

size_t cuda_rmsnorm_bwd_scratch(int C, int T)
{
    size_t partials = (size_t)column_partials(C, T);
    for (int held : {norm_blocks<1, 2>(T, true), norm_blocks<4, 2>(T, true), norm_blocks<16, 2>(T, true),
                     norm_blocks<16, 4>(T, true)}) // whichever it will be
        if ((size_t)held > partials) partials = (size_t)held;
    return sizeof(float) * (size_t)C * partials;
}

void cuda_rmsnorm_bwd(DType t, void *dx, int64_t lddx, float *dw, const void *dy, const void *x, const float *rstd,
                      const float *w, float w_offset, bool accumulate, int C, int T, void *scratch, cudaStream_t stream)
{
    const NormArgs a = {rstd, w, w_offset, (int)lddx, C, T, accumulate};
    if (T && C) BY_TYPE(t, launch_rmsnorm_bwd, dx, dw, dy, x, a, (float *)scratch, stream);
}
