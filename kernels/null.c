// The null device (kernels.h): stands in for another one where only what is asked for matters.
#include "kernels.h"
#include <stdlib.h>

#pragma GCC diagnostic ignored "-Wunused-parameter"
#define OP(name, args)                                                                                                 \
    static void null_##name args {}
#include "ops.def"
#undef OP

static int null_copy(Device *d, void *dst, const void *src, size_t bytes)
{
    return OK;
}

static int null_zero(Device *d, void *dst, size_t bytes)
{
    return OK;
}

static int null_sync(Device *d)
{
    return OK;
}

static size_t null_packed_bytes(const Device *d, DType t, int N, int K)
{
    const Device *like = d->impl;
    return like->packed_bytes(like, t, N, K);
}

static size_t null_scratch_bytes(const Device *d)
{
    (void)d;
    return 0;
}

static void null_close(Device *d)
{
    free(d);
}

int device_open_null(Device **out, const Device *like)
{
    static const OpTable nothing = {
#define OP(name, args) .name = null_##name,
#include "ops.def"
#undef OP
    };
    Device *d = xcalloc(1, sizeof *d);
    *d = (Device){.name = like->name,
                  .op = nothing,
                  .memory_bytes = like->memory_bytes,
                  .fast_bf16 = like->fast_bf16,
                  .borders = like->borders,
                  .upload = null_copy,
                  .download = null_copy,
                  .zero = null_zero,
                  .sync = null_sync,
                  .packed_bytes = null_packed_bytes,
                  .scratch_bytes = null_scratch_bytes,
                  .close = null_close,
                  .impl = (void *)like};
    if (like->imitate) like->imitate(like, d);
    *out = d;
    return OK;
}
