// attn_fwd and attn_bwd: tuned against reference, gradients against differences, and the promises about bits: a sequence's
// results depend neither on the number of threads nor on what is packed beside it.
#include "kernel_test.h"

enum { MAX_SEQS = 5, GAP = 3 }; // rows between sequences, which hold NaN and must be neither read nor written

typedef struct Case {
    const char *name;
    int NH, KV, D, window;
    float softcap;
    int q_len[MAX_SEQS], k_len[MAX_SEQS]; // k_len 0: q_len; a sequence of 0 keys ends the list
} Case;

static const Case cases[] = {
    {"one token", 1, 1, 16, 0, 0, {1}, {0}},
    {"one sequence", 2, 2, 64, 0, 0, {45}, {0}},
    {"groups", 9, 3, 64, 0, 0, {33, 5}, {0}},
    {"one kv head", 4, 1, 24, 0, 0, {31}, {0}},
    {"packed", 4, 2, 32, 0, 0, {7, 64, 1, 29}, {0}},
    {"smallest heads", 2, 1, 2, 0, 0, {19}, {0}},
    {"odd heads", 3, 1, 10, 0, 0, {40, 3}, {0}},
    {"heads of 80", 2, 1, 80, 0, 0, {37}, {0}},
    {"heads of 96", 1, 1, 96, 0, 0, {30}, {0}},
    {"heads of 128", 2, 1, 128, 0, 0, {29}, {0}},
    {"heads of 256", 1, 1, 256, 0, 0, {17}, {0}},
    {"window", 4, 2, 64, 16, 0, {70, 10}, {0}},
    {"window of 1", 2, 1, 16, 1, 0, {35}, {0}},
    {"softcap", 4, 2, 64, 0, 3, {50}, {0}},
    {"softcap and window", 2, 1, 80, 20, 2, {61, 4}, {0}},
    {"decode", 9, 3, 64, 0, 0, {1, 1, 1}, {130, 1, 64}},
    {"decode, chunks", 4, 2, 64, 0, 0, {1, 1, 20}, {300, 129, 150}},
    {"decode, chunks, all", 6, 2, 80, 140, 3, {2, 8, 1}, {257, 150, 400}},
    {"decode, chunks, odd heads", 3, 1, 10, 0, 0, {1, 4}, {383, 131}},
    {"decode, chunks of heads of 256", 2, 1, 256, 0, 0, {1}, {260}},
    {"cache", 4, 2, 32, 0, 0, {20, 9, 1}, {50, 9, 33}},
    {"cache and window", 4, 2, 32, 8, 0, {20, 9, 1}, {90, 9, 33}},
    {"cache without queries", 2, 1, 16, 0, 0, {0, 12}, {21, 12}},
    {"several blocks", 2, 1, 16, 0, 0, {600}, {0}},
    {"several blocks, cache", 3, 1, 8, 0, 0, {270, 30}, {800, 600}},
    {"several blocks, window", 2, 1, 16, 300, 0, {550}, {640}},
    {"several blocks, short window", 1, 1, 16, 5, 2, {600}, {1190}},
};

static bool too_long(const Case *c)
{
    double pairs = 0;
    for (int s = 0; s < MAX_SEQS; s++) pairs += (double)c->q_len[s] * (c->k_len[s] ? c->k_len[s] : c->q_len[s]);
    return pairs * c->NH * c->D > KERNEL_MOST_WORK;
}

// ---- operands -------------------------------------------------------------------------------------------------------
typedef struct Work { // every array is as long as it must be and no longer
    DType t;
    AttnShape a;
    int32_t q_start[MAX_SEQS], q_len[MAX_SEQS], k_start[MAX_SEQS], k_len[MAX_SEQS];
    int64_t ldq, ldkv, ldo;
    size_t nq, nkv, no, nlse; // elements
    void *q, *kv, *o, *dout, *dq, *dkv;
    float *lse;
} Work;

static void *at(void *p, DType t, int64_t i)
{
    return (char *)p + i * (int64_t)dtype_size(t);
}

static void poison_gaps(const Work *w, void *p, int64_t ld, const int32_t *start, const int32_t *len, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        bool owned = false;
        for (int s = 0; s < w->a.S; s++) owned |= (int64_t)i / ld >= start[s] && (int64_t)i / ld < start[s] + len[s];
        if (!owned) put(p, w->t, i, NAN);
    }
}

