// seeded: small kernels, each right with BUG false and with one bug with BUG true; seeded.def says which. `in` has 4096 floats and as many bf16
// at its beginning, `out` 4096 floats.
#include "seeded.h"
#include "dev.cuh"

constexpr int THREADS = 64;

// ---- shared memory ----
template <bool BUG> __global__ void missing_barrier(const float *in, float *out)
{
    __shared__ float x[THREADS];
    const int i = threadIdx.x;
    x[i] = in[i];
    if (!BUG) __syncthreads();
    out[i] = x[(i + 40) % THREADS];
}

template <bool BUG> __global__ void missing_syncwarp(const float *in, float *out)
{
    __shared__ float x[THREADS];
    const int i = threadIdx.x;
    x[i] = in[i];
    if (!BUG) __syncwarp();
    out[i] = x[i ^ 1];
}

template <bool BUG> __global__ void shuffle_for_syncwarp(const float *in, float *out)
{
    __shared__ float x[THREADS];
    const int i = threadIdx.x;
    x[i] = in[i];
    const float sum = warp_sum(in[i]);
    if (!BUG) __syncwarp();
    out[i] = x[i ^ 1] + sum;
}

template <bool BUG> __global__ void write_after_read(const float *in, float *out)
{
    __shared__ float x[2][THREADS];
    const int i = threadIdx.x;
    float sum = 0;
    for (int tile = 0; tile < 6; tile++) {
        x[tile % 2][i] = in[tile * THREADS + i];
        if (!BUG || tile == 0) __syncthreads();
        sum += x[tile % 2][(i + 33) % THREADS];
        __syncwarp();
    }
    out[i] = sum;
}

template <bool BUG> __global__ void copy_over_read(const float *in, float *out)
{
    __shared__ float x[2][THREADS];
    const int i = threadIdx.x;
    float sum = 0;
    cp_async<4>(&x[0][i], &in[i]);
    cp_async_commit();
    for (int tile = 0; tile < 6; tile++) {
        cp_async<4>(&x[(tile + 1) % 2][i], &in[(tile + 1) * THREADS + i]);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        sum += x[tile % 2][(i + 33) % THREADS];
        if (!BUG) __syncthreads();
    }
    cp_async_wait<0>();
    out[i] = sum;
}

template <bool BUG> __global__ void wait_for_barrier(const float *in, float *out)
{
    __shared__ float x[THREADS];
    const int i = threadIdx.x;
    cp_async<4>(&x[i], &in[i]);
    cp_async_commit();
    cp_async_wait<0>();
    if (!BUG) __syncthreads();
    out[i] = x[(i + 40) % THREADS];
}

template <bool BUG> __global__ void ldmatrix_too_early(const float *in, float *out)
{
    __shared__ __align__(128) uint32_t x[THREADS / WARP][8][4];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x[warp][lane / 4][lane % 4] = __float_as_uint(in[threadIdx.x]);
    if (!BUG) __syncwarp();
    uint32_t r[1];
    ldmatrix_x1(r, x[warp][lane % 8]);
    out[threadIdx.x] = __uint_as_float(r[0]);
}

// The first warp writes, the second one reads.
template <bool BUG> __global__ void half_the_named_barrier(const float *in, float *out)
{
    __shared__ float x[WARP];
    const int lane = threadIdx.x % WARP;
    if (threadIdx.x < WARP) {
        x[lane] = in[lane];
        if (!BUG) barrier_arrive(1, 2 * WARP);
    } else {
        if (!BUG) barrier_sync(1, 2 * WARP);
        out[lane] = x[WARP - 1 - lane];
    }
}

template <bool BUG> __global__ void reduce_of_part(const float *in, float *out)
{
    __shared__ float x[4];
    const float v = warp_sum(in[threadIdx.x]);
    if (threadIdx.x % WARP == 0) x[threadIdx.x / WARP] = v;
    __syncthreads();
    float sum = 0;
    for (int w = 0; w < (BUG ? 4 : THREADS / WARP); w++) sum += x[w];
    out[threadIdx.x] = sum;
}

template <bool BUG> __global__ void shared_too_small(const float *in, float *out)
{
    DYN_SMEM(float, x);
    const int i = threadIdx.x;
    x[i] = in[i];
    __syncthreads();
    out[i] = x[THREADS - 1 - i];
}

