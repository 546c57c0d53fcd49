// attention_bwd: flash attention, backward, bf16, without sums that meet in memory: one kernel has a block per tile of keys and walks
// over the rows that see them (dK, dV), the other a block per tile of rows and walks over the keys (dQ). Both compute the scores
// again, 7 products instead of 5, and no bit depends on the order of blocks.
//
// The first holds everything transposed (keys are rows of the fragments), so that P and dS are left operands as they come out of the
// accumulators. Heads over 128 columns have room for one of dK and dV at a time: two launches.
#include "attention_mma.cuh"

// ---- elements ----
// Of scores q·k and dP: s becomes a power of two's exponent (before the rate), dp loses delta and takes the slope of the cap.
template <int MT, int N, class Delta>
DEVICE void cap_scores_and_slopes(const Attn &p, float (&s)[MT][N][4], float (&dp)[MT][N][4], Delta delta)
{
    const float in = p.scale / p.softcap, out = p.softcap * LOG2_E;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float th = tanh_fast(s[m][n][e] * in);
                s[m][n][e] = out * th;
                dp[m][n][e] = (dp[m][n][e] - delta(m, n, e)) * (1 - th * th);
            }
}

// s becomes p = exp(score - lse), dp the gradient of the score: p (dP - delta). lse in powers of two.
template <int MT, int N, class Lse, class Delta>
DEVICE void probabilities(float rate, float (&s)[MT][N][4], float (&dp)[MT][N][4], Lse lse, Delta delta)
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[m][n][e] = exp2_fast(fmaf(s[m][n][e], rate, -lse(m, n, e)));
                dp[m][n][e] = s[m][n][e] * (dp[m][n][e] - delta(m, n, e));
            }
}

// ---- dQ ----
template <int DP_, int WARPS_, int MT_, int KEYS_, int STAGES_> struct DqShape {
    static constexpr int DP = DP_, WARPS = WARPS_, MT = MT_, KEYS = KEYS_, STAGES = STAGES_, THREADS = WARPS * WARP;
    static constexpr int ROWS = 16 * MT * WARPS, STAGE = 2 * KEYS * DP;
    static constexpr int SMEM = (2 * ROWS * DP + STAGES * STAGE) * (int)sizeof(bf16);
};

// Of the rows that a thread holds parts of, as in the forward pass.
template <int MT> struct RowStats {
    float lse[MT][2], delta[MT][2];
    int last[MT][2];
};

template <int MT> DEVICE void load_stats(const Attn &p, const AttnWork &w, RowStats<MT> &x, int from, int lane)
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = from + 16 * m + 8 * h + lane / 4;
            const bool there = row < w.rows; // others have q and dout of zero: their dS is zero
            const int64_t at = AttnStats{p, w}(there ? row : w.first);
            x.last[m][h] = attn_last_key(p, w, row);
            x.lse[m][h] = there ? p.lse[at] * LOG2_E : 0;
            x.delta[m][h] = there ? p.delta[at] : 0;
        }
}

template <class S>
DEVICE void dq_scores(const Attn &p, const RowStats<S::MT> &x, float (&s)[S::MT][S::KEYS / 8][4],
                      float (&dp)[S::MT][S::KEYS / 8][4], AttnView view, int key, int lane)
{
    const bool capped = p.softcap > 0;
    if (capped) cap_scores_and_slopes(p, s, dp, [&](int m, int, int e) { return x.delta[m][e / 2]; });
    if (view == PARTLY) hide_keys<S>(p, x.last, s, key, lane);
    probabilities(
        score_rate(p), s, dp, [&](int m, int, int e) { return x.lse[m][e / 2]; },
        [&](int m, int, int e) { return capped ? 0 : x.delta[m][e / 2]; });
}

