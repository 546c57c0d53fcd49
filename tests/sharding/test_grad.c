// Gradient sums: the same bits however 8 micro-batches are dealt out to ranks, faults that reach every rank, and the plain mode.
#include "sharding.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { MICRO = 8, TENSORS = 4 };
static const size_t sizes[TENSORS] = {1000, 1, 0, 4097};

static Comm *world, *alone;
static Device *device;
static Arena *arena;
static int rank, size;

// Gradients over twelve orders of magnitude, of both signs, with exact zeros between them.
static float gradient(int micro, int tensor, size_t i)
{
    uint32_t u[4];
    philox((uint64_t)tensor, (uint64_t)micro, i, u);
    if (u[2] % 8 == 0) return 0;
    return ldexpf(u32_to_unit(u[0]) - 0.5f, -(int)(u[1] % 40));
}

static void add_micro(GradSet *g, int micro)
{
    float dw[4097];
    for (int t = 0; t < TENSORS; t++) {
        if (!sizes[t]) continue;
        for (size_t i = 0; i < sizes[t]; i++) dw[i] = gradient(micro, t, i);
        float *direct = grad_direct(g, t);
        for (size_t i = 0; direct && i < sizes[t]; i++) direct[i] += dw[i];
        if (!direct) grad_add(g, t, dw);
    }
}

static GradSet *open_set(bool order_free)
{
    GradSet *g;
    assert_int_equal(grad_open(&g, device, arena, sizes, TENSORS, order_free), OK);
    return g;
}

// Who does which micro-batch: in turn, in blocks, or all on the last rank.
typedef int Deal(int micro);
static int in_turn(int micro)
{
    return micro % size;
}
static int in_blocks(int micro)
{
    return micro * size / MICRO;
}
static int by_the_last(int micro)
{
    return (void)micro, size - 1;
}
static Deal *const deals[] = {in_turn, in_blocks, by_the_last};

static void test_the_same_bits_for_every_deal(void **state)
{
    (void)state;
    GradSet *want = open_set(true), *got = open_set(true);
    for (int m = MICRO - 1; m >= 0; m--) add_micro(want, m); // backwards: order does not count either
    assert_int_equal(grad_reduce(want, alone), OK);
    double norm = grad_norm(want);
    for (size_t d = 0; d < COUNT_OF(deals); d++) {
        grad_zero(got);
        for (int m = 0; m < MICRO; m++)
            if (deals[d](m) == rank) add_micro(got, m);
        assert_int_equal(grad_reduce(got, world), OK);
        for (int t = 0; t < TENSORS; t++) {
            if (!sizes[t]) continue;
            const float *a = grad_get(want, t), *b = grad_get(got, t);
            assert_ptr_not_equal(a, b);
            assert_memory_equal(a, b, sizes[t] * sizeof *a);
        }
        double n = grad_norm(got);
        assert_memory_equal(&n, &norm, sizeof n);
    }
    grad_close(want);
    grad_close(got);
}

static void test_values_and_norm(void **state)
{
    (void)state;
    for (int order_free = 0; order_free < 2; order_free++) {
        GradSet *g = open_set(order_free);
        for (int m = 0; m < MICRO; m++)
            if (in_turn(m) == rank) add_micro(g, m);
        assert_int_equal(grad_reduce(g, world), OK);
        double squares = 0;
        for (int t = 0; t < TENSORS; t++)
            for (size_t i = 0; i < sizes[t]; i++) {
                double want = 0, most = 0;
                for (int m = 0; m < MICRO; m++) {
                    want += gradient(m, t, i);
                    most = fmax(most, fabs(gradient(m, t, i)));
                }
                squares += want * want;
                // Each micro-batch rounds by half a step; then one rounding to f32, or one per f32 addition.
                double error = order_free ? MICRO * 0x1p-45 + fabs(want) * 0x1p-24 : MICRO * MICRO * most * 0x1p-24;
                assert_true(fabs(grad_get(g, t)[i] - want) <= error);
            }
        assert_true(fabs(grad_norm(g) / sqrt(squares) - 1) < 1e-6);
        grad_close(g);
    }
}

