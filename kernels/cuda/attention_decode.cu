// attention_decode: the forward pass of few queries behind a long cache, as in decoding, split over the keys (Flash-Decoding; Dao,
// Haziza, Massa, Sizov 2023): one block for all query heads of a key/value head would read its cache alone while the GPU waits. Blocks
// take chunks of SPLIT_KEYS keys, at multiples of that from the sequence's begin, and leave Σ exp(score - top) v of each row with its top
// and sum; a second kernel adds the parts of a row in the order of its keys. So a sequence's bits depend on nothing beside it.
//
// The warps of a block share the queries and nothing else: each has tiles of keys and a softmax of its own, without barriers; they meet
// when the chunk is done.
#include "attention_mma.cuh"
#include "rows.cuh"

template <int DP_, int KEYS_> struct SplitShape {
    static constexpr int DP = DP_, KEYS = KEYS_, MT = 1, WARPS = 4, THREADS = WARPS * WARP;
    static constexpr int LD = DP + 8; // of a warp's sums in shared memory, which take the place of its keys and values
    static constexpr int KEY_BYTES = 2 * KEYS * DP * (int)sizeof(bf16),
                         SUM_BYTES = SPLIT_ROWS * LD * (int)sizeof(float);
    static constexpr int WARP_BYTES = KEY_BYTES > SUM_BYTES ? KEY_BYTES : SUM_BYTES;
    static constexpr int Q_BYTES = SPLIT_ROWS * DP * (int)sizeof(bf16);
    static constexpr int SMEM = WARPS * WARP_BYTES + Q_BYTES + WARPS * SPLIT_ROWS * (int)sizeof(float2);
    static_assert(SPLIT_KEYS % (WARPS * KEYS) == 0, "every warp has a tile");
};

// This warp's tiles of keys of the unit's chunk.
template <class S>
DEVICE void split_keys(const Attn &p, const AttnUnit &u, bf16 *sq, bf16 *sk, Softmax<1> &x, float (&o)[1][S::DP / 8][4])
{
    const AttnWork &w = u.w;
    const AttnKeys keys = {p, w, p.ldkv};
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, from = u.keys().from;
    bf16 *const sv = sk + S::KEYS * S::DP;
    int last[1][2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        last[0][h] = attn_last_key(p, w, w.first + 8 * h + lane / 4);
        x.top[0][h] = -INFINITY, x.sum[0][h] = 0;
    }
    clear(o);
    tile_load<SPLIT_ROWS, S::DP, S::THREADS>(sq, p.q, w.first, w.rows, p.D, AttnRows{p, w, p.ldq});
    for (int i = warp * S::KEYS; i < SPLIT_KEYS; i += S::WARPS * S::KEYS) {
        float s[1][S::KEYS / 8][4];
        const AttnView view = attn_view(p, w, w.first, w.rows, from + i, S::KEYS);
        if (view != HIDDEN) tile_load<S::KEYS, S::DP, WARP>(sk, p.k, from + i, w.k_len, p.D, keys, lane);
        cp_async_commit();
        if (view != HIDDEN) tile_load<S::KEYS, S::DP, WARP>(sv, p.v, from + i, w.k_len, p.D, keys, lane);
        cp_async_commit();
        cp_async_wait<1>();
        if (i < S::WARPS * S::KEYS)
            __syncthreads(); // the queries are there, of which every warp has brought some
        else
            __syncwarp();
        if (view == HIDDEN) continue;
        multiply<S::DP, 1, S::KEYS>(s, sq, 0, sk, lane);
        if (p.softcap > 0) cap_scores(p, s);
        if (view == PARTLY) hide_keys<S>(p, last, s, from + i, lane);
        softmax_step<S>(x, s, o, score_rate(p));
        cp_async_wait<0>();
        __syncwarp();
        multiply_add<S::DP, 1, S::KEYS>(o, s, sv, lane);
        __syncwarp(); // K and V are free
    }
}

// The warp's sums and statistics into shared memory.
template <class S>
DEVICE void put_sums(float *sums, float2 *stats, const Softmax<1> &x, const float (&o)[1][S::DP / 8][4], int lane)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int row = 8 * h + lane / 4;
        float sum = x.sum[0][h];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        if (lane % 4 == 0) stats[row] = make_float2(x.top[0][h], sum);
#pragma unroll
        for (int n = 0; n < S::DP / 8; n++) {
            const float two[2] = {o[0][n][2 * h], o[0][n][2 * h + 1]};
            store_few(sums + row * S::LD + 8 * n + lane % 4 * 2, two);
        }
    }
}

DEVICE float base_of(float top) // of a row that has seen no key: 0, so that its sums stay 0
{
    return top == -INFINITY ? 0 : top;
}

