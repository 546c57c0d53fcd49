// shim: included before every kernel source that a C++ compiler reads (-include). The toolkit's own headers give the types, so that
// layouts and mangled names are nvcc's; this gives what nvcc itself would: qualifiers, threadIdx and kin, barriers, shuffles, votes,
// atomics, launches. What is not here does not compile, which is meant.
#pragma once
#define CUDAHOST 1
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include "exec/interface.h"
#include <math.h>
#include <string.h>
#include <type_traits>
#include <utility>

#undef __shared__
#define __shared__ static thread_local // by which statics.cc knows them
#undef __constant__
#define __constant__ __attribute__((section("cudahost_constant")))
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace cudahost
{
// ---- kernels and launches ----
template <auto K> struct Kernel;
template <typename... A, void (*K)(A...)> struct Kernel<K> {
    template <size_t... I>
    __attribute__((no_sanitize("thread"))) static void call_with(void **args, std::index_sequence<I...>)
    {
        K(*static_cast<A *>(args[I])...);
    }
    __attribute__((no_sanitize("thread"))) static void call(void **args)
    {
        call_with(args, std::index_sequence_for<A...>{});
    }
    struct Entry : CudahostKernel {
        Entry() : CudahostKernel{(const void *)K, Kernel::call, sizeof...(A), Kernel::bytes, nullptr}
        {
            add_kernel(this);
        }
    };
    static constexpr size_t bytes[sizeof...(A) + 1] = {sizeof(A)...};
    static inline Entry entry;

    // Arguments take the parameters' types here, as in a call.
    static void launch(dim3 grid, dim3 block, size_t smem, cudaStream_t, A... a)
    {
        void *args[sizeof...(A) + 1] = {(void *)&a...};
        CudahostLaunch l = {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, smem};
        cudahost_launch(&entry, &l, args);
    }
};
} // namespace cudahost

#define DYN_SMEM(T, name)   T *name = reinterpret_cast<T *>(cudahost::visible.smem)
#define LAUNCH(kernel, ...) cudahost::Kernel<(kernel)>::launch(__VA_ARGS__)

// ---- built-in variables ----
#define threadIdx (cudahost::visible.thread)
#define blockIdx  (cudahost::visible.block)
#define blockDim  (cudahost::visible.block_dim)
#define gridDim   (cudahost::visible.grid_dim)
static const int warpSize = 32;

// ---- barriers, shuffles, votes; they know where they are called from ----
#define CUDAHOST_HERE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()

inline void __syncthreads(CUDAHOST_HERE)
{
    cudahost::barrier(file_, line_);
}
inline int __syncthreads_or(int p, CUDAHOST_HERE)
{
    return cudahost::barrier_vote(cudahost::VOTE_OR, p != 0, file_, line_);
}
inline int __syncthreads_and(int p, CUDAHOST_HERE)
{
    return cudahost::barrier_vote(cudahost::VOTE_AND, p != 0, file_, line_);
}
inline int __syncthreads_count(int p, CUDAHOST_HERE)
{
    return cudahost::barrier_vote(cudahost::VOTE_COUNT, p != 0, file_, line_);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDAHOST_HERE)
{
    cudahost::warp_sync(mask, file_, line_);
}
inline unsigned __ballot_sync(unsigned mask, int p, CUDAHOST_HERE)
{
    return cudahost::ballot(mask, p != 0, file_, line_);
}
inline int __any_sync(unsigned mask, int p, CUDAHOST_HERE)
{
    return cudahost::ballot(mask, p != 0, file_, line_) != 0;
}
inline int __all_sync(unsigned mask, int p, CUDAHOST_HERE)
{
    return cudahost::ballot(mask, p != 0, file_, line_) == mask;
}

namespace cudahost
{
template <typename T> inline T shuffle_value(unsigned mask, T v, int from, const char *file, int line)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    bits = shuffle(mask, bits, from, file, line);
    memcpy(&v, &bits, sizeof v);
    return v;
}
} // namespace cudahost
template <typename T> inline T __shfl_sync(unsigned mask, T v, int from, int width = 32, CUDAHOST_HERE)
{
    int first = cudahost::lane_id() & ~(width - 1);
    return cudahost::shuffle_value(mask, v, first | (from & (width - 1)), file_, line_);
}
template <typename T> inline T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32, CUDAHOST_HERE)
{
    int lane = cudahost::lane_id(), from = lane ^ with;
    if (from >= (lane | (width - 1)) + 1) from = lane;
    return cudahost::shuffle_value(mask, v, from, file_, line_);
}
template <typename T> inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, CUDAHOST_HERE)
{
    int lane = cudahost::lane_id(), from = lane - (int)by;
    if (from < (lane & ~(width - 1))) from = lane;
    return cudahost::shuffle_value(mask, v, from, file_, line_);
}
template <typename T> inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, CUDAHOST_HERE)
{
    int lane = cudahost::lane_id(), from = lane + (int)by;
    if (from > (lane | (width - 1))) from = lane;
    return cudahost::shuffle_value(mask, v, from, file_, line_);
}

