// vec: vectors of VL floats for the kernels that are spelled once and compiled per instruction set (kernels_generic.c,
// kernels_avx2.c, kernels_avx512.c, which define VL before they include this). Owns loads and stores that widen and round,
// exp2 and tanh, and the transposition of words. GCC vector types carry the arithmetic; intrinsics stand only where plain C
// has no word for the instruction.
#pragma once
#include "cpu.h"
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef VL
#error "include vec.h from kernels_ISA.c, which defines VL"
#endif

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

// A loop is written for a constant type; this picks the copy.
#define FOR_TYPE(t, call_bf16, call_f32) ((t) == DT_BF16 ? (call_bf16) : (call_f32))

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));
typedef uint64_t vq __attribute__((vector_size(VL * 4))); // VL / 2 lanes
// As they lie in memory: any address, any type.
typedef float vf_mem __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint32_t vu_mem __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t vh_mem __attribute__((vector_size(VL * 2), aligned(2), may_alias));
typedef uint32_t word_mem __attribute__((aligned(2), may_alias));

// ---- arithmetic -----------------------------------------------------------------------------------------------------
#if VL == 16
INLINE vf vf_set(float x)
{
    return (vf)_mm512_set1_ps(x);
}
INLINE vf vf_max(vf a, vf b)
{
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
} // b where either is NaN
INLINE vf vf_min(vf a, vf b)
{
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
} // b where either is NaN
INLINE vf vf_fma(vf a, vf b, vf c)
{
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
INLINE vf vf_sqrt(vf a)
{
    return (vf)_mm512_sqrt_ps((__m512)a);
}
#elif VL == 8
INLINE vf vf_set(float x)
{
    return (vf)_mm256_set1_ps(x);
}
INLINE vf vf_max(vf a, vf b)
{
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
}
INLINE vf vf_min(vf a, vf b)
{
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
}
INLINE vf vf_fma(vf a, vf b, vf c)
{
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
INLINE vf vf_sqrt(vf a)
{
    return (vf)_mm256_sqrt_ps((__m256)a);
}
#else
INLINE vf vf_set(float x)
{
    return (vf){x, x, x, x};
}
INLINE vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
#if defined(__x86_64__)
INLINE vf vf_max(vf a, vf b)
{
    return (vf)_mm_max_ps((__m128)a, (__m128)b);
}
INLINE vf vf_min(vf a, vf b)
{
    return (vf)_mm_min_ps((__m128)a, (__m128)b);
}
INLINE vf vf_sqrt(vf a)
{
    return (vf)_mm_sqrt_ps((__m128)a);
}
#else
INLINE vf vf_max(vf a, vf b)
{
    vi m = a > b;
    return (vf)((m & (vi)a) | (~m & (vi)b));
}
INLINE vf vf_min(vf a, vf b)
{
    vi m = a < b;
    return (vf)((m & (vi)a) | (~m & (vi)b));
}
INLINE vf vf_sqrt(vf a)
{
    for (int i = 0; i < VL; i++) a[i] = sqrtf(a[i]);
    return a;
}
#endif
#endif

INLINE vq vq_multiply_low(vq a, vq b) // 64-bit products of the lanes' low halves
{
#if VL == 16
    return (vq)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif VL == 8
    return (vq)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return (vq)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

INLINE vu vu_set(uint32_t x)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = x};
    return (vu)vf_set(v.f);
}
INLINE vf vf_select(vi mask, vf a, vf b) // mask (all ones or none, lane by lane) ? a : b
{
#if VL == 8
    return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
#else
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
#endif
}

INLINE vf vf_first(vf v, int n) // the first n lanes, 0 in the others
{
    vi lane;
    for (int i = 0; i < VL; i++) lane[i] = i;
    return vf_select(lane < n, v, vf_set(0));
}

INLINE float vf_sum(vf v) // halves are added, then quarters, ...: the order is fixed
{
    float a[VL];
    memcpy(a, &v, sizeof a);
    UNROLL
    for (int n = VL / 2; n; n /= 2)
        for (int i = 0; i < n; i++) a[i] += a[i + n];
    return a[0];
}

INLINE float vf_highest(vf v)
{
    float a[VL];
    memcpy(a, &v, sizeof a);
    UNROLL
    for (int n = VL / 2; n; n /= 2)
        for (int i = 0; i < n; i++) a[i] = a[i] > a[i + n] ? a[i] : a[i + n];
    return a[0];
}

// 2^x, relative error below 2e-7; 0 from x = -127 down, infinity from 128 up, NaN stays NaN.
INLINE vf vf_exp2(vf x)
{
    x = vf_min(vf_set(128), vf_max(vf_set(-127), x));
#if VL == 16
    vf n = (vf)_mm512_roundscale_ps((__m512)x, 0);
#else
    const vf shift = vf_set(0x1.8p23f); // adding it leaves the nearest integer in the low bits
    vf shifted = x + shift, n = shifted - shift;
#endif
    vf f = x - n;
    vf r = vf_fma(vf_set(1.32647273e-3f), f,
                  vf_set(9.67151299e-3f)); // least relative error on [-1/2, 1/2] with 2^0 = 1
    r = vf_fma(r, f, vf_set(5.55073358e-2f));
    r = vf_fma(r, f, vf_set(2.40222424e-1f));
    r = vf_fma(r, f, vf_set(6.93147004e-1f));
    r = vf_fma(r, f, vf_set(1));
#if VL == 16
    return (vf)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-127), _CMP_NLE_UQ), (__m512)r,
                                      (__m512)n);
