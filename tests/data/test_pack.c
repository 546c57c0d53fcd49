// runtime/data/pack.c: every row once, capacities kept, the same plan every time, good packing, fair dealing.
#include "data_test.h"

enum { MAX_ROWS = 400 };

static uint32_t draw(uint64_t which, uint64_t i)
{
    uint32_t u[4];
    philox(11, which, i, u);
    return u[0];
}

static void check_plan(const PackPlan *p, const int *lengths, int n, int capacity)
{
    bool seen[MAX_ROWS] = {false};
    int rows = 0;
    for (int m = 0; m < p->n_micro; m++) {
        const Micro *micro = &p->micro[m];
        int tokens = 0;
        assert_int_equal(micro->first, rows);
        assert_true(micro->rows > 0);
        for (int k = 0; k < micro->rows; k++) {
            int row = p->order[micro->first + k];
            assert_in_range(row, 0, n - 1);
            assert_false(seen[row]);
            seen[row] = true;
            tokens += lengths[row];
            if (k) assert_true(row > p->order[micro->first + k - 1]); // order of the step
        }
        assert_int_equal(tokens, micro->tokens);
        assert_true(tokens <= capacity || micro->rows == 1);
        rows += micro->rows;
    }
    assert_int_equal(rows, n);
}

static void random_steps(void **state)
{
    (void)state;
    PackPlan p = {0}, again = {0};
    for (uint64_t trial = 0; trial < 200; trial++) {
        int n = (int)(draw(trial, 0) % MAX_ROWS), lengths[MAX_ROWS], capacity = 1 + (int)(draw(trial, 1) % 300);
        for (int i = 0; i < n; i++)
            lengths[i] = 1 + (int)(draw(trial, 2 + (uint64_t)i) % (1 + draw(trial, 9999) % 400));
        pack_rows(&p, lengths, n, capacity, true);
        check_plan(&p, lengths, n, capacity);
        pack_rows(&again, lengths, n, capacity, true);
        assert_int_equal(p.n_micro, again.n_micro);
        assert_memory_equal(p.order, again.order, (size_t)n * sizeof *p.order);
        pack_rows(&p, lengths, n, capacity, false);
        assert_int_equal(p.n_micro, n);
        for (int i = 0; i < n; i++) assert_int_equal(p.order[p.micro[i].first], i);
    }
    pack_free(&p);
    pack_free(&again);
}

static void known_plans(void **state)
{
    (void)state;
    static const struct {
        int lengths[8], n, capacity, micros;
    } cases[] = {
        {{5, 5, 5, 5}, 4, 10, 2}, {{7, 3, 6, 4}, 4, 10, 2},    {{100}, 1, 10, 1}, // longer than a micro-batch: alone
        {{100, 10}, 2, 10, 2},    {{8, 2, 8, 2, 8}, 5, 10, 3}, {{0}, 0, 10, 0},   {{6, 5, 4, 3, 1, 1}, 6, 10, 2},
        {{11, 1, 1}, 3, 10, 2},   {{4, 4, 4, 4, 4}, 5, 3, 5},
    };
    PackPlan p = {0};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        pack_rows(&p, cases[i].lengths, cases[i].n, cases[i].capacity, true);
        check_plan(&p, cases[i].lengths, cases[i].n, cases[i].capacity);
        assert_int_equal(p.n_micro, cases[i].micros);
    }
    pack_free(&p);
}

// Every micro-batch has one owner; the plan is not touched; no rank holds more than the mean and one micro-batch.
static void dealing(void **state)
{
    (void)state;
    PackPlan p = {0};
    for (uint64_t trial = 0; trial < 100; trial++) {
        int n = 1 + (int)(draw(trial, 0) % 60), lengths[60], owner[60], ranks = 1 + (int)(draw(trial, 1) % 9);
        int load[9] = {0}, total = 0, longest = 0;
        for (int i = 0; i < n; i++) lengths[i] = 1 + (int)(draw(trial, 2 + (uint64_t)i) % 100);
        pack_rows(&p, lengths, n, 128, true);
        pack_deal(&p, ranks, owner);
        check_plan(&p, lengths, n, 128);
        for (int m = 0; m < p.n_micro; m++) {
            assert_in_range(owner[m], 0, ranks - 1);
            load[owner[m]] += p.micro[m].tokens;
            total += p.micro[m].tokens;
            longest = MAX(longest, p.micro[m].tokens);
        }
        for (int r = 0; r < ranks; r++) assert_true(load[r] <= total / ranks + longest);
    }
    pack_free(&p);
}

static void ties_go_to_the_lower(void **state)
{
    (void)state;
    PackPlan p = {0};
    int lengths[] = {5, 5, 5, 5}, owner[4];
    pack_rows(&p, lengths, 4, 5, true);
    pack_deal(&p, 2, owner);
    for (int m = 0; m < 4; m++) {
        assert_int_equal(p.order[m], m);
        assert_int_equal(owner[m], m % 2);
    }
    pack_deal(&p, 8, owner); // more ranks than micro-batches: some get none
    for (int m = 0; m < 4; m++) assert_int_equal(owner[m], m);
    pack_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_steps),
        cmocka_unit_test(known_plans),
        cmocka_unit_test(dealing),
        cmocka_unit_test(ties_go_to_the_lower),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