template <class S> __global__ void __launch_bounds__(S::THREADS) attn_parts_kernel(const Attn p)
{
    DYN_SMEM(unsigned char, memory);
    bf16 *const sq = (bf16 *)(memory + S::WARPS * S::WARP_BYTES);
    float2 *const stats = (float2 *)(memory + S::WARPS * S::WARP_BYTES + S::Q_BYTES);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    unsigned char *const mine = memory + warp * S::WARP_BYTES;
    const AttnUnit u = attn_unit(p);
    Softmax<1> x;
    float o[1][S::DP / 8][4];
    split_keys<S>(p, u, sq, (bf16 *)mine, x, o);
    put_sums<S>((float *)mine, stats + warp * SPLIT_ROWS, x, o, lane);
    __syncthreads();
    const int fours = p.D / 4;
    const float rate = score_rate(p);
    for (int i = threadIdx.x; i < (u.w.rows - u.w.first) * fours; i += S::THREADS) {
        const int row = i / fours, c = i % fours * 4;
        float top = stats[row].x, sum = 0;
        Pack<float> all = {};
#pragma unroll
        for (int k = 1; k < S::WARPS; k++) top = fmaxf(top, stats[k * SPLIT_ROWS + row].x);
#pragma unroll
        for (int k = 0; k < S::WARPS; k++) {
            const float2 of = stats[k * SPLIT_ROWS + row];
            const float by = exp2_fast((of.x - base_of(top)) * rate);
            const Pack<float> some = load16((const float *)(memory + k * S::WARP_BYTES) + row * S::LD + c);
            sum = fmaf(by, of.y, sum);
#pragma unroll
            for (int e = 0; e < 4; e++) all.v[e] = fmaf(by, some.v[e], all.v[e]);
        }
        const int64_t part = u.part(u.w.first + row);
        store16(p.part + part * p.D + c, all);
        if (c == 0) p.part_stats[part] = make_float2(top, sum);
    }
}

// ---- merging: a warp for each row ----
constexpr int MERGE_WARPS = 4;

template <typename T, int N>
__global__ void __launch_bounds__(MERGE_WARPS *WARP) attn_merge_kernel(const Attn p, int row_groups, float rate)
{
    const int lane = threadIdx.x % WARP, group = blockIdx.x % row_groups, unit = blockIdx.x / row_groups;
    const AttnSplit s = p.split[unit / p.KV];
    const int4 seq = p.seq[s.seq];
    AttnWork w = {seq.x, seq.y, seq.z, seq.w, unit % p.KV, 0, seq.y * p.group, seq.w - seq.y};
    const int row = group * MERGE_WARPS + threadIdx.x / WARP;
    if (row >= w.rows) return;
    const int64_t part = s.part + ((int64_t)w.head * w.rows + row) * s.chunks;
    const float2 *const stats = p.part_stats + part;
    float top = -INFINITY, sum = 0;
    for (int i = lane; i < s.chunks; i += WARP) top = fmaxf(top, stats[i].x);
    top = warp_max(top);
    const float base = base_of(top);
    for (int i = 0; i < s.chunks; i++) sum = fmaf(exp2_fast((stats[i].x - base) * rate), stats[i].y, sum);
    const float inverse = 1 / sum;
    T *const o = (T *)p.o + AttnRows{p, w, p.ldo}(row);
    for (int c = lane * N; c < p.D; c += WARP * N) {
        float all[N] = {}, some[N];
#pragma unroll 4
        for (int i = 0; i < s.chunks; i++) {
            const float by = exp2_fast((stats[i].x - base) * rate);
            load_few<N>(some, p.part + (part + i) * p.D + c);
#pragma unroll
            for (int e = 0; e < N; e++) all[e] = fmaf(by, some[e], all[e]);
        }
#pragma unroll
        for (int e = 0; e < N; e++) all[e] *= inverse;
        store_n<N>(o + c, all);
    }
    if (p.lse && lane == 0) p.lse[AttnStats{p, w}(row)] = fmaf(top * rate, LN_2, logf(sum));
}

// ---- launches ----
template <int DP, int KEYS> static void launch_parts(const Attn &p, int units, cudaStream_t stream)
{
    typedef SplitShape<DP, KEYS> S;
    LAUNCH((attn_parts_kernel<S>), dim3(units * p.KV), dim3(S::THREADS), S::SMEM, stream, p);
}

void attn_parts_mma(const Attn &p, int units, cudaStream_t stream)
{
    if (p.D <= 32) return launch_parts<32, 32>(p, units, stream);
    if (p.D <= 64) return launch_parts<64, 32>(p, units, stream);
    if (p.D <= 80) return launch_parts<80, 32>(p, units, stream);
    if (p.D <= 96) return launch_parts<96, 32>(p, units, stream);
    if (p.D <= 128) return launch_parts<128, 32>(p, units, stream);
    if (p.D <= 192) return launch_parts<192, 16>(p, units, stream);
    launch_parts<256, 16>(p, units, stream);
}

template <typename T>
void attn_merge(const Attn &p, int sequences, int rows, float rate, bool wide, cudaStream_t stream)
{
    const int row_groups = (rows + MERGE_WARPS - 1) / MERGE_WARPS;
    const dim3 grid(sequences * p.KV * row_groups), block(MERGE_WARPS * WARP);
    if (wide)
        LAUNCH((attn_merge_kernel<T, 4>), grid, block, 0, stream, p, row_groups, rate);
    else
        LAUNCH((attn_merge_kernel<T, 1>), grid, block, 0, stream, p, row_groups, rate);
}

template void attn_merge<float>(const Attn &, int, int, float, bool, cudaStream_t);
template void attn_merge<bf16>(const Attn &, int, int, float, bool, cudaStream_t);
