// What the tests of row-wise ops share: (T, C) shapes, each run for every instruction set and type against the references.
#pragma once
#include "kernel_test.h"

typedef struct Shape {
    int T, C;
} Shape;

static const Shape shapes[] = {{1, 1}, {1, 16}, {3, 7}, {5, 64}, {2, 100}, {70, 33}, {130, 576}, {64, 1536}, {200, 17}};

// Runs body for every (instruction set, type, shape) of this machine; ref is the device of references.
typedef void ShapeTest(Device *tuned, Device *ref, DType t, int T, int C);

static inline void for_shapes(ShapeTest *test)
{
    Device *ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *tuned = open_isa(kernel_isas[i], 2);
        if (!tuned) continue;
        for (size_t j = 0; j < COUNT_OF(shapes) * COUNT_OF(kernel_types); j++)
            test(tuned, ref, kernel_types[j % COUNT_OF(kernel_types)], shapes[j / COUNT_OF(kernel_types)].T,
                 shapes[j / COUNT_OF(kernel_types)].C);
        device_close(tuned);
    }
    device_close(ref);
}

static inline void *values(DType t, int64_t n, int seed)
{
    return random_values(t, (size_t)n, (uint64_t)seed, 2);
}

static inline void free_all(void **p, size_t n)
{
    for (size_t i = 0; i < n; i++) free(p[i]);
}
#define FREE(...) free_all((void *[]){__VA_ARGS__}, COUNT_OF(((void *[]){__VA_ARGS__})))

static inline double dot(const float *x, const float *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * y[i];
    return sum;
}
