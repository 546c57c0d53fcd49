// Who is to blame when a run stands still, from made-up beats.
#include "watch.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { WORLD = 1, PAIR = 2, QUEUE = 3 };
static const WatchLimits limits = {.silent_ms = 60e3, .waiting_ms = 1800e3, .fresh_ms = 3e3};
static const double now = 5000e3;

// `size` ranks that beat and compute, all in one group of which they have made 7 collectives.
static WatchRank *ranks_of(int size)
{
    WatchRank *r = xcalloc((size_t)size, sizeof *r);
    for (int i = 0; i < size; i++) {
        r[i] = (WatchRank){.watched = true, .heard_ms = now - 500};
        r[i].beat = (Beat){.n = 1, .outside_ms = 9000};
        r[i].beat.group[0] = (WatchGroup){WORLD, 7, -1, true, "all_reduce"};
    }
    return r;
}

static WatchGroup *group(WatchRank *r, uint64_t id)
{
    for (int i = 0; i < r->beat.n; i++)
        if (r->beat.group[i].group == id) return &r->beat.group[i];
    WatchGroup *g = &r->beat.group[r->beat.n++];
    *g = (WatchGroup){id, 7, -1, true, "barrier"};
    return g;
}

static void waits(WatchRank *r, uint64_t id, int seconds)
{
    WatchGroup *g = group(r, id);
    g->entered++;
    g->waiting_ms = seconds * 1000;
    r->beat.outside_ms = 0;
}

static bool judge(const WatchRank *r, int size, Verdict *v)
{
    return watch_judge(r, size, now, &limits, v);
}

static void test_all_is_well(void **state)
{
    (void)state;
    Verdict v;
    WatchRank *r = ranks_of(4);
    assert_false(judge(r, 4, &v));
    waits(&r[0], WORLD, 1799); // not yet too long
    waits(&r[2], WORLD, 30);
    assert_false(judge(r, 4, &v));
    r[3].heard_ms = now - 59e3;
    assert_false(judge(r, 4, &v));
    free(r);
}

static void test_silence(void **state)
{
    (void)state;
    Verdict v;
    WatchRank *r = ranks_of(4);
    waits(&r[0], WORLD, 62);
    waits(&r[1], WORLD, 61);
    r[3].heard_ms = now - 61e3;
    assert_true(judge(r, 4, &v));
    assert_int_equal(v.n, 1);
    assert_int_equal(v.rank[0], 3);
    assert_string_equal(v.what, "no sign of life for 61 s; ranks 0, 1 wait in all_reduce for 62 s");
    r[3].watched = false; // it has said goodbye, or is another's to watch
    assert_false(judge(r, 4, &v));
    free(r);
}

// A node that is gone takes all its ranks.
static void test_many_silent(void **state)
{
    (void)state;
    Verdict v;
    WatchRank *r = ranks_of(16);
    for (int i = 4; i < 16; i++) r[i].heard_ms = now - 70e3;
    assert_true(judge(r, 16, &v));
    assert_int_equal(v.n, WATCH_CULPRITS);
    assert_int_equal(v.rank[0], 4);
    assert_int_equal(v.more, 12 - WATCH_CULPRITS);
    assert_string_equal(v.what, "no sign of life for 70 s");
    free(r);
}

static void test_one_is_away(void **state)
{
    (void)state;
    Verdict v;
    WatchRank *r = ranks_of(3);
    waits(&r[0], WORLD, 1801);
    waits(&r[1], WORLD, 1800);
    r[2].beat.outside_ms = 1900e3;
    assert_true(judge(r, 3, &v));
    assert_int_equal(v.n, 1);
    assert_int_equal(v.rank[0], 2);
    assert_string_equal(v.what, "in no collective for 1900 s; ranks 0, 1 wait in all_reduce for 1801 s");

    // What rank 2 did when it was heard last says nothing about now: its silence is judged first.
    r[2].heard_ms = now - 10e3;
    assert_false(judge(r, 3, &v));
    free(r);
}

// Who is away from the collective waits itself, for one who waits, for one who works.
static void test_the_blame_goes_on(void **state)
{
    (void)state;
    Verdict v;
    WatchRank *r = ranks_of(4);
    waits(&r[0], WORLD, 2000);
    waits(&r[1], WORLD, 2000);
    group(&r[3], PAIR);
    waits(&r[2], PAIR, 2000);
    r[3].beat.outside_ms = 2001e3;
    assert_true(judge(r, 4, &v));
    assert_int_equal(v.n, 1);
    assert_int_equal(v.rank[0], 3);
    assert_string_equal(v.what, "in no collective for 2001 s; ranks 0, 1, 2 wait in barrier for 2000 s");
    free(r);
}

// A rank whose queue waits for the others while its main thread works is at work; one whose main thread waits for the queue is not.
static void test_queues(void **state)
{
    (void)state;
    Verdict v;
    WatchRank *r = ranks_of(2);
    waits(&r[0], WORLD, 2000);
    group(&r[0], QUEUE);
    waits(&r[1], QUEUE, 2000);
    group(&r[1], QUEUE)->main = false;
    assert_true(judge(r, 2, &v));
    assert_int_equal(v.rank[0], 1);
    assert_non_null(strstr(v.what, "in no collective"));

    // Now they wait for each other: rank 0 is away from the queue's collective, rank 1 from the world's.
    r[1].beat.in_queue = true;
    assert_true(judge(r, 2, &v));
    assert_int_equal(v.n, 1);
    assert_non_null(strstr(v.what, "for each other"));

    // Who came later is not named.
    for (int late = 0; late < 2; late++) {
        group(&r[0], WORLD)->waiting_ms = late == 0 ? 1000 : 2000 * 1000;
        group(&r[1], QUEUE)->waiting_ms = late == 1 ? 1000 : 2000 * 1000;
        assert_true(judge(r, 2, &v));
        assert_int_equal(v.rank[0], 1 - late);
        assert_non_null(strstr(v.what, "for 2000 s, and so do the others"));
    }
    free(r);
}

static void test_all_are_there(void **state)
{
    (void)state;
    Verdict v;
    WatchRank *r = ranks_of(3);
    for (int i = 0; i < 3; i++) waits(&r[i], WORLD, 1900);
    assert_true(judge(r, 3, &v));
    assert_string_equal(v.what,
                        "waits in all_reduce for 1900 s, and so do the others, for each other or for their network");
    free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_is_well),       cmocka_unit_test(test_silence),
        cmocka_unit_test(test_many_silent),       cmocka_unit_test(test_one_is_away),
        cmocka_unit_test(test_the_blame_goes_on), cmocka_unit_test(test_queues),
        cmocka_unit_test(test_all_are_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
