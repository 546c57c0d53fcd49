// What the machine offers, against the kernel's own answers; and dealing its cores out to ranks, each in a child process.
#define _GNU_SOURCE
#include "comm.h"
#include <sched.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static cpu_set_t affinity(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    return set;
}

static void test_read(void **state)
{
    (void)state;
    Topo t;
    cpu_set_t mine = affinity();
    assert_int_equal(topo_read(&t), OK);
    assert_in_range(t.pus, 1, CPU_COUNT(&mine)); // a CPU quota can make it less
    assert_in_range(t.cores, 1, t.pus);
    assert_true(t.numa_nodes >= 1);
    size_t physical = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    assert_in_range(t.memory_bytes, 1 << 20, physical);
    assert_true(strlen(t.cpu_model) > 0);
}

// What a rank gets, told by a child that binds itself.
typedef struct Share {
    int cores;
    cpu_set_t cpus;
    char bound[128];
} Share;

static Share share_of(int local_rank, int local_size)
{
    Share s;
    int pipe_fd[2];
    assert_int_equal(pipe(pipe_fd), 0);
    pid_t child = fork();
    if (child == 0) {
        s.cores = topo_bind_share(local_rank, local_size, s.bound, sizeof s.bound);
        sched_getaffinity(0, sizeof s.cpus, &s.cpus);
        _exit(write(pipe_fd[1], &s, sizeof s) == sizeof s ? 0 : 1);
    }
    close(pipe_fd[1]);
    assert_int_equal(read(pipe_fd[0], &s, sizeof s), sizeof s);
    close(pipe_fd[0]);
    assert_int_equal(waitpid(child, NULL, 0), child);
    return s;
}

// As many ranks as cores, and one less: disjoint shares that leave no core out.
static void test_shares_are_disjoint(void **state)
{
    (void)state;
    Topo t;
    cpu_set_t mine = affinity();
    assert_int_equal(topo_read(&t), OK);
    for (int size = MAX(t.cores - 1, 2); size <= t.cores; size++) {
        cpu_set_t seen;
        CPU_ZERO(&seen);
        for (int r = 0; r < size; r++) {
            Share s = share_of(r, size);
            cpu_set_t twice;
            assert_true(s.cores >= 1 && s.cores <= t.cores);
            CPU_AND(&twice, &seen, &s.cpus);
            assert_int_equal(CPU_COUNT(&twice), 0);
            CPU_OR(&seen, &seen, &s.cpus);
            assert_non_null(strstr(s.bound, "bound to CPUs"));
        }
        assert_true(CPU_EQUAL(&seen, &mine));
    }
}

static void test_when_nothing_is_bound(void **state)
{
    (void)state;
    Topo t;
    cpu_set_t mine = affinity();
    assert_int_equal(topo_read(&t), OK);
    Share alone = share_of(0, 1), crowded = share_of(1, t.pus + 1);
    assert_int_equal(alone.cores, t.cores);
    assert_true(CPU_EQUAL(&alone.cpus, &mine));
    assert_int_equal(crowded.cores, 1);
    assert_true(CPU_EQUAL(&crowded.cpus, &mine));
    assert_non_null(strstr(crowded.bound, "share"));
    setenv("ATTUNE_BIND", "none", 1);
    Share told = share_of(0, 2);
    unsetenv("ATTUNE_BIND");
    assert_true(CPU_EQUAL(&told.cpus, &mine));
    assert_non_null(strstr(told.bound, "ATTUNE_BIND"));
}

// A mask given from outside (taskset, a batch system) is what there is to deal out.
static void test_a_narrower_mask_is_respected(void **state)
{
    (void)state;
    cpu_set_t mine = affinity(), one;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && !CPU_COUNT(&one); cpu++)
        if (CPU_ISSET(cpu, &mine)) CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    Topo t;
    assert_int_equal(topo_read(&t), OK);
    Share s = share_of(0, 1);
    assert_int_equal(sched_setaffinity(0, sizeof mine, &mine), 0);
    assert_int_equal(t.cores, 1);
    assert_int_equal(t.pus, 1);
    assert_int_equal(s.cores, 1);
    assert_true(CPU_EQUAL(&s.cpus, &one));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_shares_are_disjoint),
        cmocka_unit_test(test_when_nothing_is_bound),
        cmocka_unit_test(test_a_narrower_mask_is_respected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
