// attention_mma: what the attention kernels on the tensor core share. Scores and dP are `multiply` of tile.cuh, transposed with its
// operands swapped; the products with V, K, Q and dout are `multiply_add` of what came out: nothing but the operands' tiles goes
// through shared memory.
#pragma once
#include "attention.cuh"
#include "tile.cuh"

// Begins to copy rows [first, first + ROWS) of an array; zeros for those from `end` on.
template <int ROWS, int DP, int THREADS, class At>
DEVICE void tile_load(bf16 *tile, const void *from, int first, int end, int D, At at)
{
    constexpr int CHUNKS = DP / 8;
    const bf16 *array = (const bf16 *)from;
#pragma unroll 2 // more would keep more addresses in registers than there are
    for (int c = threadIdx.x; c < ROWS * CHUNKS; c += THREADS) {
        const int row = c / CHUNKS, chunk = c % CHUNKS;
        const bool there = first + row < end && chunk * 8 < D;
        const bf16 *chunk_at = there ? array + at(first + row) + chunk * 8 : array;
        cp_async<16>(tile + tile_at<DP>(row, chunk), chunk_at, there ? 16 : 0);
    }
}

// A warp's 16 MT rows, from row0 of the tile and `first` of the array.
template <int MT, int DP, class At>
DEVICE void tile_store(void *to, const bf16 *tile, int row0, int first, int end, int D, int lane, At at)
{
    constexpr int CHUNKS = DP / 8;
#pragma unroll
    for (int c = lane; c < 16 * MT * CHUNKS; c += WARP) {
        const int row = c / CHUNKS, chunk = c % CHUNKS;
        if (first + row < end && chunk * 8 < D)
            store16((bf16 *)to + at(first + row) + chunk * 8, load16(tile + tile_at<DP>(row0 + row, chunk)));
    }
}

// ---- scores ----
DEVICE float tanh_fast(float x) // absolute error 2e-7
{
    return 1 - __fdividef(2, exp2_fast(2 * LOG2_E * x) + 1);
}

// What a score q·k is multiplied by on its way into powers of two; capped scores are there already.
DEVICE float score_rate(const Attn &p)
{
    return p.softcap > 0 ? 1 : p.scale * LOG2_E;
}

template <int MT, int N> DEVICE void cap_scores(const Attn &p, float (&s)[MT][N][4])
{
    const float in = p.scale / p.softcap, out = p.softcap * LOG2_E;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[m][n][e] = out * tanh_fast(s[m][n][e] * in);
}
