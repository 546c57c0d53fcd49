// Opening: what is refused and why; and the pretended world of many ranks in one process.
#include "comm.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void test_fake_world(void **state)
{
    (void)state;
    Comm *c, *row, *column;
    assert_int_equal(comm_open(&c, &(CommConfig){.kind = "fake", .fake_size = 64}), OK);
    assert_int_equal(comm_size(c), 64);
    assert_int_equal(comm_rank(c), 0);
    float x[2] = {1.5f, -2};
    int64_t big = INT64_MAX / 64;
    assert_int_equal(comm_all_reduce(c, x, 2, DT_F32, REDUCE_SUM), OK);
    assert_true(x[0] == 96 && x[1] == -128);
    assert_int_equal(comm_all_reduce(c, &big, 1, DT_I64, REDUCE_SUM), OK);
    assert_true(big == INT64_MAX / 64 * 64);
    assert_int_equal(comm_all_reduce(c, x, 2, DT_F32, REDUCE_MAX), OK);
    assert_true(x[0] == 96 && x[1] == -128);

    assert_int_equal(comm_split_grid(&row, c, 4, true), OK);
    assert_int_equal(comm_split_grid(&column, c, 4, false), OK);
    assert_int_equal(comm_size(row), 4);
    assert_int_equal(comm_size(column), 16);
    comm_close(row);
    comm_close(column);
    assert_int_equal(comm_agree(c, OK), OK);
    comm_close(c);
}

static void test_fake_counts_bytes(void **state)
{
    (void)state;
    Comm *c;
    assert_int_equal(comm_open(&c, &(CommConfig){.kind = "fake", .fake_size = 64}), OK);
    uint8_t all[64] = {7};
    size_t start[65];
    for (size_t r = 0; r <= 64; r++) start[r] = r * 3 + (r > 0); // rank 0, which this is, has 4
    assert_int_equal(comm_all_gather_parts(c, NULL, start, DT_F32), OK);
    assert_int_equal(comm_stats(c).bytes, 16);
    assert_int_equal(comm_reduce_scatter_parts(c, NULL, start, DT_F32), OK);
    assert_int_equal(comm_stats(c).bytes, 16 + 193 * 4);
    assert_int_equal(comm_broadcast(c, all, 64, DT_U8, 63), OK);
    assert_int_equal(comm_stats(c).bytes, 16 + 193 * 4 + 64);
    assert_int_equal(all[0], 7);
    CommBlock block[64] = {[0] = {NULL, 3, 5, 7}, [9] = {NULL, 2, 1, 1}};
    assert_int_equal(comm_exchange(c, block, block, DT_F32), OK);
    assert_int_equal(comm_stats(c).bytes, 16 + 193 * 4 + 64 + 17 * 4);
    assert_int_equal(comm_stats(c).calls, 4);
    comm_close(c);
}

// Each of the pretended ranks may be this one.
static void test_fake_rank(void **state)
{
    (void)state;
    Comm *c, *row, *column, *range, *all;
    assert_int_equal(comm_open(&c, &(CommConfig){.kind = "fake", .fake_size = 12, .fake_rank = 7}), OK);
    assert_int_equal(comm_rank(c), 7);
    assert_int_equal(comm_split_grid(&row, c, 4, true), OK);
    assert_int_equal(comm_split_grid(&column, c, 4, false), OK);
    assert_int_equal(comm_split_range(&range, c, 5, 6), OK);
    assert_int_equal(comm_split(&all, c, 0, 7), OK);
    assert_int_equal(comm_rank(row), 3);
    assert_int_equal(comm_size(row), 4);
    assert_int_equal(comm_rank(column), 1);
    assert_int_equal(comm_size(column), 3);
    assert_int_equal(comm_rank(range), 2);
    assert_int_equal(comm_size(range), 6);
    assert_int_equal(comm_rank(all), 7);
    assert_int_equal(comm_size(all), 12);
    const size_t start[] = {0, 10, 30, 60};
    assert_int_equal(comm_all_gather_parts(column, NULL, start, DT_BF16), OK);
    assert_int_equal(comm_stats(column).bytes, 40); // the second of three
    assert_int_equal(comm_agree(c, OK), OK);
    Comm *const opened[] = {row, column, range, all, c};
    for (size_t i = 0; i < COUNT_OF(opened); i++) comm_close(opened[i]);
}

