// lora: the adapter's gradients that read dY, in one pass over it:  dS = scale · dY·B,  dB (+)= dYᵀ·S;  and dA (+)= dSᵀ·X, the same
// pass over X with one product. Memory is what this costs: dY is N columns, S, B and dS only R.
//
// A block has TOKENS tokens by SPLIT columns of dY. It walks over the columns 64 at a time, and for each over its tokens 128 at a
// time: dB of 64 columns stays in registers until the tokens are through, dS of all tokens until the columns are. Both are then
// parts of sums, (SPLITS, T, R) and (token blocks, N, R) in f32, which a second kernel adds up in their order. Where dS is cut
// depends on N alone, and dB on T and R. Ranks over 64 are taken 64 at a time.
#include "cuda_kernels.h"
#include "tile.cuh"

constexpr int SPLIT = 512;

struct Lora {
    const void *dy, *s, *b;
    int64_t lddy, lds;
    float *ds_parts, *db_parts; // ds_parts NULL: dB alone
    int64_t db_n, db_r;         // strides of a part of dB: by column of dY, by rank
    int N, R, T;
    bool dy_aligned, s_aligned, b_aligned; // rows begin at multiples of 16 bytes
};

// ---- bf16: tensor core ----
constexpr int LORA_WARPS = 4, LORA_THREADS = LORA_WARPS * WARP, ROWS = 32 * LORA_WARPS, COLS = 64;

template <int RP_, bool DS_> struct LoraShape {
    static constexpr int RP = RP_, TILES = RP == 64 ? 2 : 4, TOKENS = TILES * ROWS;
    static constexpr bool DS = DS_;
    static constexpr int SMEM = (TOKENS * RP + 2 * ROWS * COLS + 2 * COLS * RP) * (int)sizeof(bf16);
};

// Window of a matrix (rows, columns) from row0, column0 on, zeros beyond: copied asynchronously where rows are aligned.
template <int H, int DP>
DEVICE void load_window(bf16 *tile, const void *x, int64_t ld, int row0, int rows, int column0, int columns,
                        bool is_aligned)
{
    constexpr int CHUNKS = DP / 8;
#pragma unroll 2
    for (int c = threadIdx.x; c < H * CHUNKS; c += LORA_THREADS) {
        const int row = c / CHUNKS, chunk = c % CHUNKS, column = column0 + 8 * chunk;
        const int there = row0 + row < rows ? max(0, min(8, columns - column)) : 0;
        const bf16 *from = (const bf16 *)x + (there ? (row0 + row) * ld + column : 0);
        bf16 *to = tile + tile_at<DP>(row, chunk);
        if (is_aligned) {
            cp_async<16>(to, from, 2 * there);
            continue;
        }
        Pack<bf16> p;
#pragma unroll
        for (int e = 0; e < 8; e++) p.v[e] = e < there ? from[e] : from_f32<bf16>(0);
        store16(to, p);
    }
}

DEVICE void store8(float *p, float x, float y) // p aligned to 8 bytes
{
    const float two[2] = {x, y};
    uint2 u;
    memcpy(&u, two, sizeof u);
    *reinterpret_cast<uint2 *>(p) = u;
}

// A warp's accumulators, 16 MT rows from `row` of `rows` and RP columns of ranks from `rank`, to where strides say. SIDE_BY_SIDE:
// ranks lie one after the other.
template <bool SIDE_BY_SIDE, int MT, int RP>
DEVICE void put_part(float *part, int64_t by_row, int64_t by_rank, const float (&acc)[MT][RP / 8][4], int row, int rows,
                     int rank, int R, int lane)
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int j = 0; j < RP / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e += 2) {
                const int i = row + 16 * m + e / 2 * 8 + lane / 4, r = rank + 8 * j + lane % 4 * 2;
                if (i >= rows || r >= R) continue;
                float *to = part + i * by_row + r * by_rank;
                if (SIDE_BY_SIDE && R % 2 == 0) {
                    store8(to, acc[m][j][e], acc[m][j][e + 1]);
                    continue;
                }
                to[0] = acc[m][j][e];
                if (r + 1 < R) to[by_rank] = acc[m][j][e + 1];
            }
}

