// Each op of ops.def that there is a launcher for: operands into device memory, the launcher, and back.
#include "kernel_device.h"
#include "cuda_kernels.h"
#include "staging.h"
#include <stdlib.h>
#include <string.h>

#define BEGIN(name)                                                                                                    \
    Staging s;                                                                                                         \
    staging_begin(&s, d, name)
#define IN(p, bytes)    const void *p##_d = staging_in(&s, #p, p, bytes)
#define INOUT(p, bytes) void *p##_d = staging_inout(&s, #p, p, bytes)
#define FLOATS(n)       (sizeof(float) * (size_t)(n))

static size_t rows_bytes(DType t, int64_t width, int64_t rows)
{
    return matrix_bytes(t, width, width, rows);
}

static int64_t most(const int32_t *v, int n) // their largest + 1
{
    int64_t m = 0;
    for (int i = 0; i < n; i++) m = MAX(m, (int64_t)v[i] + 1);
    return m;
}

// ---- linear ----
static size_t device_packed_bytes(const Device *d, DType t, int N, int K)
{
    (void)d;
    return rows_bytes(t, K, N);
}

static void *row_of(const Packed *w, void *data, int n)
{
    return (char *)data + rows_bytes(w->t, w->K, n);
}

static void pack(Device *d, Packed *w, int n0, int rows, const void *src, DType src_t, int64_t ld)
{
    BEGIN("linear_pack");
    void *data = w->data;
    IN(src, matrix_bytes(src_t, ld, w->K, rows));
    INOUT(data, rows_bytes(w->t, w->K, w->N));
    cuda_convert_rows(row_of(w, data_d, n0), w->t, w->K, src_d, src_t, ld, w->K, rows, NULL);
    staging_end(&s);
}

static void pack_blocks(Device *d, Packed *w, int n0, int rows, const void *src, Quant format)
{
    BEGIN("linear_pack_blocks");
    const size_t blocks = (size_t)rows * (size_t)(w->K / quant_formats[format].block);
    void *data = w->data;
    IN(src, blocks * (size_t)quant_formats[format].bytes);
    INOUT(data, rows_bytes(w->t, w->K, w->N));
    cuda_dequantize(row_of(w, data_d, n0), w->t, src_d, format, blocks, NULL);
    staging_end(&s);
}

static void unpack(Device *d, const Packed *w, int n0, int rows, void *dst, DType dst_t, int64_t ld)
{
    BEGIN("linear_unpack");
    const void *data = w->data;
    IN(data, rows_bytes(w->t, w->K, w->N));
    INOUT(dst, matrix_bytes(dst_t, ld, w->K, rows));
    cuda_convert_rows(dst_d, dst_t, ld, row_of(w, (void *)data_d, n0), w->t, w->K, w->K, rows, NULL);
    staging_end(&s);
}

static void bias_grad(Device *d, DType t, float *db, const void *dy, int64_t lddy, int N, bool accumulate, int T)
{
    BEGIN("bias_grad");
    INOUT(db, FLOATS(N));
    IN(dy, matrix_bytes(t, lddy, N, T));
    cuda_bias_grad(t, db_d, dy_d, lddy, N, accumulate, T, staging_scratch(&s, cuda_column_sums_scratch(N, T)), NULL);
    staging_end(&s);
}

// ---- DoRA ----
static void scale_cols(Device *d, DType t, void *y, int64_t ldy, const void *u, int64_t ldu, const float *gain,
                       const float *bias, const void *residual, int N, int T)
{
    BEGIN("scale_cols");
    INOUT(y, matrix_bytes(t, ldy, N, T));
    IN(u, matrix_bytes(t, ldu, N, T));
    IN(gain, FLOATS(N));
    IN(bias, FLOATS(N));
    IN(residual, matrix_bytes(t, ldy, N, T));
    cuda_scale_cols(t, y_d, ldy, u_d, ldu, gain_d, bias_d, residual_d, N, T, NULL);
    staging_end(&s);
}

