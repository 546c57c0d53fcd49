// runtime: devices, memory, copies, errors.
#include "fake.h"
#include <map>
#include <memory>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

namespace fake
{
static thread_local cudaError_t last;
static thread_local int device;
static bool broken;
static size_t in_use;
static std::map<const char *, size_t> pinned; // host memory by address, bytes

int current_device()
{
    return device;
}

static int devices()
{
    return env("CUDAHOST_DEVICES", 8);
}

static size_t capacity()
{
    return (size_t)env("CUDAHOST_MEMORY", 4096) << 20;
}

cudaError_t error(cudaError_t e)
{
    if (broken) e = cudaErrorLaunchFailure;
    if (e != cudaSuccess) last = e;
    return e;
}

void break_device(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "cudahost: ");
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    broken = true;
}

static std::map<void *, size_t> &sizes() // of device memory
{
    static std::map<void *, size_t> s;
    return s;
}

static bool is_pinned(const void *p, size_t bytes)
{
    auto it = pinned.upper_bound((const char *)p);
    if (it == pinned.begin()) return false;
    --it;
    return (const char *)p + bytes <= it->first + it->second;
}

// ---- copies ----
static const char *place(const void *p, size_t bytes)
{
    return cudahost_is_device(p, bytes) ? "device" : is_pinned(p, bytes) ? "pinned" : "host";
}

static bool kind_fits(const void *dst, const void *src, size_t bytes, cudaMemcpyKind kind)
{
    const bool to_device = cudahost_is_device(dst, bytes), from_device = cudahost_is_device(src, bytes);
    switch (kind) {
    case cudaMemcpyHostToDevice: return to_device && !from_device;
    case cudaMemcpyDeviceToHost: return !to_device && from_device;
    case cudaMemcpyDeviceToDevice: return to_device && from_device;
    case cudaMemcpyHostToHost: return !to_device && !from_device;
    default: return true;
    }
}

// What leaves pageable memory has been read when the call returns, and what goes there has arrived; pinned memory is read and
// written when the stream comes to it.
static cudaError_t copy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    if (!bytes) return error(cudaSuccess);
    {
        FAKE_ENTRY;
        if (!kind_fits(dst, src, bytes, kind)) {
            fprintf(stderr, "cudahost: a copy of %zu bytes from %s to %s memory, said to be of kind %d\n", bytes,
                    place(src, bytes), place(dst, bytes), (int)kind);
            return error(cudaErrorInvalidValue);
        }
    }
    const bool from_pageable = !cudahost_is_device(src, bytes) && !is_pinned(src, bytes);
    const bool to_pageable = !cudahost_is_device(dst, bytes) && !is_pinned(dst, bytes);
    auto done = std::make_shared<bool>(false);
    if (from_pageable) {
        auto held = std::make_shared<std::vector<char>>((const char *)src, (const char *)src + bytes);
        submit(stream, "a copy", [=] { memcpy(dst, held->data(), bytes), *done = true; });
    } else
        submit(stream, "a copy", [=] { memmove(dst, src, bytes), *done = true; });
    if (to_pageable) run_until("a copy to pageable memory", [done] { return *done; });
    return error(cudaSuccess);
}
} // namespace fake

using namespace fake;