// One tile of dY (ROWS tokens, COLS columns): the warp's 32 tokens of dS and its 16 columns of dB.
template <class S>
DEVICE void lora_products(float (&ds)[2][S::RP / 8][4], float (&db)[1][S::RP / 8][4], const bf16 *dy, const bf16 *b,
                          const bf16 *s, int warp, int lane)
{
    if (S::DS)
#pragma unroll 1 // registers: all of it is a spill at a rank of 64
        for (int step = 0; step < COLS / 16; step++) {
            uint32_t x[2][4];
            left_fragment<COLS>(x[0], dy, 32 * warp, step, lane);
            left_fragment<COLS>(x[1], dy, 32 * warp + 16, step, lane);
#pragma unroll
            for (int n = 0; n < S::RP / 16; n++) {
                uint32_t y[4];
                right_of_columns<S::RP>(y, b, n, step, lane);
                mma_pair(ds, x, y, n);
            }
        }
#pragma unroll
    for (int step = 0; step < ROWS / 16; step++) {
        uint32_t x[1][4];
        left_of_columns<COLS>(x[0], dy, 2 * warp, step, lane);
#pragma unroll
        for (int n = 0; n < S::RP / 16; n++) {
            uint32_t y[4];
            right_of_columns<S::RP>(y, s, n, step, lane);
            mma_pair(db, x, y, n);
        }
    }
}

template <class S> __global__ void __launch_bounds__(LORA_THREADS) lora_bwd_kernel(const Lora p)
{
    DYN_SMEM(bf16, sums);
    bf16 *const dy_stages = sums + S::TOKENS * S::RP, *const b_stages = dy_stages + 2 * ROWS * COLS;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int splits = (p.N + SPLIT - 1) / SPLIT, split = blockIdx.x % splits, block = blockIdx.x / splits;
    const int token0 = block * S::TOKENS, rank0 = blockIdx.y * S::RP;
    const int column_end = min(p.N, (split + 1) * SPLIT), tiles = min(S::TILES, (p.T - token0 + ROWS - 1) / ROWS);
    const auto load = [&](int column, int tile, int stage, int b_stage) {
        load_window<ROWS, COLS>(dy_stages + stage * ROWS * COLS, p.dy, p.lddy, token0 + tile * ROWS, p.T, column, p.N,
                                p.dy_aligned);
        if (S::DS && tile == 0)
            load_window<COLS, S::RP>(b_stages + b_stage * COLS * S::RP, p.b, p.R, column, p.N, rank0, p.R, p.b_aligned);
    };
    float ds[S::TILES][2][S::RP / 8][4], db[1][S::RP / 8][4];
#pragma unroll
    for (int tile = 0; tile < S::TILES; tile++) clear(ds[tile]);
    load_window<S::TOKENS, S::RP>(sums, p.s, p.lds, token0, p.T, rank0, p.R, p.s_aligned);
    load(split * SPLIT, 0, 0, 0);
    cp_async_commit();
    int stage = 0, b_stage = 0;
    for (int column = split * SPLIT; column < column_end; column += COLS, b_stage ^= 1) {
        clear(db);
#pragma unroll
        for (int tile = 0; tile < S::TILES; tile++) {
            if (tile >= tiles) break;
            const bool last = tile + 1 == tiles;
            if (!last || column + COLS < column_end)
                load(last ? column + COLS : column, last ? 0 : tile + 1, stage ^ 1, b_stage ^ 1);
            cp_async_commit();
            cp_async_wait<1>();
            __syncthreads(); // this tile is there
            lora_products<S>(ds[tile], db, dy_stages + stage * ROWS * COLS, b_stages + b_stage * COLS * S::RP,
                             sums + tile * ROWS * S::RP, warp, lane);
            __syncthreads(); // and free again
            stage ^= 1;
        }
        put_part<S::DS, 1, S::RP>(p.db_parts + (int64_t)block * p.N * p.R, p.db_n, p.db_r, db, column + 16 * warp, p.N,
                                  rank0, p.R, lane);
    }
    if (S::DS)
#pragma unroll
        for (int tile = 0; tile < S::TILES; tile++)
            put_part<true, 2, S::RP>(p.ds_parts + (int64_t)split * p.T * p.R, p.R, 1, ds[tile],
                                     token0 + tile * ROWS + 32 * warp, p.T, rank0, p.R, lane);
}

