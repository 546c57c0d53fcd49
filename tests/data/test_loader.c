// runtime/data/loader.c: which rows a step has, on any number of ranks and from any step on, and how they lie in memory.
#include "data_test.h"

static Dataset *rows_of_mixed_length(int n)
{
    int lengths[256];
    for (int i = 0; i < n; i++) lengths[i] = 2 + (i * 37 + 11) % 50;
    return test_rows(lengths, n);
}

static void unshuffled_order(void **state)
{
    (void)state;
    static const struct {
        int rows, batch;
    } cases[] = {{10, 4}, {10, 10}, {3, 8}, {1, 3}, {7, 1}, {12, 4}};
    for (size_t k = 0; k < COUNT_OF(cases); k++) {
        Dataset *d = rows_of_mixed_length(cases[k].rows);
        LoaderConfig c = {.data = d, .batch = cases[k].batch, .data_size = 1};
        for (int64_t step = 0; step < 40; step++)
            for (int i = 0; i < c.batch; i++)
                assert_int_equal(loader_row(&c, step, i), (step * c.batch + i) % cases[k].rows);
        assert_int_equal(loader_steps_per_epoch(d, c.batch), (cases[k].rows + c.batch - 1) / c.batch);
        dataset_close(d);
    }
}

// Positions [e * rows, (e+1) * rows) hold every row once, whatever the batch; epochs and seeds differ.
static void shuffled_epochs(void **state)
{
    (void)state;
    for (int rows = 1; rows <= 130; rows += rows < 12 ? 1 : 17) {
        Dataset *d = rows_of_mixed_length(rows);
        LoaderConfig c = {.data = d, .batch = 5, .data_size = 1, .shuffle = true, .seed = 3};
        int64_t orders[3][130];
        for (int epoch = 0; epoch < 3; epoch++) {
            bool seen[130] = {false};
            for (int i = 0; i < rows; i++) {
                int64_t p = (int64_t)epoch * rows + i, row = loader_row(&c, p / c.batch, (int)(p % c.batch));
                assert_in_range(row, 0, rows - 1);
                assert_false(seen[row]);
                seen[row] = true;
                orders[epoch][i] = row;
            }
        }
        if (rows > 12) {
            assert_memory_not_equal(orders[0], orders[1], (size_t)rows * sizeof(int64_t));
            assert_memory_not_equal(orders[1], orders[2], (size_t)rows * sizeof(int64_t));
            c.seed = 4;
            int same = 0;
            for (int i = 0; i < rows; i++) same += loader_row(&c, i / c.batch, i % c.batch) == orders[0][i];
            assert_true(same < rows / 2);
        }
        dataset_close(d);
    }
}

// Of 4 rows all 24 orders come up, each about as often: chi-square with 23 degrees of freedom stays below its 99.99 % point.
static void shuffles_are_uniform(void **state)
{
    (void)state;
    enum { EPOCHS = 4800 };
    Dataset *d = rows_of_mixed_length(4);
    LoaderConfig c = {.data = d, .batch = 4, .data_size = 1, .shuffle = true, .seed = 1};
    int count[256] = {0}, orders = 0;
    for (int64_t epoch = 0; epoch < EPOCHS; epoch++) {
        int code = 0;
        for (int i = 0; i < 4; i++) code = code << 2 | (int)loader_row(&c, epoch, i);
        count[code]++;
    }
    double chi2 = 0;
    for (int i = 0; i < 256; i++) {
        if (!count[i]) continue;
        double off = count[i] - EPOCHS / 24.0;
        chi2 += off * off / (EPOCHS / 24.0);
        orders++;
    }
    assert_int_equal(orders, 24);
    assert_true(chi2 < 58.6);
    dataset_close(d);
}

static void check_batch(const Dataset *d, const Batch *b)
{
    int T = 0, M = 0;
    for (int s = 0; s < b->S; s++) {
        const Row *r = dataset_row(d, b->row[s]);
        assert_int_equal(b->seq_start[s], T);
        assert_int_equal(b->seq_len[s], r->n);
        assert_memory_equal(b->tokens + T, r->ids, (size_t)r->n * sizeof *r->ids);
        for (int t = 0; t < r->n; t++) {
            assert_int_equal(b->pos[T + t], t);
            if (!r->train[t]) continue;
            assert_int_equal(b->head_row[M], T + t - 1);
            assert_int_equal(b->target[M], r->ids[t]);
            assert_int_equal(b->head_seq[M], s);
            M++;
        }
        T += r->n;
    }
    assert_int_equal(b->T, T);
    assert_int_equal(b->M, M);
}

static bool same_batch(const Batch *a, const Batch *b)
{
    return a->T == b->T && a->S == b->S && a->M == b->M && !memcmp(a->tokens, b->tokens, (size_t)a->T * 4) &&
           !memcmp(a->row_key, b->row_key, (size_t)a->T * 8) && !memcmp(a->row, b->row, (size_t)a->S * 8) &&
           !memcmp(a->head_row, b->head_row, (size_t)a->M * 4);
}

