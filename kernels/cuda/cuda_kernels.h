// cuda_kernels: the launchers of the CUDA device, one per kernel or small chain of kernels; ops.def says what each op computes.
// Plain C, so that device code stays in the .cu files. t: DT_F32 or DT_BF16. Weights are rows of K elements, one after another.
//
// Pointers are device memory of any alignment; 16 bytes, with rows of a multiple of 16 bytes, is what is fast. Bits depend on
// shapes and on that. Work is put on `stream` and errors are left for cudaGetLastError. `scratch`: as many bytes as NAME_scratch
// says, 16-byte aligned, undefined before and after; it belongs to the call until `stream` has come past it.
#pragma once
#include "attention.h"
#include "dtype.h"
#include "gelu.h"
#include "quant.h"
#include "sample.h"
#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- elementwise.cu ----
void cuda_embed_fwd(DType t, void *x, DType table_t, const void *table, const int32_t *tokens, float scale, int V,
                    int C, int T, cudaStream_t stream);
void cuda_embed_bwd(DType t, float *dtable, const void *dx, const int32_t *tokens, float scale, int V, int C, int T,
                    cudaStream_t stream);
void cuda_rope(DType t, void *x, int64_t ldx, const float *cos, const float *sin, const int32_t *pos, int heads, int D,
               int rot, bool inverse, int T, cudaStream_t stream);
void cuda_gather_rows(DType t, void *y, const void *x, const int32_t *idx, int C, int rows, cudaStream_t stream);
size_t cuda_scatter_rows_scratch(int T);
void cuda_scatter_rows(DType t, void *x, int64_t ldx, const void *y, const int32_t *idx, int C, int rows, int T,
                       void *scratch, cudaStream_t stream);
void cuda_dropout(DType t, void *y, int64_t ldy, const void *x, int64_t ldx, const uint64_t *row_key,
                  uint64_t philox_stream, float p, bool accumulate, int64_t c0, int C, int T, cudaStream_t stream);
// F32, BF16 and F16 in any direction; the same type of any kind is copied.
void cuda_convert(void *dst, DType dst_t, const void *src, DType src_t, size_t n, cudaStream_t stream);
// The same of a matrix with row strides: what linear_pack and linear_unpack do
void cuda_convert_rows(void *dst, DType dst_t, int64_t ld_dst, const void *src, DType src_t, int64_t ld_src,
                       int64_t width, int64_t rows, cudaStream_t stream);

// ---- quant.cu ----
// src: blocks side by side, at an even address; it may be pinned memory of the host. dst: aligned to two elements
void cuda_dequantize(void *dst, DType dst_t, const void *src, Quant format, size_t blocks, cudaStream_t stream);

// ---- activation.cu ----
void cuda_swiglu_fwd(DType t, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T, cudaStream_t stream);
void cuda_swiglu_bwd(DType t, void *dgu, void *a, int64_t lda, const void *da, const void *gu, int64_t ldgu, int F,
                     int T, cudaStream_t stream);
void cuda_gelu_fwd(DType t, Gelu kind, void *y, const void *x, size_t n, cudaStream_t stream);
void cuda_gelu_bwd(DType t, Gelu kind, void *dx, const void *dy, const void *x, size_t n, cudaStream_t stream);
void cuda_geglu_fwd(DType t, Gelu kind, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T,
                    cudaStream_t stream);
void cuda_geglu_bwd(DType t, Gelu kind, void *dgu, void *a, int64_t lda, const void *da, const void *gu, int64_t ldgu,
                    int F, int T, cudaStream_t stream);

// ---- norm.cu ----
void cuda_rmsnorm_fwd(DType t, void *y, int64_t ldy, float *rstd, const void *x, const float *w, float w_offset,
                      float eps, int C, int T, cudaStream_t stream);
size_t cuda_rmsnorm_bwd_scratch(int C, int T); // for dw; 16-byte aligned
void cuda_rmsnorm_bwd(DType t, void *dx, int64_t lddx, float *dw, const void *dy, const void *x, const float *rstd,
                      const float *w, float w_offset, bool accumulate, int C, int T, void *scratch,
                      cudaStream_t stream);

// ---- layernorm.cu ----
// scratch of cuda_column_sums_scratch(C, T), for dw and db
void cuda_layernorm_fwd(DType t, void *y, float *mean, float *rstd, const void *x, const float *w, const float *b,
                        float eps, int C, int T, cudaStream_t stream);
void cuda_layernorm_bwd(DType t, void *dx, float *dw, float *db, const void *dy, const void *x, const float *mean,
                        const float *rstd, const float *w, bool accumulate, int C, int T, void *scratch,
                        cudaStream_t stream);

// ---- columns.cu ----
size_t cuda_column_sums_scratch(int N, int T); // of bias_grad, layernorm_bwd, and scale_cols_bwd with dm
void cuda_bias_grad(DType t, float *db, const void *dy, int64_t lddy, int N, bool accumulate, int T, void *scratch,
                    cudaStream_t stream);

