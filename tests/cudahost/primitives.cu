// primitives: kernels that show what dev.cuh's primitives do, for test_primitives.c.
#include "primitives.h"
#include "dev.cuh"

__global__ void mma_once(const uint32_t *a, const uint32_t *b, float *c)
{
    const int lane = threadIdx.x;
    const uint32_t fragment[4] = {a[lane * 4], a[lane * 4 + 1], a[lane * 4 + 2], a[lane * 4 + 3]};
    float sum[4] = {c[lane * 4], c[lane * 4 + 1], c[lane * 4 + 2], c[lane * 4 + 3]};
    mma_bf16(sum, fragment, b[lane * 2], b[lane * 2 + 1]);
    for (int i = 0; i < 4; i++) c[lane * 4 + i] = sum[i];
}
void primitive_mma(const uint32_t *a, const uint32_t *b, float *c)
{
    LAUNCH(mma_once, dim3(1), dim3(WARP), 0, nullptr, a, b, c);
}

// Four matrices of 8 rows of 8 elements in `in`, one after another
template <int N, bool TRANS> __global__ void ldmatrix_once(const uint16_t *in, uint32_t *out)
{
    __shared__ __align__(16) uint16_t x[4 * 64];
    const int lane = threadIdx.x;
    for (int i = lane; i < 4 * 64; i += WARP) x[i] = in[i];
    __syncwarp();
    uint32_t r[N];
    const uint16_t *row = x + lane % (8 * N) * 8;
    if constexpr (N == 1 && TRANS) ldmatrix_x1_trans(r, row);
    if constexpr (N == 1 && !TRANS) ldmatrix_x1(r, row);
    if constexpr (N == 2 && TRANS) ldmatrix_x2_trans(r, row);
    if constexpr (N == 2 && !TRANS) ldmatrix_x2(r, row);
    if constexpr (N == 4 && TRANS) ldmatrix_x4_trans(r, row);
    if constexpr (N == 4 && !TRANS) ldmatrix_x4(r, row);
    for (int i = 0; i < N; i++) out[lane * N + i] = r[i];
}
template <int N> static void ldmatrix_of(bool trans, const uint16_t *in, uint32_t *out)
{
    if (trans)
        LAUNCH((ldmatrix_once<N, true>), dim3(1), dim3(WARP), 0, nullptr, in, out);
    else
        LAUNCH((ldmatrix_once<N, false>), dim3(1), dim3(WARP), 0, nullptr, in, out);
}
void primitive_ldmatrix(int matrices, bool trans, const uint16_t *in, uint32_t *out)
{
    if (matrices == 1) ldmatrix_of<1>(trans, in, out);
    if (matrices == 2) ldmatrix_of<2>(trans, in, out);
    if (matrices == 4) ldmatrix_of<4>(trans, in, out);
}

// Each thread copies BYTES, of which it reads as many as its lane says, up to all.
template <int BYTES> __global__ void copy_once(const unsigned char *in, unsigned char *out)
{
    __shared__ __align__(16) unsigned char x[WARP * BYTES];
    const int lane = threadIdx.x;
    cp_async<BYTES>(x + lane * BYTES, in + lane * BYTES, min(lane, BYTES));
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = 0; i < BYTES; i++) out[lane * BYTES + i] = x[lane * BYTES + i];
}
void primitive_copy(int bytes, const unsigned char *in, unsigned char *out)
{
    if (bytes == 4) LAUNCH(copy_once<4>, dim3(1), dim3(WARP), 0, nullptr, in, out);
    if (bytes == 8) LAUNCH(copy_once<8>, dim3(1), dim3(WARP), 0, nullptr, in, out);
    if (bytes == 16) LAUNCH(copy_once<16>, dim3(1), dim3(WARP), 0, nullptr, in, out);
}

