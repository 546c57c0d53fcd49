// The vocabulary head on CUDA: logits by cuBLASLt, a chunk of rows at a time, so that never more than LOGITS_BYTES of them exist; what
// is made of a row of logits, by the kernels of head.cu, which read it while it is in the cache; then the gradients' products. Logits
// are f32. In bf16 the gradient of a row takes the place of its logits, at half the size.
#include "cuda.h"
#include "cuda_kernels.h"

enum { LOGITS_BYTES = 256 << 20, LEAST_ROWS = 256, GRAIN = 128 };

// What all chunks of a call share.
typedef struct Head {
    DType t;
    const void *w; // (V,C) of type t
    int V, C, rows;
    int64_t ld; // of logits, in f32
    float *logits;
    float softcap;
} Head;

static int chunk_rows(int V, int M)
{
    const int64_t fit = MAX((int64_t)LOGITS_BYTES / ((int64_t)V * 4) / GRAIN * GRAIN, LEAST_ROWS);
    return (int)MIN(fit, M);
}

// Scratch: the logits of a chunk and, where the weight is of another type, its values in type t.
static bool open_head(Device *d, Head *h, DType t, const Packed *w, float softcap, int M)
{
    ASSERT(!w->ld || w->ld == w->K);
    *h = (Head){.t = t, .V = w->N, .C = w->K, .softcap = softcap};
    h->rows = chunk_rows(w->N, M);
    h->ld = (int64_t)ROUND_UP(w->N, 8);
    const size_t logits = ROUND_UP((size_t)h->rows * (size_t)h->ld * sizeof(float), ARENA_ALIGN);
    const size_t n = (size_t)w->N * (size_t)w->K, values = w->t == t ? 0 : n * dtype_size(t);
    char *scratch = cuda_scratch(d, logits + values);
    if (!scratch) return false;
    h->logits = (float *)(void *)scratch;
    h->w = values ? scratch + logits : w->data;
    if (values) RUN(convert, scratch + logits, t, w->data, w->t, n);
    return true;
}

static const void *rows_at(const Head *h, const void *x, int row)
{
    return (const char *)x + (size_t)row * (size_t)h->C * dtype_size(h->t);
}

static void make_logits(Device *d, const Head *h, const void *x, float *logits, int64_t ld, int rows)
{
    cuda_gemm(d, &(CudaGemm){.M = rows,
                             .N = h->V,
                             .K = h->C,
                             .b_turned = true,
                             .in = h->t,
                             .out_t = DT_F32,
                             .a = x,
                             .lda = h->C,
                             .b = h->w,
                             .ldb = h->C,
                             .out = logits,
                             .ldout = ld,
                             .alpha = 1});
}

// dh = dz · W and dw += dzᵀ · x
static void gradients(Device *d, const Head *h, void *dh, float *dw, const void *x, int rows)
{
    const int64_t ld = h->t == DT_BF16 ? 2 * h->ld : h->ld;
    cuda_gemm(d, &(CudaGemm){.M = rows,
                             .N = h->C,
                             .K = h->V,
                             .in = h->t,
                             .out_t = h->t,
                             .a = h->logits,
                             .lda = ld,
                             .b = h->w,
                             .ldb = h->C,
                             .out = dh,
                             .ldout = h->C,
                             .alpha = 1});
    if (!dw) return;
    cuda_gemm(d, &(CudaGemm){.M = h->V,
                             .N = h->C,
                             .K = rows,
                             .a_turned = true,
                             .in = h->t,
                             .out_t = DT_F32,
                             .a = h->logits,
                             .lda = ld,
                             .b = x,
                             .ldb = h->C,
                             .c = dw,
                             .ldc = h->C,
                             .out = dw,
                             .ldout = h->C,
                             .alpha = 1,
                             .beta = 1});
}

void cuda_op_head_fwd(Device *d, DType t, float *logp, float *lse, float *entropy, const void *x, const Packed *w,
                      const int32_t *target, float softcap, int M)
{
    Head h;
    if (!M || !open_head(d, &h, t, w, softcap, M)) return;
    for (int m = 0; m < M; m += h.rows) {
        const int rows = MIN(h.rows, M - m);
        make_logits(d, &h, rows_at(&h, x, m), h.logits, h.ld, rows);
        RUN(head_stats, logp + m, lse + m, entropy ? entropy + m : NULL, h.logits, h.ld, target + m, softcap, h.V,
            rows);
    }
}

void cuda_op_head_bwd(Device *d, DType t, void *dh, float *dw, const float *weight, const float *lse, const void *x,
                      const Packed *w, const int32_t *target, float softcap, int M)
{
    Head h;
    if (!M || !open_head(d, &h, t, w, softcap, M)) return;
    for (int m = 0; m < M; m += h.rows) {
        const int rows = MIN(h.rows, M - m);
        make_logits(d, &h, rows_at(&h, x, m), h.logits, h.ld, rows);
        RUN(head_grad, t, h.logits, h.ld, weight + m, lse + m, target + m, softcap, h.V, rows);
        gradients(d, &h, (void *)rows_at(&h, dh, m), dw, rows_at(&h, x, m), rows);
    }
}

void cuda_op_head_fwd_bwd(Device *d, DType t, float *logp, float *lse, void *dh, float *dw, const float *weight,
                          const void *x, const Packed *w, const int32_t *target, float softcap, int M)
{
    Head h;
    if (!M || !open_head(d, &h, t, w, softcap, M)) return;
    for (int m = 0; m < M; m += h.rows) {
        const int rows = MIN(h.rows, M - m);
        make_logits(d, &h, rows_at(&h, x, m), h.logits, h.ld, rows);
        RUN(head_loss, t, logp + m, lse + m, h.logits, h.ld, weight + m, target + m, softcap, h.V, rows);
        gradients(d, &h, (void *)rows_at(&h, dh, m), dw, rows_at(&h, x, m), rows);
    }
}

void cuda_op_head_logits(Device *d, DType t, float *logits, const void *x, const Packed *w, float softcap, int M)
{
    Head h;
    if (!M || !open_head(d, &h, t, w, softcap, 1)) return;
    make_logits(d, &h, x, logits, h.V, M);
    if (softcap > 0) RUN(softcap, logits, softcap, (size_t)M * (size_t)h.V);
}
