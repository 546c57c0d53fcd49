// cudahost.h over a CUDA runtime: the tests of kernels, as they are, on a GPU (or over libcudahost.so). Memory is managed, so that tests use
// it as they use the host's; launches have to be over when they return: CUDA_LAUNCH_BLOCKING=1. What the runtime reports, and guard zones
// that were written to, are findings; there are no orders and no counts.
#include "cudahost.h"
#include "base.h"
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 4096, CANARY = 0xa5, POISON = 0xff, MOST = 256, KEPT = 8 };

static struct Buffer {
    unsigned char *base;
    size_t bytes;
    const char *name;
} buffer[MOST];
static CudahostFinding found[KEPT];
static size_t n_found;

static void finding(CudahostKind kind, const char *text)
{
    if (n_found == KEPT) return;
    found[n_found].kind = kind;
    snprintf(found[n_found++].text, sizeof found[0].text, "%s", text);
}

static void check(cudaError_t e, const char *what)
{
    if (e != cudaSuccess) finding(CUDAHOST_LAUNCH, tmpf("%s: %s", what, cudaGetErrorString(e)));
}

void *cudahost_alloc(size_t bytes, const char *name)
{
    int i = 0;
    unsigned char *p = NULL;
    const size_t inside = ROUND_UP(bytes, 256);
    while (i < MOST && buffer[i].base) i++;
    ASSERT(i < MOST && getenv("CUDA_LAUNCH_BLOCKING"));
    check(cudaMallocManaged((void **)&p, inside + 2 * GUARD, cudaMemAttachGlobal), "cudaMallocManaged");
    ASSERT(p);
    memset(p, CANARY, inside + 2 * GUARD);
    memset(p + GUARD, POISON, bytes);
    buffer[i] = (struct Buffer){p + GUARD, bytes, name};
    return p + GUARD;
}

static void check_guard(const struct Buffer *b, const unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != CANARY) {
            finding(CUDAHOST_OUT_OF_BOUNDS, tmpf("%s%+td of %zu bytes was written to; found when it was freed", b->name,
                                                 p + i - b->base, b->bytes));
            return;
        }
}

void cudahost_free(void *p)
{
    if (!p) return;
    int i = 0;
    while (i < MOST && buffer[i].base != p) i++;
    ASSERT(i < MOST);
    const struct Buffer b = buffer[i];
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check_guard(&b, b.base - GUARD, GUARD);
    check_guard(&b, b.base + b.bytes, ROUND_UP(b.bytes, 256) - b.bytes + GUARD);
    check(cudaFree(b.base - GUARD), "cudaFree");
    buffer[i].base = NULL;
}

bool cudahost_on_host(void)
{
    return false;
}

void cudahost_order(CudahostOrder order, uint64_t seed)
{
    (void)order, (void)seed;
}

size_t cudahost_findings(void)
{
    check(cudaGetLastError(), "launch");
    return n_found;
}

const CudahostFinding *cudahost_finding(size_t i)
{
    return &found[i];
}

void cudahost_clear(void)
{
    n_found = 0;
}

const char *cudahost_kind_name(CudahostKind kind)
{
    return kind == CUDAHOST_OUT_OF_BOUNDS ? "out of bounds" : "CUDA";
}

CudahostCounts cudahost_counts(void)
{
    return (CudahostCounts){0};
}

CudahostTotals cudahost_totals(void)
{
    return (CudahostTotals){0};
}

bool cudahost_hooked(void)
{
    return false;
}
