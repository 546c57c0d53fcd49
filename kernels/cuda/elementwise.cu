// elementwise: embedding, rotary positions, row gather and scatter, dropout, conversion. Formulas stand in cpu/elementwise.c.
// All are bound by memory: each reads and writes an element once.
#include "rows.cuh"
#include <cuda_fp16.h>

// ---- embedding ----
template <typename T, typename W, int N>
__global__ void __launch_bounds__(ROW_THREADS)
    embed_fwd(T *__restrict__ x, const W *__restrict__ table, const int32_t *__restrict__ tokens, float scale, int V,
              int C, int rows)
{
    RowWalk w = row_walk();
    const int64_t c = w.item * N;
    if (c >= C) return;
    for (; w.row < rows; w.row += w.step) {
        const int token = tokens[w.row];
        float v[N] = {};
        if (token >= 0 && token < V) {
            load_n<N>(v, table + (int64_t)token * C + c);
#pragma unroll
            for (int i = 0; i < N; i++) v[i] *= scale;
        }
        store_n<N>(x + w.row * C + c, v);
    }
}

template <typename T, typename W>
static void launch_embed_fwd(void *x, const void *table, const int32_t *tokens, float scale, int V, int C, int rows,
                             cudaStream_t stream)
{
    constexpr int N = sizeof(T) == 4 || sizeof(W) == 4 ? BESIDE_F32 : Pack<T>::N;
    const bool wide = aligned16(x, table) && whole<N>(C);
    const RowGrid g = row_grid(wide ? C / N : C, rows, 1);
    if (wide)
        LAUNCH((embed_fwd<T, W, N>), g.grid, g.block, 0, stream, (T *)x, (const W *)table, tokens, scale, V, C, rows);
    else
        LAUNCH((embed_fwd<T, W, 1>), g.grid, g.block, 0, stream, (T *)x, (const W *)table, tokens, scale, V, C, rows);
}

void cuda_embed_fwd(DType t, void *x, DType table_t, const void *table, const int32_t *tokens, float scale, int V,
                    int C, int T, cudaStream_t stream)
{
    if (T == 0 || C == 0) return;
    if (t == DT_BF16 && table_t == DT_BF16)
        launch_embed_fwd<bf16, bf16>(x, table, tokens, scale, V, C, T, stream);
    else if (t == DT_BF16)
        launch_embed_fwd<bf16, float>(x, table, tokens, scale, V, C, T, stream);
    else if (table_t == DT_BF16)
        launch_embed_fwd<float, bf16>(x, table, tokens, scale, V, C, T, stream);
    else
        launch_embed_fwd<float, float>(x, table, tokens, scale, V, C, T, stream);
}

// Backward: a block owns the tokens of a class (token % EMBED_CLASSES) over some columns, a warp of it some of those tokens. It lists
// the places of its tokens in their order, and each warp adds the rows of a token to the table's, in that order: the sums
// are those of a plain loop over all places, without sorting and without atomics.
constexpr int EMBED_CLASSES = 128, EMBED_WARPS = 8, EMBED_THREADS = EMBED_WARPS * WARP;
constexpr int EMBED_READ = 4; // tokens that a thread reads at a time
constexpr int EMBED_LIST = EMBED_READ * EMBED_THREADS;

struct EmbedList {
    int place[EMBED_LIST], token[EMBED_LIST];
    uint16_t done[EMBED_LIST]; // the entries of a token are its warp's alone
    int found[EMBED_READ * EMBED_WARPS];
};

template <typename T> struct EmbedColumns {
    float *dtable;
    const T *dx;
    int64_t C, c; // this lane's columns begin at c
    float scale;
};

