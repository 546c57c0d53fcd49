// Gradient sums: the same bits however 8 micro-batches are dealt out to ranks and whatever the ZeRO stage keeps, sums over tensor
// ranks, faults that reach every rank, and the plain mode.
#include "sharding.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { MICRO = 8, TENSORS = 6, UNITS = 4, LARGEST = 1201 * 4001 };
// unit 0: one large tensor, which passes through in chunks; 1: two matrices and an empty tensor; 2: nothing; 3: vectors
static const ShardTensor tensors[TENSORS] = {{1201, 4001, 0, SUM_DATA, true}, {50, 20, 1, SUM_DATA, true},
                                             {1, 1, 1, SUM_TENSOR, true},     {0, 7, 1, SUM_DATA, true},
                                             {3, 1, 3, SUM_DATA, true},       {513, 1, 3, SUM_TENSOR, true}};

static Comm *world;
static Device *device;
static Arena *arena;
static int rank, size;

static size_t size_of(int t)
{
    return (size_t)tensors[t].N * (size_t)tensors[t].K;
}

// Gradients over twelve orders of magnitude, of both signs, with exact zeros between them; they repeat after a prime.
enum { PERIOD = 5003 };
static float table[MICRO][TENSORS][PERIOD];

static void fill_table(void)
{
    for (int m = 0; m < MICRO; m++)
        for (int t = 0; t < TENSORS; t++)
            for (uint64_t i = 0; i < PERIOD; i++) {
                uint32_t u[4];
                philox((uint64_t)t, (uint64_t)m, i, u);
                table[m][t][i] = u[2] % 8 == 0 ? 0 : ldexpf(u32_to_unit(u[0]) - 0.5f, -(int)(u[1] % 40));
            }
}

static float gradient(int micro, int tensor, size_t i)
{
    return table[micro][tensor][i % PERIOD];
}

static void add_micro(GradSet *g, int micro)
{
    float *dw = xmalloc(LARGEST * sizeof *dw);
    for (int unit = 0; unit < UNITS; unit++) {
        for (int t = 0; t < TENSORS; t++) {
            if (tensors[t].unit != unit || !size_of(t)) continue;
            for (size_t i = 0; i < size_of(t); i++) dw[i] = gradient(micro, t, i);
            float *direct = grad_direct(g, t);
            for (size_t i = 0; direct && i < size_of(t); i++) direct[i] += dw[i];
            if (!direct) assert_int_equal(grad_add(g, t, dw), OK);
        }
        assert_int_equal(grad_unit_done(g, unit), OK);
    }
    free(dw);
}

static void add_nothing(GradSet *g)
{
    for (int unit = 0; unit < UNITS; unit++) assert_int_equal(grad_unit_done(g, unit), OK);
}

static GradSet *open_set(const Mesh *mesh, int zero, bool order_free)
{
    GradSet *g;
    const GradConfig c = {device, mesh, tensors, TENSORS, UNITS, zero, order_free, -1};
    assert_int_equal(grad_open(&g, arena, &c), OK);
    return g;
}

// Who does which micro-batch: in turn, in blocks, or all on the last rank.
typedef int Deal(int micro, int ranks);
static int in_turn(int micro, int ranks)
{
    return micro % ranks;
}
static int in_blocks(int micro, int ranks)
{
    return micro * ranks / MICRO;
}
static int by_the_last(int micro, int ranks)
{
    return (void)micro, ranks - 1;
}
static Deal *const deals[] = {in_turn, in_blocks, by_the_last};

// A step over the mesh's data ranks.
static int run_step(GradSet *g, const Mesh *mesh, Deal *deal)
{
    int own = 0, most = 0, mine[MICRO];
    for (int r = 0; r < mesh->data_size; r++) {
        int n = 0;
        for (int m = 0; m < MICRO; m++) n += deal(m, mesh->data_size) == r;
        most = MAX(most, n);
    }
    for (int m = 0; m < MICRO; m++)
        if (deal(m, mesh->data_size) == mesh->data_rank) mine[own++] = m;
    const int rounds = grad_rounds(g, own, most);
    grad_zero(g, rounds);
    for (int i = 0; i < rounds; i++) {
        grad_round(g, i == rounds - 1);
        if (i < own)
            add_micro(g, mine[i]);
        else
            add_nothing(g);
    }
    return grad_finish(g);
}

