// The window's collectives among threads instead of processes: many members, several windows at once, uneven speeds; and a
// window that a process joins.
#define _GNU_SOURCE
#include "shm.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#ifndef TURNS
#define TURNS 60
#endif
enum { MOST = 9, LARGEST = 200000 };

typedef struct Member {
    void *window;
    int rank, size;
    size_t room;
    bool crowded;
    atomic_int *wrong; // what a thread finds; asserts are the main thread's
} Member;

static int64_t value_of(int r, size_t i, int turn)
{
    return (int64_t)((i * 31 + (size_t)turn * 7) % 1000) * (r + 1);
}

static void fill(int64_t *x, size_t count, int r, int turn)
{
    for (size_t i = 0; i < count; i++) x[i] = value_of(r, i, turn);
}

static int differs(const int64_t *x, size_t from, size_t to, int r, int turn, int64_t times)
{
    for (size_t i = from; i < to; i++)
        if (x[i] != value_of(r, i, turn) * times) return 1;
    return 0;
}

// Who lags behind changes: the others must not run over what it still reads.
static void lag(int rank, int turn)
{
    if (turn % 7 == rank) usleep(200);
}

// Each member gives `count` values that name it and whom they are for.
static void check_exchange(Member *m, Shm *g, int64_t *x, size_t count, int turn)
{
    CommBlock out[MOST], in[MOST];
    const size_t each =
        MIN(count, (size_t)LARGEST / (2 * MOST)) / (size_t)(turn % 3 + 1); // not the same for every turn
    for (int r = 0; r < m->size; r++) {
        const bool gives = (m->rank + r) % 4 != 3;
        out[r] = (CommBlock){x + (size_t)r * each, gives ? each : 0, 1, 1};
        in[r] = (CommBlock){x + ((size_t)MOST + (size_t)r) * each, gives ? each : 0, 1, 1};
        fill(out[r].at, each, m->rank * MOST + r, turn);
    }
    shm_exchange(g, out, in, sizeof *x);
    for (int r = 0; r < m->size; r++)
        if (r != m->rank && in[r].rows) *m->wrong += differs(in[r].at, 0, each, r * MOST + m->rank, turn, 1);
    void *room[MOST];
    const size_t some = MIN(each, 300); // there always is as much room
    *m->wrong += !shm_exchange_begin(g, some * sizeof *x, room);
    for (int r = 0; r < m->size; r++) {
        if (r != m->rank && out[r].rows) fill(room[r], some, m->rank * MOST + r, turn + 1);
        in[r].rows = in[r].rows ? some : 0;
    }
    shm_exchange_end(g, in, sizeof *x);
    for (int r = 0; r < m->size; r++)
        if (r != m->rank && in[r].rows) *m->wrong += differs(in[r].at, 0, some, r * MOST + m->rank, turn + 1, 1);
    *m->wrong += shm_exchange_begin(g, 16 << 20, room);
}

static void take_turn(Member *m, Shm *g, int64_t *x, int turn)
{
    static const size_t counts[] = {1, 100, 1500, 33000, LARGEST};
    const size_t count = counts[turn % (int)COUNT_OF(counts)];
    const int root = turn % m->size;
    const int64_t all = (int64_t)m->size * (m->size + 1) / 2;
    ShmSpan span[MOST];
    for (int r = 0; r < m->size; r++)
        span[r] = (ShmSpan){count * (size_t)(r * r) / (size_t)(m->size * m->size),
                            count * (size_t)((r + 1) * (r + 1)) / (size_t)(m->size * m->size)};
    const ShmSpan mine = span[m->rank];
    lag(m->rank, turn);

    fill(x, count, m->rank, turn);
    shm_all_reduce(g, x, count, DT_I64, REDUCE_SUM);
    *m->wrong += differs(x, 0, count, 0, turn, all);

    fill(x, count, m->rank, turn);
    shm_broadcast(g, x, count * sizeof *x, root, m->rank % 2 == 0);
    *m->wrong += differs(x, 0, count, m->rank % 2 ? m->rank : root, turn, 1);

    fill(x, count, m->rank, turn);
    shm_reduce_scatter(g, x, span, DT_I64);
    *m->wrong += differs(x, mine.first, mine.end, 0, turn, all);

    fill(x, count, m->rank, turn);
    shm_all_gather(g, x, span, sizeof *x, true);
    for (int r = 0; r < m->size; r++) *m->wrong += differs(x, span[r].first, span[r].end, r, turn, 1);

    fill(x, count, m->rank, turn);
    shm_reduce(g, x, count, DT_I64, REDUCE_SUM);
    if (m->rank == 0) *m->wrong += differs(x, 0, count, 0, turn, all);
    check_exchange(m, g, x, count, turn);
    if (turn % 3 == 0) shm_barrier(g);
}

