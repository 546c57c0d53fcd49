// The queue of collectives: order, failures, and work of two threads on communicators of their own.
#include "comm.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static Comm *world, *aside; // the queue's jobs use aside
static int rank, size;

// What a job does to the log of its test.
typedef struct Step {
    int *log;
    atomic_int *n;
    int value, status;
} Step;

static int take_step(void *ctx)
{
    const Step *s = ctx;
    s->log[atomic_fetch_add(s->n, 1)] = s->value;
    return s->status < 0 ? (fail)(s->status, "job", NULL, "job %d broke", s->value) : OK;
}

static CommQueue *opened(bool threaded)
{
    CommQueue *q = NULL;
    assert_int_equal(comm_queue_open(&q, threaded), OK);
    return q;
}

static void test_order(void **state)
{
    (void)state;
    enum { N = 200 };
    for (int threaded = 0; threaded < 2; threaded++) {
        CommQueue *q = opened(threaded);
        int log[N];
        atomic_int n = 0;
        Step step[N];
        uint64_t ticket = 0;
        for (int i = 0; i < N; i++) {
            step[i] = (Step){log, &n, i, OK};
            uint64_t next = comm_queue_post(q, take_step, &step[i]);
            assert_true(next > ticket);
            ticket = next;
            if (i % 50 == 0) {
                assert_int_equal(comm_queue_wait(q, ticket), OK);
                assert_int_equal(n, i + 1);
            }
        }
        if (threaded)
            comm_queue_close(q); // runs what was posted
        else
            assert_int_equal(n, N);
        assert_int_equal(n, N);
        for (int i = 0; i < N; i++) assert_int_equal(log[i], i);
        if (!threaded) comm_queue_close(q);
    }
    comm_queue_close(NULL);
}

// Jobs behind the failed one are skipped, those posted after the failure was told of run.
static void test_failures(void **state)
{
    (void)state;
    for (int threaded = 0; threaded < 2; threaded++) {
        CommQueue *q = opened(threaded);
        int log[8];
        atomic_int n = 0;
        Step fine = {log, &n, 1, OK}, bad = {log, &n, 2, E_MISSING}, worse = {log, &n, 3, E_FAILED};
        error_clear();
        comm_queue_post(q, take_step, &fine);
        comm_queue_post(q, take_step, &bad);
        comm_queue_post(q, take_step, &worse);
        uint64_t last = comm_queue_post(q, take_step, &fine);
        assert_int_equal(comm_queue_wait(q, last), E_MISSING);
        assert_string_equal(error_last()->what, "job 2 broke");
        assert_int_equal(n, 2);
        error_clear();
        assert_int_equal(comm_queue_wait(q, last), OK);
        assert_int_equal(comm_queue_wait(q, comm_queue_post(q, take_step, &fine)), OK);
        assert_int_equal(n, 3);
        // The queue's thread starts with a clean record again: what is told is the second fault.
        assert_int_equal(comm_queue_wait(q, comm_queue_post(q, take_step, &worse)), E_FAILED);
        assert_string_equal(error_last()->what, "job 3 broke");
        assert_int_equal(comm_queue_stats(q).jobs, 6);
        comm_queue_close(q);
        error_clear();
    }
}

static int signals_blocked(void *ctx)
{
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    *(bool *)ctx = sigismember(&mask, SIGTERM) && sigismember(&mask, SIGUSR1) && sigismember(&mask, SIGINT);
    return OK;
}

static void test_signals_stay_with_the_caller(void **state)
{
    (void)state;
    CommQueue *q = opened(true);
    bool blocked = false;
    assert_int_equal(comm_queue_wait(q, comm_queue_post(q, signals_blocked, &blocked)), OK);
    assert_true(blocked);
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    assert_false(sigismember(&mask, SIGTERM));
    comm_queue_close(q);
}

typedef struct Sum {
    int64_t x[1000];
} Sum;

static int sum_aside(void *ctx)
{
    return comm_all_reduce(aside, ((Sum *)ctx)->x, 1000, DT_I64, REDUCE_SUM);
}

// The main thread's collectives on the world go on while the queue's are under way.
static void test_beside_other_collectives(void **state)
{
    (void)state;
    enum { N = 30 };
    CommQueue *q = opened(true);
    Sum *sums = xcalloc(N, sizeof *sums);
    const int64_t all = (int64_t)size * (size + 1) / 2;
    const uint64_t before = comm_stats(aside).calls;
    uint64_t ticket = 0;
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < 1000; j++) sums[i].x[j] = (int64_t)(rank + 1) * (i + j);
        ticket = comm_queue_post(q, sum_aside, &sums[i]);
        int64_t mine = rank + 1;
        assert_int_equal(comm_all_reduce(world, &mine, 1, DT_I64, REDUCE_SUM), OK);
        assert_int_equal(mine, all);
    }
    assert_int_equal(comm_queue_wait(q, ticket), OK);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < 1000; j++) assert_int_equal(sums[i].x[j], all * (i + j));
    assert_int_equal(comm_stats(aside).calls - before, N);
    assert_int_equal(comm_stats(aside).bytes, comm_stats(aside).calls * sizeof(Sum));
    CommQueueStats s = comm_queue_stats(q);
    assert_int_equal(s.jobs, N);
    assert_true(s.busy_ms > 0 && s.waited_ms >= 0);
    free(sums);
    comm_queue_close(q);
}

static int open_world(void **state)
{
    (void)state;
    setenv("ATTUNE_COMM_TIMEOUT", "60", 0); // a rank that failed an assertion leaves the others waiting
    if (comm_open(&world, &(CommConfig){.kind = "auto"}) < 0) return -1;
    rank = comm_rank(world);
    size = comm_size(world);
    log_set_rank(rank, size);
    return comm_split(&aside, world, 0, rank);
}

static int close_world(void **state)
{
    (void)state;
    comm_close(aside);
    comm_close(world);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_signals_stay_with_the_caller),
        cmocka_unit_test(test_beside_other_collectives),
    };
    return cmocka_run_group_tests(tests, open_world, close_world);
}
