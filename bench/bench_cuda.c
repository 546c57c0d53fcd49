// Speed of the CUDA device's ops at the shapes of an 8-billion-parameter Llama, as JSON, beside two ceilings that are measured on the same
// GPU: copying memory, and cuBLASLt's product of 8192 x 8192 x 8192 in bf16. share: of the copy's bytes per second for ops that only
// move memory, of the product's FLOP/s for the others.
//   bench_cuda [--tokens T] [--ms BUDGET of each op] [--small]
#include "kernels.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { R = 16 };
static int C = 4096, NH = 32, KV = 8, D = 128, F = 14336, V = 128256, ROWS = 2048, SIDE = 8192;
static size_t COPY = (size_t)128 << 20, PARAMS = (size_t)64 << 20, MEMORY = (size_t)6 << 30;

// Shapes that show nothing but that the program runs
static void be_small(void)
{
    C = 64, NH = 4, KV = 2, D = 16, F = 96, V = 200, ROWS = 16, SIDE = 64;
    COPY = PARAMS = 4096, MEMORY = (size_t)64 << 20;
}

typedef struct Bench {
    Device *d;
    Arena *arena;
    int T;
    double budget_ms, copy_gbs, gemm_tflops;
    int printed;
} Bench;

static void check(int status)
{
    if (status == OK) return;
    fprintf(stderr, "bench_cuda: %s: %s\n", error_last()->place, error_last()->what);
    exit(1);
}

static void *values(const Bench *b, DType t, size_t n, float scale)
{
    enum { PIECE = 1 << 20 };
    static float host[PIECE];
    static bf16_t narrow[PIECE];
    void *p = arena_alloc(b->arena, n * dtype_size(t));
    for (size_t i = 0; i < PIECE; i++) {
        uint32_t u[4];
        philox(7, 0, i, u);
        host[i] = scale * (2 * u32_to_unit(u[0]) - 1);
        narrow[i] = f32_to_bf16(host[i]);
    }
    const char *from = t == DT_BF16 ? (const char *)narrow : (const char *)host;
    for (size_t i = 0; i < n; i += PIECE)
        check(b->d->upload(b->d, (char *)p + i * dtype_size(t), from, MIN(PIECE, n - i) * dtype_size(t)));
    return p;
}

static int32_t *numbers(const Bench *b, int n, int below)
{
    int32_t *host = xmalloc((size_t)n * sizeof *host), *p = arena_alloc(b->arena, (size_t)n * sizeof *host);
    for (int i = 0; i < n; i++) host[i] = below ? (int32_t)((uint32_t)i * 2654435761u % (uint32_t)below) : i;
    check(b->d->upload(b->d, p, host, (size_t)n * sizeof *host));
    free(host);
    return p;
}

static Packed weight(const Bench *b, int N, int K)
{
    return (Packed){DT_BF16, N, K, values(b, DT_BF16, (size_t)N * (size_t)K, .02f)};
}

// Milliseconds of one call: so many are submitted that waiting for the end does not count.
#define TIME(b, call)                                                                                                  \
    ({                                                                                                                 \
        double best_ = 1e30, until_ = now_ms() + (b)->budget_ms;                                                       \
        int calls_ = 2;                                                                                                \
        for (int run_ = 0; run_ < 3 || now_ms() < until_; run_++) {                                                    \
            check((b)->d->sync((b)->d));                                                                               \
            const double start_ = now_ms();                                                                            \
            for (int i_ = 0; i_ < calls_; i_++) call;                                                                  \
            check((b)->d->sync((b)->d));                                                                               \
            const double took_ = now_ms() - start_;                                                                    \
            if (run_) best_ = MIN(best_, took_ / calls_);                                                              \
            if (!run_) calls_ = (int)fmin(fmax(20 / (took_ / calls_), 2), 200);                                        \
        }                                                                                                              \
        best_;                                                                                                         \
    })

