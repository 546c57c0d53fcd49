// dtype: the element types of tensors, and the fixed point of gradient sums; apart from kernels.h so that C++ (the CUDA kernels) can
// include it too.
#pragma once

typedef enum DType { DT_F32, DT_BF16, DT_F16, DT_I64, DT_I32, DT_U8, DT_COUNT } DType;

// Fractional bits of order-free sums (fix_add, fix_read): 2^-44 = 5.7e-14 apart, up to ±5.2e5. Values of GRAD_FIX_LIMIT and up are
// refused.
enum { GRAD_FIX_BITS = 44 };
#define GRAD_FIX_LIMIT 5.2e5
