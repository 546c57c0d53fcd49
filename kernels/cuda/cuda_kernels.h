// cuda_kernels: the launchers of the CUDA device, one per kernel or small chain of kernels; ops.def says what each op computes.
// Plain C, so that device code stays in the .cu files. Pointers are device memory, 16-byte aligned where a row is read in one
// piece; work is put on `stream` and errors are left for cudaGetLastError. t: DT_F32 or DT_BF16.
#pragma once
#include "dtype.h"
#include <cuda_runtime.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- elementwise.cu ----
void cuda_rmsnorm_fwd(DType t, void *y, float *rstd, const void *x, const float *w, float w_offset, float eps, int C,
                      int T, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