static void report(Bench *b, const char *op, double ms, double flops, double bytes)
{
    const double share = flops > 0 ? flops / ms * 1e-9 / b->gemm_tflops : bytes / ms * 1e-6 / b->copy_gbs;
    printf("%s\n  {\"op\": \"%s\", \"ms\": %.4f, \"%s\": %.1f, \"share\": %.3f}", b->printed++ ? "," : "", op, ms,
           flops > 0 ? "tflops" : "gbs", flops > 0 ? flops / ms * 1e-9 : bytes / ms * 1e-6, share);
    fflush(stdout);
}

// ---- ceilings -------------------------------------------------------------------------------------------------------
static void measure_ceilings(Bench *b)
{
    Device *d = b->d;
    const size_t mark = arena_mark(b->arena), n = COPY;
    float *from = arena_alloc(b->arena, n * sizeof *from), *to = arena_alloc(b->arena, n * sizeof *to);
    b->copy_gbs = 2 * (double)n * sizeof *from / TIME(b, d->op.convert(d, to, DT_F32, from, DT_F32, n)) * 1e-6;
    arena_reset(b->arena, mark);
    const Packed w = weight(b, SIDE, SIDE);
    void *x = values(b, DT_BF16, (size_t)SIDE * (size_t)SIDE, 1),
         *y = arena_alloc(b->arena, (size_t)SIDE * (size_t)SIDE * 2);
    const double ms = TIME(b, d->op.linear_fwd(d, DT_BF16, y, SIDE, x, SIDE, &w, NULL, NULL, NULL, SIDE));
    b->gemm_tflops = 2.0 * SIDE * SIDE * SIDE / ms * 1e-9;
    arena_reset(b->arena, mark);
    printf("{\"device\": \"%s\", \"tokens\": %d, \"copy_gbs\": %.0f, \"gemm_tflops\": %.1f, \"ops\": [", d->about, b->T,
           b->copy_gbs, b->gemm_tflops);
}

// ---- ops ------------------------------------------------------------------------------------------------------------
static void bench_rows(Bench *b)
{
    Device *d = b->d;
    const DType t = DT_BF16;
    const size_t mark = arena_mark(b->arena), n = (size_t)b->T * C;
    const double e = 2, bytes = (double)n * e;
    void *x = values(b, t, n, 1), *y = values(b, t, n, 1), *dx = values(b, t, n, 1);
    float *w = values(b, DT_F32, C, 1), *dw = values(b, DT_F32, C, 1), *rstd = values(b, DT_F32, (size_t)b->T, 1);
    void *gu = values(b, t, 2 * (size_t)b->T * F, 1), *a = values(b, t, (size_t)b->T * F, 1);
    float *angle = values(b, DT_F32, (size_t)b->T * D / 2, 1);
    int32_t *pos = numbers(b, b->T, 0);
    report(b, "rmsnorm_fwd", TIME(b, d->op.rmsnorm_fwd(d, t, y, C, rstd, x, w, 0, 1e-5f, C, b->T)), 0, 2 * bytes);
    report(b, "rmsnorm_bwd", TIME(b, d->op.rmsnorm_bwd(d, t, dx, C, NULL, y, x, rstd, w, 0, true, C, b->T)), 0,
           4 * bytes);
    report(b, "rmsnorm_bwd_dw", TIME(b, d->op.rmsnorm_bwd(d, t, dx, C, dw, y, x, rstd, w, 0, true, C, b->T)), 0,
           4 * bytes);
    report(b, "rope", TIME(b, d->op.rope(d, t, x, C, angle, angle, pos, NH, D, D, false, b->T)), 0, 2 * bytes);
    report(b, "swiglu_fwd", TIME(b, d->op.swiglu_fwd(d, t, a, F, gu, 2 * F, F, b->T)), 0, 3.0 * b->T * F * e);
    report(b, "swiglu_bwd", TIME(b, d->op.swiglu_bwd(d, t, gu, NULL, 0, a, gu, 2 * F, F, b->T)), 0, 5.0 * b->T * F * e);
    arena_reset(b->arena, mark);
}