// ---- global memory ----
template <bool BUG> __global__ void blocks_share_a_sum(const float *in, float *out)
{
    const float v = warp_sum(in[threadIdx.x]);
    if (threadIdx.x == 0) out[BUG ? 0 : blockIdx.x] = v;
}

template <bool BUG> __global__ void flag_between_blocks(const float *in, float *out)
{
    unsigned *flag = (unsigned *)out;
    if (threadIdx.x == 0) atomicMax(flag, __float_as_uint(fabsf(in[blockIdx.x])));
    if (BUG && threadIdx.x == 1) out[1 + blockIdx.x] = out[0];
}

template <bool BUG> __global__ void row_in_place(const float *in, float *out)
{
    const int i = threadIdx.x;
    out[THREADS + i] = in[i];
    __syncthreads();
    const float next = out[THREADS + (i + 1) % THREADS];
    if (!BUG) __syncthreads();
    out[THREADS + i] = next;
}

template <bool BUG> __global__ void guard_removed(const float *in, float *out, int n)
{
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (BUG || i < n) out[i] = in[i];
}

template <bool BUG> __global__ void copy_guard_removed(const float *in, float *out, int n)
{
    __shared__ __align__(16) float x[4 * THREADS];
    const int i = 4 * (blockIdx.x * THREADS + threadIdx.x);
    cp_async<16>(&x[4 * threadIdx.x], BUG || i < n ? &in[i] : in, BUG || i < n ? 16 : 0);
    cp_async_commit();
    cp_async_wait<0>();
    if (i < n) out[i] = x[4 * threadIdx.x];
}

template <bool BUG> __global__ void host_pointer(const float *in, float *out)
{
    out[threadIdx.x] = in[threadIdx.x];
}

template <bool BUG> __global__ void misaligned_vector(const float *in, float *out)
{
    store16(out + 4 * threadIdx.x, load16(in + 4 * threadIdx.x + (BUG ? 1 : 0)));
}

// (Read in two halves is well: the second one finds its sectors in L1.)
template <bool BUG> __global__ void half_sectors(const float *in, float *out)
{
    const int i = threadIdx.x;
    const Pack<float> first = load16(in + 8 * i), second = load16(in + 8 * i + 4);
    store16(out + (BUG ? 8 * i : 4 * i), first);
    store16(out + (BUG ? 8 * i + 4 : 4 * (THREADS + i)), second);
}

template <bool BUG> __global__ void strided_rows(const float *in, float *out)
{
    const int i = threadIdx.x;
    float sum = 0;
    for (int c = 0; c < 16; c++) sum += BUG ? in[i * 16 + c] : in[c * THREADS + i];
    out[i] = sum;
}

// ---- cp.async ----
template <bool BUG> __global__ void missing_wait(const float *in, float *out)
{
    __shared__ float x[THREADS];
    const int i = threadIdx.x;
    cp_async<4>(&x[i], &in[i]);
    cp_async_commit();
    if (!BUG) cp_async_wait<0>();
    __syncthreads();
    out[i] = x[(i + 40) % THREADS];
    cp_async_wait<0>();
}

template <bool BUG> __global__ void wait_one_too_few(const float *in, float *out)
{
    __shared__ float x[4][THREADS];
    const int i = threadIdx.x;
    float sum = 0;
    for (int tile = 0; tile < 4; tile++) {
        cp_async<4>(&x[tile][i], &in[tile * THREADS + i]);
        cp_async_commit();
    }
    for (int tile = 0; tile < 4; tile++) {
        if (tile < 3 || BUG)
            cp_async_wait<1>();
        else
            cp_async_wait<0>();
        __syncthreads();
        sum += x[tile][THREADS - 1 - i];
    }
    cp_async_wait<0>();
    out[i] = sum;
}

template <bool BUG> __global__ void copy_left_in_flight(const float *in, float *out)
{
    __shared__ float x[THREADS];
    const int i = threadIdx.x;
    cp_async<4>(&x[i], &in[i]);
    cp_async_commit();
    out[i] = in[i];
    if (!BUG) cp_async_wait<0>();
}

// ---- meetings ----
template <bool BUG> __global__ void divergent_barrier(const float *in, float *out)
{
    __shared__ float x[THREADS];
    const int i = threadIdx.x;
    x[i] = in[i];
    if (BUG && i < WARP)
        __syncthreads();
    else
        __syncthreads();
    out[i] = x[THREADS - 1 - i];
}