__global__ void shuffles(int *out)
{
    const int lane = threadIdx.x;
    int *o = out + lane * PRIMITIVE_SHUFFLES;
    o[0] = __shfl_sync(ALL_LANES, lane, 5);
    o[1] = __shfl_sync(ALL_LANES, lane, 5, 8);
    o[2] = __shfl_xor_sync(ALL_LANES, lane, 3);
    o[3] = __shfl_up_sync(ALL_LANES, lane, 2);
    o[4] = __shfl_up_sync(ALL_LANES, lane, 2, 8);
    o[5] = __shfl_down_sync(ALL_LANES, lane, 3);
    o[6] = __shfl_down_sync(ALL_LANES, lane, 3, 16);
    o[7] = (int)__ballot_sync(ALL_LANES, lane % 3 == 0);
    o[8] = __any_sync(ALL_LANES, lane == 7);
    o[9] = __all_sync(ALL_LANES, lane < 31);
    const unsigned mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    o[10] = (int)__ballot_sync(mask, lane % 2);
    o[11] = __all_sync(mask, lane < 16);
}
void primitive_shuffles(int *out)
{
    LAUNCH(shuffles, dim3(1), dim3(WARP), 0, nullptr, out);
}

// Sums and largest values of a block; votes at the barrier
__global__ void reductions(const float *in, float *out)
{
    __shared__ float scratch[4];
    const float v = in[threadIdx.x];
    float *o = out + threadIdx.x * PRIMITIVE_REDUCTIONS;
    o[0] = warp_sum(v);
    o[1] = warp_max(v);
    o[2] = block_sum<4>(v, scratch);
    o[3] = block_max<4>(v, scratch);
    o[4] = (float)__syncthreads_count(v > 0);
    o[5] = (float)__syncthreads_or(threadIdx.x == 77);
    o[6] = (float)__syncthreads_and(threadIdx.x != 77);
}
void primitive_reductions(const float *in, float *out)
{
    LAUNCH(reductions, dim3(1), dim3(PRIMITIVE_THREADS), 0, nullptr, in, out);
}

// Two warps write tiles that two others read, by two named barriers for each of two buffers.
__global__ void producers_and_consumers(const float *in, float *out, int tiles)
{
    __shared__ float x[2][2 * WARP];
    const int i = threadIdx.x % (2 * WARP), all = 4 * WARP;
    if (threadIdx.x < 2 * WARP)
        for (int tile = 0; tile < tiles; tile++) {
            if (tile >= 2) barrier_sync(3 + tile % 2, all); // has been read
            x[tile % 2][i] = in[tile * 2 * WARP + i];
            barrier_arrive(1 + tile % 2, all); // can be read
        }
    else
        for (int tile = 0; tile < tiles; tile++) {
            barrier_sync(1 + tile % 2, all);
            out[tile * 2 * WARP + i] = x[tile % 2][2 * WARP - 1 - i];
            if (tile + 2 < tiles) barrier_arrive(3 + tile % 2, all);
        }
}
void primitive_named_barriers(const float *in, float *out, int tiles)
{
    LAUNCH(producers_and_consumers, dim3(1), dim3(4 * WARP), 0, nullptr, in, out, tiles);
}

__global__ void philox_words(uint64_t key, uint64_t hi, uint64_t lo, uint32_t *out)
{
    const uint4 w = philox4(key, hi, lo + threadIdx.x);
    uint32_t *o = out + threadIdx.x * 4;
    o[0] = w.x, o[1] = w.y, o[2] = w.z, o[3] = w.w;
}
void primitive_philox(uint64_t key, uint64_t hi, uint64_t lo, uint32_t *out)
{
    LAUNCH(philox_words, dim3(1), dim3(WARP), 0, nullptr, key, hi, lo, out);
}

__global__ void exp2_of(const float *in, float *out)
{
    out[threadIdx.x] = exp2_fast(in[threadIdx.x]);
}
void primitive_exp2(const float *in, float *out)
{
    LAUNCH(exp2_of, dim3(1), dim3(WARP), 0, nullptr, in, out);
}

// Which thread of which block came how late
__global__ void arrivals(unsigned *ticket, unsigned *out)
{
    out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(ticket, 1u);
}
void primitive_arrivals(unsigned *ticket, unsigned *out)
{
    LAUNCH(arrivals, dim3(3), dim3(64), 0, nullptr, ticket, out);
}