// Of the arrays of a step's micro-batches, as an arena gives them.
static size_t bytes_of(const StepBatches *sb)
{
    size_t bytes =
        ROUND_UP((size_t)sb->n * sizeof(Batch), ARENA_ALIGN) + ROUND_UP((size_t)sb->n * sizeof(int), ARENA_ALIGN);
    for (int m = 0; m < sb->n; m++) {
        const size_t T = (size_t)sb->batch[m].T, S = (size_t)sb->batch[m].S, M = (size_t)sb->batch[m].M;
        bytes += 2 * ROUND_UP(4 * T, ARENA_ALIGN) + ROUND_UP(8 * T, ARENA_ALIGN) + 2 * ROUND_UP(4 * S, ARENA_ALIGN) +
                 ROUND_UP(8 * S, ARENA_ALIGN) + 3 * ROUND_UP(4 * M, ARENA_ALIGN);
    }
    return bytes;
}

// N ranks together have exactly the micro-batches of one rank, bit for bit, and agree on the step's sums.
static void ranks_share_the_step(void **state)
{
    (void)state;
    static const struct {
        int rows, batch, micro_tokens;
        bool pack, shuffle;
    } cases[] = {{40, 16, 64, true, true}, {40, 16, 64, false, true}, {90, 90, 64, false, true},
                 {3, 8, 100, true, false}, {5, 2, 4096, true, true},  {60, 33, 51, true, false}};
    for (size_t k = 0; k < COUNT_OF(cases); k++) {
        Dataset *d = rows_of_mixed_length(cases[k].rows);
        LoaderConfig c = {d, 7, cases[k].shuffle, cases[k].pack, cases[k].batch, cases[k].micro_tokens, 0, 1, 9};
        LoaderBounds bounds = loader_bounds(&c), reached = {0};
        for (int ranks = 2; ranks <= 4; ranks += 2) {
            Loader *one, *many[4];
            assert_int_equal(loader_open(&one, &c, 0), OK);
            for (int r = 0; r < ranks; r++) {
                LoaderConfig share = c;
                share.data_rank = r;
                share.data_size = ranks;
                assert_int_equal(loader_open(&many[r], &share, 0), OK);
            }
            for (int64_t step = 0; step < c.steps; step++) {
                const StepBatches *whole, *part;
                int dealt = 0;
                int64_t tokens = 0, trained_tokens = 0;
                assert_int_equal(loader_next(one, &whole), OK);
                assert_int_equal(whole->step, step);
                assert_int_equal(whole->n, whole->n_micro);
                reached.micros = MAX(reached.micros, whole->n_micro);
                reached.memory = MAX(reached.memory, bytes_of(whole));
                for (int m = 0; m < whole->n; m++) {
                    const Batch *b = &whole->batch[m];
                    assert_int_equal(whole->micro_index[m], m);
                    check_batch(d, b);
                    tokens += b->T;
                    trained_tokens += b->M;
                    reached.T = MAX(reached.T, b->T);
                    reached.S = MAX(reached.S, b->S);
                    reached.M = MAX(reached.M, b->M);
                }
                assert_int_equal(whole->tokens, tokens);
                assert_int_equal(whole->trained_tokens, trained_tokens);
                for (int r = 0; r < ranks; r++) {
                    assert_int_equal(loader_next(many[r], &part), OK);
                    assert_int_equal(part->tokens, tokens);
                    assert_int_equal(part->trained_tokens, trained_tokens);
                    assert_int_equal(part->n_micro, whole->n_micro);
                    for (int m = 0; m < part->n; m++) {
                        if (m) assert_true(part->micro_index[m] > part->micro_index[m - 1]);
                        assert_true(same_batch(&part->batch[m], &whole->batch[part->micro_index[m]]));
                    }
                    dealt += part->n;
                }
                assert_int_equal(dealt, whole->n_micro);
            }
            loader_close(one);
            for (int r = 0; r < ranks; r++) loader_close(many[r]);
        }
        reached.memory = 3 * ROUND_UP(reached.memory, 4096);   // three slots of whole pages
        assert_memory_equal(&bounds, &reached, sizeof bounds); // exact for short runs
        c.data_size = 4;
        assert_true(loader_bounds(&c).memory < bounds.memory || c.batch < 4);
        dataset_close(d);
    }
}

