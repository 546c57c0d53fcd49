// elementwise: embedding, RMSNorm, rotary positions, SwiGLU, row gather and scatter, dropout, dtype
// conversion. Owns the references (NAME_ref: plain loops, f64 inside) and the drivers (NAME: rows dealt to
// threads). Does not own the inner loops, which elementwise_kernels.h spells once for all instruction sets.
//
//   embed      x[i] = scale * E[token[i]]                      dE[token[i]] += scale * dx[i]
//   rmsnorm    r = 1 / sqrt(mean(x^2) + eps), u = w + w_offset  y = u x r                     (Zhang &
//   Sennrich 2019)
//              dx = r (u dy) - x r^3/C sum(u dy x)              dw += sum over rows of dy x r
//   rope       (a, b) = (x[i], x[i + rot/2])  ->  (a cos - b sin, b cos + a sin)              (Su et al.
//   2021, half-split form) swiglu     s = sigmoid(g): a = u g s      du = da g s      dg = da u s (1 + g (1 -
//   s))    (Shazeer 2020) dropout    y = x / (1 - p) where the Philox word of (row, column) says "kept",
//   else 0
// All are bound by memory: bytes per element (bf16) are norm 4 forward, 6 to 8 backward; rope 4; swiglu 6
// and 14.
#include "f16.h"
#include "gemm.h"
#include "isa_kernels.h"
#include <math.h>
#include <string.h>

// ---- references
// -----------------------------------------------------------------------------------------------------
void embed_fwd_ref(Device *d, DType t, void *x, const Packed *table, const int32_t *tokens, float scale, int T)
{
    int C = table->K;
    float *row = cpu_thread_scratch(d, (size_t)C * sizeof(float));
    for (int64_t i = 0; i < T; i++) {
        bool here = cpu_in_shard(tokens[i], table->N);
        if (here) cpu_unpack_rows(table, tokens[i], 1, row, DT_F32, C);
        for (int c = 0; c < C; c++) cpu_store(x, t, i * C + c, here ? scale * row[c] : 0);
    }
}

void embed_bwd_ref(Device *d, DType t, float *dtable, const void *dx, const int32_t *tokens, float scale, int V, int C,
                   int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++)
        for (int c = 0; cpu_in_shard(tokens[i], V) && c < C; c++)
            dtable[(int64_t)tokens[i] * C + c] += scale * cpu_load(dx, t, i * C + c);
}

void rmsnorm_fwd_ref(Device *d, DType t, void *y, int64_t ldy, float *rstd, const void *x, const float *w,
                     float w_offset, float eps, int C, int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++) {
        double sum = 0;
        for (int c = 0; c < C; c++) sum += (double)cpu_load(x, t, i * C + c) * cpu_load(x, t, i * C + c);
        double r = 1 / sqrt(sum / C + (double)eps);
        rstd[i] = (float)r;
        for (int c = 0; c < C; c++)
            cpu_store(y, t, i * ldy + c, (float)(((double)w[c] + w_offset) * cpu_load(x, t, i * C + c) * r));
    }
}

void rmsnorm_bwd_ref(Device *d, DType t, void *dx, int64_t lddx, float *dw, const void *dy, const void *x,
                     const float *rstd, const float *w, float w_offset, bool accumulate, int C, int T)
{
    (void)d;
    for (int c = 0; dw && c < C; c++) {
        double sum = 0;
        for (int64_t i = 0; i < T; i++) sum += (double)cpu_load(dy, t, i * C + c) * cpu_load(x, t, i * C + c) * rstd[i];
        dw[c] += (float)sum;
    }
    for (int64_t i = 0; i < T; i++) {
        double r = rstd[i], dot = 0;
        for (int c = 0; c < C; c++)
            dot += ((double)w[c] + w_offset) * cpu_load(dy, t, i * C + c) * cpu_load(x, t, i * C + c);
        for (int c = 0; c < C; c++) {
            double g = ((double)w[c] + w_offset) * cpu_load(dy, t, i * C + c);
            double v = r * g - cpu_load(x, t, i * C + c) * r * r * r / C * dot;
            cpu_store(dx, t, i * lddx + c, (float)(accumulate ? cpu_load(dx, t, i * lddx + c) + v : v));
        }
    }
}