// Adds the rows of the first DEEP places (bits of entries from k0 on), in order, and takes them off: all are under way before the
// first is added.
template <typename T, int N, int DEEP>
DEVICE void add_places(float (&sum)[N], unsigned &places, const int *place, const EmbedColumns<T> &e)
{
    float v[DEEP][N];
#pragma unroll
    for (int k = 0; k < DEEP; k++) {
        const int64_t row = place[__ffs((int)places) - 1];
        places &= places - 1;
        load_n<N>(v[k], e.dx + row * e.C + e.c);
    }
#pragma unroll
    for (int k = 0; k < DEEP; k++)
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = fmaf(e.scale, v[k][i], sum[i]);
}

// Sums the token of entry `first`, the first of its own that is not done, and marks its entries. Returns which of the 32 entries
// around `first` were its own.
template <typename T, int N>
DEVICE unsigned sum_token(EmbedList &list, int count, int first, const EmbedColumns<T> &e, int lane)
{
    constexpr int DEEP = 4;
    const int token = list.token[first];
    const bool columns = e.c < e.C;
    float *to = e.dtable + token * e.C + e.c, sum[N] = {};
    unsigned around = 0;
    if (columns) load_n<N>(sum, to);
    for (int k0 = first / WARP * WARP; k0 < count; k0 += WARP) {
        const int k = k0 + lane;
        const bool same = k < count && list.token[k] == token;
        if (same) list.done[k] = 1;
        unsigned places = __ballot_sync(ALL_LANES, same);
        if (k0 <= first) around = places;
        if (!columns) continue;
        while (__popc(places) >= DEEP) add_places<T, N, DEEP>(sum, places, list.place + k0, e);
        while (places) add_places<T, N, 1>(sum, places, list.place + k0, e);
    }
    if (columns) store_n<N>(to, sum);
    return around;
}

// The list's tokens that this warp owns, in order of their first entries.
template <typename T, int N> DEVICE void sum_list(EmbedList &list, int count, const EmbedColumns<T> &e)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int k0 = 0; k0 < count; k0 += WARP) {
        const int k = k0 + lane;
        __syncwarp(); // marks of other lanes
        const bool mine = k < count && list.token[k] / EMBED_CLASSES % EMBED_WARPS == warp && !list.done[k];
        unsigned left = __ballot_sync(ALL_LANES, mine);
        while (left) left &= ~sum_token<T, N>(list, count, k0 + __ffs((int)left) - 1, e, lane);
    }
}

template <typename T, int N>
__global__ void __launch_bounds__(EMBED_THREADS)
    embed_bwd(float *__restrict__ dtable, const T *__restrict__ dx, const int32_t *__restrict__ tokens, float scale,
              int V, int C, int rows)
{
    __shared__ EmbedList list;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const EmbedColumns<T> e = {dtable, dx, C, ((int64_t)blockIdx.y * WARP + lane) * N, scale};
    int count = 0;
    for (int64_t t0 = 0; t0 < rows; t0 += EMBED_LIST) {
        int token[EMBED_READ];
        unsigned mine[EMBED_READ];
#pragma unroll
        for (int u = 0; u < EMBED_READ; u++) {
            const int64_t t = t0 + u * EMBED_THREADS + threadIdx.x;
            token[u] = t < rows ? tokens[t] : -1;
        }
#pragma unroll
        for (int u = 0; u < EMBED_READ; u++) {
            const bool here = token[u] >= 0 && token[u] < V && token[u] % EMBED_CLASSES == (int)blockIdx.x;
            mine[u] = __ballot_sync(ALL_LANES, here);
            if (lane == 0) list.found[u * EMBED_WARPS + warp] = __popc(mine[u]);
        }
        __syncthreads();
        int before = list.found[lane]; // EMBED_READ * EMBED_WARPS are as many as lanes
#pragma unroll
        for (int step = 1; step < WARP; step *= 2) {
            const int other = __shfl_up_sync(ALL_LANES, before, (unsigned)step);
            if (lane >= step) before += other;
        }
        const int found = __shfl_sync(ALL_LANES, before, WARP - 1);
        if (count + found > EMBED_LIST) {
            sum_list<T, N>(list, count, e);
            count = 0;
            __syncthreads();
        }
#pragma unroll
        for (int u = 0; u < EMBED_READ; u++) {
            const int group = u * EMBED_WARPS + warp;
            const int at =
                __shfl_sync(ALL_LANES, before, group) - __popc(mine[u]) + __popc(mine[u] & ((1u << lane) - 1));
            if (!(mine[u] >> lane & 1)) continue;
            list.place[count + at] = (int)(t0 + u * EMBED_THREADS + threadIdx.x);
            list.token[count + at] = token[u];
            list.done[count + at] = 0;
        }
        count += found;
        __syncthreads();
    }
    sum_list<T, N>(list, count, e);
}

