// What the tables of tests/kernels do not reach: every kernel that a launcher chooses among by width, more rows than blocks, rows that begin
// anywhere, in-place use, lists of tokens longer than a block's. Against the references, and the same bits in every order.
#include "kernel_test.h"

static Device *ref, *device[4]; // of each order

static int open_devices(void **state)
{
    (void)state;
    ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) device[i] = open_isa(kernel_isas[i], 1);
    return 0;
}
static int close_devices(void **state)
{
    (void)state;
    device_close(ref);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) device_close(device[i]);
    return 0;
}

// Runs op on ref and on each device, over copies of n elements at `before`, and compares.
typedef void Run(Device *d, void *out, const void *context);
static void compare(const char *what, Run *run, const void *context, DType t, const void *before, size_t n,
                    double limit)
{
    void *want = copy_values(t, before, n), *first = NULL;
    run(ref, want, context);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        void *got = copy_values(t, before, n);
        run(device[i], got, context);
        expect_nmse(tmpf("%s, %s", what, kernel_isas[i]), t, got, want, n, limit);
        if (first) expect_same_bits(tmpf("%s, %s", what, kernel_isas[i]), got, first, n * dtype_size(t));
        if (first) free(got);
        if (!first) first = got;
    }
    free(want), free(first);
}

// ---- RMSNorm ----
typedef struct Norm {
    DType t;
    int C, T;
    bool accumulate;
    void *x, *dy;
    float *w, *rstd;
} Norm;

static void norm_fwd(Device *d, void *y, const void *context)
{
    const Norm *c = context;
    float *rstd = xmalloc(sizeof *rstd * (size_t)c->T);
    d->op.rmsnorm_fwd(d, c->t, y, c->C, rstd, c->x, c->w, 0.5f, 1e-5f, c->C, c->T);
    expect_close("rstd", DT_F32, rstd, c->rstd, (size_t)c->T);
    free(rstd);
}
static void norm_bwd(Device *d, void *dx, const void *context)
{
    const Norm *c = context;
    d->op.rmsnorm_bwd(d, c->t, dx, c->C, NULL, c->dy, c->x, c->rstd, c->w, 0.5f, c->accumulate, c->C, c->T);
}
static void norm_bwd_in_place(Device *d, void *dx, const void *context)
{
    const Norm *c = context;
    d->op.rmsnorm_bwd(d, c->t, dx, c->C, NULL, dx, c->x, c->rstd, c->w, 0.5f, false, c->C, c->T);
}
static void norm_dw(Device *d, void *dw, const void *context)
{
    const Norm *c = context;
    void *dx = copy_values(c->t, c->dy, (size_t)c->T * (size_t)c->C);
    d->op.rmsnorm_bwd(d, c->t, dx, c->C, dw, c->dy, c->x, c->rstd, c->w, 0.5f, c->accumulate, c->C, c->T);
    free(dx);
}

static void norm_case(DType t, int C, int T)
{
    const size_t n = (size_t)C * (size_t)T;
    Norm c = {t, C, T, T % 2, random_values(t, n, 1, 1), random_values(t, n, 2, 1)};
    c.w = random_values(DT_F32, (size_t)C, 3, 1), c.rstd = xmalloc(sizeof(float) * (size_t)T);
    void *before = random_values(t, n, 4, 1), *dw = random_values(DT_F32, (size_t)C, 5, 1);
    ref->op.rmsnorm_fwd(ref, t, before, C, c.rstd, c.x, c.w, 0.5f, 1e-5f, C, T);
    compare(tmpf("rmsnorm_fwd %d %d", C, T), norm_fwd, &c, t, before, n, nmse_limit(t));
    compare(tmpf("rmsnorm_bwd %d %d", C, T), norm_bwd, &c, t, before, n, nmse_limit(t));
    compare(tmpf("rmsnorm_bwd in place %d %d", C, T), norm_bwd_in_place, &c, t, c.dy, n, nmse_limit(t));
    compare(tmpf("rmsnorm_bwd dw %d %d", C, T), norm_dw, &c, DT_F32, dw, (size_t)C, nmse_limit(DT_F32));
    free(c.x), free(c.dy), free(c.w), free(c.rstd), free(before), free(dw);
}

static void norms(void **state)
{
    (void)state;
    static const int shapes[][2] = {{512, 3},  {520, 9},   {1032, 2},  {2056, 3}, {4104, 2},
                                    {8200, 1}, {16392, 1}, {16390, 1}, {8, 4300}, {264, 1100}};
    for (size_t i = 0; i < COUNT_OF(shapes) * COUNT_OF(kernel_types); i++)
        norm_case(kernel_types[i % 2], shapes[i / 2][0], shapes[i / 2][1]);
}

