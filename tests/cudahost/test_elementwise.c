// Kernels of kernels/cuda/elementwise.cu, against the references of the CPU, in every order.
#include "cuda_kernels.h"
#include "cudahost_test.h"

static Device *reference;

static int open_reference(void **state)
{
    (void)state;
    return device_open(&reference, &(DeviceConfig){.name = "cpu-ref"});
}
static int close_reference(void **state)
{
    (void)state;
    device_close(reference);
    return 0;
}

static void expect_close(const char *what, DType t, const void *got, const void *want, size_t n)
{
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        double g = device_get(got, t, i), w = device_get(want, t, i);
        error += (g - w) * (g - w), norm += w * w;
    }
    if (!(error <= norm * (t == DT_BF16 ? 1e-5 : 1e-11))) fail_msg("%s: error %g of %g", what, error, norm);
}

static void rmsnorm_fwd_case(DType t, int C, int T)
{
    void *x = device_random("x", t, (size_t)T * C, 1, 2), *y = device_empty("y", t, (size_t)T * C);
    float *w = device_random("w", DT_F32, C, 2, 1), *rstd = device_empty("rstd", DT_F32, T);
    void *want = xmalloc((size_t)T * C * dtype_size(t));
    float *want_rstd = xmalloc(T * sizeof(float));
    reference->op.rmsnorm_fwd(reference, t, want, want_rstd, x, w, 1, 1e-5f, C, T);
    void *first = NULL;
    FOR_EACH_ORDER(i)
    {
        cuda_rmsnorm_fwd(t, y, rstd, x, w, 1, 1e-5f, C, T, NULL);
        expect_no_findings("rmsnorm_fwd");
        expect_close("y", t, y, want, (size_t)T * C);
        expect_close("rstd", DT_F32, rstd, want_rstd, T);
        if (!first) first = memcpy(xmalloc((size_t)T * C * dtype_size(t)), y, (size_t)T * C * dtype_size(t));
        assert_memory_equal(first, y, (size_t)T * C * dtype_size(t));
    }
    free(first), free(want), free(want_rstd);
    cudahost_free(x), cudahost_free(y), cudahost_free(w), cudahost_free(rstd);
    expect_no_findings("guards");
}

static void test_rmsnorm_fwd(void **state)
{
    (void)state;
    static const struct {
        int C, T;
    } cases[] = {{64, 5}, {576, 3}, {1000, 9}, {33, 4}, {8, 1}, {7, 2}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        rmsnorm_fwd_case(DT_BF16, cases[i].C, cases[i].T);
        rmsnorm_fwd_case(DT_F32, cases[i].C, cases[i].T);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rmsnorm_fwd)};
    return cmocka_run_group_tests(tests, open_reference, close_reference);
}