template <typename T>
static void launch_embed_bwd(float *dtable, const void *dx, const int32_t *tokens, float scale, int V, int C, int rows,
                             cudaStream_t stream)
{
    static_assert(EMBED_READ * EMBED_WARPS == WARP, "a lane for each count");
    constexpr int N = BESIDE_F32;
    const bool wide = aligned16(dtable, dx) && whole<N>(C);
    const int columns = WARP * (wide ? N : 1);
    const dim3 grid(EMBED_CLASSES, (unsigned)((C + columns - 1) / columns));
    if (wide)
        LAUNCH((embed_bwd<T, N>), grid, EMBED_THREADS, 0, stream, dtable, (const T *)dx, tokens, scale, V, C, rows);
    else
        LAUNCH((embed_bwd<T, 1>), grid, EMBED_THREADS, 0, stream, dtable, (const T *)dx, tokens, scale, V, C, rows);
}

void cuda_embed_bwd(DType t, float *dtable, const void *dx, const int32_t *tokens, float scale, int V, int C, int T,
                    cudaStream_t stream)
{
    if (T == 0 || C == 0) return;
    BY_TYPE(t, launch_embed_bwd, dtable, dx, tokens, scale, V, C, T, stream);
}

// ---- rotary positions ----
// A thread turns N pairs of up to ROPE_HEADS heads, so that an angle is read once for them. Items of a row: (group of heads, pairs).
constexpr int ROPE_HEADS = 4;

template <typename T, int N>
__global__ void __launch_bounds__(ROW_THREADS)
    rope(T *__restrict__ x, int64_t ldx, const float *__restrict__ cos, const float *__restrict__ sin,
         const int32_t *__restrict__ pos, int heads, int D, int pairs, float sign, int rows)
{
    RowWalk w = row_walk();
    const unsigned vectors = (unsigned)(pairs / N), group = (unsigned)w.item / vectors;
    const int at = (int)((unsigned)w.item % vectors) * N, first = (int)group * ROPE_HEADS;
    if (first >= heads) return;
    for (; w.row < rows; w.row += w.step) {
        const int64_t angle = (int64_t)pos[w.row] * pairs + at;
        float c[N], s[N];
        load_n<N>(c, cos + angle), load_n<N>(s, sin + angle);
        T *row = x + w.row * ldx + at;
#pragma unroll
        for (int h = 0; h < ROPE_HEADS; h++) {
            if (first + h >= heads) break;
            T *lower = row + (int64_t)(first + h) * D, *upper = lower + pairs;
            float a[N], b[N], turned[N];
            load_n<N>(a, lower), load_n<N>(b, upper);
#pragma unroll
            for (int i = 0; i < N; i++) turned[i] = fmaf(a[i], c[i], -(b[i] * (sign * s[i])));
            store_n<N>(lower, turned);
#pragma unroll
            for (int i = 0; i < N; i++) turned[i] = fmaf(b[i], c[i], a[i] * (sign * s[i]));
            store_n<N>(upper, turned);
        }
    }
}