static void scale_cols_bwd(Device *d, DType t, void *du, int64_t lddu, float *dm, const void *dy, int64_t lddy,
                           const void *u, int64_t ldu, const float *gain, const float *inv_norm, bool accumulate, int N,
                           int T)
{
    BEGIN("scale_cols_bwd");
    INOUT(du, matrix_bytes(t, lddu, N, T));
    INOUT(dm, FLOATS(N));
    IN(dy, matrix_bytes(t, lddy, N, T));
    IN(u, matrix_bytes(t, ldu, N, T));
    IN(gain, FLOATS(N));
    IN(inv_norm, FLOATS(N));
    cuda_scale_cols_bwd(t, du_d, lddu, dm_d, dy_d, lddy, u_d, ldu, gain_d, inv_norm_d, accumulate, N, T,
                        staging_scratch(&s, cuda_column_sums_scratch(N, T)), NULL);
    staging_end(&s);
}

static void lora_row_squares(Device *d, DType t, float *out, const Packed *w, const Packed *a, const Packed *b,
                             float scale)
{
    BEGIN("lora_row_squares");
    (void)t;
    const void *W = w->data, *A = a->data, *B = b->data;
    INOUT(out, FLOATS(w->N));
    IN(W, rows_bytes(w->t, w->K, w->N));
    IN(A, rows_bytes(a->t, a->K, a->N));
    IN(B, rows_bytes(b->t, b->K, b->N));
    cuda_lora_row_squares(out_d, w->t, W_d, w->K, a->t, A_d, a->K, b->t, B_d, b->K, scale, w->N, w->K, a->N,
                          staging_scratch(&s, cuda_lora_row_squares_scratch(w->N, w->K)), NULL);
    staging_end(&s);
}

static void dora_gain(Device *d, float *gain, float *inv_norm, float *gain_less, float *magnitude, bool fresh, int N)
{
    BEGIN("dora_gain");
    INOUT(gain, FLOATS(N));
    INOUT(inv_norm, FLOATS(N));
    INOUT(gain_less, FLOATS(N));
    INOUT(magnitude, FLOATS(N));
    cuda_dora_gain(gain_d, inv_norm_d, gain_less_d, magnitude_d, fresh, N, NULL);
    staging_end(&s);
}

// ---- elementwise ----
static void embed_fwd(Device *d, DType t, void *x, const Packed *table, const int32_t *tokens, float scale, int T)
{
    BEGIN("embed_fwd");
    const void *W = table->data;
    INOUT(x, rows_bytes(t, table->K, T));
    IN(W, rows_bytes(table->t, table->K, table->N));
    IN(tokens, rows_bytes(DT_I32, 1, T));
    cuda_embed_fwd(t, x_d, table->t, W_d, tokens_d, scale, table->N, table->K, T, NULL);
    staging_end(&s);
}

static void embed_bwd(Device *d, DType t, float *dtable, const void *dx, const int32_t *tokens, float scale, int V,
                      int C, int T)
{
    BEGIN("embed_bwd");
    INOUT(dtable, rows_bytes(DT_F32, C, V));
    IN(dx, rows_bytes(t, C, T));
    IN(tokens, rows_bytes(DT_I32, 1, T));
    cuda_embed_bwd(t, dtable_d, dx_d, tokens_d, scale, V, C, T, NULL);
    staging_end(&s);
}

static void rmsnorm_fwd(Device *d, DType t, void *y, int64_t ldy, float *rstd, const void *x, const float *w,
                        float w_offset, float eps, int C, int T)
{
    BEGIN("rmsnorm_fwd");
    INOUT(y, matrix_bytes(t, ldy, C, T));
    INOUT(rstd, FLOATS(T));
    IN(x, rows_bytes(t, C, T));
    IN(w, FLOATS(C));
    cuda_rmsnorm_fwd(t, y_d, ldy, rstd_d, x_d, w_d, w_offset, eps, C, T, NULL);
    staging_end(&s);
}

