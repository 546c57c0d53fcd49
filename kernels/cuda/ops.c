// The op table of the CUDA device: products by gemm.c, everything else by the launchers of cuda_kernels.h. An op only submits; what
// goes wrong is noted and told by the next sync. The head's ops are in head.c.
#include "cuda.h"
#include "cuda_kernels.h"
#include <stdlib.h>
#include <string.h>

// ---- weights --------------------------------------------------------------------------------------------------------
static int64_t stride(const Packed *w)
{
    return w->ld ? w->ld : w->K;
}

static void *place_of(const Packed *w, int row, int column)
{
    return cuda_at(w->data, (size_t)(row * stride(w) + column) * dtype_size(w->t));
}

void cuda_op_linear_pack(Device *d, Packed *w, int n0, int rows, const void *src, DType src_t, int64_t ld)
{
    if (!rows) return;
    if (device_owns(d, src))
        RUN(convert_rows, place_of(w, n0, 0), w->t, stride(w), src, src_t, ld, w->K, rows);
    else
        (void)cuda_upload_rows(d, place_of(w, n0, 0), w->t, stride(w), src, src_t, ld, rows,
                               w->K); // its fault is noted
}

void cuda_op_linear_pack_blocks(Device *d, Packed *w, int n0, int rows, const void *src, Quant format)
{
    (void)cuda_upload_blocks(d, place_of(w, n0, 0), w->t, stride(w), src, format, rows, w->K); // as above
}

static void unpack_to_host(Device *d, const Packed *w, int n0, int rows, void *dst, DType dst_t, int64_t ld)
{
    const size_t row = (size_t)w->K * dtype_size(dst_t), bytes = (size_t)rows * row;
    void *converted = cuda_scratch(d, bytes);
    if (!converted) return;
    RUN(convert_rows, converted, dst_t, w->K, place_of(w, n0, 0), w->t, stride(w), w->K, rows);
    char *host = ld == w->K ? dst : xmalloc(bytes);
    (void)d->download(d, host, converted, bytes); // as above
    if (host == dst) return;
    for (int r = 0; r < rows; r++)
        memcpy((char *)dst + (size_t)r * (size_t)ld * dtype_size(dst_t), host + (size_t)r * row, row);
    free(host);
}

void cuda_op_linear_unpack(Device *d, const Packed *w, int n0, int rows, void *dst, DType dst_t, int64_t ld)
{
    if (!rows) return;
    if (device_owns(d, dst))
        RUN(convert_rows, dst, dst_t, ld, place_of(w, n0, 0), w->t, stride(w), w->K, rows);
    else
        unpack_to_host(d, w, n0, rows, dst, dst_t, ld);
}

// A matrix as products take it
typedef struct Operand {
    const void *p;
    int64_t ld;
} Operand;

// The weight's values in the type of the activations: products want both alike. Seldom another than its own.
static Operand values_as(Device *d, DType t, const Packed *w)
{
    if (w->t == t) return (Operand){w->data, stride(w)};
    void *converted = cuda_scratch(d, (size_t)w->N * (size_t)w->K * dtype_size(t));
    if (converted) RUN(convert_rows, converted, t, w->K, w->data, w->t, stride(w), w->K, w->N);
    return (Operand){converted, w->K};
}

// ---- linear layers --------------------------------------------------------------------------------------------------
// Whether the low-rank term's factors lie in the borders of the base's: s right behind the `inner` columns of x, and the adapter's part
// at `beside` in the same matrix as the weight.
static bool bordered(DType t, const void *x, int64_t ldx, int inner, const Packed *w, const void *beside,
                     const LowRank *lr)
{
    return w->t == t && lr->w->t == t && lr->w->data == beside && stride(lr->w) == stride(w) && lr->lds == ldx &&
           lr->s == cuda_at(x, (size_t)inner * dtype_size(t));
}

// Where they do not, a product of its own, which the base's adds to: a pass over the result more, and another rounding. It goes first:
// what it leaves is small.
static void low_rank_first(Device *d, CudaGemm *g, const LowRank *lr)
{
    CudaGemm small = *g;
    const Operand b = values_as(d, g->in, lr->w);
    small.K = lr->R;
    small.a = lr->s, small.lda = lr->lds;
    small.b = b.p, small.ldb = b.ld;
    cuda_gemm(d, &small);
    g->c = g->out;
    g->beta = 1;
}

