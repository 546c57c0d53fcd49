// Speed of every CPU op at the shapes of SmolLM2-135M, as CSV: op,shape,dtype,isa,threads,ms,gflops_or_gbs.
// ms is the fastest of several runs. Products are given in GFLOP/s, the rest in GB/s of what is read and written once.
// linear_fwd_1 is one token (decoding), in GB/s of weights; lora_da is the gradient of A (linear_dw).
//   bench_ops [--op PART] [--dtype f32|bf16] [--threads N] [--tokens T] [--ms BUDGET] [--clock wall|cpu]
// ATTUNE_ISA lowers the instruction set. The clock `cpu` is processor time per thread: on a busy machine, with 1 thread, it
// shows what an idle one would.
#include "kernels.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { C = 576, NH = 9, KV = 3, D = 64, F = 1536, V = 49152, R = 16 };

typedef struct Bench {
    Device *d;
    DType t;
    int T, threads;
    const char *only; // part of an op's name
    double budget_ms;
    bool cpu_clock;
} Bench;

// ---- operands -------------------------------------------------------------------------------------------
static void *values(DType t, size_t n, float scale)
{
    void *p = aligned_alloc(64, ROUND_UP(MAX(n, 1) * dtype_size(t), 64));
    ASSERT(p);
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < n; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        float v = scale * (2 * u32_to_unit((uint32_t)(state >> 32)) - 1);
        if (t == DT_BF16)
            ((bf16_t *)p)[i] = f32_to_bf16(v);
        else
            ((float *)p)[i] = v;
    }
    return p;
}

static Packed weight(const Bench *b, int N, int K)
{
    void *src = values(b->t, (size_t)N * K, .05f);
    Packed w = {b->t, N, K, aligned_alloc(64, ROUND_UP(b->d->packed_bytes(b->d, b->t, N, K), 64))};
    b->d->op.linear_pack(b->d, &w, 0, N, src, b->t, K);
    free(src);
    return w;
}

// ---- timing ---------------------------------------------------------------------------------------------
static bool wanted(const Bench *b, const char *op)
{
    return !b->only || strstr(op, b->only);
}

static void report(const Bench *b, const char *op, const char *shape, double ms, double work)
{
    printf("%s,%s,%s,%s,%d,%.4f,%.1f\n", op, shape, dtype_name(b->t), cpu_isa(), b->threads, ms, work * 1e-6 / ms);
    fflush(stdout);
}