// ---- embedding: many tokens of a few words, words of one class of blocks, longer lists than fit ----
typedef struct Embed {
    DType t;
    int V, C, T;
    void *dx;
    int32_t *tokens;
} Embed;

static void embed_bwd(Device *d, void *dtable, const void *context)
{
    const Embed *c = context;
    d->op.embed_bwd(d, c->t, dtable, c->dx, c->tokens, 0.75f, c->V, c->C, c->T);
}

static void embed_lists(void **state)
{
    (void)state;
    enum { T = 2500, V = 1300 };
    static const int widths[] = {4, 8, 33};
    for (size_t i = 0; i < COUNT_OF(widths) * COUNT_OF(kernel_types) * 3; i++) {
        Embed c = {kernel_types[i % 2], V, widths[i / 6], T, NULL, xmalloc(T * sizeof(int32_t))};
        const size_t n = (size_t)V * (size_t)c.C;
        for (int k = 0; k < T; k++) {
            const int spread[] = {k % 3 ? 5 : k * 7 % V, k * 3 % 10 * 128, k * 31 % (V + 20) - 10};
            c.tokens[k] = spread[i / 2 % 3];
        }
        c.dx = random_values(c.t, (size_t)T * (size_t)c.C, 1, 1);
        void *before = random_values(DT_F32, n, 2, 1);
        compare(tmpf("embed_bwd %d, tokens %zu", c.C, i / 2 % 3), embed_bwd, &c, DT_F32, before, n, 1e-12);
        free(c.tokens), free(c.dx), free(before);
    }
}

// ---- rows that begin anywhere: each op over operands one element off ----
enum { ROWS = 5, WIDTH = 64 };
typedef struct Shifted {
    DType t;
    size_t x_off, out_off; // elements
    void *x;               // (ROWS, 2 * WIDTH) and more
    float *vectors;        // as many
    int32_t idx[ROWS];
    uint64_t key[ROWS];
} Shifted;

static void *from(const Shifted *c)
{
    return (char *)c->x + c->x_off * dtype_size(c->t);
}
static void *to(const Shifted *c, void *out)
{
    return (char *)out + c->out_off * dtype_size(c->t);
}

static void s_norm(Device *d, void *out, const void *context)
{
    const Shifted *c = context;
    float rstd[ROWS];
    d->op.rmsnorm_fwd(d, c->t, to(c, out), WIDTH, rstd, from(c), c->vectors + c->x_off, 0, 1e-5f, WIDTH, ROWS);
}
static void s_norm_bwd(Device *d, void *out, const void *context)
{
    const Shifted *c = context;
    static const float rstd[ROWS] = {1, 0.5f, 2, 1, 1};
    d->op.rmsnorm_bwd(d, c->t, to(c, out), WIDTH, NULL, from(c), from(c), rstd, c->vectors, 0, true, WIDTH, ROWS);
}
static void s_rope(Device *d, void *out, const void *context)
{
    const Shifted *c = context;
    const int32_t pos[ROWS] = {0, 3, 1, 2, 3};
    d->op.rope(d, c->t, to(c, out), WIDTH, c->vectors + c->x_off, c->vectors + 128, pos, 2, 32, 32, false, ROWS);
}
static void s_swiglu(Device *d, void *out, const void *context)
{
    const Shifted *c = context;
    d->op.swiglu_fwd(d, c->t, to(c, out), WIDTH, from(c), 2 * WIDTH, WIDTH, ROWS);
}
static void s_swiglu_bwd(Device *d, void *out, const void *context)
{
    const Shifted *c = context;
    void *da = random_values(c->t, ROWS * WIDTH, 4, 1);
    d->op.swiglu_bwd(d, c->t, to(c, out), NULL, 0, da, from(c), 2 * WIDTH, WIDTH, ROWS);
    free(da);
}
static void s_gather(Device *d, void *out, const void *context)
{
    const Shifted *c = context;
    d->op.gather_rows(d, c->t, to(c, out), from(c), c->idx, WIDTH, ROWS);
}
static void s_scatter(Device *d, void *out, const void *context)
{
    const Shifted *c = context;
    const int32_t idx[2] = {4, 1};
    d->op.scatter_rows(d, c->t, to(c, out), WIDTH, from(c), idx, WIDTH, c->x_off ? 2 : 0, ROWS);
}
static void s_dropout(Device *d, void *out, const void *context)
{
    const Shifted *c = context;
    d->op.dropout(d, c->t, to(c, out), WIDTH, from(c), WIDTH, c->key, 7, 0.3f, true, (int64_t)c->x_off, WIDTH, ROWS);
}
static void s_scale(Device *d, void *out, const void *context)
{
    const Shifted *c = context;
    d->op.scale_cols(d, c->t, to(c, out), WIDTH, from(c), WIDTH, NULL, c->vectors + c->out_off, to(c, out), WIDTH,
                     ROWS);
}
static void s_scale_bwd(Device *d, void *out, const void *context)
{
    const Shifted *c = context;
    float dm[WIDTH] = {0};
    d->op.scale_cols_bwd(d, c->t, to(c, out), WIDTH, dm, from(c), WIDTH, to(c, out), WIDTH, c->vectors, c->vectors,
                         true, WIDTH, ROWS); // du is u
}
static void s_copy(Device *d, void *out, const void *context)
{
    const Shifted *c = context;
    d->op.convert(d, to(c, out), c->t, from(c), c->t, ROWS * WIDTH - 3);
}

