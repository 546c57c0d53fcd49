// Cuts: heads and widths over tensor ranks, rows over data ranks, units and their chunks; and sums that do not depend on order.
#include "sharding.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { MOST = 32 };

// Ranks' heads follow one another and make up all; each rank's query heads read its own key/value heads, as many queries each.
static void check_heads(int NH, int KV, int size)
{
    const int group = NH / KV;
    int q = 0;
    for (int rank = 0; rank < size; rank++) {
        TpCut c;
        assert_int_equal(tp_cut(&c, rank, size, NH, KV, 1000, 1000), OK);
        assert_int_equal(c.q0, q);
        assert_true(c.NH >= 1 && c.KV >= 1 && c.NH % c.KV == 0);
        for (int h = 0; h < c.NH; h++)
            assert_int_equal(c.kv0 + h / (c.NH / c.KV), (c.q0 + h) / group); // as the kernels pair them
        assert_true(rank >= c.kv_first && rank < c.kv_first + c.kv_ranks);
        if (size <= KV) assert_int_equal(c.kv_ranks, 1);
        q += c.NH;
    }
    assert_int_equal(q, NH);
}

static void test_heads(void **state)
{
    (void)state;
    for (int KV = 1; KV <= 8; KV++)
        for (int group = 1; group <= 6; group++)
            for (int size = 1; size <= KV * group; size++) check_heads(KV * group, KV, size);
    TpCut c; // SmolLM2: 9 heads on 3
    static const int want[4][4] = {{9}, {3, 6}, {3, 3, 3}, {3, 3, 1, 2}};
    for (int size = 1; size <= 4; size++)
        for (int rank = 0; rank < size; rank++) {
            assert_int_equal(tp_cut(&c, rank, size, 9, 3, 1536, 49152), OK);
            assert_int_equal(c.NH, want[size - 1][rank]);
        }
}

static void test_ranks_that_share_a_head(void **state)
{
    (void)state;
    for (int KV = 1; KV <= 4; KV++)
        for (int size = KV + 1; size <= 4 * KV; size++) {
            int sharing[MOST] = {0}, first[MOST];
            TpCut c;
            for (int rank = size - 1; rank >= 0; rank--) {
                assert_int_equal(tp_cut(&c, rank, size, 4 * KV, KV, 1000, 1000), OK);
                assert_int_equal(c.KV, 1);
                sharing[c.kv0]++;
                first[c.kv0] = rank;
            }
            for (int rank = 0; rank < size; rank++) {
                assert_int_equal(tp_cut(&c, rank, size, 4 * KV, KV, 1000, 1000), OK);
                assert_int_equal(c.kv_ranks, sharing[c.kv0]);
                assert_int_equal(c.kv_first, first[c.kv0]);
            }
        }
}

static void test_widths_and_slabs(void **state)
{
    (void)state;
    static const int widths[][2] = {{1536, 49152}, {96, 320}, {7, 11}, {256, 64}};
    for (size_t w = 0; w < COUNT_OF(widths); w++)
        for (int size = 1; size <= 7; size++) {
            int f = 0, v = 0;
            for (int rank = 0; rank < size; rank++) {
                TpCut c;
                assert_int_equal(tp_cut(&c, rank, size, 8, 8, widths[w][0], widths[w][1]), OK);
                assert_int_equal(c.f0, f);
                assert_int_equal(c.v0, v);
                assert_true(c.F > 0 && c.V > 0);
                TpSlab up = tp_slab(&c, TP_ROWS_F, 16, widths[w][0], 100), o = tp_slab(&c, TP_COLS_Q, 16, 100, 128),
                       norm = tp_slab(&c, TP_WHOLE, 16, 100, 1);
                assert_true(up.row0 == f && up.rows == c.F && up.col0 == 0 && up.cols == 100);
                assert_true(o.row0 == 0 && o.rows == 100 && o.col0 == c.q0 * 16 && o.cols == c.NH * 16);
                assert_true(norm.row0 == 0 && norm.rows == 100 && norm.cols == 1);
                f += c.F;
                v += c.V;
            }
            assert_true(f == widths[w][0] && v == widths[w][1]);
        }
}

static void test_too_many_ranks(void **state)
{
    (void)state;
    TpCut c;
    assert_int_equal(tp_cut(&c, 0, 9, 8, 8, 1000, 1000), E_INPUT);
    assert_non_null(strstr(error_last()->hint, "at most 8"));
    error_clear();
    assert_int_equal(tp_cut(&c, 0, 8, 8, 8, 7, 1000), E_INPUT);
    assert_non_null(strstr(error_last()->hint, "at most 7"));
    error_clear();
}

// ---- units ----------------------------------------------------------------------------------------------------------
static const ShardTensor tensors[] = {{10, 7, 1, SUM_TENSOR, true}, {2500, 4001, 0, SUM_DATA, true},
                                      {1, 1, 1, SUM_DATA, true},    {3, 50, 1, SUM_DATA, true},
                                      {64, 1, 3, SUM_DATA, true},   {0, 5, 1, SUM_KV, true}};

