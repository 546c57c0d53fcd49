// runtime/eval/sampler.c and the rule of kernels/sample.h: greedy, filters, frequencies against probabilities, independence of batching.
#include "eval/sampler.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h> // last: its fail() hides ours

enum { V = 6, DRAWS = 20000 };
static const float logits6[V] = {0.5f, 2.0f, -1.0f, 2.0f, 1.0f, -30.0f};

static int32_t sample(SamplerConfig c, const float *logits, int n, uint64_t sequence, uint64_t position)
{
    return sample_row(&c, logits, n, sampler_draw(c.seed, sequence, position));
}

static void greedy(void **state)
{
    (void)state;
    SamplerConfig c = {.temperature = 0, .top_p = 1, .seed = 3};
    for (uint64_t i = 0; i < 50; i++) assert_int_equal(sample(c, logits6, V, i, i), 1); // 1 and 3 are equal: the lower
    c.temperature = 1;
    c.top_k = 1;
    for (uint64_t i = 0; i < 50; i++) assert_int_equal(sample(c, logits6, V, i, i), 1);
    c.top_k = 0;
    c.top_p = 0; // one token at least
    for (uint64_t i = 0; i < 50; i++) assert_int_equal(sample(c, logits6, V, i, i), 1);
    c.top_p = 1;
    c.temperature = 1e-30; // no overflow: only the two best are left
    for (uint64_t i = 0; i < 50; i++) assert_true(sample(c, logits6, V, 0, i) % 2 == 1);
}

static void bad_logits(void **state)
{
    (void)state;
    SamplerConfig cold = {.temperature = 0, .top_p = 1}, warm = {.temperature = 1, .top_p = 0.9, .top_k = 3};
    float bad[][3] = {{0, NAN, 1}, {NAN, NAN, NAN}, {-INFINITY, -INFINITY, -INFINITY}, {0, INFINITY, 1}};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_int_equal(sample(cold, bad[i], 3, 0, 0), -1);
        assert_int_equal(sample(warm, bad[i], 3, 0, 0), -1);
    }
    assert_int_equal(sample(cold, logits6, 0, 0, 0), -1);
    float masked[3] = {-INFINITY, -5, -INFINITY}; // masking is fine
    assert_int_equal(sample(cold, masked, 3, 0, 0), 1);
    for (uint64_t i = 0; i < 50; i++)
        assert_int_equal(sample((SamplerConfig){.temperature = 2, .top_p = 1}, masked, 3, 0, i), 1);
}

// Pearson's statistic of DRAWS draws against probabilities p; returns the degrees of freedom
static int chi_square(SamplerConfig c, const float *logits, const double *p, double *statistic)
{
    int count[V] = {0}, dof = -1;
    for (uint64_t i = 0; i < DRAWS; i++) {
        int32_t id = sample(c, logits, V, i / 100, i % 100);
        assert_in_range(id, 0, V - 1);
        count[id]++;
    }
    *statistic = 0;
    for (int i = 0; i < V; i++) {
        if (p[i] * DRAWS < 1e-3) {
            assert_int_equal(count[i], 0);
            continue;
        }
        *statistic += pow(count[i] - p[i] * DRAWS, 2) / (p[i] * DRAWS);
        dof++;
    }
    return dof;
}

// p: softmax(logits / temperature) over the tokens of the bit set `kept`
static void check_frequencies(SamplerConfig c, unsigned kept)
{
    double p[V], total = 0, statistic;
    for (int i = 0; i < V; i++) total += p[i] = kept >> i & 1 ? exp(logits6[i] / c.temperature) : 0;
    for (int i = 0; i < V; i++) p[i] /= total;
    int dof = chi_square(c, logits6, p, &statistic);
    // mean dof, variance 2 dof: five standard deviations above is one in some 10^4; the seeds are fixed
    if (statistic > dof + 5 * sqrt(2.0 * MAX(dof, 1)))
        fail_msg("chi-square %g with %d degrees of freedom", statistic, dof);
}

static void frequencies(void **state)
{
    (void)state;
    check_frequencies((SamplerConfig){.temperature = 1, .top_p = 1, .seed = 1}, 0x3f);
    check_frequencies((SamplerConfig){.temperature = 0.7, .top_p = 1, .seed = 2}, 0x3f);
    check_frequencies((SamplerConfig){.temperature = 2.5, .top_p = 1, .seed = 3}, 0x3f);
    check_frequencies((SamplerConfig){.temperature = 1, .top_p = 1, .top_k = 3, .seed = 4}, 0x1a); // 1, 3, 4
    check_frequencies((SamplerConfig){.temperature = 1, .top_p = 1, .top_k = 100, .seed = 5}, 0x3f);
}