template <typename T>
static void launch_rope(void *x, int64_t ldx, const float *cos, const float *sin, const int32_t *pos, int heads, int D,
                        int pairs, float sign, int rows, cudaStream_t stream)
{
    constexpr int N = BESIDE_F32;
    const bool wide = aligned16(x, cos, sin) && whole<N>(ldx, D, pairs);
    const int64_t groups = (heads + ROPE_HEADS - 1) / ROPE_HEADS;
    const RowGrid g = row_grid(groups * (wide ? pairs / N : pairs), rows, 1);
    if (wide)
        LAUNCH((rope<T, N>), g.grid, g.block, 0, stream, (T *)x, ldx, cos, sin, pos, heads, D, pairs, sign, rows);
    else
        LAUNCH((rope<T, 1>), g.grid, g.block, 0, stream, (T *)x, ldx, cos, sin, pos, heads, D, pairs, sign, rows);
}

void cuda_rope(DType t, void *x, int64_t ldx, const float *cos, const float *sin, const int32_t *pos, int heads, int D,
               int rot, bool inverse, int T, cudaStream_t stream)
{
    if (T == 0 || heads == 0 || rot < 2) return;
    BY_TYPE(t, launch_rope, x, ldx, cos, sin, pos, heads, D, rot / 2, inverse ? -1.0f : 1.0f, T, stream);
}

// ---- rows picked and put back: words of 2, 4 or 16 bytes ----
template <typename Word>
__global__ void __launch_bounds__(ROW_THREADS) gather_rows(Word *__restrict__ y, const Word *__restrict__ x,
                                                           const int32_t *__restrict__ idx, int64_t width, int rows)
{
    RowWalk w = row_walk();
    if (w.item >= width) return;
    for (; w.row < rows; w.row += w.step) y[w.row * width + w.item] = x[idx[w.row] * width + w.item];
}

// from[t]: which row of y goes to row t of x, -1 for none. Found first, so that x is written once.
__global__ void __launch_bounds__(ROW_THREADS) scatter_none(int32_t *__restrict__ from, int rows)
{
    const size_t t = flat_item();
    if (t < (size_t)rows) from[t] = -1;
}
__global__ void __launch_bounds__(ROW_THREADS)
    scatter_from(int32_t *__restrict__ from, const int32_t *__restrict__ idx, int picked)
{
    const size_t i = flat_item();
    if (i < (size_t)picked) from[idx[i]] = (int32_t)i;
}
template <typename Word>
__global__ void __launch_bounds__(ROW_THREADS)
    scatter_rows(Word *__restrict__ x, int64_t ldx, const Word *__restrict__ y, const int32_t *__restrict__ from,
                 int64_t width, int rows)
{
    RowWalk w = row_walk();
    if (w.item >= width) return;
    for (; w.row < rows; w.row += w.step) {
        const int64_t row = from[w.row];
        if (row >= 0)
            x[w.row * ldx + w.item] = y[row * width + w.item];
        else
            x[w.row * ldx + w.item] = Word{};
    }
}

template <typename Word>
static void launch_gather(void *y, const void *x, const int32_t *idx, int64_t width, int rows, cudaStream_t stream)
{
    const RowGrid g = row_grid(width, rows, 1);
    LAUNCH((gather_rows<Word>), g.grid, g.block, 0, stream, (Word *)y, (const Word *)x, idx, width, rows);
}
template <typename Word>
static void launch_scatter(void *x, int64_t ldx, const void *y, const int32_t *from, int64_t width, int rows,
                           cudaStream_t stream)
{
    const RowGrid g = row_grid(width, rows, 1);
    LAUNCH((scatter_rows<Word>), g.grid, g.block, 0, stream, (Word *)x, ldx, (const Word *)y, from, width, rows);
}