// g: all but a, b and K, the base's `inner` columns of x and rows or columns of w.
static void product(Device *d, CudaGemm *g, const void *x, int64_t ldx, int inner, const Packed *w, const void *beside,
                    const LowRank *lr)
{
    const bool two = lr && lr->R, one = two && bordered(g->in, x, ldx, inner, w, beside, lr);
    if (two && !one) low_rank_first(d, g, lr);
    const Operand b = values_as(d, g->in, w);
    g->K = inner + (one ? lr->R : 0);
    g->a = x, g->lda = ldx;
    g->b = b.p, g->ldb = b.ld;
    cuda_gemm(d, g);
}

void cuda_op_linear_fwd(Device *d, DType t, void *y, int64_t ldy, const void *x, int64_t ldx, const Packed *w,
                        const LowRank *lr, const float *bias, const void *residual, int T)
{
    CudaGemm g = {
        .M = T, .N = w->N, .b_turned = true, .in = t, .out_t = t, .out = y, .ldout = ldy, .ldc = ldy, .alpha = 1};
    g.c = residual ? residual : y;
    g.beta = residual ? 1 : 0;
    product(d, &g, x, ldx, w->K, w, place_of(w, 0, w->K), lr);
    if (bias) RUN(scale_cols, t, y, ldy, y, ldy, NULL, bias, NULL, w->N, T);
}

void cuda_op_linear_dx(Device *d, DType t, void *dx, int64_t lddx, const void *dy, int64_t lddy, const Packed *w,
                       const LowRank *lr, bool accumulate, int T)
{
    CudaGemm g = {.M = T, .N = w->K, .in = t, .out_t = t, .out = dx, .ldout = lddx, .c = dx, .ldc = lddx, .alpha = 1};
    g.beta = accumulate ? 1 : 0;
    product(d, &g, dy, lddy, w->N, w, place_of(w, w->N, 0), lr);
}

void cuda_op_linear_dw(Device *d, DType t, float *dw, const void *dy, int64_t lddy, const void *x, int64_t ldx, int N,
                       int K, bool accumulate, int T)
{
    cuda_gemm(d, &(CudaGemm){.M = N,
                             .N = K,
                             .K = T,
                             .a_turned = true,
                             .in = t,
                             .out_t = DT_F32,
                             .a = dy,
                             .lda = lddy,
                             .b = x,
                             .ldb = ldx,
                             .c = dw,
                             .ldc = K,
                             .out = dw,
                             .ldout = K,
                             .alpha = 1,
                             .beta = accumulate ? 1 : 0});
}

void cuda_op_bias_grad(Device *d, DType t, float *db, const void *dy, int64_t lddy, int N, bool accumulate, int T)
{
    void *scratch = cuda_scratch(d, cuda_column_sums_scratch(N, T));
    RUN(bias_grad, t, db, dy, lddy, N, accumulate, T, scratch);
}

void cuda_op_lora_s(Device *d, DType t, void *s, int64_t lds, const void *x, int64_t ldx, const Packed *a, float scale,
                    int T)
{
    const Operand A = values_as(d, t, a);
    cuda_gemm(d, &(CudaGemm){.M = T,
                             .N = a->N,
                             .K = a->K,
                             .b_turned = true,
                             .in = t,
                             .out_t = t,
                             .a = x,
                             .lda = ldx,
                             .b = A.p,
                             .ldb = A.ld,
                             .out = s,
                             .ldout = lds,
                             .alpha = scale});
}

static void low_rank_products(Device *d, DType t, void *ds, int64_t ldds, float *db, const void *dy, int64_t lddy,
                              const void *s, int64_t lds, const Packed *b, float scale, bool accumulate, int T)
{
    const Operand B = values_as(d, t, b);
    cuda_gemm(d, &(CudaGemm){.M = T,
                             .N = b->K,
                             .K = b->N,
                             .in = t,
                             .out_t = t,
                             .a = dy,
                             .lda = lddy,
                             .b = B.p,
                             .ldb = B.ld,
                             .out = ds,
                             .ldout = ldds,
                             .alpha = scale});
    cuda_op_linear_dw(d, t, db, dy, lddy, s, lds, b->N, b->K, accumulate, T);
}