static void rmsnorm_bwd(Device *d, DType t, void *dx, int64_t lddx, float *dw, const void *dy, const void *x,
                        const float *rstd, const float *w, float w_offset, bool accumulate, int C, int T)
{
    BEGIN("rmsnorm_bwd");
    INOUT(dx, matrix_bytes(t, lddx, C, T));
    INOUT(dw, FLOATS(C));
    IN(dy, rows_bytes(t, C, T));
    IN(x, rows_bytes(t, C, T));
    IN(rstd, FLOATS(T));
    IN(w, FLOATS(C));
    cuda_rmsnorm_bwd(t, dx_d, lddx, dw_d, dy_d, x_d, rstd_d, w_d, w_offset, accumulate, C, T,
                     dw ? staging_scratch(&s, cuda_rmsnorm_bwd_scratch(C, T)) : NULL, NULL);
    staging_end(&s);
}

static void layernorm_fwd(Device *d, DType t, void *y, float *mean, float *rstd, const void *x, const float *w,
                          const float *b, float eps, int C, int T)
{
    BEGIN("layernorm_fwd");
    INOUT(y, rows_bytes(t, C, T));
    INOUT(mean, FLOATS(T));
    INOUT(rstd, FLOATS(T));
    IN(x, rows_bytes(t, C, T));
    IN(w, FLOATS(C));
    IN(b, FLOATS(C));
    cuda_layernorm_fwd(t, y_d, mean_d, rstd_d, x_d, w_d, b_d, eps, C, T, NULL);
    staging_end(&s);
}

static void layernorm_bwd(Device *d, DType t, void *dx, float *dw, float *db, const void *dy, const void *x,
                          const float *mean, const float *rstd, const float *w, bool accumulate, int C, int T)
{
    BEGIN("layernorm_bwd");
    INOUT(dx, rows_bytes(t, C, T));
    INOUT(dw, FLOATS(C));
    INOUT(db, FLOATS(C));
    IN(dy, rows_bytes(t, C, T));
    IN(x, rows_bytes(t, C, T));
    IN(mean, FLOATS(T));
    IN(rstd, FLOATS(T));
    IN(w, FLOATS(C));
    cuda_layernorm_bwd(t, dx_d, dw_d, db_d, dy_d, x_d, mean_d, rstd_d, w_d, accumulate, C, T,
                       staging_scratch(&s, cuda_column_sums_scratch(C, T)), NULL);
    staging_end(&s);
}

static void rope(Device *d, DType t, void *x, int64_t ldx, const float *cos, const float *sin, const int32_t *pos,
                 int heads, int D, int rot, bool inverse, int T)
{
    BEGIN("rope");
    const int64_t positions = most(pos, T);
    INOUT(x, matrix_bytes(t, ldx, (int64_t)heads * D, T));
    IN(cos, FLOATS(positions * (rot / 2)));
    IN(sin, FLOATS(positions * (rot / 2)));
    IN(pos, rows_bytes(DT_I32, 1, T));
    cuda_rope(t, x_d, ldx, cos_d, sin_d, pos_d, heads, D, rot, inverse, T, NULL);
    staging_end(&s);
}

static void swiglu_fwd(Device *d, DType t, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T)
{
    BEGIN("swiglu_fwd");
    INOUT(a, matrix_bytes(t, lda, F, T));
    IN(gu, matrix_bytes(t, ldgu, ldgu / 2 + F, T));
    cuda_swiglu_fwd(t, a_d, lda, gu_d, ldgu, F, T, NULL);
    staging_end(&s);
}

static void swiglu_bwd(Device *d, DType t, void *dgu, void *a, int64_t lda, const void *da, const void *gu,
                       int64_t ldgu, int F, int T)
{
    BEGIN("swiglu_bwd");
    INOUT(dgu, matrix_bytes(t, ldgu, ldgu / 2 + F, T));
    INOUT(a, matrix_bytes(t, lda, F, T));
    IN(da, rows_bytes(t, F, T));
    IN(gu, matrix_bytes(t, ldgu, ldgu / 2 + F, T));
    cuda_swiglu_bwd(t, dgu_d, a_d, lda, da_d, gu_d, ldgu, F, T, NULL);
    staging_end(&s);
}