template <bool BUG> __global__ void early_barrier(const float *in, float *out)
{
    __shared__ float x[THREADS];
    const int i = threadIdx.x;
    if (BUG && i >= WARP) __syncthreads();
    x[i] = in[i];
    __syncthreads();
    out[i] = x[THREADS - 1 - i];
}

template <bool BUG> __global__ void half_warp_shuffle(const float *in, float *out)
{
    const int lane = threadIdx.x % WARP;
    float v = in[threadIdx.x];
    if (lane < 16) v += __shfl_xor_sync(BUG ? ALL_LANES : 0xffffu, v, 1);
    __syncwarp();
    out[threadIdx.x] = v;
}

template <bool BUG> __global__ void mma_in_branches(const float *in, float *out)
{
    float c[4] = {};
    const uint32_t one = 0x3f803f80, a[4] = {one, one, one, one};
    const bool high = BUG && threadIdx.x % WARP >= 16;
    if (high)
        mma_bf16(c, a, one, one);
    else
        mma_bf16(c, a, one, one);
    out[threadIdx.x] = c[0] + in[0];
}

template <bool BUG> __global__ void short_named_barrier(const float *in, float *out)
{
    const int i = threadIdx.x;
    if (i < WARP) barrier_sync(1, BUG ? 2 * WARP : WARP);
    out[i] = in[i];
}

template <bool BUG> __global__ void lanes_that_left(const float *in, float *out, int n)
{
    const int i = threadIdx.x;
    if (BUG && i >= n) return;
    const float sum = warp_sum(i < n ? in[i] : 0);
    if (i < n) out[i] = sum;
}

template <bool BUG> __global__ void not_in_mask(const float *in, float *out)
{
    const float v = in[threadIdx.x];
    const unsigned mask = threadIdx.x % WARP < 16 ? 0x0000ffffu : 0xffff0000u;
    out[threadIdx.x] = v + __shfl_xor_sync(BUG ? 0x0000ffffu : mask, v, 1);
}

template <bool BUG> __global__ void from_outside_mask(const float *in, float *out)
{
    const float v = in[threadIdx.x];
    const unsigned mask = threadIdx.x % WARP < 16 ? 0x0000ffffu : 0xffff0000u;
    out[threadIdx.x] = v + __shfl_xor_sync(mask, v, BUG ? 16 : 8);
}

template <bool BUG> __global__ void too_much_shared(const float *in, float *out)
{
    out[threadIdx.x] = in[threadIdx.x];
}

// ---- results ----
// c (16,8) = a (16,16) · b (16,8), of the 256 and 128 first bf16 of `in`
template <bool SWAP, bool PLAIN> DEVICE void tile_product(const float *in, float *out)
{
    __shared__ __align__(128) bf16 x[384];
    const int lane = threadIdx.x;
    for (int i = lane; i < 384; i += WARP) x[i] = ((const bf16 *)in)[i];
    __syncwarp();
    uint32_t a[4], b[2];
    ldmatrix_x4(a, &x[lane % 16 * 16 + lane / 16 * 8]);
    if (PLAIN)
        ldmatrix_x2(b, &x[256 + lane % 16 * 8]);
    else
        ldmatrix_x2_trans(b, &x[256 + lane % 16 * 8]);
    float c[4] = {};
    const uint32_t used[4] = {a[0], SWAP ? a[2] : a[1], SWAP ? a[1] : a[2], a[3]};
    mma_bf16(c, used, b[0], b[1]);
    for (int i = 0; i < 4; i++) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
}
template <bool BUG> __global__ void wrong_fragment(const float *in, float *out)
{
    tile_product<BUG, false>(in, out);
}
template <bool BUG> __global__ void not_transposed(const float *in, float *out)
{
    tile_product<false, BUG>(in, out);
}

template <bool BUG> __global__ void sum_in_order_of_arrival(const float *in, float *out)
{
    __shared__ float x[THREADS];
    __shared__ int next;
    const int i = threadIdx.x;
    if (i == 0) next = 0;
    __syncthreads();
    const int ticket = BUG ? atomicAdd(&next, 1) : i;
    x[ticket] = in[1024 + i];
    __syncthreads();
    float sum = 0;
    for (int k = 0; k < THREADS; k++) sum += x[k];
    if (i == 0) out[0] = sum;
}

