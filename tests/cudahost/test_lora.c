// The kernels of kernels/cuda/lora.cu against the reference of the CPU: widths and lengths of any size, rows aligned or not. The op with
// its choice between them and two products: tests/kernels/test_linear.c over the device.
#include "cuda_kernels.h"
#include "reference.h"

typedef struct Case {
    int T, N, R, pad; // pad: columns of dy beside its own
    bool accumulate;
} Case;

static Case case_at(int i)
{
    static const int ranks[] = {1, 2, 3, 4, 5, 7, 8, 8, 12, 15, 16, 16, 16, 17, 23, 24, 29, 31, 32, 32, 32};
    static const int lengths[] = {1, 2, 7, 16, 31, 64, 65, 97, 127, 128, 129, 200, 256, 257, 300, 511, 513, 530};
    static const int widths[] = {1, 3, 8, 16, 37, 63, 64, 65, 96, 128, 131, 192, 511, 512, 513, 520, 576};
    uint32_t u[4];
    philox((uint64_t)i, 3, 0, u);
    Case c = {lengths[u[0] % COUNT_OF(lengths)], widths[u[1] % COUNT_OF(widths)], ranks[i % (int)COUNT_OF(ranks)]};
    while ((int64_t)c.T * c.N > (i < 120 ? 16000 : 3000)) c.T = (c.T + 1) / 2;
    c.pad = u[2] % 3 == 0 ? 3 : u[2] % 3 == 1 ? 0 : (8 - c.N % 8) % 8 + 8;
    c.accumulate = u[3] % 2;
    return c;
}

static void expect_close(const char *what, const Case *c, DType t, const void *got, const void *want, size_t n,
                         double limit)
{
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        double g = device_get(got, t, i), w = device_get(want, t, i);
        error += (g - w) * (g - w), norm += w * w;
    }
    if (!(error <= norm * limit)) fail_msg("%s, T %d, N %d, R %d: error %.3g", what, c->T, c->N, c->R, error / norm);
}

typedef struct Operands {
    void *dy, *s, *b;
    int64_t lddy, lds; // lds: of b, too
    float *db_before;
} Operands;

static Operands operands_new(const Case *c)
{
    Operands o = {.lddy = c->N + c->pad, .lds = c->R + c->pad};
    o.dy = device_random("dy", DT_BF16, (size_t)((c->T - 1) * o.lddy + c->N), 1, 1);
    o.s = device_random("s", DT_BF16, (size_t)((c->T - 1) * o.lds + c->R), 2, 1);
    o.b = device_random("b", DT_BF16, (size_t)((c->N - 1) * o.lds + c->R), 3, 1);
    o.db_before = device_random("db before", DT_F32, (size_t)c->N * c->R, 4, 1);
    return o;
}

static void operands_free(Operands *o)
{
    cudahost_free(o->dy), cudahost_free(o->s), cudahost_free(o->b), cudahost_free(o->db_before);
}

typedef struct Result {
    void *ds;
    float *db;
} Result;

static Result result_new(const Case *c, const Operands *o)
{
    const size_t n = (size_t)c->N * c->R;
    Result r = {device_empty("ds", DT_BF16, (size_t)c->T * c->R), device_empty("db", DT_F32, n)};
    if (c->accumulate) memcpy(r.db, o->db_before, n * sizeof(float));
    return r;
}

static void result_free(Result *r)
{
    cudahost_free(r->ds), cudahost_free(r->db);
}

static Result run(const Case *c, const Operands *o)
{
    Result r = result_new(c, o);
    void *scratch = cudahost_alloc(cuda_lora_bwd_scratch(c->N, c->R, c->T), "scratch");
    cuda_lora_bwd(r.ds, c->R, r.db, o->dy, o->lddy, o->s, o->lds, o->b, o->lds, 0.5f, c->accumulate, c->N, c->R, c->T,
                  scratch, NULL);
    cudahost_free(scratch);
    return r;
}

static Result run_reference(const Case *c, const Operands *o)
{
    Result r = result_new(c, o);
    const size_t bytes = reference->packed_bytes(reference, DT_BF16, c->N, c->R);
    Packed b = {DT_BF16, c->N, c->R, aligned_alloc(64, ROUND_UP(bytes, 64))};
    reference->op.linear_pack(reference, &b, 0, c->N, o->b, DT_BF16, o->lds);
    reference->op.lora_bwd(reference, DT_BF16, r.ds, c->R, r.db, o->dy, o->lddy, o->s, o->lds, &b, 0.5f, c->accumulate,
                           c->T);
    free(b.data);
    return r;
}