// ---- f32: 256 threads as 16 x 16, tiles of 64 tokens, 32 columns, 32 ranks ----
constexpr int PLAIN_THREADS = 256, PLAIN_TOKENS = 64, PLAIN_COLS = 32, PLAIN_RANKS = 32, PLAIN_LD = 33;

DEVICE void load_plain(float *tile, const void *x, int64_t ld, int row0, int height, int rows, int column0, int columns)
{
    for (int i = threadIdx.x; i < height * 32; i += PLAIN_THREADS) {
        const int row = row0 + i / 32, column = column0 + i % 32;
        tile[i / 32 * PLAIN_LD + i % 32] = row < rows && column < columns ? ((const float *)x)[row * ld + column] : 0;
    }
}

template <bool DS> __global__ void __launch_bounds__(PLAIN_THREADS) lora_bwd_plain_kernel(const Lora p)
{
    __shared__ float dy[PLAIN_TOKENS * PLAIN_LD], s[PLAIN_TOKENS * PLAIN_LD], b[PLAIN_COLS * PLAIN_LD];
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const int splits = (p.N + SPLIT - 1) / SPLIT, split = blockIdx.x % splits, block = blockIdx.x / splits;
    const int token0 = block * PLAIN_TOKENS, rank0 = blockIdx.y * PLAIN_RANKS;
    float ds[4][2] = {};
    load_plain(s, p.s, p.lds, token0, PLAIN_TOKENS, p.T, rank0, p.R);
    for (int column = split * SPLIT; column < min(p.N, (split + 1) * SPLIT); column += PLAIN_COLS) {
        load_plain(dy, p.dy, p.lddy, token0, PLAIN_TOKENS, p.T, column, p.N);
        if (DS) load_plain(b, p.b, p.R, column, PLAIN_COLS, p.N, rank0, p.R);
        __syncthreads();
        if (DS)
            for (int k = 0; k < PLAIN_COLS; k++)
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 2; j++)
                        ds[i][j] = fmaf(dy[(ty + 16 * i) * PLAIN_LD + k], b[k * PLAIN_LD + tx + 16 * j], ds[i][j]);
        float db[2][2] = {};
        for (int k = 0; k < PLAIN_TOKENS; k++)
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    db[i][j] = fmaf(dy[k * PLAIN_LD + ty + 16 * i], s[k * PLAIN_LD + tx + 16 * j], db[i][j]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int n = column + ty + i / 2 * 16, r = rank0 + tx + i % 2 * 16;
            if (n < p.N && r < p.R) p.db_parts[(int64_t)block * p.N * p.R + n * p.db_n + r * p.db_r] = db[i / 2][i % 2];
        }
        __syncthreads();
    }
    if (DS)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int token = token0 + ty + i / 2 * 16, r = rank0 + tx + i % 2 * 16;
            if (token < p.T && r < p.R) p.ds_parts[((int64_t)split * p.T + token) * p.R + r] = ds[i / 2][i % 2];
        }
}

// ---- sums ----
// out (n / columns, columns) (+)= scale · Σ parts (count, n), in their order
constexpr int SUM_THREADS = 256;

template <typename T>
__global__ void __launch_bounds__(SUM_THREADS) lora_sum_kernel(T *out, int64_t ld, int columns, const float *parts,
                                                               int count, int64_t n, float scale, bool accumulate)
{
    const int64_t i = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x;
    if (i >= n) return;
    float sum = 0;
    for (int k = 0; k < count; k++) sum += parts[k * n + i];
    T *to = out + i / columns * ld + i % columns;
    *to = from_f32<T>(accumulate ? to_f32(*to) + scale * sum : scale * sum);
}

template <typename T>
static void launch_sum(void *out, int64_t ld, int columns, const float *parts, int count, int64_t n, float scale,
                       bool accumulate, cudaStream_t stream)
{
    const int64_t blocks = (n + SUM_THREADS - 1) / SUM_THREADS;
    if (blocks)
        LAUNCH((lora_sum_kernel<T>), dim3((unsigned)blocks), dim3(SUM_THREADS), 0, stream, (T *)out, ld, columns, parts,
               count, n, scale, accumulate);
}