// A loader opened at step k goes on as one that came there, with another number of ranks too.
static void resume_anywhere(void **state)
{
    (void)state;
    Dataset *d = rows_of_mixed_length(23);
    LoaderConfig c = {d, 5, true, true, 6, 80, 0, 1, 20};
    int times[23] = {0};
    for (int64_t first = 0; first < c.steps; first++) {
        Loader *l;
        const StepBatches *sb;
        assert_int_equal(loader_open(&l, &c, first), OK);
        int64_t last = first % 3 ? first + 1 : c.steps; // some are closed early, with steps made ahead
        for (int64_t step = first; step < last; step++) {
            bool left[23] = {false};
            assert_int_equal(loader_next(l, &sb), OK);
            assert_int_equal(sb->step, step);
            for (int i = 0; i < c.batch; i++) left[loader_row(&c, step, i)] = true;
            for (int m = 0; m < sb->n; m++)
                for (int s = 0; s < sb->batch[m].S; s++) {
                    assert_true(left[sb->batch[m].row[s]]);
                    if (first == 0) times[sb->batch[m].row[s]]++;
                }
        }
        loader_close(l);
    }
    for (int i = 0; i < 23; i++) assert_in_range(times[i], 5, 6); // 120 positions of 23 rows: 5 epochs and a bit
    dataset_close(d);
}

static void ends_with_the_run(void **state)
{
    (void)state;
    Dataset *d = rows_of_mixed_length(4);
    LoaderConfig c = {d, 5, false, true, 2, 80, 0, 1, 2};
    Loader *l;
    const StepBatches *sb;
    assert_int_equal(loader_open(&l, &c, 0), OK);
    assert_int_equal(loader_next(l, &sb), OK);
    assert_int_equal(loader_next(l, &sb), OK);
    assert_int_equal(loader_next(l, &sb), E_FAILED);
    error_clear();
    loader_close(l);
    loader_close(NULL);
    dataset_close(d);
}

// More ranks than micro-batches: a rank with nothing to do still gets every step.
static void idle_ranks(void **state)
{
    (void)state;
    Dataset *d = rows_of_mixed_length(2);
    int busy = 0;
    for (int r = 0; r < 8; r++) {
        LoaderConfig c = {d, 5, true, true, 2, 4096, r, 8, 3};
        Loader *l;
        const StepBatches *sb;
        assert_int_equal(loader_open(&l, &c, 0), OK);
        for (int step = 0; step < 3; step++) {
            assert_int_equal(loader_next(l, &sb), OK);
            assert_int_equal(sb->n_micro, 1);
            assert_true(sb->trained_tokens > 0);
            busy += sb->n;
        }
        loader_close(l);
    }
    assert_int_equal(busy, 3);
    dataset_close(d);
}

// Token identities differ between steps, positions and tokens, and depend on the seed.
static void identities(void **state)
{
    (void)state;
    enum { STEPS = 10 };
    Dataset *d = rows_of_mixed_length(9);
    uint64_t keys[20000];
    int n = 0;
    for (uint64_t seed = 0; seed < 2; seed++) {
        LoaderConfig c = {d, seed, true, true, 9, 128, 0, 1, STEPS};
        Loader *l;
        const StepBatches *sb;
        assert_int_equal(loader_open(&l, &c, 0), OK);
        for (int step = 0; step < STEPS; step++) {
            assert_int_equal(loader_next(l, &sb), OK);
            for (int m = 0; m < sb->n; m++)
                for (int t = 0; t < sb->batch[m].T; t++) keys[n++] = sb->batch[m].row_key[t];
        }
        loader_close(l);
    }
    assert_true(n > 1000 && n <= 20000);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++) assert_true(keys[i] != keys[j]);
    dataset_close(d);
}

// A run too long to scan gets bounds that any of its steps keeps.
static void bounds_of_long_runs(void **state)
{
    (void)state;
    Dataset *d = rows_of_mixed_length(60);
    for (int pack = 0; pack < 2; pack++) {
        LoaderConfig c = {d, 5, true, pack, 16, 120, 0, 1, 1000};
        LoaderBounds exact = loader_bounds(&c);
        c.steps = (int64_t)1 << 40;
        LoaderBounds loose = loader_bounds(&c);
        assert_true(loose.T >= exact.T && loose.S >= exact.S && loose.M >= exact.M && loose.micros >= exact.micros);
        assert_true(loose.T <= 120 && loose.M <= loose.T && loose.micros == 16);
    }
    int64_t far = loader_row(&(LoaderConfig){.data = d, .batch = 1 << 20, .shuffle = true}, INT64_MAX / 4, 5);
    assert_in_range(far, 0, 59);
    dataset_close(d);
}

static void counts_trained(void **state)
{
    (void)state;
    int lengths[] = {2, 3, 10};
    Dataset *d = test_rows(lengths, 3);
    for (int i = 0; i < 3; i++) assert_int_equal(dataset_row(d, i)->trained, lengths[i] - 1);
    assert_int_equal(dataset_stats(d).trained_tokens, 12);
    dataset_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unshuffled_order),     cmocka_unit_test(shuffled_epochs),
        cmocka_unit_test(shuffles_are_uniform), cmocka_unit_test(ranks_share_the_step),
        cmocka_unit_test(resume_anywhere),      cmocka_unit_test(ends_with_the_run),
        cmocka_unit_test(idle_ranks),           cmocka_unit_test(identities),
        cmocka_unit_test(bounds_of_long_runs),  cmocka_unit_test(counts_trained),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
