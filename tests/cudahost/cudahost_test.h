// What tests of kernels under the executor share: device buffers of random values, every order, no findings. Includes cmocka.
#pragma once
#include "cudahost.h"
#include "kernels.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

// ---- orders: kernels must give the same bits in each ----
static const struct {
    CudahostOrder order;
    uint64_t seed;
} cudahost_orders[] = {{CUDAHOST_FORWARD, 0}, {CUDAHOST_REVERSE, 0}, {CUDAHOST_RANDOM, 1}, {CUDAHOST_RANDOM, 2}};
#define FOR_EACH_ORDER(i)                                                                                              \
    for (size_t i = 0;                                                                                                 \
         i < COUNT_OF(cudahost_orders) && (cudahost_order(cudahost_orders[i].order, cudahost_orders[i].seed), 1); i++)

static inline void expect_no_findings(const char *what)
{
    for (size_t i = 0; i < cudahost_findings(); i++) {
        const CudahostFinding *f = cudahost_finding(i);
        print_error("%s: %s: %s\n", what, cudahost_kind_name(f->kind), f->text);
    }
    if (cudahost_findings()) fail_msg("%s: %zu findings", what, cudahost_findings());
}

// ---- device buffers ----
// n elements, uniform in (-scale, scale), the same on every run; cudahost_free them
static inline void *device_random(const char *name, DType t, size_t n, uint64_t seed, float scale)
{
    void *p = cudahost_alloc(n * dtype_size(t), name);
    for (size_t i = 0; i < n; i++) {
        uint32_t u[4];
        philox(seed, 0, i, u);
        float v = scale * (2 * u32_to_unit(u[0]) - 1);
        if (t == DT_BF16)
            ((bf16_t *)p)[i] = f32_to_bf16(v);
        else
            ((float *)p)[i] = v;
    }
    return p;
}
static inline void *device_empty(const char *name, DType t, size_t n)
{
    return cudahost_alloc(n * dtype_size(t), name);
}
static inline float device_get(const void *p, DType t, size_t i)
{
    return t == DT_BF16 ? bf16_to_f32(((const bf16_t *)p)[i]) : ((const float *)p)[i];
}