static void *member(void *arg)
{
    Member *m = arg;
    Shm *g = shm_attach(m->window, m->rank, m->size, m->room, m->crowded);
    int64_t *x = xmalloc(LARGEST * sizeof *x);
    for (int turn = 0; turn < TURNS; turn++) take_turn(m, g, x, turn);
    free(x);
    shm_close(g);
    return NULL;
}

typedef struct Group {
    int size;
    void *window;
    Member member[MOST];
    pthread_t thread[MOST];
} Group;

static void start(Group *g, int size, size_t room, bool crowded, atomic_int *wrong)
{
    g->size = size;
    g->window = aligned_alloc(4096, shm_window_bytes(size, room));
    memset(g->window, 0, shm_window_bytes(size, room));
    for (int r = 0; r < size; r++) {
        g->member[r] = (Member){g->window, r, size, room, crowded, wrong};
        assert_int_equal(pthread_create(&g->thread[r], NULL, member, &g->member[r]), 0);
    }
}

static void end(Group *g)
{
    for (int r = 0; r < g->size; r++) pthread_join(g->thread[r], NULL);
    free(g->window);
}

static void test_members(void **state)
{
    (void)state;
    static const int sizes[] = {1, 2, 3, 4, MOST};
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (int crowded = 0; crowded < 2; crowded++) {
            atomic_int wrong = 0;
            Group g;
            start(&g, sizes[i], crowded ? 0 : 1 << 20, crowded, &wrong);
            end(&g);
            assert_int_equal(wrong, 0);
        }
}

static void test_windows_at_once(void **state)
{
    (void)state;
    atomic_int wrong = 0;
    Group g[3];
    for (int i = 0; i < 3; i++) start(&g[i], 2 + i, 0, true, &wrong);
    for (int i = 0; i < 3; i++) end(&g[i]);
    assert_int_equal(wrong, 0);
}

// The window of a hundred members of one node stays small.
static void test_window_is_bounded(void **state)
{
    (void)state;
    for (int size = 1; size <= 256; size++) {
        assert_true(shm_window_bytes(size, 0) <= (size_t)20 << 20);
        assert_true(shm_window_bytes(size, SIZE_MAX / 2) <= (size_t)68 << 20);
    }
    assert_true(shm_window_bytes(2, 0) <= (size_t)2 << 20);
    assert_in_range(shm_window_bytes(2, 3 << 20), 12 << 20, (12 << 20) + 4096);
}

static void test_window_of_processes(void **state)
{
    (void)state;
    ShmName name, other;
    Shm *g = shm_make_window(&name, 2, 0, true), *h = shm_make_window(&other, 2, 0, true);
    assert_non_null(g);
    assert_non_null(h);
    pid_t child = fork();
    if (child == 0) {
        int64_t x = 5;
        Shm *mine = shm_join_window(&name, 1, 2, 0, true);
        if (mine) shm_all_reduce(mine, &x, 1, DT_I64, REDUCE_SUM);
        shm_close(mine);
        _exit(x == 12 ? 0 : 1);
    }
    int64_t x = 7;
    shm_all_reduce(g, &x, 1, DT_I64, REDUCE_SUM);
    assert_int_equal(x, 12);
    int result;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_int_equal(result, 0);

    // A name that leads elsewhere, and one whose door is closed.
    ShmName wrong = name;
    memcpy(wrong.path, other.path, sizeof wrong.path);
    assert_null(shm_join_window(&wrong, 1, 2, 0, true));
    shm_close_door(g);
    assert_null(shm_join_window(&name, 1, 2, 0, true));
    shm_close(g);
    shm_close(h);
    shm_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_members),
        cmocka_unit_test(test_windows_at_once),
        cmocka_unit_test(test_window_is_bounded),
        cmocka_unit_test(test_window_of_processes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
