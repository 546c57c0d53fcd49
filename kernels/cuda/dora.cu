// dora: columns of a matrix times a vector, the squares of the rows of W + scale·B·A, and the gains that follow from them; formulas
// stand in cpu/dora.c.
#include "columns.cuh"

// ---- columns times a vector ----
constexpr int SCALE_ROWS = 4; // of a thread, which keeps gain and bias meanwhile

template <typename T, int N> // y may be u or residual
__global__ void __launch_bounds__(ROW_THREADS)
    scale_cols(T *y, int64_t ldy, const T *u, int64_t ldu, const float *__restrict__ gain,
               const float *__restrict__ bias, const T *residual, int columns, int rows)
{
    RowWalk w = row_walk();
    const int64_t c = w.item * N;
    if (c >= columns) return;
    float g[N], b[N] = {};
    if (gain) load_n<N>(g, gain + c);
    if (bias) load_n<N>(b, bias + c);
    for (; w.row < rows; w.row += w.step) {
        float v[N];
        load_n<N>(v, u + w.row * ldu + c);
        if (gain) {
#pragma unroll
            for (int i = 0; i < N; i++) v[i] = fmaf(g[i], v[i], b[i]);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) v[i] += b[i];
        }
        if (residual) {
            float r[N];
            load_n<N>(r, residual + w.row * ldy + c);
#pragma unroll
            for (int i = 0; i < N; i++) v[i] += r[i];
        }
        store_n<N>(y + w.row * ldy + c, v);
    }
}

template <typename T>
static void launch_scale_cols(void *y, int64_t ldy, const void *u, int64_t ldu, const float *gain, const float *bias,
                              const void *residual, int columns, int rows, cudaStream_t stream)
{
    constexpr int N = Pack<T>::N;
    const bool wide = aligned16(y, u, gain, bias, residual) && whole<N>(columns, ldy, ldu);
    const RowGrid g = row_grid(wide ? columns / N : columns, rows, SCALE_ROWS);
    if (wide)
        LAUNCH((scale_cols<T, N>), g.grid, g.block, 0, stream, (T *)y, ldy, (const T *)u, ldu, gain, bias,
               (const T *)residual, columns, rows);
    else
        LAUNCH((scale_cols<T, 1>), g.grid, g.block, 0, stream, (T *)y, ldy, (const T *)u, ldu, gain, bias,
               (const T *)residual, columns, rows);
}

void cuda_scale_cols(DType t, void *y, int64_t ldy, const void *u, int64_t ldu, const float *gain, const float *bias,
                     const void *residual, int N, int T, cudaStream_t stream)
{
    if (T && N) BY_TYPE(t, launch_scale_cols, y, ldy, u, ldu, gain, bias, residual, N, T, stream);
}

void cuda_scale_cols_bwd(DType t, void *du, int64_t lddu, float *dm, const void *dy, int64_t lddy, const void *u,
                         int64_t ldu, const float *gain, const float *inv_norm, bool accumulate, int N, int T,
                         void *scratch, cudaStream_t stream)
{
    const ColumnArgs a = {du, lddu, dy, lddy, u, ldu, gain, NULL, NULL, N, T};
    float *partial = (float *)scratch;
    if (N == 0) return;
    if (!dm) {
        cuda_scale_cols(t, du, lddu, dy, lddy, gain, NULL, NULL, N, T, stream);
        return;
    }
    column_sums(t, SUM_DY_U, partial, a, stream);
    sum_partials(dm, partial, column_partials(N, T), N, inv_norm, accumulate, stream);
}

// ---- squares of the rows of W + scale·B·A ----
// A block takes SQ_ROWS rows of W, SQ_WARP_ROWS to a warp, and every so many-th tile of SQ_COLUMNS columns. A lane has, of each of its
// warp's rows, columns 4 lane .. 4 lane + 3 of both halves of a tile: 64 sums of B·A, for which 16 of the rank's rows of A and
// columns of B at a time lie in shared memory, as f32. The blocks' sums meet in sum_partials.
constexpr int SQ_WARPS = 4, SQ_WARP_ROWS = 8, SQ_ROWS = SQ_WARPS * SQ_WARP_ROWS, SQ_COLUMNS = 8 * WARP, SQ_RANK = 16;
constexpr int SQ_BLOCKS = 1024; // about as many, if W is large