static void test_the_same_bits_for_every_deal_and_stage(void **state)
{
    (void)state;
    Mesh mesh;
    assert_int_equal(mesh_open(&mesh, world, 1), OK);
    const size_t mark = arena_mark(arena);
    GradSet *want = open_set(NULL, 0, true);
    grad_zero(want, 1);
    grad_round(want, true);
    for (int m = MICRO - 1; m >= 0; m--) add_micro(want, m); // backwards: order does not count either
    assert_int_equal(grad_finish(want), OK);
    double norm, n;
    assert_int_equal(grad_norm(want, &norm), OK);
    for (int zero = 0; zero <= 3; zero++) {
        GradSet *got = open_set(&mesh, zero, true);
        for (size_t d = 0; d < COUNT_OF(deals); d++) {
            assert_int_equal(run_step(got, &mesh, deals[d]), OK);
            for (int t = 0; t < TENSORS; t++) {
                const Rows r = grad_rows(got, t);
                assert_int_equal(r.rows, zero ? part_rows(tensors[t].N, rank, size).rows : tensors[t].N);
                if (!r.rows || !size_of(t)) continue;
                const float *a = grad_get(want, t) + (size_t)r.row0 * (size_t)tensors[t].K, *b = grad_get(got, t);
                assert_ptr_not_equal(a, b);
                assert_memory_equal(a, b, (size_t)r.rows * (size_t)tensors[t].K * sizeof *a);
            }
            assert_int_equal(grad_norm(got, &n), OK);
            assert_memory_equal(&n, &norm, sizeof n);
        }
        grad_close(got);
    }
    grad_close(want);
    arena_reset(arena, mark);
    mesh_close(&mesh);
}

// With all ranks in one tensor group, some sums go over it, and the norm adds up what differs.
static void test_sums_over_tensor_ranks(void **state)
{
    (void)state;
    Mesh mesh;
    assert_int_equal(mesh_open(&mesh, world, size), OK);
    for (int order_free = 0; order_free < 2; order_free++) {
        const size_t mark = arena_mark(arena);
        GradSet *g = open_set(&mesh, 2, order_free);
        assert_int_equal(run_step(g, &mesh, in_turn), OK);
        for (int t = 0; t < TENSORS; t++) {
            if (!size_of(t)) continue;
            double want = 0;
            for (int m = 0; m < MICRO; m++) want += gradient(m, t, 0);
            if (tensors[t].sum == SUM_TENSOR) want *= size;
            assert_true(fabs(grad_get(g, t)[0] - want) <= 1e-5 * fabs(want) + 1e-9);
        }
        grad_close(g);
        arena_reset(arena, mark);
    }
    mesh_close(&mesh);
}

static double sum_of(int tensor, size_t i, double *most)
{
    double sum = 0;
    for (int m = 0; m < MICRO; m++) {
        sum += gradient(m, tensor, i);
        *most = fmax(*most, fabs(gradient(m, tensor, i)));
    }
    return sum;
}

static void test_values_and_norm(void **state)
{
    (void)state;
    Mesh mesh;
    double squares = 0;
    for (int t = 0; t < TENSORS; t++)
        for (size_t i = 0; i < PERIOD; i++) {
            double most = 0, want = sum_of(t, i, &most);
            squares += want * want * (double)(size_of(t) / PERIOD + (i < size_of(t) % PERIOD)); // how often it comes
        }
    assert_int_equal(mesh_open(&mesh, world, 1), OK);
    for (int mode = 0; mode < 8; mode++) {
        const bool order_free = mode % 2;
        const size_t mark = arena_mark(arena);
        GradSet *g = open_set(&mesh, mode / 2, order_free);
        assert_int_equal(run_step(g, &mesh, in_turn), OK);
        double norm;
        for (int t = 0; t < TENSORS; t++) {
            const Rows r = grad_rows(g, t);
            const size_t first = (size_t)r.row0 * (size_t)tensors[t].K, n = (size_t)r.rows * (size_t)tensors[t].K;
            const float *got = n ? grad_get(g, t) : NULL;
            for (size_t i = first; i<first + n; i += n> 10000 ? 97 : 1) {
                double most = 0, want = sum_of(t, i, &most);
                // Each micro-batch rounds by half a step; then one rounding to f32, or one per f32 addition.
                double error = order_free ? MICRO * 0x1p-45 + fabs(want) * 0x1p-24 : MICRO * MICRO * most * 0x1p-24;
                assert_true(fabs(got[i - first] - want) <= error);
            }
        }
        assert_int_equal(grad_norm(g, &norm), OK);
        assert_true(fabs(norm / sqrt(squares) - 1) < 1e-6);
        grad_close(g);
        arena_reset(arena, mark);
    }
    mesh_close(&mesh);
}

// One step in which each rank adds x to the one-element tensor, `times` times.
static int add_one(GradSet *g, float x, int times)
{
    const int unit = tensors[2].unit, rounds = grad_rounds(g, times, times);
    grad_zero(g, rounds);
    for (int i = 0; i < rounds; i++) {
        grad_round(g, i == rounds - 1);
        for (int k = 0; k < UNITS; k++) {
            if (k == unit && i < times) assert_int_equal(grad_add(g, 2, &x), OK);
            assert_int_equal(grad_unit_done(g, k), OK);
        }
    }
    return grad_finish(g);
}