static void test_bytes_of_rings(void **state)
{
    (void)state;
    Comm *c;
    assert_int_equal(comm_open(&c, &(CommConfig){.kind = "fake", .fake_size = 4}), OK);
    const size_t before = comm_footprint(c);
    assert_int_equal(comm_all_reduce(c, NULL, 1 << 20, DT_F32, REDUCE_SUM), OK);
    assert_int_equal(comm_stats(c).wire_bytes, 6 << 20);
    const size_t start[] = {0, 100, 200, 300, 1000};
    assert_int_equal(comm_reduce_scatter_parts(c, NULL, start, DT_F32), OK);
    assert_int_equal(comm_stats(c).wire_bytes, (6 << 20) + 3000);
    assert_int_equal(comm_all_gather_parts(c, NULL, start, DT_F32), OK);
    assert_int_equal(comm_stats(c).wire_bytes, (6 << 20) + 6000);
    assert_int_equal(comm_barrier(c), OK);
    assert_int_equal(comm_stats(c).wire_bytes, (6 << 20) + 6000);
    assert_int_equal(comm_footprint(c) - before, 2 << 20); // two slots of 256 KiB for each rank
    comm_close(c);
}

static void refused(const CommConfig *config, int code, const char *hint)
{
    Comm *c = NULL;
    assert_int_equal(comm_open(&c, config), code);
    assert_null(c);
    assert_non_null(strstr(error_last()->hint, hint));
    error_clear();
}

// N processes that each believe they are alone.
static void test_lonely_ranks_are_refused(void **state)
{
    (void)state;
    const CommConfig self = {.kind = "self"};
    Comm *c;
    setenv("SLURM_STEP_NUM_TASKS", "2", 1);
    refused(&self, E_INPUT, "srun --mpi=pmi2");
    setenv("SLURM_STEP_NUM_TASKS", "1", 1);
    assert_int_equal(comm_open(&c, &self), OK);
    comm_close(c);
    unsetenv("SLURM_STEP_NUM_TASKS");

    // The batch script itself sees the allocation's tasks, but is no step of them.
    setenv("SLURM_NTASKS", "4", 1);
    assert_int_equal(comm_open(&c, &self), OK);
    comm_close(c);
    setenv("SLURM_STEP_ID", "0", 1);
    refused(&self, E_INPUT, "srun --mpi=pmi2");
    unsetenv("SLURM_STEP_ID");
    unsetenv("SLURM_NTASKS");

    setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
    refused(&self, E_INPUT, "attune doctor");
    unsetenv("OMPI_COMM_WORLD_SIZE");
}

static void test_unknown_kinds_are_refused(void **state)
{
    (void)state;
    refused(&(CommConfig){.kind = "carrier pigeon"}, E_MISSING, "self, mpi, fake");
    refused(&(CommConfig){.kind = "fake", .fake_size = 0}, E_INPUT, "");
}

static void test_auto_is_self_without_a_launcher(void **state)
{
    (void)state;
    Comm *c;
    assert_false(comm_launched_by_mpi());
    assert_int_equal(comm_open(&c, &(CommConfig){.kind = "auto"}), OK);
    assert_int_equal(comm_size(c), 1);
    assert_null(comm_mpi_handle(c));
    comm_close(c);
    comm_close(NULL);
}

int main(void)
{
    static const char *const launchers[] = {"PMI_RANK", "PMI_SIZE", "PMI_FD", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"};
    for (size_t i = 0; i < COUNT_OF(launchers); i++) unsetenv(launchers[i]); // the tests may run inside a job
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fake_world),
        cmocka_unit_test(test_fake_counts_bytes),
        cmocka_unit_test(test_fake_rank),
        cmocka_unit_test(test_bytes_of_rings),
        cmocka_unit_test(test_lonely_ranks_are_refused),
        cmocka_unit_test(test_unknown_kinds_are_refused),
        cmocka_unit_test(test_auto_is_self_without_a_launcher),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