struct SquaresArgs {
    const void *a, *b;
    int64_t ldw, lda, ldb;
    bool a_bf16, b_bf16;
    float scale;
    int N, K, R;
};
struct SquaresTile {
    float a[SQ_RANK][SQ_COLUMNS];
    float b[SQ_RANK][SQ_ROWS + 4]; // times scale; rows begin in different banks
};

DEVICE float load_as(const void *p, bool is_bf16, int64_t i)
{
    return is_bf16 ? to_f32(((const bf16 *)p)[i]) : ((const float *)p)[i];
}

DEVICE void fill_tile(SquaresTile &s, const SquaresArgs &a, int n0, int k0, int r0)
{
    for (int i = (int)threadIdx.x; i < SQ_RANK * SQ_COLUMNS; i += SQ_WARPS * WARP) {
        const int r = i / SQ_COLUMNS, k = i % SQ_COLUMNS;
        const bool there = r0 + r < a.R && k0 + k < a.K;
        s.a[r][k] = there ? load_as(a.a, a.a_bf16, (r0 + r) * a.lda + k0 + k) : 0;
    }
    for (int i = (int)threadIdx.x; i < SQ_RANK * SQ_ROWS; i += SQ_WARPS * WARP) {
        const int r = i % SQ_RANK, n = i / SQ_RANK;
        const bool there = r0 + r < a.R && n0 + n < a.N;
        s.b[r][n] = there ? a.scale * load_as(a.b, a.b_bf16, (n0 + n) * a.ldb + r0 + r) : 0;
    }
}

// sum[n][.] += rows of B times A over the tile's ranks
DEVICE void add_ranks(float (&sum)[SQ_WARP_ROWS][8], const SquaresTile &s, int warp, int lane)
{
#pragma unroll 4
    for (int r = 0; r < SQ_RANK; r++) {
        float a[8], b[SQ_WARP_ROWS];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const Pack<float> p = load16(&s.a[r][h * 4 * WARP + 4 * lane]);
#pragma unroll
            for (int i = 0; i < 4; i++) a[h * 4 + i] = p.v[i];
        }
        load_n<SQ_WARP_ROWS>(b, &s.b[r][warp * SQ_WARP_ROWS]);
#pragma unroll
        for (int n = 0; n < SQ_WARP_ROWS; n++)
#pragma unroll
            for (int i = 0; i < 8; i++) sum[n][i] = fmaf(b[n], a[i], sum[n][i]);
    }
}

// W's elements of row n, columns k .. k+3; 0 beyond it
template <typename W, bool WIDE> DEVICE void load_w(float (&v)[4], const W *w, const SquaresArgs &a, int n, int k)
{
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = 0;
    if (n >= a.N || k >= a.K) return;
    const W *at = w + n * a.ldw + k;
    if constexpr (WIDE)
        load_n<4>(v, at);
    else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (k + i < a.K) v[i] = to_f32(at[i]);
    }
}

