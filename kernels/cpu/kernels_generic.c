// Any machine: vectors of four, which every 64-bit processor has. See isa_kernels.h.
#define VL 4
#include "activation_kernels.h"
#include "attention_kernels.h"
#include "dora_kernels.h"
#include "elementwise_kernels.h"
#include "layernorm_kernels.h"
#include "optim_kernels.h"

#define X(result, name, args) name,
const IsaKernels kernels_generic = {ISA_KERNELS(X)};