// ---- dora.cu ----
// gain NULL: ones, so that this adds a bias and a residual to a product
void cuda_scale_cols(DType t, void *y, int64_t ldy, const void *u, int64_t ldu, const float *gain, const float *bias,
                     const void *residual, int N, int T, cudaStream_t stream);
void cuda_scale_cols_bwd(DType t, void *du, int64_t lddu, float *dm, const void *dy, int64_t lddy, const void *u,
                         int64_t ldu, const float *gain, const float *inv_norm, bool accumulate, int N, int T,
                         void *scratch, cudaStream_t stream);
// Products in f32 whatever the operands' types
size_t cuda_lora_row_squares_scratch(int N, int K);
void cuda_lora_row_squares(float *out, DType w_t, const void *w, int64_t ldw, DType a_t, const void *a, int64_t lda,
                           DType b_t, const void *b, int64_t ldb, float scale, int N, int K, int R, void *scratch,
                           cudaStream_t stream);
void cuda_dora_gain(float *gain, float *inv_norm, float *gain_less, float *magnitude, bool fresh, int N,
                    cudaStream_t stream);

// ---- optim.cu ----
void cuda_adamw(float *p, float *m, float *v, const float *g, float g_scale, float lr, float beta1, float beta2,
                float eps, float wd, int64_t step, size_t n, cudaStream_t stream);
size_t cuda_row_squares_scratch(int64_t rows, int64_t K);
// out is device memory
void cuda_row_squares(double *out, const float *x, int64_t rows, int64_t K, void *scratch, cudaStream_t stream);
// overflow is device memory: it becomes 1 or stays
void cuda_fix_add(int64_t *acc, const float *g, size_t n, int64_t limit, int *overflow, cudaStream_t stream);
void cuda_acc_add(void *acc, const void *x, DType t, size_t n, cudaStream_t stream);
void cuda_fix_read(float *g, const int64_t *acc, size_t n, cudaStream_t stream);

// ---- attention.cu ----
// The kernels find their work in a table made from an AttnShape's sequences, S, NH / KV and window; it serves forward and backward
// of every layer. cuda_attn_table fills host memory of cuda_attn_table_bytes, which the caller copies to the device; the launchers
// read AttnShape on the host as well. Heads up to 256 columns; q_len * (NH / KV)² < 2^32; scale > 0.
// bf16 runs on the tensor core when D % 8 == 0 and all rows begin at multiples of 16 bytes. Forward, a sequence of up to 8 queries
// that sees more than 128 keys is split over its keys, and only then is there scratch.
size_t cuda_attn_table_bytes(const AttnShape *a);
void cuda_attn_table(void *host_table, const AttnShape *a);
size_t cuda_attn_fwd_scratch(const AttnShape *a);
void cuda_attn_fwd(DType t, void *o, int64_t ldo, float *lse, const void *q, int64_t ldq, const void *k, const void *v,
                   int64_t ldkv, const AttnShape *a, const void *table, void *scratch, cudaStream_t stream);
// delta: scratch (NH, total queries)
void cuda_attn_bwd(DType t, void *dq, int64_t lddq, void *dk, void *dv, int64_t lddkv, const void *dout, const void *o,
                   int64_t ldo, const float *lse, const void *q, int64_t ldq, const void *k, const void *v,
                   int64_t ldkv, const AttnShape *a, const void *table, float *delta, cudaStream_t stream);

// ---- head.cu ----
// Over a chunk of rows of logits z (rows, V) f32, row stride ldz, before the cap; V may be a shard's.
// logp, lse, entropy: as head_fwd; each may be NULL
void cuda_head_stats(float *logp, float *lse, float *entropy, const float *z, int64_t ldz, const int32_t *target,
                     float softcap, int V, int rows, cudaStream_t stream);
// The logits become their gradient, dz of head_bwd, of type t: bf16 takes the first half of each row, at row stride 2 ldz.
void cuda_head_grad(DType t, float *z, int64_t ldz, const float *weight, const float *lse, const int32_t *target,
                    float softcap, int V, int rows, cudaStream_t stream);
// Both, with p and lse of these V alone; logp, lse may be NULL
void cuda_head_loss(DType t, float *logp, float *lse, float *z, int64_t ldz, const float *weight, const int32_t *target,
                    float softcap, int V, int rows, cudaStream_t stream);
void cuda_softcap(float *z, float cap, size_t n, cudaStream_t stream); // z (n) = cap · tanh(z / cap)

// ---- sample.cu ----
void cuda_sample(int32_t *id, const float *logits, const uint64_t *draw, const SamplerConfig *c, int V, int n,
                 cudaStream_t stream);

// ---- lora.cu ----
// bf16, ranks up to 32; b (N,R)
size_t cuda_lora_bwd_scratch(int N, int R, int T);
void cuda_lora_bwd(void *ds, int64_t ldds, float *db, const void *dy, int64_t lddy, const void *s, int64_t lds,
                   const void *b, int64_t ldb, float scale, bool accumulate, int N, int R, int T, void *scratch,
                   cudaStream_t stream);
// Whether it does that at all, and moves less memory than the two products would
bool cuda_lora_bwd_pays(DType t, int N, int R, int T);

#ifdef __cplusplus
}
#endif
