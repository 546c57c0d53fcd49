// The kernels' device of kernel_device.c, with the ops that need cuBLASLt added: those of the device "cuda", each with its operands in
// memory that the GPU can reach.
#include "../kernel_device.h"
#include "../staging.h"
#include <stdlib.h>

int launchers_open(Device **out, CudahostOrder order, uint64_t seed); // kernel_device.c's

static Device *cuda;

#define BEGIN(name)                                                                                                    \
    Staging s;                                                                                                         \
    staging_begin(&s, d, name)
#define IN(p, bytes)    const void *p##_d = staging_in(&s, #p, p, bytes)
#define INOUT(p, bytes) void *p##_d = staging_inout(&s, #p, p, bytes)
#define FLOATS(n)       (sizeof(float) * (size_t)(n))
#define END()                                                                                                          \
    do {                                                                                                               \
        ASSERT(cuda->sync(cuda) == OK);                                                                                \
        staging_end(&s);                                                                                               \
    } while (0)

static Packed packed_in(Staging *s, const char *name, const Packed *w)
{
    Packed p = *w;
    p.data = (void *)staging_in(s, name, w->data, matrix_bytes(w->t, w->K, w->K, w->N));
    return p;
}

static LowRank low_rank_in(Staging *s, DType t, const LowRank *lr, Packed *w, int T)
{
    *w = packed_in(s, "lr.w", lr->w);
    LowRank r = *lr;
    r.s = staging_in(s, "lr.s", lr->s, matrix_bytes(t, lr->lds, lr->R, T));
    r.w = w;
    return r;
}

// src stays the host's: packing from there is what is tested
static void pack_blocks(Device *d, Packed *w, int n0, int rows, const void *src, Quant format)
{
    BEGIN("linear_pack_blocks");
    Packed W = *w;
    void *data = w->data;
    INOUT(data, matrix_bytes(w->t, w->K, w->K, w->N));
    W.data = data_d;
    cuda->op.linear_pack_blocks(cuda, &W, n0, rows, src, format);
    END();
}

static void linear_fwd(Device *d, DType t, void *y, int64_t ldy, const void *x, int64_t ldx, const Packed *w,
                       const LowRank *lr, const float *bias, const void *residual, int T)
{
    BEGIN("linear_fwd");
    Packed W = packed_in(&s, "w", w), L;
    LowRank r = {0};
    INOUT(y, matrix_bytes(t, ldy, w->N, T));
    IN(x, matrix_bytes(t, ldx, w->K, T));
    IN(bias, FLOATS(w->N));
    IN(residual, matrix_bytes(t, ldy, w->N, T));
    if (lr && lr->R) r = low_rank_in(&s, t, lr, &L, T);
    cuda->op.linear_fwd(cuda, t, y_d, ldy, x_d, ldx, &W, r.R ? &r : NULL, bias_d, residual_d, T);
    END();
}

static void linear_dx(Device *d, DType t, void *dx, int64_t lddx, const void *dy, int64_t lddy, const Packed *w,
                      const LowRank *lr, bool accumulate, int T)
{
    BEGIN("linear_dx");
    Packed W = packed_in(&s, "w", w), L;
    LowRank r = {0};
    INOUT(dx, matrix_bytes(t, lddx, w->K, T));
    IN(dy, matrix_bytes(t, lddy, w->N, T));
    if (lr && lr->R) r = low_rank_in(&s, t, lr, &L, T);
    cuda->op.linear_dx(cuda, t, dx_d, lddx, dy_d, lddy, &W, r.R ? &r : NULL, accumulate, T);
    END();
}

static void linear_dw(Device *d, DType t, float *dw, const void *dy, int64_t lddy, const void *x, int64_t ldx, int N,
                      int K, bool accumulate, int T)
{
    BEGIN("linear_dw");
    INOUT(dw, FLOATS((int64_t)N * K));
    IN(dy, matrix_bytes(t, lddy, N, T));
    IN(x, matrix_bytes(t, ldx, K, T));
    cuda->op.linear_dw(cuda, t, dw_d, dy_d, lddy, x_d, ldx, N, K, accumulate, T);
    END();
}

static void lora_s(Device *d, DType t, void *S, int64_t lds, const void *x, int64_t ldx, const Packed *a, float scale,
                   int T)
{
    BEGIN("lora_s");
    Packed A = packed_in(&s, "a", a);
    INOUT(S, matrix_bytes(t, lds, a->N, T));
    IN(x, matrix_bytes(t, ldx, a->K, T));
    cuda->op.lora_s(cuda, t, S_d, lds, x_d, ldx, &A, scale, T);
    END();
}

