// attention: what the attention kernels share: the work of a block, where its rows are, and which keys they see. Formulas in
// cpu/attention.c.
//
// The query heads of a key/value head are laid out as one sequence of rows: row r of it is query r / group in head r % group of the
// group. So a key/value head is multi-query attention without repeated keys, decoding one token fills a tile with the group's
// heads, and dK, dV of a group are one sum in the order of the rows.
//
// A launch has one block per tile of rows (forward, dQ) or of keys (dK, dV) and key/value head; the tiles of all sequences stand in
// a table (attention.cu), those with most to do first. Tiles begin where their sequence begins, so that a sequence's bits do not
// depend on what is packed beside it.
#pragma once
#include "attention.h"
#include "dev.cuh"

constexpr int TABLE_TILE = 128; // rows or keys of an entry of the table; kernels with smaller tiles cut them
constexpr int SPLIT_QUERIES = 8, SPLIT_KEYS = 128, SPLIT_ROWS = 16;
constexpr int NO_WINDOW = 1 << 30;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

struct AttnTile {
    int seq, number;
};

// A sequence of up to SPLIT_QUERIES queries behind a cache, whose forward pass is split over its keys: it sees keys of `chunks` chunks of
// SPLIT_KEYS, from number `first` on. Its parts, (KV, rows, chunks), begin at number `part` of all parts; a unit of work is a
// chunk for SPLIT_ROWS rows of a key/value head, number `tile of rows * chunks + chunk - first` of the sequence.
struct AttnSplit {
    int seq, first, chunks, part;
};

struct Attn {
    const void *q, *k, *v, *dout;
    void *o, *dq, *dk, *dv;
    float *lse, *delta; // (NH, TQ); delta = dout · o
    float *part;        // (parts, D) Σ exp(score - top) v over a chunk of keys,
    float2 *part_stats; // (parts) and top, in units of the kernel's own (log2 e / rate), and Σ exp(score - top)
    int64_t ldq, ldkv, ldo, lddq, lddkv;
    const int4 *seq;      // (S) q_start, q_len, k_start, k_len
    const AttnTile *tile; // of rows or of keys; or units of `split`: seq is an index there
    const AttnSplit *split;
    int KV, group, D, TQ, window;
    unsigned group_inverse; // floor(2^32 / group) + 1
    float scale, softcap;
};

// A block's share: `first` is its first row or key within the sequence.
struct AttnWork {
    int q_start, q_len, k_start, k_len, head, first;
    int rows, ahead; // q_len * group; keys that the first query sees beyond itself
};

template <int TILE> DEVICE AttnWork attn_work(const Attn &p)
{
    constexpr int PARTS = TABLE_TILE / TILE;
    const int unit = blockIdx.x / p.KV;
    const AttnTile tile = p.tile[unit / PARTS];
    const int4 s = p.seq[tile.seq];
    AttnWork w;
    w.q_start = s.x, w.q_len = s.y, w.k_start = s.z, w.k_len = s.w;
    w.head = blockIdx.x % p.KV;
    w.first = tile.number * TABLE_TILE + unit % PARTS * TILE;
    w.rows = w.q_len * p.group;
    w.ahead = w.k_len - w.q_len;
    return w;
}

DEVICE int attn_query(const Attn &p, int row) // row / group, for row * group < 2^32
{
    return p.group == 1 ? row : (int)__umulhi((unsigned)row, p.group_inverse);
}

DEVICE int attn_last_key(const Attn &p, const AttnWork &w, int row) // that the row sees
{
    return attn_query(p, row) + w.ahead;
}

