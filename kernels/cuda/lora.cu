// lora: the adapter's gradients that read dY, in one pass over it:  dS = scale · dY·B,  dB (+)= dYᵀ·S.  Memory is what this costs: dY
// is N columns, S, B and dS only R.
//
// A block has TOKENS tokens by SPLIT columns of dY. It walks over the columns 64 at a time, and for each over its tokens 128 at a
// time: dB of 64 columns stays in registers until the tokens are through, dS of all tokens until the columns are. Both are then
// parts of sums, (SPLITS, T, R) and (token blocks, N, R) in f32, which a second kernel adds up in their order. Where dS is cut
// depends on N alone, and dB on T.
//
// The parts are what it costs to read dY once instead of twice: 8 R (1/TOKENS + 1/SPLIT) bytes per element of dY, a quarter of the pass
// that is saved at a rank of 16, half of it at 32. Beyond that there are not the registers for as many tokens, and the parts cost more
// than the pass; with few tokens they do, too. f32 is bound by its multiplications. All that is left to two products
// (cuda_lora_bwd_pays).
#include "cuda_kernels.h"
#include "tile.cuh"

constexpr int SPLIT = 512, LORA_WARPS = 4, LORA_THREADS = LORA_WARPS * WARP;
constexpr int ROWS = 32 * LORA_WARPS, COLS = 64, TILES = 4, TOKENS = TILES * ROWS, MOST_RANKS = 32;

struct Lora {
    const bf16 *dy, *s, *b;
    int64_t lddy, lds, ldb;
    float *ds_parts, *db_parts;
    int N, R, T;
    bool dy_aligned, s_aligned, b_aligned; // rows begin at multiples of 16 bytes
};

template <int RP> constexpr int lora_smem() // RP: room for ranks
{
    return (TOKENS * RP + 2 * ROWS * COLS + 2 * COLS * RP) * (int)sizeof(bf16);
}

// Window of a matrix (rows, columns) from row0, column0 on, zeros beyond: copied asynchronously where rows are aligned.
template <int H, int DP>
DEVICE void load_window(bf16 *tile, const bf16 *x, int64_t ld, int row0, int rows, int column0, int columns,
                        bool is_aligned)
{
    constexpr int CHUNKS = DP / 8;
#pragma unroll 2
    for (int c = threadIdx.x; c < H * CHUNKS; c += LORA_THREADS) {
        const int row = c / CHUNKS, chunk = c % CHUNKS, column = column0 + 8 * chunk;
        const int there = row0 + row < rows ? max(0, min(8, columns - column)) : 0;
        const bf16 *from = x + (there ? (row0 + row) * ld + column : 0);
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

// A warp's accumulators, 16 MT rows from `row` of `rows` and RP columns of ranks, into a part (rows, R).
template <int MT, int RP>
DEVICE void put_part(float *part, const float (&acc)[MT][RP / 8][4], int row, int rows, int R, int lane)
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int j = 0; j < RP / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e += 2) {
                const int i = row + 16 * m + e / 2 * 8 + lane / 4, r = 8 * j + lane % 4 * 2;
                if (i >= rows || r >= R) continue;
                float *to = part + (int64_t)i * R + r;
                if (R % 2 == 0) {
                    store8(to, acc[m][j][e], acc[m][j][e + 1]);
                    continue;
                }
                to[0] = acc[m][j][e];
                if (r + 1 < R) to[1] = acc[m][j][e + 1];
            }
}

// One tile of dY (ROWS tokens, COLS columns): the warp's 32 tokens of dS and its 16 columns of dB.
template <int RP>
DEVICE void lora_products(float (&ds)[2][RP / 8][4], float (&db)[1][RP / 8][4], const bf16 *dy, const bf16 *b,
                          const bf16 *s, int warp, int lane)
{
#pragma unroll 1 // registers
    for (int step = 0; step < COLS / 16; step++) {
        uint32_t x[2][4];
        left_fragment<COLS>(x[0], dy, 32 * warp, step, lane);
        left_fragment<COLS>(x[1], dy, 32 * warp + 16, step, lane);
#pragma unroll
        for (int n = 0; n < RP / 16; n++) {
            uint32_t y[4];
            right_of_columns<RP>(y, b, n, step, lane);
            mma_pair(ds, x, y, n);
        }
    }
#pragma unroll
    for (int step = 0; step < ROWS / 16; step++) {
        uint32_t x[1][4];
        left_of_columns<COLS>(x[0], dy, 2 * warp, step, lane);
#pragma unroll
        for (int n = 0; n < RP / 16; n++) {
            uint32_t y[4];
            right_of_columns<RP>(y, s, n, step, lane);
            mma_pair(db, x, y, n);
        }
    }
}

