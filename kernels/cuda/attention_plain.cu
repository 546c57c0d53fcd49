// attention_plain: attention in f32 arithmetic without the tensor core: for f32 activations, and for bf16 ones whose rows are not
// aligned to 16 bytes. Any head size up to 256.
//
// 256 threads as 16 x 16 on tiles of TILE rows by TILE keys, all in shared memory as f32: a thread has the scores of rows
// ty + 16 i and keys tx + 16 j, and of the results rows ty + 16 i and columns 4 tx + 64 c.
#include "attention.cuh"
#include "rows.cuh"

constexpr int PLAIN_THREADS = 256, EDGE = 16;

template <typename T_, int CHUNKS_, int TILE_ = CHUNKS_ == 4 ? 16 : 32> struct Plain { // CHUNKS of 64 columns
    typedef T_ T;
    static constexpr int CHUNKS = CHUNKS_, TILE = TILE_, PER = TILE / EDGE;
    static constexpr int LD = 64 * CHUNKS + 4, SCORES = TILE * (TILE + 1), ARRAY = TILE * LD;
};

// ---- pieces ----
template <class P, class At> DEVICE void plain_load(float *tile, const void *from, int first, int end, int D, At at)
{
    const int columns = (D + 3) / 4 * 4; // the last ones zero
    for (int i = threadIdx.x; i < P::TILE * columns; i += PLAIN_THREADS) {
        const int row = i / columns, c = i % columns;
        const bool there = first + row < end && c < D;
        tile[row * P::LD + c] = there ? to_f32(((const typename P::T *)from)[at(first + row) + c]) : 0;
    }
}

// dot[i][j] = x row ty + 16 i · y row tx + 16 j
template <class P> DEVICE void plain_dots(float (&dot)[P::PER][P::PER], const float *x, const float *y, int D)
{
    const int tx = threadIdx.x % EDGE, ty = threadIdx.x / EDGE;
#pragma unroll
    for (int i = 0; i < P::PER; i++)
#pragma unroll
        for (int j = 0; j < P::PER; j++) dot[i][j] = 0;
    for (int c = 0; c < D; c += 4) {
        Pack<float> a[P::PER], b[P::PER];
#pragma unroll
        for (int i = 0; i < P::PER; i++) {
            a[i] = load16(x + (ty + EDGE * i) * P::LD + c);
            b[i] = load16(y + (tx + EDGE * i) * P::LD + c);
        }
#pragma unroll
        for (int i = 0; i < P::PER; i++)
#pragma unroll
            for (int j = 0; j < P::PER; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) dot[i][j] = fmaf(a[i].v[e], b[j].v[e], dot[i][j]);
    }
}

// A thread's part of a result (TILE, D).
template <class P> struct PlainSum {
    float v[P::PER][P::CHUNKS][4];
};

template <class P> DEVICE void plain_clear(PlainSum<P> &sum)
{
#pragma unroll
    for (int i = 0; i < P::PER; i++)
#pragma unroll
        for (int c = 0; c < P::CHUNKS; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) sum.v[i][c][e] = 0;
}