void cuda_op_lora_bwd(Device *d, DType t, void *ds, int64_t ldds, float *db, const void *dy, int64_t lddy,
                      const void *s, int64_t lds, const Packed *b, float scale, bool accumulate, int T)
{
    const int N = b->N, R = b->K;
    if (b->t != t || !cuda_lora_bwd_pays(t, N, R, T)) {
        low_rank_products(d, t, ds, ldds, db, dy, lddy, s, lds, b, scale, accumulate, T);
        return;
    }
    void *scratch = cuda_scratch(d, cuda_lora_bwd_scratch(N, R, T));
    RUN(lora_bwd, ds, ldds, db, dy, lddy, s, lds, b->data, stride(b), scale, accumulate, N, R, T, scratch);
}

// ---- DoRA -----------------------------------------------------------------------------------------------------------
void cuda_op_scale_cols(Device *d, DType t, void *y, int64_t ldy, const void *u, int64_t ldu, const float *gain,
                        const float *bias, const void *residual, int N, int T)
{
    RUN(scale_cols, t, y, ldy, u, ldu, gain, bias, residual, N, T);
}

void cuda_op_scale_cols_bwd(Device *d, DType t, void *du, int64_t lddu, float *dm, const void *dy, int64_t lddy,
                            const void *u, int64_t ldu, const float *gain, const float *inv_norm, bool accumulate,
                            int N, int T)
{
    void *scratch = dm ? cuda_scratch(d, cuda_column_sums_scratch(N, T)) : NULL;
    RUN(scale_cols_bwd, t, du, lddu, dm, dy, lddy, u, ldu, gain, inv_norm, accumulate, N, T, scratch);
}

void cuda_op_lora_row_squares(Device *d, DType t, float *out, const Packed *w, const Packed *a, const Packed *b,
                              float scale)
{
    (void)t;
    void *scratch = cuda_scratch(d, cuda_lora_row_squares_scratch(w->N, w->K));
    RUN(lora_row_squares, out, w->t, w->data, stride(w), a->t, a->data, stride(a), b->t, b->data, stride(b), scale,
        w->N, w->K, a->N, scratch);
}

void cuda_op_dora_gain(Device *d, float *gain, float *inv_norm, float *gain_less, float *magnitude, bool fresh, int N)
{
    RUN(dora_gain, gain, inv_norm, gain_less, magnitude, fresh, N);
}

// ---- embedding, norms, rotary, activations --------------------------------------------------------------------------
void cuda_op_embed_fwd(Device *d, DType t, void *x, const Packed *table, const int32_t *tokens, float scale, int T)
{
    ASSERT(stride(table) == table->K);
    RUN(embed_fwd, t, x, table->t, table->data, tokens, scale, table->N, table->K, T);
}

void cuda_op_embed_bwd(Device *d, DType t, float *dtable, const void *dx, const int32_t *tokens, float scale, int V,
                       int C, int T)
{
    RUN(embed_bwd, t, dtable, dx, tokens, scale, V, C, T);
}

void cuda_op_rmsnorm_fwd(Device *d, DType t, void *y, int64_t ldy, float *rstd, const void *x, const float *w,
                         float w_offset, float eps, int C, int T)
{
    RUN(rmsnorm_fwd, t, y, ldy, rstd, x, w, w_offset, eps, C, T);
}

void cuda_op_rmsnorm_bwd(Device *d, DType t, void *dx, int64_t lddx, float *dw, const void *dy, const void *x,
                         const float *rstd, const float *w, float w_offset, bool accumulate, int C, int T)
{
    void *scratch = dw ? cuda_scratch(d, cuda_rmsnorm_bwd_scratch(C, T)) : NULL;
    RUN(rmsnorm_bwd, t, dx, lddx, dw, dy, x, rstd, w, w_offset, accumulate, C, T, scratch);
}

void cuda_op_layernorm_fwd(Device *d, DType t, void *y, float *mean, float *rstd, const void *x, const float *w,
                           const float *b, float eps, int C, int T)
{
    RUN(layernorm_fwd, t, y, mean, rstd, x, w, b, eps, C, T);
}

void cuda_op_layernorm_bwd(Device *d, DType t, void *dx, float *dw, float *db, const void *dy, const void *x,
                           const float *mean, const float *rstd, const float *w, bool accumulate, int C, int T)
{
    void *scratch = dw || db ? cuda_scratch(d, cuda_column_sums_scratch(C, T)) : NULL;
    RUN(layernorm_bwd, t, dx, dw, db, dy, x, mean, rstd, w, accumulate, C, T, scratch);
}