// Sequences [first, first + count) of a case. Values depend on the place within the sequence alone.
static void fill_rows(const Work *w, void *p, int64_t ld, const int32_t *start, const int32_t *len, int first, int what)
{
    for (int s = 0; s < w->a.S; s++)
        for (int64_t i = 0; i < len[s] * ld; i++)
            put(p, w->t, (size_t)(start[s] * ld + i),
                random_at((uint64_t)(100 * what + first + s), (uint64_t)i, what == 0 ? 3 : 1));
}

static void layout(Work *w, const Case *c, int first, int count)
{
    int q = 0, k = 0;
    for (int s = 0; s < count && first + s < MAX_SEQS; s++) {
        int q_len = c->q_len[first + s], k_len = c->k_len[first + s] ? c->k_len[first + s] : q_len;
        if (!k_len) break;
        w->q_start[s] = q, w->q_len[s] = q_len, w->k_start[s] = k, w->k_len[s] = k_len;
        q += q_len + GAP, k += k_len + GAP;
        w->a.S++;
    }
    w->nq = (size_t)(MAX(q - GAP, 1) * w->ldq), w->no = (size_t)(MAX(q - GAP, 1) * w->ldo);
    w->nkv = (size_t)(MAX(k - GAP, 1) * w->ldkv), w->nlse = (size_t)(c->NH * MAX(q - GAP, 1));
}

static Work work_new(const Case *c, DType t, int first, int count)
{
    const int beside = c->D % 8 ? 6 : 8; // columns between rows of q; devices differ by whether rows are aligned
    Work w = {.t = t, .ldq = c->NH * c->D + beside, .ldkv = 2 * c->KV * c->D, .ldo = c->NH * c->D};
    w.a = (AttnShape){0, NULL, NULL, NULL, NULL, c->NH, c->KV, c->D, 1 / sqrtf((float)c->D), c->softcap, c->window};
    layout(&w, c, first, count);
    size_t sizes[] = {w.nq, w.nkv, w.no, w.no, w.nq, w.nkv};
    void **arrays[] = {&w.q, &w.kv, &w.o, &w.dout, &w.dq, &w.dkv};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) *arrays[i] = random_values(t, sizes[i], 7, 1);
    w.lse = xcalloc(w.nlse, sizeof(float));
    fill_rows(&w, w.q, w.ldq, w.q_start, w.q_len, first, 0);
    fill_rows(&w, w.kv, w.ldkv, w.k_start, w.k_len, first, 1);
    fill_rows(&w, w.dout, w.ldo, w.q_start, w.q_len, first, 2);
    poison_gaps(&w, w.q, w.ldq, w.q_start, w.q_len, w.nq);
    poison_gaps(&w, w.kv, w.ldkv, w.k_start, w.k_len, w.nkv);
    poison_gaps(&w, w.dout, w.ldo, w.q_start, w.q_len, w.no);
    return w;
}

static void work_free(Work *w)
{
    void *arrays[] = {w->q, w->kv, w->o, w->dout, w->dq, w->dkv, w->lse};
    for (size_t i = 0; i < COUNT_OF(arrays); i++) free(arrays[i]);
}

static AttnShape shape_of(const Work *w) // Work moves when it is returned: its pointers are set where it is used
{
    AttnShape a = w->a;
    a.q_start = w->q_start, a.q_len = w->q_len, a.k_start = w->k_start, a.k_len = w->k_len;
    return a;
}

static void forward(Device *d, Work *w)
{
    AttnShape a = shape_of(w);
    void *v = at(w->kv, w->t, (int64_t)a.KV * a.D);
    d->op.attn_fwd(d, w->t, w->o, w->ldo, w->lse, w->q, w->ldq, w->kv, v, w->ldkv, &a);
}

static void backward(Device *d, Work *w)
{
    AttnShape a = shape_of(w);
    int64_t v = (int64_t)a.KV * a.D;
    d->op.attn_bwd(d, w->t, w->dq, w->ldq, w->dkv, at(w->dkv, w->t, v), w->ldkv, w->dout, w->o, w->ldo, w->lse, w->q,
                   w->ldq, w->kv, at(w->kv, w->t, v), w->ldkv, &a);
}

// ---- tests ----------------------------------------------------------------------------------------------------------
static void expect_rows(const char *what, const Work *got, const void *x, const void *y, int64_t ld,
                        const int32_t *start, const int32_t *len, double limit)
{
    for (int s = 0; s < got->a.S; s++)
        expect_nmse(what, got->t, at((void *)x, got->t, start[s] * ld), at((void *)y, got->t, start[s] * ld),
                    (size_t)(len[s] * ld), limit);
}