void rope_ref(Device *d, DType t, void *x, int64_t ldx, const float *cos, const float *sin, const int32_t *pos,
              int heads, int D, int rot, bool inverse, int T)
{
    (void)d;
    int half = rot / 2;
    for (int64_t i = 0; i < T; i++)
        for (int64_t j = 0; j < (int64_t)heads * half; j++) {
            int64_t at = i * ldx + j / half * D + j % half, angle = (int64_t)pos[i] * half + j % half;
            double a = cpu_load(x, t, at), b = cpu_load(x, t, at + half);
            double c = cos[angle], s = inverse ? -sin[angle] : sin[angle];
            cpu_store(x, t, at, (float)(a * c - b * s));
            cpu_store(x, t, at + half, (float)(b * c + a * s));
        }
}

void swiglu_fwd_ref(Device *d, DType t, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++)
        for (int c = 0; c < F; c++) {
            double g = cpu_load(gu, t, i * ldgu + c), u = cpu_load(gu, t, i * ldgu + ldgu / 2 + c);
            cpu_store(a, t, i * lda + c, (float)(u * g / (1 + exp(-g))));
        }
}

void swiglu_bwd_ref(Device *d, DType t, void *dgu, void *a, int64_t lda, const void *da, const void *gu, int64_t ldgu,
                    int F, int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++)
        for (int c = 0; c < F; c++) {
            double g = cpu_load(gu, t, i * ldgu + c), u = cpu_load(gu, t, i * ldgu + ldgu / 2 + c);
            double s = 1 / (1 + exp(-g)), da_c = cpu_load(da, t, i * F + c);
            if (a) cpu_store(a, t, i * lda + c, (float)(u * g * s));
            cpu_store(dgu, t, i * ldgu + c, (float)(da_c * u * s * (1 + g * (1 - s))));
            cpu_store(dgu, t, i * ldgu + ldgu / 2 + c, (float)(da_c * g * s));
        }
}

void gather_rows_ref(Device *d, DType t, void *y, const void *x, const int32_t *idx, int C, int rows)
{
    (void)d;
    for (int64_t i = 0; i < rows; i++)
        for (int c = 0; c < C; c++) cpu_store(y, t, i * C + c, cpu_load(x, t, (int64_t)idx[i] * C + c));
}

void scatter_rows_ref(Device *d, DType t, void *x, int64_t ldx, const void *y, const int32_t *idx, int C, int rows,
                      int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++)
        for (int c = 0; c < C; c++) cpu_store(x, t, i * ldx + c, 0);
    for (int64_t i = 0; i < rows; i++)
        for (int c = 0; c < C; c++) cpu_store(x, t, idx[i] * ldx + c, cpu_load(y, t, i * C + c));
}

// Element n = c0 + c of row i draws word n % 4 of philox(key = row_key[i], counter = (stream, n / 4)) and is kept when
// u32_to_unit(word) >= p.
void dropout_ref(Device *d, DType t, void *y, int64_t ldy, const void *x, int64_t ldx, const uint64_t *row_key,
                 uint64_t stream, float p, bool accumulate, int64_t c0, int C, int T)
{
    (void)d;
    float scale = 1 / (1 - p);
    for (int64_t i = 0; i < T; i++)
        for (int c = 0; c < C; c++) {
            uint32_t word[4];
            philox(row_key[i], stream, (uint64_t)(c0 + c) / 4, word);
            float v = u32_to_unit(word[(c0 + c) % 4]) >= p ? cpu_load(x, t, i * ldx + c) * scale : 0;
            cpu_store(y, t, i * ldy + c, accumulate ? cpu_load(y, t, i * ldy + c) + v : v);
        }
}

static uint16_t f32_to_f16(float f) // nearest even; NaN stays NaN, what is too large becomes infinity
{
    union {
        float f;
        uint32_t u;
    } v = {.f = f};
    uint16_t sign = (uint16_t)(v.u >> 16 & 0x8000);
    v.u &= 0x7fffffffu;
    if (v.u > 0x7f800000u) return sign | 0x7e00;
    if (v.u >= 0x477ff000u) return sign | 0x7c00; // 65520 and up
    if (v.u < 0x38800000u) {                      // subnormal half: let the adder round at 2^-24
        v.f += 0.5f;
        return sign | (uint16_t)(v.u - 0x3f000000u);
    }
    v.u += 0xfffu + (v.u >> 13 & 1);
    return sign | (uint16_t)((v.u - (112u << 23)) >> 13);
}

