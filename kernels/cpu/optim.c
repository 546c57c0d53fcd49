// optim: AdamW, sums of squares for the gradient norm, and order-free gradient sums in fixed point.
// Owns the arithmetic of one tensor; what is clipped, decayed or reduced, and when, is the business of
// runtime/optim and sharding.
//
//   adamw   g' = g g_scale, m = b1 m + (1-b1) g', v = b2 v + (1-b2) g'^2, p = p - lr wd p - lr (m/c1) /
//   (sqrt(v/c2) + eps),
//           c1 = 1 - b1^step, c2 = 1 - b2^step                          (Loshchilov & Hutter 2019)   28 bytes
//           per element
//   fix     integers add in any order to the same sum: 2^-44 apart, so that gradients down to 1e-8 keep six
//   digits, and
//           2^19 = 524288 is the largest sum. Values of GRAD_FIX_LIMIT and up are refused.
#include "isa_kernels.h"
#include <math.h>

#define FIX_SCALE ((double)(INT64_C(1) << GRAD_FIX_BITS))

enum { RUN = 4096 }; // elements that a thread takes at a time

// ---- references
// -----------------------------------------------------------------------------------------------------
void adamw_ref(Device *d, float *p, float *m, float *v, const float *g, float g_scale, float lr, float beta1,
               float beta2, float eps, float wd, int64_t step, size_t n)
{
    (void)d;
    double b1 = beta1, b2 = beta2, c1 = 1 - pow(b1, (double)step), c2 = 1 - pow(b2, (double)step);
    for (size_t i = 0; i < n; i++) {
        double gi = (double)g[i] * g_scale;
        double mi = b1 * m[i] + (1 - b1) * gi, vi = b2 * v[i] + (1 - b2) * gi * gi;
        double decayed = p[i] - (double)lr * wd * p[i];
        m[i] = (float)mi;
        v[i] = (float)vi;
        p[i] = (float)(decayed - lr * (mi / c1) / (sqrt(vi / c2) + eps));
    }
}

void row_squares_ref(Device *d, double *out, const float *x, int64_t rows, int64_t K)
{
    (void)d;
    for (int64_t r = 0; r < rows; r++) {
        out[r] = 0;
        for (int64_t k = 0; k < K; k++) out[r] += (double)x[r * K + k] * x[r * K + k];
    }
}

void fix_add_ref(Device *d, int64_t *acc, const float *g, size_t n, int64_t limit, int *overflow)
{
    (void)d;
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)g[i]) < GRAD_FIX_LIMIT) ||
            __builtin_add_overflow(acc[i], llrint(g[i] * FIX_SCALE), &acc[i]) || acc[i] > limit || acc[i] < -limit)
            *overflow = 1;
}

void acc_add_ref(Device *d, void *acc, const void *x, DType t, size_t n)
{
    (void)d;
    ASSERT(t == DT_I64 || t == DT_F32);
    if (t == DT_I64)
        for (size_t i = 0; i < n; i++) ((int64_t *)acc)[i] += ((const int64_t *)x)[i];
    else
        for (size_t i = 0; i < n; i++) ((float *)acc)[i] += ((const float *)x)[i];
}

void fix_read_ref(Device *d, float *g, const int64_t *acc, size_t n)
{
    (void)d;
    for (size_t i = 0; i < n; i++) g[i] = (float)((double)acc[i] / FIX_SCALE);
}

// ---- tuned ----------------------------------------------------------------------------------------------------------
void adamw(Device *d, float *p, float *m, float *v, const float *g, float g_scale, float lr, float beta1, float beta2,
           float eps, float wd, int64_t step, size_t n)
{
    const IsaKernels *k = isa_kernels(d);
    const AdamStep a = {.g_scale = g_scale,
                        .beta1 = beta1,
                        .beta2 = beta2,
                        .eps = eps,
                        .lr = lr,
                        .decay = (float)(1 - (double)lr * wd),
                        .c1 = (float)(1 - pow(beta1, (double)step)),
                        .sqrt_c2 = (float)sqrt(1 - pow(beta2, (double)step))};
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)n))
    for (size_t i = 0; i < n; i += RUN) k->adamw_run(&a, p + i, m + i, v + i, g + i, (int)MIN(RUN, n - i));
}

// Rows longer than a block: the blocks of all rows are summed by whoever comes, then each row's in their order.
static void long_row_squares(Device *d, double *out, const float *x, int64_t rows, int64_t K)
{
    const IsaKernels *k = isa_kernels(d);
    int64_t blocks = (K + SUM_BLOCK - 1) / SUM_BLOCK;
    double *partial = cpu_shared_scratch(d, (size_t)(rows * blocks) * sizeof *partial);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, rows *K))
    for (int64_t i = 0; i < rows * blocks; i++) {
        int64_t at = i % blocks * SUM_BLOCK;
        partial[i] = k->sum_squares_run(x + i / blocks * K + at, (int)MIN(SUM_BLOCK, K - at));
    }
    for (int64_t r = 0; r < rows; r++) {
        out[r] = 0;
        for (int64_t b = 0; b < blocks; b++) out[r] += partial[r * blocks + b];
    }
}

void row_squares(Device *d, double *out, const float *x, int64_t rows, int64_t K)
{
    if (K > SUM_BLOCK) {
        long_row_squares(d, out, x, rows, K);
        return;
    }
    const IsaKernels *k = isa_kernels(d);
    int64_t some = MAX(1, RUN / MAX(K, 1)); // rows that a thread takes at a time
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, rows *K))
    for (int64_t r = 0; r < rows; r += some) k->row_squares_run(out + r, x + r * K, MIN(some, rows - r), (int)K);
}

void fix_add(Device *d, int64_t *acc, const float *g, size_t n, int64_t limit, int *overflow)
{
    int bad = 0;
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)n)) reduction(| : bad)
    for (size_t i = 0; i < n; i += RUN) {
        int run_bad = 0;
        fix_add_ref(d, acc + i, g + i, MIN(RUN, n - i), limit, &run_bad);
        bad |= run_bad;
    }
    if (bad) *overflow = 1;
}

void acc_add(Device *d, void *acc, const void *x, DType t, size_t n)
{
    const size_t size = dtype_size(t);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)n))
    for (size_t i = 0; i < n; i += RUN)
        acc_add_ref(d, (char *)acc + i * size, (const char *)x + i * size, t, MIN(RUN, n - i));
}

void fix_read(Device *d, float *g, const int64_t *acc, size_t n)
{
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)n))
    for (size_t i = 0; i < n; i += RUN) fix_read_ref(d, g + i, acc + i, MIN(RUN, n - i));
}