template <class S> __global__ void __launch_bounds__(S::THREADS) attn_dq_kernel(const Attn p)
{
    DYN_SMEM(bf16, sq);
    bf16 *const sdo = sq + S::ROWS * S::DP, *const stages = sdo + S::ROWS * S::DP;
    const int lane = threadIdx.x % WARP, row0 = threadIdx.x / WARP * 16 * S::MT;
    const AttnWork w = attn_work<S::ROWS>(p);
    if (w.first >= w.rows) return;
    const int from = w.first + row0, to = min(from + 16 * S::MT, w.rows);
    const AttnRange see = attn_keys_of(p, w, w.first, min(w.first + S::ROWS, w.rows));
    const AttnKeys keys = {p, w, p.ldkv};
    const auto load = [&](int key, int stage) {
        bf16 *sk = stages + stage * S::STAGE;
        tile_load<S::KEYS, S::DP, S::THREADS>(sk, p.k, key, w.k_len, p.D, keys);
        tile_load<S::KEYS, S::DP, S::THREADS>(sk + S::KEYS * S::DP, p.v, key, w.k_len, p.D, keys);
    };
    RowStats<S::MT> x;
    load_stats<S::MT>(p, w, x, from, lane);
    float dq[S::MT][S::DP / 8][4], s[S::MT][S::KEYS / 8][4], dp[S::MT][S::KEYS / 8][4];
    clear(dq);
    int key = see.from / S::KEYS * S::KEYS;
    tile_load<S::ROWS, S::DP, S::THREADS>(sq, p.q, w.first, w.rows, p.D, AttnRows{p, w, p.ldq});
    tile_load<S::ROWS, S::DP, S::THREADS>(sdo, p.dout, w.first, w.rows, p.D, AttnRows{p, w, p.ldo});
    load(key, 0);
    cp_async_commit();
    for (int stage = 0; key < see.to; key += S::KEYS, stage = (stage + 1) % S::STAGES) {
        const AttnView view = from < to ? attn_view(p, w, from, to, key, S::KEYS) : HIDDEN;
        if (S::STAGES == 2) {
            if (key + S::KEYS < see.to) load(key + S::KEYS, stage ^ 1);
            cp_async_commit();
        }
        cp_async_wait<S::STAGES - 1>();
        __syncthreads(); // this stage is there
        const bf16 *sk = stages + stage * S::STAGE, *sv = sk + S::KEYS * S::DP;
        if (view != HIDDEN) {
            multiply<S::DP, S::MT, S::KEYS>(s, sq, row0, sk, lane);
            multiply<S::DP, S::MT, S::KEYS>(dp, sdo, row0, sv, lane);
            dq_scores<S>(p, x, s, dp, view, key, lane);
            multiply_add<S::DP, S::MT, S::KEYS>(dq, dp, sk, lane);
        }
        __syncthreads(); // and free again
        if (S::STAGES == 1) {
            if (key + S::KEYS < see.to) load(key + S::KEYS, 0);
            cp_async_commit();
        }
    }
    if (from >= to) return;
    float scale[S::MT][2];
#pragma unroll
    for (int m = 0; m < S::MT; m++) scale[m][0] = scale[m][1] = p.scale;
    put_rows<S::DP, S::MT>(sq, row0, dq, scale, lane);
    __syncwarp();
    tile_store<S::MT, S::DP>(p.dq, sq, row0, from, w.rows, p.D, lane, AttnRows{p, w, p.lddq});
}

// ---- dK, dV ----
enum { DK = 1, DV = 2 };
template <int DP_, int WARPS_, int MT_, int ROWS_, int STAGES_, int WHAT_> struct DkvShape {
    static constexpr int DP = DP_, WARPS = WARPS_, MT = MT_, ROWS = ROWS_, STAGES = STAGES_, THREADS = WARPS * WARP;
    static constexpr int KEYS = 16 * MT * WARPS, WHAT = WHAT_;
    static constexpr int STAGE = 2 * ROWS * DP + 2 * ROWS * 2; // in bf16: q, dout, and lse, delta in floats
    static constexpr int SMEM = (2 * KEYS * DP + STAGES * STAGE) * (int)sizeof(bf16);
};

// Rows [row, row + ROWS) of q and dout with their lse and delta; from `end` on zeros, which add nothing.
template <class S> DEVICE void load_rows(const Attn &p, const AttnWork &w, bf16 *stage, int row, int end)
{
    tile_load<S::ROWS, S::DP, S::THREADS>(stage, p.q, row, end, p.D, AttnRows{p, w, p.ldq});
    tile_load<S::ROWS, S::DP, S::THREADS>(stage + S::ROWS * S::DP, p.dout, row, end, p.D, AttnRows{p, w, p.ldo});
    float *stats = reinterpret_cast<float *>(stage + 2 * S::ROWS * S::DP);
    for (int i = threadIdx.x; i < S::ROWS; i += S::THREADS) {
        const bool there = row + i < end;
        const int64_t at = there ? AttnStats{p, w}(row + i) : 0;
        cp_async<4>(stats + i, p.lse + at, there ? 4 : 0);
        cp_async<4>(stats + S::ROWS + i, p.delta + at, there ? 4 : 0);
    }
}

