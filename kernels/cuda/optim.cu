// optim: AdamW, sums of squares, order-free sums; formulas stand in cpu/optim.c.
#include "rows.cuh"
#include <math.h>

// ---- arrays: op.at<N>(i) does elements [i, i + N) ----
template <int N, typename Op> __global__ void __launch_bounds__(ROW_THREADS) each_piece(Op op, size_t n)
{
    size_t i = flat_item() * N;
    if (i + N <= n)
        op.template at<N>(i);
    else
        for (; i < n; i++) op.template at<1>(i);
}

// wide: N elements to a thread, else one
template <int N, typename Op> static void launch_pieces(const Op &op, bool wide, size_t n, cudaStream_t stream)
{
    if (n == 0) return;
    if (wide)
        LAUNCH((each_piece<N, Op>), flat_blocks(n, N), ROW_THREADS, 0, stream, op, n);
    else
        LAUNCH((each_piece<1, Op>), flat_blocks(n, 1), ROW_THREADS, 0, stream, op, n);
}

template <int N> DEVICE void load_i64(int64_t (&v)[N], const int64_t *p)
{
    if constexpr (N == 1)
        v[0] = *p;
    else {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            const Pack<int64_t> q = load16(p + i);
            v[i] = q.v[0], v[i + 1] = q.v[1];
        }
    }
}
template <int N> DEVICE void store_i64(int64_t *p, const int64_t (&v)[N])
{
    if constexpr (N == 1)
        *p = v[0];
    else {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            Pack<int64_t> q;
            q.v[0] = v[i], q.v[1] = v[i + 1];
            store16(p + i, q);
        }
    }
}

// ---- AdamW: 28 bytes per element, each array once ----
struct AdamW {
    float *p, *m, *v;
    const float *g;
    float g_scale, beta1, beta2, rest1, rest2, eps, decay, step,
        root; // rest 1 - beta, step -lr / c1, root 1 / sqrt(c2)

    template <int N> DEVICE void at(size_t k) const
    {
        float gi[N], mi[N], vi[N], pi[N];
        load_n<N>(gi, g + k), load_n<N>(mi, m + k), load_n<N>(vi, v + k), load_n<N>(pi, p + k);
#pragma unroll
        for (int i = 0; i < N; i++) {
            gi[i] *= g_scale;
            mi[i] = fmaf(beta1, mi[i], rest1 * gi[i]);
            vi[i] = fmaf(beta2, vi[i], rest2 * gi[i] * gi[i]);
            pi[i] = fmaf(step, mi[i] / fmaf(sqrtf(vi[i]), root, eps), pi[i] * decay);
        }
        store_n<N>(m + k, mi), store_n<N>(v + k, vi), store_n<N>(p + k, pi);
    }
};

void cuda_adamw(float *p, float *m, float *v, const float *g, float g_scale, float lr, float beta1, float beta2,
                float eps, float wd, int64_t step, size_t n, cudaStream_t stream)
{
    const double b1 = beta1, b2 = beta2, c1 = 1 - pow(b1, (double)step), c2 = 1 - pow(b2, (double)step);
    AdamW a = {};
    a.p = p, a.m = m, a.v = v, a.g = g;
    a.g_scale = g_scale, a.beta1 = beta1, a.beta2 = beta2, a.eps = eps;
    a.rest1 = (float)(1 - b1), a.rest2 = (float)(1 - b2);
    a.decay = (float)(1 - (double)lr * wd);
    a.step = (float)(-(double)lr / c1), a.root = (float)(1 / sqrt(c2));
    launch_pieces<4>(a, aligned16(p, m, v, g), n, stream);
}

// ---- sums of squares, in f64 ----
// Rows of up to SQUARES_ROW elements: a group of lanes to a row, as many as it has elements, all 32 for longer ones; a lane takes
// every so many-th element, or vector of 4 from SQUARES_VECTORS elements on. Longer rows: a block to each SQUARES_ROW elements,
// then a warp to the sums of a row.
constexpr int SQUARES_ROW = 4096, SQUARES_VECTORS = 128;

