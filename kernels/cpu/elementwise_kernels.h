// Inner loops of elementwise.c, spelled once for all instruction sets. Formulas stand there.
#pragma once
#include "isa_kernels.h"
#include "vec.h"

// ---- RMSNorm --------------------------------------------------------------------------------------------------------
INLINE float rmsnorm_fwd_as(const DType t, void *y, const void *x, const float *w, float w_offset, float eps, int C)
{
    vf even = vf_set(0), odd = even; // two sums that take turns: each waits for itself only every other vector
    EACH_VECTOR(c, n, C)
    {
        vf v = load_some(t, x, c, n), sum = vf_fma(v, v, even);
        even = odd;
        odd = sum;
    }
    float rstd = 1 / sqrtf(vf_sum(even + odd) / (float)C + eps);
    vf r = vf_set(rstd), offset = vf_set(w_offset);
    EACH_VECTOR(c, n, C)
    {
        vf u = load_some(DT_F32, w, c, n) + offset;
        store_some(t, y, c, u * (load_some(t, x, c, n) * r), n);
    }
    return rstd;
}

static float rmsnorm_fwd_row(DType t, void *y, const void *x, const float *w, float w_offset, float eps, int C)
{
    return FOR_TYPE(t, rmsnorm_fwd_as(DT_BF16, y, x, w, w_offset, eps, C),
                    rmsnorm_fwd_as(DT_F32, y, x, w, w_offset, eps, C));
}

INLINE void rmsnorm_bwd_as(const DType t, void *dx, float *dw, const void *dy, const void *x, float rstd,
                           const float *w, float w_offset, bool accumulate, int C)
{
    vf sum = vf_set(0), r = vf_set(rstd), offset = vf_set(w_offset);
    EACH_VECTOR(c, n, C)
    {
        vf dyx = load_some(t, dy, c, n) * load_some(t, x, c, n);
        sum = vf_fma(dyx, load_some(DT_F32, w, c, n) + offset, sum);
        if (dw) store_some(DT_F32, dw, c, vf_fma(dyx, r, load_some(DT_F32, dw, c, n)), n);
    }
    vf k = vf_set(-rstd * rstd * rstd / (float)C * vf_sum(sum));
    EACH_VECTOR(c, n, C)
    {
        vf u = load_some(DT_F32, w, c, n) + offset;
        vf v = vf_fma(load_some(t, x, c, n), k, u * load_some(t, dy, c, n) * r);
        store_some(t, dx, c, accumulate ? v + load_some(t, dx, c, n) : v, n);
    }
}

static void rmsnorm_bwd_row(DType t, void *dx, float *dw, const void *dy, const void *x, float rstd, const float *w,
                            float w_offset, bool accumulate, int C)
{
    FOR_TYPE(t, rmsnorm_bwd_as(DT_BF16, dx, dw, dy, x, rstd, w, w_offset, accumulate, C),
             rmsnorm_bwd_as(DT_F32, dx, dw, dy, x, rstd, w, w_offset, accumulate, C));
}

// ---- rotary positions -----------------------------------------------------------------------------------------------
INLINE void rope_as(const DType t, void *x, const float *cos, const float *sin, float sign, int heads, int D, int rot)
{
    int half = rot / 2;
    for (int64_t at = 0; at < (int64_t)heads * D; at += D) {
        EACH_VECTOR(i, n, half)
        {
            vf a = load_some(t, x, at + i, n), b = load_some(t, x, at + half + i, n);
            vf c = load_some(DT_F32, cos, i, n), s = load_some(DT_F32, sin, i, n) * vf_set(sign);
            store_some(t, x, at + i, vf_fma(a, c, -(b * s)), n);
            store_some(t, x, at + half + i, vf_fma(b, c, a * s), n);
        }
    }
}

static void rope_row(DType t, void *x, const float *cos, const float *sin, float sign, int heads, int D, int rot)
{
    FOR_TYPE(t, rope_as(DT_BF16, x, cos, sin, sign, heads, D, rot), rope_as(DT_F32, x, cos, sin, sign, heads, D, rot));
}

// ---- SwiGLU ---------------------------------------------------------------------------------------------------------
INLINE void swiglu_fwd_as(const DType t, void *a, const void *gu, int64_t up, int F)
{
    EACH_VECTOR(c, n, F)
    {
        vf g = load_some(t, gu, c, n), u = load_some(t, gu, up + c, n);
        store_some(t, a, c, u * (g * vf_sigmoid(g)), n);
    }
}

static void swiglu_fwd_row(DType t, void *a, const void *gu, int64_t up, int F)
{
    FOR_TYPE(t, swiglu_fwd_as(DT_BF16, a, gu, up, F), swiglu_fwd_as(DT_F32, a, gu, up, F));
}

