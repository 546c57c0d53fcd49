// AdamW, sums of squares and fixed-point gradient sums.
#include "kernel_test.h"

static float *floats(size_t n, uint64_t seed, float scale)
{
    return random_values(DT_F32, n, seed, scale);
}

static void free_all(void **p, size_t n)
{
    for (size_t i = 0; i < n; i++) free(p[i]);
}
#define FREE(...) free_all((void *[]){__VA_ARGS__}, COUNT_OF(((void *[]){__VA_ARGS__})))

// ---- AdamW ----------------------------------------------------------------------------------------------------------
// By hand: p 1, g 0.5 then -1 (both times g_scale 0.5), lr 0.1, beta 0.9 and 0.99, eps 0.001, decay 0.2.
// Step 1: g' 0.25, m 0.025, v 0.000625, m/c1 0.25, v/c2 0.0625; p 1 - 0.02 - 0.1 * 0.25 / 0.251 = 0.880398406.
// Step 2: g' -0.5, m -0.0275, v 0.00311875, m/c1 -0.0275/0.19, v/c2 0.00311875/0.0199;
//         p 0.98 * 0.880398406 + 0.1 * 0.144736842 / 0.396879834 = 0.899259213.
static void adamw_by_hand(void **state)
{
    (void)state;
    static const char *const devices[] = {"cpu-ref", "cpu"};
    for (size_t i = 0; i < COUNT_OF(devices); i++) {
        Device *d = open_threads(devices[i], 1);
        float p = 1, m = 0, v = 0;
        d->op.adamw(d, &p, &m, &v, &(float){0.5f}, 0.5f, 0.1f, 0.9f, 0.99f, 1e-3f, 0.2f, 1, 1);
        assert_float_equal(m, 0.025, 1e-8);
        assert_float_equal(v, 0.000625, 1e-9);
        assert_float_equal(p, 0.880398406, 1e-6);
        d->op.adamw(d, &p, &m, &v, &(float){-1}, 0.5f, 0.1f, 0.9f, 0.99f, 1e-3f, 0.2f, 2, 1);
        assert_float_equal(m, -0.0275, 1e-8);
        assert_float_equal(v, 0.00311875, 2e-8);
        assert_float_equal(p, 0.899259213, 1e-6);
        device_close(d);
    }
}

static void adamw_steps(Device *d, float *p, float *m, float *v, const float *g, size_t n)
{
    for (int64_t step = 1; step <= 3; step++)
        d->op.adamw(d, p, m, v, g, 0.5f, 1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, step, n);
}

static void adamw_equals_reference(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 15, 100, 4096, 9001};
    Device *ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(kernel_isas) * COUNT_OF(sizes); i++) {
        size_t n = sizes[i % COUNT_OF(sizes)];
        Device *d = open_isa(kernel_isas[i / COUNT_OF(sizes)], 2);
        if (!d) continue;
        float *g = floats(n, 1, 0.1f), *p[2], *m[2], *v[2];
        for (int k = 0; k < 2; k++) {
            p[k] = floats(n, 2, 1), m[k] = xcalloc(n, 4), v[k] = xcalloc(n, 4);
            adamw_steps(k ? ref : d, p[k], m[k], v[k], g, n);
        }
        expect_close("p", DT_F32, p[0], p[1], n);
        expect_close("m", DT_F32, m[0], m[1], n);
        expect_close("v", DT_F32, v[0], v[1], n);
        FREE(g, p[0], p[1], m[0], m[1], v[0], v[1]);
        device_close(d);
    }
    device_close(ref);
}

// A rank updates its slice of a tensor: cutting it anywhere gives the bits of the whole.
static void adamw_of_slices_is_adamw_of_the_whole(void **state)
{
    (void)state;
    enum { N = 203 };
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *d = open_isa(kernel_isas[i], 1);
        if (!d) continue;
        float *g = floats(N, 1, 0.1f), *p[2], *m[2], *v[2];
        for (int k = 0; k < 2; k++) {
            p[k] = floats(N, 2, 1), m[k] = floats(N, 3, 0.1f), v[k] = xcalloc(N, 4);
            size_t cut = k ? 77 : N;
            adamw_steps(d, p[k], m[k], v[k], g, cut);
            adamw_steps(d, p[k] + cut, m[k] + cut, v[k] + cut, g + cut, N - cut);
        }
        expect_same_bits("p", p[1], p[0], N * 4);
        expect_same_bits("m", m[1], m[0], N * 4);
        expect_same_bits("v", v[1], v[0], N * 4);
        FREE(g, p[0], p[1], m[0], m[1], v[0], v[1]);
        device_close(d);
    }
}