// A value that cannot be added on one rank ends the step on all, and the next step is clean.
static void test_overflow_reaches_every_rank(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, 6e5f, -6e5f, 1e30f};
    Mesh mesh;
    assert_int_equal(mesh_open(&mesh, world, 1), OK);
    for (int zero = 0; zero <= 2; zero += 2) {
        const size_t mark = arena_mark(arena);
        GradSet *g = open_set(&mesh, zero, true);
        for (size_t i = 0; i < COUNT_OF(bad); i++)
            for (int culprit = 0; culprit < size; culprit++) {
                assert_int_equal(add_one(g, rank == culprit ? bad[i] : 1, 1), E_FAILED);
                assert_int_equal(grad_overflowed(g), rank == culprit);
                error_clear();
            }
        assert_int_equal(add_one(g, 5e5f / (float)size, 1), OK);
        assert_false(grad_overflowed(g));
        if (grad_rows(g, 2).rows) assert_true(fabs(grad_get(g, 2)[0] - 5e5) < 1);
        grad_close(g);
        arena_reset(arena, mark);
    }
    mesh_close(&mesh);
}

// Values that fit, but whose sum does not: over micro-batches, and over ranks.
static void test_sums_do_not_wrap(void **state)
{
    (void)state;
    Mesh mesh;
    assert_int_equal(mesh_open(&mesh, world, 1), OK);
    for (int zero = 0; zero <= 2; zero += 2) {
        const size_t mark = arena_mark(arena);
        GradSet *g = open_set(&mesh, zero, true);
        for (int sign = -1; sign <= 1; sign += 2) {
            assert_int_equal(add_one(g, 5e5f * (float)sign, 2), E_FAILED);
            error_clear();
            assert_int_equal(add_one(g, 5e5f * (float)sign, 1), size > 1 ? E_FAILED : OK);
            error_clear();
        }
        grad_close(g);
        arena_reset(arena, mark);
    }
    mesh_close(&mesh);
}

static void test_who_may_write_directly(void **state)
{
    (void)state;
    GradSet *fixed = open_set(NULL, 0, true), *plain = open_set(NULL, 0, false);
    assert_null(grad_direct(fixed, 0));
    assert_non_null(grad_direct(plain, 0));
    grad_zero(plain, 1);
    grad_add(plain, 2, &(float){1.5f});
    assert_true(grad_direct(plain, 2)[0] == 1.5f);
    assert_true(grad_get(plain, 2)[0] == 1.5f);
    grad_close(fixed);
    grad_close(plain);
}

// A plan measures without memory, and tells what a run will take.
static void test_measuring(void **state)
{
    (void)state;
    Mesh mesh;
    assert_int_equal(mesh_open(&mesh, world, 1), OK);
    for (int mode = 0; mode < 8; mode++) {
        Arena *measure;
        const size_t mark = arena_mark(arena);
        GradSet *planned, *real = open_set(&mesh, mode / 2, mode % 2);
        const GradConfig c = {device, &mesh, tensors, TENSORS, UNITS, mode / 2, mode % 2, -1};
        assert_int_equal(arena_open(&measure, "plan", 0, true), OK);
        assert_int_equal(grad_open(&planned, measure, &c), OK);
        assert_null(grad_direct(planned, 0));
        assert_int_equal(grad_bytes(planned), grad_bytes(real));
        grad_close(planned);
        grad_close(real);
        arena_free(measure);
        arena_reset(arena, mark);
    }
    mesh_close(&mesh);
}

static int open_all(void **state)
{
    (void)state;
    setenv("ATTUNE_COMM_TIMEOUT", "60", 0); // a rank that failed an assertion leaves the others waiting
    if (comm_open(&world, &(CommConfig){.kind = "auto"}) < 0) return -1;
    if (device_open(&device, &(DeviceConfig){.name = "cpu", .threads = 1}) < 0) return -1;
    fill_table();
    rank = comm_rank(world);
    size = comm_size(world);
    return arena_open(&arena, "test", (size_t)1 << 30, false);
}

static int close_all(void **state)
{
    (void)state;
    arena_free(arena);
    device_close(device);
    comm_close(world);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_bits_for_every_deal_and_stage),
        cmocka_unit_test(test_sums_over_tensor_ranks),
        cmocka_unit_test(test_values_and_norm),
        cmocka_unit_test(test_overflow_reaches_every_rank),
        cmocka_unit_test(test_sums_do_not_wrap),
        cmocka_unit_test(test_who_may_write_directly),
        cmocka_unit_test(test_measuring),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
