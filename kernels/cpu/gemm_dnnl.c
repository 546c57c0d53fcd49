// Blocks for machines we have no own tiles for: oneDNN's sgemm, called for products of one fixed size from inside our
// parallel loops, so that it works single-threaded and takes the same path whatever surrounds the block. Short blocks are
// filled up with rows of zeros. bf16 operands are widened to f32 on the way in. oneDNN is included here only.
#define VL 4
#include "gemm_kernels.h"
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>

// Rows of a tile: a multiple of 4, 6 and 8, which is what oneDNN's inner loops take at a time. A row of a remainder would be
// summed in another order than its neighbours.
enum { TILE_ROWS = 24, TILE_K = 512 };

// out (TILE_ROWS, PANEL) (+)= a (TILE_ROWS, k) by k rows of the panel
static void multiply(float *out, const float *a, const float *panel, int k, bool accumulate)
{
    dnnl_status_t status = dnnl_sgemm('N', 'N', TILE_ROWS, PANEL, k, 1, a, k, panel, PANEL, accumulate, out, PANEL);
    ASSERT(status == dnnl_success);
}

// Rows [first, first + rows) of A by a stretch of the sum, completed with zeros: (TILE_ROWS, k)
static void stage(float *to, const GemmSum *s, int first, int rows, int k0, int k)
{
    memset(to, 0, sizeof(float) * (size_t)TILE_ROWS * (size_t)k);
    for (int i = 0; i < rows; i++) {
        const char *a = (const char *)s->a + (first + i) * s->row + k0 * s->step;
        for (int j = 0; j < k; j++) memcpy(to + i * k + j, a + j * s->step, sizeof(float));
    }
}

static void tile(float *out, const GemmSum *s, int sum_count, int first, int rows)
{
    float staged[TILE_ROWS * TILE_K] __attribute__((aligned(64)));
    bool accumulate = false;
    for (; sum_count > 0; sum_count--, s++)
        for (int k0 = 0; k0 < s->K; k0 += TILE_K, accumulate = true) {
            int k = MIN(TILE_K, s->K - k0);
            const float *panel = (const float *)s->panel + (int64_t)k0 * PANEL;
            stage(staged, s, first, rows, k0, k);
            multiply(out, staged, panel, k, accumulate);
        }
}

static void block(DType words, const GemmSum *sums, int sum_count, int rows, const GemmOut *out, int columns)
{
    ASSERT(words == DT_F32);
    float sum[TILE_ROWS * PANEL] __attribute__((aligned(64)));
    omp_set_num_threads(1); // a team of one is no parallel region to oneDNN; this ends with the caller's region
    for (int first = 0; first < rows; first += TILE_ROWS) {
        int count = MIN(TILE_ROWS, rows - first);
        tile(sum, sums, sum_count, first, count);
        finish(sum, first, count, out, columns);
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

const GemmKernels gemm_dnnl = {
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