// A value that cannot be added on one rank ends the step on all, and the next step is clean.
static void test_overflow_reaches_every_rank(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, 6e5f, -6e5f, 1e30f};
    GradSet *g = open_set(true);
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        for (int culprit = 0; culprit < size; culprit++) {
            float dw[1] = {rank == culprit ? bad[i] : 1};
            grad_zero(g);
            grad_add(g, 1, dw);
            assert_int_equal(grad_overflowed(g), rank == culprit);
            assert_int_equal(grad_reduce(g, world), E_FAILED);
            error_clear();
        }
    grad_zero(g);
    assert_false(grad_overflowed(g));
    grad_add(g, 1, &(float){5e5f / (float)size});
    assert_int_equal(grad_reduce(g, world), OK);
    assert_true(fabs(grad_get(g, 1)[0] - 5e5) < 1);
    grad_close(g);
}

// Values that fit, but whose sum does not: over micro-batches, and over ranks.
static void test_sums_do_not_wrap(void **state)
{
    (void)state;
    GradSet *g = open_set(true);
    for (int sign = -1; sign <= 1; sign += 2) {
        grad_zero(g);
        if (rank == 0) grad_add(g, 1, &(float){5e5f * (float)sign});
        if (rank == 0) grad_add(g, 1, &(float){5e5f * (float)sign});
        assert_int_equal(grad_reduce(g, world), E_FAILED);
        error_clear();
        grad_zero(g);
        grad_add(g, 1, &(float){5e5f * (float)sign});
        assert_int_equal(grad_reduce(g, world), size > 1 ? E_FAILED : OK);
        error_clear();
    }
    grad_close(g);
}

static void test_who_may_write_directly(void **state)
{
    (void)state;
    GradSet *fixed = open_set(true), *plain = open_set(false);
    assert_null(grad_direct(fixed, 0));
    assert_non_null(grad_direct(plain, 0));
    grad_add(plain, 1, &(float){1.5f});
    assert_true(grad_direct(plain, 1)[0] == 1.5f);
    assert_true(grad_get(plain, 1)[0] == 1.5f);
    grad_close(fixed);
    grad_close(plain);
}

// A plan measures without memory, and tells what a run will take.
static void test_measuring(void **state)
{
    (void)state;
    for (int order_free = 0; order_free < 2; order_free++) {
        Arena *measure;
        GradSet *planned, *real = open_set(order_free);
        assert_int_equal(arena_open(&measure, "plan", 0, true), OK);
        assert_int_equal(grad_open(&planned, device, measure, sizes, TENSORS, order_free), OK);
        assert_null(grad_direct(planned, 0));
        assert_int_equal(grad_bytes(planned), grad_bytes(real));
        assert_in_range(grad_bytes(planned), 5098 * (order_free ? 8 : 4), 5098 * 12 + 128);
        grad_close(planned);
        grad_close(real);
        arena_free(measure);
    }
}

static int open_all(void **state)
{
    (void)state;
    setenv("ATTUNE_COMM_TIMEOUT", "60", 0); // a rank that failed an assertion leaves the others waiting
    if (comm_open(&world, &(CommConfig){.kind = "auto"}) < 0) return -1;
    if (comm_open(&alone, &(CommConfig){.kind = "self"}) < 0) return -1;
    if (device_open(&device, &(DeviceConfig){.name = "cpu-ref"}) < 0) return -1;
    rank = comm_rank(world);
    size = comm_size(world);
    return arena_open(&arena, "test", 8 << 20, false);
}

static int close_all(void **state)
{
    (void)state;
    arena_free(arena);
    device_close(device);
    comm_close(alone);
    comm_close(world);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_bits_for_every_deal), cmocka_unit_test(test_values_and_norm),
        cmocka_unit_test(test_overflow_reaches_every_rank),  cmocka_unit_test(test_sums_do_not_wrap),
        cmocka_unit_test(test_who_may_write_directly),       cmocka_unit_test(test_measuring),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