static float load_any(const void *p, DType t, size_t i)
{
    return t == DT_F16 ? f16_to_f32(((const uint16_t *)p)[i]) : cpu_load(p, t, (int64_t)i);
}

void convert_ref(Device *d, void *dst, DType dst_t, const void *src, DType src_t, size_t n)
{
    (void)d;
    if (dst_t == src_t) {
        memmove(dst, src, n * dtype_size(src_t));
        return;
    }
    ASSERT(src_t == DT_F32 || src_t == DT_BF16 || src_t == DT_F16);
    ASSERT(dst_t == DT_F32 || dst_t == DT_BF16 || dst_t == DT_F16);
    for (size_t i = 0; i < n; i++) {
        float v = load_any(src, src_t, i);
        if (dst_t == DT_F16)
            ((uint16_t *)dst)[i] = f32_to_f16(v);
        else
            cpu_store(dst, dst_t, (int64_t)i, v);
    }
}

// ---- tuned ----------------------------------------------------------------------------------------------------------
// A row is one call of an inner loop; rows are independent, so nothing depends on who takes which.
// A row of a packed table lies in words that are PANEL apart (gemm.h).
static void embed_row(DType t, void *x, const Packed *table, int token, float scale)
{
    const uint32_t *word = packed_panel(table, token / PANEL) + token % PANEL;
    for (int c = 0; c < table->K; word += PANEL)
        if (table->t == DT_BF16) {
            cpu_store(x, t, c, scale * bf16_to_f32((bf16_t)*word));
            if (c + 1 < table->K) cpu_store(x, t, c + 1, scale * bf16_to_f32((bf16_t)(*word >> 16)));
            c += 2;
        } else {
            float v;
            memcpy(&v, word, sizeof v);
            cpu_store(x, t, c++, scale * v);
        }
}

void embed_fwd(Device *d, DType t, void *x, const Packed *table, const int32_t *tokens, float scale, int T)
{
    int C = table->K;
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *C))
    for (int64_t i = 0; i < T; i++)
        if (cpu_in_shard(tokens[i], table->N))
            embed_row(t, cpu_row(x, t, i * C), table, tokens[i], scale);
        else
            memset(cpu_row(x, t, i * C), 0, (size_t)C * dtype_size(t));
}

// A thread owns channels, so that rows of the same token are added in token order.
void embed_bwd(Device *d, DType t, float *dtable, const void *dx, const int32_t *tokens, float scale, int V, int C,
               int T)
{
    enum { CHANNELS = 64 };
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *C))
    for (int c = 0; c < C; c += CHANNELS)
        for (int64_t i = 0; i < T; i++)
            if (cpu_in_shard(tokens[i], V))
                k->add_scaled(t, dtable + (int64_t)tokens[i] * C + c, cpu_row(dx, t, i * C + c), scale,
                              MIN(CHANNELS, C - c));
}

void rmsnorm_fwd(Device *d, DType t, void *y, int64_t ldy, float *rstd, const void *x, const float *w, float w_offset,
                 float eps, int C, int T)
{
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *C))
    for (int64_t i = 0; i < T; i++)
        rstd[i] = k->rmsnorm_fwd_row(t, cpu_row(y, t, i * ldy), cpu_row(x, t, i * C), w, w_offset, eps, C);
}

void cpu_add_blocks(float *blocks, int count, int C)
{
    for (int64_t step = 1; step < count; step *= 2)
        for (int64_t b = 0; b + step < count; b += 2 * step)
            for (int c = 0; c < C; c++) blocks[b * C + c] += blocks[(b + step) * C + c];
}