static void gelu_fwd(Device *d, DType t, Gelu kind, void *y, const void *x, size_t n)
{
    BEGIN("gelu_fwd");
    INOUT(y, rows_bytes(t, (int64_t)n, 1));
    IN(x, rows_bytes(t, (int64_t)n, 1));
    cuda_gelu_fwd(t, kind, y_d, x_d, n, NULL);
    staging_end(&s);
}

static void gelu_bwd(Device *d, DType t, Gelu kind, void *dx, const void *dy, const void *x, size_t n)
{
    BEGIN("gelu_bwd");
    INOUT(dx, rows_bytes(t, (int64_t)n, 1));
    IN(dy, rows_bytes(t, (int64_t)n, 1));
    IN(x, rows_bytes(t, (int64_t)n, 1));
    cuda_gelu_bwd(t, kind, dx_d, dy_d, x_d, n, NULL);
    staging_end(&s);
}

static void geglu_fwd(Device *d, DType t, Gelu kind, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T)
{
    BEGIN("geglu_fwd");
    INOUT(a, matrix_bytes(t, lda, F, T));
    IN(gu, matrix_bytes(t, ldgu, ldgu / 2 + F, T));
    cuda_geglu_fwd(t, kind, a_d, lda, gu_d, ldgu, F, T, NULL);
    staging_end(&s);
}

static void geglu_bwd(Device *d, DType t, Gelu kind, void *dgu, void *a, int64_t lda, const void *da, const void *gu,
                      int64_t ldgu, int F, int T)
{
    BEGIN("geglu_bwd");
    INOUT(dgu, matrix_bytes(t, ldgu, ldgu / 2 + F, T));
    INOUT(a, matrix_bytes(t, lda, F, T));
    IN(da, rows_bytes(t, F, T));
    IN(gu, matrix_bytes(t, ldgu, ldgu / 2 + F, T));
    cuda_geglu_bwd(t, kind, dgu_d, a_d, lda, da_d, gu_d, ldgu, F, T, NULL);
    staging_end(&s);
}

static void gather_rows(Device *d, DType t, void *y, const void *x, const int32_t *idx, int C, int rows)
{
    BEGIN("gather_rows");
    INOUT(y, rows_bytes(t, C, rows));
    IN(x, rows_bytes(t, C, most(idx, rows)));
    IN(idx, rows_bytes(DT_I32, 1, rows));
    cuda_gather_rows(t, y_d, x_d, idx_d, C, rows, NULL);
    staging_end(&s);
}

static void scatter_rows(Device *d, DType t, void *x, int64_t ldx, const void *y, const int32_t *idx, int C, int rows,
                         int T)
{
    BEGIN("scatter_rows");
    INOUT(x, matrix_bytes(t, ldx, C, T));
    IN(y, rows_bytes(t, C, rows));
    IN(idx, rows_bytes(DT_I32, 1, rows));
    cuda_scatter_rows(t, x_d, ldx, y_d, idx_d, C, rows, T, staging_scratch(&s, cuda_scatter_rows_scratch(T)), NULL);
    staging_end(&s);
}

static void dropout(Device *d, DType t, void *y, int64_t ldy, const void *x, int64_t ldx, const uint64_t *row_key,
                    uint64_t stream, float p, bool accumulate, int64_t c0, int C, int T)
{
    BEGIN("dropout");
    INOUT(y, matrix_bytes(t, ldy, C, T));
    IN(x, matrix_bytes(t, ldx, C, T));
    IN(row_key, rows_bytes(DT_I64, 1, T));
    cuda_dropout(t, y_d, ldy, x_d, ldx, row_key_d, stream, p, accumulate, c0, C, T, NULL);
    staging_end(&s);
}

static void convert(Device *d, void *dst, DType dst_t, const void *src, DType src_t, size_t n)
{
    BEGIN("convert");
    INOUT(dst, n * dtype_size(dst_t));
    IN(src, n * dtype_size(src_t));
    cuda_convert(dst_d, dst_t, src_d, src_t, n, NULL);
    staging_end(&s);
}

// ---- attention ----
typedef struct AttnRows { // of q and o, and of k and v
    int64_t queries, keys;
} AttnRows;

