// The device registry and what a device promises besides its ops: names, instruction sets, threads, scratch.
#include "kernels.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static Device *open_device(const char *name, int threads)
{
    Device *d;
    assert_int_equal(device_open(&d, &(DeviceConfig){.name = name, .threads = threads}), OK);
    return d;
}

static void test_dtypes(void **state)
{
    (void)state;
    assert_int_equal(dtype_size(DT_F32), 4);
    assert_int_equal(dtype_size(DT_BF16), 2);
    assert_int_equal(dtype_size(DT_I64), 8);
    for (int t = 0; t < DT_COUNT; t++) assert_true(dtype_size(t) > 0 && dtype_name(t)[0] != '?');
    assert_string_equal(dtype_name(DT_BF16), "bf16");
}

static void test_names(void **state)
{
    (void)state;
    Device *d = open_device("auto", 1);
    assert_true(d->op.linear_fwd && d->op.head_fwd_bwd);
    device_close(d);
    d = open_device("cpu-ref", 1);
    assert_string_equal(d->name, "cpu-ref");
    device_close(d);
    device_close(NULL);
}

static void test_absent_device(void **state)
{
    (void)state;
    Device *d;
    assert_int_equal(device_open(&d, &(DeviceConfig){.name = "abacus"}), E_MISSING);
    assert_null(d);
    assert_non_null(strstr(error_last()->what, "abacus"));
    assert_non_null(strstr(error_last()->hint, "cpu-ref"));
    error_clear();
}

static void test_bad_threads(void **state)
{
    (void)state;
    Device *d;
    assert_int_equal(device_open(&d, &(DeviceConfig){.name = "cpu", .threads = -1}), E_INPUT);
    error_clear();
}

static void test_isa_is_lowered(void **state)
{
    (void)state;
    const char *best = cpu_isa();
    setenv("ATTUNE_ISA", "generic", 1);
    assert_string_equal(cpu_isa(), "generic");
    assert_false(cpu_has_fast_bf16());
    setenv("ATTUNE_ISA", "avx512-bf16", 1); // never raised above what the machine has
    assert_string_equal(cpu_isa(), best);
    unsetenv("ATTUNE_ISA");
}

static void test_memory(void **state)
{
    (void)state;
    Device *d = open_device("cpu", 2);
    int from[3] = {1, 2, 3}, to[3] = {0}, back[3] = {0};
    assert_int_equal(d->upload(d, to, from, sizeof from), OK);
    assert_int_equal(d->download(d, back, to, sizeof to), OK);
    assert_int_equal(d->sync(d), OK);
    assert_memory_equal(from, back, sizeof from);
    assert_int_equal(d->zero(d, to, sizeof to), OK);
    assert_int_equal(to[2], 0);
    assert_int_equal(d->scratch_bytes(d), 0);
    assert_int_equal(d->packed_bytes(d, DT_BF16, 33, 3), 2 * 32 * 4 * 2); // panels of 32, pairs
    assert_int_equal(d->packed_bytes(d, DT_F32, 32, 3), 32 * 3 * 4);
    device_close(d);
}

static void test_null_device(void **state)
{
    (void)state;
    Device *like = open_device("cpu", 1), *d;
    assert_int_equal(device_open_null(&d, like), OK);
    assert_string_equal(d->name, like->name);
    void (*op[sizeof(OpTable) / sizeof(void (*)(void))])(void);
    memcpy(op, &d->op, sizeof op);
    for (size_t i = 0; i < COUNT_OF(op); i++) assert_non_null(op[i]);
    Packed w = {DT_BF16, 70, 33, NULL};
    d->op.linear_fwd(d, DT_BF16, NULL, 70, NULL, 33, &w, NULL, NULL, NULL, 1000);
    d->op.linear_dw(d, DT_BF16, NULL, NULL, 70, NULL, 33, 70, 33, false, 0); // stores zeros elsewhere
    d->op.embed_bwd(d, DT_F32, NULL, NULL, NULL, 1, 10, 10, 10);
    double sum = 7;
    d->op.row_squares(d, &sum, NULL, 1, 1000);
    assert_true(sum == 7);
    assert_int_equal(d->upload(d, NULL, NULL, 1000), OK);
    assert_int_equal(d->download(d, NULL, NULL, 1000), OK);
    assert_int_equal(d->zero(d, NULL, 1000), OK);
    assert_int_equal(d->sync(d), OK);
    assert_int_equal(d->packed_bytes(d, DT_BF16, 70, 33), like->packed_bytes(like, DT_BF16, 70, 33));
    float x[5000] = {1};
    like->op.row_squares(like, &sum, x, 1, 5000);
    assert_true(like->scratch_bytes(like) > 0);
    assert_int_equal(d->scratch_bytes(d), like->scratch_bytes(like));
    device_close(d);
    like->op.row_squares(like, &sum, x, 1, 5000); // is still there
    assert_true(sum == 1);
    device_close(like);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dtypes),      cmocka_unit_test(test_names),          cmocka_unit_test(test_absent_device),
        cmocka_unit_test(test_bad_threads), cmocka_unit_test(test_isa_is_lowered), cmocka_unit_test(test_memory),
        cmocka_unit_test(test_null_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