// ---- atomics, on integers alone: a sum of floats in the order of arrival has no fixed bits ----
#define CUDAHOST_ATOMIC(name, T, op)                                                                                   \
    inline T name(T *p, T v)                                                                                           \
    {                                                                                                                  \
        return (T)cudahost::atomic(cudahost::op, p, sizeof(T), (uint64_t)v, 0);                                        \
    }
CUDAHOST_ATOMIC(atomicAdd, int, ADD)
CUDAHOST_ATOMIC(atomicAdd, unsigned, ADD)
CUDAHOST_ATOMIC(atomicAdd, unsigned long long, ADD)
CUDAHOST_ATOMIC(atomicMax, int, MAX_SIGNED)
CUDAHOST_ATOMIC(atomicMax, unsigned, MAX_UNSIGNED)
CUDAHOST_ATOMIC(atomicMin, int, MIN_SIGNED)
CUDAHOST_ATOMIC(atomicMin, unsigned, MIN_UNSIGNED)
CUDAHOST_ATOMIC(atomicOr, int, OR)
CUDAHOST_ATOMIC(atomicOr, unsigned, OR)
CUDAHOST_ATOMIC(atomicAnd, int, AND)
CUDAHOST_ATOMIC(atomicAnd, unsigned, AND)
CUDAHOST_ATOMIC(atomicXor, int, XOR)
CUDAHOST_ATOMIC(atomicXor, unsigned, XOR)
CUDAHOST_ATOMIC(atomicExch, int, EXCHANGE)
CUDAHOST_ATOMIC(atomicExch, unsigned, EXCHANGE)
#undef CUDAHOST_ATOMIC
inline int atomicCAS(int *p, int compare, int v)
{
    return (int)cudahost::atomic(cudahost::COMPARE_SWAP, p, 4, (uint64_t)v, (uint64_t)compare);
}
inline unsigned atomicCAS(unsigned *p, unsigned compare, unsigned v)
{
    return (unsigned)cudahost::atomic(cudahost::COMPARE_SWAP, p, 4, v, compare);
}
template <typename T> T atomicAdd(T *p, T v) = delete;
template <typename T> T atomicMax(T *p, T v) = delete;
template <typename T> T atomicMin(T *p, T v) = delete;
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- arithmetic that only nvcc's front end has ----
inline int min(int a, int b)
{
    return a < b ? a : b;
}
inline int max(int a, int b)
{
    return a > b ? a : b;
}
inline unsigned min(unsigned a, unsigned b)
{
    return a < b ? a : b;
}
inline unsigned max(unsigned a, unsigned b)
{
    return a > b ? a : b;
}
inline long min(long a, long b)
{
    return a < b ? a : b;
}
inline long max(long a, long b)
{
    return a > b ? a : b;
}
inline unsigned long long min(unsigned long long a, unsigned long long b)
{
    return a < b ? a : b;
}
inline unsigned long long max(unsigned long long a, unsigned long long b)
{
    return a > b ? a : b;
}
inline float min(float a, float b)
{
    return fminf(a, b);
}
inline float max(float a, float b)
{
    return fmaxf(a, b);
}
inline float rsqrtf(float x)
{
    return 1 / sqrtf(x);
}
inline float __expf(float x)
{
    return expf(x);
}
inline float __logf(float x)
{
    return logf(x);
}
inline float __fdividef(float a, float b)
{
    return a / b;
}
inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
inline float __fadd_rn(float a, float b)
{
    return a + b;
}
inline float __fmul_rn(float a, float b)
{
    return a * b;
}
inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
inline float __frcp_rn(float a)
{
    return 1 / a;
}
inline double __dmul_rn(double a, double b)
{
    return a * b;
}
inline double __dadd_rn(double a, double b)
{
    return a + b;
}
inline long long __double2ll_rn(double x)
{
    return llrint(x);
}
inline long long __float2ll_rn(float x)
{
    return llrintf(x);
}
inline int __float2int_rn(float x)
{
    return (int)lrintf(x);
}
inline float __ll2float_rn(long long x)
{
    return (float)x;
}
inline double __ll2double_rn(long long x)
{
    return (double)x;
}
inline float __double2float_rn(double x)
{
    return (float)x;
}
inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}
inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}

#define CUDAHOST_BITS(name, To, From)                                                                                  \
    inline To name(From x)                                                                                             \
    {                                                                                                                  \
        To y;                                                                                                          \
        memcpy(&y, &x, sizeof y);                                                                                      \
        return y;                                                                                                      \
    }
CUDAHOST_BITS(__float_as_uint, unsigned, float)
CUDAHOST_BITS(__uint_as_float, float, unsigned)
CUDAHOST_BITS(__float_as_int, int, float)
CUDAHOST_BITS(__int_as_float, float, int)
CUDAHOST_BITS(__double_as_longlong, long long, double)
CUDAHOST_BITS(__longlong_as_double, double, long long)
#undef CUDAHOST_BITS

// Cache hints change nothing here.
template <typename T> inline T __ldg(const T *p)
{
    return *p;
}
template <typename T> inline T __ldcs(const T *p)
{
    return *p;
}
template <typename T> inline T __ldcg(const T *p)
{
    return *p;
}
template <typename T> inline void __stcs(T *p, T v)
{
    *p = v;
}
template <typename T> inline void __stcg(T *p, T v)
{
    *p = v;
}
