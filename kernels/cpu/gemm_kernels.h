// The parts of a GemmKernels table that are the same source for every instruction set. Included once by each gemm_*.c,
// which defines VL before (vec.h), and adds the tile and whatever it does better after.
#pragma once
#include "gemm.h"
#include "vec.h"

enum {
    PAIR_ROWS = PANEL / 2,
    BLOCK_WORDS = PANEL * PANEL,
    ROWS_AHEAD = 16, // of a matrix whose columns are gathered: its rows are too far apart for the hardware to guess
};

// ---- after the sum --------------------------------------------------------------------------------------
INLINE void finish_some(const float *sum, const GemmOut *o, int64_t at, int column, int n)
{
    vf v = o->scale * load_f32(sum + column);
    if (o->bias) v += load_some(DT_F32, o->bias, column, n);
    if (o->add) v += load_some(o->t, o->add, at + column, n);
    store_some(o->t, o->y, at + column, v, n);
}

// Sums of `rows` rows, PANEL apart, into rows [row, row + rows) of y.
static void finish(const float *sums, int row, int rows, const GemmOut *o, int columns)
{
    for (int i = 0; i < rows; i++, sums += PANEL) {
        int64_t at = (row + i) * o->ld;
        EACH_VECTOR(c, n, columns) finish_some(sums, o, at, c, n);
    }
}

// What finish() will add, asked for while the tile is summed.
static inline void prefetch_added(const GemmOut *o, int row, int rows, int columns)
{
    int64_t line = o->t == DT_BF16 ? 32 : 16; // elements
    for (int i = row; o->add && i < row + rows; i++)
        for (int64_t j = 0; j < columns; j += line) __builtin_prefetch(cpu_at(o->add, o->t, i * o->ld + j));
}

// Rows of the next tile when `left` are left: full ones, but the last two share evenly, for flat tiles wait for their sums.
static inline int tile_height(int left, int most)
{
    return left <= most ? left : left >= 2 * most ? most : (left + 1) / 2;
}

// ---- operands -------------------------------------------------------------------------------------------
static void to_f32(float *to, const void *from, DType t, int n)
{
    EACH_VECTOR(i, some, n) store_some(DT_F32, to, i, load_some(t, from, i, some), some);
}

// `pairs` rows of a bf16 panel as 2 * pairs rows of an f32 panel
static void widen_rows(float *to, const uint32_t *from, int64_t pairs)
{
    for (int64_t i = 0; i < pairs; i++, from += PANEL, to += 2 * PANEL)
        for (int j = 0; j < PANEL; j += VL) {
            vu v = load_words(from + j);
            store_words(to + j, v << 16);
            store_words(to + PANEL + j, v & 0xffff0000u);
        }
}

static void widen(float *to, const uint32_t *from, int k)
{
    widen_rows(to, from, words_along(DT_BF16, k));
}

// y = xᵀ, 16 words square
INLINE void transpose16(uint32_t *y, int ldy, const uint32_t *x, int ldx)
{
    for (int i = 0; i < 16; i += VL)
        for (int j = 0; j < 16; j += VL) transpose_words(y + (int64_t)i * ldy + j, ldy, x + (int64_t)j * ldx + i, ldx);
}

static void transpose32(uint32_t *to, const uint32_t *from)
{
    for (int i = 0; i < PANEL; i += 16)
        for (int j = 0; j < PANEL; j += 16) transpose16(to + i * PANEL + j, PANEL, from + j * PANEL + i, PANEL);
}

// The words of W's rows [32n, 32n+32) x columns [32p, 32p+32), as they lie in forward panel n; zeros beyond the last.
static const uint32_t *turn_source(const Packed *w, int n, int p, uint32_t pad[BLOCK_WORDS])
{
    int whole = w->t == DT_BF16 ? PAIR_ROWS : PANEL;
    int64_t first = (int64_t)p * whole, have = MIN(whole, words_along(w->t, w->K) - first);
    const uint32_t *from = packed_panel(w, n) + first * PANEL;
    if (have == whole) return from;
    memcpy(pad, from, (size_t)have * PANEL * sizeof *pad);
    memset(pad + have * PANEL, 0, (size_t)(whole - have) * PANEL * sizeof *pad);
    return pad;
}

// The next block is a panel's length away, too far for the hardware to guess.
static inline void prefetch_block(const Packed *w, int n, int p)
{
    int rows = w->t == DT_BF16 ? PAIR_ROWS : PANEL;
    const uint32_t *from = packed_panel(w, n) + (int64_t)p * rows * PANEL;
    for (int i = 0; i < rows * PANEL; i += 16) __builtin_prefetch(from + i, 0, 3);
}

static void turn_f32(uint32_t *to, const Packed *w, int p, int n0, int n1)
{
    uint32_t pad[BLOCK_WORDS] __attribute__((aligned(64)));
    float wide[BLOCK_WORDS] __attribute__((aligned(64)));
    for (int n = n0; n < n1; n++, to += BLOCK_WORDS) {
        if (n + 1 < n1) prefetch_block(w, n + 1, p);
        const uint32_t *from = turn_source(w, n, p, pad);
        if (w->t == DT_BF16) {
            widen_rows(wide, from, PAIR_ROWS);
            transpose32(to, (const uint32_t *)wide);
        } else {
            transpose32(to, from);
        }
    }
}

