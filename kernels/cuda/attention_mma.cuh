// attention_mma: what the attention kernels on the tensor core share. Scores and dP are `multiply` of tile.cuh, transposed with its
// operands swapped; the products with V, K, Q and dout are `multiply_add` of what came out: nothing but the operands' tiles goes
// through shared memory.
#pragma once
#include "attention.cuh"
#include "tile.cuh"

// Begins to copy rows [first, first + ROWS) of an array, by THREADS threads, of which this is number `thread`; zeros for those from
// `end` on.
template <int ROWS, int DP, int THREADS, class At>
DEVICE void tile_load(bf16 *tile, const void *from, int first, int end, int D, At at, int thread)
{
    constexpr int CHUNKS = DP / 8;
    const bf16 *array = (const bf16 *)from;
#pragma unroll 2 // more would keep more addresses in registers than there are
    for (int c = thread; c < ROWS * CHUNKS; c += THREADS) {
        const int row = c / CHUNKS, chunk = c % CHUNKS;
        const bool there = first + row < end && chunk * 8 < D;
        const bf16 *chunk_at = there ? array + at(first + row) + chunk * 8 : array;
        cp_async<16>(tile + tile_at<DP>(row, chunk), chunk_at, there ? 16 : 0);
    }
}

template <int ROWS, int DP, int THREADS, class At>
DEVICE void tile_load(bf16 *tile, const void *from, int first, int end, int D, At at)
{
    tile_load<ROWS, DP, THREADS>(tile, from, first, end, D, at, threadIdx.x);
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

// ---- softmax over tiles of keys: S has MT, KEYS and DP ----
// Of the rows that a thread holds parts of, m and half of 16 m + 8 half + lane / 4: maximum of the scores so far, and this
// thread's share of Σ exp
template <int MT> struct Softmax {
    float top[MT][2], sum[MT][2];
};

template <class S>
DEVICE void hide_keys(const Attn &p, const int (&last)[S::MT][2], float (&s)[S::MT][S::KEYS / 8][4], int key, int lane)
{
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int at = key + 8 * n + lane % 4 * 2 + e % 2;
                if (at > last[m][e / 2] || at <= last[m][e / 2] - p.window) s[m][n][e] = -INFINITY;
            }
}

// s becomes exp(score - top), and what was summed before is brought to the new top.
template <class S>
DEVICE void softmax_step(Softmax<S::MT> &x, float (&s)[S::MT][S::KEYS / 8][4], float (&o)[S::MT][S::DP / 8][4],
                         float rate)
{
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = x.top[m][h];
#pragma unroll
            for (int n = 0; n < S::KEYS / 8; n++) top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
            const float base = top == -INFINITY ? 0 : top * rate; // a row that has seen no key yet
            const float older = exp2_fast(fmaf(x.top[m][h], rate, -base));
            float sum = 0;
#pragma unroll
            for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) {
                    s[m][n][e] = exp2_fast(fmaf(s[m][n][e], rate, -base));
                    sum += s[m][n][e];
                }
            x.top[m][h] = top;
            x.sum[m][h] = fmaf(x.sum[m][h], older, sum);
#pragma unroll
            for (int n = 0; n < S::DP / 8; n++) o[m][n][2 * h] *= older, o[m][n][2 * h + 1] *= older;
        }
}