#else
    vi exponent = (vi)shifted - (vi)shift + 127; // 0 gives a factor 0, 255 gives infinity
    return r * (vf)(exponent << 23);
#endif
}
INLINE vf vf_exp(vf x)
{
    return vf_exp2(x * vf_set(1.44269504f));
}
INLINE vf vf_sigmoid(vf x)
{
    return vf_set(1) / (vf_set(1) + vf_exp2(x * vf_set(-1.44269504f)));
}

// tanh, relative error below 4e-7: an odd polynomial near 0, where 1 - 2 / (1 + e^2x) cancels.
INLINE vf vf_tanh(vf x)
{
    vf z = x * x;
    vf p = vf_fma(vf_set(1.49441622e-2f), z, vf_set(-5.17784655e-2f));
    p = vf_fma(p, z, vf_set(1.33047923e-1f));
    p = vf_fma(p, z, vf_set(-3.33321542e-1f));
    p = vf_fma(p * z, x, x);
    vf e = vf_set(1) - vf_set(2) / (vf_set(1) + vf_exp2(x * vf_set(2.88539008f)));
    return vf_select((vi)(z < vf_set(0.4f)), p, e);
}

// ---- memory ---------------------------------------------------------------------------------------------------------
// 16 bits to 32 with zeros above, and back when they are zero; compilers make several instructions of __builtin_convertvector.
#if VL == 16
INLINE vu vu_of_vh(vh h)
{
    return (vu)_mm512_cvtepu16_epi32((__m256i)h);
}
INLINE vh vh_of_vu(vu u)
{
    return (vh)_mm512_cvtepi32_epi16((__m512i)u);
}
#elif VL == 8
INLINE vu vu_of_vh(vh h)
{
    return (vu)_mm256_cvtepu16_epi32((__m128i)h);
}
INLINE vh vh_of_vu(vu u)
{
    __m256i halves = _mm256_packus_epi32((__m256i)u, (__m256i)u);
    return (vh)_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08));
}
#else
INLINE vu vu_of_vh(vh h)
{
    return __builtin_convertvector(h, vu);
}
INLINE vh vh_of_vu(vu u)
{
    return __builtin_convertvector(u, vh);
}
#endif

INLINE vf vf_of_bf16(vh h)
{
    return (vf)(vu_of_vh(h) << 16);
}

INLINE vh bf16_of_vf(vf v) // nearest even, NaN stays NaN
{
#if VL == 16
    return (vh)_mm512_cvtneps_pbh((__m512)v);
#else
    vu u = (vu)v, rounded = u + 0x7fff + (u >> 16 & 1);
    return vh_of_vu((vu)vf_select(v != v, (vf)(u | 0x400000), (vf)rounded) >> 16);
#endif
}

