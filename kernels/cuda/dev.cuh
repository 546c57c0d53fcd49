// dev: what the kernels use of a GPU below CUDA C++: the tensor core's mma, ldmatrix, cp.async, named barriers, fast exp2, all the
// inline PTX of attune; and small helpers on top (16-byte accesses, conversions, warp reductions, Philox). sm_80 and later.
//
// A kernel compiles in two ways from one source: by nvcc for a GPU, and by a C++ compiler for the executor of tests/cudahost, which
// stands in for each primitive by its definition and checks how it is used. So kernels keep to this file, to barriers,
// shuffles and votes with masks, and to atomics on integers; float atomics do not compile: sums have a fixed order.
//
// Fragments of mma_bf16, by lane (g = lane / 4, t = lane % 4), each register two bf16, the lower half first:
//   A (16x16, row major)  a[0] row g, columns 2t, 2t+1   a[1] row g+8   a[2] row g, columns 2t+8, 2t+9   a[3] row g+8, those
//   B (16x8, column major)  b0 rows 2t, 2t+1 of column g   b1 rows 2t+8, 2t+9
//   C (16x8)  c[0], c[1] row g, columns 2t, 2t+1   c[2], c[3] row g+8
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef __nv_bfloat16 bf16;
constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
#define DEVICE __device__ __forceinline__

// DYN_SMEM(T, name): the block's dynamic shared memory as T *name, 128-byte aligned.
// LAUNCH(kernel, grid, block, smem_bytes, stream, arguments...): a kernel with template arguments stands in parentheses. More
// than 48 KiB of shared memory are asked for here. Errors are left for cudaGetLastError.
#ifdef __CUDACC__

#define DYN_SMEM(T, name)                                                                                              \
    extern __shared__ __align__(128) unsigned char dyn_smem_[];                                                        \
    T *name = reinterpret_cast<T *>(dyn_smem_)

template <auto KERNEL> inline void dev_allow_smem(size_t bytes)
{
    static size_t allowed = 48 << 10;
    if (bytes <= allowed) return;
    if (cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes) == cudaSuccess)
        allowed = bytes;
}
// clang-format off
#define LAUNCH(kernel, grid, block, smem, stream, ...) \
    (dev_allow_smem<(kernel)>(smem), (kernel)<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__))
// clang-format on

// p of shared memory as the address that PTX takes
DEVICE uint32_t dev_shared_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

// ---- tensor core ----
// c += A · B; all lanes of the warp
DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 8x8 matrices of 16 bits out of shared memory: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned; x1 looks
// at lanes 0-7, x2 at 0-15) and gets, of matrix i in r[i], elements 2t and 2t+1 of row g; _trans: of column g.
DEVICE void ldmatrix_x1(uint32_t (&r)[1], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(dev_shared_at(row))
                 : "memory");
}
DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(dev_shared_at(row))
                 : "memory");
}
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(dev_shared_at(row))
                 : "memory");
}
DEVICE void ldmatrix_x1_trans(uint32_t (&r)[1], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(dev_shared_at(row))
                 : "memory");
}
DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(dev_shared_at(row))
                 : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(dev_shared_at(row))
                 : "memory");
}

// ---- asynchronous copies ----
// BYTES (4, 8 or 16; both addresses aligned to them) from global to shared memory, of which the first `valid` are read and the
// rest is zero. There after cp_async_wait by this thread, and after a barrier for others.
template <int BYTES> DEVICE void cp_async(void *shared, const void *global, int valid = BYTES)
{
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "4, 8 or 16 bytes");
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dev_shared_at(shared)), "l"(global),
                     "r"(valid)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(dev_shared_at(shared)), "l"(global),
                     "n"(BYTES), "r"(valid)
                     : "memory");
}
DEVICE void cp_async_commit() // what this thread copied since the last commit becomes a group
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int PENDING> DEVICE void cp_async_wait() // until at most PENDING of this thread's newest groups are under way
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- named barriers: id 1..15 (0 is __syncthreads), `threads` a multiple of 32, the same at each use ----
DEVICE void barrier_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE void barrier_arrive(int id, int threads) // counts, does not wait
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// 2^x, relative error up to 2^-22; 2^-inf = 0; denormal results are flushed
DEVICE float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else
#include "emu/emu.h" // the executor's definitions of the above
#endif

// ---- helpers ----
DEVICE float exp_fast(float x)
{
    return exp2_fast(x * 1.4426950408889634f);
}

DEVICE float to_f32(float x)
{
    return x;
}
DEVICE float to_f32(bf16 x)
{
    return __uint_as_float((uint32_t)__bfloat16_as_ushort(x) << 16);
}
template <typename T> DEVICE T from_f32(float x);
template <> DEVICE float from_f32<float>(float x)
{
    return x;
}
template <> DEVICE bf16 from_f32<bf16>(float x) // to nearest even
{
    return __float2bfloat16_rn(x);
}

DEVICE uint32_t pack_bf16(float lo, float hi) // two bf16 in a register of a fragment
{
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}
DEVICE float unpack_lo(uint32_t v)
{
    return __uint_as_float(v << 16);
}
DEVICE float unpack_hi(uint32_t v)
{
    return __uint_as_float(v & 0xffff0000u);
}

// 16 bytes in one access: p is 16-byte aligned. _stream: read or written once, not to be kept in caches.
template <typename T> struct alignas(16) Pack {
    static constexpr int N = 16 / sizeof(T);
    T v[N];

    Pack() = default;
    DEVICE explicit Pack(uint4 u) { memcpy((void *)v, &u, sizeof u); }
    DEVICE uint4 bits() const
    {
        uint4 u;
        memcpy(&u, v, sizeof u);
        return u;
    }
};
template <typename T> DEVICE Pack<T> load16(const T *p)
{
    return Pack<T>(*reinterpret_cast<const uint4 *>(p));
}
template <typename T> DEVICE Pack<T> load16_stream(const T *p)
{
    return Pack<T>(__ldcs(reinterpret_cast<const uint4 *>(p)));
}
template <typename T> DEVICE void store16(T *p, const Pack<T> &x)
{
    *reinterpret_cast<uint4 *>(p) = x.bits();
}
template <typename T> DEVICE void store16_stream(T *p, const Pack<T> &x)
{
    __stcs(reinterpret_cast<uint4 *>(p), x.bits());
}

// Over the lanes of a warp, all of which take part; every lane gets the same bits, in an order that is fixed.
DEVICE float warp_sum(float v)
{
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}
DEVICE float warp_max(float v)
{
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}
// Over a block of WARPS warps, the same to all threads. scratch: WARPS floats of shared memory; a barrier comes first, so that
// it may be used again at once, and one within.
template <int WARPS> DEVICE float block_sum(float v, float *scratch)
{
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = v;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += scratch[w];
    return sum;
}
template <int WARPS> DEVICE float block_max(float v, float *scratch)
{
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = v;
    __syncthreads();
    float most = scratch[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) most = fmaxf(most, scratch[w]);
    return most;
}

// Philox4x32-10, the same words as philox() of base.h
DEVICE uint4 philox4(uint64_t key, uint64_t counter_hi, uint64_t counter_lo)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint4 c = make_uint4((uint32_t)counter_lo, (uint32_t)(counter_lo >> 32), (uint32_t)counter_hi,
                         (uint32_t)(counter_hi >> 32));
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c.x, p1 = (uint64_t)0xCD9E8D57u * c.z;
        c = make_uint4((uint32_t)(p1 >> 32) ^ c.y ^ k0, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c.w ^ k1, (uint32_t)p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}