extern "C" {
// ---- devices ----
cudaError_t cudaGetDeviceCount(int *n)
{
    *n = devices();
    return *n ? cudaSuccess : error(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int i)
{
    if (i < 0 || i >= devices()) return error(cudaErrorInvalidDevice);
    device = i;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *i)
{
    *i = device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int i)
{
    if (i < 0 || i >= devices()) return error(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "host stand-in");
    p->major = 9;
    p->totalGlobalMem = capacity();
    p->multiProcessorCount = 4;
    p->pciBusID = i + 1;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = 227 << 10;
    p->maxThreadsPerBlock = 1024;
    p->warpSize = 32;
    memcpy(p->uuid.bytes, "cudahost", 8);
    memcpy(p->uuid.bytes + 8, &i, sizeof i);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int)
{
    switch (a) {
    case cudaDevAttrMultiProcessorCount: *value = 4; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
    default: return error(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *out, int bytes, int i)
{
    snprintf(out, (size_t)bytes, "0000:%02x:00.0", i + 1);
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *v)
{
    *v = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *v)
{
    *v = CUDART_VERSION;
    return cudaSuccess;
}

// ---- errors ----
cudaError_t cudaGetLastError(void)
{
    const cudaError_t e = broken ? cudaErrorLaunchFailure : last;
    last = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError(void)
{
    return broken ? cudaErrorLaunchFailure : last;
}
static const struct {
    cudaError_t e;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
};
const char *cudaGetErrorName(cudaError_t e)
{
    for (auto &x : errors)
        if (x.e == e) return x.name;
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t e)
{
    for (auto &x : errors)
        if (x.e == e) return x.text;
    return "unrecognized error code";
}

// ---- memory ----
cudaError_t cudaMalloc(void **out, size_t bytes)
{
    FAKE_ENTRY;
    *out = nullptr;
    if (in_use + bytes > capacity()) return error(cudaErrorMemoryAllocation);
    if (!bytes) return error(cudaSuccess);
    in_use += bytes;
    *out = cudahost_alloc(bytes, "device memory");
    sizes()[*out] = bytes;
    return error(cudaSuccess);
}
cudaError_t cudaMallocManaged(void **out, size_t bytes, unsigned)
{
    return cudaMalloc(out, bytes);
}
// Waits for the device, as the real one does.
cudaError_t cudaFree(void *p)
{
    run_until("cudaFree", idle);
    FAKE_ENTRY;
    if (!p) return error(cudaSuccess);
    auto it = sizes().find(p);
    if (it == sizes().end()) return error(cudaErrorInvalidValue);
    in_use -= it->second;
    sizes().erase(it);
    cudahost_free(p);
    return error(cudaSuccess);
}
cudaError_t cudaMallocHost(void **out, size_t bytes)
{
    FAKE_ENTRY;
    *out = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    memset(*out, 0xff, bytes);
    pinned[(const char *)*out] = bytes;
    return error(cudaSuccess);
}
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned)
{
    return cudaMallocHost(out, bytes);
}
cudaError_t cudaFreeHost(void *p)
{
    run_until("cudaFreeHost", idle);
    FAKE_ENTRY;
    if (p && !pinned.erase((const char *)p)) return error(cudaErrorInvalidValue);
    free(p);
    return error(cudaSuccess);
}
cudaError_t cudaMemGetInfo(size_t *left, size_t *all)
{
    FAKE_ENTRY;
    *all = capacity();
    *left = *all - in_use;
    return error(cudaSuccess);
}
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t s)
{
    return copy(dst, src, bytes, kind, s);
}
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t s)
{
    if (width > dst_pitch || width > src_pitch) return error(cudaErrorInvalidPitchValue);
    for (size_t i = 0; i < height; i++) {
        const cudaError_t e = copy((char *)dst + i * dst_pitch, (const char *)src + i * src_pitch, width, kind, s);
        if (e != cudaSuccess) return e;
    }
    return error(cudaSuccess);
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind)
{
    const cudaError_t e = copy(dst, src, bytes, kind, nullptr);
    cudaStreamSynchronize(nullptr);
    return e;
}
static bool in_device(const char *call, const void *p, size_t bytes)
{
    if (cudahost_is_device(p, bytes)) return true;
    fprintf(stderr, "cudahost: %s of %zu bytes that are not the device's\n", call, bytes);
    error(cudaErrorInvalidValue);
    return false;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s)
{
    FAKE_ENTRY;
    if (!bytes) return error(cudaSuccess);
    if (!in_device("cudaMemsetAsync", p, bytes)) return cudaErrorInvalidValue;
    submit(s, "a memset", [=] { memset(p, value, bytes); });
    return error(cudaSuccess);
}
cudaError_t cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t height, cudaStream_t s)
{
    FAKE_ENTRY;
    if (!width || !height) return error(cudaSuccess);
    if (width > pitch || !in_device("cudaMemset2DAsync", p, pitch * (height - 1) + width))
        return error(cudaErrorInvalidValue);
    submit(s, "a memset", [=] {
        for (size_t i = 0; i < height; i++) memset((char *)p + i * pitch, value, width);
    });
    return error(cudaSuccess);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p)
{
    FAKE_ENTRY;
    memset(a, 0, sizeof *a);
    a->type = cudahost_is_device(p, 1) ? cudaMemoryTypeDevice
              : is_pinned(p, 1)        ? cudaMemoryTypeHost
                                       : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}
}
