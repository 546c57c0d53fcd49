// staging: copies of an op's operands in device memory. A call is: begin, an in or inout for each pointer, the launcher, end.
#pragma once
#include "cudahost.h"
#include "kernels.h"

typedef struct OrderOf { // the device's impl
    CudahostOrder order;
    uint64_t seed;
} OrderOf;

enum { MAX_OPERANDS = 16 };

typedef struct Operand {
    void *host;
    size_t bytes;
    char *base, *device; // of the allocation; of the copy in it
    bool written;
} Operand;

typedef struct Staging {
    const char *op;
    int n;
    Operand operand[MAX_OPERANDS];
} Staging;

void staging_begin(Staging *s, const Device *d, const char *op); // sets the order
// Copies; NULL stays NULL. The same pointer again (in-place use) is the same copy, written if any use of it is.
const void *staging_in(Staging *s, const char *name, const void *p, size_t bytes);
void *staging_inout(Staging *s, const char *name, void *p, size_t bytes);
void *staging_scratch(Staging *s, size_t bytes); // device memory for the call
// Copies back what was written; fails the test where something is wrong
void staging_end(Staging *s);

static inline size_t matrix_bytes(DType t, int64_t ld, int64_t width, int64_t rows)
{
    return rows > 0 ? (size_t)((rows - 1) * ld + width) * dtype_size(t) : 0;
}
