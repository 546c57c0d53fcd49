// Gradients of a linear layer's parameters: dw (N,K) (+)= dyᵀ·x and db (N) (+)= column sums of dy, both in
// f32. The sum over tokens runs in token order for every element. The adapter's dA (R,K) and dB (N,R) are
// linear_dw too (dB by way of lora_bwd).
#include "gemm.h"
#include "isa_kernels.h"
#include <string.h>

void linear_dw_ref(Device *d, DType t, float *dw, const void *dy, int64_t lddy, const void *x, int64_t ldx, int N,
                   int K, bool accumulate, int T)
{
#pragma omp parallel for num_threads(cpu_threads(d))
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            double sum = accumulate ? dw[(int64_t)n * K + k] : 0;
            for (int i = 0; i < T; i++) sum += (double)cpu_load(dy, t, i * lddy + n) * cpu_load(x, t, i * ldx + k);
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

// ---- tuned ----------------------------------------------------------------------------------------------
// dw is a product along T: panels out of the columns of dy and of x, 32x32 elements of dw from each pair of them. A task
// keeps the panels of a few dy columns and lets those of x pass. Longer sums are cut every TOKENS tokens and added up in f32:
// where they are cut depends on T alone.
enum { TOKENS = 2048, DY_BYTES = 384 * 1024, MOST_X_PANELS = 6, TASKS_PER_THREAD = 4 };

typedef struct Grad {
    const GemmKernels *k;
    DType t, words;
    const void *dy, *x;
    int64_t lddy, ldx;
    int N, K, T;
    bool accumulate;
    float *dw;
    int n_group, k_group; // panels of a task
    size_t panel;         // bytes of a panel, at most
} Grad;

static int group_count(int panels, int group)
{
    return (panels + group - 1) / group;
}

static Grad plan_grad(const Device *d, const Grad *g)
{
    Grad p = *g;
    p.k = gemm_kernels(d);
    p.words = gemm_words(p.k, g->t, g->t);
    p.panel = panel_bytes(p.words, MIN(g->T, TOKENS));
    int n_panels = panel_count(g->N), k_panels = panel_count(g->K), tasks = TASKS_PER_THREAD * cpu_threads(d);
    p.n_group = MAX(1, MIN(n_panels, (int)(DY_BYTES / p.panel)));
    p.k_group = MIN(k_panels, MOST_X_PANELS);
    while (p.k_group > 1 && group_count(n_panels, p.n_group) * group_count(k_panels, p.k_group) < tasks) p.k_group--;
    while (p.n_group > 1 && group_count(n_panels, p.n_group) * group_count(k_panels, p.k_group) < tasks) p.n_group--;
    return p;
}

// Elements [32np, ..) x [32kp, ..) of dw, tokens [t0, t0 + tokens)
static void grad_block(const Grad *g, const uint32_t *dy_panel, const uint32_t *x_panel, int np, int kp, int t0,
                       int tokens)
{
    float *dw = g->dw + (int64_t)np * PANEL * g->K + kp * PANEL;
    GemmSum sum = gemm_turned(dy_panel, x_panel, tokens);
    GemmOut out = {.y = dw, .t = DT_F32, .ld = g->K, .scale = 1, .add = g->accumulate || t0 ? dw : NULL};
    g->k->block(g->words, &sum, 1, MIN(PANEL, g->N - np * PANEL), &out, MIN(PANEL, g->K - kp * PANEL));
}

static void grad_panel(const Grad *g, uint32_t *to, const void *x, int64_t ld, int width, int p, int t0, int tokens)
{
    const void *from = cpu_at(x, g->t, t0 * ld + p * PANEL);
    g->k->columns(to, g->words, from, g->t, ld, tokens, MIN(PANEL, width - p * PANEL));
}

static void grad_task(const Grad *g, int n_first, int k_first, char *scratch)
{
    int n_end = MIN(n_first + g->n_group, panel_count(g->N)), k_end = MIN(k_first + g->k_group, panel_count(g->K));
    uint32_t *x_panel = (uint32_t *)scratch;
    char *dy_panels = scratch + g->panel;
    for (int t0 = 0; t0 < g->T; t0 += TOKENS) {
        int tokens = MIN(TOKENS, g->T - t0);
        for (int n = n_first; n < n_end; n++)
            grad_panel(g, (uint32_t *)(dy_panels + (n - n_first) * g->panel), g->dy, g->lddy, g->N, n, t0, tokens);
        for (int k = k_first; k < k_end; k++) {
            grad_panel(g, x_panel, g->x, g->ldx, g->K, k, t0, tokens);
            for (int n = n_first; n < n_end; n++)
                grad_block(g, (uint32_t *)(dy_panels + (n - n_first) * g->panel), x_panel, n, k, t0, tokens);
        }
    }
}

void linear_dw(Device *d, DType t, float *dw, const void *dy, int64_t lddy, const void *x, int64_t ldx, int N, int K,
               bool accumulate, int T)
{
    if (N <= 0 || K <= 0) return;
    if (T <= 0) {
        if (!accumulate && !cpu_only_notes(d, 0, 0)) memset(dw, 0, sizeof *dw * (size_t)N * (size_t)K);
        return;
    }
    const Grad g = plan_grad(d, &(Grad){.t = t,
                                        .dy = dy,
                                        .x = x,
                                        .lddy = lddy,
                                        .ldx = ldx,
                                        .N = N,
                                        .K = K,
                                        .T = T,
                                        .accumulate = accumulate,
                                        .dw = dw});
    const size_t bytes = (size_t)(g.n_group + 1) * g.panel;
    if (cpu_only_notes(d, bytes, 0)) return;
    int n_panels = panel_count(N), k_panels = panel_count(K);
    int team = cpu_team(d, (int64_t)n_panels * k_panels * T * PANEL);
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(team)
    for (int n = 0; n < n_panels; n += g.n_group)
        for (int k = 0; k < k_panels; k += g.k_group) grad_task(&g, n, k, cpu_thread_scratch(d, bytes));
}

void bias_grad(Device *d, DType t, float *db, const void *dy, int64_t lddy, int N, bool accumulate, int T)
{
#pragma omp parallel for num_threads(cpu_team(d, (int64_t)T *N))
    for (int n0 = 0; n0 < N; n0 += PANEL) {
        double sum[PANEL] = {0};
        int columns = MIN(PANEL, N - n0);
        for (int i = 0; i < T; i++)
            for (int j = 0; j < columns; j++) sum[j] += cpu_load(dy, t, i * lddy + n0 + j);
        for (int j = 0; j < columns; j++) db[n0 + j] = (float)(sum[j] + (accumulate ? db[n0 + j] : 0));
    }
}
