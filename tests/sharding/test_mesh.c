// The grid of ranks: who shares what with whom, on real ranks and on 64 pretended ones.
#include "sharding.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static Comm *world;

static void test_every_division(void **state)
{
    (void)state;
    int size = comm_size(world), rank = comm_rank(world);
    for (int tensor = 1; tensor <= size; tensor++) {
        Mesh m;
        if (size % tensor) continue;
        assert_int_equal(mesh_open(&m, world, tensor), OK);
        assert_ptr_equal(m.world, world);
        assert_int_equal(m.data_rank, rank / tensor);
        assert_int_equal(m.tensor_rank, rank % tensor);
        assert_int_equal(m.data_size * m.tensor_size, size);
        assert_int_equal(comm_rank(m.data), m.data_rank);
        assert_int_equal(comm_size(m.data), m.data_size);
        assert_int_equal(comm_rank(m.tensor), m.tensor_rank);
        assert_int_equal(comm_size(m.tensor), tensor);

        int64_t least = rank; // the lowest rank of my tensor group
        assert_int_equal(comm_all_reduce(m.tensor, &least, 1, DT_I64, REDUCE_MIN), OK);
        assert_int_equal(least, rank / tensor * tensor);
        mesh_close(&m);
        assert_null(m.data);
    }
}

static void test_what_does_not_divide(void **state)
{
    (void)state;
    Mesh m;
    assert_int_equal(mesh_open(&m, world, comm_size(world) + 1), E_INPUT);
    assert_string_equal(error_last()->place, "parallel.tensor");
    error_clear();
    assert_int_equal(mesh_open(&m, world, 0), E_INPUT);
    error_clear();
}

static void test_pretended_ranks(void **state)
{
    (void)state;
    Comm *c;
    Mesh m;
    assert_int_equal(comm_open(&c, &(CommConfig){.kind = "fake", .fake_size = 64}), OK);
    assert_int_equal(mesh_open(&m, c, 4), OK);
    assert_int_equal(comm_size(m.data), 16);
    assert_int_equal(comm_size(m.tensor), 4);
    mesh_close(&m);
    comm_close(c);
}

static int open_world(void **state)
{
    (void)state;
    setenv("ATTUNE_COMM_TIMEOUT", "60", 0); // a rank that failed an assertion leaves the others waiting
    return comm_open(&world, &(CommConfig){.kind = "auto"});
}

static int close_world(void **state)
{
    (void)state;
    comm_close(world);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_division),
        cmocka_unit_test(test_what_does_not_divide),
        cmocka_unit_test(test_pretended_ranks),
    };
    return cmocka_run_group_tests(tests, open_world, close_world);
}