static void lora_bwd(Device *d, DType t, void *ds, int64_t ldds, float *db, const void *dy, int64_t lddy, const void *S,
                     int64_t lds, const Packed *b, float scale, bool accumulate, int T)
{
    BEGIN("lora_bwd");
    Packed B = packed_in(&s, "b", b);
    INOUT(ds, matrix_bytes(t, ldds, b->K, T));
    INOUT(db, FLOATS((int64_t)b->N * b->K));
    IN(dy, matrix_bytes(t, lddy, b->N, T));
    IN(S, matrix_bytes(t, lds, b->K, T));
    cuda->op.lora_bwd(cuda, t, ds_d, ldds, db_d, dy_d, lddy, S_d, lds, &B, scale, accumulate, T);
    END();
}

// ---- head ----
static size_t rows_bytes(DType t, int64_t width, int64_t rows)
{
    return matrix_bytes(t, width, width, rows);
}

static void head_fwd(Device *d, DType t, float *logp, float *lse, float *entropy, const void *h, const Packed *w,
                     const int32_t *target, float softcap, int M)
{
    BEGIN("head_fwd");
    Packed W = packed_in(&s, "w", w);
    INOUT(logp, FLOATS(M));
    INOUT(lse, FLOATS(M));
    INOUT(entropy, FLOATS(M));
    IN(h, rows_bytes(t, w->K, M));
    IN(target, rows_bytes(DT_I32, 1, M));
    cuda->op.head_fwd(cuda, t, logp_d, lse_d, entropy_d, h_d, &W, target_d, softcap, M);
    END();
}

static void head_bwd(Device *d, DType t, void *dh, float *dw, const float *weight, const float *lse, const void *h,
                     const Packed *w, const int32_t *target, float softcap, int M)
{
    BEGIN("head_bwd");
    Packed W = packed_in(&s, "w", w);
    INOUT(dh, rows_bytes(t, w->K, M));
    INOUT(dw, FLOATS((int64_t)w->N * w->K));
    IN(weight, FLOATS(M));
    IN(lse, FLOATS(M));
    IN(h, rows_bytes(t, w->K, M));
    IN(target, rows_bytes(DT_I32, 1, M));
    cuda->op.head_bwd(cuda, t, dh_d, dw_d, weight_d, lse_d, h_d, &W, target_d, softcap, M);
    END();
}

static void head_fwd_bwd(Device *d, DType t, float *logp, float *lse, void *dh, float *dw, const float *weight,
                         const void *h, const Packed *w, const int32_t *target, float softcap, int M)
{
    BEGIN("head_fwd_bwd");
    Packed W = packed_in(&s, "w", w);
    INOUT(logp, FLOATS(M));
    INOUT(lse, FLOATS(M));
    INOUT(dh, rows_bytes(t, w->K, M));
    INOUT(dw, FLOATS((int64_t)w->N * w->K));
    IN(weight, FLOATS(M));
    IN(h, rows_bytes(t, w->K, M));
    IN(target, rows_bytes(DT_I32, 1, M));
    cuda->op.head_fwd_bwd(cuda, t, logp_d, lse_d, dh_d, dw_d, weight_d, h_d, &W, target_d, softcap, M);
    END();
}

static void head_logits(Device *d, DType t, float *logits, const void *h, const Packed *w, float softcap, int M)
{
    BEGIN("head_logits");
    Packed W = packed_in(&s, "w", w);
    INOUT(logits, FLOATS((int64_t)M * w->N));
    IN(h, rows_bytes(t, w->K, M));
    cuda->op.head_logits(cuda, t, logits_d, h_d, &W, softcap, M);
    END();
}

static void close_cuda(void)
{
    device_close(cuda);
}

int kernel_device_open(Device **out, CudahostOrder order, uint64_t seed)
{
    if (!cuda) {
        TRY(device_open(&cuda, &(DeviceConfig){.name = "cuda"}));
        atexit(close_cuda);
    }
    TRY(launchers_open(out, order, seed));
    OpTable *op = &(*out)->op;
    op->linear_pack_blocks = pack_blocks;
    op->linear_fwd = linear_fwd;
    op->linear_dx = linear_dx;
    op->linear_dw = linear_dw;
    op->lora_s = lora_s;
    op->lora_bwd = lora_bwd;
    op->head_fwd = head_fwd;
    op->head_bwd = head_bwd;
    op->head_fwd_bwd = head_fwd_bwd;
    op->head_logits = head_logits;
    return OK;
}