static void compare_case(Device *tuned, Device *ref, const Case *c, DType t)
{
    double limit = t == DT_BF16 ? 3e-5 : 1e-11; // dS is rounded to bf16 on its way
    Work got = work_new(c, t, 0, MAX_SEQS), want = work_new(c, t, 0, MAX_SEQS);
    forward(tuned, &got);
    forward(ref, &want);
    expect_rows(c->name, &got, got.o, want.o, got.ldo, got.q_start, got.q_len, limit);
    expect_nmse(c->name, DT_F32, got.lse, want.lse, got.nlse, 1e-11);
    memcpy(got.o, want.o, got.no * dtype_size(t)); // both differentiate at the same point
    memcpy(got.lse, want.lse, got.nlse * sizeof(float));
    backward(tuned, &got);
    backward(ref, &want);
    expect_rows(c->name, &got, got.dq, want.dq, got.ldq, got.q_start, got.q_len, limit);
    expect_rows(c->name, &got, got.dkv, want.dkv, got.ldkv, got.k_start, got.k_len, limit);
    work_free(&got);
    work_free(&want);
}

static void tuned_equals_reference(void **state)
{
    (void)state;
    Device *ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *tuned = open_isa(kernel_isas[i], 2);
        if (!tuned) continue;
        for (size_t c = 0; c < COUNT_OF(cases); c++)
            for (size_t t = 0; t < COUNT_OF(kernel_types) && !too_long(&cases[c]); t++)
                compare_case(tuned, ref, &cases[c], kernel_types[t]);
        device_close(tuned);
    }
    device_close(ref);
}

static void rows_between_sequences_are_left_alone(void **state)
{
    (void)state;
    Device *d = open_threads("cpu", 2);
    const Case c = {"gaps", 2, 1, 24, 0, 0, {5, 17, 2}, {9, 0, 0}};
    Work got = work_new(&c, DT_F32, 0, 3), before = work_new(&c, DT_F32, 0, 3);
    forward(d, &got);
    backward(d, &got);
    for (int s = 0; s < 2; s++) {
        int64_t q = got.q_start[s] + got.q_len[s], k = got.k_start[s] + got.k_len[s];
        expect_same_bits("o", (float *)got.o + q * got.ldo, (float *)before.o + q * got.ldo, 4 * GAP * got.ldo);
        expect_same_bits("dq", (float *)got.dq + q * got.ldq, (float *)before.dq + q * got.ldq, 4 * GAP * got.ldq);
        expect_same_bits("dkv", (float *)got.dkv + k * got.ldkv, (float *)before.dkv + k * got.ldkv,
                         4 * GAP * got.ldkv);
    }
    work_free(&got);
    work_free(&before);
    device_close(d);
}

typedef struct Loss {
    Device *d;
    Work *w;
} Loss;

static double loss_of(void *context) // sum of dout * o
{
    Loss *l = context;
    Work *w = l->w;
    forward(l->d, w);
    double sum = 0;
    for (int s = 0; s < w->a.S; s++)
        for (int64_t i = w->q_start[s] * w->ldo; i < (w->q_start[s] + w->q_len[s]) * w->ldo; i++)
            sum += (double)((float *)w->o)[i] * ((float *)w->dout)[i];
    return sum;
}

static void gradient_case(Device *d, const Case *c)
{
    Work w = work_new(c, DT_F32, 0, MAX_SEQS);
    memset(w.dq, 0, w.nq * sizeof(float)); // the columns between the rows of q have no gradient
    forward(d, &w);
    backward(d, &w);
    for (int s = 0; s < w.a.S; s++) {
        int64_t q = w.q_start[s] * w.ldq, k = w.k_start[s] * w.ldkv;
        expect_gradient(c->name, loss_of, &(Loss){d, &w}, (float *)w.q + q, (size_t)(w.q_len[s] * w.ldq),
                        (float *)w.dq + q, 1e-2f, 1e-2);
        expect_gradient(c->name, loss_of, &(Loss){d, &w}, (float *)w.kv + k, (size_t)(w.k_len[s] * w.ldkv),
                        (float *)w.dkv + k, 1e-2f, 1e-2);
    }
    work_free(&w);
}

