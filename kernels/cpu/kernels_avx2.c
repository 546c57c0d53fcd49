// AVX2 and FMA. See isa_kernels.h.
#define VL 8
#include "activation_kernels.h"
#include "attention_kernels.h"
#include "dora_kernels.h"
#include "elementwise_kernels.h"
#include "layernorm_kernels.h"
#include "optim_kernels.h"

#define X(result, name, args) name,
const IsaKernels kernels_avx2 = {ISA_KERNELS(X)};
