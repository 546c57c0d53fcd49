// The adapter's inner products: s = scale · x·Aᵀ (T,R) on the way forward, ds = scale · dy·B (T,R) on the way back, and with it the
// gradient of B, which is linear_dw's as that of A is. The outer products are the second sum of linear_fwd and linear_dx.
#include "gemm.h"

void lora_s_ref(Device *d, DType t, void *s, int64_t lds, const void *x, int64_t ldx, const Packed *a, float scale,
                int T)
{
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int i = 0; i < T; i++)
        for (int r = 0; r < a->N; r++) {
            double sum = 0;
            for (int k = 0; k < a->K; k++)
                sum += (double)cpu_load(x, t, i * ldx + k) * cpu_load(a->data, a->t, packed_index(a, r, k));
            cpu_store(s, t, i * lds + r, (float)(scale * sum));
        }
}

void lora_bwd_ref(Device *d, DType t, void *ds, int64_t ldds, float *db, const void *dy, int64_t lddy, const void *s,
                  int64_t lds, const Packed *b, float scale, bool accumulate, int T)
{
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int i = 0; i < T; i++)
        for (int r = 0; r < b->K; r++) {
            double sum = 0;
            for (int n = 0; n < b->N; n++)
                sum += (double)cpu_load(dy, t, i * lddy + n) * cpu_load(b->data, b->t, packed_index(b, n, r));
            cpu_store(ds, t, i * ldds + r, (float)(scale * sum));
        }
    linear_dw_ref(d, t, db, dy, lddy, s, lds, b->N, b->K, accumulate, T);
}

void lora_s(Device *d, DType t, void *s, int64_t lds, const void *x, int64_t ldx, const Packed *a, float scale, int T)
{
    gemm_product(d, &(GemmProduct){.t = t,
                                   .T = T,
                                   .columns = a->N,
                                   .terms = 1,
                                   .term = {{x, ldx, a}},
                                   .out = {.y = s, .t = t, .ld = lds, .scale = scale}});
}

void lora_bwd(Device *d, DType t, void *ds, int64_t ldds, float *db, const void *dy, int64_t lddy, const void *s,
              int64_t lds, const Packed *b, float scale, bool accumulate, int T)
{
    gemm_product(d, &(GemmProduct){.t = t,
                                   .back = true,
                                   .T = T,
                                   .columns = b->K,
                                   .terms = 1,
                                   .term = {{dy, lddy, b}},
                                   .out = {.y = ds, .t = t, .ld = ldds, .scale = scale}});
    linear_dw(d, t, db, dy, lddy, s, lds, b->N, b->K, accumulate, T);
}