// ---- launchers ----
static int rank_tile(DType t, int R)
{
    return t == DT_F32 ? PLAIN_RANKS : R <= 16 ? 16 : R <= 32 ? 32 : 64;
}

static int token_blocks(DType t, int R, int T)
{
    const int tokens = t == DT_F32 ? PLAIN_TOKENS : rank_tile(t, R) == 64 ? 2 * ROWS : 4 * ROWS;
    return (T + tokens - 1) / tokens;
}

static int column_splits(int N)
{
    return (N + SPLIT - 1) / SPLIT;
}

static bool aligned(const void *p, int64_t ld)
{
    return (uintptr_t)p % 16 == 0 && ld % 8 == 0;
}

template <class S> static void launch_mma(const Lora &p, dim3 grid, cudaStream_t stream)
{
    LAUNCH((lora_bwd_kernel<S>), grid, dim3(LORA_THREADS), S::SMEM, stream, p);
}

template <bool DS> static void launch_lora(DType t, Lora p, cudaStream_t stream)
{
    if (!p.T) return; // sums of nothing
    const int ranks = rank_tile(t, p.R);
    const dim3 grid(column_splits(p.N) * token_blocks(t, p.R, p.T), (p.R + ranks - 1) / ranks);
    p.dy_aligned = aligned(p.dy, p.lddy), p.s_aligned = aligned(p.s, p.lds), p.b_aligned = aligned(p.b, p.R);
    if (t == DT_F32)
        LAUNCH((lora_bwd_plain_kernel<DS>), grid, dim3(PLAIN_THREADS), 0, stream, p);
    else if (ranks == 16)
        launch_mma<LoraShape<16, DS>>(p, grid, stream);
    else if (ranks == 32)
        launch_mma<LoraShape<32, DS>>(p, grid, stream);
    else
        launch_mma<LoraShape<64, DS>>(p, grid, stream);
}

size_t cuda_lora_bwd_scratch(DType t, int N, int R, int T)
{
    return sizeof(float) * (size_t)R * ((size_t)column_splits(N) * T + (size_t)token_blocks(t, R, T) * N);
}

void cuda_lora_bwd(DType t, void *ds, int64_t ldds, float *db, const void *dy, int64_t lddy, const void *s, int64_t lds,
                   const void *b, float scale, bool accumulate, int N, int R, int T, void *scratch, cudaStream_t stream)
{
    Lora p = {};
    p.dy = dy, p.lddy = lddy, p.s = s, p.lds = lds, p.b = b, p.N = N, p.R = R, p.T = T;
    p.ds_parts = (float *)scratch, p.db_parts = p.ds_parts + (int64_t)column_splits(N) * T * R;
    p.db_n = R, p.db_r = 1;
    launch_lora<true>(t, p, stream);
    if (t == DT_F32)
        launch_sum<float>(ds, ldds, R, p.ds_parts, column_splits(N), (int64_t)T * R, scale, false, stream);
    else
        launch_sum<bf16>(ds, ldds, R, p.ds_parts, column_splits(N), (int64_t)T * R, scale, false, stream);
    launch_sum<float>(db, R, R, p.db_parts, token_blocks(t, R, T), (int64_t)N * R, 1, accumulate, stream);
}

size_t cuda_lora_da_scratch(DType t, int R, int K, int T)
{
    return sizeof(float) * (size_t)token_blocks(t, R, T) * K * R;
}

void cuda_lora_da(DType t, float *da, const void *ds, int64_t ldds, const void *x, int64_t ldx, bool accumulate, int R,
                  int K, int T, void *scratch, cudaStream_t stream)
{
    Lora p = {};
    p.dy = x, p.lddy = ldx, p.s = ds, p.lds = ldds, p.N = K, p.R = R, p.T = T;
    p.db_parts = (float *)scratch, p.db_n = 1, p.db_r = K;
    launch_lora<false>(t, p, stream);
    launch_sum<float>(da, K, K, p.db_parts, token_blocks(t, R, T), (int64_t)R * K, 1, accumulate, stream);
}
