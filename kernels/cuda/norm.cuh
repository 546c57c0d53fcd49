// norm: what the kernels of RMSNorm and LayerNorm share: sums over a row that one or more warps hold.
#pragma once
#include "columns.cuh"

constexpr int NORM_HELD = 4;                                    // vectors of a thread
constexpr int NORM_ROWS = 4;                                    // rows of a block, where a warp holds one
constexpr int LONG_WARPS = 8, LONG_THREADS = LONG_WARPS * WARP; // of the kernels that read a row more than once

// The sum over the WARPS warps of a row, of `groups` in the block, the same to all of its threads. scratch: two lines of as many
// floats as the block has warps; `turn` alternates, so that one barrier is enough. All threads of the block come when WARPS > 1.
template <int WARPS> DEVICE float row_sum(float v, float *scratch, int turn)
{
    v = warp_sum(v);
    if constexpr (WARPS == 1) return v;
    const int warps = (int)blockDim.x / WARP, warp = (int)threadIdx.x / WARP;
    float *line = scratch + turn * warps;
    if (threadIdx.x % WARP == 0) line[warp] = v;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += line[warp / WARPS * WARPS + w];
    return sum;
}