template <int RP> __global__ void __launch_bounds__(LORA_THREADS) lora_bwd_kernel(const Lora p)
{
    DYN_SMEM(bf16, sums);
    bf16 *const dy_stages = sums + TOKENS * RP, *const b_stages = dy_stages + 2 * ROWS * COLS;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int splits = (p.N + SPLIT - 1) / SPLIT, split = blockIdx.x % splits, block = blockIdx.x / splits;
    const int token0 = block * TOKENS;
    const int column_end = min(p.N, (split + 1) * SPLIT), tiles = min(TILES, (p.T - token0 + ROWS - 1) / ROWS);
    const auto load = [&](int column, int tile, int stage, int b_stage) {
        load_window<ROWS, COLS>(dy_stages + stage * ROWS * COLS, p.dy, p.lddy, token0 + tile * ROWS, p.T, column, p.N,
                                p.dy_aligned);
        if (tile == 0)
            load_window<COLS, RP>(b_stages + b_stage * COLS * RP, p.b, p.ldb, column, p.N, 0, p.R, p.b_aligned);
    };
    float ds[TILES][2][RP / 8][4], db[1][RP / 8][4];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) clear(ds[tile]);
    load_window<TOKENS, RP>(sums, p.s, p.lds, token0, p.T, 0, p.R, p.s_aligned);
    load(split * SPLIT, 0, 0, 0);
    cp_async_commit();
    int stage = 0, b_stage = 0;
    for (int column = split * SPLIT; column < column_end; column += COLS, b_stage ^= 1) {
        clear(db);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            if (tile >= tiles) break;
            const bool last = tile + 1 == tiles;
            if (!last || column + COLS < column_end)
                load(last ? column + COLS : column, last ? 0 : tile + 1, stage ^ 1, b_stage ^ 1);
            cp_async_commit();
            cp_async_wait<1>();
            __syncthreads(); // this tile is there
            lora_products<RP>(ds[tile], db, dy_stages + stage * ROWS * COLS, b_stages + b_stage * COLS * RP,
                              sums + tile * ROWS * RP, warp, lane);
            __syncthreads(); // and free again
            stage ^= 1;
        }
        put_part<1, RP>(p.db_parts + (int64_t)block * p.N * p.R, db, column + 16 * warp, p.N, p.R, lane);
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
        put_part<2, RP>(p.ds_parts + (int64_t)split * p.T * p.R, ds[tile], token0 + tile * ROWS + 32 * warp, p.T, p.R,
                        lane);
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
static int token_blocks(int T)
{
    return (T + TOKENS - 1) / TOKENS;
}

static int column_splits(int N)
{
    return (N + SPLIT - 1) / SPLIT;
}

static bool aligned(const void *p, int64_t ld)
{
    return (uintptr_t)p % 16 == 0 && ld % 8 == 0;
}

template <int RP> static void launch_lora(const Lora &p, cudaStream_t stream)
{
    LAUNCH((lora_bwd_kernel<RP>), dim3(column_splits(p.N) * token_blocks(p.T)), dim3(LORA_THREADS), lora_smem<RP>(),
           stream, p);
}

size_t cuda_lora_bwd_scratch(int N, int R, int T)
{
    return sizeof(float) * (size_t)R * ((size_t)column_splits(N) * T + (size_t)token_blocks(T) * N);
}

bool cuda_lora_bwd_pays(DType t, int N, int R, int T)
{
    return t == DT_BF16 && R > 0 && R <= MOST_RANKS &&
           2 * cuda_lora_bwd_scratch(N, R, T) < sizeof(bf16) * (size_t)N * T;
}

void cuda_lora_bwd(void *ds, int64_t ldds, float *db, const void *dy, int64_t lddy, const void *s, int64_t lds,
                   const void *b, int64_t ldb, float scale, bool accumulate, int N, int R, int T, void *scratch,
                   cudaStream_t stream)
{
    Lora p = {};
    p.dy = (const bf16 *)dy, p.lddy = lddy, p.s = (const bf16 *)s, p.lds = lds, p.b = (const bf16 *)b, p.ldb = ldb;
    p.ds_parts = (float *)scratch, p.db_parts = p.ds_parts + (int64_t)column_splits(N) * T * R;
    p.N = N, p.R = R, p.T = T;
    p.dy_aligned = aligned(dy, lddy), p.s_aligned = aligned(s, lds), p.b_aligned = aligned(b, ldb);
    if (T && R <= 16) launch_lora<16>(p, stream);
    if (T && R > 16) launch_lora<MOST_RANKS>(p, stream);
    launch_sum<bf16>(ds, ldds, R, p.ds_parts, column_splits(N), (int64_t)T * R, scale, false, stream);
    launch_sum<float>(db, R, R, p.db_parts, token_blocks(T), (int64_t)N * R, 1, accumulate, stream);
}