static AttnRows attn_rows(const AttnShape *a)
{
    AttnRows n = {0, 0};
    for (int s = 0; s < a->S; s++) {
        n.queries = MAX(n.queries, (int64_t)a->q_start[s] + a->q_len[s]);
        n.keys = MAX(n.keys, (int64_t)a->k_start[s] + a->k_len[s]);
    }
    return n;
}

static const void *attn_table(Staging *s, const AttnShape *a)
{
    void *table = staging_scratch(s, cuda_attn_table_bytes(a));
    cuda_attn_table(table, a);
    return table;
}

// Two operands of which one's rows may lie between the other's: one copy then.
static void inout_two(Staging *s, void *x, void *y, size_t bytes, void **x_d, void **y_d)
{
    const ptrdiff_t apart = (char *)y - (char *)x;
    if (apart > 0 && (size_t)apart < bytes) {
        *x_d = staging_inout(s, "both", x, bytes + (size_t)apart);
        *y_d = (char *)*x_d + apart;
        return;
    }
    *x_d = staging_inout(s, "the first", x, bytes);
    *y_d = staging_inout(s, "the second", y, bytes);
}

#define QUERIES_BYTES(ld) matrix_bytes(t, ld, (int64_t)a->NH * a->D, n.queries)
#define KEYS_BYTES(ld)    matrix_bytes(t, ld, (int64_t)a->KV * a->D, n.keys)

static void attn_fwd(Device *d, DType t, void *o, int64_t ldo, float *lse, const void *q, int64_t ldq, const void *k,
                     const void *v, int64_t ldkv, const AttnShape *a)
{
    BEGIN("attn_fwd");
    const AttnRows n = attn_rows(a);
    INOUT(o, QUERIES_BYTES(ldo));
    INOUT(lse, FLOATS(a->NH * n.queries));
    IN(q, QUERIES_BYTES(ldq));
    IN(k, KEYS_BYTES(ldkv));
    IN(v, KEYS_BYTES(ldkv));
    cuda_attn_fwd(t, o_d, ldo, lse_d, q_d, ldq, k_d, v_d, ldkv, a, attn_table(&s, a),
                  staging_scratch(&s, cuda_attn_fwd_scratch(a)), NULL);
    staging_end(&s);
}

static void attn_bwd(Device *d, DType t, void *dq, int64_t lddq, void *dk, void *dv, int64_t lddkv, const void *dout,
                     const void *o, int64_t ldo, const float *lse, const void *q, int64_t ldq, const void *k,
                     const void *v, int64_t ldkv, const AttnShape *a)
{
    BEGIN("attn_bwd");
    const AttnRows n = attn_rows(a);
    INOUT(dq, QUERIES_BYTES(lddq));
    void *dk_d, *dv_d;
    inout_two(&s, dk, dv, KEYS_BYTES(lddkv), &dk_d, &dv_d);
    IN(dout, QUERIES_BYTES(ldo));
    IN(o, QUERIES_BYTES(ldo));
    IN(lse, FLOATS(a->NH * n.queries));
    IN(q, QUERIES_BYTES(ldq));
    IN(k, KEYS_BYTES(ldkv));
    IN(v, KEYS_BYTES(ldkv));
    cuda_attn_bwd(t, dq_d, lddq, dk_d, dv_d, lddkv, dout_d, o_d, ldo, lse_d, q_d, ldq, k_d, v_d, ldkv, a,
                  attn_table(&s, a), staging_scratch(&s, FLOATS(a->NH * n.queries)), NULL);
    staging_end(&s);
}

// ---- sampling ----
static void sample(Device *d, int32_t *id, const float *logits, const uint64_t *draw, const SamplerConfig *c, int V,
                   int n)
{
    BEGIN("sample");
    INOUT(id, rows_bytes(DT_I32, 1, n));
    IN(logits, FLOATS((int64_t)V * n));
    IN(draw, rows_bytes(DT_I64, 1, n));
    cuda_sample(id_d, logits_d, draw_d, c, V, n, NULL);
    staging_end(&s);
}