// sum += p · z, where p row r, column k stands at p[r * row + k * column]
template <class P> DEVICE void plain_add(PlainSum<P> &sum, const float *p, int row, int column, const float *z, int D)
{
    const int tx = threadIdx.x % EDGE, ty = threadIdx.x / EDGE;
    for (int k = 0; k < P::TILE; k++) {
        float by[P::PER];
#pragma unroll
        for (int i = 0; i < P::PER; i++) by[i] = p[(ty + EDGE * i) * row + k * column];
#pragma unroll
        for (int c = 0; c < P::CHUNKS; c++) {
            if (64 * c + 4 * tx >= D) continue;
            const Pack<float> zc = load16(z + k * P::LD + 64 * c + 4 * tx);
#pragma unroll
            for (int i = 0; i < P::PER; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum.v[i][c][e] = fmaf(by[i], zc.v[e], sum.v[i][c][e]);
        }
    }
}

// Rows from `first` on, scaled by scale(row of the tile), as To.
template <class P, typename To = typename P::T, class Scale, class At>
DEVICE void plain_store(void *to, const PlainSum<P> &sum, int first, int end, int D, Scale scale, At at)
{
    const int tx = threadIdx.x % EDGE, ty = threadIdx.x / EDGE;
#pragma unroll
    for (int i = 0; i < P::PER; i++) {
        const int row = ty + EDGE * i;
        if (first + row >= end) continue;
        const int64_t row_at = at(first + row);
        const float by = scale(row);
#pragma unroll
        for (int c = 0; c < P::CHUNKS; c++) {
            const int column = 64 * c + 4 * tx;
            To *four = (To *)to + row_at + column;
            float v[4];
#pragma unroll
            for (int e = 0; e < 4; e++) v[e] = by * sum.v[i][c][e];
            if (column + 4 <= D && (uintptr_t)four % (4 * sizeof *four) == 0)
                store_n<4>(four, v);
            else
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (column + e < D) four[e] = from_f32<To>(v[e]);
        }
    }
}

DEVICE bool plain_visible(const Attn &p, const AttnWork &w, int row, int key)
{
    const int last = attn_last_key(p, w, row);
    return row < w.rows && key <= last && key > last - p.window;
}

// ---- forward ----
// Scores of a row become exp(score - top), by the TILE / PER² threads... a row of threads that stand side by side in a warp.
template <class P> DEVICE void plain_softmax(float *scores, float *rescale, float &top, float &sum)
{
    constexpr int SHARE = PLAIN_THREADS / P::TILE; // threads of a row
    const int row = threadIdx.x / SHARE, part = threadIdx.x % SHARE;
    float *s = scores + row * (P::TILE + 1);
    float now = top;
    for (int k = part; k < P::TILE; k += SHARE) now = fmaxf(now, s[k]);
#pragma unroll
    for (int step = SHARE / 2; step > 0; step /= 2) now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, step));
    const float base = now == -INFINITY ? 0 : now, older = expf(top - base);
    float more = 0;
    for (int k = part; k < P::TILE; k += SHARE) more += s[k] = expf(s[k] - base);
#pragma unroll
    for (int step = SHARE / 2; step > 0; step /= 2) more += __shfl_xor_sync(ALL_LANES, more, step);
    top = now;
    sum = fmaf(sum, older, more);
    if (part == 0) rescale[row] = older;
}

// Shared memory of a block of the forward pass, in floats
template <class P> struct PlainForward {
    static constexpr int FLOATS = 3 * P::ARRAY + P::SCORES + P::TILE;
    float *q, *k, *v, *scores, *by;
    DEVICE explicit PlainForward(float *memory)
        : q(memory), k(q + P::ARRAY), v(k + P::ARRAY), scores(v + P::ARRAY), by(scores + P::SCORES)
    {
    }
};

// Rows from w.first on, over the tiles of keys that have some of `see`. top, sum: of row threadIdx.x / (threads of a row).
template <class P>
DEVICE void plain_forward(const Attn &p, const AttnWork &w, AttnRange see, const PlainForward<P> &m, PlainSum<P> &o,
                          float &top, float &sum)
{
    const int tx = threadIdx.x % EDGE, ty = threadIdx.x / EDGE;
    const AttnKeys keys = {p, w, p.ldkv};
    plain_clear<P>(o);
    top = -INFINITY, sum = 0;
    plain_load<P>(m.q, p.q, w.first, w.rows, p.D, AttnRows{p, w, p.ldq});
    for (int key = see.from / P::TILE * P::TILE; key < see.to; key += P::TILE) {
        plain_load<P>(m.k, p.k, key, w.k_len, p.D, keys);
        plain_load<P>(m.v, p.v, key, w.k_len, p.D, keys);
        __syncthreads();
        float dot[P::PER][P::PER];
        plain_dots<P>(dot, m.q, m.k, p.D);
#pragma unroll
        for (int i = 0; i < P::PER; i++)
#pragma unroll
            for (int j = 0; j < P::PER; j++) {
                const int row = ty + EDGE * i, column = tx + EDGE * j;
                float s = dot[i][j] * p.scale;
                if (p.softcap > 0) s = p.softcap * tanhf(s / p.softcap);
                if (!plain_visible(p, w, w.first + row, key + column)) s = -INFINITY;
                m.scores[row * (P::TILE + 1) + column] = s;
            }
        __syncthreads();
        plain_softmax<P>(m.scores, m.by, top, sum);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < P::PER; i++)
#pragma unroll
            for (int c = 0; c < P::CHUNKS; c++)
#pragma unroll
                for (int e = 0; e < 4; e++) o.v[i][c][e] *= m.by[ty + EDGE * i];
        plain_add<P>(o, m.scores, P::TILE + 1, 1, m.v, p.D);
        __syncthreads();
    }
}