INLINE vf load_f32(const float *p)
{
    return (vf) * (const vf_mem *)p;
}
INLINE void store_f32(float *p, vf v)
{
    *(vf_mem *)p = (vf_mem)v;
}
INLINE vu load_words(const void *p)
{
    return (vu) * (const vu_mem *)p;
}
INLINE void store_words(void *p, vu v)
{
    *(vu_mem *)p = (vu_mem)v;
}

// VL elements from element i of an F32 or BF16 array.
INLINE vf load_vf(const DType t, const void *p, int64_t i)
{
    if (t == DT_BF16) return vf_of_bf16((vh) * (const vh_mem *)((const bf16_t *)p + i));
    return load_f32((const float *)p + i);
}

INLINE void store_vf(const DType t, void *p, int64_t i, vf v)
{
    if (t == DT_BF16)
        *(vh_mem *)((bf16_t *)p + i) = (vh_mem)bf16_of_vf(v);
    else
        store_f32((float *)p + i, v);
}

// The first n <= VL of them: what lies beyond is neither read (zeros come in) nor written.
INLINE vf load_some(const DType t, const void *p, int64_t i, int n)
{
    if (__builtin_expect(n == VL, 1)) return load_vf(t, p, i);
    float tail[VL] = {0};
    for (int k = 0; k < n; k++) tail[k] = cpu_load(p, t, i + k);
    return load_f32(tail);
}

INLINE void store_some(const DType t, void *p, int64_t i, vf v, int n)
{
    if (__builtin_expect(n == VL, 1)) {
        store_vf(t, p, i, v);
        return;
    }
    uint32_t tail[VL];
    store_vf(t, tail, 0, v);
    memcpy((char *)p + i * (t == DT_BF16 ? 2 : 4), tail, (size_t)n * (t == DT_BF16 ? 2 : 4));
}

// for (c = 0, VL, 2 VL, ... below count), n = how many of the VL lanes lie within
#define EACH_VECTOR(c, n, count) for (int c = 0, n; n = MIN(VL, (count)-c), c < (count); c += VL)

// ---- transposition --------------------------------------------------------------------------------------------------
#if VL == 16
#define PAIRS_LOW       0, 8, 1, 9, 2, 10, 3, 11
#define PAIRS_HIGH      4, 12, 5, 13, 6, 14, 7, 15
#define INTERLEAVE_LOW  0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define INTERLEAVE_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VL == 8
#define PAIRS_LOW       0, 4, 1, 5
#define PAIRS_HIGH      2, 6, 3, 7
#define INTERLEAVE_LOW  0, 8, 1, 9, 2, 10, 3, 11
#define INTERLEAVE_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define PAIRS_LOW       0, 2
#define PAIRS_HIGH      1, 3
#define INTERLEAVE_LOW  0, 4, 1, 5
#define INTERLEAVE_HIGH 2, 6, 3, 7
#endif

// Lanes of 64 bits: a0 b0 a1 b1 ... into two vectors.
INLINE void interleave_pairs(vq a, vq b, vu out[2])
{
    out[0] = (vu)__builtin_shufflevector(a, b, PAIRS_LOW);
    out[1] = (vu)__builtin_shufflevector(a, b, PAIRS_HIGH);
}

// y = xᵀ, VL x VL words, row strides in words. Interleaving rows i and i + VL/2 log2(VL) times is a transposition.
INLINE void transpose_words(uint32_t *y, int64_t ldy, const uint32_t *x, int64_t ldx)
{
    vu a[VL], b[VL];
    UNROLL
    for (int i = 0; i < VL; i++) a[i] = load_words(x + i * ldx);
    UNROLL
    for (int step = 1; step < VL; step *= 2) {
        UNROLL
        for (int i = 0; i < VL / 2; i++) {
            b[2 * i] = __builtin_shufflevector(a[i], a[i + VL / 2], INTERLEAVE_LOW);
            b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + VL / 2], INTERLEAVE_HIGH);
        }
        UNROLL
        for (int i = 0; i < VL; i++) a[i] = b[i];
    }
    UNROLL
    for (int i = 0; i < VL; i++) store_words(y + i * ldy, a[i]);
}