static void check_case(const Case *c, int other_order)
{
    const size_t n = (size_t)c->N * c->R, ds_n = (size_t)c->T * c->R;
    Operands o = operands_new(c);
    cudahost_order(CUDAHOST_FORWARD, 0);
    Result got = run(c, &o), want = run_reference(c, &o);
    cudahost_order(cudahost_orders[other_order].order, cudahost_orders[other_order].seed);
    Result again = run(c, &o);
    expect_no_findings("lora");
    expect_close("ds", c, DT_BF16, got.ds, want.ds, ds_n, 1e-5);
    expect_close("db", c, DT_F32, got.db, want.db, n, 1e-11);
    assert_memory_equal(got.ds, again.ds, ds_n * dtype_size(DT_BF16));
    assert_memory_equal(got.db, again.db, n * sizeof(float));
    result_free(&got), result_free(&want), result_free(&again), operands_free(&o);
    expect_no_findings("lora: guards");
}

static void test_shapes(void **state)
{
    (void)state;
    for (int i = 0; i < 312; i++) {
        Case c = case_at(i);
        check_case(&c, 1 + i % 3);
    }
}

// More than one block of tokens, several tiles of them each, and several splits of columns
static void test_many_blocks(void **state)
{
    (void)state;
    static const Case cases[] = {{1100, 70, 16, 0, true}, {600, 130, 32, 6, false}, {140, 1100, 24, 4, true}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) check_case(&cases[i], 1 + (int)i % 3);
}

// A token's dS does not depend on the others.
static void test_tokens_are_independent(void **state)
{
    (void)state;
    const Case all = {300, 520, 16, 0, false}, few = {41, 520, 16, 0, false};
    Operands o = operands_new(&all), part = o;
    const size_t size = dtype_size(DT_BF16);
    part.dy = (char *)o.dy + 200 * (size_t)o.lddy * size, part.s = (char *)o.s + 200 * 16 * size;
    Result whole = run(&all, &o), some = run(&few, &part);
    assert_memory_equal(some.ds, (char *)whole.ds + 200 * 16 * size, 41 * 16 * size);
    result_free(&whole), result_free(&some), operands_free(&o);
    expect_no_findings("tokens");
}

// The kernels are taken for what they are faster at by count of bytes, and for nothing that they cannot do.
static void test_pays(void **state)
{
    (void)state;
    assert_true(cuda_lora_bwd_pays(DT_BF16, 4096, 16, 8192) && cuda_lora_bwd_pays(DT_BF16, 576, 32, 1024));
    assert_false(cuda_lora_bwd_pays(DT_F32, 4096, 16, 8192));
    assert_false(cuda_lora_bwd_pays(DT_BF16, 4096, 33, 8192)); // more than the kernels have room for
    assert_false(cuda_lora_bwd_pays(DT_BF16, 4096, 16, 32));   // parts of dB are as large as dy
    assert_false(cuda_lora_bwd_pays(DT_BF16, 4096, 16, 0));
}

// Nothing to sum: zeros, or what was there.
static void test_no_tokens(void **state)
{
    (void)state;
    float db[6] = {1, 2, 3, 4, 5, 6}, *device = device_empty("db", DT_F32, 6);
    memcpy(device, db, sizeof db);
    cuda_lora_bwd(NULL, 2, device, NULL, 8, NULL, 2, NULL, 2, 1, true, 3, 2, 0, NULL, NULL);
    assert_memory_equal(device, db, sizeof db);
    cuda_lora_bwd(NULL, 2, device, NULL, 8, NULL, 2, NULL, 2, 1, false, 3, 2, 0, NULL, NULL);
    for (int i = 0; i < 6; i++) assert_true(device[i] == 0);
    cudahost_free(device);
    expect_no_findings("no tokens");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_many_blocks),
        cmocka_unit_test(test_tokens_are_independent),
        cmocka_unit_test(test_no_tokens),
        cmocka_unit_test(test_pays),
    };
    return cmocka_run_group_tests(tests, open_reference, close_reference);
}