void cuda_gather_rows(DType t, void *y, const void *x, const int32_t *idx, int C, int rows, cudaStream_t stream)
{
    const int64_t bytes = (int64_t)C * (t == DT_BF16 ? 2 : 4);
    if (rows == 0 || C == 0) return;
    if (bytes % 16 == 0 && aligned16(y, x))
        launch_gather<uint4>(y, x, idx, bytes / 16, rows, stream);
    else if (t == DT_BF16)
        launch_gather<uint16_t>(y, x, idx, C, rows, stream);
    else
        launch_gather<uint32_t>(y, x, idx, C, rows, stream);
}

size_t cuda_scatter_rows_scratch(int T)
{
    return sizeof(int32_t) * (size_t)T;
}

void cuda_scatter_rows(DType t, void *x, int64_t ldx, const void *y, const int32_t *idx, int C, int rows, int T,
                       void *scratch, cudaStream_t stream)
{
    const int64_t size = t == DT_BF16 ? 2 : 4, bytes = C * size;
    int32_t *from = (int32_t *)scratch;
    if (T == 0 || C == 0) return;
    LAUNCH(scatter_none, flat_blocks((size_t)T, 1), ROW_THREADS, 0, stream, from, T);
    if (rows) LAUNCH(scatter_from, flat_blocks((size_t)rows, 1), ROW_THREADS, 0, stream, from, idx, rows);
    if (whole<16>(bytes, ldx * size) && aligned16(x, y))
        launch_scatter<uint4>(x, ldx * size / 16, y, from, bytes / 16, T, stream);
    else if (t == DT_BF16)
        launch_scatter<uint16_t>(x, ldx, y, from, C, T, stream);
    else
        launch_scatter<uint32_t>(x, ldx, y, from, C, T, stream);
}

// ---- dropout ----
// An item is N columns n of the whole row, N a multiple of 4, so that it takes whole calls of Philox. They are this call's columns
// n - c0, which begin inside a call when c0 is no multiple of 4 (`shift` columns before them); then, as with odd strides,
// elements are read one by one.
struct DropoutArgs {
    const uint64_t *row_key;
    uint64_t philox_stream, first_call;
    float p, scale;
    int64_t ldy, ldx;
    int shift, C, rows;
};

template <typename T, int N, bool WIDE, bool ADD>
__global__ void __launch_bounds__(ROW_THREADS) dropout(T *y, const T *x, DropoutArgs a)
{
    RowWalk w = row_walk();
    const int64_t c = w.item * N - a.shift;
    if (c >= a.C) return;
    for (; w.row < a.rows; w.row += w.step) {
        uint32_t word[N];
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const uint4 four =
                philox4(a.row_key[w.row], a.philox_stream, a.first_call + (uint64_t)(w.item * (N / 4) + i / 4));
            word[i] = four.x, word[i + 1] = four.y, word[i + 2] = four.z, word[i + 3] = four.w;
        }
        const T *from = x + w.row * a.ldx + c;
        T *to = y + w.row * a.ldy + c;
        float v[N], old[N] = {};
        if constexpr (WIDE) {
            load_n<N>(v, from);
            if constexpr (ADD) load_n<N>(old, to);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            const bool here = WIDE || (c + i >= 0 && c + i < a.C), kept = (float)(word[i] >> 8) * 0x1p-24f >= a.p;
            if (!here) continue;
            if constexpr (!WIDE) {
                v[i] = to_f32(from[i]);
                if constexpr (ADD) old[i] = to_f32(to[i]);
            }
            v[i] = !kept ? old[i] : ADD ? fmaf(v[i], a.scale, old[i]) : v[i] * a.scale;
            if constexpr (!WIDE) to[i] = from_f32<T>(v[i]);
        }
        if constexpr (WIDE) store_n<N>(to, v);
    }
}

