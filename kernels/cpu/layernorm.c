// layernorm: references and drivers; the inner loops are in layernorm_kernels.h.
//
//   u = x - mean(x), r = 1 / sqrt(mean(u^2) + eps), z = u r, y = w z + b                               (Ba, Kiros & Hinton 2016)
//   g = w dy: dx = r (g - mean(g) - z mean(g z))          dw += sum over rows of dy z, db += sum over rows of dy
// Bound by memory, as rmsnorm: bytes per element (bf16) are 4 forward, 6 to 8 backward.
#include "isa_kernels.h"
#include <math.h>
#include <string.h>

// ---- references -----------------------------------------------------------------------------------------------------
void layernorm_fwd_ref(Device *d, DType t, void *y, float *mean, float *rstd, const void *x, const float *w,
                       const float *b, float eps, int C, int T)
{
    (void)d;
    for (int64_t i = 0; i < T; i++) {
        double sum = 0, squares = 0;
        for (int c = 0; c < C; c++) sum += cpu_load(x, t, i * C + c);
        const double m = sum / C;
        for (int c = 0; c < C; c++) squares += (cpu_load(x, t, i * C + c) - m) * (cpu_load(x, t, i * C + c) - m);
        const double r = 1 / sqrt(squares / C + (double)eps);
        mean[i] = (float)m;
        rstd[i] = (float)r;
        for (int c = 0; c < C; c++)
            cpu_store(y, t, i * C + c, (float)(w[c] * (cpu_load(x, t, i * C + c) - m) * r + (b ? b[c] : 0)));
    }
}

void layernorm_bwd_ref(Device *d, DType t, void *dx, float *dw, float *db, const void *dy, const void *x,
                       const float *mean, const float *rstd, const float *w, bool accumulate, int C, int T)
{
    (void)d;
    for (int c = 0; c < C; c++) {
        double sum_w = 0, sum_b = 0;
        for (int64_t i = 0; i < T; i++) {
            const double grad = cpu_load(dy, t, i * C + c);
            sum_w += grad * (cpu_load(x, t, i * C + c) - (double)mean[i]) * rstd[i];
            sum_b += grad;
        }
        if (dw) dw[c] += (float)sum_w;
        if (db) db[c] += (float)sum_b;
    }
    for (int64_t i = 0; i < T; i++) {
        double sum = 0, dot = 0;
        for (int c = 0; c < C; c++) {
            const double g = (double)w[c] * cpu_load(dy, t, i * C + c);
            sum += g;
            dot += g * (cpu_load(x, t, i * C + c) - (double)mean[i]) * rstd[i];
        }
        for (int c = 0; c < C; c++) {
            const double g = (double)w[c] * cpu_load(dy, t, i * C + c);
            const double z = (cpu_load(x, t, i * C + c) - (double)mean[i]) * rstd[i];
            const double v = rstd[i] * (g - sum / C - z * dot / C);
            cpu_store(dx, t, i * C + c, (float)(accumulate ? cpu_load(dx, t, i * C + c) + v : v));
        }
    }
}

// ---- tuned ----------------------------------------------------------------------------------------------------------
void layernorm_fwd(Device *d, DType t, void *y, float *mean, float *rstd, const void *x, const float *w, const float *b,
                   float eps, int C, int T)
{
    const IsaKernels *k = isa_kernels(d);
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *C))
    for (int64_t i = 0; i < T; i++)
        k->layernorm_fwd_row(t, cpu_row(y, t, i * C), &mean[i], &rstd[i], cpu_row(x, t, i * C), w, b, eps, C);
}

// Rows of a block share partial sums of dw and db: 2 C floats.
void layernorm_bwd(Device *d, DType t, void *dx, float *dw, float *db, const void *dy, const void *x, const float *mean,
                   const float *rstd, const float *w, bool accumulate, int C, int T)
{
    enum { BLOCK = 64 };
    const IsaKernels *k = isa_kernels(d);
    const int blocks = (T + BLOCK - 1) / BLOCK;
    const bool sums = dw || db;
    float *partial = sums ? cpu_shared_scratch(d, (size_t)blocks * 2 * (size_t)C * sizeof *partial) : NULL;
#pragma omp parallel for schedule(static) num_threads(cpu_team(d, (int64_t)T *C))
    for (int64_t n = 0; n < blocks; n++) {
        float *sum = sums ? partial + n * 2 * C : NULL;
        if (sums) memset(sum, 0, 2 * (size_t)C * sizeof *sum);
        for (int64_t i = n * BLOCK; i < MIN(T, (n + 1) * BLOCK); i++)
            k->layernorm_bwd_row(t, cpu_row(dx, t, i * C), sum, cpu_row(dy, t, i * C), cpu_row(x, t, i * C), mean[i],
                                 rstd[i], w, accumulate, C);
    }
    if (!sums || !blocks) return;
    cpu_add_blocks(partial, blocks, 2 * C);
    for (int c = 0; dw && c < C; c++) dw[c] += partial[c];
    for (int c = 0; db && c < C; c++) db[c] += partial[C + c];
}