// softmax(logits6): .0845 .3787 .0189 .3787 .1393 and nearly 0; largest first they reach .3787 .7574 .8967
// .9811 1
static void top_p_edges(void **state)
{
    (void)state;
    struct {
        double top_p;
        unsigned kept;
    } cases[] = {{0.3, 0x02}, {0.4, 0x0a}, {0.75, 0x0a}, {0.8, 0x1a}, {0.9, 0x1b}, {0.98, 0x1b}, {0.99, 0x1f}};
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        check_frequencies((SamplerConfig){.temperature = 1, .top_p = cases[i].top_p, .seed = i}, cases[i].kept);
    // Exactly reached: four equal tokens of 1/4 each, the smallest set with a sum >= 1/2 has two
    float equal[4] = {1, 1, 1, 1};
    for (uint64_t i = 0; i < 200; i++)
        assert_true(sample((SamplerConfig){.temperature = 1, .top_p = 0.5}, equal, 4, 0, i) < 2);
    // top-p looks at what top-k left: 1 and 3 are 1/2 each of the two, so that 0.5 keeps one
    for (uint64_t i = 0; i < 200; i++)
        assert_int_equal(sample((SamplerConfig){.temperature = 1, .top_p = 0.5, .top_k = 2}, logits6, V, 0, i), 1);
    // temperature comes first: hot, all are nearly 1/6, so that 0.48 keeps three
    unsigned seen = 0;
    for (uint64_t i = 0; i < 500; i++)
        seen |= 1u << sample((SamplerConfig){.temperature = 1000, .top_p = 0.48}, logits6, V, 0, i);
    assert_int_equal(seen, 0x1a);
}

// Large vocabulary, where selection and pruning do something: the kept set equals the one of a full sort
static int by_logit(const void *a, const void *b)
{
    const float *x = *(const float *const *)a, *y = *(const float *const *)b;
    return *x != *y ? (*x > *y ? -1 : 1) : (x > y) - (x < y);
}

static void against_full_sort(void **state)
{
    (void)state;
    enum { N = 5000 };
    float *z = xmalloc(N * sizeof *z);
    const float **order = xmalloc(N * sizeof *order);
    bool *kept = xmalloc(N);
    for (uint64_t trial = 0; trial < 40; trial++) {
        SamplerConfig c = {.temperature = 0.5 + 0.1 * (double)(trial % 9),
                           .top_p = trial % 3 ? 0.3 + 0.017 * (double)trial : 1,
                           .top_k = trial % 4 ? (int)(trial * trial) : 0,
                           .seed = trial};
        for (int i = 0; i < N; i++) {
            uint32_t r[4];
            philox(trial, 0, (uint64_t)i, r);
            z[i] = (float)(r[0] % 64) / 8 * (float)(r[1] % 3); // many equal values
            order[i] = &z[i];
        }
        qsort(order, N, sizeof *order, by_logit);
        int n = c.top_k > 0 ? MIN(c.top_k, N) : N;
        double total = 0, before = 0;
        for (int i = 0; i < n; i++) total += exp((*order[i] - *order[0]) / c.temperature);
        memset(kept, 0, N);
        for (int i = 0; i < n && (i == 0 || c.top_p >= 1 || before < (c.top_p + 1e-6) * total); i++) {
            kept[order[i] - z] = true;
            before += exp((*order[i] - *order[0]) / c.temperature);
        }
        for (uint64_t i = 0; i < 50; i++) assert_true(kept[sample(c, z, N, trial, i)]);
    }
    free(z);
    free(order);
    free(kept);
}

static void keyed_by_seed_sequence_position(void **state)
{
    (void)state;
    SamplerConfig c = {.temperature = 5, .top_p = 1, .seed = 9}, other = {.temperature = 5, .top_p = 1, .seed = 10};
    int same_seed = 0, same_sequence = 0, same_position = 0;
    for (uint64_t i = 0; i < 300; i++) {
        int32_t id = sample(c, logits6, V, 7, i);
        assert_int_equal(id, sample(c, logits6, V, 7, i)); // again, whatever was drawn between
        same_seed += id == sample(other, logits6, V, 7, i);
        same_sequence += id == sample(c, logits6, V, 8, i);
        same_position += id == sample(c, logits6, V, 7, i + 1000);
    }
    assert_true(same_seed < 150 && same_sequence < 150 && same_position < 150); // about a fifth each by chance
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy),
        cmocka_unit_test(bad_logits),
        cmocka_unit_test(frequencies),
        cmocka_unit_test(top_p_edges),
        cmocka_unit_test(against_full_sort),
        cmocka_unit_test(keyed_by_seed_sequence_position),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