template <typename T>
static void launch_dropout(void *y, const void *x, const DropoutArgs &a, bool accumulate, cudaStream_t stream)
{
    constexpr int N = Pack<T>::N;
    const bool wide = a.shift == 0 && aligned16(y, x) && whole<N>(a.C, a.ldx, a.ldy);
    const int n = wide ? N : 4;
    const RowGrid g = row_grid((a.C + a.shift + n - 1) / n, a.rows, 1);
    if (wide && accumulate)
        LAUNCH((dropout<T, N, true, true>), g.grid, g.block, 0, stream, (T *)y, (const T *)x, a);
    else if (wide)
        LAUNCH((dropout<T, N, true, false>), g.grid, g.block, 0, stream, (T *)y, (const T *)x, a);
    else if (accumulate)
        LAUNCH((dropout<T, 4, false, true>), g.grid, g.block, 0, stream, (T *)y, (const T *)x, a);
    else
        LAUNCH((dropout<T, 4, false, false>), g.grid, g.block, 0, stream, (T *)y, (const T *)x, a);
}

void cuda_dropout(DType t, void *y, int64_t ldy, const void *x, int64_t ldx, const uint64_t *row_key,
                  uint64_t philox_stream, float p, bool accumulate, int64_t c0, int C, int T, cudaStream_t stream)
{
    if (T == 0 || C == 0) return;
    const DropoutArgs a = {row_key, philox_stream, (uint64_t)c0 / 4, p, 1 / (1 - p), ldy, ldx, (int)(c0 % 4), C, T};
    BY_TYPE(t, launch_dropout, y, x, a, accumulate, stream);
}

// ---- conversion: bits as the CPU's, NaN included ----
constexpr int CONVERT_N = 8; // elements of a thread, BESIDE_F32 where one side is f32

DEVICE float widen(float x)
{
    return x;
}
DEVICE float widen(bf16 x)
{
    return to_f32(x);
}
DEVICE float widen(__half h) // a NaN keeps its payload
{
    const unsigned bits = __half_as_ushort(h);
    if ((bits & 0x7fff) > 0x7c00) return __uint_as_float((bits & 0x8000) << 16 | 0x7f800000 | (bits & 0x3ff) << 13);
    return __half2float(h);
}
template <typename T> DEVICE T narrow(float x);
template <> DEVICE float narrow<float>(float x)
{
    return x;
}
template <> DEVICE bf16 narrow<bf16>(float x)
{
    return x != x ? __ushort_as_bfloat16((unsigned short)(__float_as_uint(x) >> 16 | 0x40)) : from_f32<bf16>(x);
}
template <> DEVICE __half narrow<__half>(float x)
{
    return x != x ? __ushort_as_half((unsigned short)((__float_as_uint(x) >> 16 & 0x8000) | 0x7e00))
                  : __float2half_rn(x);
}

template <typename D, typename S> struct Converted {
    static DEVICE D of(S x) { return narrow<D>(widen(x)); }
};
template <typename S> struct Converted<S, S> { // a copy, whatever the bits mean
    static DEVICE S of(S x) { return x; }
};

// Rows of `width`, of row strides ld_dst and ld_src
template <typename D, typename S, int N>
__global__ void __launch_bounds__(ROW_THREADS)
    convert_rows(D *__restrict__ dst, int64_t ld_dst, const S *__restrict__ src, int64_t ld_src, int64_t width,
                 int64_t rows)
{
    RowWalk w = row_walk();
    const int64_t c = w.item * N;
    if (c >= width) return;
    for (; w.row < rows; w.row += w.step) {
        D *to = dst + w.row * ld_dst + c;
        const S *from = src + w.row * ld_src + c;
        S in[N];
        D out[N];
        load_few<N>(in, from);
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = Converted<D, S>::of(in[i]);
        store_few<N>(to, out);
    }
}

