// Linear layers: y = x·Wᵀ [+ s·Bᵀ] [+ bias] [+ residual] and dx = dy·W [+ ds·A], W held as panels (gemm.h).
//
//   linear_fwd   2·T·N·K FLOPs, reads W once; the low-rank term is a second sum in the same accumulators:
//   +R/K work and no
//                further pass over y. Nothing is saved.
//   linear_dx    the same count; its panels are turned from the forward ones, a few per cent of the time.
// Owns the order of elements in a pack (linear_pack, linear_unpack). Weight gradients are in linear_grad.c.
#include "gemm.h"
#include "isa_kernels.h"
#include <stdlib.h>
#include <string.h>

// ---- packing --------------------------------------------------------------------------------------------
static void check_rows(const Packed *w, int n0, int rows)
{
    ASSERT(w->t == DT_F32 || w->t == DT_BF16);
    ASSERT(n0 >= 0 && rows >= 0 && n0 <= w->N - rows);
}

// Elements of a column of W in a panel, with the zero that completes the last pair.
static int padded_k(const Packed *w)
{
    return w->t == DT_BF16 ? ROUND_UP(w->K, 2) : w->K;
}

static void pack_row(const Packed *w, int n, const void *src, DType src_t)
{
    for (int k = 0; k < w->K; k++) cpu_store(w->data, w->t, packed_index(w, n, k), cpu_load(src, src_t, k));
    for (int k = w->K; k < padded_k(w); k++) cpu_store(w->data, w->t, packed_index(w, n, k), 0);
}

static void zero_row(const Packed *w, int n)
{
    for (int k = 0; k < padded_k(w); k++) cpu_store(w->data, w->t, packed_index(w, n, k), 0);
}

void linear_pack_ref(Device *d, Packed *w, int n0, int rows, const void *src, DType src_t, int64_t ld)
{
    (void)d;
    check_rows(w, n0, rows);
    for (int i = 0; i < rows; i++) pack_row(w, n0 + i, cpu_at(src, src_t, i * ld), src_t);
    if (n0 + rows < w->N) return;
    for (int n = w->N; n < ROUND_UP(w->N, PANEL); n++) zero_row(w, n);
}

static size_t blocks_of_row(const Packed *w, Quant format)
{
    ASSERT(w->K % quant_formats[format].block == 0);
    return (size_t)(w->K / quant_formats[format].block);
}

void linear_pack_blocks_ref(Device *d, Packed *w, int n0, int rows, const void *src, Quant format)
{
    const QuantFormat *q = &quant_formats[format];
    const size_t blocks = blocks_of_row(w, format), row_bytes = blocks * (size_t)q->bytes;
    float *row = xmalloc((size_t)w->K * sizeof *row);
    for (int i = 0; i < rows; i++) {
        q->decode((const uint8_t *)src + (size_t)i * row_bytes, row, blocks);
        linear_pack_ref(d, w, n0 + i, 1, row, DT_F32, w->K);
    }
    free(row);
}

static void unpack_row(const Packed *w, int n, void *dst, DType dst_t, int64_t at)
{
    const uint32_t *word = packed_panel(w, n / PANEL) + n % PANEL;
    int step = w->t == DT_BF16 ? 2 : 1; // elements of a word
    for (int k = 0; k < w->K; k += step, word += PANEL)
        for (int i = 0; i < step && k + i < w->K; i++) cpu_store(dst, dst_t, at + k + i, cpu_load(word, w->t, i));
}

void cpu_unpack_rows(const Packed *w, int n0, int rows, void *dst, DType dst_t, int64_t ld)
{
    check_rows(w, n0, rows);
    for (int i = 0; i < rows; i++) unpack_row(w, n0 + i, dst, dst_t, i * ld);
}

void linear_unpack_ref(Device *d, const Packed *w, int n0, int rows, void *dst, DType dst_t, int64_t ld)
{
    (void)d;
    cpu_unpack_rows(w, n0, rows, dst, dst_t, ld);
}

// Whole panels go through the instruction set's pack, rows of a panel that is filled bit by bit one at a time.
static void pack_panel(Device *d, Packed *w, int n0, int rows, const void *src, DType src_t, int64_t ld)
{
    if (rows == PANEL)
        gemm_kernels(d)->pack(packed_panel(w, n0 / PANEL), w->t, src, src_t, ld, w->K);
    else
        linear_pack_ref(d, w, n0, rows, src, src_t, ld);
}

void linear_pack(Device *d, Packed *w, int n0, int rows, const void *src, DType src_t, int64_t ld)
{
    check_rows(w, n0, rows);
    int first = n0 / PANEL, end = panel_count(n0 + rows);
#pragma omp parallel for num_threads(cpu_team(d, (int64_t)rows * w->K))
    for (int p = first; p < end; p++) {
        int from = MAX(n0, p * PANEL), to = MIN(n0 + rows, (p + 1) * PANEL);
        pack_panel(d, w, from, to - from, cpu_at(src, src_t, (from - n0) * ld), src_t, ld);
    }
}