static void bench_attention(Bench *b)
{
    Device *d = b->d;
    const DType t = DT_BF16;
    const size_t mark = arena_mark(b->arena), q = (size_t)b->T * NH * D, kv = (size_t)b->T * KV * D * 2;
    const int KVW = KV * D, Q = NH * D;
    const int32_t start = 0, length = b->T;
    const AttnShape a = {.S = 1,
                         .q_start = &start,
                         .q_len = &length,
                         .k_start = &start,
                         .k_len = &length,
                         .NH = NH,
                         .KV = KV,
                         .D = D,
                         .scale = 0.0883883f};
    void *Qs = values(b, t, q, 1), *Ks = values(b, t, kv, 1), *o = values(b, t, q, 1), *dO = values(b, t, q, 1);
    void *dq = values(b, t, q, 1), *dk = values(b, t, kv, 1);
    float *lse = values(b, DT_F32, (size_t)b->T * NH, 1);
    void *Vs = (bf16_t *)Ks + KVW, *dv = (bf16_t *)dk + KVW;
    const double flops = 4.0 * NH * D * ((double)b->T * (b->T + 1) / 2); // visible pairs only
    report(b, "attn_fwd", TIME(b, d->op.attn_fwd(d, t, o, Q, lse, Qs, Q, Ks, Vs, 2 * KVW, &a)), flops, 0);
    report(b, "attn_bwd",
           TIME(b, d->op.attn_bwd(d, t, dq, Q, dk, dv, 2 * KVW, dO, o, Q, lse, Qs, Q, Ks, Vs, 2 * KVW, &a)),
           2.5 * flops, 0);
    arena_reset(b->arena, mark);
}

static void bench_linear(Bench *b)
{
    Device *d = b->d;
    const DType t = DT_BF16;
    const size_t mark = arena_mark(b->arena);
    const int N = C, K = C;
    const Packed w = weight(b, N, K);
    void *x = values(b, t, (size_t)b->T * K, 1), *y = values(b, t, (size_t)b->T * N, 1);
    float *dw = values(b, DT_F32, (size_t)N * K, 1);
    const double flops = 2.0 * b->T * N * K;
    report(b, "linear_fwd", TIME(b, d->op.linear_fwd(d, t, y, N, x, K, &w, NULL, NULL, NULL, b->T)), flops, 0);
    report(b, "linear_dx", TIME(b, d->op.linear_dx(d, t, x, K, y, N, &w, NULL, false, b->T)), flops, 0);
    report(b, "linear_dw", TIME(b, d->op.linear_dw(d, t, dw, y, N, x, K, N, K, false, b->T)), flops, 0);
    arena_reset(b->arena, mark);
}

// An adapter in the border of its weight, and beside it the same with s and ds apart, which takes two products.
static void bench_lora(Bench *b)
{
    Device *d = b->d;
    const DType t = DT_BF16;
    const size_t mark = arena_mark(b->arena);
    const int N = C, K = C;
    const int64_t ldx = K + R, ldy = N + R;
    const Packed all = weight(b, N + R, K + R);
    const Packed w = {t, N, K, all.data, ldx}, B = {t, N, R, (bf16_t *)all.data + K, ldx},
                 A = {t, R, K, (bf16_t *)all.data + N * ldx, ldx};
    bf16_t *x = values(b, t, (size_t)(b->T * ldx), 1), *y = values(b, t, (size_t)(b->T * ldy), 1), *s = x + K,
           *ds = y + N;
    void *apart = values(b, t, (size_t)b->T * R, 1);
    float *dw = values(b, DT_F32, (size_t)R * (N + K), 1);
    const LowRank up = {R, s, ldx, &B}, down = {R, ds, ldy, &A}, up_apart = {R, apart, R, &B},
                  down_apart = {R, apart, R, &A};
    const double flops = 2.0 * b->T * N * K;
    report(b, "lora_fwd",
           TIME(b, (d->op.lora_s(d, t, s, ldx, x, ldx, &A, 2, b->T),
                    d->op.linear_fwd(d, t, y, ldy, x, ldx, &w, &up, NULL, NULL, b->T))),
           flops, 0);
    report(b, "lora_fwd_apart",
           TIME(b, (d->op.lora_s(d, t, apart, R, x, ldx, &A, 2, b->T),
                    d->op.linear_fwd(d, t, y, ldy, x, ldx, &w, &up_apart, NULL, NULL, b->T))),
           flops, 0);
    report(b, "lora_dx", TIME(b, d->op.linear_dx(d, t, x, ldx, y, ldy, &w, &down, false, b->T)), flops, 0);
    report(b, "lora_dx_apart", TIME(b, d->op.linear_dx(d, t, x, ldx, y, ldy, &w, &down_apart, false, b->T)), flops, 0);
    report(b, "lora_bwd", TIME(b, d->op.lora_bwd(d, t, ds, ldy, dw, y, ldy, s, ldx, &B, 2, false, b->T)), 0,
           2.0 * b->T * N);
    report(b, "lora_da", TIME(b, d->op.linear_dw(d, t, dw, ds, ldy, x, ldx, R, K, false, b->T)), 0, 2.0 * b->T * K);
    arena_reset(b->arena, mark);
}

