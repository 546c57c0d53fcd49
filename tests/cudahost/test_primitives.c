// The primitives of dev.cuh as the executor defines them, against tables and plain loops. The fragment layouts stand here as tables, lane by
// lane, as the PTX ISA draws them for mma.m16n8k16 (.bf16) and ldmatrix (.m8n8): what an emulator and its kernels would agree on
// in error, a table shows.
#include "cudahost_test.h"
#include "primitives.h"

// Which lane holds elements (row, 2p) and (row, 2p + 1) of A (16x16). Registers: a[0] rows 0-7 and columns 0-7, a[1] rows 8-15 and
// columns 0-7, a[2] rows 0-7 and columns 8-15, a[3] the rest.
static const unsigned char a_lane[16][8] = {
    {0, 1, 2, 3, 0, 1, 2, 3},         {4, 5, 6, 7, 4, 5, 6, 7},         {8, 9, 10, 11, 8, 9, 10, 11},
    {12, 13, 14, 15, 12, 13, 14, 15}, {16, 17, 18, 19, 16, 17, 18, 19}, {20, 21, 22, 23, 20, 21, 22, 23},
    {24, 25, 26, 27, 24, 25, 26, 27}, {28, 29, 30, 31, 28, 29, 30, 31}, {0, 1, 2, 3, 0, 1, 2, 3},
    {4, 5, 6, 7, 4, 5, 6, 7},         {8, 9, 10, 11, 8, 9, 10, 11},     {12, 13, 14, 15, 12, 13, 14, 15},
    {16, 17, 18, 19, 16, 17, 18, 19}, {20, 21, 22, 23, 20, 21, 22, 23}, {24, 25, 26, 27, 24, 25, 26, 27},
    {28, 29, 30, 31, 28, 29, 30, 31},
};
static const unsigned char a_register[2][2] = {{0, 2}, {1, 3}}; // [row / 8][column / 8]

// Which lane holds element (row, column) of B (16x8): rows 0-7 in the first register, 8-15 in the second; even rows low, odd ones high
static const unsigned char b_lane[16][8] = {
    {0, 4, 8, 12, 16, 20, 24, 28},  {0, 4, 8, 12, 16, 20, 24, 28},  {1, 5, 9, 13, 17, 21, 25, 29},
    {1, 5, 9, 13, 17, 21, 25, 29},  {2, 6, 10, 14, 18, 22, 26, 30}, {2, 6, 10, 14, 18, 22, 26, 30},
    {3, 7, 11, 15, 19, 23, 27, 31}, {3, 7, 11, 15, 19, 23, 27, 31}, {0, 4, 8, 12, 16, 20, 24, 28},
    {0, 4, 8, 12, 16, 20, 24, 28},  {1, 5, 9, 13, 17, 21, 25, 29},  {1, 5, 9, 13, 17, 21, 25, 29},
    {2, 6, 10, 14, 18, 22, 26, 30}, {2, 6, 10, 14, 18, 22, 26, 30}, {3, 7, 11, 15, 19, 23, 27, 31},
    {3, 7, 11, 15, 19, 23, 27, 31},
};

// Which lane holds elements (row, 2p) and (row, 2p + 1) of C (16x8): rows 0-7 in c[0] and c[1], 8-15 in c[2] and c[3]. The upper half is
// also what ldmatrix gives of an 8x8 matrix.
static const unsigned char c_lane[16][4] = {
    {0, 1, 2, 3},     {4, 5, 6, 7},     {8, 9, 10, 11},   {12, 13, 14, 15}, {16, 17, 18, 19}, {20, 21, 22, 23},
    {24, 25, 26, 27}, {28, 29, 30, 31}, {0, 1, 2, 3},     {4, 5, 6, 7},     {8, 9, 10, 11},   {12, 13, 14, 15},
    {16, 17, 18, 19}, {20, 21, 22, 23}, {24, 25, 26, 27}, {28, 29, 30, 31},
};

// Whole numbers, so that every sum is exact in any order
static float number(uint64_t seed, int i)
{
    uint32_t u[4];
    philox(seed, 0, (uint64_t)i, u);
    return (float)(int)(u[0] % 17) - 8;
}

