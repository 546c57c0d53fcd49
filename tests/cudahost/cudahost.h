// cudahost: what a test sees of the executor that runs CUDA kernels on the host. C, so that tests stay C.
//
// A launch (LAUNCH in a .cu file) runs at once, one block after another, each thread of a block a fiber that runs until it has to wait.
// What is wrong with a kernel becomes a finding; one that cannot be gone on from ends the launch and the rest of it is not run.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

bool cudahost_on_host(void); // false: a GPU runs the kernels, in its own order, and nothing is counted

// ---- order ----
// Of blocks, warps and threads; correct kernels give the same bits in each. With RANDOM some cp.async also land early.
typedef enum CudahostOrder { CUDAHOST_FORWARD, CUDAHOST_REVERSE, CUDAHOST_RANDOM } CudahostOrder;
void cudahost_order(CudahostOrder order, uint64_t seed);

// ---- device memory ----
// 256-byte aligned, filled with 0xff (NaN as floats), with guard zones around, so that the hooks, AddressSanitizer, or at last
// cudahost_free find who steps beyond. Tests use it as they use host memory. name (kept as pointer) is for findings.
void *cudahost_alloc(size_t bytes, const char *name);
void cudahost_free(void *p); // NULL is fine
// Is [p, p + bytes) inside one live allocation?
bool cudahost_is_device(const void *p, size_t bytes);

// ---- findings ----
typedef enum CudahostKind {
    CUDAHOST_LAUNCH,        // grid, block or shared memory that a GPU refuses
    CUDAHOST_DIVERGENCE,    // threads of a warp or block meet in different places
    CUDAHOST_DEADLOCK,      // nobody can go on
    CUDAHOST_MASK,          // a lane outside its own mask, or a mask that names lanes that have ended
    CUDAHOST_MISALIGNED,    // an access that the GPU refuses
    CUDAHOST_OUT_OF_BOUNDS, // memory that is not the device's, nor shared, nor the thread's own
    CUDAHOST_ASYNC,         // cp.async: its destination touched before it has landed; left in flight at the end
    CUDAHOST_RACE,          // two accesses that nothing orders, one of which writes
    CUDAHOST_UNWRITTEN,     // shared memory read that the block has not written
    CUDAHOST_KIND_COUNT
} CudahostKind;
typedef struct CudahostFinding {
    CudahostKind kind;
    char text[760]; // what, which threads, and the source lines
} CudahostFinding;
const char *cudahost_kind_name(CudahostKind kind);
size_t cudahost_findings(void); // since the last cudahost_clear
const CudahostFinding *cudahost_finding(size_t i);
void cudahost_clear(void); // findings, counts, traffic

// ---- counts, since the last cudahost_clear ----
typedef struct CudahostCounts {
    uint64_t launches, blocks, threads, switches;
    uint64_t barriers;                      // by threads
    uint64_t warp_syncs, shuffles, votes;   // by warps
    uint64_t mma, ldmatrix, ldmatrix_rows8; // by warps; matrices read by ldmatrix
    uint64_t exp2;                          // by threads
    uint64_t cp_async, cp_async_bytes;      // by threads; bytes read
    uint64_t atomics;                       // by threads
} CudahostCounts;
CudahostCounts cudahost_counts(void);

// ---- traffic, since the last cudahost_clear; only of kernels that are compiled with hooks ----
typedef enum CudahostTraffic {
    CUDAHOST_GLOBAL_READ,
    CUDAHOST_GLOBAL_WRITE,
    CUDAHOST_SHARED_READ,
    CUDAHOST_SHARED_WRITE,
    CUDAHOST_LDMATRIX,
} CudahostTraffic;
typedef struct CudahostSite {
    const char *where;
    CudahostTraffic kind;
    uint64_t requests; // by warps
    uint64_t bytes;    // different ones, summed over requests
    uint64_t cost,
        ideal; // sectors of 32 bytes (global), wavefronts (shared, ldmatrix): what was needed, and the least possible
} CudahostSite;
// By source line; returns how many of at most `capacity`.
size_t cudahost_sites(CudahostSite *out, size_t capacity);
typedef struct CudahostTotals {
    uint64_t sectors, sectors_ideal; // of all requests to global memory: 32 times them is what L2 sees
    uint64_t unique_read,
        unique_written; // bytes in sectors that a launch touches, once per launch: what memory must move
    uint64_t wavefronts, wavefronts_ideal; // of shared memory
} CudahostTotals;
CudahostTotals cudahost_totals(void);
const char *cudahost_traffic_name(CudahostTraffic kind);
bool cudahost_hooked(void); // are there kernels with hooks in this program?

// ---- kernels by name, for a stand-in of the CUDA runtime ----
typedef struct CudahostKernel {
    const void *function;      // its address; the name of that symbol is what nvcc mangles too
    void (*call)(void **args); // args[i] points at parameter i
    int params;
    const size_t *param_bytes;
    const struct CudahostKernel *next;
} CudahostKernel;
const CudahostKernel *cudahost_kernels(void);
const char *cudahost_kernel_name(const CudahostKernel *kernel); // its symbol, "?" when there is no symbol table
typedef struct CudahostLaunch {
    unsigned grid[3], block[3];
    size_t smem_bytes;
} CudahostLaunch;
// false: a finding ended it
bool cudahost_launch(const CudahostKernel *kernel, const CudahostLaunch *launch, void **args);
// Told after each launch, with what it alone counted and cost; NULL: nobody
typedef void CudahostListener(void *context, const CudahostKernel *kernel, const CudahostLaunch *launch,
                              const CudahostCounts *counts, const CudahostTotals *totals);
void cudahost_listen(CudahostListener *listener, void *context);

#ifdef __cplusplus
}
#endif
