// columns: see columns.cuh; and the gradient of a bias, which is such a sum.
#include "columns.cuh"

// ---- the second step ----
// A block takes a warp's width of columns; its warps share the partials, and their sums meet in the order of warps.
constexpr int SUM_WARPS = 8;

__global__ void __launch_bounds__(SUM_WARPS *WARP)
    add_partials(float *__restrict__ out, const float *__restrict__ partial, int count, int C,
                 const float *__restrict__ scale, bool accumulate)
{
    __shared__ float sums[SUM_WARPS][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    float sum = 0;
    if (c < C) {
#pragma unroll 8
        for (int b = warp; b < count; b += SUM_WARPS) sum += partial[(int64_t)b * C + c];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp || c >= C) return;
#pragma unroll
    for (int w = 1; w < SUM_WARPS; w++) sum += sums[w][lane];
    out[c] = fmaf(scale ? scale[c] : 1, sum, accumulate ? out[c] : 0);
}

void sum_partials(float *out, const float *partial, int count, int C, const float *scale, bool accumulate,
                  cudaStream_t stream)
{
    LAUNCH(add_partials, (unsigned)((C + WARP - 1) / WARP), SUM_WARPS * WARP, 0, stream, out, partial, count, C, scale,
           accumulate);
}

// ---- the first step ----
// Blocks as row_grid's, each with a chunk of rows; a thread sums its columns over every blockDim.y-th of them.
constexpr int CHUNK_ROWS = 64;     // at least
constexpr int CHUNK_BLOCKS = 1024; // about as many, each as wide as 2048 columns

static int chunk_rows(int C, int rows)
{
    const int across = (C + 2047) / 2048, most = (CHUNK_BLOCKS + across - 1) / across, chunk = (rows + most - 1) / most;
    return chunk > CHUNK_ROWS ? chunk : CHUNK_ROWS;
}

int column_partials(int C, int rows)
{
    const int chunk = chunk_rows(C, rows);
    return (rows + chunk - 1) / chunk;
}

template <typename T, int N, int WHAT>
__global__ void __launch_bounds__(ROW_THREADS)
    column_sums(float *__restrict__ partial, T *du, const T *dy, const T *u, ColumnArgs a, int chunk)
{
    __shared__ float sums[N][ROW_THREADS];
    const int64_t c = (blockIdx.x * (int64_t)blockDim.x + threadIdx.x) * N;
    const int first = (int)blockIdx.y * chunk, end = min(first + chunk, a.rows);
    float sum[N] = {}, gain[N] = {};
    if (c < a.C) {
        if constexpr (WHAT == SUM_DY_U) load_n<N>(gain, a.gain + c);
#pragma unroll 4
        for (int64_t row = first + (int)threadIdx.y; row < end; row += blockDim.y) {
            float d[N], v[N] = {}, r = 1, shift = 0;
            load_n<N>(d, dy + row * a.lddy + c);
            if constexpr (WHAT != SUM_DY) load_n<N>(v, u + row * a.ldu + c);
            if constexpr (WHAT == SUM_DY_U_ROW) r = a.row_scale[row], shift = a.row_shift ? a.row_shift[row] : 0;
#pragma unroll
            for (int i = 0; i < N; i++) {
                if constexpr (WHAT == SUM_DY)
                    sum[i] += d[i];
                else
                    sum[i] = fmaf(WHAT == SUM_DY_U_ROW ? d[i] * r : d[i], v[i] - shift, sum[i]);
                d[i] *= gain[i];
            }
            if constexpr (WHAT == SUM_DY_U) store_n<N>(du + row * a.lddu + c, d);
        }
    }
    if (blockDim.y > 1) { // the rows of threads, in their order
        const int at = (int)(threadIdx.y * blockDim.x + threadIdx.x);
#pragma unroll
        for (int i = 0; i < N; i++) sums[i][at] = sum[i];
        __syncthreads();
        for (int y = 1; threadIdx.y == 0 && y < (int)blockDim.y; y++)
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] += sums[i][y * (int)blockDim.x + at];
    }
    if (threadIdx.y == 0 && c < a.C) store_n<N>(partial + (int64_t)blockIdx.y * a.C + c, sum);
}

template <typename T, int N, int WHAT>
static void launch_column_sums(float *partial, const ColumnArgs &a, cudaStream_t stream)
{
    RowGrid g = row_grid((a.C + N - 1) / N, a.rows, 1);
    g.grid.y = (unsigned)column_partials(a.C, a.rows);
    LAUNCH((column_sums<T, N, WHAT>), g.grid, g.block, 0, stream, partial, (T *)a.du, (const T *)a.dy, (const T *)a.u,
           a, chunk_rows(a.C, a.rows));
}

template <typename T, int WHAT> static void launch_width(float *partial, const ColumnArgs &a, cudaStream_t stream)
{
    constexpr int N = Pack<T>::N;
    const bool wide = aligned16(a.du, a.dy, a.u, a.gain, partial) && whole<N>(a.C, a.lddu, a.lddy, a.ldu);
    if (wide)
        launch_column_sums<T, N, WHAT>(partial, a, stream);
    else
        launch_column_sums<T, 1, WHAT>(partial, a, stream);
}

template <typename T> static void launch_what(ColumnSum what, float *partial, const ColumnArgs &a, cudaStream_t stream)
{
    if (what == SUM_DY)
        launch_width<T, SUM_DY>(partial, a, stream);
    else if (what == SUM_DY_U)
        launch_width<T, SUM_DY_U>(partial, a, stream);
    else
        launch_width<T, SUM_DY_U_ROW>(partial, a, stream);
}

void column_sums(DType t, ColumnSum what, float *partial, const ColumnArgs &a, cudaStream_t stream)
{
    if (a.rows && a.C) BY_TYPE(t, launch_what, what, partial, a, stream);
}

// ---- the gradient of a bias ----
size_t cuda_column_sums_scratch(int N, int T)
{
    return sizeof(float) * (size_t)column_partials(N, T) * (size_t)N;
}

void cuda_bias_grad(DType t, float *db, const void *dy, int64_t lddy, int N, bool accumulate, int T, void *scratch,
                    cudaStream_t stream)
{
    float *partial = (float *)scratch;
    ColumnArgs a = {};
    a.dy = dy, a.lddy = lddy, a.C = N, a.rows = T;
    if (N == 0) return;
    column_sums(t, SUM_DY, partial, a, stream);
    sum_partials(db, partial, column_partials(N, T), N, NULL, accumulate, stream);
}