void rmsnorm_bwd(Device *d, DType t, void *dx, int64_t lddx, float *dw, const void *dy, const void *x,
                 const float *rstd, const float *w, float w_offset, bool accumulate, int C, int T)
{
    enum { BLOCK = 64 }; // rows that share a partial sum of dw
    const IsaKernels *k = isa_kernels(d);
    int blocks = (T + BLOCK - 1) / BLOCK;
    float *partial = dw ? cpu_shared_scratch(d, (size_t)blocks * C * sizeof *partial) : NULL;
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *C))
    for (int64_t b = 0; b < blocks; b++) {
        float *sum = dw ? partial + b * C : NULL;
        if (dw) memset(sum, 0, (size_t)C * sizeof *sum);
        for (int64_t i = b * BLOCK; i < MIN(T, (b + 1) * BLOCK); i++)
            k->rmsnorm_bwd_row(t, cpu_row(dx, t, i * lddx), sum, cpu_row(dy, t, i * C), cpu_row(x, t, i * C), rstd[i],
                               w, w_offset, accumulate, C);
    }
    if (!dw || !blocks) return;
    cpu_add_blocks(partial, blocks, C);
    for (int c = 0; c < C; c++) dw[c] += partial[c];
}

void rope(Device *d, DType t, void *x, int64_t ldx, const float *cos, const float *sin, const int32_t *pos, int heads,
          int D, int rot, bool inverse, int T)
{
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *heads *rot))
    for (int64_t i = 0; i < T; i++) {
        int64_t angle = (int64_t)pos[i] * (rot / 2);
        k->rope_row(t, cpu_row(x, t, i * ldx), cos + angle, sin + angle, inverse ? -1 : 1, heads, D, rot);
    }
}

void swiglu_fwd(Device *d, DType t, void *a, int64_t lda, const void *gu, int64_t ldgu, int F, int T)
{
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *F))
    for (int64_t i = 0; i < T; i++) k->swiglu_fwd_row(t, cpu_row(a, t, i * lda), cpu_row(gu, t, i * ldgu), ldgu / 2, F);
}

void swiglu_bwd(Device *d, DType t, void *dgu, void *a, int64_t lda, const void *da, const void *gu, int64_t ldgu,
                int F, int T)
{
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *F))
    for (int64_t i = 0; i < T; i++)
        k->swiglu_bwd_row(t, cpu_row(dgu, t, i * ldgu), a ? cpu_row(a, t, i * lda) : NULL, cpu_row(da, t, i * F),
                          cpu_row(gu, t, i * ldgu), ldgu / 2, F);
}

void gather_rows(Device *d, DType t, void *y, const void *x, const int32_t *idx, int C, int rows)
{
    size_t bytes = (size_t)C * dtype_size(t);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)rows *C))
    for (int64_t i = 0; i < rows; i++) memcpy(cpu_row(y, t, i * C), cpu_row(x, t, (int64_t)idx[i] * C), bytes);
}

void scatter_rows(Device *d, DType t, void *x, int64_t ldx, const void *y, const int32_t *idx, int C, int rows, int T)
{
    size_t bytes = (size_t)C * dtype_size(t);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *C))
    for (int64_t i = 0; i < T; i++) memset(cpu_row(x, t, i * ldx), 0, bytes);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)rows *C))
    for (int64_t i = 0; i < rows; i++) memcpy(cpu_row(x, t, idx[i] * ldx), cpu_row(y, t, i * C), bytes);
}

void dropout(Device *d, DType t, void *y, int64_t ldy, const void *x, int64_t ldx, const uint64_t *row_key,
             uint64_t stream, float p, bool accumulate, int64_t c0, int C, int T)
{
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *C))
    for (int64_t i = 0; i < T; i++)
        k->dropout_row(t, cpu_row(y, t, i * ldy), cpu_row(x, t, i * ldx), row_key[i], stream, p, accumulate, c0, C);
}

void convert(Device *d, void *dst, DType dst_t, const void *src, DType src_t, size_t n)
{
    enum { RUN = 1 << 14 };
    bool vectors = (dst_t == DT_F32 && src_t == DT_BF16) || (dst_t == DT_BF16 && src_t == DT_F32);
    if (dst_t == src_t) {
        convert_ref(d, dst, dst_t, src, src_t, n);
        return;
    }
    const IsaKernels *k = isa_kernels(d);
    size_t dst_size = dtype_size(dst_t), src_size = dtype_size(src_t);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)n))
    for (size_t i = 0; i < n; i += RUN) {
        void *to = (char *)dst + i * dst_size;
        const void *from = (const char *)src + i * src_size;
        if (vectors)
            k->convert_run(to, dst_t, from, src_t, (int)MIN(RUN, n - i));
        else
            convert_ref(d, to, dst_t, from, src_t, MIN(RUN, n - i));
    }
}