// Panel by panel, so that what is decoded is packed out of the cache. Several threads may load weights at a time: the memory is this
// call's own.
void linear_pack_blocks(Device *d, Packed *w, int n0, int rows, const void *src, Quant format)
{
    const QuantFormat *q = &quant_formats[format];
    const size_t blocks = blocks_of_row(w, format), row_bytes = blocks * (size_t)q->bytes;
    check_rows(w, n0, rows);
    const int first = n0 / PANEL, end = panel_count(n0 + rows);
#pragma omp parallel num_threads(cpu_team(d, (int64_t)rows * w->K))
    {
        float *panel = xmalloc(PANEL * (size_t)w->K * sizeof *panel);
#pragma omp for
        for (int p = first; p < end; p++) {
            const int from = MAX(n0, p * PANEL), to = MIN(n0 + rows, (p + 1) * PANEL);
            q->decode((const uint8_t *)src + (size_t)(from - n0) * row_bytes, panel, (size_t)(to - from) * blocks);
            pack_panel(d, w, from, to - from, panel, DT_F32, w->K);
        }
        free(panel);
    }
}

void linear_unpack(Device *d, const Packed *w, int n0, int rows, void *dst, DType dst_t, int64_t ld)
{
    check_rows(w, n0, rows);
#pragma omp parallel for num_threads(cpu_team(d, (int64_t)rows * w->K))
    for (int i = 0; i < rows; i += PANEL)
        cpu_unpack_rows(w, n0 + i, MIN(PANEL, rows - i), cpu_row(dst, dst_t, i * ld), dst_t, ld);
}

// ---- references -----------------------------------------------------------------------------------------
static float weight_at(const Packed *w, int n, int k)
{
    return cpu_load(w->data, w->t, packed_index(w, n, k));
}

static double dot_row(const Packed *w, int n, const void *x, DType t) // Σ_k x[k] W[n][k]
{
    double sum = 0;
    for (int k = 0; k < w->K; k++) sum += (double)cpu_load(x, t, k) * weight_at(w, n, k);
    return sum;
}

static double dot_column(const Packed *w, int k, const void *dy, DType t) // Σ_n dy[n] W[n][k]
{
    double sum = 0;
    for (int n = 0; n < w->N; n++) sum += (double)cpu_load(dy, t, n) * weight_at(w, n, k);
    return sum;
}

void linear_fwd_ref(Device *d, DType t, void *y, int64_t ldy, const void *x, int64_t ldx, const Packed *w,
                    const LowRank *lr, const float *bias, const void *residual, int T)
{
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int i = 0; i < T; i++)
        for (int n = 0; n < w->N; n++) {
            double sum = dot_row(w, n, cpu_at(x, t, i * ldx), t);
            if (lr && lr->R) sum += dot_row(lr->w, n, cpu_at(lr->s, t, (int64_t)i * lr->lds), t);
            if (bias) sum += bias[n];
            if (residual) sum += cpu_load(residual, t, i * ldy + n);
            cpu_store(y, t, i * ldy + n, (float)sum);
        }
}

void linear_dx_ref(Device *d, DType t, void *dx, int64_t lddx, const void *dy, int64_t lddy, const Packed *w,
                   const LowRank *lr, bool accumulate, int T)
{
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int i = 0; i < T; i++)
        for (int k = 0; k < w->K; k++) {
            double sum = dot_column(w, k, cpu_at(dy, t, i * lddy), t);
            if (lr && lr->R) sum += dot_column(lr->w, k, cpu_at(lr->s, t, (int64_t)i * lr->lds), t);
            if (accumulate) sum += cpu_load(dx, t, i * lddx + k);
            cpu_store(dx, t, i * lddx + k, (float)sum);
        }
}

// ---- tuned ----------------------------------------------------------------------------------------------
static void add_low_rank(GemmProduct *g, const LowRank *lr)
{
    if (lr && lr->R) g->term[g->terms++] = (GemmTerm){lr->s, lr->lds, lr->w};
}

void linear_fwd(Device *d, DType t, void *y, int64_t ldy, const void *x, int64_t ldx, const Packed *w,
                const LowRank *lr, const float *bias, const void *residual, int T)
{
    GemmProduct g = {.t = t, .T = T, .columns = w->N, .terms = 1, .term = {{x, ldx, w}}};
    g.out = (GemmOut){.y = y, .t = t, .ld = ldy, .scale = 1, .bias = bias, .add = residual};
    add_low_rank(&g, lr);
    gemm_product(d, &g);
}

void linear_dx(Device *d, DType t, void *dx, int64_t lddx, const void *dy, int64_t lddy, const Packed *w,
               const LowRank *lr, bool accumulate, int T)
{
    GemmProduct g = {.t = t, .back = true, .T = T, .columns = w->K, .terms = 1, .term = {{dy, lddy, w}}};
    g.out = (GemmOut){.y = dx, .t = t, .ld = lddx, .scale = 1, .add = accumulate ? dx : NULL};
    add_low_rank(&g, lr);
    gemm_product(d, &g);
}
