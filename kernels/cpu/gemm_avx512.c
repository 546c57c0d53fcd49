// Blocks with AVX-512: tiles of 14 rows x 32 columns, whose 28 sums, two vectors of columns and one broadcast fill the 32
// registers. bf16 is multiplied in pairs (VDPBF16PS: y += a0·b0 + a1·b1, f32 sums), f32 by FMA.
#define VL 16
#include "gemm_kernels.h"

// ---- tiles ----------------------------------------------------------------------------------------------
enum { TILE_ROWS = 14, AHEAD = 8 }; // AHEAD: steps of the panel fetched before they are needed

INLINE __m512 multiply_add(bool pairs, __m512 sum, __m512i a, __m512i b)
{
    return pairs ? _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b)
                 : _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
}

INLINE void tile_step(int rows, int vectors, bool pairs, const char *a, int64_t row, bool half, const uint32_t *b,
                      __m512 sum[TILE_ROWS][2])
{
    __m512i b0 = _mm512_load_si512(b), b1 = vectors > 1 ? _mm512_load_si512(b + 16) : b0;
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        int32_t word = 0;
        memcpy(&word, a + i * row, half ? 2 : 4);
        __m512i x = _mm512_set1_epi32(word);
        sum[i][0] = multiply_add(pairs, sum[i][0], x, b0);
        if (vectors > 1) sum[i][1] = multiply_add(pairs, sum[i][1], x, b1);
    }
}

// rows, vectors and pairs are constants where this is inlined: only then do the sums stay in registers.
INLINE void tile(int rows, int vectors, bool pairs, const GemmSum *s, int sum_count, int first, float *out)
{
    __m512 sum[TILE_ROWS][2];
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (; sum_count > 0; sum_count--, s++) {
        const char *a = (const char *)s->a + first * s->row;
        const uint32_t *b = s->panel;
        const int64_t row = s->row, step = s->step;
        for (int w = pairs ? s->K / 2 : s->K; w > 0; w--, a += step, b += PANEL) {
            _mm_prefetch((const char *)(b + AHEAD * PANEL), _MM_HINT_T0);
            if (vectors > 1) _mm_prefetch((const char *)(b + AHEAD * PANEL + 16), _MM_HINT_T0);
            tile_step(rows, vectors, pairs, a, row, false, b, sum);
        }
        if (pairs && s->K % 2) tile_step(rows, vectors, pairs, a, row, true, b, sum); // x ends in the middle of a pair
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        _mm512_store_ps(out + i * PANEL, sum[i][0]);
        if (vectors > 1) _mm512_store_ps(out + i * PANEL + 16, sum[i][1]);
    }
}

typedef void TileFunction(const GemmSum *s, int sum_count, int first, float *out);

#define TILE(rows, vectors, pairs)                                                                                     \
    static __attribute__((noinline)) void tile_##rows##_##vectors##_##pairs(const GemmSum *s, int sum_count,           \
                                                                            int first, float *out)                     \
    {                                                                                                                  \
        tile(rows, vectors, pairs, s, sum_count, first, out);                                                          \
    }
#define TILES(rows)       TILE(rows, 1, 0) TILE(rows, 2, 0) TILE(rows, 1, 1) TILE(rows, 2, 1)
#define TILE_ROW(rows)    [rows] = {{tile_##rows##_1_0, tile_##rows##_1_1}, {tile_##rows##_2_0, tile_##rows##_2_1}},
#define EACH_ROW_COUNT(x) x(1) x(2) x(3) x(4) x(5) x(6) x(7) x(8) x(9) x(10) x(11) x(12) x(13) x(14)

EACH_ROW_COUNT(TILES)
static TileFunction *const tiles[TILE_ROWS + 1][2][2] = {EACH_ROW_COUNT(TILE_ROW)}; // [rows][vectors - 1][pairs]

static void block(DType words, const GemmSum *sums, int sum_count, int rows, const GemmOut *out, int columns)
{
    float sum[TILE_ROWS * PANEL] __attribute__((aligned(64)));
    for (int first = 0, height; first < rows; first += height) {
        height = tile_height(rows - first, TILE_ROWS);
        prefetch_added(out, first, height, columns);
        tiles[height][columns > 16][words == DT_BF16](sums, sum_count, first, sum);
        finish(sum, first, height, out, columns);
    }
}

// ---- bf16 pairs -----------------------------------------------------------------------------------------
// Two rows of 32 bf16 as 32 pairs: word j = (even[j], odd[j]).
static inline void interleave(uint32_t *to, __m512i even, __m512i odd)
{
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, low, odd));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(even, high, odd));
}

static void turn_bf16(uint32_t *to, const Packed *w, int p, int n0, int n1)
{
    uint32_t pad[BLOCK_WORDS] __attribute__((aligned(64)));
    uint32_t rows[PANEL * PAIR_ROWS] __attribute__((aligned(64))); // 32 rows of W, 32 columns each
    for (int n = n0; n < n1; n++) {
        if (n + 1 < n1) prefetch_block(w, n + 1, p);
        const uint32_t *from = turn_source(w, n, p, pad);
        transpose16(rows, PAIR_ROWS, from, PANEL);
        transpose16(rows + 16 * PAIR_ROWS, PAIR_ROWS, from + 16, PANEL);
        for (int i = 0; i < PANEL; i += 2, to += PANEL)
            interleave(to, _mm512_load_si512(rows + i * PAIR_ROWS), _mm512_load_si512(rows + (i + 1) * PAIR_ROWS));
    }
}

static void turn(uint32_t *to, DType words, const Packed *w, int p, int n0, int n1)
{
    if (words == DT_BF16)
        turn_bf16(to, w, p, n0, n1);
    else
        turn_f32(to, w, p, n0, n1);
}

static void columns_bf16(uint32_t *to, const bf16_t *x, int64_t ld, int T, int columns)
{
    __mmask32 live = columns >= PANEL ? ~(__mmask32)0 : ((__mmask32)1 << columns) - 1;
    for (int i = 0; i < T; i += 2, x += 2 * ld, to += PANEL) {
        if (i + ROWS_AHEAD + 1 < T) {
            __builtin_prefetch(x + ROWS_AHEAD * ld);
            __builtin_prefetch(x + (ROWS_AHEAD + 1) * ld);
        }
        __m512i even = _mm512_maskz_loadu_epi16(live, x);
        __m512i odd = i + 1 < T ? _mm512_maskz_loadu_epi16(live, x + ld) : _mm512_setzero_si512();
        interleave(to, even, odd);
    }
}

static void columns(uint32_t *to, DType words, const void *x, DType t, int64_t ld, int T, int count)
{
    if (words == DT_BF16)
        columns_bf16(to, x, ld, T, count);
    else
        columns_f32(to, x, t, ld, T, count);
}

const GemmKernels gemm_avx512 = {
    .tile_rows = TILE_ROWS,
    .bf16_words = DT_BF16,
    .block = block,
    .to_f32 = to_f32,
    .widen = widen,
    .turn = turn,
    .columns = columns,
    .pack = pack,
    .softmax = softmax,
    .softmax_dz = softmax_dz,
};