// Marks in seen what the pieces hold, and checks that they lie one behind the other, part by part.
static void check_pieces(const Units *u, int unit, const Piece *piece, const size_t *start, unsigned char **seen)
{
    const int n = u->first[unit + 1] - u->first[unit];
    size_t at = 0;
    for (int part = 0; part < u->parts; part++) {
        assert_int_equal(start[part], at);
        for (int j = 0; j < n; j++) {
            const Piece *p = &piece[part * n + j];
            const ShardTensor *t = &u->t[p->tensor];
            Rows mine = part_rows(t->N, part, u->parts);
            assert_int_equal(p->at, at);
            assert_int_equal(t->unit, unit);
            if (j) assert_true(t->sum >= u->t[piece[part * n + j - 1].tensor].sum);
            if (p->rows) assert_true(p->row0 >= mine.row0 && p->row0 + p->rows <= mine.row0 + mine.rows);
            for (int r = 0; r < p->rows; r++) seen[p->tensor][p->row0 + r]++;
            at += (size_t)p->rows * (size_t)t->K;
        }
    }
    assert_int_equal(start[u->parts], at);
}

static void test_units_hold_every_row_once(void **state)
{
    (void)state;
    for (int parts = 1; parts <= 5; parts++)
        for (int whole = 0; whole < 2; whole++) {
            Units u;
            units_open(&u, tensors, COUNT_OF(tensors), 4, parts);
            Piece *piece = xcalloc((size_t)u.most * (size_t)parts, sizeof *piece);
            size_t *start = xcalloc((size_t)parts + 1, sizeof *start), total = 0;
            unsigned char *seen[COUNT_OF(tensors)];
            for (size_t t = 0; t < COUNT_OF(tensors); t++) seen[t] = xcalloc((size_t)tensors[t].N + 1, 1);
            assert_int_equal(unit_chunks(&u, 0), 3);
            assert_int_equal(unit_chunks(&u, 1), 1);
            for (int unit = 0; unit < 4; unit++)
                for (int chunk = 0; chunk < (whole ? 1 : unit_chunks(&u, unit)); chunk++) {
                    if (whole)
                        unit_whole(&u, unit, piece, start);
                    else
                        unit_chunk(&u, unit, chunk, piece, start);
                    check_pieces(&u, unit, piece, start, seen);
                    if (!whole) assert_true(start[parts] <= units_largest(&u));
                    total += start[parts];
                }
            for (size_t t = 0; t < COUNT_OF(tensors); t++) {
                for (int r = 0; r < tensors[t].N; r++) assert_int_equal(seen[t][r], 1);
                free(seen[t]);
            }
            assert_int_equal(total, unit_elements(&u, 0) + unit_elements(&u, 1) + unit_elements(&u, 3));
            free(piece);
            free(start);
            units_close(&u);
        }
}

// ---- exact sums -----------------------------------------------------------------------------------------------------
static void test_exact_sums(void **state)
{
    (void)state;
    enum { N = 5000 };
    static double x[N];
    long double plain = 0;
    for (uint64_t i = 0; i < N; i++) {
        uint32_t u[4];
        philox(7, 0, i, u);
        x[i] = ldexp((double)u32_to_unit(u[0]) + 1e-9, (int)(u[1] % 120) - 90);
        plain += (long double)x[i];
    }
    ExactSum forward = {0}, backward = {0}, halves[2] = {0};
    for (int i = 0; i < N; i++) {
        exact_add(&forward, x[i]);
        exact_add(&backward, x[N - 1 - i]);
        exact_add(&halves[i % 2], x[i]);
    }
    for (int i = 0; i <= EXACT_LIMBS; i++) halves[0].limb[i] += halves[1].limb[i]; // as ranks' sums meet
    const double f = exact_value(&forward), b = exact_value(&backward), h = exact_value(&halves[0]);
    assert_memory_equal(&f, &b, sizeof f);
    assert_memory_equal(&f, &h, sizeof f);
    assert_true(fabsl((long double)f - plain) <= fabsl(plain) * 0x1p-52L);
}

static double sum_of(const double *x, int n)
{
    ExactSum s = {0};
    for (int i = 0; i < n; i++) exact_add(&s, x[i]);
    return exact_value(&s);
}

static void test_exact_ends(void **state)
{
    (void)state;
    assert_true(sum_of(NULL, 0) == 0);
    assert_true(sum_of((double[]){0x1p-256, 0x1p-256}, 2) == 0x1p-255);
    assert_true(sum_of((double[]){0x1p-300, 4.9e-324}, 2) == 0); // below the lowest bit
    assert_true(sum_of((double[]){0x1.8p255, 0x1p-200}, 2) == 0x1.8p255);
    assert_true(sum_of((double[]){1, 0x1p-53, 0x1p-53}, 3) == 1 + 0x1p-52); // plain addition loses both
    assert_true(isinf(sum_of((double[]){1, INFINITY}, 2)));
    assert_true(isinf(sum_of((double[]){1, NAN}, 2)));
    assert_true(isinf(sum_of((double[]){0x1p256}, 1)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_ranks_that_share_a_head),
        cmocka_unit_test(test_widths_and_slabs),
        cmocka_unit_test(test_too_many_ranks),
        cmocka_unit_test(test_units_hold_every_row_once),
        cmocka_unit_test(test_exact_sums),
        cmocka_unit_test(test_exact_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
