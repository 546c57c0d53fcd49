// AVX-512 with bf16 dot products. See isa_kernels.h.
#define VL 16
#include "activation_kernels.h"
#include "attention_kernels.h"
#include "dora_kernels.h"
#include "elementwise_kernels.h"
#include "layernorm_kernels.h"
#include "optim_kernels.h"

#define X(result, name, args) name,
const IsaKernels kernels_avx512 = {ISA_KERNELS(X)};
