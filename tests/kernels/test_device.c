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

// A forward and backward pass of one linear layer, attention and the head; memory NULL: over a null device.
static void pass(Device *d, DType t, char *memory)
{
    enum { T = 200, C = 96, NH = 4, D = 24, V = 700, ROOM = 1 << 20 };
    char *at[9];
    for (int i = 0; i < 9; i++) at[i] = memory ? memory + (size_t)i * ROOM : NULL;
    const int32_t start = 0, length = T;
    const Packed w = {t, C, C, at[0]}, head = {t, V, C, at[1]};
    const AttnShape shape = {.S = 1,
                             .q_start = &start,
                             .q_len = &length,
                             .k_start = &start,
                             .k_len = &length,
                             .NH = NH,
                             .KV = NH,
                             .D = D,
                             .scale = 1};
    d->op.linear_fwd(d, t, at[2], C, at[3], C, &w, NULL, NULL, NULL, T);
    d->op.linear_dx(d, t, at[2], C, at[3], C, &w, NULL, false, T);
    d->op.linear_dw(d, t, (float *)at[2], at[3], C, at[4], C, C, C, false, T);
    d->op.attn_fwd(d, t, at[2], C, (float *)at[3], at[4], C, at[5], at[6], C, &shape);
    d->op.attn_bwd(d, t, at[2], C, at[3], at[4], C, at[5], at[6], C, (float *)at[7], at[8], C, at[8], at[8], C, &shape);
    d->op.head_fwd_bwd(d, t, (float *)at[2], (float *)at[3], at[4], NULL, (float *)at[5], at[6], &head,
                       (int32_t *)at[7], 0, T);
}

// What is noted over a null device is what the device takes, which adds up to a quarter for the next request.
static void test_noted_scratch(void **state)
{
    (void)state;
    char *memory = aligned_alloc(64, 9 << 20);
    memset(memory, 0, 9 << 20);
    for (int threads = 1; threads <= 2; threads++)
        for (DType t = DT_F32; t <= DT_BF16; t++) {
            Device *like = open_device("cpu", threads), *d;
            assert_int_equal(device_open_null(&d, like), OK);
            pass(like, t, memory);
            pass(d, t, NULL);
            const double noted = (double)d->scratch_bytes(d), taken = (double)like->scratch_bytes(like);
            assert_true(noted > 1e5 && taken <= 1.25 * noted + 1000);
            assert_true(threads > 1 || taken >= noted); // of several, some may have had nothing to do
            device_close(d);
            device_close(like);
        }
    free(memory);
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
    device_close(d);
    like->op.row_squares(like, &sum, (float[5]){1}, 1, 5); // is still there
    assert_true(sum == 1);
    device_close(like);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dtypes),      cmocka_unit_test(test_names),          cmocka_unit_test(test_absent_device),
        cmocka_unit_test(test_bad_threads), cmocka_unit_test(test_isa_is_lowered), cmocka_unit_test(test_memory),
        cmocka_unit_test(test_null_device), cmocka_unit_test(test_noted_scratch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
