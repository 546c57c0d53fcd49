// attention_fwd: flash attention, forward, bf16 (Dao 2023, arXiv:2307.08691): a block walks over the keys that its rows see with a
// running maximum and never holds more than a tile of scores. While a tile's scores are computed its V is on the way, and while
// they are exponentiated and multiplied with V the next K: two barriers per tile, one buffer each.
#include "attention_mma.cuh"

template <int DP_, int WARPS_, int MT_, int KEYS_> struct FwdShape {
    static constexpr int DP = DP_, WARPS = WARPS_, MT = MT_, KEYS = KEYS_, THREADS = WARPS * WARP;
    static constexpr int ROWS = 16 * MT * WARPS, SMEM = (ROWS + 2 * KEYS) * DP * (int)sizeof(bf16);
};

// The warp's rows from row0 of the tile: divides by the sums, writes o and lse.
template <class S>
DEVICE void fwd_finish(const Attn &p, const AttnWork &w, Softmax<S::MT> &x, const float (&o)[S::MT][S::DP / 8][4],
                       bf16 *tile, int row0, int lane)
{
    const float rate = score_rate(p);
    float inverse[S::MT][2];
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = x.sum[m][h];
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            inverse[m][h] = 1 / sum;
            const int row = w.first + row0 + 16 * m + 8 * h + lane / 4;
            if (p.lse && lane % 4 == 0 && row < w.rows)
                p.lse[AttnStats{p, w}(row)] = fmaf(x.top[m][h] * rate, LN_2, logf(sum));
        }
    put_rows<S::DP, S::MT>(tile, row0, o, inverse, lane);
    __syncwarp();
    tile_store<S::MT, S::DP>(p.o, tile, row0, w.first + row0, w.rows, p.D, lane, AttnRows{p, w, p.ldo});
}

template <class S> __global__ void __launch_bounds__(S::THREADS) attn_fwd_kernel(const Attn p)
{
    DYN_SMEM(bf16, sq);
    bf16 *const sk = sq + S::ROWS * S::DP, *const sv = sk + S::KEYS * S::DP;
    const int lane = threadIdx.x % WARP, row0 = threadIdx.x / WARP * 16 * S::MT;
    const AttnWork w = attn_work<S::ROWS>(p);
    if (w.first >= w.rows) return;
    const int from = w.first + row0, to = min(from + 16 * S::MT, w.rows); // rows of this warp
    const AttnRange see = attn_keys_of(p, w, w.first, min(w.first + S::ROWS, w.rows));
    const AttnKeys keys = {p, w, p.ldkv};
    int last[S::MT][2];
    Softmax<S::MT> x;
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            last[m][h] = attn_last_key(p, w, from + 16 * m + 8 * h + lane / 4);
            x.top[m][h] = -INFINITY, x.sum[m][h] = 0;
        }
    float o[S::MT][S::DP / 8][4], s[S::MT][S::KEYS / 8][4];
    clear(o);
    int key = see.from / S::KEYS * S::KEYS;
    tile_load<S::ROWS, S::DP, S::THREADS>(sq, p.q, w.first, w.rows, p.D, AttnRows{p, w, p.ldq});
    tile_load<S::KEYS, S::DP, S::THREADS>(sk, p.k, key, w.k_len, p.D, keys);
    cp_async_commit();
    for (; key < see.to; key += S::KEYS) {
        const AttnView view = from < to ? attn_view(p, w, from, to, key, S::KEYS) : HIDDEN;
        cp_async_wait<0>();
        __syncthreads(); // K is there, and V free
        tile_load<S::KEYS, S::DP, S::THREADS>(sv, p.v, key, w.k_len, p.D, keys);
        cp_async_commit();
        if (view != HIDDEN) multiply<S::DP, S::MT, S::KEYS>(s, sq, row0, sk, lane);
        cp_async_wait<0>();
        __syncthreads(); // V is there, and K free
        if (key + S::KEYS < see.to) tile_load<S::KEYS, S::DP, S::THREADS>(sk, p.k, key + S::KEYS, w.k_len, p.D, keys);
        cp_async_commit();
        if (view == HIDDEN) continue;
        if (p.softcap > 0) cap_scores(p, s);
        if (view == PARTLY) hide_keys<S>(p, last, s, key, lane);
        softmax_step<S>(x, s, o, score_rate(p));
        multiply_add<S::DP, S::MT, S::KEYS>(o, s, sv, lane);
    }
    if (from < to) fwd_finish<S>(p, w, x, o, sq, row0, lane);
}

template <int DP, int WARPS, int MT, int KEYS> static void launch_fwd(const Attn &p, int tiles, cudaStream_t stream)
{
    typedef FwdShape<DP, WARPS, MT, KEYS> S;
    const int blocks = tiles * (TABLE_TILE / S::ROWS) * p.KV;
    LAUNCH((attn_fwd_kernel<S>), dim3(blocks), dim3(S::THREADS), S::SMEM, stream, p);
}

// 32 rows a warp where the registers allow: the tiles of K and V are then read from shared memory half as often.
void attn_fwd_mma(const Attn &p, int tiles, cudaStream_t stream)
{
    if (p.D <= 32) return launch_fwd<32, 4, 2, 64>(p, tiles, stream);
    if (p.D <= 64) return launch_fwd<64, 4, 2, 64>(p, tiles, stream);
    if (p.D <= 80) return launch_fwd<80, 4, 2, 64>(p, tiles, stream);
    if (p.D <= 96) return launch_fwd<96, 4, 2, 32>(p, tiles, stream);
    if (p.D <= 128) return launch_fwd<128, 4, 2, 48>(p, tiles, stream);
    if (p.D <= 192) return launch_fwd<192, 8, 1, 64>(p, tiles, stream);
    launch_fwd<256, 8, 1, 32>(p, tiles, stream);
}
