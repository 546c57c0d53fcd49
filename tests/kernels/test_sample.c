// sample: every device draws the token that the reference draws, from rows of any length, with equal logits, masks, and filters that keep
// one token or all; and what they answer when no token can be drawn.
#include "kernel_test.h"

enum { MOST_ROWS = 6 };

typedef struct Case {
    const char *name;
    int V, n;
    float scale;
    int steps; // values are multiples of scale / steps, so that many are equal; 0: any
    int left;  // so many of a row are not masked; 0: all
} Case;

static const Case cases[] = {
    {"one token", 1, 3, 1, 0, 0},        {"two", 2, 5, 1, 0, 0},
    {"all equal", 100, 4, 1e-9f, 1, 0},  {"a prime", 257, 6, 4, 0, 0},
    {"equal logits", 1021, 5, 3, 4, 0},  {"two values", 2048, 3, 1, 1, 0},
    {"masked", 2049, 4, 5, 0, 900},      {"few left", 777, 4, 5, 3, 3},
    {"far apart", 4099, 3, 300, 0, 0},   {"close", 5003, 3, 1e-4f, 0, 0},
    {"a vocabulary", 50257, 1, 8, 0, 0},
};

static const SamplerConfig configs[] = {
    {.temperature = 0, .top_p = 1},
    {.temperature = 1, .top_p = 1},
    {.temperature = 0.7, .top_p = 0.9, .top_k = 40},
    {.temperature = 1, .top_p = 0.01},
    {.temperature = 1, .top_p = 0},
    {.temperature = 2, .top_p = 0.999},
    {.temperature = 1000, .top_p = 0.5, .top_k = 1000000},
    {.temperature = 1e-30, .top_p = 1},
    {.temperature = 1, .top_p = 1, .top_k = 1},
    {.temperature = 1, .top_p = 0.6, .top_k = 3},
};

static float *make_logits(const Case *c)
{
    const size_t V = (size_t)c->V, n = V * (size_t)c->n;
    float *z = random_values(DT_F32, n, V, c->scale);
    for (size_t i = 0; i < n; i++) {
        if (c->steps) z[i] = rintf(z[i] / c->scale * (float)c->steps) * (c->scale / (float)c->steps);
        if (c->left && (i % V * 7919 + i / V) % V >= (size_t)c->left) z[i] = -INFINITY;
    }
    return z;
}

static void sample_case(Device *tuned, Device *ref, const Case *c, size_t config)
{
    int32_t got[MOST_ROWS], want[MOST_ROWS];
    uint64_t draw[MOST_ROWS];
    float *z = make_logits(c);
    for (int r = 0; r < c->n; r++) draw[r] = hash64(&r, sizeof r, (uint64_t)c->V * COUNT_OF(configs) + config);
    if (c->n > 3) draw[0] = 0, draw[1] = UINT64_MAX;
    tuned->op.sample(tuned, got, z, draw, &configs[config], c->V, c->n);
    ref->op.sample(ref, want, z, draw, &configs[config], c->V, c->n);
    for (int r = 0; r < c->n; r++)
        if (got[r] != want[r] || got[r] < 0 || got[r] >= c->V)
            fail_msg("%s, configuration %zu, row %d: token %d, want %d", c->name, config, r, got[r], want[r]);
    free(z);
}

static void tuned_equals_reference(void **state)
{
    (void)state;
    Device *ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *tuned = open_isa(kernel_isas[i], 2);
        for (size_t k = 0; tuned && k < COUNT_OF(cases) * COUNT_OF(configs); k++)
            sample_case(tuned, ref, &cases[k / COUNT_OF(configs)], k % COUNT_OF(configs));
        if (tuned) device_close(tuned);
    }
    device_close(ref);
}

// Each row for itself: what is wrong with one says nothing of another.
static void rows_that_give_no_token(void **state)
{
    (void)state;
    enum { V = 130, ROWS = 6 };
    static const bool none[ROWS] = {false, true, true, true, true, false};
    static float z[ROWS * V];
    const uint64_t draw[ROWS] = {1, 2, 3, 4, 5, 6};
    for (int i = 0; i < ROWS * V; i++) z[i] = random_at(3, (uint64_t)i, 2);
    z[1 * V + 129] = NAN, z[2 * V] = INFINITY, z[4 * V + 64] = -NAN;
    for (int i = 0; i < V; i++) z[3 * V + i] = -INFINITY;
    for (int i = 0; i < V; i++) z[5 * V + i] = i == 77 ? -3e38f : -INFINITY;
    for (size_t i = 0; i < COUNT_OF(kernel_isas) + 1; i++) {
        Device *d = i < COUNT_OF(kernel_isas) ? open_isa(kernel_isas[i], 2) : open_threads("cpu-ref", 1);
        for (size_t c = 0; d && c < COUNT_OF(configs); c++) {
            int32_t id[ROWS];
            d->op.sample(d, id, z, draw, &configs[c], V, ROWS);
            for (int r = 0; r < ROWS; r++) assert_true(none[r] ? id[r] == -1 : id[r] >= 0 && id[r] < V);
            assert_int_equal(id[5], 77);
        }
        if (d) device_close(d);
    }
}

// The largest u draws the last token that is kept, the smallest the first; the first of equals is the most likely.
static void ends_of_the_draw(void **state)
{
    (void)state;
    static const float z[] = {-INFINITY, 1, 3, 3, 2, 3, -INFINITY};
    static const struct {
        SamplerConfig c;
        int32_t first, last;
    } ends[] = {
        {{.temperature = 1, .top_p = 1}, 1, 5},
        {{.temperature = 1, .top_p = 1, .top_k = 2}, 2, 3}, // of three equal ones
        {{.temperature = 1, .top_p = 1, .top_k = 4}, 2, 5},
        {{.temperature = 1, .top_p = 0.5}, 2, 3},
        {{.temperature = 1, .top_p = 0.7, .top_k = 3}, 2, 5},
        {{.temperature = 1, .top_p = 0.6, .top_k = 3}, 2, 3},
        {{.temperature = 0, .top_p = 1}, 2, 2},
    };
    for (size_t i = 0; i < COUNT_OF(kernel_isas) + 1; i++) {
        Device *d = i < COUNT_OF(kernel_isas) ? open_isa(kernel_isas[i], 2) : open_threads("cpu-ref", 1);
        for (size_t k = 0; d && k < COUNT_OF(ends); k++) {
            int32_t id[2];
            float *rows = xmalloc(2 * sizeof z);
            memcpy(rows, z, sizeof z), memcpy(rows + COUNT_OF(z), z, sizeof z);
            const uint64_t draw[2] = {0, UINT64_MAX};
            d->op.sample(d, id, rows, draw, &ends[k].c, COUNT_OF(z), 2);
            if (id[0] != ends[k].first || id[1] != ends[k].last) fail_msg("end %zu: tokens %d and %d", k, id[0], id[1]);
            free(rows);
        }
        if (d) device_close(d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(tuned_equals_reference),
                                       cmocka_unit_test(rows_that_give_no_token), cmocka_unit_test(ends_of_the_draw)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