// ---- optimizer and gradient sums ----
static void adamw(Device *d, float *p, float *m, float *v, const float *g, float g_scale, float lr, float beta1,
                  float beta2, float eps, float wd, int64_t step, size_t n)
{
    BEGIN("adamw");
    INOUT(p, FLOATS(n));
    INOUT(m, FLOATS(n));
    INOUT(v, FLOATS(n));
    IN(g, FLOATS(n));
    cuda_adamw(p_d, m_d, v_d, g_d, g_scale, lr, beta1, beta2, eps, wd, step, n, NULL);
    staging_end(&s);
}

static void row_squares(Device *d, double *out, const float *x, int64_t rows, int64_t K)
{
    BEGIN("row_squares");
    INOUT(out, sizeof *out * (size_t)rows);
    IN(x, FLOATS(rows * K));
    cuda_row_squares(out_d, x_d, rows, K, staging_scratch(&s, cuda_row_squares_scratch(rows, K)), NULL);
    staging_end(&s);
}

static void fix_add(Device *d, int64_t *acc, const float *g, size_t n, int64_t limit, int *overflow)
{
    BEGIN("fix_add");
    INOUT(acc, sizeof *acc * n);
    IN(g, FLOATS(n));
    INOUT(overflow, sizeof *overflow);
    cuda_fix_add(acc_d, g_d, n, limit, overflow_d, NULL);
    staging_end(&s);
}

static void acc_add(Device *d, void *acc, const void *x, DType t, size_t n)
{
    BEGIN("acc_add");
    INOUT(acc, n * dtype_size(t));
    IN(x, n * dtype_size(t));
    cuda_acc_add(acc_d, x_d, t, n, NULL);
    staging_end(&s);
}

static void fix_read(Device *d, float *g, const int64_t *acc, size_t n)
{
    BEGIN("fix_read");
    INOUT(g, FLOATS(n));
    IN(acc, sizeof *acc * n);
    cuda_fix_read(g_d, acc_d, n, NULL);
    staging_end(&s);
}

// ---- the device ----
static size_t no_scratch(const Device *d)
{
    (void)d;
    return 0;
}

static void device_free(Device *d)
{
    free(d->impl);
    free(d);
}

int kernel_device_open(Device **out, CudahostOrder order, uint64_t seed)
{
    Device *d = xcalloc(1, sizeof *d);
    OrderOf *o = xcalloc(1, sizeof *o);
    *o = (OrderOf){order, seed};
    *d = (Device){.name = "cuda kernels",
                  .op = {.linear_pack = pack,
                         .linear_pack_blocks = pack_blocks,
                         .linear_unpack = unpack,
                         .bias_grad = bias_grad,
                         .scale_cols = scale_cols,
                         .scale_cols_bwd = scale_cols_bwd,
                         .lora_row_squares = lora_row_squares,
                         .dora_gain = dora_gain,
                         .embed_fwd = embed_fwd,
                         .embed_bwd = embed_bwd,
                         .rmsnorm_fwd = rmsnorm_fwd,
                         .rmsnorm_bwd = rmsnorm_bwd,
                         .layernorm_fwd = layernorm_fwd,
                         .layernorm_bwd = layernorm_bwd,
                         .rope = rope,
                         .swiglu_fwd = swiglu_fwd,
                         .swiglu_bwd = swiglu_bwd,
                         .gelu_fwd = gelu_fwd,
                         .gelu_bwd = gelu_bwd,
                         .geglu_fwd = geglu_fwd,
                         .geglu_bwd = geglu_bwd,
                         .gather_rows = gather_rows,
                         .scatter_rows = scatter_rows,
                         .dropout = dropout,
                         .convert = convert,
                         .attn_fwd = attn_fwd,
                         .attn_bwd = attn_bwd,
                         .sample = sample,
                         .adamw = adamw,
                         .row_squares = row_squares,
                         .fix_add = fix_add,
                         .acc_add = acc_add,
                         .fix_read = fix_read},
                  .packed_bytes = device_packed_bytes,
                  .scratch_bytes = no_scratch,
                  .close = device_free,
                  .impl = o};
    *out = d;
    return OK;
}
