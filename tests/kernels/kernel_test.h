// What the tests of the kernels share: devices at every instruction set of this machine, random operands, and
// comparison by normalised mean-square error. A test file holds a table of shapes; each row is run for every
// type and instruction set.
#pragma once
#include "kernels.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

// ---- devices --------------------------------------------------------------------------------------------
// Instruction sets to test, best first; those that the machine lacks fall back to one that it has, and are
// skipped.
//
// With KERNEL_TEST_DEVICES, the tests run over another device in the place of "cpu": a header that defines KERNEL_ISAS, names to stand
// for instruction sets, what opens by such a name (kernel_order_open) and for so many threads (kernel_threads_open), and KERNEL_MOST_WORK,
// how many multiplications a case may take.
#ifdef KERNEL_TEST_DEVICES
#include KERNEL_TEST_DEVICES
#else
#define KERNEL_MOST_WORK INFINITY
#define KERNEL_ISAS      "avx512-bf16", "avx2", "generic"
#endif
static const char *const kernel_isas[] = {KERNEL_ISAS};
static const DType kernel_types[] = {DT_F32, DT_BF16};

static inline Device *open_threads(const char *name, int threads)
{
    Device *d;
#ifdef KERNEL_TEST_DEVICES
    if (streq(name, "cpu") && kernel_threads_open(&d, threads) == OK) return d;
#endif
    if (device_open(&d, &(DeviceConfig){.name = name, .threads = threads}) != OK)
        fail_msg("%s: %s", name, error_last()->what);
    return d;
}

// The tuned device held to an instruction set; NULL when the machine has not got it.
static inline Device *open_isa(const char *isa, int threads)
{
#ifdef KERNEL_TEST_DEVICES
    Device *d;
    return (void)threads, kernel_order_open(&d, isa) == OK ? d : NULL;
#else
    setenv("ATTUNE_ISA", isa, 1);
    Device *d = streq(cpu_isa(), isa) ? open_threads("cpu", threads) : NULL;
    unsetenv("ATTUNE_ISA");
    return d;
#endif
}

// ---- operands -------------------------------------------------------------------------------------------
// Element i of a stream: uniform in (-scale, scale), the same on every run.
static inline float random_at(uint64_t seed, uint64_t i, float scale)
{
    uint32_t u[4];
    philox(seed, 0, i, u);
    return scale * (2 * u32_to_unit(u[0]) - 1);
}

static inline float get(const void *p, DType t, size_t i)
{
    return t == DT_BF16 ? bf16_to_f32(((const bf16_t *)p)[i]) : ((const float *)p)[i];
}
static inline void put(void *p, DType t, size_t i, float v)
{
    if (t == DT_BF16)
        ((bf16_t *)p)[i] = f32_to_bf16(v);
    else
        ((float *)p)[i] = v;
}

// n elements of type t; free() them. Exactly as long as asked, so that AddressSanitizer sees a step beyond.
static inline void *random_values(DType t, size_t n, uint64_t seed, float scale)
{
    void *p = xmalloc(MAX(n, 1) * dtype_size(t));
    for (size_t i = 0; i < n; i++) put(p, t, i, random_at(seed, i, scale));
    return p;
}

static inline void *copy_values(DType t, const void *src, size_t n)
{
    void *p = xmalloc(MAX(n, 1) * dtype_size(t));
    memcpy(p, src, n * dtype_size(t));
    return p;
}

static inline Packed pack_values(Device *d, DType t, const void *src, DType src_t, int N, int K)
{
    Packed w = {t, N, K, aligned_alloc(64, MAX(ROUND_UP(d->packed_bytes(d, t, N, K), 64), 64))};
    d->op.linear_pack(d, &w, 0, N, src, src_t, K);
    return w;
}

// ---- comparison
// ----------------------------------------------------------------------------------------------------- Σ
// (got - want)² / Σ want²; a value that is not finite counts as infinite error.
static inline double nmse(DType t, const void *got, const void *want, size_t n)
{
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        double g = get(got, t, i), w = get(want, t, i);
        error += (g - w) * (g - w), norm += w * w;
    }
    if (!isfinite(error) || !isfinite(norm)) return INFINITY;
    return norm > 0 ? error / norm : error;
}

// What rounding alone may cost: results in bf16 (relative 2^-9), or in f32 with sums of a few thousand terms.
static inline double nmse_limit(DType t)
{
    return t == DT_BF16 ? 1e-5 : 1e-11;
}

static inline void expect_nmse(const char *what, DType t, const void *got, const void *want, size_t n, double limit)
{
    double e = nmse(t, got, want, n);
    if (!(e <= limit)) fail_msg("%s (%s, %zu elements): error %.3g, limit %.3g", what, dtype_name(t), n, e, limit);
}
static inline void expect_close(const char *what, DType t, const void *got, const void *want, size_t n)
{
    expect_nmse(what, t, got, want, n, nmse_limit(t));
}

static inline void expect_same_bits(const char *what, const void *got, const void *want, size_t bytes)
{
    const unsigned char *g = got, *w = want;
    for (size_t i = 0; i < bytes; i++)
        if (g[i] != w[i]) fail_msg("%s: byte %zu of %zu differs", what, i, bytes);
}

// ---- gradients ------------------------------------------------------------------------------------------
// Checks dLoss/dx against central differences: loss(context) is called with elements of x (f32, n) moved by
// ±step, for at most 24 elements spread over x. rtol is relative to the largest gradient seen.
typedef double LossFunction(void *context);

static inline void expect_gradient(const char *what, LossFunction *loss, void *context, float *x, size_t n,
                                   const float *gradient, float step, double rtol)
{
    size_t stride = n / 24 + 1;
    double largest = 0, worst = 0;
    for (size_t i = 0; i < n; i += stride) {
        float keep = x[i];
        x[i] = keep + step;
        double up = loss(context), high = x[i];
        x[i] = keep - step;
        double down = loss(context), low = x[i];
        x[i] = keep;
        double slope = (up - down) / (high - low);
        largest = fmax(largest, fabs(slope));
        worst = fmax(worst, fabs(slope - gradient[i]));
    }
    if (!(worst <= rtol * largest)) fail_msg("%s: gradient off by %.3g of %.3g", what, worst, largest);
}
