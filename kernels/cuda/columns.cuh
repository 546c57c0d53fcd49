// columns: sums over the rows of a matrix, one for each column, in two steps: blocks of rows are summed into rows of `partial`
// (f32), and those in their order. Where rows are cut depends on shapes alone.
#pragma once
#include "rows.cuh"

// out[c] = (accumulate ? out[c] : 0) + (scale ? scale[c] : 1) * sum of partial (count, C)'s column c
void sum_partials(float *out, const float *partial, int count, int C, const float *scale, bool accumulate,
                  cudaStream_t stream);

// What one pass over two matrices of the same shape sums up, and writes beside it:
//   SUM_DY        dy                                            (dy alone is read)
//   SUM_DY_U      dy * u, and du = gain * dy
//   SUM_DY_U_ROW  dy * (u - row_shift[row]) * row_scale[row]; row_shift NULL: 0
enum ColumnSum { SUM_DY, SUM_DY_U, SUM_DY_U_ROW };
struct ColumnArgs {
    void *du; // may be dy or u
    int64_t lddu;
    const void *dy;
    int64_t lddy;
    const void *u;
    int64_t ldu;
    const float *gain, *row_scale, *row_shift;
    int C, rows;
};
int column_partials(int C, int rows); // how many partials of C columns a pass writes; 0 of no rows
void column_sums(DType t, ColumnSum what, float *partial, const ColumnArgs &a, cudaStream_t stream);