template <typename W, bool WIDE>
__global__ void __launch_bounds__(SQ_WARPS *WARP)
    lora_row_squares(float *__restrict__ partial, const W *__restrict__ w, SquaresArgs a)
{
    __shared__ __align__(16) SquaresTile tile;
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, n0 = (int)blockIdx.x * SQ_ROWS;
    float squares[SQ_WARP_ROWS] = {};
    for (int k0 = (int)blockIdx.y * SQ_COLUMNS; k0 < a.K; k0 += (int)gridDim.y * SQ_COLUMNS) {
        float sum[SQ_WARP_ROWS][8] = {};
        for (int r0 = 0; r0 < a.R; r0 += SQ_RANK) {
            __syncthreads();
            fill_tile(tile, a, n0, k0, r0);
            __syncthreads();
            add_ranks(sum, tile, warp, lane);
        }
#pragma unroll
        for (int n = 0; n < SQ_WARP_ROWS; n++) {
            float part = 0;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float v[4];
                load_w<W, WIDE>(v, w, a, n0 + warp * SQ_WARP_ROWS + n, k0 + h * 4 * WARP + 4 * lane);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float x = v[i] + sum[n][h * 4 + i];
                    part = fmaf(x, x, part);
                }
            }
            squares[n] += part;
        }
    }
#pragma unroll
    for (int n = 0; n < SQ_WARP_ROWS; n++) {
        const float total = warp_sum(squares[n]);
        const int row = n0 + warp * SQ_WARP_ROWS + n;
        if (lane == 0 && row < a.N) partial[(int64_t)blockIdx.y * a.N + row] = total;
    }
}

static int squares_cuts(int N, int K) // blocks that share the columns
{
    const int rows = (N + SQ_ROWS - 1) / SQ_ROWS, tiles = (K + SQ_COLUMNS - 1) / SQ_COLUMNS;
    const int cuts = (SQ_BLOCKS + rows - 1) / rows;
    return cuts < tiles ? cuts : tiles;
}

template <typename W>
static void launch_squares(float *partial, const void *w, const SquaresArgs &a, cudaStream_t stream)
{
    const dim3 grid((unsigned)((a.N + SQ_ROWS - 1) / SQ_ROWS), (unsigned)squares_cuts(a.N, a.K));
    if (aligned16(w) && whole<4>(a.K, a.ldw))
        LAUNCH((lora_row_squares<W, true>), grid, SQ_WARPS * WARP, 0, stream, partial, (const W *)w, a);
    else
        LAUNCH((lora_row_squares<W, false>), grid, SQ_WARPS * WARP, 0, stream, partial, (const W *)w, a);
}

size_t cuda_lora_row_squares_scratch(int N, int K)
{
    return sizeof(float) * (size_t)squares_cuts(N, K) * (size_t)N;
}

void cuda_lora_row_squares(float *out, DType w_t, const void *w, int64_t ldw, DType a_t, const void *a, int64_t lda,
                           DType b_t, const void *b, int64_t ldb, float scale, int N, int K, int R, void *scratch,
                           cudaStream_t stream)
{
    const SquaresArgs s = {a, b, ldw, lda, ldb, a_t == DT_BF16, b_t == DT_BF16, scale, N, K, R};
    float *partial = (float *)scratch;
    if (N == 0) return;
    if (K) BY_TYPE(w_t, launch_squares, partial, w, s, stream);
    sum_partials(out, partial, squares_cuts(N, K), N, NULL, false, stream);
}

// ---- gains ----
__global__ void __launch_bounds__(ROW_THREADS)
    dora_gain(float *__restrict__ gain, float *__restrict__ inv_norm, float *__restrict__ gain_less,
              float *__restrict__ magnitude, bool fresh, size_t rows)
{
    const size_t n = flat_item();
    if (n >= rows) return;
    const float norm = __fsqrt_rn(inv_norm[n]), m = fresh ? norm : magnitude[n];
    const float g = norm > 0 ? __fdiv_rn(m, norm) : 0;
    if (fresh) magnitude[n] = m;
    gain[n] = g;
    inv_norm[n] = norm > 0 ? __frcp_rn(norm) : 0;
    if (gain_less) gain_less[n] = g - 1;
}

void cuda_dora_gain(float *gain, float *inv_norm, float *gain_less, float *magnitude, bool fresh, int N,
                    cudaStream_t stream)
{
    if (N)
        LAUNCH(dora_gain, flat_blocks((size_t)N, 1), ROW_THREADS, 0, stream, gain, inv_norm, gain_less, magnitude,
               fresh, (size_t)N);
}