// ---- cost ----
template <bool BUG> __global__ void no_swizzle(const float *in, float *out)
{
    __shared__ __align__(1024) float x[8][32]; // rows of 128 bytes
    const int lane = threadIdx.x, row = lane % 8;
    for (int r = 0; r < 8; r++) x[r][lane] = in[r * 32 + lane];
    __syncwarp();
    float sum = 0;
    for (int chunk = 0; chunk < 8; chunk += 4) {
        uint32_t f[4];
        const int c = chunk + lane / 8;
        ldmatrix_x4(f, &x[row][4 * (BUG ? c : c ^ row)]);
        sum += __uint_as_float(f[0]) + __uint_as_float(f[1]) + __uint_as_float(f[2]) + __uint_as_float(f[3]);
    }
    out[lane] = sum;
}

template <bool BUG> __global__ void column_of_shared(const float *in, float *out)
{
    constexpr int STRIDE = BUG ? 32 : 33;
    __shared__ float x[32 * STRIDE];
    const int lane = threadIdx.x;
    for (int r = 0; r < 32; r++) x[r * STRIDE + lane] = in[r * 32 + lane];
    __syncwarp();
    for (int r = 0; r < 32; r++) out[r * 32 + lane] = x[lane * STRIDE + r];
}

// ---- launchers ----
// As (grid, threads, dynamic shared memory) where it is not one block of 64 threads.
#define LAUNCHER(kernel, grid, threads, smem, ...)                                                                     \
    void seeded_##kernel(bool bug, const float *in, float *out)                                                        \
    {                                                                                                                  \
        if (bug)                                                                                                       \
            LAUNCH((kernel<true>), dim3(grid), dim3(threads), smem, nullptr, __VA_ARGS__);                             \
        else                                                                                                           \
            LAUNCH((kernel<false>), dim3(grid), dim3(threads), smem, nullptr, __VA_ARGS__);                            \
    }
#define SIMPLE(kernel)    LAUNCHER(kernel, 1, THREADS, 0, in, out)
#define WARP_ONLY(kernel) LAUNCHER(kernel, 1, WARP, 0, in, out)

SIMPLE(missing_barrier)
SIMPLE(missing_syncwarp)
SIMPLE(shuffle_for_syncwarp)
SIMPLE(write_after_read)
SIMPLE(copy_over_read)
SIMPLE(wait_for_barrier)
SIMPLE(ldmatrix_too_early)
SIMPLE(half_the_named_barrier)
SIMPLE(reduce_of_part)
LAUNCHER(shared_too_small, 1, THREADS, (bug ? THREADS / 2 : THREADS) * sizeof(float), in, out)
LAUNCHER(blocks_share_a_sum, 4, WARP, 0, in, out)
LAUNCHER(flag_between_blocks, 4, WARP, 0, in, out)
SIMPLE(row_in_place)
LAUNCHER(guard_removed, SEEDED_FLOATS / THREADS + 1, THREADS, 0, in, out, SEEDED_FLOATS)
LAUNCHER(copy_guard_removed, SEEDED_FLOATS / THREADS / 4 + 1, THREADS, 0, in, out, SEEDED_FLOATS)
static float host_variables[THREADS];
LAUNCHER(host_pointer, 1, THREADS, 0, bug ? host_variables : in, out)
SIMPLE(misaligned_vector)
SIMPLE(half_sectors)
SIMPLE(strided_rows)
SIMPLE(missing_wait)
SIMPLE(wait_one_too_few)
SIMPLE(copy_left_in_flight)
SIMPLE(divergent_barrier)
SIMPLE(early_barrier)
SIMPLE(half_warp_shuffle)
SIMPLE(mma_in_branches)
SIMPLE(short_named_barrier)
LAUNCHER(lanes_that_left, 1, WARP, 0, in, out, 20)
SIMPLE(not_in_mask)
SIMPLE(from_outside_mask)
LAUNCHER(too_much_shared, 1, THREADS, bug ? 228 << 10 : 227 << 10, in, out)
WARP_ONLY(wrong_fragment)
WARP_ONLY(not_transposed)
SIMPLE(sum_in_order_of_arrival)
WARP_ONLY(no_swizzle)
WARP_ONLY(column_of_shared)
