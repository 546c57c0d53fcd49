// Blocks with AVX2 and FMA: tiles of 6 rows x 16 columns, half a panel. bf16 operands are widened to f32 on the way in.
#define VL 8
#include "gemm_kernels.h"

enum { TILE_ROWS = 6 };

// `rows` is a constant where this is inlined: only then do the sums stay in registers.
static inline __attribute__((always_inline)) void tile(int rows, const GemmSum *s, int sum_count, int first, int half,
                                                       float *out)
{
    __m256 sum[TILE_ROWS][2];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    for (; sum_count > 0; sum_count--, s++) {
        const char *a = (const char *)s->a + first * s->row;
        const float *b = (const float *)s->panel + half;
        const int64_t row = s->row, step = s->step;
        for (int k = s->K; k > 0; k--, a += step, b += PANEL) {
            __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
#pragma GCC unroll 6
            for (int i = 0; i < rows; i++) {
                __m256 x = _mm256_broadcast_ss((const float *)(a + i * row));
                sum[i][0] = _mm256_fmadd_ps(x, b0, sum[i][0]);
                sum[i][1] = _mm256_fmadd_ps(x, b1, sum[i][1]);
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        _mm256_store_ps(out + i * PANEL + half, sum[i][0]);
        _mm256_store_ps(out + i * PANEL + half + 8, sum[i][1]);
    }
}

typedef void TileFunction(const GemmSum *s, int sum_count, int first, int half, float *out);

#define TILE(rows)                                                                                                     \
    static                                                                                                             \
        __attribute__((noinline)) void tile_##rows(const GemmSum *s, int sum_count, int first, int half, float *out)   \
    {                                                                                                                  \
        tile(rows, s, sum_count, first, half, out);                                                                    \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)

static TileFunction *const tiles[TILE_ROWS + 1] = {NULL, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6};

static void block(DType words, const GemmSum *sums, int sum_count, int rows, const GemmOut *out, int columns)
{
    ASSERT(words == DT_F32);
    float sum[TILE_ROWS * PANEL] __attribute__((aligned(64)));
    for (int first = 0, height; first < rows; first += height) {
        height = tile_height(rows - first, TILE_ROWS);
        prefetch_added(out, first, height, columns);
        for (int half = 0; half < columns; half += 16) tiles[height](sums, sum_count, first, half, sum);
        finish(sum, first, height, out, columns);
    }
}

static void turn(uint32_t *to, DType words, const Packed *w, int p, int n0, int n1)
{
    ASSERT(words == DT_F32);
    turn_f32(to, w, p, n0, n1);
}

static void columns(uint32_t *to, DType words, const void *x, DType t, int64_t ld, int T, int count)
{
    ASSERT(words == DT_F32);
    columns_f32(to, x, t, ld, T, count);
}

const GemmKernels gemm_avx2 = {
    .tile_rows = TILE_ROWS,
    .bf16_words = DT_F32,
    .block = block,
    .to_f32 = to_f32,
    .widen = widen,
    .turn = turn,
    .columns = columns,
    .pack = pack,
    .softmax = softmax,
    .softmax_dz = softmax_dz,
};