template <typename D, typename S>
static void launch_convert(void *dst, int64_t ld_dst, const void *src, int64_t ld_src, int64_t width, int64_t rows,
                           cudaStream_t stream)
{
    constexpr int N = sizeof(D) == 4 || sizeof(S) == 4 ? BESIDE_F32 : CONVERT_N;
    D *to = (D *)dst;
    const S *from = (const S *)src;
    const bool wide = aligned16(dst, src) && whole<N>(ld_dst, ld_src, width);
    const RowGrid g = row_grid(wide ? width / N : width, rows, 1);
    if (wide)
        LAUNCH((convert_rows<D, S, N>), g.grid, g.block, 0, stream, to, ld_dst, from, ld_src, width, rows);
    else
        LAUNCH((convert_rows<D, S, 1>), g.grid, g.block, 0, stream, to, ld_dst, from, ld_src, width, rows);
}

template <typename D>
static void launch_convert_to(void *dst, int64_t ld_dst, const void *src, DType src_t, int64_t ld_src, int64_t width,
                              int64_t rows, cudaStream_t stream)
{
    if (src_t == DT_F32)
        launch_convert<D, float>(dst, ld_dst, src, ld_src, width, rows, stream);
    else if (src_t == DT_BF16)
        launch_convert<D, bf16>(dst, ld_dst, src, ld_src, width, rows, stream);
    else
        launch_convert<D, __half>(dst, ld_dst, src, ld_src, width, rows, stream);
}

// As words of decreasing size, as far as both addresses are multiples of it; what is left goes on to the next.
template <typename Word> static void launch_copy(char *&dst, const char *&src, size_t &bytes, cudaStream_t stream)
{
    const int64_t words = (int64_t)(bytes / sizeof(Word));
    if (((uintptr_t)dst | (uintptr_t)src) % sizeof(Word) || !words) return;
    const RowGrid g = row_grid(words, 1, 1);
    LAUNCH((convert_rows<Word, Word, 1>), g.grid, g.block, 0, stream, (Word *)dst, 0, (const Word *)src, 0, words, 1);
    dst += words * (int64_t)sizeof(Word), src += words * (int64_t)sizeof(Word), bytes %= sizeof(Word);
}

static void copy(void *dst, const void *src, size_t bytes, cudaStream_t stream)
{
    char *to = (char *)dst;
    const char *from = (const char *)src;
    launch_copy<uint4>(to, from, bytes, stream);
    launch_copy<uint32_t>(to, from, bytes, stream);
    launch_copy<uint16_t>(to, from, bytes, stream);
    launch_copy<uint8_t>(to, from, bytes, stream);
}

static size_t bytes_of(DType t)
{
    return t == DT_I64 ? 8 : t == DT_F32 || t == DT_I32 ? 4 : t == DT_U8 ? 1 : 2;
}

void cuda_convert(void *dst, DType dst_t, const void *src, DType src_t, size_t n, cudaStream_t stream)
{
    const size_t tail = n % CONVERT_N, at = n - tail; // the rest of the vectors goes alone
    if (dst_t == src_t) {
        copy(dst, src, n * bytes_of(src_t), stream);
        return;
    }
    const int64_t width = (int64_t)at;
    cuda_convert_rows(dst, dst_t, width, src, src_t, width, width, 1, stream);
    cuda_convert_rows((char *)dst + at * bytes_of(dst_t), dst_t, 1, (const char *)src + at * bytes_of(src_t), src_t, 1,
                      (int64_t)tail, 1, stream);
}

void cuda_convert_rows(void *dst, DType dst_t, int64_t ld_dst, const void *src, DType src_t, int64_t ld_src,
                       int64_t width, int64_t rows, cudaStream_t stream)
{
    if (width == 0 || rows == 0) return;
    if (dst_t == DT_F32)
        launch_convert_to<float>(dst, ld_dst, src, src_t, ld_src, width, rows, stream);
    else if (dst_t == DT_BF16)
        launch_convert_to<bf16>(dst, ld_dst, src, src_t, ld_src, width, rows, stream);
    else
        launch_convert_to<__half>(dst, ld_dst, src, src_t, ld_src, width, rows, stream);
}