INLINE void swiglu_bwd_as(const DType t, void *dgu, void *a, const void *da, const void *gu, int64_t up, int F)
{
    const vf one = vf_set(1);
    EACH_VECTOR(c, n, F)
    {
        vf g = load_some(t, gu, c, n), u = load_some(t, gu, up + c, n), grad = load_some(t, da, c, n);
        vf s = vf_sigmoid(g), silu = g * s;
        if (a) store_some(t, a, c, u * silu, n);
        store_some(t, dgu, c, grad * u * vf_fma(silu, one - s, s), n);
        store_some(t, dgu, up + c, grad * silu, n);
    }
}

static void swiglu_bwd_row(DType t, void *dgu, void *a, const void *da, const void *gu, int64_t up, int F)
{
    FOR_TYPE(t, swiglu_bwd_as(DT_BF16, dgu, a, da, gu, up, F), swiglu_bwd_as(DT_F32, dgu, a, da, gu, up, F));
}

// ---- dropout --------------------------------------------------------------------------------------------------------
// The words of VL / 2 calls philox(key, stream, first), first + 1, ... in order: philox() of base.h with a call per 64-bit
// lane. Upper halves of the state hold rubbish, which products ignore and `low` clears at the end.
INLINE void philox_words(uint64_t key, uint64_t stream, uint64_t first, vu words[2])
{
    const vq zero = {0}, m0 = zero + 0xD2511F53, m1 = zero + 0xCD9E8D57, low = zero + 0xffffffff;
    vq c0 = zero + first, c1, c2 = zero + stream, c3 = zero + (stream >> 32);
    for (int i = 0; i < VL / 2; i++) c0[i] += (uint64_t)i;
    c1 = c0 >> 32;
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    UNROLL
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        vq p0 = vq_multiply_low(c0, m0), p1 = vq_multiply_low(c2, m1);
        c0 = p1 >> 32 ^ c1 ^ (zero + k0);
        c2 = p0 >> 32 ^ c3 ^ (zero + k1);
        c1 = p1;
        c3 = p0;
    }
    interleave_pairs((c0 & low) | c1 << 32, (c2 & low) | c3 << 32, words);
}

// n <= VL elements from element c on
INLINE void drop_some(const DType t, void *y, const void *x, vu words, float p, bool accumulate, int c, int n)
{
    const vi least = (vi)vu_set((uint32_t)ceilf(p * 0x1p24f)); // u32_to_unit(word) >= p, in integers
    vf v = vf_select((vi)(words >> 8) >= least, load_some(t, x, c, n) * vf_set(1 / (1 - p)), vf_set(0));
    store_some(t, y, c, accumulate ? v + load_some(t, y, c, n) : v, n);
}

// The words of what is left of a call of philox when the row begins inside it.
INLINE vu last_words(uint64_t key, uint64_t stream, uint64_t call, int left)
{
    uint32_t four[4], lanes[VL] = {0};
    philox(key, stream, call, four);
    memcpy(lanes, four + 4 - left, (size_t)left * sizeof *lanes);
    return load_words(lanes);
}

INLINE void dropout_as(const DType t, void *y, const void *x, uint64_t key, uint64_t stream, float p, bool accumulate,
                       int64_t c0, int C)
{
    int left = (int)(-(uint64_t)c0 % 4); // columns before the first whole call
    uint64_t call = ((uint64_t)c0 + 3) / 4;
    if (left) drop_some(t, y, x, last_words(key, stream, call - 1, left), p, accumulate, 0, MIN(left, C));
    for (int first = left; first < C; first += 2 * VL, call += VL / 2) {
        vu words[2];
        philox_words(key, stream, call, words);
        EACH_VECTOR(c, n, MIN(2 * VL, C - first)) drop_some(t, y, x, words[c / VL], p, accumulate, first + c, n);
    }
}

static void dropout_row(DType t, void *y, const void *x, uint64_t key, uint64_t stream, float p, bool accumulate,
                        int64_t c0, int C)
{
    FOR_TYPE(t, dropout_as(DT_BF16, y, x, key, stream, p, accumulate, c0, C),
             dropout_as(DT_F32, y, x, key, stream, p, accumulate, c0, C));
}

// ---- sums and conversions -------------------------------------------------------------------------------------------
INLINE void add_scaled_as(const DType t, float *y, const void *x, float scale, int count)
{
    EACH_VECTOR(c, n, count)
    store_some(DT_F32, y, c, vf_fma(vf_set(scale), load_some(t, x, c, n), load_some(DT_F32, y, c, n)), n);
}

static void add_scaled(DType t, float *y, const void *x, float scale, int n)
{
    FOR_TYPE(t, add_scaled_as(DT_BF16, y, x, scale, n), add_scaled_as(DT_F32, y, x, scale, n));
}

static void convert_run(void *dst, DType dst_t, const void *src, DType src_t, int count)
{
    if (dst_t == DT_BF16 && src_t == DT_F32)
        EACH_VECTOR(c, n, count) store_some(DT_BF16, dst, c, load_some(DT_F32, src, c, n), n);
    else
        EACH_VECTOR(c, n, count) store_some(DT_F32, dst, c, load_some(DT_BF16, src, c, n), n);
}