void cuda_op_rope(Device *d, DType t, void *x, int64_t ldx, const float *cos, const float *sin, const int32_t *pos,
                  int heads, int D, int rot, bool inverse, int T)
{
    RUN(rope, t, x, ldx, cos, sin, pos, heads, D, rot, inverse, T);
}

void cuda_op_swiglu_fwd(Device *d, DType t, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T)
{
    RUN(swiglu_fwd, t, a, lda, gu, ldgu, F, T);
}

void cuda_op_swiglu_bwd(Device *d, DType t, void *dgu, void *a, int64_t lda, const void *da, const void *gu,
                        int64_t ldgu, int F, int T)
{
    RUN(swiglu_bwd, t, dgu, a, lda, da, gu, ldgu, F, T);
}

void cuda_op_gelu_fwd(Device *d, DType t, Gelu kind, void *y, const void *x, size_t n)
{
    RUN(gelu_fwd, t, kind, y, x, n);
}

void cuda_op_gelu_bwd(Device *d, DType t, Gelu kind, void *dx, const void *dy, const void *x, size_t n)
{
    RUN(gelu_bwd, t, kind, dx, dy, x, n);
}

void cuda_op_geglu_fwd(Device *d, DType t, Gelu kind, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T)
{
    RUN(geglu_fwd, t, kind, a, lda, gu, ldgu, F, T);
}

void cuda_op_geglu_bwd(Device *d, DType t, Gelu kind, void *dgu, void *a, int64_t lda, const void *da, const void *gu,
                       int64_t ldgu, int F, int T)
{
    RUN(geglu_bwd, t, kind, dgu, a, lda, da, gu, ldgu, F, T);
}

void cuda_op_gather_rows(Device *d, DType t, void *y, const void *x, const int32_t *idx, int C, int rows)
{
    RUN(gather_rows, t, y, x, idx, C, rows);
}

void cuda_op_scatter_rows(Device *d, DType t, void *x, int64_t ldx, const void *y, const int32_t *idx, int C, int rows,
                          int T)
{
    void *scratch = cuda_scratch(d, cuda_scatter_rows_scratch(T));
    RUN(scatter_rows, t, x, ldx, y, idx, C, rows, T, scratch);
}

void cuda_op_dropout(Device *d, DType t, void *y, int64_t ldy, const void *x, int64_t ldx, const uint64_t *row_key,
                     uint64_t stream, float p, bool accumulate, int64_t c0, int C, int T)
{
    RUN(dropout, t, y, ldy, x, ldx, row_key, stream, p, accumulate, c0, C, T);
}

void cuda_op_convert(Device *d, void *dst, DType dst_t, const void *src, DType src_t, size_t n)
{
    RUN(convert, dst, dst_t, src, src_t, n);
}

// ---- attention ------------------------------------------------------------------------------------------------------
static size_t list_bytes(const AttnShape *a)
{
    return (size_t)a->S * sizeof(int32_t);
}

static bool same_sequences(const AttnShape *a, const AttnShape *b)
{
    return a->S == b->S && a->NH == b->NH && a->KV == b->KV && a->window == b->window &&
           !memcmp(a->q_start, b->q_start, list_bytes(a)) && !memcmp(a->q_len, b->q_len, list_bytes(a)) &&
           !memcmp(a->k_start, b->k_start, list_bytes(a)) && !memcmp(a->k_len, b->k_len, list_bytes(a));
}

static void keep_sequences(CudaAttention *k, const AttnShape *a)
{
    const size_t S = (size_t)a->S;
    k->lists = xrealloc(k->lists, 4 * S * sizeof *k->lists + 1);
    const int32_t *from[] = {a->q_start, a->q_len, a->k_start, a->k_len};
    for (size_t i = 0; i < 4; i++) memcpy(k->lists + i * S, from[i], S * sizeof *k->lists);
    k->shape = *a;
    k->shape.q_start = k->lists;
    k->shape.q_len = k->lists + S;
    k->shape.k_start = k->lists + 2 * S;
    k->shape.k_len = k->lists + 3 * S;
}

