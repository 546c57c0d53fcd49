// DoRA (Liu et al. 2024, arXiv:2402.09353): a linear layer whose rows have the direction of W' = W + scale·B·A and a magnitude
// m of their own. The norm of a row is a constant for the gradient (section 4.3 there, and Hugging Face PEFT).
//
//   norm (N) = |W'_n| over the input dimension     gain = m / norm     u = x·W'ᵀ: linear_fwd with the low-rank term, no bias
//   scale_cols        y = gain ⊙ u [+ bias] [+ residual]                              4 to 6 bytes per element (bf16)
//   scale_cols_bwd    du = gain ⊙ dy      dm (+)= (1/norm) ⊙ Σ_t dy ⊙ u                6 bytes per element (bf16)
//   lora_row_squares  norm², over the columns at hand: a rank of several has a part   2·N·K·R FLOPs, once per step
//   dora_gain         gain and 1 / norm from norm²                                    16 to 20 bytes per row, once per step
#include "gemm.h"
#include "isa_kernels.h"
#include <math.h>
#include <string.h>

// ---- references -----------------------------------------------------------------------------------------------------
void scale_cols_ref(Device *d, DType t, void *y, int64_t ldy, const void *u, int64_t ldu, const float *gain,
                    const float *bias, const void *residual, int N, int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++)
        for (int n = 0; n < N; n++) {
            double v = (gain ? (double)gain[n] : 1) * cpu_load(u, t, i * ldu + n);
            if (bias) v += bias[n];
            if (residual) v += cpu_load(residual, t, i * ldy + n);
            cpu_store(y, t, i * ldy + n, (float)v);
        }
}

void scale_cols_bwd_ref(Device *d, DType t, void *du, int64_t lddu, float *dm, const void *dy, int64_t lddy,
                        const void *u, int64_t ldu, const float *gain, const float *inv_norm, bool accumulate, int N,
                        int T)
{
    (void)d;
    for (int n = 0; n < N; n++) {
        double sum = 0;
        for (int64_t i = 0; i < T; i++) {
            double g = cpu_load(dy, t, i * lddy + n);
            if (dm) sum += g * cpu_load(u, t, i * ldu + n);
            cpu_store(du, t, i * lddu + n, (float)(gain[n] * g));
        }
        if (dm) dm[n] = (float)((accumulate ? dm[n] : 0) + inv_norm[n] * sum);
    }
}

static double element(const Packed *w, int n, int k)
{
    return cpu_load(w->data, w->t, packed_index(w, n, k));
}

void lora_row_squares_ref(Device *d, DType t, float *out, const Packed *w, const Packed *a, const Packed *b,
                          float scale)
{
    (void)t;
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int n = 0; n < w->N; n++) {
        double squares = 0;
        for (int k = 0; k < w->K; k++) {
            double low_rank = 0;
            for (int r = 0; r < a->N; r++) low_rank += element(b, n, r) * element(a, r, k);
            double v = element(w, n, k) + scale * low_rank;
            squares += v * v;
        }
        out[n] = (float)squares;
    }
}

void dora_gain_ref(Device *d, float *gain, float *inv_norm, float *gain_less, float *magnitude, bool fresh, int N)
{
    (void)d;
    for (int n = 0; n < N; n++) {
        const float norm = sqrtf(inv_norm[n]);
        if (fresh) magnitude[n] = norm;
        gain[n] = norm > 0 ? magnitude[n] / norm : 0; // a row of zeros stays one
        inv_norm[n] = norm > 0 ? 1 / norm : 0;
        if (gain_less) gain_less[n] = gain[n] - 1;
    }
}

// ---- tuned: columns times a vector ----------------------------------------------------------------------------------
void scale_cols(Device *d, DType t, void *y, int64_t ldy, const void *u, int64_t ldu, const float *gain,
                const float *bias, const void *residual, int N, int T)
{
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *N))
    for (int64_t i = 0; i < T; i++)
        k->scale_cols_row(t, cpu_row(y, t, i * ldy), cpu_at(u, t, i * ldu), gain, bias,
                          residual ? cpu_at(residual, t, i * ldy) : NULL, N);
}

