// elementwise: kernels bound by memory, a row or an element at a time; formulas in cpu/elementwise.c.
#include "cuda_kernels.h"
#include "dev.cuh"

// ---- RMSNorm ----
// A warp per row. The row is read twice, the second time out of L1 or L2; every access of a warp is 512 bytes in a row when VEC.
// C % (16 bytes) != 0: element by element (VEC false).
constexpr int NORM_WARPS = 4;

template <typename T, bool VEC> DEVICE float row_sum_squares(const T *x, int C, int lane)
{
    constexpr int N = VEC ? Pack<T>::N : 1;
    float sum = 0;
    for (int c = lane * N; c < C; c += WARP * N) {
        if constexpr (VEC) {
            Pack<T> p = load16(x + c);
#pragma unroll
            for (int i = 0; i < N; i++) sum = fmaf(to_f32(p.v[i]), to_f32(p.v[i]), sum);
        } else
            sum = fmaf(to_f32(x[c]), to_f32(x[c]), sum);
    }
    return warp_sum(sum);
}

template <typename T, bool VEC>
__global__ void __launch_bounds__(NORM_WARPS *WARP)
    rmsnorm_fwd(T *__restrict__ y, float *__restrict__ rstd, const T *__restrict__ x, const float *__restrict__ w,
                float w_offset, float eps, int C, int rows)
{
    const int lane = threadIdx.x % WARP;
    const int64_t row = (int64_t)blockIdx.x * NORM_WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    x += row * C, y += row * C;
    const float r = rsqrtf(row_sum_squares<T, VEC>(x, C, lane) / (float)C + eps);
    if (lane == 0) rstd[row] = r;
    constexpr int N = VEC ? Pack<T>::N : 1;
    for (int c = lane * N; c < C; c += WARP * N) {
        if constexpr (VEC) {
            Pack<T> p = load16(x + c);
            for (int i = 0; i < N; i += 4) {
                Pack<float> g = load16(w + c + i);
#pragma unroll
                for (int k = 0; k < 4; k++) p.v[i + k] = from_f32<T>((g.v[k] + w_offset) * to_f32(p.v[i + k]) * r);
            }
            store16(y + c, p);
        } else
            y[c] = from_f32<T>((w[c] + w_offset) * to_f32(x[c]) * r);
    }
}

template <typename T>
static void launch_rmsnorm_fwd(void *y, float *rstd, const void *x, const float *w, float w_offset, float eps, int C,
                               int rows, cudaStream_t stream)
{
    const dim3 grid((rows + NORM_WARPS - 1) / NORM_WARPS), block(NORM_WARPS * WARP);
    if (C % Pack<T>::N == 0)
        LAUNCH((rmsnorm_fwd<T, true>), grid, block, 0, stream, (T *)y, rstd, (const T *)x, w, w_offset, eps, C, rows);
    else
        LAUNCH((rmsnorm_fwd<T, false>), grid, block, 0, stream, (T *)y, rstd, (const T *)x, w, w_offset, eps, C, rows);
}

void cuda_rmsnorm_fwd(DType t, void *y, float *rstd, const void *x, const float *w, float w_offset, float eps, int C,
                      int T, cudaStream_t stream)
{
    if (T == 0) return;
    if (t == DT_BF16)
        launch_rmsnorm_fwd<bf16>(y, rstd, x, w, w_offset, eps, C, T, stream);
    else
        launch_rmsnorm_fwd<float>(y, rstd, x, w, w_offset, eps, C, T, stream);
}
