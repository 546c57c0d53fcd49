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
//   s))    (Shazeer 2020) dropout    y = x / (1 - p) where the Philox word of (row, element) says "kept",
//   else 0
// All are bound by memory: bytes per element (bf16) are norm 4 forward, 6 to 8 backward; rope 4; swiglu 6
// and 14.
#include "cpu.h"
#include <math.h>
#include <string.h>

// ---- references
// -----------------------------------------------------------------------------------------------------
void embed_fwd_ref(Device *d, DType t, void *x, const Packed *table, const int32_t *tokens, float scale,
                   int T)
{
    int C = table->K;
    float *row = cpu_thread_scratch(d, (size_t)C * sizeof(float));
    for (int64_t i = 0; i < T; i++) {
        cpu_unpack_rows(table, tokens[i], 1, row, DT_F32, C);
        for (int c = 0; c < C; c++) cpu_store(x, t, i * C + c, scale * row[c]);
    }
}

void embed_bwd_ref(Device *d, DType t, float *dtable, const void *dx, const int32_t *tokens, float scale,
                   int C, int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++)
        for (int c = 0; c < C; c++) dtable[(int64_t)tokens[i] * C + c] += scale * cpu_load(dx, t, i * C + c);
}

void rmsnorm_fwd_ref(Device *d, DType t, void *y, float *rstd, const void *x, const float *w, float w_offset,
                     float eps, int C, int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++) {
        double sum = 0;
        for (int c = 0; c < C; c++) sum += (double)cpu_load(x, t, i * C + c) * cpu_load(x, t, i * C + c);
        double r = 1 / sqrt(sum / C + (double)eps);
        rstd[i] = (float)r;
        for (int c = 0; c < C; c++)
            cpu_store(y, t, i * C + c, (float)(((double)w[c] + w_offset) * cpu_load(x, t, i * C + c) * r));
    }
}

void rmsnorm_bwd_ref(Device *d, DType t, void *dx, float *dw, const void *dy, const void *x,
                     const float *rstd, const float *w, float w_offset, bool accumulate, int C, int T)
{
    (void)d;
    for (int c = 0; dw && c < C; c++) {
        double sum = 0;
        for (int64_t i = 0; i < T; i++)
            sum += (double)cpu_load(dy, t, i * C + c) * cpu_load(x, t, i * C + c) * rstd[i];
        dw[c] += (float)sum;
    }
    for (int64_t i = 0; i < T; i++) {
        double r = rstd[i], dot = 0;
        for (int c = 0; c < C; c++)
            dot += ((double)w[c] + w_offset) * cpu_load(dy, t, i * C + c) * cpu_load(x, t, i * C + c);
        for (int c = 0; c < C; c++) {
            double g = ((double)w[c] + w_offset) * cpu_load(dy, t, i * C + c);
            double v = r * g - cpu_load(x, t, i * C + c) * r * r * r / C * dot;
            cpu_store(dx, t, i * C + c, (float)(accumulate ? cpu_load(dx, t, i * C + c) + v : v));
        }
    }
}

void rope_ref(Device *d, DType t, void *x, int64_t ldx, const float *cos, const float *sin,
              const int32_t *pos, int heads, int D, int rot, bool inverse, int T)
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

void swiglu_fwd_ref(Device *d, DType t, void *a, const void *gu, int F, int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++)
        for (int c = 0; c < F; c++) {
            double g = cpu_load(gu, t, i * 2 * F + c), u = cpu_load(gu, t, i * 2 * F + F + c);
            cpu_store(a, t, i * F + c, (float)(u * g / (1 + exp(-g))));
        }
}

void swiglu_bwd_ref(Device *d, DType t, void *dgu, void *a, const void *da, const void *gu, int F, int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++)
        for (int c = 0; c < F; c++) {
            double g = cpu_load(gu, t, i * 2 * F + c), u = cpu_load(gu, t, i * 2 * F + F + c);
            double s = 1 / (1 + exp(-g)), da_c = cpu_load(da, t, i * F + c);
            if (a) cpu_store(a, t, i * F + c, (float)(u * g * s));
            cpu_store(dgu, t, i * 2 * F + c, (float)(da_c * u * s * (1 + g * (1 - s))));
            cpu_store(dgu, t, i * 2 * F + F + c, (float)(da_c * g * s));
        }
}

void gather_rows_ref(Device *d, DType t, void *y, const void *x, const int32_t *idx, int C, int rows)
{
    (void)d;
    for (int64_t i = 0; i < rows; i++)
        for (int c = 0; c < C; c++) cpu_store(y, t, i * C + c, cpu_load(x, t, (int64_t)idx[i] * C + c));
}

void scatter_rows_ref(Device *d, DType t, void *x, const void *y, const int32_t *idx, int C, int rows, int T)
{
    (void)d;
    for (int64_t i = 0; i < (int64_t)T * C; i++) cpu_store(x, t, i, 0);
    for (int64_t i = 0; i < rows; i++)
        for (int c = 0; c < C; c++) cpu_store(x, t, (int64_t)idx[i] * C + c, cpu_load(y, t, i * C + c));
}

// Element c of row i draws word c % 4 of philox(key = row_key[i], counter = (stream, c / 4)) and is kept when
// u32_to_unit(word) >= p.
void dropout_ref(Device *d, DType t, void *y, int64_t ldy, const void *x, int64_t ldx,
                 const uint64_t *row_key, uint64_t stream, float p, bool accumulate, int C, int T)
{
    (void)d;
    float scale = 1 / (1 - p);
    for (int64_t i = 0; i < T; i++)
        for (int c = 0; c < C; c++) {
            uint32_t word[4];
            philox(row_key[i], stream, (uint64_t)(c / 4), word);
            float v = u32_to_unit(word[c % 4]) >= p ? cpu_load(x, t, i * ldx + c) * scale : 0;
            cpu_store(y, t, i * ldy + c, accumulate ? cpu_load(y, t, i * ldy + c) + v : v);
        }
}

static float f16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)(h & 0x7fff) << 13}; // exponent and mantissa, bias still 15
    if (v.u >= 0x0f800000u)
        v.u += (255u - 31u) << 23; // infinity and NaN
    else
        v.f *= 0x1p112f; // rebias; turns a subnormal half into a normal float
    v.u |= (uint32_t)(h & 0x8000) << 16;
    return v.f;
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
