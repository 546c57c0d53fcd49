// emu: the host's definitions of the primitives of kernels/cuda/dev.cuh, which says what each does.
#pragma once
#include <stdint.h>

namespace cudahost
{
void mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1, const char *file, int line);
void ldmatrix(int matrices, bool trans, uint32_t *r, const void *row, const char *file, int line);
void copy_async(void *shared, const void *global, int bytes, int valid, const char *file, int line);
void copy_commit();
void copy_wait(int pending);
void named_barrier(int id, int threads, bool wait, const char *file, int line);
float exp2_counted(float x);
} // namespace cudahost

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, CUDAHOST_HERE)
{
    cudahost::mma(c, a, b0, b1, file_, line_);
}
inline void ldmatrix_x1(uint32_t (&r)[1], const void *row, CUDAHOST_HERE)
{
    cudahost::ldmatrix(1, false, r, row, file_, line_);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void *row, CUDAHOST_HERE)
{
    cudahost::ldmatrix(2, false, r, row, file_, line_);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void *row, CUDAHOST_HERE)
{
    cudahost::ldmatrix(4, false, r, row, file_, line_);
}
inline void ldmatrix_x1_trans(uint32_t (&r)[1], const void *row, CUDAHOST_HERE)
{
    cudahost::ldmatrix(1, true, r, row, file_, line_);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row, CUDAHOST_HERE)
{
    cudahost::ldmatrix(2, true, r, row, file_, line_);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row, CUDAHOST_HERE)
{
    cudahost::ldmatrix(4, true, r, row, file_, line_);
}
template <int BYTES> inline void cp_async(void *shared, const void *global, int valid = BYTES, CUDAHOST_HERE)
{
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "4, 8 or 16 bytes");
    cudahost::copy_async(shared, global, BYTES, valid, file_, line_);
}
inline void cp_async_commit()
{
    cudahost::copy_commit();
}
template <int PENDING> inline void cp_async_wait()
{
    cudahost::copy_wait(PENDING);
}
inline void barrier_sync(int id, int threads, CUDAHOST_HERE)
{
    cudahost::named_barrier(id, threads, true, file_, line_);
}
inline void barrier_arrive(int id, int threads, CUDAHOST_HERE)
{
    cudahost::named_barrier(id, threads, false, file_, line_);
}
inline float exp2_fast(float x)
{
    return cudahost::exp2_counted(x);
}
