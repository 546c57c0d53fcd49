// The vocabulary head: linear + log-softmax that never holds all logits. With h (M,C), W (V,C):
//   u = h·Wᵀ, z = cap ? cap·tanh(u/cap) : u, lse = log Σ exp z, logp = z[target] - lse, entropy = lse - Σ p z
//   dz_v = weight · ([v = target] - p_v) · (1 - (z_v/cap)²),  dh = Σ_v dz_v W_v,  dw_v += Σ_i dz_iv h_i
#include "gemm.h"
#include <math.h>

typedef struct RowStats {
    double lse, entropy;
} RowStats;

// z (V) of one row, in doubles
static void row_logits(double *z, const void *h, DType t, const Packed *w, float softcap)
{
    for (int v = 0; v < w->N; v++) {
        double sum = 0;
        for (int c = 0; c < w->K; c++)
            sum += (double)cpu_load(h, t, c) * cpu_load(w->data, w->t, packed_index(w, v, c));
        z[v] = softcap > 0 ? softcap * tanh(sum / softcap) : sum;
    }
}

static RowStats row_stats(const double *z, int V)
{
    double top = z[0], sum = 0, mean = 0;
    for (int v = 1; v < V; v++) top = fmax(top, z[v]);
    for (int v = 0; v < V; v++) sum += exp(z[v] - top);
    double lse = top + log(sum);
    for (int v = 0; v < V; v++) mean += exp(z[v] - lse) * z[v];
    return (RowStats){lse, lse - mean};
}

void head_fwd_ref(Device *d, DType t, float *logp, float *lse, float *entropy, const void *h, const Packed *w,
                  const int32_t *target, float softcap, int M)
{
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int i = 0; i < M; i++) {
        double *z = cpu_thread_scratch(d, sizeof(double) * (size_t)w->N);
        row_logits(z, cpu_at(h, t, (int64_t)i * w->K), t, w, softcap);
        RowStats s = row_stats(z, w->N);
        logp[i] = (float)(z[target[i]] - s.lse);
        lse[i] = (float)s.lse;
        if (entropy) entropy[i] = (float)s.entropy;
    }
}

// dz (V) of one row: the gradient by the logits before the cap
static void row_dz(double *z, float weight, double lse, int target, float softcap, int V)
{
    for (int v = 0; v < V; v++) {
        double slope = softcap > 0 ? 1 - z[v] / softcap * (z[v] / softcap) : 1;
        z[v] = weight * ((v == target) - exp(z[v] - lse)) * slope;
    }
}

void head_bwd_ref(Device *d, DType t, void *dh, float *dw, const float *weight, const float *lse,
                  const void *h, const Packed *w, const int32_t *target, float softcap, int M)
{
    int V = w->N, C = w->K;
    double *dz = cpu_shared_scratch(d, sizeof(double) * (size_t)V * (size_t)M); // (M,V)
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int i = 0; i < M; i++) {
        double *row = dz + (int64_t)i * V;
        row_logits(row, cpu_at(h, t, (int64_t)i * C), t, w, softcap);
        row_dz(row, weight[i], lse[i], target[i], softcap, V);
        for (int c = 0; c < C; c++) {
            double sum = 0;
            for (int v = 0; v < V; v++) sum += row[v] * cpu_load(w->data, w->t, packed_index(w, v, c));
            cpu_store(dh, t, (int64_t)i * C + c, (float)sum);
        }
    }
    if (!dw) return;
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int v = 0; v < V; v++)
        for (int c = 0; c < C; c++) {
            double sum = dw[(int64_t)v * C + c];
            for (int i = 0; i < M; i++) sum += dz[(int64_t)i * V + v] * cpu_load(h, t, (int64_t)i * C + c);
            dw[(int64_t)v * C + c] = (float)sum;
        }
}

void head_fwd_bwd_ref(Device *d, DType t, float *logp, float *lse, void *dh, float *dw, const float *weight,
                      const void *h, const Packed *w, const int32_t *target, float softcap, int M)
{
    head_fwd_ref(d, t, logp, lse, NULL, h, w, target, softcap, M);
    head_bwd_ref(d, t, dh, dw, weight, lse, h, w, target, softcap, M);
}

void head_logits_ref(Device *d, DType t, float *logits, const void *h, const Packed *w, float softcap, int M)
{
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int i = 0; i < M; i++) {
        double *z = cpu_thread_scratch(d, sizeof(double) * (size_t)w->N);
        row_logits(z, cpu_at(h, t, (int64_t)i * w->K), t, w, softcap);
        for (int v = 0; v < w->N; v++) logits[(int64_t)i * w->N + v] = (float)z[v];
    }
}