// s and dp are (keys, rows).
template <class S>
DEVICE void dkv_scores(const Attn &p, const AttnWork &w, const float *stats, float (&s)[S::MT][S::ROWS / 8][4],
                       float (&dp)[S::MT][S::ROWS / 8][4], AttnView view, int key, int row, int lane)
{
    const bool capped = p.softcap > 0;
    const int column = lane % 4 * 2;
    const auto delta = [&](int, int n, int e) { return stats[S::ROWS + 8 * n + column + e % 2]; };
    if (capped) cap_scores_and_slopes(p, s, dp, delta);
    if (view == PARTLY)
#pragma unroll
        for (int n = 0; n < S::ROWS / 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int last = attn_last_key(p, w, row + 8 * n + column + e);
#pragma unroll
                for (int m = 0; m < S::MT; m++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const int at = key + 16 * m + 8 * h + lane / 4;
                        if (at > last || at <= last - p.window) s[m][n][2 * h + e] = -INFINITY;
                    }
            }
    probabilities(
        score_rate(p), s, dp, [&](int, int n, int e) { return LOG2_E * stats[8 * n + column + e % 2]; },
        [&](int m, int n, int e) { return capped ? 0 : delta(m, n, e); });
}

// acc * scale of the warp's keys out through their rows of K or V in shared memory, which only this warp reads.
template <class S>
DEVICE void dkv_finish(const Attn &p, const AttnWork &w, void *to, bf16 *tile, const float (&acc)[S::MT][S::DP / 8][4],
                       float by, int key0, int lane)
{
    float scale[S::MT][2];
#pragma unroll
    for (int m = 0; m < S::MT; m++) scale[m][0] = scale[m][1] = by;
    put_rows<S::DP, S::MT>(tile, key0, acc, scale, lane);
    __syncwarp();
    tile_store<S::MT, S::DP>(to, tile, key0, w.first + key0, w.k_len, p.D, lane, AttnKeys{p, w, p.lddkv});
}

template <class S> __global__ void __launch_bounds__(S::THREADS) attn_dkv_kernel(const Attn p)
{
    DYN_SMEM(bf16, sk);
    bf16 *const sv = sk + S::KEYS * S::DP, *const stages = sv + S::KEYS * S::DP;
    const int lane = threadIdx.x % WARP, key0 = threadIdx.x / WARP * 16 * S::MT;
    const AttnWork w = attn_work<S::KEYS>(p);
    if (w.first >= w.k_len) return;
    const int from = w.first + key0, to = min(from + 16 * S::MT, w.k_len); // keys of this warp
    const AttnRange see = attn_rows_of(p, w, w.first, min(w.first + S::KEYS, w.k_len));
    float dk[S::MT][S::DP / 8][4], dv[S::MT][S::DP / 8][4], s[S::MT][S::ROWS / 8][4], dp[S::MT][S::ROWS / 8][4];
    if (S::WHAT & DK) clear(dk);
    if (S::WHAT & DV) clear(dv);
    int row = see.from;
    tile_load<S::KEYS, S::DP, S::THREADS>(sk, p.k, w.first, w.k_len, p.D, AttnKeys{p, w, p.ldkv});
    if (S::WHAT & DK) tile_load<S::KEYS, S::DP, S::THREADS>(sv, p.v, w.first, w.k_len, p.D, AttnKeys{p, w, p.ldkv});
    if (row < see.to) load_rows<S>(p, w, stages, row, see.to);
    cp_async_commit();
    for (int stage = 0; row < see.to; row += S::ROWS, stage = (stage + 1) % S::STAGES) {
        const int end = min(row + S::ROWS, see.to);
        const AttnView view = from < to ? attn_view(p, w, row, end, from, to - from) : HIDDEN;
        if (S::STAGES == 2) {
            if (row + S::ROWS < see.to) load_rows<S>(p, w, stages + (stage ^ 1) * S::STAGE, row + S::ROWS, see.to);
            cp_async_commit();
        }
        cp_async_wait<S::STAGES - 1>();
        __syncthreads(); // this stage is there
        const bf16 *sq = stages + stage * S::STAGE, *sdo = sq + S::ROWS * S::DP;
        if (view != HIDDEN) {
            multiply<S::DP, S::MT, S::ROWS>(s, sk, key0, sq, lane);
            if (S::WHAT & DK)
                multiply<S::DP, S::MT, S::ROWS>(dp, sv, key0, sdo, lane);
            else
                clear(dp);
            dkv_scores<S>(p, w, (const float *)(sdo + S::ROWS * S::DP), s, dp, view, from, row, lane);
            if (S::WHAT & DV) multiply_add<S::DP, S::MT, S::ROWS>(dv, s, sdo, lane);
            if (S::WHAT & DK) multiply_add<S::DP, S::MT, S::ROWS>(dk, dp, sq, lane);
        }
        __syncthreads(); // and free again
        if (S::STAGES == 1) {
            if (row + S::ROWS < see.to) load_rows<S>(p, w, stages, row + S::ROWS, see.to);
            cp_async_commit();
        }
    }
    cp_async_wait<0>();
    __syncthreads(); // K and V have come, also where no row sees them
    if (from >= to) return;
    if (S::WHAT & DK) dkv_finish<S>(p, w, p.dk, sk, dk, p.scale, key0, lane);
    if (S::WHAT & DV) dkv_finish<S>(p, w, p.dv, sv, dv, 1, key0, lane);
}