DEVICE double group_sum(double v, int lanes) // of neighbours, a power of two
{
    for (int step = lanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

// This thread's part of the squares of x[0, K), taken N elements at a time by `threads` of them
template <int N, bool WIDE> DEVICE double some_squares(const float *x, int K, int thread, int threads)
{
    double sum = 0;
#pragma unroll 4
    for (int k = thread * N; k < K; k += threads * N) {
        float v[N] = {};
        if constexpr (WIDE)
            load_n<N>(v, x + k);
        else {
#pragma unroll
            for (int i = 0; i < N; i++)
                if (k + i < K) v[i] = x[k + i];
        }
#pragma unroll
        for (int i = 0; i < N; i++) sum = fma((double)v[i], (double)v[i], sum);
    }
    return sum;
}

template <int N, bool WIDE>
__global__ void __launch_bounds__(ROW_THREADS)
    row_squares(double *__restrict__ out, const float *__restrict__ x, int64_t rows, int K, int lanes)
{
    const int64_t row = (blockIdx.x * (int64_t)ROW_THREADS + threadIdx.x) / lanes;
    const int lane = (int)threadIdx.x % lanes;
    double sum = 0;
    if (row < rows) sum = some_squares<N, WIDE>(x + row * K, K, lane, lanes);
    sum = group_sum(sum, lanes);
    if (row < rows && lane == 0) out[row] = sum;
}

template <bool WIDE> // grid (pieces of a row, rows)
__global__ void __launch_bounds__(ROW_THREADS)
    long_row_squares(double *__restrict__ partial, const float *__restrict__ x, int64_t rows, int64_t K)
{
    __shared__ double sums[ROW_THREADS / WARP];
    const int64_t at = (int64_t)blockIdx.x * SQUARES_ROW, left = K - at;
    const int length = (int)(left < SQUARES_ROW ? left : SQUARES_ROW);
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        double sum = some_squares<4, WIDE>(x + row * K + at, length, (int)threadIdx.x, ROW_THREADS);
        sum = group_sum(sum, WARP);
        if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int w = 1; w < ROW_THREADS / WARP; w++) sum += sums[w];
            partial[row * gridDim.x + blockIdx.x] = sum;
        }
        __syncthreads();
    }
}

__global__ void __launch_bounds__(ROW_THREADS)
    add_row_squares(double *__restrict__ out, const double *__restrict__ partial, int64_t rows, int64_t pieces)
{
    const int64_t row = blockIdx.x * (int64_t)(ROW_THREADS / WARP) + threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP;
    if (row >= rows) return;
    double sum = 0;
    for (int64_t i = lane; i < pieces; i += WARP) sum += partial[row * pieces + i];
    sum = group_sum(sum, WARP);
    if (lane == 0) out[row] = sum;
}

static int64_t squares_pieces(int64_t K)
{
    return (K + SQUARES_ROW - 1) / SQUARES_ROW;
}

size_t cuda_row_squares_scratch(int64_t rows, int64_t K)
{
    return K > SQUARES_ROW ? sizeof(double) * (size_t)(rows * squares_pieces(K)) : 0;
}

static void launch_long_squares(double *out, const float *x, int64_t rows, int64_t K, double *partial,
                                cudaStream_t stream)
{
    const int64_t pieces = squares_pieces(K);
    const dim3 grid((unsigned)pieces, (unsigned)(rows < 65535 ? rows : 65535));
    const unsigned blocks = (unsigned)((rows + ROW_THREADS / WARP - 1) / (ROW_THREADS / WARP));
    if (aligned16(x) && whole<4>(K))
        LAUNCH((long_row_squares<true>), grid, ROW_THREADS, 0, stream, partial, x, rows, K);
    else
        LAUNCH((long_row_squares<false>), grid, ROW_THREADS, 0, stream, partial, x, rows, K);
    LAUNCH(add_row_squares, blocks, ROW_THREADS, 0, stream, out, partial, rows, pieces);
}