static void mma_case(uint64_t seed)
{
    uint32_t *a = cudahost_alloc(32 * 4 * 4, "a"), *b = cudahost_alloc(32 * 2 * 4, "b");
    float *c = cudahost_alloc(32 * 4 * 4, "c"), A[16][16], B[16][8];
    memset(a, 0, 32 * 4 * 4), memset(b, 0, 32 * 2 * 4);
    for (int i = 0; i < 256; i++) {
        int row = i / 16, column = i % 16;
        A[row][column] = number(seed, i);
        a[a_lane[row][column / 2] * 4 + a_register[row / 8][column / 8]] |= (uint32_t)f32_to_bf16(A[row][column])
                                                                            << column % 2 * 16;
    }
    for (int i = 0; i < 128; i++) {
        int row = i / 8, column = i % 8;
        B[row][column] = number(seed + 1, i);
        b[b_lane[row][column] * 2 + row / 8] |= (uint32_t)f32_to_bf16(B[row][column]) << row % 2 * 16;
        c[c_lane[row][column / 2] * 4 + row / 8 * 2 + column % 2] = number(seed + 2, i);
    }
    primitive_mma(a, b, c);
    expect_no_findings("mma");
    for (int i = 0; i < 128; i++) {
        int row = i / 8, column = i % 8;
        float want = number(seed + 2, i);
        for (int k = 0; k < 16; k++) want += A[row][k] * B[k][column];
        assert_true(c[c_lane[row][column / 2] * 4 + row / 8 * 2 + column % 2] == want);
    }
    cudahost_free(a), cudahost_free(b), cudahost_free(c);
}

static void test_mma(void **state)
{
    (void)state;
    FOR_EACH_ORDER(i) mma_case(10 * i);
}

static void ldmatrix_case(int matrices, bool trans)
{
    uint16_t *in = cudahost_alloc(4 * 64 * 2, "in");
    uint32_t *out = cudahost_alloc((size_t)(32 * matrices * 4), "out");
    for (int i = 0; i < 4 * 64; i++) in[i] = (uint16_t)(1000 + i);
    primitive_ldmatrix(matrices, trans, in, out);
    expect_no_findings("ldmatrix");
    for (int m = 0; m < matrices; m++)
        for (int i = 0; i < 64; i++) {
            int row = i / 8, column = i % 8;
            uint32_t got = out[c_lane[row][column / 2] * matrices + m] >> column % 2 * 16 & 0xffff;
            assert_int_equal(got, in[m * 64 + (trans ? column * 8 + row : row * 8 + column)]);
        }
    cudahost_free(in), cudahost_free(out);
}

static void test_ldmatrix(void **state)
{
    (void)state;
    FOR_EACH_ORDER(i) for (int matrices = 1; matrices <= 4; matrices *= 2)
    {
        ldmatrix_case(matrices, false);
        ldmatrix_case(matrices, true);
    }
}

static void test_copy(void **state)
{
    (void)state;
    FOR_EACH_ORDER(order) for (int bytes = 4; bytes <= 16; bytes *= 2)
    {
        unsigned char *in = cudahost_alloc((size_t)(32 * bytes), "in"),
                      *out = cudahost_alloc((size_t)(32 * bytes), "out");
        for (int i = 0; i < 32 * bytes; i++) in[i] = (unsigned char)(i * 7 + 1);
        primitive_copy(bytes, in, out);
        expect_no_findings("cp_async");
        for (int i = 0; i < 32 * bytes; i++) assert_int_equal(out[i], i % bytes < i / bytes ? in[i] : 0);
        cudahost_free(in), cudahost_free(out);
    }
}

static void test_shuffles(void **state)
{
    (void)state;
    int *out = cudahost_alloc(32 * PRIMITIVE_SHUFFLES * sizeof(int), "out");
    FOR_EACH_ORDER(i)
    {
        primitive_shuffles(out);
        expect_no_findings("shuffles");
        for (int l = 0; l < 32; l++) {
            const int want[PRIMITIVE_SHUFFLES] = {
                5,
                l / 8 * 8 + 5,
                l ^ 3,
                l < 2 ? l : l - 2,
                l % 8 < 2 ? l : l - 2,
                l > 28 ? l : l + 3,
                l % 16 > 12 ? l : l + 3,
                0x49249249,
                1,
                0,
                l < 16 ? 0x0000aaaa : (int)0xaaaa0000u,
                l < 16,
            };
            assert_memory_equal(out + l * PRIMITIVE_SHUFFLES, want, sizeof want);
        }
    }
    cudahost_free(out);
}

static void test_reductions(void **state)
{
    (void)state;
    enum { N = PRIMITIVE_THREADS, R = PRIMITIVE_REDUCTIONS };
    float *in = cudahost_alloc(N * sizeof(float), "in"), *out = cudahost_alloc(N * R * sizeof(float), "out");
    for (int i = 0; i < N; i++) in[i] = number(3, i);
    FOR_EACH_ORDER(order)
    {
        primitive_reductions(in, out);
        expect_no_findings("reductions");
        float sums[4] = {0}, most[4] = {-9, -9, -9, -9}, positive = 0;
        for (int i = 0; i < N; i++) {
            sums[i / 32] += in[i], most[i / 32] = fmaxf(most[i / 32], in[i]);
            positive += in[i] > 0;
        }
        const float sum = sums[0] + sums[1] + sums[2] + sums[3];
        const float all = fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]));
        for (int i = 0; i < N; i++) {
            const float want[R] = {sums[i / 32], most[i / 32], sum, all, positive, 1, 0};
            assert_memory_equal(out + i * R, want, sizeof want);
        }
    }
    cudahost_free(in), cudahost_free(out);
}

