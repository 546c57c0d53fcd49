// rows: what kernels that go over the rows of a matrix, or over an array, share: a few neighbouring elements at a time as f32, and
// the geometry of such launches.
//
// A thread takes several elements at once where every row begins at a multiple of 16 bytes (`wide`), else one.
#pragma once
#include "cuda_kernels.h"
#include "dev.cuh"

// fn<element type>(arguments) for t, F32 or BF16
#define BY_TYPE(t, fn, ...) ((t) == DT_BF16 ? fn<bf16>(__VA_ARGS__) : fn<float>(__VA_ARGS__))

template <typename T> constexpr DType DTYPE = DT_F32;
template <> inline constexpr DType DTYPE<bf16> = DT_BF16;

constexpr int ROW_THREADS = 256;

// Elements that a thread takes of arrays of f32 and others together: accesses of a warp to any of them lie side by side. (With 8,
// 32 bytes of f32 to a thread, each of two accesses would touch half of every sector.)
constexpr int BESIDE_F32 = 4;

// ---- elements ----
// v: elements [0, N) at p, as they are. N is 1, or they take 8 bytes (a store: 4) or a multiple of 16, to which, or 16, p is aligned.
template <int N, typename T> DEVICE void load_few(T (&v)[N], const T *p)
{
    if constexpr (N == 1)
        v[0] = *p;
    else if constexpr (N * sizeof(T) == 8) {
        const uint2 u = *reinterpret_cast<const uint2 *>(p);
        memcpy((void *)v, &u, sizeof u);
    } else {
        static_assert(N * sizeof(T) % 16 == 0, "8 bytes or a multiple of 16");
#pragma unroll
        for (int i = 0; i < N; i += Pack<T>::N) {
            const uint4 u = *reinterpret_cast<const uint4 *>(p + i);
            memcpy((void *)(v + i), &u, sizeof u);
        }
    }
}
template <int N, typename T> DEVICE void store_few(T *p, const T (&v)[N])
{
    if constexpr (N == 1)
        *p = v[0];
    else if constexpr (N * sizeof(T) == 4) {
        uint32_t u;
        memcpy(&u, v, sizeof u);
        *reinterpret_cast<uint32_t *>(p) = u;
    } else if constexpr (N * sizeof(T) == 8) {
        uint2 u;
        memcpy(&u, v, sizeof u);
        *reinterpret_cast<uint2 *>(p) = u;
    } else {
        static_assert(N * sizeof(T) % 16 == 0, "4 or 8 bytes or a multiple of 16");
#pragma unroll
        for (int i = 0; i < N; i += Pack<T>::N) {
            uint4 u;
            memcpy(&u, v + i, sizeof u);
            *reinterpret_cast<uint4 *>(p + i) = u;
        }
    }
}
// The same as f32
template <int N, typename T> DEVICE void load_n(float (&v)[N], const T *p)
{
    T few[N];
    load_few<N>(few, p);
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = to_f32(few[i]);
}
template <int N, typename T> DEVICE void store_n(T *p, const float (&v)[N])
{
    T few[N];
#pragma unroll
    for (int i = 0; i < N; i++) few[i] = from_f32<T>(v[i]);
    store_few<N>(p, few);
}

// ---- when rows can be read several elements at a time ----
template <typename... P> inline bool aligned16(P... p) // NULL is
{
    return (((uintptr_t)p % 16 == 0) && ...);
}
template <int N, typename... L> inline bool whole(L... lengths) // widths and row strides, in elements
{
    return ((lengths % N == 0) && ...);
}

// ---- geometry ----
// Rows of `items` each (an item: the columns that a thread takes at once): blocks of ROW_THREADS threads, x along the row, as wide as
// wastes at most an eighth of them, y over rows. A thread keeps its columns and walks down the rows, some `per_thread` of them.
struct RowGrid {
    dim3 grid, block;
};
inline RowGrid row_grid(int64_t items, int64_t rows, int per_thread)
{
    int64_t x = ROW_THREADS;
    while (x > 4 && (items + x - 1) / x * x > items + items / 8) x /= 2;
    const int64_t y = ROW_THREADS / x, bands = (rows + y * per_thread - 1) / (y * per_thread);
    return {dim3((unsigned)((items + x - 1) / x), (unsigned)(bands < 65535 ? bands : 65535)),
            dim3((unsigned)x, (unsigned)y)};
}
struct RowWalk {
    int64_t item, row, step;
};
DEVICE RowWalk row_walk()
{
    return {blockIdx.x * (int64_t)blockDim.x + threadIdx.x, blockIdx.y * (int64_t)blockDim.y + threadIdx.y,
            gridDim.y * (int64_t)blockDim.y};
}

// An array of n elements, N to a thread
inline unsigned flat_blocks(size_t n, int N)
{
    const size_t items = (n + (size_t)N - 1) / (size_t)N;
    return (unsigned)((items + ROW_THREADS - 1) / ROW_THREADS);
}
DEVICE size_t flat_item()
{
    return blockIdx.x * (size_t)ROW_THREADS + threadIdx.x;
}
