// dtype: the element types of tensors; apart from kernels.h so that C++ (CUDA launchers) can include it too.
#pragma once

typedef enum DType { DT_F32, DT_BF16, DT_F16, DT_I64, DT_I32, DT_U8, DT_COUNT } DType;