// ---- launches ----
template <class S> static void launch_dq(const Attn &p, int tiles, cudaStream_t stream)
{
    const int blocks = tiles * (TABLE_TILE / S::ROWS) * p.KV;
    if (blocks) LAUNCH((attn_dq_kernel<S>), dim3(blocks), dim3(S::THREADS), S::SMEM, stream, p);
}

template <class S> static void launch_dkv(const Attn &p, int tiles, cudaStream_t stream)
{
    const int blocks = tiles * (TABLE_TILE / S::KEYS) * p.KV;
    if (blocks) LAUNCH((attn_dkv_kernel<S>), dim3(blocks), dim3(S::THREADS), S::SMEM, stream, p);
}

static void attn_dq_mma(const Attn &p, int tiles, cudaStream_t stream)
{
    if (p.D <= 32) return launch_dq<DqShape<32, 4, 2, 64, 2>>(p, tiles, stream);
    if (p.D <= 64) return launch_dq<DqShape<64, 4, 2, 48, 2>>(p, tiles, stream);
    if (p.D <= 80) return launch_dq<DqShape<80, 4, 2, 32, 2>>(p, tiles, stream);
    if (p.D <= 96) return launch_dq<DqShape<96, 4, 2, 32, 2>>(p, tiles, stream);
    if (p.D <= 128) return launch_dq<DqShape<128, 8, 1, 32, 2>>(p, tiles, stream);
    if (p.D <= 192) return launch_dq<DqShape<192, 4, 1, 32, 2>>(p, tiles, stream);
    launch_dq<DqShape<256, 4, 1, 16, 2>>(p, tiles, stream);
}

static void attn_dkv_mma(const Attn &p, int tiles, cudaStream_t stream)
{
    if (p.D <= 32) return launch_dkv<DkvShape<32, 4, 2, 32, 2, DK | DV>>(p, tiles, stream);
    if (p.D <= 64) return launch_dkv<DkvShape<64, 4, 2, 32, 2, DK | DV>>(p, tiles, stream);
    if (p.D <= 80) return launch_dkv<DkvShape<80, 8, 1, 32, 2, DK | DV>>(p, tiles, stream);
    if (p.D <= 96) return launch_dkv<DkvShape<96, 8, 1, 32, 2, DK | DV>>(p, tiles, stream);
    if (p.D <= 128) return launch_dkv<DkvShape<128, 8, 1, 32, 2, DK | DV>>(p, tiles, stream);
    if (p.D <= 192) {
        launch_dkv<DkvShape<192, 4, 1, 32, 2, DK>>(p, tiles, stream);
        return launch_dkv<DkvShape<192, 4, 1, 32, 2, DV>>(p, tiles, stream);
    }
    launch_dkv<DkvShape<256, 4, 1, 16, 2, DK>>(p, tiles, stream);
    launch_dkv<DkvShape<256, 4, 1, 16, 2, DV>>(p, tiles, stream);
}

void attn_bwd_mma(const Attn &p, const AttnTile *row_tiles, int rows, const AttnTile *key_tiles, int keys,
                  cudaStream_t stream)
{
    Attn x = p;
    x.tile = row_tiles;
    attn_dq_mma(x, rows, stream);
    x.tile = key_tiles;
    attn_dkv_mma(x, keys, stream);
}
