// attention: attn_fwd and attn_bwd as launchers, and the table that their kernels find their work in. Operands whose rows begin at
// multiples of 16 bytes go to the tensor core (attention_fwd, attention_bwd), others and f32 to attention_plain.
#include "cuda_kernels.h"
#include "attention.cuh"
#include <algorithm>
#include <vector>

// ---- table: sequences, then tiles of rows, then tiles of keys ----
static int tile_count(int n)
{
    return (n + TABLE_TILE - 1) / TABLE_TILE;
}

struct AttnTableSize {
    int row_tiles, key_tiles, total_rows; // total_rows: of lse
};

static AttnTableSize table_size(const AttnShape *a)
{
    AttnTableSize n = {0, 0, 0};
    for (int s = 0; s < a->S; s++) {
        n.row_tiles += tile_count(a->q_len[s] * (a->NH / a->KV));
        n.key_tiles += tile_count(a->k_len[s]);
        n.total_rows = std::max(n.total_rows, a->q_start[s] + a->q_len[s]);
    }
    return n;
}

size_t cuda_attn_table_bytes(const AttnShape *a)
{
    const AttnTableSize n = table_size(a);
    return a->S * sizeof(int4) + (n.row_tiles + (size_t)n.key_tiles) * sizeof(AttnTile);
}

struct CostedTile {
    AttnTile tile;
    int cost;
};

static AttnTile *put_tiles(std::vector<CostedTile> &tiles, AttnTile *to)
{
    std::stable_sort(tiles.begin(), tiles.end(),
                     [](const CostedTile &x, const CostedTile &y) { return x.cost > y.cost; });
    for (const CostedTile &t : tiles) *to++ = t.tile;
    return to;
}

// Keys that a tile of rows walks over, and rows that see a tile of keys.
static int row_tile_cost(const AttnShape *a, int s, int tile)
{
    const int group = a->NH / a->KV, ahead = a->k_len[s] - a->q_len[s];
    const int first = tile * TABLE_TILE / group,
              last = std::min(((tile + 1) * TABLE_TILE - 1) / group, a->q_len[s] - 1);
    return last + ahead + 1 - (a->window ? std::max(0, first + ahead + 1 - a->window) : 0);
}
static int key_tile_cost(const AttnShape *a, int s, int tile)
{
    const int ahead = a->k_len[s] - a->q_len[s], first = std::max(0, tile * TABLE_TILE - ahead);
    const int end = a->window ? (tile + 1) * TABLE_TILE - 1 - ahead + a->window : a->q_len[s];
    return std::max(0, std::min(end, a->q_len[s]) - first);
}

void cuda_attn_table(void *host_table, const AttnShape *a)
{
    int4 *seq = (int4 *)host_table;
    std::vector<CostedTile> rows, keys;
    for (int s = 0; s < a->S; s++) {
        seq[s] = make_int4(a->q_start[s], a->q_len[s], a->k_start[s], a->k_len[s]);
        for (int i = 0; i < tile_count(a->q_len[s] * (a->NH / a->KV)); i++)
            rows.push_back({{s, i}, row_tile_cost(a, s, i)});
        for (int i = 0; i < tile_count(a->k_len[s]); i++) keys.push_back({{s, i}, key_tile_cost(a, s, i)});
    }
    put_tiles(keys, put_tiles(rows, (AttnTile *)(seq + a->S)));
}

// ---- delta = dout · o ----
// 8 lanes a row, 16 rows of a tile at a time.
constexpr int DELTA_THREADS = 128, DELTA_LANES = 8;

