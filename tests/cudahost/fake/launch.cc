// launch: what nvcc's code calls to register and launch kernels. Kernels are found by their mangled names, which both builds share.
#include "fake.h"
#include <dlfcn.h>
#include <map>
#include <memory>
#include <stdio.h>
#include <string.h>
#include <string>
#include <vector>

namespace fake
{
enum { SMEM_PLAIN = 48 << 10, SMEM_MOST = 227 << 10 };

struct Kernel {
    std::string name;
    const CudahostKernel *host;
    size_t smem_allowed = SMEM_PLAIN;
};
static std::map<const void *, Kernel> &kernels() // by the address of the program's stub
{
    static std::map<const void *, Kernel> k;
    return k;
}

static const CudahostKernel *find(const char *name)
{
    for (const CudahostKernel *k = cudahost_kernels(); k; k = k->next) {
        Dl_info info;
        if (dladdr(k->function, &info) && info.dli_sname && !strcmp(info.dli_sname, name)) return k;
    }
    return nullptr;
}

struct Configuration {
    dim3 grid, block;
    size_t smem;
    cudaStream_t stream;
};
static thread_local std::vector<Configuration> configurations;

static void use_order()
{
    static bool set;
    if (set) return;
    set = true;
    const char *o = getenv("CUDAHOST_ORDER");
    const bool forward = o ? !strcmp(o, "forward") : seed() == 0, reverse = o && !strcmp(o, "reverse");
    cudahost_order(forward ? CUDAHOST_FORWARD : reverse ? CUDAHOST_REVERSE : CUDAHOST_RANDOM, (uint64_t)seed());
}

static void run(const Kernel &k, const CudahostLaunch &l, void **args)
{
    use_order();
    cudahost_launch(k.host, &l, args);
    for (size_t i = 0; i < cudahost_findings(); i++) {
        const CudahostFinding *f = cudahost_finding(i);
        break_device("%s: %s: %s", k.name.c_str(), cudahost_kind_name(f->kind), f->text);
    }
    cudahost_clear();
}

// Parameters are copied when the kernel is launched, each by its size.
static cudaError_t launch(const Kernel &k, dim3 grid, dim3 block, void **args, size_t smem, cudaStream_t stream)
{
    if (!k.host) {
        fprintf(stderr, "cudahost: kernel %s is not among those built for the host\n", k.name.c_str());
        return error(cudaErrorInvalidDeviceFunction);
    }
    if (smem > k.smem_allowed) return error(cudaErrorInvalidValue);
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (!threads || threads > 1024 || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
        return error(cudaErrorInvalidConfiguration);
    auto held = std::make_shared<std::vector<std::string>>();
    for (int i = 0; i < k.host->params; i++) held->emplace_back((const char *)args[i], k.host->param_bytes[i]);
    const CudahostLaunch l = {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, smem};
    const Kernel *kernel = &k;
    submit(stream, kernel->name.c_str(), [=] {
        std::vector<void *> at;
        for (std::string &a : *held) at.push_back(&a[0]);
        at.push_back(nullptr);
        run(*kernel, l, at.data());
    });
    return error(cudaSuccess);
}

static Kernel *kernel_of(const void *stub)
{
    auto it = kernels().find(stub);
    return it == kernels().end() ? nullptr : &it->second;
}
} // namespace fake

using namespace fake;

extern "C" {
void **__cudaRegisterFatBinary(void *)
{
    static void *handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
char __cudaInitModule(void **)
{
    return 1;
}
void __cudaRegisterFunction(void **, const char *stub, char *, const char *name, int, uint3 *, uint3 *, dim3 *, dim3 *,
                            int *)
{
    kernels()[stub] = Kernel{name, find(name)};
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t smem, CUstream_st *stream)
{
    configurations.push_back({grid, block, smem, stream});
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *smem, void *stream)
{
    const Configuration c = configurations.back();
    configurations.pop_back();
    *grid = c.grid;
    *block = c.block;
    *smem = c.smem;
    *(cudaStream_t *)stream = c.stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t *out, const void *stub)
{
    *out = (cudaKernel_t)stub;
    return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void *stub, dim3 grid, dim3 block, void **args, size_t smem, cudaStream_t stream)
{
    const Kernel *k;
    {
        FAKE_ENTRY;
        k = kernel_of(stub);
    }
    if (!k) return error(cudaErrorInvalidDeviceFunction);
    const cudaError_t e = launch(*k, grid, block, args, smem, stream);
    static const bool blocking = env("CUDA_LAUNCH_BLOCKING", 0);
    return e == cudaSuccess && blocking ? cudaStreamSynchronize(stream) : e;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t smem,
                               cudaStream_t stream)
{
    return cudaLaunchKernel((const void *)kernel, grid, block, args, smem, stream);
}
cudaError_t cudaFuncSetAttribute(const void *stub, cudaFuncAttribute a, int value)
{
    FAKE_ENTRY;
    Kernel *k = kernel_of(stub);
    if (!k) return error(cudaErrorInvalidDeviceFunction);
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return error(cudaSuccess);
    if (value < 0 || value > SMEM_MOST) return error(cudaErrorInvalidValue);
    k->smem_allowed = (size_t)value;
    return error(cudaSuccess);
}
}