void cuda_row_squares(double *out, const float *x, int64_t rows, int64_t K, void *scratch, cudaStream_t stream)
{
    if (rows == 0) return;
    if (K > SQUARES_ROW) {
        launch_long_squares(out, x, rows, K, (double *)scratch, stream);
        return;
    }
    int lanes = 1;
    while (lanes < WARP && lanes < K) lanes *= 2;
    const unsigned blocks = (unsigned)((rows * lanes + ROW_THREADS - 1) / ROW_THREADS);
    if (K < SQUARES_VECTORS)
        LAUNCH((row_squares<1, true>), blocks, ROW_THREADS, 0, stream, out, x, rows, (int)K, lanes);
    else if (aligned16(x) && whole<4>(K))
        LAUNCH((row_squares<4, true>), blocks, ROW_THREADS, 0, stream, out, x, rows, (int)K, lanes);
    else
        LAUNCH((row_squares<4, false>), blocks, ROW_THREADS, 0, stream, out, x, rows, (int)K, lanes);
}

// ---- order-free sums ----
constexpr int FIX_N = 2; // elements of a thread: 16 bytes of the sums, which f32 come beside
constexpr double FIX_SCALE = (double)((int64_t)1 << GRAD_FIX_BITS);

struct FixAdd {
    int64_t *acc;
    const float *g;
    int64_t limit;
    int *overflow;

    template <int N> DEVICE void at(size_t k) const
    {
        float v[N];
        int64_t sum[N];
        bool bad = false;
        load_n<N>(v, g + k), load_i64<N>(sum, acc + k);
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (!(fabs((double)v[i]) < GRAD_FIX_LIMIT)) { // NaN too
                bad = true;
                continue;
            }
            const int64_t x = (int64_t)__double2ll_rn((double)v[i] * FIX_SCALE), old = sum[i];
            sum[i] = (int64_t)((uint64_t)old + (uint64_t)x);
            bad |= ((old ^ sum[i]) & (x ^ sum[i])) < 0 || sum[i] > limit || sum[i] < -limit;
        }
        store_i64<N>(acc + k, sum);
        if (bad) atomicOr(overflow, 1);
    }
};

void cuda_fix_add(int64_t *acc, const float *g, size_t n, int64_t limit, int *overflow, cudaStream_t stream)
{
    const FixAdd f = {acc, g, limit, overflow};
    launch_pieces<FIX_N>(f, aligned16(acc, g), n, stream);
}

template <typename T> struct AccAdd {
    T *acc;
    const T *x;

    template <int N> DEVICE void at(size_t k) const
    {
        if constexpr (N == 1)
            acc[k] += x[k];
        else {
            Pack<T> sum = load16(acc + k);
            const Pack<T> more = load16(x + k);
#pragma unroll
            for (int i = 0; i < N; i++) sum.v[i] += more.v[i];
            store16(acc + k, sum);
        }
    }
};

template <typename T> static void launch_acc_add(void *acc, const void *x, size_t n, cudaStream_t stream)
{
    const AccAdd<T> a = {(T *)acc, (const T *)x};
    launch_pieces<Pack<T>::N>(a, aligned16(acc, x), n, stream);
}

void cuda_acc_add(void *acc, const void *x, DType t, size_t n, cudaStream_t stream)
{
    if (t == DT_I64)
        launch_acc_add<int64_t>(acc, x, n, stream);
    else
        launch_acc_add<float>(acc, x, n, stream);
}

struct FixRead {
    float *g;
    const int64_t *acc;

    template <int N> DEVICE void at(size_t k) const
    {
        int64_t sum[N];
        float v[N];
        load_i64<N>(sum, acc + k);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = (float)((double)sum[i] / FIX_SCALE);
        store_n<N>(g + k, v);
    }
};

void cuda_fix_read(float *g, const int64_t *acc, size_t n, cudaStream_t stream)
{
    const FixRead f = {g, acc};
    launch_pieces<FIX_N>(f, aligned16(g, acc), n, stream);
}