template <class P> __global__ void __launch_bounds__(PLAIN_THREADS, 2) attn_fwd_plain_kernel(const Attn p)
{
    DYN_SMEM(float, memory);
    const PlainForward<P> m(memory);
    const AttnWork w = attn_work<P::TILE>(p);
    if (w.first >= w.rows) return;
    PlainSum<P> o;
    float top, sum;
    plain_forward<P>(p, w, attn_keys_of(p, w, w.first, min(w.first + P::TILE, w.rows)), m, o, top, sum);
    const int own = threadIdx.x / (PLAIN_THREADS / P::TILE);
    if (threadIdx.x % (PLAIN_THREADS / P::TILE) == 0) {
        m.by[own] = 1 / sum;
        if (p.lse && w.first + own < w.rows) p.lse[AttnStats{p, w}(w.first + own)] = top + logf(sum);
    }
    __syncthreads();
    plain_store<P>(
        p.o, o, w.first, w.rows, p.D, [&](int row) { return m.by[row]; }, AttnRows{p, w, p.ldo});
}

// A unit of a split sequence: the same over its chunk of keys, not divided
template <class P> __global__ void __launch_bounds__(PLAIN_THREADS, 2) attn_parts_plain_kernel(const Attn p)
{
    static_assert(P::TILE == SPLIT_ROWS, "a unit's rows");
    DYN_SMEM(float, memory);
    const PlainForward<P> m(memory);
    const AttnUnit u = attn_unit(p);
    const AttnRange see = attn_keys_of(p, u.w, u.w.first, u.w.rows), chunk = u.keys();
    PlainSum<P> o;
    float top, sum;
    plain_forward<P>(p, u.w, {max(see.from, chunk.from), min(see.to, chunk.to)}, m, o, top, sum);
    const int own = threadIdx.x / (PLAIN_THREADS / P::TILE);
    if (threadIdx.x % (PLAIN_THREADS / P::TILE) == 0 && u.w.first + own < u.w.rows)
        p.part_stats[u.part(u.w.first + own)] = make_float2(top, sum);
    plain_store<P, float>(
        p.part, o, u.w.first, u.w.rows, p.D, [](int) { return 1.0f; }, [&](int row) { return u.part(row) * p.D; });
}