// dm is summed over blocks of rows, then over the blocks as a tree: where they are cut depends on T alone.
void scale_cols_bwd(Device *d, DType t, void *du, int64_t lddu, float *dm, const void *dy, int64_t lddy, const void *u,
                    int64_t ldu, const float *gain, const float *inv_norm, bool accumulate, int N, int T)
{
    enum { BLOCK = 64 };
    const IsaKernels *k = isa_kernels(d);
    int blocks = (T + BLOCK - 1) / BLOCK;
    float *partial = dm ? cpu_shared_scratch(d, (size_t)MAX(blocks, 1) * N * sizeof *partial) : NULL;
    if (dm && !blocks) memset(partial, 0, (size_t)N * sizeof *partial);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *N))
    for (int64_t b = 0; b < blocks; b++) {
        float *sum = dm ? partial + b * N : NULL;
        if (dm) memset(sum, 0, (size_t)N * sizeof *sum);
        for (int64_t i = b * BLOCK; i < MIN(T, (b + 1) * BLOCK); i++)
            k->scale_cols_bwd_row(t, cpu_row(du, t, i * lddu), sum, cpu_at(dy, t, i * lddy),
                                  dm ? cpu_at(u, t, i * ldu) : NULL, gain, N);
    }
    if (!dm) return;
    cpu_add_blocks(partial, blocks, N);
    for (int n = 0; n < N; n++) dm[n] = (accumulate ? dm[n] : 0) + inv_norm[n] * partial[n];
}

// ---- tuned: squares of the rows of W + scale·B·A --------------------------------------------------------------------
// 32 x 32 elements at a time, turned as W's panels are: (k, n) = Aᵀ·Bᵀ, A as backward panels (made once for all rows of W),
// B as forward panels, so that W is added where it lies.
typedef struct RowSquares {
    const GemmKernels *k;
    const IsaKernels *isa;
    DType words;
    const Packed *w, *a, *b;
    float scale;
    uint32_t *a_panels; // panel_count(K) backward panels of A
} RowSquares;

static size_t rank_words(const RowSquares *p) // of a panel whose sum runs along the rank
{
    return (size_t)panel_words(p->words, ROUND_UP(p->a->N, PANEL));
}

// Adds the squares of panel n, elements [k0, k0 + rows) of the sum, to sum (PANEL); b_panel is B's.
static void add_block(const RowSquares *p, double sum[PANEL], int n, int k0, int rows, const uint32_t *b_panel)
{
    float tile[PANEL * PANEL] __attribute__((aligned(64))), wide[PANEL * PANEL] __attribute__((aligned(64)));
    const uint32_t *from = packed_panel(p->w, n) + words_along(p->w->t, k0) * PANEL;
    const float *base = (const float *)from;
    if (p->w->t == DT_BF16) {
        p->k->widen(wide, from, rows);
        base = wide;
    }
    GemmSum low_rank = gemm_turned(p->a_panels + (size_t)(k0 / PANEL) * rank_words(p), b_panel, p->a->N);
    GemmOut out = {.y = tile, .t = DT_F32, .ld = PANEL, .scale = p->scale, .add = base};
    p->k->block(p->words, &low_rank, 1, rows, &out, PANEL);
    p->isa->add_squares(sum, tile, rows);
}

static void panel_squares(const RowSquares *p, float *out, int n, uint32_t *wide)
{
    double sum[PANEL] = {0};
    const uint32_t *b_panel = packed_panel(p->b, n);
    if (p->b->t != p->words) {
        p->k->widen((float *)wide, b_panel, p->b->K);
        b_panel = wide;
    }
    for (int k0 = 0; k0 < p->w->K; k0 += PANEL) add_block(p, sum, n, k0, MIN(PANEL, p->w->K - k0), b_panel);
    for (int j = 0; j < MIN(PANEL, p->w->N - n * PANEL); j++) out[n * PANEL + j] = (float)sum[j];
}

void lora_row_squares(Device *d, DType t, float *out, const Packed *w, const Packed *a, const Packed *b, float scale)
{
    RowSquares p = {.k = gemm_kernels(d), .isa = isa_kernels(d), .w = w, .a = a, .b = b, .scale = scale};
    p.words = a->t == b->t ? gemm_words(p.k, t, a->t) : DT_F32;
    size_t panel = rank_words(&p) * sizeof(uint32_t);
    p.a_panels = cpu_shared_scratch(d, (size_t)panel_count(w->K) * panel);
    int team = cpu_team(d, (int64_t)w->N * w->K);
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(static)
        for (int k = 0; k < panel_count(w->K); k++)
            p.k->turn(p.a_panels + (size_t)k * rank_words(&p), p.words, a, k, 0, panel_count(a->N));
        uint32_t *wide = cpu_thread_scratch(d, panel);
#pragma omp for schedule(static)
        for (int n = 0; n < panel_count(w->N); n++) panel_squares(&p, out, n, wide);
    }
}

// ---- gains: few numbers, each by itself ------------------------------------------------------------------------------
void dora_gain(Device *d, float *gain, float *inv_norm, float *gain_less, float *magnitude, bool fresh, int N)
{
    dora_gain_ref(d, gain, inv_norm, gain_less, magnitude, fresh, N);
}