// Where things lie, in elements from their array's begin.
struct AttnRows { // of q, o and their gradients
    const Attn &p;
    const AttnWork &w;
    int64_t ld;
    DEVICE int64_t operator()(int row) const
    {
        const int i = attn_query(p, row), h = w.head * p.group + row - i * p.group;
        return (w.q_start + i) * ld + (int64_t)h * p.D;
    }
};
struct AttnStats { // of lse and delta
    const Attn &p;
    const AttnWork &w;
    DEVICE int64_t operator()(int row) const
    {
        const int i = attn_query(p, row), h = w.head * p.group + row - i * p.group;
        return (int64_t)h * p.TQ + w.q_start + i;
    }
};
struct AttnKeys { // of k, v and their gradients
    const Attn &p;
    const AttnWork &w;
    int64_t ld;
    DEVICE int64_t operator()(int key) const { return (w.k_start + key) * ld + (int64_t)w.head * p.D; }
};

struct AttnRange {
    int from, to;
};

// A block's unit of a split sequence. rows: up to where its tile goes.
struct AttnUnit {
    AttnWork w;
    AttnSplit s;
    int all_rows, chunk; // of the sequence; counted from s.first
    DEVICE AttnRange keys() const
    {
        const int from = (s.first + chunk) * SPLIT_KEYS;
        return {from, min(from + SPLIT_KEYS, w.k_len)};
    }
    DEVICE int64_t part(int row) const { return s.part + ((int64_t)w.head * all_rows + row) * s.chunks + chunk; }
};
DEVICE AttnUnit attn_unit(const Attn &p)
{
    const AttnTile tile = p.tile[blockIdx.x / p.KV];
    AttnUnit u;
    u.s = p.split[tile.seq];
    const int4 s = p.seq[u.s.seq];
    u.w.q_start = s.x, u.w.q_len = s.y, u.w.k_start = s.z, u.w.k_len = s.w;
    u.w.head = blockIdx.x % p.KV;
    u.w.first = tile.number / u.s.chunks * SPLIT_ROWS;
    u.w.ahead = u.w.k_len - u.w.q_len;
    u.all_rows = u.w.q_len * p.group;
    u.w.rows = min(u.all_rows, u.w.first + SPLIT_ROWS);
    u.chunk = tile.number % u.s.chunks;
    return u;
}

// Keys that some of rows [from, to) see, and rows that see some of keys [from, to).
DEVICE AttnRange attn_keys_of(const Attn &p, const AttnWork &w, int from, int to)
{
    return {max(0, attn_last_key(p, w, from) - p.window + 1), attn_last_key(p, w, to - 1) + 1};
}
DEVICE AttnRange attn_rows_of(const Attn &p, const AttnWork &w, int from, int to)
{
    return {max(0, from - w.ahead) * p.group, min(w.q_len, to - 1 - w.ahead + p.window) * p.group};
}

// What a tile of scores is to rows [from, to) and keys [key, key + keys) of it: nothing visible, all visible, or some.
enum AttnView { HIDDEN, PARTLY, WHOLE };
DEVICE AttnView attn_view(const Attn &p, const AttnWork &w, int from, int to, int key, int keys)
{
    const int first = attn_last_key(p, w, from), last = attn_last_key(p, w, to - 1);
    if (key > last || key + keys - 1 <= first - p.window) return HIDDEN;
    return key + keys - 1 <= first && key > last - p.window ? WHOLE : PARTLY;
}

// kernels by the type of their operands
void attn_fwd_mma(const Attn &p, int tiles, cudaStream_t stream);
void attn_bwd_mma(const Attn &p, const AttnTile *row_tiles, int rows, const AttnTile *key_tiles, int keys,
                  cudaStream_t stream);
template <typename T> void attn_fwd_plain(const Attn &p, int tiles, cudaStream_t stream);
// Parts of split sequences, and o and lse out of them. sequences: how many are split; rows: most that one of them has; rate: powers of two
// of the tops
void attn_parts_mma(const Attn &p, int units, cudaStream_t stream);
template <typename T> void attn_parts_plain(const Attn &p, int units, cudaStream_t stream);
template <typename T>
void attn_merge(const Attn &p, int sequences, int rows, float rate, bool wide, cudaStream_t stream);
template <typename T>
void attn_bwd_plain(const Attn &p, const AttnTile *row_tiles, int rows, const AttnTile *key_tiles, int keys,
                    cudaStream_t stream);
