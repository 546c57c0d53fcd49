// Gradients of a linear layer's parameters: dw (N,K) (+)= dyᵀ·x and db (N) (+)= column sums of dy, both in
// f32. The sum over tokens runs in token order for every element. The adapter's dA (R,K) and dB (N,R) are
// linear_dw too.
#include "gemm.h"

void linear_dw_ref(Device *d, DType t, float *dw, const void *dy, int64_t lddy, const void *x, int64_t ldx,
                   int N, int K, bool accumulate, int T)
{
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            double sum = accumulate ? dw[(int64_t)n * K + k] : 0;
            for (int i = 0; i < T; i++)
                sum += (double)cpu_load(dy, t, i * lddy + n) * cpu_load(x, t, i * ldx + k);
            dw[(int64_t)n * K + k] = (float)sum;
        }
}

void bias_grad_ref(Device *d, DType t, float *db, const void *dy, int64_t lddy, int N, bool accumulate, int T)
{
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int n = 0; n < N; n++) {
        double sum = accumulate ? db[n] : 0;
        for (int i = 0; i < T; i++) sum += cpu_load(dy, t, i * lddy + n);
        db[n] = (float)sum;
    }
}
