// tile: tiles of bf16 in shared memory as operands of the tensor core, and the two products that attention is made of:
//   multiply      c (rows, columns) = X (rows, D) · Yᵀ, Y (columns, D)
//   multiply_add  acc (rows, D) += c (rows, k) · Z (k, D), c rounded to bf16 on its way out of the accumulators of `multiply`, whose
//                 layout is just that of the left operand
#pragma once
#include "dev.cuh"

// ---- tiles: rows of DP elements, D of them used and the rest zero ----
// Chunks of 16 bytes are permuted within groups of a row so that 8 rows of a column of chunks lie in different banks.
template <int DP> DEVICE int tile_at(int row, int chunk)
{
    static_assert(DP % 16 == 0, "whole steps of the tensor core");
    constexpr int CHUNKS = DP / 8, GROUP = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
    return row * DP + ((chunk ^ (row / (8 / GROUP) % GROUP)) << 3);
}

// ---- fragments: `step` counts 16 elements along the sum ----
// Left operand: rows from row0 of a tile, or (_of_columns) columns from 8 chunk on as rows, the sum running down the tile.
template <int DP> DEVICE void left_fragment(uint32_t (&a)[4], const bf16 *tile, int row0, int step, int lane)
{
    ldmatrix_x4(a, tile + tile_at<DP>(row0 + lane % 16, 2 * step + lane / 16));
}
template <int DP> DEVICE void left_of_columns(uint32_t (&a)[4], const bf16 *tile, int chunk, int step, int lane)
{
    ldmatrix_x4_trans(a, tile + tile_at<DP>(16 * step + lane % 8 + lane / 16 * 8, chunk + lane / 8 % 2));
}
// Right operand, 16 columns of it: rows 16 n.. of a tile, or columns 16 n.. of it, the sum running down the tile.
template <int DP> DEVICE void right_of_rows(uint32_t (&b)[4], const bf16 *tile, int n, int step, int lane)
{
    ldmatrix_x4(b, tile + tile_at<DP>(16 * n + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
}
template <int DP> DEVICE void right_of_columns(uint32_t (&b)[4], const bf16 *tile, int n, int step, int lane)
{
    ldmatrix_x4_trans(b, tile + tile_at<DP>(16 * step + lane % 16, 2 * n + lane / 16));
}

// acc[m] columns 16 n.. += a[m] · b
template <int MT, int N>
DEVICE void mma_pair(float (&acc)[MT][N][4], const uint32_t (&a)[MT][4], const uint32_t (&b)[4], int n)
{
#pragma unroll
    for (int m = 0; m < MT; m++) {
        mma_bf16(acc[m][2 * n], a[m], b[0], b[1]);
        mma_bf16(acc[m][2 * n + 1], a[m], b[2], b[3]);
    }
}

template <int MT, int N> DEVICE void clear(float (&c)[MT][N][4])
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) c[m][n][e] = 0;
}

// ---- products ----
// c = X · Yᵀ for 16 MT rows of X from row0 and COLS rows of Y
template <int DP, int MT, int COLS>
DEVICE void multiply(float (&c)[MT][COLS / 8][4], const bf16 *x, int row0, const bf16 *y, int lane)
{
    clear(c);
#pragma unroll
    for (int step = 0; step < DP / 16; step++) {
        uint32_t a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) left_fragment<DP>(a[m], x, row0 + 16 * m, step, lane);
#pragma unroll
        for (int n = 0; n < COLS / 16; n++) {
            uint32_t b[4];
            right_of_rows<DP>(b, y, n, step, lane);
            mma_pair(c, a, b, n);
        }
    }
}

// acc += c · Z for K rows of Z
template <int DP, int MT, int K>
DEVICE void multiply_add(float (&acc)[MT][DP / 8][4], const float (&c)[MT][K / 8][4], const bf16 *z, int lane)
{
#pragma unroll
    for (int step = 0; step < K / 16; step++) {
        uint32_t a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *two = &c[m][2 * step + i / 2][i % 2 * 2];
                a[m][i] = pack_bf16(two[0], two[1]);
            }
#pragma unroll
        for (int n = 0; n < DP / 16; n++) {
            uint32_t b[4];
            right_of_columns<DP>(b, z, n, step, lane);
            mma_pair(acc, a, b, n);
        }
    }
}

// Scaled, rounded, into the warp's own rows of a tile, for tile_store after a __syncwarp.
template <int DP, int MT>
DEVICE void put_rows(bf16 *tile, int row0, const float (&acc)[MT][DP / 8][4], const float (&scale)[MT][2], int lane)
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = row0 + 16 * m + 8 * h + lane / 4;
#pragma unroll
            for (int n = 0; n < DP / 8; n++) {
                const float *two = &acc[m][n][2 * h];
                const uint32_t word = pack_bf16(two[0] * scale[m][h], two[1] * scale[m][h]);
                *reinterpret_cast<uint32_t *>(tile + tile_at<DP>(row, n) + lane % 4 * 2) = word;
            }
        }
}
