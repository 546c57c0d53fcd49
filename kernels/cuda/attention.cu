// attention: attn_fwd and attn_bwd as launchers, and the table that their kernels find their work in. Operands whose rows begin at
// multiples of 16 bytes go to the tensor core (attention_fwd, attention_bwd), others and f32 to attention_plain. Forward, few queries
// behind a long cache are split over the keys (attention_decode).
#include "cuda_kernels.h"
#include "attention.cuh"
#include <algorithm>
#include <vector>

// ---- table: sequences, split ones, tiles of rows (those of split sequences last), tiles of keys, units of split sequences ----
static int tile_count(int n)
{
    return (n + TABLE_TILE - 1) / TABLE_TILE;
}

// How sequence s is split; chunks 0: not. A matter of its own shape alone, so that its bits are too. Never without a cache.
static AttnSplit split_of(const AttnShape *a, int s)
{
    const int ahead = a->k_len[s] - a->q_len[s], from = a->window ? std::max(0, ahead + 1 - a->window) : 0;
    AttnSplit x = {s, from / SPLIT_KEYS, 0, 0};
    if (a->q_len[s] < 1 || a->q_len[s] > SPLIT_QUERIES) return x;
    const int chunks = (a->k_len[s] - 1) / SPLIT_KEYS - x.first + 1;
    if (chunks > 1) x.chunks = chunks;
    return x;
}

struct AttnTableSize {
    int row_tiles, key_tiles, total_rows; // total_rows: of lse
    int splits, units, split_tiles;       // split_tiles: tiles of rows of split sequences
    int most_rows;                        // of a split sequence
    int64_t parts;
};

static AttnTableSize table_size(const AttnShape *a)
{
    AttnTableSize n = {};
    for (int s = 0; s < a->S; s++) {
        const int rows = a->q_len[s] * (a->NH / a->KV), chunks = split_of(a, s).chunks;
        n.row_tiles += tile_count(rows);
        n.key_tiles += tile_count(a->k_len[s]);
        n.total_rows = std::max(n.total_rows, a->q_start[s] + a->q_len[s]);
        if (!chunks) continue;
        n.splits++;
        n.split_tiles += tile_count(rows);
        n.units += (rows + SPLIT_ROWS - 1) / SPLIT_ROWS * chunks;
        n.most_rows = std::max(n.most_rows, rows);
        n.parts += (int64_t)a->KV * rows * chunks;
    }
    n.parts += n.parts % 2; // what lies behind their statistics is aligned to 16 bytes
    return n;
}

size_t cuda_attn_table_bytes(const AttnShape *a)
{
    const AttnTableSize n = table_size(a);
    return a->S * sizeof(int4) + n.splits * sizeof(AttnSplit) +
           (n.row_tiles + (size_t)n.key_tiles + n.units) * sizeof(AttnTile);
}

size_t cuda_attn_fwd_scratch(const AttnShape *a)
{
    return (size_t)table_size(a).parts * (a->D * sizeof(float) + sizeof(float2));
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
    std::vector<CostedTile> rows, split_rows, keys, units;
    std::vector<AttnSplit> splits;
    int part = 0;
    for (int s = 0; s < a->S; s++) {
        const int n_rows = a->q_len[s] * (a->NH / a->KV);
        AttnSplit split = split_of(a, s);
        seq[s] = make_int4(a->q_start[s], a->q_len[s], a->k_start[s], a->k_len[s]);
        for (int i = 0; i < tile_count(n_rows); i++)
            (split.chunks ? split_rows : rows).push_back({{s, i}, row_tile_cost(a, s, i)});
        for (int i = 0; i < tile_count(a->k_len[s]); i++) keys.push_back({{s, i}, key_tile_cost(a, s, i)});
        if (!split.chunks) continue;
        for (int i = 0; i < (n_rows + SPLIT_ROWS - 1) / SPLIT_ROWS * split.chunks; i++)
            units.push_back({{(int)splits.size(), i}, 0});
        split.part = part;
        part += a->KV * n_rows * split.chunks;
        splits.push_back(split);
    }
    AttnSplit *to = std::copy(splits.begin(), splits.end(), (AttnSplit *)(seq + a->S));
    put_tiles(units, put_tiles(keys, put_tiles(split_rows, put_tiles(rows, (AttnTile *)to))));
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
    const AttnTableSize n = table_size(a);
    p.seq = (const int4 *)table;
    p.split = (const AttnSplit *)(p.seq + a->S);
    p.tile = (const AttnTile *)(p.split + n.splits);
    p.KV = a->KV, p.group = a->NH / a->KV, p.D = a->D;
    p.TQ = n.total_rows;
    p.window = a->window ? std::min(a->window, NO_WINDOW) : NO_WINDOW;
    p.group_inverse = (unsigned)((1ull << 32) / p.group + 1); // not used for a group of 1, where it overflows
    p.scale = a->scale, p.softcap = a->softcap;
    return p;
}

static bool aligned(const void *p, int64_t ld)
{
    return (uintptr_t)p % 16 == 0 && ld % 8 == 0;
}

enum AttnKind { PLAIN_F32, PLAIN_BF16, MMA };

static void forward_tiles(AttnKind kind, const Attn &p, int tiles, cudaStream_t stream)
{
    if (!tiles) return;
    if (kind == MMA) return attn_fwd_mma(p, tiles, stream);
    if (kind == PLAIN_F32) return attn_fwd_plain<float>(p, tiles, stream);
    attn_fwd_plain<bf16>(p, tiles, stream);
}

static void forward_split(AttnKind kind, Attn p, const AttnTableSize &n, void *scratch, cudaStream_t stream)
{
    if (!n.splits) return;
    const bool wide = p.D % 4 == 0 && aligned(p.o, p.ldo);
    p.tile += n.row_tiles + n.key_tiles;
    p.part_stats = (float2 *)scratch;
    p.part = (float *)(p.part_stats + n.parts);
    if (kind == MMA)
        attn_parts_mma(p, n.units, stream);
    else if (kind == PLAIN_BF16)
        attn_parts_plain<bf16>(p, n.units, stream);
    else
        attn_parts_plain<float>(p, n.units, stream);
    const float rate = kind != MMA ? LOG2_E : p.softcap > 0 ? 1 : p.scale * LOG2_E;
    if (kind == PLAIN_F32)
        attn_merge<float>(p, n.splits, n.most_rows, rate, wide, stream);
    else
        attn_merge<bf16>(p, n.splits, n.most_rows, rate, wide, stream);
}

void cuda_attn_fwd(DType t, void *o, int64_t ldo, float *lse, const void *q, int64_t ldq, const void *k, const void *v,
                   int64_t ldkv, const AttnShape *a, const void *table, void *scratch, cudaStream_t stream)
{
    Attn p = attn_of(a, table);
    p.o = o, p.lse = lse, p.q = q, p.k = k, p.v = v;
    p.ldo = ldo, p.ldq = ldq, p.ldkv = ldkv;
    const AttnTableSize n = table_size(a);
    const bool rows16 = a->D % 8 == 0 && aligned(o, ldo) && aligned(q, ldq) && aligned(k, ldkv) && aligned(v, ldkv);
    const AttnKind kind = t == DT_F32 ? PLAIN_F32 : rows16 ? MMA : PLAIN_BF16;
    forward_tiles(kind, p, n.row_tiles - n.split_tiles, stream);
    forward_split(kind, p, n, scratch, stream);
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