static const struct {
    const char *name;
    Run *run;
} shifted[] = {{"rmsnorm_fwd", s_norm},
               {"rmsnorm_bwd", s_norm_bwd},
               {"rope", s_rope},
               {"swiglu_fwd", s_swiglu},
               {"swiglu_bwd", s_swiglu_bwd},
               {"gather_rows", s_gather},
               {"scatter_rows", s_scatter},
               {"dropout", s_dropout},
               {"scale_cols", s_scale},
               {"scale_cols_bwd", s_scale_bwd},
               {"copy", s_copy}};

static void rows_begin_anywhere(void **state)
{
    (void)state;
    enum { N = 2 * ROWS * WIDTH + 8 };
    for (size_t i = 0; i < COUNT_OF(shifted) * COUNT_OF(kernel_types) * 4; i++) {
        Shifted c = {kernel_types[i % 2], i / 2 % 2, i / 4 % 2, NULL, NULL, {4, 0, 2, 2, 1}, {1, 2, 1ull << 60, 4, 5}};
        c.x = random_values(c.t, N, 1, 1), c.vectors = random_values(DT_F32, N, 2, 1);
        void *before = random_values(c.t, N, 3, 1);
        compare(tmpf("%s of %s, %zu and %zu off", shifted[i / 8].name, dtype_name(c.t), c.x_off, c.out_off),
                shifted[i / 8].run, &c, c.t, before, N, nmse_limit(c.t));
        free(c.x), free(c.vectors), free(before);
    }
}

// ---- sums ----
typedef struct Sums {
    int64_t rows, K;
    float *x;
} Sums;

static void squares(Device *d, void *out, const void *context)
{
    const Sums *c = context;
    double *sums = xmalloc(sizeof *sums * (size_t)c->rows);
    d->op.row_squares(d, sums, c->x, c->rows, c->K);
    for (int64_t r = 0; r < c->rows; r++) ((float *)out)[r] = (float)sums[r];
    free(sums);
}

static void long_rows(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{3, 70000}, {2, 8192}, {2, 8191}, {1, 4097}, {5, 128}, {5, 127}, {5, 130}};
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        Sums c = {shapes[i][0], shapes[i][1], NULL};
        c.x = random_values(DT_F32, (size_t)(c.rows * c.K), 1, 1);
        const float before[5] = {0};
        compare(tmpf("row_squares of %d", (int)c.K), squares, &c, DT_F32, before, (size_t)c.rows, 1e-14);
        free(c.x);
    }
}

typedef struct Columns {
    DType t;
    int N, T;
    void *dy;
} Columns;

static void bias(Device *d, void *db, const void *context)
{
    const Columns *c = context;
    d->op.bias_grad(d, c->t, db, c->dy, c->N, c->N, c->T % 2, c->T);
}

static void columns(void **state)
{
    (void)state;
    static const int shapes[][2] = {{2056, 130}, {16, 1000}, {3, 66000}, {1000, 65}};
    for (size_t i = 0; i < COUNT_OF(shapes) * COUNT_OF(kernel_types); i++) {
        Columns c = {kernel_types[i % 2], shapes[i / 2][0], shapes[i / 2][1], NULL};
        c.dy = random_values(c.t, (size_t)c.N * (size_t)c.T, 1, 1);
        void *before = random_values(DT_F32, (size_t)c.N, 2, 1);
        compare(tmpf("bias_grad %d %d", c.N, c.T), bias, &c, DT_F32, before, (size_t)c.N, nmse_limit(DT_F32));
        free(c.dy), free(before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(norms), cmocka_unit_test(embed_lists),
                                       cmocka_unit_test(rows_begin_anywhere), cmocka_unit_test(long_rows),
                                       cmocka_unit_test(columns)};
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