static double clock_ms(const Bench *b)
{
    struct timespec t;
    if (!b->cpu_clock) return now_ms();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return ((double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6) / b->threads;
}

// Runs `call` until the budget is spent, at least 3 times; work: FLOPs or bytes of one run.
#define MEASURE(b, op, shape, work, call)                                                                              \
    do {                                                                                                               \
        double best_ms = 1e30, until = now_ms() + (b)->budget_ms;                                                      \
        for (int run = 0; run < 3 || now_ms() < until; run++) {                                                        \
            double started = clock_ms(b);                                                                              \
            call;                                                                                                      \
            best_ms = MIN(best_ms, clock_ms(b) - started);                                                             \
        }                                                                                                              \
        report(b, op, shape, best_ms, work);                                                                           \
    } while (0)

// ---- linear and adapters --------------------------------------------------------------------------------
static void bench_linear(const Bench *b, const char *name, int N, int K)
{
    int T = b->T;
    double flops = 2.0 * T * N * K;
    const char *shape = tmpf("%s T=%d N=%d K=%d", name, T, N, K);
    Packed w = weight(b, N, K), A = weight(b, R, K), B = weight(b, N, R);
    void *x = values(b->t, (size_t)T * K, 1), *y = values(b->t, (size_t)T * N, 1), *s = values(b->t, (size_t)T * R, 1);
    void *dx = values(b->t, (size_t)T * K, 1), *ds = values(b->t, (size_t)T * R, 1);
    float *dw = values(DT_F32, (size_t)N * K, 1), *source = values(DT_F32, (size_t)N * K, 1);
    LowRank fwd = {R, s, R, &B}, bwd = {R, s, R, &A};
    const OpTable *op = &b->d->op;
    if (wanted(b, "linear_pack"))
        MEASURE(b, "linear_pack", shape, (4.0 + dtype_size(b->t)) * N * K,
                op->linear_pack(b->d, &w, 0, N, source, DT_F32, K));
    if (wanted(b, "linear_fwd"))
        MEASURE(b, "linear_fwd", shape, flops, op->linear_fwd(b->d, b->t, y, N, x, K, &w, NULL, NULL, NULL, T));
    if (wanted(b, "linear_fwd+lora"))
        MEASURE(b, "linear_fwd+lora", shape, flops + 2.0 * T * N * R,
                op->linear_fwd(b->d, b->t, y, N, x, K, &w, &fwd, NULL, NULL, T));
    if (wanted(b, "linear_fwd_1"))
        MEASURE(b, "linear_fwd_1", tmpf("%s T=1 N=%d K=%d", name, N, K), (double)dtype_size(b->t) * N * K,
                op->linear_fwd(b->d, b->t, y, N, x, K, &w, NULL, NULL, NULL, 1));
    if (wanted(b, "linear_dx"))
        MEASURE(b, "linear_dx", shape, flops, op->linear_dx(b->d, b->t, dx, K, y, N, &w, NULL, false, T));
    if (wanted(b, "linear_dx+lora"))
        MEASURE(b, "linear_dx+lora", shape, flops + 2.0 * T * K * R,
                op->linear_dx(b->d, b->t, dx, K, y, N, &w, &bwd, false, T));
    if (wanted(b, "linear_dw"))
        MEASURE(b, "linear_dw", shape, flops, op->linear_dw(b->d, b->t, dw, y, N, x, K, N, K, true, T));
    if (wanted(b, "lora_s")) MEASURE(b, "lora_s", shape, 2.0 * T * R * K, op->lora_s(b->d, b->t, s, R, x, K, &A, 2, T));
    if (wanted(b, "lora_bwd"))
        MEASURE(b, "lora_bwd", shape, 4.0 * T * R * N, op->lora_bwd(b->d, b->t, ds, R, dw, y, N, s, R, &B, 2, true, T));
    if (wanted(b, "lora_da"))
        MEASURE(b, "lora_da", shape, 2.0 * T * R * K, op->linear_dw(b->d, b->t, dw, s, R, x, K, R, K, true, T));
    if (wanted(b, "bias_grad"))
        MEASURE(b, "bias_grad", shape, (double)dtype_size(b->t) * T * N,
                op->bias_grad(b->d, b->t, dw, y, N, N, true, T));
    void *owned[] = {w.data, A.data, B.data, x, y, s, dx, ds, dw, source};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

static void bench_dora(const Bench *b, const char *name, int N, int K)
{
    size_t n = (size_t)b->T * N, size = dtype_size(b->t);
    const char *shape = tmpf("%s T=%d N=%d K=%d", name, b->T, N, K);
    Packed w = weight(b, N, K), A = weight(b, R, K), B = weight(b, N, R);
    void *u = values(b->t, n, 1), *y = values(b->t, n, 1), *dy = values(b->t, n, 1);
    float *gain = values(DT_F32, N, 1), *dm = values(DT_F32, N, 1), *squares = values(DT_F32, N, 1);
    const OpTable *op = &b->d->op;
    if (wanted(b, "scale_cols"))
        MEASURE(b, "scale_cols", shape, 3.0 * size * n, op->scale_cols(b->d, b->t, y, N, u, N, gain, NULL, y, N, b->T));
    if (wanted(b, "scale_cols_bwd"))
        MEASURE(b, "scale_cols_bwd", shape, 3.0 * size * n,
                op->scale_cols_bwd(b->d, b->t, y, N, dm, dy, N, u, N, gain, gain, true, N, b->T));
    if (wanted(b, "lora_row_squares"))
        MEASURE(b, "lora_row_squares", shape, (2.0 * R + 3) * N * K,
                op->lora_row_squares(b->d, b->t, squares, &w, &A, &B, 2));
    void *owned[] = {w.data, A.data, B.data, u, y, dy, gain, dm, squares};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

// ---- head -----------------------------------------------------------------------------------------------
static void bench_head(const Bench *b, int M)
{
    double product = 2.0 * M * V * C;
    const char *shape = tmpf("M=%d V=%d C=%d", M, V, C);
    Packed w = weight(b, V, C);
    void *h = values(b->t, (size_t)M * C, 1), *dh = values(b->t, (size_t)M * C, 1);
    float *logp = values(DT_F32, M, 1), *lse = values(DT_F32, M, 1), *entropy = values(DT_F32, M, 1);
    float *weights = values(DT_F32, M, 1);
    int32_t *target = xmalloc(sizeof *target * (size_t)M);
    for (int i = 0; i < M; i++) target[i] = i * 7919 % V;
    const OpTable *op = &b->d->op;
    if (wanted(b, "head_fwd"))
        MEASURE(b, "head_fwd", shape, product, op->head_fwd(b->d, b->t, logp, lse, entropy, h, &w, target, 0, M));
    if (wanted(b, "head_bwd"))
        MEASURE(b, "head_bwd", shape, 2 * product,
                op->head_bwd(b->d, b->t, dh, NULL, weights, lse, h, &w, target, 0, M));
    if (wanted(b, "head_fwd_bwd"))
        MEASURE(b, "head_fwd_bwd", shape, 2 * product,
                op->head_fwd_bwd(b->d, b->t, logp, lse, dh, NULL, weights, h, &w, target, 0, M));
    void *owned[] = {w.data, h, dh, logp, lse, entropy, weights, target};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

// ---- attention ------------------------------------------------------------------------------------------
// `count` sequences of `len` tokens, the last `queries` of each as queries. FLOPs are those of visible pairs.
static void bench_attention(const Bench *b, int count, int len, int queries)
{
    enum { MAX_COUNT = 64, Q = NH * D, QKV = (NH + 2 * KV) * D };
    int32_t q_start[MAX_COUNT], q_len[MAX_COUNT], k_start[MAX_COUNT], k_len[MAX_COUNT];
    size_t T = (size_t)count * len, size = dtype_size(b->t);
    for (int s = 0; s < count; s++) q_start[s] = s * queries, q_len[s] = queries, k_start[s] = s * len, k_len[s] = len;
    AttnShape a = {count, q_start, q_len, k_start, k_len, NH, KV, D, 0.125f, 0, 0};
    const char *shape = tmpf("%dx%d of %d", count, queries, len);
    double pairs = (double)count * queries * (len - (queries - 1) / 2.0), flops = 4.0 * D * NH * pairs;
    char *qkv = values(b->t, T * QKV, 1), *dqkv = values(b->t, T * QKV, 1);
    void *o = values(b->t, T * Q, 1), *dout = values(b->t, T * Q, 1);
    float *lse = values(DT_F32, T * NH, 1);
    const OpTable *op = &b->d->op;
    const void *k = qkv + Q * size, *v = qkv + (Q + KV * D) * size;
    void *dk = dqkv + Q * size, *dv = dqkv + (Q + KV * D) * size;
    op->attn_fwd(b->d, b->t, o, Q, lse, qkv, QKV, k, v, QKV, &a);
    if (wanted(b, "attn_fwd"))
        MEASURE(b, "attn_fwd", shape, flops, op->attn_fwd(b->d, b->t, o, Q, lse, qkv, QKV, k, v, QKV, &a));
    if (wanted(b, "attn_bwd") && queries > 1)
        MEASURE(b, "attn_bwd", shape, 2.5 * flops,
                op->attn_bwd(b->d, b->t, dqkv, QKV, dk, dv, QKV, dout, o, Q, lse, qkv, QKV, k, v, QKV, &a));
    void *owned[] = {qkv, dqkv, o, dout, lse};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

// ---- element-wise ---------------------------------------------------------------------------------------
static void bench_norm_and_rope(const Bench *b)
{
    enum { POSITIONS = 512, HEADS = NH + KV };
    size_t T = (size_t)b->T, n = T * C, size = dtype_size(b->t);
    const char *shape = tmpf("T=%d C=%d", b->T, C);
    void *x = values(b->t, n, 1), *y = values(b->t, n, 1), *dx = values(b->t, n, 1);
    void *heads = values(b->t, T * HEADS * D, 1);
    float *w = values(DT_F32, C, 1), *rstd = values(DT_F32, T, 1), *dw = values(DT_F32, C, 1);
    float *angles = values(DT_F32, (size_t)POSITIONS * D / 2, 1);
    int32_t *pos = xmalloc(T * sizeof *pos);
    uint64_t *key = xcalloc(T, sizeof *key);
    for (size_t i = 0; i < T; i++) pos[i] = (int32_t)(i % POSITIONS);
    const OpTable *op = &b->d->op;
    if (wanted(b, "rmsnorm_fwd"))
        MEASURE(b, "rmsnorm_fwd", shape, 2.0 * size * n,
                op->rmsnorm_fwd(b->d, b->t, y, C, rstd, x, w, 0, 1e-5f, C, b->T));
    if (wanted(b, "rmsnorm_bwd"))
        MEASURE(b, "rmsnorm_bwd", shape, 4.0 * size * n,
                op->rmsnorm_bwd(b->d, b->t, dx, C, NULL, y, x, rstd, w, 0, true, C, b->T));
    if (wanted(b, "rmsnorm_bwd+dw"))
        MEASURE(b, "rmsnorm_bwd+dw", shape, 4.0 * size * n,
                op->rmsnorm_bwd(b->d, b->t, dx, C, dw, y, x, rstd, w, 0, true, C, b->T));
    if (wanted(b, "rope"))
        MEASURE(b, "rope", tmpf("T=%d heads=%d", b->T, HEADS), 2.0 * size * T * HEADS * D,
                op->rope(b->d, b->t, heads, HEADS * D, angles, angles, pos, HEADS, D, D, false, b->T));
    if (wanted(b, "dropout"))
        MEASURE(b, "dropout", shape, 2.0 * size * n,
                op->dropout(b->d, b->t, y, C, x, C, key, 1, 0.1f, false, 0, C, b->T));
    void *owned[] = {x, y, dx, heads, w, rstd, dw, angles, pos, key};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

static void bench_swiglu(const Bench *b)
{
    size_t n = (size_t)b->T * F, size = dtype_size(b->t);
    const char *shape = tmpf("T=%d F=%d", b->T, F);
    void *gu = values(b->t, 2 * n, 4), *dgu = values(b->t, 2 * n, 1), *a = values(b->t, n, 1), *da = values(b->t, n, 1);
    const OpTable *op = &b->d->op;
    if (wanted(b, "swiglu_fwd"))
        MEASURE(b, "swiglu_fwd", shape, 3.0 * size * n, op->swiglu_fwd(b->d, b->t, a, F, gu, 2 * F, F, b->T));
    if (wanted(b, "swiglu_bwd"))
        MEASURE(b, "swiglu_bwd", shape, 7.0 * size * n, op->swiglu_bwd(b->d, b->t, dgu, a, F, da, gu, 2 * F, F, b->T));
    void *owned[] = {gu, dgu, a, da};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

static void bench_embed(const Bench *b)
{
    const char *shape = tmpf("T=%d V=%d C=%d", b->T, V, C);
    Packed table = weight(b, V, C);
    size_t n = (size_t)b->T * C, size = dtype_size(b->t);
    void *x = values(b->t, n, 1);
    float *dtable = values(DT_F32, (size_t)V * C, 1);
    int32_t *tokens = xmalloc((size_t)b->T * sizeof *tokens);
    for (int i = 0; i < b->T; i++) tokens[i] = i * 7919 % V;
    const OpTable *op = &b->d->op;
    if (wanted(b, "embed_fwd"))
        MEASURE(b, "embed_fwd", shape, 2.0 * size * n, op->embed_fwd(b->d, b->t, x, &table, tokens, 1, b->T));
    if (wanted(b, "embed_bwd"))
        MEASURE(b, "embed_bwd", shape, (8.0 + size) * n, op->embed_bwd(b->d, b->t, dtable, x, tokens, 1, V, C, b->T));
    void *owned[] = {table.data, x, dtable, tokens};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

// ---- optimizer (f32 whatever the dtype) -----------------------------------------------------------------
static void bench_optim(const Bench *b)
{
    enum { N = 4 << 20 };
    const char *shape = tmpf("n=%d", N);
    float *p = values(DT_F32, N, 1), *m = values(DT_F32, N, 0), *v = values(DT_F32, N, 0), *g = values(DT_F32, N, 1);
    int64_t *acc = xcalloc(N, sizeof *acc);
    double *squares = xcalloc(N, sizeof *squares);
    int overflow = 0;
    const OpTable *op = &b->d->op;
    if (wanted(b, "adamw"))
        MEASURE(b, "adamw", shape, 28.0 * N, op->adamw(b->d, p, m, v, g, 1, 1e-4f, 0.9f, 0.999f, 1e-8f, 0, 10, N));
    if (wanted(b, "row_squares"))
        for (int K = 1; K <= N; K *= 8)
            MEASURE(b, "row_squares", tmpf("rows=%d K=%d", N / K, K), 4.0 * N + 8.0 * N / K,
                    op->row_squares(b->d, squares, g, N / K, K));
    if (wanted(b, "fix_add"))
        MEASURE(b, "fix_add", shape, 20.0 * N, op->fix_add(b->d, acc, g, N, INT64_MAX, &overflow));
    if (wanted(b, "fix_read")) MEASURE(b, "fix_read", shape, 12.0 * N, op->fix_read(b->d, g, acc, N));
    void *owned[] = {p, m, v, g, acc, squares};
    for (size_t i = 0; i < COUNT_OF(owned); i++) free(owned[i]);
}

// ---- program --------------------------------------------------------------------------------------------------
static void bench_linears(const Bench *b)
{
    bench_linear(b, "qkv", (NH + 2 * KV) * D, C);
    bench_linear(b, "o", C, NH * D);
    bench_linear(b, "gate+up", 2 * F, C);
    bench_linear(b, "down", C, F);
}

static void bench_doras(const Bench *b)
{
    bench_dora(b, "o", C, NH * D);
    bench_dora(b, "gate+up", 2 * F, C);
    bench_dora(b, "down", C, F);
}

static void bench_heads(const Bench *b)
{
    static const int trained[] = {12, 42, 84, 252, 504};
    for (size_t i = 0; i < COUNT_OF(trained); i++) bench_head(b, trained[i]);
}

static void bench_attentions(const Bench *b)
{
    static const struct {
        int count, len, queries;
    } rows[] = {{2, 512, 512}, {1, 512, 512}, {6, 157, 157}, {1, 2048, 2048}, {1, 512, 1}, {1, 2048, 1}};
    for (size_t i = 0; i < COUNT_OF(rows); i++) bench_attention(b, rows[i].count, rows[i].len, rows[i].queries);
}

static const struct {
    const char *ops; // a group whose operands are made for nothing is skipped
    void (*run)(const Bench *b);
} groups[] = {
    {"linear_pack linear_fwd linear_fwd+lora linear_fwd_1 linear_dx linear_dx+lora linear_dw lora_s lora_bwd lora_da "
     "bias_grad",
     bench_linears},
    {"scale_cols scale_cols_bwd lora_row_squares", bench_doras},
    {"head_fwd head_bwd head_fwd_bwd", bench_heads},
    {"attn_fwd attn_bwd", bench_attentions},
    {"rmsnorm_fwd rmsnorm_bwd rmsnorm_bwd+dw rope dropout", bench_norm_and_rope},
    {"swiglu_fwd swiglu_bwd", bench_swiglu},
    {"embed_fwd embed_bwd", bench_embed},
    {"adamw row_squares fix_add fix_read", bench_optim},
};

static void bench_groups(const Bench *b)
{
    for (size_t i = 0; i < COUNT_OF(groups); i++)
        if (!b->only || strstr(groups[i].ops, b->only)) groups[i].run(b);
}

static int read_options(Bench *b, const char **dtype, int argc, char **argv)
{
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (value && streq(name, "--op"))
            b->only = value;
        else if (value && streq(name, "--dtype"))
            *dtype = value;
        else if (value && streq(name, "--threads"))
            b->threads = atoi(value);
        else if (value && streq(name, "--tokens"))
            b->T = atoi(value);
        else if (value && streq(name, "--ms"))
            b->budget_ms = atof(value);
        else if (value && streq(name, "--clock"))
            b->cpu_clock = streq(value, "cpu");
        else
            return fail(E_INPUT, name, "the first lines of bench_ops.c list the options", "unknown option or no value");
    }
    return OK;
}

int main(int argc, char **argv)
{
    Bench b = {.T = 512, .budget_ms = 150, .threads = (int)sysconf(_SC_NPROCESSORS_ONLN)};
    const char *dtype = NULL;
    if (read_options(&b, &dtype, argc, argv) < 0 ||
        device_open(&b.d, &(DeviceConfig){.name = "cpu", .threads = b.threads}) < 0) {
        fprintf(stderr, "bench_ops: %s: %s\n", error_last()->place, error_last()->what);
        return error_exit_code(error_last()->code);
    }
    puts("op,shape,dtype,isa,threads,ms,gflops_or_gbs");
    for (b.t = DT_F32; b.t <= DT_BF16; b.t++)
        if (!dtype || streq(dtype, dtype_name(b.t))) bench_groups(&b);
    device_close(b.d);
    return 0;
}