static void bench_head(Bench *b)
{
    Device *d = b->d;
    const DType t = DT_BF16;
    const size_t mark = arena_mark(b->arena);
    const Packed w = weight(b, V, C);
    void *h = values(b, t, (size_t)ROWS * C, 1), *dh = values(b, t, (size_t)ROWS * C, 1);
    float *logp = values(b, DT_F32, ROWS, 1), *lse = values(b, DT_F32, ROWS, 1), *weights = values(b, DT_F32, ROWS, 1);
    int32_t *target = numbers(b, ROWS, V);
    const double flops = 2.0 * ROWS * V * C;
    report(b, "head_fwd", TIME(b, d->op.head_fwd(d, t, logp, lse, NULL, h, &w, target, 0, ROWS)), flops, 0);
    report(b, "head_fwd_bwd", TIME(b, d->op.head_fwd_bwd(d, t, logp, lse, dh, NULL, weights, h, &w, target, 0, ROWS)),
           2 * flops, 0);
    arena_reset(b->arena, mark);
}

static void bench_optimizer(Bench *b)
{
    Device *d = b->d;
    const size_t mark = arena_mark(b->arena), n = PARAMS;
    float *p = values(b, DT_F32, n, 1), *m = values(b, DT_F32, n, 1), *v = values(b, DT_F32, n, 1),
          *g = values(b, DT_F32, n, 1);
    int64_t *acc = arena_alloc(b->arena, n * sizeof *acc);
    int overflow = 0;
    check(d->zero(d, acc, n * sizeof *acc));
    check(d->zero(d, v, n * sizeof *v));
    report(b, "adamw", TIME(b, d->op.adamw(d, p, m, v, g, 1, 1e-6f, .9f, .95f, 1e-8f, .1f, 10, n)), 0,
           28.0 * (double)n);
    report(b, "fix_add", TIME(b, d->op.fix_add(d, acc, g, n, INT64_MAX / 4, &overflow)), 0, 20.0 * (double)n);
    report(b, "fix_read", TIME(b, d->op.fix_read(d, g, acc, n)), 0, 12.0 * (double)n);
    arena_reset(b->arena, mark);
}

int main(int argc, char **argv)
{
    Bench b = {.T = 8192, .budget_ms = 300};
    for (int i = 1; i < argc; i++) {
        if (streq(argv[i], "--small")) be_small();
        if (streq(argv[i], "--tokens") && i + 1 < argc) b.T = atoi(argv[++i]);
        if (streq(argv[i], "--ms") && i + 1 < argc) b.budget_ms = atof(argv[++i]);
    }
    check(device_open(&b.d, &(DeviceConfig){.name = "cuda"}));
    check(device_arena(&b.arena, b.d, "bench", MEMORY));
    measure_ceilings(&b);
    bench_rows(&b);
    bench_attention(&b);
    bench_linear(&b);
    bench_lora(&b);
    bench_head(&b);
    bench_optimizer(&b);
    printf("\n]}\n");
    arena_free(b.arena);
    device_close(b.d);
    return 0;
}