// ---- backward ----
// Probabilities and gradients of the scores of rows by keys, from tiles in shared memory, into ps and ds.
template <class P>
DEVICE void plain_scores(const Attn &p, const AttnWork &w, const float *q, const float *dout, const float *k,
                         const float *v, int first_row, int first_key, float *ps, float *ds)
{
    const int tx = threadIdx.x % EDGE, ty = threadIdx.x / EDGE;
    float dot[P::PER][P::PER], dp[P::PER][P::PER];
    plain_dots<P>(dot, q, k, p.D);
    plain_dots<P>(dp, dout, v, p.D);
#pragma unroll
    for (int i = 0; i < P::PER; i++)
#pragma unroll
        for (int j = 0; j < P::PER; j++) {
            const int row = first_row + ty + EDGE * i, key = first_key + tx + EDGE * j;
            const int at = (ty + EDGE * i) * (P::TILE + 1) + tx + EDGE * j;
            ps[at] = ds[at] = 0;
            if (!plain_visible(p, w, row, key)) continue;
            const int64_t stat = AttnStats{p, w}(row);
            float s = dot[i][j] * p.scale, slope = 1;
            if (p.softcap > 0) {
                const float th = tanhf(s / p.softcap);
                s = p.softcap * th, slope = 1 - th * th;
            }
            ps[at] = expf(s - p.lse[stat]);
            ds[at] = ps[at] * (dp[i][j] - p.delta[stat]) * slope * p.scale;
        }
}

template <class P> __global__ void __launch_bounds__(PLAIN_THREADS, 2) attn_dq_plain_kernel(const Attn p)
{
    DYN_SMEM(float, q);
    float *const dout = q + P::ARRAY, *const k = dout + P::ARRAY, *const v = k + P::ARRAY, *const ps = v + P::ARRAY;
    float *const ds = ps + P::SCORES;
    const AttnWork w = attn_work<P::TILE>(p);
    if (w.first >= w.rows) return;
    const AttnRange see = attn_keys_of(p, w, w.first, min(w.first + P::TILE, w.rows));
    PlainSum<P> dq;
    plain_clear<P>(dq);
    plain_load<P>(q, p.q, w.first, w.rows, p.D, AttnRows{p, w, p.ldq});
    plain_load<P>(dout, p.dout, w.first, w.rows, p.D, AttnRows{p, w, p.ldo});
    for (int key = see.from / P::TILE * P::TILE; key < see.to; key += P::TILE) {
        plain_load<P>(k, p.k, key, w.k_len, p.D, AttnKeys{p, w, p.ldkv});
        plain_load<P>(v, p.v, key, w.k_len, p.D, AttnKeys{p, w, p.ldkv});
        __syncthreads();
        plain_scores<P>(p, w, q, dout, k, v, w.first, key, ps, ds);
        __syncthreads();
        plain_add<P>(dq, ds, P::TILE + 1, 1, k, p.D);
        __syncthreads();
    }
    plain_store<P>(
        p.dq, dq, w.first, w.rows, p.D, [](int) { return 1.0f; }, AttnRows{p, w, p.lddq});
}

template <class P> __global__ void __launch_bounds__(PLAIN_THREADS, 2) attn_dkv_plain_kernel(const Attn p)
{
    DYN_SMEM(float, q);
    float *const dout = q + P::ARRAY, *const k = dout + P::ARRAY, *const v = k + P::ARRAY, *const ps = v + P::ARRAY;
    float *const ds = ps + P::SCORES;
    const AttnWork w = attn_work<P::TILE>(p);
    if (w.first >= w.k_len) return;
    const AttnRange see = attn_rows_of(p, w, w.first, min(w.first + P::TILE, w.k_len));
    PlainSum<P> dk, dv;
    plain_clear<P>(dk);
    plain_clear<P>(dv);
    plain_load<P>(k, p.k, w.first, w.k_len, p.D, AttnKeys{p, w, p.ldkv});
    plain_load<P>(v, p.v, w.first, w.k_len, p.D, AttnKeys{p, w, p.ldkv});
    for (int row = see.from; row < see.to; row += P::TILE) {
        plain_load<P>(q, p.q, row, see.to, p.D, AttnRows{p, w, p.ldq});
        plain_load<P>(dout, p.dout, row, see.to, p.D, AttnRows{p, w, p.ldo});
        __syncthreads();
        plain_scores<P>(p, w, q, dout, k, v, row, w.first, ps, ds);
        __syncthreads();
        plain_add<P>(dk, ds, 1, P::TILE + 1, q, p.D);
        plain_add<P>(dv, ps, 1, P::TILE + 1, dout, p.D);
        __syncthreads();
    }
    plain_store<P>(
        p.dk, dk, w.first, w.k_len, p.D, [](int) { return 1.0f; }, AttnKeys{p, w, p.lddkv});
    plain_store<P>(
        p.dv, dv, w.first, w.k_len, p.D, [](int) { return 1.0f; }, AttnKeys{p, w, p.lddkv});
}