template <typename T, bool VEC> __global__ void __launch_bounds__(DELTA_THREADS) attn_delta_kernel(const Attn p)
{
    const AttnWork w = attn_work<TABLE_TILE>(p);
    const AttnRows rows = {p, w, p.ldo};
    const int lane = threadIdx.x % DELTA_LANES;
    for (int i = threadIdx.x / DELTA_LANES; i < TABLE_TILE; i += DELTA_THREADS / DELTA_LANES) {
        const int row = w.first + i;
        const bool there = row < w.rows;
        float sum = 0;
        if (there) {
            const T *dout = (const T *)p.dout + rows(row), *o = (const T *)p.o + rows(row);
            constexpr int N = VEC ? Pack<T>::N : 1;
            for (int c = lane * N; c < p.D; c += DELTA_LANES * N) {
                if constexpr (VEC) {
                    const Pack<T> x = load16(dout + c), y = load16(o + c);
#pragma unroll
                    for (int e = 0; e < N; e++) sum = fmaf(to_f32(x.v[e]), to_f32(y.v[e]), sum);
                } else
                    sum = fmaf(to_f32(dout[c]), to_f32(o[c]), sum);
            }
        }
#pragma unroll
        for (int step = DELTA_LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
        if (there && lane == 0) p.delta[AttnStats{p, w}(row)] = sum;
    }
}

// ---- launchers ----
static Attn attn_of(const AttnShape *a, const void *table)
{
    Attn p = {};
    p.seq = (const int4 *)table;
    p.tile = (const AttnTile *)(p.seq + a->S);
    p.KV = a->KV, p.group = a->NH / a->KV, p.D = a->D;
    p.TQ = table_size(a).total_rows;
    p.window = a->window ? std::min(a->window, NO_WINDOW) : NO_WINDOW;
    p.group_inverse = (unsigned)((1ull << 32) / p.group + 1); // not used for a group of 1, where it overflows
    p.scale = a->scale, p.softcap = a->softcap;
    return p;
}

static bool aligned(const void *p, int64_t ld)
{
    return (uintptr_t)p % 16 == 0 && ld % 8 == 0;
}

void cuda_attn_fwd(DType t, void *o, int64_t ldo, float *lse, const void *q, int64_t ldq, const void *k, const void *v,
                   int64_t ldkv, const AttnShape *a, const void *table, cudaStream_t stream)
{
    Attn p = attn_of(a, table);
    p.o = o, p.lse = lse, p.q = q, p.k = k, p.v = v;
    p.ldo = ldo, p.ldq = ldq, p.ldkv = ldkv;
    const int tiles = table_size(a).row_tiles;
    if (!tiles) return;
    if (t == DT_F32) return attn_fwd_plain<float>(p, tiles, stream);
    if (a->D % 8 == 0 && aligned(o, ldo) && aligned(q, ldq) && aligned(k, ldkv) && aligned(v, ldkv))
        return attn_fwd_mma(p, tiles, stream);
    attn_fwd_plain<bf16>(p, tiles, stream);
}

template <typename T> static void launch_delta(const Attn &p, int tiles, cudaStream_t stream)
{
    if (!tiles) return;
    const dim3 grid(tiles * p.KV), block(DELTA_THREADS);
    if (p.D % Pack<T>::N == 0 && p.ldo % Pack<T>::N == 0 && aligned(p.o, 0) && aligned(p.dout, 0))
        LAUNCH((attn_delta_kernel<T, true>), grid, block, 0, stream, p);
    else
        LAUNCH((attn_delta_kernel<T, false>), grid, block, 0, stream, p);
}

void cuda_attn_bwd(DType t, void *dq, int64_t lddq, void *dk, void *dv, int64_t lddkv, const void *dout, const void *o,
                   int64_t ldo, const float *lse, const void *q, int64_t ldq, const void *k, const void *v,
                   int64_t ldkv, const AttnShape *a, const void *table, float *delta, cudaStream_t stream)
{
    Attn p = attn_of(a, table);
    p.dq = dq, p.dk = dk, p.dv = dv, p.dout = dout, p.o = (void *)o, p.lse = (float *)lse, p.delta = delta;
    p.q = q, p.k = k, p.v = v;
    p.lddq = lddq, p.lddkv = lddkv, p.ldo = ldo, p.ldq = ldq, p.ldkv = ldkv;
    const AttnTableSize n = table_size(a);
    const AttnTile *rows = p.tile, *keys = rows + n.row_tiles;
    if (t == DT_F32) {
        launch_delta<float>(p, n.row_tiles, stream);
        return attn_bwd_plain<float>(p, rows, n.row_tiles, keys, n.key_tiles, stream);
    }
    launch_delta<bf16>(p, n.row_tiles, stream);
    if (a->D % 8 == 0 && aligned(dq, lddq) && aligned(dk, lddkv) && aligned(dv, lddkv) && aligned(dout, ldo) &&
        aligned(q, ldq) && aligned(k, ldkv) && aligned(v, ldkv))
        return attn_bwd_mma(p, rows, n.row_tiles, keys, n.key_tiles, stream);
    attn_bwd_plain<bf16>(p, rows, n.row_tiles, keys, n.key_tiles, stream);
}
