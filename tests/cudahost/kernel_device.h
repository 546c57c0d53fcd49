// kernel_device: the CUDA kernels under the executor as a Device, for the tests of tests/kernels (KERNEL_TEST_DEVICES of
// kernel_test.h). Pointers of ops are host memory there. Each op gets copies of what it may touch in device memory of exactly
// that size, at the same place modulo 16 bytes; inputs that change, findings of the executor and steps out of bounds fail the test.
#pragma once
#include "cudahost.h"
#include "kernels.h"

// Ops that no kernel is there for are NULL.
int kernel_device_open(Device **out, CudahostOrder order, uint64_t seed);

// Instead of instruction sets: orders of threads, warps and blocks
#define KERNEL_ISAS "forward", "reverse", "random", "another random"

#define KERNEL_MOST_WORK 7e5 // threads of an executor are slow

static inline int kernel_order_open(Device **out, const char *name)
{
    if (streq(name, "forward")) return kernel_device_open(out, CUDAHOST_FORWARD, 0);
    if (streq(name, "reverse")) return kernel_device_open(out, CUDAHOST_REVERSE, 0);
    return kernel_device_open(out, CUDAHOST_RANDOM, streq(name, "random") ? 1 : 2);
}
// Instead of threads: 1 forward, 2 reverse, more: random by that seed
static inline int kernel_threads_open(Device **out, int threads)
{
    return kernel_device_open(out,
                              threads == 1   ? CUDAHOST_FORWARD
                              : threads == 2 ? CUDAHOST_REVERSE
                                             : CUDAHOST_RANDOM,
                              (uint64_t)threads);
}