// ---- launches ----
template <class P> static void launch_fwd_plain(const Attn &p, int tiles, cudaStream_t stream)
{
    const int smem = PlainForward<P>::FLOATS * (int)sizeof(float);
    LAUNCH((attn_fwd_plain_kernel<P>), dim3(tiles * (TABLE_TILE / P::TILE) * p.KV), dim3(PLAIN_THREADS), smem, stream,
           p);
}

template <class P> static void launch_parts_plain(const Attn &p, int units, cudaStream_t stream)
{
    const int smem = PlainForward<P>::FLOATS * (int)sizeof(float);
    LAUNCH((attn_parts_plain_kernel<P>), dim3(units * p.KV), dim3(PLAIN_THREADS), smem, stream, p);
}

template <class P>
static void launch_bwd_plain(const Attn &p, const AttnTile *row_tiles, int rows, const AttnTile *key_tiles, int keys,
                             cudaStream_t stream)
{
    const int smem = (4 * P::ARRAY + 2 * P::SCORES) * (int)sizeof(float), blocks = TABLE_TILE / P::TILE * p.KV;
    Attn x = p;
    x.tile = row_tiles;
    if (rows) LAUNCH((attn_dq_plain_kernel<P>), dim3(rows * blocks), dim3(PLAIN_THREADS), smem, stream, x);
    x.tile = key_tiles;
    if (keys) LAUNCH((attn_dkv_plain_kernel<P>), dim3(keys * blocks), dim3(PLAIN_THREADS), smem, stream, x);
}

template <typename T> void attn_fwd_plain(const Attn &p, int tiles, cudaStream_t stream)
{
    if (p.D <= 64) return launch_fwd_plain<Plain<T, 1>>(p, tiles, stream);
    if (p.D <= 128) return launch_fwd_plain<Plain<T, 2>>(p, tiles, stream);
    launch_fwd_plain<Plain<T, 4>>(p, tiles, stream);
}

template <typename T> void attn_parts_plain(const Attn &p, int units, cudaStream_t stream)
{
    if (p.D <= 64) return launch_parts_plain<Plain<T, 1, SPLIT_ROWS>>(p, units, stream);
    if (p.D <= 128) return launch_parts_plain<Plain<T, 2, SPLIT_ROWS>>(p, units, stream);
    launch_parts_plain<Plain<T, 4, SPLIT_ROWS>>(p, units, stream);
}

template <typename T>
void attn_bwd_plain(const Attn &p, const AttnTile *row_tiles, int rows, const AttnTile *key_tiles, int keys,
                    cudaStream_t stream)
{
    if (p.D <= 64) return launch_bwd_plain<Plain<T, 1>>(p, row_tiles, rows, key_tiles, keys, stream);
    if (p.D <= 128) return launch_bwd_plain<Plain<T, 2>>(p, row_tiles, rows, key_tiles, keys, stream);
    launch_bwd_plain<Plain<T, 4>>(p, row_tiles, rows, key_tiles, keys, stream);
}

template void attn_fwd_plain<float>(const Attn &, int, cudaStream_t);
template void attn_fwd_plain<bf16>(const Attn &, int, cudaStream_t);
template void attn_parts_plain<float>(const Attn &, int, cudaStream_t);
template void attn_parts_plain<bf16>(const Attn &, int, cudaStream_t);
template void attn_bwd_plain<float>(const Attn &, const AttnTile *, int, const AttnTile *, int, cudaStream_t);
template void attn_bwd_plain<bf16>(const Attn &, const AttnTile *, int, const AttnTile *, int, cudaStream_t);