// ---- sums of squares ------------------------------------------------------------------------------------------------
static void row_squares_agree(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{0, 5},   {5, 0},    {1, 1},    {9001, 1},  {5000, 2},  {777, 15}, {300, 16},
                                        {99, 17}, {41, 576}, {7, 4095}, {20, 4096}, {20, 4097}, {3, 20000}};
    Device *ref = open_threads("cpu-ref", 1);
    for (size_t s = 0; s < COUNT_OF(shapes); s++) {
        int64_t rows = shapes[s][0], K = shapes[s][1];
        float *x = floats((size_t)(rows * K), 1, 3);
        double *want = xcalloc((size_t)rows + 1, sizeof *want), *first = xcalloc((size_t)rows + 1, sizeof *want);
        ref->op.row_squares(ref, want, x, rows, K);
        for (size_t i = 0; i < COUNT_OF(kernel_isas) * 3; i++) {
            Device *d = open_isa(kernel_isas[i / 3], 1 + (int)i % 3);
            if (!d) continue;
            double *got = memset(xmalloc(sizeof *got * ((size_t)rows + 1)), 0xff, sizeof *got * ((size_t)rows + 1));
            d->op.row_squares(d, got, x, rows, K);
            for (int64_t r = 0; r < rows; r++) assert_true(fabs(got[r] - want[r]) <= 1e-13 * want[r]);
            if (*first == 0) memcpy(first, got, sizeof *got * (size_t)rows);
            expect_same_bits("rows", got, first, sizeof *got * (size_t)rows);
            for (int64_t r = 0; r < rows; r += 1 + rows / 3) { // alone
                d->op.row_squares(d, got, x + r * K, 1, K);
                expect_same_bits("a row alone", got, first + r, sizeof *got);
            }
            free(got);
            device_close(d);
        }
        FREE(x, want, first);
    }
    double out[2];
    ref->op.row_squares(ref, out, ((float[]){1, -2, 3, 1e30f, 0, NAN}), 2, 3);
    assert_true(out[0] == 14 && isnan(out[1]));
    device_close(ref);
}

// ---- fixed point ----------------------------------------------------------------------------------------------------
static void fix_sums_have_no_order(void **state)
{
    (void)state;
    enum { N = 5003, PARTS = 4 };
    static const int orders[][PARTS] = {{0, 1, 2, 3}, {3, 1, 0, 2}, {2, 3, 1, 0}};
    float *part[PARTS], *sum[COUNT_OF(orders)];
    for (int i = 0; i < PARTS; i++) part[i] = floats(N, (uint64_t)i, i == 2 ? 1000 : 1e-3f);
    for (size_t o = 0; o < COUNT_OF(orders); o++) {
        Device *d = open_threads(o ? "cpu" : "cpu-ref", (int)o + 1);
        int64_t *acc = xcalloc(N, sizeof *acc);
        int overflow = 0;
        for (int i = 0; i < PARTS; i++) d->op.fix_add(d, acc, part[orders[o][i]], N, INT64_MAX, &overflow);
        assert_int_equal(overflow, 0);
        d->op.fix_read(d, sum[o] = xcalloc(N, 4), acc, N);
        expect_same_bits("sum", sum[o], sum[0], N * 4);
        free(acc);
        device_close(d);
    }
    for (int i = 0; i < N; i++) {
        double want = (double)part[0][i] + part[1][i] + part[2][i] + part[3][i];
        assert_true(fabs(sum[0][i] - want) <= 1e-12 + 1e-7 * fabs(want));
    }
    for (int i = 0; i < PARTS; i++) FREE(part[i], i < (int)COUNT_OF(orders) ? sum[i] : NULL);
}

static void fix_add_rounds_to_nearest(void **state)
{
    (void)state;
    static const char *const devices[] = {"cpu-ref", "cpu"};
    for (size_t i = 0; i < COUNT_OF(devices); i++) {
        Device *d = open_threads(devices[i], 1);
        const float g[] = {0x1p-44f, -0x1p-44f, 0x1.8p-45f, 0x1p-46f, -1.5f, 519999};
        const int64_t want[] = {1, -1, 1, 0, -(3LL << 43), 519999LL << 44};
        int64_t acc[COUNT_OF(g)] = {0};
        int overflow = 0;
        d->op.fix_add(d, acc, g, COUNT_OF(g), INT64_MAX, &overflow);
        assert_memory_equal(acc, want, sizeof acc);
        assert_int_equal(overflow, 0);
        device_close(d);
    }
}

static void fix_add_reports_what_does_not_fit(void **state)
{
    (void)state;
    static const char *const devices[] = {"cpu-ref", "cpu"};
    const float bad[] = {NAN, INFINITY, -INFINITY, 5.2e5f, -5.3e5f};
    for (size_t i = 0; i < COUNT_OF(devices) * COUNT_OF(bad); i++) {
        Device *d = open_threads(devices[i / COUNT_OF(bad)], 2);
        float *g = floats(20000, 1, 1);
        int64_t *acc = xcalloc(20000, sizeof *acc);
        int overflow = 0;
        d->op.fix_add(d, acc, g, 20000, INT64_MAX, &overflow);
        assert_int_equal(overflow, 0);
        g[19990] = bad[i % COUNT_OF(bad)];
        d->op.fix_add(d, acc, g, 20000, INT64_MAX, &overflow);
        assert_int_equal(overflow, 1);
        FREE(g, acc);
        device_close(d);
    }
    Device *d = open_threads("cpu", 1);
    int64_t acc = 0;
    int overflow = 0;
    d->op.fix_add(d, &acc, &(float){4e5f}, 1, INT64_MAX, &overflow);
    assert_int_equal(overflow, 0);
    d->op.fix_add(d, &acc, &(float){4e5f}, 1, INT64_MAX, &overflow); // each fits, the sum does not
    assert_int_equal(overflow, 1);
    device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adamw_by_hand),
        cmocka_unit_test(adamw_equals_reference),
        cmocka_unit_test(adamw_of_slices_is_adamw_of_the_whole),
        cmocka_unit_test(row_squares_agree),
        cmocka_unit_test(fix_sums_have_no_order),
        cmocka_unit_test(fix_add_rounds_to_nearest),
        cmocka_unit_test(fix_add_reports_what_does_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