// One row of x as PANEL elements of type t, zeros after the last
static void stage_row(void *to, DType t, const void *x, DType x_t, int64_t at, int columns)
{
    for (int j = 0; j < PANEL; j += VL) {
        int n = MAX(0, MIN(VL, columns - j));
        store_vf(t, to, j, n ? load_some(x_t, x, at + j, n) : vf_set(0));
    }
}

static void columns_f32(uint32_t *to, const void *x, DType t, int64_t ld, int T, int columns)
{
    for (int i = 0; i < T; i++) {
        if (i + ROWS_AHEAD < T) __builtin_prefetch(cpu_at(x, t, (i + ROWS_AHEAD) * ld));
        stage_row((float *)to + (int64_t)i * PANEL, DT_F32, x, t, i * ld, columns);
    }
}

// 32 rows x 32 columns at a time: rows side by side in L1, then turned into words of the panel.
static void pack(uint32_t *to, DType t, const void *src, DType src_t, int64_t ld, int K)
{
    uint32_t rows[BLOCK_WORDS] __attribute__((aligned(64))), block[BLOCK_WORDS] __attribute__((aligned(64)));
    int words = (int)words_along(t, PANEL); // of a row of the block
    for (int k = 0; k < K; k += PANEL, to += words * PANEL) {
        for (int i = 0; i < PANEL; i++) stage_row(rows + i * words, t, src, src_t, i * ld + k, MIN(PANEL, K - k));
        for (int j = 0; j < words; j += 16)
            for (int i = 0; i < PANEL; i += 16) transpose16(block + j * PANEL + i, PANEL, rows + i * words + j, words);
        int64_t have = MIN(words, words_along(t, K - k));
        memcpy(to, block, (size_t)have * PANEL * sizeof *to);
    }
}

// ---- softmax (head.c) -----------------------------------------------------------------------------------
INLINE vf cap_slope(vf z, float cap) // d(capped)/d(uncapped), from the capped value
{
    return cap > 0 ? 1 - (z / cap) * (z / cap) : vf_set(1);
}

static void softcap(float *z, int n, float cap)
{
    for (int j = 0; j < n; j += VL) store_f32(z + j, cap * vf_tanh(load_f32(z + j) / cap));
}

static float largest(const float *z, int n)
{
    vf top = vf_set(-INFINITY);
    for (int j = 0; j < n; j += VL) top = vf_max(load_f32(z + j), top);
    return vf_highest(top);
}

// Adds Σ exp(z - top) and Σ exp(z - top) (z - top) to s, and writes p
INLINE void exponentials(const DType words, void *p, const float *z, int n, float cap, SoftmaxRow *s)
{
    vf sum = vf_set(0), sum_z = vf_set(0);
    for (int j = 0; j < n; j += VL) {
        vf z_j = load_f32(z + j), e = vf_exp(z_j - s->top);
        sum += e;
        sum_z += e * vf_max(vf_set(-1e4f), z_j - s->top); // 0 times what is left out is 0
        if (p) store_vf(words, p, j, cap > 0 ? e * cap_slope(vf_max(vf_set(-cap), z_j), cap) : e);
    }
    s->sum += vf_sum(sum);
    s->sum_z += vf_sum(sum_z);
}

static void softmax(float *z, void *p, DType words, int n, int target, float cap, SoftmaxRow *s)
{
    if (cap > 0) softcap(z, n, cap);
    for (int j = n; j % VL; j++) z[j] = -INFINITY;
    float top = fmaxf(s->top, largest(z, n));
    s->rescale = expf(s->top - top);
    s->sum_z = s->sum > 0 ? s->rescale * (s->sum_z + s->sum * (s->top - top)) : 0;
    s->sum *= s->rescale;
    s->top = top;
    if (target >= 0) s->at = z[target], z[target] = -INFINITY;
    if (!p)
        exponentials(words, NULL, z, n, 0, s);
    else if (words == DT_BF16)
        exponentials(DT_BF16, p, z, n, cap, s);
    else
        exponentials(DT_F32, p, z, n, cap, s);
}

static void softmax_dz(float *z, void *dz, DType words, int n, int target, float cap, float weight, float lse)
{
    if (cap > 0) softcap(z, n, cap);
    for (int j = 0; j < n; j += VL) {
        vf z_j = load_f32(z + j);
        store_vf(words, dz, j, -weight * vf_exp(z_j - lse) * cap_slope(z_j, cap));
    }
    if (target < 0) return;
    float at = z[target], slope = cap > 0 ? 1 - at / cap * (at / cap) : 1;
    cpu_store(dz, words, target, -weight * expm1f(at - lse) * slope); // 1 - p without cancellation
}