static bool table_room(Device *d, size_t bytes)
{
    CudaAttention *k = &cuda_of(d)->attention;
    const size_t wanted = cuda_room(bytes);
    if (bytes <= k->bytes) return true;
    if (!cuda_of(d)->dry) {
        (void)cudaStreamSynchronize(cuda_stream(d)); // the old one may be in use
        cudaFree(k->table);
        k->table = NULL;
        k->bytes = 0;
        if (cuda_note(d, cudaMalloc(&k->table, wanted), "memory for attention's table")) return false;
    }
    k->bytes = wanted;
    return true;
}

// The kernels' table of what is to be done, on the device. All layers of a micro-batch ask for the same one.
static const void *attention_table(Device *d, const AttnShape *a)
{
    CudaAttention *k = &cuda_of(d)->attention;
    if (k->lists && same_sequences(&k->shape, a)) return k->table;
    const size_t bytes = cuda_attn_table_bytes(a);
    if (!table_room(d, bytes) || cuda_skips(d)) return NULL;
    void *host = xmalloc(bytes);
    cuda_attn_table(host, a);
    const int status = d->upload(d, k->table, host, bytes);
    free(host);
    if (status < 0) return NULL;
    keep_sequences(k, a);
    return k->table;
}

static int64_t query_rows(const AttnShape *a)
{
    int64_t rows = 0;
    for (int s = 0; s < a->S; s++) rows = MAX(rows, (int64_t)a->q_start[s] + a->q_len[s]);
    return rows;
}

void cuda_op_attn_fwd(Device *d, DType t, void *o, int64_t ldo, float *lse, const void *q, int64_t ldq, const void *k,
                      const void *v, int64_t ldkv, const AttnShape *a)
{
    const void *table = attention_table(d, a);
    const size_t bytes = cuda_attn_fwd_scratch(a);
    void *scratch = bytes ? cuda_scratch(d, bytes) : NULL;
    if (table && (scratch || !bytes)) RUN(attn_fwd, t, o, ldo, lse, q, ldq, k, v, ldkv, a, table, scratch);
}

void cuda_op_attn_bwd(Device *d, DType t, void *dq, int64_t lddq, void *dk, void *dv, int64_t lddkv, const void *dout,
                      const void *o, int64_t ldo, const float *lse, const void *q, int64_t ldq, const void *k,
                      const void *v, int64_t ldkv, const AttnShape *a)
{
    const void *table = attention_table(d, a);
    float *delta = cuda_scratch(d, (size_t)a->NH * (size_t)query_rows(a) * sizeof *delta);
    if (table && delta)
        RUN(attn_bwd, t, dq, lddq, dk, dv, lddkv, dout, o, ldo, lse, q, ldq, k, v, ldkv, a, table, delta);
}

// ---- sampling -------------------------------------------------------------------------------------------------------
void cuda_op_sample(Device *d, int32_t *id, const float *logits, const uint64_t *draw, const SamplerConfig *c, int V,
                    int n)
{
    ASSERT(V <= SAMPLE_MOST_TOKENS);
    RUN(sample, id, logits, draw, c, V, n);
}

// ---- optimizer and gradient sums ------------------------------------------------------------------------------------
void cuda_op_adamw(Device *d, float *p, float *m, float *v, const float *g, float g_scale, float lr, float beta1,
                   float beta2, float eps, float wd, int64_t step, size_t n)
{
    RUN(adamw, p, m, v, g, g_scale, lr, beta1, beta2, eps, wd, step, n);
}

void cuda_op_row_squares(Device *d, double *out, const float *x, int64_t rows, int64_t K)
{
    if (rows <= 0) return;
    const size_t bytes = (size_t)rows * sizeof *out, own = cuda_row_squares_scratch(rows, K);
    char *scratch = cuda_scratch(d, ROUND_UP(bytes, ARENA_ALIGN) + own);
    if (!scratch) return;
    RUN(row_squares, (double *)(void *)scratch, x, rows, K, scratch + ROUND_UP(bytes, ARENA_ALIGN));
    cuda_deliver(d, out, scratch, bytes);
}

void cuda_op_fix_add(Device *d, int64_t *acc, const float *g, size_t n, int64_t limit, int *overflow)
{
    RUN(fix_add, acc, g, n, limit, cuda_flag(d, overflow));
}

void cuda_op_acc_add(Device *d, void *acc, const void *x, DType t, size_t n)
{
    RUN(acc_add, acc, x, t, n);
}

void cuda_op_fix_read(Device *d, float *g, const int64_t *acc, size_t n)
{
    RUN(fix_read, g, acc, n);
}
