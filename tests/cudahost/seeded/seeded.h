// Launchers of the kernels of seeded.def: seeded_NAME(bug, in, out); in: SEEDED_FLOATS floats, out as many, device memory.
#pragma once
#include <stdbool.h>

enum { SEEDED_FLOATS = 4096 };

#ifdef __cplusplus
extern "C" {
#endif
#define SEEDED(kernel, found_by, what) void seeded_##kernel(bool bug, const float *in, float *out);
#include "seeded.def"
#undef SEEDED
#ifdef __cplusplus
}
#endif
