// gpu_test: KERNEL_TEST_DEVICES of kernel_test.h for programs of nvcc's build. There are no orders to choose; KERNEL_MOST_WORK=N in the
// environment leaves out what is too much for the stand-in.
#pragma once
#include "../cudahost.h"
#include "kernels.h"
#include <math.h>
#include <stdlib.h>

int kernel_device_open(Device **out, CudahostOrder order, uint64_t seed);
#define KERNEL_ISAS "device"

static inline double kernel_most_work(void)
{
    const char *s = getenv("KERNEL_MOST_WORK");
    return s ? atof(s) : INFINITY;
}
#define KERNEL_MOST_WORK kernel_most_work()

static inline int kernel_order_open(Device **out, const char *name)
{
    (void)name;
    return kernel_device_open(out, CUDAHOST_FORWARD, 0);
}
static inline int kernel_threads_open(Device **out, int threads)
{
    (void)threads;
    return kernel_device_open(out, CUDAHOST_FORWARD, 0);
}