static void test_named_barriers(void **state)
{
    (void)state;
    enum { TILES = 7 };
    float *in = device_random("in", DT_F32, TILES * 64, 4, 1), *out = device_empty("out", DT_F32, TILES * 64);
    FOR_EACH_ORDER(order)
    {
        primitive_named_barriers(in, out, TILES);
        expect_no_findings("named barriers");
        for (int i = 0; i < TILES * 64; i++) assert_true(out[i] == in[i / 64 * 64 + 63 - i % 64]);
    }
    cudahost_free(in), cudahost_free(out);
}

static void test_philox(void **state)
{
    (void)state;
    uint32_t *out = cudahost_alloc(32 * 4 * 4, "out"), want[4];
    const uint64_t key = 0x123456789abcdef0u, hi = 0xfedcba9876543210u, lo = 0xfffffffff0u;
    primitive_philox(key, hi, lo, out);
    for (int l = 0; l < 32; l++) {
        philox(key, hi, lo + (uint64_t)l, want);
        assert_memory_equal(out + 4 * l, want, sizeof want);
    }
    cudahost_free(out);
}

static void test_exp2(void **state)
{
    (void)state;
    float *in = cudahost_alloc(32 * sizeof(float), "in"), *out = cudahost_alloc(32 * sizeof(float), "out");
    for (int i = 0; i < 32; i++) in[i] = (float)(i - 16) * 0.37f;
    in[0] = -INFINITY, in[1] = -127, in[2] = INFINITY;
    primitive_exp2(in, out);
    assert_true(out[0] == 0 && out[1] == 0 && isinf(out[2]));
    for (int i = 3; i < 32; i++) assert_true(fabs(out[i] / exp2(in[i]) - 1) < 1e-6);
    cudahost_free(in), cudahost_free(out);
}

// Forward is 0, 1, 2, ..., reverse the opposite, random neither, and a seed is an order.
static void test_orders(void **state)
{
    (void)state;
    if (!cudahost_on_host()) skip();
    enum { N = 3 * 64 };
    unsigned *ticket = cudahost_alloc(4, "ticket"), *out = cudahost_alloc(N * 4, "out"),
             seen[COUNT_OF(cudahost_orders) + 1][N];
    for (size_t i = 0; i <= COUNT_OF(cudahost_orders); i++) {
        const size_t k = i < COUNT_OF(cudahost_orders) ? i : i - 1; // the last one twice
        cudahost_order(cudahost_orders[k].order, cudahost_orders[k].seed);
        *ticket = 0;
        primitive_arrivals(ticket, out);
        memcpy(seen[i], out, sizeof seen[i]);
    }
    expect_no_findings("arrivals");
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(seen[0][i], i);
        assert_int_equal(seen[1][i], N - 1 - i);
    }
    assert_memory_not_equal(seen[2], seen[0], sizeof seen[0]);
    assert_memory_not_equal(seen[2], seen[3], sizeof seen[0]);
    assert_memory_equal(seen[3], seen[4], sizeof seen[0]);
    cudahost_free(ticket), cudahost_free(out);
}

// What is counted, and that guard zones find what no hook saw
static void test_counts_and_guards(void **state)
{
    (void)state;
    if (!cudahost_on_host()) skip();
    cudahost_clear();
    mma_case(1);
    CudahostCounts c = cudahost_counts();
    assert_int_equal(c.launches, 1);
    assert_int_equal(c.threads, 32);
    assert_int_equal(c.mma, 1);
    if (cudahost_hooked()) {
        CudahostTotals b = cudahost_totals();
        assert_int_equal(b.unique_read, 32 * (4 + 2 + 4) * 4);
        assert_int_equal(b.unique_written, 32 * 4 * 4);
        char *p = cudahost_alloc(100, "p");
        p[103] = 1;
        cudahost_free(p);
        assert_int_equal(cudahost_findings(), 1);
        assert_int_equal(cudahost_finding(0)->kind, CUDAHOST_OUT_OF_BOUNDS);
        cudahost_clear();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mma),        cmocka_unit_test(test_ldmatrix),
        cmocka_unit_test(test_copy),       cmocka_unit_test(test_shuffles),
        cmocka_unit_test(test_reductions), cmocka_unit_test(test_named_barriers),
        cmocka_unit_test(test_philox),     cmocka_unit_test(test_exp2),
        cmocka_unit_test(test_orders),     cmocka_unit_test(test_counts_and_guards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
