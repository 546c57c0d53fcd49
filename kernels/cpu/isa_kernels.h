// isa_kernels: the table of inner loops that exist once per instruction set. A line names a loop; kernels_ISA.c fill a table
// each from the same sources (*_kernels.h). Ops pick a table by their device and know nothing else of instruction sets.
#pragma once
#include "cpu.h"

// One call of attn_fwd or attn_bwd, as its tasks see it.
typedef struct AttnJob {
    DType t;
    const AttnShape *a;
    int TQ; // rows of lse
    const void *q, *k, *v;
    int64_t ldq, ldkv;
    void *o; // forward: written; backward: read
    int64_t ldo;
    float *lse;
    const void *dout; // backward only, as what follows; row stride ldo
    void *dq;
    int64_t lddq;
} AttnJob;

enum { ATTN_TASK_ROWS = 512 }; // most query rows of a forward task

// Columns of an f32 row that holds D values, whatever the instruction set's panel is.
enum { ATTN_COLUMNS = 32, ATTN_SPARE_KEYS = 16 };
static inline int attn_columns(int D)
{
    return ROUND_UP(D, ATTN_COLUMNS);
}

enum { SUM_BLOCK = 4096 }; // elements of a partial sum of squares

typedef struct AdamStep {
    float g_scale, beta1, beta2, eps, lr, decay; // decay = 1 - lr wd
    float c1, sqrt_c2;                           // bias corrections
} AdamStep;

#define ISA_KERNELS(X)                                                                                                 \
    /* one row of the op of the same name; up: where in the row of gu the second half begins */                        \
    X(float, rmsnorm_fwd_row, (DType t, void *y, const void *x, const float *w, float w_offset, float eps, int C))     \
    X(void, rmsnorm_bwd_row,                                                                                           \
      (DType t, void *dx, float *dw, const void *dy, const void *x, float rstd, const float *w, float w_offset,        \
       bool accumulate, int C))                                                                                        \
    X(void, rope_row, (DType t, void *x, const float *cos, const float *sin, float sign, int heads, int D, int rot))   \
    X(void, swiglu_fwd_row, (DType t, void *a, const void *gu, int64_t up, int F))                                     \
    X(void, swiglu_bwd_row, (DType t, void *dgu, void *a, const void *da, const void *gu, int64_t up, int F))          \
    X(void, layernorm_fwd_row,                                                                                         \
      (DType t, void *y, float *mean, float *rstd, const void *x, const float *w, const float *b, float eps, int C))   \
    /* sums (2 C) f32 += dy z, then dy, unless NULL */                                                                 \
    X(void, layernorm_bwd_row,                                                                                         \
      (DType t, void *dx, float *sums, const void *dy, const void *x, float mean, float rstd, const float *w,          \
       bool accumulate, int C))                                                                                        \
    X(void, geglu_fwd_row, (DType t, Gelu kind, void *a, const void *gu, int64_t up, int F))                           \
    X(void, geglu_bwd_row,                                                                                             \
      (DType t, Gelu kind, void *dgu, void *a, const void *da, const void *gu, int64_t up, int F))                     \
    X(void, dropout_row,                                                                                               \
      (DType t, void *y, const void *x, uint64_t key, uint64_t stream, float p, bool accumulate, int64_t c0, int C))   \
    /* n elements of the op of the same name */                                                                        \
    X(void, gelu_fwd_run, (DType t, Gelu kind, void *y, const void *x, int n))                                         \
    X(void, gelu_bwd_run, (DType t, Gelu kind, void *dx, const void *dy, const void *x, int n))                        \
    /* y (n) f32 += scale x */                                                                                         \
    X(void, add_scaled, (DType t, float *y, const void *x, float scale, int n))                                        \
    /* between F32 and BF16 */                                                                                         \
    X(void, convert_run, (void *dst, DType dst_t, const void *src, DType src_t, int n))                                \
    /* query rows [row0, row0 + rows) of a sequence and k/v head, rows counted over (query, head of the group) */      \
    X(void, attn_fwd_task, (const AttnJob *job, int s, int kv_head, int row0, int rows, void *scratch))                \
    X(size_t, attn_fwd_scratch, (DType t, int D))                                                                      \
    /* one query head of a sequence: stores dq, and this head's share of dk and dv without `scale`, f32 */             \
    /* (k_len + ATTN_SPARE_KEYS, 2, attn_columns(D)) */                                                                \
    X(void, attn_bwd_task, (const AttnJob *job, int s, int head, float *dkv, void *scratch))                           \
    X(size_t, attn_bwd_scratch, (DType t, int D))                                                                      \
    /* y (D) = scale times the sum, in order, of `count` rows that lie `stride` apart */                               \
    X(void, attn_sum_heads, (DType t, void *y, const float *x, int64_t stride, int count, float scale, int D))         \
    /* one row of the op of the same name; sum (N) f32 += dy u unless NULL */                                          \
    X(void, scale_cols_row,                                                                                            \
      (DType t, void *y, const void *u, const float *gain, const float *bias, const void *residual, int N))            \
    X(void, scale_cols_bwd_row,                                                                                        \
      (DType t, void *du, float *sum, const void *dy, const void *u, const float *gain, int N))                        \
    /* sum[j] += Σ_i x[i][j]² of rows of a panel's width */                                                          \
    X(void, add_squares, (double *sum, const float *x, int rows))                                                      \
    X(void, adamw_run, (const AdamStep *a, float *p, float *m, float *v, const float *g, int n))                       \
    X(double, sum_squares_run, (const float *x, int n))                                                                \
    /* out[r] = Σ_k x[r][k]², rows of K <= SUM_BLOCK */                                                              \
    X(void, row_squares_run, (double *out, const float *x, int64_t rows, int K))

typedef struct IsaKernels {
#define X(result, name, args) result(*name) args;
    ISA_KERNELS(X)
#undef X
} IsaKernels;

extern const IsaKernels kernels_generic, kernels_avx2, kernels_avx512;

static inline const IsaKernels *isa_kernels(const Device *d)
{
#if defined(__x86_64__)
    static const IsaKernels *const by_level[ISA_COUNT] = {
        [ISA_GENERIC] = &kernels_generic, [ISA_AVX2] = &kernels_avx2, [ISA_AVX512_BF16] = &kernels_avx512};
    return by_level[cpu_isa_of(d)];
#else
    (void)d;
    return &kernels_generic;
#endif
}

// Threads for an op of about `work` elementary steps: waking the others costs a few microseconds. Results never depend on it.
static inline int cpu_team(const Device *d, int64_t work)
{
    enum { WORTH_WAKING = 1 << 14 };
    return work < WORTH_WAKING ? 1 : cpu_threads(d);
}