static void gradients_are_slopes(void **state)
{
    (void)state;
    static const Case small[] = {
        {"packed groups", 4, 2, 8, 0, 0, {9, 4}, {0}}, {"window", 2, 1, 8, 4, 0, {14}, {0}},
        {"softcap", 2, 1, 8, 0, 1.5f, {11}, {0}},      {"cache", 2, 1, 6, 0, 0, {5, 1}, {12, 9}},
        {"all", 4, 2, 6, 5, 2, {6, 9}, {15, 9}},
    };
    static const char *const devices[] = {"cpu-ref", "cpu"};
    for (size_t i = 0; i < COUNT_OF(devices); i++) {
        Device *d = open_threads(devices[i], 1);
        for (size_t c = 0; c < COUNT_OF(small); c++) gradient_case(d, &small[c]);
        device_close(d);
    }
}

// Both are run forward and backward; `got` holds sequence s0 of `want` as its first.
static void expect_sequence(const char *what, const Work *got, const Work *want, int s0)
{
    size_t size = dtype_size(got->t);
    int64_t q = want->q_start[s0], k = want->k_start[s0];
    expect_same_bits(what, got->o, at(want->o, got->t, q * got->ldo), (size_t)(got->q_len[0] * got->ldo) * size);
    for (int64_t i = 0; i < got->q_len[0]; i++)
        expect_same_bits(what, at(got->dq, got->t, i * got->ldq), at(want->dq, got->t, (q + i) * got->ldq),
                         (size_t)got->ldo * size);
    expect_same_bits(what, got->dkv, at(want->dkv, got->t, k * got->ldkv), (size_t)(got->k_len[0] * got->ldkv) * size);
}

static void packing_changes_no_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kernel_isas) * COUNT_OF(kernel_types); i++) {
        DType t = kernel_types[i % COUNT_OF(kernel_types)];
        Device *d = open_isa(kernel_isas[i / COUNT_OF(kernel_types)], 2);
        for (size_t c = 0; d && c < COUNT_OF(cases); c++) {
            if (too_long(&cases[c])) continue;
            Work all = work_new(&cases[c], t, 0, MAX_SEQS);
            forward(d, &all);
            backward(d, &all);
            for (int s = 0; s < all.a.S; s++) {
                Work alone = work_new(&cases[c], t, s, 1);
                forward(d, &alone);
                backward(d, &alone);
                expect_sequence(cases[c].name, &alone, &all, s);
                work_free(&alone);
            }
            work_free(&all);
        }
        device_close(d);
    }
}

static void threads_change_no_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases) * COUNT_OF(kernel_types); i++) {
        const Case *c = &cases[i / COUNT_OF(kernel_types)];
        DType t = kernel_types[i % COUNT_OF(kernel_types)];
        if (too_long(c)) continue;
        Work w[3];
        for (int n = 0; n < 3; n++) {
            Device *d = open_threads("cpu", n + 1);
            w[n] = work_new(c, t, 0, MAX_SEQS);
            forward(d, &w[n]);
            backward(d, &w[n]);
            device_close(d);
            if (!n) continue;
            expect_same_bits(c->name, w[n].o, w[0].o, w[0].no * dtype_size(t));
            expect_same_bits(c->name, w[n].lse, w[0].lse, w[0].nlse * sizeof(float));
            expect_same_bits(c->name, w[n].dq, w[0].dq, w[0].nq * dtype_size(t));
            expect_same_bits(c->name, w[n].dkv, w[0].dkv, w[0].nkv * dtype_size(t));
        }
        for (int n = 0; n < 3; n++) work_free(&w[n]);
    }
}

// What must not be lost: a NaN in a query shows in its output and nowhere else.
static void nan_stays_visible(void **state)
{
    (void)state;
    const Case c = {"nan", 2, 1, 16, 0, 0, {20}, {0}};
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *d = open_isa(kernel_isas[i], 1);
        if (!d) continue;
        Work w = work_new(&c, DT_F32, 0, 1);
        ((float *)w.q)[7 * w.ldq + 3] = NAN; // head 0 of query 7
        forward(d, &w);
        for (int64_t row = 0; row < 20; row++)
            for (int64_t col = 0; col < w.ldo; col++)
                assert_int_equal(isnan(((float *)w.o)[row * w.ldo + col]) != 0, row == 7 && col < 16);
        work_free(&w);
        device_close(d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tuned_equals_reference), cmocka_unit_test(rows_between_sequences_are_left_alone),
        cmocka_unit_test(gradients_are_slopes),   cmocka_unit_test(packing_changes_no_bit),
        cmocka_unit_test(threads_change_no_bit),  cmocka_unit_test(nan_stays_visible),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
